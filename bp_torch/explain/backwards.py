"""Backwards: what every neuron of a layer asks of the layer before it, row by row, and the sum that is handed on.

    python -m bp_torch explain backwards --digit 2

The rows are ``backprop.desires`` of one neuron at a time; their sum is ``desires`` of all, −∂C/∂a of the layer before.
"""

from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bp_torch.backprop import Trace, desires, input_gradient
from bp_torch.explain import style
from bp_torch.explain.subject import Example, ExampleOptions, Subject, choose_example, look
from bp_torch.network import Network

MADE_BY = ("backprop.desires", "backprop.hidden_delta", "backprop.input_gradient")

IDEA = (
    "No layer can set the activations of the one before it, but each of its neurons has a view on what they should "
    "have been: more of those it is joined to by positive weights, less of the others, the louder the further off it "
    "is itself. The views conflict. Added up, neuron by neuron, they are one list of changes for that earlier layer, "
    "and with the list in hand the same step is taken again, until it arrives at the pixels."
)

FULL_TABLE = 32
"""A layer of more neurons than this is printed by the length of its rows."""


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
    """The steps from the outputs to the pixels for one example, and what the outputs were."""

    example: Example
    outputs: Tensor
    steps: list[Step]
    caption: str


def steps_back(network: Network, trace: Trace) -> list[Step]:
    """Every step back of the one example whose ``trace`` went forward and back, the outputs' first."""
    steps = []
    for layer in range(network.depth - 1, -1, -1):
        delta, w = trace.deltas[layer], network.weights[layer]
        rows = -desires(torch.diag(delta[0]), w)  # each row has one neuron's δ, the others silent
        total = -(desires(delta, w) if layer else input_gradient(network, trace))[0]
        steps.append(Step(layer + 1, -delta[0], rows, total))
    return steps


def explain(subject: Subject, options: Options) -> Backwards:
    """The steps back for the example that ``options`` name."""
    example, network = choose_example(subject, options), subject.exact
    trace = look(network, example, subject.config.cost)
    return Backwards(example, trace.activations[-1][0], steps_back(network, trace), subject.caption)


def finding(result: Backwards) -> str:
    """What the numbers say."""
    first = result.steps[0]
    opposed = (first.rows.sign() != first.total.sign()) & (first.rows != 0)
    spoken = int((first.rows != 0).sum())
    neurons, before = first.rows.shape
    share = 0.0 if not spoken else int(opposed.sum()) / spoken
    return (
        f"{neurons} outputs each ask something of {before} activations before them: {share:.0%} of the requests are "
        f"outvoted, and the sum goes one layer further back"
    )


def table(result: Backwards) -> str:
    """The desires of every layer but the first in full, and of the first those of its neurons for all pixels."""
    parts = [f"What {result.example.name} wants, from the outputs back. {result.caption}."]
    for step in result.steps:
        neurons, before = step.rows.shape
        full = before <= FULL_TABLE
        wish_unit, wish_power = style.unit(step.wishes)
        unit, power = style.unit(torch.cat([step.rows, step.total[None]]) if full else step.rows.norm(dim=1))
        columns = [f"{k}" for k in range(before)] if full else ["length"]
        header = [f"layer {step.layer}", f"own wish{wish_power}", *columns]

        def cells(values: Tensor, unit: float = unit, full: bool = full) -> list[str]:
            return [f"{v / unit:+.3f}" for v in (values.tolist() if full else [values.norm().item()])]

        rows = [
            [f"neuron {j}", f"{wish / wish_unit:+.3f}", *cells(row)]
            for j, (wish, row) in enumerate(zip(step.wishes.tolist(), step.rows, strict=True))
        ]
        rows += [["sum of the rows", "", *cells(step.rows.sum(0))], ["−∂C/∂a", "", *cells(step.total)]]
        asked = f"layer {step.layer - 1}" if step.layer > 1 else "the pixels"
        length = "" if full else ", the length of each list"
        parts.append(f"What layer {step.layer} asks of {asked}{length}{power}:\n\n{style.text_table(header, rows)}")
        parts.append(
            f"The sum of the {neurons} rows and −∂C/∂a of layer {step.layer - 1} differ by {step.error:.1e} at most."
        )
    return "\n\n".join(parts)


@style.styled
def figure(result: Backwards) -> Figure:
    """A table of desires for each layer, as colours, and the pixels' as images."""
    *tables, last = result.steps
    note = (
        f"The example is {result.example.name}. Blue asks for more, orange for less. A row is what one neuron alone "
        f"would change, in proportion to its weights and to its own wish; the framed row is their sum, −∂C/∂a."
    )
    top = 5.0 if tables else 0.0
    page = style.Page(top + 3.8, finding(result), note, result.caption)
    width = (style.WIDTH - 2 * style.MARGIN) / max(len(tables), 1)
    for i, step in enumerate(tables):
        _table_of_desires(page, style.MARGIN + i * width, width, step, step.layer == len(result.steps))
    _pixels(page, top, result.example, last, not tables)
    return page.figure


def _table_of_desires(page: style.Page, left: float, width: float, step: Step, outputs: bool) -> None:
    """Own wishes as bars, rows as colours, and the sum of the rows below, from ``left`` on."""
    who = "output" if outputs else f"neuron of layer {step.layer}"
    before = f"layer {step.layer - 1}"
    limit = max(step.rows.abs().max().item(), step.total.abs().max().item())
    bars = page.axes(left + 0.55, 0.5, 0.2 * width, 3.3, "Its own wish")
    style.signed_bars(bars, step.wishes)
    bars.set(xlabel="−δ", ylabel=who)
    map_left, map_width = left + 0.55 + 0.2 * width + 0.18, 0.8 * width - 0.55 - 0.18 - 1.0
    rows = page.axes(map_left, 0.5, map_width, 3.3, f"What each asks of {before}")
    total = page.axes(map_left, 3.92, map_width, 0.33)
    drawn = style.diverging(rows, step.rows, limit, aspect="auto")
    style.diverging(total, step.total[None], limit, aspect="auto")
    style.bare(rows)
    style.bare(total)
    for spine in total.spines.values():
        spine.set(color=style.INK, linewidth=1.2)
    total.set_xlabel(f"neuron of {before}")
    page.text(map_left + map_width + 0.12, 4.01, "the sum", weight="bold")
    if len(step.total) <= 20:
        total.set_xticks(range(len(step.total)))
        total.tick_params(labelsize=8)
    page.colourbar(drawn, map_left + map_width + 0.12, 0.5, 3.3, "wanted change of the activation")


def _pixels(page: style.Page, top: float, example: Example, step: Step, outputs: bool) -> None:
    """The example, what the loudest neurons of layer 1 want of the pixels, and the sum over all neurons."""
    peaks = step.rows.abs().amax(1)
    shown = peaks.sort(descending=True, stable=True).indices[:8].tolist()
    style.digit(page.axes(style.MARGIN, top + 0.75, 2.4, 2.4, f"The example: {example.label}"), example.x)
    few = f"each of the {len(shown)}" if len(shown) == len(step.rows) else f"each of the {len(shown)} loudest"
    neurons = "outputs" if outputs else "neurons of layer 1"
    asks = f"What {few} {neurons} asks of the pixels (its number: ± at full colour)"
    page.text(3.25, top + 0.1, asks, weight="bold", size=11)
    maps = [page.axes(3.25 + i % 4 * 1.13, top + 0.75 + i // 4 * 1.4, 1.03, 1.03) for i in range(len(shown))]
    maps.append(page.axes(8.15, top + 0.75, 2.5, 2.5, "The sum, at the pixels"))
    for axes, values in zip(maps, [*step.rows[shown], step.total], strict=True):
        drawn = style.diverging(axes, values.reshape(28, 28), values.abs().max().item())
        style.outline(axes, example.x)
        style.bare(axes)
    for axes, neuron in zip(maps, shown, strict=False):
        peak = style.number(peaks[neuron].item(), 2)
        axes.set_title(f"{neuron}: ±{peak}", fontsize=9, fontweight="normal", pad=4)
    page.colourbar(drawn, 10.8, top + 0.75, 2.5, "wanted change of the pixel")
