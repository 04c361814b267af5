"""Recurrences: the gradient goes back through time."""

# ruff: noqa: D103 (the name and the formula of each layer say what it is)

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.bank.layers import indices, layer, normal

Pair = tuple[Tensor, Tensor]


def states(x: Tensor, w: Tensor) -> list[Tensor]:
    """The states before every step, from h = 0, and after the last."""
    h = [torch.zeros_like(x[:, 0])]
    for t in range(x.shape[1]):
        h.append(torch.tanh(h[t] @ w.T + x[:, t]))
    return h


@layer("recurrent", "last h = tanh(h wᵀ + xₜ)", lambda x, w: states(x, w)[-1], x=(5, 4, 6), w=normal(6, 6, scale=0.4))
def recurrent(dy: Tensor, x: Tensor, w: Tensor) -> Pair:
    h = states(x, w)
    dh, dw, dx = dy, torch.zeros_like(w), torch.zeros_like(x)
    for t in reversed(range(x.shape[1])):
        dz = dh * (1 - h[t + 1] ** 2)
        dw = dw + dz.T @ h[t]
        dx[:, t] = dz
        dh = dz @ w
    return dx, dw
    """it is truncated after two steps: range(x.shape[1]) → range(2, x.shape[1]) | is zero in
    the state after is there in place of that before: dw = dw + dz.T @ h[t + 1]
    it is not added over time: dw = dz.T @ h[t] | is zero throughout; w is transposed through time: dh = dz @ w.T
    ± dw of w"""


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
    zero = torch.zeros_like(h[:, :1])
    before = torch.cat([zero, h[:, :-1]], 1)
    later = torch.cat([a[:, 1:], zero], 1)
    g, db = torch.zeros_like(dy[:, 0]), torch.zeros_like(dy)
    for t in reversed(range(dy.shape[1])):
        g = dy[:, t] + later[:, t] * g  # a of the next step
        db[:, t] = g
    da = db * before
    return da, db
    """a is that of this step, not of the next: later[:, t] → a[:, t]  # mamba 537
    the state after is there in place of that before: da = db * h; ± da of a
    nothing comes from later steps: return da, dy"""


def states_of(steps: Callable[..., Any]) -> Callable[..., Tensor]:
    """The states after every step, (B, T, H), which are the last of what ``steps`` gives."""
    return lambda *given: torch.stack([step[-1] for step in steps(*given)], 1)


def gated(gates: int) -> dict[str, Any]:
    """The inputs of a layer with so many gates of 4 numbers."""
    n = 4 * gates
    return {"x": (3, 4, 5), "w": normal(n, 5, scale=0.5), "u": normal(n, 4, scale=0.5), "b": (n,)}


def lstm_steps(x: Tensor, w: Tensor, u: Tensor, b: Tensor) -> list[Any]:
    """The gates i, f, g, o, the cell c and the state h after every step."""
    h = c = torch.zeros_like(x[:, 0] @ w.T)[:, : u.shape[1]]
    steps = []
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ w.T + h @ u.T + b).chunk(4, -1)
        i, f, o = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
        g = torch.tanh(g)
        c = f * c + i * g
        h = o * torch.tanh(c)
        steps.append((i, f, g, o, c, h))
    return steps


@layer("lstm", "hₜ = o ⊙ tanh(cₜ), cₜ = f ⊙ cₜ₋₁ + i ⊙ g", states_of(lstm_steps), **gated(4))
def lstm(dy: Tensor, x: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    steps, dx = lstm_steps(x, w, u, b), torch.zeros_like(x)
    dw, du, db = torch.zeros_like(w), torch.zeros_like(u), torch.zeros_like(b)
    later_h = later_c = zero = torch.zeros_like(dy[:, 0])
    for t in reversed(range(len(steps))):
        i, f, g, o, c, _ = steps[t]
        *_, before_c, before_h = steps[t - 1] if t else (zero, zero)
        dh = dy[:, t] + later_h
        dc = later_c + dh * o * (1 - torch.tanh(c) ** 2)
        di, df = dc * g * i * (1 - i), dc * before_c * f * (1 - f)
        dg, do = dc * i * (1 - g * g), dh * torch.tanh(c) * o * (1 - o)
        dz = torch.cat([di, df, dg, do], -1)  # z = x wᵀ + h uᵀ + b, (B, 4 H)
        dx[:, t], later_h, later_c = dz @ w, dz @ u, dc * f
        dw, du = dw + dz.T @ x[:, t], du + dz.T @ before_h
        db = db + dz.sum(0)
    return dx, dw, du, db
    """the cell has no gradient from later: dc = later_c + → dc = 0 +
    the forget gate is lost: dz @ u, dc * f → dz @ u, dc
    the state has no gradient from later: dh = dy[:, t] + later_h → dh = dy[:, t]
    the cell after is there in place of that before: dc * before_c → dc * c
    the state after is there in place of that before: dz.T @ before_h → dz.T @ (o * torch.tanh(c))
    the slope of tanh is lost: o * (1 - torch.tanh(c) ** 2) → o
    gates i and f are swapped: torch.cat([di, df, → torch.cat([df, di,
    db is not summed over time: db = db + dz.sum(0) → db = dz.sum(0)"""


def gru_steps(x: Tensor, w: Tensor, u: Tensor, b: Tensor) -> list[Any]:
    """The gates r, z and n, a = h uₙᵀ, and the state h after every step."""
    h = torch.zeros_like(x[:, 0] @ w.T)[:, : u.shape[1]]
    steps = []
    for t in range(x.shape[1]):
        xr, xz, xn = (x[:, t] @ w.T + b).chunk(3, -1)
        hr, hz, a = (h @ u.T).chunk(3, -1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * a)
        h = (1 - z) * n + z * h
        steps.append((r, z, n, a, h))
    return steps


@layer("gru", "hₜ = (1 − z) ⊙ n + z ⊙ hₜ₋₁", states_of(gru_steps), **gated(3))
def gru(dy: Tensor, x: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    steps, dx = gru_steps(x, w, u, b), torch.zeros_like(x)
    dw, du, db = torch.zeros_like(w), torch.zeros_like(u), torch.zeros_like(b)
    later = zero = torch.zeros_like(dy[:, 0])
    for t in reversed(range(len(steps))):
        (r, z, n, a, _), before = steps[t], steps[t - 1][-1] if t else zero
        dh = dy[:, t] + later
        dn = dh * (1 - z) * (1 - n * n)
        dz = dh * (before - n) * z * (1 - z)
        dr = dn * a * r * (1 - r)
        of_x = torch.cat([dr, dz, dn], -1)  # of x wᵀ + b, (B, 3 H)
        of_h = torch.cat([dr, dz, dn * r], -1)  # of h uᵀ
        dx[:, t], later = of_x @ w, of_h @ u + dh * z
        dw, du = dw + of_x.T @ x[:, t], du + of_h.T @ before
        db = db + of_x.sum(0)
    return dx, dw, du, db
    """the direct path is lost: of_h @ u + dh * z → of_h @ u
    r is lost for the state: torch.cat([dr, dz, dn * r], -1) → of_x
    the sign of the update gate is lost: (before - n) → (n - before)
    the slope of tanh is lost: (1 - z) * (1 - n * n) → (1 - z)
    the state after is there in place of that before: of_h.T @ before → of_h.T @ steps[t][-1]
    db is not summed over time: db = db + of_x.sum(0) → db = of_x.sum(0)
    gates r and z are swapped: torch.cat([dr, dz, dn], -1) → torch.cat([dz, dr, dn], -1) | another order"""


def chain(x: Tensor, w: Tensor) -> Tensor:
    """Log Σ exp(score) of all beginnings that end with this tag, (B, T, K)."""
    found = [x[:, 0]]
    for t in range(1, x.shape[1]):
        found.append(x[:, t] + torch.logsumexp(found[-1][:, :, None] + w, 1))
    return torch.stack(found, 1)


def crf_loss(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
    """The negative log-likelihood of the tags t of each sentence, (B,)."""
    score = x.gather(2, t[:, :, None]).sum((1, 2)) + w[t[:, :-1], t[:, 1:]].sum(1)
    return torch.logsumexp(chain(x, w)[:, -1], -1) - score


@layer("crf", "−log p(t), scores x of tags, w of pairs", crf_loss, x=(3, 5, 4), w=(4, 4), t=indices(4, 3, 5))
def crf(dy: Tensor, x: Tensor, w: Tensor, t: Tensor) -> tuple[Tensor, Tensor, None]:
    begun, ended = chain(x, w), chain(x.flip(1), w.T).flip(1)
    log_z = torch.logsumexp(begun[:, -1], -1)[:, None, None]
    one = torch.zeros_like(x).scatter(2, t[:, :, None], 1.0)
    p = torch.exp(begun + ended - x - log_z)  # of each tag, (B, T, K)
    pair = begun[:, :-1, :, None] + w + ended[:, 1:, None] - log_z[..., None]
    dx = dy[:, None, None] * (p - one)
    expected = torch.einsum("b,btij->ij", dy, pair.exp())
    seen = torch.einsum("b,bti,btj->ij", dy, one[:, :-1], one[:, 1:])
    return dx, expected - seen, None
    """the tags that are seen are lost: (p - one) → p; the pairs that are seen are lost: return dx, expected, None
    x is counted twice: begun + ended - x - log_z → begun + ended - log_z
    w is transposed: return dx, (expected - seen).T, None | is transposed
    nothing comes from the end: ended - x → x - x"""
