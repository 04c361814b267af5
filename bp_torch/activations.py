"""The activations φ and their derivatives φ′, element by element. φ′(z) is computed from the output a = φ(z)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

A, S = 1.7159, 2 / 3  # φ(z) = A tanh(S z), which is ±1 at ±1 (LeCun et al. 1998, appendix A)


class Activation(NamedTuple):
    """φ and φ′: ``function(z)`` is a = φ(z), ``derivative(a)`` is φ′(z), for tensors of any shape."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


def sigmoid_derivative(a: Tensor) -> Tensor:
    """σ′(z) = σ(z) (1 − σ(z)) = a − a²."""
    return torch.addcmul(a, a, a, value=-1)


def tanh_derivative(a: Tensor) -> Tensor:
    """tanh′(z) = 1 − tanh²(z) = 1 − a²."""
    return (a * a).neg_().add_(1)


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(torch.sigmoid, sigmoid_derivative),
    "relu": Activation(torch.relu, torch.sign),  # φ′ is 1 where a > 0, else 0; at z = 0 it is 0, as in autograd
    "tanh": Activation(torch.tanh, tanh_derivative),
    "scaled-tanh": Activation(lambda z: A * torch.tanh(S * z), lambda a: A * S * tanh_derivative(a / A)),
    "identity": Activation(lambda z: z, lambda a: a**0),  # φ′ is 1 everywhere
}
