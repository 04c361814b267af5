"""The gradient: how sensitive the cost is to each weight and bias, and what a wiggle of two of them does to it.

    python -m bp_torch explain gradient

∇C is over all training examples, from ``backprop.backward``. A wiggle moves one weight up and down, and the cost is
computed at both ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import NamedTuple

import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from bp_torch import text
from bp_torch.backprop import Forward, forward
from bp_torch.data import Examples, batch
from bp_torch.explain import style
from bp_torch.explain.drawing import MOST, draw_network
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
    """Which two weights are compared, and how far they are moved."""

    ratio: float = 32
    """The first of the two weights is about so many times as sensitive as the second."""
    step: float = 1e-3
    """How far a wiggle goes, up and down."""

    def __post_init__(self) -> None:
        """Check the ratio and the step."""
        super().__post_init__()
        if not 1 < self.ratio < inf:
            raise ValueError(f"--ratio: wanted above 1, got {self.ratio}")
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
        pair: the indices of the two weights of the last layer that are compared, the more sensitive one first.
        wiggles: of each of the pair, the whole step and half of it.
        step: h, the whole step.
        passed: one image, forward through the network.
        caption: which network this is.
    """

    sizes: tuple[int, ...]
    gradient: Tensor
    order: Tensor
    pair: tuple[int, int]
    wiggles: list[list[Wiggle]]
    step: float
    passed: Forward
    caption: str

    @property
    def ratio(self) -> float:
        """How many times as sensitive the cost is to the first of the pair as to the second."""
        first, second = (abs(self.gradient[i].item()) for i in self.pair)
        return first / second

    @property
    def measured_ratio(self) -> float:
        """The same, by the wiggles."""
        first, second = (abs(wiggles[0].change) for wiggles in self.wiggles)
        return first / second if second else inf

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The pair as neurons, (to, from)."""
        start = len(self.gradient) - self.sizes[-1] * (self.sizes[-2] + 1)
        return [divmod(i - start, self.sizes[-2]) for i in self.pair]


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


def find_pair(gradient: Tensor, sizes: tuple[int, ...], ratio: float) -> tuple[int, int]:
    """The most sensitive weight of the last layer, and the one nearest to being ``ratio`` times less so, as indices.

    Raises UsageError where fewer than two of its weights have a gradient.
    """
    last = layer_views(torch.arange(len(gradient), device=gradient.device), sizes)[0][-1].flatten()
    components = gradient.index_select(0, last).abs()
    order = sensitivity_order(components)
    if len(order) < 2:
        raise UsageError("the gradient is zero in almost every weight of the last layer: there is nothing to compare")
    others = components.index_select(0, order[1:])
    nearest = int((others * ratio / components.max()).log().abs().argmin())
    return int(last[order[0]]), int(last[order[1 + nearest]])


def explain(subject: Subject, options: Options) -> Gradient:
    """∇C over the training examples, and the wiggles of two weights."""
    network, cost, training = subject.exact, subject.config.cost, subject.training
    gradient = full_gradient(network, training, cost)
    pair = find_pair(gradient, network.sizes, options.ratio)
    whole, half = (
        list(wiggle(network, training, cost, gradient, list(pair), h)) for h in (options.step, options.step / 2)
    )
    x, _ = batch(training, torch.arange(1, device=training.labels.device), network.dtype)
    wiggles = [list(both) for both in zip(whole, half, strict=True)]
    order = sensitivity_order(gradient)
    passed = forward(network, x)
    return Gradient(network.sizes, gradient, order, pair, wiggles, options.step, passed, subject.caption)


def finding(result: Gradient) -> str:
    """What the numbers say."""
    first, second = (parameter_name(result.sizes, i) for i in result.pair)
    return (
        f"The cost is {text.times(result.ratio)} as sensitive to the {first} as to the {second}: the same wiggle moves "
        "it "
        f"{text.times(result.measured_ratio)} as much"
    )


def table(result: Gradient) -> str:
    """The wiggles of the pair, and the most sensitive parameters by name."""
    zero = len(result.gradient) - len(result.order)
    wiggles = [
        [
            parameter_name(result.sizes, w.position),
            f"{result.gradient[w.position].item():+.4e}",
            f"{w.predicted:+.4e}",
            f"{w.change:+.4e}",
            f"{abs(w.change / w.predicted - 1):.1e}",
        ]
        for w, _ in result.wiggles
    ]
    header = [f"moved by ±{result.step:g}", "∂C/∂θ", "foretold", "cost changes by", "off by"]
    order, middle = result.order.tolist(), len(result.order) // 2
    largest = result.gradient[order[0]].abs().item()

    def row(i: int) -> list[str]:
        value = result.gradient[i].item()
        return [parameter_name(result.sizes, i), f"{value:+.4e}", f"{abs(largest / value):,.3g}"]

    rows = [*map(row, order[:12]), ["…", "", ""], row(order[middle])]
    return (
        f"∇C has {len(result.gradient):,} components, {zero:,} of them exactly zero. {result.caption}.\n\n"
        f"{text.table(header, wiggles)}\n\nThe first is {text.times(result.ratio)} the second; by the wiggles, "
        f"{text.times(result.measured_ratio)}.\n\n"
        f"{text.table(['the most sensitive, and the one in the middle', '∂C/∂θ', 'times less than the first'], rows)}"
    )


@style.styled
def figure(result: Gradient, narrow: bool = False) -> Figure:
    """The two weights in the network, among all of their layer, and wiggled; then the whole vector as a map."""
    zero = len(result.gradient) - len(result.order)
    note = (
        f"∇C over the training examples has {len(result.gradient):,} components, {zero:,} of them exactly zero. The "
        "maps "
        "show −∂C/∂θ, each layer on its own scale: a blue weight or bias should go up, an orange one down, and a pale "
        "one "
        "hardly matters."
    )
    columns = 4 if narrow else 8
    lines = -(-min(MOST, result.sizes[1]) // columns)
    rows: list[style.Row] = [
        (
            3.8,
            [
                style.Panel(partial(_network, result=result), 4.4, 3.2),
                style.Panel(partial(_among, result=result), 3.2, 3.2),
                style.Panel(partial(_wiggles, result=result), 3.6, 3.6),
            ],
        ),
        (
            0.5 + 1.45 * lines,
            [style.Panel(partial(_first_layer, result=result, columns=columns), 1, 0.6 + 0.95 * lines)],
        ),
    ]
    later = [style.Panel(partial(_later_layer, result=result, layer=l), 1, 3.2) for l in range(2, len(result.sizes))]
    if later:
        rows.append((3.4, later))
    return style.compose(rows, finding(result), note, result.caption, narrow)


PAIR = (style.LINES[0], style.LINES[1])
"""The colours of the two weights, which say nothing about signs."""


def _network(part: SubFigure, result: Gradient) -> None:
    """Where the two weights are."""
    style.heading(part, f"Two weights of layer {len(result.sizes) - 1}")
    depth = len(result.sizes) - 1
    values = layer_views(-result.gradient, result.sizes)[0][-1]
    draw_network(part.subplots(), result.passed, layer=depth, values=values, edges=result.edges)


def _among(part: SubFigure, result: Gradient) -> None:
    """All weights of the layer in order of sensitivity, the two marked."""
    style.heading(part, f"How sensitive the cost is to each weight of layer {len(result.sizes) - 1}")
    axes = part.subplots()
    components = layer_views(result.gradient, result.sizes)[0][-1].flatten().abs()
    ordered = components.sort(descending=True).values
    axes.fill_between(range(1, len(ordered) + 1), style.array(ordered), color=style.FAINT, linewidth=0)
    for i, colour in zip(result.pair, PAIR, strict=True):
        size = abs(result.gradient[i].item())
        rank = 1 + int((ordered > size).sum())
        axes.plot([rank], [size], "o", color=colour, markersize=8)
        axes.annotate(text.number(size, 2), (rank, size), (8, 8), textcoords="offset points", size=10, weight="bold")
    axes.set(xlabel="rank of the weight", ylabel="|∂C/∂w|", ylim=(0, 1.15 * ordered[0].item()))


def _wiggles(part: SubFigure, result: Gradient) -> None:
    """How the cost changed as each of the two was moved, over what the gradient foretells."""
    style.heading(part, f"The same wiggle of each: {text.times(result.measured_ratio)} the change")
    axes = part.subplots()
    for i, wiggles, colour, name in zip(result.pair, result.wiggles, PAIR, ("the first", "the second"), strict=True):
        slope, h = result.gradient[i].item(), result.step
        axes.plot([-h, h], [-h * slope, h * slope], color=colour, linewidth=1.4, label=f"{name}, as ∂C/∂w foretells")
        for part_of, w in zip((h, h / 2), wiggles, strict=True):
            axes.plot([-part_of, part_of], [w.down, w.up], "o", color=colour, markersize=6)
    axes.plot([], [], "o", color=style.SOFT, label="measured")
    axes.set(xlabel="the weight is moved by", ylabel="the cost changes by")
    axes.grid()
    reach = max(abs(end) for wiggles in result.wiggles for w in wiggles for end in (w.up, w.down))
    axes.set_ylim(-1.2 * reach, 2.6 * reach)  # with room for the legend
    axes.legend(loc="upper left")


def _first_layer(part: SubFigure, result: Gradient, columns: int) -> None:
    """The weights from all pixels to each neuron of layer 1, as images."""
    weights = layer_views(-result.gradient, result.sizes)[0][0]
    order = weights.norm(dim=1).topk(min(MOST, len(weights))).indices
    shown = sorted(order.tolist())
    few = "" if len(shown) == len(weights) else f", the {len(shown)} of {len(weights)} with the largest gradient"
    style.heading(part, f"Layer 1: weights from all pixels to each neuron{few}")
    limit = weights.abs().max().item()
    maps = list(part.subplots(-(-len(shown) // columns), columns, squeeze=False).flat)
    for axes, j in zip(maps, shown, strict=False):
        drawn = style.diverging(axes, weights[j].reshape(28, 28), limit)
        axes.set_title(f"neuron {j}", fontsize=9, fontweight="normal", pad=3)
    for axes in maps:
        style.hide_ticks(axes)
        axes.set_visible(bool(axes.images))
    style.colourbar(drawn, maps, "−∂C/∂w", 0.02)


def _later_layer(part: SubFigure, result: Gradient, layer: int) -> None:
    """The weights and the biases of one later layer."""
    weights, biases = (views[layer - 1] for views in layer_views(-result.gradient, result.sizes))
    style.heading(part, f"Layer {layer}: weights, and biases at the right")
    left, right = part.subplots(1, 2, width_ratios=(result.sizes[layer - 1], 1.5))
    limit = max(weights.abs().max().item(), biases.abs().max().item())
    style.diverging(left, weights, limit, aspect="auto")
    drawn = style.diverging(right, biases[:, None], limit, aspect="auto")
    left.set(xlabel=f"from neuron of layer {layer - 1}", ylabel=f"to neuron of layer {layer}")
    left.locator_params(integer=True)
    right.set(xticks=[], yticks=[])
    for axes in (left, right):
        axes.spines[:].set_visible(False)
    style.colourbar(drawn, right, "−∂C/∂θ", 0.9)
