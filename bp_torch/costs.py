"""The cost C_k of one example and its derivative, from the last layer: z, a and the targets y, each (…, B, n_L)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Cost(NamedTuple):
    """``value(z, a, y)`` is C_k of each example, (…, B); ``derivative(a, y)`` is ∂C_k/∂a, (…, B, n_L).

    A cost that ``absorbs`` an output activation requires it: φ′ cancels, and its ``derivative`` is ∂C_k/∂z.
    """

    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    absorbs: str | None = None


def quadratic(z: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """C_k = Σ_j (a_j − y_j)², the sum of the squared differences, without a ½."""
    return (a - y).square().sum(-1)


def quadratic_derivative(a: Tensor, y: Tensor) -> Tensor:
    """∂C_k/∂a = 2 (a − y)."""
    return 2 * (a - y)


def binary_cross_entropy(z: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """C_k = −Σ_j [y_j ln a_j + (1 − y_j) ln(1 − a_j)], as Σ_j [ln(1 + e^z_j) − y_j z_j], finite for any z."""
    return (torch.logaddexp(z, torch.zeros_like(z)) - y * z).sum(-1)


def binary_cross_entropy_derivative(a: Tensor, y: Tensor) -> Tensor:
    """∂C_k/∂z = a − y: σ′ cancels (Nielsen, ch. 3, eq. 67)."""
    return a - y


def softmax_cross_entropy(z: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """C_k = −Σ_j y_j ln p_j with p = softmax(a): the outputs a are scores."""
    return -(y * torch.log_softmax(a, -1)).sum(-1)


def softmax_cross_entropy_derivative(a: Tensor, y: Tensor) -> Tensor:
    """∂C_k/∂a = p Σ_j y_j − y, which is p − y where the targets of an example add up to 1."""
    return torch.softmax(a, -1) * y.sum(-1, keepdim=True) - y


COSTS: dict[str, Cost] = {
    "quadratic": Cost(quadratic, quadratic_derivative),
    "binary-cross-entropy": Cost(binary_cross_entropy, binary_cross_entropy_derivative, absorbs="sigmoid"),
    "softmax-cross-entropy": Cost(softmax_cross_entropy, softmax_cross_entropy_derivative),
}


def find_cost(name: str, output_activation: str | None = None) -> Cost:
    """The cost called ``name``. Raises ValueError if there is none, or if it does not fit the output activation."""
    if name not in COSTS:
        raise ValueError(f"unknown cost {name!r}: choose from {', '.join(COSTS)}")
    if output_activation is not None and COSTS[name].absorbs not in (None, output_activation):
        raise ValueError(f"{name} needs {COSTS[name].absorbs} outputs, the network has {output_activation}")
    return COSTS[name]
