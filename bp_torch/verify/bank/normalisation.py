"""Normalisations and softmaxes: each entry depends on a whole row or column."""

# ruff: noqa: D103 (the name of each layer says what it is)

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank import Bugs, common, layer, normal

X = (12, 10)
LOST = "multiple of x"


def rows(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Normalised rows, and 1 / their deviations."""
    inverse = torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
    return (x - x.mean(-1, keepdim=True)) * inverse, inverse


@layer("layer norm", lambda x, w, b: functional.layer_norm(x, (10,), w, b), x=X, w=(10,), b=(10,))
def layer_norm(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    n, inverse = rows(x, 0.0 if bug("ε is lost", "") else 1e-5)
    g = dy if bug("w is lost", "") else dy * w
    mean = 0 if bug("the mean is lost", "constant along dimension 1|plus a constant") else g.mean(-1, keepdim=True)
    projection = 0 if bug("the projection is lost", LOST) else n * (g * n).mean(-1, keepdim=True)
    dx = (g - mean - projection) * (1 if bug("1/σ is lost", "factor that is constant along dimension 1") else inverse)
    dw = (dy * x).sum(0) if bug("x in place of x̂", "") else (dy * n).sum(0)
    return dx, dw, dy if bug("b not summed", "not summed over dimension 0") else common(bug, dy.sum(0), "b")


def rms(x: Tensor, w: Tensor) -> Tensor:
    """Root mean square norm."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w


@layer("rms norm", rms, x=X, w=(10,))
def rms_norm(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    g = dy * w
    total = (g * x).sum(-1, keepdim=True) / (1 if bug("a sum, not a mean", LOST, "Liger, rms_norm") else x.shape[-1])
    power = r * r if bug("r² in place of r³", LOST) else r**3
    dx = g * r - (0 if bug("the second term is lost", LOST) else x * power * total)
    dw = (dy * x * r).sum(0)
    dw = dw[torch.arange(10) - 1] if bug("w rolled by one", "rolled by 1") else dw
    return common(bug, dx, "x"), (dy * x).sum(0) if bug("r is lost for w", "") else dw


def batch(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Batch norm in training."""
    return (x - x.mean(0)) * torch.rsqrt(x.var(0, unbiased=False) + 1e-5) * w + b


@layer("batch norm", batch, x=(16, 10), w=(10,), b=(10,))
def batch_norm(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    inverse = torch.rsqrt(x.var(0, unbiased=bug("the unbiased variance", "")) + 1e-5)
    n = (x - x.mean(0)) * inverse
    mean = 0 if bug("the mean is lost", "constant along dimension 0|plus a constant") else dy.mean(0)
    projection = 0 if bug("the projection is lost", LOST) else n * (dy * n).mean(0)
    dx = (dy - mean - projection) * inverse * (1 if bug("w is lost", "factor w is missing") else w)
    dx = dy * inverse * w if bug("as in evaluation", LOST, "cudnn-frontend 385") else dx
    return dx, (dy * n).mean(0) if bug("w averaged", "length of dimension 0 of x") else (dy * n).sum(0), dy.sum(0)


def group(x: Tensor, w: Tensor) -> Tensor:
    """Group norm of (N, 8, L) in two groups, without a bias."""
    return functional.group_norm(x, 2, w)


@layer("group norm", group, x=(3, 8, 6), w=(8,))
def group_norm(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    n, inverse = rows(x.reshape(3, 2, 24))
    g = (dy * w[:, None]).reshape(3, 2, 24)
    projection = 0 if bug("the projection is lost", LOST) else n * (g * n).mean(-1, keepdim=True)
    dx = ((g - g.mean(-1, keepdim=True) - projection) * inverse).reshape(x.shape)
    dw = (dy * n.reshape(x.shape)).sum((0, 2))
    dx = torch.cat([dx[:, :4], 0 * dx[:, 4:]], 1) if bug("the second group is not written", "is zero in") else dx
    return dx, dw.flip(0) if bug("w flipped", "is flipped") else common(bug, dw, "w")


def instance(x: Tensor) -> Tensor:
    """Instance norm of (N, C, L)."""
    return rows(x)[0]


@layer("instance norm", instance, x=(4, 3, 9))
def instance_norm(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    n, inverse = rows(x)
    second = (
        n * (dy * n).sum(-1, keepdim=True) if bug("a sum for a mean", LOST) else n * (dy * n).mean(-1, keepdim=True)
    )
    mean = dy.mean() if bug("the mean of all", "constant along dimension 2") else dy.mean(-1, keepdim=True)
    return common(bug, (dy - mean - second) * inverse)


@layer("softmax", lambda x: torch.softmax(x, -1), x=X)
def softmax(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    p = torch.softmax(x, -1)
    inner = 0 if bug("the sum is lost", "multiple of y") else (dy * p).sum(-1, keepdim=True)
    inner = (dy * p).mean(-1, keepdim=True) if bug("a mean for the sum", "multiple of y") else inner
    inner = dy.sum(-1, keepdim=True) if bug("p is lost in the sum", "multiple of y") else inner
    return common(bug, dy - inner if bug("p is lost", "factor y is missing") else p * (dy - inner))


@layer("log-softmax", lambda x: torch.log_softmax(x, -1), x=X)
def log_softmax(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    p = torch.softmax(x, -1)
    total = (dy * p).sum(-1, keepdim=True) if bug("the sum of softmax", "") else dy.sum(-1, keepdim=True)
    total = 1 + 0 * total if bug("dy taken to sum to 1", "linear in dy", "many losses fused with it") else total
    return common(bug, dy - p * total)


@layer("softmax over columns", lambda x: torch.softmax(x, 0), x=(10, 10))
def column_softmax(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    p = torch.softmax(x, 0)
    d = 1 if bug("summed over rows", "") else 0
    g = p * (dy - (dy * p).sum(d, keepdim=True))
    return g.T if bug("transposed", "is transposed") else g


@layer("unit rows", lambda x: x / x.norm(dim=-1, keepdim=True), x=X)
def unit_rows(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    length = x.norm(dim=-1, keepdim=True)
    u = x / length
    second = 0 * x if bug("the projection is lost", LOST) else u * (dy * u).sum(-1, keepdim=True)
    return common(
        bug, (dy - second) / (length**2 if bug("the length squared", "constant along dimension 1") else length)
    )


@layer("centred rows", lambda x: x - x.mean(-1, keepdim=True), x=X)
def centred(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    mean = dy.sum(-1, keepdim=True) if bug("a sum for the mean", "constant along dimension 1") else dy.mean(-1, True)
    mean = 0 * mean if bug("the mean is lost", "constant along dimension 1") else mean
    return common(bug, dy - mean)


@layer("standard deviation", lambda x: x.std(0), x=(9, 7))
def deviation(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    n = len(x) if bug("n for n − 1", r"\(n − 1\) / n") else len(x) - 1
    below = 1 if bug("σ is lost", "factor y is there once too often") else x.std(0)
    return common(
        bug, dy * (x if bug("the mean is not subtracted", "constant along dimension 0") else x - x.mean(0)) / n / below
    )


@layer("log-sum-exp", lambda x: torch.logsumexp(x, -1), x=X)
def logsumexp(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    p = torch.exp(x) if bug("not divided by the sum", "constant along dimension 1") else torch.softmax(x, -1)
    return common(bug, p if bug("dy is lost", "constant along dimension 1") else dy[:, None] * p)


@layer("temperature", lambda x, t: torch.softmax(x / t, -1), x=X, t=normal(1, shift=3.0, scale=0.1))
def temperature(bug: Bugs, dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(x / t, -1)
    ds = p * (dy - (dy * p).sum(-1, keepdim=True))
    dx = ds if bug("1/t is lost", "times what it should be") else ds / t
    return dx, -(ds * x).sum().reshape(1) / (t if bug("the square is lost", "times what it should be|t") else t * t)
