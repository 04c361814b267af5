"""Minimum: did the run come to the floor of a valley, or was it still sliding when it stopped?

    python -m bp_torch explain minimum

The run is walked again from its start, as its config says. The curvature is by central differences of the hand-written
gradient: dᵀHd ≈ d·(∇C(θ + εd) − ∇C(θ − εd)) / 2ε.
"""

import dataclasses
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from tqdm import tqdm

from bp_torch.data import Examples, first_shuffled
from bp_torch.explain import style
from bp_torch.explain.style import number
from bp_torch.explain.subject import CommonOptions, Subject, check_least, each_cost, walk_down, whole_gradient
from bp_torch.network import Network
from bp_torch.training import Config, evaluate

MADE_BY = ("walk.Walk.step", "backprop.backward", "backprop.costs")

IDEA = (
    "Step after step leads down into a valley of the cost, not necessarily the deepest. On its floor the gradient is "
    "zero and the ground curves up on every side. A run seldom gets quite there: the slope shrinks, the mini-batches "
    "keep shaking it, and the question is how much further down there was to go."
)

MEASURED = 10_000
"""Training examples that the slices through the cost are measured on, at most."""

SETTLED = 1e-3
"""Below this share of the cost, what is left to fall down the gradient counts as nothing."""


@dataclass(frozen=True)
class Options(CommonOptions):
    """How far the run is walked again, and where the curvature is taken."""

    epochs: int | None = None
    """Walk this many of the run's epochs again. None: all, but 40 at most, and none of an untrained network's."""
    directions: int = 6
    """Random directions in which the curvature is taken."""
    seed: int = 0
    """Seed of the directions."""

    def __post_init__(self) -> None:
        """Refuse what cannot be walked or drawn."""
        super().__post_init__()
        check_least(
            directions=(self.directions, 1), seed=(self.seed, 0), epochs=(1 if self.epochs is None else self.epochs, 0)
        )


class Place(NamedTuple):
    """Where the walk is after an epoch; 0 is the start."""

    epoch: int
    cost: float
    slope: float
    """‖∇C‖, of the true gradient."""


class Slice(NamedTuple):
    """The cost along a line through the end, and its curvature there.

    Attributes:
        name: of the direction.
        direction: d, (P,), of length one.
        slope: d·∇C.
        curvature: dᵀHd.
        distances, costs: along the line.
    """

    name: str
    direction: Tensor
    slope: float
    curvature: float
    distances: list[float]
    costs: list[float]

    @property
    def fall(self) -> float:
        """How far the cost falls to the lowest place on the line."""
        return self.here - min(self.costs)

    @property
    def here(self) -> float:
        """The cost in the middle of the line, where the network is."""
        return self.costs[len(self.costs) // 2]


class Minimum(NamedTuple):
    """The course of the run, and the ground around its end.

    Attributes:
        course: after each epoch that was walked.
        slope: ‖∇C‖ at the network that is explained.
        cost: there.
        along: the line down the gradient.
        random: lines in random directions.
        gap: largest difference between the walk's end and the run's network, where the whole run was walked, else None.
        caption: which network this is.
    """

    course: list[Place]
    slope: float
    cost: float
    along: Slice
    random: list[Slice]
    gap: float | None
    caption: str


def walk_again(config: Config, network: Network, training: Examples, epochs: int) -> list[Place]:
    """The run's first ``epochs``, with cost and slope after each. ``network`` goes along."""
    n = len(training.labels)
    per_epoch = 1 if config.batch_size == "full" else ceil(n / config.batch_size)

    def place(epoch: int) -> Place:
        slope = whole_gradient(network, training, config.cost).norm().item()
        return Place(epoch, evaluate(network, training, config.cost).cost, slope)

    course = [place(0)]
    for step in walk_down(dataclasses.replace(config, epochs=epochs), network, training, "the run again"):
        if step % per_epoch == 0:
            course.append(place(step // per_epoch))
    return course


def curvature(network: Network, examples: Examples, cost: str, direction: Tensor, epsilon: float = 1e-3) -> float:
    """dᵀHd for ``direction`` d (P,) of length one, right to the second order in ``epsilon``."""
    here = network.parameters.clone()
    gradients = []
    for sign in (1, -1):
        network.parameters.copy_(here + sign * epsilon * direction)
        gradients.append(whole_gradient(network, examples, cost))
    network.parameters.copy_(here)
    return float(direction @ (gradients[0] - gradients[1])) / (2 * epsilon)


def slice_along(
    network: Network, examples: Examples, cost: str, name: str, direction: Tensor, gradient: Tensor, reach: float = 1.0
) -> Slice:
    """The cost on ``examples`` from −reach to reach along ``direction``, and slope and curvature in the middle."""
    here = network.parameters.clone()
    distances = torch.linspace(-reach, reach, 21).tolist()
    costs = []
    for distance in distances:
        network.parameters.copy_(here + distance * direction)
        costs.append(each_cost(network, examples, cost).mean().item())
    network.parameters.copy_(here)
    bend = curvature(network, examples, cost, direction)
    return Slice(name, direction, float(direction @ gradient), bend, distances, costs)


def explain(subject: Subject, options: Options) -> Minimum:
    """Walk the run again, then look around its network."""
    config, training = subject.config, subject.training
    usual = min(config.epochs, 40) if subject.trained else 0
    epochs = usual if options.epochs is None else min(options.epochs, config.epochs)
    walked = config.network(subject.network.device)
    course = walk_again(config, walked, training, epochs)
    whole = subject.trained and epochs == config.epochs
    gap = (walked.parameters - subject.network.parameters).abs().max().item() if whole else None

    network, measured = subject.exact, first_shuffled(training, MEASURED, config.seed)
    slope = whole_gradient(network, training, config.cost).norm().item()
    cost = each_cost(network, training, config.cost).mean().item()
    gradient = whole_gradient(network, measured, config.cost)
    generator = torch.Generator().manual_seed(options.seed)
    draws = torch.randn(options.directions, len(gradient), generator=generator, dtype=torch.float64).to(gradient.device)
    lines = [("down the gradient", -gradient), *((f"random {i}", draw) for i, draw in enumerate(draws, 1))]
    slices = [
        slice_along(network, measured, config.cost, name, direction / direction.norm(), gradient)
        for name, direction in tqdm(lines, desc="slices", leave=False, disable=None)
    ]
    return Minimum(course, slope, cost, slices[0], slices[1:], gap, subject.caption)


def finding(result: Minimum) -> str:
    """What the numbers say: a minimum, or still sliding?"""
    slices = [result.along, *result.random]
    down = sum(line.curvature < 0 for line in slices)
    share = result.along.fall / result.along.here
    ground = (
        f"the ground curves up in all {len(slices)} directions tried"
        if not down
        else f"the ground curves down in {down} of {len(slices)} directions tried"
    )
    if down or share > SETTLED:
        verdict = f"down the gradient the cost can still fall by {number(100 * share, 2)}%: still sliding"
    else:
        verdict = f"down the gradient the cost falls by {number(100 * share, 2)}% at most: a minimum, as far as seen"
    slope = f"The slope is {number(result.slope, 2)}"
    if len(result.course) > 1:
        slope += f", from {number(result.course[0].slope, 2)} at the start"
    return f"{slope}; {ground}, and {verdict}"


def table(result: Minimum) -> str:
    """The course by epochs, and the ground by directions."""
    course = style.text_table(
        ["epoch", "cost", "slope, ‖∇C‖"],
        [[f"{place.epoch}", f"{place.cost:.5f}", f"{place.slope:.5f}"] for place in result.course],
    )
    ground = style.text_table(
        ["direction", "slope, d·∇C", "curvature, dᵀHd", "cost can fall by"],
        [
            [line.name, f"{line.slope:+.4e}", f"{line.curvature:+.4e}", f"{line.fall:.2e}"]
            for line in (result.along, *result.random)
        ],
    )
    again = (
        ""
        if result.gap is None
        else f"\nThe walk ended where the run had ended, to {result.gap:.1e} in every parameter."
    )
    return (
        f"The course of the run and the ground at its end. {result.caption}.\n\n{course}{again}\n\n"
        f"At the network: cost {result.cost:.6f}, ‖∇C‖ {result.slope:.6f}.\n\n{ground}"
    )


@style.styled
def figure(result: Minimum) -> Figure:
    """Cost and slope along the run; the cost along lines through its end, and how these curve."""
    note = (
        "Above, after every epoch, over all training examples: the cost, and the length of the true gradient. "
        f"Below, the ground around the network, on {MEASURED:,} examples at most: the cost along lines through it, "
        f"and the curvature of these lines."
    )
    page = style.Page(8.0, finding(result), note, result.caption)
    epochs = [place.epoch for place in result.course]
    for left, title, label, values in (
        (1.0, "The cost along the run", "cost", [place.cost for place in result.course]),
        (6.95, "The slope along the run", "‖∇C‖", [place.slope for place in result.course]),
    ):
        axes = page.axes(left, 0.5, 4.7, 2.7, title)
        axes.semilogy(epochs, values, "o-", color=style.RAISE, linewidth=1.8, markersize=4)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        style.plain(axes.yaxis)
    lines = page.axes(1.0, 4.3, 4.7, 3.1, "The cost along lines through the end")
    for line in result.random:
        lines.plot(
            line.distances,
            line.costs,
            color=style.SOFT,
            linewidth=1,
            label="random directions" if line is result.random[0] else None,
        )
    lines.plot(
        result.along.distances, result.along.costs, color=style.RAISE, linewidth=2.2, label="down the gradient →"
    )
    lines.plot([0], [result.along.here], "o", color=style.INK, markersize=7, label="the network")
    lines.set(xlabel="distance in θ", ylabel="cost")
    lines.grid()
    lines.legend()
    _curvatures(page.axes(8.2, 4.3, 3.45, 3.1, "How the ground curves there"), [result.along, *result.random])
    return page.figure


def _curvatures(axes: Axes, slices: list[Slice]) -> None:
    """A bar for every direction; zero is in the middle, for a minimum has all bars to the right of it."""
    values = torch.tensor([line.curvature for line in slices], dtype=torch.float64)
    largest, least = values.abs().max().item() or 1.0, values.abs().min().item() or 1.0
    style.signed_bars(axes, values, [line.name for line in slices], 20 * largest)
    axes.set_xscale("symlog", linthresh=max(least, largest * 1e-6), linscale=0.6)
    axes.set_xticks([-largest, 0, largest], [f"−{number(largest, 2)}", "0", number(largest, 2)])
    axes.minorticks_off()
    for place, value in enumerate(values.tolist()):
        style.beside(axes, value, place, number(value, 2))
    axes.set_xlabel("curvature, dᵀHd (logarithmic away from zero)")
