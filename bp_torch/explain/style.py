"""How every picture looks: two widths, one type, one pair of colours, and a title that says what was found.

Blue raises or is positive, orange lowers or is negative, here and everywhere; colour-blind eyes tell them apart. What
has no sign is drawn in ``LINES``. An idea composes its picture of rows of panels; in a narrow picture, for a telephone,
the panels stand one below another. Nothing here knows of networks.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

WIDTH = 12.0  # inches
NARROW = 4.0  # inches: type of 9 points has 11 pixels on a screen that is 390 wide
PAD = 0.08  # around each of the axes
DPI = 150
NARROW_DPI = 220

RAISE = "#0b62a8"
LOWER = "#d4570b"
INK = "#1b2430"
SOFT = "#68727f"
FAINT = "#d9dee5"

DIVERGING = LinearSegmentedColormap.from_list(
    "nudges", ["#7a2e00", LOWER, "#f3a35c", "#f7f7f5", "#6fb0e0", RAISE, "#06304f"]
)
SEQUENTIAL = "cividis"
SURFACE = LinearSegmentedColormap.from_list("surface", ["#ffffff", "#d9dee5", "#98a3b0"])
LINES = (INK, "#2a8c7d", "#8a5aa8", "#b08900", "#8b95a1", "#a8486b")
"""Colours of what has no sign: curves, layers, paths."""

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
        "axes.formatter.limits": (-3, 5),
        "axes.formatter.use_mathtext": True,
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


# ---- the figure and its file ----


class Panel(NamedTuple):
    """One part of a picture: what draws it, its share of a row's width, its height in inches in a narrow picture."""

    draw: Callable[[SubFigure], object]
    width: float = 1.0
    narrow_height: float = 3.2


Row = tuple[float, list[Panel]]
"""The height of a row of panels in inches, and the panels."""


def compose(rows: Sequence[Row], finding: str, note: str, caption: str, narrow: bool = False) -> Figure:
    """A figure with its head and rows of panels; in a ``narrow`` one every panel is a row of its own."""
    if narrow:
        rows = [(panel.narrow_height, [panel]) for _, panels in rows for panel in panels]
    heights = [height for height, _ in rows]
    figure = new_figure(sum(heights), finding, note, caption, narrow)
    for place, (_, panels) in zip(parts(figure, len(rows), 1, height_ratios=heights), rows, strict=True):
        places = parts(place, 1, len(panels), width_ratios=[panel.width for panel in panels])
        for panel, own in zip(panels, places, strict=True):
            panel.draw(own)
    return figure


def new_figure(height: float, finding: str, note: str, caption: str, narrow: bool = False) -> Figure:
    """A figure with its head: the finding in bold, the note, and which network it is.

    Below the head, ``height`` inches remain for axes. Place them with ``subplots`` or ``subplot_mosaic``, of the
    figure or of its ``parts``: the layout is constrained, so labels and colour bars find their own room.
    """
    form = (NARROW, 0.12, 12, 9, (34, 54)) if narrow else (WIDTH, 0.35, 15, 9.5, (92, 160))
    width, margin, size, small_size, columns = form
    title = textwrap.wrap(finding, columns[0])
    small = [*textwrap.wrap(note, columns[1]), *textwrap.wrap(caption, columns[1])]
    line, small_line = 1.4 * size / 72, 1.5 * small_size / 72
    head = 0.5 + line * len(title) + small_line * len(small)
    total = height + head
    left, bottom = margin / width, 0.2 / total
    body = (left - PAD / width, bottom, 1 - 2 * left + 2 * PAD / width, height / total - bottom)
    layout = ConstrainedLayoutEngine(rect=body, w_pad=PAD, h_pad=PAD, wspace=0.05, hspace=0.04)
    figure = Figure(figsize=(width, total), dpi=NARROW_DPI if narrow else DPI, facecolor="white", layout=layout)
    top = 1 - 0.25 / total
    figure.text(left, top, "\n".join(title), size=size, weight="bold", va="top", linespacing=1.3)
    top -= (0.08 + line * len(title)) / total
    figure.text(left, top, "\n".join(small), size=small_size, color=SOFT, va="top", linespacing=1.4)
    return figure


def parts(whole: Figure | SubFigure, rows: int, columns: int, **ratios: Any) -> list[SubFigure]:
    """A grid of parts whose axes are laid out apart; ``width_ratios`` and ``height_ratios`` as in matplotlib."""
    return list(whole.subfigures(rows, columns, squeeze=False, **ratios).flat)


def heading(part: SubFigure, text: str) -> None:
    """A title over all axes of a part of the figure, in as many lines as it needs."""
    letter = 0.108  # inches, of this type, on average
    lines = textwrap.wrap(text, max(12, int(part.bbox.width / part.dpi / letter)), break_long_words=False)
    part.suptitle("\n".join(lines), x=PAD * part.dpi / part.bbox.width, ha="left", weight="bold", size=11.5)


def colourbar(drawn: ScalarMappable, axes: Axes | Sequence[Axes], label: str, width: float = 0.04) -> Colorbar:
    """The scale of what was ``drawn``, to the right of ``axes`` and as high.

    ``width`` is a fraction of theirs. Beside several axes of a grid the bar is as high as the grid.
    """
    if isinstance(axes, Axes):
        bar = axes.figure.colorbar(drawn, cax=axes.inset_axes((1 + width, 0, width, 1)), label=label)
    else:
        bar = axes[0].figure.colorbar(drawn, ax=axes, label=label, fraction=width, pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    return bar


def file_content(figure: Figure, file_type: str = ".png") -> bytes:
    """The figure as the content of a file of this type."""
    written = io.BytesIO()
    figure.savefig(written, format=file_type.removeprefix("."))
    return written.getvalue()


# ---- what goes into axes ----


def array(values: Tensor) -> "np.ndarray[Any, Any]":
    """A tensor for matplotlib, from any device."""
    return values.detach().cpu().numpy()


def hide_ticks(axes: Axes) -> None:
    """No ticks, and a thin frame."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT)


def digit(axes: Axes, pixels: Tensor, title: str = "") -> None:
    """784 pixels from 0 to 1 as ink on paper."""
    axes.imshow(array(pixels.reshape(28, 28)), cmap="Greys", vmin=0, vmax=1)
    axes.set_title(title)
    hide_ticks(axes)


def outline(axes: Axes, pixels: Tensor) -> None:
    """The edge of the ink, to be drawn over a map of the pixels."""
    axes.contour(array(pixels.reshape(28, 28)), levels=[0.5], colors=INK, linewidths=0.9)


def diverging(axes: Axes, values: Tensor, limit: float, aspect: Literal["equal", "auto"] = "equal") -> AxesImage:
    """A map of signed values (rows, columns) with zero in the middle of the scale, −limit to limit."""
    limit = limit or 1.0
    return axes.imshow(array(values), cmap=DIVERGING, vmin=-limit, vmax=limit, aspect=aspect, interpolation="nearest")


def signed_bars(axes: Axes, values: Tensor, names: Sequence[object] | None = None, limit: float = 0.0) -> None:
    """A horizontal bar for each of ``values`` (n,), the first on top, blue above zero and orange below.

    Zero is in the middle; the axis ends at ``limit``, or a little beyond the longest bar. Without ``names`` the bars
    are numbered, where there is room.
    """
    rows = range(len(values))
    limit = limit or 1.15 * values.abs().max().item() or 1.0
    axes.barh(rows, array(values), color=[RAISE if value >= 0 else LOWER for value in values.tolist()], height=0.68)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.set(xlim=(-limit, limit), ylim=(len(values) - 0.5, -0.5))
    axes.locator_params(axis="x", nbins=3)
    if names is not None or len(values) <= 20:
        axes.set_yticks(rows, [str(name) for name in names or rows])


def label_end(axes: Axes, value: float, row: float, text: str, **options: Any) -> None:
    """``text`` just beyond the end of a horizontal bar or arrow that goes from zero to ``value``."""
    side, align = (1, "left") if value >= 0 else (-1, "right")
    axes.annotate(
        text, (value, row), (6 * side, 0), textcoords="offset points", ha=align, va="center", size=9, **options
    )


def decimal_ticks(axis: Axis) -> None:
    """Write a logarithmic scale as 0.1, 1, 10,000 and not as powers of ten, and not more of these than have room."""
    axis.set_major_locator(LogLocator(numticks=5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1 else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
