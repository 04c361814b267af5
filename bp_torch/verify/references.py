"""The references: the gradients of one function at one point by autograd, in two dtypes, and by central differences.

A gradient under test is compared with each. Everything is compared flat (n,), in float64, on the CPU; a complex number
is two entries.
"""

import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bp_torch.verify.differences import CENTRAL_ACCURACY, Derivative, Differences
from bp_torch.verify.problem import Problem, Tensors, autograd, copies, flat, in_float64, norm
from bp_torch.verify.report import Comparison
from bp_torch.verify.rounding import rounding_noise

EPS32 = torch.finfo(torch.float32).eps
NOISE_FACTOR = 4.0  # how many times further than rounding moves autograd's gradient another one may be off
DIRECTIONS = 8


def tolerance_of(dtype: torch.dtype) -> float:
    """ε^(2/3), the relative error that is allowed in ``dtype``: two thirds of its digits agree."""
    return float(torch.finfo(dtype).eps ** (2 / 3))


class Estimate(NamedTuple):
    """One gradient as one reference gives it: all of it, some of its entries, or its products with some directions."""

    reference: str
    values: Tensor  # (k,)
    entries: Tensor | None  # (k,), the indices of the values; None: of all, or along ``directions``
    size: float  # the norm that an error is relative to
    tolerance: float  # the relative error that is allowed
    uncertainty: float = 0.0  # how far off the estimate itself may be, as a norm
    skipped: int = 0  # how many entries the reference cannot give
    directions: Tensor | None = None  # (k, n)

    def select(self, whole: Tensor) -> Tensor:
        """The entries of ``whole`` (n,) that the estimate holds, (k,), or its products with the directions."""
        if self.directions is not None:
            return self.directions @ whole
        return whole if self.entries is None else whole[self.entries]


def compare(
    name: str, shape: tuple[int, ...], ours: Tensor, estimate: Estimate, noise_allowance: Callable[[], float]
) -> Comparison:
    """``ours`` (n,), the gradient called ``name``, against an estimate; ``noise_allowance`` is called if needed."""
    if not len(estimate.values):
        return Comparison(name, shape, estimate.reference, 0, 0, 0, 0, False, 0, (), 1, 0, estimate.skipped)
    ours, theirs, size = estimate.select(ours), estimate.values, estimate.size
    difference = (ours - theirs).abs()
    at = int(difference.nan_to_num(math.inf).argmax())
    entry = at if estimate.entries is None else int(estimate.entries[at])
    where = () if estimate.directions is not None else np.unravel_index(entry, shape)
    error, allowed = norm(difference), estimate.tolerance * size + estimate.uncertainty
    finite = math.isfinite(error)
    noise = noise_allowance() if finite and error > allowed else 0.0
    allowed += noise
    return Comparison(
        gradient=name,
        shape=shape,
        reference=estimate.reference,
        relative_error=_ratio(error, size) if finite else math.inf,
        allowed=_ratio(allowed, size),
        noise_allowance=_ratio(noise, size),
        error_ratio=error / allowed if finite else math.inf,
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


class References:
    """The gradients of one function at one point, without the one under test."""

    def __init__(self, problem: Problem, tolerance: float | None) -> None:
        """Compute the gradients by autograd. Raises as ``check`` does."""
        self.problem, self.function, self.inputs, self.seed = problem, problem.value, problem.inputs, problem.seed
        self.notes: list[str] = []  # why a reference is unavailable
        self.dtype, self.eps = problem.dtype, float(torch.finfo(problem.dtype).eps)  # of the coarsest input
        self.strict = tolerance is not None  # then there is no noise allowance beyond the tolerance
        self.tolerance = tolerance_of(self.dtype) if tolerance is None else tolerance  # relative
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance: expected a relative error between 0 and 1, got {self.tolerance}")
        self.linear_within = 0.0  # the relative difference between calls that is rounding
        self.underflow = 64 * torch.finfo(self.dtype).smallest_normal * self.eps
        value, gradients, self.unused = self._in_own_dtype()  # unused: the inputs that autograd finds no use of
        self._require_reproducible(value)
        self.gradients = {"autograd": {name: flat(g) for name, g in gradients.items()}}  # by reference and name
        self.inputs64: Tensors | None = in_float64(self.inputs)  # None if the function does not compute in float64
        if self.dtype in (torch.float64, torch.complex128):
            self.gradients["float64"] = self.gradients["autograd"]
        else:
            self._compute_in_float64(self.inputs64)
        if hasattr(problem.reference or problem.forward, "outside_autograd"):
            self.gradients = {}
            self.notes.append("autograd cannot go through the function, which leaves torch: central differences decide")
        elif problem.tensors is None and problem.backward is None and problem.reference is None:
            self.gradients = {}
            text = "without a reference= autograd would only repeat the gradient under test: central differences alone "
            self.notes.append(text + "decide")

    def _in_own_dtype(self) -> tuple[Tensor, Tensors, list[str]]:
        try:
            return autograd(self.function, self.inputs)
        except (RuntimeError, NotImplementedError) as error:
            if torch.finfo(self.dtype).bits > 16:
                raise
            place = f"in {str(self.dtype).removeprefix('torch.')} ({first_line(error)})"
            raise ValueError(f"torch cannot compute the function {place}: check it in float32") from error

    def _require_reproducible(self, value: Tensor) -> None:
        if not value.isfinite():
            raise ValueError(f"the function is {value.item()} at these inputs")
        again = self._once()
        if (again - value).abs() <= self.tolerance * value.abs() + self.underflow:
            return
        kind, advice = "keeps something from call to call", "start from the same state in every call"
        if torch.equal(with_seed(self.seed, self._once), with_seed(self.seed, self._once)):
            kind, advice = "draws random numbers", "draw what is random in it (a dropout mask) once, outside"
        text = f"it returns {value.item():.6g} and then {again.item():.6g} for the same inputs"
        raise ValueError(f"SETUP: the function {kind}: {text}: {advice}")

    def _once(self) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return self.function(copies(self.inputs)).detach().reshape(())

    def _compute_in_float64(self, inputs64: Tensors) -> None:
        try:
            value, gradients, _ = autograd(self.function, inputs64)
            reason = "" if value.dtype == torch.float64 else f"returns {value.dtype} for float64 inputs"
        except Exception as error:  # whatever a function raises that was not made for float64
            reason = f"fails in float64 ({first_line(error)})"
        if reason:
            self.inputs64 = None
            self.notes.append(f"float64 and central differences are unavailable: the function {reason}")
        else:
            self.gradients["float64"] = {name: flat(g) for name, g in gradients.items()}

    # ---- what they give ----

    def estimates(self, name: str, ours: Tensor, coordinates: int, seconds: float) -> dict[str, Estimate]:
        """Of the gradient ``name`` by each reference; ``ours`` says which entries differences are worth most for."""
        by_autograd = {reference: self._by_autograd(reference, name) for reference in self.gradients}
        found = {reference: estimate for reference, estimate in by_autograd.items() if estimate}
        if coordinates and self.inputs64 is not None:
            best = found.get("float64") or found.get("autograd")
            whole = best.values if best and best.entries is None else ours
            known = flat(self.inputs[name]).isfinite()
            indices = _choose(ours, whole, coordinates, self.seed)
            found |= self._by_differences(name, indices[known[indices]], best.size if best else 0.0, seconds)
        return found

    def _by_autograd(self, reference: str, name: str) -> Estimate | None:
        """None if it is nowhere finite."""
        whole = self.gradients[reference][name]
        finite = whole.isfinite()
        values, entries = (whole, None) if finite.all() else (whole[finite], finite.nonzero().flatten())
        if not len(values):
            return None
        skipped, uncertainty = len(whole) - len(values), self.underflow * math.sqrt(len(values))
        return Estimate(reference, values, entries, norm(values), self.tolerance, uncertainty, skipped)

    def differences(self, name: str) -> Differences:
        """Central differences by the input ``name``, in float64."""
        assert self.inputs64 is not None

        def gradient(inputs: Tensors) -> Tensor:
            return flat(autograd(self.function, inputs)[1][name])

        here = self.gradients["float64"][name] if self.gradients else gradient(self.inputs64)
        return Differences(self.function, self.inputs64, name, gradient, here)

    def _by_differences(self, name: str, indices: Tensor, size: float, seconds: float) -> dict[str, Estimate]:
        """Of the entries ``indices`` (k,), and along random directions if these are not all; {} if there are none."""
        tolerance, n, start = max(self.tolerance, CENTRAL_ACCURACY), len(flat(self.inputs[name])), time.monotonic()
        negligible = 0.1 * tolerance * size / math.sqrt(n)
        found = list[Derivative]()
        try:
            differences = self.differences(name)
            few = len(indices) == n or len(indices) < DIRECTIONS
            along = None if few else self._along_directions(differences, n, size, tolerance)
            for i in tqdm(indices.tolist(), desc=f"central differences of {name}", leave=False, disable=None, delay=2):
                if found and time.monotonic() - start > seconds:
                    break
                found.append(differences.at_entry(i, negligible))
        except Exception as error:  # a step may leave the region in which the function can be evaluated
            what = f"central differences of {name} are unavailable"
            self.notes.append(f"{what}: a step away the function raises {error!r}")
            return {}
        kept = [k for k, derivative in enumerate(found) if not derivative.kinked]
        values = torch.tensor([found[k].value for k in kept], dtype=torch.float64)
        central = Estimate(
            "central",
            values,
            None if len(kept) == n else indices[kept],
            max(norm(values.float()), size * math.sqrt(len(kept) / n)),  # on average
            tolerance,
            math.hypot(*(found[k].uncertainty for k in kept)) + self.underflow * math.sqrt(len(kept)),
            len(found) - len(kept),
        )
        return {"central": central} | ({"directions": along} if along else {})

    def _along_directions(self, differences: Differences, n: int, size: float, tolerance: float) -> Estimate | None:
        """Products of the gradient with random vectors: the mean square of an error's is its squared norm."""
        generator, found = torch.Generator().manual_seed(self.seed + 1), list[tuple[Tensor, Derivative]]()
        for _ in range(DIRECTIONS if n < 10**5 else 2):
            v = torch.randn(n, generator=generator, dtype=torch.float64)
            derivative = differences.along(v, 0.1 * tolerance * size)
            if math.isfinite(derivative.uncertainty) and not derivative.kinked:
                found.append((v, derivative))
        if not found:
            return None
        vectors, derivatives = zip(*found, strict=True)
        values = torch.tensor([d.value for d in derivatives], dtype=torch.float64)
        uncertainty = 4 * math.hypot(*(d.uncertainty for d in derivatives)) + self.underflow * math.sqrt(n)
        whole = max(size * math.sqrt(len(found)), norm(values))
        return Estimate("directions", values, None, whole, 4 * tolerance, uncertainty, directions=torch.stack(vectors))

    def expected(self, name: str, estimates: dict[str, Estimate]) -> Estimate | None:
        """The best estimate of a gradient: autograd's, or central differences if they contradict autograd."""
        best, central = estimates.get("float64") or estimates.get("autograd"), estimates.get("central")
        if best and best.skipped:
            return None
        if central is None or not len(central.values):
            return best
        return best if best and self.compare(name, best.values, central).ok else central

    # ---- whether a gradient agrees ----

    def compare(
        self, name: str, ours: Tensor, estimate: Estimate, noise: Callable[[], float] | None = None
    ) -> Comparison:
        """``ours`` (n,), the gradient called ``name``, against an estimate of it."""
        t = self.inputs[name]
        shape = (*t.shape, 2) if t.is_complex() else tuple(t.shape)
        return compare(name, shape, ours, estimate, noise or (lambda: self.noise_allowance(name, estimate)))

    @cached_property
    def noise(self) -> Tensors:
        """How far rounding moves each entry of autograd's gradients, squared. Measured only if an error needs it."""
        return rounding_noise(self.function, self.inputs, self.seed)

    def squared_noise(self, name: str, apart: bool = True) -> Tensor:
        """(n,): what rounding does to autograd's own gradient, and how far that is from float64 already (``apart``)."""
        noise = self.noise[name]
        if apart and "float64" in self.gradients:
            difference = self.gradients["autograd"][name] - self.gradients["float64"][name]
            noise = noise + difference.square().nan_to_num(0, 0, 0)
        return noise

    def noise_allowance(self, name: str, estimate: Estimate | None = None) -> float:
        """How much larger an error may be than the tolerance: a few times what rounding does to these entries."""
        if self.strict or not self.gradients:
            return 0.0
        squares = self.squared_noise(name, apart=estimate is None or estimate.reference != "autograd")
        total = float(squares.sum())
        if estimate is not None and estimate.directions is not None:
            total *= len(estimate.values)
        elif estimate is not None and estimate.entries is not None:
            share = total * len(estimate.values) / len(squares)  # a few runs do not measure one entry's own well
            total = float(squares[estimate.entries].sum()) + share
        return NOISE_FACTOR * math.sqrt(total)

    def same(self, one: Tensor, other: Tensor, name: str) -> bool:
        """Whether two results for the gradient called ``name`` are equal to rounding error."""
        if torch.equal(one, other):
            return True
        a, b = flat(one), flat(other)
        if one.shape != other.shape or not torch.equal(a.isfinite(), b.isfinite()):
            return False
        a, b = a[a.isfinite()], b[b.isfinite()]
        error = norm(a - b)
        allowed = max(self.tolerance, self.linear_within) * max(norm(a), norm(b)) + self.underflow * math.sqrt(len(a))
        return error <= allowed or error <= allowed + self.noise_allowance(name)


def with_seed(seed: int, function: Callable[[], Any]) -> Any:
    """Call a function after seeding torch, whose random numbers elsewhere are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return function()


def first_line(error: Exception) -> str:
    """Of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _choose(ours: Tensor, whole: Tensor, n: int, seed: int) -> Tensor:
    """The entries to take differences of, the most telling first: all, or n: the one furthest from ``whole``, then
    others, half of them where the gradient is not zero."""
    if len(ours) <= n:
        return torch.arange(len(ours))
    generator = torch.Generator().manual_seed(seed)
    furthest = (ours - whole).abs().nan_to_num(torch.inf).argmax().view(1)
    nonzero = whole.nonzero().flatten()
    some = nonzero[torch.randint(len(nonzero), (n // 2,), generator=generator)] if len(nonzero) else nonzero
    others = torch.randint(len(ours), (n - 1 - len(some),), generator=generator)
    return torch.tensor(list(dict.fromkeys(torch.cat([furthest, some, others]).tolist())))
