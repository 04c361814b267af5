"""Only: what happens to a network that goes on training on the images of one digit alone.

    python -m bp_torch explain only --digit 2

Every step is one of ``training.TrainingStep``; after each, all test images go forward through the network.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import NamedTuple

import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from bp_torch import text
from bp_torch.backprop import forward
from bp_torch.data import CLASSES, PIXEL_SCALE, Examples
from bp_torch.explain import style
from bp_torch.explain.subject import CommonOptions, Subject, UsageError, check_digit, check_least, train_steps
from bp_torch.network import Network
from bp_torch.training import Config

MADE_BY = ("backprop.backward", "step.TrainingStep.step")

IDEA = (
    "The wishes of one digit's images serve that digit only. If the network hears no others, the quickest way to lower "
    "the cost is to give that one answer to every image, and the network learns to do so. Only the average over "
    "examples of every kind makes it tell them apart."
)


@dataclass(frozen=True)
class Options(CommonOptions):
    """The digit, and the number of steps."""

    digit: int = 2
    """The digit whose images are the only ones."""
    steps: int = 400
    """Training steps, each on a mini-batch as large as the run's."""

    def __post_init__(self) -> None:
        """Raise ValueError for what is no digit, and for no steps."""
        super().__post_init__()
        check_digit(self.digit)
        check_least(steps=(self.steps, 1))


class Only(NamedTuple):
    """How the network classifies the test images after each step; index 0 is before the first.

    Attributes:
        digit: the only one that it still learns from.
        fractions: of the test images classified as 0, …, 9, (steps + 1, 10).
        accuracy: on the test images, (steps + 1,).
        images: one test image of each digit, (10, 784).
        predictions: for these images, (steps + 1, 10).
        batch_size: examples per step.
        caption: which network this is.
    """

    digit: int
    fractions: Tensor
    accuracy: Tensor
    images: Tensor
    predictions: Tensor
    batch_size: int
    caption: str


def train_on_digit(
    network: Network, config: Config, training: Examples, test: Examples, digit: int, steps: int
) -> tuple[Tensor, int]:
    """Train ``network`` (which changes) on the images of ``digit`` alone.

    Returns the predictions for all N test images, first and after each step, (steps + 1, N), and the batch size.
    """
    alone = Examples(*(tensor[training.labels == digit] for tensor in training))
    n = len(alone.labels)
    batch_size = n if config.batch_size == "full" else min(config.batch_size, n)
    config = dataclasses.replace(config, epochs=ceil(steps / ceil(n / batch_size)))
    x = test.x.to(network.dtype) * PIXEL_SCALE
    predictions = [forward(network, x).activations[-1].argmax(1)]
    for step in train_steps(config, network, alone, f"only {digit}s"):
        predictions.append(forward(network, x).activations[-1].argmax(1))
        if step == steps:
            break
    return torch.stack(predictions), batch_size


def explain(subject: Subject, options: Options) -> Only:
    """Train a copy of the network on ``--digit`` alone for ``--steps`` steps."""
    digit, training, test = options.digit, subject.training, subject.test
    if not (training.labels == digit).any():
        raise UsageError(f"--digit: there is no training example of a {digit}")
    network = subject.network.to()
    predictions, batch_size = train_on_digit(network, subject.config, training, test, digit, options.steps)
    fractions = torch.stack([(predictions == j).double().mean(1) for j in range(CLASSES)], 1)
    accuracy = (predictions == test.labels).double().mean(1)
    firsts = torch.stack([(test.labels == j).int().argmax() for j in range(CLASSES)])
    images = test.x[firsts].double() * PIXEL_SCALE
    return Only(digit, fractions, accuracy, images, predictions[:, firsts], batch_size, subject.caption)


def finding(result: Only) -> str:
    """What the numbers say."""
    called = result.fractions[:, result.digit]
    return (
        f"After {len(called) - 1:,} steps on {result.digit}s alone, {called[-1].item():.0%} of all test images are "
        f"called {result.digit} ({called[0].item():.0%} before), and {result.accuracy[-1].item():.0%} are called what "
        f"they are ({result.accuracy[0].item():.0%} before)"
    )


def table_steps(steps: int) -> list[int]:
    """Step 0, then about doubling, to the last."""
    return [0, *(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if step < steps), steps]


def figure_steps(fraction: Tensor, predictions: Tensor) -> list[int]:
    """Step 0, where ``fraction`` (steps + 1,) has made a quarter, half and three quarters of its rise, the last.

    Of steps that follow each other with the same ``predictions`` (steps + 1, 10), only the first.
    """
    rise = fraction - fraction[0]
    reached = [int((rise >= part * rise.max()).int().argmax()) for part in (0.25, 0.5, 0.75)]
    steps = list(dict.fromkeys([0, *reached, len(fraction) - 1]))
    rows = [predictions[step].tolist() for step in steps]
    return [step for i, step in enumerate(steps) if i == 0 or rows[i] != rows[i - 1]]


def table(result: Only) -> str:
    """How the test images are classified, after some of the steps."""
    rows = [
        [
            f"{step:,}",
            f"{result.fractions[step, result.digit].item():.2%}",
            f"{result.accuracy[step].item():.2%}",
            "  ".join(map(str, result.predictions[step].tolist())),
        ]
        for step in table_steps(len(result.accuracy) - 1)
    ]
    header = ["step", f"called {result.digit}", "called right", "a 0, 1, …, 9 are called"]
    about = f"Training on {result.digit}s alone, {result.batch_size:,} a step. {result.caption}."
    return f"{about}\n\n{text.table(header, rows)}"


DIGIT, RIGHT = style.LINES[1], style.LINES[2]
"""The colours of "called DIGIT" and of "called what they are"."""


@style.styled
def figure(result: Only, narrow: bool = False) -> Figure:
    """How all test images are classified after each step, and ten of them with their predictions."""
    note = (
        f"Each step learns from {result.batch_size:,} images of a {result.digit} and from nothing else; after each, "
        "the network classifies all test images."
    )
    shown = figure_steps(result.fractions[:, result.digit], result.predictions)
    columns = 5 if narrow else CLASSES
    rows: list[style.Row] = [
        (4.2, [style.Panel(partial(_fractions, result=result), 1, 3.6)]),
        *((1.2, [style.Panel(partial(_called, result=result, step=step, columns=columns), 1, 1.7)]) for step in shown),
    ]
    return style.compose(rows, finding(result), note, result.caption, narrow)


def _called(part: SubFigure, result: Only, step: int, columns: int) -> None:
    """Ten test images, and what they are called after ``step``."""
    style.heading(
        part, f"After step {step:,} they are called" if step else "Ten of the test images, and what they are called"
    )
    places = part.subplots(CLASSES // columns, columns, squeeze=False).flat
    for axes, pixels, prediction in zip(places, result.images, result.predictions[step].tolist(), strict=True):
        style.digit(axes, pixels)
        colour = DIGIT if prediction == result.digit else style.SOFT
        axes.text(31, 13.5, f"{prediction}", va="center", size=13, weight="bold", color=colour)


def _fractions(part: SubFigure, result: Only) -> None:
    """The test images by what they are called, stacked, ``digit`` at the bottom; and how many are called right."""
    style.heading(part, "What the test images are called")
    axes = part.subplots()
    steps = range(len(result.accuracy))
    order = [result.digit, *(j for j in range(CLASSES) if j != result.digit)]
    percent = 100 * result.fractions.cpu()[:, order]
    greys = [f"{0.66 + 0.03 * i:.3f}" for i in range(CLASSES - 1)]
    axes.stackplot(steps, style.array(percent.T), colors=[DIGIT, *greys], edgecolor="white", linewidth=0.5)
    for colour, width in (("white", 4.5), (RIGHT, 2.4)):
        axes.plot(steps, 100 * style.array(result.accuracy), color=colour, linewidth=width)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.88, "pad": 2}
    end, last = steps[-1], 100 * result.accuracy[-1].item()
    axes.text(0.98 * end, last + 5, "called what they are", ha="right", weight="bold", color=RIGHT, bbox=box)
    axes.text(0.98 * end, 88, f"called {result.digit}", ha="right", weight="bold", color=DIGIT, bbox=box)
    axes.set(xlabel="step", ylabel="called (at step 0)", xlim=(0, end), ylim=(0, 100))
    axes.locator_params(axis="x", integer=True)
    middles = percent[0].cumsum(0) - percent[0] / 2
    readable = [(middles[i].item(), j) for i, j in enumerate(order) if percent[0, i] > 2]
    axes.set_yticks(*zip(*readable, strict=True))
    axes.tick_params(axis="y", length=0)
    axes.secondary_yaxis("right").set_ylabel("% of the test images")
