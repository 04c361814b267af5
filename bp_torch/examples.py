"""Examples as tensors on the device, each set with its kind; shuffled mini-batches of them as inputs and targets.

Pixels are kept as bytes, 0..255, until ``batch`` scales them. Nothing here knows of a file or of a network.
"""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from math import inf, prod

import numpy as np
import torch
from torch import Tensor

from bp_torch.kind import KINDS, Kind
from bp_torch.values import CLASSES, PIXELS

PIXEL_SCALE = 1 / 255  # takes a pixel byte, 0..255, to an input of the network, 0..1
TWICE = 1.01 * PIXEL_SCALE  # where no pixel of 0..1 is above this, somebody divided by 255 twice


@dataclass(frozen=True, eq=False)
class Examples:
    """Images, or other numbers, and the class of each, on one device; two tensors when unpacked.

    ``x`` holds bytes, or floats that are inputs as they are: from 0 to 1, or with a ``kind`` that is not one of images
    any. Integer labels of every dtype become int64. Raises ValueError for anything else.
    """

    x: Tensor  # (N, n_0), uint8 or floats
    labels: Tensor  # (N,), int64 from 0 to the number of classes − 1; real targets are floats (N, n_L)
    kind: Kind = None  # type: ignore[assignment]  # None: of as many inputs as there are, in ten classes

    def __post_init__(self) -> None:
        """Check both tensors."""
        x, labels = self.x, self.labels
        for name, tensor in (("x", x), ("labels", labels)):
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name} is a {type(tensor).__name__}, wanted a tensor: torch.as_tensor({name})")
        inputs, rows = prod(x.shape[1:]), (*labels.shape, 1)[0]
        kind = self.kind or (KINDS["mnist"] if inputs == PIXELS else Kind(inputs=inputs, image=()))
        if x.shape != (rows, kind.inputs):
            wanted = f"wanted ({rows}, {kind.inputs}), a row for each label"
            raise ValueError(f"x has shape {tuple(x.shape)}, {wanted}; images become rows by x.flatten(1)")
        check_inputs(x, unit=self.kind is None or kind.image != ())
        if not kind.real:
            check_labels(labels, kind.outputs)
        elif labels.shape != (rows, kind.outputs) or not labels.is_floating_point() or not labels.isfinite().all():
            what = f"{tuple(labels.shape)} of {labels.dtype}"
            raise ValueError(f"real targets are finite floats ({rows}, {kind.outputs}), not {what}")
        vars(self).update(kind=kind, labels=labels if kind.real else labels.long())

    def __iter__(self) -> Iterator[Tensor]:
        """``x`` and ``labels``."""
        return iter((self.x, self.labels))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Examples":
        """Both tensors changed alike, such as to some of the rows, or to another device."""
        return self.having(change(self.x), change(self.labels))

    def having(self, x: Tensor, labels: Tensor) -> "Examples":
        """Other examples of the same kind, which are not checked again."""
        other = copy(self)
        vars(other).update(x=x, labels=labels)
        return other


def check_inputs(x: Tensor, *, unit: bool) -> None:
    """Raise ValueError unless ``x`` holds bytes, or floats: finite ones, from 0 to 1 where they are a ``unit``."""
    if x.dtype == torch.uint8 or (x.is_floating_point() and not x.numel()):
        return
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, wanted torch.uint8, bytes of 0 to 255, or floats from 0 to 1")
    low, high = (bound.item() for bound in x.aminmax())
    if not (0 <= low <= high <= 1 if unit else -inf < low <= high < inf):  # NaN is not between either
        wanted = "wanted 0 to 1, or bytes of 0 to 255" if unit else "wanted finite ones"
        raise ValueError(f"x holds floats from {low:g} to {high:g}, {wanted}")
    if unit and 0 < high < TWICE:
        raise ValueError(f"x holds floats from {low:g} to {high:g}, as of pixels divided by 255 twice: wanted 0 to 1")


def one_hot(labels: Tensor, classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> Tensor:
    """The targets y (B, classes) of ``labels`` (B,): 1 for the class, else 0. Raises ValueError for another label."""
    check_labels(labels, classes)
    return _one_hot(labels, classes, dtype)


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise ValueError unless ``labels`` (B,) are integers from 0 to ``classes`` − 1."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are a (B,) tensor of integers, not {tuple(labels.shape)} of {labels.dtype}")
    labels = labels.long()
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(f"label {wrong[0].item()} is not one of 0 to {classes - 1}")


def _one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    y = torch.zeros(len(labels), classes, dtype=dtype, device=labels.device)
    return y.scatter_(1, labels[:, None].long(), 1)


def targets(labels: Tensor, kind: Kind, dtype: torch.dtype) -> Tensor:
    """The targets y (B, n_L) of examples of this ``kind``, whose labels were checked."""
    return labels.to(dtype) if kind.real else _one_hot(labels, kind.outputs, dtype)


def permutation(n: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """The order (n,) of ``epoch``: drawn from (seed, epoch) alone, so the same in every process and resumed run."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n)).to(device, torch.int64)


def first_shuffled(examples: Examples, n: int, seed: int) -> Examples:
    """The first n of the shuffled examples. Epochs count from 1; this is the shuffle of epoch 0."""
    indices = permutation(len(examples.labels), seed, 0, examples.x.device)[:n]
    return examples.map(lambda tensor: tensor[indices])


def subsample(examples: Examples, about: int = 10_000) -> Examples:
    """``about`` so many of the examples, evenly spaced over all of them; all of fewer."""
    # An odd distance: in MNIST easy and hard writers alternate, and one parity is 2 points above the other.
    every = max(1, len(examples.labels) // about) | 1
    return examples.map(lambda tensor: tensor[::every])


def batch(
    examples: Examples, indices: Tensor | slice, dtype: torch.dtype, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (B, n_0), bytes scaled to 0..1, and y (B, n_L) of the examples at ``indices`` (B,), or in a slice.

    x is written into the first rows of ``out``, if that is given.
    """
    x, labels = (each[indices] if isinstance(indices, slice) else each.index_select(0, indices) for each in examples)
    return scaled(x, dtype, out=None if out is None else out[: len(x)]), targets(labels, examples.kind, dtype)


def scaled(pixels: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """``pixels``, bytes, as inputs of the network: from 0 to 1; in ``out``, if that is given. Floats are inputs."""
    if pixels.dtype != torch.uint8:
        return pixels.to(dtype) if out is None else out.copy_(pixels)
    x = pixels.new_empty(pixels.shape, dtype=dtype) if out is None else out
    if pixels.device.type == "cpu":  # where two calls are quicker than one that casts as it multiplies
        return x.copy_(pixels).mul_(PIXEL_SCALE)
    return torch.mul(pixels, torch.tensor(PIXEL_SCALE, dtype=torch.promote_types(dtype, torch.float32)), out=x)
