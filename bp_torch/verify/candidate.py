"""The gradient under test, the candidate: as tensors, or as a function that is called at the check's inputs.

calls.py calls it in every other way.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from bp_torch.verify.compare import DtypesSeen
from bp_torch.verify.problem import CallResult, Change, Tensors, copies, flat, in_float64
from bp_torch.verify.references import References
from bp_torch.verify.report import Finding, Kind


class Candidate:
    """The ``gradients`` under test, by name, with what is found out by calling them; also in float64."""

    def __init__(self, references: References) -> None:
        """Take the tensors, or make the first call."""
        self.references, self.problem, self.inputs = references, references.problem, references.inputs
        self.findings: list[Finding] = []
        self.diagnoses: dict[str, str] = {}  # by name, what explains a wrong gradient, as far as the calls show it
        self.notes: list[str] = []
        self.outputs: list[Tensor] = []  # of the forward
        self.dys: list[Tensor] = []  # that the backward was given
        self.in_float64: Tensors = {}  # the gradients computed from float64 inputs, flat, if they can be
        self.outputs_in_float64: list[Tensor] = []
        self.eps_in_float64 = 0.0  # the rounding of the coarsest dtype that this computes in
        self.call = CallResult({}, {})  # the first
        for name in self.problem.arguments:
            if name not in self.inputs and self.problem.is_frozen(name):
                self.say("unjudged", [name], "it is frozen")
        if self.problem.tensors is not None:
            self.first = self.gradients = self.problem.by_name(self.problem.tensors)
            return
        self.call = call = self.problem.call(self.inputs)
        self.first, self.gradients = copies(call.gradients), copies(call.gradients)
        self.outputs = [y.detach().clone() for y in call.outputs]
        self.dys = [dy.detach().clone() for dy in call.dys]

    def say(self, kind: Kind, names: Iterable[str], words: str) -> None:
        """Add a finding on each of these gradients."""
        self.findings += [Finding(kind, name, words) for name in names]

    def again(self, inputs: Tensors | None = None, change: Change | None = None, **way: object) -> Tensors:
        """The gradients of another call, copied; ``way`` is for ``Problem.call``."""
        return copies(self.problem.call(self.inputs if inputs is None else inputs, change, **way).gradients)

    def differing(self, one: Tensors, other: Tensors, factor: float = 1.0) -> list[str]:
        """The gradients of which ``one`` is not ``factor`` times the ``other`` to rounding error."""
        return [name for name, g in other.items() if name in one and not self.same(one[name], g * factor, name)]

    def same(self, one: Tensor, other: Tensor, name: str) -> bool:
        """Whether two results for a gradient are equal to rounding error."""
        return one.dtype == other.dtype and self.references.same(one, other, name)

    def call_in_float64(self) -> None:
        """Compute by the same formula without most of its rounding, if the function computes in float64."""
        references = self.references
        if references.eps <= torch.finfo(torch.float64).eps or references.strict or references.inputs64 is None:
            return
        # Outside DtypesSeen, which else sees the inputs' own dtype: then nothing counts as run in float64, and a small
        # fault in 16 bits passes without a word.
        inputs64 = in_float64(self.inputs)
        try:
            with DtypesSeen() as seen:
                call = self.problem.call(inputs64)
        except Exception:  # whatever it raises: it was not made for float64
            return
        found = call.gradients
        if all(name in found and found[name].shape == g.shape for name, g in self.first.items()):
            self.in_float64, self.outputs_in_float64 = {name: flat(g) for name, g in found.items()}, call.outputs
            self.eps_in_float64 = seen.eps
