"""Mutants of a gradient: what it would be after a coarse mistake. A check that one of them passes proves nothing."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Mutation = Callable[[Tensor], Tensor]
"""From a gradient in its own shape to the mutant."""


def mutations(g: Tensor, factor: float, tolerance: float) -> Iterator[tuple[str, Mutation]]:
    """Each in words; those that change a gradient ``g`` by more than the tolerance."""
    for words, mutation in every_mutation(g, factor):
        moved = (mutation(g) - g).abs()
        if bool((moved > 2 * tolerance * torch.maximum(g.abs(), mutation(g).abs())).any()):
            yield words, mutation


def every_mutation(g: Tensor, factor: float) -> Iterator[tuple[str, Mutation]]:
    """Zero, −1, a factor, the largest entry, slice and pair of slices of each dimension, and transposed."""
    yield "0", torch.zeros_like
    yield "minus itself", torch.neg
    yield f"{factor:.3g} times itself", lambda t: factor * t
    largest = int(g.abs().argmax())
    yield "itself without its largest entry", lambda t: t.flatten().index_fill(0, torch.tensor(largest), 0).view_as(t)
    for d in (d for d in range(g.ndim) if g.shape[d] >= 2):
        slices = g.movedim(d, 0).reshape(g.shape[d], -1)
        i = int(slices.square().sum(1).argmax())
        j = int((slices - slices[i]).square().sum(1).argmax())
        order = torch.arange(g.shape[d])
        order[i], order[j] = j, i
        if g.ndim > 1:
            words = f"itself without index {i} of dimension {d}"
            yield words, lambda t, d=d, i=i: t.index_fill(d, torch.tensor(i), 0)  # type: ignore[misc]
        words = f"itself with indices {min(i, j)} and {max(i, j)} of dimension {d} swapped"
        yield words, lambda t, d=d, order=order: t.index_select(d, order)  # type: ignore[misc]
    if g.ndim >= 2 and g.shape[-1] == g.shape[-2] > 1:
        yield "its transpose", lambda t: t.mT
