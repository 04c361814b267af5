"""How every picture looks: one width, one type, one pair of colours, and a title that says what was found.

Blue raises and orange lowers, here and everywhere; colour-blind eyes tell them apart. Nothing here knows of networks.
"""

import io
import textwrap
from collections.abc import Sequence
from math import floor, isfinite, log10
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor

from bp_torch.explain.subject import UsageError

WIDTH = 12.0  # inches
MARGIN = 0.35
DPI = 150

RAISE = "#0b62a8"
LOWER = "#d4570b"
INK = "#1b2430"
SOFT = "#68727f"
FAINT = "#d9dee5"

DIVERGING = LinearSegmentedColormap.from_list(
    "nudges", ["#7a2e00", LOWER, "#f3a35c", "#f7f7f5", "#6fb0e0", RAISE, "#06304f"]
)
SEQUENTIAL = "cividis"
GROUND = LinearSegmentedColormap.from_list("ground", ["#ffffff", "#d9dee5", "#98a3b0"])
LAYER_COLOURS = ("#0b62a8", "#d4570b", "#3a9e8f", "#8a5aa8", "#b08900", "#5b6570")

styled = rc_context(
    {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": SOFT,
        "axes.linewidth": 0.8,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "grid.color": FAINT,
        "grid.linewidth": 0.7,
    }
)
"""Decorates a function that draws."""


# ---- the frame ----


class Page:
    """A picture as a sheet of paper: below its head, axes are placed by inches from the top left corner.

    Attributes:
        figure: the whole of it.
        height: of the part below the head, in inches.
    """

    def __init__(self, height: float, finding: str, note: str, caption: str) -> None:
        """An empty sheet, ``height`` inches below its head: the finding in bold, the note, and which network it is."""
        title, small = textwrap.wrap(finding, 92), [*textwrap.wrap(note, 160), caption]
        head = 0.45 + 0.29 * len(title) + 0.2 * len(small)
        self.height, self._total = height, height + head
        self.figure = Figure(figsize=(WIDTH, self._total), dpi=DPI, facecolor="white")
        top = 1 - 0.25 / self._total
        self.figure.text(MARGIN / WIDTH, top, "\n".join(title), size=15, weight="bold", va="top", linespacing=1.3)
        top -= (0.08 + 0.29 * len(title)) / self._total
        self.figure.text(MARGIN / WIDTH, top, "\n".join(small), size=9.5, color=SOFT, va="top", linespacing=1.4)

    def axes(self, left: float, top: float, width: float, height: float, title: str = "") -> Axes:
        """Axes of this size, ``left`` and ``top`` inches from the corner."""
        bottom = self.height - top - height
        axes = self.figure.add_axes((left / WIDTH, bottom / self._total, width / WIDTH, height / self._total))
        axes.set_title(title)
        return axes

    def text(self, left: float, top: float, text: str, **options: Any) -> None:
        """Text whose top left corner is there."""
        y = (self.height - top) / self._total
        self.figure.text(left / WIDTH, y, text, **{"va": "top", "linespacing": 1.4, **options})

    def colourbar(self, drawn: ScalarMappable, left: float, top: float, height: float, label: str) -> None:
        """The scale of what was ``drawn``, standing."""
        bar = self.figure.colorbar(drawn, cax=self.axes(left, top, 0.12, height), label=label)
        bar.outline.set_visible(False)
        if isinstance(drawn, ContourSet):
            bar.ax.yaxis.set_major_formatter("{x:.2g}")
        else:
            bar.ax.locator_params(nbins=7)


KINDS = (".png", ".svg", ".pdf")


def check_kind(path: Path) -> None:
    """Raise UsageError unless a picture can be written to ``path``."""
    if path.suffix not in KINDS:
        raise UsageError(f"--out: wanted a file ending in {', '.join(KINDS)}, got {path}")


def content(figure: Figure, kind: str = ".png") -> bytes:
    """The figure as the content of a file of this kind."""
    written = io.BytesIO()
    figure.savefig(written, format=kind.removeprefix("."))
    return written.getvalue()


# ---- pieces ----


def array(values: Tensor) -> "np.ndarray[Any, Any]":
    """A tensor for matplotlib, from wherever it is."""
    return values.detach().cpu().numpy()


def bare(axes: Axes) -> None:
    """No ticks, and a thin frame."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT)


def digit(axes: Axes, pixels: Tensor) -> None:
    """784 pixels from 0 to 1 as ink on paper."""
    axes.imshow(array(pixels.reshape(28, 28)), cmap="Greys", vmin=0, vmax=1)
    bare(axes)


def outline(axes: Axes, pixels: Tensor) -> None:
    """The edge of the ink, to be drawn over a map of the pixels."""
    axes.contour(array(pixels.reshape(28, 28)), levels=[0.5], colors=INK, linewidths=0.9)


def diverging(axes: Axes, values: Tensor, limit: float, aspect: Literal["equal", "auto"] = "equal") -> AxesImage:
    """A map of signed values with zero in the middle of the scale, −limit to limit."""
    limit = limit or 1.0
    return axes.imshow(
        array(values),
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        aspect=aspect,
        interpolation="nearest",
    )


def signed_bars(axes: Axes, values: Tensor, names: Sequence[object] | None = None, limit: float = 0.0) -> None:
    """A lying bar for each of ``values`` (n,), the first on top, blue above zero and orange below; zero in the middle.

    The axis ends at ``limit``, or a little beyond the longest bar. Without ``names`` each is called by its number, as
    far as there is room.
    """
    places = range(len(values))
    limit = limit or 1.15 * values.abs().max().item() or 1.0
    axes.barh(places, array(values), color=[RAISE if value >= 0 else LOWER for value in values.tolist()], height=0.68)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.set(xlim=(-limit, limit), ylim=(len(values) - 0.5, -0.5))
    axes.locator_params(axis="x", nbins=3)
    if names is not None or len(values) <= 20:
        axes.set_yticks(places, [str(name) for name in names or places])


def beside(axes: Axes, value: float, place: float, text: str, **options: Any) -> None:
    """``text`` just beyond the end of a lying bar or arrow that goes from zero to ``value``."""
    side = 1 if value >= 0 else -1
    axes.annotate(
        text,
        (value, place),
        (6 * side, 0),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="center",
        size=9,
        **options,
    )


def plain(axis: Axis) -> None:
    """Write a logarithmic scale as 0.1, 1, 10,000 and not as powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1 else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


# ---- numbers in words ----


def number(value: float, digits: int = 3) -> str:
    """A value as people write it: 0.0312, 1,234, −4.1·10⁻⁷."""
    if not isfinite(value):
        return str(value)
    size = abs(value)
    if size == 0:
        return "0"
    size = float(f"{size:.{digits - 1}e}")  # 0.999 is 1.0 in two digits, not 1.00
    if 1e-3 <= size < 1e6:
        decimals = max(0, digits - 1 - floor(log10(size)))
        return f"{value:,.{decimals}f}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}·10{superscript(int(exponent))}".replace("-", "−")


def unit(values: Tensor) -> tuple[float, str]:
    """A power of ten for a whole table, so that its largest number has one digit before the point, and its name."""
    size = values.abs().max().item()
    power = floor(log10(size)) if size else 0
    return (1.0, "") if -1 <= power <= 2 else (10.0**power, f" (×10{superscript(power)})")


def superscript(power: int) -> str:
    """The power in small raised digits."""
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def times(ratio: float) -> str:
    """A ratio in words: 3.2 times, 32 times, 4.1 million times."""
    for unit, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if ratio >= unit:
            return f"{number(ratio / unit, 2)}{word} times"
    return f"{number(ratio, 2)} times"


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """Columns in line: the first to the left, all others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)
