"""The references: the gradients of one function at one point by autograd, in two dtypes, and by central differences."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.comparison import CENTRAL_ACCURACY, Comparison, Estimate, compare, flat, norm
from bp_torch.verify.differences import central_differences
from bp_torch.verify.inputs import Tensors, copies
from bp_torch.verify.rounding import rounding_noise

NOISE_FACTOR = 4.0  # how many times further than rounding moves autograd's gradient another one may be off


def tolerance_of(dtype: torch.dtype) -> float:
    """ε^(2/3), the relative error that is allowed in ``dtype``: two thirds of its digits agree."""
    return float(torch.finfo(dtype).eps ** (2 / 3))


def autograd(function: Callable[[Tensors], Any], inputs: Tensors) -> tuple[Tensor, Tensors]:
    """The value () of ``function`` and its gradients by autograd. Raises TypeError and ValueError as ``check`` does."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: t.requires_grad_() for name, t in copies(inputs).items()}
        value = function(leaves)
        if not isinstance(value, Tensor):
            raise TypeError(f"the function returns a {type(value).__name__}, expected a scalar tensor")
        if value.numel() != 1 or not value.is_floating_point():
            raise ValueError(
                f"the function returns {value.dtype} of shape {tuple(value.shape)}, expected a floating-point scalar: "
                "return a weighted sum of the outputs, or use check_layer"
            )
        if not value.requires_grad:
            raise ValueError(
                f"as far as autograd can see, the function does not depend on {', '.join(inputs)}: "
                "does it detach them, or leave torch?"
            )
        found = torch.autograd.grad(value.reshape(()), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    gradients = {name: torch.zeros_like(t) if g is None else g.detach() for (name, t), g in pairs}
    return value.detach().reshape(()), {name: g.to_dense() if g.is_sparse else g for name, g in gradients.items()}


class References:
    """What is known of the gradients of one function at one point, without the one under test.

    Attributes:
        gradients: by reference ("autograd", "float64") and name, flat; without those that are unavailable.
        inputs64: the inputs in float64; None if the function does not compute in it.
        tolerance: the relative error that is allowed; if ``strict``, there is no noise allowance beyond it.
        notes: why a reference is unavailable.
    """

    def __init__(self, function: Callable[[Tensors], Any], inputs: Tensors, tolerance: float | None, seed: int) -> None:
        """Compute the gradients by autograd. Raises as ``check`` does."""
        self.function, self.inputs, self.seed = function, inputs, seed
        self.notes: list[str] = []
        coarsest = max((t.dtype for t in inputs.values()), key=lambda dtype: torch.finfo(dtype).eps)
        self.strict = tolerance is not None
        self.tolerance = tolerance_of(coarsest) if tolerance is None else tolerance
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance: expected a relative error between 0 and 1, got {self.tolerance}")
        self.underflow = 64 * torch.finfo(coarsest).smallest_normal * torch.finfo(coarsest).eps
        value, gradients = autograd(function, inputs)
        self._require_reproducible(value)
        self.gradients = {"autograd": {name: flat(g) for name, g in gradients.items()}}
        self.inputs64: Tensors | None = {name: t.detach().double() for name, t in inputs.items()}
        if coarsest == torch.float64:
            self.gradients["float64"] = self.gradients["autograd"]
        else:
            self._compute_in_float64(self.inputs64)

    def _require_reproducible(self, value: Tensor) -> None:
        if not value.isfinite():
            raise ValueError(f"the function is {value.item()} at these inputs")
        with torch.inference_mode(False), torch.enable_grad():
            again = self.function(copies(self.inputs)).detach().reshape(())
        if (again - value).abs() > self.tolerance * value.abs() + self.underflow:
            raise ValueError(
                f"the function returns {value.item()} and then {again.item()} for the same inputs: draw what is random "
                "in it (a dropout mask) once, outside"
            )

    def _compute_in_float64(self, inputs64: Tensors) -> None:
        try:
            value, gradients = autograd(self.function, inputs64)
            reason = "" if value.dtype == torch.float64 else f"returns {value.dtype} for float64 inputs"
        except Exception as error:  # whatever a function raises that was not made for float64
            reason = f"fails in float64 ({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
        if reason:
            self.inputs64 = None
            self.notes.append(f"float64 and central differences are unavailable: the function {reason}")
        else:
            self.gradients["float64"] = {name: flat(g) for name, g in gradients.items()}

    def drop_autograd(self) -> None:
        """Leave central differences as the only reference."""
        self.gradients = {}
        self.notes.append(
            "without a reference= autograd would only repeat the gradient under test: central differences alone decide"
        )

    # ---- what they give ----

    def estimates(self, name: str, ours: Tensor, coordinates: int) -> dict[str, Estimate]:
        """Of the gradient called ``name`` by each reference that is available.

        ``coordinates`` is the number of central differences; ``ours`` (n,), the gradient under test, says of which
        entries they are worth most.
        """
        found = {reference: self._by_autograd(reference, name) for reference in self.gradients}
        if coordinates and self.inputs64 is not None:
            best = found.get("float64") or found.get("autograd")
            whole = best.values if best and best.entries is None else ours
            indices = _choose(ours, whole, coordinates, self.seed)
            found["central"] = self._by_differences(name, indices, self.inputs64, best.size if best else 0.0)
        return {reference: estimate for reference, estimate in found.items() if estimate}

    def _by_autograd(self, reference: str, name: str) -> Estimate | None:
        """None if it is nowhere finite."""
        whole = self.gradients[reference][name]
        finite = whole.isfinite()
        values, entries = (whole, None) if finite.all() else (whole[finite], finite.nonzero().flatten())
        if not len(values):
            return None
        skipped, uncertainty = len(whole) - len(values), self.underflow * math.sqrt(len(values))
        return Estimate(reference, values, entries, norm(values), self.tolerance, uncertainty, skipped)

    def _by_differences(self, name: str, indices: Tensor, inputs64: Tensors, size: float) -> Estimate | None:
        """In float64, of the entries ``indices`` (k,); None if a difference cannot be taken. ``size`` is autograd's."""
        tolerance, n = max(self.tolerance, CENTRAL_ACCURACY), inputs64[name].numel()

        def gradient(inputs: Tensors) -> Tensor:
            return flat(autograd(self.function, inputs)[1][name])

        here = self.gradients["float64"][name] if self.gradients else gradient(inputs64)
        negligible = 0.1 * tolerance * size / math.sqrt(n)
        try:
            found = central_differences(self.function, gradient, here, inputs64, name, indices.tolist(), negligible)
        except Exception as error:  # a step may leave the region in which the function can be evaluated
            self.notes.append(
                f"central differences of {name} are unavailable: a step away the function raises {error!r}"
            )
            return None
        kept = [k for k, derivative in enumerate(found) if not derivative.kinked]
        values = torch.tensor([found[k].value for k in kept], dtype=torch.float64)
        return Estimate(
            "central",
            values,
            None if len(kept) == n else indices[kept],
            max(norm(values), size * math.sqrt(len(kept) / n)),  # of as many entries, on average
            tolerance,
            math.hypot(*(found[k].uncertainty for k in kept)) + self.underflow * math.sqrt(len(kept)),
            len(found) - len(kept),
        )

    def expected(self, name: str, estimates: dict[str, Estimate]) -> Estimate | None:
        """What the gradient should be: autograd's, or central differences if they contradict autograd."""
        best, central = estimates.get("float64") or estimates.get("autograd"), estimates.get("central")
        if best and best.skipped:
            return None
        if central is None or not len(central.values):
            return best
        return best if best and self.compare(name, best.values, central).ok else central

    # ---- whether a gradient agrees ----

    def compare(self, name: str, ours: Tensor, estimate: Estimate) -> Comparison:
        """``ours`` (n,), the gradient called ``name``, against an estimate of it."""
        shape = tuple(self.inputs[name].shape)
        return compare(name, shape, ours, estimate, lambda: self.noise_allowance(name, estimate.reference))

    @cached_property
    def noise(self) -> dict[str, float]:
        """How far rounding moves each of autograd's gradients. Measured only if an error exceeds the tolerance."""
        return rounding_noise(lambda: autograd(self.function, self.inputs)[1], self.seed)

    def noise_allowance(self, name: str, reference: str = "float64") -> float:
        """How much larger an error may be than the tolerance: a few times what rounding does to autograd's own."""
        if self.strict or not self.gradients:
            return 0.0
        noise = self.noise[name]
        if reference != "autograd" and "float64" in self.gradients:
            apart = norm(self.gradients["autograd"][name] - self.gradients["float64"][name])
            noise += apart if math.isfinite(apart) else 0.0
        return NOISE_FACTOR * noise

    def same(self, one: Tensor, other: Tensor, name: str) -> bool:
        """Whether two results for the gradient called ``name`` are equal to rounding error."""
        if torch.equal(one, other):
            return True
        a, b = flat(one), flat(other)
        if one.shape != other.shape or not torch.equal(a.isfinite(), b.isfinite()):
            return False
        a, b = a[a.isfinite()], b[b.isfinite()]
        error = norm(a - b)
        allowed = self.tolerance * max(norm(a), norm(b)) + self.underflow * math.sqrt(len(a))
        return error <= allowed or error <= allowed + self.noise_allowance(name)


def _choose(ours: Tensor, whole: Tensor, n: int, seed: int) -> Tensor:
    """The entries to take differences of: all, or n: the one furthest from ``whole``, half where that is not zero."""
    if len(ours) <= n:
        return torch.arange(len(ours))
    generator = torch.Generator().manual_seed(seed)
    furthest = (ours - whole).abs().nan_to_num(torch.inf).argmax().view(1)
    nonzero = whole.nonzero().flatten()
    some = nonzero[torch.randint(len(nonzero), (n // 2,), generator=generator)] if len(nonzero) else nonzero
    others = torch.randint(len(ours), (n - 1 - len(some),), generator=generator)
    chosen: Tensor = torch.cat([furthest, some, others]).unique()
    return chosen
