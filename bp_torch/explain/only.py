"""Only: what happens to a network that goes on training on the images of one digit alone.

    python -m bp_torch explain only --digit 2

Every step is one of ``training.TrainingStep``; after each, all test images go forward through the network.
"""

from functools import partial
from itertools import chain

import torch
from matplotlib.figure import SubFigure
from torch import Tensor

from bp_torch.backprop import forward
from bp_torch.data import CLASSES, Examples, scaled
from bp_torch.explain import style
from bp_torch.explain.drawing import array, digit
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import OnlyOptions
from bp_torch.explain.subject import Subject, UsageError, batch_size_of, train_steps
from bp_torch.network import Network
from bp_torch.text import column_table
from bp_torch.training import Config

ONE, RIGHT = style.LINES[1], style.LINES[2]  # the colours of "called DIGIT" and of "called what they are"


def train_on_digit(
    network: Network, config: Config, training: Examples, test: Examples, digit: int, steps: int
) -> tuple[Tensor, int]:
    """Train ``network`` (which changes) on the images of ``digit`` alone.

    Returns the predictions for all N test images, first and after each step, (steps + 1, N), and the batch size.
    """
    alone = training.map(lambda tensor: tensor[training.labels == digit])
    x = scaled(test.x, network.dtype)
    moments = chain([0], train_steps(config, network, alone, f"only {digit}s", steps))
    predictions = [forward(network, x).activations[-1].argmax(1) for _ in moments]
    return torch.stack(predictions), batch_size_of(config, alone)


def figure_steps(fraction: Tensor, predictions: Tensor) -> list[int]:
    """Step 0, where ``fraction`` (steps + 1,) has made quarters of its rise, the last; of the same rows the first."""
    rise = fraction - fraction[0]
    reached = [int((rise >= part * rise.max()).int().argmax()) for part in (0.25, 0.5, 0.75)]
    steps = list(dict.fromkeys([0, *reached, len(fraction) - 1]))
    rows = [predictions[step].tolist() for step in steps]
    return [step for i, step in enumerate(steps) if i == 0 or rows[i] != rows[i - 1]]


class Only(Idea):
    """How the network classifies the test images after each step; index 0 is before the first."""

    def __init__(self, subject: Subject, options: OnlyOptions) -> None:
        """Train a copy of the network on ``--digit`` alone for ``--steps`` steps."""
        self.caption, self.digit, training, test = subject.caption, options.digit, subject.training, subject.test
        if not (training.labels == self.digit).any():
            raise UsageError(f"--digit: there is no training example of a {self.digit}")
        network, config, digits = subject.network.to(), subject.config, range(CLASSES)
        predictions, self.batch_size = train_on_digit(network, config, training, test, self.digit, options.steps)
        self.fractions = torch.stack([(predictions == j).double().mean(1) for j in digits], 1).cpu()  # (steps + 1, 10)
        self.accuracy = (predictions == test.labels).double().mean(1).cpu()  # (steps + 1,)
        firsts = torch.stack([(test.labels == j).int().argmax() for j in digits])
        self.images = scaled(test.x[firsts], torch.float64)  # one of each digit, (10, 784)
        self.predictions = predictions[:, firsts].cpu()  # for these images, (steps + 1, 10)

    def finding(self) -> str:
        """How many are called the digit, and how many are called what they are, after and before."""
        called = self.fractions[:, self.digit]
        return (
            f"After {len(called) - 1:,} steps on {self.digit}s alone, {called[-1].item():.0%} of all test images are "
            f"called {self.digit} ({called[0].item():.0%} before), and {self.accuracy[-1].item():.0%} are called what "
            f"they are ({self.accuracy[0].item():.0%} before)"
        )

    def table(self) -> str:
        """How the test images are classified, after some of the steps."""
        last = len(self.accuracy) - 1
        steps = [0, *(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n < last), last]
        shown = column_table(
            ("step", ",", steps),
            (f"called {self.digit}", ".2%", self.fractions[steps, self.digit]),
            ("called right", ".2%", self.accuracy[steps]),
            ("a 0, 1, …, 9 are called", "", ["  ".join(map(str, row)) for row in self.predictions[steps].tolist()]),
        )
        return f"Training on {self.digit}s alone, {self.batch_size:,} a step. {self.caption}.\n\n{shown}"

    def rows(self, narrow: bool) -> list[Row]:
        """How all test images are classified after each step, and ten of them with their predictions."""
        rows: list[Row] = [(4.2, [Panel("What the test images are called", self.draw_fractions, 1, 3.6)])]
        for step in figure_steps(self.fractions[:, self.digit], self.predictions):
            title = f"After step {step:,} they" if step else "Ten of the test images, and what they"
            draw = partial(self.draw_called, step, 5 if narrow else CLASSES)
            rows.append((1.2, [Panel(f"{title} are called", draw, 1, 1.7)]))
        return rows

    def draw_called(self, step: int, columns: int, part: SubFigure) -> None:
        """Ten test images, and what they are called after ``step``."""
        places = part.subplots(CLASSES // columns, columns, squeeze=False).flat
        for axes, pixels, prediction in zip(places, self.images, self.predictions[step].tolist(), strict=True):
            digit(axes, pixels)
            colour = ONE if prediction == self.digit else style.SOFT
            axes.text(31, 13.5, f"{prediction}", va="center", size=13, weight="bold", color=colour)

    def draw_fractions(self, part: SubFigure) -> None:
        """The test images by what they are called, stacked, ``digit`` at the bottom; and how many are called right."""
        axes, steps = part.subplots(), range(len(self.accuracy))
        order = [self.digit, *(j for j in range(CLASSES) if j != self.digit)]
        percent = 100 * self.fractions[:, order]
        greys = [f"{0.66 + 0.03 * i:.3f}" for i in range(CLASSES - 1)]
        axes.stackplot(steps, array(percent.T), colors=[ONE, *greys], edgecolor="white", linewidth=0.5)
        for colour, width in (("white", 4.5), (RIGHT, 2.4)):
            axes.plot(steps, 100 * array(self.accuracy), color=colour, linewidth=width)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.88, "pad": 2}
        end, last = steps[-1], 100 * self.accuracy[-1].item()
        axes.text(0.98 * end, last + 5, "called what they are", ha="right", weight="bold", color=RIGHT, bbox=box)
        axes.text(0.98 * end, 88, f"called {self.digit}", ha="right", weight="bold", color=ONE, bbox=box)
        axes.set(xlabel="step", ylabel="called (at step 0)", xlim=(0, end), ylim=(0, 100))
        axes.locator_params(axis="x", integer=True)
        middles = percent[0].cumsum(0) - percent[0] / 2
        readable = [(middles[i].item(), j) for i, j in enumerate(order) if percent[0, i] > 2]
        axes.set_yticks(*zip(*readable, strict=True))
        axes.tick_params(axis="y", length=0)
        axes.secondary_yaxis("right").set_ylabel("% of the test images")
