"""Hebbian: are the connections strengthened most between neurons that fire and neurons that should fire?

    python -m bp_torch explain hebbian --digit 2 --layer 3

The nudges to the weights of a layer (BP4) against activation × wanted increase, without φ′ and with it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor

from bp_torch.backprop import Trace, desires
from bp_torch.costs import COSTS
from bp_torch.explain import style
from bp_torch.explain.nudges import output_nudges
from bp_torch.explain.style import number
from bp_torch.explain.subject import Example, ExampleOptions, Subject, UsageError, choose_example, look
from bp_torch.network import Network

MADE_BY = ("backprop.weight_gradient", "backprop.desires")

IDEA = (
    "A weight is strengthened most where a bright neuron meets one that is wanted brighter, which recalls Hebb's "
    "rule for real neurons: those that fire together get wired together. The likeness is loose. The exact rule has a "
    "third factor, the slope φ′ of the receiving neuron, and where that is nearly zero a strong wish moves nothing."
)


@dataclass(frozen=True)
class Options(ExampleOptions):
    """The example, and the layer whose weights are looked at."""

    layer: int | None = None
    """The layer, counted from 1. None: the last hidden one, whose slopes differ most."""


class Hebbian(NamedTuple):
    """The weight nudges of one layer for one example, and the factors that they are made of.

    Attributes:
        example: the image and its label.
        layer: counted from 1.
        nudges: −∂C/∂W, (n_l, n_{l−1}).
        before: a^{l−1}, (n_{l−1},): how active the one neuron is.
        wanted: −∂C/∂a^l, (n_l,): how much more active the other should be.
        slope: φ′(z^l), (n_l,); ones where the cost has φ′ inside, and ``wanted`` is then −∂C/∂z.
        caption: which network this is.
    """

    example: Example
    layer: int
    nudges: Tensor
    before: Tensor
    wanted: Tensor
    slope: Tensor
    caption: str

    @property
    def together(self) -> Tensor:
        """(wanted increase of the one) × (activation of the other), (n_l, n_{l−1}): the loose analogy."""
        return self.wanted[:, None] * self.before

    @property
    def exact(self) -> Tensor:
        """The same × φ′, (n_l, n_{l−1}): what the nudges are."""
        return (self.wanted * self.slope)[:, None] * self.before

    @property
    def passed(self) -> Tensor:
        """What φ′ lets through of each wish, as a share of the best of the layer, (n_l,)."""
        return self.slope / self.slope.max() if self.slope.max() > 0 else self.slope


def hebbian(network: Network, trace: Trace, y: Tensor, cost: str, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nudges, before, wanted and slope of ``layer`` (from 1), for the one example that went forward and back."""
    if layer == network.depth:
        wanted = output_nudges(trace.activations[-1], y, cost)[0]
        slope = torch.ones_like(wanted) if COSTS[cost].absorbs else trace.slope(layer - 1)[0].clone()
    else:
        wanted = -desires(trace.deltas[layer], network.weights[layer])[0]
        slope = trace.slope(layer - 1)[0].clone()
    return -trace.weight_gradients[layer - 1], trace.activations[layer - 1][0], wanted, slope


def explain(subject: Subject, options: Options) -> Hebbian:
    """The weight nudges for the example and the layer that ``options`` name."""
    network, cost = subject.exact, subject.config.cost
    layer = max(network.depth - 1, 1) if options.layer is None else options.layer
    if not 1 <= layer <= network.depth:
        raise UsageError(f"--layer: wanted 1 to {network.depth}, got {layer}")
    example = choose_example(subject, options)
    trace = look(network, example, cost)
    return Hebbian(example, layer, *hebbian(network, trace, example.y, cost, layer), subject.caption)


def finding(result: Hebbian) -> str:
    """What the numbers say."""
    together, nudges = result.together.flatten(), result.nudges.flatten()
    if together.std() == 0 or nudges.std() == 0:
        return f"This {result.example.label} asks nothing of the weights of layer {result.layer}"
    likeness = torch.corrcoef(torch.stack([together, nudges]))[0, 1].item()
    start = f"Firing together wires together, to a correlation of {number(likeness)}"
    if result.slope.min() == result.slope.max():
        return f"{start}: no neuron of layer {result.layer} holds its wish back, for all have the same φ′"
    blocked = int(result.wanted.abs().mul(1 - result.passed).argmax())
    way = "up" if result.wanted[blocked] > 0 else "down"
    return (
        f"{start}, and exactly once φ′ is in: neuron {blocked} is wanted {way} by "
        f"{number(abs(result.wanted[blocked].item()), 2)}, but its φ′ lets "
        f"{number(100 * result.slope[blocked].item(), 2)}% of that pass"
    )


def table(result: Hebbian) -> str:
    """The neurons of the layer with their three factors, and the strongest connections."""
    neurons = style.text_table(
        [f"layer {result.layer}", "wanted, −∂C/∂a", "φ′", "wanted × φ′", "largest nudge of a weight"],
        [
            [
                f"neuron {j}",
                f"{want:+.4e}",
                f"{slope:.4e}",
                f"{want * slope:+.4e}",
                f"{row[row.abs().argmax()].item():+.4e}",
            ]
            for j, (want, slope, row) in enumerate(
                zip(result.wanted.tolist(), result.slope.tolist(), result.nudges, strict=True)
            )
        ],
    )
    pairs = []
    for place in result.nudges.flatten().abs().sort(descending=True, stable=True).indices[:10].tolist():
        j, k = divmod(place, result.nudges.shape[1])
        numbers = (result.before[k], result.wanted[j], result.slope[j], result.nudges[j, k])
        pairs.append([f"from neuron {k} to neuron {j}", *(f"{v.item():+.4e}" for v in numbers)])
    strongest = style.text_table(["the strongest nudges", "a before", "wanted", "φ′", "−∂C/∂W"], pairs)
    error = (result.exact - result.nudges).abs().max().item()
    return (
        f"What {result.example.name} wants of the weights of layer {result.layer}. "
        f"{result.caption}.\n\n{neurons}\n\n{strongest}\n\nactivation × wanted × φ′ and −∂C/∂W differ by {error:.1e} "
        "at most."
    )


@style.styled
def figure(result: Hebbian) -> Figure:
    """The nudges between their two factors, and the scatters without φ′ and with it."""
    note = (
        f"The example is {result.example.name}. Top: the nudge of every weight of layer {result.layer}, under the "
        "activations it comes from and beside the wishes and slopes it goes to. Bottom: each dot is a weight."
    )
    page = style.Page(8.9, finding(result), note, result.caption)
    style.digit(page.axes(style.MARGIN, 0.55, 1.9, 1.9, f"The example: {result.example.label}"), result.example.x)
    _product(page, result)
    loose = page.axes(1.05, 5.25, 4.3, 3.0, "Loosely: activation × wanted increase")
    exact = page.axes(6.3, 5.25, 4.3, 3.0, "Exactly: activation × wanted increase × φ′")
    _scatter(loose, result.together, result, "activation × wanted")
    drawn = _scatter(exact, result.exact, result, "activation × wanted × φ′")
    page.colourbar(drawn, 10.8, 5.25, 3.0, "φ′ of the neuron that the weight leads to")
    low, high = exact.get_xlim()
    exact.plot([low, high], [low, high], color=style.SOFT, linewidth=0.9, zorder=0)
    return page.figure


def _product(page: style.Page, result: Hebbian) -> None:
    """The nudges as a map; above it the activations before, left of it the wishes, right of it φ′."""
    neurons, before = result.nudges.shape
    height, width, left, top = 2.7, 5.2, 4.95, 1.5
    limit = result.nudges.abs().max().item()
    nudges = page.axes(left, top, width, height)
    drawn = style.diverging(nudges, result.nudges, limit, aspect="auto")
    style.bare(nudges)
    nudges.set_xlabel(f"from neuron of layer {result.layer - 1}" if result.layer > 1 else "from pixel, row after row")
    if before <= 32:
        nudges.set_xticks(range(before))
        nudges.tick_params(axis="x", labelsize=8)
    above = page.axes(left, 0.55, width, 0.8, "Activation before" if before <= 32 else "Brightness of the pixel")
    above.bar(range(before), style.array(result.before), width=0.8, color=style.SOFT)
    above.set(xlim=(-0.5, before - 0.5), xticks=[])
    above.locator_params(axis="y", nbins=3)
    wanted = page.axes(3.45, top, 1.35, height, "Wanted")
    style.signed_bars(wanted, result.wanted)
    wanted.set(xlabel="−∂C/∂a", ylabel=f"to neuron of layer {result.layer}")
    slope = page.axes(left + width + 0.12, top, 0.6, height, "φ′")
    slope.barh(range(neurons), style.array(result.slope), color=style.SOFT, height=0.68)
    slope.set(ylim=(neurons - 0.5, -0.5), yticks=[], xlabel="slope")
    slope.locator_params(axis="x", nbins=2)
    page.colourbar(drawn, 11.15, top, height, "nudge, −∂C/∂W")


def _scatter(axes: Axes, x: Tensor, result: Hebbian, label: str) -> ScalarMappable:
    """The nudges against ``x``, a dot a weight, dark where φ′ is small."""
    slopes = result.slope[:, None].expand_as(x)
    drawn = axes.scatter(
        style.array(x),
        style.array(result.nudges),
        c=style.array(slopes),
        cmap=style.SEQUENTIAL,
        s=26,
        linewidth=0.4,
        edgecolor="white",
    )
    axes.axhline(0, color=style.FAINT, linewidth=0.8, zorder=0)
    axes.axvline(0, color=style.FAINT, linewidth=0.8, zorder=0)
    axes.set(xlabel=label, ylabel="nudge of the weight, −∂C/∂W")
    return drawn
