"""Activations, gates, selections and orders: an entry of the output depends on few entries of the inputs."""

# ruff: noqa: D103 (the name and the formula of each layer say what it is)

import math

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank.layers import layer, normal

X = (12, 10)


@layer("sigmoid", "σ(x) = 1 / (1 + e⁻ˣ)", torch.sigmoid, x=X)
def sigmoid(dy: Tensor, x: Tensor) -> Tensor:
    a = torch.sigmoid(x)
    slope = a * (1 - a)  # σ′(x)
    return dy * slope
    """1 − a is lost: slope = a
    x in place of a: slope = x * (1 - x)
    dy is lost: return slope | factor dy is missing; ±"""


@layer("tanh", "tanh(x)", torch.tanh, x=X)
def tanh(dy: Tensor, x: Tensor) -> Tensor:
    a = torch.tanh(x)
    slope = 1 - a * a
    return dy * slope
    """the square is lost: slope = 1 - a
    x in place of a: slope = 1 - x * x  # tinygrad, an early version
    the slope is lost: return dy; ±"""


@layer("gelu", "x Φ(x), Φ the normal distribution function", functional.gelu, x=X)
def gelu(dy: Tensor, x: Tensor) -> Tensor:
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))  # Φ(x)
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)  # Φ′(x)
    return dy * (cdf + x * density)
    """the half in the exponent is lost: -x * x / 2 → -x * x; the second term is lost: return dy * cdf
    the slope of the sigmoid approximation: return dy * (cdf * 1.702 + x * density); ±"""


@layer("gelu by tanh", "x Φ(x), Φ by tanh", lambda x: functional.gelu(x, approximate="tanh"), x=X)
def gelu_tanh(dy: Tensor, x: Tensor) -> Tensor:
    k, c = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(k * (x + c * x**3))
    inner = k * (1 + 3 * c * x**2)  # the slope of what tanh takes
    second = 0.5 * x * (1 - t * t) * inner
    return dy * (0.5 * (1 + t) + second)
    """the 3 is lost: inner = k * (1 + c * x**2)  # llm.c 801
    the second term is lost: second = 0; ±"""


@layer("mish", "x tanh(log(1 + eˣ))", functional.mish, x=X)
def mish(dy: Tensor, x: Tensor) -> Tensor:
    t = torch.tanh(functional.softplus(x))
    return dy * (t + x * (1 - t * t) * torch.sigmoid(x))
    """the sigmoid is lost: * torch.sigmoid(x) →; the square is lost: 1 - t * t → 1 - t; ±"""


@layer("swiglu", "silu(g) ⊙ u", lambda g, u: functional.silu(g) * u, g=X, u=X)
def swiglu(dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(g)
    slope = s * (1 + g * (1 - s))
    dg, du = dy * u * slope, dy * g * s
    return dg, du
    """the slope of the sigmoid: slope = s * (1 - s); u is lost: dy * u * slope → dy * slope | factor u is missing
    g is lost: dy * g * s → dy * s | factor g is missing; swapped: return du, dg | is the gradient of"""


@layer("residual", "x + s ⊙ tanh(x), s for each column", lambda x, s: x + s * torch.tanh(x), x=X, s=normal(10))
def residual(dy: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.tanh(x)
    dx = dy + dy * (1 - t * t) * s
    return dx, (dy * t).sum(0)
    """the skip is lost: dy + → 0 + | 1 · dy is missing; the scale is lost: dx = dy + dy * (1 - t * t)
    a mean over the batch: .sum → .mean | length of dimension 0 of x
    not summed over the batch: return dx, dy * t | not summed over dimension 0"""


@layer("max pooling", "max of every two neighbours", lambda x: functional.max_pool1d(x, 2), x=(3, 4, 8))
def max_pool(dy: Tensor, x: Tensor) -> Tensor:
    pairs = x.reshape(*dy.shape, 2)
    mask = pairs == pairs.amax(-1, keepdim=True)
    return (dy[..., None] * mask).reshape(x.shape)
    """the other of each pair: * mask → * mask.flip(-1) | inverted|another order
    the mask is lost: return dy.repeat_interleave(2, -1) | mask is missing; ±"""


@layer("broadcast sum", "sin(x + b), b for each row", lambda x, b: torch.sin(x + b), x=(6, 8), b=(6, 1))
def broadcast(dy: Tensor, x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    g = dy * torch.cos(x + b)
    return g, g.sum(1, keepdim=True)
    """a mean: return g, g.mean(1, keepdim=True) | length of dimension 1 of x
    the first column only: return g, g[:, :1] | leaves out; not summed: return g, g | not summed over dimension 1"""


@layer("slice", "the squares of columns 2 to 5", lambda x: x[:, 2:6] ** 2, x=(6, 8))
def part(dy: Tensor, x: Tensor) -> Tensor:
    dx = torch.zeros_like(x)
    dx[:, 2:6] = 2 * dy * x[:, 2:6]
    return dx
    """off by one: dx[:, 2:6] = 2 * dy * x[:, 2:6] → dx[:, 1:5] = 2 * dy * x[:, 1:5]
    the rest is not zero: return torch.cat([dx[:, :6], dy[:, 2:]], 1) | should be zero"""


@layer("sort", "each row in order, times 1, 2, …", lambda x: x.sort(-1)[0] * torch.arange(1, 9), x=(6, 8))
def sort(dy: Tensor, x: Tensor) -> Tensor:
    order, g = x.argsort(-1), dy * torch.arange(1, 9)
    return torch.zeros_like(x).scatter(1, order, g)
    """the order, not its inverse: return g.gather(1, order); ±"""


def rotate(x: Tensor, angle: float = 1.0) -> Tensor:
    """Rotary embedding of (T, 8): the halves are the two coordinates."""
    t = torch.arange(len(x), dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.5, 0.25, 0.125], dtype=x.dtype) * angle
    a, b = x.chunk(2, -1)
    return torch.cat([a * t.cos() - b * t.sin(), a * t.sin() + b * t.cos()], -1)


@layer("rotary embedding", "the two halves of row t, rotated by angles that grow with t", rotate, x=(7, 8))
def rotary(dy: Tensor, x: Tensor) -> Tensor:
    dx = rotate(dy, angle=-1.0)
    return dx
    """turned the same way: angle=-1.0 → angle=1.0
    halves swapped: return torch.cat([dx[:, 4:], dx[:, :4]], -1) | halves swapped
    the sign of one half: return torch.cat([dx[:, :4], -dx[:, 4:]], -1) | sign is wrong at indices 4 to 7"""


@layer("tied weights", "tanh(x w) wᵀ", lambda x, w: torch.tanh(x @ w) @ w.T, x=(7, 5), w=normal(5, 4, scale=0.5))
def tied(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    a = torch.tanh(x @ w)
    dz = dy @ w * (1 - a * a)
    dw = x.T @ dz + dy.T @ a
    return dz @ w.T, dw
    """the second use is lost: dw = x.T @ dz  # tied embeddings
    the first use is lost: dw = dy.T @ a"""


@layer("last row", "sin x of 40 rows", lambda x: torch.sin(x), x=(40, 8))
def last_row(dy: Tensor, x: Tensor) -> Tensor:
    dx = dy * torch.cos(x)
    return dx
    """the last row is not written: return torch.cat([dx[:39], 0 * dx[39:]]) | is zero in
    row 17 twice: return torch.cat([dx[:17], 2 * dx[17:18], dx[18:]]) | at index 17
    wrong in the last tile: return torch.cat([dx[:32], dx[32:] + dy[32:]]) | indices 32 to 39
    written into dy: dx = dy.mul_(torch.cos(x)) | writes into dy  # pytorch 194719"""
