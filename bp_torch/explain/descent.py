"""Descent: gradient descent from one start by three methods: all examples per step, mini-batches, single examples.

    python -m bp_torch explain descent

Every step is one of ``training.TrainingStep``. The surface is the cost on the plane that fits the three paths best
(PCA). From the end of the mini-batches, both men walk on, step by step, on a plane of their own. The angles are between
the gradient of a mini-batch and the true gradient.
"""

import time
from collections.abc import Container
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean as mean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from bp_torch import text
from bp_torch.backprop import backward, forward
from bp_torch.data import Examples, batch, first_shuffled
from bp_torch.explain import style
from bp_torch.explain.subject import CommonOptions, Subject, UsageError, check_least, full_gradient, train_steps
from bp_torch.explain.surface import Plane, contours, cost_at, plane_of_steps, plane_through, surface_on
from bp_torch.network import Network
from bp_torch.training import Config

MADE_BY = ("step.TrainingStep.step", "backprop.backward", "evaluation.evaluate")

IDEA = (
    "The true gradient asks every example before each step: the surest direction, and a long wait. A mini-batch asks a "
    "hundred and steps at once, a little off. A single example steps sooner still, and further off. On the same "
    "surface the careful steps get the least far in a given time, and the staggering ones are down long before."
)

SNAPSHOTS = 80
"""Points of a path that are kept, besides the start."""

MEASURED = 5_000
"""Training examples that the cost along the paths and on the surface is measured on."""


@dataclass(frozen=True)
class Options(CommonOptions):
    """The number of steps of each method."""

    full_steps: int = 120
    """Steps on all training examples."""
    mini_steps: int = 3_000
    """Steps on mini-batches."""
    single_steps: int = 20_000
    """Steps on single examples."""
    mini_batch: int = 100
    """Examples in a mini-batch."""
    single_learning_rate: float | None = None
    """Learning rate on single examples. None: a tenth of the run's, which is too large for one example."""
    close_steps: int = 60
    """Steps on mini-batches, and on all examples, that are seen from close."""
    grid: int = 25
    """Points of a surface along each side."""
    seed: int = 0
    """Seed of the mini-batches whose angles are measured."""

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that are too small."""
        super().__post_init__()
        least = {"full_steps": 1, "mini_steps": 1, "single_steps": 1, "mini_batch": 1, "grid": 2}
        least |= {"close_steps": 2, "seed": 0}
        check_least(**{name: (getattr(self, name), value) for name, value in least.items()})
        if self.single_learning_rate is not None and not self.single_learning_rate > 0:
            raise ValueError(f"--single-learning-rate: wanted above 0, got {self.single_learning_rate}")


class Path(NamedTuple):
    """The path of one method as S snapshots: steps made, θ (S, P), seconds spent on steps, and the cost.

    The first snapshot is of the start; the cost is that of ``MEASURED`` training examples.
    """

    name: str
    batch_size: int
    learning_rate: float
    steps: list[int]
    points: Tensor
    seconds: list[float]
    costs: list[float]


class CloseUp(NamedTuple):
    """Consecutive steps from one point near the floor: θ (steps + 1, P) of each man, their seconds, the surface."""

    careful: Tensor
    drunk: Tensor
    seconds: tuple[float, float]
    plane: Plane
    surface: tuple[Tensor, Tensor, Tensor]


class Descent(NamedTuple):
    """Three paths (all examples, mini-batches, single examples), the surface below them as ``surface_on`` returns it.

    ``angles`` are in degrees, by network ("at the start", …) and batch size.
    """

    paths: list[Path]
    plane: Plane
    surface: tuple[Tensor, Tensor, Tensor]
    close: CloseUp
    angles: dict[str, dict[int, list[float]]]
    caption: str


def walk(
    name: str, config: Config, network: Network, examples: Examples, steps: int, kept: Container[int]
) -> tuple[list[int], list[float], Tensor]:
    """Train ``network`` (which changes) for so many ``steps`` at one learning rate.

    Returns the start and those steps that are to be ``kept``: their numbers, the seconds spent on steps so far, and
    θ (S, P).
    """
    n = len(examples.labels)
    batch_size = n if config.batch_size == "full" else min(config.batch_size, n)
    config = replace(config, learning_rate_decay=0.0, epochs=-(-steps * batch_size // n) + 1)
    snapshots, spent, start = [(0, 0.0, network.parameters.clone())], 0.0, time.perf_counter()
    for step in train_steps(config, network, examples, name):
        if network.device.type == "cuda":
            torch.cuda.synchronize(network.device)
        spent += time.perf_counter() - start
        if step in kept:
            snapshots.append((step, spent, network.parameters.clone()))
        if step == steps:
            break
        start = time.perf_counter()
    done, seconds, points = zip(*snapshots, strict=True)
    return list(done), list(seconds), torch.stack(points).float()


def follow_path(name: str, config: Config, network: Network, examples: Examples, steps: int) -> Path:
    """The path of ``network`` (which changes); more snapshots are of the beginning than of the end."""
    kept = {round(steps * (i / SNAPSHOTS) ** 2) for i in range(SNAPSHOTS + 1)}
    done, seconds, path = walk(name, config, network, examples, steps, kept)
    n = len(examples.labels)
    batch_size = n if config.batch_size == "full" else min(config.batch_size, n)
    measured = first_shuffled(examples, MEASURED, config.seed)
    costs = [cost_at(network, theta, measured, config.cost) for theta in path]
    return Path(name, batch_size, config.learning_rate, done, path, seconds, costs)


def close_up(config: Config, network: Network, examples: Examples, steps: int, grid: int) -> CloseUp:
    """So many steps of both men from where ``network`` is, every one kept."""
    every, careful = range(steps + 1), replace(config, batch_size="full")
    _, slow, surest = walk("from close", careful, network.to(), examples, steps, every)
    _, quick, drunk = walk("from close", config, network.to(), examples, steps, every)
    plane = plane_of_steps(surest, drunk)
    points = plane.project(torch.cat([surest, drunk])).cpu()
    measured = first_shuffled(examples, MEASURED, config.seed)
    surface = surface_on(plane, network, measured, config.cost, points, grid)
    return CloseUp(surest, drunk, (slow[-1], quick[-1]), plane, surface)


def angle(a: Tensor, b: Tensor) -> float:
    """The angle between two vectors, in degrees; nan where one is zero."""
    cosine = (a.double() @ b.double()) / (a.double().norm() * b.double().norm())
    return float(cosine.clamp(-1, 1).acos().rad2deg())


def angles_by_size(network: Network, examples: Examples, cost: str, seed: int) -> dict[int, list[float]]:
    """Between the gradients of random mini-batches and the true one, by batch size."""
    true, n = full_gradient(network, examples, cost), len(examples.labels)
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> float:
        indices = torch.randint(n, (size,), generator=generator).to(examples.labels.device)
        x, y = batch(examples, indices, network.dtype)
        return angle(backward(network, forward(network, x), y, cost).gradient, true)

    repeats = {1: 30, 10: 30, 100: 30, 1_000: 30, 10_000: 10}
    return {size: [draw(size) for _ in range(n_draws)] for size, n_draws in repeats.items() if size < n}


def explain(subject: Subject, options: Options) -> Descent:
    """Three paths from the run's start, and the surface below them."""
    config, training = subject.config, subject.training
    start = config.network(subject.network.device)
    mini, single = options.mini_batch, options.single_learning_rate or config.learning_rate / 10
    try:
        one_by_one = replace(config, batch_size=1, learning_rate=single)
    except ValueError as error:
        raise UsageError(f"--single-learning-rate: {error}") from error
    methods = [
        ("all examples", replace(config, batch_size="full"), options.full_steps),
        (f"mini-batches of {mini:,}", replace(config, batch_size=mini), options.mini_steps),
        ("single examples", one_by_one, options.single_steps),
    ]
    paths = [follow_path(name, method, start.to(), training, steps) for name, method, steps in methods]
    plane = plane_through(torch.cat([path.points for path in paths]))
    points = torch.cat([plane.project(path.points) for path in paths]).cpu()
    measured = first_shuffled(training, MEASURED, config.seed)
    surface = surface_on(plane, start, measured, config.cost, points, options.grid)
    floor = start.to()
    floor.parameters.copy_(paths[1].points[-1])
    close = close_up(replace(config, batch_size=mini), floor, training, options.close_steps, options.grid)
    networks = {"at the start": start} | ({"at the end of the run": subject.network} if subject.trained else {})
    angles = {name: angles_by_size(network, training, config.cost, options.seed) for name, network in networks.items()}
    return Descent(paths, plane, surface, close, angles, subject.caption)


def finding(result: Descent) -> str:
    """What the numbers say."""
    full, mini, _ = result.paths
    when = next((t for t, cost in zip(mini.seconds, mini.costs, strict=True) if cost <= min(full.costs)), None)
    where, by_size = list(result.angles.items())[-1]
    size = min(by_size, key=lambda size: abs(size - mini.batch_size))
    off = f"{where} {size:,} examples point {mean(by_size[size]):.0f}° off the true gradient"
    careful, took = f"{full.steps[-1]:,} careful steps", text.number(full.seconds[-1], 2)
    if when is None:
        return f"{careful} lower the cost to {text.number(min(full.costs))}, further than {mini.name}; {off}"
    start = f"{mini.name.capitalize()} reach in {text.number(when, 2)} s what {careful} reach in {took} s"
    return f"{start}, although {off}"


def table(result: Descent) -> str:
    """The three paths, and the angles by batch size."""
    header = ["steps on", "steps", "learning rate", "seconds", "ms a step", "examples seen", "first cost", "last cost"]
    formats, paths = (",", "g", ".2f", ".3f", ",", ".4f", ".4f"), []
    for path in result.paths:
        steps, seconds = path.steps[-1], path.seconds[-1]
        values = (steps, path.learning_rate, seconds, 1000 * seconds / steps, steps * path.batch_size)
        paths.append([path.name, *map(format, (*values, path.costs[0], path.costs[-1]), formats)])
    angles = [
        [where, f"{size:,}", *(f"{kind(found):.1f}°" for kind in (mean, min, max))]
        for where, by_size in result.angles.items()
        for size, found in by_size.items()
    ]
    walked, close = ["steps", "ms a step", "length of the way", "from start to end"], []
    for name, points, seconds in (
        ("careful", result.close.careful, result.close.seconds[0]),
        ("staggering", result.close.drunk, result.close.seconds[1]),
    ):
        lengths = points.diff(dim=0).norm(dim=1).sum().item(), (points[-1] - points[0]).norm().item()
        close.append(
            [
                f"{len(points) - 1} {name}",
                f"{1000 * seconds / (len(points) - 1):.3f}",
                *(f"{length:.3f}" for length in lengths),
            ]
        )
    return (
        f"Three ways down from one start. {result.caption}.\n\n{text.table(header, paths)}\n\n"
        f"{text.table(['angle to the true gradient', 'batch size', 'mean', 'least', 'most'], angles)}\n\n"
        f"The plane of the picture holds {result.plane.explained:.1%} of the paths' variance.\n\n"
        f"Seen from close, from the end of the mini-batches:\n\n{text.table(walked, close)}"
    )


COLOURS = style.LINES[:3]


@style.styled
def figure(result: Descent, narrow: bool = False) -> Figure:
    """The paths over the surface, and a few steps from close; the cost against time and examples; the angles."""
    note = (
        f"Contours: the cost on {MEASURED:,} training examples. The large plane is the one that fits the three paths "
        "best; "
        f"{result.plane.explained:.0%} of the paths' variance lies in it, so they run a little above or below it. The "
        "times are those of the machine that drew this."
    )
    rows: list[style.Row] = [
        (
            5.2,
            [
                style.Panel(partial(_surface, result=result), 1.15, 4.4),
                style.Panel(partial(_close, close=result.close), 1, 4.2),
            ],
        ),
        (3.4, [style.Panel(partial(_seconds, paths=result.paths)), style.Panel(partial(_seen, paths=result.paths))]),
        (3.0, [style.Panel(partial(_angles, result=result))]),
    ]
    return style.compose(rows, finding(result), note, result.caption, narrow)


OUTLINE = [Stroke(linewidth=3.6, foreground="white"), Normal()]
TEXT_OUTLINE = [Stroke(linewidth=2.6, foreground="white"), Normal()]


def _label(axes: Axes, where: tuple[float, float], written: str, colour: str, **place: Any) -> None:
    """A curve's name beside one of its points."""
    options = {"textcoords": "offset points", "xytext": (0, 10), "ha": "center", **place}
    axes.annotate(written, where, size=9, weight="bold", color=colour, zorder=9, path_effects=TEXT_OUTLINE, **options)


def _surface(part: SubFigure, result: Descent) -> None:
    """The paths from above, over lines of equal cost."""
    style.heading(part, "The three ways down, from above")
    axes = part.subplots()
    drawn = contours(axes, result.surface)
    for i, (path, colour) in enumerate(zip(result.paths, COLOURS, strict=True)):
        points = style.array(result.plane.project(path.points))
        (line,) = axes.plot(*points.T, "o-", color=colour, linewidth=1.8, markersize=2.6)
        line.set(zorder=5 - i, path_effects=OUTLINE)
        axes.plot(*points[-1], "o", color=colour, markersize=9, markeredgecolor="white", zorder=6)
        left = points[-1][0] > np.mean(axes.get_xlim())
        name = f"{path.steps[-1]:,} steps:\n{path.name}"
        _label(axes, tuple(points[-1]), name, colour, xytext=(-8 if left else 8, 6), ha="right" if left else "left")
    axes.plot(*points[0], "*", color=style.INK, markersize=17, markeredgecolor="white", zorder=7)
    _label(axes, tuple(points[0]), "start", style.INK, xytext=(0, -20))
    axes.set(xlabel="first principal direction of the paths", ylabel="second principal direction")
    style.colourbar(drawn, axes, "cost").ax.yaxis.set_major_formatter("{x:.2g}")


def _close(part: SubFigure, close: CloseUp) -> None:
    """The steps of both men, one by one."""
    steps = len(close.drunk) - 1
    style.heading(part, f"From close: the next {steps} steps of both")
    axes = part.subplots()
    drawn = contours(axes, close.surface)
    for points, colour, name, seconds, order, below in (
        (close.drunk, COLOURS[1], "mini-batches", close.seconds[1], 4, False),
        (close.careful, COLOURS[0], "all examples", close.seconds[0], 5, True),
    ):
        flat = style.array(close.plane.project(points))
        (line,) = axes.plot(*flat.T, "o-", color=colour, linewidth=1.3, markersize=3.2)
        line.set(zorder=order, path_effects=OUTLINE)
        place = {
            "xytext": (0, -22 if below else 10),
            "ha": "right" if flat[-1][0] > np.mean(axes.get_xlim()) else "left",
        }
        _label(axes, tuple(flat[-1]), f"{name}, {text.number(seconds, 2)} s", colour, **place)
    axes.plot(*flat[0], "*", color=style.INK, markersize=15, markeredgecolor="white", zorder=7)
    axes.set(xlabel="the careful way", ylabel="where the quick steps differ most")
    style.colourbar(drawn, axes, "cost").ax.yaxis.set_major_formatter("{x:.3g}")


def _seconds(part: SubFigure, paths: list[Path]) -> None:
    """The cost against time."""
    style.heading(part, "Cost against time")
    axes = part.subplots()
    for path, colour in zip(paths, COLOURS, strict=True):
        axes.plot(path.seconds[1:], path.costs[1:], color=colour, linewidth=1.8)
    _name_curves(axes, paths, [path.seconds for path in paths])
    axes.set_xlabel("seconds")


def _seen(part: SubFigure, paths: list[Path]) -> None:
    """The cost against the number of examples that were asked."""
    style.heading(part, "Cost against examples seen")
    axes = part.subplots()
    seen = [[float(step * path.batch_size) for step in path.steps] for path in paths]
    for path, counts, colour in zip(paths, seen, COLOURS, strict=True):
        axes.plot(counts[1:], path.costs[1:], color=colour, linewidth=1.8)
    _name_curves(axes, paths, seen)
    axes.set_xlabel("examples")


def _name_curves(axes: Axes, paths: list[Path], across: list[list[float]]) -> None:
    """Each curve's name where it has come half the way down, on a logarithmic axis."""
    axes.set(xscale="log", ylabel="cost", ylim=(0, 1.12 * max(max(path.costs) for path in paths)))
    style.decimal_ticks(axes.xaxis)
    axes.grid()
    for place, (path, xs, colour) in enumerate(zip(paths, across, COLOURS, strict=True)):
        middle = (path.costs[0] + min(path.costs)) / (2.6, 2.0, 1.5)[place]
        i = next(i for i, cost in enumerate(path.costs) if i and cost <= max(middle, min(path.costs)))
        beside = (0, -14) if place == 0 else (6, 4)
        _label(axes, (xs[i], path.costs[i]), path.name.removesuffix(" examples"), colour, xytext=beside, ha="left")


def _angles(part: SubFigure, result: Descent) -> None:
    """Every measured angle by batch size."""
    style.heading(part, "How far off a mini-batch points, by its size")
    axes = part.subplots()
    for (where, by_size), colour, shift in zip(result.angles.items(), COLOURS[1:], (0.93, 1.07), strict=False):
        sizes = [size * shift for size in by_size]
        for size, found in zip(sizes, by_size.values(), strict=True):
            axes.plot([size] * len(found), found, "o", color=colour, alpha=0.25, markersize=4, markeredgewidth=0)
        means = [mean(found) for found in by_size.values()]
        axes.plot(sizes, means, "o-", color=colour, linewidth=1.6)
        last = sizes[-1]
        if where == "at the start":  # falls early: the room is over its left end
            _label(axes, (sizes[:2][-1], means[:2][-1]), where, colour, xytext=(8, 3), ha="left")
        else:  # falls late: over its right end
            _label(
                axes,
                (3 * last, means[-2:][0]),
                where.replace("the end ", "the end\n"),
                colour,
                xytext=(0, 0),
                ha="right",
            )
    axes.axhline(90, color=style.SOFT, linewidth=0.9, linestyle=":")
    axes.text(
        0.99, 92, "90°: a random direction", transform=axes.get_yaxis_transform(), va="bottom", ha="right", size=9
    )
    axes.set(xscale="log", xlabel="examples in the mini-batch", ylabel="degrees", yticks=range(0, 121, 30))
    axes.set_ylim(bottom=-4)
    axes.set_xlim(right=3.2 * last)
    axes.grid(axis="y")
    style.decimal_ticks(axes.xaxis)
