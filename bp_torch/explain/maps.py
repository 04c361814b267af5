"""Drawing: many values in one place, as colours and in histograms."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor
from torch.nn import functional

from bp_torch.explain import style
from bp_torch.explain.drawing import array, hide_ticks


def diverging(axes: Axes, values: Tensor, limit: float, aspect: Literal["equal", "auto"] = "equal") -> AxesImage:
    """A map of signed values (rows, columns) with zero in the middle of the scale, −limit to limit."""
    limit = limit or 1.0
    colours = style.DIVERGING
    return axes.imshow(array(values), cmap=colours, vmin=-limit, vmax=limit, aspect=aspect, interpolation="nearest")


def pixel_map(axes: Axes, values: Tensor, limit: float | None = None) -> AxesImage:
    """A map of one signed value for each pixel, (784,), on a scale up to ``limit``, None: their own largest."""
    hide_ticks(axes)
    return diverging(axes, values.reshape(28, 28), values.abs().max().item() if limit is None else limit)


def map_grid(
    part: SubFigure, maps: Sequence[tuple[str, Tensor, float]], columns: int, size: float = 9, pad: float = 3
) -> tuple[AxesImage, list[Axes]]:
    """A grid of pixel maps, each with its title and limit: the last map, and all places. Those left over are hidden."""
    places = list(part.subplots(-(-len(maps) // columns), columns, squeeze=False).flat)
    for axes, (title, values, limit) in zip(places, maps, strict=False):
        drawn = pixel_map(axes, values, limit)
        axes.set_title(title, fontsize=size, fontweight="normal", pad=pad)
    for axes in places[len(maps) :]:
        axes.set_visible(False)
    return drawn, places


def outline(axes: Axes, pixels: Tensor) -> None:
    """The edge of the ink, to be drawn over a map of the pixels."""
    axes.contour(array(pixels.reshape(28, 28)), levels=[0.5], colors=style.INK, linewidths=0.9)


def mosaic(axes: Axes, images: Tensor, columns: int) -> None:
    """Images (n, 784) as tiles in so many ``columns``, ink on paper."""
    rows = -(-len(images) // columns)
    full = functional.pad(images, (0, 0, 0, rows * columns - len(images)))
    tiles = full.reshape(rows, columns, 28, 28).transpose(1, 2)
    axes.imshow(array(tiles.reshape(rows * 28, columns * 28)), cmap="Greys", vmin=0, vmax=1)
    hide_ticks(axes)


def percent_histogram(axes: Axes, values: Tensor, bins: "Sequence[float] | np.ndarray[Any, Any]", **look: Any) -> None:
    """How many percent of the ``values`` (n,) are in each of the bins."""
    axes.hist(array(values), list(bins), weights=np.full(len(values), 100 / max(len(values), 1)), **look)


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


def decimal_ticks(axis: Axis) -> None:
    """Write a logarithmic scale as 0.1, 1, 10,000 and not as powers of ten, and not more of these than have room."""
    axis.set_major_locator(LogLocator(numticks=5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1 else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
