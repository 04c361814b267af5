"""Batches: the training examples shuffled and cut into mini-batches, and the gradients of these beside the true one.

    python -m bp_torch explain batches

The shuffle is that of training, ``examples.permutation``. The gradients are from ``backprop.backward``;
the average of all of them is ∇C.
"""

from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from torch import Tensor

from bp_torch.backprop import backward, forward
from bp_torch.data import batch, permutation
from bp_torch.explain import style
from bp_torch.explain.descent import angle, mean, spread
from bp_torch.explain.drawing import colourbar, mosaic, pixel_map
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import BatchesOptions
from bp_torch.explain.subject import Subject, UsageError, full_gradient
from bp_torch.network import layer_views
from bp_torch.text import column_table, count, number


class Batches(Idea):
    """The mini-batches of one epoch: a few of them, and the angles of all."""

    def __init__(self, subject: Subject, options: BatchesOptions) -> None:
        """Cut the shuffled examples into batches, and compute the gradient of each."""
        training, cost, n = subject.training, subject.config.cost, len(subject.training.labels)
        self.batch_size, self.examples = options.batch_size or min(100, n), n
        if self.batch_size > n:
            raise UsageError(f"--batch-size: wanted 1 to {n:,}, got {self.batch_size}")
        self.caption, self.sizes = subject.caption, subject.network.sizes
        batches = permutation(n, subject.config.seed, options.epoch, training.labels.device).split(self.batch_size)
        self.many = len(batches)
        self.images = [batch(training, indices, torch.float64)[0] for indices in batches[: options.shown]]
        self.angles = dict[str, list[float]]()  # of each batch, in degrees, by network
        for name, network in subject.before_and_after.items():
            whole, average, wishes = -full_gradient(network, training, cost), torch.zeros(()), list[Tensor]()
            self.angles[name] = []
            for indices in batches:
                x, y = batch(training, indices, network.dtype)
                wish = -backward(network, forward(network, x), y, cost).gradient
                self.angles[name].append(angle(wish, whole))
                average = average + wish * len(indices) / n
                wishes += [wish] if len(wishes) < options.shown else []
            if name == "untrained":
                self.wishes = torch.stack(wishes)  # −∇C of the batches that are shown, (shown, P)
                self.whole, self.average = whole, average  # −∇C of all examples, (P,); the same, from the batches
        first = layer_views(self.whole, self.sizes)[0][0]
        self.neuron = int(first.norm(dim=1).argmax())  # of layer 1, the one with the largest wishes

    def finding(self) -> str:
        """How many batches there are, and how far off they point."""
        when = {"untrained": "before training", "trained": "after it"}
        off = ", ".join(f"{mean(found):.0f}° {when[name]}" for name, found in self.angles.items())
        return (
            f"{self.examples:,} shuffled examples are {count(self.many, 'mini-batch', 'mini-batches')} of "
            f"{self.batch_size:,}: so many steps where all examples together give one. On average a batch points off "
            f"by {off}"
        )

    def table(self) -> str:
        """The first batches with their gradients' lengths and angles, and all of them in sum."""
        shown, angles = len(self.wishes), self.angles.values()
        first = column_table(
            ("mini-batch", "d", [*range(1, shown + 1), "all examples"]),
            ("length of ∇C", "4 digits", [*self.wishes.norm(dim=1), self.whole.norm()]),
            ("off the true one by", "", [*(f"{off:.1f}°" for off in self.angles["untrained"][:shown]), "0°"]),
        )
        every = column_table((f"all {self.many:,} mini-batches", "", self.angles), *spread(angles))
        error = (self.average - self.whole).abs().max().item()
        return (
            f"{self.examples:,} examples, shuffled and cut into {self.many:,} mini-batches. {self.caption}.\n\n"
            f"{first}\n\n{every}\n\n"
            f"The average over all mini-batches and ∇C over all examples differ by {number(error, 2)} at most."
        )

    def rows(self, narrow: bool) -> list[Row]:
        """A few batches, each above its wish for one neuron's weights; all examples; the angles of all batches."""
        off, shown = self.angles["untrained"], range(len(self.images))
        batches = [
            Panel(f"Batch {i + 1}: {off[i]:.0f}° off", partial(self.draw_batch, i, narrow), 1, 2.4) for i in shown
        ]
        whole = Panel(f"All {self.examples:,}: −∇C", partial(self.draw_whole, narrow), 1.2)
        angles = Panel(f"How far off all {self.many:,} mini-batches point", self.draw_angles)
        return [(5.4, [*batches, whole]), (2.8, [angles])]

    def draw_wish(self, axes: Axes, wish: Tensor) -> None:
        """A map of ``wish`` (P,) for the weights of the one neuron."""
        every = (layer_views(each, self.sizes)[0][0][self.neuron] for each in (wish, *self.wishes, self.whole))
        weights, *others = every
        drawn = pixel_map(axes, weights, max(each.abs().max().item() for each in others))
        if wish is self.whole:
            colourbar(drawn, axes, "−∂C/∂w")

    def draw_batch(self, i: int, narrow: bool, part: SubFigure) -> None:
        """One batch as a mosaic, and its wish."""
        above, below = part.subplots(1, 2) if narrow else part.subplots(2, 1)
        shown = self.images[i][:100]
        mosaic(above, shown, max(1, round(len(shown) ** 0.5)))
        self.draw_wish(below, self.wishes[i])

    def draw_whole(self, narrow: bool, part: SubFigure) -> None:
        """The wish of all examples."""
        *above, below = part.subplots(1 if narrow else 2, 1, squeeze=False).flat
        for axes in above:
            more = f"… and\n{self.many - len(self.images):,} more\nbatches"
            axes.text(0.5, 0.5, more, ha="center", va="center", size=13)
            axes.set_axis_off()
        self.draw_wish(below, self.whole)

    def draw_angles(self, part: SubFigure) -> None:
        """How far off each mini-batch points."""
        axes, bins = part.subplots(), np.linspace(0, 120, 61).tolist()
        for (name, found), colour in zip(self.angles.items(), (style.LINES[3], style.LINES[1]), strict=False):
            counts, _, _ = axes.hist(found, bins, color=colour, alpha=0.8)
            label, high = f"{name}: {mean(found):.0f}°", float(np.max(counts)) * 1.04
            axes.text(max(mean(found), 22), high, label, weight="bold", color=colour, ha="center")
        axes.axvline(90, color=style.SOFT, linewidth=0.9, linestyle=":")
        axes.text(91, axes.get_ylim()[1] / 2, "90°: a random\ndirection", size=9, color=style.SOFT)
        axes.margins(y=0.18)
        axes.set(xlabel="degrees off the true gradient", ylabel="mini-batches", xlim=(0, 120))
