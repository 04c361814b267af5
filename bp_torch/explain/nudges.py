"""Nudges: what one training example wants of every output, before training and after; three ways to move one output.

    python -m bp_torch explain nudges --digit 2
    python -m bp_torch explain nudges --index 1234 --neuron 8

A nudge is minus a derivative of the cost: ``costs.Cost.derivative`` gives those of the outputs, BP3, BP4 and
``input_gradient`` those of the three ways.
"""

from functools import partial
from typing import NamedTuple

import torch
from matplotlib.figure import SubFigure
from torch import Tensor

from bp_torch.backprop import Backward, Forward, backward, forward, input_gradient
from bp_torch.costs import COSTS
from bp_torch.explain import style
from bp_torch.explain.drawing import arrow, draw_network, label_end, output_dots, signed_bars
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import NudgesOptions
from bp_torch.explain.subject import Subject
from bp_torch.network import layer_views
from bp_torch.text import Column, column_table, number, signed

SHOWN = 16  # weights and activations that the picture shows, at most


class Ways(NamedTuple):
    """The ways in which output ``neuron`` could be moved, k counting the neurons before it."""

    neuron: int  # j
    bias: float  # −∂C/∂b_j
    weights: Tensor  # −∂C/∂W_jk, (n_{L−1},): −δ_j in proportion to the activations
    activations: Tensor  # the part of −∂C/∂a_k that comes from neuron j, (n_{L−1},): −δ_j in proportion to the weights
    a: Tensor  # a^{L−1}, (n_{L−1},)
    w: Tensor  # W_jk, (n_{L−1},)

    def ranked(self) -> list[tuple[str, float]]:
        """Every way by name with its nudge, the largest first."""
        names = ["the bias"]
        names += [f"the weight from neuron {k} (activation {number(a, 2)})" for k, a in enumerate(self.a.tolist())]
        names += [f"the activation of neuron {k} (weight {number(w, 2)})" for k, w in enumerate(self.w.tolist())]
        nudges = [self.bias, *self.weights.tolist(), *self.activations.tolist()]
        return sorted(zip(names, nudges, strict=True), key=lambda way: -abs(way[1]))


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


class Nudges(Idea):
    """The wishes of one example for the untrained network, and for the trained one if there is one."""

    def __init__(self, subject: Subject, options: NudgesOptions) -> None:
        """Compute the nudges of the outputs, and the three ways to move one output of the untrained network."""
        self.caption, self.example, self.cost = subject.caption, subject.example, subject.config.cost
        self.label = self.example.label
        self.quantity = "weighted sum" if COSTS[self.cost].absorbs else "activation"  # of an output
        self.size = "twice the distance to what is wanted, so up to 2. It" if self.cost == "quadratic" else "it"
        self.passed = {name: forward(each, self.example.x) for name, each in subject.before_and_after.items()}
        self.outputs = {name: passed.activations[-1][0] for name, passed in self.passed.items()}  # a^L, (n_L,)
        self.nudges = {  # −∂C/∂a^L, (n_L,), or −∂C/∂z^L where the cost absorbs φ′
            name: output_nudges(a[None], self.example.y, self.cost)[0] for name, a in self.outputs.items()
        }
        untrained = self.passed["untrained"]
        back = backward(untrained.network, untrained, self.example.y, self.cost)
        self.ways = ways_to_move(untrained, back, self.label if options.neuron is None else options.neuron)

    def finding(self) -> str:
        """The output that should go up, and the one that should go down most."""
        nudges = self.nudges["untrained"].tolist()
        others = [j for j in range(len(nudges)) if j != self.label]
        furthest, down = min(others, key=lambda j: nudges[j]), sum(nudges[j] < 0 for j in others)
        return (
            f"This {self.label} wants output {self.label} up and {down} others down, output {furthest} most: each by "
            "how far off it is"
        )

    def table(self) -> str:
        """The outputs with their nudges in each network, and the ways to move one of them in their order."""
        columns: list[Column] = [("output", "d", range(10)), ("wanted", ".0f", self.example.y[0])]
        for name, outputs in self.outputs.items():
            columns.append((f"{name}: is", ".4f", outputs))
            columns.append((f"{name}: nudge", "+3 digits", self.nudges[name]))
        ways, nudges = zip(*self.ways.ranked(), strict=True)
        title = f"untrained: bang for the buck at output {self.ways.neuron}"
        ranked = column_table((title, "", ways), ("nudge", "+3 digits", nudges))
        meant = f"A nudge is of the output's {self.quantity}"
        return f"What {self.example.name} wants. {self.caption}. {meant}.\n\n{column_table(*columns)}\n\n{ranked}"

    def rows(self, narrow: bool) -> list[Row]:
        """The image in the network; the outputs with arrows as long as their nudges; one output's three ways."""
        j, n = self.ways.neuron, len(self.ways.a)
        shown = min(SHOWN, n)
        network = f"Untrained, with the {self.label} in it: wishes, and weights into output {j}"
        said = f"what it says, and what the {self.label} wants"
        outputs = [
            Panel(f"{name.capitalize()}: {said}", partial(self.draw_outputs, name), 1, 3.8) for name in self.nudges
        ]
        few, high = "" if n == shown else f": the {shown} largest of {n}", 1.0 + 0.24 * shown
        names = [f"from {k}  (a = {number(a, 2)})" for k, a in enumerate(self.ways.a.tolist())]
        weights = partial(draw_largest, self.ways.weights, names, "−∂C/∂W, in proportion to a")
        names = [f"of {k}  (W = {number(w, 2)})" for k, w in enumerate(self.ways.w.tolist())]
        activations = partial(draw_largest, self.ways.activations, names, "−∂C/∂a, in proportion to W")
        ways = [
            Panel(f"Output {j}: 1. its bias", partial(self.draw_bias, 1 if narrow else shown), 2.2, 1.5),
            Panel(f"2. Its weights{few}", weights, 4, high),
            Panel(f"3. The activations before it{few}", activations, 4, high),
        ]
        passed, depth = self.passed["untrained"], self.passed["untrained"].network.depth
        draw = partial(draw_network, passed=passed, layer=depth, neuron=j, wishes={depth: self.nudges["untrained"]})
        return [(3.5, [Panel(network, draw, 1, 3.1)]), (4.0, outputs), (high, ways)]

    def draw_outputs(self, name: str, part: SubFigure) -> None:
        """The ten activations of a network as dots beside their targets, and the nudges as arrows."""
        dots, arrows = part.subplots(1, 2)
        outputs, nudges = self.outputs[name].tolist(), self.nudges[name].tolist()
        rows = range(len(outputs))
        dots.hlines(rows, 0, outputs, color=style.FAINT, linewidth=2, zorder=1)
        within = min(outputs) >= 0 and max(outputs) <= 1
        output_dots(dots, outputs, self.example.y[0].tolist() if within else None)
        if within:
            dots.set(xlim=(-0.09, 1.09), xticks=[0, 0.5, 1])
        reach = 3 * max(each.abs().max().item() for each in self.nudges.values()) or 1.0
        for j, nudge in enumerate(nudges):
            twice = f"{signed(nudge)[0]}2 × {number(abs(nudge) / 2, 2)}"
            arrow(arrows, nudge, j, twice if self.cost == "quadratic" else signed(nudge), small=0.03 * reach)
        arrows.axvline(0, color=style.SOFT, linewidth=0.8)
        meaning = "\n= 2 × (wanted − is)" if self.cost == "quadratic" else ""
        arrows.set(xlabel=f"nudge, −∂C/∂{'z' if COSTS[self.cost].absorbs else 'a'}{meaning}", xlim=(-reach, reach))
        arrows.locator_params(axis="x", nbins=4)
        for axes in (dots, arrows):
            axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=rows)
            axes.axhspan(self.label - 0.5, self.label + 0.5, color="#eef3f8", zorder=0, linewidth=0)

    def draw_bias(self, rows: int, part: SubFigure) -> None:
        """The first way, in the first of so many rows."""
        axes, bias = part.subplots(), self.ways.bias
        signed_bars(axes, torch.tensor([bias]), ["bias"], 2.2 * abs(bias))
        label_end(axes, bias, 0, signed(bias))
        axes.set(xlabel="−∂C/∂b, in full", ylim=(rows - 0.5, -0.5))


def draw_largest(nudges: Tensor, names: list[str], label: str, part: SubFigure) -> None:
    """The largest of the ``nudges`` (n,), in their order, on their own scale."""
    axes, order = part.subplots(), nudges.abs().sort(descending=True, stable=True).indices[:SHOWN]
    signed_bars(axes, nudges.index_select(0, order), [names[k] for k in order.tolist()])
    axes.set_xlabel(label)
