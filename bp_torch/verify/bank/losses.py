"""Losses: the output is a number, or one number for each example."""

# ruff: noqa: D103 (the name and the formula of each layer say what it is)

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from bp_torch.verify.bank.layers import indices, layer, positive

X, T, P = (12, 7), indices(7, 12), positive(12, 7)


def entropy(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy with these options, as a vector: of one number, or one for each example."""
    return lambda x, t: functional.cross_entropy(x, t, **options).reshape(-1)


@layer("mean square error", "mean of (x − y)²", lambda x, y: (x - y).square().mean().reshape(1), x=X, y=X)
def mean_square(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dx = dy * 2 * (x - y) / x.numel()
    return dx, -dx
    """it is divided by the batch only: x.numel() → len(x) | length of dimension 1 of x
    it is not divided: / x.numel() → | number of entries of x; the 2 is lost: dy * 2 → dy | ½
    the sign for y is lost: return dx, dx | sign is wrong"""


@layer("absolute error", "mean of |x − y|, by rows", lambda x, y: (x - y).abs().mean(-1), x=X, y=X)
def absolute(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dx = dy[:, None] * torch.sign(x - y) / x.shape[-1]
    return dx, -dx
    """the sign is a smooth one: torch.sign → torch.tanh
    the first dy is used for all: dy[:, None] → dy[0] | constant along dimension 1|factor  # Liger 1298
    the mean is lost: / x.shape[-1] → | length of dimension 1 of x; ± dx"""


@layer("cross entropy", "mean of −log pₜ, p = softmax(x)", entropy(), x=X, t=T)
def cross_entropy(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    one = functional.one_hot(t, x.shape[-1])
    p = torch.softmax(x, -1)
    g = p - one
    return dy * g / len(x), None
    """the softmax is over the batch: p = torch.softmax(x, 0); the target is lost: g = p
    the mean is lost: return dy * g, None | length of dimension 0 of x
    only the target's entry has a gradient: g = (p - one) * one | is zero in
    dy is lost: return g / len(x), None | times what it should be|ignores dy"""


@layer("cross entropy of each", "−log pₜ, p = softmax(x)", entropy(reduction="none"), x=X, t=T)
def cross_entropies(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    one = functional.one_hot(t, x.shape[-1])
    dx = dy[:, None] * (torch.softmax(x, -1) - one)
    return dx, None
    """the first dy is used for all: dy[:, None] → dy[0] | constant along dimension 1|factor  # Liger 1298
    the rows are in reverse: return dx.flip(0), None | is flipped; ± dx"""


@layer("label smoothing", "−Σ (0.9 [k = t] + 0.1 / 7) log pₖ", entropy(label_smoothing=0.1, reduction="sum"), x=X, t=T)
def smoothing(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    one = functional.one_hot(t, x.shape[-1]).to(x)
    dx = dy * (torch.softmax(x, -1) - 0.9 * one - 0.1 / x.shape[-1])
    return dx, None
    """0.1 is not shared among the classes: 0.1 / x.shape[-1] → 0.1 | the same amount
    the target keeps all: 0.9 * one → one; ± dx"""


@layer("ignored class", "mean of −log pₜ where t ≠ 0, p = softmax(x)", entropy(ignore_index=0), x=X, t=T)
def ignored(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    kept = (t != 0)[:, None]
    g = torch.softmax(x, -1) - functional.one_hot(t, x.shape[-1])
    dx = dy * (g * kept) / kept.sum()
    return dx, None
    """it is divided by all labels: kept.sum() → len(t) | times what it should be
    the ignored label has a gradient: dx = dy * g / kept.sum() | mask is missing; ± dx"""


@layer(
    "cross entropy of language models", "smoothed, where t ≠ 0", entropy(ignore_index=0, label_smoothing=0.1), x=X, t=T
)
def smoothed_and_ignored(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    kept = (t != 0)[:, None]
    one = functional.one_hot(t, x.shape[-1]).to(x)
    q = 0.9 * one + 0.1 / x.shape[-1]
    g = (torch.softmax(x, -1) - q) * kept
    return dy * g / kept.sum(), None
    """it is divided by all labels: kept.sum() → len(t) | times what it should be
    ignored labels are not masked: - q) * kept → - q) | mask is missing
    the labels are not smoothed: q = one
    dy is lost: return g / kept.sum(), None | times what it should be|ignores dy"""


@layer("binary cross entropy", "Σ log(1 + eˣ) − y x", lambda x, y: bce(x, y, reduction="none").sum(-1), x=X, y=X)
def binary(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(x)
    dx = dy[:, None] * (s - y)
    return dx, -dy[:, None] * x
    """σ′ is there: (s - y) → ((s - y) * s * (1 - s))
    a mean over the classes is there in place of the sum: (s - y) → ((s - y) / x.shape[-1]) | length of dimension 1 of x
    y gets the gradient of x: return dx, dx | gradient of x"""


@layer("huber", "½ (x − y)², linear beyond 0.7", partial(functional.huber_loss, delta=0.7, reduction="none"), x=X, y=X)
def huber(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dx = dy * (x - y).clamp(-0.7, 0.7)
    return dx, -dx
    """δ is another: -0.7, 0.7 → -1.0, 1.0; it is never linear: dx = dy * (x - y); ± dx"""


def divergence(x: Tensor, q: Tensor) -> Tensor:
    """KL of softmax(q) from softmax(x), for each example."""
    return functional.kl_div(torch.log_softmax(x, -1), torch.softmax(q, -1), reduction="none").sum(-1)


@layer("KL divergence", "Σ p log(p / r), p = softmax(q), r = softmax(x)", divergence, x=X, q=X)
def kl(dy: Tensor, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    px, pq = torch.softmax(x, -1), torch.softmax(q, -1)
    inner = torch.log(pq) - torch.log(px)
    total = (pq * inner).sum(-1, keepdim=True)  # the divergence
    dx = dy[:, None] * (px - pq)
    dq = dy[:, None] * pq * (inner - total)
    return dx, dq
    """the sum is lost for q: (inner - total) → inner | multiple; softmax(x) is lost: (px - pq) → -pq; ± dq of q"""


@layer("hinge", "Σ max(0, 1 − x y)", lambda x, y: (1 - x * y).clamp(min=0).sum(-1), x=X, y=X)
def hinge(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    active = x * y < 1
    return -dy[:, None] * y * active, -dy[:, None] * x * active
    """the margin is lost: y * active → y * (x * y < 0) | is zero in
    the mask is lost: y * active → y | mask is missing"""


@layer("focal", "−(1 − σ(x))² log σ(x)", lambda x: -((1 - torch.sigmoid(x)) ** 2) * functional.logsigmoid(x), x=X)
def focal(dy: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    first = 2 * s * (1 - s) ** 2 * functional.logsigmoid(x)
    return dy * (first - (1 - s) ** 3)
    """the weight's own slope is lost: first = 0  # several focal loss kernels
    a power is lost: ** 3 → ** 2; ±"""


@layer("cosine similarity", "a · b / ‖a‖ ‖b‖", lambda a, b: functional.cosine_similarity(a, b, dim=-1), a=X, b=X)
def cosines(dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    na, nb = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    c = (a * b).sum(-1, keepdim=True) / na / nb
    da = dy[:, None] * (b / na / nb - c * a / na**2)
    db = dy[:, None] * (a / na / nb - c * b / nb**2)
    return da, db
    """the projection is lost: - c * a / na**2 → | multiple of a; ± db of b"""


@layer("distance", "‖a − b‖, by rows", lambda a, b: (a - b).norm(dim=-1), a=X, b=X)
def distance(dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    d = (a - b).norm(dim=-1, keepdim=True)
    da = dy[:, None] * (a - b) / d
    return da, -dy[:, None] * (a - b) / d
    """d² is there in place of d: da = dy[:, None] * (a - b) / (d * d) | constant along dimension 1
    d is lost: da = dy[:, None] * (a - b) | constant along dimension 1; ± da"""


@layer("weighted mean", "Σ wᵢ xᵢ / Σ wᵢ", lambda x, w: (w[:, None] * x).sum(0) / w.sum(), x=X, w=positive(12))
def weighted(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = (w[:, None] * x).sum(0) / w.sum()
    dx = w[:, None] * dy / w.sum()
    dw = ((x - y) * dy).sum(-1) / w.sum()
    return dx, dw
    """the sum of the weights is taken as fixed: (x - y) → x | the same amount
    n is there in place of the sum of the weights: dx = w[:, None] * dy / len(w) | times what it should be; ± dw of w"""


@layer(
    "gaussian likelihood", "½ (log v + (x − y)² / v)", lambda x, y, v: (v.log() + (x - y) ** 2 / v) / 2, x=X, y=X, v=P
)
def gaussian(dy: Tensor, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dx = dy * (x - y) / v
    dv = dy * 0.5 * (1 - (x - y) ** 2 / v) / v
    return dx, -dx, dv
    """v is lost: dx = dy * (x - y) | factor v is there once too often
    the logarithm is lost: (1 - (x - y) ** 2 / v) → (-((x - y) ** 2) / v)
    the half is lost for v: dy * 0.5 * → dy * | 2 times; ± dv of v"""


def contrast(a: Tensor, b: Tensor) -> Tensor:
    """The mean of the cross entropies by rows and by columns, with the diagonal as labels."""
    s = 2.0 * a @ b.T
    return -0.5 * (torch.log_softmax(s, 0) + torch.log_softmax(s, 1)).diagonal().mean().reshape(1)


@layer("contrastive", "mean cross entropy of 2 a bᵀ, by rows and by columns", contrast, a=X, b=X)
def contrastive(dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    s = 2.0 * a @ b.T  # 1 / temperature = 2
    g = torch.softmax(s, 0) + torch.softmax(s, 1) - 2 * torch.eye(len(s))
    ds = dy * g.to(a) / (2 * len(s))
    return 2.0 * ds @ b, 2.0 * ds.T @ a
    """the columns are left out: torch.softmax(s, 0) + torch.softmax(s, 1) - 2 * → torch.softmax(s, 1) -
    the temperature is lost for a: return 2.0 * ds @ b → return ds @ b | ½; ds is not transposed: ds.T → ds
    the mean is lost: / (2 * len(s)) → / 2 | length of dimension 0 of"""


def margin(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
    """The triplet loss of each row."""
    return torch.relu((a - p).norm(dim=1) - (a - n).norm(dim=1) + 1)


@layer("triplet", "max(0, ‖a − p‖ − ‖a − n‖ + 1)", margin, a=X, p=X, n=X)
def triplet(dy: Tensor, a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    near = (a - p).norm(dim=1, keepdim=True)
    far = (a - n).norm(dim=1, keepdim=True)
    g = dy[:, None] * (near - far + 1 > 0)
    dp, dn = -g * (a - p) / near, g * (a - n) / far
    return -dp - dn, dp, dn
    """the margin is lost: near - far + 1 > 0 → near - far > 0 | is zero in
    the negative is lost for a: return -dp - dn → return -dp | gradient of p, with the sign wrong
    the distance is lost: (a - p) / near → (a - p) | constant along dimension 1
    the distance is squared: / far → / far**2 | constant along dimension 1; ± dn of n"""


@layer(
    "dice",
    "1 − (2 Σ p y + 1) / (Σ p + Σ y + 1)",
    lambda p, y: 1 - (2 * (p * y).sum(1) + 1) / ((p + y).sum(1) + 1),
    p=P,
    y=P,
)
def dice(dy: Tensor, p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    total = (p.sum(1) + y.sum(1) + 1)[:, None]
    score: Tensor = (2 * (p * y).sum(1) + 1)[:, None] / total
    g: Tensor = -dy[:, None] / total
    return g * (2 * y - score), g * (2 * p - score)
    """the sum below is taken as fixed: g * (2 * y - score) → g * 2 * y | constant along dimension 1
    the 2 is lost: (2 * y - score) → (y - score)
    the two are swapped: return g * (2 * p - score), g * (2 * y - score) | is the gradient of
    the smoothing is lost below: y.sum(1) + 1)[:, None] → y.sum(1))[:, None] | a multiple of p"""
