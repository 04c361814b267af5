"""Average: what each training example alone would change, and the average as it is made, until it is −∇C.

    python -m bp_torch explain average

The negative gradients of single examples come from ``backprop.per_example_gradients``, ∇C from one ``backward``. They
are those of the untrained network: in a trained one nearly every image is content, and its column nearly zero.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from math import ceil
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import SubFigure
from torch import Tensor
from tqdm.auto import tqdm

from bp_torch.backprop import per_example_gradients
from bp_torch.data import Examples, batch
from bp_torch.explain import style
from bp_torch.explain.drawing import digit, diverging, hide_ticks, map_grid, percent_histogram
from bp_torch.explain.gradient import parameter_name
from bp_torch.explain.idea import Idea, Panel, Row
from bp_torch.explain.options import AverageOptions
from bp_torch.explain.subject import Subject, UsageError, chunks, full_gradient
from bp_torch.network import Network, layer_views, parameter_count
from bp_torch.text import Column, column_table, number, times, unit

MADE_OF = (1, 10, 100, 1_000)  # after so many examples the average is shown, and after all
KEPT = 3_000_000  # components of gradients in memory at once, 24 MB of float64: 230 examples of 13,002 parameters


class Statistics(NamedTuple):
    """The negative gradients −∂C_k/∂θ of all examples in numbers."""

    mean: Tensor  # of each component, (P,)
    deviation: Tensor  # the standard deviation of each component, (P,)
    agreement: Tensor  # of the examples whose component is not zero, the fraction with the mean's sign, (P,); else nan
    cancelled: float  # 1 − ‖mean‖ / (mean of the norms), 0..1: how much cancels in the average


def negative_gradients(network: Network, examples: Examples, cost: str, chunk: int) -> Iterator[Tensor]:
    """−∂C_k/∂θ of all examples, (chunk, P) at a time."""
    for x, y in chunks(examples, network.dtype, chunk):
        yield per_example_gradients(network, x, y, cost).neg_()


def statistics(parts: Iterable[Tensor]) -> Statistics:
    """The statistics of vectors that come in parts (chunk, P); each part is read once."""
    n, norms, total, squares, nonzero, signs = 0, 0.0, *(torch.zeros(()) for _ in range(4))
    for part in parts:
        n += len(part)
        norms += part.norm(dim=1).sum().item()
        total = total + part.sum(0)
        squares = squares + part.norm(dim=0).square()
        nonzero = nonzero + part.count_nonzero(0)
        signs = signs + part.sign().sum(0)
    mean = total / n
    deviation = (squares / n - mean**2).clamp_min(0).sqrt()
    agreement = (nonzero + signs * mean.sign()) / (2 * nonzero)
    cancelled = 1 - n * mean.norm().item() / norms if norms else 0.0
    return Statistics(mean.cpu(), deviation.cpu(), agreement.cpu(), cancelled)


def select_rows(gradient: Tensor, sizes: tuple[int, ...]) -> list[int]:
    """Of each of the first four layers the weights at ranks 0, n/10 and n/2 by size of gradient, and the first bias."""
    rows = []
    for w, b in list(zip(*layer_views(torch.arange(len(gradient)), sizes), strict=True))[:4]:
        ordered = w.flatten()[gradient[w.flatten()].abs().sort(descending=True, stable=True).indices]
        rows += [int(ordered[rank]) for rank in (0, len(ordered) // 10, len(ordered) // 2)]
        rows.append(int(b[gradient[b].abs().argmax()]))
    return list(dict.fromkeys(rows))  # in a tiny layer two ranks can be one weight


def averages(network: Network, examples: Examples, cost: str, first: int) -> dict[int, Tensor]:
    """The average wish (P,) of 1, 10, … examples, by their number: from the ``first`` on, and around the end."""
    n = len(examples.labels)
    turned = examples.map(lambda tensor: tensor.roll(-first, 0))
    some = {count: turned.map(itemgetter(slice(count))) for count in MADE_OF if count < n}
    return {count: -full_gradient(network, each, cost).cpu() for count, each in some.items()}


class Average(Idea):
    """The untrained network's wishes for single examples, and their average as it is made; the statistics of all."""

    def __init__(self, subject: Subject, options: AverageOptions) -> None:
        """Compute the negative gradients of all training examples; the columns are those that ``options`` choose."""
        cost, training, networks = subject.config.cost, subject.training, subject.before_and_after
        network, self.caption, self.sizes = networks["untrained"], subject.caption, subject.exact.sizes
        self.examples = n = len(training.labels)
        first, columns = options.first, options.columns or min(6, n)
        if first + columns > n:
            raise UsageError(f"--first: wanted 0 to {n - columns:,} for {columns} columns, got {first}")
        self.statistics, self.error = dict[str, Statistics](), 0.0  # by network
        for name, each in networks.items():
            direct = -full_gradient(each, training, cost, chunk=n).cpu()  # −∇C by one backward pass, (P,)
            chunk = max(1, KEPT // len(direct))
            parts = negative_gradients(each, training, cost, chunk)
            bar = tqdm(parts, desc=f"{name}: all examples", total=ceil(n / chunk), leave=False, disable=None)
            self.statistics[name] = found = statistics(bar)
            self.error = max(self.error, (found.mean - direct).abs().max().item())
            if each is network:
                self.direct = direct
        self.error_in_words = number(self.error, 1)
        shown = torch.arange(first, first + columns, device=training.labels.device)
        self.images, y = batch(training, shown, network.dtype)  # (M, 784)
        self.labels = y.argmax(1).tolist()
        self.parameters = select_rows(self.direct, self.sizes)  # the indices of those in the table
        self.values = -per_example_gradients(network, self.images, y, cost).cpu().T[self.parameters]  # (parameters, M)
        self.made = averages(network, training, cost, first) | {n: self.direct}  # of so many examples, each (P,)

    def left(self, count: int) -> float:
        """The part of the first example's wish that is left in the average of ``count``, along that wish."""
        first = self.made[1]
        return float(self.made[count] @ first / (first @ first)) if first.any() else 0.0

    def finding(self) -> str:
        """How much of the wishes cancels before training and after it, and why."""
        before, *after = self.statistics.values()
        many = f"{self.examples:,} examples"
        start = f"At the start {before.cancelled:.0%} of the wishes of {many} cancel in the average"
        if not after:
            return start
        agree = 100 * after[0].agreement.nanmedian().item()
        return (
            f"{start}; after training {after[0].cancelled:.0%}, because {agree:.0f} of 100 examples pull a typical "
            f"parameter one way and {100 - agree:.0f} the other"
        )

    def table(self) -> str:
        """Parameters as rows, examples as columns, the average over all and −∇C; then the average as it is made."""
        mean, deviation, agreement = (each[self.parameters] for each in self.statistics["untrained"][:3])
        units, powers = zip(*map(unit, torch.cat([self.values, deviation[:, None]], 1)), strict=True)
        scale = torch.tensor(units, dtype=torch.float64)
        names = [parameter_name(self.sizes, i) + power for i, power in zip(self.parameters, powers, strict=True)]
        wishes: list[Column] = [
            (f"a {label}", "+.3f", [value or "0" for value in (column / scale).tolist()])
            for label, column in zip(self.labels, self.values.T, strict=True)
        ]
        shown = column_table(
            ("−∂C_k/∂θ", "", names),
            *wishes,
            ("", "", ["…"] * len(names)),
            ("average", "+.5f", mean / scale),
            ("−∇C", "+.5f", self.direct[self.parameters] / scale),
            ("agree", ".0%", agreement),
            ("std dev", ".3f", deviation / scale),
        )
        made = column_table(
            ("average of", ",", self.made),
            ("its length", "4 digits", [average.norm() for average in self.made.values()]),
            ("left of the first wish", ".2%", [self.left(count) for count in self.made]),
        )
        return (
            f"What each of {self.examples:,} training examples wishes for before training, and the average. "
            f"{self.caption}.\n\n"
            f"{shown}\n\n{made}\n\nOver all {len(self.direct):,} parameters, the average of the wishes and −∇C from "
            f"one backward pass differ by {number(self.error, 2)} at most."
        )

    def rows(self, narrow: bool) -> list[Row]:
        """The average as it is made; the table under the examples' images; how much the examples disagree."""
        j = int(layer_views(self.made[1], self.sizes)[0][0].norm(dim=1).argmax())
        shown = min(3 if narrow else 10, len(self.labels))
        made = f"Untrained: the average as it is made. What the images want of the pixels' weights to neuron {j}"
        table = f"Untrained: what each of {shown} images wants, and the average over all {self.examples:,}"
        high = 1.4 + 0.42 * len(self.parameters)
        agreements = [
            Panel(f"{name.capitalize()}: how many agree with the average's sign", partial(self.draw_agreement, name))
            for name in self.statistics
        ]
        return [
            (3.0, [Panel(made, partial(self.draw_made, j, 2 if narrow else 6), 1, 6.6)]),
            (high, [Panel(table, partial(self.draw_table, shown, narrow), 1, high)]),
            (3.6, agreements),
        ]

    def draw_made(self, j: int, columns: int, part: SubFigure) -> None:
        """The average wish of more and more examples for the weights of neuron ``j``; the last on its own scale too."""
        shown = {count: layer_views(average, self.sizes)[0][0][j] for count, average in self.made.items()}
        limit, least = (shown[count].abs().max().item() for count in (1, self.examples))
        maps = []
        for count, weights in shown.items():
            images = f"all {count:,}" if count == self.examples else f"{count:,} images"
            title = f"{'the first image' if count == 1 else images}\n{self.left(count):.0%} of its wish left"
            maps.append((title, weights, limit))
        maps.append((f"all, with {times(limit / (least or 1))}\nthe colour", shown[self.examples], least))
        map_grid(part, maps, columns, size=9.5, pad=5)

    def draw_table(self, shown: int, short: bool, part: SubFigure) -> None:
        """Parameters as rows under the images of the examples, in numbers and colours, a power of ten for each row."""
        images, axes = part.subplots(2, shown + 1, height_ratios=(0.7, 0.42 * len(self.parameters)), squeeze=False)
        for place, pixels in zip(images, self.images[:shown], strict=False):
            digit(place, pixels)
        images[-1].text(0.5, 0, "average", ha="center", weight="bold", size=9)
        images[-1].set_axis_off()
        values = torch.cat([self.values[:, :shown], self.statistics["untrained"].mean[self.parameters, None]], 1)
        units, powers = zip(*map(unit, values), strict=True)
        scaled = values / torch.tensor(units, dtype=torch.float64)[:, None]
        full = scaled / scaled.abs().amax(1, keepdim=True).clamp_min(1e-300)  # the largest of a row has the full colour
        for place, column, colour in zip(axes, scaled.T, full.T, strict=True):
            diverging(place, colour[:, None], 1.0, aspect="auto")
            hide_ticks(place)
            for row, (value, strength) in enumerate(zip(column.tolist(), colour.abs().tolist(), strict=True)):
                ink = "white" if strength > 0.5 else style.INK
                written = f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0.00" if value else "0"
                place.text(0, row, written, ha="center", va="center", size=9, color=ink)
        names = [parameter_name(self.sizes, i, short) + p for i, p in zip(self.parameters, powers, strict=True)]
        names = [name.replace(" (×", "\n(×") if short else name for name in names]
        axes[0].set_yticks(range(len(names)), names)
        axes[0].tick_params(axis="y", length=0)

    def draw_agreement(self, name: str, part: SubFigure) -> None:
        """How many examples agree with the average in one network: a line for each layer's parameters."""
        axes, agreement = part.subplots(), 100 * self.statistics[name].agreement
        for layer, found in enumerate(agreement.split([parameter_count(pair) for pair in pairwise(self.sizes)])):
            look = {"color": style.LINES[layer % len(style.LINES)], "label": f"layer {layer + 1}"}
            bins = np.linspace(0, 100, 41)
            percent_histogram(axes, found[found.isfinite()], bins, histtype="step", linewidth=1.8, **look)
        axes.axvline(50, color=style.INK, linewidth=1, linestyle=":")
        axes.set(xlabel="% that agree (50: a coin toss)", ylabel="% of the layer's parameters")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=3, columnspacing=1.2)  # over the bars
