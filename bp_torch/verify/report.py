"""What a check found: the verdict, and in words what is wrong; then every comparison."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bp_torch.text import count, folded, table, wrapped
from bp_torch.verify.comparison import CENTRAL_ACCURACY, HEADER, Comparison

NUMBERS = {HEADER.index(name) for name in ("error", "allowed", "largest diff", "cosine")}


@dataclass(frozen=True)
class Report:
    """What ``check`` found: print it, or in a test call ``check(...).assert_ok()``. It is true only if all is right.

    Attributes:
        comparisons: of every gradient with every reference.
        problems: by gradient, what is wrong apart from the numbers.
        diagnoses: what explains a wrong gradient to rounding error, in words, and the gradients that it explains.
        notes: what else the reader should know, such as a reference that is unavailable.
        tolerance: the relative error that is allowed.
        dtype: the coarsest of the inputs', without "torch.".
        setup: by gradient, what must be mended before it can be judged.
        kinks: by gradient, the one-sided slopes, if it differs only where the function has a kink.
        noise: by gradient, why its dtype is too coarse to tell.
        forward: how the forward differs from the reference; "" if it does not.
        unjudged: the inputs of which no gradient is judged, and why.
        multiples: by gradient, its error as a multiple of autograd's own in the same dtype, both against float64.
        where: by gradient, where it is wrong, if no diagnosis says so.
        slopes: computes by gradient the slope of the Taylor remainder, 2 if the gradient is right.
    """

    comparisons: list[Comparison]
    problems: dict[str, list[str]] = field(default_factory=dict)
    diagnoses: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tolerance: float = 0.0
    dtype: str = ""
    setup: dict[str, list[str]] = field(default_factory=dict)
    kinks: dict[str, str] = field(default_factory=dict)
    noise: dict[str, str] = field(default_factory=dict)
    forward: str = ""
    unjudged: dict[str, str] = field(default_factory=dict)
    multiples: dict[str, float] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    slopes: Callable[[], dict[str, float]] = field(default=dict, repr=False, compare=False)

    def __bool__(self) -> bool:
        """``ok``: so ``assert check(...)`` fails for a wrong gradient."""
        return self.ok

    @property
    def gradients(self) -> list[str]:
        """The names of all that were checked."""
        return list(dict.fromkeys([*(c.gradient for c in self.comparisons), *self.problems, *self.setup]))

    @property
    def wrong(self) -> list[str]:
        """The names of the gradients that are not right, the worst first."""
        ratios: dict[str, float] = {name: math.inf for name in (*self.setup, *self.problems)}
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
        certain = [name for name in self.wrong if name not in self.kinks and name not in self.noise]
        if certain:
            return "SETUP" if all(name in self.setup for name in certain) else "WRONG"
        judged = [name for name in self.gradients if name not in self.unjudged]
        if not judged and any("no reference" in text for text in self.unjudged.values()):
            return "SETUP"
        return "KINK" if self.kinks else "NOISE" if self.noise else "RIGHT"

    @property
    def ok(self) -> bool:
        """Whether every gradient is right: it agrees with every reference, and has no other problem."""
        return self.verdict == "RIGHT"

    @property
    def skipped(self) -> int:
        """How many central differences were skipped because a step crosses a kink."""
        return sum(c.skipped for c in self.comparisons if c.reference == "central")

    @property
    def worst(self) -> float:
        """The largest relative error, over the comparisons that decide."""
        return max((c.relative_error for c in self.comparisons if c.decides), default=0.0)

    def assert_ok(self) -> None:
        """Raise AssertionError with the printed report unless every gradient is right."""
        __tracebackhide__ = True  # pytest then shows the line of the test
        if not self.ok:
            raise AssertionError(f"\n{self}")

    # ---- as text ----

    def __str__(self) -> str:
        """The verdict and what is wrong in words, the table (if something is wrong: only that), how it was compared."""
        names = self.wrong or [name for name in self.gradients if name not in self.unjudged]
        notes = [*self._multiples(), *(f"note: {note}" for note in self.notes)]
        return self._text(names, notes)

    def verbose(self) -> str:
        """The same with every gradient, and the slopes of the Taylor remainders."""
        slopes = [f"{name} {slope:.2f}" for name, slope in self.slopes().items()]
        text = "slope of the Taylor remainder (2 if right, as far as rounding lets it show): "
        notes = [*self._multiples(), *(f"note: {note}" for note in self.notes)]
        return self._text(self.gradients, [text + ", ".join(slopes) if slopes else "", *notes])

    def _text(self, names: Sequence[str], notes: Sequence[str]) -> str:
        words = [*([f"the forward {self.forward}"] if self.forward else []), *self.problem_lines()]
        how = explanations([c for c in self.comparisons if self._shown(c)], f"{self.tolerance:.1e}")
        blocks = [
            wrapped_lines([self.headline()]),
            wrapped_lines([*words, *self.diagnosis_lines()]),
            self.table(names),
            wrapped_lines([*how, *notes]),
        ]
        return "\n\n".join(block for block in blocks if block)

    def headline(self) -> str:
        """The verdict, and how many gradients it holds for."""
        unjudged = "".join(f", {name} not judged ({why})" for name, why in self.unjudged.items())
        judged = [name for name in self.gradients if name not in self.unjudged]
        total = count(len(judged), "gradient")
        if self.forward:
            return f"{self.verdict}: the forward is not the reference; {total} compared{unjudged}"
        if not self.wrong:
            return f"{self.verdict}: {total} right{unjudged}"
        what = {"WRONG": "wrong", "KINK": "off, on kinks only", "NOISE": "cannot be told at this precision"}
        return f"{self.verdict}: {len(self.wrong):,} of {total} {what.get(self.verdict, 'cannot be judged')}{unjudged}"

    def problem_lines(self) -> list[str]:
        """What is wrong apart from the numbers, each with the gradients that it holds for."""
        found: dict[str, list[str]] = {}
        for name in self.wrong:
            for text in (*self.setup.get(name, ()), *self.problems.get(name, ())):
                found.setdefault(text, []).append(name)
            for texts in (self.kinks, self.noise, self.where):
                if name in texts:
                    found.setdefault(texts[name], []).append(name)
        return [f"{', '.join(names)}: {text}" for text, names in found.items()]

    def diagnosis_lines(self) -> list[str]:
        """Each diagnosis once, with the gradients that it holds for."""
        return [
            f"{'every gradient' if len(names) == len(self.gradients) > 1 else ', '.join(names)}: {text}"
            for text, names in self.diagnoses.items()
        ]

    def _multiples(self) -> list[str]:
        if not self.multiples:
            return []
        name = max(self.multiples, key=lambda name: self.multiples[name])
        text = f"the error of {name} is {self.multiples[name]:.2g} times autograd's own in {self.dtype}"
        return [text + (": more than rounding usually makes" if self.multiples[name] > 4 and self.ok else "")]

    def table(self, gradients: Sequence[str]) -> str:
        """The comparisons of these gradients; "" if there are none. In float64, float64 is not said twice."""
        rows = [self._row(c) for name in gradients for c in self.comparisons if c.gradient == name and self._shown(c)]
        return folded(table(HEADER, rows, right=NUMBERS)) if rows else ""

    def _row(self, c: Comparison) -> list[str]:
        """Marked as what it is where the gradient is not wrong for certain."""
        mark, *cells = c.row()
        if mark == "WRONG":
            mark = "kink" if c.gradient in self.kinks else "noise" if c.gradient in self.noise else mark
        return [mark, *cells]

    def _shown(self, c: Comparison) -> bool:
        """One that says nothing new is not: float64 in float64, and the widened gradient if all is wrong anyway."""
        if c.reference == "widened":
            return all(other.ok for other in self.comparisons if other.gradient == c.gradient and other is not c)
        return not (c.reference == "float64" and self.dtype == "float64")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and words; what is not finite is None, as in JSON."""
        comparisons = [asdict(c) | {"ok": c.ok} for c in self.comparisons]
        found = {name: value for name, value in vars(self).items() if name != "slopes"}
        found |= {"ok": self.ok, "verdict": self.verdict, "wrong": self.wrong, "comparisons": comparisons}
        plain: dict[str, Any] = json.loads(json.dumps(found), parse_constant=lambda name: None)
        return plain

    def to_json(self) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=2)


def wrapped_lines(lines: Sequence[str]) -> str:
    """Lines as long as the terminal is wide."""
    return "\n".join(wrapped(line, "", "  ") for line in lines if line)


def explanations(comparisons: Sequence[Comparison], tolerance: str) -> list[str]:
    """What the columns of a table of these comparisons mean, and how they were computed."""
    if not comparisons:
        return []
    noise = ", plus the error that rounding alone causes here" if any(c.noise_allowance for c in comparisons) else ""
    lines = ["error: ‖gradient − reference‖ / ‖reference‖", f"allowed: {tolerance}{noise}"]
    if central := [c for c in comparisons if c.reference == "central"]:
        used, entries = sum(c.compared for c in central), sum(math.prod(c.shape) for c in central)
        skipped = sum(c.skipped for c in central)
        of = f"{used:,} of {count(entries, 'entry', 'entries')}"
        lines.append(f"central differences: {of}, exact to {CENTRAL_ACCURACY:.1e} at best")
        if skipped:
            lines.append(f"{skipped:,} skipped: a step crosses a kink")
    if any(c.reference == "directions" for c in comparisons):
        lines.append("directions: central differences along random directions, so that every entry is heard")
    if any(c.reference == "widened" for c in comparisons):
        lines.append("widened: the same backward, run on float64 inputs, against autograd in float64")
    return lines
