"""Nudges: what one training example wants of every output, and the three ways in which one output could get there.

    python -m bp_torch explain nudges --digit 2
    python -m bp_torch explain nudges --index 1234 --neuron 8

The wants come from the cost (``costs.Cost.error``, which BP1 starts from), the three ways are BP3, BP4 and ``desires``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bp_torch.backprop import Trace, desires
from bp_torch.costs import COSTS
from bp_torch.explain import style
from bp_torch.explain.style import number
from bp_torch.explain.subject import Example, ExampleOptions, Subject, check_digit, choose_example, look
from bp_torch.network import Network

MADE_BY = ("backprop.output_delta", "backprop.bias_gradient", "backprop.weight_gradient", "backprop.desires")

IDEA = (
    "One image wants one output up and nine down, each the more the further it is from where it belongs. An output can "
    "be moved in three ways. Its bias counts in full. A weight counts as much as the activation that comes through it, "
    "so the weights from bright neurons repay a change best. An activation before it counts as much as its weight: "
    "what is joined by a positive weight should brighten, what is joined by a negative one should dim."
)


@dataclass(frozen=True)
class Options(ExampleOptions):
    """The example, and the output whose three ways are ranked."""

    neuron: int | None = None
    """The output, 0 to 9. None: the one for the digit that the image shows."""

    def __post_init__(self) -> None:
        """Refuse an output that is none."""
        super().__post_init__()
        check_digit(self.neuron, "--neuron")


class Avenues(NamedTuple):
    """The ways in which output ``neuron`` could be moved, k counting the neurons before it.

    Attributes:
        neuron: j.
        bias: −∂C/∂b_j.
        weights: −∂C/∂W_jk, (n_{L−1},): −δ_j in proportion to the activations.
        activations: the part of −∂C/∂a_k that is neuron j's, (n_{L−1},): −δ_j in proportion to the weights.
        before: a^{L−1}, (n_{L−1},).
        w: W_jk, (n_{L−1},).
    """

    neuron: int
    bias: float
    weights: Tensor
    activations: Tensor
    before: Tensor
    w: Tensor

    def ranked(self) -> list[tuple[str, float]]:
        """Every way by name with its nudge, the most bang for the buck first."""
        ways = [("the bias", self.bias)]
        for k, (nudge, a) in enumerate(zip(self.weights.tolist(), self.before.tolist(), strict=True)):
            ways.append((f"the weight from neuron {k} (activation {number(a, 2)})", nudge))
        for k, (nudge, w) in enumerate(zip(self.activations.tolist(), self.w.tolist(), strict=True)):
            ways.append((f"the activation of neuron {k} (weight {number(w, 2)})", nudge))
        return sorted(ways, key=lambda way: -abs(way[1]))


class Nudges(NamedTuple):
    """What one example wants.

    Attributes:
        example: the image and its label.
        outputs: a^L, (n_L,).
        nudges: −∂C/∂a^L, (n_L,), or −∂C/∂z^L where the cost has φ′ inside.
        of: "activation" or "weighted sum": what ``nudges`` would change.
        avenues: of one output.
        caption: which network this is.
    """

    example: Example
    outputs: Tensor
    nudges: Tensor
    of: str
    avenues: Avenues
    caption: str


def output_nudges(outputs: Tensor, y: Tensor, cost: str) -> Tensor:
    """How much each output should change, (B, n_L), with its sign: minus the cost's ``error``."""
    return -COSTS[cost].error(outputs, y, torch.empty_like(outputs))


def avenues(network: Network, trace: Trace, neuron: int) -> Avenues:
    """The three ways to move output ``neuron``, for the one example whose ``trace`` went forward and back."""
    delta, w = trace.deltas[-1], network.weights[-1]
    alone = torch.zeros_like(delta)
    alone[0, neuron] = delta[0, neuron]
    return Avenues(
        neuron,
        -trace.bias_gradients[-1][neuron].item(),
        -trace.weight_gradients[-1][neuron],
        -desires(alone, w)[0],
        trace.activations[-2][0],
        w[neuron],
    )


def explain(subject: Subject, options: Options) -> Nudges:
    """The nudges for the example and the output that ``options`` name."""
    example, network, cost = choose_example(subject, options), subject.exact, subject.config.cost
    trace = look(network, example, cost)
    neuron = example.label if options.neuron is None else options.neuron
    return Nudges(
        example,
        trace.activations[-1][0],
        output_nudges(trace.activations[-1], example.y, cost)[0],
        "weighted sum" if COSTS[cost].absorbs else "activation",
        avenues(network, trace, neuron),
        subject.caption,
    )


def finding(result: Nudges) -> str:
    """What the numbers say."""
    label, wanted = result.example.label, result.nudges
    others = [j for j in range(len(wanted)) if j != label]
    down = min(others, key=lambda j: wanted[j].item())
    best, _ = result.avenues.ranked()[0]
    return (
        f"This {label} nudges output {label} by {_signed(wanted[label].item())} and, of the others, output {down} "
        f"most, by {_signed(wanted[down].item())}; the best lever on output {result.avenues.neuron} is {best}"
    )


def _signed(nudge: float) -> str:
    """A nudge with its sign, in two digits."""
    return f"{'' if nudge < 0 else '+'}{number(nudge, 2)}"


def table(result: Nudges) -> str:
    """The outputs with their nudges, and the ways to move one of them in their order."""
    outputs = style.text_table(
        ["output", "is", "wanted", f"nudge of its {result.of}"],
        [
            [f"{j}", f"{a:.4f}", f"{int(y)}", f"{nudge:+.4e}"]
            for j, (a, y, nudge) in enumerate(
                zip(result.outputs.tolist(), result.example.y[0].tolist(), result.nudges.tolist(), strict=True)
            )
        ],
    )
    ways = style.text_table(
        [f"bang for the buck at output {result.avenues.neuron}", "nudge"],
        [[name, f"{nudge:+.4e}"] for name, nudge in result.avenues.ranked()[:16]],
    )
    return f"What {result.example.name} wants. {result.caption}.\n\n{outputs}\n\n{ways}"


@style.styled
def figure(result: Nudges) -> Figure:
    """The image, the outputs with arrows as long as their nudges, and one output's three ways, ranked."""
    note = (
        f"The example is {result.example.name}. Blue raises, orange lowers; an arrow is as long as the nudge, minus "
        f"the derivative of the cost by the output's {result.of}. The bars below are minus the derivative of the cost "
        "as well, all on one scale."
    )
    page = style.Page(8.7, finding(result), note, result.caption)
    style.digit(page.axes(style.MARGIN, 0.55, 2.9, 2.9, f"The example: {result.example.label}"), result.example.x)
    _outputs(page, result)
    _ways(page, result.avenues)
    return page.figure


def _outputs(page: style.Page, result: Nudges) -> None:
    """The ten activations as dots on their way to where they belong, and the arrows."""
    places = list(range(len(result.outputs)))
    label = result.example.label
    dots = page.axes(4.15, 0.55, 3.2, 3.35, "What the network says")
    dots.hlines(places, 0, result.outputs.tolist(), color=style.FAINT, linewidth=2, zorder=1)
    dots.plot(result.outputs.tolist(), places, "o", color=style.INK, markersize=7, label="is")
    if result.outputs.min() >= 0 and result.outputs.max() <= 1:
        dots.plot(
            result.example.y[0].tolist(),
            places,
            "o",
            color="none",
            markeredgecolor=style.SOFT,
            markersize=11,
            label="wanted",
        )
        dots.set_xlim(-0.07, 1.07)
        dots.legend(loc="lower right", bbox_to_anchor=(1.06, 0.98), ncols=2, handletextpad=0.1, columnspacing=0.8)
    arrows = page.axes(7.75, 0.55, 3.9, 3.35, "What the example wants of it")
    reach = 1.5 * result.nudges.abs().max().item() or 1.0
    for j, nudge in zip(places, result.nudges.tolist(), strict=True):
        _arrow(arrows, j, nudge, small=0.03 * reach)
    arrows.axvline(0, color=style.SOFT, linewidth=0.8)
    arrows.set_xlim(-reach, reach)
    arrows.set_xlabel(f"nudge of the {result.of}")
    dots.set_xlabel("output")
    for axes in (dots, arrows):
        axes.set(ylim=(len(places) - 0.5, -0.5), yticks=places)
        axes.axhspan(label - 0.5, label + 0.5, color="#eef3f8", zorder=0, linewidth=0)
    dots.set_ylabel("output neuron")


def _arrow(axes: Axes, place: int, nudge: float, small: float) -> None:
    """An arrow from zero to ``nudge`` with its number, or a dot below ``small``, where a head has no room."""
    colour = style.RAISE if nudge >= 0 else style.LOWER
    if abs(nudge) < small:
        axes.plot(nudge, place, "o", color=colour, markersize=3.5)
    else:
        head = {"arrowstyle": "-|>,head_width=.28,head_length=.5", "linewidth": 2.4, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (nudge, place), (0, place), arrowprops={**head, "color": colour})
    style.beside(axes, nudge, place, _signed(nudge), color=colour)


def _ways(page: style.Page, ways: Avenues) -> None:
    """Three panels with one scale: the bias, the weights, the activations before, each its eight largest."""
    weights, activations = (
        nudges.abs().sort(descending=True, stable=True).indices[:8].tolist()
        for nudges in (ways.weights, ways.activations)
    )
    panels = [
        (1.05, 1.7, "1. Its bias", "∂b, in full", {"bias": ways.bias}),
        (
            4.35,
            2.7,
            "2. Its weights",
            "∂W, in proportion to a before it",
            {f"from {k}  (a = {number(ways.before[k].item(), 2)})": ways.weights[k].item() for k in weights},
        ),
        (
            8.95,
            2.7,
            "3. The activations before it",
            "∂a, in proportion to W",
            {f"of {k}  (W = {number(ways.w[k].item(), 2)})": ways.activations[k].item() for k in activations},
        ),
    ]
    page.text(style.MARGIN, 4.75, f"Three ways to move output {ways.neuron}", weight="bold", size=13)
    limit = 1.1 * max(abs(nudge) for *_, bars in panels for nudge in bars.values())
    for left, width, title, by, bars in panels:
        axes = page.axes(left, 5.5, width, 0.31 * len(bars) + 0.1, title)
        style.signed_bars(axes, torch.tensor(list(bars.values())), list(bars), limit)
        axes.set_xlabel(f"nudge, −∂C/{by}")
