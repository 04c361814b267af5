"""Average: what each training example alone would change, and the average as it is made, until it is −∇C.

    python -m bp_torch explain average

The negative gradients of single examples come from ``backprop.per_example_gradients``, ∇C from one ``backward``.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor
from tqdm import tqdm

from bp_torch import text
from bp_torch.backprop import per_example_gradients
from bp_torch.data import Examples, batch
from bp_torch.explain import style
from bp_torch.explain.gradient import parameter_name
from bp_torch.explain.subject import CommonOptions, Subject, UsageError, check_least, chunks, full_gradient
from bp_torch.network import Network, layer_views

MADE_BY = ("backprop.per_example_gradients", "backprop.backward")

IDEA = (
    "Each image asks for its own change to every weight and bias, and the images disagree, often even about the sign. "
    "Write these wishes side by side, one column for each image, and average each row over all images: most of the "
    "wishes cancel, and what remains is exactly the negative gradient of the whole cost."
)

MADE_OF = (1, 10, 100, 1_000)
"""After so many examples the average is shown, and after all."""

KEPT = 3_000_000
"""Components of gradients in memory at once, 24 MB of float64: 230 examples of 13,002 parameters."""


@dataclass(frozen=True)
class Options(CommonOptions):
    """The columns of the table."""

    first: int = 0
    """The first training example that has a column."""
    columns: int = 6
    """Number of examples that have a column, from 1 to 10."""

    def __post_init__(self) -> None:
        """Raise ValueError for examples that cannot be columns."""
        super().__post_init__()
        check_least(first=(self.first, 0), columns=(self.columns, 1))
        if self.columns > 10:
            raise ValueError(f"--columns: wanted 10 or less, got {self.columns}")


class Statistics(NamedTuple):
    """What the negative gradients −∂C_k/∂θ of all examples have in common.

    Attributes:
        mean, deviation: mean and standard deviation of each component, (P,).
        agreement: of the examples whose component is not zero, the fraction with the sign of the mean, (P,), 0..1;
            nan where it is zero for all.
        cancelled: 1 − ‖mean‖ / (mean of the norms), 0..1: how much cancels in the average.
    """

    mean: Tensor
    deviation: Tensor
    agreement: Tensor
    cancelled: float


class Average(NamedTuple):
    """The table, the average as it is made, and the statistics of all examples.

    Attributes:
        sizes: of the network.
        images, labels: of the columns, (M, 784) and (M,).
        rows: indices of the parameters that are shown.
        values: −∂C_k/∂θ_i, (rows, M).
        made: the average wish (P,) of so many examples: of the first column's, of it and the next ones, of all.
        statistics: over all examples.
        direct: −∇C from one backward pass over all examples, (P,).
        examples: how many there are.
        caption: which network this is.
    """

    sizes: tuple[int, ...]
    images: Tensor
    labels: list[int]
    rows: list[int]
    values: Tensor
    made: dict[int, Tensor]
    statistics: Statistics
    direct: Tensor
    examples: int
    caption: str

    @property
    def error(self) -> float:
        """The largest difference between the average and −∇C."""
        return (self.statistics.mean - self.direct).abs().max().item()

    def left(self, count: int) -> float:
        """The part of what the first example wanted that is left in the average of ``count``, along its own wish."""
        first = self.made[1]
        return float(self.made[count] @ first / (first @ first)) if first.any() else 0.0


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
    return Statistics(mean, deviation, agreement, 1 - n * mean.norm().item() / norms if norms else 0.0)


def select_rows(gradient: Tensor, sizes: tuple[int, ...]) -> list[int]:
    """Of each of the first four layers the weights at ranks 0, n/10 and n/2 by size of gradient, and the first bias."""
    rows = []
    for w, b in list(zip(*layer_views(torch.arange(len(gradient), device=gradient.device), sizes), strict=True))[:4]:
        ordered = w.flatten()[gradient[w.flatten()].abs().sort(descending=True, stable=True).indices]
        rows += [int(ordered[rank]) for rank in (0, len(ordered) // 10, len(ordered) // 2)]
        rows.append(int(b[gradient[b].abs().argmax()]))
    return list(dict.fromkeys(rows))  # in a tiny layer two ranks can be one weight


def averages(network: Network, examples: Examples, cost: str, first: int) -> dict[int, Tensor]:
    """The average wish (P,) of 1, 10, … examples, by their number: from the ``first`` on, and around the end."""
    n = len(examples.labels)
    places = (first + torch.arange(n, device=examples.labels.device)) % n
    counts = [count for count in MADE_OF if count < n]
    made = {}
    for count in counts:
        chosen = places[:count]
        some = Examples(examples.x.index_select(0, chosen), examples.labels.index_select(0, chosen))
        made[count] = -full_gradient(network, some, cost)
    return made


def explain(subject: Subject, options: Options) -> Average:
    """The negative gradients of all training examples; the columns are those that ``options`` choose."""
    network, cost, training = subject.exact, subject.config.cost, subject.training
    n = len(training.labels)
    if options.first + options.columns > n:
        raise UsageError(
            f"--first: wanted 0 to {n - options.columns:,} for {options.columns} columns, got {options.first}"
        )
    direct = -full_gradient(network, training, cost, chunk=n)
    chunk = max(1, KEPT // len(direct))
    parts = negative_gradients(network, training, cost, chunk)
    found = statistics(tqdm(parts, desc="all examples", total=ceil(n / chunk), leave=False, disable=None))
    shown = torch.arange(options.first, options.first + options.columns, device=training.labels.device)
    x, y = batch(training, shown, network.dtype)
    rows = select_rows(direct, network.sizes)
    values = -per_example_gradients(network, x, y, cost).index_select(1, torch.tensor(rows).to(x.device)).T
    made = averages(network, training, cost, options.first) | {n: direct}
    return Average(network.sizes, x, y.argmax(1).tolist(), rows, values, made, found, direct, n, subject.caption)


def finding(result: Average) -> str:
    """What the numbers say."""
    agreement = 100 * result.statistics.agreement.nanmedian().item()
    return (
        f"Averaged over {result.examples:,} examples, {result.statistics.cancelled:.0%} of what they wish for cancels, "
        f"because their signs nearly balance: for a typical parameter {agreement:.0f} of 100 pull one way, "
        f"{100 - agreement:.0f} the other. What is left is −∇C"
    )


def table(result: Average) -> str:
    """Parameters as rows, examples as columns, then the average over all examples and −∇C; the average as it is "
    "made."""
    header = ["−∂C_k/∂θ", *(f"a {label}" for label in result.labels), "", "average", "−∇C", "agree", "std dev"]
    mean, deviation, agreement, _ = result.statistics
    rows = []
    for i, values in zip(result.rows, result.values, strict=True):
        unit, power = text.unit(torch.cat([values, deviation[i : i + 1]]))
        rows.append(
            [
                parameter_name(result.sizes, i) + power,
                *(f"{value / unit:+.3f}" if value else "0" for value in values.tolist()),
                "…",
                f"{mean[i].item() / unit:+.5f}",
                f"{result.direct[i].item() / unit:+.5f}",
                f"{agreement[i].item():.0%}",
                f"{deviation[i].item() / unit:.3f}",
            ]
        )
    made = [
        [f"{count:,}", f"{average.norm().item():.4e}", f"{result.left(count):.2%}"]
        for count, average in result.made.items()
    ]
    return (
        f"What each of {result.examples:,} training examples wishes for, and the average. {result.caption}.\n\n"
        f"{text.table(header, rows)}\n\n"
        f"{text.table(['average of', 'its length', 'left of the first wish'], made)}\n\n"
        f"Over all {len(result.direct):,} parameters, the average of the wishes and −∇C from one backward pass differ "
        "by "
        f"{result.error:.1e} at most."
    )


@style.styled
def figure(result: Average, narrow: bool = False) -> Figure:
    """The average as it is made; the table under the examples' images; how much the examples disagree."""
    note = (
        "Blue asks to raise a weight or bias, orange to lower it. In the table each column is one training example, "
        "each "
        f"row one parameter, with its own power of ten. The last column is the average over all {result.examples:,} "
        f"examples; over all parameters it differs from −∇C, computed in one pass, by {text.number(result.error, 1)} "
        "at most."
    )
    columns = 3 if narrow else len(result.labels)
    high = 1.4 + 0.42 * len(result.rows)
    made = style.Panel(partial(_made, result=result, columns=2 if narrow else 6), 1, 6.6)
    rows: list[style.Row] = [
        (3.0, [made]),
        (high, [style.Panel(partial(_table, result=result, columns=columns, short=narrow), 1, high)]),
        (
            3.6,
            [
                style.Panel(partial(_agreement, result=result), 1, 3.2),
                style.Panel(partial(_scatter, result=result), 1, 3.2),
            ],
        ),
    ]
    return style.compose(rows, finding(result), note, result.caption, narrow)


def short_name(sizes: tuple[int, ...], index: int) -> str:
    """The parameter as in "W1: (14, 9) → 3" or "b1: 3": its layer, where from, where to."""
    kind, *numbers = re.findall(r"^weight|^bias|\(\d+, \d+\)|\d+", parameter_name(sizes, index))
    return f"W{numbers[-1]}: {numbers[0]} → {numbers[-2]}" if kind == "weight" else f"b{numbers[-1]}: {numbers[0]}"


def _made(part: SubFigure, result: Average, columns: int) -> None:
    """What more and more examples want, on average, of the weights of one neuron; the last again on its own scale."""
    shown = {count: layer_views(average, result.sizes)[0][0] for count, average in result.made.items()}
    j = int(shown[1].norm(dim=1).argmax())
    limit = shown[1][j].abs().max().item()
    style.heading(part, f"The average as it is made: what the images want of the pixels' weights to neuron {j}")
    maps = list(part.subplots(-(-(len(shown) + 1) // columns), columns, squeeze=False).flat)
    for axes, (count, weights) in zip(maps, shown.items(), strict=False):
        style.diverging(axes, weights[j].reshape(28, 28), limit)
        name = (
            f"all {count:,}" if count == result.examples else "the first image" if count == 1 else f"{count:,} images"
        )
        axes.set_title(f"{name}\n{result.left(count):.0%} of its wish left", fontsize=9.5, fontweight="normal", pad=5)
    last = maps[len(shown)]
    weights = shown[result.examples][j]
    style.diverging(last, weights.reshape(28, 28), weights.abs().max().item())
    last.set_title(
        f"all, with {text.times(limit / (weights.abs().max().item() or 1))}\nthe colour",
        fontsize=9.5,
        fontweight="normal",
        pad=5,
    )
    for axes in maps:
        style.hide_ticks(axes)
        axes.set_visible(bool(axes.images))


def _table(part: SubFigure, result: Average, columns: int, short: bool) -> None:
    """Parameters as rows under the images of the examples, in numbers and colours, a power of ten for each row."""
    shown = min(columns, len(result.labels))
    style.heading(part, f"What each of {shown} images wants, and the average over all {result.examples:,}")
    images, axes = part.subplots(2, shown + 1, height_ratios=(0.7, 0.42 * len(result.rows)), squeeze=False)
    for place, pixels in zip(images, result.images[:shown], strict=False):
        style.digit(place, pixels)
    images[-1].text(0.5, 0, "average", ha="center", weight="bold", size=9)
    images[-1].set_axis_off()
    mean = torch.stack([result.statistics.mean[row] for row in result.rows])
    values = torch.cat([result.values[:, :shown], mean[:, None]], 1)
    units = [text.unit(row) for row in values]
    scaled = torch.stack([row / unit for row, (unit, _) in zip(values, units, strict=True)])
    full = scaled / scaled.abs().amax(1, keepdim=True).clamp_min(1e-300)  # the largest of a row has the full colour
    for place, column, colour in zip(axes, scaled.T, full.T, strict=True):
        style.diverging(place, colour[:, None], 1.0, aspect="auto")
        style.hide_ticks(place)
        for row, (value, strength) in enumerate(zip(column.tolist(), colour.abs().tolist(), strict=True)):
            ink = "white" if strength > 0.5 else style.INK
            written = f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0.00" if value else "0"
            place.text(0, row, written, ha="center", va="center", size=9, color=ink)
    named = short_name if short else parameter_name
    names = [named(result.sizes, i) + power for i, (_, power) in zip(result.rows, units, strict=True)]
    axes[0].set_yticks(range(len(names)), [name.replace(" (×", "\n(×") if short else name for name in names])
    axes[0].tick_params(axis="y", length=0)


def _agreement(part: SubFigure, result: Average) -> None:
    """How many examples agree with the average."""
    style.heading(part, "How many agree with the sign of the average")
    axes = part.subplots()
    _by_layer(axes, 100 * result.statistics.agreement, np.linspace(0, 100, 41).tolist(), result.sizes)
    axes.axvline(50, color=style.INK, linewidth=1, linestyle=":")
    axes.set_xlabel("% that agree (50: a coin toss)")
    axes.legend()


def _scatter(part: SubFigure, result: Average) -> None:
    """How far the examples scatter around the average."""
    style.heading(part, "How far the wishes scatter")
    axes = part.subplots()
    noise = result.statistics.deviation / result.statistics.mean.abs()
    drawn = noise[noise.isfinite() & (noise > 0)]
    bins = np.geomspace(drawn.min().item(), drawn.quantile(0.999).item() * (1 + 1e-9), 41)
    _by_layer(axes, noise, bins.tolist(), result.sizes)
    axes.set(xlabel="standard deviation ÷ |average|", xscale="log")
    style.decimal_ticks(axes.xaxis)


def _by_layer(axes: Axes, values: Tensor, bins: list[float], sizes: tuple[int, ...]) -> None:
    """A line for each layer: how many of its parameters have which of the ``values``."""
    for layer, parts in enumerate(zip(*layer_views(values, sizes), strict=True), 1):
        found = torch.cat([part.flatten() for part in parts])
        found = found[found.isfinite()]
        colour = style.LINES[(layer - 1) % len(style.LINES)]
        weights = np.full(len(found), 100 / max(len(found), 1))
        axes.hist(
            style.array(found),
            bins,
            weights=weights,
            histtype="step",
            color=colour,
            linewidth=1.8,
            label=f"layer {layer}",
        )
    axes.set_ylabel("% of the layer's parameters")
