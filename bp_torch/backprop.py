"""Backpropagation: a pass forward, a pass back, four equations (Nielsen, *Neural Networks and Deep Learning*, ch. 2).

    forward   z^l = a^(l−1) W^lᵀ + b^l,  a^l = φ(z^l),  a^0 = x
    BP1       δ^L = ∂C/∂a^L ⊙ φ′(z^L)
    BP2       δ^(l−1) = (δ^l W^l) ⊙ φ′(z^(l−1))
    BP3       ∂C/∂b^l = Σ_k δ^l_k
    BP4       ∂C/∂W^l = δ^lᵀ a^(l−1)

δ^l is ∂C/∂z^l, and C is the mean cost of a batch, whose rows k are its examples: x (…, B, n_0), targets y (…, B, n_L),
a^l and δ^l (…, B, n_l). W^l is (…, n_l, n_(l−1)), b^l (…, n_l). (…) is nothing for one network, (K,) for K networks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bp_torch.costs import Cost, find_cost
from bp_torch.network import Network, checked_examples, layer_views


class Forward(NamedTuple):
    """The results of a forward pass: [a^0, …, a^L] and z^L, the network that it went through, and its ``writes``."""

    network: Network
    activations: list[Tensor]
    z: Tensor
    writes: int | None


class Backward(NamedTuple):
    """The results of a backward pass: ∇C (…, P), in the order of θ, and [δ^1, …, δ^L]."""

    gradient: Tensor
    deltas: list[Tensor]


def forward(network: Network, x: Tensor) -> Forward:
    """Every activation for the batch x. Raises ValueError for an x of a wrong shape, dtype or device."""
    network.check_batch("x", x, network.sizes[0])
    activations = [x.detach().expand(*network.leading, *x.shape[-2:])]  # one batch may serve all K networks
    for W, b, phi in network.layers:
        z = weighted_sum(activations[-1], W, b)
        activations.append(phi.function(z))
    return Forward(network, activations, z, network.count_writes(activations))


def weighted_sum(a: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """z = a Wᵀ + b."""
    return torch.addmm(b, a, W.mT) if W.ndim == 2 else torch.baddbmm(b.unsqueeze(-2), a, W.mT)


def output_delta(cost: Cost, a: Tensor, y: Tensor, phi_prime: Tensor, examples: int) -> Tensor:
    """BP1: δ^L = ∂C/∂a^L ⊙ φ′(z^L). The 1/B of the mean over the batch is here, and only here."""
    derivative = cost.derivative(a, y) / examples
    return derivative if cost.absorbs else derivative * phi_prime


def input_gradient(delta: Tensor, W: Tensor) -> Tensor:
    """∂C/∂a^(l−1) = δ^l W^l: the sum over the neurons of layer l. In the forward pass this was z = a Wᵀ + b."""
    return torch.matmul(delta, W)


def hidden_delta(delta: Tensor, W: Tensor, phi_prime: Tensor) -> Tensor:
    """BP2: δ^(l−1) = (δ^l W^l) ⊙ φ′(z^(l−1)). In the forward pass this was a = φ(z)."""
    return input_gradient(delta, W) * phi_prime


def bias_gradient(delta: Tensor, out: Tensor) -> Tensor:
    """BP3: ∂C/∂b^l = Σ_k δ^l_k, the sum over the examples."""
    return torch.sum(delta, -2, out=out)


def weight_gradient(delta: Tensor, a: Tensor, out: Tensor) -> Tensor:
    """BP4: ∂C/∂W^l = δ^lᵀ a^(l−1). The product sums over the examples."""
    return torch.matmul(delta.mT, a, out=out)


def backward(
    network: Network, passed: Forward, y: Tensor, cost: str = "quadratic", examples: int = 0, out: Tensor | None = None
) -> Backward:
    """∇C of the batch that went forward, for its targets y, written into ``out`` (…, P) if that is given.

    ``examples`` is the B of the mean where y is a shard of a larger batch; 0: as many as y has. Raises ValueError.
    """
    network.check_batch("y", y, network.sizes[-1], rows=passed.z.shape[-2])
    network.check_passed(passed.network, passed.activations, passed.writes, out)
    examples = checked_examples(examples or y.shape[-2])
    a, layers, y = passed.activations, network.layers, y.detach()
    gradient = torch.empty_like(network.parameters) if out is None else out
    dW, db = layer_views(gradient, network.sizes)
    cost_used, phi_prime = find_cost(cost, network.output_activation), layers[-1].phi.derivative(a[-1])
    deltas = [delta := output_delta(cost_used, a[-1], y, phi_prime, examples)]  # BP1
    for l in reversed(range(network.depth)):
        bias_gradient(delta, out=db[l])  # BP3
        weight_gradient(delta, a[l], out=dW[l])  # BP4
        if l > 0:
            delta = hidden_delta(delta, layers[l].W, layers[l - 1].phi.derivative(a[l]))  # BP2
            deltas.insert(0, delta)
    return Backward(gradient, deltas)


def example_costs(passed: Forward, y: Tensor, cost: str = "quadratic") -> Tensor:
    """C_k of every example, (…, B); C is their mean. Raises ValueError for an unknown cost or a y of another shape."""
    passed.network.check_batch("y", y, passed.z.shape[-1], rows=passed.z.shape[-2])
    return find_cost(cost).value(passed.z, passed.activations[-1], y)


def per_example_gradients(network: Network, x: Tensor, y: Tensor, cost: str = "quadratic") -> Tensor:
    """∂C_k/∂θ of each example alone, (…, B, P): BP3 and BP4 without their sums. The mean over the batch is ∇C."""
    passed = forward(network, x)
    gradients = x.new_empty(*passed.z.shape[:-1], network.parameters.shape[-1])
    dW, db = layer_views(gradients, network.sizes)
    for l, delta in enumerate(backward(network, passed, y, cost, examples=1).deltas):
        db[l].copy_(delta)
        torch.mul(delta.unsqueeze(-1), passed.activations[l].unsqueeze(-2), out=dW[l])
    return gradients
