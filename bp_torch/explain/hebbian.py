"""Hebbian: are the connections strengthened most between neurons that fire and neurons that should fire?

    python -m bp_torch explain hebbian --digit 2 --layer 3

The nudges to the weights of a layer (BP4) against activation × wanted increase, without φ′ and with it.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from bp_torch import text
from bp_torch.backprop import Backward, Forward, input_gradient
from bp_torch.costs import COSTS
from bp_torch.explain import style
from bp_torch.explain.drawing import draw_network
from bp_torch.explain.nudges import output_nudges
from bp_torch.explain.subject import Example, ExampleOptions, Subject, UsageError, choose_example, forward_and_backward
from bp_torch.network import layer_views

MADE_BY = ("backprop.weight_gradient", "backprop.input_gradient")

IDEA = (
    "A weight is strengthened most where a bright neuron meets one that should be brighter. This recalls Hebb's rule "
    "for real neurons: those that fire together wire together. The analogy is loose. The exact rule has a third "
    "factor, the derivative φ′ of the receiving neuron, and where that is nearly zero a strong wish moves nothing."
)


@dataclass(frozen=True)
class Options(ExampleOptions):
    """The example, and the layer whose weights are explained."""

    layer: int | None = None
    """The layer, counted from 1. None: the last hidden one, whose φ′ differ most."""


class Hebbian(NamedTuple):
    """The weight nudges of one layer for one example, and their factors.

    Attributes:
        example: the image and its label.
        layer: l, counted from 1.
        nudges: −∂C/∂W, (n_l, n_{l−1}).
        a: a^{l−1}, (n_{l−1},): how active the neurons before are.
        wanted: −∂C/∂a^l, (n_l,): how much more active the neurons of the layer should be.
        phi_prime: φ′(z^l), (n_l,); ones where the cost absorbs φ′, and ``wanted`` is then −∂C/∂z.
        passed: the example, forward through the network.
        caption: which network this is.
    """

    example: Example
    layer: int
    nudges: Tensor
    a: Tensor
    wanted: Tensor
    phi_prime: Tensor
    passed: Forward
    caption: str

    @property
    def together(self) -> Tensor:
        """wanted × a, (n_l, n_{l−1}): the loose analogy."""
        return self.wanted[:, None] * self.a

    @property
    def exact(self) -> Tensor:
        """wanted × φ′ × a, (n_l, n_{l−1}): what the nudges are."""
        return (self.wanted * self.phi_prime)[:, None] * self.a


def factors(passed: Forward, back: Backward, y: Tensor, cost: str, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``nudges``, ``a``, ``wanted`` and ``phi_prime`` of ``layer`` (from 1), for one example."""
    network = passed.network
    phi_prime = network.layers[layer - 1].phi.derivative(passed.activations[layer])[0]
    if layer < network.depth:
        wanted = -input_gradient(back.deltas[layer], network.weights[layer])[0]
    else:
        wanted = output_nudges(passed.activations[-1], y, cost)[0]
        phi_prime = torch.ones_like(wanted) if COSTS[cost].absorbs else phi_prime
    weights, _ = layer_views(back.gradient, network.sizes)
    return -weights[layer - 1], passed.activations[layer - 1][0], wanted, phi_prime


def explain(subject: Subject, options: Options) -> Hebbian:
    """The weight nudges for the example and the layer that ``options`` name."""
    network, cost = subject.exact, subject.config.cost
    layer = max(network.depth - 1, 1) if options.layer is None else options.layer
    if not 1 <= layer <= network.depth:
        raise UsageError(f"--layer: wanted 1 to {network.depth}, got {layer}")
    example = choose_example(subject, options)
    passed, back = forward_and_backward(network, example, cost)
    return Hebbian(example, layer, *factors(passed, back, example.y, cost, layer), passed, subject.caption)


def finding(result: Hebbian) -> str:
    """What the numbers say."""
    together, nudges = result.together.flatten(), result.nudges.flatten()
    if together.std() == 0 or nudges.std() == 0:
        return f"This {result.example.label} asks nothing of the weights of layer {result.layer}"
    correlation = torch.corrcoef(torch.stack([together, nudges]))[0, 1].item()
    return (
        f'Neurons that fire, and neurons that should, are wired together: the correlation of "activation × wanted" '
        f"with the nudge of the weight is {text.number(correlation, 2)}"
    )


def blocked(result: Hebbian) -> str:
    """The neuron whose wish φ′ holds back most, in words; nothing where all have the same φ′."""
    phi_prime = result.phi_prime
    if phi_prime.min() == phi_prime.max() or not result.wanted.any():
        return ""
    j = int(result.wanted.abs().mul(1 - phi_prime / phi_prime.max()).argmax())
    return (
        f" Neuron {j} is wanted {'up' if result.wanted[j] > 0 else 'down'} by "
        f"{text.number(abs(result.wanted[j].item()), 2)}, but its φ′ lets "
        f"{text.number(100 * phi_prime[j].item(), 2)}% of that pass."
    )


def table(result: Hebbian) -> str:
    """The neurons of the layer with their factors, and the strongest connections."""
    neurons = []
    for j, (wanted, phi_prime) in enumerate(zip(result.wanted.tolist(), result.phi_prime.tolist(), strict=True)):
        largest = result.nudges[j][result.nudges[j].abs().argmax()].item()
        neurons.append(
            [f"neuron {j}", f"{wanted:+.4e}", f"{phi_prime:.4e}", f"{wanted * phi_prime:+.4e}", f"{largest:+.4e}"]
        )
    header = [f"layer {result.layer}", "wanted, −∂C/∂a", "φ′", "wanted × φ′", "largest nudge of a weight"]
    pairs = []
    for index in result.nudges.flatten().abs().sort(descending=True, stable=True).indices[:10].tolist():
        j, k = divmod(index, result.nudges.shape[1])
        numbers = (result.a[k], result.wanted[j], result.phi_prime[j], result.nudges[j, k])
        pairs.append([f"from neuron {k} to neuron {j}", *(f"{value.item():+.4e}" for value in numbers)])
    strongest = text.table(["the strongest nudges", "a before", "wanted", "φ′", "−∂C/∂W"], pairs)
    error = (result.exact - result.nudges).abs().max().item()
    return (
        f"What {result.example.name} wants of the weights of layer {result.layer}. {result.caption}.\n\n"
        f"{text.table(header, neurons)}\n\n{strongest}\n\n"
        f"activation × wanted × φ′ and −∂C/∂W differ by at most {error:.1e}.{blocked(result)}"
    )


@style.styled
def figure(result: Hebbian, narrow: bool = False) -> Figure:
    """The network with the nudges as edges; the nudges between their factors; the scatters without φ′ and with it."""
    note = (
        f"The example is {result.example.name}. Blue strengthens a weight, orange weakens it. The map shows the nudge "
        "of "
        f"every weight of layer {result.layer}: above it the activation that the weight comes from, beside it the wish "
        f"and the φ′ of the neuron that it leads to. In the scatters each dot is a weight.{blocked(result)}"
    )
    rows: list[style.Row] = [
        (
            4.2,
            [
                style.Panel(partial(_network, result=result), 5, 3.1),
                style.Panel(partial(_factors, result=result), 6, 4.4),
            ],
        ),
        (
            4.0,
            [
                style.Panel(partial(_loose, result=result), 1, 3.4),
                style.Panel(partial(_exact, result=result), 1.1, 3.4),
            ],
        ),
    ]
    return style.compose(rows, finding(result), note, result.caption, narrow)


def _network(part: SubFigure, result: Hebbian) -> None:
    """Where we are: lit neurons, their wishes, and the nudges of the weights between them."""
    style.heading(part, f"Layer {result.layer}: its wishes, and nudges of its weights")
    axes, wishes = part.subplots(), {result.layer: result.wanted}
    draw_network(axes, result.passed, layer=result.layer, values=result.nudges, wishes=wishes)


def _factors(part: SubFigure, result: Hebbian) -> None:
    """The nudges as a map; above it the activations before, left of it the wishes, right of it φ′."""
    neurons, before = result.nudges.shape
    pixels = result.layer == 1
    style.heading(
        part, "Brightness of the pixels, and the nudges" if pixels else "The activations before, and the nudges"
    )
    axes = part.subplot_mosaic(
        [[".", "a", "."], ["wanted", "nudges", "phi_prime"]], width_ratios=(1.7, 5.2, 1.0), height_ratios=(1, 3.2)
    )
    axes["a"].bar(range(before), style.array(result.a), width=0.8, color=style.SOFT)
    axes["a"].set(xlim=(-0.5, before - 0.5), xticks=[], ylabel="a")
    axes["a"].locator_params(axis="y", nbins=3)
    style.signed_bars(axes["wanted"], result.wanted)
    most = text.number(result.wanted.abs().max().item(), 2)
    axes["wanted"].set(xlabel=f"wanted\n(±{most})", ylabel=f"to neuron of layer {result.layer}", xticks=[])
    drawn = style.diverging(axes["nudges"], result.nudges, result.nudges.abs().max().item(), aspect="auto")
    style.hide_ticks(axes["nudges"])
    axes["nudges"].set_xlabel("from pixel, row after row" if pixels else f"from neuron of layer {result.layer - 1}")
    if before <= 32:
        axes["nudges"].set_xticks(range(0, before, 3))
    axes["phi_prime"].barh(range(neurons), style.array(result.phi_prime), color=style.SOFT, height=0.68)
    axes["phi_prime"].set(ylim=(neurons - 0.5, -0.5), yticks=[], xlabel="φ′")
    peak = result.phi_prime.max().item()
    axes["phi_prime"].set_xticks([peak], [text.number(peak, 2)])
    style.colourbar(drawn, axes["phi_prime"], "nudge, −∂C/∂W", 0.2)


def _loose(part: SubFigure, result: Hebbian) -> None:
    """The nudges against activation × wanted."""
    style.heading(part, "Loosely: activation × wanted increase")
    _scatter(part.subplots(), result.together, result, "activation × wanted")


def _exact(part: SubFigure, result: Hebbian) -> None:
    """The nudges against activation × wanted × φ′."""
    style.heading(part, "Exactly: activation × wanted increase × φ′")
    axes = part.subplots()
    drawn = _scatter(axes, result.exact, result, "activation × wanted × φ′")
    axes.axline((0, 0), slope=1, color=style.SOFT, linewidth=0.9, zorder=0)
    style.colourbar(drawn, axes, "φ′ where the weight leads", 0.03)


def _scatter(axes: Axes, x: Tensor, result: Hebbian, label: str) -> ScalarMappable:
    """The nudges against ``x``, a dot a weight, dark where φ′ is small."""
    colours = style.array(result.phi_prime[:, None].expand_as(x))
    axes.axhline(0, color=style.FAINT, linewidth=0.8, zorder=0)
    axes.axvline(0, color=style.FAINT, linewidth=0.8, zorder=0)
    axes.set(xlabel=label, ylabel="nudge, −∂C/∂W")
    axes.locator_params(axis="x", nbins=5)
    drawn = axes.scatter(style.array(x), style.array(result.nudges), c=colours, cmap=style.SEQUENTIAL, s=26, vmin=0)
    drawn.set(linewidth=0.4, edgecolor="white")
    return drawn
