"""Average: every example's own wishes side by side, and that their average over all examples is −∇C.

    python -m bp_torch explain average

The wishes are ``backprop.per_example_gradients``, a chunk of examples at a time; ∇C comes from ``backward`` in one go.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from bp_torch.backprop import per_example_gradients
from bp_torch.data import Examples
from bp_torch.explain import style
from bp_torch.explain.gradient import parameter_name
from bp_torch.explain.style import number
from bp_torch.explain.subject import (
    CommonOptions,
    Subject,
    UsageError,
    check_least,
    chunks,
    inputs_and_wanted,
    whole_gradient,
)
from bp_torch.network import Network, layer_views

MADE_BY = ("backprop.per_example_gradients", "backprop.backward")

IDEA = (
    "Each image asks for its own change of every weight and bias, and images disagree, often about the sign. Write the "
    "wishes down side by side, one column an image, and average each row over all of them: most of what was asked for "
    "cancels, and what remains is the negative gradient of the whole cost, exactly."
)

KEPT = 3_000_000
"""Components of gradients that are kept at once, 24 MB of float64: 230 examples of 13,002 parameters."""


@dataclass(frozen=True)
class Options(CommonOptions):
    """The columns of the table."""

    first: int = 0
    """The first training example that gets a column."""
    columns: int = 6
    """How many examples get one, from 1 to 10."""

    def __post_init__(self) -> None:
        """Refuse columns that are none."""
        super().__post_init__()
        check_least(first=(self.first, 0), columns=(self.columns, 1))
        if self.columns > 10:
            raise ValueError(f"--columns: wanted 10 or less, got {self.columns}")


class Wishes(NamedTuple):
    """What all examples together say of each parameter, each (P,).

    Attributes:
        average: of −∂C_k/∂θ.
        deviation: standard deviation of −∂C_k/∂θ.
        agreement: of the examples that want any change, the share that want it in the direction of the average, 0..1,
            nan where none wants any.
        cancelled: how much shorter the average vector is than the vectors are on average, 0..1.
    """

    average: Tensor
    deviation: Tensor
    agreement: Tensor
    cancelled: float


class Average(NamedTuple):
    """The table, and what it comes to.

    Attributes:
        sizes: of the network.
        images, labels: of the columns, (M, 784) and (M,).
        rows: which parameters are shown.
        cells: −∂C_k/∂θ_i, (rows, M).
        wishes: what all examples say.
        at_once: −∇C from one pass over all examples, (P,).
        examples: how many there are.
        caption: which network this is.
    """

    sizes: tuple[int, ...]
    images: Tensor
    labels: list[int]
    rows: list[int]
    cells: Tensor
    wishes: Wishes
    at_once: Tensor
    examples: int
    caption: str

    @property
    def error(self) -> float:
        """The largest difference between the average and −∇C."""
        return (self.wishes.average - self.at_once).abs().max().item()


def every_wish(network: Network, examples: Examples, cost: str, chunk: int) -> Iterator[Tensor]:
    """−∂C_k/∂θ of all examples, (chunk, P) at a time."""
    for x, y in chunks(examples, network.dtype, chunk):
        yield per_example_gradients(network, x, y, cost).neg_()


def add_up(wishes: Iterator[Tensor], n: int) -> Wishes:
    """What ``n`` examples' wishes come to, read once."""
    total = squares = signs = spoke = torch.zeros(())
    lengths = 0.0
    for part in wishes:
        total = total + part.sum(0)
        squares = squares + part.norm(dim=0).square_()
        spoke = spoke + part.count_nonzero(0)
        lengths += part.norm(dim=1).sum().item()
        signs = signs + part.sign_().sum(0)  # last, for it overwrites the chunk
    average = total / n
    deviation = (squares / n - average**2).clamp_min(0).sqrt()
    agreement = (spoke + signs * average.sign()) / (2 * spoke)
    return Wishes(average, deviation, agreement, 1 - average.norm().item() / (lengths / n) if lengths else 0.0)


def telling_rows(gradient: Tensor, sizes: tuple[int, ...]) -> list[int]:
    """Some parameters of each layer: its strongest weight, one a tenth as far down, one in the middle, one bias."""
    weights, biases = layer_views(torch.arange(len(gradient), device=gradient.device), sizes)
    rows = []
    for w, b in list(zip(weights, biases, strict=True))[:4]:
        places = w.flatten()
        ordered = places[gradient[places].abs().sort(descending=True, stable=True).indices]
        rows += [int(ordered[0]), int(ordered[len(ordered) // 10]), int(ordered[len(ordered) // 2])]
        rows.append(int(b[gradient[b].abs().argmax()]))
    return list(dict.fromkeys(rows))  # a tiny layer would name one twice


def explain(subject: Subject, options: Options) -> Average:
    """The wishes of all training examples, with the columns that ``options`` choose."""
    network, cost, training = subject.exact, subject.config.cost, subject.training
    n = len(training.labels)
    if options.first + options.columns > n:
        raise UsageError(
            f"--first: wanted 0 to {n - options.columns:,} for {options.columns} columns, got {options.first}"
        )
    at_once = -whole_gradient(network, training, cost, chunk=n)
    chunk = max(1, KEPT // len(at_once))
    parts = every_wish(network, training, cost, chunk)
    wishes = add_up(iter(tqdm(parts, desc="every wish", total=ceil(n / chunk), leave=False, disable=None)), n)
    x, y = inputs_and_wanted(training, slice(options.first, options.first + options.columns), network.dtype)
    rows = telling_rows(at_once, network.sizes)
    cells = -per_example_gradients(network, x, y, cost)[:, rows].T
    return Average(network.sizes, x, y.argmax(1).tolist(), rows, cells, wishes, at_once, n, subject.caption)


def finding(result: Average) -> str:
    """What the numbers say."""
    agreement = result.wishes.agreement.nanmedian().item()
    return (
        f"Averaged over {result.examples:,} examples {result.wishes.cancelled:.0%} of what they ask for cancels; the "
        f"rest is −∇C. On a typical parameter {agreement:.0%} of those with a say agree with the average"
    )


def table(result: Average) -> str:
    """Parameters as rows, examples as columns, the average over all, and −∇C beside it."""
    header = [
        "−∂C_k/∂θ",
        *(f"a {label}" for label in result.labels),
        "",
        "average",
        "−∇C at once",
        "agree",
        "std dev",
    ]
    rows = []
    for i, cells in zip(result.rows, result.cells.tolist(), strict=True):
        wishes = result.wishes
        rows.append(
            [
                parameter_name(result.sizes, i),
                *(f"{cell:+.1e}" if cell else "0" for cell in cells),
                "…",
                f"{wishes.average[i].item():+.4e}",
                f"{result.at_once[i].item():+.4e}",
                f"{wishes.agreement[i].item():.0%}",
                f"{wishes.deviation[i].item():.1e}",
            ]
        )
    return (
        f"What each of {result.examples:,} training examples wants, and their average. "
        f"{result.caption}.\n\n{style.text_table(header, rows)}\n\nOver all {len(result.at_once):,} parameters the "
        f"average of the wishes and −∇C computed at once differ by {result.error:.1e} at most."
    )


@style.styled
def figure(result: Average) -> Figure:
    """The table as colours and numbers under the examples' images, and how much the examples disagree."""
    note = (
        "Each column is one training example, each row one weight or bias: blue asks to raise it, orange to lower "
        f"it, on a logarithmic scale. The last column is the average over all {result.examples:,} examples; over all "
        f"parameters it differs from −∇C computed at once by {number(result.error, 1)} at most."
    )
    cell, left = 0.42, 4.35
    columns, rows = len(result.labels), len(result.rows)
    width = 6.15 / columns
    height = rows * cell
    page = style.Page(5.0 + height, finding(result), note, result.caption)
    average = result.wishes.average[result.rows]
    limit = max(result.cells.abs().max().item(), average.abs().max().item()) or 1.0
    norm = SymLogNorm(linthresh=limit * 1e-5, vmin=-limit, vmax=limit)
    size = min(width, 0.75) - 0.06
    for i, image in enumerate(result.images):
        style.digit(page.axes(left + width * (i + 0.5) - size / 2, 0.75 - size, size, size), image)
    page.text(left + 6.15 + 0.68, 0.35, "average\nover all", ha="center", weight="bold", size=9)
    for start, wide, values in ((left, 6.15, result.cells), (left + 6.15 + 0.18, 1.0, average[:, None])):
        axes = page.axes(start, 0.8, wide, height)
        axes.imshow(style.array(values), cmap=style.DIVERGING, norm=norm, aspect="auto")
        style.bare(axes)
        for (i, j), value in zip(
            ((i, j) for i in range(rows) for j in range(values.shape[1])), values.flatten().tolist(), strict=True
        ):
            dark = abs(float(norm(value)) - 0.5) > 0.22
            axes.text(j, i, number(value, 2), ha="center", va="center", size=8, color="white" if dark else style.INK)
        if start == left:
            names = [parameter_name(result.sizes, i) for i in result.rows]
            axes.set_yticks(range(rows), names, fontsize=8.5)
            axes.tick_params(axis="y", length=0)
    _disagreement(page, 1.5 + height, result)
    return page.figure


def _disagreement(page: style.Page, top: float, result: Average) -> None:
    """How many examples agree with the average, and how far they scatter around it, layer by layer."""
    agreement = page.axes(1.05, top, 4.7, 2.7, "How many agree with the sign of the average")
    scatter = page.axes(6.95, top, 4.7, 2.7, "How far the wishes scatter")
    wishes = result.wishes
    noise = (wishes.deviation / wishes.average.abs()).log10()
    widest = noise[noise.isfinite()].quantile(0.999).item()
    for axes, values, low, high in (
        (agreement, 100 * wishes.agreement, 0.0, 100.0),
        (scatter, noise, noise[noise.isfinite()].min().item(), widest + 1e-9),
    ):
        for layer, parts in enumerate(zip(*layer_views(values, result.sizes), strict=True)):
            every = torch.cat([part.flatten() for part in parts])
            colour = style.LAYER_COLOURS[layer % len(style.LAYER_COLOURS)]
            axes.hist(
                style.array(every[every.isfinite()]),
                torch.linspace(low, high, 41).tolist(),
                density=True,
                histtype="stepfilled",
                facecolor=(colour, 0.2),
                edgecolor=colour,
                linewidth=1.6,
                label=f"layer {layer + 1}",
            )
        axes.set(ylabel="share of the parameters", yticks=[])
    agreement.axvline(50, color=style.INK, linewidth=1, linestyle=":")
    agreement.set_xlabel("% of the examples with a say (50: the toss of a coin)")
    scatter.set_xlabel("standard deviation ÷ |average|, as a power of ten")
    agreement.legend()
