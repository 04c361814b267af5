"""The calls that training makes of a gradient, and others that show what one call does not: each ``situation`` below.

Most are compared with the first call, which is cheap: −2 · dy must give −2 times as much. What differs from it is wrong
only if it differs from the reference in that situation, too. At other inputs the reference decides.
"""

import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.candidate import Candidate
from bp_torch.verify.elsewhere import Elsewhere
from bp_torch.verify.problem import Change, Problem, Tensors, autograd, copies, flat, in_float64, norm, not_contiguous
from bp_torch.verify.references import NOISE_FACTOR, first_line
from bp_torch.verify.rounding import rounding_noise

SCALE = -2.0  # a power of two: it changes no rounding
MOST_IN_TURN = 8  # inputs that are frozen one at a time, and outputs that are used alone
LEAST_CALLS = 31
REFUSALS = (RuntimeError, ValueError, AssertionError, NotImplementedError)  # as its author may have meant them

Found = Iterable[str | tuple[str, object]]  # names of gradients, and what completes the words
Errors = tuple[type[Exception], ...]
Situation = tuple[str, str, Callable[["Calls"], Found], Errors]
SITUATIONS: list[Situation] = []


def situation(when: str, words: str, refusals: Errors = REFUSALS) -> Callable[[Callable[["Calls"], Found]], Any]:
    """Enter a way of calling: what is said of a gradient that is wrong then, and of one that fails ``when``.

    ``refusals`` of the backward are only noted, as every error of the forward is: both may be meant, and are loud.
    """

    def entered(find: Callable[["Calls"], Found]) -> Callable[["Calls"], Found]:
        SITUATIONS.append((when, words, find, refusals))
        return find

    return entered


def make_calls(candidate: Candidate) -> None:
    """Call in every situation until one shows a fault; then in float64."""
    if candidate.problem.tensors is not None or not candidate.first:
        return
    calls, progress = Calls(candidate), candidate.problem.progress
    for when, words, find, refusals in SITUATIONS:
        if any(finding.kind in ("problem", "setup") for finding in candidate.findings):
            break
        try:
            found = [(one,) if isinstance(one, str) else one for one in find(calls)]
            if found and calls.is_steady and (changed := calls.differing("again", calls.first)):
                words = f"changes by call {progress.calls}, with the same inputs"
                found = [(name,) for name in changed]
            for name, *details in found:
                candidate.say("problem", [name], words.format(*details))
        except Exception as error:
            text = f"fails {when}: {first_line(error)}"
            if progress.stage == "forward" or isinstance(error, refusals):
                candidate.notes.append(f"it {text}")
            else:
                candidate.say("problem", candidate.first, text)
    candidate.call_in_float64()
    if candidate.problem.randomness.draws:
        candidate.notes.append("it draws random numbers: every call starts from the same seed")


class Calls:
    """The calls that several situations look at, and what is right in them."""

    def __init__(self, candidate: Candidate) -> None:
        """Begin after the first call."""
        self.candidate, self.references, self.problem = candidate, candidate.references, candidate.problem
        self.first, self.again, self.inputs = candidate.first, candidate.again, candidate.inputs
        self.by_autograd = self.problem.backward is None
        self.takes_dy = self.by_autograd or not self.problem.scalar
        self.others = Elsewhere(self.problem)
        self.elsewhere = self.others.moved(self.problem, self.problem.seed, mirrored=True)
        # A mask that is drawn may depend on the strides of the inputs: only a reference can tell.
        self.has_strides = bool(self.references.gradients) or not self.problem.randomness.draws
        self.is_steady = False  # whether it was seen that the same call gives the same
        self.changed: dict[str, list[str]] = {}  # the gradients that differ from the first, in some situations
        self.results: dict[str, Tensors] = {}  # and what they are there
        self.overwritten: list[tuple[str, str]] = []  # gradients and outputs of the first call, by a later one

    def differing(
        self,
        kind: str,
        expected: Tensors,
        inputs: Tensors | None = None,
        change: Change | None = None,
        scale: float = 1.0,
        **way: Any,
    ) -> list[str]:
        """The gradients of one more call that are not ``scale`` times as expected, nor as the reference has them there.

        They are compared in the size of the first call, for which rounding was measured.
        """
        self.results[kind] = found = self.again(inputs, change, **way)
        alike = {
            name: found[name] / scale if scale not in (0, 1) else found[name] for name in expected if name in found
        }
        names = [
            name
            for name, g in alike.items()
            if not self.candidate.same(g, expected[name] if scale else expected[name] * 0, name)
        ]
        if names:
            problem = replace(self.problem, arguments=self.problem.arguments | (inputs or {}))
            if right := self.right(problem, change):
                off = self.off({name: found[name] for name in names}, problem, right, change)
                names = [name for name in names if name in off or name in self.off_here]
        self.changed[kind] = names
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
        ours = {name: flat(g) for name, g in found.items() if name in right and g.numel() * len(right[name])}
        rooms = {
            n: self.references.tolerance * norm(right[n]) + self.references.underflow * len(g) for n, g in ours.items()
        }
        far = [n for n, g in ours.items() if len(g) != len(right[n]) or not norm(g - right[n]) <= rooms[n]]
        if not far:
            return {}
        noise = rounding_noise(partial(problem.value, change=change), problem.inputs, problem.seed)
        best = self.right(problem, change, wide=True) if self.references.inputs64 else {}
        errors = dict[str, float]()
        for name in far:
            room, fits = (
                rooms[name] + NOISE_FACTOR * math.sqrt(float(noise[name].sum())),
                len(ours[name]) == len(right[name]),
            )
            error = min(norm(ours[name] - one[name]) for one in (right, best) if one) if fits else math.inf
            if not error <= room:
                errors[name] = error / norm(right[name]) if norm(right[name]) else math.inf
        return errors

    @cached_property
    def right_here(self) -> list[str]:
        """The gradients that are right at the check's inputs."""
        here, tolerance = self.references.gradients.get("autograd", {}), self.references.tolerance
        known = {name: flat(g) for name, g in self.first.items() if name in here and g.shape == self.inputs[name].shape}
        return [
            name
            for name, g in known.items()
            if len(g) == len(here[name]) and norm(g - here[name]) <= tolerance * norm(here[name])
        ]

    @cached_property
    def off_here(self) -> dict[str, float]:
        """The gradients that are wrong at the check's inputs."""
        return self.off(self.first, self.problem, self.right(self.problem))

    def off_at(self, other: Problem | None, lent: Tensors | None = None) -> dict[str, str]:
        """By how much gradients that are right here are off at another problem; those of another shape are left out."""
        right = self.right(other) if other and self.right_here else {}
        if not other or not right:
            return {}
        found = copies(other.call(other.inputs, lent=lent).gradients)
        self.fits = all(g.shape == other.inputs[name].shape for name, g in found.items())
        taken = {name: found[name] for name in self.right_here if name in found} if self.fits else {}
        errors = self.off(taken, other, right)
        if errors and self.references.eps > 1e-5:  # by chance a kink may lie at these very numbers
            nudged = self.others.moved(other, other.seed + 1, part=0.05)
            if nudged and (right := self.right(nudged)):
                found = copies(nudged.call(nudged.inputs).gradients)
                still = self.off({name: found[name] for name in errors if name in found}, nudged, right)
                errors = {name: error for name, error in errors.items() if name in still}
        return {name: f"{error:.0%}" for name, error in errors.items()}


# ---- what is written, and what is returned ----


@situation(
    "in its forward",
    "the forward overwrites its input {0}, and autograd cannot see it: whoever saved {0} for a backward of their own "
    "gets a wrong gradient",
)
def _(calls: Calls) -> Found:
    return [(owner(calls, name), name) for name in calls.candidate.call.overwritten]


@situation("at first", "the gradient function changes its input {} in place")
def _(calls: Calls) -> Found:
    call = calls.candidate.call
    left = [name for name in calls.inputs if name not in call.overwritten]
    return [(owner(calls, n), n) for n in left if not torch.equal(call.inputs[n].detach(), calls.inputs[n])]


def owner(calls: Calls, name: str) -> str:
    """The gradient that something about an input is said of."""
    return name if name in calls.first else next(iter(calls.first))


@situation("at first", "the backward writes into dy, which belongs to the caller")
def _(calls: Calls) -> Found:
    call = calls.candidate.call
    given = calls.problem.output_gradients(call.outputs) if call.dys else []
    return [] if all(map(torch.equal, call.dys, given)) else calls.first


@situation("at first", "is a view of the input {}: what changes the one changes the other")
def _(calls: Calls) -> Found:
    call = calls.candidate.call
    memory = {t.untyped_storage().data_ptr(): name for name, t in call.inputs.items() if t.numel()}
    at = {name: g.untyped_storage().data_ptr() for name, g in call.gradients.items() if calls.takes_dy}
    return [(name, memory[place]) for name, place in at.items() if place in memory]


def refilled(memory: Tensors, values: Tensors) -> Tensors:
    """The same memory with other numbers in it; new memory where one place of it holds several numbers."""
    try:
        with torch.no_grad():
            return {name: t.copy_(values[name]) for name, t in memory.items()}
    except RuntimeError:
        return copies(values)


# ---- state, new memory, and −2 · dy ----


@situation("for a dy that is not contiguous", "changes when it is computed again after a call at other inputs", ())
def _(calls: Calls) -> Found:
    """The first result must come again for −2 · dy in another layout, in memory that holds no numbers yet."""
    call_elsewhere(calls)
    change = (lambda dy: SCALE * (not_contiguous(dy) if dy.numel() > 1 else dy)) if calls.takes_dy else None
    scale = SCALE if calls.takes_dy else 1.0
    with new_memory_is_nan():
        calls.is_steady = not (changed := calls.differing("scaled", calls.first, change=change, scale=scale))
    if not changed:
        return
    kept = calls.differing("again", calls.first) or calls.differing("again", calls.first)
    if not kept and calls.elsewhere:
        calls.again(calls.elsewhere.inputs)
        kept = calls.differing("again", calls.first)
    if kept and never_twice_the_same(calls, changed):
        text = "draws random numbers of its own: it changes from call to call with the same inputs and the same seed"
        calls.candidate.say("setup", changed, text)
    elif kept:
        yield from changed
        describe_state(calls, changed)


def call_elsewhere(calls: Calls) -> None:
    """In the memory that the first call had, and see what of its results that overwrites."""
    call, other = calls.candidate.call, calls.elsewhere or calls.problem
    lent = {t.untyped_storage().data_ptr() for t in call.inputs.values()}
    try:
        calls.results["elsewhere"] = copies(
            other.call(other.inputs, lent=refilled(call.inputs, other.inputs)).gradients
        )
    except Exception:  # the other inputs may lie where the gradient is not defined: that is no fault
        calls.elsewhere = None
        calls.again(change=lambda dy: SCALE * dy)
    pairs = [(name, "gradient", call.gradients[name], g) for name, g in calls.first.items()]
    pairs += [
        (next(iter(calls.first)), "output", *ys) for ys in zip(call.outputs, calls.candidate.outputs, strict=True)
    ]
    pairs = [pair for pair in pairs if pair[2].untyped_storage().data_ptr() not in lent]
    calls.overwritten = [(name, what) for name, what, now, then in pairs if not same_bits(now, then)]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal, NaN to NaN."""
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def never_twice_the_same(calls: Calls, names: list[str]) -> bool:
    """Whether results differ from call to call, and not by the same amount, as they do where something adds up."""
    results = [calls.again() for _ in range(4)]
    for name in names:
        several = [result[name] for result in results]
        steps = [b - a for a, b in zip(several, several[1:], strict=False)]
        alike = [*zip(several, several[1:], strict=False), *zip(steps, steps[1:], strict=False)]
        if any(calls.candidate.same(a, b, name) for a, b in alike):
            return False
    return True


def describe_state(calls: Calls, names: list[str]) -> None:
    """The thing that is kept from call to call, if one that is known explains a result after one elsewhere."""
    candidate, references, elsewhere = calls.candidate, calls.references, calls.elsewhere or calls.problem
    second, again = calls.again(elsewhere.inputs), calls.again()
    for name in names:
        shape, one = calls.inputs[name].shape, again[name]
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        set_mode(before[0], warn_only=before[1])


@situation("in new memory", "is not written everywhere: the rest is what the memory held before")
def _(calls: Calls) -> Found:
    with new_memory_is_nan():
        return calls.differing("in new memory", calls.first) if calls.changed["scaled"] else []


@situation("for it", "is wrong for a dy that is not contiguous: it reads memory as if dy were")
def _(calls: Calls) -> Found:
    has_layout = any(dy.numel() > 1 for dy in calls.candidate.dys)
    return (
        calls.differing("layout", calls.first, change=not_contiguous) if calls.changed["scaled"] and has_layout else []
    )


@situation("for −2·dy", "ignores dy: it is the same for −2·dy")
def _(calls: Calls) -> Found:
    scaled = calls.results["scaled"]
    return [name for name in calls.changed["scaled"] if calls.candidate.same(scaled[name], calls.first[name], name)]


@situation("for −2·dy", "is not −2 times as large for −2·dy: a gradient is linear in dy")
def _(calls: Calls) -> Found:
    return calls.changed["scaled"]


@situation("when called again", "returns the same memory at every call: the next overwrites the {}")
def _(calls: Calls) -> Found:
    return calls.overwritten


# ---- graphs ----


@situation(
    "in a second backward over one graph",
    "is wrong if the function is used twice in a graph: the second use overwrites what the first saved",
)
def _(calls: Calls) -> Found:
    """The forward runs at other inputs between forward and backward; then the backward runs twice."""
    if not calls.by_autograd:
        return []
    between = calls.elsewhere.inputs if calls.elsewhere else None
    twice = calls.differing("twice", calls.first, between=between, times=2)
    return calls.differing("between", calls.first, between=between) if twice else []


@situation("", "is wrong in a second backward over one graph: the first overwrites what was saved")
def _(calls: Calls) -> Found:
    return calls.changed.get("twice", [])


@situation("if an input requires no gradient", "is wrong if {} requires no gradient")
def _(calls: Calls) -> Found:
    names = list(calls.inputs)[:MOST_IN_TURN] if calls.by_autograd and len(calls.inputs) > 1 else []
    for frozen in names:
        try:
            changed = calls.differing(frozen, {n: g for n, g in calls.first.items() if n != frozen}, frozen=[frozen])
        except REFUSALS as error:
            if "does not depend on" not in str(error):
                calls.candidate.notes.append(f"it fails if {frozen} requires no gradient: {first_line(error)}")
            continue
        yield from ((name, frozen) for name in changed)


@situation(
    "if one of its outputs is not used: its dy is None",
    "is wrong if one of the outputs is not used: its dy is None",
    refusals=(),
)
def _(calls: Calls) -> Found:
    """With each alone, and all of these add up."""
    n = len(calls.candidate.dys)
    parts = [calls.again(only=i) for i in range(n)] if calls.by_autograd and 1 < n <= MOST_IN_TURN else []
    for name, whole in calls.first.items() if parts else ():
        *others, largest = sorted((part[name] for part in parts), key=lambda g: norm(flat(g)))
        if not calls.candidate.same(largest, whole - torch.stack(others).sum(0), name):
            yield name


# ---- other layouts of the inputs, and other dy ----


def ones(dy: Tensor) -> Tensor:
    """As y.sum() gives dy: one number, expanded."""
    return dy.new_ones(()).expand(dy.shape)


@situation("for a dy that is one number, expanded, as y.sum() gives it", "{}", refusals=())
def _(calls: Calls) -> Found:
    """dy + 1 must give the sum of what dy and ones give."""
    if not calls.takes_dy:
        return []
    one = calls.again(change=ones)
    sums = {name: g + one[name] for name, g in calls.first.items() if name in one and one[name].shape == g.shape}
    plus = calls.again(change=lambda dy: dy + 1)
    if all(calls.candidate.same(plus[name], g, name) for name, g in sums.items()):
        return []
    wrong_one = calls.differing("ones", {name: plus[name] - calls.first[name] for name in sums}, change=ones)
    full = calls.again(change=torch.ones_like)
    layout = [name for name in wrong_one if not calls.candidate.same(calls.first[name] + full[name], sums[name], name)]
    strided = "is wrong for a dy that is one number, expanded, as y.sum() gives it: its strides are 0"
    found = [
        (n, strided if n in layout else "is wrong for a dy of ones: a gradient is linear in dy") for n in wrong_one
    ]
    wrong_plus = calls.differing("dy + 1", sums, change=lambda dy: dy + 1)
    return found or [(name, "is wrong for dy + 1: a gradient is linear in dy") for name in wrong_plus]


@situation(
    "for inputs that are not contiguous",
    "is wrong for inputs that are not contiguous, or are views: it reads memory as if they were, or around them",
)
def _(calls: Calls) -> Found:
    """The inputs are transposed, or in every second place of memory, within memory that holds NaN."""
    inputs = within_nan(calls.inputs)
    return calls.differing("inputs", calls.first, inputs, lent=inputs) if calls.has_strides else []


def within_nan(tensors: Tensors) -> Tensors:
    """Each as a part of larger memory with NaN around it, in other strides."""
    found = dict[str, Tensor]()
    for name, t in tensors.items():
        memory = t.new_full((2 * t.numel() + 128,), math.nan)[64:-64]
        turned = t.ndim > 1 and min(t.shape[-2:]) > 1
        wide = memory[: t.numel()].view(t.mT.shape).mT if turned else memory[::2].view(t.shape)
        found[name] = wide.copy_(t)
    return found


@situation("for inputs that are expanded", "is wrong for inputs that are expanded: their strides are 0")
def _(calls: Calls) -> Found:
    """The first entry repeated without memory of its own, against the same with it."""
    if not calls.has_strides or not any(t.ndim and t.shape[0] > 1 for t in calls.inputs.values()):
        return []
    expanded = {n: t[:1].expand_as(t) if t.ndim and t.shape[0] > 1 else t for n, t in calls.inputs.items()}
    full = calls.again({name: t.contiguous() for name, t in expanded.items()})
    return calls.differing("expanded", full, expanded)


# ---- other numbers, labels and lengths ----

KEPT = "is right at these inputs, and off by {} at others: something is kept from an earlier call"


@situation("at other inputs", "{}")
def _(calls: Calls) -> Found:
    other, there = calls.elsewhere, calls.results.get("elsewhere", {})
    right = calls.right(other) if other and calls.right_here else {}
    if not other or not (off := calls.off({n: there[n] for n in calls.right_here if n in there}, other, right)):
        return []
    if off_in_new_memory := calls.off_at(other):
        return [(n, f"{KEPT}, or holds at these inputs only".format(error)) for n, error in off_in_new_memory.items()]
    text = f"{KEPT} at the same address".format
    return (
        [(name, text(f"{error:.0%}")) for name, error in off.items()] if calls.references.eps < 1e-5 or len(off) else []
    )


@situation("for other lengths", "{}", (Exception,))
def _(calls: Calls) -> Found:
    """All at once; what it was is found out if something is off, or if there is no other length."""
    if calls.problem.nearby is None:
        return []
    labelled, names = calls.others.relabelled(calls.problem)
    shorter = lambda of: calls.others.resized(of, {n: n - 1 for n in lengths(of) if n > 2})  # noqa: E731
    redrawn = calls.others.moved(labelled, calls.problem.seed + 11, mirrored=True)
    calls.fits = False
    try:
        off = calls.off_at(shorter(redrawn))
    except Exception:  # it may be made for these lengths
        off = {}
    if not off and calls.fits:
        return []
    if off := calls.off_at(calls.others.moved(calls.problem, calls.problem.seed + 11, mirrored=True)):
        return [(name, f"{KEPT}, or holds at these inputs only".format(error)) for name, error in off.items()]
    if off := calls.off_at(labelled) if names else {}:
        return [
            (name, KEPT.replace("at others", f"with other {', '.join(names)}").format(error))
            for name, error in off.items()
        ]
    other = shorter(calls.problem)
    shapes = ", ".join(str(list(t.shape)) for t in other.inputs.values())
    return [
        (n, f"is right at these lengths, and off by {e} at others: {shapes}") for n, e in calls.off_at(other).items()
    ]


def lengths(problem: Problem) -> list[int]:
    """Every length of a tensor, that of the batch first."""
    return [n for t in problem.arguments.values() if isinstance(t, Tensor) for n in t.shape]


@situation("for a batch of one", "is off by {} for a batch of one", (Exception,))
def _(calls: Calls) -> Found:
    batch = lengths(calls.problem)[:1]
    if calls.problem.nearby is None or not batch or batch[0] < 2:
        return []
    return calls.off_at(calls.others.resized(calls.problem, {batch[0]: 1}, first_only=True)).items()


# ---- many calls ----


@situation("when called often", "{}", refusals=())
def _(calls: Calls) -> Found:
    """As many as it takes, to a number that cannot be foreseen; dy is as it was, tiny, and zero in turn."""
    entries = sum(t.numel() for t in calls.inputs.values())
    last = (LEAST_CALLS if entries < 10**6 else 12) + secrets.randbelow(8)
    tiny = 2.0**-6 if any(dy.dtype == torch.float16 for dy in calls.candidate.dys) else 2.0**-40
    scales: dict[str, float] = {"": 1.0} | ({"a tiny dy": tiny, "a dy of zeros": 0.0} if calls.takes_dy else {})
    expected = {words: {name: g * scale for name, g in calls.first.items()} for words, scale in scales.items()}
    lent, progress = refilled(calls.candidate.call.inputs, calls.inputs), calls.problem.progress
    while progress.calls < last:
        for words, scale in scales.items():
            change = partial(torch.mul, other=scale) if words else None
            found = calls.problem.call(calls.inputs, change, lent=lent).gradients
            if all(torch.equal(g, expected[words][name]) for name, g in found.items()):
                continue
            if changed := calls.differing(words, calls.first, change=change, scale=scale, lent=lent):
                return [
                    (name, f"is wrong for {words or 'the same inputs'}: a gradient is linear in dy") for name in changed
                ]
    return []


@situation("for an empty batch", "is not zero for an empty batch", (Exception,))
def _(calls: Calls) -> Found:
    """Where the reference takes one."""
    batch = lengths(calls.problem)[:1]
    other = calls.others.resized(calls.problem, {batch[0]: 0}, first_only=True) if batch and batch[0] else None
    right = calls.right(other) if other and calls.problem.nearby is not None else {}
    found = other.call(other.inputs).gradients if other and right else {}
    fitting = [name for name in calls.right_here if name in found and found[name].numel() == len(right[name])]
    return [name for name in fitting if norm(right[name]) == 0 != norm(flat(found[name]))]
