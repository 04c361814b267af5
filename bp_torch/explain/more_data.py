"""Data: how well the network does on images that it never saw, by the number of those that it learned from.

    python -m bp_torch explain data

Every network looks at as many images in all, at the same learning rates; only how often the same ones come back
differs. The loop is ``walk.Walk``, the score ``training.evaluate``.
"""

import dataclasses
from dataclasses import dataclass
from statistics import fmean as mean
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from bp_torch.data import PIXEL_SCALE, Examples, first_shuffled
from bp_torch.explain import style
from bp_torch.explain.subject import CommonOptions, Subject, check_least, walk_down
from bp_torch.training import Config, Score, evaluate

MADE_BY = ("walk.Walk.step", "training.evaluate")

IDEA = (
    "All of this rests on labelled examples, and on many of them. From a hundred images the network learns those "
    "hundred by heart and little about the next one; each tenfold more closes much of the gap between what it has "
    "seen and what it has not. That digits come labelled by the ten thousand is why they are the usual first exercise."
)

COUNTS = (100, 300, 1_000, 3_000, 10_000, 30_000)
"""Numbers of training examples that are tried, up to all of them."""


@dataclass(frozen=True)
class Options(CommonOptions):
    """How long and how often each number of examples is tried."""

    epochs: int = 5
    """Each network looks at as many images as this many passes over all training examples hold."""
    seeds: int = 3
    """Networks for each number of examples: other initial values, other examples, other shuffles."""

    def __post_init__(self) -> None:
        """Refuse no training at all."""
        super().__post_init__()
        check_least(epochs=(self.epochs, 1), seeds=(self.seeds, 1))


class Learned(NamedTuple):
    """What a network learned from ``examples`` of the training examples, with this seed."""

    examples: int
    seed: int
    training: Score
    test: Score


class MoreData(NamedTuple):
    """Every network that was trained, the fewest examples first, and the images that the fewest learned from."""

    learned: list[Learned]
    images: Tensor
    caption: str

    def counts(self) -> list[int]:
        """The numbers of examples, ascending."""
        return sorted({one.examples for one in self.learned})

    def values(self, count: int, which: str, of: str) -> list[float]:
        """``of`` ("cost" or "accuracy") on the ``which`` ("training" or "test") set, a value for each seed."""
        return [getattr(getattr(one, which), of) for one in self.learned if one.examples == count]


def schedule(config: Config, count: int, n: int) -> Config:
    """``config`` for ``count`` of ``n`` examples: as many seen in all, at rates that fall alike with each one."""
    if config.batch_size != "full":
        config = dataclasses.replace(config, batch_size=min(config.batch_size, count))
    return dataclasses.replace(
        config,
        epochs=max(1, round(config.epochs * n / count)),
        learning_rate_decay=config.learning_rate_decay * count / n,
    )


def learn(config: Config, training: Examples, test: Examples, count: int) -> Learned:
    """Train a network from its start on ``count`` of the training examples, drawn by the config's seed."""
    some = first_shuffled(training, count, config.seed)
    network = config.network(training.x.device)
    for _ in walk_down(schedule(config, count, len(training.labels)), network, some, f"{count:,} examples"):
        pass
    on_some, on_test = (evaluate(network, examples, config.cost) for examples in (some, test))
    return Learned(count, config.seed, on_some, on_test)


def explain(subject: Subject, options: Options) -> MoreData:
    """Train every network."""
    n = len(subject.training.labels)
    counts = [count for count in COUNTS if count < n] + [n]
    jobs = [(count, seed) for count in counts for seed in range(options.seeds)]
    learned = []
    for count, seed in tqdm(jobs, desc="networks", leave=False, disable=None):
        config = dataclasses.replace(subject.config, seed=subject.config.seed + seed, epochs=options.epochs)
        learned.append(learn(config, subject.training, subject.test, count))
    images = first_shuffled(subject.training, counts[0], subject.config.seed).x.double() * PIXEL_SCALE
    return MoreData(learned, images, subject.caption)


def finding(result: MoreData) -> str:
    """What the numbers say."""
    few, *_, all_of_them = result.counts()
    seen, unseen = (mean(result.values(few, which, "accuracy")) for which in ("training", "test"))
    most = mean(result.values(all_of_them, "test", "accuracy"))
    return (
        f"From {few:,} examples the network gets {seen:.0%} of those right but only {unseen:.0%} of the test images; "
        f"from {all_of_them:,} it gets {most:.1%} of them right"
    )


def table(result: MoreData) -> str:
    """Accuracy and cost on both sets for every number of examples: the mean over the seeds and the spread."""
    rows = []
    for count in result.counts():
        row = [f"{count:,}"]
        for which in ("training", "test"):
            right, cost = (result.values(count, which, of) for of in ("accuracy", "cost"))
            row += [
                f"{mean(right):.2%}",
                f"{min(right):.2%} to {max(right):.2%}",
                f"{mean(cost):.4f}",
                f"{min(cost):.4f} to {max(cost):.4f}",
            ]
        rows.append(row)
    header = [
        "examples",
        *(f"{what}{which}" for which in (" seen", " test") for what in ("right,", "range,", "cost,", "range,")),
    ]
    seeds = len({one.seed for one in result.learned})
    return (
        f"Trained on fewer and more examples, {seeds} seeds each. {result.caption}.\n\n{style.text_table(header, rows)}"
    )


@style.styled
def figure(result: MoreData) -> Figure:
    """Accuracy and cost by the number of examples, and the fewest examples themselves."""
    seeds = len({one.seed for one in result.learned})
    note = (
        f"Lines are means over {seeds} seeds, bands reach from the lowest to the highest, dots are single networks. "
        "All of them look at equally many images; the fewer there are, the more often they come back."
    )
    page = style.Page(7.3, finding(result), note, result.caption)
    for left, of, scale, label in ((1.0, "accuracy", 100.0, "% right"), (6.95, "cost", 1.0, "cost")):
        axes = page.axes(left, 0.5, 4.7, 3.6, "Right answers" if of == "accuracy" else "Cost")
        for which, colour, style_of_line in (("training", style.LOWER, "--"), ("test", style.RAISE, "-")):
            counts = result.counts()
            values = [[scale * value for value in result.values(count, which, of)] for count in counts]
            axes.fill_between(
                counts, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.18, linewidth=0
            )
            name = "images it learned from" if which == "training" else "images it never saw (test)"
            axes.plot(counts, [mean(v) for v in values], style_of_line, color=colour, linewidth=2, label=name)
            for count, each in zip(counts, values, strict=True):
                axes.plot([count] * len(each), each, "o", color=colour, markersize=4)
        axes.set(xscale="log", xlabel="training examples", ylabel=label)
        style.plain(axes.xaxis)
        axes.grid()
    axes.set_ylim(bottom=0)
    axes.legend()
    shown = result.images[:100]
    page.text(
        style.MARGIN + 0.65,
        4.85,
        f"{len(result.images)} examples are all that the first network ever sees",
        weight="bold",
        size=11,
    )
    rows = -(-len(shown) // 25)
    blank = torch.zeros(rows * 25 - len(shown), 784, dtype=shown.dtype, device=shown.device)
    mosaic = torch.cat([shown, blank]).reshape(rows, 25, 28, 28).transpose(1, 2).reshape(rows * 28, 25 * 28)
    axes = page.axes(1.0, 5.2, 10.65, 10.65 * rows / 25)
    axes.imshow(style.array(mosaic), cmap="Greys", vmin=0, vmax=1)
    style.bare(axes)
    return page.figure
