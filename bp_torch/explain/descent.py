"""Descent: the same start, three gaits: all examples per step, mini-batches, single examples.

    python -m bp_torch explain descent

Every step is ``walk.Walk``'s. The surface is the cost on the plane that lies best through the three paths (PCA);
the angles are between a mini-batch's gradient and the true one.
"""

import dataclasses
import time
from dataclasses import dataclass
from statistics import fmean as mean
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor
from tqdm import tqdm

from bp_torch.backprop import backward, forward
from bp_torch.data import Examples, first_shuffled
from bp_torch.explain import style
from bp_torch.explain.style import number
from bp_torch.explain.subject import CommonOptions, Subject, check_least, inputs_and_wanted, walk_down, whole_gradient
from bp_torch.network import Network
from bp_torch.training import Config, evaluate

MADE_BY = ("walk.Walk.step", "backprop.backward", "training.evaluate")

IDEA = (
    "The true gradient asks every example before each step: the surest direction, and a long wait. A mini-batch asks a "
    "hundred and goes at once, a little off. A single example hardly knows the way and runs. On one and the same "
    "slope the careful walk gets the least far in a given time, and the staggering ones are down long before it."
)

SNAPSHOTS = 80
"""Places that are kept of a path."""

MEASURED = 5_000
"""Training examples that the cost along the paths and on the surface is measured on."""


@dataclass(frozen=True)
class Options(CommonOptions):
    """How far each of the three walks."""

    full_steps: int = 200
    """Steps on all training examples."""
    mini_steps: int = 3_000
    """Steps on mini-batches."""
    single_steps: int = 20_000
    """Steps on single examples."""
    mini_batch: int = 100
    """Examples in a mini-batch."""
    single_learning_rate: float | None = None
    """Learning rate on single examples. None: a tenth of the run's, which is too much for one example."""
    grid: int = 33
    """Points of the surface along each side."""
    seed: int = 0
    """Seed of the mini-batches whose angles are measured."""

    def __post_init__(self) -> None:
        """Refuse walks without a step."""
        super().__post_init__()
        check_least(
            full_steps=(self.full_steps, 1),
            mini_steps=(self.mini_steps, 1),
            single_steps=(self.single_steps, 1),
            mini_batch=(self.mini_batch, 1),
            grid=(self.grid, 2),
            seed=(self.seed, 0),
        )
        if self.single_learning_rate is not None and not self.single_learning_rate > 0:
            raise ValueError(f"--single-learning-rate: wanted above 0, got {self.single_learning_rate}")


class Path(NamedTuple):
    """One way down.

    Attributes:
        name: of the gait.
        batch_size, learning_rate: per step.
        steps: taken at each snapshot, the first being 0.
        points: θ at each, (S, P).
        seconds: spent stepping until each.
        costs: C at each, on ``MEASURED`` training examples.
    """

    name: str
    batch_size: int
    learning_rate: float
    steps: list[int]
    points: Tensor
    seconds: list[float]
    costs: list[float]


class Plane(NamedTuple):
    """The plane through the paths, and the cost on it.

    Attributes:
        centre: a θ on it, (P,).
        axes: two directions of length one at right angles, (2, P).
        explained: share of the paths' variance that lies in it, 0..1.
    """

    centre: Tensor
    axes: Tensor
    explained: float

    def project(self, points: Tensor) -> Tensor:
        """Coordinates (S, 2) of points (S, P)."""
        return (points - self.centre) @ self.axes.T


class Surface(NamedTuple):
    """C at ``u`` (G,) along the first axis and ``v`` (G,) along the second: (G, G), a row for each v."""

    u: Tensor
    v: Tensor
    costs: Tensor


class Descent(NamedTuple):
    """Three paths, the surface below them, and the angles.

    Attributes:
        paths: true gradient descent, mini-batches, single examples.
        plane, surface: through the paths.
        angles: by place ("at the start", …) and batch size, in degrees.
        caption: which network this is.
    """

    paths: list[Path]
    plane: Plane
    surface: Surface
    angles: dict[str, dict[int, list[float]]]
    caption: str


def take_path(name: str, config: Config, network: Network, examples: Examples, steps: int) -> Path:
    """Walk ``network`` (which changes) for ``steps`` steps, and keep more places of the beginning than of the end."""
    kept = {round(steps * (i / SNAPSHOTS) ** 2) for i in range(SNAPSHOTS + 1)}
    measured = first_shuffled(examples, MEASURED, config.seed)
    n = len(examples.labels)
    batch_size = n if config.batch_size == "full" else min(config.batch_size, n)
    config = dataclasses.replace(config, learning_rate_decay=0.0, epochs=-(-steps * batch_size // n) + 1)
    walk = walk_down(config, network, examples, name)
    places, points, seconds, spent, step = [0], [network.parameters.clone()], [0.0], 0.0, 0
    while step < steps:
        start = time.perf_counter()
        step = next(walk)
        if network.device.type == "cuda":
            torch.cuda.synchronize(network.device)
        spent += time.perf_counter() - start
        if step in kept:
            places.append(step)
            points.append(network.parameters.clone())
            seconds.append(spent)
    walk.close()
    path = torch.stack(points).float()
    costs = [cost_at(network, theta, measured, config.cost) for theta in path]
    return Path(name, batch_size, config.learning_rate, places, path, seconds, costs)


def cost_at(network: Network, theta: Tensor, examples: Examples, cost: str) -> float:
    """C at ``theta``, to which ``network`` moves."""
    network.parameters.copy_(theta)
    return evaluate(network, examples, cost).cost


def plane_through(points: Tensor) -> Plane:
    """The plane that lies best through the points (S, P): their mean and first two principal directions."""
    centre = points.mean(0)
    _, sizes, directions = torch.linalg.svd(points - centre, full_matrices=False)
    axes = directions[:2]
    towards = ((points[-1] - points[0]) @ axes.T).sign()  # an SVD leaves the signs open
    axes = axes * torch.where(towards == 0, 1.0, towards)[:, None]
    return Plane(centre, axes, ((sizes[:2] ** 2).sum() / (sizes**2).sum()).item())


def surface_under(plane: Plane, network: Network, examples: Examples, cost: str, places: Tensor, grid: int) -> Surface:
    """C on a ``grid`` by ``grid`` of points of the plane, as wide as the ``places`` (S, 2) and a little wider."""
    low, high = places.min(0).values, places.max(0).values
    room = 0.15 * (high - low).max()
    u, v = (torch.linspace(float(low[i] - room), float(high[i] + room), grid, dtype=places.dtype) for i in range(2))
    network, costs = network.to(), torch.empty(grid, grid)
    for row in tqdm(range(grid), desc="surface", leave=False, disable=None):
        for column in range(grid):
            at = plane.centre + u[column].item() * plane.axes[0] + v[row].item() * plane.axes[1]
            costs[row, column] = cost_at(network, at, examples, cost)
    return Surface(u, v, costs)


def angle(a: Tensor, b: Tensor) -> float:
    """The angle between two vectors, in degrees; nan where one is zero."""
    cosine = (a.double() @ b.double()) / (a.double().norm() * b.double().norm())
    return float(cosine.clamp(-1, 1).acos().rad2deg())


def angles_by_size(network: Network, examples: Examples, cost: str, seed: int) -> dict[int, list[float]]:
    """Between the gradients of random mini-batches and the true one, by batch size."""
    true, n = whole_gradient(network, examples, cost), len(examples.labels)
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> float:
        chosen = torch.randint(n, (size,), generator=generator).to(examples.labels.device)
        x, y = inputs_and_wanted(examples, chosen, network.dtype)
        return angle(backward(network, forward(network, x), y, cost), true)

    repeats = {1: 30, 10: 30, 100: 30, 1_000: 30, 10_000: 10}
    return {size: [draw(size) for _ in range(times)] for size, times in repeats.items() if size < n}


def explain(subject: Subject, options: Options) -> Descent:
    """Three ways down from the run's start, and the surface below them."""
    config, training, device = subject.config, subject.training, subject.network.device
    start = config.network(device)
    single_rate = options.single_learning_rate or config.learning_rate / 10
    change = dataclasses.replace
    gaits = [
        ("all examples", change(config, batch_size="full"), options.full_steps),
        (f"mini-batches of {options.mini_batch}", change(config, batch_size=options.mini_batch), options.mini_steps),
        ("single examples", change(config, batch_size=1, learning_rate=single_rate), options.single_steps),
    ]
    paths = [take_path(name, gait, start.to(), training, steps) for name, gait, steps in gaits]
    plane = plane_through(torch.cat([path.points for path in paths]))
    places = torch.cat([plane.project(path.points) for path in paths]).cpu()
    measured = first_shuffled(training, MEASURED, config.seed)
    surface = surface_under(plane, start, measured, config.cost, places, options.grid)
    angles = {"at the start": angles_by_size(start, training, config.cost, options.seed)}
    if subject.trained:
        angles["at the end of the run"] = angles_by_size(subject.network, training, config.cost, options.seed)
    return Descent(paths, plane, surface, angles, subject.caption)


def finding(result: Descent) -> str:
    """What the numbers say."""
    full, mini, _ = result.paths
    when = next((t for t, cost in zip(mini.seconds, mini.costs, strict=True) if cost <= min(full.costs)), None)
    where, by_size = list(result.angles.items())[-1]
    size = min(by_size, key=lambda size: abs(size - mini.batch_size))
    if when is None:
        start = f"{full.steps[-1]} careful steps bring the cost to {number(min(full.costs))}, further than {mini.name}"
    else:
        start = (
            f"What {full.steps[-1]} careful steps reach in {number(full.seconds[-1], 2)} s, {mini.name} reach in "
            f"{number(when, 2)} s"
        )
    return f"{start}, though {where} {size:,} examples point {mean(by_size[size]):.0f}° off the true gradient"


def table(result: Descent) -> str:
    """The three paths, and the angles by batch size."""
    paths = style.text_table(
        ["steps on", "steps", "learning rate", "seconds", "ms a step", "examples seen", "cost at first", "at last"],
        [
            [
                path.name,
                f"{path.steps[-1]:,}",
                f"{path.learning_rate:g}",
                f"{path.seconds[-1]:.2f}",
                f"{1000 * path.seconds[-1] / path.steps[-1]:.3f}",
                f"{path.steps[-1] * path.batch_size:,}",
                f"{path.costs[0]:.4f}",
                f"{path.costs[-1]:.4f}",
            ]
            for path in result.paths
        ],
    )
    angles = style.text_table(
        ["angle to the true gradient", "batch size", "mean", "least", "most"],
        [
            [where, f"{size:,}", f"{mean(found):.1f}°", f"{min(found):.1f}°", f"{max(found):.1f}°"]
            for where, by_size in result.angles.items()
            for size, found in by_size.items()
        ],
    )
    return (
        f"Three ways down from one start. {result.caption}.\n\n{paths}\n\n{angles}\n\n"
        f"The plane of the picture holds {result.plane.explained:.1%} of the paths' variance."
    )


COLOURS = (style.INK, style.RAISE, style.LOWER)


@style.styled
def figure(result: Descent) -> Figure:
    """The paths over the surface; the cost against time and against examples; the angles."""
    note = (
        f"Contours: the cost on {MEASURED:,} training examples, on the plane through the three paths; "
        f"{result.plane.explained:.0%} of the paths' variance lies in it, so they run a little above or below it. "
        "Times were measured on the machine that drew this."
    )
    page = style.Page(9.6, finding(result), note, result.caption)
    _surface(page, result)
    seconds = page.axes(8.55, 0.5, 3.1, 2.2, "Cost against time")
    seen = page.axes(8.55, 3.55, 3.1, 2.2, "Cost against examples seen")
    for path, colour in zip(result.paths, COLOURS, strict=True):
        examples = [step * path.batch_size for step in path.steps]
        seconds.plot(path.seconds[1:], path.costs[1:], color=colour, linewidth=1.8)
        seen.plot(examples[1:], path.costs[1:], color=colour, linewidth=1.8)
    for axes, label in ((seconds, "seconds"), (seen, "examples")):
        axes.set(xscale="log", xlabel=label, ylabel="cost", ylim=(0, None))
        axes.grid()
    style.plain(seconds.xaxis)
    _angles(page, result)
    return page.figure


def _surface(page: style.Page, result: Descent) -> None:
    """The paths from above, over lines of equal cost."""
    axes = page.axes(0.95, 0.5, 6.3, 5.25, "The three ways down, from above")
    surface = result.surface
    costs = style.array(surface.costs)
    levels = np.geomspace(max(costs.min(), 1e-6), max(costs.max(), costs.min() * 1.001, 2e-6), 14)
    u, v = style.array(surface.u), style.array(surface.v)
    drawn = axes.contourf(u, v, costs, levels=levels, cmap=style.GROUND, extend="both")
    axes.contour(u, v, costs, levels=levels, colors=style.SOFT, linewidths=0.5)
    outline = [Stroke(linewidth=3.6, foreground="white"), Normal()]
    for i, (path, colour) in enumerate(zip(result.paths, COLOURS, strict=True)):
        places = style.array(result.plane.project(path.points))
        axes.plot(
            places[:, 0],
            places[:, 1],
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=2.6,
            path_effects=outline,
            zorder=5 - i,  # the shortest on top
            label=f"{path.name}: {path.steps[-1]:,} steps",
        )
        axes.plot(*places[-1], "o", color=colour, markersize=9, markeredgecolor="white", zorder=6)
    axes.plot(*places[0], "*", color=style.INK, markersize=17, markeredgecolor="white", label="start", zorder=7)
    axes.set(xlabel="first direction through the paths", ylabel="second direction")
    axes.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="white")
    page.colourbar(drawn, 7.35, 0.5, 5.25, "")
    page.text(7.3, 0.25, "cost", size=9)


def _angles(page: style.Page, result: Descent) -> None:
    """Every measured angle by batch size."""
    axes = page.axes(
        0.95, 6.85, 10.7, 2.0, "How far off a mini-batch points: the angle between its gradient and the true one"
    )
    for (where, by_size), colour, shift in zip(
        result.angles.items(), (style.RAISE, style.LOWER), (0.93, 1.07), strict=False
    ):
        for size, found in by_size.items():
            axes.plot(
                [size * shift] * len(found), found, "o", color=colour, alpha=0.25, markersize=4, markeredgewidth=0
            )
        axes.plot(
            [size * shift for size in by_size],
            [mean(found) for found in by_size.values()],
            "o-",
            color=colour,
            linewidth=1.6,
            label=where,
        )
    axes.axhline(90, color=style.SOFT, linewidth=0.9, linestyle=":")
    axes.annotate(
        "90°: it knows nothing",
        (3.2, 90),
        (0, 4),
        textcoords="offset points",
        va="bottom",
        ha="center",
        size=8.5,
        color=style.SOFT,
    )
    axes.set(
        xscale="log", xlabel="examples in the mini-batch", ylabel="degrees", yticks=(0, 30, 60, 90, 120), ylim=(0, None)
    )
    axes.grid(axis="y")
    style.plain(axes.xaxis)
    axes.legend()
