"""Cost: what one example costs, output by output, before training and after; the average over all examples is C.

    python -m bp_torch explain cost --digit 2

The cost of an example is that of ``backprop.example_costs``. With the quadratic cost it is a sum of squared
differences, one for each output.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from bp_torch import text
from bp_torch.backprop import Forward, example_costs, forward
from bp_torch.costs import find_cost
from bp_torch.explain import style
from bp_torch.explain.drawing import draw_network
from bp_torch.explain.subject import Example, ExampleOptions, Subject, all_costs, choose_example

MADE_BY = ("backprop.forward", "backprop.example_costs")

IDEA = (
    "How wrong the network is about one image is a single number: take each output, see how far it is from what it "
    "should be, square that, and add the ten squares up. The average of this number over all training examples is the "
    "cost of the network, and to learn is to make it small."
)

Options = ExampleOptions


class Costs(NamedTuple):
    """What one network costs: its forward pass of the example, C_k by outputs (n_L,), C_k, and that of all (N,)."""

    passed: Forward
    terms: Tensor
    total: float
    everyone: Tensor


class Cost(NamedTuple):
    """What one example costs the untrained network, and the trained one if there is one, by name."""

    example: Example
    networks: dict[str, Costs]
    cost: str
    caption: str

    @property
    def kind(self) -> str:
        """What an output adds to the cost."""
        return "squared difference" if self.cost == "quadratic" else "part of the cost"


def terms(passed: Forward, y: Tensor, cost: str) -> Tensor:
    """What each output adds to the cost of one example, (n_L,)."""
    if cost == "softmax-cross-entropy":  # −Σ y_j ln p_j: only the wanted output adds to it
        return (example_costs(passed, y, cost) * y)[0]
    z, a = passed.z, passed.activations[-1]
    outputs = (slice(j, j + 1) for j in range(y.shape[1]))
    return torch.cat([find_cost(cost).value(z[:, j], a[:, j], y[:, j]) for j in outputs])


def explain(subject: Subject, options: Options) -> Cost:
    """The cost of the example that ``options`` name, and of all."""
    example, cost, networks = choose_example(subject, options), subject.config.cost, {}
    for name, network in subject.before_and_after.items():
        passed = forward(network, example.x)
        total = example_costs(passed, example.y, cost).item()
        everyone = all_costs(network, subject.training, cost)
        networks[name] = Costs(passed, terms(passed, example.y, cost), total, everyone)
    return Cost(example, networks, cost, subject.caption)


def finding(result: Cost) -> str:
    """What the numbers say."""
    parts = "ten squared differences" if result.cost == "quadratic" else "the parts of ten outputs"
    (name, first), *later = result.networks.items()
    after = "".join(
        f"; {other}, {text.number(costs.total, 2)}, and {text.number(costs.everyone.mean().item(), 2)} on average"
        for other, costs in later
    )
    return (
        f"{name.capitalize()}, the network has a cost of {text.number(first.total, 2)} for this "
        f"{result.example.label}, the "
        f"sum of {parts}, and {text.number(first.everyone.mean().item(), 2)} on average over all examples{after}"
    )


def table(result: Cost) -> str:
    """The outputs, what each adds, the sum, and the average over all examples."""
    header, wanted = ["output", "wanted"], result.example.y[0].tolist()
    rows = [[f"{j}", f"{int(y)}"] for j, y in enumerate(wanted)] + [["sum, C_k", ""], ["average over all, C", ""]]
    for name, costs in result.networks.items():
        header += [f"{name}: is", result.kind]
        numbers = zip(costs.passed.activations[-1][0].tolist(), costs.terms.tolist(), strict=True)
        added = [[f"{a:.4f}", f"{term:.4e}"] for a, term in numbers]
        added += [["", f"{costs.total:.4e}"], ["", f"{costs.everyone.mean().item():.4e}"]]
        for row, cells in zip(rows, added, strict=True):
            row += cells
    about = f"What {result.example.name} costs. {result.caption}."
    n = len(next(iter(result.networks.values())).everyone)
    return f"{about}\n\n{text.table(header, rows)}\n\nThe average is over {n:,} training examples."


@style.styled
def figure(result: Cost, narrow: bool = False) -> Figure:
    """The network with the image in it; the outputs and what each adds, bar by bar; the costs of all examples."""
    note = (
        f"The example is {result.example.name}. A bar is the {result.kind} of one output, and the dark bar is their "
        "sum, "
        "the cost of the example."
    )
    rows: list[style.Row] = [
        (3.0, [style.Panel(partial(_network, result=result, name=name), 1, 3.1) for name in result.networks]),
        (4.2, [style.Panel(partial(_bars, result=result, name=name), 1, 4.0) for name in result.networks]),
        (3.0, [style.Panel(partial(_everyone, result=result, name=name), 1, 3.0) for name in result.networks]),
    ]
    return style.compose(rows, finding(result), note, result.caption, narrow)


def _network(part: SubFigure, result: Cost, name: str) -> None:
    """The image in the network, the wanted output with a ring."""
    style.heading(part, f"{name.capitalize()}: the {result.example.label} in the network")
    passed = result.networks[name].passed
    draw_network(part.subplots(), passed, ring=result.example.label)


def _bars(part: SubFigure, result: Cost, name: str) -> None:
    """Every output beside its target, and the bars."""
    costs, n = result.networks[name], len(result.example.y[0])
    style.heading(part, f"{name.capitalize()}: what each output adds")
    dots, bars = part.subplots(1, 2, width_ratios=(1, 1.3))
    outputs, wanted = costs.passed.activations[-1][0].tolist(), result.example.y[0].tolist()
    dots.hlines(range(n), wanted, outputs, color=style.SOFT, linewidth=2.5, zorder=1)
    dots.plot(outputs, range(n), "o", color=style.INK, markersize=7, label="is")
    (rings,) = dots.plot(wanted, range(n), "o", markersize=11, color="none", markeredgecolor=style.SOFT)
    rings.set_label("wanted")
    dots.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=2, handletextpad=0.1, columnspacing=0.8)
    dots.set(xlabel="output", ylabel="output neuron")
    dots.margins(x=0.12)
    bars.barh(range(n), style.array(costs.terms), color=style.LINES[1], height=0.68)
    bars.barh([n + 0.3], [costs.total], color=style.INK, height=0.8)
    for row, value in [*enumerate(costs.terms.tolist()), (n + 0.3, costs.total)]:
        style.label_end(bars, value, row, text.number(value, 2))
    most = max(each.total for each in result.networks.values()) or 1.0
    bars.set(xlabel=result.kind, xlim=(0, 1.35 * most))
    bars.locator_params(axis="x", nbins=4)
    for axes, rows, names in ((dots, range(n), range(n)), (bars, [*range(n), n + 0.3], [*range(n), "sum"])):
        axes.set(ylim=(n + 0.9, -0.6))
        axes.set_yticks(list(rows), [str(each) for each in names])


def _everyone(part: SubFigure, result: Cost, name: str) -> None:
    """How the costs of all examples are spread, and their average."""
    everyone = result.networks[name].everyone
    mean = everyone.mean().item()
    style.heading(part, f"{name.capitalize()}: the average over all {len(everyone):,} is {text.number(mean, 2)}")
    axes = part.subplots()
    most = max(costs.everyone.quantile(0.999).item() for costs in result.networks.values()) or 1.0
    weights = np.full(len(everyone), 100 / len(everyone))
    axes.hist(style.array(everyone), np.linspace(0, most, 61).tolist(), weights=weights, color=style.LINES[1])
    axes.axvline(mean, color=style.INK, linewidth=1.8, linestyle="--", label="the average, C")
    axes.set(xlabel="cost of one example, C_k", ylabel="% of the examples", xlim=(-0.02 * most, most))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97))
