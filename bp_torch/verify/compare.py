"""One gradient compared with another as a reference gives it, and how far rounding alone moves a gradient.

Everything is flat (n,), in float64, on the CPU; a complex number is two entries. A difference of nearly equal numbers
(1 − a of a saturated sigmoid, a gradient that is zero because its terms cancel, a ReLU's z within rounding of 0) has
only few correct digits, by hand or by autograd. To measure that, autograd runs again with the last digit of every
operation that rounds perturbed. It excuses what rounding does, value by value; what is left of the error, as a norm,
has to be within the tolerance of the size of the whole.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from bp_torch.verify.problem import Tensors, autograd, flat, norm
from bp_torch.verify.report import Comparison

Allowance = tuple[Tensor | float, float]
"""How far rounding may move each of the values, (k,) or one number for all, and all of them together, as a norm."""
NONE: Allowance = (0.0, 0.0)


class Estimate(NamedTuple):
    """One gradient as one reference gives it: all of it, some of its entries, or its products with some directions."""

    reference: str
    values: Tensor  # (k,)
    entries: Tensor | None  # (k,), the indices of the values; None: of all, or along ``directions``
    size: float  # the norm that an error is relative to
    tolerance: float  # the relative error that is allowed
    uncertainty: Tensor | float = 0.0  # how far off each value itself may be, (k,) or one number for all
    skipped: int = 0  # how many entries the reference cannot give
    directions: Tensor | None = None  # (k, n)
    kinked: Tensor | None = None  # the indices of entries that the reference cannot give, since a step crosses a kink

    def select(self, whole: Tensor) -> Tensor:
        """The entries of ``whole`` (n,) that the estimate holds, (k,), or its products with the directions."""
        if self.directions is not None:
            return self.directions @ whole
        return whole if self.entries is None else whole[self.entries]

    def ratio(self, error: Tensor, allowance: Allowance) -> float:
        """The error (k,) that is left without what is excused, by the largest that is allowed."""
        each, together = allowance
        left = norm((error - self.uncertainty - each).clamp_(min=0))
        allowed = self.tolerance * self.size + together
        return left / allowed if allowed else math.inf if left else 0.0

    def agrees(self, ours: Tensor, noise: Callable[[], Allowance]) -> bool:
        """Whether the gradient ``ours`` (n,) is within what is allowed; ``noise`` is called if it is needed."""
        error = (self.select(ours) - self.values).abs()
        return self.ratio(error, NONE) <= 1 or self.ratio(error, noise()) <= 1


def compare(
    name: str, shape: tuple[int, ...], ours: Tensor, estimate: Estimate, noise: Callable[[], Allowance]
) -> Comparison:
    """``ours`` (n,), the gradient called ``name``, against an estimate; ``noise`` is called if it is needed."""
    if not len(estimate.values):
        return Comparison(name, shape, estimate.reference, 0, 0, 0, 0, False, 0, (), 1, 0, estimate.skipped)
    ours, theirs, size = estimate.select(ours), estimate.values, estimate.size
    difference = (ours - theirs).abs()
    at = int(difference.nan_to_num(math.inf).argmax())
    entry = at if estimate.entries is None else int(estimate.entries[at])
    where = () if estimate.directions is not None else np.unravel_index(entry, shape)
    error, allowance = norm(difference), NONE
    finite = math.isfinite(error)
    ratio = estimate.ratio(difference, NONE) if finite else math.inf
    if finite and ratio > 1:
        allowance = noise()
        ratio = estimate.ratio(difference, allowance)
    excused = norm(torch.minimum(difference, torch.as_tensor(allowance[0]).double())) + allowance[1] if finite else 0.0
    uncertain = norm(torch.minimum(difference, torch.as_tensor(estimate.uncertainty).double())) if finite else 0.0
    allowed = error / ratio if 1 < ratio < math.inf else estimate.tolerance * size + uncertain + excused
    return Comparison(
        gradient=name,
        shape=shape,
        reference=estimate.reference,
        relative_error=_ratio(error, size) if finite else math.inf,
        allowed=_ratio(allowed, size),
        noise_allowance=_ratio(excused, size),
        error_ratio=ratio,
        identical=torch.equal(ours.view(torch.int64), theirs.view(torch.int64)),  # unlike ==, this tells −0 from 0
        largest=float(difference[at]) if finite else math.inf,
        where=tuple(int(i) for i in where),
        cosine=_cosine(ours, theirs) if finite else 0.0,
        compared=len(theirs),
        skipped=estimate.skipped,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part else 0.0


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors, 1 if both are zero."""
    sizes = norm(a), norm(b)
    return float((a / sizes[0]) @ (b / sizes[1])) if all(sizes) else float(sizes == (0.0, 0.0))


def choose(ours: Tensor, whole: Tensor, n: int, seed: int) -> Tensor:
    """The entries to take differences of, in their order: the one furthest from ``whole``, then others at random, at
    most n of them; half of them where the gradient is not zero, if these are not all."""
    generator = torch.Generator().manual_seed(seed)
    furthest = (ours - whole).abs().nan_to_num(torch.inf).argmax().view(1)
    if len(ours) <= n:
        return torch.cat([furthest, (order := torch.randperm(len(ours), generator=generator))[order != furthest]])
    nonzero = whole.nonzero().flatten()
    some = nonzero[torch.randint(len(nonzero), (n // 2,), generator=generator)] if len(nonzero) else nonzero
    others = torch.randint(len(ours), (n - 1 - len(some),), generator=generator)
    return torch.tensor(list(dict.fromkeys(torch.cat([furthest, some, others]).tolist())))


# ---- rounding ----

SAMPLES = 8
MANY = 10**6  # entries, of which fewer runs measure as much


class PerturbLastDigit(TorchDispatchMode):
    """A context in which the inputs of every operation that rounds are off by up to one unit of rounding, at random
    (Parker 1997, Monte Carlo arithmetic). Those that select or move numbers (relu, max, where, index) run unperturbed.
    """

    ROUNDS = re.compile(
        r"(?!threshold|hardtanh|hardsigmoid|hardshrink|leaky|max_pool)((add)?mm|(badd)?bmm|mv|dot|linear|convolution|add|r?sub|mul|div|addcmul|addcdiv|sum|cumsum|prod|mean|var|std|"
        r"var_mean|exp|expm1|log|log1p|logsumexp|pow|r?sqrt|reciprocal|square|sigmoid|tanh|erf|sin|cos|"
        r".*(norm|softmax|attention|_backward).*)"
    )

    def __init__(self, seed: int, units: int = 1) -> None:
        """Draw from ``seed``; up to so many ``units`` of rounding."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator, self.units = torch.Generator().manual_seed(seed), units

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled: so the compiler, which takes a second or more, is not loaded."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, with perturbed inputs if it rounds and writes nothing in place."""
        name = func._schema.name.removeprefix("aten::")
        if self.ROUNDS.fullmatch(name) and not func._schema.is_mutable:
            args = tree_map_only(Tensor, self._perturb, args)
        return func(*args, **(kwargs or {}))

    def _perturb(self, t: Tensor) -> Tensor:
        if not (t.is_floating_point() or t.is_complex()):
            return t
        wide = torch.promote_types(t.dtype, torch.float32)
        real = torch.float64 if wide in (torch.float64, torch.complex128) else torch.float32
        noise = torch.rand(t.shape, generator=self.generator, dtype=real).mul_(2).sub_(1).to(t.device)
        return t * (1 + noise * (self.units * torch.finfo(t.dtype).eps)).to(t.dtype)


def rounding_errors(
    function: Callable[[Tensors], Tensor],
    inputs: Tensors,
    seed: int,
    samples: int = SAMPLES,
    units: int = 1,
    exact: Tensors | None = None,
) -> Tensors:
    """The change of each of autograd's gradients in each of some perturbed runs, (samples, n); ``exact`` are those
    without a change, if they are known."""
    exact = exact or {name: flat(g) for name, g in autograd(function, inputs)[1].items()}
    found = {name: torch.zeros(samples, len(g), dtype=torch.float64) for name, g in exact.items()}
    for sample in range(samples):
        with PerturbLastDigit(seed + sample, units):
            moved = autograd(function, inputs)[1]
        for name, g in exact.items():
            torch.sub(flat(moved[name]), g, out=found[name][sample]).nan_to_num_(0, 0, 0)
    return found


def rounding_noise(function: Callable[[Tensors], Tensor], inputs: Tensors, seed: int) -> Tensors:
    """The mean square by which rounding moves each entry (n,) of autograd's gradients."""
    return {name: moved.square().mean(0) for name, moved in rounding_errors(function, inputs, seed).items()}


def jumps(function: Callable[[Tensors], Tensor], inputs: Tensors, seed: int) -> dict[str, Tensor]:
    """The entries (n,) of each gradient that jump: 64 times the perturbation moves them less than 8 times as far.

    Rounding moves a gradient in proportion to the perturbation. On a kink (equal entries of an L1 loss) the smallest
    one moves it as far as any.
    """
    one, many = (rounding_errors(function, inputs, seed + 100, n, units) for n, units in ((SAMPLES, 1), (4, 64)))
    return {n: root_mean_square(many[n]) < 8 * root_mean_square(one[n]) for n in one}


def root_mean_square(t: Tensor) -> Tensor:
    """Of each column of (k, n), without overflow of the squares."""
    unit = max((float(row.abs().max()) for row in t if t.numel()), default=0.0) or 1.0
    squares = torch.zeros(t.shape[1:], dtype=t.dtype)
    for row in t:
        squares += (row / unit).square_().div_(len(t))
    return squares.sqrt_().mul_(unit)


class DtypesSeen(TorchDispatchMode):
    """A context that notes in which dtypes of real or complex numbers operations compute, in a backward too."""

    def __init__(self) -> None:
        """Start with nothing noted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.eps = 0.0  # the coarsest rounding among them

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` and note the dtype of what it returns."""
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()):
                self.eps = max(self.eps, torch.finfo(t.dtype).eps)
        return result
