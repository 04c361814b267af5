"""Minimum: had the run reached a minimum of the cost when it stopped, or could the cost still fall?

    python -m bp_torch explain minimum

The run is repeated from its start, as its config says. The curvature is by central differences of the hand-written
gradient: dᵀHd ≈ d·(∇C(θ + εd) − ∇C(θ − εd)) / 2ε.
"""

from dataclasses import replace
from functools import partial
from itertools import chain
from math import ceil, log10, sqrt
from typing import Any, NamedTuple

import torch
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor
from tqdm.auto import tqdm

from bp_torch.data import Examples, first_shuffled
from bp_torch.explain import style
from bp_torch.explain.drawing import decimal_ticks, label_end
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import MinimumOptions
from bp_torch.explain.subject import Subject, all_costs, batch_size_of, full_gradient, train_steps
from bp_torch.network import Network
from bp_torch.text import column_table, count, number
from bp_torch.training import Config, evaluate

MEASURED = 10_000  # training examples that the cost along lines is measured on, at most
DISTANCES = torch.linspace(-1, 1, 21).tolist()  # along a line; the network is in the middle
SETTLED = 1e-3  # if the cost can fall along −∇C by less than this fraction, the network counts as being at a minimum


class Line(NamedTuple):
    """The cost along a line through the network's θ."""

    name: str  # of the direction d, which has length one
    slope: float  # d·∇C, at the network
    curvature: float  # dᵀHd, at the network
    costs: list[float]  # at ``DISTANCES``
    middle: float  # the cost at the network
    decrease: float  # how far the cost falls from the network to the lowest point of the line


def repeat_run(config: Config, network: Network, training: Examples, epochs: int) -> list[tuple[float, float]]:
    """Train ``network`` (which changes) as the run's first ``epochs`` did: C and ‖∇C‖ at the start, and after each."""
    steps_per_epoch = ceil(len(training.labels) / batch_size_of(config, training))
    steps = train_steps(replace(config, epochs=epochs), network, training, "repeating the run")
    return [
        (evaluate(network, training, config.cost).cost, full_gradient(network, training, config.cost).norm().item())
        for step in chain([0], steps)
        if step % steps_per_epoch == 0
    ]


def curvature(network: Network, examples: Examples, cost: str, direction: Tensor, epsilon: float = 1e-3) -> float:
    """dᵀHd for ``direction`` d (P,) of length one; the error is of second order in ``epsilon``."""
    moved, gradients = network.to(), []
    for sign in (1, -1):
        moved.parameters.copy_(network.parameters + sign * epsilon * direction)
        gradients.append(full_gradient(moved, examples, cost))
    return float(direction @ (gradients[0] - gradients[1])) / (2 * epsilon)


def cost_along(network: Network, examples: Examples, cost: str, name: str, direction: Tensor, gradient: Tensor) -> Line:
    """The cost on ``examples`` from −1 to 1 along ``direction`` (P,), and slope and curvature at the network."""
    moved, costs = network.to(), []
    for distance in DISTANCES:
        moved.parameters.copy_(network.parameters + distance * direction)
        costs.append(all_costs(moved, examples, cost).mean().item())
    slope, curve = float(direction @ gradient), curvature(network, examples, cost, direction)
    middle = costs[len(costs) // 2]
    return Line(name, slope, curve, costs, middle, middle - min(costs))


class Minimum(Idea):
    """The course of the run, and the cost around its end."""

    def __init__(self, subject: Subject, options: MinimumOptions) -> None:
        """Repeat the run, then measure the cost around its network."""
        config, training = subject.config, subject.training
        self.caption, self.measured = subject.caption, MEASURED
        self.random_lines = count(options.directions, "random line")
        default = 40 if subject.trained else 0
        epochs = min(config.epochs, default if options.epochs is None else options.epochs)
        repeated = config.network(subject.network.device)
        self.costs, self.norms = zip(*repeat_run(config, repeated, training, epochs), strict=True)  # start, each epoch
        difference = (repeated.parameters - subject.network.parameters).abs().max().item()
        self.difference = difference if subject.trained and epochs == config.epochs else None  # if all was repeated

        network, measured = subject.exact, first_shuffled(training, MEASURED, config.seed)
        self.gradient_norm = full_gradient(network, training, config.cost).norm().item()
        self.cost = all_costs(network, training, config.cost).mean().item()
        gradient = full_gradient(network, measured, config.cost)
        generator, size = torch.Generator().manual_seed(options.seed), len(gradient)
        draws = torch.randn(options.directions, size, generator=generator, dtype=torch.float64).to(gradient.device)
        directions = {"along −∇C": -gradient} | {f"random {i}": draw for i, draw in enumerate(draws, 1)}
        self.lines = [
            cost_along(network, measured, config.cost, name, direction / direction.norm(), gradient)
            for name, direction in tqdm(directions.items(), desc="lines", leave=False, disable=None)
        ]

    def finding(self) -> str:
        """The length of the gradient, how the cost curves, and whether this is a minimum."""
        along, *random = self.lines
        down = sum(line.curvature < 0 for line in random)
        fraction = along.decrease / along.middle
        start = f", from {number(self.norms[0], 2)} at the start" if self.norms[1:] else ""
        unsettled = down or along.curvature < 0 or fraction > SETTLED
        return (
            f"‖∇C‖ is {number(self.gradient_norm, 2)}{start}. The cost curves "
            f"{'up' if along.curvature >= 0 else 'down'} along −∇C and up in {len(random) - down} of "
            f"{count(len(random), 'random direction')}, and along −∇C it can still fall by "
            f"{number(100 * fraction, 2)}%: {'not yet a minimum' if unsettled else 'a minimum, as far as measured'}"
        )

    def table(self) -> str:
        """The run by epochs, and the cost around its end by directions."""
        epochs = ("epoch", "d", range(len(self.costs)))
        history = column_table(epochs, ("cost", ".5f", self.costs), ("‖∇C‖", ".5f", self.norms))
        lines = column_table(
            ("direction", "", [line.name for line in self.lines]),
            ("slope, d·∇C", "+4 digits", [line.slope for line in self.lines]),
            ("curvature, dᵀHd", "+4 digits", [line.curvature for line in self.lines]),
            ("cost can fall by", "3 digits", [line.decrease for line in self.lines]),
        )
        ends = "The repeated run ends at the run's network: the largest difference in θ is"
        repeated = "" if self.difference is None else f"\n{ends} {number(self.difference, 2)}."
        return (
            f"The run by epochs, and the cost around its end. {self.caption}.\n\n{history}{repeated}\n\n"
            f"At the network: cost {self.cost:.6f}, ‖∇C‖ {self.gradient_norm:.6f}.\n\n{lines}"
        )

    def rows(self, narrow: bool) -> list[Row]:
        """Cost and gradient along the run; the cost along lines through its end, and how these curve."""
        run = [
            Panel("The cost along the run", partial(self.draw_run, self.costs, "cost")),
            Panel("The length of the gradient along the run", partial(self.draw_run, self.norms, "‖∇C‖")),
        ]
        end = [
            Panel("The cost along lines through the network", self.draw_lines),
            Panel("How the cost curves there", self.draw_curvatures),
        ]
        return [(3.6, run), (3.9, end)]

    def draw_run(self, values: tuple[float, ...], label: str, part: SubFigure) -> None:
        """One value after every epoch."""
        axes = part.subplots()
        axes.plot(values, "o-", color=style.LINES[1], linewidth=1.8, markersize=4)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if max(values) > 10 * min(values):  # a logarithmic scale within one decade may have no label
            axes.set_yscale("log")
            decimal_ticks(axes.yaxis)

    def draw_lines(self, part: SubFigure) -> None:
        """The cost along every line through the network."""
        axes, (down, *random) = part.subplots(), self.lines
        for line in random:
            axes.plot(DISTANCES, line.costs, color=style.SOFT, linewidth=1)
        axes.plot(DISTANCES, down.costs, color=style.LINES[1], linewidth=2.2)
        axes.plot([0], [down.middle], "o", color=style.INK, markersize=7)
        beside: dict[str, Any] = {"textcoords": "offset points", "size": 9, "weight": "bold"}
        axes.annotate("the network", (0, down.middle), (0, 12), ha="center", color=style.INK, **beside)
        axes.annotate("along −∇C", (-1, down.costs[0]), (14, 0), va="center", color=style.LINES[1], **beside)
        name = count(len(random), "random direction")
        axes.annotate(name, (-0.98, random[0].costs[0]), (0, -5), va="top", color=style.SOFT, **beside)
        axes.margins(y=0.2)
        axes.set(xlabel="distance in θ", ylabel="cost")
        axes.grid()

    def draw_curvatures(self, part: SubFigure) -> None:
        """A dot for each direction: at a minimum no dot is left of zero."""
        axes, values = part.subplots(), [line.curvature for line in self.lines]
        sizes = [abs(value) for value in values if value] or [1.0]
        largest, least = max(sizes), max(min(sizes), 1e-6 * max(sizes))
        if min(values) > 0:
            axes.set(xscale="log", xlim=(least / 4, 60 * largest))
        else:
            axes.set_xscale("symlog", linthresh=least, linscale=0.6)
            axes.set(xlim=(-60 * largest, 60 * largest))
            powers = [10.0 ** round(log10(size)) for size in (sqrt(least * largest), largest)]
            axes.set_xticks(sorted({0.0, *powers, *(-power for power in powers)}))
            axes.axvline(0, color=style.SOFT, linewidth=0.9)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1)))
        for row, value in enumerate(values):
            axes.plot([value], [row], "o", color=style.INK if value >= 0 else style.LOWER, markersize=7)
            label_end(axes, value, row, number(value, 2))
        axes.set(xlabel="curvature, dᵀHd, on a logarithmic scale", ylim=(len(values) - 0.5, -0.5))
        axes.set_yticks(range(len(values)), [line.name for line in self.lines])
        axes.grid()
