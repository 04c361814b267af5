"""Backwards: what every neuron of a layer asks of the layer before it, row by row, and the sum that is passed on.

    python -m bp_torch explain backwards --digit 2

A row is ``backprop.input_gradient`` of one neuron's δ; the sum of the rows is that of the whole δ, −∂C/∂a of the layer
before.
"""

from functools import partial
from typing import NamedTuple

import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from bp_torch import text
from bp_torch.backprop import Forward, input_gradient
from bp_torch.explain import style
from bp_torch.explain.drawing import draw_network
from bp_torch.explain.subject import Example, ExampleOptions, Subject, choose_example, forward_and_backward
from bp_torch.network import Network

MADE_BY = ("backprop.input_gradient", "backprop.hidden_delta")

IDEA = (
    "No layer can set the activations of the one before it, but each of its neurons has a view on what they should "
    "have been: more of those it is joined to by positive weights, less of the others, all the more the further off it "
    "is itself. The views conflict. Added up, neuron by neuron, they are one list of changes for that earlier layer. "
    "The same step is then taken again with that list, until it arrives at the pixels."
)

FULL_TABLE = 32
"""Of a layer with more neurons than this, the table gives only the length of each row."""


Options = ExampleOptions


class Step(NamedTuple):
    """One step back, from ``layer`` (counted from 1) to the one before it.

    Attributes:
        wishes: −δ, (n_l,): what each neuron wants of its own weighted sum.
        rows: (n_l, n_{l−1}): what each neuron alone wants of the activations before it.
        total: −∂C/∂a^{l−1}, (n_{l−1},): what all of them want together.
    """

    layer: int
    wishes: Tensor
    rows: Tensor
    total: Tensor

    @property
    def error(self) -> float:
        """The largest difference between the sum of the rows and −∂C/∂a."""
        return (self.rows.sum(0) - self.total).abs().max().item()


class Way(NamedTuple):
    """The way back through one network: its forward pass, and the steps from the outputs to the pixels."""

    passed: Forward
    steps: list[Step]


class Backwards(NamedTuple):
    """For one example, the way back through the untrained network, and the trained one if there is one, by name."""

    example: Example
    ways: dict[str, Way]
    caption: str

    @property
    def last(self) -> Way:
        """Through the trained network, if there is one."""
        return list(self.ways.values())[-1]


def steps_back(network: Network, deltas: list[Tensor]) -> list[Step]:
    """Every step back of one example, the outputs' first, from its [δ^1, …, δ^L], each (1, n_l)."""
    steps = []
    for layer, (delta, w) in enumerate(zip(deltas, network.weights, strict=True), 1):
        rows = -input_gradient(torch.diag(delta[0]), w)  # in row j every δ is zero but that of neuron j
        steps.append(Step(layer, -delta[0], rows, -input_gradient(delta, w)[0]))
    return steps[::-1]


def explain(subject: Subject, options: Options) -> Backwards:
    """The ways back for the example that ``options`` name."""
    example, ways = choose_example(subject, options), {}
    for name, network in subject.before_and_after.items():
        passed, back = forward_and_backward(network, example, subject.config.cost)
        ways[name] = Way(passed, steps_back(network, back.deltas))
    return Backwards(example, ways, subject.caption)


def finding(result: Backwards) -> str:
    """What the numbers say."""
    first = next(iter(result.ways.values())).steps[0]
    opposed = (first.rows.sign() != first.total.sign()) & (first.rows != 0)
    requests = int((first.rows != 0).sum())
    neurons, before = first.rows.shape
    outvoted = int(opposed.sum()) / requests if requests else 0.0
    return (
        f"Untrained, {neurons} outputs each ask something of {before} activations before them: {outvoted:.0%} of the "
        f"requests are outvoted, and the sum goes one layer further back"
    )


def table(result: Backwards) -> str:
    """What each layer asks of the one before it: row by row and in sum, or the length of each row."""
    parts = [f"What {result.example.name} wants, from the outputs back. {result.caption}."]
    for network, step in ((name, step) for name, way in result.ways.items() for step in way.steps):
        neurons, before = step.rows.shape
        full = before <= FULL_TABLE
        names = [*(f"neuron {j}" for j in range(neurons)), "sum of the rows", "−∂C/∂a"]
        numbers = torch.cat([step.rows, step.rows.sum(0, keepdim=True), step.total[None]])
        if not full:
            numbers = numbers.norm(dim=1, keepdim=True)
        wish_unit, wish_power = text.unit(step.wishes)
        number_unit, power = text.unit(numbers)
        wishes = [*(f"{wish / wish_unit:+.3f}" for wish in step.wishes.tolist()), "", ""]
        rows = [
            [name, wish, *(f"{value / number_unit:+.3f}" for value in values)]
            for name, wish, values in zip(names, wishes, numbers.tolist(), strict=True)
        ]
        header = [f"layer {step.layer}", f"own wish{wish_power}", *(map(str, range(before)) if full else ["length"])]
        target = f"layer {step.layer - 1}" if step.layer > 1 else "the pixels"
        what = "" if full else ", the length of each row"
        parts.append(
            f"{network.capitalize()}: what layer {step.layer} asks of {target}{what}{power}:\n\n"
            f"{text.table(header, rows)}"
        )
        parts.append(
            f"The sum of the {neurons} rows and −∂C/∂a of layer {step.layer - 1} differ by at most {step.error:.1e}."
        )
    return "\n\n".join(parts)


@style.styled
def figure(result: Backwards, narrow: bool = False) -> Figure:
    """The networks with all wishes; for each layer its table of wishes, as colours; for the pixels as images."""
    note = (
        f"The example is {result.example.name}. Blue asks for more, orange for less. A row is what one neuron alone "
        f"would change, in proportion to its weights and to its own wish; the framed row is their sum, −∂C/∂a. The "
        "number over a small image is that of the neuron, with the change that has the full colour."
    )
    drawings = [style.Panel(partial(_network, result=result, name=name), 1, 3.1) for name in result.ways]
    rows: list[style.Row] = [(2.7, drawings)]
    for name, way in result.ways.items():
        tables = [
            style.Panel(partial(_wishes, step=step, name=name, outputs=step is way.steps[0]), 1, 4.0)
            for step in way.steps[:-1]
        ]
        rows += [(3.4, tables)] if tables else []
    columns = 2 if narrow else 4
    maps = style.Panel(partial(_maps, result=result, columns=columns), 5, 1.6 * 8 / columns)
    sums = [style.Panel(partial(_sum, result=result, name=name), 3.2, 3.6) for name in result.ways]
    rows.append((3.2, [maps, *sums]))
    return style.compose(rows, finding(result), note, result.caption, narrow)


def _network(part: SubFigure, result: Backwards, name: str) -> None:
    """One network with the wishes of all layers, and what the outputs ask along their edges."""
    way = result.ways[name]
    style.heading(part, f"{name.capitalize()}: all wishes, and what the outputs ask")
    wishes = {step.layer: step.wishes for step in way.steps}
    draw_network(part.subplots(), way.passed, layer=way.steps[0].layer, values=way.steps[0].rows, wishes=wishes)


def _wishes(part: SubFigure, step: Step, name: str, outputs: bool) -> None:
    """The neurons' own wishes as bars, their rows as colours, and below these the sum in a frame."""
    style.heading(part, f"{name.capitalize()}: what each asks of layer {step.layer - 1}")
    neurons, before = step.rows.shape
    high = max(1, round(neurons / 10))  # the sum, in rows of the table
    bars, rows = part.subplots(1, 2, width_ratios=(1.1, 3))
    style.signed_bars(bars, step.wishes)
    most = text.number(step.wishes.abs().max().item(), 2)
    bars.set(xlabel=f"own wish, −δ\n(±{most})", ylabel="output" if outputs else f"neuron of layer {step.layer}")
    bars.set_xticks([])
    gap = torch.full((high, before), torch.nan, dtype=step.rows.dtype)
    values = torch.cat([step.rows.cpu(), gap, step.total.cpu().expand(high, before)])
    drawn = style.diverging(rows, values, values.nan_to_num().abs().max().item(), aspect="auto")
    frame = (-0.5, neurons + high - 0.5), before, high
    rows.add_patch(Rectangle(*frame, fill=False, edgecolor=style.INK, linewidth=1.2, clip_on=False))
    style.hide_ticks(rows)
    rows.spines[:].set_visible(False)
    rows.set_yticks([neurons + 1.5 * high - 0.5], ["sum"], weight="bold")
    rows.tick_params(length=0)
    if before <= 20:
        rows.set_xticks(range(0, before, 3))
    rows.set_xlabel(f"neuron of layer {step.layer - 1}")
    bars.set(yticks=[tick for tick in bars.get_yticks() if 0 <= tick < neurons], ylim=rows.get_ylim())
    style.colourbar(drawn, rows, "wanted change")


def _maps(part: SubFigure, result: Backwards, columns: int) -> None:
    """What the neurons of layer 1 with the largest wishes want of the pixels."""
    step, name = result.last.steps[-1], list(result.ways)[-1]
    peaks = step.rows.abs().amax(1)
    shown = peaks.sort(descending=True, stable=True).indices[:8].tolist()
    few = "" if len(shown) == len(step.rows) else f"{len(shown)} largest "
    style.heading(part, f"{name.capitalize()}: the {few}wishes of layer 1 at the pixels")
    maps = list(part.subplots(-(-len(shown) // columns), columns, squeeze=False).flat)
    for axes, k in zip(maps, shown, strict=False):
        style.diverging(axes, step.rows[k].reshape(28, 28), peaks[k].item())
        style.outline(axes, result.example.x)
        axes.set_title(f"{k}: ±{text.number(peaks[k].item(), 2)}", fontsize=9, fontweight="normal", pad=4)
    for axes in maps:
        axes.set_anchor("N")
        style.hide_ticks(axes)
        axes.set_visible(bool(axes.images))


def _sum(part: SubFigure, result: Backwards, name: str) -> None:
    """What all neurons of layer 1 together want of the pixels."""
    style.heading(part, f"{name.capitalize()}: the sum")
    axes, total = part.subplots(), result.ways[name].steps[-1].total
    drawn = style.diverging(axes, total.reshape(28, 28), total.abs().max().item())
    style.outline(axes, result.example.x)
    axes.set_anchor("N")
    style.hide_ticks(axes)
    style.colourbar(drawn, axes, "wanted change of the pixel")
