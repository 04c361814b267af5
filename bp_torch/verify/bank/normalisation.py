"""Normalisations and softmaxes: each entry depends on a whole row or column."""

# ruff: noqa: D103 (the name and the formula of each layer say what it is)

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank.layers import layer, normal

X, W = (12, 10), (10,)


def normalised(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """x̂ = (x − μ) / σ along one dimension, and 1/σ."""
    inverse = torch.rsqrt(x.var(dim, unbiased=False, keepdim=True) + 1e-5)
    return (x - x.mean(dim, keepdim=True)) * inverse, inverse


@layer("layer norm", "w (x − μ) / σ + b, by rows", lambda x, w, b: functional.layer_norm(x, W, w, b), x=X, w=W, b=W)
def layer_norm(dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    variance = x.var(-1, unbiased=False, keepdim=True)
    inverse = torch.rsqrt(variance + 1e-5)  # 1/σ, (B, 1)
    n = (x - x.mean(-1, keepdim=True)) * inverse  # x̂, (B, n)
    g = dy * w
    mean = g.mean(-1, keepdim=True)
    projection = n * (g * n).mean(-1, keepdim=True)
    dx = (g - mean - projection) * inverse
    dw = (dy * n).sum(0)
    db = dy.sum(0)
    return dx, dw, db
    """ε is lost: + 1e-5 →; w is lost: g = dy
    the mean is lost: mean = 0 | constant along dimension 1|plus a constant
    the projection is lost: projection = 0 | multiple of x
    1/σ is lost: dx = g - mean - projection | factor that is constant along dimension 1
    x is there in place of x̂: dw = (dy * x).sum(0); db is not summed: db = dy | not summed over dimension 0
    ± db of b"""


@layer("rms norm", "w x / rms", lambda x, w: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w, x=X, w=W)
def rms_norm(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)  # (B, 1)
    g = dy * w
    total = (g * x).sum(-1, keepdim=True) / x.shape[-1]
    dx = g * r - x * r**3 * total
    dw = (dy * x * r).sum(0)
    return dx, dw
    """a sum is there in place of the mean: / x.shape[-1] → | multiple of x  # Liger, rms_norm
    r² is there in place of r³: x * r**3 * total → x * (r * r) * total | multiple of x
    the second term is lost: dx = g * r | multiple of x
    dw is rolled by one: return dx, dw[torch.arange(10) - 1] | rolled by 1; ± dx of x
    r is lost for w: dw = (dy * x).sum(0)"""


@layer("batch norm", "w (x − μ) / σ + b, by columns", lambda x, w, b: normalised(x, 0)[0] * w + b, x=(16, 10), w=W, b=W)
def batch_norm(dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    inverse = torch.rsqrt(x.var(0, unbiased=False) + 1e-5)  # 1/σ, (n,)
    n = (x - x.mean(0)) * inverse  # x̂, (B, n)
    mean = dy.mean(0)
    projection = n * (dy * n).mean(0)
    dx = (dy - mean - projection) * inverse * w
    return dx, (dy * n).sum(0), dy.sum(0)
    """the variance is the unbiased one: unbiased=False → unbiased=True | batch of one|multiple|factor|times
    the mean is lost: mean = 0 | constant along dimension 0|plus a constant
    the projection is lost: projection = 0 | multiple of x; w is lost: inverse * w → inverse | factor w is missing
    μ and σ are taken as fixed, as in evaluation: dx = dy * inverse * w | multiple of x  # cudnn-frontend 385
    dw is averaged: (dy * n).sum(0) → (dy * n).mean(0) | length of dimension 0 of x"""


@layer("group norm", "w (x − μ) / σ, by groups", lambda x, w: functional.group_norm(x, 2, w), x=(3, 8, 6), w=(8,))
def group_norm(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    n, inverse = normalised(x.reshape(len(x), 2, -1), -1)  # two groups
    g = (dy * w[:, None]).reshape(n.shape)
    projection = n * (g * n).mean(-1, keepdim=True)
    dx = (g - g.mean(-1, keepdim=True) - projection) * inverse
    dw = (dy * n.reshape(x.shape)).sum((0, 2))
    return dx.reshape(x.shape), dw
    """the projection is lost: projection = 0 | multiple of x
    the second group is not written: return (dx * torch.tensor([1, 0])[:, None]).reshape(x.shape), dw | is zero in
    dw is flipped: return dx.reshape(x.shape), dw.flip(0) | is flipped; ± dw of w"""


@layer("instance norm", "(x − μ) / σ, by channels of each example", lambda x: normalised(x, -1)[0], x=(4, 3, 9))
def instance_norm(dy: Tensor, x: Tensor) -> Tensor:
    n, inverse = normalised(x, -1)
    mean = dy.mean(-1, keepdim=True)
    projection = n * (dy * n).mean(-1, keepdim=True)
    return (dy - mean - projection) * inverse
    """a sum is there in place of the mean: projection = n * (dy * n).sum(-1, keepdim=True) | multiple of x
    the mean is that of all entries: mean = dy.mean() | constant along dimension 2; ±"""


@layer("softmax", "eˣ / Σ eˣ, by rows", lambda x: torch.softmax(x, -1), x=X)
def softmax(dy: Tensor, x: Tensor) -> Tensor:
    p = torch.softmax(x, -1)
    inner = (dy * p).sum(-1, keepdim=True)
    return p * (dy - inner)
    """the sum is lost: inner = 0 | multiple of y
    a mean is there in place of the sum: inner = (dy * p).mean(-1, keepdim=True) | multiple of y
    p is lost in the sum: inner = dy.sum(-1, keepdim=True) | multiple of y
    p is lost: return dy - inner | factor y is missing; ±"""


@layer("unit rows", "x / ‖x‖, by rows", lambda x: x / x.norm(dim=-1, keepdim=True), x=X)
def unit_rows(dy: Tensor, x: Tensor) -> Tensor:
    length: Tensor = x.norm(dim=-1, keepdim=True)
    u = x / length
    projection = u * (dy * u).sum(-1, keepdim=True)
    return (dy - projection) / length
    """the projection is lost: projection = 0 | multiple of x
    the length is squared: return (dy - projection) / length**2 | constant along dimension 1; ±"""


@layer("temperature", "softmax(x / t)", lambda x, t: torch.softmax(x / t, -1), x=X, t=normal(1, shift=3.0, scale=0.1))
def temperature(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(x / t, -1)
    ds = p * (dy - (dy * p).sum(-1, keepdim=True))  # s = x / t
    return ds / t, -(ds * x).sum().reshape(1) / (t * t)
    """1/t is lost: ds / t → ds | times what it should be
    the square is lost: (t * t) → t | times what it should be|t"""


@layer("weight norm", "g v / ‖v‖, by rows", lambda v, g: g[:, None] * v / v.norm(dim=1, keepdim=True), v=(6, 5), g=(6,))
def weight_norm(dy: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    length: Tensor = v.norm(dim=1, keepdim=True)
    u = v / length
    dg = (dy * u).sum(1)
    dv = g[:, None] / length * (dy - dg[:, None] * u)
    return dv, dg
    """the projection is lost: (dy - dg[:, None] * u) → dy | multiple of v
    g is lost: g[:, None] / length → 1 / length | constant along dimension 1
    the length is lost: g[:, None] / length → g[:, None] | constant along dimension 1
    v is not divided for g: dg = (dy * v).sum(1) | multiple of v
    ± dg of g"""
