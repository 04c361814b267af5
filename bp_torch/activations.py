"""The activations φ and their derivatives φ′, the latter taken from the saved output a = φ(z).

All four functions here are monotone, so that a says all about z that φ′ needs: z need not be kept. Nothing here knows
of layers, batches or costs.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ActivationName = Literal["sigmoid", "relu", "tanh", "identity"]


class Activation(NamedTuple):
    """φ and φ′, both element by element, both written into ``out`` (any shape) and returned.

    ``function(z, out)`` gives a = φ(z), and may work in place; ``derivative(a, out)`` gives φ′(z) out of a = φ(z).
    """

    function: Callable[[Tensor, Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]


def sigmoid(z: Tensor, out: Tensor) -> Tensor:
    """σ(z) = 1 / (1 + e^−z): any weighted sum, squeezed between 0 and 1."""
    return torch.sigmoid(z, out=out)


def sigmoid_derivative(a: Tensor, out: Tensor) -> Tensor:
    """σ′(z) = σ(z) (1 − σ(z)) = a − a²."""
    return torch.addcmul(a, a, a, value=-1, out=out)


def relu(z: Tensor, out: Tensor) -> Tensor:
    """max(0, z)."""
    return torch.clamp_min(z, 0, out=out)


def relu_derivative(a: Tensor, out: Tensor) -> Tensor:
    """1 where z > 0, that is where a > 0, else 0. At z = 0 it is 0, as autograd has it."""
    return torch.gt(a, 0, out=out)


def tanh(z: Tensor, out: Tensor) -> Tensor:
    """tanh(z) = 2σ(2z) − 1."""
    return torch.tanh(z, out=out)


def tanh_derivative(a: Tensor, out: Tensor) -> Tensor:
    """tanh′(z) = 1 − tanh²(z) = 1 − a²."""
    return torch.mul(a, a, out=out).neg_().add_(1)


def identity(z: Tensor, out: Tensor) -> Tensor:
    """Z itself: a linear layer."""
    return z if z is out else out.copy_(z)


def identity_derivative(a: Tensor, out: Tensor) -> Tensor:
    """1 everywhere."""
    return out.fill_(1)


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(sigmoid, sigmoid_derivative),
    "relu": Activation(relu, relu_derivative),
    "tanh": Activation(tanh, tanh_derivative),
    "identity": Activation(identity, identity_derivative),
}
