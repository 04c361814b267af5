"""Data: how well the network does on images that it never saw, by the number of those that it learned from.

    python -m bp_torch explain data

Every network sees equally many images in all, at the same learning rates; only how often they repeat differs. The seeds
of one number are trained at once, as a group of the sweep; the scores are from ``training.evaluate``. Other networks
see their images deformed anew each time they come (deform.py): data made from the data one has.
"""

from dataclasses import asdict, replace
from functools import partial
from statistics import fmean as mean
from typing import NamedTuple

import torch
from matplotlib.figure import SubFigure
from tqdm.auto import tqdm

from bp_torch.data import Examples, first_shuffled, scaled
from bp_torch.deform import Deformation
from bp_torch.explain import style
from bp_torch.explain.drawing import decimal_ticks, mosaic
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import DataOptions
from bp_torch.explain.subject import Subject
from bp_torch.sweep.group import new_group
from bp_torch.sweep.plan import even_parts, quickest
from bp_torch.text import Column, column_table, count
from bp_torch.training import Config, Score, evaluate
from bp_torch.training.config import DeformName

COUNTS = (100, 300, 1_000, 3_000, 10_000, 30_000)  # numbers of training examples that are tried, up to all of them
DEFORMED = COUNTS[::2]  # those that are also deformed, which takes longer than training on them


class Trained(NamedTuple):
    """A trained network's scores."""

    examples: int  # that it learned from
    seed: int
    training: Score  # on these examples
    test: Score
    deformed: bool = False  # whether the images were deformed anew in each epoch


def schedule(config: Config, count: int, n: int) -> Config:
    """``config`` for ``count`` of ``n`` examples: equally many seen in all, the learning rate falling equally fast."""
    return replace(
        config,
        batch_size="full" if config.batch_size == "full" else min(config.batch_size, count),
        epochs=max(1, round(config.epochs * n / count)),
        learning_rate_decay=config.learning_rate_decay * count / n,
    )


@torch.inference_mode()
def train_on(config: Config, training: Examples, test: Examples, count: int, seeds: int = 1) -> list[Trained]:
    """Train a new network for each seed, on ``count`` of the training examples, drawn by that seed."""
    own = schedule(replace(config, train_examples=count), count, len(training.labels))
    members = [replace(own, seed=config.seed + n) for n in range(seeds)]
    networks: list[Trained] = []
    for part in even_parts(members, quickest(own, training.x.device, separate_batches=True)):
        group = new_group(part, training, test)
        steps = group.steps_per_epoch * own.epochs
        with tqdm(total=steps, desc=f"{count:,} examples", unit="step", leave=False, disable=None) as bar:
            while group.state.epoch <= own.epochs:
                for _ in group.rest_of_epoch():
                    bar.update()
                group.state.end_epoch()
        for network, member in zip(group.network, part, strict=True):
            some = first_shuffled(training, count, member.seed)
            on_training, on_test = (evaluate(network, examples, own.cost) for examples in (some, test))
            networks.append(Trained(count, member.seed, on_training, on_test, deformed=config.deform != "none"))
    return networks


def deforming(config: Config, kind: DeformName) -> Config:
    """``config`` with this kind of deformation, by the default bounds."""
    return replace(config, deform=kind, **asdict(Deformation()))


class Data(Idea):
    """Networks that learned from few examples and from many."""

    def __init__(self, subject: Subject, options: DataOptions) -> None:
        """Train every network."""
        training, n = subject.training, len(subject.training.labels)
        self.caption, self.seeds = subject.caption, options.seeds
        self.seeds_in_words, self.passes_in_words = count(self.seeds, "seed"), count(options.epochs, "pass", "passes")
        trained = subject.config.epochs if subject.trained else 0
        self.longer = f" The run itself made {trained}, and so gets further." if trained > options.epochs else ""
        self.counts = [few for few in COUNTS if few < n] + [n]
        self.networks = list[Trained]()  # the fewest examples first
        config = replace(subject.config, epochs=options.epochs)
        for examples in tqdm(self.counts, desc="numbers of examples", leave=False, disable=None):
            for kind in ("none", "both") if examples in DEFORMED else ("none",):
                self.networks += train_on(deforming(config, kind), training, subject.test, examples, self.seeds)
        fewest = first_shuffled(training, self.counts[0], config.seed).x
        self.images = scaled(fewest, torch.float64)  # the examples of the first networks, (n, 784)

    def values(self, examples: int, scored: str, quantity: str, deformed: bool = False) -> list[float]:
        """``quantity`` ("cost" or "accuracy") on the ``scored`` ("training" or "test") set, a value for each seed."""
        found = [network for network in self.networks if (network.examples, network.deformed) == (examples, deformed)]
        return [getattr(getattr(network, scored), quantity) for network in found]

    def finding(self) -> str:
        """The accuracy from the fewest examples, and from the most."""
        fewest, most = self.counts[0], self.counts[-1]
        seen, unseen = (mean(self.values(fewest, scored, "accuracy")) for scored in ("training", "test"))
        made = mean(self.values(fewest, "test", "accuracy", deformed=True))
        return (
            f"From {fewest:,} examples: {seen:.0%} of those right, but only {unseen:.0%} of the test images, "
            f"or {made:.0%} if they are deformed anew each time. From {most:,}: "
            f"{mean(self.values(most, 'test', 'accuracy')):.1%}, after {self.passes_in_words}"
        )

    def table(self) -> str:
        """Accuracy and cost on both sets for each number of examples: mean and range over the seeds."""
        columns: list[Column] = [("examples", ",", self.counts)]
        for scored in ("training", "test"):
            for quantity, form in (("accuracy", ".2%"), ("cost", ".4f")):
                found = [self.values(examples, scored, quantity) for examples in self.counts]
                columns.append((f"{scored} {quantity}", form, map(mean, found)))
                columns.append(("range", "", [f"{min(values):{form}} to {max(values):{form}}" for values in found]))
        deformed = (self.values(examples, "test", "accuracy", deformed=True) for examples in self.counts)
        columns.append(("test accuracy, deformed", ".2%", [mean(values) if values else "" for values in deformed]))
        about = f"Networks trained on few and on many examples, {self.seeds_in_words} each. {self.caption}."
        return f"{about}\n\n{column_table(*columns)}"

    def rows(self, narrow: bool) -> list[Row]:
        """Accuracy and cost by the number of examples, and the fewest examples themselves."""
        quantities = {"Right answers": "accuracy", "Cost": "cost"}
        curves = [Panel(title, partial(self.draw_curves, name), 1, 3.4) for title, name in quantities.items()]
        shown, columns = self.images[:100], 10 if narrow else 25
        title = f"These {len(shown)} examples are all that the first network ever sees"
        fewest = Panel(title, lambda part: mosaic(part.subplots(), shown, columns), 1, 4.2)
        return [(4.6, curves), (2.4, [fewest])]

    def draw_curves(self, quantity: str, part: SubFigure) -> None:
        """The quantity on the training and the test images, by the number of examples."""
        axes, scale = part.subplots(), 100 if quantity == "accuracy" else 1
        for scored, deformed, colour, line, name in (
            ("training", False, style.LINES[2], "--", "images that it learned from"),
            ("test", False, style.LINES[1], "-", "images that it never saw (test)"),
            ("test", True, style.LINES[0], ":", "the same, trained on deformed"),
        ):
            found = {n: self.values(n, scored, quantity, deformed) for n in self.counts}
            counts = [n for n in found if found[n]]
            values = [[scale * value for value in found[n]] for n in counts]
            lowest, highest, means = ([kind(each) for each in values] for kind in (min, max, mean))
            axes.fill_between(counts, lowest, highest, color=colour, alpha=0.18, linewidth=0)
            axes.plot(counts, means, line, color=colour, linewidth=2, label=name)
            axes.plot(counts, values, "o", color=colour, markersize=4)
        axes.set(xscale="log", xlabel="training examples", ylabel="% right" if quantity == "accuracy" else "cost")
        decimal_ticks(axes.xaxis)
        axes.grid()
        if quantity == "cost":
            axes.set_ylim(bottom=0)
            axes.legend()
