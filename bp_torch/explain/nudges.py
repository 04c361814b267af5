"""Nudges: what one training example wants of every output, before training and after; three ways to move one output.

    python -m bp_torch explain nudges --digit 2
    python -m bp_torch explain nudges --index 1234 --neuron 8

A nudge is minus a derivative of the cost: ``costs.Cost.derivative`` gives those of the outputs, BP3, BP4 and
``input_gradient`` those of the three ways.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from bp_torch import text
from bp_torch.backprop import Backward, Forward, input_gradient
from bp_torch.costs import COSTS
from bp_torch.explain import style
from bp_torch.explain.drawing import draw_network
from bp_torch.explain.subject import Example, ExampleOptions, Subject, check_digit, choose_example, forward_and_backward
from bp_torch.network import layer_views

MADE_BY = ("backprop.output_delta", "backprop.bias_gradient", "backprop.weight_gradient", "backprop.input_gradient")

IDEA = (
    "One image wants one output up and nine down, each the more the further it is from its target. An output can be "
    "moved in three ways. Its bias counts in full. A weight counts as much as the activation that it multiplies, so "
    "the weights from bright neurons have the most effect. An activation before it counts as much as its weight: "
    "neurons joined by a positive weight should become brighter, neurons joined by a negative one dimmer."
)

SHOWN = 16
"""Weights and activations that the picture shows, at most."""


@dataclass(frozen=True)
class Options(ExampleOptions):
    """The example, and the output whose three ways are ranked."""

    neuron: int | None = None
    """The output, 0 to 9. None: the one for the digit that the image shows."""

    def __post_init__(self) -> None:
        """Check the digit and the output."""
        super().__post_init__()
        check_digit(self.neuron, "--neuron")


class Ways(NamedTuple):
    """The ways in which output ``neuron`` could be moved, k counting the neurons before it.

    Attributes:
        neuron: j.
        bias: −∂C/∂b_j.
        weights: −∂C/∂W_jk, (n_{L−1},): −δ_j in proportion to the activations.
        activations: the part of −∂C/∂a_k that comes from neuron j, (n_{L−1},): −δ_j in proportion to the weights.
        a: a^{L−1}, (n_{L−1},).
        w: W_jk, (n_{L−1},).
    """

    neuron: int
    bias: float
    weights: Tensor
    activations: Tensor
    a: Tensor
    w: Tensor

    def ranked(self) -> list[tuple[str, float]]:
        """Every way by name with its nudge, the largest first."""
        ways = [("the bias", self.bias)]
        for k, (nudge, a) in enumerate(zip(self.weights.tolist(), self.a.tolist(), strict=True)):
            ways.append((f"the weight from neuron {k} (activation {text.number(a, 2)})", nudge))
        for k, (nudge, w) in enumerate(zip(self.activations.tolist(), self.w.tolist(), strict=True)):
            ways.append((f"the activation of neuron {k} (weight {text.number(w, 2)})", nudge))
        return sorted(ways, key=lambda way: -abs(way[1]))


class Wanted(NamedTuple):
    """What the example wants of one network: what the network computed, and −∂C/∂a^L (n_L,), or −∂C/∂z^L."""

    passed: Forward
    nudges: Tensor

    @property
    def outputs(self) -> Tensor:
        """a^L, (n_L,)."""
        return self.passed.activations[-1][0]


class Nudges(NamedTuple):
    """What one example wants.

    Attributes:
        example: the image and its label.
        networks: the untrained network, then the trained one if there is one, by name.
        cost: its name.
        ways: of one output of the first network.
        caption: which network this is.
    """

    example: Example
    networks: dict[str, Wanted]
    cost: str
    ways: Ways
    caption: str

    @property
    def first(self) -> Wanted:
        """What the example wants of the untrained network."""
        return next(iter(self.networks.values()))

    @property
    def quantity(self) -> str:
        """What ``nudges`` would change."""
        return "weighted sum" if COSTS[self.cost].absorbs else "activation"


def output_nudges(outputs: Tensor, y: Tensor, cost: str) -> Tensor:
    """How much each output should change, (B, n_L), with its sign: minus the cost's derivative."""
    return -COSTS[cost].derivative(outputs, y)


def ways_to_move(passed: Forward, back: Backward, neuron: int) -> Ways:
    """The three ways to move output ``neuron``, for the one example that went forward and back."""
    network = passed.network
    delta, w = back.deltas[-1], network.weights[-1]
    weights, biases = layer_views(back.gradient, network.sizes)
    alone = torch.zeros_like(delta)
    alone[0, neuron] = delta[0, neuron]
    activations = -input_gradient(alone, w)[0]
    bias = -biases[-1][neuron].item()
    return Ways(neuron, bias, -weights[-1][neuron], activations, passed.activations[-2][0], w[neuron])


def explain(subject: Subject, options: Options) -> Nudges:
    """What the example that ``options`` name wants of the outputs, before training and after."""
    example, cost = choose_example(subject, options), subject.config.cost
    passes = {name: forward_and_backward(network, example, cost) for name, network in subject.before_and_after.items()}
    networks = {
        name: Wanted(passed, output_nudges(passed.activations[-1], example.y, cost)[0])
        for name, (passed, _) in passes.items()
    }
    neuron = example.label if options.neuron is None else options.neuron
    return Nudges(example, networks, cost, ways_to_move(*passes["untrained"], neuron), subject.caption)


def finding(result: Nudges) -> str:
    """What the numbers say."""
    label, nudges = result.example.label, result.first.nudges.tolist()
    others = [j for j in range(len(nudges)) if j != label]
    furthest = min(others, key=lambda j: nudges[j])
    down = sum(nudges[j] < 0 for j in others)
    return (
        f"This {label} wants output {label} up by {_signed(nudges[label])} and {down} others down, output {furthest} "
        f"most, by {_signed(nudges[furthest])}: each in proportion to how far off it is"
    )


def _signed(nudge: float) -> str:
    """A nudge with its sign, in two digits."""
    return f"{'' if nudge < 0 else '+'}{text.number(nudge, 2)}"


def table(result: Nudges) -> str:
    """The outputs with their nudges in each network, and the ways to move one of them in their order."""
    header = ["output", "wanted"]
    rows = [[f"{j}", f"{int(y)}"] for j, y in enumerate(result.example.y[0].tolist())]
    for name, wanted in result.networks.items():
        header += [f"{name}: is", f"nudge of its {result.quantity}"]
        for row, a, nudge in zip(rows, wanted.outputs.tolist(), wanted.nudges.tolist(), strict=True):
            row += [f"{a:.4f}", f"{nudge:+.4e}"]
    ways = text.table(
        [f"untrained: bang for the buck at output {result.ways.neuron}", "nudge"],
        [[name, f"{nudge:+.4e}"] for name, nudge in result.ways.ranked()],
    )
    return f"What {result.example.name} wants. {result.caption}.\n\n{text.table(header, rows)}\n\n{ways}"


@style.styled
def figure(result: Nudges, narrow: bool = False) -> Figure:
    """The image and the network; the outputs with arrows as long as their nudges; one output's three ways."""
    note = (
        f"The example is {result.example.name}. Blue raises, orange lowers. A nudge is minus the derivative of the "
        f"cost by an output's {result.quantity}: {_meaning(result.cost)} The ways are minus derivatives of the same "
        "cost, "
        "each panel on a scale of its own."
    )
    nudged = [style.Panel(partial(_outputs, result=result, name=name), 1.0, 3.8) for name in result.networks]
    shown = min(SHOWN, len(result.ways.a))
    high = 1.0 + 0.24 * shown
    rows: list[style.Row] = [
        (3.5, [style.Panel(partial(_network, result=result), 1, 3.1)]),
        (4.0, nudged),
        (
            high,
            [
                style.Panel(partial(_bias, result=result, rows=1 if narrow else shown), 2.2, 1.5),
                style.Panel(partial(_weights, result=result), 4, high),
                style.Panel(partial(_activations, result=result), 4, high),
            ],
        ),
    ]
    return style.compose(rows, finding(result), note, result.caption, narrow)


def _meaning(cost: str) -> str:
    """How a nudge is to be read."""
    if cost == "quadratic":
        return "twice the distance to what is wanted, so up to 2. It says how much the cost gains, not how far to go."
    return "it says how much the cost gains, not how far to go."


def _network(part: SubFigure, result: Nudges) -> None:
    """The untrained network with the wishes of its outputs, and the edges into the one whose ways are below."""
    axes = part.subplots()
    passed, depth = result.first.passed, result.first.passed.network.depth
    draw_network(axes, passed, layer=depth, neuron=result.ways.neuron, wishes={depth: result.first.nudges})
    style.heading(
        part, f"Untrained, with the {result.example.label} in it: wishes, and weights into output {result.ways.neuron}"
    )


def _outputs(part: SubFigure, result: Nudges, name: str) -> None:
    """The ten activations of a network as dots beside their targets, and the nudges as arrows."""
    wanted = result.networks[name]
    style.heading(part, f"{name.capitalize()}: what it says, and what the {result.example.label} wants")
    dots, arrows = part.subplots(1, 2)
    rows, outputs = range(len(wanted.outputs)), wanted.outputs.tolist()
    dots.hlines(rows, 0, outputs, color=style.FAINT, linewidth=2, zorder=1)
    dots.plot(outputs, rows, "o", color=style.INK, markersize=7, label="is")
    if min(outputs) >= 0 and max(outputs) <= 1:
        (rings,) = dots.plot(result.example.y[0].tolist(), rows, "o", markersize=11, label="wanted")
        rings.set(color="none", markeredgecolor=style.SOFT)
        dots.set(xlim=(-0.09, 1.09), xticks=[0, 0.5, 1])
        dots.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=2, handletextpad=0.1, columnspacing=0.8)
    dots.set(xlabel="output", ylabel="output neuron")
    reach = 2.1 * max(each.nudges.abs().max().item() for each in result.networks.values()) or 1.0
    for j, nudge in zip(rows, wanted.nudges.tolist(), strict=True):
        _arrow(arrows, j, nudge, small=0.03 * reach)
    arrows.axvline(0, color=style.SOFT, linewidth=0.8)
    arrows.set(xlabel=f"nudge, −∂C/∂{'z' if COSTS[result.cost].absorbs else 'a'}", xlim=(-reach, reach))
    arrows.locator_params(axis="x", nbins=4)
    for axes in (dots, arrows):
        axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=rows)
        axes.axhspan(result.example.label - 0.5, result.example.label + 0.5, color="#eef3f8", zorder=0, linewidth=0)


def _arrow(axes: Axes, row: float, nudge: float, small: float) -> None:
    """An arrow from zero to ``nudge`` with its number, or a dot below ``small``, where a head has no room."""
    colour = style.RAISE if nudge >= 0 else style.LOWER
    if abs(nudge) < small:
        axes.plot(nudge, row, "o", color=colour, markersize=3.5)
    else:
        head = {"arrowstyle": "-|>,head_width=.28,head_length=.5", "linewidth": 2.4, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (nudge, row), (0, row), arrowprops={**head, "color": colour})
    style.label_end(axes, nudge, row, _signed(nudge), color=colour)


def _bias(part: SubFigure, result: Nudges, rows: int) -> None:
    """The first way, in the first of so many rows."""
    style.heading(part, f"Output {result.ways.neuron}: 1. its bias")
    axes = part.subplots()
    style.signed_bars(axes, torch.tensor([result.ways.bias]), ["bias"], 2.2 * abs(result.ways.bias))
    style.label_end(axes, result.ways.bias, 0, _signed(result.ways.bias))
    axes.set(xlabel="−∂C/∂b, in full", ylim=(rows - 0.5, -0.5))


def _weights(part: SubFigure, result: Nudges) -> None:
    """The second way."""
    style.heading(part, _counted("2. Its weights", result.ways.a))
    names = [f"from {k}  (a = {text.number(a, 2)})" for k, a in enumerate(result.ways.a.tolist())]
    _way(part.subplots(), result.ways.weights, names).set_xlabel("−∂C/∂W, in proportion to a")


def _activations(part: SubFigure, result: Nudges) -> None:
    """The third way."""
    style.heading(part, _counted("3. The activations before it", result.ways.a))
    names = [f"of {k}  (W = {text.number(w, 2)})" for k, w in enumerate(result.ways.w.tolist())]
    _way(part.subplots(), result.ways.activations, names).set_xlabel("−∂C/∂a, in proportion to W")


def _counted(title: str, a: Tensor) -> str:
    """A title that says how many of the neurons before are left out."""
    return title if len(a) <= SHOWN else f"{title}: the {SHOWN} largest of {len(a)}"


def _way(axes: Axes, nudges: Tensor, names: list[str]) -> Axes:
    """The nudges of one way, the largest first, on their own scale."""
    order = nudges.abs().sort(descending=True, stable=True).indices[:SHOWN]
    style.signed_bars(axes, nudges.index_select(0, order), [names[k] for k in order.tolist()])
    return axes
