"""The result of a check: every gradient compared with its references, the verdict, and in words what is wrong.

Gradients are compared flat (n,), in float64, on the CPU; a complex number is two entries. What rounding does is excused
value by value; what is left of the error, as a norm, has to be within the tolerance of the size of the whole.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bp_torch.text import count, folded, table, wrapped
from bp_torch.verify.differences import CENTRAL_ACCURACY
from bp_torch.verify.problem import norm

REFERENCES = ("autograd", "float64", "central")
"""Autograd in the inputs' dtype, autograd in float64, central differences in float64."""
MORE_REFERENCES = {
    "directions": "central differences along random directions, so that every entry is heard",
    "widened": "the same backward, run on float64 inputs, against autograd in float64",
}
"""Two that stand in a report where they say something: where a tensor has more entries than there was time for, and
where the gradient under test is wrong in float64."""

HEADER = ["", "gradient", "reference", "error", "allowed", "largest diff", "at", "cosine"]
NUMBERS = {HEADER.index(name) for name in ("error", "allowed", "largest diff", "cosine")}

Key = TypeVar("Key")
Value = TypeVar("Value")
Kind = Literal["setup", "problem", "kink", "noise", "where", "diagnosis", "unjudged"]


class Finding(NamedTuple):
    """Something to say of one gradient."""

    kind: Kind
    gradient: str
    words: str


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """Each first element once, and the second ones that come with it."""
    found: dict[Key, list[Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def told(kind: Kind, one: bool = False) -> property:
    """An attribute of a report: the words of its findings of one kind, by gradient; of several the last, if ``one``."""

    def words(report: "Report") -> dict[str, Any]:
        found = [(f.gradient, f.words) for f in report.findings if f.kind == kind]
        return dict(found) if one else grouped(found)

    return property(words)


@dataclass(frozen=True)
class Comparison:
    """One gradient compared with one reference."""

    gradient: str
    shape: tuple[int, ...]
    reference: str
    relative_error: float  # ‖gradient − reference‖ / ‖reference‖, over the entries that were compared
    allowed: float  # the largest relative error with which the gradient counts as right
    noise_allowance: float  # the part of it that rounding alone causes; 0 if the error is small enough without it
    error_ratio: float  # error / allowed; above 1 the gradient is wrong
    identical: bool  # equal bit for bit in every entry
    largest: float  # the largest absolute difference of one entry
    where: tuple[int, ...]  # that entry
    cosine: float  # of the angle between the two, 1 if they point the same way
    compared: int  # entries
    skipped: int  # kinks, and entries where the reference is not finite
    decides: bool = True  # False if better references outvote this one

    @property
    def ok(self) -> bool:
        """Whether the gradient agrees with the reference."""
        return self.error_ratio <= 1

    def row(self) -> list[str]:
        """The cells below ``HEADER``."""
        if not self.compared:
            return ["-", self.gradient, self.reference, "skipped", *"----"]
        mark = "ok" if self.ok else "WRONG" if self.decides else "far"
        error = "identical" if self.identical else f"{self.relative_error:.1e}"
        numbers = [error, f"{self.allowed:.1e}", f"{self.largest:.1e}", str(list(self.where)), f"{self.cosine:.6f}"]
        return [mark, self.gradient, self.reference, *numbers]


Allowance = tuple[Tensor | float, float]
"""How far rounding may move each of the values, (k,) or one number for all, and all of them together, as a norm."""
NONE: Allowance = (0.0, 0.0)


class Estimate(NamedTuple):
    """One gradient as one reference gives it: all of it, some of its entries, or its products with some directions."""

    reference: str
    values: Tensor  # (k,)
    entries: Tensor | None  # (k,), the indices of the values; None: of all, or along ``directions``
    size: float  # the norm that an error is relative to
    tolerance: float  # the relative error that is allowed
    uncertainty: Tensor | float = 0.0  # how far off each value itself may be, (k,) or one number for all
    skipped: int = 0  # how many entries the reference cannot give
    directions: Tensor | None = None  # (k, n)
    kinked: Tensor | None = None  # the indices of entries that the reference cannot give, since a step crosses a kink

    def select(self, whole: Tensor) -> Tensor:
        """The entries of ``whole`` (n,) that the estimate holds, (k,), or its products with the directions."""
        if self.directions is not None:
            return self.directions @ whole
        return whole if self.entries is None else whole[self.entries]

    def ratio(self, error: Tensor, allowance: Allowance) -> float:
        """The error (k,) that is left without what is excused, by the largest that is allowed."""
        each, together = allowance
        left = norm((error - self.uncertainty - each).clamp_(min=0))
        allowed = self.tolerance * self.size + together
        return left / allowed if allowed else math.inf if left else 0.0

    def agrees(self, ours: Tensor, noise: Callable[[], Allowance]) -> bool:
        """Whether the gradient ``ours`` (n,) is within what is allowed; ``noise`` is called if it is needed."""
        error = (self.select(ours) - self.values).abs()
        return self.ratio(error, NONE) <= 1 or self.ratio(error, noise()) <= 1


def compare(
    name: str, shape: tuple[int, ...], ours: Tensor, estimate: Estimate, noise: Callable[[], Allowance]
) -> Comparison:
    """``ours`` (n,), the gradient called ``name``, against an estimate; ``noise`` is called if it is needed."""
    if not len(estimate.values):
        return Comparison(name, shape, estimate.reference, 0, 0, 0, 0, False, 0, (), 1, 0, estimate.skipped)
    ours, theirs, size = estimate.select(ours), estimate.values, estimate.size
    difference = (ours - theirs).abs()
    at = int(difference.nan_to_num(math.inf).argmax())
    entry = at if estimate.entries is None else int(estimate.entries[at])
    where = () if estimate.directions is not None else np.unravel_index(entry, shape)
    error, allowance = norm(difference), NONE
    finite = math.isfinite(error)
    ratio = estimate.ratio(difference, NONE) if finite else math.inf
    if finite and ratio > 1:
        allowance = noise()
        ratio = estimate.ratio(difference, allowance)
    excused = norm(torch.minimum(difference, torch.as_tensor(allowance[0]).double())) + allowance[1] if finite else 0.0
    uncertain = norm(torch.minimum(difference, torch.as_tensor(estimate.uncertainty).double())) if finite else 0.0
    allowed = error / ratio if 1 < ratio < math.inf else estimate.tolerance * size + uncertain + excused
    return Comparison(
        gradient=name,
        shape=shape,
        reference=estimate.reference,
        relative_error=_ratio(error, size) if finite else math.inf,
        allowed=_ratio(allowed, size),
        noise_allowance=_ratio(excused, size),
        error_ratio=ratio,
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


class Proof(NamedTuple):
    """How much the check of one gradient can tell."""

    compared: int  # entries that a reference gives
    entries: int
    mutants: list[str]  # that were tried: each is called wrong, or the verdict is not RIGHT
    smallest_error: Callable[[], float]  # the smallest uniform error, relative, that is called wrong; found when asked

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers and words."""
        return self._asdict() | {"smallest_error": self.smallest_error()}


@dataclass(frozen=True)
class Report:
    """The result of ``check``: print it, or in a test call ``check(...).assert_ok()``. It is true if all is right."""

    comparisons: list[Comparison]  # of every gradient with every reference
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what else to know, such as a reference that is unavailable
    tolerance: float = 0.0  # the relative error that is allowed
    dtype: str = ""  # the coarsest of the inputs', without "torch."
    forward: str = ""  # how the forward differs from the reference; "" if it does not
    multiples: dict[str, float] = field(default_factory=dict)  # each gradient's error by autograd's own in that dtype
    proofs: dict[str, Proof] = field(default_factory=dict)  # of the gradients that seem right
    slopes: Callable[[], dict[str, float]] = field(default=dict, repr=False, compare=False)  # of the Taylor remainders

    def __bool__(self) -> bool:
        """``ok``: so ``assert check(...)`` fails for a wrong gradient."""
        return self.ok

    def __add__(self, other: "Report") -> "Report":
        """Both in one."""
        comparisons, findings = self.comparisons + other.comparisons, self.findings + other.findings
        notes, proofs = list(dict.fromkeys(self.notes + other.notes)), self.proofs | other.proofs
        return replace(self, comparisons=comparisons, findings=findings, notes=notes, proofs=proofs)

    # The words of each kind of finding, by gradient: a list of them for setup and problems, else one text.
    setup = told("setup")  # what must be mended before it can be judged
    problems = told("problem")  # what is wrong apart from the numbers
    kinks = told("kink", one=True)  # the one-sided slopes, if it differs only where the function has a kink
    noise = told("noise", one=True)  # why its dtype is too coarse to tell
    where = told("where", one=True)  # where it is wrong, if no diagnosis says so
    unjudged = told("unjudged", one=True)  # why no gradient of an input is judged

    @property
    def diagnoses(self) -> dict[str, list[str]]:
        """By what explains a wrong gradient to rounding error, in words, the gradients that it explains."""
        return self.by_words("diagnosis")

    def by_words(self, *kinds: Kind) -> dict[str, list[str]]:
        """Every finding of these kinds, and the gradients that it holds for."""
        return grouped((f.words, f.gradient) for kind in kinds for f in self.findings if f.kind == kind)

    # ---- the verdict ----

    @property
    def gradients(self) -> list[str]:
        """The names of all that were checked."""
        return list(dict.fromkeys([*(c.gradient for c in self.comparisons), *self.problems, *self.setup]))

    @property
    def wrong(self) -> list[str]:
        """The names of the gradients that are not right, the worst first."""
        ratios = dict.fromkeys([*self.setup, *self.problems], math.inf)
        ratios |= {name: ratios.get(name, 1.0) for name in (*self.kinks, *self.noise)}
        for c in self.comparisons:
            if not c.ok and c.decides:
                ratios[c.gradient] = max(c.error_ratio, ratios.get(c.gradient, 0.0))
        return sorted(ratios, key=lambda name: ratios[name], reverse=True)

    @property
    def verdict(self) -> str:
        """RIGHT; or WRONG; SETUP, if something must be mended first; KINK or NOISE, if that is all that is wrong."""
        if self.forward:
            return "WRONG"
        if certain := set(self.wrong) - self.kinks.keys() - self.noise.keys():
            return "SETUP" if certain <= self.setup.keys() else "WRONG"
        if any("no reference" in text for text in self.unjudged.values()):
            return "SETUP"
        return "KINK" if self.kinks else "NOISE" if self.noise else "RIGHT"

    def _judged(self) -> list[str]:
        return [name for name in self.gradients if name not in self.unjudged]

    @property
    def ok(self) -> bool:
        """Whether every gradient agrees with every reference."""
        return self.verdict == "RIGHT"

    @property
    def skipped(self) -> int:
        """Entries left out of central differences because a step crosses a kink."""
        return sum(c.skipped for c in self.comparisons if c.reference == "central")

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max((c.relative_error for c in self.comparisons if c.decides), default=0.0)

    def assert_ok(self) -> None:
        """Raise AssertionError with the printed report unless every gradient is right."""
        __tracebackhide__ = True  # pytest then shows the line of the test
        if not self.ok:
            raise AssertionError(f"\n{self}")

    # ---- as text ----

    def __str__(self) -> str:
        """The verdict and what is wrong in words, the table (if something is wrong: only that), how it was compared."""
        return self._text(self.wrong or self._judged())

    def verbose(self) -> str:
        """The same with every gradient, and the slopes of the Taylor remainders."""
        slopes = ", ".join(f"{name} {slope:.2f}" for name, slope in self.slopes().items())
        text = f"slope of the Taylor remainder (2 if right, as far as rounding lets it show): {slopes}"
        return self._text(self.gradients, text if slopes else "")

    def _text(self, names: Sequence[str], slopes: str = "") -> str:
        forward = [f"the forward {self.forward}"] if self.forward else []
        how = explanations([c for c in self.comparisons if self._shown(c)], f"{self.tolerance:.1e}")
        notes = [self.proof_line(), slopes, *self._multiples(), *(f"note: {note}" for note in self.notes)]
        blocks = [
            wrapped_lines([self.headline()]),
            wrapped_lines([*forward, *self.problem_lines(), *self.diagnosis_lines()]),
            self.table(names),
            wrapped_lines([*how, *notes]),
        ]
        return "\n\n".join(block for block in blocks if block)

    def headline(self) -> str:
        """The verdict, and how many gradients it holds for."""
        unjudged = "".join(f", {name} not judged ({why})" for name, why in self.unjudged.items())
        total = count(len(self._judged()), "gradient")
        if self.forward:
            return f"{self.verdict}: the forward is not the reference; {total} compared{unjudged}"
        if not self.wrong:
            return f"{self.verdict}: {total} right{unjudged}"
        what = {"WRONG": "wrong", "KINK": "off, on kinks only", "NOISE": "cannot be told at this precision"}
        return f"{self.verdict}: {len(self.wrong):,} of {total} {what.get(self.verdict, 'cannot be judged')}{unjudged}"

    def problem_lines(self) -> list[str]:
        """Everything that is wrong apart from the numbers, each with the gradients that it holds for."""
        kinds: tuple[Kind, ...] = ("setup", "problem", "kink", "noise", "where")
        order = [(name, kind) for name in self.wrong for kind in kinds]
        found = [f for place in order for f in self.findings if (f.gradient, f.kind) == place]
        by_words = grouped((f.words, f.gradient) for f in found)
        return [f"{', '.join(names)}: {words}" for words, names in by_words.items()]

    def diagnosis_lines(self) -> list[str]:
        """Each diagnosis once, with the gradients that it holds for."""
        return [
            f"{'every gradient' if len(names) == len(self.gradients) > 1 else ', '.join(names)}: {text}"
            for text, names in self.diagnoses.items()
        ]

    def proof_line(self) -> str:
        """The line on how much the check can tell; "" if something is wrong."""
        if not self.ok or not (proofs := list(self.proofs.values())):
            return ""
        compared, entries = sum(p.compared for p in proofs), sum(p.entries for p in proofs)
        mutants = count(sum(len(p.mutants) for p in proofs), "mutant")
        smallest = max(p.smallest_error() for p in proofs)
        return (
            f"proof: {compared:,} of {count(entries, 'entry', 'entries')} compared; a uniform error of {smallest:.1e} "
            f"or more would be WRONG; {mutants} tried (0, minus itself, a slice lost, …), each of them WRONG"
        )

    def _multiples(self) -> list[str]:
        if not self.multiples:
            return []
        name = max(self.multiples, key=lambda name: self.multiples[name])
        text = f"the error of {name} is {self.multiples[name]:.2g} times autograd's own in {self.dtype}"
        return [text + (": more than rounding usually makes" if self.multiples[name] > 4 and self.ok else "")]

    def _repr_html_(self) -> str:
        """The same as ``str`` for a notebook, with the verdict in its colour."""
        colour = {"RIGHT": "#1a7f37", "WRONG": "#cf222e"}.get(self.verdict, "#9a6700")
        verdict, _, rest = escape(str(self)).partition(":")
        return f'<pre><b style="color: {colour}">{verdict}</b>:{rest}</pre>'

    def table(self, gradients: Sequence[str]) -> str:
        """The comparisons of these gradients; "" if there are none. In float64, float64 is not said twice."""
        uncertain = dict.fromkeys(self.noise, "noise") | dict.fromkeys(self.kinks, "kink")
        rows = [c.row() for name in gradients for c in self.comparisons if c.gradient == name and self._shown(c)]
        rows = [[uncertain.get(name, mark) if mark == "WRONG" else mark, name, *rest] for mark, name, *rest in rows]
        return folded(table(HEADER, rows, right=NUMBERS)) if rows else ""

    def _shown(self, c: Comparison) -> bool:
        """Hide a row that repeats another: float64 in a check in float64, and widened if another is wrong anyway."""
        if c.reference == "widened":
            return all(other.ok for other in self.comparisons if other.gradient == c.gradient and other is not c)
        return not (c.reference == "float64" and self.dtype == "float64")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and words; what is not finite is None, as in JSON."""
        keys = "problems diagnoses notes tolerance dtype setup kinks noise forward unjudged multiples where"
        found: dict[str, Any] = {"comparisons": [asdict(c) | {"ok": c.ok} for c in self.comparisons]}
        found |= {key: getattr(self, key) for key in [*keys.split(), "ok", "verdict", "wrong"]}
        found["proofs"] = {name: proof.to_dict() for name, proof in self.proofs.items()}
        plain: dict[str, Any] = json.loads(json.dumps(found), parse_constant=lambda name: None)
        return plain

    def to_json(self) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=2)


def wrapped_lines(lines: Sequence[str]) -> str:
    """Lines as long as the terminal is wide."""
    return "\n".join(wrapped(line, "", "  ") for line in lines if line)


def explanations(comparisons: Sequence[Comparison], tolerance: str) -> list[str]:
    """The meaning of the columns of a table of these comparisons, and how they were computed."""
    if not comparisons:
        return []
    noise = ", plus the error that rounding alone causes here" if any(c.noise_allowance for c in comparisons) else ""
    lines = ["error: ‖gradient − reference‖ / ‖reference‖", f"allowed: {tolerance}{noise}"]
    if central := [c for c in comparisons if c.reference == "central"]:
        used, entries = sum(c.compared for c in central), sum(math.prod(c.shape) for c in central)
        of = f"{used:,} of {count(entries, 'entry', 'entries')}"
        lines.append(f"central differences: {of}, exact to {CENTRAL_ACCURACY:.1e} at best")
        if skipped := sum(c.skipped for c in central):
            lines.append(f"{skipped:,} skipped: a step crosses a kink")
    seen = {c.reference for c in comparisons}
    return lines + [f"{reference}: {text}" for reference, text in MORE_REFERENCES.items() if reference in seen]


def apart(one: float, other: float, digits: int = 6) -> tuple[str, str]:
    """Both numbers, with digits enough to tell them apart."""
    texts = [(f"{one:.{n}g}", f"{other:.{n}g}") for n in (*range(digits, 17, 3), 17)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[0])
