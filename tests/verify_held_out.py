"""A second bank, which nothing was tuned on: whole backwards, each beside faults of it that are written out in full.

python -m tests.verify_held_out
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify import check_layer
from bp_torch.verify.report import Report

Case = tuple[str, Callable[..., Any], Callable[..., Any], list[Callable[..., Any]], list[Any]]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivative(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """f′ of an activation, by autograd: right by construction, and faults are made from it."""

    def prime(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(f(leaf).sum(), leaf)[0]

    return prime


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sine": torch.sin,
    "arctangent": torch.atan,
    "hyperbolic sine": torch.sinh,
    "error function": torch.erf,
    "hard tanh": functional.hardtanh,
    "selu": functional.selu,
    "hard swish": functional.hardswish,
    "celu": functional.celu,
    "tanh shrink": functional.tanhshrink,
    "log cosh": lambda x: functional.softplus(2 * x) - x,
    "gaussian": lambda x: torch.exp(-x * x),
    "sinc": lambda x: torch.sin(x) / (1 + x * x),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "squared relu": lambda x: torch.relu(x) ** 2,
    "reciprocal": lambda x: 1 / (2 + x * x),
    "log sigmoid": functional.logsigmoid,
    "soft exponential": lambda x: torch.log1p(x.abs()),
    "arsinh": torch.asinh,
    "threshold relu": lambda x: functional.threshold(x, 0.3, 0.0),
    "cosine": torch.cos,
}


FAULTS: list[Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]] = [
    lambda prime, dy, x: dy * prime(x) * 1.003,
    lambda prime, dy, x: dy * prime(1.1 * x + 0.05),
    lambda prime, dy, x: dy * prime(x) + 1e-3 * dy,
    lambda prime, dy, x: torch.where(torch.arange(x.shape[1]) == 3, 0.9, 1.0).to(x) * dy * prime(x),
]


def activations() -> Iterator[Case]:
    for k, (name, f) in enumerate(ACTIVATIONS.items()):
        prime = derivative(f)
        spoiled: list[Callable[..., Any]] = [partial(fault, prime) for fault in FAULTS[k % 4 :] + FAULTS[: k % 2]]
        yield name, f, partial(lambda prime, dy, x: dy * prime(x), prime), spoiled, [randn(11, 9, seed=k)]


def scaled_norm(x: Tensor, g: Tensor) -> Tensor:
    return x / x.abs().mean(-1, keepdim=True) * g


def scaled_norm_backward(dy: Tensor, x: Tensor, g: Tensor, fault: int = 0) -> tuple[Tensor, Tensor]:
    m = x.abs().mean(-1, keepdim=True)
    d = dy * (1 if fault == 1 else g)
    second = (d * x).sum(-1, keepdim=True) * (x if fault == 2 else torch.sign(x)) / x.shape[-1]
    dx = d / m - (0 if fault == 3 else second / (m if fault == 4 else m * m))
    return dx, (dy * x / m).sum(0) * (0.5 if fault == 5 else 1)


def gated(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(x @ w) * (x @ v)


def gated_backward(dy: Tensor, x: Tensor, w: Tensor, v: Tensor, fault: int = 0) -> tuple[Tensor, ...]:
    s, u = torch.sigmoid(x @ w), x @ v
    dz = dy * u * s * (1 if fault == 1 else 1 - s)
    du = dy * (s if fault != 2 else s.mean(-1, keepdim=True))
    dx = dz @ w.T + (0 if fault == 3 else du @ v.T)
    return dx, x.T @ (dz if fault != 4 else dz.flip(0)), x.T @ du / (len(x) if fault == 5 else 1)


def pairwise(x: Tensor) -> Tensor:
    return (x[:, None] - x[None]).square().sum(-1)


def pairwise_backward(dy: Tensor, x: Tensor, fault: int = 0) -> Tensor:
    both = dy if fault == 1 else dy + dy.T
    g = 2 * (both.sum(1, keepdim=True) * x - both @ x)
    return g if fault != 2 else 2 * (both.sum(1, keepdim=True) * x - both.T @ x) / len(x)


def attention_with_bias(q: Tensor, k: Tensor, b: Tensor) -> Tensor:
    return torch.softmax(q @ k.T + b, -1) @ k


def attention_with_bias_backward(dy: Tensor, q: Tensor, k: Tensor, b: Tensor, fault: int = 0) -> tuple[Tensor, ...]:
    p = torch.softmax(q @ k.T + b, -1)
    dp = dy @ k.T
    ds = p * (dp - (dp * p).sum(0 if fault == 1 else -1, keepdim=True))
    dk = ds.T @ q + (0 if fault == 2 else p.T @ dy)
    return ds @ k, dk, ds if fault == 3 else ds.sum(0)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), x.var(0, unbiased=False)


def moments_backward(dm: Tensor, dv: Tensor, x: Tensor, fault: int = 0) -> Tensor:
    second = 2 * dv * (x - (0 if fault == 1 else x.mean(0))) / len(x)
    return (dm if fault == 2 else dm / len(x)) + (0 if fault == 3 else second)


def einsum(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bij,bjk->bik", a, b).sin()


def einsum_backward(dy: Tensor, a: Tensor, b: Tensor, fault: int = 0) -> tuple[Tensor, Tensor]:
    g = dy * torch.einsum("bij,bjk->bik", a, b).cos()
    db = torch.einsum("bij,bik->bjk", a, g.roll(1, 0) if fault == 1 else g)
    return torch.einsum("bik,bjk->bij", g, b), db.mT if fault == 2 else db * (torch.arange(5) < 4) if fault == 3 else db


WHOLE: dict[str, tuple[Callable[..., Any], Callable[..., Any], int, list[Tensor]]] = {
    "scaled norm": (scaled_norm, scaled_norm_backward, 5, [randn(9, 8), randn(8, seed=1)]),
    "gated": (gated, gated_backward, 5, [randn(9, 6), randn(6, 5, seed=1), randn(6, 5, seed=2)]),
    "pairwise": (pairwise, pairwise_backward, 2, [randn(8, 3)]),
    "attention with bias": (
        attention_with_bias,
        attention_with_bias_backward,
        3,
        [randn(7, 4), randn(6, 4, seed=1), randn(6, seed=2)],
    ),
    "moments": (moments, moments_backward, 3, [randn(9, 5)]),
    "einsum": (einsum, einsum_backward, 3, [randn(3, 5, 5), randn(3, 5, 5, seed=1)]),
}


def cases() -> Iterator[Case]:
    """20 activations, and 6 layers at two scales."""
    yield from activations()
    for name, (f, b, n, tensors) in WHOLE.items():
        for scale in (1.0, 0.3):
            faults: list[Callable[..., Any]] = [partial(b, fault=k) for k in range(1, n + 1)]
            yield f"{name} × {scale}", f, b, faults, [scale * t for t in tensors]


def report(forward: Callable[..., Any], backward: Callable[..., Any], tensors: list[Any], dtype: torch.dtype) -> Report:
    names = [f"x{i}" for i in range(len(tensors))]
    return check_layer(forward, [t.to(dtype) for t in tensors], backward, names=names)


def score(dtype: torch.dtype) -> dict[str, int]:
    """Layers, faults, those caught, called NOISE, explained, and right backwards that are not called right."""
    found = dict.fromkeys(["layers", "faults", "caught", "noise", "explained", "alarms"], 0)
    for name, forward, right, faults, tensors in cases():
        found["layers"] += 1
        if not (passed := report(forward, right, tensors, dtype)):
            found["alarms"] += 1
            print(f"{dtype}: {name} is called {passed.verdict}")
        for number, fault in enumerate(faults, 1):
            spoiled = report(forward, fault, tensors, dtype)
            found["faults"] += 1
            found["caught"] += not spoiled.ok
            found["noise"] += spoiled.verdict == "NOISE"
            found["explained"] += bool(spoiled.diagnoses or spoiled.problems)
            if spoiled.ok:
                print(f"{dtype}: {name}, fault {number} is missed")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        print(dtype, score(dtype))
