"""Cost: what one example costs, output by output, before training and after; the average over all examples is C.

    python -m bp_torch explain cost --digit 2

The cost of an example is that of ``backprop.example_costs``. With the quadratic cost it is a sum of squared
differences, one for each output.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import SubFigure
from torch import Tensor

from bp_torch.backprop import Forward, example_costs, forward
from bp_torch.costs import find_cost
from bp_torch.explain import style
from bp_torch.explain.drawing import array, draw_network, label_end, output_dots, percent_histogram
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import ExampleOptions
from bp_torch.explain.subject import Subject, all_costs
from bp_torch.text import Column, column_table, number


class Costs(NamedTuple):
    """The costs of one network."""

    passed: Forward  # of the example
    terms: Tensor  # C_k by outputs, (n_L,)
    total: float  # C_k
    everyone: Tensor  # that of all examples, (N,)


def terms(passed: Forward, y: Tensor, cost: str) -> Tensor:
    """The part of each output in the cost of one example, (n_L,)."""
    if cost == "softmax-cross-entropy":  # −Σ y_j ln p_j: only the wanted output adds to it
        return (example_costs(passed, y, cost) * y)[0]
    z, a = passed.z, passed.activations[-1]
    outputs = (slice(j, j + 1) for j in range(y.shape[1]))
    return torch.cat([find_cost(cost).value(z[:, j], a[:, j], y[:, j]) for j in outputs])


class Cost(Idea):
    """The cost of one example in the untrained network, and in the trained one if there is one."""

    def __init__(self, subject: Subject, options: ExampleOptions) -> None:
        """Compute the costs of the example and of all."""
        self.caption, self.example, self.cost = subject.caption, subject.example, subject.config.cost
        self.kind = "squared difference" if self.cost == "quadratic" else "part of the cost"  # of one output
        self.networks = dict[str, Costs]()
        for name, network in subject.before_and_after.items():
            passed = forward(network, self.example.x)
            total = example_costs(passed, self.example.y, self.cost).item()
            everyone = all_costs(network, subject.training, self.cost)
            self.networks[name] = Costs(passed, terms(passed, self.example.y, self.cost), total, everyone)

    def finding(self) -> str:
        """The costs of the example, and the averages."""
        parts = "ten squared differences" if self.cost == "quadratic" else "the parts of ten outputs"
        before, *after = (
            (number(costs.total, 2), f"and {number(costs.everyone.mean().item(), 2)} on average")
            for costs in self.networks.values()
        )
        return (
            f"Untrained, the network has a cost of {before[0]} for this {self.example.label}, the sum of {parts}, "
            f"{before[1]} over all examples" + "".join(f"; trained, {total}, {average}" for total, average in after)
        )

    def table(self) -> str:
        """The outputs, what each adds, the sum, and the average over all examples."""
        columns: list[Column] = [
            ("output", "d", [*range(10), "sum, C_k", "average over all, C"]),
            ("wanted", ".0f", [*self.example.y[0], "", ""]),
        ]
        for name, costs in self.networks.items():
            columns.append((f"{name}: is", ".4f", [*costs.passed.activations[-1][0], "", ""]))
            columns.append((self.kind, "5 digits", [*costs.terms, costs.total, costs.everyone.mean()]))
        return (
            f"What {self.example.name} costs. {self.caption}.\n\n{column_table(*columns)}\n\n"
            f"The average is over {len(self.networks['untrained'].everyone):,} training examples."
        )

    def rows(self, narrow: bool) -> list[Row]:
        """The network with the image in it; the outputs and what each adds, bar by bar; the costs of all examples."""
        networks, bars, everyone = [], [], []
        for name, costs in self.networks.items():
            title, n = name.capitalize(), len(costs.everyone)
            average = number(costs.everyone.mean().item(), 2)
            network = partial(draw_network, passed=costs.passed, ring=self.example.label)
            networks.append(Panel(f"{title}: the {self.example.label} in the network", network, 1, 3.1))
            bars.append(Panel(f"{title}: what each output adds", partial(self.draw_bars, costs), 1, 4.0))
            draw = partial(self.draw_everyone, costs)
            everyone.append(Panel(f"{title}: the average over all {n:,} is {average}", draw, 1, 3.0))
        return [(3.0, networks), (4.2, bars), (3.0, everyone)]

    def draw_bars(self, costs: Costs, part: SubFigure) -> None:
        """Every output beside its target, and the bars."""
        dots, bars = part.subplots(1, 2, width_ratios=(1, 1.3))
        outputs, wanted = costs.passed.activations[-1][0].tolist(), self.example.y[0].tolist()
        n = len(outputs)
        dots.hlines(range(n), wanted, outputs, color=style.SOFT, linewidth=2.5, zorder=1)
        output_dots(dots, outputs, wanted)
        dots.margins(x=0.12)
        places, values = [*range(n), n + 0.3], [*costs.terms.tolist(), costs.total]
        bars.barh(range(n), array(costs.terms), color=style.LINES[1], height=0.68)
        bars.barh([n + 0.3], [costs.total], color=style.INK, height=0.8)
        for row, value in zip(places, values, strict=True):
            label_end(bars, value, row, number(value, 2))
        most = max(each.total for each in self.networks.values()) or 1.0
        bars.set(xlabel=self.kind, xlim=(0, 1.35 * most))
        bars.locator_params(axis="x", nbins=4)
        for axes, names in ((dots, [*range(n)]), (bars, [*range(n), "sum"])):
            axes.set(ylim=(n + 0.9, -0.6), yticks=places[: len(names)], yticklabels=names)

    def draw_everyone(self, costs: Costs, part: SubFigure) -> None:
        """How the costs of all examples are spread, and their average."""
        axes = part.subplots()
        most = max(each.everyone.quantile(0.999).item() for each in self.networks.values()) or 1.0
        percent_histogram(axes, costs.everyone, np.linspace(0, most, 61), color=style.LINES[1])
        mean = costs.everyone.mean().item()
        axes.axvline(mean, color=style.INK, linewidth=1.8, linestyle="--", label="the average, C")
        axes.set(xlabel="cost of one example, C_k", ylabel="% of the examples", xlim=(-0.02 * most, most))
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97))
