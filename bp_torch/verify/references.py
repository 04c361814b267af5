"""The references: the gradients of one function at one point by autograd, in two dtypes, and by central differences.

A gradient under test is compared with each (report.py).
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bp_torch.verify.differences import (
    EPS,
    MANY,
    SAMPLES,
    Derivative,
    Differences,
    DtypesSeen,
    jumps,
    root_mean_square,
    rounding_errors,
)
from bp_torch.verify.problem import Problem, Tensors, autograd, copies, copy_of, flat, in_float64, norm
from bp_torch.verify.report import NONE, Allowance, Comparison, Estimate, compare

Trust = Literal["autograd", "differences"]
EPS32 = torch.finfo(torch.float32).eps
COARSE = 1e-5  # a rounding above this is that of 16 bits
NOISE_FACTOR = 4.0  # how many times further than rounding moves autograd's gradient another one may be off
ALLOWED_IN_FLOAT64 = 8 * EPS32
"""The relative error that is allowed in float64 to a gradient of a coarser dtype: constants may have 7 digits only."""
DIRECTIONS = 8
ROUGH = 1e-12
"""A fourth difference, relative to the value, that float64 does not make even where most of the value cancels."""


def tolerance_of(dtype: torch.dtype) -> float:
    """ε^(2/3), the relative error that is allowed in ``dtype``: two thirds of its digits agree."""
    return float(torch.finfo(dtype).eps ** (2 / 3))


class NotReproducibleError(ValueError):
    """The function gives another value for the same inputs: nothing of it can be checked."""


class References:
    """The gradients of one function at one point, without the one under test."""

    def __init__(self, problem: Problem, tolerance: float | None, trust: Trust | None = None) -> None:
        """Compute the gradients by autograd. Raises as ``check`` does."""
        self.problem, self.function, self.inputs, self.seed = problem, problem.value, problem.inputs, problem.seed
        self.notes: list[str] = []  # why a reference is unavailable
        self.trust = trust  # which of autograd and differences is meant where they contradict each other
        self.dtype, self.eps = problem.dtype, float(torch.finfo(problem.dtype).eps)  # of the coarsest input
        self.given_tolerance = tolerance  # then there is no noise allowance beyond it
        self.strict = tolerance is not None
        self.tolerance = tolerance_of(self.dtype) if tolerance is None else tolerance  # relative, of the coarsest input
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance: expected a relative error between 0 and 1, got {self.tolerance}")
        self.linear_within = 0.0  # the relative difference between calls that is rounding in any case
        self.underflow = self.underflow_of(self.dtype)
        value, gradients, self.unused, seen = self._in_own_dtype()  # unused: the inputs that autograd finds no use of
        self._require_reproducible(value)
        self.gradients = {"autograd": {name: flat(g) for name, g in gradients.items()}}  # by reference and name
        self.inputs64: Tensors | None = in_float64(self.inputs)  # None if the function does not compute in float64
        self.eps64 = EPS  # of the coarsest dtype that the function computes in for float64 inputs
        if self.dtype in (torch.float64, torch.complex128):
            self.gradients["float64"] = self.gradients["autograd"]
            self._note_rounding_inside(value, seen)
        else:
            self._compute_in_float64(self.inputs64)
        self._raise_tolerance(seen)
        if problem.tensors is None and problem.backward is None and problem.reference is None:
            self.gradients = {}
            text = "without a reference= autograd would only repeat the gradient under test: central differences alone "
            self.notes.append(text + "decide")
        elif trust == "differences":
            self.gradients = {}

    def _in_own_dtype(self) -> tuple[Tensor, Tensors, list[str], float]:
        try:
            with DtypesSeen() as seen:
                return *autograd(self.function, self.inputs), seen.eps
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
        raise NotReproducibleError(f"the function {kind}: {text}: {advice}")

    def _once(self) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return self.function(copies(self.inputs)).detach().reshape(())

    # ---- in float64, and what rounds more coarsely inside ----

    def _compute_in_float64(self, inputs64: Tensors) -> None:
        try:
            with DtypesSeen() as seen:
                value, gradients, _ = autograd(self.function, inputs64)
            reason = ""
        except Exception as error:  # whatever a function raises that was not made for float64
            reason = f"fails in float64 ({first_line(error)})"
        if not reason:
            self.gradients["float64"] = {name: flat(g) for name, g in gradients.items()}
            return self._note_rounding_inside(value, seen.eps)
        self.inputs64 = None
        self.notes.append(f"float64 and central differences are unavailable: the function {reason}")

    def _note_rounding_inside(self, value: Tensor, seen: float) -> None:
        """Find out whether a function of float64 inputs computes in a coarser dtype, as far as its value shows it."""
        seen = max(seen, torch.finfo(value.dtype).eps)
        if seen <= EPS:
            return
        seen = seen if value.dtype != torch.float64 else min(seen, self._roundness())
        if seen <= EPS:
            return
        self.eps64 = seen
        if seen > COARSE:
            self.inputs64 = None
            self.gradients.pop("float64", None)
            self.notes.append(
                "float64 and central differences are unavailable: the function computes in 16 bits inside"
            )
        else:
            self.notes.append("for float64 inputs the function computes in float32 inside: it is judged as float32")

    def _roundness(self) -> float:
        """ε of the coarsest dtype that the value shows to compute in: in fourth differences a smooth function vanishes.

        16 bits do not move at all for the smallest step, and at the two larger ones they are as rough; a kink is not.
        """
        fine, wide, widest = (self._roughness(step) for step in (1e-6, 1e-3, 1e-2))
        if widest > 1e-4 and wide > widest / 20:
            return 1.0
        return EPS32 if fine > ROUGH else EPS

    def _roughness(self, step: float) -> float:
        """The median fourth difference of the value along a random direction, relative to its size."""
        assert self.inputs64 is not None
        generator = torch.Generator().manual_seed(self.seed + 4)
        v = {n: torch.randn(len(flat(t)), generator=generator, dtype=torch.float64) for n, t in self.inputs64.items()}
        with torch.no_grad():
            values = [float(self.function(self._moved(v, step * k))) for k in range(12)]
        size = max(map(abs, values)) or 1.0
        return float(torch.tensor(values, dtype=torch.float64).diff(n=4).abs().median()) / (8 * size)

    def _moved(self, v: Tensors, step: float) -> Tensors:
        moved = copies(self.inputs64 or {})
        for name, t in moved.items():
            entries = torch.view_as_real(t) if t.is_complex() else t
            entries.add_(v[name].view(entries.shape).to(t.device), alpha=step)
        return moved

    def _raise_tolerance(self, seen: float) -> None:
        """Judge what computes in a coarser dtype inside (autocast, an output in float32) as that dtype's."""
        right, eps = self.gradients.get("float64"), self.eps64 if self.eps64 > self.eps else 0.0
        if right and seen > self.eps and self.dtype != torch.float64:
            off = [norm(g - right[n]) > 16 * self.eps * norm(right[n]) for n, g in self.gradients["autograd"].items()]
            eps = max(eps, seen if any(off) else 0.0)
        self.judge_as(eps)
        self.units = 1  # the references compute in it themselves

    def judge_as(self, eps: float) -> None:
        """Judge every gradient by the rounding ``eps``, of a dtype that the function or the candidate computes in."""
        self.units = max(1, round(eps / self.eps)) if self.gradients else 1  # of the inputs' rounding
        self.eps_inside, self.eps = eps, max(eps, self.eps)
        if not self.strict:
            self.tolerance = max(self.tolerance, eps ** (2 / 3))

    def eps_of(self, name: str) -> float:
        """The rounding that the gradient called ``name`` is judged by: of its input, or of what the function does."""
        return max(torch.finfo(self.inputs[name].dtype).eps, self.eps_inside)

    def tolerance_for(self, name: str) -> float:
        """The relative error that is allowed to the gradient called ``name``."""
        return self.given_tolerance or self.eps_of(name) ** (2 / 3)

    @staticmethod
    def underflow_of(dtype: torch.dtype) -> float:
        """The error that numbers too small for the dtype make in one entry."""
        kind = torch.finfo(dtype)
        return (64 if kind.bits > 16 else 8) * kind.smallest_normal * kind.eps

    # ---- what they give ----

    def estimates(self, name: str, ours: Tensor, coordinates: int, seconds: float) -> dict[str, Estimate]:
        """Of the gradient ``name`` by each reference; ``ours`` says which entries differences are worth most for."""
        by_autograd = {reference: self._by_autograd(reference, name) for reference in self.gradients}
        found = {reference: estimate for reference, estimate in by_autograd.items() if estimate}
        if coordinates and self.inputs64 is not None and self.trust != "autograd":
            best = found.get("float64") or found.get("autograd")
            whole = best.values if best and best.entries is None else ours
            known = flat(self.inputs[name]).isfinite()
            indices = choose(ours, whole, coordinates, self.seed)
            found |= self._by_differences(name, ours, indices[known[indices]], best.size if best else 0.0, seconds)
        return found

    def _by_autograd(self, reference: str, name: str) -> Estimate | None:
        """None if it is nowhere finite."""
        whole = self.gradients[reference][name]
        finite = whole.isfinite()
        values, entries = (whole, None) if finite.all() else (whole[finite], finite.nonzero().flatten())
        if not len(values):
            return None
        underflow, skipped = self.underflow_of(self.inputs[name].dtype), len(whole) - len(values)
        return Estimate(reference, values, entries, norm(values), self.tolerance_for(name), underflow, skipped)

    def differences(self, name: str) -> Differences:
        """Central differences by the input ``name``, in float64."""
        assert self.inputs64 is not None

        def gradient(inputs: Tensors) -> Tensor:
            return flat(autograd(self.function, inputs)[1][name])

        here = self.gradients["float64"][name] if self.gradients else gradient(self.inputs64)
        return Differences(self.function, self.inputs64, name, gradient, here, self.eps64)

    def _by_differences(
        self, name: str, ours: Tensor, indices: Tensor, size: float, seconds: float
    ) -> dict[str, Estimate]:
        """Of the entries ``indices`` (k,), and along random directions if these are not all; {} if there are none.

        Without a reference, of which ``size`` is the norm, that of ``ours`` says what is negligible.
        """
        tolerance, n = max(self.tolerance_for(name), math.sqrt(self.eps64)), len(flat(self.inputs[name]))
        exact = tolerance if self.gradients else min(tolerance, ALLOWED_IN_FLOAT64)  # a run in float64 is held to it
        negligible, start = 0.1 * exact * (size or norm(ours)) / math.sqrt(n), time.monotonic()
        found, along = list[Derivative](), None
        try:
            differences = self.differences(name)
            for i in tqdm(indices.tolist(), desc=f"central differences of {name}", leave=False, disable=None, delay=2):
                if found and time.monotonic() - start > seconds:
                    break
                found.append(differences.at_entry(i, negligible))
            hidden = len(found) < n and (len(found) < len(indices) or len(indices) >= DIRECTIONS or not self.gradients)
            if hidden or (self.eps64 > EPS and n > 1):  # what rounds coarsely is heard best in all entries at once
                along = self._along_directions(differences, n, size, tolerance, negligible * math.sqrt(n))
        except Exception as error:  # a step may leave the region in which the function can be evaluated
            what = f"central differences of {name} are unavailable"
            self.notes.append(f"{what}: a step away the function raises {error!r}")
            return {}
        if len(found) < len(indices):
            done = f"{len(found):,} of {len(indices):,} entries of {name}"
            self.notes.append(f"time ran out after central differences of {done}: seconds= gives it more")
        kept = [k for k, derivative in enumerate(found) if not derivative.kinked]
        values = torch.tensor([found[k].value for k in kept], dtype=torch.float64)
        uncertainty = torch.tensor([2 * found[k].uncertainty for k in kept], dtype=torch.float64)
        central = Estimate(
            "central",
            values,
            indices[kept],
            max(norm(values), size * math.sqrt(len(kept) / n)),  # on average
            tolerance,
            uncertainty + self.underflow_of(self.inputs[name].dtype),
            len(found) - len(kept),
            kinked=indices[[k for k, derivative in enumerate(found) if derivative.kinked]],
        )
        return {"central": central} | ({"directions": along} if along else {})

    def _along_directions(
        self, differences: Differences, n: int, size: float, tolerance: float, negligible: float
    ) -> Estimate | None:
        """Products of the gradient with random vectors: the mean square of an error's is its squared norm."""
        generator, found = torch.Generator().manual_seed(self.seed + 1), list[tuple[Tensor, Derivative]]()
        for _ in range(DIRECTIONS if n < 10**5 else 2):
            v = torch.randn(n, generator=generator, dtype=torch.float64)
            derivative = differences.along(v, negligible)
            if math.isfinite(derivative.uncertainty) and not derivative.kinked:
                found.append((v, derivative))
        if not found:
            return None
        vectors, derivatives = zip(*found, strict=True)
        values = torch.tensor([d.value for d in derivatives], dtype=torch.float64)
        uncertainty = 4 * torch.tensor([d.uncertainty for d in derivatives], dtype=torch.float64)
        uncertainty += self.underflow * math.sqrt(n)
        whole = max(size * math.sqrt(len(found)), norm(values))
        return Estimate("directions", values, None, whole, 4 * tolerance, uncertainty, directions=torch.stack(vectors))

    def expected(self, name: str, estimates: dict[str, Estimate]) -> Estimate | None:
        """The best estimate of a gradient: autograd's, or central differences if they contradict autograd."""
        best, central = estimates.get("float64") or estimates.get("autograd"), estimates.get("central")
        if best and best.skipped:
            best = None
        if central is None or not len(central.values):
            return best
        is_best = best and self.compare(name, best.values, central).ok
        return best if is_best else whole(central, math.prod(self.shape(name)))

    def contradiction(self, name: str, estimates: dict[str, Estimate]) -> bool:
        """Whether autograd in its best dtype is not what central differences say, whatever the gradient under test."""
        best = estimates.get("float64") or estimates.get("autograd")
        if best is None or best.entries is not None:
            return False
        return not all(
            estimates[kind].agrees(best.values, partial(self.allowance, name, estimates[kind]))
            for kind in ("central", "directions")
            if kind in estimates and len(estimates[kind].values)
        )

    def has_padding(self) -> bool:
        """Whether the function looks up an embedding with a padding_idx, whose row by its own word gets no gradient."""
        with torch.enable_grad():
            value = self.function({name: t.requires_grad_() for name, t in copies(self.inputs).items()})
        return any(0 <= getattr(node, "_saved_padding_idx", -1) < 2**62 for node in graph(value.grad_fn))

    # ---- whether a gradient agrees ----

    def compare(
        self, name: str, ours: Tensor, estimate: Estimate, noise: Callable[[], Allowance] | None = None
    ) -> Comparison:
        """``ours`` (n,), the gradient called ``name``, against an estimate of it."""
        return compare(name, self.shape(name), ours, estimate, noise or (lambda: self.allowance(name, estimate)))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the gradient called ``name``; a complex number is two entries of one more dimension."""
        t = self.inputs[name]
        return (*t.shape, 2) if t.is_complex() else tuple(t.shape)

    @cached_property
    def jumps(self) -> dict[str, Tensor]:
        """The entries (n,) of each gradient that lie on a kink: what moves them there is no rounding."""
        if self.inputs64 is None and self.eps > COARSE:
            return {}
        return jumps(lambda: autograd(self.function, self.inputs64 or self.inputs)[1], self.seed)

    @cache  # noqa: B019 (it lives as long as the check)
    def errors(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """How rounding moves autograd's gradient, (samples, n), in the inputs' dtype or another; without jumps."""
        moved = self._runs(dtype)[name]
        noise = root_mean_square(moved)
        size = norm(self.gradients["autograd"][name].nan_to_num()) if self.gradients else 0.0
        far = norm(noise) > self.tolerance_for(name) * size or noise.max() * len(noise) ** 0.5 > 0.1 * size
        if far and name in self.jumps:
            return moved.masked_fill(self.jumps[name], 0)
        return moved

    @cache  # noqa: B019
    def _runs(self, dtype: torch.dtype | None) -> Tensors:
        inputs = self.inputs
        if dtype is not None:
            inputs = {n: copy_of(t, dtype.to_complex() if t.is_complex() else dtype) for n, t in inputs.items()}
        samples = SAMPLES if sum(t.numel() for t in inputs.values()) < MANY else SAMPLES // 2
        exact = self.gradients.get({None: "autograd", torch.float64: "float64"}.get(dtype, ""))
        units = self.units if dtype is None else 1
        return rounding_errors(lambda: autograd(self.function, inputs)[1], self.seed, samples, units, exact)

    def noise(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The root mean square of the same for each entry, (n,)."""
        return root_mean_square(self.errors(name, dtype))

    def allowance(self, name: str, estimate: Estimate, dtype: torch.dtype | None = None) -> Allowance:
        """How far rounding in a dtype may move the values of an estimate: a few times what it does to autograd's.

        A few runs do not measure an entry's own well: what half of the entries have, each may have.
        """
        if self.strict:
            return NONE
        if estimate.directions is not None:
            along = self.errors(name, dtype) @ estimate.directions.T
            return NOISE_FACTOR * norm(along) / math.sqrt(along.numel()), 0.0
        noise = self.noise(name, dtype)
        chosen = (noise if estimate.entries is None else noise[estimate.entries]).clamp(min=noise.median())
        return NOISE_FACTOR * chosen, norm(chosen)

    @cache  # noqa: B019
    def rough_noise(self, name: str) -> float:
        """About how far rounding moves a gradient, as a norm, from what is known already or from one run."""
        if self.dtype not in (torch.float64, torch.complex128) and "float64" in self.gradients:
            return norm((self.gradients["autograd"][name] - self.gradients["float64"][name]).nan_to_num(0, 0, 0))
        return self._one_run[name]

    @cached_property
    def _one_run(self) -> dict[str, float]:
        exact = self.gradients.get("autograd")
        found = rounding_errors(lambda: autograd(self.function, self.inputs)[1], self.seed, samples=1, exact=exact)
        return {name: norm(moved) for name, moved in found.items()}

    def noise_allowance(self, name: str) -> float:
        """The same for the whole of a gradient, as a norm."""
        if self.strict:
            return 0.0
        return NOISE_FACTOR * norm(self.noise(name))

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


def whole(estimate: Estimate, n: int) -> Estimate:
    """The same in the order of the entries, without naming them if it has all n of them."""
    if estimate.entries is None or len(estimate.entries) < n:
        return estimate
    order = estimate.entries.argsort()
    return estimate._replace(values=estimate.values[order], entries=None, uncertainty=0.0)


def graph(node: Any) -> Iterator[Any]:
    """The nodes of an autograd graph."""
    seen, left = set[Any](), [node]
    while left:
        if (node := left.pop()) is not None and node not in seen:
            seen.add(node)
            left += [behind for behind, _ in node.next_functions]
            yield node


def with_seed(seed: int, function: Callable[[], Any]) -> Any:
    """Call a function after seeding torch, whose random numbers elsewhere are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return function()


def first_line(error: BaseException) -> str:
    """Of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
