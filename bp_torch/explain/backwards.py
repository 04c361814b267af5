"""Backwards: what every neuron of a layer asks of the layer before it, row by row, and the sum that is passed on.

    python -m bp_torch explain backwards --digit 2

A row is ``backprop.input_gradient`` of one neuron's δ; the sum of the rows is that of the whole δ, −∂C/∂a of the layer
before.
"""

from functools import partial
from typing import NamedTuple

import torch
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from bp_torch.backprop import Forward, backward, forward, input_gradient
from bp_torch.explain import style
from bp_torch.explain.drawing import colourbar, diverging, draw_network, map_grid, outline, pixel_map, signed_bars
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import ExampleOptions
from bp_torch.explain.subject import Subject
from bp_torch.network import Network
from bp_torch.text import column_table, number, unit

FULL_TABLE = 32  # of a layer with more neurons than this, the table gives only the length of each row
SHOWN = 8  # neurons of layer 1 whose wishes at the pixels are drawn, at most


class Step(NamedTuple):
    """One step back, from ``layer`` to the one before it."""

    layer: int  # from 1
    wishes: Tensor  # −δ, (n_l,): what each neuron wants of its own weighted sum
    rows: Tensor  # (n_l, n_{l−1}): what each neuron alone wants of the activations before it
    total: Tensor  # −∂C/∂a^{l−1}, (n_{l−1},): what all of them want together
    error: float  # the largest difference between the sum of the rows and −∂C/∂a


def steps_back(network: Network, deltas: list[Tensor]) -> list[Step]:
    """Every step back of one example, the outputs' first, from its [δ^1, …, δ^L], each (1, n_l)."""
    steps = []
    for layer, (delta, w) in enumerate(zip(deltas, network.weights, strict=True), 1):
        rows = -input_gradient(torch.diag(delta[0]), w)  # in row j every δ is zero but that of neuron j
        total = -input_gradient(delta, w)[0]
        steps.append(Step(layer, -delta[0], rows, total, (rows.sum(0) - total).abs().max().item()))
    return steps[::-1]


class Backwards(Idea):
    """The way back of one example through the untrained network, and through the trained one if there is one."""

    def __init__(self, subject: Subject, options: ExampleOptions) -> None:
        """Compute the ways back."""
        self.caption, self.example = subject.caption, subject.example
        self.passed, self.ways = dict[str, Forward](), dict[str, list[Step]]()  # the steps from outputs to pixels
        for name, network in subject.before_and_after.items():
            self.passed[name] = passed = forward(network, self.example.x)
            back = backward(network, passed, self.example.y, subject.config.cost)
            self.ways[name] = steps_back(network, back.deltas)

    def finding(self) -> str:
        """How many requests of the outputs are outvoted."""
        first = self.ways["untrained"][0]
        opposed = (first.rows.sign() != first.total.sign()) & (first.rows != 0)
        (neurons, before), requests = first.rows.shape, int(first.rows.count_nonzero())
        outvoted = int(opposed.sum()) / requests if requests else 0.0
        return (
            f"Untrained, {neurons} outputs each ask something of {before} activations before them: {outvoted:.0%} of "
            "the requests are outvoted, and the sum goes one layer further back"
        )

    def table(self) -> str:
        """The requests of each layer to the one before it: row by row and in sum, or the length of each row."""
        parts = [f"What {self.example.name} wants, from the outputs back. {self.caption}."]
        for network, step in ((name, step) for name, steps in self.ways.items() for step in steps):
            neurons, before = step.rows.shape
            numbers = torch.cat([step.rows, step.rows.sum(0, keepdim=True), step.total[None]])
            headers, what = [str(k) for k in range(before)], ""
            if before > FULL_TABLE:
                numbers, headers, what = numbers.norm(dim=1, keepdim=True), ["length"], ", the length of each row"
            (wish_unit, wish_power), (number_unit, power) = unit(step.wishes), unit(numbers)
            table = column_table(
                (f"layer {step.layer}", "", [*(f"neuron {j}" for j in range(neurons)), "sum of the rows", "−∂C/∂a"]),
                (f"own wish{wish_power}", "+.3f", [*(step.wishes / wish_unit), "", ""]),
                *((header, "+.3f", column) for header, column in zip(headers, (numbers / number_unit).T, strict=True)),
            )
            target = f"layer {step.layer - 1}" if step.layer > 1 else "the pixels"
            parts += [
                f"{network.capitalize()}: what layer {step.layer} asks of {target}{what}{power}:\n\n{table}",
                f"The sum of the {neurons} rows and −∂C/∂a of layer {step.layer - 1} differ by at most "
                f"{number(step.error, 2)}.",
            ]
        return "\n\n".join(parts)

    def rows(self, narrow: bool) -> list[Row]:
        """The networks with all wishes; for each layer its table of wishes, as colours; for the pixels as images.

        A narrow picture has the network and the tables of the first network only, and the pixels of the last.
        """
        networks, tables, sums = [], [], []
        for name, steps in self.ways.items():
            title, asks = name.capitalize(), f"{name.capitalize()}: what each asks of layer"
            wishes, last = {step.layer: step.wishes for step in steps}, steps[0]
            draw = partial(draw_network, passed=self.passed[name], layer=last.layer, values=last.rows, wishes=wishes)
            networks.append(Panel(f"{title}: all wishes, and what the outputs ask", draw, 1, 3.1))
            asked = [Panel(f"{asks} {step.layer - 1}", partial(self.draw_wishes, step), 1, 4.0) for step in steps[:-1]]
            tables += [(3.4, asked)] if asked else []
            sums.append(Panel(f"{title}: the sum", partial(self.draw_sum, steps[-1]), 3.2, 3.6))
        if narrow:
            networks, tables, sums = networks[:1], tables[:1], sums[-1:]
        neurons, columns, most = len(steps[-1].rows), 2 if narrow else 4, 4 if narrow else SHOWN
        few = "" if neurons <= most else f"{most} largest "
        maps = partial(self.draw_maps, steps[-1], columns, most)
        pixels = Panel(f"{title}: the {few}wishes of layer 1 at the pixels", maps, 5, 1.6 * most / columns)
        return [(2.7, networks), *tables, (3.2, [pixels, *sums])]

    def draw_wishes(self, step: Step, part: SubFigure) -> None:
        """The neurons' own wishes as bars, their rows as colours, and below these the sum in a frame."""
        neurons, before = step.rows.shape
        high = max(1, round(neurons / 10))  # the sum, in rows of the table
        bars, rows = part.subplots(1, 2, width_ratios=(1.1, 3))
        signed_bars(bars, step.wishes)
        most = number(step.wishes.abs().max().item(), 2)
        whose = "output" if step.layer == len(self.ways["untrained"]) else f"neuron of layer {step.layer}"
        bars.set(xlabel=f"own wish, −δ\n(±{most})", ylabel=whose, xticks=[])
        gap = torch.full((high, before), torch.nan, dtype=step.rows.dtype)
        values = torch.cat([step.rows.cpu(), gap, step.total.cpu().expand(high, before)])
        drawn = diverging(rows, values, values.nan_to_num().abs().max().item(), aspect="auto")
        frame = (-0.5, neurons + high - 0.5), before, high
        rows.add_patch(Rectangle(*frame, fill=False, edgecolor=style.INK, linewidth=1.2, clip_on=False))
        rows.spines[:].set_visible(False)
        rows.set_yticks([neurons + 1.5 * high - 0.5], ["sum"], weight="bold")
        rows.tick_params(length=0)
        rows.set(xlabel=f"neuron of layer {step.layer - 1}", xticks=range(0, before, 3) if before <= 20 else [])
        bars.set(yticks=[tick for tick in bars.get_yticks() if 0 <= tick < neurons], ylim=rows.get_ylim())
        colourbar(drawn, rows, "wanted change")

    def draw_maps(self, step: Step, columns: int, most: int, part: SubFigure) -> None:
        """The wishes of the neurons of layer 1 for the pixels, the largest first."""
        peaks = step.rows.abs().amax(1)
        shown = peaks.sort(descending=True, stable=True).indices[:most].tolist()
        maps = [(f"{k}: ±{number(peaks[k].item(), 2)}", step.rows[k], peaks[k].item()) for k in shown]
        for axes in map_grid(part, maps, columns, pad=4)[1]:
            axes.set_anchor("N")
            outline(axes, self.example.x)

    def draw_sum(self, step: Step, part: SubFigure) -> None:
        """The wishes of all neurons of layer 1 together for the pixels."""
        drawn = pixel_map(axes := part.subplots(), step.total)
        outline(axes, self.example.x)
        axes.set_anchor("N")
        colourbar(drawn, axes, "wanted change of the pixel")
