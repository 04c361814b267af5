"""Errors that have a pattern over the entries of a gradient: the most specific first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bp_torch.text import count
from bp_torch.verify.comparison import norm

if TYPE_CHECKING:
    from bp_torch.verify.diagnoses import WrongGradient

Pair = tuple[str, Tensor, Tensor]
"""A sentence, and two tensors that are equal if it is true."""

LONGEST = 512  # of a dimension whose slices are compared pair by pair


def broadcasts(small: torch.Size, shape: torch.Size) -> bool:
    """Whether a tensor of shape ``small`` expands to ``shape``."""
    pairs = zip(reversed(small), reversed(shape), strict=False)
    return len(small) <= len(shape) and all(a in (1, b) for a, b in pairs)


def slices(t: Tensor, d: int) -> Tensor:
    """(n, m): one row for each index of dimension d."""
    return t.movedim(d, 0).reshape(t.shape[d], -1)


def transposed(wrong: WrongGradient) -> Iterator[Pair]:
    """A square gradient, transposed."""
    if wrong.right.ndim >= 2 and wrong.shape[-1] == wrong.shape[-2] > 1:
        yield "is transposed", wrong.ours, wrong.right.mT


def reordered(wrong: WrongGradient) -> Iterator[Pair]:
    """The right slices in another order: flipped, rolled, halves swapped, or any other."""
    ours, right = wrong.ours, wrong.right
    for d in (d for d in range(right.ndim) if 2 <= right.shape[d] <= LONGEST):
        if right.numel() // right.shape[d] * right.shape[d] ** 2 > 10**8:
            continue
        a, b = slices(ours, d), slices(right, d)
        order = torch.cdist(a, b).argmin(1)
        n = len(order)
        if len(order.unique()) < n or torch.equal(order, torch.arange(n)):
            continue
        yield f"{_order(order)} along dimension {d}", a, b[order]


def _order(order: Tensor) -> str:
    n, first = len(order), int(order[0])
    if torch.equal(order, torch.arange(n).flip(0)):
        return "is flipped"
    if torch.equal(order, (torch.arange(n) + first) % n):
        return "has its two halves swapped" if 2 * first == n else f"is rolled by {(n - first) % n}"
    return "has the right slices in another order"


def mask(wrong: WrongGradient) -> Iterator[Pair]:
    """Right except for entries that should be zero, or that are zero and should not be."""
    ours, right = wrong.ours, wrong.right
    zero, missing = (right == 0) & (ours != 0), (ours == 0) & (right != 0)
    if zero.sum() >= 4 and missing.sum() >= 4 and (zero | missing).double().mean() > 0.95:
        text = "is zero where it should not be, and not zero where it should: the mask is inverted?"
        yield text, (ours != 0).double(), ((right == 0) & (ours != 0)).double()
    if ((right != 0) & (ours != 0)).sum() < 3:
        return
    if zero.any():
        entries = count(int(zero.sum()), "entry", "entries")
        text = f"is right wherever the gradient is not zero, but {entries} should be zero: a mask is missing?"
        yield text, ours[~zero], right[~zero]
    if missing.any():
        entries = count(int(missing.sum()), "entry", "entries")
        where = _whole_slices(missing)
        text = (
            f"is zero in {entries} where it should not be{where}, and right elsewhere: masked too much, or not written?"
        )
        yield text, ours, right.masked_fill(missing, 0)


def _whole_slices(chosen: Tensor) -> str:
    """The indices of a dimension that the chosen entries fill, in brackets; "" if they fill none."""
    for d in (d for d in range(chosen.ndim) if chosen.ndim > 1):
        rows = slices(chosen, d)
        if bool((rows.all(1) | ~rows.any(1)).all()):
            return f" (all of {_indices(rows.all(1)).rstrip(',')} of dimension {d})"
    return ""


def signs(wrong: WrongGradient) -> Iterator[Pair]:
    """The sign is wrong at some indices of one dimension."""
    for d in (d for d in range(wrong.right.ndim) if wrong.right.shape[d] >= 2):
        a, b = slices(wrong.ours, d), slices(wrong.right, d)
        flips = (a * b).sum(1) < 0
        if flips.any():
            text = f"the sign is wrong at {_indices(flips)} of dimension {d}"
            yield text, a, torch.where(flips[:, None], -b, b)


def difference_is_a_multiple(wrong: WrongGradient) -> Iterator[Pair]:
    """The difference is a number times dy or an input: a skip connection or a decay that is lost, or too much."""
    difference = wrong.ours - wrong.right
    for what, t in wrong.beside.items():
        if t.shape == difference.shape and t.numel() >= 3 and norm(t):
            size = norm(t)
            factor = float((difference / size * (t / size)).sum())
            sign = "too much" if factor > 0 else "missing"
            yield (
                f"{abs(factor):.6g} · {what} is {sign}: the difference is a multiple of {what}",
                difference,
                factor * t,
            )


def constant_along(wrong: WrongGradient) -> Iterator[Pair]:
    """An error that is constant along one dimension."""
    ours, right = wrong.ours, wrong.right
    difference = ours - right
    if right.numel() >= 4:
        amount = f"{float(difference.mean()):.4g}"
        yield f"off by the same amount in every entry, {amount}", difference, difference.mean().expand_as(difference)
    for d in (d for d in range(right.ndim) if right.shape[d] >= 3):
        mean = difference.mean(d, keepdim=True)
        text = f"off by an amount that is constant along dimension {d}: its mean is not subtracted?"
        yield text, difference, mean.expand_as(difference)
        squares = (right * right).sum(d, keepdim=True)
        factor = (ours * right).sum(d, keepdim=True) / squares.where(squares > 0, 1.0)
        low, high = float(factor.min()), float(factor.max())
        if right.numel() > right.shape[d]:
            text = f"off by a factor that is constant along dimension {d}, from {low:.3g} to {high:.3g} over the others"
            yield text, ours, right * factor


def affine_in_an_input(wrong: WrongGradient) -> Iterator[Pair]:
    """In each row the difference is a number times an input or y, plus a constant: the lost term of a normalisation."""
    difference = wrong.ours - wrong.right
    for d in (d for d in reversed(range(difference.ndim)) if difference.shape[d] >= 4):
        for what, t in wrong.beside.items():
            if t.shape != difference.shape:
                continue
            for constant, more in ((False, ""), (True, ", plus a constant")):
                left = _without(difference, t, d, constant)
                text = (
                    f"the difference is, in each line along dimension {d}, a multiple of {what}{more}: a term that a "
                    "normalisation over this dimension adds is wrong or missing"
                )
                yield text, difference, difference - left


def _without(difference: Tensor, t: Tensor, d: int, constant: bool) -> Tensor:
    """What is left of the difference after the best multiple of t (and a constant) in each line along d."""
    if constant:
        difference = difference - difference.mean(d, keepdim=True)
        t = t - t.mean(d, keepdim=True)
    squares = (t * t).sum(d, keepdim=True)
    return difference - t * ((difference * t).sum(d, keepdim=True) / squares.where(squares > 0, 1.0))


def factor_at_indices(wrong: WrongGradient) -> Iterator[Pair]:
    """One factor at some indices of a dimension, and right at the others."""
    for d, factor in _factors_per_index(wrong):
        flat = factor.flatten()
        off = (flat - 1).abs() > 1e-3
        if 0 < off.sum() < len(off) and float(flat[off].max() - flat[off].min()) < 1e-3 * float(flat[off].abs().max()):
            text = f"is {float(flat[off].mean()):.5g} times what it should be at {_indices(off)} of dimension {d}"
            yield f"{text}, and right elsewhere", wrong.ours, wrong.right * factor


def factors_per_index(wrong: WrongGradient) -> Iterator[Pair]:
    """At each index of one dimension a factor of its own."""
    for d, factor in _factors_per_index(wrong):
        low, high = float(factor.min()), float(factor.max())
        text = f"off by a factor at each index of dimension {d}, from {low:.3g} to {high:.3g}"
        yield text, wrong.ours, wrong.right * factor


def _factors_per_index(wrong: WrongGradient) -> Iterator[tuple[int, Tensor]]:
    """Of each dimension whose slices have entries enough, the factor at each index."""
    ours, right = wrong.ours, wrong.right
    for d in (d for d in range(right.ndim) if right.shape[d] >= 2 and right.numel() >= 3 * right.shape[d]):
        others = [k for k in range(right.ndim) if k != d]
        squares = (right * right).sum(others, keepdim=True)
        yield d, (ours * right).sum(others, keepdim=True) / squares.where(squares > 0, 1.0)


def wrong_at_indices(wrong: WrongGradient) -> Iterator[Pair]:
    """Right except at some indices of a dimension: at most half of them, a quarter if there is no order in them."""
    ours, right, found = wrong.ours, wrong.right, list[tuple[int, Pair]]()
    for d in (d for d in range(right.ndim) if right.shape[d] >= 3):
        a, b = slices(ours, d), slices(right, d)
        differs = (a - b).square().sum(1)
        off = differs > (wrong.tolerance * norm(b)) ** 2 / len(b)
        where = _indices(off) if off.any() else ""
        irregular = "first" in where  # a few of many at most: more would be no pattern
        if not 0 < off.sum() <= max(1, len(off) // (4 if irregular else 2)):
            continue
        found.append(
            (
                int(off.sum()) * b.shape[1],
                (f"is wrong only at {where} of dimension {d}, which has the length {len(off)}", a[~off], b[~off]),
            )
        )
    yield from (pair for _, pair in sorted(found, key=lambda one: one[0]))


def _indices(chosen: Tensor) -> str:
    """index 3; indices 0 and 4; indices 2 to 5; every 2nd index, from 1; 7 indices, 3 the first."""
    at, n = chosen.nonzero().flatten().tolist(), len(chosen)
    if len(at) == 1:
        return f"index {at[0]}"
    if len(at) == at[-1] - at[0] + 1:
        return f"indices {at[0]} to {at[-1]}"
    if len({b - a for a, b in pairwise(at)}) == 1 and len(at) > 2 and at[-1] + at[1] - at[0] >= n:
        return f"every {at[1] - at[0]}. index, from {at[0]}"
    if len(at) <= 4:
        return f"indices {', '.join(map(str, at[:-1]))} and {at[-1]}"
    return f"{len(at)} indices, {at[0]} the first,"


ENTRY_PATTERNS = [
    transposed,
    reordered,
    mask,
    signs,
    difference_is_a_multiple,
    factor_at_indices,
    wrong_at_indices,
    constant_along,
    affine_in_an_input,
    factors_per_index,
]
"""The most specific first."""
