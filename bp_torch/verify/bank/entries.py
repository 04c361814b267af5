"""Activations, gates, selections and orders: an entry of the output depends on few entries of the inputs."""

# ruff: noqa: D103 (the name and the formula of each layer say what it is)

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank.layers import indices, layer, normal

X = (12, 10)


@layer("sigmoid", "σ(x) = 1 / (1 + e⁻ˣ)", torch.sigmoid, x=X)
def sigmoid(dy: Tensor, x: Tensor) -> Tensor:
    a = torch.sigmoid(x)
    slope = a * (1 - a)  # σ′(x)
    return dy * slope
    """1 − a is lost: slope = a
    x is there in place of a: slope = x * (1 - x)
    dy is lost: return slope | factor dy is missing; ±"""


@layer("tanh", "tanh(x)", torch.tanh, x=X)
def tanh(dy: Tensor, x: Tensor) -> Tensor:
    a = torch.tanh(x)
    slope = 1 - a * a
    return dy * slope
    """the square is lost: slope = 1 - a
    x is there in place of a: slope = 1 - x * x  # tinygrad, an early version
    the slope is lost: return dy; ±"""


@layer("gelu", "x Φ(x), Φ the normal distribution function", functional.gelu, x=X)
def gelu(dy: Tensor, x: Tensor) -> Tensor:
    cdf = 0.5 * (1 + torch.erf(x / 2**0.5))  # Φ(x)
    density: Tensor = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5  # Φ′(x)
    return dy * (cdf + x * density)
    """the half in the exponent is lost: -x * x / 2 → -x * x; the second term is lost: return dy * cdf
    the slope is that of the sigmoid approximation: return dy * (cdf * 1.702 + x * density); ±"""


@layer("gelu by tanh", "x Φ(x), Φ by tanh", lambda x: functional.gelu(x, approximate="tanh"), x=X)
def gelu_tanh(dy: Tensor, x: Tensor) -> Tensor:
    k, c = (2 / torch.pi) ** 0.5, 0.044715
    t = torch.tanh(k * (x + c * x**3))
    inner: Tensor = k * (1 + 3 * c * x**2)  # the slope of what tanh takes
    second = 0.5 * x * (1 - t * t) * inner
    return dy * (0.5 * (1 + t) + second)
    """the 3 is lost: 3 * c * x**2 → c * x**2  # llm.c 801
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
    """the slope is that of the sigmoid: slope = s * (1 - s)
    u is lost: dy * u * slope → dy * slope | factor u is missing
    g is lost: dy * g * s → dy * s | factor g is missing
    the gradients are swapped: return du, dg | is the gradient of"""


@layer("geglu", "gelu(g) ⊙ u", lambda g, u: functional.gelu(g) * u, g=X, u=X)
def geglu(dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    cdf = 0.5 * (1 + torch.erf(g / 2**0.5))  # Φ(g)
    density: Tensor = torch.exp(-g * g / 2) / (2 * torch.pi) ** 0.5  # Φ′(g)
    return dy * u * (cdf + g * density), dy * g * cdf
    """the second term is lost: (cdf + g * density) → cdf; u is lost: dy * u * → dy * | factor u is missing
    the gate is not applied: dy * g * cdf → dy * cdf | factor g is missing"""


@layer("residual", "x + s ⊙ tanh(x), s for each column", lambda x, s: x + s * torch.tanh(x), x=X, s=normal(10))
def residual(dy: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.tanh(x)
    dx = dy + dy * (1 - t * t) * s
    return dx, (dy * t).sum(0)
    """the skip is lost: dy + → 0 + | 1 · dy is missing; the scale is lost: dx = dy + dy * (1 - t * t)
    a mean over the batch is there in place of the sum: .sum → .mean | length of dimension 0 of x
    it is not summed over the batch: return dx, dy * t | not summed over dimension 0"""


@layer("max pooling", "max of every two neighbours", lambda x: functional.max_pool1d(x, 2), x=(3, 4, 8))
def max_pool(dy: Tensor, x: Tensor) -> Tensor:
    pairs = x.reshape(*dy.shape, 2)
    mask = pairs == pairs.amax(-1, keepdim=True)
    return (dy[..., None] * mask).reshape(x.shape)
    """the other of each pair gets the gradient: * mask → * mask.flip(-1) | inverted|another order
    the mask is lost: return dy.repeat_interleave(2, -1) | mask is missing; ±"""


@layer("max pooling of images", "max of 2 × 2 neighbours", lambda x: functional.max_pool2d(x, 2), x=(2, 3, 4, 6))
def max_pool_2d(dy: Tensor, x: Tensor) -> Tensor:
    y = torch.nn.functional.max_pool2d(x, 2)
    wide_y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)  # (B, C, H, W)
    wide_dy = dy.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return wide_dy * (x == wide_y)
    """the mask is lost: * (x == wide_y) → | mask is missing; the mask is inverted: x == wide_y → x != wide_y | inverted
    each of the four gets a quarter: * (x == wide_y) → / 4 + 0 * x; ±"""


@layer("embedding bag", "means of rows of w", lambda i, w: w[i].mean(1), i=indices(9, 6, 3), w=(9, 4))
def embedding_bag(dy: Tensor, i: Tensor, w: Tensor) -> tuple[None, Tensor]:
    each = dy.repeat_interleave(i.shape[1], 0) / i.shape[1]
    dw = torch.zeros_like(w).index_add(0, i.flatten(), each)
    return None, dw
    """repeated indices overwrite: add(0, i.flatten(), → put((i.flatten(),), | wrong only at
    a sum is there in place of the mean: / i.shape[1] → | length of dimension 1 of i|3 times
    the rows are in the wrong order: dy.repeat_interleave(i.shape[1], 0) → dy.repeat(i.shape[1], 1); ± dw"""


@layer("broadcast sum", "sin(x + b), b for each row", lambda x, b: torch.sin(x + b), x=(6, 8), b=(6, 1))
def broadcast(dy: Tensor, x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    g = dy * torch.cos(x + b)
    return g, g.sum(1, keepdim=True)
    """a mean is there in place of the sum: return g, g.mean(1, keepdim=True) | length of dimension 1 of x
    only the first column is there: return g, g[:, :1] | leaves out
    it is not summed: return g, g | not summed over dimension 1"""


@layer("tied weights", "tanh(x w) wᵀ", lambda x, w: torch.tanh(x @ w) @ w.T, x=(7, 5), w=normal(5, 4, scale=0.5))
def tied(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    a = torch.tanh(x @ w)
    dz = dy @ w * (1 - a * a)
    dw = x.T @ dz + dy.T @ a
    return dz @ w.T, dw
    """the second use is lost: dw = x.T @ dz  # tied embeddings
    the first use is lost: dw = dy.T @ a"""
