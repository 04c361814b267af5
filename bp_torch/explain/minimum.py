"""Minimum: had the run reached a minimum of the cost when it stopped, or could the cost still fall?

    python -m bp_torch explain minimum

The run is repeated from its start, as its config says. The curvature is by central differences of the hand-written
gradient: dᵀHd ≈ d·(∇C(θ + εd) − ∇C(θ − εd)) / 2ε.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from tqdm import tqdm

from bp_torch import text
from bp_torch.data import Examples, first_shuffled
from bp_torch.explain import style
from bp_torch.explain.subject import CommonOptions, Subject, all_costs, check_least, full_gradient, train_steps
from bp_torch.network import Network
from bp_torch.training import Config, evaluate

MADE_BY = ("step.TrainingStep.step", "backprop.backward", "backprop.example_costs")

IDEA = (
    "Step after step leads down towards a local minimum of the cost, which need not be the lowest one. At a minimum "
    "the gradient is zero and the cost curves up in every direction. A run seldom gets quite there: the gradient "
    "shrinks, the noise of the mini-batches keeps moving the network, and the question is how far the cost could "
    "still fall."
)

MEASURED = 10_000
"""Training examples that the cost along lines is measured on, at most."""

SETTLED = 1e-3
"""If the cost can fall along −∇C by less than this fraction, the network counts as being at a minimum."""


@dataclass(frozen=True)
class Options(CommonOptions):
    """How much of the run is repeated, and where the curvature is measured."""

    epochs: int | None = None
    """Repeat this many of the run's epochs. None: all, but 40 at most, and none of an untrained network's."""
    directions: int = 6
    """Random directions in which the curvature is measured."""
    seed: int = 0
    """Seed of the directions."""

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that are too small."""
        super().__post_init__()
        epochs = 0 if self.epochs is None else self.epochs
        check_least(directions=(self.directions, 1), seed=(self.seed, 0), epochs=(epochs, 0))


class Progress(NamedTuple):
    """Cost and ‖∇C‖ over all training examples after an epoch; epoch 0 is the start."""

    epoch: int
    cost: float
    gradient_norm: float


class Line(NamedTuple):
    """The cost along a line through the network's θ.

    Attributes:
        name: of the direction d, which has length one.
        slope: d·∇C, at the network.
        curvature: dᵀHd, at the network.
        distances, costs: along the line; the network is in the middle.
    """

    name: str
    slope: float
    curvature: float
    distances: list[float]
    costs: list[float]

    @property
    def middle(self) -> float:
        """The cost at the network."""
        return self.costs[len(self.costs) // 2]

    @property
    def decrease(self) -> float:
        """How far the cost falls from the network to the lowest point of the line."""
        return self.middle - min(self.costs)


class Minimum(NamedTuple):
    """The course of the run, and the cost around its end.

    Attributes:
        history: the start, and each epoch that was repeated.
        gradient_norm, cost: of the network that is explained, over all training examples.
        lines: along −∇C, then in random directions.
        difference: the largest between the repeated run's end and the run's network, None unless all was repeated.
        caption: which network this is.
    """

    history: list[Progress]
    gradient_norm: float
    cost: float
    lines: list[Line]
    difference: float | None
    caption: str


def repeat_run(config: Config, network: Network, training: Examples, epochs: int) -> list[Progress]:
    """Train ``network`` (which changes) as the run's first ``epochs`` did, and measure it after each."""
    steps_per_epoch = 1 if config.batch_size == "full" else ceil(len(training.labels) / config.batch_size)

    def measure(epoch: int) -> Progress:
        gradient = full_gradient(network, training, config.cost)
        return Progress(epoch, evaluate(network, training, config.cost).cost, gradient.norm().item())

    config = dataclasses.replace(config, epochs=epochs)
    steps = train_steps(config, network, training, "repeating the run")
    return [measure(0), *(measure(step // steps_per_epoch) for step in steps if step % steps_per_epoch == 0)]


def curvature(network: Network, examples: Examples, cost: str, direction: Tensor, epsilon: float = 1e-3) -> float:
    """dᵀHd for ``direction`` d (P,) of length one; the error is of second order in ``epsilon``."""
    theta, gradients = network.parameters.clone(), []
    for sign in (1, -1):
        network.parameters.copy_(theta + sign * epsilon * direction)
        gradients.append(full_gradient(network, examples, cost))
    network.parameters.copy_(theta)
    return float(direction @ (gradients[0] - gradients[1])) / (2 * epsilon)


def cost_along(network: Network, examples: Examples, cost: str, name: str, direction: Tensor, gradient: Tensor) -> Line:
    """The cost on ``examples`` from −1 to 1 along ``direction`` (P,), and slope and curvature at the network."""
    theta, costs = network.parameters.clone(), []
    distances = torch.linspace(-1, 1, 21).tolist()
    for distance in distances:
        network.parameters.copy_(theta + distance * direction)
        costs.append(all_costs(network, examples, cost).mean().item())
    network.parameters.copy_(theta)
    slope, curve = float(direction @ gradient), curvature(network, examples, cost, direction)
    return Line(name, slope, curve, distances, costs)


def explain(subject: Subject, options: Options) -> Minimum:
    """Repeat the run, then measure the cost around its network."""
    config, training = subject.config, subject.training
    default = min(config.epochs, 40) if subject.trained else 0
    epochs = default if options.epochs is None else min(options.epochs, config.epochs)
    repeated = config.network(subject.network.device)
    history = repeat_run(config, repeated, training, epochs)
    whole = subject.trained and epochs == config.epochs
    difference = (repeated.parameters - subject.network.parameters).abs().max().item() if whole else None

    network, measured = subject.exact, first_shuffled(training, MEASURED, config.seed)
    gradient_norm = full_gradient(network, training, config.cost).norm().item()
    cost = all_costs(network, training, config.cost).mean().item()
    gradient = full_gradient(network, measured, config.cost)
    generator = torch.Generator().manual_seed(options.seed)
    draws = torch.randn(options.directions, len(gradient), generator=generator, dtype=torch.float64).to(gradient.device)
    directions = {"along −∇C": -gradient} | {f"random {i}": draw for i, draw in enumerate(draws, 1)}
    lines = [
        cost_along(network, measured, config.cost, name, direction / direction.norm(), gradient)
        for name, direction in tqdm(directions.items(), desc="lines", leave=False, disable=None)
    ]
    return Minimum(history, gradient_norm, cost, lines, difference, subject.caption)


def finding(result: Minimum) -> str:
    """What the numbers say: a minimum or not."""
    along, *random = result.lines
    down = sum(line.curvature < 0 for line in random)
    fraction = along.decrease / along.middle
    start = f", from {text.number(result.history[0].gradient_norm, 2)} at the start" if result.history[1:] else ""
    end = "not yet a minimum" if down or along.curvature < 0 or fraction > SETTLED else "a minimum, as far as measured"
    return (
        f"‖∇C‖ is {text.number(result.gradient_norm, 2)}{start}. The cost curves {_way(along)} along −∇C and up in "
        f"{len(random) - down} of {text.count(len(random), 'random direction')}, and along −∇C it can still fall by "
        f"{text.number(100 * fraction, 2)}%: {end}"
    )


def _way(line: Line) -> str:
    """Up or down."""
    return "up" if line.curvature >= 0 else "down"


def table(result: Minimum) -> str:
    """The run by epochs, and the cost around its end by directions."""
    history = [[f"{p.epoch}", f"{p.cost:.5f}", f"{p.gradient_norm:.5f}"] for p in result.history]
    lines = [
        [line.name, f"{line.slope:+.4e}", f"{line.curvature:+.4e}", f"{line.decrease:.2e}"] for line in result.lines
    ]
    repeated = (
        ""
        if result.difference is None
        else f"\nThe repeated run ends at the run's network: the largest difference in θ is {result.difference:.1e}."
    )
    return (
        f"The run by epochs, and the cost around its end. {result.caption}.\n\n"
        f"{text.table(['epoch', 'cost', '‖∇C‖'], history)}{repeated}\n\n"
        f"At the network: cost {result.cost:.6f}, ‖∇C‖ {result.gradient_norm:.6f}.\n\n"
        f"{text.table(['direction', 'slope, d·∇C', 'curvature, dᵀHd', 'cost can fall by'], lines)}"
    )


@style.styled
def figure(result: Minimum, narrow: bool = False) -> Figure:
    """Cost and gradient along the run; the cost along lines through its end, and how these curve."""
    random = len(result.lines) - 1
    note = (
        "After every epoch, over all training examples: the cost, and the length of the gradient. Around the network, "
        "on "
        f"up to {MEASURED:,} training examples: the cost along −∇C and {text.count(random, 'random line')}, and how "
        "they "
        "curve. That is few, of as many directions as there are weights and biases."
    )
    costs, norms = ([getattr(p, of) for p in result.history] for of in ("cost", "gradient_norm"))
    rows: list[style.Row] = [
        (
            3.6,
            [
                style.Panel(partial(_along_the_run, result, costs, "The cost along the run", "cost")),
                style.Panel(partial(_along_the_run, result, norms, "The length of the gradient along the run", "‖∇C‖")),
            ],
        ),
        (3.9, [style.Panel(partial(_lines, result=result)), style.Panel(partial(_curvatures, lines=result.lines))]),
    ]
    return style.compose(rows, finding(result), note, result.caption, narrow)


def _along_the_run(result: Minimum, values: list[float], title: str, label: str, part: SubFigure) -> None:
    """One value after every epoch."""
    style.heading(part, title)
    axes = part.subplots()
    axes.plot([p.epoch for p in result.history], values, "o-", color=style.LINES[1], linewidth=1.8, markersize=4)
    axes.set(xlabel="epoch", ylabel=label)
    axes.grid()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if max(values) > 10 * min(values):  # a logarithmic scale within one decade may have no label
        axes.set_yscale("log")
        style.decimal_ticks(axes.yaxis)


def _lines(part: SubFigure, result: Minimum) -> None:
    """The cost along every line through the network."""
    style.heading(part, "The cost along lines through the network")
    axes = part.subplots()
    down, *random = result.lines
    for line in random:
        axes.plot(line.distances, line.costs, color=style.SOFT, linewidth=1)
    axes.plot(down.distances, down.costs, color=style.LINES[1], linewidth=2.2)
    axes.plot([0], [down.middle], "o", color=style.INK, markersize=7)
    beside: dict[str, Any] = {"textcoords": "offset points", "size": 9, "weight": "bold"}
    axes.annotate("the network", (0, down.middle), (0, 12), ha="center", color=style.INK, **beside)
    axes.annotate("along −∇C", (-1, down.costs[0]), (14, 0), va="center", color=style.LINES[1], **beside)
    name = text.count(len(random), "random direction")
    axes.annotate(name, (-0.98, random[0].costs[0]), (0, -5), va="top", color=style.SOFT, **beside)
    axes.margins(y=0.2)
    axes.set(xlabel="distance in θ", ylabel="cost")
    axes.grid()


def _curvatures(part: SubFigure, lines: list[Line]) -> None:
    """A dot for each direction: at a minimum no dot is left of zero."""
    style.heading(part, "How the cost curves there")
    axes = part.subplots()
    values = [line.curvature for line in lines]
    largest, least = max(map(abs, values)) or 1.0, min(map(abs, values)) or 1.0
    axes.set_xscale("symlog", linthresh=max(least, largest * 1e-6), linscale=0.6)
    for row, value in enumerate(values):
        axes.plot([value], [row], "o", color=style.INK if value >= 0 else style.LOWER, markersize=7)
        style.label_end(axes, value, row, text.number(value, 2))
    axes.axvline(0, color=style.SOFT, linewidth=0.9)
    axes.set(xlim=(-20 * largest if min(values) < 0 else -0.3 * least, 60 * largest), ylim=(len(lines) - 0.5, -0.5))
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.set_xticks([0, largest], ["0", text.number(largest, 2)])
    axes.minorticks_off()
    axes.grid(axis="y")
    axes.set_xlabel("curvature, dᵀHd (logarithmic)")
