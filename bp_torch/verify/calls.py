"""The gradient under test, the candidate, and the calls that are made of it: SITUATIONS lists them.

Training makes some of these calls; others show what one call does not. Most are compared with the first call, which is
cheap: −2 · dy must give −2 times as much. What differs from it is wrong only if it differs from the reference in that
situation, too. At other inputs the reference decides.
"""

import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.differences import Differences, DtypesSeen, rounding_errors
from bp_torch.verify.elsewhere import Elsewhere
from bp_torch.verify.problem import (
    CallResult,
    Change,
    Problem,
    Tensors,
    autograd,
    copies,
    flat,
    in_float64,
    norm,
    not_contiguous,
)
from bp_torch.verify.references import NOISE_FACTOR, References, first_line
from bp_torch.verify.report import Finding, Kind

SCALE = -2.0  # a power of two: it changes no rounding
MOST_IN_TURN = 8  # inputs that are frozen one at a time, and outputs that are used alone
LEAST_CALLS = 31
KEPT = "is right at these inputs, and off by {} at others: something is kept from an earlier call"
Errors = tuple[type[Exception], ...]
Found = Iterable[tuple[str, str]]  # the name of a gradient, and what is wrong with it


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
        self.by_autograd = self.problem.backward is None
        self.takes_dy = self.by_autograd or not self.problem.scalar
        self.is_steady = False  # whether it was seen that the same call gives the same
        self.fits = True  # whether the gradients had the shapes of the last other inputs
        self.results: dict[str, Tensors] = {}  # of some calls
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
        self.others = Elsewhere(self.problem)
        self.elsewhere = self.others.moved(self.problem, self.problem.seed, mirrored=True)

    def say(self, kind: Kind, names: Iterable[str], words: str) -> None:
        """Add a finding on each of these gradients."""
        self.findings += [Finding(kind, name, words) for name in names]

    def again(self, inputs: Tensors | None = None, change: Change | None = None, **way: object) -> Tensors:
        """The gradients of another call, copied; ``way`` is for ``Problem.call``."""
        return copies(self.problem.call(self.inputs if inputs is None else inputs, change, **way).gradients)

    def same(self, one: Tensor, other: Tensor, name: str) -> bool:
        """Whether two results for a gradient are equal to rounding error."""
        return one.dtype == other.dtype and self.references.same(one, other, name)

    # ---- other calls ----

    @property
    def has_strides(self) -> bool:
        """Whether other strides must give the same. They may change a mask that is drawn: only a reference can tell."""
        return bool(self.references.gradients) or not self.problem.randomness.draws

    def differing(
        self,
        kind: str,
        expected: Tensors,
        inputs: Tensors | None = None,
        change: Change | None = None,
        scale: float = 1.0,
        results: Tensors | None = None,
        **way: Any,
    ) -> list[str]:
        """The gradients of one more call that are not ``scale`` times as expected, nor as the reference has them there.

        They are compared in the size of the first call, for which rounding was measured. ``results``: of that call, if
        it was made already.
        """
        self.results[kind] = found = results or self.again(inputs, change, **way)
        alike = {name: g / scale if scale not in (0, 1) else g for name, g in found.items() if name in expected}
        wanted = {name: g if scale else g * 0 for name, g in expected.items()}
        names = [name for name, g in alike.items() if not self.same(g, wanted[name], name)]
        problem = replace(self.problem, arguments=self.problem.arguments | (inputs or {})) if names else self.problem
        if names and (right := self.right(problem, change)):
            off = self.off({name: found[name] for name in names}, problem, right, change)
            names = [name for name in names if name in off or name in self.off_here]
        return names

    def right(self, problem: Problem, change: Change | None = None, wide: bool = False) -> Tensors:
        """The reference's gradients in a situation, flat; {} if they cannot be had there."""
        if not self.references.gradients:
            return {}
        try:
            inputs = in_float64(problem.inputs) if wide else problem.inputs
            value, found, _ = autograd(partial(problem.value, change=change), inputs)
        except Exception:  # whatever a function raises that is not defined there
            return {}
        is_known = value.isfinite() and all(g.isfinite().all() for g in found.values())
        return {name: flat(g) for name, g in found.items()} if is_known else {}

    def off(self, found: Tensors, problem: Problem, right: Tensors, change: Change | None = None) -> dict[str, float]:
        """The relative errors of the gradients that are off by more than rounding explains in this situation."""
        tolerance, underflow = self.references.tolerance, self.references.underflow
        ours = {n: flat(g) for n, g in found.items() if n in right and 0 < len(flat(g)) == len(right[n])}
        rooms = {n: tolerance * norm(right[n]) + underflow * len(g) for n, g in ours.items()}
        far = [n for n, g in ours.items() if not norm(g - right[n]) <= rooms[n]]
        if not far:
            return {}
        value = partial(problem.value, change=change)
        noise = rounding_errors(lambda: autograd(value, problem.inputs)[1], problem.seed)
        best = self.right(problem, change, wide=True) if self.references.inputs64 else {}
        errors = {n: min(norm(ours[n] - one[n]) for one in (right, best) if one) for n in far}
        wrong = [n for n in far if not errors[n] <= rooms[n] + NOISE_FACTOR * norm(noise[n]) / math.sqrt(len(noise[n]))]
        return {n: errors[n] / norm(right[n]) if norm(right[n]) else math.inf for n in wrong}

    @cached_property
    def right_here(self) -> list[str]:
        """The gradients that are right at the check's inputs, without any allowance."""
        here, tolerance = self.references.gradients.get("autograd", {}), self.references.tolerance
        known = {n: flat(g) for n, g in self.first.items() if n in here and g.numel() == self.inputs[n].numel()}
        known = {n: g for n, g in known.items() if len(g) == len(here[n])}
        known = {n: g for n, g in known.items() if norm(g - here[n]) <= tolerance * norm(here[n])}
        largest = {n: tolerance * float(here[n].abs().max()) if len(g) else 0.0 for n, g in known.items()}
        return [n for n, g in known.items() if not (abs(g - here[n]) > 2 * largest[n]).any()]  # no entry is on a kink

    @cached_property
    def off_here(self) -> dict[str, float]:
        """The gradients that are wrong at the check's inputs."""
        return self.off(self.first, self.problem, self.right(self.problem))

    def off_at(
        self, other: Problem | None, memory: Tensors | None = None, lengths: Mapping[int, int] | None = None
    ) -> dict[str, str]:
        """By how much gradients that are right here are off at another problem; those of another shape are left out.

        The inputs come in this ``memory``, or in their own. A gradient may have one of the old ``lengths`` as a number
        in it: it is made for these, as one is that has another shape.
        """
        if other and not self.references.gradients:
            return self.off_along(other, memory)
        problems, found = [other], dict[str, str]()
        if self.references.eps > 1e-5 and other:  # 16 bits: by chance a kink may lie at these very numbers
            problems.append(self.others.moved(other, other.seed + 1, part=0.05))
        for one in problems:
            right = self.right(one) if one and self.right_here else {}
            if not one or not right:
                break
            lent = refilled(memory, one.inputs) if memory else None
            result = copies(one.call(one.inputs, lent=lent).gradients)
            self.fits = all(g.shape == one.inputs[name].shape for name, g in result.items())
            errors = self.off({n: result[n] for n in self.right_here if n in result}, one, right) if self.fits else {}
            for old, new in (lengths or {}).items() if errors else ():
                for factor in (old / new, new / old) if new else ():
                    still = self.off({name: result[name] * factor for name in errors}, one, right)
                    errors = {name: error for name, error in errors.items() if name in still}
            found = {name: f"{error:.0%}" for name, error in errors.items() if one is other or name in found}
            if not found:
                break
        return found

    def off_along(self, other: Problem, memory: Tensors | None = None) -> dict[str, str]:
        """The same without a reference, by differences of the forward along a random direction."""
        here = set(self._along(self.problem, self.first))
        lent = refilled(memory, other.inputs) if memory else None
        found = copies(other.call(other.inputs, lent=lent).gradients)
        self.fits = all(g.shape == other.inputs[name].shape for name, g in found.items())
        return {n: words for n, words in self._along(other, found).items() if n not in here} if self.fits else {}

    def _along(self, problem: Problem, found: Tensors) -> dict[str, str]:
        """By how much the gradients ``found`` are off along a direction; what kinks or rounding hide is left out."""
        off, eps = dict[str, str](), self.references.eps64
        tolerance = max(self.references.tolerance, 1e-6, eps**0.5)
        for name, g in found.items() if self.references.inputs64 is not None else ():
            ours = flat(g)
            if g.is_complex() or not ours.isfinite().all() or not len(ours):
                continue
            differences = Differences(problem.value, in_float64(problem.inputs), name, lambda t, g=ours: g, ours, eps)  # type: ignore[misc]
            v = torch.randn(len(ours), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            derivative = differences.along(v, 0.1 * tolerance * norm(ours))
            error, size = abs(derivative.value - float(ours @ v)), max(norm(ours), abs(derivative.value))
            if error > 8 * tolerance * size + 8 * derivative.uncertainty and not derivative.kinked:
                off[name] = f"{error / size:.0%}"
        return off

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


Situation = Callable[[Candidate], Found]


def make_calls(candidate: Candidate) -> None:
    """Call in every situation until one shows a fault; then in float64."""
    if candidate.problem.tensors is not None or not candidate.first:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty batch, say, which is not the caller's
        for when, find, refusals in SITUATIONS:
            for name, words in findings_of(candidate, when, find, refusals):
                candidate.say("problem", [name], words)
            if any(finding.kind in ("problem", "setup") for finding in candidate.findings):
                break
    candidate.call_in_float64()
    if candidate.problem.randomness.draws:
        candidate.notes.append("it draws random numbers: every call starts from the same seed")


def findings_of(candidate: Candidate, when: str, find: Situation, refusals: Errors) -> Found:
    """Call in one situation, and say what is wrong there, or that it fails."""
    found, progress = list[tuple[str, str]](), candidate.problem.progress
    try:
        for one in find(candidate):
            found.append(one)
        if found and candidate.is_steady and (changed := candidate.differing("again", candidate.first)):
            return [(name, f"changes by call {progress.calls}, with the same inputs") for name in changed]
    except Exception as error:
        text = f"fails {when}: {first_line(error)}"
        if progress.stage == "backward" and not isinstance(error, refusals):
            return [(name, text) for name in candidate.first]
        candidate.notes += [f"it {text}"] if refusals is not ANY else []
    return found


# ---- what is written, and what is returned ----


def writes(candidate: Candidate) -> Found:
    """Into the inputs, by forward or backward, and into dy; and a result in the memory of an input."""
    call, first = candidate.call, next(iter(candidate.first))
    owners = {name: name if name in candidate.first else first for name in candidate.inputs}
    for name in call.overwritten:
        text = f"the forward overwrites its input {name}, and autograd cannot see it: whoever saved {name} for a "
        yield owners[name], text + "backward of their own gets a wrong gradient"
    for name in (name for name in candidate.inputs if name not in call.overwritten):
        if not torch.equal(call.inputs[name].detach(), candidate.inputs[name]):
            yield owners[name], f"the gradient function changes its input {name} in place"
    given = candidate.problem.output_gradients(call.outputs) if call.dys else []
    if not all(map(torch.equal, call.dys, given)):
        yield from ((name, "the backward writes into dy, which belongs to the caller") for name in candidate.first)
    memory = {t.untyped_storage().data_ptr(): name for name, t in call.inputs.items() if t.numel()}
    for name, g in call.gradients.items() if candidate.takes_dy else ():  # that of a scalar product is the other factor
        if (place := g.untyped_storage().data_ptr()) in memory:
            yield name, f"is a view of the input {memory[place]}: what changes the one changes the other"


# ---- state, new memory, and −2 · dy ----


def state(candidate: Candidate) -> Found:
    """The first result must come again for −2 · dy in another layout, in memory that holds no numbers yet."""
    overwritten = list(call_elsewhere(candidate))
    change = (lambda dy: SCALE * (not_contiguous(dy) if dy.numel() > 1 else dy)) if candidate.takes_dy else None
    scale = SCALE if candidate.takes_dy else 1.0
    with new_memory_is_nan():
        changed = candidate.differing("scaled", candidate.first, change=change, scale=scale)
    if not changed:
        candidate.is_steady = True
        return overwritten
    pairs = {name: (candidate.results["scaled"][name], candidate.first[name]) for name in changed}
    if unwritten := [name for name, (new, old) in pairs.items() if (new.isnan() & ~old.isnan()).any()]:
        return [(name, "is not written everywhere: the rest is what the memory held before") for name in unwritten]
    kept = candidate.differing("again", candidate.first) or candidate.differing("again", candidate.first)
    if not kept and candidate.elsewhere:
        candidate.again(candidate.elsewhere.inputs)
        kept = candidate.differing("again", candidate.first)
    if not kept:
        return explained_by_dy(candidate, changed)
    if never_twice_the_same(candidate, changed):
        text = "draws random numbers of its own: it changes from call to call with the same inputs and the same seed"
        candidate.say("setup", changed, text)
        return []
    describe_state(candidate, changed)
    return [(name, "changes when it is computed again after a call at other inputs") for name in changed]


def call_elsewhere(candidate: Candidate) -> Found:
    """In the memory that the first call had. The results of the first that this overwrites are found."""
    call, other = candidate.call, candidate.elsewhere or candidate.problem
    lent = {t.untyped_storage().data_ptr() for t in call.inputs.values()}
    try:
        other.call(other.inputs, lent=refilled(call.inputs, other.inputs))
    except Exception:  # the other inputs may lie where the gradient is not defined: that is no fault
        candidate.elsewhere = None
        candidate.again(change=lambda dy: SCALE * dy)
    pairs = [(name, "gradient", call.gradients[name], g) for name, g in candidate.first.items()]
    outputs = zip(call.outputs, candidate.outputs, strict=True)
    for name, what, now, then in [*pairs, *((next(iter(candidate.first)), "output", *ys) for ys in outputs)]:
        if now.untyped_storage().data_ptr() not in lent and not torch.equal(
            now.detach().nan_to_num(), then.detach().nan_to_num()
        ):
            yield name, f"returns the same memory at every call: the next overwrites the {what}"


def refilled(memory: Tensors, values: Tensors) -> Tensors:
    """The same memory with other numbers in it; new memory where one place of it holds several numbers."""
    try:
        with torch.no_grad():
            return {name: t.copy_(values[name]) for name, t in memory.items()}
    except RuntimeError:
        return copies(values)


def explained_by_dy(candidate: Candidate, changed: list[str]) -> Found:
    """Why the result for −2 · dy in another layout is wrong, if the same call gives the same result."""
    has_layout = any(dy.numel() > 1 for dy in candidate.dys)
    if has_layout and (layout := candidate.differing("again", candidate.first, change=not_contiguous)):
        return [(name, "is wrong for a dy that is not contiguous: it reads memory as if dy were") for name in layout]
    same = [name for name in changed if candidate.same(candidate.results["scaled"][name], candidate.first[name], name)]
    not_linear = "is not −2 times as large for −2·dy: a gradient is linear in dy"
    return [(name, "ignores dy: it is the same for −2·dy" if name in same else not_linear) for name in changed]


def never_twice_the_same(candidate: Candidate, names: list[str]) -> bool:
    """Whether results differ from call to call, and not by the same amount, as they do where something adds up."""
    results = [candidate.again() for _ in range(4)]
    for name in names:
        steps = [b[name] - a[name] for a, b in pairwise(results)]
        alike = [*((a[name], b[name]) for a, b in pairwise(results)), *pairwise(steps)]
        if any(candidate.same(a, b, name) for a, b in alike):
            return False
    return True


def describe_state(candidate: Candidate, names: list[str]) -> None:
    """The thing that is kept from call to call, if one that is known explains a result after one elsewhere."""
    references, elsewhere = candidate.references, candidate.elsewhere or candidate.problem
    second, again = candidate.again(elsewhere.inputs), candidate.again()
    for name in names:
        shape, one = candidate.inputs[name].shape, again[name]
        candidate.gradients[name] = one
        if not references.gradients or one.shape != shape or name not in second or one.is_complex():
            continue
        if references.same(one - second[name], references.gradients["autograd"][name].reshape(shape).to(one), name):
            candidate.diagnoses[name] = "adds to what the calls before left: its buffer is not cleared"
        elif references.same(one, autograd(references.function, elsewhere.inputs)[1][name], name):
            candidate.diagnoses[name] = "is the gradient at the inputs of the call before: a stale buffer"


@contextmanager
def new_memory_is_nan() -> Iterator[None]:
    """A context in which torch fills the memory that ``torch.empty`` returns: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    set_mode = torch._C._set_deterministic_algorithms  # the public function loads the compiler
    set_mode(True, warn_only=True)
    try:
        yield
    finally:
        set_mode(before[0], warn_only=before[1])


# ---- other dy, and other layouts of the inputs ----


def dy_of_ones(candidate: Candidate) -> Found:
    """One number, expanded, as y.sum() gives dy; and dy + 1, which must give the sum of what both give."""
    if not candidate.takes_dy:
        return []
    one = candidate.again(change=lambda dy: dy.new_ones(()).expand(dy.shape))
    sums = {name: g + one[name] for name, g in candidate.first.items() if name in one and one[name].shape == g.shape}
    plus = candidate.again(change=lambda dy: dy + 1)
    if all(candidate.same(plus[name], g, name) for name, g in sums.items()):
        return []
    expected = {name: plus[name] - candidate.first[name] for name in sums}
    wrong = candidate.differing("ones", expected, change=lambda dy: dy.new_ones(()).expand(dy.shape))
    full = candidate.again(change=torch.ones_like)
    layout = [name for name in wrong if not candidate.same(candidate.first[name] + full[name], sums[name], name)]
    strided = "is wrong for a dy that is one number, expanded, as y.sum() gives it: its strides are 0"
    found = [(name, strided if name in layout else "is wrong for a dy of ones: it is linear in dy") for name in wrong]
    not_linear = candidate.differing("dy + 1", sums, change=lambda dy: dy + 1) if not found else []
    return found or [(name, "is wrong for dy + 1: a gradient is linear in dy") for name in not_linear]


def layout_of_inputs(candidate: Candidate) -> Found:
    """The inputs transposed, or in every second place of memory, within memory that holds NaN."""
    if not candidate.has_strides:
        return
    views = dict[str, Tensor]()
    for name, t in candidate.inputs.items():
        memory = t.new_full((2 * t.numel() + 128,), math.nan)[64:-64]
        turned = t.ndim > 1 and min(t.shape[-2:]) > 1
        views[name] = (memory[: t.numel()].view(t.mT.shape).mT if turned else memory[::2].view(t.shape)).copy_(t)
    for name in candidate.differing("inputs", candidate.first, views, lent=views):
        yield name, "is wrong for inputs that are not contiguous, or are views: it reads memory in between or around"


def expanded_inputs(candidate: Candidate) -> Found:
    """The first entry repeated without memory of its own, against the same with it."""
    several = [name for name, t in candidate.inputs.items() if candidate.has_strides and t.ndim and t.shape[0] > 1]
    if several:
        expanded = candidate.inputs | {
            name: candidate.inputs[name][:1].expand_as(candidate.inputs[name]) for name in several
        }
        full = candidate.again({name: t.contiguous() for name, t in expanded.items()})
        if not candidate.references.gradients:  # of equal rows a normalisation leaves rounding: then nothing is told
            near = {name: t.contiguous() * (1 + 8 * torch.finfo(t.dtype).eps) for name, t in expanded.items()}
            if candidate.differing("moved", full, near):
                return
        for name in candidate.differing("expanded", full, expanded):
            yield name, "is wrong for inputs that are expanded: their strides are 0"


# ---- graphs ----


def twice(candidate: Candidate) -> Found:
    """The forward runs at other inputs between forward and backward; then the backward runs twice."""
    between = candidate.elsewhere.inputs if candidate.elsewhere else None
    if not candidate.by_autograd or not (
        names := candidate.differing("twice", candidate.first, between=between, times=2)
    ):
        return []
    uses = candidate.differing("between", candidate.first, between=between) if names else []
    used = "is wrong if the function is used twice in a graph: the second use overwrites what the first saved"
    backward = "is wrong in a second backward over one graph: the first overwrites what was saved"
    return [(name, used if name in uses else backward) for name in names]


def frozen_in_turn(candidate: Candidate) -> Found:
    """Each input in turn requires no gradient: those of the others must be the same."""
    for frozen in list(candidate.inputs)[:MOST_IN_TURN] if candidate.by_autograd and len(candidate.inputs) > 1 else ():
        others = {name: g for name, g in candidate.first.items() if name != frozen}
        try:
            for name in candidate.differing(frozen, others, frozen=[frozen]):
                yield name, f"is wrong if {frozen} requires no gradient"
        except REFUSALS as error:
            if "does not depend on" not in str(error):
                candidate.notes.append(f"it fails if {frozen} requires no gradient: {first_line(error)}")


def outputs_in_turn(candidate: Candidate) -> Found:
    """Each output is used alone; the gradients of all these add up."""
    n = len(candidate.dys)
    parts = [candidate.again(only=i) for i in range(n)] if candidate.by_autograd and 1 < n <= MOST_IN_TURN else []
    for name, whole in candidate.first.items() if parts else ():
        *others, largest = sorted((part[name] for part in parts), key=lambda g: norm(flat(g)))
        if not candidate.same(largest, whole - torch.stack(others).sum(0), name):
            yield name, "is wrong if one of the outputs is not used: its dy is None"


# ---- other numbers, labels and lengths, and many calls ----


def same_memory(candidate: Candidate) -> Found:
    """Other numbers in the memory that the first call had."""
    memory = candidate.call.inputs
    candidate.problem.call(candidate.inputs, lent=refilled(memory, candidate.inputs))
    if off := candidate.off_at(candidate.elsewhere, memory):
        in_new_memory = candidate.off_at(candidate.elsewhere)
        where = "or holds at these inputs only" if in_new_memory else "for this place in memory"
        yield from ((name, f"{KEPT.format(error)}, {where}") for name, error in (in_new_memory or off).items())


def others(candidate: Candidate) -> Found:
    """Other labels, signs and lengths at once; which of them it was is found out if something is off."""
    if candidate.problem.nearby is None:
        return
    labelled, names = candidate.others.relabelled(candidate.problem)
    seed, shorter = candidate.problem.seed + 11, {n: n - 1 for n in lengths(candidate.problem) if n > 2}
    moved = candidate.others.moved(labelled, seed, mirrored=True) or labelled
    candidate.fits = False
    try:
        off = candidate.off_at(candidate.others.resized(moved, shorter), lengths=shorter)
    except Exception:  # it may be made for these lengths
        off = {}
    if not off and candidate.fits:
        return
    for name, error in candidate.off_at(candidate.others.moved(candidate.problem, seed, mirrored=True)).items():
        yield name, KEPT.format(error) + ", or holds at these inputs only"
    for name, error in candidate.off_at(labelled).items() if names else ():
        yield name, f"is right with these {', '.join(names)}, and off by {error} with other ones: are they kept?"
    other = candidate.others.resized(candidate.problem, shorter)
    shapes = ", ".join(str(list(t.shape)) for t in other.inputs.values())
    if not (off := candidate.off_at(other, lengths=shorter)):
        return
    even = {n: n - 2 for n in shorter if n % 2 == 0 and n > 4}
    if (
        even
        and not candidate.off_at(candidate.others.resized(candidate.problem, even), lengths=even)
        and candidate.fits
    ):
        return candidate.notes.append("it is right at even lengths only, as what works in halves is")
    for name, error in off.items():
        yield name, f"is right at these lengths, and off by {error} at others: {shapes}"


def lengths(problem: Problem) -> list[int]:
    """Every length of a tensor, that of the batch first."""
    return [n for t in problem.arguments.values() if isinstance(t, Tensor) for n in t.shape]


def batch_of_one(candidate: Candidate) -> Found:
    """The first length, wherever it comes first."""
    batch = lengths(candidate.problem)[:1]
    if candidate.problem.nearby is not None and batch and batch[0] > 1:
        other = candidate.others.resized(candidate.problem, {batch[0]: 1}, first_only=True)
        for name, error in candidate.off_at(other, lengths={batch[0]: 1}).items():
            yield (
                name,
                f"is off by {error} for a batch of one" if error != "inf%" else "is not finite for a batch of one",
            )


def empty_batch(candidate: Candidate) -> Found:
    """Where the reference takes one."""
    batch = lengths(candidate.problem)[:1]
    if candidate.problem.nearby is None or not batch or not batch[0]:
        return
    other = candidate.others.resized(candidate.problem, {batch[0]: 0}, first_only=True)
    if right := candidate.right(other):
        found = other.call(other.inputs).gradients
        for name in (
            name for name in candidate.right_here if name in found and found[name].numel() == len(right[name])
        ):
            if norm(right[name]) == 0 != norm(flat(found[name])):
                yield name, "is not zero for an empty batch"


def many_calls(candidate: Candidate) -> Found:
    """As many as it takes, to a number that cannot be foreseen; dy is as it was, tiny, and zero in turn."""
    entries, progress = sum(t.numel() for t in candidate.inputs.values()), candidate.problem.progress
    last = LEAST_CALLS + secrets.randbelow(8) if entries < 10**6 else progress.calls + 1  # then each scale once
    scales = {"the same inputs": 1.0} | ({"a dy of zeros": 0.0} if candidate.takes_dy else {})
    if candidate.takes_dy and all(dy.dtype != torch.float16 for dy in candidate.dys):  # in which it would be zero
        scales["a tiny dy"] = 2.0**-40
    expected = {scale: {name: g * scale for name, g in candidate.first.items()} for scale in scales.values()}
    lent = refilled(candidate.call.inputs, candidate.inputs)
    while progress.calls < last:
        for words, scale in scales.items():
            change = partial(torch.mul, other=scale) if scale != 1 else None
            found = candidate.problem.call(candidate.inputs, change, lent=lent).gradients
            if all(torch.equal(g, expected[scale][name]) for name, g in found.items()):
                continue
            if changed := candidate.differing(
                words, candidate.first, change=change, scale=scale, results=copies(found)
            ):
                return [(name, f"is wrong for {words}: a gradient is linear in dy") for name in changed]
    return []


# ---- the table ----

REFUSALS = (RuntimeError, ValueError, AssertionError, NotImplementedError)  # as the author of a backward may mean them
ANY, NONE = (Exception,), ()
SITUATIONS: list[tuple[str, Situation, Errors]] = [
    ("at all", writes, NONE),
    ("for a dy that is not contiguous", state, NONE),
    ("for a dy that is one number, expanded, as y.sum() gives it", dy_of_ones, NONE),
    ("in a second backward over one graph", twice, REFUSALS),
    ("if an input requires no gradient", frozen_in_turn, REFUSALS),
    ("if one of its outputs is not used: its dy is None", outputs_in_turn, NONE),
    ("for inputs that are not contiguous", layout_of_inputs, REFUSALS),
    ("for inputs that are expanded", expanded_inputs, REFUSALS),
    ("at other inputs", same_memory, ANY),
    ("with other labels, or at other lengths", others, ANY),
    ("for a batch of one", batch_of_one, ANY),
    ("when called often, or for a dy of zeros", many_calls, NONE),
    ("for an empty batch", empty_batch, ANY),
]
"""When a call fails, in words; the calls; and the errors of the backward that are only noted, as all errors of the
forward are: these may be meant, and are loud. Nothing is noted if there are ANY: it may be made for its own inputs."""
