"""Only: what becomes of a network that listens to one digit alone.

    python -m bp_torch explain only --digit 2

The network goes on training (``walk.Walk``) on the images of that digit and no others, and after every step all
test images are shown to it.
"""

import dataclasses
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bp_torch.backprop import forward
from bp_torch.data import CLASSES, PIXEL_SCALE, Examples
from bp_torch.explain import style
from bp_torch.explain.subject import CommonOptions, Subject, UsageError, check_digit, check_least, walk_down
from bp_torch.network import Network
from bp_torch.training import Config

MADE_BY = ("backprop.backward", "walk.Walk.step")

IDEA = (
    "The wishes of one digit's images serve that digit only. If nobody else is heard, the shortest way down is to give "
    "that answer to everything, and the network takes it. It is the average over all kinds of examples that makes it "
    "tell them apart."
)


@dataclass(frozen=True)
class Options(CommonOptions):
    """The one digit, and how long only it is heard."""

    digit: int = 2
    """The digit whose images are the only ones."""
    steps: int = 400
    """Steps down, each on a mini-batch as large as the run's."""

    def __post_init__(self) -> None:
        """Refuse a digit that is none, and no steps at all."""
        super().__post_init__()
        check_digit(self.digit)
        check_least(steps=(self.steps, 1))


class Only(NamedTuple):
    """What the network calls the test images, step by step; step 0 is before the first.

    Attributes:
        digit: the only one that it still learns from.
        shares: of the test images called 0, …, 9, (steps + 1, 10).
        right: share of the test images called what they are, (steps + 1,).
        images: one test image of each digit, (10, 784).
        called: what these are called, (steps + 1, 10).
        batch_size: examples per step.
        caption: which network this is.
    """

    digit: int
    shares: Tensor
    right: Tensor
    images: Tensor
    called: Tensor
    batch_size: int
    caption: str


def listen_to(
    network: Network, config: Config, training: Examples, test: Examples, digit: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Train ``network`` (which changes) on ``digit`` alone.

    Returns what all test images are called, (steps + 1, N), and whether that is right.
    """
    alone = Examples(training.x[training.labels == digit], training.labels[training.labels == digit])
    batch_size = len(alone.labels) if config.batch_size == "full" else min(config.batch_size, len(alone.labels))
    epochs = ceil(steps / ceil(len(alone.labels) / batch_size))
    config = dataclasses.replace(config, epochs=epochs)
    x = test.x.to(network.dtype).mul_(PIXEL_SCALE)
    called = [forward(network, x).activations[-1].argmax(1)]
    for step in walk_down(config, network, alone, f"only {digit}s"):
        called.append(forward(network, x).activations[-1].argmax(1))
        if step == steps:
            break
    names = torch.stack(called)
    return names, names == test.labels


def explain(subject: Subject, options: Options) -> Only:
    """Train a copy of the network on ``--digit`` alone for ``--steps`` steps."""
    if not (subject.training.labels == options.digit).any():
        raise UsageError(f"--digit: there is no training example of a {options.digit}")
    test = subject.test
    names, right = listen_to(subject.network.to(), subject.config, subject.training, test, options.digit, options.steps)
    shares = torch.stack([(names == j).double().mean(1) for j in range(CLASSES)], 1)
    firsts = torch.stack([(test.labels == j).int().argmax() for j in range(CLASSES)])
    batch_size = subject.config.batch_size
    examples = int((subject.training.labels == options.digit).sum())
    return Only(
        options.digit,
        shares,
        right.double().mean(1),
        test.x[firsts].double() * PIXEL_SCALE,
        names[:, firsts],
        examples if batch_size == "full" else min(batch_size, examples),
        subject.caption,
    )


def finding(result: Only) -> str:
    """What the numbers say."""
    share = result.shares[:, result.digit]
    steps = len(share) - 1
    return (
        f"After {steps} steps on {result.digit}s alone, {share[-1].item():.0%} of all test images are called "
        f"{result.digit} ({share[0].item():.0%} before), and {result.right[-1].item():.0%} are called what they are "
        f"({result.right[0].item():.0%} before)"
    )


def milestones(steps: int) -> list[int]:
    """Step 0, then about doubling, to the last."""
    return [0, *(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if step < steps), steps]


def turning_points(share: Tensor) -> list[int]:
    """Step 0, where ``share`` (steps + 1,) first has a quarter, half and three quarters of its rise, and the last."""
    risen = share - share[0]
    reached = [int((risen >= part * risen.max()).int().argmax()) for part in (0.25, 0.5, 0.75)]
    return list(dict.fromkeys([0, *reached, len(share) - 1]))


def table(result: Only) -> str:
    """Shares at some steps."""
    rows = [
        [
            f"{step}",
            f"{result.shares[step, result.digit].item():.2%}",
            f"{result.right[step].item():.2%}",
            "  ".join(map(str, result.called[step].tolist())),
        ]
        for step in milestones(len(result.right) - 1)
    ]
    header = ["step", f"called {result.digit}", "called right", "a 0, 1, …, 9 are called"]
    return f"Training on {result.digit}s alone, {result.batch_size} a step. {result.caption}.\n\n" + style.text_table(
        header, rows
    )


@style.styled
def figure(result: Only) -> Figure:
    """What all test images are called, step by step, and ten of them with their names."""
    note = (
        f"Each step learns from {result.batch_size} images of a {result.digit} and from nothing else; after each, "
        f"all test images are named. Blue: called {result.digit}."
    )
    steps = len(result.right) - 1
    shown = turning_points(result.shares[:, result.digit])
    page = style.Page(5.0 + 0.95 * len(shown), finding(result), note, result.caption)
    axes = page.axes(1.05, 0.5, 10.0, 3.3, "What the test images are called")
    others = [j for j in range(CLASSES) if j != result.digit]
    order = [result.digit, *others]
    greys = [f"{0.62 + 0.035 * i:.3f}" for i in range(CLASSES - 1)]
    axes.stackplot(
        range(steps + 1),
        100 * style.array(result.shares[:, order].T),
        colors=[style.RAISE, *greys],
        edgecolor="white",
        linewidth=0.5,
    )
    for colour, width in (("white", 4.5), (style.LOWER, 2.4)):
        axes.plot(range(steps + 1), 100 * style.array(result.right), color=colour, linewidth=width)
    axes.annotate(
        "called what they are",
        (steps, 100 * result.right[-1].item()),
        (-8, 6),
        textcoords="offset points",
        color="white",
        ha="right",
        weight="bold",
    )
    edges = 100 * torch.cat([torch.zeros(1, dtype=torch.float64), result.shares[0, order].cumsum(0).cpu()])
    for j, low, high in zip(order, edges.tolist(), edges[1:].tolist(), strict=False):
        axes.annotate(
            f"{j}",
            (0, (low + high) / 2),
            (-7, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            size=9,
            annotation_clip=False,
            color=style.RAISE if j == result.digit else style.SOFT,
        ) if high - low > 2 else None
    axes.set(xlim=(0, steps), ylim=(0, 100), xlabel="step", ylabel="% of the test images")
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    page.text(0.62, 2.15, "called", rotation=90, va="center", ha="right")
    top = 4.75
    page.text(style.MARGIN, top - 0.3, "Ten of them, and what they are called", weight="bold", size=11)
    for row, step in enumerate(shown):
        page.text(style.MARGIN, top + 0.35 + 0.95 * row, f"step {step}", size=10, color=style.SOFT)
        for j in range(CLASSES):
            name = int(result.called[step, j])
            axes = page.axes(1.35 + 1.0 * j, top + 0.1 + 0.95 * row, 0.66, 0.66)
            style.digit(axes, result.images[j])
            axes.text(
                1.06,
                0.5,
                f"{name}",
                transform=axes.transAxes,
                va="center",
                size=13,
                weight="bold",
                color=style.RAISE if name == result.digit else style.SOFT,
            )
    return page.figure
