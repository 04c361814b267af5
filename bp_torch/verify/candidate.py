"""The gradient under test, the candidate: as tensors, or as a function, which is called in several ways."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from bp_torch.verify.compare import DtypesSeen, rounding_noise
from bp_torch.verify.problem import (
    CallResult,
    Change,
    Tensors,
    autograd,
    copies,
    flat,
    in_float64,
    norm,
    not_contiguous,
)
from bp_torch.verify.references import References, first_line, with_seed
from bp_torch.verify.report import Finding, Kind

SCALE = -2.0  # a power of two: it changes no rounding


class Candidate:
    """The ``gradients`` under test, by name, and what calling them shows: at these inputs and at others, with −2·dy in
    another layout, where the result must be −2 times the first, with a dy that is one number expanded, in float64."""

    def __init__(self, references: References) -> None:
        """Take the tensors, or make the calls."""
        self.references, self.problem, self.inputs = references, references.problem, references.inputs
        self.findings: list[Finding] = []
        self.diagnoses: dict[str, str] = {}  # by name, what explains a wrong gradient, as far as the calls show it
        self.notes: list[str] = []
        self.outputs: list[Tensor] = []  # of the forward
        self.dys: list[Tensor] = []  # that the backward was given
        self.in_float64: Tensors = {}  # the gradients computed from float64 inputs, flat, if they can be
        self.outputs_in_float64: list[Tensor] = []
        self.eps_in_float64 = 0.0  # the rounding of the coarsest dtype that this computes in
        if self.problem.tensors is not None:
            self.gradients = self.problem.by_name(self.problem.tensors)
            return
        call = self.problem.call(self.inputs)
        self.first, self.gradients = copies(call.gradients), copies(call.gradients)
        self.outputs, self.dys = call.outputs, [dy.detach().clone() for dy in call.dys]
        if not self.first:
            return
        self._look_for_writes(call)
        self._look_for_state(call)
        self._call_with_expanded_dy()
        if references.eps > torch.finfo(torch.float64).eps and not references.strict:
            self._call_in_float64()

    def say(self, kind: Kind, names: Iterable[str], words: str) -> None:
        """Add a finding on each of these gradients."""
        self.findings += [Finding(kind, name, words) for name in names]

    def _again(self, inputs: Tensors | None = None, change: Change | None = None) -> Tensors:
        """The gradients of another call, copied."""
        return copies(self.problem.call(self.inputs if inputs is None else inputs, change).gradients)

    def _differing(self, one: Tensors, other: Tensors, factor: float = 1.0) -> list[str]:
        """The gradients of which ``one`` is not ``factor`` times the ``other`` to rounding error."""
        return [name for name, g in other.items() if name in one and not self._same(one[name], g * factor, name)]

    def _same(self, one: Tensor, other: Tensor, name: str) -> bool:
        return one.dtype == other.dtype and self.references.same(one, other, name)

    def _look_for_writes(self, call: CallResult) -> None:
        """Into the inputs, by forward or backward, and into dy."""
        backward = self.problem.backward  # the forward of an autograd.Function may write into its inputs openly
        owners = {name: name if name in self.first else next(iter(self.first)) for name in self.inputs}
        for name in call.overwritten:
            text = f"the forward overwrites its input {name}, and autograd cannot see it: whoever saved {name} for a "
            self.say("problem", [owners[name]], text + "backward of their own gets a wrong gradient")
        for name, t in self.inputs.items():
            if backward is not None and name not in call.overwritten and not torch.equal(call.inputs[name], t):
                self.say("problem", [owners[name]], f"the gradient function changes its input {name} in place")
        if backward is not None and not self.problem.scalar:
            dys = self.problem.output_gradients(call.outputs)
            if not all(torch.equal(dy, given) for dy, given in zip(dys, call.dys, strict=True)):
                self.say("problem", self.first, "the backward writes into dy, which belongs to the caller")

    # ---- state, layout and scale ----

    def _look_for_state(self, call: CallResult) -> None:
        held, elsewhere = copies(call.gradients), self.problem.nearby()
        try:
            there = self._again(elsewhere)
        except Exception:  # the other inputs may lie where the gradient is not defined: that is no fault
            elsewhere, there = self.inputs, {}
        if any(not torch.equal(call.gradients[name], g) and not g.isnan().any() for name, g in held.items()):
            self.notes.append("the gradient function returns the same memory at every call: the next overwrites it")
        factor = SCALE if self.problem.backward is None or not self.problem.scalar else 1.0
        try:
            again = self._again(change=lambda dy: SCALE * (not_contiguous(dy) if dy.numel() > 1 else dy))
        except Exception as error:
            self._again()  # fails for any dy: that is the caller's to see
            return self.say("problem", self.first, f"fails for a dy that is not contiguous: {first_line(error)}")
        if changed := self._differing(again, self.first, factor):
            self._explain_change(changed, again, elsewhere)
        elif there:
            self._compare_elsewhere(there, elsewhere)

    def _compare_elsewhere(self, there: Tensors, elsewhere: Tensors) -> None:
        """A cache of the first call's is right at the first call's inputs only."""
        references, allowed = self.references, 2 * self.references.tolerance
        here = references.gradients.get("autograd", {})
        names = [
            name
            for name, g in self.first.items()
            if name in there and name in here and len(flat(g)) == len(here[name])
            if norm(flat(g) - here[name]) <= references.tolerance * norm(here[name])
        ]
        try:
            right = {name: flat(g) for name, g in autograd(references.function, elsewhere)[1].items()}
        except Exception:  # the function may not be defined there
            return
        off = {name: norm(flat(there[name]) - right[name]) for name in names}
        off = {name: error for name, error in off.items() if allowed * norm(right[name]) < error < math.inf}
        noise = rounding_noise(references.function, elsewhere, references.seed) if off else {}
        for name, error in off.items():
            size = norm(right[name])
            if error > allowed * size + 8 * math.sqrt(float(noise[name].sum())):
                share = f"{error / size if size else math.inf:.0%}"
                text = f"is right at these inputs, and off by {share} at others: something is kept from an earlier call"
                self.say("problem", [name], f"{text}, or holds at these inputs only")

    def _explain_change(self, changed: list[str], again: Tensors, elsewhere: Tensors) -> None:
        """Why a later result differs from the first: another call shows what it depends on."""
        one, other = self._again(), self._again()
        kept = self._differing(one, self.first) or self._differing(other, self.first)
        if not kept:
            self._again(elsewhere)
            kept = self._differing(self._again(), self.first)
        if not kept:
            self._explain_by_dy(changed, again)
        elif self._draws_random_numbers():
            self.say("setup", changed, "draws random numbers: it changes from call to call with the same inputs")
        else:
            self._describe_state(changed, elsewhere)

    def _explain_by_dy(self, changed: list[str], again: Tensors) -> None:
        """Why the result for −2·dy in another layout is wrong, if the same dy gives the same result."""
        layout = self._differing(self._again(change=not_contiguous), self.first) if self._has_layout() else []
        if layout:
            text = "is wrong for a dy that is not contiguous: it reads memory as if dy were"
            return self.say("problem", layout, text)
        same = [name for name in changed if self._same(again[name], self.first[name], name)]
        rest = [name for name in changed if name not in same]
        self.say("problem", same, "ignores dy: it is the same for −2·dy")
        self.say("problem", rest, "is not −2 times as large for −2·dy: a gradient is linear in dy")

    def _has_layout(self) -> bool:
        return any(dy.numel() > 1 for dy in self.dys)

    def _draws_random_numbers(self) -> bool:
        """Whether two calls differ, but not with the same seed."""
        seed = self.references.seed
        one, same, other = (with_seed(s, self._again) for s in (seed, seed, seed + 1))
        return all(torch.equal(one[n], same[n]) for n in one) and any(not torch.equal(one[n], other[n]) for n in one)

    def _describe_state(self, changed: list[str], elsewhere: Tensors) -> None:
        second, again = self._again(elsewhere), self._again()
        self.say("problem", changed, "changes when it is computed again after a call at other inputs")
        for name in changed:
            self.gradients[name] = again[name]
            if name in second and (text := self._kept(name, again[name], second[name], elsewhere)):
                self.diagnoses[name] = text

    def _kept(self, name: str, again: Tensor, second: Tensor, elsewhere: Tensors) -> str | None:
        """The thing that is kept from call to call, if one that is known explains ``again`` after ``second``."""
        references, shape = self.references, self.inputs[name].shape
        if not references.gradients or again.shape != shape or second.shape != shape or again.is_complex():
            return None
        if references.same(again - second, references.gradients["autograd"][name].reshape(shape).to(again), name):
            return "adds to what the calls before left: its buffer is not cleared"
        if references.same(again, autograd(references.function, elsewhere)[1][name], name):
            return "is the gradient at the inputs of the call before: a stale buffer"
        return None

    # ---- other dy, and other dtypes ----

    def _call_with_expanded_dy(self) -> None:
        """Call with dy as y.sum() gives it: one number, expanded, against the same number in every place."""
        if not self._has_layout() or self.findings:
            return
        one, what = torch.tensor(0.75), "for a dy that is one number, expanded, as y.sum() gives it"
        try:
            full = self._again(change=lambda dy: torch.full_like(dy, 0.75).contiguous())
            expanded = self._again(change=lambda dy: one.to(dy).expand(dy.shape))
        except Exception as error:
            return self.say("problem", self.first, f"fails {what}: {first_line(error)}")
        self.say("problem", self._differing(expanded, full), f"is wrong {what}: its strides are 0")

    def _call_in_float64(self) -> None:
        """Compute by the same formula without most of its rounding, if the function computes in float64."""
        if self.references.inputs64 is None:
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
