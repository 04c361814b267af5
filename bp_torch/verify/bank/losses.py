"""Losses: the output is a number, or one number for each example."""

# ruff: noqa: D103 (the name of each layer says what it is)

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank import Bugs, common, indices, layer, normal, positive

X, LABELS = (12, 7), indices(7, 12)
BATCH = "length of dimension 0 of x"


@layer("mean square error", lambda x, y: (x - y).square().mean().reshape(1), x=X, y=X)
def mean_square(bug: Bugs, dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    n = len(x) if bug("divided by the batch only", "length of dimension 1 of x") else x.numel()
    n = 1 if bug("not divided", "number of entries of x") else n
    two = 1 if bug("the 2 is lost", "½") else 2
    g = dy * two * (x - y) / n
    return g, g if bug("the sign for y is lost", "sign is wrong") else -g


@layer("sum of squares", lambda x: x.square().sum().reshape(1), x=X)
def squares(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    g = 2 * x if bug("dy is lost", "ignores dy|times") else 2 * x * dy
    return g / len(x) if bug("a mean over the batch", BATCH) else g


@layer("absolute error", lambda x, y: (x - y).abs().mean(-1), x=X, y=X)
def absolute(bug: Bugs, dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.tanh(x - y) if bug("a smooth sign", "") else torch.sign(x - y)
    weight = dy[0] if bug("the first dy for all", "constant along dimension 1|factor", "Liger 1298") else dy[:, None]
    g = weight * s / (1 if bug("the mean is lost", "length of dimension 1 of x") else x.shape[-1])
    return common(bug, g), -g


@layer("cross entropy", lambda x, t: functional.cross_entropy(x, t).reshape(1), x=X, t=LABELS)
def cross_entropy(bug: Bugs, dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    one = functional.one_hot(t, 7)
    p = torch.softmax(x, 0 if bug("softmax over the batch", "") else -1)
    g = p if bug("the target is lost", "") else p - one
    n = 1 if bug("the mean is lost", BATCH) else len(x)
    g = g * one if bug("the target's entries only", "is zero in") else g
    return (g / n if bug("dy is lost", "times what it should be|ignores dy") else dy * g / n), None


@layer("cross entropy of each", lambda x, t: functional.cross_entropy(x, t, reduction="none"), x=X, t=LABELS)
def cross_entropies(bug: Bugs, dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    weight = dy[0] if bug("the first dy for all", "constant along dimension 1|factor", "Liger 1298") else dy[:, None]
    g = weight * (torch.softmax(x, -1) - functional.one_hot(t, 7))
    return (g.flip(0) if bug("rows in reverse", "is flipped") else common(bug, g)), None


def smoothed(x: Tensor, t: Tensor) -> Tensor:
    """Cross entropy with label smoothing."""
    return functional.cross_entropy(x, t, label_smoothing=0.1, reduction="sum").reshape(1)


@layer("label smoothing", smoothed, x=X, t=LABELS)
def smoothing(bug: Bugs, dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    share = 0.1 if bug("not shared among the classes", "the same amount") else 0.1 / 7
    kept = 1.0 if bug("the target keeps all", "") else 0.9
    return common(bug, dy * (torch.softmax(x, -1) - kept * functional.one_hot(t, 7).to(x) - share)), None


def ignoring(x: Tensor, t: Tensor) -> Tensor:
    """Cross entropy that ignores the class 0."""
    return functional.cross_entropy(x, t, ignore_index=0).reshape(1)


@layer("ignored class", ignoring, x=X, t=LABELS)
def ignored(bug: Bugs, dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
    kept = (t != 0)[:, None]
    n = len(t) if bug("divided by all", "times what it should be") else kept.sum()
    g = torch.softmax(x, -1) - functional.one_hot(t, 7)
    return common(bug, dy * (g if bug("not ignored", "mask is missing") else g * kept) / n), None


def bce(x: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy of logits, for each example."""
    return functional.binary_cross_entropy_with_logits(x, y, reduction="none").sum(-1)


@layer("binary cross entropy", bce, x=X, y=X)
def binary(bug: Bugs, dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(x)
    g = (s - y) * s * (1 - s) if bug("σ′ is there", "") else s - y
    dx = dy[:, None] * (g / x.shape[-1] if bug("a mean over the classes", "length of dimension 1 of x") else g)
    return dx, dx if bug("the gradient of x for y", "gradient of x") else -dy[:, None] * x


@layer("huber", lambda x, y: functional.huber_loss(x, y, delta=0.7, reduction="none"), x=X, y=X)
def huber(bug: Bugs, dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    e, delta = x - y, 1.0 if bug("another δ", "") else 0.7
    g = dy * (e if bug("never linear", "") else e.clamp(-delta, delta))
    return common(bug, g), -g


def divergence(x: Tensor, q: Tensor) -> Tensor:
    """KL of softmax(q) from softmax(x), for each example."""
    return functional.kl_div(torch.log_softmax(x, -1), torch.softmax(q, -1), reduction="none").sum(-1)


@layer("KL divergence", divergence, x=X, q=X)
def kl(bug: Bugs, dy: Tensor, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    px, pq = torch.softmax(x, -1), torch.softmax(q, -1)
    inner = torch.log(pq) - torch.log(px)
    total = 0 if bug("the sum is lost for q", "multiple") else (pq * inner).sum(-1, keepdim=True)
    dx = dy[:, None] * (-pq if bug("softmax(x) is lost", "") else px - pq)
    return dx, common(bug, dy[:, None] * pq * (inner - total), "q")


@layer("hinge", lambda x, y: (1 - x * y).clamp(min=0).sum(-1), x=X, y=X)
def hinge(bug: Bugs, dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    active = x * y < (0 if bug("the margin is lost", "is zero in") else 1)
    g = -dy[:, None] * y
    return (g if bug("the mask is lost", "mask is missing") else g * active), -dy[:, None] * x * (x * y < 1)


@layer("poisson", lambda x, y: (torch.exp(x) - y * x).sum(-1), x=X, y=positive(*X))
def poisson(bug: Bugs, dy: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dx = dy[:, None] * (x - y if bug("the link is lost", "") else torch.exp(x) - y)
    return common(bug, dx), -dy[:, None] * (torch.exp(x) if bug("exp(x) for x", "") else x)


def focal(x: Tensor) -> Tensor:
    """Focal loss of the first class, γ = 2."""
    return -((1 - torch.sigmoid(x)) ** 2) * functional.logsigmoid(x)


@layer("focal", focal, x=X)
def focal_backward(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    first = 2 * s * (1 - s) ** 2 * functional.logsigmoid(x)
    first = 0 * x if bug("the weight's own slope is lost", "", "several focal loss kernels") else first
    second = (1 - s) ** (2 if bug("a power is lost", "") else 3)
    return common(bug, dy * (first - second))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of rows."""
    return functional.cosine_similarity(a, b, dim=-1)


@layer("cosine similarity", cosine, a=X, b=X)
def cosines(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    na, nb = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    c = (a * b).sum(-1, keepdim=True) / na / nb
    second = 0 if bug("the projection is lost", "multiple of a") else c * a / na**2
    return dy[:, None] * (b / na / nb - second), common(bug, dy[:, None] * (a / na / nb - c * b / nb**2), "b")


@layer("distance", lambda a, b: (a - b).norm(dim=-1), a=X, b=X)
def distance(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    d = (a - b).norm(dim=-1, keepdim=True)
    below = d * d if bug("d² in place of d", "constant along dimension 1") else d
    g = dy[:, None] * (a - b) / (1 if bug("d is lost", "constant along dimension 1") else below)
    return common(bug, g), -dy[:, None] * (a - b) / d


@layer("weighted mean", lambda x, w: (w[:, None] * x).sum(0) / w.sum(), x=X, w=positive(12))
def weighted(bug: Bugs, dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = (w[:, None] * x).sum(0) / w.sum()
    second = 0 if bug("the sum of weights taken as fixed", "the same amount") else y
    dx = w[:, None] * dy / (len(w) if bug("n for the sum of weights", "times what it should be") else w.sum())
    return dx, common(bug, ((x - second) * dy).sum(-1) / w.sum(), "w")


@layer("variance penalty", lambda x: x.var(0, unbiased=True).sum().reshape(1), x=normal(9, 6))
def variance(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    n = len(x) if bug("n for n − 1", r"\(n − 1\) / n") else len(x) - 1
    return common(bug, dy * 2 * (x if bug("not centred", "constant along dimension 0") else x - x.mean(0)) / n)
