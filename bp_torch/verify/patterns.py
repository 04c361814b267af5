"""Errors that have a pattern over the entries of a gradient.

Each pattern yields sentences about the gradient ``ours`` and the ``right`` one, of the same shape, and with each two
tensors that are equal if it is true.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from bp_torch.text import count
from bp_torch.verify.problem import Tensors, norm
from bp_torch.verify.report import apart

Pair = tuple[str, Tensor, Tensor]
"""A sentence, and two tensors that are equal if it is true."""

LONGEST = 512  # of a dimension whose slices are compared pair by pair


def entry_patterns(ours: Tensor, right: Tensor, known_tensors: Tensors, tolerance: float) -> Iterator[Pair]:
    """All of them, the most specific first. ``known_tensors`` are the inputs, dy and y, by name."""
    yield from reordered(ours, right)
    yield from mask(ours, right)
    yield from signs(ours, right)
    yield from wrong_where(ours, right, known_tensors, tolerance)
    yield from difference_is_a_multiple(ours - right, known_tensors)
    yield from factor_at_indices(ours, right)
    yield from wrong_at_indices(ours, right, tolerance)
    yield from constant_along(ours, right)
    yield from affine_in_an_input(ours - right, known_tensors)
    yield from factors_per_index(ours, right)


def reordered(ours: Tensor, right: Tensor) -> Iterator[Pair]:
    """Transposed, or the right slices in another order: flipped, rolled, halves swapped, or any other."""
    if right.ndim >= 2 and right.shape[-1] == right.shape[-2] > 1:
        yield "is transposed", ours, right.mT
    for d in (d for d in range(right.ndim) if 2 <= right.shape[d] <= LONGEST):
        if right.numel() // right.shape[d] * right.shape[d] ** 2 > 10**8:
            continue
        a, b = _slices(ours, d), _slices(right, d)
        order = torch.cdist(a, b).argmin(1)
        n = len(order)
        if len(order.unique()) == n and not torch.equal(order, torch.arange(n)):
            yield f"{_order(order)} along dimension {d}", a, b[order]


def _order(order: Tensor) -> str:
    n, first = len(order), int(order[0])
    if torch.equal(order, torch.arange(n).flip(0)):
        return "is flipped"
    if torch.equal(order, (torch.arange(n) + first) % n):
        return "has its two halves swapped" if 2 * first == n else f"is rolled by {(n - first) % n}"
    return "has the right slices in another order"


def mask(ours: Tensor, right: Tensor) -> Iterator[Pair]:
    """Right except for entries that should be zero, or that are zero and should not be."""
    zero, missing = (right == 0) & (ours != 0), (ours == 0) & (right != 0)
    if zero.sum() >= 4 and missing.sum() >= 4 and (zero | missing).double().mean() > 0.95:
        text = "is zero where it should not be, and not zero where it should: the mask is inverted?"
        yield text, (ours != 0).double(), zero.double()
    if ((right != 0) & (ours != 0)).sum() < 3:
        return
    if zero.any():
        entries = count(int(zero.sum()), "entry", "entries")
        text = f"is right wherever the gradient is not zero, but {entries} should be zero: a mask is missing?"
        yield text, ours[~zero], right[~zero]
    if missing.any():
        entries, where = count(int(missing.sum()), "entry", "entries"), _whole_slices(missing)
        text = (
            f"is zero in {entries} where it should not be{where}, and right elsewhere: masked too much, or not written?"
        )
        yield text, ours, right.masked_fill(missing, 0)


def _whole_slices(chosen: Tensor) -> str:
    """The indices of a dimension that the chosen entries fill, in brackets; "" if they fill none."""
    for d in (d for d in range(chosen.ndim) if chosen.ndim > 1):
        rows = _slices(chosen, d)
        if bool((rows.all(1) | ~rows.any(1)).all()):
            return f" (all of {indices_of(rows.all(1)).rstrip(',')} of dimension {d})"
    return ""


def signs(ours: Tensor, right: Tensor) -> Iterator[Pair]:
    """The sign is wrong at some indices of one dimension."""
    for d in (d for d in range(right.ndim) if right.shape[d] >= 2):
        a, b = _slices(ours, d), _slices(right, d)
        flips = (a * b).sum(1) < 0
        if flips.any():
            text = f"the sign is wrong at {indices_of(flips)} of dimension {d}"
            yield text, a, torch.where(flips[:, None], -b, b)


def difference_is_a_multiple(difference: Tensor, known_tensors: Tensors) -> Iterator[Pair]:
    """The difference is a number times dy or an input: a skip connection or a decay that is lost, or too much."""
    for what, t in known_tensors.items():
        if t.shape == difference.shape and t.numel() >= 3 and (size := norm(t)):
            factor = float((difference / size * (t / size)).sum())
            sign = "too much" if factor > 0 else "missing"
            text = f"{abs(factor):.6g} · {what} is {sign}: the difference is a multiple of {what}"
            yield text, difference, factor * t


def constant_along(ours: Tensor, right: Tensor) -> Iterator[Pair]:
    """An error that is constant along one dimension."""
    difference = ours - right
    if right.numel() >= 4:
        amount = f"{float(difference.mean()):.4g}"
        yield f"off by the same amount in every entry, {amount}", difference, difference.mean().expand_as(difference)
    for d in (d for d in range(right.ndim) if right.shape[d] >= 3):
        mean = difference.mean(d, keepdim=True)
        text = f"off by an amount that is constant along dimension {d}: its mean is not subtracted?"
        yield text, difference, mean.expand_as(difference)
        factor = _best_factor(ours, right, [d])
        if right.numel() > right.shape[d]:
            text = f"off by a factor that is constant along dimension {d}, {_range(factor)} over the others"
            yield text, ours, right * factor


def affine_in_an_input(difference: Tensor, known_tensors: Tensors) -> Iterator[Pair]:
    """In each row the difference is a number times an input or y, plus a constant: the lost term of a normalisation."""
    for d in (d for d in reversed(range(difference.ndim)) if difference.shape[d] >= 4):
        for what, t in known_tensors.items():
            if t.shape != difference.shape:
                continue
            text = f"the difference is, in each line along dimension {d}, a multiple of {what}"
            more = "a term that a normalisation over this dimension adds is wrong or missing"
            left = difference - t * _best_factor(difference, t, [d])
            yield f"{text}: {more}", difference, difference - left
            centred, t = difference - difference.mean(d, keepdim=True), t - t.mean(d, keepdim=True)
            left = centred - t * _best_factor(centred, t, [d])
            yield f"{text}, plus a constant: {more}", difference, difference - left


def factor_at_indices(ours: Tensor, right: Tensor) -> Iterator[Pair]:
    """One factor at some indices of a dimension, and right at the others."""
    for d, factor in _factors_per_index(ours, right):
        flat = factor.flatten()
        off = (flat - 1).abs() > 1e-3
        if 0 < off.sum() < len(off) and float(flat[off].max() - flat[off].min()) < 1e-3 * float(flat[off].abs().max()):
            text = f"is {float(flat[off].mean()):.5g} times what it should be at {indices_of(off)} of dimension {d}"
            yield f"{text}, and right elsewhere", ours, right * factor


def factors_per_index(ours: Tensor, right: Tensor) -> Iterator[Pair]:
    """At each index of one dimension a factor of its own."""
    for d, factor in _factors_per_index(ours, right):
        yield f"off by a factor at each index of dimension {d}, {_range(factor)}", ours, right * factor


def _factors_per_index(ours: Tensor, right: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Of each dimension whose slices have entries enough, the factor at each index."""
    for d in (d for d in range(right.ndim) if right.shape[d] >= 2 and right.numel() >= 3 * right.shape[d]):
        yield d, _best_factor(ours, right, [k for k in range(right.ndim) if k != d])


def _best_factor(ours: Tensor, right: Tensor, dims: list[int]) -> Tensor:
    """The factors of ``right``, each constant along ``dims``, that bring it closest to ``ours``."""
    squares = (right * right).sum(dims, keepdim=True)
    return (ours * right).sum(dims, keepdim=True) / squares.where(squares > 0, 1.0)


def _range(factor: Tensor) -> str:
    low, high = float(factor.min()), float(factor.max())
    return f"from {apart(low, 1, 3)[0]} to {apart(high, 1, 3)[0]}"


def wrong_where(ours: Tensor, right: Tensor, known_tensors: Tensors, tolerance: float) -> Iterator[Pair]:
    """Right but for the entries at which an input, such as a mask, is of one kind, and wrong at most of these."""
    off = (ours - right).abs() > tolerance * max(float(right.abs().max()), 1e-300)
    for what, t in known_tensors.items():
        if t.shape == right.shape and not what.startswith("dy"):
            plain = bool(((t == 0) | (t == 1)).all())
            kinds = {f"where {what} is true": t == 1, f"where {what} is false": t == 0} if plain else {}
            kinds |= {f"where {what} = 0": t == 0, f"where {what} > 0": t > 0, f"where {what} < 0": t < 0}
            for where, chosen in kinds.items():
                if 3 <= chosen.sum() <= len(off.reshape(-1)) - 3 and off.sum() > 0.8 * chosen.sum():
                    yield f"is wrong only {where}, and right elsewhere", ours.where(~chosen, right), right


def wrong_at_indices(ours: Tensor, right: Tensor, tolerance: float) -> Iterator[Pair]:
    """Right except at some indices of a dimension: at most half of them, a quarter if there is no order in them."""
    found: list[tuple[int, Pair]] = []  # how many entries that leaves out, of which the fewest come first
    for d in (d for d in range(right.ndim) if right.shape[d] >= 3):
        a, b = _slices(ours, d), _slices(right, d)
        off = (a - b).square().sum(1) > (tolerance * norm(b)) ** 2 / len(b)
        where = indices_of(off) if off.any() else ""
        irregular = "first" in where  # a few of many at most: more would be no pattern
        if 0 < off.sum() <= max(1, len(off) // (4 if irregular else 2)):
            text = f"is wrong only at {where} of dimension {d}, which has the length {len(off)}"
            found.append((int(off.sum()) * b.shape[1], (text, a[~off], b[~off])))
    yield from (pair for _, pair in sorted(found, key=lambda one: one[0]))


def _slices(t: Tensor, d: int) -> Tensor:
    """(n, m): one row for each index of dimension d."""
    return t.movedim(d, 0).reshape(t.shape[d], -1)


def indices_of(chosen: Tensor) -> str:
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
