"""Hebbian: are the connections strengthened most between neurons that fire and neurons that should fire?

    python -m bp_torch explain hebbian --digit 2 --layer 3

The nudges to the weights of a layer (BP4) against activation × wanted increase, without φ′ and with it.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from matplotlib.figure import SubFigure
from torch import Tensor

from bp_torch.backprop import Backward, Forward, backward, forward, input_gradient
from bp_torch.costs import COSTS
from bp_torch.explain import style
from bp_torch.explain.drawing import array, colourbar, diverging, draw_network, hide_ticks, signed_bars
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.nudges import output_nudges
from bp_torch.explain.options import HebbianOptions
from bp_torch.explain.subject import Subject, UsageError
from bp_torch.network import layer_views
from bp_torch.text import column_table, number


class Factors(NamedTuple):
    """The nudges of the weights of one layer for one example, and their three factors."""

    nudges: Tensor  # −∂C/∂W, (n_l, n_{l−1})
    a: Tensor  # a^{l−1}, (n_{l−1},): how active the neurons before are
    wanted: Tensor  # −∂C/∂a^l, (n_l,): how much more active the neurons should be; −∂C/∂z if the cost absorbs φ′
    phi_prime: Tensor  # φ′(z^l), (n_l,); ones if the cost absorbs φ′
    together: Tensor  # wanted × a, (n_l, n_{l−1}): the loose analogy
    exact: Tensor  # wanted × φ′ × a, (n_l, n_{l−1}): the nudges again


def factors(passed: Forward, back: Backward, y: Tensor, cost: str, layer: int) -> Factors:
    """The nudges and factors of ``layer`` (from 1), for one example."""
    network = passed.network
    phi_prime = network.layers[layer - 1].phi.derivative(passed.activations[layer])[0]
    if layer < network.depth:
        wanted = -input_gradient(back.deltas[layer], network.weights[layer])[0]
    else:
        wanted = output_nudges(passed.activations[-1], y, cost)[0]
        phi_prime = torch.ones_like(wanted) if COSTS[cost].absorbs else phi_prime
    weights, _ = layer_views(back.gradient, network.sizes)
    a = passed.activations[layer - 1][0]
    together, exact = wanted[:, None] * a, (wanted * phi_prime)[:, None] * a
    return Factors(-weights[layer - 1], a, wanted, phi_prime, together, exact)


def blocked(wanted: Tensor, phi_prime: Tensor, when: str) -> str:
    """The neuron whose wish φ′ holds back most, in words; nothing where all have the same φ′."""
    if phi_prime.min() == phi_prime.max() or not wanted.any():
        return ""
    j = int(wanted.abs().mul(1 - phi_prime / phi_prime.max()).argmax())
    return (
        f" {when} training neuron {j} is wanted {'up' if wanted[j] > 0 else 'down'} by "
        f"{number(abs(wanted[j].item()), 2)}, but its φ′ lets {number(100 * phi_prime[j].item(), 2)}% of that pass."
    )


def correlation(found: Factors) -> float | None:
    """The correlation of wanted × a with the nudges; None where one of them is the same everywhere."""
    pair = torch.stack([found.together.flatten(), found.nudges.flatten()])
    return float(torch.corrcoef(pair)[0, 1]) if pair.std(1).all() else None


class Hebbian(Idea):
    """The nudges of one layer's weights for one example, untrained and trained, against their factors."""

    def __init__(self, subject: Subject, options: HebbianOptions) -> None:
        """Compute the nudges and their factors, in the layer that ``options`` name."""
        network, cost = subject.before_and_after["untrained"], subject.config.cost
        self.caption, self.example = subject.caption, subject.example
        self.layer = max(network.depth - 1, 1) if options.layer is None else options.layer
        if not 1 <= self.layer <= network.depth:
            raise UsageError(f"--layer: wanted 1 to {network.depth}, got {self.layer}")
        self.passed = forward(network, self.example.x)
        self.factors = dict[str, Factors]()  # by network
        for name, each in subject.before_and_after.items():
            passed = forward(each, self.example.x)
            back = backward(each, passed, self.example.y, cost)
            self.factors[name] = factors(passed, back, self.example.y, cost, self.layer)
        self.nudges, self.a, self.wanted, self.phi_prime, *_ = self.factors["untrained"]
        *_, last = self.factors.values()
        self.blocked = blocked(last.wanted, last.phi_prime, "After" if subject.trained else "Before")

    def finding(self) -> str:
        """The correlations of the loose analogy with the nudges."""
        found = [correlation(each) for each in self.factors.values()]
        if found[0] is None:
            return f"This {self.example.label} asks nothing of the weights of layer {self.layer}"
        when = ("before training", "after it")
        parts = [f"{value:.2f} {then}" for value, then in zip(found, when, strict=False) if value is not None]
        return (
            'Neurons that fire, and neurons that should, are wired together: the correlation of "activation × wanted" '
            f"with the nudge of the weight is {', '.join(parts)}"
        )

    def table(self) -> str:
        """The neurons of the layer with their factors, and the strongest connections."""
        neurons = column_table(
            (f"layer {self.layer}", "", [f"neuron {j}" for j in range(len(self.wanted))]),
            ("wanted, −∂C/∂a", "+4 digits", self.wanted),
            ("φ′", "4 digits", self.phi_prime),
            ("wanted × φ′", "+4 digits", self.wanted * self.phi_prime),
            ("largest nudge of a weight", "+4 digits", [row[row.abs().argmax()] for row in self.nudges]),
        )
        order = self.nudges.flatten().abs().sort(descending=True, stable=True).indices[:10]
        j, k = order // len(self.a), order % len(self.a)
        strongest = column_table(
            ("the strongest nudges", "", [f"from neuron {k} to neuron {j}" for j, k in zip(j, k, strict=True)]),
            ("a before", "+4 digits", self.a[k]),
            ("wanted", "+4 digits", self.wanted[j]),
            ("φ′", "+4 digits", self.phi_prime[j]),
            ("−∂C/∂W", "+4 digits", self.nudges[j, k]),
        )
        error = max((each.exact - each.nudges).abs().max().item() for each in self.factors.values())
        return (
            f"What {self.example.name} wants of the weights of layer {self.layer} before training. {self.caption}.\n\n"
            f"{neurons}\n\n{strongest}\n\n"
            f"activation × wanted × φ′ and −∂C/∂W differ by at most {number(error, 2)}.{self.blocked}"
        )

    def rows(self, narrow: bool) -> list[Row]:
        """The network with the nudges as edges; the nudges between their factors; the scatters without φ′ and with."""
        source = "Brightness of the pixels" if self.layer == 1 else "The activations before"
        wishes = {self.layer: self.wanted}
        network = partial(draw_network, passed=self.passed, layer=self.layer, values=self.nudges, wishes=wishes)
        where = [
            Panel(f"Untrained: the wishes of layer {self.layer}, and nudges of its weights", network, 5, 3.1),
            Panel(f"{source}, and the nudges", self.draw_factors, 6, 4.4),
        ]
        scatters = [
            Panel(f"{name.capitalize()}: activation × wanted", partial(self.draw_scatter, name, False), 1, 3.4)
            for name in self.factors
        ]
        exactly = partial(self.draw_scatter, name := list(self.factors)[-1], True)
        scatters.append(Panel(f"{name.capitalize()}: activation × wanted × φ′", exactly, 1.2, 3.4))
        return [(4.2, where), (3.8, scatters)]

    def draw_factors(self, part: SubFigure) -> None:
        """The nudges as a map; above it the activations before, left of it the wishes, right of it φ′."""
        neurons, before = self.nudges.shape
        axes = part.subplot_mosaic(
            [[".", "a", "."], ["wanted", "nudges", "phi_prime"]], width_ratios=(1.7, 5.2, 1.0), height_ratios=(1, 3.2)
        )
        axes["a"].bar(range(before), array(self.a), width=0.8, color=style.SOFT)
        axes["a"].set(xlim=(-0.5, before - 0.5), xticks=[], ylabel="a")
        axes["a"].locator_params(axis="y", nbins=3)
        signed_bars(axes["wanted"], self.wanted)
        most = number(self.wanted.abs().max().item(), 2)
        axes["wanted"].set(xlabel=f"wanted\n(±{most})", ylabel=f"to neuron of layer {self.layer}", xticks=[])
        drawn = diverging(axes["nudges"], self.nudges, self.nudges.abs().max().item(), aspect="auto")
        hide_ticks(axes["nudges"])
        source = "pixel, row after row" if self.layer == 1 else f"neuron of layer {self.layer - 1}"
        axes["nudges"].set(xlabel=f"from {source}", xticks=range(0, before, 3) if before <= 32 else [])
        axes["phi_prime"].barh(range(neurons), array(self.phi_prime), color=style.SOFT, height=0.68)
        axes["phi_prime"].set(ylim=(neurons - 0.5, -0.5), yticks=[], xlabel="φ′")
        peak = self.phi_prime.max().item()
        axes["phi_prime"].set_xticks([peak], [number(peak, 2)])
        colourbar(drawn, axes["phi_prime"], "nudge, −∂C/∂W", 0.2)

    def draw_scatter(self, name: str, exact: bool, part: SubFigure) -> None:
        """A network's nudges against activation × wanted, or × φ′ too: a dot a weight, dark where φ′ is small."""
        axes, found = part.subplots(), self.factors[name]
        x = found.exact if exact else found.together
        axes.axhline(0, color=style.FAINT, linewidth=0.8, zorder=0)
        axes.axvline(0, color=style.FAINT, linewidth=0.8, zorder=0)
        axes.set(xlabel=f"activation × wanted{' × φ′' * exact}", ylabel="nudge, −∂C/∂W")
        axes.locator_params(axis="x", nbins=4)
        colours = array(found.phi_prime[:, None].expand_as(x))
        peak = max(each.phi_prime.max().item() for each in self.factors.values())
        look: dict[str, Any] = {"cmap": style.SEQUENTIAL, "vmin": 0, "vmax": peak, "edgecolor": "white"}
        drawn = axes.scatter(array(x), array(found.nudges), c=colours, s=26, linewidth=0.4, **look)
        if exact:
            axes.axline((0, 0), slope=1, color=style.SOFT, linewidth=0.9, zorder=0)
            colourbar(drawn, axes, "φ′ where the weight leads", 0.03)
