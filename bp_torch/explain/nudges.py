"""Nudges: what one training example wants of every output, and the three ways in which one output could get there.

    python -m bp_torch explain nudges --digit 2
    python -m bp_torch explain nudges --index 1234 --neuron 8

A nudge is minus a derivative of the cost: ``costs.Cost.derivative`` gives those of the outputs, BP3, BP4 and
``input_gradient`` those of the three ways.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from bp_torch import text
from bp_torch.backprop import Backward, Forward, input_gradient
from bp_torch.costs import COSTS
from bp_torch.explain import style
from bp_torch.explain.subject import Example, ExampleOptions, Subject, check_digit, choose_example, forward_and_backward
from bp_torch.network import layer_views

MADE_BY = ("backprop.output_delta", "backprop.bias_gradient", "backprop.weight_gradient", "backprop.input_gradient")

IDEA = (
    "One image wants one output up and nine down, each the more the further it is from its target. An output can be "
    "moved in three ways. Its bias counts in full. A weight counts as much as the activation that it multiplies, so "
    "the weights from bright neurons have the most effect. An activation before it counts as much as its weight: "
    "neurons joined by a positive weight should become brighter, neurons joined by a negative one dimmer."
)


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


class Nudges(NamedTuple):
    """What one example wants.

    Attributes:
        example: the image and its label.
        outputs: a^L, (n_L,).
        nudges: −∂C/∂a^L, (n_L,), or −∂C/∂z^L where the cost absorbs φ′.
        quantity: "activation" or "weighted sum": what ``nudges`` would change.
        ways: of one output.
        caption: which network this is.
    """

    example: Example
    outputs: Tensor
    nudges: Tensor
    quantity: str
    ways: Ways
    caption: str


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
    """The nudges for the example and the output that ``options`` name."""
    example, cost = choose_example(subject, options), subject.config.cost
    passed, back = forward_and_backward(subject.exact, example, cost)
    outputs = passed.activations[-1]
    return Nudges(
        example,
        outputs[0],
        output_nudges(outputs, example.y, cost)[0],
        "weighted sum" if COSTS[cost].absorbs else "activation",
        ways_to_move(passed, back, example.label if options.neuron is None else options.neuron),
        subject.caption,
    )


def finding(result: Nudges) -> str:
    """What the numbers say."""
    label, nudges = result.example.label, result.nudges.tolist()
    down = min((j for j in range(len(nudges)) if j != label), key=lambda j: nudges[j])
    strongest, _ = result.ways.ranked()[0]
    return (
        f"This {label} nudges output {label} by {_signed(nudges[label])} and, of the others, output {down} most, by "
        f"{_signed(nudges[down])}; what moves output {result.ways.neuron} most is {strongest}"
    )


def _signed(nudge: float) -> str:
    """A nudge with its sign, in two digits."""
    return f"{'' if nudge < 0 else '+'}{text.number(nudge, 2)}"


def table(result: Nudges) -> str:
    """The outputs with their nudges, and the ways to move one of them in their order."""
    columns = zip(result.outputs.tolist(), result.example.y[0].tolist(), result.nudges.tolist(), strict=True)
    outputs = text.table(
        ["output", "is", "wanted", f"nudge of its {result.quantity}"],
        [[f"{j}", f"{a:.4f}", f"{int(y)}", f"{nudge:+.4e}"] for j, (a, y, nudge) in enumerate(columns)],
    )
    ways = text.table(
        [f"bang for the buck at output {result.ways.neuron}", "nudge"],
        [[name, f"{nudge:+.4e}"] for name, nudge in result.ways.ranked()[:16]],
    )
    return f"What {result.example.name} wants. {result.caption}.\n\n{outputs}\n\n{ways}"


@style.styled
def figure(result: Nudges) -> Figure:
    """The image, the outputs with arrows as long as their nudges, and one output's three ways, ranked."""
    note = (
        f"The example is {result.example.name}. Blue raises, orange lowers. An arrow is as long as the nudge, which is "
        f"minus the derivative of the cost by the output's {result.quantity}. The bars below are minus derivatives of "
        "the cost too, all on one scale."
    )
    figure = style.new_figure(8.4, finding(result), note, result.caption)
    upper, lower = style.parts(figure, 2, 1, height_ratios=(11, 10))
    image, dots, arrows = upper.subplots(1, 3, width_ratios=(3, 3.2, 3.9))
    style.digit(image, result.example.x, f"The example: {result.example.label}")
    image.set_anchor("NW")
    _outputs(dots, arrows, result)
    _ways(lower, result.ways)
    return figure


def _outputs(dots: Axes, arrows: Axes, result: Nudges) -> None:
    """The ten activations as dots beside their targets, and the nudges as arrows."""
    rows, outputs = range(len(result.outputs)), result.outputs.tolist()
    dots.hlines(rows, 0, outputs, color=style.FAINT, linewidth=2, zorder=1)
    dots.plot(outputs, rows, "o", color=style.INK, markersize=7, label="is")
    if min(outputs) >= 0 and max(outputs) <= 1:
        (rings,) = dots.plot(result.example.y[0].tolist(), rows, "o", markersize=11, label="wanted")
        rings.set(color="none", markeredgecolor=style.SOFT)
        dots.set_xlim(-0.07, 1.07)
        dots.legend(loc="lower right", bbox_to_anchor=(1.06, 0.98), ncols=2, handletextpad=0.1, columnspacing=0.8)
    dots.set(title="What the network says", xlabel="output", ylabel="output neuron")
    reach = 1.5 * result.nudges.abs().max().item() or 1.0
    for j, nudge in zip(rows, result.nudges.tolist(), strict=True):
        _arrow(arrows, j, nudge, small=0.03 * reach)
    arrows.axvline(0, color=style.SOFT, linewidth=0.8)
    title, label = "What the example wants of it", f"nudge of the {result.quantity}"
    arrows.set(title=title, xlabel=label, xlim=(-reach, reach))
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


def _ways(part: SubFigure, ways: Ways) -> None:
    """Three panels with one scale: the bias, the weights, the activations before, each its eight largest."""
    weights, activations = (
        nudges.abs().sort(descending=True, stable=True).indices[:8].tolist()
        for nudges in (ways.weights, ways.activations)
    )
    panels = [
        ("1. Its bias", "∂b, in full", {"bias": ways.bias}),
        (
            "2. Its weights",
            "∂W, in proportion to a before it",
            {f"from {k}  (a = {text.number(ways.a[k].item(), 2)})": ways.weights[k].item() for k in weights},
        ),
        (
            "3. The activations before it",
            "∂a, in proportion to W",
            {f"of {k}  (W = {text.number(ways.w[k].item(), 2)})": ways.activations[k].item() for k in activations},
        ),
    ]
    style.heading(part, f"Three ways to move output {ways.neuron}")
    limit = 1.1 * max(abs(nudge) for *_, bars in panels for nudge in bars.values())
    rows = max(len(bars) for *_, bars in panels)
    for axes, (title, by, bars) in zip(part.subplots(1, 3, width_ratios=(2, 2.7, 2.7)), panels, strict=True):
        style.signed_bars(axes, torch.tensor(list(bars.values())), list(bars), limit)
        axes.set(title=title, xlabel=f"nudge, −∂C/{by}", ylim=(rows - 0.5, -0.5))
