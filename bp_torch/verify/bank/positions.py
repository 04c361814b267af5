"""Selections, orders, shapes and sums: what goes where."""

# ruff: noqa: D103 (the name of each layer says what it is)

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank import Bugs, common, indices, layer, normal, positive

X = (6, 8)


@layer("embedding", lambda i, w: w[i], i=indices(5, 12), w=(9, 4))
def embedding(bug: Bugs, dy: Tensor, i: Tensor, w: Tensor) -> tuple[None, Tensor]:
    added = torch.zeros_like(w).index_add(0, i, dy)
    last = torch.zeros_like(w).index_put((i,), dy)
    g = last if bug("repeated indices overwrite", "wrong only at", "TinyTorch, repeated indices") else added
    counts = torch.bincount(i, minlength=9).clamp(min=1)[:, None]
    return None, common(bug, g / counts if bug("a mean over repetitions", "factor|times|wrong only at") else g)


@layer("gather", lambda x, i: x.gather(1, i), x=X, i=indices(8, 6, 5))
def gather(bug: Bugs, dy: Tensor, x: Tensor, i: Tensor) -> tuple[Tensor, None]:
    added = torch.zeros_like(x).scatter_add(1, i, dy)
    g = torch.zeros_like(x).scatter(1, i, dy) if bug("repeated indices overwrite", "wrong only at") else added
    return g.roll(1, 1) if bug("off by one", "rolled by 1") else g, None


@layer("maximum of rows", lambda x: x.amax(-1), x=X)
def maximum(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    at = functional.one_hot((x.argmin(-1) if bug("the minimum", "") else x.argmax(-1)), 8)
    return common(bug, dy[:, None] + 0 * x if bug("the mask is lost", "mask is missing") else dy[:, None] * at)


@layer("maximum of two", torch.maximum, a=X, b=X)
def larger(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    mask = a < b if bug("the mask is inverted", "inverted|gradient of") else a > b
    return dy * mask, dy if bug("the mask is lost for b", "mask is missing") else dy * (a < b)


@layer("max pooling", lambda x: functional.max_pool1d(x, 2), x=(3, 4, 8))
def max_pool(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    pairs = x.reshape(3, 4, 4, 2)
    mask = pairs == pairs.amax(-1, keepdim=True)
    mask = mask.flip(-1) if bug("the other of each pair", "inverted|another order") else mask
    g = (dy[..., None] * mask).reshape(x.shape)
    return dy.repeat_interleave(2, -1) if bug("the mask is lost", "mask is missing") else common(bug, g)


@layer("mean pooling", lambda x: functional.avg_pool1d(x, 4), x=(3, 4, 8))
def mean_pool(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    g = dy.repeat_interleave(4, -1) / (1 if bug("not divided", "4 times what it should be", "mlpack 1923") else 4)
    g = dy.repeat(1, 1, 4) / 4 if bug("repeated in the wrong order", "another order|wrong only at") else g
    return common(bug, g)


@layer("sum over rows", lambda x: x.sum(0), x=X)
def sum_rows(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    g = dy.expand(x.shape) / (len(x) if bug("a mean", "length of dimension 0 of x") else 1)
    return dy if bug("not expanded", "has the shape") else common(bug, g.clone())


@layer("mean over columns", lambda x: x.mean(1), x=X)
def mean_columns(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    n = 1 if bug("not divided", "length of dimension 1 of x") else 6 if bug("the other length", "times") else 8
    return common(bug, (dy[:, None] / n).expand(x.shape).clone())


@layer("broadcast sum", lambda x, b: torch.sin(x + b), x=X, b=(6, 1))
def broadcast(bug: Bugs, dy: Tensor, x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    g = dy * torch.cos(x + b)
    db = g.mean(1, keepdim=True) if bug("a mean", "length of dimension 1 of x") else g.sum(1, keepdim=True)
    db = g[:, :1] if bug("the first column only", "") else db
    return g, g if bug("not summed", "not summed over dimension 1") else db


@layer("flip", lambda x: x.flip(-1) * torch.arange(1, 9), x=X)
def flip(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    g = dy * torch.arange(1, 9)
    return common(bug, g if bug("not flipped back", "is flipped") else g.flip(-1))


@layer("roll", lambda x: x.roll(3, 1), x=X)
def roll(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    return common(bug, dy.roll(3, 1) if bug("rolled the same way", "rolled by 6") else dy.roll(-3, 1))


@layer("transpose", lambda x: (x * x).T, x=(7, 7))
def transpose(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    return common(bug, 2 * x * (dy if bug("not transposed back", "") else dy.T))


@layer("reshape", lambda x: torch.sin(x).reshape(8, 6), x=X)
def reshape(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    return common(bug, (dy.T if bug("transposed, not reshaped", "") else dy.reshape(6, 8)) * torch.cos(x))


@layer("concatenation", lambda a, b: torch.cat([a, b], 1).square(), a=(5, 4), b=(5, 4))
def concatenation(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    da, db = 2 * dy[:, :4] * a, 2 * dy[:, 4:] * b
    db = 2 * dy[:, :4] * b if bug("the first part of dy for both", "") else db
    return (db, da) if bug("swapped", "is the gradient of") else (common(bug, da, "a"), db)


@layer("slice", lambda x: x[:, 2:6] ** 2, x=X)
def part(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    start = 1 if bug("off by one", "") else 2
    g = torch.zeros_like(x)
    g[:, start : start + 4] = 2 * dy * x[:, start : start + 4]
    g[:, 6:] = dy[:, 2:] if bug("the rest is not zero", "should be zero") else 0
    return g


@layer("cumulative sum", lambda x: x.cumsum(1), x=X)
def cumulative(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    g = dy.flip(1).cumsum(1).flip(1)
    return common(
        bug,
        dy.cumsum(1) if bug("not from the end", "") else g - (dy if bug("without itself", "1 · dy is missing") else 0),
    )


@layer("cumulative product", lambda x: x.cumprod(1), x=positive(5, 6))
def products(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    y = x.cumprod(1)
    g = (dy * y).flip(1).cumsum(1).flip(1)
    return common(bug, g if bug("x is lost", "factor x is there once too often") else g / x)


@layer("sort", lambda x: x.sort(-1)[0] * torch.arange(1, 9), x=X)
def sort(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    order, g = x.argsort(-1), dy * torch.arange(1, 9)
    return common(
        bug, g.gather(1, order) if bug("the order, not its inverse", "") else torch.zeros_like(x).scatter(1, order, g)
    )


def rotate(x: Tensor, angle: float = 1.0) -> Tensor:
    """Rotary embedding of (T, 8): the halves are the two coordinates."""
    t = torch.arange(len(x), dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.5, 0.25, 0.125], dtype=x.dtype) * angle
    a, b = x.chunk(2, -1)
    return torch.cat([a * t.cos() - b * t.sin(), a * t.sin() + b * t.cos()], -1)


@layer("rotary embedding", rotate, x=(7, 8))
def rotary(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    g = rotate(dy, 1.0 if bug("turned the same way", "") else -1.0)
    g = torch.cat([g[:, 4:], g[:, :4]], -1) if bug("halves swapped", "halves swapped") else g
    return torch.cat([g[:, :4], -g[:, 4:]], -1) if bug("the sign of one half", "sign is wrong at indices 4 to 7") else g


@layer("interpolation", lambda x: functional.interpolate(x, scale_factor=2), x=(2, 3, 5))
def upsample(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    pairs = dy.reshape(2, 3, 5, 2)
    g = pairs[..., 0] if bug("the first of each pair only", "") else pairs.sum(-1)
    return common(bug, g / 2 if bug("a mean", "½") else g)


@layer("padding", lambda x: functional.pad(x, (1, 2)) ** 2, x=X)
def padding(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    inner = dy[:, 2:10] if bug("off by one", "") else dy[:, 1:9]
    return common(bug, 2 * inner * x)


@layer("masked fill", lambda x, m: x.masked_fill(m, 0.0) ** 2, x=X, m=lambda g, d: torch.rand(X, generator=g) < 0.4)
def masked(bug: Bugs, dy: Tensor, x: Tensor, m: Tensor) -> tuple[Tensor, None]:
    g = 2 * dy * x
    return (g if bug("the mask is lost", "mask is missing") else g * (m if bug("inverted", "inverted") else ~m)), None


@layer("tied weights", lambda x, w: torch.tanh(x @ w) @ w.T, x=(7, 5), w=normal(5, 4, scale=0.5))
def tied(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    a = torch.tanh(x @ w)
    dz = dy @ w * (1 - a * a)
    second = 0 * w if bug("the second use is lost", "", "tied embeddings") else dy.T @ a
    return dz @ w.T, (second if bug("the first use is lost", "") else x.T @ dz + second)


@layer("triangle", lambda x: x.tril() @ x.tril().T, x=(6, 6))
def triangle(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    t = x.tril()
    g = (dy if bug("dy is not made symmetric", "") else dy + dy.T) @ t
    return g if bug("the mask is lost", "mask is missing") else g.tril()


@layer("last row", lambda x: torch.sin(x), x=(40, 8))
def last_row(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    g = dy * torch.cos(x)
    rows = torch.arange(40)[:, None]
    g = g * (rows < 39) if bug("the last row is not written", "is zero in") else g
    g = (
        torch.where((rows == 17) & torch.ones(8, dtype=torch.bool), 2 * g, g)
        if bug("row 17 twice", "at index 17")
        else g
    )
    g = torch.where(rows >= 32, g + dy, g) if bug("wrong in the last tile", "indices 32 to 39") else g
    return dy.mul_(torch.cos(x)) if bug("written into dy", "writes into dy", "pytorch 194719") else g
