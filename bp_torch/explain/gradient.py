"""The gradient: how sensitive the cost is to each weight and bias, by name, and whether a wiggle bears it out.

    python -m bp_torch explain gradient --wiggle

∇C is over all training examples, from ``backprop.backward``. A wiggle moves one parameter of θ and asks for the cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import nan
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from bp_torch.data import Examples
from bp_torch.explain import style
from bp_torch.explain.style import number, times
from bp_torch.explain.subject import CommonOptions, Subject, UsageError, each_cost, whole_gradient
from bp_torch.network import Network, layer_views, parameter_count

MADE_BY = ("backprop.forward", "backprop.costs", "backprop.backward")

IDEA = (
    "A direction in a space of thousands of dimensions cannot be pictured, but it can be read one number at a time. "
    "The size of each component says how strongly the cost answers to that one weight or bias: where one component "
    "is so many times another, the same small push at the first moves the cost that many times as much."
)


@dataclass(frozen=True)
class Options(CommonOptions):
    """Whether and how far the parameters are wiggled."""

    wiggle: bool = False
    """Move parameters from all ranks a little, one at a time, and see what the cost really does."""
    step: float = 1e-3
    """How far a wiggle goes, up and down."""

    def __post_init__(self) -> None:
        """Refuse a wiggle that is none."""
        super().__post_init__()
        if not 0 < self.step < 1:
            raise ValueError(f"--step: wanted above 0 and below 1, got {self.step}")


class Wiggle(NamedTuple):
    """One parameter moved: C(θ + h e) − C(θ), C(θ − h e) − C(θ), and what the gradient foretells for +h."""

    place: int
    up: float
    down: float
    foretold: float

    @property
    def change(self) -> float:
        """Half of what lies between up and down: h ∂C/∂θ_i, but for a term in h³."""
        return (self.up - self.down) / 2


class Gradient(NamedTuple):
    """How sensitive the cost is.

    Attributes:
        sizes: of the network.
        gradient: ∇C over all training examples, (P,), float64.
        order: the places of all components but those that are zero, the most sensitive first.
        step: h, how far the wiggles go.
        wiggles: of some components from all ranks, in their order; empty where none were asked for.
        caption: which network this is.
    """

    sizes: tuple[int, ...]
    gradient: Tensor
    order: Tensor
    step: float
    wiggles: list[Wiggle]
    caption: str

    @property
    def ratio(self) -> float:
        """How many times more sensitive the cost is to the first than to the last."""
        return self._over(-1)

    @property
    def over_middle(self) -> float:
        """The same for the component in the middle of the order."""
        return self._over(len(self.order) // 2)

    def _over(self, rank: int) -> float:
        first, other = self.gradient[self.order[[0, rank]]].abs().tolist()
        return float(first / other)


def parameter_name(sizes: tuple[int, ...], index: int) -> str:
    """What the parameter at ``index`` of θ is: "weight from pixel (14, 9) to neuron 3 of layer 1".

    Pixels are (row, column), and neurons count from 0, layers from 1, the last layer being the outputs. Raises
    ValueError for an index that no parameter has.
    """
    if not 0 <= index < parameter_count(sizes):
        raise ValueError(f"no parameter {index} among {parameter_count(sizes):,}")
    for layer, (n_in, n_out) in enumerate(pairwise(sizes), 1):
        to = "{} of layer " + str(layer)
        if index < n_in * n_out:
            j, k = divmod(index, n_in)
            source = (
                f"pixel ({k // 28}, {k % 28})" if layer == 1 and n_in == 784 else f"neuron {k} of layer {layer - 1}"
            )
            return f"weight from {source} to neuron {to.format(j)}"
        index -= n_in * n_out
        if index < n_out:
            return f"bias of neuron {to.format(index)}"
        index -= n_out
    raise AssertionError("the index was checked")


def sensitivity_order(gradient: Tensor) -> Tensor:
    """The places of the components that are not zero, the largest first."""
    order = gradient.abs().sort(descending=True, stable=True).indices
    return order[: int((gradient != 0).sum())]


def spread(order: Tensor, n: int) -> list[int]:
    """``n`` places from the first of ``order`` to its last, evenly through the ranks."""
    ranks = torch.linspace(0, len(order) - 1, n).round().long().unique()
    return [int(i) for i in order[ranks.to(order.device)]]


def wiggle(
    network: Network, examples: Examples, cost: str, gradient: Tensor, places: list[int], h: float
) -> Iterator[Wiggle]:
    """Move each θ_i of ``places`` up and down by ``h``, and put it back.

    The costs are subtracted example by example before they are averaged, so that the smallest change keeps its digits.
    """
    theta, here = network.parameters, each_cost(network, examples, cost)
    for i in places:
        value, changes = theta[i].item(), []
        for moved in (value + h, value - h):
            theta[i] = moved
            changes.append((each_cost(network, examples, cost) - here).mean().item())
        theta[i] = value
        yield Wiggle(i, changes[0], changes[1], h * gradient[i].item())


def explain(subject: Subject, options: Options) -> Gradient:
    """∇C over the training examples, and the wiggles where ``options`` ask for them."""
    network, cost = subject.exact, subject.config.cost
    gradient = whole_gradient(network, subject.training, cost)
    order = sensitivity_order(gradient)
    if not len(order):
        raise UsageError("the gradient is zero in every component: there is nothing to compare")
    moved = spread(order, 10) if options.wiggle else []
    wiggles = wiggle(network, subject.training, cost, gradient, moved, options.step)
    found = list(tqdm(wiggles, desc="wiggles", total=len(moved), leave=False, disable=None))
    return Gradient(network.sizes, gradient, order, options.step, found, subject.caption)


def finding(result: Gradient) -> str:
    """What the numbers say."""
    most, least = (parameter_name(result.sizes, int(result.order[rank])) for rank in (0, -1))
    return (
        f"A wiggle of the {most} changes the cost {times(result.over_middle)} as much as one of a typical parameter, "
        f"and {times(result.ratio)} as much as one of the {least}"
    )


def table(result: Gradient) -> str:
    """The most and the least sensitive parameters by name, and the wiggles."""
    largest = result.gradient[result.order[0]].abs().item()
    silent = len(result.gradient) - len(result.order)

    def row(i: int) -> list[str]:
        value = result.gradient[i].item()
        return [parameter_name(result.sizes, i), f"{value:+.4e}", f"{abs(largest / value):,.4g}"]

    ends = result.order.tolist()
    middle = ends[len(ends) // 2]
    rows = [*map(row, ends[:8]), ["…", "", ""], row(middle), ["…", "", ""], *map(row, ends[-min(8, len(ends)) :])]
    parts = [
        f"∇C has {len(result.gradient):,} components, {silent:,} of them exactly zero. {result.caption}.",
        style.text_table(["parameter", "∂C/∂θ", "times less than the first"], rows),
        f"The first is {times(result.ratio)} the last, and {times(result.over_middle)} the one in the middle.",
    ]
    if result.wiggles:
        first = result.wiggles[0].change
        rows = [
            [
                parameter_name(result.sizes, w.place),
                f"{w.foretold:+.4e}",
                f"{w.change:+.4e}",
                f"{abs(w.change / w.foretold - 1):.1e}",
                f"{abs(first / w.change) if w.change else nan:,.4g}",
                f"{(w.up + w.down) / 2:+.1e}",
            ]
            for w in result.wiggles
        ]
        header = [f"moved by ±{result.step:g}", "foretold", "cost changes by", "off by", "times less", "bend (h² term)"]
        parts.append(style.text_table(header, rows))
    return "\n\n".join(parts)


@style.styled
def figure(result: Gradient) -> Figure:
    """The vector as a map, layer by layer; its components in order of size; and the wiggles."""
    silent = len(result.gradient) - len(result.order)
    note = (
        f"All {len(result.gradient):,} components of ∇C over the training examples; {silent:,} of them are exactly "
        "zero. Drawn is −∂C/∂θ: a blue weight or bias should go up, an orange one down, and a pale one hardly matters."
    )
    weights, biases = layer_views(-result.gradient, result.sizes)
    shown = sorted(weights[0].norm(dim=1).topk(min(16, len(weights[0]))).indices.tolist())
    lines = -(-len(shown) // 8)
    low = 0.55 + 1.38 * lines
    page = style.Page(low + 7.6, finding(result), note, result.caption)
    limit = result.gradient.abs().quantile(0.995).item()
    all_of = "" if len(shown) == len(weights[0]) else f", the {len(shown)} neurons it matters most to"
    page.text(style.MARGIN, 0.12, f"Layer 1: from every pixel to each neuron{all_of}", weight="bold", size=11)
    for i, j in enumerate(shown):
        axes = page.axes(style.MARGIN + 1.3 * (i % 8), 0.72 + 1.4 * (i // 8), 1.15, 1.15)
        drawn = style.diverging(axes, weights[0][j].reshape(28, 28), limit)
        style.bare(axes)
        axes.set_title(f"neuron {j}", fontsize=9, fontweight="normal", pad=3)
    page.colourbar(drawn, 10.95, 0.72, 1.4 * lines - 0.25, "−∂C/∂θ")
    _later_layers(page, low, weights, biases, limit)
    _ranks(page, low + 4.0, result)
    return page.figure


def _later_layers(page: style.Page, top: float, weights: list[Tensor], biases: list[Tensor], limit: float) -> None:
    """The biases of every layer as a column, beside its weights (those of layer 1 are above, as images)."""
    left, width = style.MARGIN + 0.4, (style.WIDTH - 2.6) / max(len(weights) - 1, 1)
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True), 1):
        if layer > 1:
            axes = page.axes(left + 0.35, top + 0.5, width - 1.35, 2.5, f"Layer {layer}: weights")
            style.diverging(axes, w, limit, aspect="auto")
            axes.set(xlabel=f"from neuron of layer {layer - 1}", ylabel=f"to neuron of layer {layer}")
            left += width - 0.75
        axes = page.axes(left, top + 0.5, 0.22, 2.5, "biases")
        style.diverging(axes, b[:, None], limit, aspect="auto")
        axes.set_xticks([])
        if layer == 1:
            axes.set_ylabel("to neuron of layer 1")
        else:
            axes.set_yticks([])
        left += 0.75


def _ranks(page: style.Page, top: float, result: Gradient) -> None:
    """Every component in order of size, and beside it what the wiggles did."""
    sizes = result.gradient[result.order].abs()
    narrow = 5.0 if result.wiggles else 10.4
    axes = page.axes(1.05, top + 0.35, narrow, 2.7, "All components, in order of size")
    axes.semilogy(range(1, len(sizes) + 1), style.array(sizes), color=style.SOFT, linewidth=1.6)
    for rank, align, side, colour in ((1, "left", 1, style.RAISE), (len(sizes), "right", -1, style.LOWER)):
        size, name = sizes[rank - 1].item(), parameter_name(result.sizes, int(result.order[rank - 1]))
        axes.plot([rank], [size], "o", color=colour, markersize=8)
        axes.annotate(
            f"{number(size, 2)}\n{name}", (rank, size), (9 * side, 5), textcoords="offset points", ha=align, size=9
        )
    axes.set_ylim(sizes[-1].item() / 10, 30 * (sizes[0] / sizes[-1]).item() ** 0.1 * sizes[0].item())
    axes.set(xlabel="rank", ylabel="|∂C/∂θ|")
    axes.grid(axis="y")
    if result.wiggles:
        foretold = [abs(w.foretold) for w in result.wiggles]
        found = [abs(w.change) for w in result.wiggles]
        axes = page.axes(7.35, top + 0.35, 4.2, 2.7, f"Each moved by ±{result.step:g}: what the cost did")
        ends = (min(foretold) / 3, max(foretold) * 3)
        axes.loglog(ends, ends, color=style.SOFT, linewidth=1, label="as the gradient foretells")
        axes.loglog(foretold, found, "o", color=style.RAISE, markersize=7, label="measured")
        axes.set(xlabel="foretold change of the cost, h |∂C/∂θ|", ylabel="measured change")
        axes.grid()
        axes.legend(loc="upper left")
        first, last = result.wiggles[0], result.wiggles[-1]
        ratio = (
            f"{times(abs(first.change / last.change))} as much as the least"
            if last.change
            else "and the least does not"
        )
        axes.text(
            0.98,
            0.04,
            f"the most sensitive moves the cost\n{ratio},\nforetold: {times(result.ratio)}",
            transform=axes.transAxes,
            ha="right",
            size=9,
        )
