"""Drawing: the network with one image in it; bars, arrows and dots for single neurons; maps and histograms of many.

A neuron is the darker the more active it is. A blue edge is positive, an orange one negative, a broad one large.
Triangles beside neurons are their wishes: blue points up, orange down.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor
from torch.nn import functional

from bp_torch.backprop import Forward
from bp_torch.explain import style

MOST = 16  # neurons of a layer that are drawn; of more, the most active
IMAGE = (0.0, 0.18, 0.3, 0.64)  # where the image is: left, bottom, width and height, as fractions of the drawing
FIRST, LAST = 0.42, 0.84  # where the first and the last layer stand


def draw_network(
    part: Figure | SubFigure,
    *,
    passed: Forward,
    layer: int = 0,
    values: Tensor | None = None,
    neuron: int | None = None,
    ring: int | None = None,
    wishes: Mapping[int, Tensor] | None = None,
    edges: Sequence[tuple[int, int]] = (),
) -> None:
    """Draw the network of ``passed``, the forward pass of one image.

    The edges into ``layer`` (from 1; 0: none) stand out: by their ``values`` (n_l, n_(l−1)), None: their weights; with
    ``neuron`` only those into it, which has a ring; with ``edges`` only these, as (to, from). ``ring`` is an output
    that has a ring as well. ``wishes`` (n_l,) of some layers are triangles.
    """
    axes = part.subplots()
    network, depth, activations = passed.network, passed.network.depth, [a[0] for a in passed.activations]
    marked = {layer: [j for j, _ in edges] + ([] if neuron is None else [neuron]), layer - 1: [k for _, k in edges]}
    shown = {l: shown_neurons(activations[l], marked.get(l, [])) for l in range(1, depth + 1)}
    places = {l: dict(zip(neurons, heights(len(neurons)), strict=True)) for l, neurons in shown.items()}
    across = {l: LAST - (LAST - FIRST) * (depth - l) / max(1, depth - 1) for l in shown}

    def chosen(l: int, j: int, k: int | None = None) -> bool:
        """Whether the edge into neuron j of layer l stands out, from neuron k or, None, from any."""
        among = not edges or any(j == to and k in (None, source) for to, source in edges)
        return l == layer and among and neuron in (None, j)

    for l in shown:
        own = network.weights[l - 1] if values is None or l != layer else values
        if l > 1:
            before, after = (across[l - 1], places[l - 1]), (across[l], places[l])
            _edges(axes, own, before, after, partial(chosen, l), bool(edges), 0.1 if layer else 0.35)
        else:
            _from_image(axes, (across[l], places[l]), partial(chosen, l))
        _neurons(axes, activations[l], across[l], places[l], (wishes or {}).get(l))
        few = "" if len(shown[l]) == network.sizes[l] else f"{len(shown[l])} of {network.sizes[l]}"
        axes.text(across[l], -0.07, "outputs" if l == depth else f"layer {l}", ha="center", size=9)
        below: dict[str, Any] = {"xytext": (0, -9), "textcoords": "offset points", "ha": "center", "va": "top"}
        axes.annotate(few, (across[l], max(places[l].values())), size=9, color=style.SOFT, **below)
    for l, j in ((layer, neuron), (depth, ring)):
        if l and j is not None:
            axes.plot(across[l], places[l][j], "o", markersize=13, color="none", markeredgecolor=style.INK)
    for j, y in places[depth].items():
        axes.text(LAST + 0.12, y, f"{j}", ha="center", va="center", size=9)
    digit(image := axes.inset_axes(IMAGE), activations[0])
    image.set_anchor("E")
    axes.set(xlim=(0, 1), ylim=(1.1, -0.1), xticks=[], yticks=[])
    axes.set_axis_off()


def shown_neurons(a: Tensor, needed: list[int]) -> list[int]:
    """The ``MOST`` most active neurons of a layer, a (n,), in their order, and the ``needed`` ones among them."""
    order = dict.fromkeys([*needed, *a.abs().sort(descending=True, stable=True).indices.tolist()])
    return sorted(list(order)[: max(MOST, len(set(needed)))])


def heights(n: int) -> list[float]:
    """Where the n neurons of a layer stand, from 0, the top, to 1: closer to the middle where there are few."""
    reach = min(1.0, (n - 1) / 12) / 2
    return torch.linspace(0.5 - reach, 0.5 + reach, n).tolist() if n > 1 else [0.5]


Column = tuple[float, dict[int, float]]  # where a layer stands, and the height of each of its neurons


def _edges(
    axes: Axes, values: Tensor, before: Column, after: Column, chosen: Callable[..., bool], few: bool, faint: float
) -> None:
    """The edges between two layers, the largest as broad and as full as any; ``faint`` unless ``chosen``."""
    limit, rows = values.abs().max().item() or 1.0, values.tolist()
    lines, colours, widths = [], [], []
    for (j, high), (k, low) in product(after[1].items(), before[1].items()):
        size, here = abs(rows[j][k]) / limit, chosen(j, k)
        lines.append([(before[0], low), (after[0], high)])
        alpha = max(0.25 * few, size) if here else faint * size
        colours.append((*to_rgb(sign_colour(rows[j][k])), alpha))
        widths.append((3.0 if few else 0.4 + 2.2 * size) if here else 0.7)
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=widths, zorder=1))


def _from_image(axes: Axes, after: Column, chosen: Callable[..., bool]) -> None:
    """A line from the image to each neuron of layer 1 stands for its edges from all pixels."""
    left = IMAGE[0] + IMAGE[2]
    for j, high in after[1].items():
        low = 0.5 + (high - 0.5) * IMAGE[3] * 0.8
        axes.plot([left, after[0]], [low, high], color=style.INK if chosen(j) else style.FAINT, linewidth=0.8, zorder=1)


def _neurons(axes: Axes, a: Tensor, x: float, places: dict[int, float], wishes: Tensor | None) -> None:
    """The neurons of a layer as discs, and their wishes as triangles, the largest as large as a disc."""
    values = a.tolist()
    full = max(1.0, max(abs(value) for value in values))
    greys = [f"{0.98 - 0.8 * min(1.0, abs(values[j]) / full):.3f}" for j in places]
    xs, ys = [x] * len(places), list(places.values())
    axes.scatter(xs, ys, s=75, c=greys, edgecolors=style.SOFT, linewidths=0.9, zorder=3)
    sizes = [] if wishes is None else [80 * wish / (wishes.abs().max().item() or 1.0) for wish in wishes.tolist()]
    for j, y in places.items() if sizes else ():
        marker, colour = "^" if sizes[j] >= 0 else "v", sign_colour(sizes[j])
        axes.scatter([x + 0.055], [y], s=abs(sizes[j]), marker=marker, color=colour, linewidths=0, zorder=3)


def signed_bars(axes: Axes, values: Tensor, names: Sequence[object] | None = None, limit: float = 0.0) -> None:
    """A horizontal bar for each of ``values`` (n,), blue above zero and orange below, with zero in the middle.

    The axis ends at ``limit``, or a little beyond the longest bar. Without ``names`` up to 20 bars are numbered.
    """
    rows = range(len(values))
    limit = limit or 1.15 * values.abs().max().item() or 1.0
    axes.barh(rows, array(values), color=[sign_colour(value) for value in values.tolist()], height=0.68)
    axes.axvline(0, color=style.SOFT, linewidth=0.8)
    axes.set(xlim=(-limit, limit), ylim=(len(values) - 0.5, -0.5))
    axes.locator_params(axis="x", nbins=3)
    if names is not None or len(values) <= 20:
        axes.set_yticks(rows, [str(name) for name in names or rows])


def arrow(axes: Axes, value: float, row: float, text: str, small: float) -> None:
    """An arrow from zero to ``value`` with a text, or a dot below ``small``, where a head has no room."""
    colour = sign_colour(value)
    if abs(value) < small:
        axes.plot(value, row, "o", color=colour, markersize=3.5)
    else:
        head = {"arrowstyle": "-|>,head_width=.28,head_length=.5", "linewidth": 2.4, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (value, row), (0, row), arrowprops={**head, "color": colour})
    label_end(axes, value, row, text, color=colour)


def label_end(axes: Axes, value: float, row: float, text: str, **options: Any) -> None:
    """``text`` just beyond the end of a horizontal bar or arrow that goes from zero to ``value``."""
    side, align = (1, "left") if value >= 0 else (-1, "right")
    place = {"textcoords": "offset points", "ha": align, "va": "center", **options}
    axes.annotate(text, (value, row), (6 * side, 0), size=9, **place)


def output_dots(axes: Axes, outputs: list[float], targets: list[float] | None) -> None:
    """The outputs of a network as dots, in rings where they should be."""
    rows = range(len(outputs))
    axes.plot(outputs, rows, "o", color=style.INK, markersize=7, label="is")
    if targets is not None:
        axes.plot(targets, rows, "o", markersize=11, color="none", markeredgecolor=style.SOFT, label="wanted")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=2, handletextpad=0.1, columnspacing=0.8)
    axes.set(xlabel="output", ylabel="output neuron")


def sign_colour(value: float) -> str:
    """Blue for what is not below zero, else orange."""
    return style.RAISE if value >= 0 else style.LOWER


def array(values: Tensor) -> "np.ndarray[Any, Any]":
    """A tensor for matplotlib, from any device."""
    return values.detach().cpu().numpy()


def hide_ticks(axes: Axes) -> None:
    """No ticks, and a thin frame."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=style.FAINT)


def digit(axes: Axes, pixels: Tensor) -> None:
    """784 pixels from 0 to 1 as ink on paper."""
    axes.imshow(array(pixels.reshape(28, 28)), cmap="Greys", vmin=0, vmax=1)
    hide_ticks(axes)


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
    """The scale of what was ``drawn``, to the right of ``axes`` and as high; ``width`` is a fraction of theirs."""
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
