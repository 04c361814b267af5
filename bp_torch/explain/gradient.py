"""The gradient: how sensitive the cost is to each weight and bias, and what a wiggle of two of them does to it.

    python -m bp_torch explain gradient

∇C is over all training examples, from ``backprop.backward``. A wiggle moves one weight up and down, and the cost is
computed at both ends.
"""

from collections.abc import Iterator
from functools import partial
from math import inf
from typing import NamedTuple

import torch
from matplotlib.figure import SubFigure
from torch import Tensor

from bp_torch.backprop import forward
from bp_torch.data import Examples
from bp_torch.explain import style
from bp_torch.explain.drawing import MOST, array, colourbar, diverging, draw_network, map_grid
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import GradientOptions
from bp_torch.explain.subject import Subject, UsageError, all_costs, full_gradient
from bp_torch.network import Network, layer_views, parameter_count
from bp_torch.text import column_table, number, times

PAIR = (style.LINES[0], style.LINES[1])  # the colours of the two weights, which say nothing about signs


class Wiggle(NamedTuple):
    """One parameter moved, by h and by −h."""

    position: int  # i, in θ
    up: float  # C(θ + h e_i) − C(θ)
    down: float  # C(θ − h e_i) − C(θ)
    predicted: float  # h ∂C/∂θ_i
    change: float  # half the difference of ``up`` and ``down``: h ∂C/∂θ_i, with an error of the order h³


def parameter_name(sizes: tuple[int, ...], index: int, short: bool = False) -> str:
    """The parameter at ``index`` of θ: "weight from pixel (14, 9) to neuron 3 of layer 1", or "W1: (14, 9) → 3".

    The neurons of the last layer are the outputs: "bias of output 2".

    Pixels are (row, column), and neurons count from 0, layers from 1. Raises ValueError where there is no parameter.
    """
    if not 0 <= index < parameter_count(sizes):
        raise ValueError(f"no parameter {index} among {parameter_count(sizes):,}")
    layer = 1
    while index >= (size := parameter_count(sizes[layer - 1 : layer + 1])):
        index, layer = index - size, layer + 1
    n_in, n_out = sizes[layer - 1 : layer + 1]
    if (j := index - n_in * n_out) >= 0:
        return f"b{layer}: {j}" if short else f"bias of {neuron_name(sizes, layer, j)}"
    j, k = divmod(index, n_in)
    pixel = f"({k // 28}, {k % 28})" if layer == 1 and n_in == 784 else ""
    if short:
        return f"W{layer}: {pixel or k} → {j}"
    source = f"pixel {pixel}" if pixel else f"neuron {k} of layer {layer - 1}"
    return f"weight from {source} to {neuron_name(sizes, layer, j)}"


def neuron_name(sizes: tuple[int, ...], layer: int, j: int) -> str:
    """Neuron j of a layer, which in the last layer is an output."""
    return f"output {j}" if layer == len(sizes) - 1 else f"neuron {j} of layer {layer}"


def sensitivity_order(gradient: Tensor) -> Tensor:
    """The indices of the components that are not zero, the largest first."""
    return gradient.abs().sort(descending=True, stable=True).indices[: int(gradient.count_nonzero())]


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
        theta[i], (up, down) = value, changes
        yield Wiggle(i, up, down, h * gradient[i].item(), (up - down) / 2)


def find_pair(gradient: Tensor, sizes: tuple[int, ...], ratio: float) -> tuple[int, int]:
    """The indices of the last layer's most sensitive weight, and of the one that is about ``ratio`` times less so."""
    last = layer_views(torch.arange(len(gradient), device=gradient.device), sizes)[0][-1].flatten()
    components = gradient.index_select(0, last).abs()
    order = sensitivity_order(components)
    if len(order) < 2:
        raise UsageError("the gradient is zero in almost every weight of the last layer: there is nothing to compare")
    others = components.index_select(0, order[1:])
    nearest = int((others * ratio / components.max()).log().abs().argmin())
    return int(last[order[0]]), int(last[order[1 + nearest]])


class Gradient(Idea):
    """∇C over the training examples, and the wiggles of two weights of the last layer."""

    def __init__(self, subject: Subject, options: GradientOptions) -> None:
        """Compute ∇C, and move two weights: by the whole step, and by half of it."""
        network, cost, training = subject.exact, subject.config.cost, subject.training
        self.caption, self.sizes, self.step = subject.caption, network.sizes, options.step
        self.gradient = full_gradient(network, training, cost)  # (P,)
        self.order = sensitivity_order(self.gradient)
        self.pair = find_pair(self.gradient, self.sizes, options.ratio)  # the more sensitive one first
        steps = (self.step, self.step / 2)
        wiggles = (wiggle(network, training, cost, self.gradient, list(self.pair), h) for h in steps)
        self.wiggles = list(zip(*wiggles, strict=True))  # of each of the pair
        first, second = (abs(self.gradient[i].item()) for i in self.pair)
        self.ratio = first / second  # so many times as sensitive is the cost to the first of the pair
        first, second = (abs(wiggles[0].change) for wiggles in self.wiggles)
        self.measured_ratio = first / second if second else inf
        last = len(self.gradient) - self.sizes[-1] * (self.sizes[-2] + 1)
        self.edges = [divmod(i - last, self.sizes[-2]) for i in self.pair]  # the pair as neurons, (to, from)
        zero = len(self.gradient) - len(self.order)
        self.counts = f"has {len(self.gradient):,} components, {zero:,} of them exactly zero"
        self.passed = forward(network, subject.example.x)

    def finding(self) -> str:
        """How much more one weight moves the cost than the other, measured and foretold."""
        return (
            f"A wiggle of one weight moves the cost {times(self.measured_ratio)} as much as of another; ∇C foretells "
            f"{times(self.ratio)}"
        )

    def table(self) -> str:
        """The wiggles of the pair, and the most sensitive parameters by name."""
        moved = [whole for whole, _ in self.wiggles]
        wiggles = column_table(
            (f"moved by ±{self.step:g}", "", [parameter_name(self.sizes, w.position) for w in moved]),
            ("∂C/∂θ", "+5 digits", [self.gradient[w.position] for w in moved]),
            ("foretold", "+5 digits", [w.predicted for w in moved]),
            ("cost changes by", "+5 digits", [w.change for w in moved]),
            ("off by", "2 digits", [abs(w.change / w.predicted - 1) for w in moved]),
        )
        shown = [*self.order[:12].tolist(), int(self.order[len(self.order) // 2])]
        names, values = [parameter_name(self.sizes, i) for i in shown], self.gradient.cpu()[shown]
        less = (values[0] / values).abs()
        sensitive = column_table(
            ("the most sensitive, and the one in the middle", "", [*names[:-1], "…", names[-1]]),
            ("∂C/∂θ", "+5 digits", [*values[:-1], "", values[-1]]),
            ("times less than the first", ",.3g", [*less[:-1], "", less[-1]]),
        )
        return (
            f"∇C {self.counts}. {self.caption}.\n\n{wiggles}\n\nThe first is {times(self.ratio)} the second; by the "
            f"wiggles, {times(self.measured_ratio)}.\n\n{sensitive}"
        )

    def rows(self, narrow: bool) -> list[Row]:
        """The two weights in the network, among all of their layer, and wiggled; then the whole vector as a map."""
        depth, columns = len(self.sizes) - 1, 4 if narrow else 8
        values = layer_views(-self.gradient, self.sizes)[0][-1]
        network = partial(draw_network, passed=self.passed, layer=depth, values=values, edges=self.edges)
        pair = [
            Panel("Two weights into the outputs", network, 4.4, 3.2),
            Panel("How sensitive the cost is to each weight into the outputs", self.draw_among, 3.2, 3.2),
            Panel(f"The same wiggle of each: {times(self.measured_ratio)} the change", self.draw_wiggles, 3.6, 3.6),
        ]
        neurons, lines = self.sizes[1], -(-min(MOST, self.sizes[1]) // columns)
        few = "" if neurons <= MOST else f", the {MOST} of {neurons} with the largest gradient"
        draw = partial(self.draw_first_layer, columns)
        first = Panel(f"Layer 1: weights from all pixels to each neuron{few}", draw, 1, 0.6 + 0.95 * lines)
        title, layers = "weights, and biases at the right", range(2, depth + 1)
        names = [f"Layer {l}" if l < depth else "Outputs" for l in layers]
        drawn = [partial(self.draw_later_layer, l) for l in layers]
        later = [Panel(f"{name}: {title}", draw) for name, draw in zip(names, drawn, strict=True)]
        return [(3.8, pair), (0.5 + 1.45 * lines, [first]), *([(3.4, later)] if later else [])]

    def draw_among(self, part: SubFigure) -> None:
        """All weights of the layer in order of sensitivity, the two marked."""
        axes = part.subplots()
        components = layer_views(self.gradient, self.sizes)[0][-1].flatten().abs()
        ordered = components.sort(descending=True).values
        axes.fill_between(range(1, len(ordered) + 1), array(ordered), color=style.FAINT, linewidth=0)
        for i, colour in zip(self.pair, PAIR, strict=True):
            size = abs(self.gradient[i].item())
            rank = 1 + int((ordered > size).sum())
            axes.plot([rank], [size], "o", color=colour, markersize=8)
            axes.annotate(number(size, 2), (rank, size), (8, 8), textcoords="offset points", size=10, weight="bold")
        axes.set(xlabel="rank of the weight", ylabel="|∂C/∂w|", ylim=(0, 1.15 * ordered[0].item()))

    def draw_wiggles(self, part: SubFigure) -> None:
        """How the cost changed as each of the two was moved, over what the gradient foretells."""
        axes, h = part.subplots(), self.step
        for i, wiggles, colour, name in zip(self.pair, self.wiggles, PAIR, ("the first", "the second"), strict=True):
            rise = h * self.gradient[i].item()
            axes.plot([-h, h], [-rise, rise], color=colour, linewidth=1.4, label=f"{name}, as ∂C/∂w foretells")
            for moved, w in zip((h, h / 2), wiggles, strict=True):
                axes.plot([-moved, moved], [w.down, w.up], "o", color=colour, markersize=6)
        axes.plot([], [], "o", color=style.SOFT, label="measured")
        axes.grid()
        reach = max(abs(end) for wiggles in self.wiggles for w in wiggles for end in (w.up, w.down))
        axes.set(xlabel="the weight is moved by", ylabel="the cost changes by", ylim=(-1.2 * reach, 2.6 * reach))
        axes.legend(loc="upper left")  # above the lines

    def draw_first_layer(self, columns: int, part: SubFigure) -> None:
        """The weights from all pixels to each neuron of layer 1, as images."""
        weights = layer_views(-self.gradient, self.sizes)[0][0]
        shown = sorted(weights.norm(dim=1).topk(min(MOST, len(weights))).indices.tolist())
        limit = weights.abs().max().item()
        colourbar(*map_grid(part, [(f"neuron {j}", weights[j], limit) for j in shown], columns), "−∂C/∂w", 0.02)

    def draw_later_layer(self, layer: int, part: SubFigure) -> None:
        """The weights and the biases of one later layer."""
        weights, biases = (views[layer - 1] for views in layer_views(-self.gradient, self.sizes))
        left, right = part.subplots(1, 2, width_ratios=(self.sizes[layer - 1], 1.5))
        limit = max(weights.abs().max().item(), biases.abs().max().item())
        diverging(left, weights, limit, aspect="auto")
        drawn = diverging(right, biases[:, None], limit, aspect="auto")
        into = "output" if layer == len(self.sizes) - 1 else f"neuron of layer {layer}"
        left.set(xlabel=f"from neuron of layer {layer - 1}", ylabel=f"to {into}")
        left.locator_params(integer=True)
        right.set(xticks=[], yticks=[])
        for axes in (left, right):
            axes.spines[:].set_visible(False)
        colourbar(drawn, right, "−∂C/∂θ", 0.9)
