"""Matrix products and convolutions."""

# ruff: noqa: D103 (the name and the formula of each layer say what it is)

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank.layers import layer

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]
KERNEL = (3, 2, 3, 3)


@layer("linear", "x wᵀ + b", functional.linear, x=(9, 6), w=(6, 6), b=(6,))
def linear(dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Triple:
    dx = dy @ w  # (B, n_in)
    dw = dy.T @ x  # (n_out, n_in)
    db = dy.sum(0)  # (n_out,)
    return dx, dw, db
    """w is transposed: dx = dy @ w.T | for w transposed; dw is transposed: dw = x.T @ dy | is transposed
    db is averaged: db = dy.mean(0) | length of dimension 0 of x
    db is that of one example: db = dy[0] | leaves out indices 1 to 8
    db is not summed: db = dy | not summed over dimension 0
    dw is averaged: dw = dy.T @ x / len(x) | length of dimension 0 of x  # many courses' first backward
    the columns of dw are rolled: return dx, dw[:, torch.arange(6) - 1], db | rolled by 1"""


@layer("bilinear", "xᵀ w z, by rows", lambda x, w, z: ((x @ w) * z).sum(-1), x=(8, 5), w=(5, 5), z=(8, 5))
def bilinear(dy: Tensor, x: Tensor, w: Tensor, z: Tensor) -> Triple:
    d = dy[:, None]
    dw = x.T @ (d * z)
    dz = d * (x @ w)
    return d * z @ w.T, dw, dz
    """dy is lost for w: dw = x.T @ z | ignores dy; dw is transposed: dw = (x.T @ (d * z)).T | is transposed
    w is transposed for z: dz = d * (x @ w.T) | for w transposed"""


@layer("two layers", "tanh(x wᵀ) vᵀ", lambda x, w, v: torch.tanh(x @ w.T) @ v.T, x=(9, 5), w=(6, 5), v=(4, 6))
def two_layers(dy: Tensor, x: Tensor, w: Tensor, v: Tensor) -> Triple:
    a = torch.tanh(x @ w.T)
    delta = dy @ v * (1 - a * a)
    dv = dy.T @ a
    dw = delta.T @ x
    return delta @ w, dw, dv
    """tanh′ is lost: delta = dy @ v; z is there in place of a: dv = dy.T @ (x @ w.T)
    a is there once too often: dw = (delta * a).T @ x; ± dw of w"""


@layer("lora", "2 x aᵀ bᵀ", lambda x, a, b: 2.0 * x @ a.T @ b.T, x=(9, 6), a=(3, 6), b=(5, 3))
def lora(dy: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Triple:
    dh = 2.0 * dy @ b  # h = x aᵀ, (B, rank)
    da = dh.T @ x
    db = 2.0 * dy.T @ (x @ a.T)
    return dh @ a, da, db
    """the scale is lost for b: db = dy.T @ (x @ a.T) | ½; the scale is lost for a: da = (dy @ b).T @ x | ½
    the scale is squared for a: da = 2.0 * dh.T @ x | 2 times
    da is averaged over the batch: da = dh.T @ x / len(x) | length of dimension 0 of x"""


def feed_forward(x: Tensor, w: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """The feed-forward of Llama: a gate, a product entry by entry, and back."""
    return (functional.silu(x @ w.T) * (x @ v.T)) @ u.T


@layer("swiglu feed-forward", "(silu(x wᵀ) ⊙ x vᵀ) uᵀ", feed_forward, x=(9, 5), w=(6, 5), v=(6, 5), u=(5, 6))
def swiglu_feed_forward(dy: Tensor, x: Tensor, w: Tensor, v: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    g, h = x @ w.T, x @ v.T
    s = torch.sigmoid(g)
    da = dy @ u  # a = g s h, (B, hidden)
    dg = da * h * s * (1 + g * (1 - s))
    dh = da * g * s
    dx = dg @ w + dh @ v
    return dx, dg.T @ x, dh.T @ x, dy.T @ (g * s * h)
    """the path through the gate is lost: dx = dh @ v; the path through the value is lost: dx = dg @ w
    the slope is that of the sigmoid: (1 + g * (1 - s)) → (1 - s); the gate is lost for h: dh = da * s
    g is taken for its activation: (g * s * h) → (g * h)
    w and v are swapped: dg.T @ x, dh.T @ x → dh.T @ x, dg.T @ x | is the gradient of"""


@layer("convolution", "x ∗ w + b", partial(functional.conv2d, padding=1), x=(3, 2, 6, 6), w=(4, 2, 3, 3), b=(4,))
def convolution(dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Triple:
    dx = functional.conv_transpose2d(dy, w, padding=1)
    xt, dyt = x.transpose(0, 1), dy.transpose(0, 1)
    dw = functional.conv2d(xt, dyt, padding=1).transpose(0, 1)
    db = dy.sum((0, 2, 3))
    return dx, dw, db
    """the kernel is not flipped: dx = functional.conv2d(dy, w.transpose(0, 1), padding=1)
    dw is flipped: return dx, dw.flip(2, 3), db | flipped
    height and width are swapped: return dx, dw.mT, db | is transposed
    db is averaged: db = dy.mean((0, 2, 3)) | number of entries along
    dw is averaged over the batch: return dx, dw / len(x), db | length of dimension 0 of x"""


@layer("convolution along time", "x ∗ w, stride 2", partial(functional.conv1d, stride=2), x=(3, 2, 11), w=(4, 2, 3))
def strided(dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    dx = functional.conv_transpose1d(dy, w, stride=2)
    ends, taps = 2 * dy.shape[-1] - 1, range(w.shape[-1])
    met = [x[..., k : k + ends : 2] for k in taps]  # x[k], x[k + 2], …
    dw = [torch.einsum("nol,nil->oi", dy, part) for part in met]
    return dx, torch.stack(dw, -1)
    """the taps are rolled: torch.stack(dw, -1) → torch.stack(dw, -1).roll(1, -1) | rolled by 1
    the last column is not written: return dx, → return torch.cat([dx[..., :-1], 0 * dx[..., -1:]], -1), | is zero in
    ± dx"""


@layer(
    "transposed convolution",
    "x, spread by 2, ∗ w",
    partial(functional.conv_transpose2d, stride=2),
    x=(2, 3, 4, 5),
    w=KERNEL,
)
def transposed_convolution(dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    dx = functional.conv2d(dy, w, stride=2)
    dyt, xt = dy.transpose(0, 1), x.transpose(0, 1)
    dw = functional.conv2d(dyt, xt, dilation=2)
    return dx, dw.transpose(0, 1)
    """the kernel is flipped: dx = functional.conv2d(dy, w.flip(2, 3), stride=2)
    dw is flipped: return dx, dw.transpose(0, 1).flip(2, 3) | flipped
    height and width are swapped: return dx, dw.transpose(0, 1).mT | is transposed
    it is averaged over the batch: return dx, dw.transpose(0, 1) / len(x) | ½; ± dx"""


@layer("depthwise", "xᵢ ∗ wᵢ", lambda x, w: functional.conv1d(x, w[:, None], groups=4), x=(3, 4, 9), w=(4, 3))
def depthwise(dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    channels, taps = w.shape
    wide = functional.pad(dy, (taps - 1, taps - 1))
    dx = functional.conv1d(wide, w.flip(-1)[:, None], groups=channels)
    met = [x[..., k : k + dy.shape[-1]] for k in range(taps)]
    dw = torch.stack([(dy * part).sum((0, 2)) for part in met], -1)
    return dx, dw
    """the kernel is flipped: w.flip(-1) → w
    channels 0 and 1 are swapped: return dx, dw[[1, 0, 2, 3]] | another order; ± dw of w"""
