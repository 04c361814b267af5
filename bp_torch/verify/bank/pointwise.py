"""Activations, gates and arithmetic: each entry of the output depends on one entry of each input."""

# ruff: noqa: D103 (the name of each layer says what it is)

import math

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank import Bugs, common, layer, normal, positive

X = (12, 10)


@layer("sigmoid", torch.sigmoid, x=X)
def sigmoid(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    a = torch.sigmoid(x)
    slope = a if bug("1 − a is lost", "") else a * (1 - a)
    slope = x * (1 - x) if bug("x in place of a", "") else slope
    return common(bug, slope if bug("dy is lost", "factor dy is missing") else dy * slope)


@layer("tanh", torch.tanh, x=X)
def tanh(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    a = torch.tanh(x)
    slope = 1 - a if bug("the square is lost", "") else 1 - a * a
    slope = 1 - x * x if bug("x in place of a", "", "tinygrad, an early version") else slope
    return common(bug, dy if bug("the slope is lost", "") else dy * slope)


@layer("relu", torch.relu, x=X)
def relu(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    mask = x < 0 if bug("the mask is inverted", "inverted") else x > 0
    mask = x > 0.5 if bug("another threshold", "is zero in") else mask
    return common(bug, dy if bug("the mask is lost", "mask is missing") else dy * mask)


@layer("leaky relu", lambda x: functional.leaky_relu(x, 0.1), x=X)
def leaky_relu(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    slope = 0.0 if bug("no leak", "is zero in") else 0.01 if bug("another leak", "") else 0.1
    g = torch.where(x > 0, dy, slope * dy)
    return common(bug, g.abs() if bug("absolute values", "absolute values") else g)


@layer("gelu", functional.gelu, x=X)
def gelu(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    density = torch.exp(-x * x) / math.sqrt(2 * math.pi) if bug("the half in the exponent is lost", "") else density
    density = 0 * x if bug("the second term is lost", "") else density
    scale = 1.702 if bug("the slope of the sigmoid approximation", "") else 1.0
    return common(bug, dy * (cdf * scale + x * density))


@layer("gelu by tanh", lambda x: functional.gelu(x, approximate="tanh"), x=X)
def gelu_tanh(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    k, c = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(k * (x + c * x**3))
    inner = k * (1 + c * x**2) if bug("the 3 is lost", "", "llm.c 801") else k * (1 + 3 * c * x**2)
    second = 0 if bug("the second term is lost", "") else 0.5 * x * (1 - t * t) * inner
    return common(bug, dy * (0.5 * (1 + t) + second))


@layer("silu", functional.silu, x=X)
def silu(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    second = s if bug("1 − s is lost", "") else 1 - s
    g = dy * (s if bug("the second term is lost", "") else s * (1 + x * second))
    return common(bug, g)


@layer("softplus", functional.softplus, x=X)
def softplus(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(-x) if bug("the sign of x is lost", "") else torch.sigmoid(x)
    return common(bug, torch.where(x > 1, dy, dy * s) if bug("linear too early", "") else dy * s)


@layer("elu", functional.elu, x=X)
def elu(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    below = torch.expm1(x) if bug("exp − 1 in place of exp", "") else torch.exp(x)
    g = torch.where(x > 0, dy, dy * below)
    return common(bug, dy if bug("the slope is lost", "") else g)


@layer("softsign", functional.softsign, x=X)
def softsign(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    below = 1 + x.abs() if bug("the square is lost", "") else (1 + x.abs()) ** 2
    return common(bug, dy / (1 + x * x if bug("x² in place of |x|", "") else below))


@layer("mish", functional.mish, x=X)
def mish(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    t = torch.tanh(functional.softplus(x))
    inner = 1 if bug("the sigmoid is lost", "") else torch.sigmoid(x)
    second = (1 - t) if bug("the square is lost", "") else (1 - t * t)
    return common(bug, dy * (t + x * second * inner))


@layer("exp", torch.exp, x=X)
def exp(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    y = torch.exp(x)
    y = y - 1 if bug("expm1 in place of exp", "1 · dy is missing") else y
    return common(bug, dy * y * y if bug("y is there twice", "factor y is there once too often") else dy * y)


@layer("log", torch.log, x=positive(*X))
def log(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    g = dy * x if bug("times x in place of divided", "") else dy / x
    g = dy / (x + 1e-3) if bug("an ε that the forward has not", "") else g
    return common(bug, g)


@layer("square root", torch.sqrt, x=positive(*X))
def square_root(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    half = 1.0 if bug("the half is lost", "2 times what it should be") else 0.5
    return dy * half / (x if bug("x in place of its root", "factor y is missing") else torch.sqrt(x))


@layer("square", torch.square, x=X)
def square(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    two = 1 if bug("the 2 is lost", "½") else 2
    g = dy * two * (x.abs() if bug("the absolute value", "") else x)
    return dy * two if bug("x is lost", "factor x is missing") else g


@layer("cube", lambda x: x**3, x=X)
def cube(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    power = 1 if bug("the power is too low", "factor x is missing") else 2
    three = 2 if bug("2 in place of 3", r"0.66\d* \(2/3\) times") else 3
    return common(bug, dy * three * x**power)


@layer("product", torch.mul, a=X, b=X)
def product(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    da, db = (dy * a, dy * b) if bug("the factors are swapped", "is the gradient of") else (dy * b, dy * a)
    db = dy if bug("a factor is lost", "factor a is missing") else db
    return common(bug, da, "a"), db


@layer("quotient", torch.div, a=X, b=positive(*X))
def quotient(bug: Bugs, dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    below = b if bug("the square is lost", "b") else b * b
    sign = 1 if bug("the sign is lost", "sign is wrong") else -1
    return dy / b, sign * dy * a / below


@layer("power", torch.pow, x=positive(*X), p=positive(*X))
def power(bug: Bugs, dy: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    dx = dy * p * x ** (p if bug("the power is not lowered", "factor x is there once too often") else p - 1)
    dp = dy * x**p if bug("the logarithm is lost", "") else dy * x**p * torch.log(x)
    return dx, common(bug, dp, "p")


@layer("clamp", lambda x: x.clamp(-0.8, 1.0), x=X)
def clamp(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    inside = x < 1.0 if bug("one side is lost", "mask is missing") else (x > -0.8) & (x < 1.0)
    g = dy * (~inside if bug("the mask is inverted", "inverted") else inside)
    return common(bug, dy if bug("the mask is lost", "mask is missing") else g)


@layer("soft cap", lambda x: 8 * torch.tanh(x / 8), x=normal(8, 10, scale=4))
def soft_cap(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    slope = 1 - torch.tanh(x / 8) ** 2
    slope = slope / 8 if bug("divided by the cap", r"0.125 \(1/8\) times") else slope
    return common(bug, dy * (1 - torch.tanh(x) ** 2 if bug("the cap is lost inside", "") else slope))


@layer("swiglu", lambda g, u: functional.silu(g) * u, g=X, u=X)
def swiglu(bug: Bugs, dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(g)
    slope = s * (1 - s) if bug("the slope of the sigmoid", "") else s * (1 + g * (1 - s))
    dg = dy * slope if bug("u is lost", "factor u is missing") else dy * u * slope
    du = dy * s if bug("g is lost", "factor g is missing") else dy * g * s
    return (du, dg) if bug("swapped", "is the gradient of") else (dg, du)


@layer("residual", lambda x, s: x + s * torch.tanh(x), x=X, s=normal(10))
def residual(bug: Bugs, dy: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.tanh(x)
    skip = 0 if bug("the skip is lost", "1 · dy is missing") else dy
    dx = skip + dy * (1 - t * t) * (1 if bug("the scale is lost", "") else s)
    ds = (dy * t).mean(0) if bug("a mean over the batch", "length of dimension 0 of x") else (dy * t).sum(0)
    return dx, dy * t if bug("not summed over the batch", "not summed over dimension 0") else ds


@layer("decay", lambda x: torch.sin(x), x=X)
def decay(bug: Bugs, dy: Tensor, x: Tensor) -> Tensor:
    g = dy * torch.cos(x)
    g = g + 0.01 * x if bug("a decay in it", "0.01 · x is too much") else g
    g = g + 0.5 if bug("a constant in it", "the same amount") else g
    return g


@layer("dropout, mask given", lambda x, m: x * m / 0.8, x=X, m=lambda g, d: torch.rand(X, generator=g) < 0.8)
def dropout(bug: Bugs, dy: Tensor, x: Tensor, m: Tensor) -> tuple[Tensor, None]:
    scale = 1.0 if bug("the scale is lost", r"0.8 \(4/5\) times") else 0.8
    kept = ~m if bug("the mask is inverted", "inverted") else m
    return (dy / scale if bug("the mask is lost", "mask is missing") else dy * kept / scale), None
