"""Batches: the training examples shuffled and cut into mini-batches, and the gradients of these beside the true one.

    python -m bp_torch explain batches

The shuffle is that of training, ``data.permutation``. The gradient of each mini-batch is from ``backprop.backward``;
the average of all of them is ∇C.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor
from torch.nn.functional import pad

from bp_torch import text
from bp_torch.backprop import backward, forward
from bp_torch.data import batch, permutation
from bp_torch.explain import style
from bp_torch.explain.descent import angle
from bp_torch.explain.subject import CommonOptions, Subject, UsageError, check_least, full_gradient
from bp_torch.network import Network, layer_views

MADE_BY = ("data.permutation", "backprop.backward")

IDEA = (
    "To ask every example before each step takes long. So the examples are shuffled and cut into small batches, and "
    "each step asks one batch only. What a batch wants is not quite what all examples want, but it points nearly the "
    "same way, and there are hundreds of such steps in the time of a single exact one."
)


@dataclass(frozen=True)
class Options(CommonOptions):
    """The batches."""

    batch_size: int = 100
    """Examples in a mini-batch."""
    shown: int = 4
    """Mini-batches that are shown, from 1 to 6."""
    epoch: int = 1
    """The shuffle of this epoch."""

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that cannot be."""
        super().__post_init__()
        check_least(batch_size=(self.batch_size, 1), shown=(self.shown, 1), epoch=(self.epoch, 1))
        if self.shown > 6:
            raise ValueError(f"--shown: wanted 6 or less, got {self.shown}")


class Batches(NamedTuple):
    """The mini-batches of one epoch.

    Attributes:
        sizes: of the network.
        images: of the batches that are shown, each (B, 784).
        wishes: −∇C of these batches, (shown, P), of the untrained network.
        whole: −∇C over all examples, (P,), of the untrained network.
        average: of −∇C over all batches, (P,): ``whole``, to rounding.
        angles: between −∇C of each batch and over all examples, in degrees, by network.
        batch_size, examples: how many there are in a batch, and in all.
        caption: which network this is.
    """

    sizes: tuple[int, ...]
    images: list[Tensor]
    wishes: Tensor
    whole: Tensor
    average: Tensor
    angles: dict[str, list[float]]
    batch_size: int
    examples: int
    caption: str

    @property
    def many(self) -> int:
        """How many mini-batches there are."""
        return len(next(iter(self.angles.values())))


def batch_wishes(network: Network, subject: Subject, batches: list[Tensor]) -> Iterator[Tensor]:
    """−∇C (P,) of each batch of indices."""
    for indices in batches:
        x, y = batch(subject.training, indices, network.dtype)
        yield -backward(network, forward(network, x), y, subject.config.cost).gradient


def explain(subject: Subject, options: Options) -> Batches:
    """Cut the shuffled examples into batches, and ask each of them."""
    training, cost, n = subject.training, subject.config.cost, len(subject.training.labels)
    if options.batch_size > n:
        raise UsageError(f"--batch-size: wanted 1 to {n:,}, got {options.batch_size}")
    order = permutation(n, subject.config.seed, options.epoch, training.labels.device)
    batches, angles = list(order.split(options.batch_size)), {}
    kept: list[Tensor] = []
    whole, average = torch.zeros(()), torch.zeros(())
    for name, network in subject.before_and_after.items():
        true, found = -full_gradient(network, training, cost), []
        total = torch.zeros_like(true)
        for wish, indices in zip(batch_wishes(network, subject, batches), batches, strict=True):
            found.append(angle(wish, true))
            if name == "untrained":
                total += wish * len(indices) / n
                kept += [wish] if len(kept) < options.shown else []
        angles[name] = found
        if name == "untrained":
            whole, average = true, total
    images = [batch(training, indices, torch.float64)[0] for indices in batches[: len(kept)]]
    sizes, wishes = subject.network.sizes, torch.stack(kept)
    return Batches(sizes, images, wishes, whole, average, angles, options.batch_size, n, subject.caption)


def finding(result: Batches) -> str:
    """What the numbers say."""
    when = {"untrained": "before training", "trained": "after it"}
    off = ", ".join(f"{mean(found):.0f}° {when[name]}" for name, found in result.angles.items())
    return (
        f"{result.examples:,} shuffled examples are {text.count(result.many, 'mini-batch', 'mini-batches')} of "
        f"{result.batch_size:,}: so many steps where all examples together give one. On average a batch points off by "
        f"{off}"
    )


def mean(values: list[float]) -> float:
    """The mean of the values that are numbers: no angle is known where a gradient is zero."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else 0.0


def table(result: Batches) -> str:
    """The first batches with their gradients' lengths and angles, and all of them in sum."""
    first = next(iter(result.angles.values()))
    rows = [[f"{i + 1}", f"{wish.norm().item():.4e}", f"{first[i]:.1f}°"] for i, wish in enumerate(result.wishes)] + [
        ["all examples", f"{result.whole.norm().item():.4e}", "0°"]
    ]
    spread = [
        [name, f"{mean(found):.1f}°", f"{min(found):.1f}°", f"{max(found):.1f}°"]
        for name, found in result.angles.items()
    ]
    error = (result.average - result.whole).abs().max().item()
    return (
        f"{result.examples:,} examples, shuffled and cut into {result.many:,} mini-batches. {result.caption}.\n\n"
        f"{text.table(['mini-batch', 'length of ∇C', 'off the true one by'], rows)}\n\n"
        f"{text.table([f'all {result.many:,} mini-batches', 'mean', 'least', 'most'], spread)}\n\n"
        f"The average over all mini-batches and ∇C over all examples differ by {error:.1e} at most."
    )


@style.styled
def figure(result: Batches, narrow: bool = False) -> Figure:
    """A few batches, each above what it wants of one neuron's weights; all examples; the angles of all batches."""
    j = most_wanted(result)
    note = (
        "The images are those of the first mini-batches of a shuffle. Below each is what it wants of the weights from "
        "the "
        f"pixels to neuron {j} of layer 1 of the untrained network, −∂C/∂w: blue raises, orange lowers, all on one "
        "scale."
    )
    columns = [
        style.Panel(partial(_batch, result=result, i=i, narrow=narrow), 1, 2.4) for i in range(len(result.images))
    ]
    columns.append(style.Panel(partial(_whole, result=result, narrow=narrow), 1.2, 3.2))
    rows: list[style.Row] = [(5.4, columns), (2.8, [style.Panel(partial(_angles, result=result), 1, 3.2)])]
    return style.compose(rows, finding(result), note, result.caption, narrow)


def most_wanted(result: Batches) -> int:
    """The neuron of layer 1 whose weights all examples want to change most."""
    return int(layer_views(result.whole, result.sizes)[0][0].norm(dim=1).argmax())


def _map(axes: Axes, result: Batches, wish: Tensor) -> None:
    """What ``wish`` (P,) is for the weights of one neuron."""
    j, views = most_wanted(result), layer_views(result.wishes, result.sizes)[0][0]
    limit = max(views[:, j].abs().max().item(), layer_views(result.whole, result.sizes)[0][0][j].abs().max().item())
    drawn = style.diverging(axes, layer_views(wish, result.sizes)[0][0][j].reshape(28, 28), limit)
    style.hide_ticks(axes)
    if wish is result.whole:
        style.colourbar(drawn, axes, "−∂C/∂w")


def _batch(part: SubFigure, result: Batches, i: int, narrow: bool) -> None:
    """One batch as a mosaic, and its wish."""
    style.heading(part, f"Batch {i + 1}: {next(iter(result.angles.values()))[i]:.0f}° off")
    above, below = part.subplots(1, 2) if narrow else part.subplots(2, 1)
    shown = result.images[i][:100]
    side = max(1, round(len(shown) ** 0.5))
    lines = -(-len(shown) // side)
    tiles = pad(shown, (0, 0, 0, lines * side - len(shown))).reshape(lines, side, 28, 28)
    above.imshow(style.array(tiles.transpose(1, 2).reshape(lines * 28, side * 28)), cmap="Greys", vmin=0, vmax=1)
    style.hide_ticks(above)
    _map(below, result, result.wishes[i])


def _whole(part: SubFigure, result: Batches, narrow: bool) -> None:
    """What all examples want."""
    style.heading(part, f"All {result.examples:,}: −∇C")
    if narrow:
        _map(part.subplots(), result, result.whole)
        return
    above, below = part.subplots(2, 1)
    above.text(
        0.5, 0.5, f"… and\n{result.many - len(result.images):,} more\nbatches", ha="center", va="center", size=13
    )
    above.set_axis_off()
    _map(below, result, result.whole)


def _angles(part: SubFigure, result: Batches) -> None:
    """How far off each mini-batch points."""
    style.heading(part, f"How far off all {result.many:,} mini-batches point")
    axes = part.subplots()
    bins = np.linspace(0, 120, 61).tolist()
    for (name, found), colour in zip(result.angles.items(), (style.LINES[3], style.LINES[1]), strict=False):
        axes.hist(found, bins, color=colour, alpha=0.8)
        high = np.histogram(found, bins)[0].max()
        place = (max(mean(found), 22), high * 1.04)
        axes.text(*place, f"{name}: {mean(found):.0f}°", weight="bold", color=colour, ha="center")
    axes.axvline(90, color=style.SOFT, linewidth=0.9, linestyle=":")
    axes.text(91, axes.get_ylim()[1] / 2, "90°: a random\ndirection", size=9, color=style.SOFT)
    axes.margins(y=0.18)
    axes.set(xlabel="degrees off the true gradient", ylabel="mini-batches", xlim=(0, 120))
