"""Descent: gradient descent from one start by three methods: all examples per step, mini-batches, single examples.

    python -m bp_torch explain descent

Every step is one of ``training.TrainingStep``. The surface is the cost on the plane that fits the three paths best
(PCA). From the end of the mini-batches, both men walk on, step by step, on a plane of their own. The angles are between
the gradient of a mini-batch and the true gradient.
"""

import time
from collections.abc import Callable, Collection, Container
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from bp_torch.backprop import backward, forward
from bp_torch.data import Examples, batch, first_shuffled
from bp_torch.explain import style
from bp_torch.explain.drawing import array, decimal_ticks
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import DescentOptions
from bp_torch.explain.subject import Subject, UsageError, batch_size_of, full_gradient, train_steps
from bp_torch.explain.surface import Plane, Surface, contours, cost_at, plane_of_steps, plane_through, surface_on
from bp_torch.network import Network
from bp_torch.text import Column, column_table, number
from bp_torch.training import Config

SNAPSHOTS = 80  # points of a path that are kept, besides the start
MEASURED = 5_000  # training examples that the cost along the paths and on the surface is measured on
COLOURS = style.LINES[:3]
OUTLINE = [Stroke(linewidth=3.6, foreground="white"), Normal()]
TEXT_OUTLINE = [Stroke(linewidth=2.6, foreground="white"), Normal()]


class Path(NamedTuple):
    """The path of one method as S snapshots, of which the first is of the start."""

    name: str
    batch_size: int
    learning_rate: float
    steps: list[int]  # made so far
    points: Tensor  # θ, (S, P)
    seconds: list[float]  # spent on steps so far
    costs: list[float]  # of ``MEASURED`` training examples; none where only the points are of interest


class CloseUp(NamedTuple):
    """Consecutive steps from one point near the floor."""

    careful: Path  # of the man who asks all examples
    drunk: Path  # of the other
    plane: Plane
    surface: Surface


def walk(name: str, config: Config, network: Network, examples: Examples, steps: int, kept: Container[int]) -> Path:
    """Train ``network`` (which changes) at one learning rate: the start, and those steps that are to be ``kept``."""
    config = replace(config, schedule="constant")
    snapshots, spent, start = [(0, 0.0, network.parameters.clone())], 0.0, time.perf_counter()
    for step in train_steps(config, network, examples, name, steps):
        if network.device.type == "cuda":
            torch.cuda.synchronize(network.device)
        spent += time.perf_counter() - start
        if step in kept:
            snapshots.append((step, spent, network.parameters.clone()))
        start = time.perf_counter()
    done, seconds, points = zip(*snapshots, strict=True)
    size, rate, theta = batch_size_of(config, examples), config.learning_rate, torch.stack(points).float()
    return Path(name, size, rate, list(done), theta, list(seconds), [])


def follow_path(name: str, config: Config, network: Network, examples: Examples, steps: int) -> Path:
    """The path of ``network`` (which changes); more snapshots are of the beginning than of the end."""
    kept = {round(steps * (i / SNAPSHOTS) ** 2) for i in range(SNAPSHOTS + 1)}
    path, measured = walk(name, config, network, examples, steps, kept), first_shuffled(examples, MEASURED, config.seed)
    return path._replace(costs=[cost_at(network, theta, measured, config.cost) for theta in path.points])


def close_up(config: Config, network: Network, examples: Examples, steps: int, grid: int) -> CloseUp:
    """So many steps of both men from where ``network`` is, every one kept."""
    careful, drunk = (
        walk("from close", each, network.to(), examples, steps, range(steps + 1))
        for each in (replace(config, batch_size="full"), config)
    )
    plane, measured = plane_of_steps(careful.points, drunk.points), first_shuffled(examples, MEASURED, config.seed)
    surface = surface_on(plane, network, measured, config.cost, torch.cat([careful.points, drunk.points]), grid)
    return CloseUp(careful, drunk, plane, surface)


def angle(a: Tensor, b: Tensor) -> float:
    """The angle between two vectors, in degrees; nan where one is zero."""
    cosine = (a.double() @ b.double()) / (a.double().norm() * b.double().norm())
    return float(cosine.clamp(-1, 1).acos().rad2deg())


def mean(values: list[float]) -> float:
    """The mean of the values that are numbers: no angle is known where a gradient is zero."""
    known = [value for value in values if value == value]
    return fmean(known) if known else 0.0


def spread(angles: Collection[list[float]]) -> list[Column]:
    """The columns of a table about several angles a row."""
    kinds: dict[str, Callable[[list[float]], float]] = {"mean": mean, "least": min, "most": max}
    return [(name, "", [f"{kind(found):.1f}°" for found in angles]) for name, kind in kinds.items()]


def angles_by_size(network: Network, examples: Examples, cost: str, seed: int) -> dict[int, list[float]]:
    """Between the gradients of random mini-batches and the true one, by batch size."""
    true, n, angles = full_gradient(network, examples, cost), len(examples.labels), dict[int, list[float]]()
    generator = torch.Generator().manual_seed(seed)
    for size in (size for size in (1, 10, 100, 1_000, 10_000) if size < n):
        drawn = [torch.randint(n, (size,), generator=generator) for _ in range(10 if size == 10_000 else 30)]
        batches = (batch(examples, indices.to(examples.labels.device), network.dtype) for indices in drawn)
        angles[size] = [angle(backward(network, forward(network, x), y, cost).gradient, true) for x, y in batches]
    return angles


class Descent(Idea):
    """Three paths down (all examples, mini-batches, single examples), the surface below them, and angles."""

    def __init__(self, subject: Subject, options: DescentOptions) -> None:
        """Compute three paths from the run's start, and the surface below them."""
        config, training, self.caption, self.measured = subject.config, subject.training, subject.caption, MEASURED
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
        self.paths = [follow_path(name, method, start.to(), training, steps) for name, method, steps in methods]
        points = torch.cat([path.points for path in self.paths])
        self.plane, measured = plane_through(points), first_shuffled(training, MEASURED, config.seed)
        self.surface = surface_on(self.plane, start, measured, config.cost, points, options.grid)
        floor = start.to()
        floor.parameters.copy_(self.paths[1].points[-1])
        self.close = close_up(replace(config, batch_size=mini), floor, training, options.close_steps, options.grid)
        networks = {"at the start": start} | ({"at the end of the run": subject.network} if subject.trained else {})
        self.angles = {  # in degrees, by network and batch size
            name: angles_by_size(network, training, config.cost, options.seed) for name, network in networks.items()
        }

    def finding(self) -> str:
        """When the mini-batches are where the careful steps arrive, and how far off they point."""
        full, mini, _ = self.paths
        when = next((t for t, cost in zip(mini.seconds, mini.costs, strict=True) if cost <= min(full.costs)), None)
        where, by_size = list(self.angles.items())[-1]
        size = min(by_size, key=lambda size: abs(size - mini.batch_size))
        off = f"{where} {size:,} examples point {mean(by_size[size]):.0f}° off the true gradient"
        careful = f"{full.steps[-1]:,} careful steps"
        if when is None:
            return f"{careful} lower the cost to {number(min(full.costs))}, further than {mini.name}; {off}"
        name, took = mini.name.capitalize(), number(full.seconds[-1], 2)
        return f"{name} reach in {number(when, 2)} s what {careful} reach in {took} s, although {off}"

    def table(self) -> str:
        """The three paths, the angles by batch size, and the steps from close."""
        paths = column_table(
            ("steps on", "", [path.name for path in self.paths]),
            ("steps", ",", [path.steps[-1] for path in self.paths]),
            ("learning rate", "g", [path.learning_rate for path in self.paths]),
            ("seconds", ".2f", [path.seconds[-1] for path in self.paths]),
            ("ms a step", ".3f", [1000 * path.seconds[-1] / path.steps[-1] for path in self.paths]),
            ("examples seen", ",", [path.steps[-1] * path.batch_size for path in self.paths]),
            ("first cost", ".4f", [path.costs[0] for path in self.paths]),
            ("last cost", ".4f", [path.costs[-1] for path in self.paths]),
        )
        found = [(name, size, each) for name, by_size in self.angles.items() for size, each in by_size.items()]
        angles = column_table(
            ("angle to the true gradient", "", [name for name, _, _ in found]),
            ("batch size", ",", [size for _, size, _ in found]),
            *spread([each for _, _, each in found]),
        )
        walks = (self.close.careful, self.close.drunk)
        steps, ways = walks[0].steps[-1], [way.points for way in walks]
        close = column_table(
            ("steps", "", [f"{steps} careful", f"{steps} staggering"]),
            ("ms a step", ".3f", [1000 * way.seconds[-1] / steps for way in walks]),
            ("length of the way", ".3f", [points.diff(dim=0).norm(dim=1).sum() for points in ways]),
            ("from start to end", ".3f", [(points[-1] - points[0]).norm() for points in ways]),
        )
        return (
            f"Three ways down from one start. {self.caption}.\n\n{paths}\n\n{angles}\n\n"
            f"The plane of the picture holds {self.plane.explained:.1%} of the paths' variance.\n\n"
            f"Seen from close, from the end of the mini-batches:\n\n{close}"
        )

    def rows(self, narrow: bool) -> list[Row]:
        """The paths over the surface, and a few steps from close; the cost against time and examples; the angles."""
        ways = [
            Panel("The three ways down, from above", self.draw_surface, 1.15, 4.4),
            Panel(f"From close: the next {self.close.drunk.steps[-1]} steps of both", self.draw_close, 1, 4.2),
        ]
        seconds = [path.seconds for path in self.paths]
        seen = [[float(step * path.batch_size) for step in path.steps] for path in self.paths]
        costs = [
            Panel("Cost against time", partial(self.draw_costs, seconds, "seconds")),
            Panel("Cost against examples seen", partial(self.draw_costs, seen, "examples")),
        ]
        angles = Panel("How far off a mini-batch points, by its size", self.draw_angles)
        return [(5.2, ways), (3.4, costs), (3.0, [angles])]

    def draw_surface(self, part: SubFigure) -> None:
        """The paths from above, over lines of equal cost."""
        axes = part.subplots()
        contours(axes, self.surface, digits=2)
        for i, (path, colour) in enumerate(zip(self.paths, COLOURS, strict=True)):
            points = array(self.plane.project(path.points))
            name = f"{path.steps[-1]:,} steps: {path.name}"
            look: dict[str, Any] = {"color": colour, "label": name, "path_effects": OUTLINE}
            axes.plot(*points.T, "o-", zorder=5 - i, linewidth=1.8, markersize=2.6, **look)
            axes.plot(*points[-1], "o", color=colour, markersize=9, markeredgecolor="white", zorder=6)
        axes.plot(*points[0], "*", color=style.INK, markersize=17, markeredgecolor="white", zorder=7)
        label(axes, tuple(points[0]), "start", style.INK, xytext=(0, -20))
        legend(axes)
        axes.set(xlabel="first principal direction of the paths", ylabel="second principal direction")

    def draw_close(self, part: SubFigure) -> None:
        """The steps of both men, one by one."""
        axes, close = part.subplots(), self.close
        contours(axes, close.surface, digits=3)
        for path, colour, name, order in (
            (close.drunk, COLOURS[1], "mini-batches", 4),
            (close.careful, COLOURS[0], "all examples", 5),
        ):
            flat, took = array(close.plane.project(path.points)), number(path.seconds[-1], 2)
            look: dict[str, Any] = {"color": colour, "label": f"{name}, {took} s", "path_effects": OUTLINE}
            axes.plot(*flat.T, "o-", zorder=order, linewidth=1.3, markersize=3.2, **look)
        axes.plot(*flat[0], "*", color=style.INK, markersize=15, markeredgecolor="white", zorder=7)
        legend(axes)
        axes.set(xlabel="the careful way", ylabel="where the quick steps differ most")

    def draw_costs(self, across: list[list[float]], unit: str, part: SubFigure) -> None:
        """The cost of each path against what it took so far."""
        axes = part.subplots()
        for path, xs, colour in zip(self.paths, across, COLOURS, strict=True):
            axes.plot(xs[1:], path.costs[1:], color=colour, linewidth=1.8, label=path.name)
        highest = max(max(path.costs) for path in self.paths)
        axes.set(xscale="log", xlabel=unit, ylabel="cost", ylim=(0, 1.12 * highest))
        decimal_ticks(axes.xaxis)
        axes.grid()
        legend(axes)

    def draw_angles(self, part: SubFigure) -> None:
        """Every measured angle by batch size."""
        axes = part.subplots()
        for (where, by_size), colour, shift in zip(self.angles.items(), COLOURS[1:], (0.93, 1.07), strict=False):
            sizes, means = [size * shift for size in by_size], [mean(found) for found in by_size.values()]
            for size, found in zip(sizes, by_size.values(), strict=True):
                axes.plot([size] * len(found), found, "o", color=colour, alpha=0.25, markersize=4, markeredgewidth=0)
            axes.plot(sizes, means, "o-", color=colour, linewidth=1.6)
            if where == "at the start":  # falls early: the room is over its left end
                label(axes, (sizes[:2][-1], means[:2][-1]), where, colour, xytext=(8, 3), ha="left")
            else:  # falls late: over its right end
                written = where.replace("the end ", "the end\n")
                label(axes, (3 * sizes[-1], means[-2:][0]), written, colour, xytext=(0, 0), ha="right")
        axes.axhline(90, color=style.SOFT, linewidth=0.9, linestyle=":")
        whole = axes.get_yaxis_transform()
        axes.text(0.99, 92, "90°: a random direction", transform=whole, va="bottom", ha="right", size=9)
        axes.set(xscale="log", xlabel="examples in the mini-batch", ylabel="degrees", yticks=range(0, 121, 30))
        axes.set(xlim=(None, 3.2 * sizes[-1]), ylim=(-4, None))
        axes.grid(axis="y")
        decimal_ticks(axes.xaxis)


def legend(axes: Axes) -> None:
    """The names of the curves, where they cover none."""
    axes.legend(loc="best", labelcolor="linecolor", prop={"size": 9, "weight": "bold"}).set_zorder(9)


def label(axes: Axes, where: tuple[float, float], written: str, colour: str, **place: Any) -> None:
    """A curve's name beside one of its points."""
    options = {"textcoords": "offset points", "xytext": (0, 10), "ha": "center", **place}
    axes.annotate(written, where, size=9, weight="bold", color=colour, zorder=9, path_effects=TEXT_OUTLINE, **options)
