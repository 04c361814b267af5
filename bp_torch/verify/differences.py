"""Measurements that run a function again: derivatives by central differences, and how far rounding moves a result.

The differences are in float64, each with its uncertainty; kinks are recognised. A difference of nearly equal numbers
(1 − a of a saturated sigmoid, a gradient that is zero because its terms cancel, a ReLU's z within rounding of 0) has
only few correct digits, by hand or by autograd. To measure that, autograd runs again with the last digit of every
operation that rounds perturbed.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from bp_torch.verify.problem import Tensors, copies, flat

Function = Callable[[Tensors], Tensor]
EPS = torch.finfo(torch.float64).eps
MOST_KINKS = 1000  # entries that are tried, of those that differ; of more the same number, side by side
CENTRAL_ACCURACY = math.sqrt(EPS)
"""The relative error of central differences at their best, of a function that computes in float64 throughout. No
gradient has to agree with them more closely."""


class Derivative(NamedTuple):
    """A derivative by central differences."""

    value: float
    uncertainty: float  # how far off it may be
    step: float
    kinked: bool  # whether the step crosses a kink


def central_difference(
    function: Callable[[float], float], middle: float, x: float, negligible: float, noise: float | None = None
) -> Derivative:
    """dC/dx of one coordinate from ±h and ±h/2, error O(h⁴). ``function(step)`` is C at x + step, ``middle`` C at x.

    With D(h) = (C(x+h) − C(x−h)) / 2h and S(h) = C(x+h) − 2C(x) + C(x−h), smooth functions have D(h) − D(h/2) and
    S(h) − 4S(h/2) of higher order in h. Where the derivative jumps by Δ between x − h and x + h, |D(h) − D(h/2)| +
    |S(h) − 4S(h/2)| / 2h is at least the error that the jump makes (work it out for a kink at x + d: D(h) is off by
    Δ(h − d)/2h). The step starts at ε^(1/4) and shrinks until this uncertainty is ``negligible``: that of a smooth
    function falls as h², that of a kink stays, and noise in C grows as 1/h. The smallest step that a kink is sought
    with is 8e-6 max(1, |x|). ``noise`` is the rounding error of C; None: that of float64.
    """
    size = 2.0 ** math.ceil(math.log2(max(1.0, abs(x))))
    best, before, kinked = Derivative(math.nan, math.inf, 0.0, False), math.inf, False
    for level in range(6):
        h = size * (EPS**0.25 if noise is None else 0.05) / 4**level
        up, down, half_up, half_down = function(h), function(-h), function(h / 2), function(-h / 2)
        wide, narrow = (up - down) / (2 * h), (half_up - half_down) / h
        bend = (up - 2 * middle + down) - 4 * (half_up - 2 * middle + half_down)
        largest = max(abs(middle), abs(up), abs(down))
        if max(abs(up - middle), abs(down - middle)) <= 16 * EPS:  # the change may be lost in a sum with numbers near 1
            largest = max(largest, 1.0)
        rounding = (16 * EPS * largest if noise is None else 4 * noise) / h
        uncertainty = abs(wide - narrow) + abs(bend) / (2 * h)
        if uncertainty + rounding < best.uncertainty:
            best = Derivative((4 * narrow - wide) / 3, uncertainty + rounding, h, False)
        if uncertainty <= negligible + rounding:
            return best
        kinked = before / 8 < uncertainty <= 2 * before
        if level >= 2 and uncertainty > before / 8:
            break
        before = uncertainty if math.isfinite(uncertainty) else math.inf
    return best._replace(kinked=kinked)


class Differences:
    """Central differences of a function by one of its inputs. Autograd's gradient by it only helps to find kinks."""

    def __init__(
        self, function: Function, inputs: Tensors, name: str, gradient: Function, here: Tensor, eps: float = EPS
    ) -> None:
        """By the input ``name``, all in float64 or complex128; ``here`` is what ``gradient(inputs)`` is, (n,)."""
        self.function, self.name, self.gradient, self.here, self.eps = function, name, gradient, here, eps
        self.inputs = inputs | {name: inputs[name].clone(memory_format=torch.contiguous_format)}
        self.entries = real_view(self.inputs[name])
        self.start = self.entries.clone()
        self.copies = True  # until it is known that the function works on none of its inputs in place
        self.middle = self.value()
        with torch.inference_mode(False), torch.no_grad():
            lent = copies(self.inputs)
            self.function(lent)
        self.copies = not all(torch.equal(lent[key], t) for key, t in self.inputs.items())
        self.noise = None if eps == EPS else self._noise()

    def _noise(self) -> float:
        """The rounding error of the value: fourth differences, in which a smooth function vanishes, by their √70."""
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(len(self.start), generator=generator, dtype=torch.float64).to(self.start.device)
        values = torch.tensor([self.moved(direction, 1e-4 * k) for k in range(16)], dtype=torch.float64)
        return float(values.diff(n=4).square().mean().sqrt()) / math.sqrt(70)

    def value(self) -> float:
        """The function at ``entries``, as they are now."""
        with torch.inference_mode(False), torch.no_grad():
            return float(self.function(copies(self.inputs) if self.copies else dict(self.inputs)))

    def at_entry(self, i: int, negligible: float) -> Derivative:
        """The derivative by entry ``i``; it may be ``kinked``."""
        x = float(self.start[i])
        derivative = central_difference(partial(self.moved_entry, i), self.middle, x, negligible, self.noise)
        unit = torch.zeros(len(self.start), dtype=torch.float64)
        unit[i] = 1.0
        return self._with_cancelling_kinks(derivative, unit, negligible)

    def along(self, direction: Tensor, negligible: float) -> Derivative:
        """The derivative along ``direction`` (n,), on the CPU; it may be ``kinked``."""
        there = direction.to(self.start.device)
        derivative = central_difference(lambda step: self.moved(there, step), self.middle, 0.0, negligible, self.noise)
        return self._with_cancelling_kinks(derivative, direction, negligible)

    def moved_entry(self, i: int, step: float) -> float:
        """The function a ``step`` along entry ``i`` from its place."""
        self.entries[i] = self.start[i] + step
        value = self.value()
        self.entries[i] = self.start[i]
        return value

    def moved(self, direction: Tensor, step: float) -> float:
        """The function a ``step`` along ``direction`` from its place."""
        torch.add(self.start, direction.to(self.start.device), alpha=step, out=self.entries)
        value = self.value()
        self.entries.copy_(self.start)
        return value

    def _with_cancelling_kinks(self, derivative: Derivative, direction: Tensor, negligible: float) -> Derivative:
        """``kinked`` too if it is not autograd's, which itself bends by as much within a step: there kinks show that
        cancel each other in the values. A smooth gradient bends by a quarter of that in half a step."""
        if not math.isfinite(derivative.uncertainty):
            return derivative._replace(kinked=True)
        here = float(self.here @ direction)
        off = abs(derivative.value - here)
        if not derivative.kinked and off > 10 * negligible + derivative.uncertainty:
            ends = [[self._slope(direction, sign * h * derivative.step) for sign in (1, -1)] for h in (1, 0.5)]
            bend, half = (abs(one - 2 * here + other) for one, other in ends)
            if max(bend, half) > off / 4 and not bend / 6 < half < bend / 2.5:
                return derivative._replace(kinked=True)
        return derivative

    def _slope(self, direction: Tensor, step: float) -> float:
        """Autograd's, along ``direction``, a ``step`` away."""
        moved = copies(self.inputs)
        real_view(moved[self.name]).add_(direction.to(self.start.device), alpha=step)
        return float(self.gradient(moved) @ direction)

    def one_sided(self, along: int | Tensor) -> tuple[float, float]:
        """The slopes to the left and to the right, from one small step each: by an entry, or along a direction (n,)."""
        move = partial(self.moved_entry, along) if isinstance(along, int) else partial(self.moved, along)
        size = self.start[along].abs() if isinstance(along, int) else self.start.abs().max()
        step = 2.0 ** math.ceil(math.log2(max(1.0, float(size)))) * self.eps**0.5 * 8
        left, right = ((move(signed) - self.middle) / signed for signed in (-step, step))
        return left, right

    def taylor_slope(self, gradient: Tensor, direction: Tensor) -> float | None:
        """The power of h by which f(x + hv) − f(x) − h⟨gradient, v⟩ falls: 2 if right, else 1; None if rounding."""
        slope, there = float(gradient @ direction), direction.to(self.start.device)
        remainders = [abs(self.moved(there, h) - self.middle - h * slope) for h in (1e-2, 1e-3)]
        if not min(remainders) > 1e-13 * max(abs(self.middle), 1e-300):
            return None
        return math.log10(remainders[0] / remainders[1])


def real_view(t: Tensor) -> Tensor:
    """The entries of a contiguous tensor, (n,), as real numbers."""
    return (torch.view_as_real(t) if t.is_complex() else t).view(-1)


# ---- kinks: any slope between the one-sided ones will do there ----


def slopes_on_kinks(
    differences: Differences, ours: Tensor, suspects: Tensor, tolerance: float, seed: int, only: bool = True
) -> list[tuple[float, float]] | None:
    """The one-sided slopes (low, high) at the entries ``suspects`` (k,) of the gradient ``ours`` (n,), in that order.

    None if one of them lies on no kink (unless not ``only`` these are asked for), or not between its slopes; or if they
    pull together (entries of a maximum that are equal), and their sum is not between the slopes along all at once.
    """
    chosen = suspects
    if len(suspects) > MOST_KINKS:
        first = int(torch.randint(len(suspects), (1,), generator=torch.Generator().manual_seed(seed)))
        chosen = suspects.sort().values.roll(-first)[:MOST_KINKS]
    pairs, rounding = list[tuple[float, float]](), 0.0 if only else EPS**0.5 * abs(differences.middle)
    for i in chosen.tolist():
        left, right = differences.one_sided(i)
        size = max(abs(left), abs(right))
        if not abs(right - left) > 1e-4 * max(size, 1e-300) + rounding:
            if only:
                return None
            chosen = chosen[chosen != i]
            continue
        if not between(float(ours[i]), left, right, tolerance, rounding=rounding):
            return None
        pairs.append((left, right))
    together = torch.zeros_like(ours)
    together[chosen] = 1.0
    left, right = differences.one_sided(together)
    sums = [sum(pair[side] for pair in pairs) for side in (0, 1)]
    scale = sum(max(abs(a), abs(b)) for a, b in pairs)
    apart = max(abs(left - sums[0]), abs(right - sums[1])) <= 1e-4 * scale + rounding
    if not apart and not between(float(ours[chosen].sum()), left, right, tolerance, scale, rounding):
        return None
    return [(min(pair) + 0.0, max(pair) + 0.0) for pair in pairs]


def between(
    slope: float, left: float, right: float, tolerance: float, scale: float = 0.0, rounding: float = 0.0
) -> bool:
    """Whether a slope lies between the one-sided ones, to the tolerance of their size or another ``scale``."""
    low, high = min(left, right), max(left, right)
    room = max(1e-4, tolerance) * max(abs(low), abs(high), scale) + 1e-5 * (high - low) + rounding
    return low - room <= slope <= high + room


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
    compute: Callable[[], Tensors], seed: int, samples: int = SAMPLES, units: int = 1, exact: Tensors | None = None
) -> Tensors:
    """The change of each tensor that is computed in each of some perturbed runs, (samples, n); ``exact`` are those
    without a change, flat, if they are known."""
    exact = exact or {name: flat(t) for name, t in compute().items()}
    found = {name: torch.zeros(samples, len(t), dtype=torch.float64) for name, t in exact.items()}
    for sample in range(samples):
        with PerturbLastDigit(seed + sample, units):
            moved = compute()
        for name, t in exact.items():
            torch.sub(flat(moved[name]), t, out=found[name][sample]).nan_to_num_(0, 0, 0)
    return found


def jumps(compute: Callable[[], Tensors], seed: int) -> dict[str, Tensor]:
    """The entries (n,) of each gradient that jump: 64 times the perturbation moves them less than 8 times as far.

    Rounding moves a gradient in proportion to the perturbation. On a kink (equal entries of an L1 loss) the smallest
    one moves it as far as any.
    """
    one, many = (rounding_errors(compute, seed + 100, n, units) for n, units in ((SAMPLES, 1), (4, 64)))
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
