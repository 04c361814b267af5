"""Data: how well the network does on images that it never saw, by the number of those that it learned from.

    python -m bp_torch explain data

Every network sees equally many images in all, at the same learning rates; only how often they repeat differs. The seeds
of one number are trained at once, as a group of the sweep; the scores are from ``training.evaluate``. Other networks
see their images deformed anew each time they come (deform.py): data made from the data one has.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from statistics import fmean as mean
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from bp_torch import text
from bp_torch.data import PIXEL_SCALE, Examples, first_shuffled
from bp_torch.deform import Deformation
from bp_torch.explain import style
from bp_torch.explain.subject import CommonOptions, Subject, check_least
from bp_torch.sweep import new_group
from bp_torch.sweep.plan import even_parts, quickest
from bp_torch.training import Config, Score, evaluate
from bp_torch.training.config import DeformName

MADE_BY = ("step.TrainingStep.step", "evaluation.evaluate")

IDEA = (
    "All of this needs labelled examples, and many of them. From a hundred images the network learns those hundred by "
    "heart and little about the next one; each tenfold more closes much of the gap between the images that it has seen "
    "and those that it has not. Where there are few, they can be made to count for more: turned and bent a little they "
    "are still the same digits."
)

COUNTS = (100, 300, 1_000, 3_000, 10_000, 30_000)
"""Numbers of training examples that are tried, up to all of them."""

DEFORMED = COUNTS[::2]
"""Those that are also deformed, which takes longer than training on them."""


@dataclass(frozen=True)
class Options(CommonOptions):
    """How long each network is trained, and how many are trained for each number of examples."""

    epochs: int = 5
    """Each network sees as many images as this many passes over all training examples."""
    seeds: int = 3
    """Networks for each number of examples: other initial values, other examples, other shuffles."""

    def __post_init__(self) -> None:
        """Raise ValueError for no training at all."""
        super().__post_init__()
        check_least(epochs=(self.epochs, 1), seeds=(self.seeds, 1))


class Trained(NamedTuple):
    """The scores of a network that was trained on ``examples`` of the training examples, with this seed.

    ``deformed``: their images were deformed anew in each epoch.
    """

    examples: int
    seed: int
    training: Score
    test: Score
    deformed: bool = False


class MoreData(NamedTuple):
    """All networks, the fewest examples first, and the images (n, 784) that the first of them learned from."""

    networks: list[Trained]
    images: Tensor
    caption: str

    def counts(self, deformed: bool = False) -> list[int]:
        """The numbers of examples, ascending."""
        return sorted({network.examples for network in self.networks if network.deformed == deformed})

    def values(self, count: int, which: str, of: str, deformed: bool = False) -> list[float]:
        """``of`` ("cost" or "accuracy") on the ``which`` ("training" or "test") set, a value for each seed."""
        found = [network for network in self.networks if (network.examples, network.deformed) == (count, deformed)]
        return [getattr(getattr(network, which), of) for network in found]

    @property
    def seeds(self) -> int:
        """Networks for each number of examples."""
        return len({network.seed for network in self.networks})


def schedule(config: Config, count: int, n: int) -> Config:
    """``config`` for ``count`` of ``n`` examples: equally many seen in all, the learning rate falling equally fast."""
    return dataclasses.replace(
        config,
        batch_size="full" if config.batch_size == "full" else min(config.batch_size, count),
        epochs=max(1, round(config.epochs * n / count)),
        learning_rate_decay=config.learning_rate_decay * count / n,
    )


@torch.inference_mode()
def train_on(config: Config, training: Examples, test: Examples, count: int, seeds: int = 1) -> list[Trained]:
    """Train a new network for each seed, on ``count`` of the training examples, drawn by that seed."""
    own = schedule(dataclasses.replace(config, train_examples=count), count, len(training.labels))
    members = [dataclasses.replace(own, seed=config.seed + n) for n in range(seeds)]
    networks: list[Trained] = []
    for part in even_parts(members, quickest(own, training.x.device, separate_batches=True)):
        group = new_group(part, training, test)
        steps = group.steps_per_epoch * own.epochs
        with tqdm(total=steps, desc=f"{count:,} examples", unit="step", leave=False, disable=None) as bar:
            while group.state.epoch <= own.epochs:
                for _ in group.rest_of_epoch():
                    bar.update()
                group.end_epoch()
        for network, member in zip(group.network, part, strict=True):
            some = first_shuffled(training, count, member.seed)
            on_training, on_test = (evaluate(network, examples, own.cost) for examples in (some, test))
            networks.append(Trained(count, member.seed, on_training, on_test, deformed=config.deform != "none"))
    return networks


def deforming(config: Config, kind: DeformName) -> Config:
    """``config`` with this kind of deformation, by the default bounds."""
    bounds: dict[str, Any] = dataclasses.asdict(Deformation())
    return dataclasses.replace(config, deform=kind, **bounds)


def explain(subject: Subject, options: Options) -> MoreData:
    """Train every network."""
    training, seed = subject.training, subject.config.seed
    n = len(training.labels)
    counts = [count for count in COUNTS if count < n] + [n]
    config = dataclasses.replace(deforming(subject.config, "none"), epochs=options.epochs)
    networks = []
    for count in tqdm(counts, desc="numbers of examples", leave=False, disable=None):
        networks += train_on(config, training, subject.test, count, options.seeds)
        if count in DEFORMED:
            networks += train_on(deforming(config, "both"), training, subject.test, count, options.seeds)
    images = first_shuffled(training, counts[0], seed).x.double() * PIXEL_SCALE
    return MoreData(networks, images, subject.caption)


def finding(result: MoreData) -> str:
    """What the numbers say."""
    fewest, *_, most = result.counts()
    seen, unseen = (mean(result.values(fewest, which, "accuracy")) for which in ("training", "test"))
    made = mean(result.values(fewest, "test", "accuracy", deformed=True))
    return (
        f"From {fewest:,} examples the network gets {seen:.0%} of those right, but only {unseen:.0%} of the test "
        f"images, or {made:.0%} if it sees them deformed anew each time; from {most:,} it gets "
        f"{mean(result.values(most, 'test', 'accuracy')):.1%} of the test images right"
    )


def table(result: MoreData) -> str:
    """Accuracy and cost on both sets for each number of examples: mean and range over the seeds."""
    header, rows = ["examples"], [[f"{count:,}"] for count in result.counts()]
    for which in ("training", "test"):
        for of, form in (("accuracy", ".2%"), ("cost", ".4f")):
            header += [f"{which} {of}", "range"]
            for row, count in zip(rows, result.counts(), strict=True):
                values = result.values(count, which, of)
                row += [f"{mean(values):{form}}", f"{min(values):{form}} to {max(values):{form}}"]
    header.append("test accuracy, deformed")
    for row, count in zip(rows, result.counts(), strict=True):
        values = result.values(count, "test", "accuracy", deformed=True)
        row.append(f"{mean(values):.2%}" if values else "")
    about = f"Networks trained on few and on many examples, {text.count(result.seeds, 'seed')} each. {result.caption}."
    return f"{about}\n\n{text.table(header, rows)}"


@style.styled
def figure(result: MoreData, narrow: bool = False) -> Figure:
    """Accuracy and cost by the number of examples, and the fewest examples themselves."""
    note = (
        f"Lines are means over {text.count(result.seeds, 'seed')}, bands reach from the lowest value to the highest, "
        "dots are single networks. All networks see equally many images in all: the fewer different ones there are, "
        "the more often they repeat."
    )
    curves = [style.Panel(partial(_curves, result=result, of=of), 1, 3.4) for of in ("accuracy", "cost")]
    rows: list[style.Row] = [
        (4.6, curves),
        (2.4, [style.Panel(partial(_fewest, images=result.images, columns=10 if narrow else 25), 1, 4.2)]),
    ]
    return style.compose(rows, finding(result), note, result.caption, narrow)


def _curves(part: SubFigure, result: MoreData, of: str) -> None:
    """Of the training and the test images, by the number of examples."""
    axes, scale = part.subplots(), 100 if of == "accuracy" else 1
    for which, deformed, colour, line, name in (
        ("training", False, style.LINES[2], "--", "images that it learned from"),
        ("test", False, style.LINES[1], "-", "images that it never saw (test)"),
        ("test", True, style.LINES[0], ":", "the same, trained on deformed"),
    ):
        counts = result.counts(deformed)
        values = [[scale * value for value in result.values(count, which, of, deformed)] for count in counts]
        lowest, highest, means = ([kind(found) for found in values] for kind in (min, max, mean))
        axes.fill_between(counts, lowest, highest, color=colour, alpha=0.18, linewidth=0)
        axes.plot(counts, means, line, color=colour, linewidth=2, label=name)
        axes.plot(counts, values, "o", color=colour, markersize=4)
    axes.set(xscale="log", xlabel="training examples", ylabel="% right" if of == "accuracy" else "cost")
    style.heading(part, "Right answers" if of == "accuracy" else "Cost")
    style.decimal_ticks(axes.xaxis)
    axes.grid()
    if of == "cost":
        axes.set_ylim(bottom=0)
        axes.legend()


def _fewest(part: SubFigure, images: Tensor, columns: int) -> None:
    """The examples of the first networks, in so many ``columns``."""
    shown, axes = images[:100], part.subplots()
    rows = -(-len(shown) // columns)
    tiles = pad(shown, (0, 0, 0, rows * columns - len(shown))).reshape(rows, columns, 28, 28)
    axes.imshow(style.array(tiles.transpose(1, 2).reshape(rows * 28, columns * 28)), cmap="Greys", vmin=0, vmax=1)
    style.heading(part, f"These {len(shown)} examples are all that the first network ever sees")
    style.hide_ticks(axes)
