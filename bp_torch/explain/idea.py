"""An idea, computed once on a network: what it found in one sentence, its tables, and its picture, wide or narrow.

A picture is composed here, of rows of panels. In a narrow one, for a telephone, the panels stand one below another.
Nothing here knows of networks.
"""

import io
import textwrap
from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bp_torch.explain import IDEAS, style


class Panel(NamedTuple):
    """One part of a picture: its title, and the function that draws the rest."""

    title: str
    draw: Callable[[SubFigure], object]
    width: float = 1.0  # its share of the row's
    narrow_height: float = 3.2  # inches, in a narrow picture


Row = tuple[float, list[Panel]]  # the height of a row of panels in inches, and the panels


class Idea:
    """The base of every idea. A subclass computes in ``__init__``, with the functions of backprop.py."""

    caption: str  # which network this is
    finding: Callable[[], str]  # the result in one sentence, without its full stop
    table: Callable[[], str]  # the numbers, as one or more tables
    rows: Callable[[bool], list[Row]]  # the panels of the picture, a ``narrow`` one or not

    def _repr_png_(self) -> bytes:
        """The picture, for a notebook."""
        return file_content(self.figure())

    @style.styled
    def figure(self, narrow: bool = False) -> Figure:
        """The picture: its head, and the rows of panels; in a ``narrow`` one every panel is a row of its own."""
        rows = self.rows(narrow)
        if narrow:
            rows = [(panel.narrow_height, [panel]) for _, panels in rows for panel in panels]
        heights = [height for height, _ in rows]
        note = IDEAS[type(self).__name__.lower()].note.format(idea=self)
        figure = new_figure(sum(heights), self.finding(), note, self.caption, narrow)
        places = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for place, (_, panels) in zip(places, rows, strict=True):
            parts = place.subfigures(1, len(panels), squeeze=False, width_ratios=[panel.width for panel in panels])
            for panel, part in zip(panels, parts[0], strict=True):
                heading(part, panel.title)
                panel.draw(part)
        return figure


def new_figure(height: float, finding: str, note: str, caption: str, narrow: bool = False) -> Figure:
    """A figure with its head: finding, note, and which network it is; below, ``height`` inches remain for axes."""
    form = (style.NARROW, 0.12, 12, 9, (34, 54)) if narrow else (style.WIDTH, 0.35, 15, 9.5, (92, 160))
    width, margin, size, small_size, columns = form
    title = textwrap.wrap(finding, columns[0])
    small = [*textwrap.wrap(note, columns[1]), *textwrap.wrap(caption, columns[1])]
    line, small_line = 1.4 * size / 72, 1.5 * small_size / 72
    head = 0.5 + line * len(title) + small_line * len(small)
    total, pad, dpi = height + head, style.PAD, style.NARROW_DPI if narrow else style.DPI
    left, bottom = margin / width, 0.2 / total
    body = (left - pad / width, bottom, 1 - 2 * left + 2 * pad / width, height / total - bottom)
    layout = ConstrainedLayoutEngine(rect=body, w_pad=pad, h_pad=pad, wspace=0.05, hspace=0.04)
    figure = Figure(figsize=(width, total), dpi=dpi, facecolor="white", layout=layout)
    top = 1 - 0.25 / total
    figure.text(left, top, "\n".join(title), size=size, weight="bold", va="top", linespacing=1.3)
    top -= (0.08 + line * len(title)) / total
    figure.text(left, top, "\n".join(small), size=small_size, color=style.SOFT, va="top", linespacing=1.4)
    return figure


def heading(part: SubFigure, text: str) -> None:
    """A title over all axes of a part of the figure, in as many lines as it needs."""
    letter = 0.108  # inches, of this type, on average
    lines = textwrap.wrap(text, max(12, int(part.bbox.width / part.dpi / letter)), break_long_words=False)
    part.suptitle("\n".join(lines), x=style.PAD * part.dpi / part.bbox.width, ha="left", weight="bold", size=11.5)


def file_content(figure: Figure, file_type: str = ".png") -> bytes:
    """The figure as the content of a file of this type."""
    written = io.BytesIO()
    figure.savefig(written, format=file_type.removeprefix("."))
    return written.getvalue()
