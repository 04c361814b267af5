"""What a check found: every comparison, and in words what is wrong."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bp_torch.text import count, table
from bp_torch.verify.comparison import CENTRAL_ACCURACY, HEADER, Comparison

NUMBERS = {HEADER.index(name) for name in ("error", "allowed", "largest diff", "cosine")}


@dataclass(frozen=True)
class Report:
    """What ``check`` found: print it, or in a test call ``check(...).assert_ok()``.

    Attributes:
        comparisons: of every gradient with every reference.
        problems: by gradient, what is wrong apart from the numbers.
        diagnoses: what explains a wrong gradient to rounding error, in words, and the gradients that it explains.
        notes: what else the reader should know, such as a reference that is unavailable.
        tolerance: the relative error that is allowed.
    """

    comparisons: list[Comparison]
    problems: dict[str, list[str]] = field(default_factory=dict)
    diagnoses: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tolerance: float = 0.0

    @property
    def gradients(self) -> list[str]:
        """The names of all that were checked."""
        return list(dict.fromkeys([*(c.gradient for c in self.comparisons), *self.problems]))

    @property
    def wrong(self) -> list[str]:
        """The names of the gradients that are wrong, the worst first."""
        ratios: dict[str, float] = {name: math.inf for name in self.problems}
        for c in self.comparisons:
            if not c.ok:
                ratios[c.gradient] = max(c.error_ratio, ratios.get(c.gradient, 0.0))
        return sorted(ratios, key=lambda name: ratios[name], reverse=True)

    @property
    def ok(self) -> bool:
        """Whether every gradient is right: it agrees with every reference, and has no other problem."""
        return not self.wrong

    @property
    def skipped(self) -> int:
        """How many central differences were skipped because a step crosses a kink."""
        return sum(c.skipped for c in self.comparisons if c.reference == "central")

    def assert_ok(self) -> None:
        """Raise AssertionError with the printed report unless every gradient is right."""
        if not self.ok:
            raise AssertionError(f"\n{self}")

    def __str__(self) -> str:
        """The verdict, the table (if something is wrong: only that), the diagnoses, what was compared and how."""
        total = count(len(self.gradients), "gradient")
        verdict = f"{len(self.wrong):,} of {total} wrong" if self.wrong else f"{total} right"
        problems = [f"{name}: {problem}" for name in self.wrong for problem in self.problems.get(name, ())]
        notes = [f"note: {note}" for note in self.notes]
        blocks = [
            verdict,
            self.table(self.wrong or self.gradients),
            "\n".join([*problems, *self.diagnosis_lines()]),
            "\n".join([*explanations(self.comparisons, f"{self.tolerance:.1e}"), *notes]),
        ]
        return "\n\n".join(block for block in blocks if block)

    def table(self, gradients: Sequence[str]) -> str:
        """The comparisons of these gradients; "" if there are none."""
        rows = [c.row() for name in gradients for c in self.comparisons if c.gradient == name]
        return table(HEADER, rows, right=NUMBERS) if rows else ""

    def diagnosis_lines(self) -> list[str]:
        """Each diagnosis once, with the gradients that it holds for."""
        return [
            f"{'every gradient' if len(names) == len(self.gradients) > 1 else ', '.join(names)}: {text}"
            for text, names in self.diagnoses.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and words; what is not finite is None, as in JSON."""
        comparisons = [asdict(c) | {"ok": c.ok} for c in self.comparisons]
        found = {"ok": self.ok, "wrong": self.wrong} | asdict(self) | {"comparisons": comparisons}
        plain: dict[str, Any] = json.loads(json.dumps(found), parse_constant=lambda name: None)
        return plain

    def to_json(self) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=2)


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
    return lines
