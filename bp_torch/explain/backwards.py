"""Backwards: what every neuron of a layer asks of the layer before it, row by row, and the sum that is passed on.

    python -m bp_torch explain backwards --digit 2

A row is ``backprop.input_gradient`` of one neuron's δ; the sum of the rows is that of the whole δ, −∂C/∂a of the layer
before.
"""

from typing import NamedTuple

import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from bp_torch import text
from bp_torch.backprop import input_gradient
from bp_torch.explain import style
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


class Backwards(NamedTuple):
    """The steps from the outputs to the pixels for one example."""

    example: Example
    steps: list[Step]
    caption: str


def steps_back(network: Network, deltas: list[Tensor]) -> list[Step]:
    """Every step back of one example, the outputs' first, from its [δ^1, …, δ^L], each (1, n_l)."""
    steps = []
    for layer, (delta, w) in enumerate(zip(deltas, network.weights, strict=True), 1):
        rows = -input_gradient(torch.diag(delta[0]), w)  # in row j every δ is zero but that of neuron j
        steps.append(Step(layer, -delta[0], rows, -input_gradient(delta, w)[0]))
    return steps[::-1]


def explain(subject: Subject, options: Options) -> Backwards:
    """The steps back for the example that ``options`` name."""
    example, network = choose_example(subject, options), subject.exact
    _, back = forward_and_backward(network, example, subject.config.cost)
    return Backwards(example, steps_back(network, back.deltas), subject.caption)


def finding(result: Backwards) -> str:
    """What the numbers say."""
    first = result.steps[0]
    opposed = (first.rows.sign() != first.total.sign()) & (first.rows != 0)
    requests = int((first.rows != 0).sum())
    neurons, before = first.rows.shape
    outvoted = int(opposed.sum()) / requests if requests else 0.0
    return (
        f"{neurons} outputs each ask something of {before} activations before them: {outvoted:.0%} of the requests are "
        f"outvoted, and the sum goes one layer further back"
    )


def table(result: Backwards) -> str:
    """What each layer asks of the one before it: row by row and in sum, or the length of each row."""
    parts = [f"What {result.example.name} wants, from the outputs back. {result.caption}."]
    for step in result.steps:
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
        parts.append(f"What layer {step.layer} asks of {target}{what}{power}:\n\n{text.table(header, rows)}")
        parts.append(
            f"The sum of the {neurons} rows and −∂C/∂a of layer {step.layer - 1} differ by at most {step.error:.1e}."
        )
    return "\n\n".join(parts)


@style.styled
def figure(result: Backwards) -> Figure:
    """For each layer its table of wishes, as colours; for the pixels as images."""
    *tables, last = result.steps
    note = (
        f"The example is {result.example.name}. Blue asks for more, orange for less. A row is what one neuron alone "
        f"would change, in proportion to its weights and to its own wish; the framed row is their sum, −∂C/∂a. The "
        "number over a small image is that of the neuron, with the change that has the full colour."
    )
    figure = style.new_figure(8.3 if tables else 3.5, finding(result), note, result.caption)
    upper, lower = style.parts(figure, 2, 1, height_ratios=(4.8, 3.5)) if tables else (figure, figure)
    for step, part in zip(tables, style.parts(upper, 1, len(tables)) if tables else [], strict=True):
        _wishes(part, step, step.layer == len(result.steps))
    _pixels(lower, result.example, last, not tables)
    return figure


def _wishes(part: SubFigure, step: Step, outputs: bool) -> None:
    """The neurons' own wishes as bars, their rows as colours, and below these the sum in a frame."""
    neurons, before = step.rows.shape
    high = max(1, round(neurons / 10))  # the sum, in rows of the table
    bars, rows = part.subplots(1, 2, width_ratios=(1.1, 3))
    style.signed_bars(bars, step.wishes)
    bars.set(title="Its own wish", xlabel="−δ", ylabel="output" if outputs else f"neuron of layer {step.layer}")
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
        rows.set_xticks(range(before))
        rows.tick_params(axis="x", labelsize=8)
    rows.set(title=f"What each asks of layer {step.layer - 1}", xlabel=f"neuron of layer {step.layer - 1}")
    bars.set(yticks=[tick for tick in bars.get_yticks() if 0 <= tick < neurons], ylim=rows.get_ylim())
    style.colourbar(drawn, rows, "wanted change of the activation")


def _pixels(part: Figure | SubFigure, example: Example, step: Step, outputs: bool) -> None:
    """The example, what the neurons of layer 1 with the largest wishes want of the pixels, and the sum over all."""
    peaks = step.rows.abs().amax(1)
    shown = peaks.sort(descending=True, stable=True).indices[:8].tolist()
    image, single, total = style.parts(part, 1, 3, width_ratios=(2.7, 5, 3.5))
    style.heading(image, f"The example: {example.label}")
    few = "" if len(shown) == len(step.rows) else f"{len(shown)} largest "
    style.heading(single, f"The {few}wishes of {'the outputs' if outputs else 'layer 1'}, at the pixels")
    style.heading(total, "The sum, at the pixels")
    first, maps, last = image.subplots(), list(single.subplots(2, 4, squeeze=False).flat), total.subplots()
    style.digit(first, example.x)
    for axes, values in zip([*maps[: len(shown)], last], [*(step.rows[k] for k in shown), step.total], strict=True):
        drawn = style.diverging(axes, values.reshape(28, 28), values.abs().max().item())
        style.outline(axes, example.x)
    for axes in (first, *maps, last):
        axes.set_anchor("N")
        style.hide_ticks(axes)
        axes.set_visible(bool(axes.images))
    for axes, neuron in zip(maps, shown, strict=False):
        axes.set_title(f"{neuron}: ±{text.number(peaks[neuron].item(), 2)}", fontsize=9, fontweight="normal", pad=4)
    style.colourbar(drawn, last, "wanted change of the pixel")
