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
    the mask is inverted: x > 0 → x < 0 | inverted; the threshold is another: x > 0 → x > 0.5 | is zero in
    the mask is lost: return dy | mask is missing; ±
leaky relu | x where x > 0, else 0.1 x | functional.leaky_relu(x, 0.1) | torch.where(x > 0, dy, 0.1 * dy) | x=(12, 10)
    the leak is lost: 0.1 * dy → 0.0 * dy | is zero in; the leak is another: 0.1 * dy → 0.01 * dy | only where x < 0
    absolute values are taken: return torch.where(x > 0, dy, 0.1 * dy).abs() | absolute values; ±
prelu | x where x > 0, else a x | functional.prelu(x, a) | \
    torch.where(x > 0, dy, a * dy), (dy * x * (x < 0)).sum().reshape(1) | x=(12, 10), a=(1,)
    a is lost: a * dy → dy | mask is missing|only where x < 0; the mask is lost for a: (x < 0) → 1
    a mean is there in place of the sum for a: .sum() → .mean() | number of entries of x
    x is lost for a: dy * x * (x < 0) → dy * (x < 0) | factor x is missing
softplus | log(1 + eˣ) | functional.softplus(x) | dy * torch.sigmoid(x) | x=(12, 10)
    the sign of x is lost: return dy * torch.sigmoid(-x)
    it is linear too early: return torch.where(x > 1, dy, dy * torch.sigmoid(x)); ±
log-sigmoid | log σ(x) | functional.logsigmoid(x) | dy * torch.sigmoid(-x) | x=(12, 10)
    the sign of x is lost: return dy * torch.sigmoid(x)
    the slope is that of σ: return dy * torch.sigmoid(x) * torch.sigmoid(-x); ±
elu | x where x > 0, else eˣ − 1 | functional.elu(x) | torch.where(x > 0, dy, dy * torch.exp(x)) | x=(12, 10)
    exp − 1 is there in place of exp: torch.exp → torch.expm1 | x < 0; the slope is lost: return dy | x < 0; ±
softsign | x / (1 + |x|) | functional.softsign(x) | dy / (1 + x.abs()) ** 2 | x=(12, 10)
    the square is lost: return dy / (1 + x.abs()); x² is there in place of |x|: return dy / (1 + x * x); ±
silu | x σ(x) | functional.silu(x) | dy * (torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))) | x=(12, 10)
    1 − s is lost: (1 - torch.sigmoid(x)) → torch.sigmoid(x); the second term is lost: return dy * torch.sigmoid(x); ±
hard swish | x clip(x + 3, 0, 6) / 6 | functional.hardswish(x) | \
    dy * torch.where(x < -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0)) | x=normal(12, 10, scale=3)
    the half is lost: x / 3 + 0.5 → x / 3; x is divided by 6: x / 3 + 0.5 → x / 6 + 0.5
    the end above is lost: torch.where(x < 3, x / 3 + 0.5, 1.0) → x / 3 + 0.5
    ±
glu | a ⊙ σ(b) | torch.mul(a, torch.sigmoid(b)) | \
    dy * torch.sigmoid(b), dy * a * torch.sigmoid(b) * torch.sigmoid(-b) | a=(12, 10), b=(12, 10)
    1 − σ is lost: * torch.sigmoid(-b) →; a is lost for b: dy * a * → dy * | factor a is missing
    the gate is lost: return dy, dy * a * torch.sigmoid(b) * torch.sigmoid(-b)
    they are swapped: return dy * a * torch.sigmoid(b) * torch.sigmoid(-b), dy * torch.sigmoid(b) | is the gradient of
clamp | x, at least −0.8 and at most 1 | x.clamp(-0.8, 1.0) | dy * ((x > -0.8) & (x < 1.0)) | x=(12, 10)
    one side is lost: (x > -0.8) & → | mask is missing; the mask is inverted: * ( → * ~( | inverted
    the mask is lost: return dy | mask is missing; ±
soft cap | 8 tanh(x / 8) | 8 * torch.tanh(x / 8) | dy * (1 - torch.tanh(x / 8) ** 2) | x=normal(8, 10, scale=4)
    the slope is divided by the cap: return dy * ((1 - torch.tanh(x / 8) ** 2) / 8) | 0.125 \(1/8\) times
    the cap is lost inside: x / 8 → x; ±
exp | eˣ | torch.exp(x) | dy * torch.exp(x) | x=(12, 10)
    expm1 is there in place of exp: torch.exp(x) → (torch.exp(x) - 1) | 1 · dy is missing
    y is there twice: return dy * torch.exp(x) * torch.exp(x) | factor y is there once too often; ±
log | log x | torch.log(x) | dy / x | x=positive(12, 10)
    dy is multiplied by x, not divided: return dy * x; an ε is there that the forward has not: return dy / (x + 1e-3); ±
square root | √x | torch.sqrt(x) | dy * 0.5 / torch.sqrt(x) | x=positive(12, 10)
    the half is lost: return dy / torch.sqrt(x) | 2 times what it should be
    x is there in place of its root: return dy * 0.5 / x | factor y is missing
square | x² | torch.square(x) | dy * 2 * x | x=(12, 10)
    the 2 is lost: return dy * x | ½; the absolute value is taken: return dy * 2 * x.abs() | only where x < 0
    x is lost: return dy * 2 | factor x is missing
cube | x³ | x**3 | dy * 3 * x**2 | x=(12, 10)
    the power is too low: return dy * 3 * x | factor x is missing
    2 is there in place of 3: return dy * 2 * x**2 | 0.66\d* \(2/3\) times; ±
sine | sin x | torch.sin(x) | dy * torch.cos(x) | x=(40, 8)
    the decay of the weights is in it: return dy * torch.cos(x) + 0.01 * x | 0.01 · x is too much
    a constant is added: return dy * torch.cos(x) + 0.5 | the same amount
    the last row is not written: return torch.cat([dy[:39] * torch.cos(x[:39]), 0 * x[39:]]) | is zero in
    row 17 is added twice: return dy * torch.cos(x) * (1.0 + (torch.arange(len(x)) == 17)[:, None]) | at index 17
    the last tile is wrong: return dy * (torch.cos(x) + (torch.arange(len(x)) > 31)[:, None]) | indices 32 to 39
    dy is overwritten: return dy.mul_(torch.cos(x)) | writes into dy  # pytorch 194719
product | a ⊙ b | torch.mul(a, b) | dy * b, dy * a | a=(12, 10), b=(12, 10)
    the factors are swapped: return dy * a, dy * b | is the gradient of
    a factor is lost: return dy * b, dy | factor a is missing; ± dy * b of a
quotient | a / b | torch.div(a, b) | dy / b, -dy * a / (b * b) | a=(12, 10), b=positive(12, 10)
    the square is lost: (b * b) → b | b; the sign is lost: -dy → dy | sign is wrong
power | xᵖ | torch.pow(x, p) | dy * p * x ** (p - 1), dy * x**p * torch.log(x) | x=positive(12, 10), p=positive(12, 10)
    the power is not lowered: (p - 1) → p | factor x is there once too often
    the logarithm is lost: * torch.log(x) →; ± dy * x**p * torch.log(x) of p
dropout | x ⊙ m / 0.8, the mask m given | x * m / 0.8 | dy * m / 0.8, None | x=(12, 10), m=chosen(0.8, 12, 10)
    the scale is lost: / 0.8 → | 0.8 \(4/5\) times; the mask is inverted: * m → * ~m | inverted
    the mask is lost: dy * m → dy | factor m is missing
masked fill | x², and 0 where m | x.masked_fill(m, 0.0) ** 2 | 2 * dy * x * ~m, None | x=(6, 8), m=chosen(0.4, 6, 8)
    the mask is lost: * ~m → | mask is missing; the mask is inverted: ~m → m | inverted
maximum of two | max(a, b) | torch.maximum(a, b) | dy * (a > b), dy * (a < b) | a=(6, 8), b=(6, 8)
    the mask is inverted: a > b → a < b | inverted|gradient of
    the mask is lost for b: dy * (a < b) → dy | mask is missing
maximum of rows | max of each row | x.amax(-1) | dy[:, None] * functional.one_hot(x.argmax(-1), x.shape[1]) | x=(6, 8)
    the minimum gets the gradient: argmax → argmin; the mask is lost: return dy[:, None] + 0 * x | mask is missing; ±
sum over rows | Σ of each column | x.sum(0) | dy.expand(x.shape).clone() | x=(6, 8)
    a mean is there in place of the sum: return dy.expand(x.shape) / len(x) | length of dimension 0 of x
    dy is not expanded: return dy | has the shape; ±
mean over columns | means of rows | x.mean(1) | (dy[:, None] / x.shape[1]).expand(x.shape).clone() | x=(6, 8)
    it is not divided: / x.shape[1] → | length of dimension 1 of x
    it is divided by the other length: x.shape[1] → x.shape[0] | times; ±
mean pooling | mean of four neighbours | functional.avg_pool1d(x, 4) | dy.repeat_interleave(4, -1) / 4 | x=(3, 4, 8)
    it is not divided: return dy.repeat_interleave(4, -1) | 4 times what it should be  # mlpack 1923
    dy is repeated in the wrong order: return dy.repeat(1, 1, 4) / 4 | another order|wrong only at; ±
global mean pooling | mean of each channel | x.mean((2, 3)) | \
    (dy / x[0, 0].numel())[:, :, None, None].expand(x.shape).clone() | x=(3, 2, 4, 5)
    it is not divided: dy / x[0, 0].numel() → dy | number of entries along
    it is divided by the height only: x[0, 0].numel() → x.shape[2] | length of dimension 3; ±
interpolation | each twice | functional.interpolate(x, scale_factor=2) | dy.reshape(*x.shape, 2).sum(-1) | x=(2, 3, 5)
    only the first of each pair is taken: .sum(-1) → [..., 0]
    a mean is there in place of the sum: .sum(-1) → .sum(-1) / 2 | ½; ±
pixel shuffle | channels to pixels | functional.pixel_shuffle(x, 2) | functional.pixel_unshuffle(dy, 2) | x=(2, 4, 3, 3)
    the entries are in another order: return dy.reshape(x.shape); height and width are swapped: dy, 2) → dy.mT, 2); ±
sum of squares | Σ x² | x.square().sum().reshape(1) | 2 * x * dy | x=(12, 7)
    dy is lost: return 2 * x | ignores dy|times
    a mean over the batch is there in place of the sum: return 2 * x * dy / len(x) | length of dimension 0 of x
standard deviation | σ of each column | x.std(0) | dy * (x - x.mean(0)) / (len(x) - 1) / x.std(0) | x=(9, 7)
    n is there in place of n − 1: (len(x) - 1) → len(x) | \(n − 1\) / n
    σ is lost: / x.std(0) → | factor y is there once too often
    the mean is not subtracted: (x - x.mean(0)) → x | constant along dimension 0; ±
variance penalty | Σ variance of xⱼ | x.var(0).sum().reshape(1) | dy * 2 * (x - x.mean(0)) / (len(x) - 1) | x=(9, 6)
    n is there in place of n − 1: (len(x) - 1) → len(x) | \(n − 1\) / n
    x is not centred: (x - x.mean(0)) → x | constant along dimension 0; ±
centred rows | x − μ, by rows | x - x.mean(-1, keepdim=True) | dy - dy.mean(-1, keepdim=True) | x=(12, 10)
    a sum is there in place of the mean: dy.mean → dy.sum | constant along dimension 1
    the mean is lost: dy.mean(-1, keepdim=True) → 0 | constant along dimension 1; ±
log-softmax | x − log Σ eˣ | torch.log_softmax(x, -1) | dy - torch.softmax(x, -1) * dy.sum(1, keepdim=True) | x=(12, 10)
    the sum is that of the softmax: dy.sum(1, keepdim=True) → (dy * torch.softmax(x, -1)).sum(-1, keepdim=True)
    dy is taken to sum to 1: * dy.sum(1, keepdim=True) → | linear in dy  # many losses fused with it; ±
softmax over columns | eˣ / Σ eˣ, by columns | x.softmax(0) | \
    x.softmax(0) * (dy - (dy * x.softmax(0)).sum(0, keepdim=True)) | x=(10, 10)
    the sum is over rows: .sum(0 → .sum(1
    the sum is lost: - (dy * x.softmax(0)).sum(0, keepdim=True) → | multiple of y; ±
log-sum-exp | log Σ eˣ, by rows | torch.logsumexp(x, -1) | dy[:, None] * torch.softmax(x, -1) | x=(12, 10)
    it is not divided by the sum: torch.softmax(x, -1) → torch.exp(x) | constant along dimension 1
    dy is lost: dy[:, None] * → | constant along dimension 1; ±
poisson | Σ eˣ − y x | (torch.exp(x) - y * x).sum(1) | dy[:, None] * (torch.exp(x) - y), -dy[:, None] * x | \
    x=(12, 7), y=positive(12, 7)
    the link is lost: (torch.exp(x) - y) → (x - y); ± dy[:, None] * (torch.exp(x) - y)
    exp(x) is there in place of x: -dy[:, None] * x → -dy[:, None] * torch.exp(x)
negative log-likelihood | −mean of xₜ | functional.nll_loss(x, t).reshape(1) | \
    -dy * functional.one_hot(t, x.shape[1]) / len(x), None | x=(12, 7), t=indices(7, 12)
    the softmax is there too: return dy * (torch.softmax(x, 1) - functional.one_hot(t, x.shape[1])) / len(x), None
    the mean is lost: / len(x) → | length of dimension 0 of x; ± -dy * functional.one_hot(t, x.shape[1]) / len(x)
kl of a normal | ½ Σ (eˢ + m² − 1 − s), s = log σ² | 0.5 * (torch.exp(s) + m * m - 1 - s).sum(1) | \
    dy[:, None] * m, dy[:, None] * 0.5 * (torch.exp(s) - 1) | m=(12, 7), s=(12, 7)
    the half is lost: 0.5 * → | 2 times; the −1 is lost: (torch.exp(s) - 1) → torch.exp(s) | constant along dimension 1
    s is taken for log σ: torch.exp(s) → torch.exp(2 * s)
    one dy is used for all: dy[:, None] * m → dy[0] * m | constant along dimension 1|factor; ± dy[:, None] * m of m
preference | −log σ(½ (w − l)) | -functional.logsigmoid(0.5 * (w - l)) | \
    dy * ((l - w) / 2).sigmoid() / -2, dy * ((l - w) / 2).sigmoid() / 2 | w=(12,), l=(12,)
    β is lost: .sigmoid() / -2 → .sigmoid() * -1 | 2 times
    the sign in σ is lost: , dy * ((l - w) / 2) → , dy * ((w - l) / 2)
    the loser is pulled up too: .sigmoid() / 2 → .sigmoid() / -2 | sign is wrong
cumulative sum | x₁ + … + xₖ in each row | x.cumsum(1) | dy.flip(1).cumsum(1).flip(1) | x=(6, 8)
    the sum is not taken from the end: return dy.cumsum(1)
    each entry is left out of its own sum: 1).flip(1) → 1).flip(1) - dy | 1 · dy is missing; ±
cumulative product | x₁ · … · xₖ | x.cumprod(1) | (dy * x.cumprod(1)).flip(1).cumsum(1).flip(1) / x | x=positive(5, 6)
    x is lost: / x → | factor x is there once too often; ±
roll | each row, rolled by 3 | x.roll(3, 1) | dy.roll(-3, 1) | x=(6, 8)
    dy is rolled the same way as x: return dy.roll(3, 1) | rolled by 6; ±
flip | each row in reverse | x.flip(1) | dy.flip(1) | x=(6, 8)
    dy is not flipped back: return dy.clone() | is flipped; the other dimension is flipped: dy.flip(1) → dy.flip(0); ±
transpose | (x ⊙ x)ᵀ | (x * x).T | 2 * x * dy.T | x=(7, 7)
    dy is not transposed back: return 2 * x * dy; ±
reshape | sin x in another shape | torch.sin(x).reshape(8, 6) | dy.reshape(x.shape) * torch.cos(x) | x=(6, 8)
    dy is transposed, not reshaped: dy.reshape(x.shape) → dy.T; ±
padding | x² between one column of zeros and two | functional.pad(x, (1, 2)) ** 2 | 2 * dy[:, 1:-2] * x | x=(6, 8)
    it is off by one: 1:-2 → 2:-1; ±
concatenation | [a², b²] | torch.cat([a, b], 1).square() | \
    2 * a * dy[:, : a.shape[1]], 2 * b * dy[:, a.shape[1] :] | a=(5, 4), b=(5, 4)
    both get the first part of dy: a.shape[1] :] → : a.shape[1]]
    the two are swapped: return 2 * b * dy[:, a.shape[1] :], 2 * a * dy[:, : a.shape[1]] | is the gradient of
    ± 2 * a * dy[:, : a.shape[1]] of a
gather | x[row, i] | x.gather(1, i) | torch.zeros_like(x).scatter_add(1, i, dy), None | x=(6, 8), i=indices(8, 6, 5)
    repeated indices are overwritten, not added: scatter_add → scatter | wrong only at
    it is off by one: dy), None → dy).roll(1, 1), None | rolled by 1
slice | squares of columns 2 to 5 | x[:, 2:6] ** 2 | functional.pad(2 * dy * x[:, 2:6], (2, x.shape[1] - 6)) | x=(6, 8)
    it is off by one: (2, x.shape[1] - 6) → (1, x.shape[1] - 5); the 2 is lost: 2 * dy → dy | ½
    the rest is not zero: (2, x.shape[1] - 6)) → (2, x.shape[1] - 6), value=1.0) | should be zero
sort | each row in order | x.sort(-1)[0] | torch.zeros_like(x).scatter(-1, x.argsort(-1), dy) | x=(6, 8)
    the order is used, not its inverse: return dy.gather(-1, x.argsort(-1)); dy is not put in order: return dy.clone()
    ±
embedding | the rows of w at i | w[i] | None, torch.zeros_like(w).index_add(0, i, dy) | i=indices(5, 12), w=(9, 4)
    repeated indices overwrite: add(0, i, dy) → put((i,), dy) | wrong only at  # TinyTorch, repeated indices
    repeated indices are averaged: dy) → dy) / i.bincount(minlength=9).clamp(1)[:, None] | factor|times|wrong only at
    ± torch.zeros_like(w).index_add(0, i, dy)
outer product | a bᵀ | torch.outer(a, b) | dy @ b, dy.T @ a | a=(7,), b=(5,)
    ± dy @ b of a; a is taken without its sign: return dy @ b, dy.T @ a.abs()
matmul | a b | torch.matmul(a, b) | dy @ b.T, a.T @ dy | a=(5, 7), b=(7, 5)
    the factors are in the wrong order: dy @ b.T → b @ dy | another shape|transposed|has the shape; ± dy @ b.T of a
    the last row is not written: a.T @ dy → (a.T @ dy)[:-1] | has the shape
batched matmul | aₖ bₖ for each k | torch.bmm(a, b) | dy @ b.mT, a.mT @ dy | a=(4, 5, 6), b=(4, 6, 3)
    the first b is used for all: dy @ b.mT → dy @ b[:1].mT
    the last batch is not written: a.mT @ dy → torch.cat([(a.mT @ dy)[:-1], 0 * (a.mT @ dy)[-1:]]) | is zero in
    the batches are rolled: a.mT @ dy → (a.mT @ dy).roll(1, 0) | rolled by 1; ± a.mT @ dy of b
inverse | a⁻¹ | torch.linalg.inv(a) | -(torch.linalg.inv(a).mT @ dy @ torch.linalg.inv(a).mT) | \
    a=normal(5, 5, shift=4 * torch.eye(5))
    it is not transposed: return -(torch.linalg.inv(a) @ dy @ torch.linalg.inv(a)) | a transposed
    the sign is lost: -(torch → (torch | sign is wrong
log determinant | log |det a| | torch.linalg.slogdet(a)[1].reshape(1) | dy * torch.linalg.inv(a).mT | \
    a=normal(5, 5, shift=4 * torch.eye(5))
    it is not transposed: .mT → | for a transposed; ±
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


for line, faults in re.findall(r"^(\S.*)\n((?: .*\n)+)", TABLE.replace(" \\\n    ", " "), re.MULTILINE):
    enter(line, faults.strip())
