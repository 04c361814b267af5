"""Average: what each training example alone would change, and the average over all examples, which is −∇C.

    python -m bp_torch explain average

The negative gradients of single examples come from ``backprop.per_example_gradients``, ∇C from one ``backward``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
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
    """The table, and the statistics of all examples.

    Attributes:
        sizes: of the network.
        images, labels: of the columns, (M, 784) and (M,).
        rows: indices of the parameters that are shown.
        values: −∂C_k/∂θ_i, (rows, M).
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
    statistics: Statistics
    direct: Tensor
    examples: int
    caption: str

    @property
    def error(self) -> float:
        """The largest difference between the average and −∇C."""
        return (self.statistics.mean - self.direct).abs().max().item()


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
    return Average(network.sizes, x, y.argmax(1).tolist(), rows, values, found, direct, n, subject.caption)


def finding(result: Average) -> str:
    """What the numbers say."""
    agreement = result.statistics.agreement.nanmedian().item()
    return (
        f"Averaged over {result.examples:,} examples, {result.statistics.cancelled:.0%} of what they wish for cancels; "
        f"what remains is −∇C. For a typical parameter {agreement:.0%} of the examples that want a change agree with "
        "the average"
    )


def table(result: Average) -> str:
    """Parameters as rows, examples as columns, then the average over all examples and −∇C."""
    header = ["−∂C_k/∂θ", *(f"a {label}" for label in result.labels), "", "average", "−∇C", "agree", "std dev"]
    mean, deviation, agreement, _ = result.statistics
    rows = [
        [
            parameter_name(result.sizes, i),
            *(f"{value:+.1e}" if value else "0" for value in values),
            "…",
            f"{mean[i].item():+.4e}",
            f"{result.direct[i].item():+.4e}",
            f"{agreement[i].item():.0%}",
            f"{deviation[i].item():.1e}",
        ]
        for i, values in zip(result.rows, result.values.tolist(), strict=True)
    ]
    return (
        f"What each of {result.examples:,} training examples wishes for, and the average. {result.caption}.\n\n"
        f"{text.table(header, rows)}\n\nOver all {len(result.direct):,} parameters, the average of the wishes and −∇C "
        f"from one backward pass differ by {result.error:.1e} at most."
    )


@style.styled
def figure(result: Average) -> Figure:
    """The table as colours and numbers under the examples' images, and how much the examples disagree."""
    note = (
        "Each column is one training example, each row one weight or bias: blue asks to raise it, orange to lower it, "
        f"on a logarithmic scale. The last column is the average over all {result.examples:,} examples; over all "
        f"parameters it differs from −∇C, computed in one pass, by {text.number(result.error, 1)} at most."
    )
    heights = (1.1 + 0.42 * len(result.rows), 3.6)
    figure = style.new_figure(sum(heights), finding(result), note, result.caption)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    images, columns = upper.subplots(2, len(result.labels) + 1, height_ratios=(0.9, heights[0] - 1.1))
    for axes, pixels in zip(images, result.images, strict=False):
        style.digit(axes, pixels)
    images[-1].text(0.5, 0, "average\nover all", ha="center", weight="bold")
    images[-1].set_axis_off()
    values = torch.cat([result.values, torch.stack([result.statistics.mean[row] for row in result.rows])[:, None]], 1)
    limit = values.abs().max().item() or 1.0
    size = min(8, 75 / values.shape[1])
    norm = SymLogNorm(linthresh=limit * 1e-5, vmin=-limit, vmax=limit)
    for axes, column in zip(columns, values.T, strict=True):
        axes.imshow(style.array(column[:, None]), cmap=style.DIVERGING, norm=norm, aspect="auto")
        style.hide_ticks(axes)
        for row, value in enumerate(column.tolist()):
            colour = "white" if abs(float(norm(value)) - 0.5) > 0.22 else style.INK
            axes.text(0, row, text.number(value, 2), ha="center", va="center", size=size, color=colour)
    columns[0].set_yticks(range(len(result.rows)), [parameter_name(result.sizes, i) for i in result.rows])
    columns[0].tick_params(axis="y", length=0)
    agreement, scatter = lower.subplots(1, 2)
    _disagreement(agreement, scatter, result)
    return figure


def _disagreement(agreement: Axes, scatter: Axes, result: Average) -> None:
    """How many examples agree with the average, and how far they scatter around it, layer by layer."""
    noise = result.statistics.deviation / result.statistics.mean.abs()
    drawn = noise[noise.isfinite() & (noise > 0)]
    noise_bins = np.geomspace(drawn.min().item(), drawn.quantile(0.999).item() * (1 + 1e-9), 41)
    for axes, values, bins in (
        (agreement, 100 * result.statistics.agreement, np.linspace(0, 100, 41)),
        (scatter, noise, noise_bins),
    ):
        for layer, parts in enumerate(zip(*layer_views(values, result.sizes), strict=True), 1):
            found = torch.cat([part.flatten() for part in parts])
            found = found[found.isfinite()]
            colour = style.LINES[(layer - 1) % len(style.LINES)]
            axes.hist(
                style.array(found),
                bins.tolist(),
                weights=np.full(len(found), 100 / max(len(found), 1)),
                histtype="stepfilled",
                facecolor=(colour, 0.2),
                edgecolor=colour,
                linewidth=1.6,
                label=f"layer {layer}",
            )
        axes.set_ylabel("% of the layer's parameters")
    agreement.axvline(50, color=style.INK, linewidth=1, linestyle=":")
    agreement.set(title="How many agree with the sign of the average")
    agreement.set_xlabel("% of the examples that want a change (50: as a coin toss would)")
    agreement.legend()
    scatter.set(title="How far the wishes scatter", xlabel="standard deviation ÷ |average|", xscale="log")
    style.decimal_ticks(scatter.xaxis)
