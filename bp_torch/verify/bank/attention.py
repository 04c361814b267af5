"""Attention, and what goes before it: positions."""

# ruff: noqa: D103 (the name and the formula of each layer say what it is)

import torch
from torch import Tensor

from bp_torch.verify.bank.layers import layer, normal

Triple = tuple[Tensor, Tensor, Tensor]
QKV, HEADS = (2, 7, 5), normal(12, 4, scale=0.5)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of every row of q to every row of k."""
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


@layer("attention", "softmax(q kᵀ / √D) v", attend, q=QKV, k=QKV, v=QKV)
def attention(dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Triple:
    scale = q.shape[-1] ** -0.5
    p = torch.softmax(q @ k.mT * scale, -1)  # (…, T, S)
    dv = p.mT @ dy
    dp = dy @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True))
    dq, dk = ds @ k * scale, ds.mT @ q * scale
    return dq, dk, dv
    """the sum of the softmax is lost: - (dp * p).sum(-1, keepdim=True) →
    p is lost in the sum: (dp * p).sum → dp.sum; the sum is over the queries: p).sum(-1 → p).sum(-2
    the scale is lost for k: ds.mT @ q * scale → ds.mT @ q | root of the length of dimension 2
    p is not transposed: p.mT → p; ds is not transposed: ds.mT → ds
    the gradients of q and k are swapped: return dk, dq, dv | is the gradient of
    the scale is left out of the softmax: @ k.mT * scale, → @ k.mT,"""


def attend_back(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each row with itself and those before."""
    return attention_weights(q, k) @ v


def attention_weights(q: Tensor, k: Tensor, causal: bool = True) -> Tensor:
    """The softmax of the scores of each row with itself and those before."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) & causal
    return torch.softmax(scores.masked_fill(mask, -torch.inf), -1)


@layer("causal attention", "softmax(masked q kᵀ / √D) v", attend_back, q=QKV, k=QKV, v=QKV)
def causal_attention(dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Triple:
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
    the scale is there twice in dk: return dq, dk * q.shape[-1] ** -0.5, dv | root of the length of dimension 2
    dq and dk are swapped: return dk, dq, dv | is the gradient of
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
    dk = (ds.mT @ q).unflatten(0, (-1, 2))  # (heads, 2, T, D)
    dv = (p.mT @ dy).unflatten(0, (-1, 2))
    return ds @ wide_k, dk.sum(1), dv.sum(1)
    """only one head of the group is counted: dk.sum(1) → dk[:, 0]  # grouped-query kernels
    a mean over the group is there in place of the sum: dv.sum(1) → dv.mean(1) | ½
    the groups are swapped: dv.sum(1) → dv.sum(1).flip(0) | flipped|halves"""


def multi_head(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Attention of two heads: q, k and v are the thirds of x wᵀ, and u brings the heads together."""
    q, k, v = (x @ w.T).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return attend(q, k, v).transpose(1, 2).flatten(2) @ u.T


@layer("multi-head attention", "attention of the thirds of x wᵀ, times uᵀ", multi_head, x=(3, 5, 4), w=HEADS, u=(4, 4))
def multi_head_attention(dy: Tensor, x: Tensor, w: Tensor, u: Tensor) -> Triple:
    q, k, v = (x @ w.T).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    scale = q.shape[-1] ** -0.5
    p = torch.softmax(q @ k.mT * scale, -1)  # (B, heads, T, T)
    a = (p @ v).transpose(1, 2).flatten(2)  # (B, T, E), the heads side by side
    du = (dy.mT @ a).sum(0)
    da = (dy @ u).unflatten(-1, (2, -1)).transpose(1, 2)  # (B, heads, T, D)
    dp = da @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
    thirds = torch.stack([ds @ k, ds.mT @ q, p.mT @ da])
    dz = thirds.permute(1, 3, 0, 2, 4).flatten(2)  # z = x wᵀ, (B, T, 3 E)
    return dz @ w, (dz.mT @ x).sum(0), du
    """the sum of the softmax is lost: - (dp * p).sum(-1, keepdim=True) →
    the scale is lost: keepdim=True)) * scale → keepdim=True)) | 1.4142 times
    v gets the gradient of q: [ds @ k, ds.mT @ q, p.mT @ da] → [ds @ k, ds.mT @ q, ds @ k] | indices 8 to 11
    the heads are in the wrong order: permute(1, 3, 0, 2, 4) → permute(1, 3, 0, 2, 4).flip(3) | another order
    u is transposed: dy @ u) → dy @ u.T) | for u transposed
    dw is averaged over the batch: (dz.mT @ x).sum(0) → (dz.mT @ x).mean(0) | length of dimension 0 of x"""


def rotate(x: Tensor, turn: float = 1.0) -> Tensor:
    """Turn entries i and i + D/2 of row t by the angle t / 10000^(2i/D)."""
    power = torch.arange(0, x.shape[-1], 2, dtype=torch.float64) / x.shape[-1]
    angle = turn * torch.outer(torch.arange(x.shape[-2]), 10000**-power)
    c, s = angle.cos().to(x), angle.sin().to(x)
    a, b = x.chunk(2, -1)
    return torch.cat([a * c - b * s, a * s + b * c], -1)


@layer("rotary embedding", "the two halves of row t, turned by angles that grow with t", rotate, x=(7, 8))
def rotary(dy: Tensor, x: Tensor) -> Tensor:
    dx = rotate(dy, turn=-1.0)
    return dx
    """it is turned the same way as in the forward: turn=-1.0 → turn=1.0
    the halves are swapped: return torch.cat([dx[:, 4:], dx[:, :4]], -1) | halves swapped
    the sign of one half is lost: return torch.cat([dx[:, :4], -dx[:, 4:]], -1) | sign is wrong at indices 4 to 7"""


@layer("position embedding", "x + the first rows of w", lambda x, w: x + w[: x.shape[1]], x=(3, 5, 4), w=(7, 4))
def positions(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    dw = torch.zeros_like(w)
    dw[: x.shape[1]] = dy.sum(0)
    return dy.clone(), dw
    """a mean over the batch is there in place of the sum: dy.sum(0) → dy.mean(0) | length of dimension 0 of x
    only the first example is counted: dy.sum(0) → dy[0] | leaves out indices 1 to 2
    the rows are counted from the end: dw[: x.shape[1]] → dw[-x.shape[1] :] | rolled; ± dw of w"""
