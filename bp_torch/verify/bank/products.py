"""Matrix products, attention, convolutions and recurrences."""

# ruff: noqa: D103 (the name and the formula of each layer say what it is)

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank.layers import layer, normal

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]
QKV = (2, 7, 5)
INVERTIBLE = normal(5, 5, shift=4 * torch.eye(5))


@layer("linear", "x wᵀ + b", functional.linear, x=(9, 6), w=(6, 6), b=(6,))
def linear(dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Triple:
    dx = dy @ w  # (B, n_in)
    dw = dy.T @ x  # (n_out, n_in)
    db = dy.sum(0)  # (n_out,)
    return dx, dw, db
    """w is transposed: dx = dy @ w.T | for w transposed; dw is transposed: dw = x.T @ dy | is transposed
    b averaged: db = dy.mean(0) | length of dimension 0 of x; b of one example: db = dy[0] | leaves out indices 1 to 8
    b not summed: db = dy | not summed over dimension 0
    dw averaged: dw = dy.T @ x / len(x) | length of dimension 0 of x  # many courses' first backward
    columns rolled: return dx, dw[:, torch.arange(6) - 1], db | rolled by 1"""


@layer("bilinear", "xᵀ w z, by rows", lambda x, w, z: ((x @ w) * z).sum(-1), x=(8, 5), w=(5, 5), z=(8, 5))
def bilinear(dy: Tensor, x: Tensor, w: Tensor, z: Tensor) -> Triple:
    d = dy[:, None]
    dw = x.T @ (d * z)
    dz = d * (x @ w)
    return d * z @ w.T, dw, dz
    """dy is lost for w: dw = x.T @ z | ignores dy; w transposed: dw = (x.T @ (d * z)).T | is transposed
    w transposed for z: dz = d * (x @ w.T) | for w transposed"""


@layer("two layers", "tanh(x wᵀ) vᵀ", lambda x, w, v: torch.tanh(x @ w.T) @ v.T, x=(9, 5), w=(6, 5), v=(4, 6))
def two_layers(dy: Tensor, x: Tensor, w: Tensor, v: Tensor) -> Triple:
    a = torch.tanh(x @ w.T)
    delta = dy @ v * (1 - a * a)
    dv = dy.T @ a
    dw = delta.T @ x
    return delta @ w, dw, dv
    """tanh′ is lost: delta = dy @ v; z in place of a: dv = dy.T @ (x @ w.T)
    a factor of a too many: dw = (delta * a).T @ x; ± dw of w"""


def attention_weights(q: Tensor, k: Tensor, causal: bool = True) -> Tensor:
    """The softmax of the scores, in each row over itself and the rows before, (…, T, T)."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) & causal
    return torch.softmax(scores.masked_fill(mask, -math.inf), -1)


@layer("attention", "softmax(masked q kᵀ / √d) v", lambda q, k, v: attention_weights(q, k) @ v, q=QKV, k=QKV, v=QKV)
def attention(dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Triple:
    p = attention_weights(q, k)  # (…, T, T)
    dp = dy @ v.mT
    inner = (dp * p).sum(-1, keepdim=True)
    ds = p * (dp - inner) * q.shape[-1] ** -0.5  # s = q kᵀ
    dq, dk, dv = ds @ k, ds.mT @ q, p.mT @ dy
    return dq, dk, dv
    """the mask is lost in the backward: p = attention_weights(q, k, causal=False)  # flash-attention, early
    the softmax's sum is lost: inner = 0
    the scale is lost: ds = p * (dp - inner) | root of the length of dimension 2
    dk is not transposed: ds.mT → ds; dv is not transposed: p.mT → p
    the scale twice in dk: return dq, dk * q.shape[-1] ** -0.5, dv | root of the length of dimension 2
    dq and dk swapped: return dk, dq, dv | is the gradient of
    the last tile is not written: return dq, dk, torch.cat([dv[:, :4], 0 * dv[:, 4:]], 1) | is zero in"""


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of 4 heads of queries with 2 heads of keys and values."""
    return attention_weights(q, k.repeat_interleave(2, 0)) @ v.repeat_interleave(2, 0)


@layer("grouped attention", "attention of two q with each k, v", grouped, q=(4, 6, 5), k=(2, 6, 5), v=(2, 6, 5))
def grouped_attention(dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Triple:
    wide_k, wide_v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    p = attention_weights(q, wide_k)
    dp = dy @ wide_v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    dk, dv = (ds.mT @ q).unflatten(0, (-1, 2)), (p.mT @ dy).unflatten(0, (-1, 2))  # (heads, 2, T, d)
    return ds @ wide_k, dk.sum(1), dv.sum(1)
    """one head of the group only: dk.sum(1) → dk[:, 0]  # grouped-query kernels
    a mean over the group: dv.sum(1) → dv.mean(1) | ½; groups swapped: dv.sum(1) → dv.sum(1).flip(0) | flipped|halves"""


@layer("convolution", "x ∗ w + b", partial(functional.conv2d, padding=1), x=(3, 2, 6, 6), w=(4, 2, 3, 3), b=(4,))
def convolution(dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Triple:
    dx = functional.conv_transpose2d(dy, w, padding=1)
    dw = functional.conv2d(x.transpose(0, 1), dy.transpose(0, 1), padding=1).transpose(0, 1)
    db = dy.sum((0, 2, 3))
    return dx, dw, db
    """the kernel is not flipped: dx = functional.conv2d(dy, w.transpose(0, 1), padding=1)
    dw is flipped: return dx, dw.flip(2, 3), db | flipped
    height and width swapped: return dx, dw.mT, db | is transposed
    b averaged: db = dy.mean((0, 2, 3)) | number of entries along
    dw averaged over the batch: return dx, dw / len(x), db | length of dimension 0 of x"""


@layer("convolution along time", "x ∗ w, stride 2", partial(functional.conv1d, stride=2), x=(3, 2, 11), w=(4, 2, 3))
def strided(dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    dx = functional.conv_transpose1d(dy, w, stride=2)
    dw = torch.stack([torch.einsum("nol,nil->oi", dy, x[:, :, k : k + 9 : 2]) for k in range(3)], -1)
    return dx, dw
    """taps rolled: return dx, dw.roll(1, -1) | rolled by 1
    the last column is not written: return torch.cat([dx[..., :-1], 0 * dx[..., -1:]], -1), dw | is zero in; ± dx"""


@layer("depthwise", "xᵢ ∗ wᵢ", lambda x, w: functional.conv1d(x, w[:, None], groups=4), x=(3, 4, 9), w=(4, 3))
def depthwise(dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    dx = functional.conv1d(functional.pad(dy, (2, 2)), w.flip(-1)[:, None], groups=4)
    dw = torch.stack([(dy * x[..., k : k + 7]).sum((0, 2)) for k in range(3)], -1)
    return dx, dw
    """the kernel is flipped: w.flip(-1) → w
    channels 0 and 1 swapped: return dx, dw[[1, 0, 2, 3]] | another order; ± dw of w"""


def states(x: Tensor, w: Tensor) -> list[Tensor]:
    """The states of h = tanh(h wᵀ + xₜ), from h = 0, before every step and after the last."""
    h = [torch.zeros_like(x[:, 0])]
    for t in range(x.shape[1]):
        h.append(torch.tanh(h[t] @ w.T + x[:, t]))
    return h


@layer("recurrent", "last h = tanh(h wᵀ + xₜ)", lambda x, w: states(x, w)[-1], x=(5, 4, 6), w=normal(6, 6, scale=0.4))
def recurrent(dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    h = states(x, w)
    dh, dw, dx = dy, torch.zeros_like(w), torch.zeros_like(x)
    for t in reversed(range(4)):
        dz = dh * (1 - h[t + 1] ** 2)
        dw = dw + dz.T @ h[t]
        dx[:, t] = dz
        dh = dz @ w
    return dx, dw
    """truncated after two steps: range(4) → range(2, 4) | is zero in
    the state after in place of before: dw = dw + dz.T @ h[t + 1]
    not added over time: dw = dz.T @ h[t] | is zero throughout; w transposed through time: dh = dz @ w.T; ± dw of w"""


def scan(a: Tensor, b: Tensor) -> Tensor:
    """Every hₜ = aₜ hₜ₋₁ + bₜ, from h = 0."""
    h, found = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        found.append(h)
    return torch.stack(found, 1)


@layer("linear scan", "hₜ = aₜ hₜ₋₁ + bₜ", scan, a=normal(4, 6, 3, scale=0.3, shift=0.7), b=(4, 6, 3))
def linear_scan(dy: Tensor, a: Tensor, b: Tensor) -> Pair:
    h = scan(a, b)
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    g, db = torch.zeros_like(dy[:, 0]), torch.zeros_like(dy)
    for t in reversed(range(6)):
        g = dy[:, t] + (0 if t == 5 else a[:, t + 1] * g)
        db[:, t] = g
    da = db * before
    return da, db
    """a of this step, not of the next: a[:, t + 1] → a[:, t]  # mamba 537
    the state after: da = db * h; ± da of a; nothing through time: return da, dy"""


@layer("inverse", "a⁻¹", torch.linalg.inv, a=INVERTIBLE)
def inverse(dy: Tensor, a: Tensor) -> Tensor:
    y: Tensor = torch.linalg.inv(a)
    return -(y.mT @ dy @ y.mT)
    """not transposed: return -(y @ dy @ y) | a transposed; the sign is lost: return y.mT @ dy @ y.mT | sign is wrong"""


@layer("log determinant", "log |det a|", lambda a: torch.linalg.slogdet(a)[1].reshape(1), a=INVERTIBLE)
def log_determinant(dy: Tensor, a: Tensor) -> Tensor:
    y: Tensor = torch.linalg.inv(a)
    return dy * y.mT
    """not transposed: return dy * y | for a transposed; ±"""
