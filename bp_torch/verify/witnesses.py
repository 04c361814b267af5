"""The witnesses: what autograd and central differences say of one function at one point, and whether a gradient agrees.

Everything is compared flat (n,), in float64, on the CPU.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bp_torch.verify.differences import central_difference
from bp_torch.verify.inputs import Tensors, copies
from bp_torch.verify.report import CENTRAL, Agreement
from bp_torch.verify.rounding import norm, rounding_noise

NOISE_FACTOR = 4.0  # how many times further than rounding moves autograd a gradient may be off


def tolerance_of(dtype: torch.dtype) -> float:
    """ε^(2/3), the relative error that is allowed in ``dtype``: two thirds of its digits agree."""
    return float(torch.finfo(dtype).eps ** (2 / 3))


def flat(t: Tensor) -> Tensor:
    """As (n,) in float64 on the CPU."""
    return t.detach().cpu().double().reshape(-1)


def autograd(function: Callable[[Tensors], Any], inputs: Tensors) -> tuple[Tensor, Tensors]:
    """The value () of ``function`` and its gradients by autograd. Raises TypeError and ValueError as ``check`` says."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: t.requires_grad_() for name, t in copies(inputs).items()}
        value = function(leaves)
        if not isinstance(value, Tensor):
            raise TypeError(f"the function gives a {type(value).__name__}, wanted a scalar tensor")
        if value.numel() != 1 or not value.is_floating_point():
            raise ValueError(
                f"the function gives {value.dtype} of shape {tuple(value.shape)}, wanted a floating scalar: "
                "weigh the outputs and add them up, or use check_layer"
            )
        if not value.requires_grad:
            raise ValueError(
                f"as far as autograd can see the function does not depend on {', '.join(inputs)}: "
                "does it detach them, or leave torch?"
            )
        found = torch.autograd.grad(value.reshape(()), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    gradients = {name: torch.zeros_like(t) if g is None else g.detach() for (name, t), g in pairs}
    return value.detach().reshape(()), {name: g.to_dense() if g.is_sparse else g for name, g in gradients.items()}


class Testimony(NamedTuple):
    """What one witness says of one gradient.

    Attributes:
        values: (k,), of its ``entries`` (k,); None: of all.
        size: the norm that an error is measured by, and ``base`` the part of it that is allowed.
        doubt: how far off the witness itself may be.
        set_aside: of how many entries it has nothing to say.
    """

    witness: str
    values: Tensor
    entries: Tensor | None
    size: float
    base: float
    doubt: float = 0.0
    set_aside: int = 0

    def of(self, whole: Tensor) -> Tensor:
        """The entries that it speaks of."""
        return whole if self.entries is None else whole[self.entries]


class Witnesses:
    """All that is known of the gradients of one function at one point, without the hand-written ones.

    Attributes:
        same: the gradients by autograd, in the inputs' own dtype and shape.
        gradients: for "autograd" and "float64" those, flat; a witness that is not heard is not in it.
        inputs64: the inputs in float64; None where the function does not compute in it.
        base: the relative error that is allowed, and if ``strict`` nothing beyond.
        notes: why a witness is not heard.
    """

    def __init__(self, function: Callable[[Tensors], Any], inputs: Tensors, tolerance: float | None, seed: int) -> None:
        """Ask autograd. Raises as ``check`` does."""
        self.function, self.inputs, self.seed = function, inputs, seed
        self.notes: list[str] = []
        coarsest = max((t.dtype for t in inputs.values()), key=lambda dtype: torch.finfo(dtype).eps)
        self.strict = tolerance is not None
        self.base = tolerance_of(coarsest) if tolerance is None else tolerance
        if not 0 < self.base < 1:
            raise ValueError(f"tolerance: wanted a relative error between 0 and 1, got {self.base}")
        self.smallest = 64 * torch.finfo(coarsest).smallest_normal * torch.finfo(coarsest).eps  # below: underflow
        value, self.same = autograd(function, inputs)
        self._refuse_value(value)
        self.gradients = {"autograd": {name: flat(g) for name, g in self.same.items()}}
        self.inputs64: Tensors | None = {name: t.detach().double() for name, t in inputs.items()}
        if coarsest == torch.float64:
            self.gradients["float64"] = self.gradients["autograd"]
        else:
            self._ask_in_float64(self.inputs64)

    def _refuse_value(self, value: Tensor) -> None:
        if not value.isfinite():
            raise ValueError(f"the function is {value.item()} at these inputs")
        with torch.inference_mode(False), torch.enable_grad():
            again = self.function(copies(self.inputs)).detach().reshape(())
        if (again - value).abs() > self.base * value.abs() + self.smallest:
            raise ValueError(
                f"the function gives {value.item()} and then {again.item()} for the same inputs: draw what is random "
                "in it (a dropout mask) once, outside"
            )

    def _ask_in_float64(self, inputs64: Tensors) -> None:
        try:
            value, gradients = autograd(self.function, inputs64)
            reason = "" if value.dtype == torch.float64 else f"gives {value.dtype} for float64 inputs"
        except Exception as error:  # whatever a function raises that was not made for float64
            reason = f"says {(str(error).strip().splitlines() or [type(error).__name__])[0]!r} in float64"
        if reason:
            self.inputs64 = None
            self.notes.append(f"float64 and central differences are not heard: the function {reason}")
        else:
            self.gradients["float64"] = {name: flat(g) for name, g in gradients.items()}

    def silence_autograd(self) -> None:
        """Hear central differences alone."""
        self.gradients = {}
        self.notes.append(
            "no reference: autograd would be heard as its own witness, so central differences alone judge"
        )

    # ---- what they say ----

    def autograd(self, witness: str, name: str) -> Testimony | None:
        """Of "autograd" or "float64"; None where it is not heard, or is nowhere finite."""
        if witness not in self.gradients:
            return None
        values, entries = self.gradients[witness][name], None
        size, n = norm(values), len(values)
        if not math.isfinite(size):
            entries = values.isfinite().nonzero().flatten()
            values = values[entries]
            size = norm(values)
        return Testimony(witness, values, entries, size, self.base, 0.0, n - len(values)) if len(values) else None

    def known(self, name: str) -> Testimony | None:
        """The best that autograd knows."""
        return self.autograd("float64", name) or self.autograd("autograd", name)

    def central(self, name: str, chosen: Tensor) -> Testimony | None:
        """Central differences in float64 of the entries ``chosen`` (k,); None where they are not heard."""
        if self.inputs64 is None:
            return None
        known, n = self.known(name), self.inputs64[name].numel()
        size = known.size if known else 0.0
        negligible = 0.1 * max(self.base, CENTRAL) * size / math.sqrt(n)
        try:
            found = self._differences(name, chosen.tolist(), self.inputs64, negligible)
        except Exception as error:  # a step may leave the region in which the function can be evaluated
            self.notes.append(f"central differences of {name} are not heard: a step away the function says {error!r}")
            return None
        kept = [k for k, difference in enumerate(found) if difference is not None]
        values = torch.tensor([d[0] for d in found if d], dtype=torch.float64)
        return Testimony(
            "central",
            values,
            None if len(kept) == n else chosen[kept],
            max(norm(values), size * math.sqrt(len(kept) / n)),  # of so many entries, on average
            max(self.base, CENTRAL),
            math.hypot(*(d[1] for d in found if d)),
            len(found) - len(kept),
        )

    def _differences(
        self, name: str, chosen: list[int], inputs64: Tensors, negligible: float
    ) -> list[tuple[float, float] | None]:
        """Derivative and doubt for each entry; None for one that straddles a kink."""
        inputs = inputs64 | {name: inputs64[name].clone(memory_format=torch.contiguous_format)}
        entries, found = inputs[name].view(-1), list[tuple[float, float] | None]()
        with torch.inference_mode(False), torch.enable_grad():
            middle = float(self.function(inputs).item())
            for i in chosen:
                x = entries[i].item()

                def value(step: float, i: int = i, x: float = x) -> float:
                    entries[i] = x + step
                    return float(self.function(inputs).item())

                d = central_difference(value, middle, x, negligible)
                entries[i] = x
                off = abs(d.derivative - float(self.slopes[name][i]))
                suspect = not d.kinked and off > 10 * negligible + d.doubt
                kinked = d.kinked or not math.isfinite(d.doubt) or (suspect and self._jumps(name, i, d.step, off))
                found.append(None if kinked else (d.derivative, d.doubt))
        return found

    @cached_property
    def slopes(self) -> Tensors:
        """What autograd gets through the function in float64, heard as a witness or not, (n,) each."""
        if "float64" in self.gradients:
            return self.gradients["float64"]
        return {name: flat(g) for name, g in autograd(self.function, self.inputs64 or {})[1].items()}

    def _jumps(self, name: str, i: int, step: float, off: float) -> bool:
        """Whether autograd's own slope of entry ``i`` changes by so much within a step that this explains ``off``.

        Of several kinks within one step, what they do to the values can cancel; what they do to the slope does not.
        """
        for h in (step, step / 2, -step / 2, -step):
            moved = copies(self.inputs64 or {})
            moved[name].view(-1)[i] += h
            if abs(float(flat(autograd(self.function, moved)[1][name])[i] - self.slopes[name][i])) > off / 4:
                return True
        return False

    # ---- whether a gradient agrees ----

    @cached_property
    def noise(self) -> dict[str, float]:
        """Of each gradient; measured only when something is off by more than ``base``."""
        return rounding_noise(
            lambda: {name: flat(g) for name, g in autograd(self.function, self.inputs)[1].items()}, self.seed
        )

    def slack(self, name: str, witness: str = "float64") -> float:
        """How much further than ``base`` the gradient may be off: what rounding does to autograd's own."""
        if self.strict or not self.gradients:
            return 0.0
        slack = self.noise[name]
        if witness != "autograd" and "float64" in self.gradients:
            apart = norm(self.gradients["autograd"][name] - self.gradients["float64"][name])
            slack += apart if math.isfinite(apart) else 0.0
        return NOISE_FACTOR * slack

    def agreement(self, name: str, ours: Tensor, said: Testimony) -> Agreement:
        """``ours`` (n,) against what a witness says."""
        if not len(said.values):
            return Agreement(0.0, 0.0, 0.0, (), 1.0, 0, said.set_aside)
        ours, n = said.of(ours), len(said.values)
        difference = (ours - said.values).abs_()
        error = norm(difference)
        worst = int(difference.nan_to_num_(math.inf).argmax())
        place = worst if said.entries is None else int(said.entries[worst])
        where = tuple(int(i) for i in np.unravel_index(place, self.inputs[name].shape))
        if not math.isfinite(error):
            return Agreement(math.inf, math.inf, math.inf, where, 0.0, n, said.set_aside)
        allowed = said.base * said.size + said.doubt + self.smallest * math.sqrt(n)
        if error > allowed:
            allowed += self.slack(name, said.witness)
        return Agreement(
            error / said.size if said.size else math.inf if error else 0.0,
            error / allowed,
            float(difference[worst]),
            where,
            cosine(ours, said.values),
            n,
            said.set_aside,
            blurred=error > said.base * said.size,
        )

    def near(self, one: Tensor, other: Tensor, name: str) -> bool:
        """Whether two answers for the same gradient are the same to rounding error."""
        if torch.equal(one, other):
            return True
        a, b = flat(one), flat(other)
        if one.shape != other.shape or not torch.equal(a.isfinite(), b.isfinite()):
            return False
        a, b = a[a.isfinite()], b[b.isfinite()]
        error, allowed = norm(a - b), self.base * max(norm(a), norm(b)) + self.smallest * math.sqrt(len(a))
        return error <= allowed or error <= allowed + self.slack(name)

    def truth(self, name: str, central: Testimony | None) -> Testimony | None:
        """What the gradient should be: autograd's, unless central differences contradict it; then those."""
        known = self.known(name)
        if known and known.set_aside:
            return None
        if central is None or not len(central.values):
            return known
        return known if known and self.agreement(name, known.values, central).ok else central


def cosine(a: Tensor, b: Tensor) -> float:
    """Between two vectors, 1 if both are zero."""
    sizes = norm(a), norm(b)
    return float((a / sizes[0]) @ (b / sizes[1])) if all(sizes) else float(sizes == (0.0, 0.0))
