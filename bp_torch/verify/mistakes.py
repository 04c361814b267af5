"""The mistakes that one can make in backprop.py, and the gradients that they give."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bp_torch.verify.diagnoses import Hypotheses
from bp_torch.verify.inputs import Tensors
from bp_torch.verify.problem import autograd
from bp_torch.verify.reference_network import ReferenceNetwork

Mistakes = Iterator[tuple[str, Tensor]]

FOLLOWS = "follows correctly from a wrong δ"


def mistakes(reference: ReferenceNetwork, inputs: Tensors) -> Hypotheses:
    """What each of backprop's gradients would be with one mistake in it, computed from the δ that it was made from.

    The δ are those of the backward under test: so a mistake is found where it is made, and what is computed from a
    wrong δ afterwards is recognised as following from it.
    """

    def hypotheses(name: str, given: Tensors) -> Mistakes:
        t = {key: value.detach().cpu().double() for key, value in inputs.items()}
        z, a = reference.layers(t)  # z[0] is z^1, a[0] is x, deltas[0] is δ^1
        deltas = [given[f"δ{n}"].detach().cpu().double() for n in range(1, len(z) + 1)]
        n = int(name[1:] or 0)
        if name == f"δ{len(z)}":
            return in_output_delta(reference, z[-1], a[-1])
        if name[0] == "δ":
            phi, phi_behind = reference.phi[n - 1 : n + 1]
            primes = phi_prime(phi, z[n - 1]), phi_prime(phi, a[n]), phi_prime(phi_behind, z[n])
            return in_hidden_delta(deltas[n], t[f"W{n + 1}"], *primes)
        if name[0] == "b":
            return in_bias_gradient(deltas[n - 1])
        if name[0] == "W":
            return in_weight_gradient(deltas[n - 1], a[n - 1], a[n], z[n - 2] if n > 1 else None)
        return iter([(FOLLOWS, deltas[0] @ t["W1"])])

    return hypotheses


def phi_prime(phi: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """φ′(z), by autograd."""
    return autograd(lambda t: phi(t["z"]).sum(), {"z": z})[1]["z"]


def in_output_delta(reference: ReferenceNetwork, z: Tensor, a: Tensor) -> Mistakes:
    """BP1."""
    phi = reference.phi[-1]
    if not reference.absorbs:
        derivative = autograd(lambda t: reference.cost(z, t["a"]), {"a": a})[1]["a"]
        yield "φ′(z) is missing (output_delta, BP1)", derivative
        yield "φ′ is evaluated at a, not at z (output_delta, BP1)", derivative * phi_prime(phi, a)
    right = autograd(lambda t: reference.cost(t["z"], phi(t["z"])), {"z": z})[1]["z"]
    yield "there is one φ′(z) too many (output_delta, BP1)", right * phi_prime(phi, z)


def in_hidden_delta(delta: Tensor, W: Tensor, prime: Tensor, prime_at_a: Tensor, prime_behind: Tensor) -> Mistakes:
    """BP2, from the δ and W of layer l; ``prime`` is φ′(z^(l−1)), ``prime_behind`` φ′(z^l)."""
    back = delta @ W
    yield FOLLOWS, back * prime
    yield "φ′(z) is missing (hidden_delta, BP2)", back
    yield "φ′(z) is there twice (hidden_delta, BP2)", back * prime * prime
    yield "φ′ is evaluated at a, not at z (hidden_delta, BP2)", back * prime_at_a
    if back.shape == delta.shape:
        yield "W is transposed (input_gradient, BP2)", delta @ W.T * prime
        yield "φ′ is that of the layer behind (hidden_delta, BP2)", back * prime_behind
        yield "the product with W is missing (input_gradient, BP2)", delta * prime


def in_bias_gradient(delta: Tensor) -> Mistakes:
    """BP3."""
    yield FOLLOWS, delta.sum(0)
    yield "is the mean over the batch, not the sum: 1/B is in δ already (bias_gradient, BP3)", delta.mean(0)
    for one in delta:
        yield "is the δ of one example, not the sum over the batch (bias_gradient, BP3)", one


def in_weight_gradient(delta: Tensor, before: Tensor, own: Tensor, z: Tensor | None) -> Mistakes:
    """BP4, with the activations before the weights, those of their ``own`` layer, and z before (None in layer 1)."""
    yield FOLLOWS, delta.T @ before
    if z is not None:
        yield "has z in place of the activations before it (weight_gradient, BP4)", delta.T @ z
    if own.shape == before.shape:
        yield "has the activations of its own layer, not of the one before (weight_gradient, BP4)", delta.T @ own
    for d, a in zip(delta, before, strict=True):
        yield "is that of one example, not the sum over the batch (weight_gradient, BP4)", torch.outer(d, a)
