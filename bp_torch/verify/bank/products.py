"""Matrix products, attention, convolutions and recurrences."""

# ruff: noqa: D103 (the name of each layer says what it is)

import math

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank import Bugs, common, layer, normal

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


@layer("linear", functional.linear, x=(9, 6), w=(6, 6), b=(6,))
def linear(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Triple:
    dx = dy @ (w.T if bug("w is transposed", "") else w)
    dw = x.T @ dy if bug("dw is transposed", "is transposed") else dy.T @ x
    db = dy.mean(0) if bug("b averaged", "length of dimension 0 of x") else dy.sum(0)
    db = dy[0] if bug("b of one example", "") else dy if bug("b not summed", "not summed over dimension 0") else db
    dw = dw / len(x) if bug("dw averaged", "length of dimension 0 of x", "many courses' first backward") else dw
    return dx, dw[:, torch.arange(6) - 1] if bug("columns rolled", "rolled by 1") else dw, db


@layer("matmul", torch.matmul, a=(5, 7), b=(7, 5))
def matmul(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> Pair:
    da, db = dy @ b.T, a.T @ dy
    da = b @ dy if bug("the wrong order, transposed", "another shape|transposed|has the shape") else da
    return common(bug, da, "a"), db[:-1] if bug("the last row is not written", "has the shape") else db


@layer("batched matmul", torch.bmm, a=(4, 5, 6), b=(4, 6, 3))
def bmm(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> Pair:
    da, db = dy @ b.mT, a.mT @ dy
    da = dy @ b[:1].mT if bug("the first b for all", "") else da
    db = torch.cat([db[:-1], 0 * db[-1:]]) if bug("the last batch is not written", "is zero in") else db
    return da, db.roll(1, 0) if bug("batches rolled", "rolled by 1") else common(bug, db, "b")


@layer("outer product", torch.outer, a=(7,), b=(5,))
def outer(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> Pair:
    return common(bug, dy @ b, "a"), dy.T @ (a.abs() if bug("absolute a", "") else a)


@layer("bilinear", lambda x, w, z: ((x @ w) * z).sum(-1), x=(8, 5), w=(5, 5), z=(8, 5))
def bilinear(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor, z: Tensor) -> Triple:
    d = dy[:, None]
    dw = x.T @ (z if bug("dy is lost for w", "ignores dy") else d * z)
    dw = dw.T if bug("w transposed", "is transposed") else dw
    return d * z @ w.T, dw, d * (x @ (w.T if bug("w transposed for z", "") else w))


@layer("two layers", lambda x, w, v: torch.tanh(x @ w.T) @ v.T, x=(9, 5), w=(6, 5), v=(4, 6))
def two_layers(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor, v: Tensor) -> Triple:
    a = torch.tanh(x @ w.T)
    slope = 1 if bug("tanh′ is lost", "") else 1 - a * a
    delta = dy @ v * slope
    dv = dy.T @ (x @ w.T if bug("z in place of a", "") else a)
    dw = (delta * a).T @ x if bug("a factor of a too many", "") else delta.T @ x
    return delta @ w, common(bug, dw, "w"), dv


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> tuple[Tensor, Tensor]:
    """Attention, and its probabilities."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) & causal
    p = torch.softmax(scores.masked_fill(mask, -math.inf), -1)
    return p @ v, p


@layer("attention", lambda q, k, v: attend(q, k, v)[0], q=(2, 7, 5), k=(2, 7, 5), v=(2, 7, 5))
def attention(bug: Bugs, dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Triple:
    _, p = attend(q, k, v, causal=not bug("the mask is lost in the backward", "", "flash-attention, early"))
    dp = dy @ v.mT
    inner = 0 if bug("the softmax's sum is lost", "") else (dp * p).sum(-1, keepdim=True)
    ds = (
        p * (dp - inner) * (1 if bug("the scale is lost", "root of the length of dimension 2") else q.shape[-1] ** -0.5)
    )
    dq, dk = ds @ k, (ds if bug("dk is not transposed", "") else ds.mT) @ q
    dv = (p if bug("dv is not transposed", "") else p.mT) @ dy
    dk = dk * q.shape[-1] ** -0.5 if bug("the scale twice in dk", "root of the length of dimension 2") else dk
    dq, dk = (dk, dq) if bug("dq and dk swapped", "is the gradient of") else (dq, dk)
    dv = torch.cat([dv[:, :4], 0 * dv[:, 4:]], 1) if bug("the last tile is not written", "is zero in") else dv
    return dq, dk, dv


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of 4 heads of queries with 2 heads of keys and values."""
    return attend(q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0))[0]


@layer("grouped attention", grouped, q=(4, 6, 5), k=(2, 6, 5), v=(2, 6, 5))
def grouped_attention(bug: Bugs, dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Triple:
    wide_k, wide_v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    p = attend(q, wide_k, wide_v)[1]
    dp = dy @ wide_v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * 5**-0.5
    dk, dv = (ds.mT @ q).reshape(2, 2, 6, 5), (p.mT @ dy).reshape(2, 2, 6, 5)
    summed = dk[:, 0] if bug("one head of the group only", "", "grouped-query kernels") else dk.sum(1)
    dv = dv.mean(1) if bug("a mean over the group", "½") else dv.sum(1)
    dv = dv.flip(0) if bug("groups swapped", "flipped|halves") else dv
    return ds @ wide_k, summed, dv


def conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A convolution with padding."""
    return functional.conv2d(x, w, b, padding=1)


@layer("convolution", conv, x=(3, 2, 6, 6), w=(4, 2, 3, 3), b=(4,))
def convolution(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Triple:
    dx = functional.conv_transpose2d(dy, w, padding=1)
    dx = functional.conv2d(dy, w.transpose(0, 1), padding=1) if bug("the kernel is not flipped", "") else dx
    dw = functional.conv2d(x.transpose(0, 1), dy.transpose(0, 1), padding=1).transpose(0, 1)
    dw = dw.flip(2, 3) if bug("dw is flipped", "flipped") else dw
    dw = dw.mT if bug("height and width swapped", "is transposed") else dw
    db = dy.mean((0, 2, 3)) if bug("b averaged", "number of entries along") else dy.sum((0, 2, 3))
    return dx, dw / len(x) if bug("dw averaged over the batch", "length of dimension 0 of x") else dw, db


@layer("convolution along time", lambda x, w: functional.conv1d(x, w, stride=2), x=(3, 2, 11), w=(4, 2, 3))
def strided(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    dx = functional.conv_transpose1d(dy, w, stride=2)
    dw = torch.stack([torch.einsum("nol,nil->oi", dy, x[:, :, k : k + 9 : 2]) for k in range(3)], -1)
    dw = dw.roll(1, -1) if bug("taps rolled", "rolled by 1") else dw
    dx = torch.cat([dx[..., :-1], 0 * dx[..., -1:]], -1) if bug("the last column is not written", "is zero in") else dx
    return common(bug, dx), dw


@layer("depthwise", lambda x, w: functional.conv1d(x, w[:, None], groups=4), x=(3, 4, 9), w=(4, 3))
def depthwise(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    wf = w if bug("the kernel is flipped", "") else w.flip(-1)
    dx = functional.conv1d(functional.pad(dy, (2, 2)), wf[:, None], groups=4)
    dw = torch.stack([(dy * x[..., k : k + 7]).sum((0, 2)) for k in range(3)], -1)
    return dx, dw[[1, 0, 2, 3]] if bug("channels 0 and 1 swapped", "another order") else common(bug, dw, "w")


def recur(x: Tensor, w: Tensor) -> Tensor:
    """The last state of h = tanh(h wᵀ + x_t)."""
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = torch.tanh(h @ w.T + x[:, t])
    return h


@layer("recurrent", recur, x=(5, 4, 6), w=normal(6, 6, scale=0.4))
def recurrent(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    states = [torch.zeros_like(x[:, 0])]
    for t in range(4):
        states.append(torch.tanh(states[-1] @ w.T + x[:, t]))
    dh, dw, dx = dy, torch.zeros_like(w), torch.zeros_like(x)
    first = 2 if bug("truncated after two steps", "is zero in") else 0
    for t in reversed(range(first, 4)):
        dz = dh * (1 - states[t + 1] ** 2)
        before = states[t + 1] if bug("the state after in place of before", "") else states[t]
        dw = dz.T @ before if bug("not added over time", "is zero throughout") else dw + dz.T @ before
        dx[:, t] = dz
        dh = dz @ (w.T if bug("w transposed through time", "") else w)
    return dx, common(bug, dw, "w")


def scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_(t−1) + b_t."""
    h, states = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


@layer("linear scan", scan, a=normal(4, 6, 3, scale=0.3, shift=0.7), b=(4, 6, 3))
def linear_scan(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> Pair:
    h = scan(a, b)
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    after = a if bug("a of this step, not of the next", "", "mamba 537") else torch.cat([a[:, 1:], a[:, :1]], 1)
    g, out = torch.zeros_like(dy[:, 0]), torch.zeros_like(dy)
    for t in reversed(range(6)):
        g = dy[:, t] + (0 if t == 5 else after[:, t] * g)
        out[:, t] = g
    da = out * (h if bug("the state after", "") else before)
    return common(bug, da, "a"), dy if bug("nothing through time", "") else out


@layer("inverse", torch.linalg.inv, a=lambda g, d: (normal(5, 5)(g, torch.float64) + 4 * torch.eye(5)).to(d))
def inverse(bug: Bugs, dy: Tensor, a: Tensor) -> Tensor:
    y: Tensor = torch.linalg.inv(a)
    g: Tensor = -(y @ dy @ y if bug("not transposed", "") else y.mT @ dy @ y.mT)
    return -g if bug("the sign is lost", "sign is wrong") else g


@layer(
    "log determinant",
    lambda a: torch.linalg.slogdet(a)[1].reshape(1),
    a=lambda g, d: (normal(5, 5)(g, torch.float64) + 4 * torch.eye(5)).to(d),
)
def log_determinant(bug: Bugs, dy: Tensor, a: Tensor) -> Tensor:
    y = torch.linalg.inv(a)
    return common(bug, dy * (y if bug("not transposed", "is transposed") else y.mT))
