"""Layers whose backward is one expression, as a table.

A line: the name, y as a formula, the forward, the gradients, the inputs; below it the faults, as in layers.py.
"""

import linecache
import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify.bank.layers import chosen, indices, layer, normal, positive

TABLE = r"""
relu | max(x, 0) | torch.relu(x) | dy * (x > 0) | x=(12, 10)
    the mask is inverted: x > 0 → x < 0 | inverted; another threshold: x > 0 → x > 0.5 | is zero in
    the mask is lost: return dy | mask is missing; ±
leaky relu | x where x > 0, else 0.1 x | functional.leaky_relu(x, 0.1) | torch.where(x > 0, dy, 0.1 * dy) | x=(12, 10)
    no leak: 0.1 * dy → 0.0 * dy | is zero in; another leak: 0.1 * dy → 0.01 * dy | only where x < 0
    absolute values: return torch.where(x > 0, dy, 0.1 * dy).abs() | absolute values; ±
softplus | log(1 + eˣ) | functional.softplus(x) | dy * torch.sigmoid(x) | x=(12, 10)
    the sign of x is lost: return dy * torch.sigmoid(-x)
    linear too early: return torch.where(x > 1, dy, dy * torch.sigmoid(x)); ±
elu | x where x > 0, else eˣ − 1 | functional.elu(x) | torch.where(x > 0, dy, dy * torch.exp(x)) | x=(12, 10)
    exp − 1 in place of exp: torch.exp → torch.expm1 | x < 0; the slope is lost: return dy | x < 0; ±
softsign | x / (1 + |x|) | functional.softsign(x) | dy / (1 + x.abs()) ** 2 | x=(12, 10)
    the square is lost: return dy / (1 + x.abs()); x² in place of |x|: return dy / (1 + x * x); ±
silu | x σ(x) | functional.silu(x) | dy * (torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))) | x=(12, 10)
    1 − s is lost: (1 - torch.sigmoid(x)) → torch.sigmoid(x); the second term is lost: return dy * torch.sigmoid(x); ±
clamp | x, at least −0.8 and at most 1 | x.clamp(-0.8, 1.0) | dy * ((x > -0.8) & (x < 1.0)) | x=(12, 10)
    one side is lost: (x > -0.8) & → | mask is missing; the mask is inverted: * ( → * ~( | inverted
    the mask is lost: return dy | mask is missing; ±
soft cap | 8 tanh(x / 8) | 8 * torch.tanh(x / 8) | dy * (1 - torch.tanh(x / 8) ** 2) | x=normal(8, 10, scale=4)
    divided by the cap: return dy * ((1 - torch.tanh(x / 8) ** 2) / 8) | 0.125 \(1/8\) times
    the cap is lost inside: x / 8 → x; ±
exp | eˣ | torch.exp(x) | dy * torch.exp(x) | x=(12, 10)
    expm1 in place of exp: torch.exp(x) → (torch.exp(x) - 1) | 1 · dy is missing
    y is there twice: return dy * torch.exp(x) * torch.exp(x) | factor y is there once too often; ±
log | log x | torch.log(x) | dy / x | x=positive(12, 10)
    times x in place of divided: return dy * x; an ε that the forward has not: return dy / (x + 1e-3); ±
square root | √x | torch.sqrt(x) | dy * 0.5 / torch.sqrt(x) | x=positive(12, 10)
    the half is lost: return dy / torch.sqrt(x) | 2 times what it should be
    x in place of its root: return dy * 0.5 / x | factor y is missing
square | x² | torch.square(x) | dy * 2 * x | x=(12, 10)
    the 2 is lost: return dy * x | ½; the absolute value: return dy * 2 * x.abs() | only where x < 0
    x is lost: return dy * 2 | factor x is missing
cube | x³ | x**3 | dy * 3 * x**2 | x=(12, 10)
    the power is too low: return dy * 3 * x | factor x is missing
    2 in place of 3: return dy * 2 * x**2 | 0.66\d* \(2/3\) times; ±
decay | sin x | torch.sin(x) | dy * torch.cos(x) | x=(12, 10)
    a decay in it: return dy * torch.cos(x) + 0.01 * x | 0.01 · x is too much
    a constant in it: return dy * torch.cos(x) + 0.5 | the same amount
product | a ⊙ b | torch.mul(a, b) | dy * b, dy * a | a=(12, 10), b=(12, 10)
    the factors are swapped: return dy * a, dy * b | is the gradient of
    a factor is lost: return dy * b, dy | factor a is missing; ± dy * b of a
quotient | a / b | torch.div(a, b) | dy / b, -dy * a / (b * b) | a=(12, 10), b=positive(12, 10)
    the square is lost: (b * b) → b | b; the sign is lost: -dy → dy | sign is wrong
power | xᵖ | torch.pow(x, p) | dy * p * x ** (p - 1), dy * x**p * torch.log(x) | x=positive(12, 10), p=positive(12, 10)
    the power is not lowered: (p - 1) → p | factor x is there once too often
    the logarithm is lost: * torch.log(x) →; ± dy * x**p * torch.log(x) of p
dropout, mask given | x ⊙ m / 0.8 | x * m / 0.8 | dy * m / 0.8, None | x=(12, 10), m=chosen(0.8, 12, 10)
    the scale is lost: / 0.8 → | 0.8 \(4/5\) times; the mask is inverted: * m → * ~m | inverted
    the mask is lost: dy * m → dy | factor m is missing
masked fill | x², and 0 where m | x.masked_fill(m, 0.0) ** 2 | 2 * dy * x * ~m, None | x=(6, 8), m=chosen(0.4, 6, 8)
    the mask is lost: * ~m → | mask is missing; inverted: ~m → m | inverted
maximum of two | max(a, b) | torch.maximum(a, b) | dy * (a > b), dy * (a < b) | a=(6, 8), b=(6, 8)
    the mask is inverted: a > b → a < b | inverted|gradient of
    the mask is lost for b: dy * (a < b) → dy | mask is missing
maximum of rows | max of each row | x.amax(-1) | dy[:, None] * functional.one_hot(x.argmax(-1), 8) | x=(6, 8)
    the minimum: argmax → argmin; the mask is lost: return dy[:, None] + 0 * x | mask is missing; ±
sum over rows | Σ of each column | x.sum(0) | dy.expand(x.shape).clone() | x=(6, 8)
    a mean: return dy.expand(x.shape) / len(x) | length of dimension 0 of x
    not expanded: return dy | has the shape; ±
mean over columns | means of rows | x.mean(1) | (dy[:, None] / x.shape[1]).expand(x.shape).clone() | x=(6, 8)
    not divided: / x.shape[1] → | length of dimension 1 of x; the other length: x.shape[1] → x.shape[0] | times; ±
mean pooling | mean of four neighbours | functional.avg_pool1d(x, 4) | dy.repeat_interleave(4, -1) / 4 | x=(3, 4, 8)
    not divided: return dy.repeat_interleave(4, -1) | 4 times what it should be  # mlpack 1923
    repeated in the wrong order: return dy.repeat(1, 1, 4) / 4 | another order|wrong only at; ±
interpolation | each twice | functional.interpolate(x, scale_factor=2) | dy.reshape(*x.shape, 2).sum(-1) | x=(2, 3, 5)
    the first of each pair only: .sum(-1) → [..., 0]; a mean: .sum(-1) → .sum(-1) / 2 | ½; ±
sum of squares | Σ x² | x.square().sum().reshape(1) | 2 * x * dy | x=(12, 7)
    dy is lost: return 2 * x | ignores dy|times
    a mean over the batch: return 2 * x * dy / len(x) | length of dimension 0 of x
standard deviation | σ of each column | x.std(0) | dy * (x - x.mean(0)) / (len(x) - 1) / x.std(0) | x=(9, 7)
    n for n − 1: (len(x) - 1) → len(x) | \(n − 1\) / n
    σ is lost: / x.std(0) → | factor y is there once too often
    the mean is not subtracted: (x - x.mean(0)) → x | constant along dimension 0; ±
variance penalty | Σ variance of xⱼ | x.var(0).sum().reshape(1) | dy * 2 * (x - x.mean(0)) / (len(x) - 1) | x=(9, 6)
    n for n − 1: (len(x) - 1) → len(x) | \(n − 1\) / n
    not centred: (x - x.mean(0)) → x | constant along dimension 0; ±
centred rows | x − μ, by rows | x - x.mean(-1, keepdim=True) | dy - dy.mean(-1, keepdim=True) | x=(12, 10)
    a sum for the mean: dy.mean → dy.sum | constant along dimension 1
    the mean is lost: dy.mean(-1, keepdim=True) → 0 | constant along dimension 1; ±
log-softmax | x − log Σ eˣ | torch.log_softmax(x, -1) | dy - torch.softmax(x, -1) * dy.sum(1, keepdim=True) | x=(12, 10)
    the sum of softmax: dy.sum(1, keepdim=True) → (dy * torch.softmax(x, -1)).sum(-1, keepdim=True)
    dy taken to sum to 1: * dy.sum(1, keepdim=True) → | linear in dy  # many losses fused with it; ±
log-sum-exp | log Σ eˣ, by rows | torch.logsumexp(x, -1) | dy[:, None] * torch.softmax(x, -1) | x=(12, 10)
    not divided by the sum: torch.softmax(x, -1) → torch.exp(x) | constant along dimension 1
    dy is lost: dy[:, None] * → | constant along dimension 1; ±
cumulative sum | x₁ + … + xₖ in each row | x.cumsum(1) | dy.flip(1).cumsum(1).flip(1) | x=(6, 8)
    not from the end: return dy.cumsum(1); without itself: 1).flip(1) → 1).flip(1) - dy | 1 · dy is missing; ±
cumulative product | x₁ · … · xₖ | x.cumprod(1) | (dy * x.cumprod(1)).flip(1).cumsum(1).flip(1) / x | x=positive(5, 6)
    x is lost: / x → | factor x is there once too often; ±
roll | each row, rolled by 3 | x.roll(3, 1) | dy.roll(-3, 1) | x=(6, 8)
    rolled the same way: return dy.roll(3, 1) | rolled by 6; ±
flip | rows in reverse, times 1, 2, … | x.flip(-1) * torch.arange(1, 9) | (dy * torch.arange(1, 9)).flip(-1) | x=(6, 8)
    not flipped back: .flip(-1) → | is flipped; ±
transpose | (x ⊙ x)ᵀ | (x * x).T | 2 * x * dy.T | x=(7, 7)
    not transposed back: return 2 * x * dy; ±
reshape | sin x in another shape | torch.sin(x).reshape(8, 6) | dy.reshape(x.shape) * torch.cos(x) | x=(6, 8)
    transposed, not reshaped: dy.reshape(x.shape) → dy.T; ±
padding | x² between one column of zeros and two | functional.pad(x, (1, 2)) ** 2 | 2 * dy[:, 1:9] * x | x=(6, 8)
    off by one: 1:9 → 2:10; ±
concatenation | [a², b²] | torch.cat([a, b], 1).square() | 2 * dy[:, :4] * a, 2 * dy[:, 4:] * b | a=(5, 4), b=(5, 4)
    the first part of dy for both: 4:] → :4]; swapped: return 2 * dy[:, 4:] * b, 2 * dy[:, :4] * a | is the gradient of
    ± 2 * dy[:, :4] * a of a
gather | x[row, i] | x.gather(1, i) | torch.zeros_like(x).scatter_add(1, i, dy), None | x=(6, 8), i=indices(8, 6, 5)
    repeated indices overwrite: scatter_add → scatter | wrong only at
    off by one: dy), None → dy).roll(1, 1), None | rolled by 1
embedding | the rows of w at i | w[i] | None, torch.zeros_like(w).index_add(0, i, dy) | i=indices(5, 12), w=(9, 4)
    repeated indices overwrite: add(0, i, dy) → put((i,), dy) | wrong only at  # TinyTorch, repeated indices
    a mean over repetitions: dy) → dy) / i.bincount(minlength=9).clamp(1)[:, None] | factor|times|wrong only at
    ± torch.zeros_like(w).index_add(0, i, dy)
outer product | a bᵀ | torch.outer(a, b) | dy @ b, dy.T @ a | a=(7,), b=(5,)
    ± dy @ b of a; absolute a: return dy @ b, dy.T @ a.abs()
matmul | a b | torch.matmul(a, b) | dy @ b.T, a.T @ dy | a=(5, 7), b=(7, 5)
    the wrong order, transposed: dy @ b.T → b @ dy | another shape|transposed|has the shape; ± dy @ b.T of a
    the last row is not written: a.T @ dy → (a.T @ dy)[:-1] | has the shape
batched matmul | aₖ bₖ for each k | torch.bmm(a, b) | dy @ b.mT, a.mT @ dy | a=(4, 5, 6), b=(4, 6, 3)
    the first b for all: dy @ b.mT → dy @ b[:1].mT
    the last batch is not written: a.mT @ dy → torch.cat([(a.mT @ dy)[:-1], 0 * (a.mT @ dy)[-1:]]) | is zero in
    batches rolled: a.mT @ dy → (a.mT @ dy).roll(1, 0) | rolled by 1; ± a.mT @ dy of b
triangle | t tᵀ, t the lower triangle of x | x.tril() @ x.tril().T | ((dy + dy.T) @ x.tril()).tril() | x=(6, 6)
    dy is not made symmetric: (dy + dy.T) → dy; the mask is lost: return (dy + dy.T) @ x.tril() | mask is missing
"""
NAMES = {"torch": torch, "Tensor": Tensor, "functional": functional}
NAMES |= {draw.__name__: draw for draw in (chosen, indices, normal, positive)}


def enter(line: str, faults: str) -> None:
    """Enter the layer of a line of the table: its backward is written out as one would copy it."""
    name, about, forward, gradients, inputs = line.split(" | ")
    file, names = f"<{name}>", dict[str, Any](NAMES)
    draws = eval(f"dict({inputs})", names)
    arguments = ", ".join(f"{key}: Tensor" for key in draws)
    text = f'def backward(dy: Tensor, {arguments}):\n    return {gradients}\n    r"""{faults}"""\n'
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file  # where ``inspect`` finds the source
    exec(compile(text, file, "exec"), names)
    layer(name, about, eval(f"lambda {', '.join(draws)}: {forward}", names), **draws)(names["backward"])


for line, faults in re.findall(r"^(\S.*)\n((?: .*\n)+)", TABLE, re.MULTILINE):
    enter(line, faults.strip())
