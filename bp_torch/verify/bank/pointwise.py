"""Activations, gates and arithmetic: each entry of the output depends on one entry of each input."""

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
