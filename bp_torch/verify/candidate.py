"""The gradient under test, the candidate: as tensors, or as a function, which is called more than once."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.inputs import Tensors, copies, gradients_by_name, not_finite
from bp_torch.verify.references import References, autograd


@dataclass
class Candidate:
    """The gradients under test, by name.

    Attributes:
        problems: by name, what is wrong apart from the numbers.
        diagnoses: by name, what explains a wrong gradient, as far as the calls have shown it.
    """

    gradients: Tensors
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    diagnoses: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def comparable(self, name: str, t: Tensor) -> bool:
        """Whether the gradient has the shape of its input ``t``. Notes that, and entries that are not finite."""
        given = self.gradients[name]
        if given.shape != t.shape:
            self.problems[name].append(f"has the shape {list(given.shape)}, expected {list(t.shape)}")
            return False
        if not given.isfinite().all():
            self.problems[name].append(f"holds {not_finite(given)}")
        return True


def called(function: Callable[[Tensors], Any], references: References) -> Candidate:
    """Call the gradient function, call it at other inputs, call it again: the third result must equal the first."""
    inputs = references.inputs
    lent = copies(inputs)
    returned = _call(function, lent)
    candidate = Candidate(copies(returned))
    first = candidate.gradients
    for name, t in inputs.items():
        if first and not torch.equal(lent[name], t):
            owner = name if name in first else next(iter(first))
            candidate.problems[owner].append(f"the gradient function changes its input {name} in place")
    elsewhere = _nearby(inputs, references.seed)
    try:
        second = copies(_call(function, elsewhere))
    except Exception:  # the other inputs may lie where the gradient is not defined: that is no fault
        return candidate
    if any(not torch.equal(returned[name], g) and not returned[name].isnan().any() for name, g in first.items()):
        candidate.notes.append("the gradient function returns the same memory at every call: the next overwrites it")
    again = copies(_call(function, copies(inputs)))
    for name in [name for name in first if name in again and name in second]:
        if not references.same(again[name], first[name], name):
            candidate.gradients[name] = again[name]
            candidate.problems[name].append("changes when it is computed again after a call at other inputs")
            if text := _kept(name, again[name], second[name], elsewhere, references):
                candidate.diagnoses[name] = text
    return candidate


def _call(function: Callable[[Tensors], Any], inputs: Tensors) -> Tensors:
    with torch.inference_mode(False), torch.enable_grad():
        return gradients_by_name(function(inputs), list(inputs))


def _nearby(inputs: Tensors, seed: int) -> Tensors:
    """Every input changed by about a tenth."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in inputs.items()}
    return {name: t * (1 + noise[name].to(t.device, t.dtype)) for name, t in inputs.items()}


def _kept(name: str, again: Tensor, second: Tensor, elsewhere: Tensors, references: References) -> str | None:
    """What the gradient function keeps from call to call, if that explains ``again`` after ``second``."""
    shape = references.inputs[name].shape
    if not references.gradients or again.shape != shape or second.shape != shape:
        return None
    if references.same(again - second, references.gradients["autograd"][name].reshape(shape).to(again), name):
        return "adds to what the calls before left: its buffer is not cleared"
    if references.same(again, autograd(references.function, elsewhere)[1][name], name):
        return "is the gradient at the inputs of the call before: a stale buffer"
    return None
