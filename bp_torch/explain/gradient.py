"""The gradient: how sensitive the cost is to each weight and bias, by name, and whether a wiggle confirms it.

    python -m bp_torch explain gradient --wiggle

∇C is over all training examples, from ``backprop.backward``. A wiggle is a central difference: one parameter moves up
and down, and the cost is computed at both ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor
from tqdm import tqdm

from bp_torch import text
from bp_torch.data import Examples
from bp_torch.explain import style
from bp_torch.explain.subject import CommonOptions, Subject, UsageError, all_costs, full_gradient
from bp_torch.network import Network, layer_views, parameter_count

MADE_BY = ("backprop.forward", "backprop.example_costs", "backprop.backward")

IDEA = (
    "A direction in a space of thousands of dimensions cannot be pictured, but it can be read one number at a time. "
    "The size of each component says how strongly the cost responds to that one weight or bias: where one component "
    "is 32 times another, the same small change of the first moves the cost 32 times as much."
)


@dataclass(frozen=True)
class Options(CommonOptions):
    """Whether and how far parameters are moved."""

    wiggle: bool = False
    """Move parameters from all ranks a little, one at a time, and measure how the cost changes."""
    step: float = 1e-3
    """How far a wiggle goes, up and down."""

    def __post_init__(self) -> None:
        """Check the step."""
        super().__post_init__()
        if not 0 < self.step < 1:
            raise ValueError(f"--step: wanted above 0 and below 1, got {self.step}")


class Wiggle(NamedTuple):
    """One parameter moved, the one at ``position`` i of θ.

    ``up`` is C(θ + h e_i) − C(θ), ``down`` C(θ − h e_i) − C(θ), ``predicted`` h ∂C/∂θ_i.
    """

    position: int
    up: float
    down: float
    predicted: float

    @property
    def change(self) -> float:
        """Half the difference of ``up`` and ``down``: h ∂C/∂θ_i, with an error of the order h³."""
        return (self.up - self.down) / 2


class Gradient(NamedTuple):
    """How sensitive the cost is.

    Attributes:
        sizes: of the network.
        gradient: ∇C over all training examples, (P,), float64.
        order: the indices of all components that are not zero, the largest first.
        step: h, how far a wiggle moves a parameter.
        wiggles: of some components from all ranks, in their order; empty without --wiggle.
        caption: which network this is.
    """

    sizes: tuple[int, ...]
    gradient: Tensor
    order: Tensor
    step: float
    wiggles: list[Wiggle]
    caption: str

    def ratio(self, rank: int = -1) -> float:
        """The size of the first component in ``order``, divided by that of the one at ``rank`` (the last)."""
        first, other = (abs(self.gradient[self.order[place]].item()) for place in (0, rank))
        return float(first / other)

    @property
    def typical(self) -> int:
        """The rank in the middle of ``order``."""
        return len(self.order) // 2


def parameter_name(sizes: tuple[int, ...], index: int) -> str:
    """What the parameter at ``index`` of θ is: "weight from pixel (14, 9) to neuron 3 of layer 1".

    Pixels are (row, column), and neurons count from 0, layers from 1, the last layer being the outputs. Raises
    ValueError for an index that no parameter has.
    """
    if not 0 <= index < parameter_count(sizes):
        raise ValueError(f"no parameter {index} among {parameter_count(sizes):,}")
    layer, size = 1, parameter_count(sizes[:2])
    while index >= size:
        index, layer = index - size, layer + 1
        size = parameter_count(sizes[layer - 1 : layer + 1])
    n_in, n_out = sizes[layer - 1 : layer + 1]
    if index >= n_in * n_out:
        return f"bias of neuron {index - n_in * n_out} of layer {layer}"
    j, k = divmod(index, n_in)
    source = f"pixel ({k // 28}, {k % 28})" if layer == 1 and n_in == 784 else f"neuron {k} of layer {layer - 1}"
    return f"weight from {source} to neuron {j} of layer {layer}"


def sensitivity_order(gradient: Tensor) -> Tensor:
    """The indices of the components that are not zero, the largest first."""
    order = gradient.abs().sort(descending=True, stable=True).indices
    return order[: int((gradient != 0).sum())]


def wiggle(
    network: Network, examples: Examples, cost: str, gradient: Tensor, indices: list[int], h: float
) -> Iterator[Wiggle]:
    """Move θ_i up and down by ``h`` and back, for each i of ``indices``.

    The costs are subtracted example by example before they are averaged, so that a small change keeps its digits.
    """
    theta, here = network.parameters, all_costs(network, examples, cost)
    for i in indices:
        value, changes = theta[i].item(), []
        for moved in (value + h, value - h):
            theta[i] = moved
            changes.append((all_costs(network, examples, cost) - here).mean().item())
        theta[i] = value
        yield Wiggle(i, changes[0], changes[1], h * gradient[i].item())


def explain(subject: Subject, options: Options) -> Gradient:
    """∇C over the training examples, and the wiggles if ``options`` ask for them."""
    network, cost = subject.exact, subject.config.cost
    gradient = full_gradient(network, subject.training, cost)
    order = sensitivity_order(gradient)
    if not len(order):
        raise UsageError("the gradient is zero in every component: there is nothing to compare")
    ranks = torch.linspace(0, len(order) - 1, 10).round().long().unique()  # evenly spaced from the first to the last
    indices = order[ranks.to(order.device)].tolist() if options.wiggle else []
    moved = wiggle(network, subject.training, cost, gradient, indices, options.step)
    wiggles = list(tqdm(moved, desc="wiggles", total=len(indices), leave=False, disable=None))
    return Gradient(network.sizes, gradient, order, options.step, wiggles, subject.caption)


def finding(result: Gradient) -> str:
    """What the numbers say."""
    most, least = (parameter_name(result.sizes, int(result.order[rank])) for rank in (0, -1))
    over_typical, over_least = (text.times(result.ratio(rank)) for rank in (result.typical, -1))
    return (
        f"A wiggle of the {most} changes the cost {over_typical} as much as one of a typical parameter, and "
        f"{over_least} as much as one of the {least}"
    )


def table(result: Gradient) -> str:
    """The most and the least sensitive parameters by name, and the wiggles."""
    largest = result.gradient[result.order[0]].abs().item()
    zero = len(result.gradient) - len(result.order)

    def row(i: int) -> list[str]:
        value = result.gradient[i].item()
        return [parameter_name(result.sizes, i), f"{value:+.4e}", f"{abs(largest / value):,.4g}"]

    over_typical, over_least = (text.times(result.ratio(rank)) for rank in (result.typical, -1))
    order, gap = result.order.tolist(), ["…", "", ""]
    rows = [*map(row, order[:8]), gap, row(order[result.typical]), gap, *map(row, order[-8:])]
    parts = [
        f"∇C has {len(result.gradient):,} components, {zero:,} of them exactly zero. {result.caption}.",
        text.table(["parameter", "∂C/∂θ", "times less than the first"], rows),
        f"The first is {over_least} the last, and {over_typical} the one in the middle.",
    ]
    if result.wiggles:
        first = result.wiggles[0].change
        header = [f"moved by ±{result.step:g}", "predicted", "cost changes by", "off by", "times less", "h² term"]
        rows = [
            [
                parameter_name(result.sizes, w.position),
                f"{w.predicted:+.4e}",
                f"{w.change:+.4e}",
                f"{abs(w.change / w.predicted - 1):.1e}",
                f"{abs(first / w.change) if w.change else nan:,.4g}",
                f"{(w.up + w.down) / 2:+.1e}",
            ]
            for w in result.wiggles
        ]
        parts.append(text.table(header, rows))
    return "\n\n".join(parts)


@style.styled
def figure(result: Gradient) -> Figure:
    """The vector as a map, layer by layer; its components in order of size; and the wiggles."""
    zero = len(result.gradient) - len(result.order)
    note = (
        f"All {len(result.gradient):,} components of ∇C over the training examples; {zero:,} of them are exactly zero. "
        "The maps show −∂C/∂θ: a blue weight or bias should go up, an orange one down, and a pale one hardly matters."
    )
    weights, biases = layer_views(-result.gradient, result.sizes)
    shown = sorted(weights[0].norm(dim=1).topk(min(16, len(weights[0]))).indices.tolist())
    lines = -(-len(shown) // 8)
    heights = (0.5 + 1.45 * lines, 3.6, 3.6)
    figure = style.new_figure(sum(heights), finding(result), note, result.caption)
    first, later, ranks = style.parts(figure, 3, 1, height_ratios=heights)
    limit = result.gradient.abs().quantile(0.995).item()
    few = "" if len(shown) == len(weights[0]) else f", the {len(shown)} with the largest gradient"
    style.heading(first, f"Layer 1: weights from all pixels to each neuron{few}")
    maps = list(first.subplots(lines, 8, squeeze=False).flat)
    for axes, j in zip(maps, shown, strict=False):
        drawn = style.diverging(axes, weights[0][j].reshape(28, 28), limit)
        axes.set_title(f"neuron {j}", fontsize=9, fontweight="normal", pad=3)
    for axes in maps:
        style.hide_ticks(axes)
        axes.set_visible(bool(axes.images))
    style.colourbar(drawn, maps, "−∂C/∂θ", 0.02)
    _later_layers(later, weights, biases, limit)
    if result.wiggles:
        left, right = ranks.subplots(1, 2)
        _ranks(left, result)
        _wiggles(right, result)
    else:
        _ranks(ranks.subplots(), result)
    return figure


def _later_layers(part: SubFigure, weights: Sequence[Tensor], biases: Sequence[Tensor], limit: float) -> None:
    """The biases of every layer as a column, beside its weights (those of layer 1 are above, as images)."""
    later = len(weights) - 1
    columns: list[Any] = ["b1", *(f"{kind}{layer}" for layer in range(2, later + 2) for kind in "Wb")]
    widths = [1, *(26 / max(later, 1), 1) * later]
    if not later:
        columns, widths = ["b1", "."], [1, 26]
    places = part.subplot_mosaic([columns], width_ratios=widths)
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True), 1):
        axes = places[f"b{layer}"]
        style.diverging(axes, b[:, None], limit, aspect="auto")
        axes.set_title("biases", fontsize=9, fontweight="normal")
        axes.set_xticks([])
        if layer > 1:
            axes.set_yticks([])
            axes = places[f"W{layer}"]
            style.diverging(axes, w, limit, aspect="auto")
            axes.set(title=f"Layer {layer}: weights", xlabel=f"from neuron of layer {layer - 1}")
        axes.set_ylabel(f"to neuron of layer {layer}")


def _ranks(axes: Axes, result: Gradient) -> None:
    """Every component in order of size, the first and the last by name."""
    sizes = result.gradient[result.order].abs()
    axes.semilogy(range(1, len(sizes) + 1), style.array(sizes), color=style.SOFT, linewidth=1.6)
    for rank, align, side, colour in ((1, "left", 1, style.RAISE), (len(sizes), "right", -1, style.LOWER)):
        size, name = sizes[rank - 1].item(), parameter_name(result.sizes, int(result.order[rank - 1]))
        axes.plot([rank], [size], "o", color=colour, markersize=8)
        axes.annotate(
            f"{text.number(size, 2)}\n{name}", (rank, size), (9 * side, 5), textcoords="offset points", ha=align, size=9
        )
    axes.set_ylim(sizes[-1].item() / 10, 30 * (sizes[0] / sizes[-1]).item() ** 0.1 * sizes[0].item())
    axes.set(title="All components, in order of size", xlabel="rank", ylabel="|∂C/∂θ|")
    axes.grid(axis="y")


def _wiggles(axes: Axes, result: Gradient) -> None:
    """How the cost changed against what the gradient predicts."""
    predicted = [abs(w.predicted) for w in result.wiggles]
    measured = [abs(w.change) for w in result.wiggles]
    ends = (min(predicted) / 3, max(predicted) * 3)
    axes.loglog(ends, ends, color=style.SOFT, linewidth=1, label="as the gradient predicts")
    axes.loglog(predicted, measured, "o", color=style.RAISE, markersize=7, label="measured")
    axes.set(title=f"Each moved by ±{result.step:g}: what the cost did", ylabel="measured change")
    axes.set(xlabel="predicted change of the cost, h |∂C/∂θ|")
    axes.grid()
    axes.legend(loc="upper left")
    least = measured[-1]
    ratio = f"{text.times(measured[0] / least)} as much as the least" if least else "and the least does not"
    note = f"the most sensitive moves the cost\n{ratio},\npredicted: {text.times(result.ratio())}"
    axes.text(0.98, 0.04, note, transform=axes.transAxes, ha="right", size=9)
