"""What a check found: of each gradient what every witness says, and in words what is wrong."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

WITNESSES = ("autograd", "float64", "central")
COLUMNS = [*WITNESSES, "largest", "where", "cosine", "bits"]
BLURRED = "~"
CENTRAL = math.sqrt(torch.finfo(torch.float64).eps)
"""How near central differences come, where nothing is in their way; nothing is held against them to more than that."""


@dataclass(frozen=True)
class Agreement:
    """One gradient against one witness.

    Attributes:
        relative_error: ‖gradient − witness‖ / ‖witness‖, over the entries that were compared.
        excess: the error as a multiple of what is allowed; above 1 they disagree.
        largest: the largest absolute difference of one entry, and ``where`` that entry is.
        cosine: between the two, 1 where they point the same way.
        compared, set_aside: how many entries; those set aside straddle a kink, or the witness is not finite there.
        blurred: whether the error is above the tolerance: if they agree, then because rounding reaches as far.
    """

    relative_error: float
    excess: float
    largest: float
    where: tuple[int, ...]
    cosine: float
    compared: int
    set_aside: int = 0
    blurred: bool = False

    @property
    def ok(self) -> bool:
        """Whether gradient and witness agree."""
        return self.excess <= 1


@dataclass(frozen=True)
class Row:
    """One tensor of the report: what each witness says, and what else is wrong with it (``problems``)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    agreements: dict[str, Agreement]
    bitwise_equal: bool
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every witness agrees and nothing else is wrong."""
        return not self.problems and all(agreement.ok for agreement in self.agreements.values())

    @property
    def worst(self) -> Agreement | None:
        """The agreement that is nearest to, or furthest beyond, what is allowed."""
        return max(self.agreements.values(), key=lambda agreement: agreement.excess, default=None)

    @property
    def badness(self) -> tuple[bool, float]:
        """What rows are sorted by: the worst is the largest."""
        return not self.ok, self.worst.excess if self.worst else 0.0

    @property
    def mark(self) -> str:
        """The verdict in one word."""
        return "ok" if self.ok else "WRONG"

    def cells(self) -> list[str]:
        """The row as it is printed, in the order of ``COLUMNS``."""
        errors = [self.agreements.get(w) for w in WITNESSES]
        worst = self.worst
        return [
            *(f"{a.relative_error:.1e}{BLURRED if a.ok and a.blurred else ''}" if a else "-" for a in errors),
            *((f"{worst.largest:.1e}", str(list(worst.where)), f"{worst.cosine:.6f}") if worst else "---"),
            "=" if self.bitwise_equal else "≠",
        ]


@dataclass(frozen=True)
class Report:
    """What ``check`` found: printable, and for a test ``check(...).assert_ok()``.

    Attributes:
        rows: one for each gradient.
        diagnoses: what explains a difference to rounding error, in words, with the names that it explains.
        notes: what else the reader should know, such as a witness that could not be heard.
        tolerance: the relative error that is allowed.
    """

    rows: list[Row]
    diagnoses: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tolerance: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every witness agrees with every gradient."""
        return all(row.ok for row in self.rows)

    @property
    def set_aside(self) -> int:
        """How many central differences straddle a kink and were not held against the gradient."""
        return sum(row.agreements["central"].set_aside for row in self.rows if "central" in row.agreements)

    def assert_ok(self) -> None:
        """Raise AssertionError with the printed report unless every gradient is right."""
        if not self.ok:
            raise AssertionError(f"\n{self}")

    def __str__(self) -> str:
        """The verdict, the table (of a failure: worst first), the diagnoses, what was compared and how."""
        wrong, n = sum(not row.ok for row in self.rows), count(len(self.rows), "gradient")
        rows = sorted(self.rows, key=lambda row: row.badness, reverse=True) if wrong else self.rows
        cells = [[row.mark, row.name, str(list(row.shape)), *row.cells()] for row in rows]
        said = [f"{row.name}: {problem}" for row in rows for problem in row.problems] + self.diagnosis_lines()
        blocks = [
            [f"{wrong} of {n} wrong" if wrong else f"{n} right"],
            table(["", "tensor", "shape", *COLUMNS], cells),
            said,
            footnotes(rows, f"{self.tolerance:.1e}") + [f"note: {note}" for note in self.notes],
        ]
        return "\n\n".join("\n".join(block) for block in blocks if block)

    def diagnosis_lines(self) -> list[str]:
        """Each diagnosis once, with the tensors that it holds for."""
        return [
            f"{'every gradient' if len(names) == len(self.rows) > 1 else ', '.join(names)}: {text}"
            for text, names in self.diagnoses.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain numbers and words; what is not finite is None, which JSON can hold."""
        rows = [{"ok": row.ok} | dataclasses.asdict(row) for row in self.rows]
        return _plain({"ok": self.ok} | dataclasses.asdict(self) | {"rows": rows})  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=2)


def _plain(found: Any) -> Any:
    """What JSON can hold: numbers that are not finite as None, dtypes as their names."""
    match found:
        case dict():
            return {key: _plain(value) for key, value in found.items()}
        case list() | tuple():
            return [_plain(value) for value in found]
        case float():
            return found if math.isfinite(found) else None
        case torch.dtype():
            return short(found)
    return found


# ---- in words and columns ----


def footnotes(rows: Sequence[Row], allowed: str) -> list[str]:
    """How the numbers of a table were come by."""
    heard = [w for w in WITNESSES if any(w in row.agreements for row in rows)]
    central = [row.agreements["central"] for row in rows if "central" in row.agreements]
    lines = []
    if heard:
        least = f"; for central never less than {CENTRAL:.1e}" if central else ""
        lines = [f"{', '.join(heard)}: ‖gradient − witness‖ / ‖witness‖", f"allowed: {allowed}{least}"]
    if any(a.ok and a.blurred for row in rows for a in row.agreements.values()):
        lines.append(f"{BLURRED}: above that, but no further than rounding alone reaches here")
    if central:
        entries = sum(math.prod(row.shape) for row in rows)
        lines.append(
            f"central differences: {sum(a.compared for a in central):,} of {count(entries, 'entry', 'entries')}, "
            f"{sum(a.set_aside for a in central):,} set aside that straddle a kink"
        )
    return lines


def short(dtype: torch.dtype) -> str:
    """The name without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def count(n: int, one: str, many: str | None = None) -> str:
    """1 entry, 2,000 entries."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns as wide as they need; those that hold numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    aligned = [">" if name in {*WITNESSES, "largest", "cosine"} else "<" for name in header]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, aligned, widths, strict=True)).rstrip()
        for cells in (header, *rows)
    ]
