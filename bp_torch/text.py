"""Numbers and tables as text, the same in every command: 0.0312, 1,234, −4.1·10⁻⁷; columns in line, or Markdown."""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import floor, isfinite, log10
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command's help and its errors need no torch
    from torch import Tensor

MOST_COLUMNS = 100  # longer lines are hard to read, however wide the terminal is
GREEN, RED = 32, 31  # of a terminal
VERDICTS = {"RIGHT": GREEN, "WRONG": RED, "ERROR": RED, "DIED": RED}


def number(value: float, digits: int = 3) -> str:
    """A value with so many significant digits: 0.0312, 1,234, −4.1·10⁻⁷."""
    if not isfinite(value) or value == 0:
        return str(value or 0)
    size = float(f"{abs(value):.{digits - 1}e}")  # 0.999 is 1.0 in two digits, not 1.00
    if 1e-3 <= size < 1e6:
        decimals = max(0, digits - 1 - floor(log10(size)))
        return f"{value:,.{decimals}f}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}·10{superscript(int(exponent))}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A value with its sign: +0.31, −1.2."""
    return f"{'' if value < 0 else '+'}{number(value, digits)}"


def unit(values: "Tensor") -> tuple[float, str]:
    """A power of ten for a whole table, so that its largest number has one digit before the point, and its name."""
    size = values.abs().max().item()
    power = floor(log10(size)) if size else 0
    return (1.0, "") if -1 <= power <= 2 else (10.0**power, f" (×10{superscript(power)})")


def superscript(power: int) -> str:
    """The power in small raised digits."""
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def times(ratio: float) -> str:
    """A ratio in words: 3.2 times, 32 times, 4.1 million times."""
    words = {1e12: " trillion", 1e9: " billion", 1e6: " million", 1: ""}
    size = next((size for size in words if ratio >= size), 1)
    return f"{number(ratio / size, 2)}{words[size]} times"


def count(n: int, one: str, many: str | None = None) -> str:
    """1 entry, 2,000 entries."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def columns() -> int:
    """How long a line may be: as the terminal is wide, 80 into a pipe or a file, and COLUMNS where that is set."""
    return max(20, min(MOST_COLUMNS, shutil.get_terminal_size().columns))


def wrapped(line: str, first: str = "", then: str | None = None) -> str:
    """A line in as many as it needs. ``first`` is before the first, ``then`` before the others; words stay whole."""
    then = first if then is None else then
    return textwrap.TextWrapper(columns(), first, then, break_long_words=False, break_on_hyphens=False).fill(line)


def coloured(said: str) -> str:
    """A report with the verdicts that begin its lines in colour, where stdout has colours (https://no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return said
    words = f"^( *)({'|'.join(VERDICTS)})(?![A-Za-z])"
    return re.sub(
        words, lambda found: f"{found[1]}\x1b[{VERDICTS[found[2]]}m{found[2]}\x1b[m", said, flags=re.MULTILINE
    )


def named(entries: Mapping[str, str]) -> str:
    """Names in a column, and beside each what it is."""
    width = max(map(len, entries)) + 2
    return "\n".join(wrapped(says, f"  {name:{width}}", " " * (width + 2)) for name, says in entries.items())


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] | None = None,
    markdown: bool = False,
) -> str:
    """Columns as wide as they need; those named in ``right`` (None: all but the first) are aligned to the right."""
    to_the_right = [column > 0 if right is None else column in right for column in range(len(header))]
    if markdown:
        rules = ["--:" if aligned else ":--" for aligned in to_the_right]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *rows))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    forms = [f"{'>' if aligned else '<'}{width}" for width, aligned in zip(widths, to_the_right, strict=True)]
    return "\n".join("  ".join(map(format, cells, forms)).rstrip() for cells in (header, *rows))


Column = tuple[str, str, Iterable[Any]]  # a header, the format of the values, such as "+.4e", and the values


def column_table(*columns: Column) -> str:
    """A table by its columns. The values are numbers, tensors of one number, and text, which stays as it is."""
    headers, forms, values = zip(*columns, strict=True)
    return table(headers, [list(map(_cell, row, forms)) for row in zip(*values, strict=True)])


def _cell(value: Any, form: str) -> str:
    """A value of a table in its format: one of Python's, or "4 digits", "+4 digits" for ``number`` and ``signed``."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, str):
        return value
    digits, _, named = form.partition(" ")
    return (signed if digits[0] == "+" else number)(value, int(digits)) if named == "digits" else format(value, form)


def fitted(text: str) -> str:
    """A text at the terminal's width: prose is wrapped, and tables that are too wide become several, or are folded."""
    return "\n\n".join(_fitted(block, columns()) for block in text.split("\n\n"))


def _fitted(block: str, width: int) -> str:
    """A paragraph or a table. A second table has the first column again, if that leaves it half of the width."""
    lines = block.splitlines()
    place, full = _fold(lines, width), [line for line in lines if "  " in line.strip()]
    if not place:
        return "\n".join(line if len(line) <= width else wrapped(line) for line in lines)
    first = next((end for end in range(2, max(map(len, lines))) if all(_gap(line, end) for line in full)), 0)
    if not first < place or first > width // 2:
        return folded(block, width)
    rest = "\n".join(line[:first] + line[place:] for line in lines)
    return "\n".join(line[:place].rstrip() for line in lines) + "\n\n" + _fitted(rest, width)


def folded(table: str, width: int | None = None) -> str:
    """A table at most ``width`` wide, None: as the terminal: the columns that do not fit are below each row, indented.

    Lines without columns, such as headings between the rows, stay as they are.
    """
    lines = table.splitlines()
    place = _fold(lines, columns() if width is None else width)
    if not place:
        return table
    spaces = min(len(line) - len(line[place:].lstrip()) for line in lines if _gap(line, place))
    parts = ([line[:place].rstrip(), "    " + line[spaces:]] if _gap(line, place) else [line] for line in lines)
    return "\n".join(line for part in parts for line in part)


def _fold(lines: Sequence[str], width: int) -> int:
    """Where the last column begins that does not fit, in all lines that are too long; 0 if all fit, or have none."""
    long = [line for line in lines if len(line) > width]
    places = (place for place in range(width, 2, -1) if any(line[place] != " " for line in long))
    return next((place for place in places if all(_gap(line, place) for line in long)), 0) if long else 0


def _gap(line: str, place: int) -> bool:
    """Whether a column ends before ``place``, and another follows."""
    return len(line) > place and line[place - 2 : place] == "  " and line[:place].strip() != ""
