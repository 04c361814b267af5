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

X, T = (12, 7), indices(7, 12)


def entropy(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy with these options, as a vector: of one number, or one for each example."""
    return lambda x, t: functional.cross_entropy(x, t, **options).reshape(-1)


@layer("mean square error", "mean of (x − y)²", lambda x, y: (x - y).square().mean().reshape(1), x=X, y=X)
def mean_square(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dx = dy * 2 * (x - y) / x.numel()
    return dx, -dx
    """divided by the batch only: x.numel() → len(x) | length of dimension 1 of x
    not divided: / x.numel() → | number of entries of x; the 2 is lost: dy * 2 → dy | ½
    the sign for y is lost: return dx, dx | sign is wrong"""


@layer("absolute error", "mean of |x − y|, by rows", lambda x, y: (x - y).abs().mean(-1), x=X, y=X)
def absolute(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dx = dy[:, None] * torch.sign(x - y) / x.shape[-1]
    return dx, -dx
    """a smooth sign: torch.sign → torch.tanh
    the first dy for all: dy[:, None] → dy[0] | constant along dimension 1|factor  # Liger 1298
    the mean is lost: / x.shape[-1] → | length of dimension 1 of x; ± dx"""


@layer("cross entropy", "mean of −log pₜ, p = softmax(x)", entropy(), x=X, t=T)
def cross_entropy(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    one = functional.one_hot(t, 7)
    p = torch.softmax(x, -1)
    g = p - one
    return dy * g / len(x), None
    """softmax over the batch: p = torch.softmax(x, 0); the target is lost: g = p
    the mean is lost: return dy * g, None | length of dimension 0 of x
    the target's entries only: g = (p - one) * one | is zero in
    dy is lost: return g / len(x), None | times what it should be|ignores dy"""


@layer("cross entropy of each", "−log pₜ, p = softmax(x)", entropy(reduction="none"), x=X, t=T)
def cross_entropies(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    dx = dy[:, None] * (torch.softmax(x, -1) - functional.one_hot(t, 7))
    return dx, None
    """the first dy for all: dy[:, None] → dy[0] | constant along dimension 1|factor  # Liger 1298
    rows in reverse: return dx.flip(0), None | is flipped; ± dx"""


@layer("label smoothing", "−Σ (0.9 [k = t] + 0.1 / 7) log pₖ", entropy(label_smoothing=0.1, reduction="sum"), x=X, t=T)
def smoothing(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    one = functional.one_hot(t, 7).to(x)
    dx = dy * (torch.softmax(x, -1) - 0.9 * one - 0.1 / 7)
    return dx, None
    """not shared among the classes: 0.1 / 7 → 0.1 | the same amount; the target keeps all: 0.9 * one → one; ± dx"""


@layer("ignored class", "mean of −log pₜ where t ≠ 0, p = softmax(x)", entropy(ignore_index=0), x=X, t=T)
def ignored(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    kept = (t != 0)[:, None]
    g = torch.softmax(x, -1) - functional.one_hot(t, 7)
    dx = dy * (g * kept) / kept.sum()
    return dx, None
    """divided by all: kept.sum() → len(t) | times what it should be
    not ignored: dx = dy * g / kept.sum() | mask is missing; ± dx"""


@layer("binary cross entropy", "Σ log(1 + eˣ) − y x", lambda x, y: bce(x, y, reduction="none").sum(-1), x=X, y=X)
def binary(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(x)
    dx = dy[:, None] * (s - y)
    return dx, -dy[:, None] * x
    """σ′ is there: (s - y) → ((s - y) * s * (1 - s))
    a mean over the classes: (s - y) → ((s - y) / x.shape[-1]) | length of dimension 1 of x
    the gradient of x for y: return dx, dx | gradient of x"""


@layer("huber", "½ (x − y)², linear beyond 0.7", partial(functional.huber_loss, delta=0.7, reduction="none"), x=X, y=X)
def huber(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dx = dy * (x - y).clamp(-0.7, 0.7)
    return dx, -dx
    """another δ: -0.7, 0.7 → -1.0, 1.0; never linear: dx = dy * (x - y); ± dx"""


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


@layer("poisson", "Σ eˣ − y x", lambda x, y: (torch.exp(x) - y * x).sum(-1), x=X, y=positive(*X))
def poisson(dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dx = dy[:, None] * (torch.exp(x) - y)
    return dx, -dy[:, None] * x
    """the link is lost: torch.exp(x) → x; ± dx; exp(x) for x: return dx, -dy[:, None] * torch.exp(x)"""


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
    """d² in place of d: da = dy[:, None] * (a - b) / (d * d) | constant along dimension 1
    d is lost: da = dy[:, None] * (a - b) | constant along dimension 1; ± da"""


@layer("weighted mean", "Σ wᵢ xᵢ / Σ wᵢ", lambda x, w: (w[:, None] * x).sum(0) / w.sum(), x=X, w=positive(12))
def weighted(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = (w[:, None] * x).sum(0) / w.sum()
    dx = w[:, None] * dy / w.sum()
    dw = ((x - y) * dy).sum(-1) / w.sum()
    return dx, dw
    """the sum of weights taken as fixed: (x - y) → x | the same amount
    n for the sum of weights: dx = w[:, None] * dy / len(w) | times what it should be; ± dw of w"""
