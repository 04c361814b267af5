"""The gradient under test, the candidate: as tensors, or as a function, which is called in several ways."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bp_torch.verify.comparison import norm
from bp_torch.verify.inputs import Tensors, copies, copy_of, flat, gradients_by_name, not_contiguous, not_finite, wider
from bp_torch.verify.problem import Called, autograd
from bp_torch.verify.references import References, first_line
from bp_torch.verify.rounding import Widths, rounding_noise

SCALE = -2.0  # a power of two: it changes no rounding


@dataclass
class Candidate:
    """The gradients under test, by name.

    Attributes:
        problems: by name, what is wrong apart from the numbers; ``setup``: those that no formula causes.
        diagnoses: by name, what explains a wrong gradient, as far as the calls have shown it.
        widened: the gradients computed from float64 inputs, flat, if they can be; ``eps`` of the coarsest dtype in it.
        outputs: of the forward, and ``dys`` that the backward was given.
    """

    gradients: Tensors
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    setup: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    diagnoses: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    widened: Tensors = field(default_factory=dict)
    widened_eps: float = 0.0
    widened_outputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    dys: list[Tensor] = field(default_factory=list)

    def comparable(self, name: str, t: Tensor) -> bool:
        """Whether the gradient has the shape of its input ``t``. Notes that, another dtype, and what is not finite."""
        given = self.gradients[name]
        if given.dtype != t.dtype:
            dtypes = [str(x.dtype).removeprefix("torch.") for x in (given, t)]
            self.problems[name].append(f"has the dtype {dtypes[0]}, expected {dtypes[1]}, that of the input")
        if given.shape != t.shape:
            self.problems[name].append(f"has the shape {list(given.shape)}, expected {list(t.shape)}")
            return False
        if given.is_complex() and not t.is_complex():
            return False
        if not given.isfinite().all():
            self.problems[name].append(f"holds {not_finite(given)}")
        return True


def as_tensors(references: References) -> Candidate:
    """The gradients as they were given."""
    problem = references.problem
    return Candidate(gradients_by_name(problem.tensors, problem.arguments))


def called(references: References) -> Candidate:
    """Call the gradient function, call it at other inputs, and again with −2·dy in another layout.

    The last result must be −2 times the first. Then dy that is one number expanded, and inputs in float64.
    """
    return Calls(references).candidate


class Calls:
    """The calls of a gradient function, and the ``candidate`` that they show."""

    def __init__(self, references: References) -> None:
        """Make the calls."""
        self.references, self.problem, self.inputs = references, references.problem, references.inputs
        first = self._call()
        self.first = copies(first.gradients)
        self.candidate = Candidate(copies(first.gradients), outputs=first.outputs, dys=copies_of(first.dys))
        if not self.first:
            return
        self._look_for_writes(first)
        self._look_for_state(first)
        self._call_with_expanded_dy()
        if torch.finfo(references.dtype).eps > torch.finfo(torch.float64).eps and not references.strict:
            self._call_in_float64()

    def _call(self, inputs: Tensors | None = None, change: Callable[[Tensor], Tensor] | None = None) -> Called:
        return self.problem.call(self.inputs if inputs is None else inputs, change)

    def _all(self, text: str, wrong: list[str] | None = None) -> None:
        """Every gradient, or the ``wrong`` ones, has this problem."""
        for name in self.first if wrong is None else wrong:
            self.candidate.problems[name].append(text)

    def _look_for_writes(self, call: Called) -> None:
        """Into the inputs, by forward or backward, and into dy."""
        first = next(iter(self.first))
        for name in call.overwritten:
            self.candidate.problems[name if name in self.first else first].append(
                f"the forward overwrites its input {name}, and autograd cannot see it: whoever saved {name} for a "
                "backward of their own gets a wrong gradient"
            )
        for name, t in self.inputs.items():
            if name not in call.overwritten and not torch.equal(call.inputs[name], t) and self._not_by_forward(name):
                owner = name if name in self.first else first
                self.candidate.problems[owner].append(f"the gradient function changes its input {name} in place")
        if self.problem.backward is not None and not self.problem.scalar:
            outputs = self.problem.output_gradients(call.outputs)
            if not all(torch.equal(dy, given) for dy, given in zip(outputs, call.dys, strict=True)):
                self._all("the backward writes into dy, which belongs to the caller")

    def _not_by_forward(self, name: str) -> bool:
        """Whether it is the backward that changes an input: the forward of an autograd.Function may do so openly."""
        return self.problem.backward is not None

    # ---- state, layout and scale ----

    def _look_for_state(self, call: Called) -> None:
        held = {name: g.clone() for name, g in call.gradients.items()}
        elsewhere = _nearby(self.inputs, self.references.seed)
        try:
            there = copies(self._call(elsewhere).gradients)
        except Exception:  # the other inputs may lie where the gradient is not defined: that is no fault
            elsewhere, there = self.inputs, {}
        if any(not torch.equal(call.gradients[name], g) and not g.isnan().any() for name, g in held.items()):
            self.candidate.notes.append(
                "the gradient function returns the same memory at every call: the next overwrites it"
            )
        has_dy = self.problem.backward is None or not self.problem.scalar
        try:
            again = self._call(change=lambda dy: SCALE * (not_contiguous(dy) if dy.numel() > 1 else dy))
            factor = SCALE if has_dy else 1.0
        except Exception as error:
            return self._explain_failure(error, elsewhere)
        if changed := self._changed(again.gradients, factor):
            self._explain_change(changed, again.gradients, elsewhere)
        elif there:
            self._compare_elsewhere(there, elsewhere)

    def _compare_elsewhere(self, there: Tensors, elsewhere: Tensors) -> None:
        """A cache of the first call's is right at the first call's inputs only."""
        references = self.references
        autograd_here = references.gradients.get("autograd", {})
        names = [
            name
            for name, g in self.first.items()
            if name in there and name in autograd_here and len(flat(g)) == len(autograd_here[name])
            if norm(flat(g) - autograd_here[name]) <= references.tolerance * norm(autograd_here[name])
        ]
        try:
            right = {name: flat(g) for name, g in autograd(references.function, elsewhere)[1].items()}
        except Exception:  # the function may not be defined there
            return
        off = {name: norm(flat(there[name]) - right[name]) for name in names}
        off = {n: e for n, e in off.items() if 2 * references.tolerance * norm(right[n]) < e < math.inf}
        if off:
            noise = rounding_noise(lambda: autograd(references.function, elsewhere)[1], references.seed)
        for name, error in off.items():
            if error > 2 * references.tolerance * norm(right[name]) + 8 * math.sqrt(float(noise[name].sum())):
                size = norm(right[name])
                self.candidate.problems[name].append(
                    f"is right at these inputs, and off by {error / size if size else math.inf:.0%} at others: "
                    "something is kept from an earlier call, or holds at these inputs only"
                )

    def _changed(self, again: Tensors, factor: float = 1.0) -> list[str]:
        """The gradients that are not ``factor`` times the first."""
        return [
            name for name, g in self.first.items() if name in again and not self._same(again[name], g * factor, name)
        ]

    def _same(self, one: Tensor, other: Tensor, name: str) -> bool:
        return one.dtype == other.dtype and self.references.same(one, other, name)

    def _explain_failure(self, error: Exception, elsewhere: Tensors) -> None:
        self._call()  # fails for any dy: that is the caller's to see
        self._all(f"fails for a dy that is not contiguous: {first_line(error)}")

    def _explain_change(self, changed: list[str], again: Tensors, elsewhere: Tensors) -> None:
        """Why a later result differs from the first: another call shows what it depends on."""
        one, other = copies(self._call().gradients), copies(self._call().gradients)
        if not self._changed(one) and not self._changed(other) and not self._kept_from(elsewhere):
            layout = self._changed(self._call(change=not_contiguous).gradients) if self._many() else []
            if layout:
                self._all("is wrong for a dy that is not contiguous: it reads memory as if dy were", layout)
                return
            same = [name for name in changed if self._same(again[name], self.first[name], name)]
            if same:
                self._all("ignores dy: it is the same for −2·dy", same)
            if rest := [name for name in changed if name not in same]:
                self._all("is not −2 times as large for −2·dy: a gradient is linear in dy", rest)
            return
        if self._random():
            for name in changed:
                self.candidate.setup[name].append(
                    "draws random numbers: it changes from call to call with the same inputs"
                )
            return
        self._describe_state(changed, elsewhere)

    def _many(self) -> bool:
        return any(dy.numel() > 1 for dy in self.candidate.dys)

    def _kept_from(self, elsewhere: Tensors) -> bool:
        self._call(elsewhere)
        return bool(self._changed(self._call().gradients))

    def _random(self) -> bool:
        """Whether two calls differ, but not with the same seed."""
        found = []
        for seed in (self.references.seed, self.references.seed, self.references.seed + 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                found.append(copies(self._call().gradients))
        one, same, other = found
        return all(torch.equal(one[n], same[n]) for n in one) and any(not torch.equal(one[n], other[n]) for n in one)

    def _describe_state(self, changed: list[str], elsewhere: Tensors) -> None:
        second = copies(self._call(elsewhere).gradients)
        again = copies(self._call().gradients)
        for name in changed:
            self.candidate.gradients[name] = again[name]
            self.candidate.problems[name].append("changes when it is computed again after a call at other inputs")
            if name in second and (text := self._kept(name, again[name], second[name], elsewhere)):
                self.candidate.diagnoses[name] = text

    def _kept(self, name: str, again: Tensor, second: Tensor, elsewhere: Tensors) -> str | None:
        """What the gradient function keeps from call to call, if that explains ``again`` after ``second``."""
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
        """dy as y.sum() gives it: one number, expanded, against the same number in every place."""
        if not self._many() or self.candidate.problems or self.candidate.setup:
            return
        one = torch.tensor(0.75)
        try:
            full = copies(self._call(change=lambda dy: torch.full_like(dy, 0.75).contiguous()).gradients)
            expanded = self._call(change=lambda dy: one.to(dy).expand(dy.shape)).gradients
        except Exception as error:
            self._all(f"fails for a dy that is one number, expanded, as y.sum() gives it: {first_line(error)}")
            return
        wrong = [name for name in full if name in expanded and not self._same(expanded[name], full[name], name)]
        self._all("is wrong for a dy that is one number, expanded, as y.sum() gives it: its strides are 0", wrong)

    def _call_in_float64(self) -> None:
        """The same formula without most of its rounding, if the function computes in float64."""
        if self.references.inputs64 is None:
            return
        inputs64 = {name: wider(t) for name, t in self.inputs.items()}
        try:
            with Widths() as widths:
                call = self._call(inputs64)
        except Exception:  # whatever it raises: it was not made for float64
            return
        found = call.gradients
        if all(name in found and found[name].shape == g.shape for name, g in self.first.items()):
            self.candidate.widened_outputs = call.outputs
            self.candidate.widened = {name: flat(g) for name, g in found.items()}
            self.candidate.widened_eps = widths.eps


def copies_of(tensors: list[Tensor]) -> list[Tensor]:
    """Each with memory of its own."""
    return [t.detach().clone() for t in tensors]


def _nearby(inputs: Tensors, seed: int) -> Tensors:
    """Every entry of the inputs changed by up to 0.4 of itself: none changes its sign."""
    generator = torch.Generator().manual_seed(seed)

    def moved(t: Tensor) -> Tensor:
        noise = 0.8 * torch.rand(t.shape, generator=generator) - 0.4
        return t * (1 + noise.to(t.device, t.real.dtype))

    return {name: copy_of(t, change=moved) for name, t in inputs.items()}
