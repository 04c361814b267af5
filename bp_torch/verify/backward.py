"""This project's own backward under test: backprop.py on one batch, and the live gradient of a training step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bp_torch import backprop
from bp_torch.network import Network, layer_views
from bp_torch.verify.check import check
from bp_torch.verify.inputs import Tensors
from bp_torch.verify.mistakes import mistakes
from bp_torch.verify.reference_network import ReferenceNetwork
from bp_torch.verify.report import Report


def check_own(network: Network, x: Tensor, y: Tensor, cost: str, **options: Any) -> Report:
    """``check`` of backprop.py on the batch x (B, n_0), y (B, n_L): the gradients of W^l, b^l, z^l (δ^l) and x.

    ``options`` are tolerance, coordinates and seed of ``check``, and the errors are those of ``check``.
    """
    inputs: Tensors = {}
    for n in range(network.depth, 0, -1):  # in the order in which backprop computes their gradients
        W, b = network.weights[n - 1], network.biases[n - 1]
        inputs |= {f"δ{n}": W.new_zeros(len(x), len(b)), f"b{n}": b, f"W{n}": W}
    inputs["x"] = x
    reference = ReferenceNetwork(network, y, cost)
    own = OwnBackward(network, y, cost)
    return check(reference, inputs, own, batch_size=len(x), hypotheses=mistakes(reference, inputs), **options)


def check_step(
    network: Network, x: Tensor, y: Tensor, cost: str, gradient: Tensor, *, tolerance: float | None = None
) -> Report:
    """The live ``gradient`` (P,) of a training step against autograd, in the same dtype and in float64.

    x (B, n_0) and y (B, n_L) are the mini-batch that the gradient was computed from, and the network's parameters must
    be those that it was computed with: call this before the step. Nothing is kept or changed. Raises ValueError if
    parameters or cost are not finite.
    """
    with torch.inference_mode(False):
        x, y, parameters = x.clone(), y.clone(), by_name(network.weights, network.biases)
    reference = ReferenceNetwork(network, y, cost)

    def function(**t: Tensor) -> Tensor:
        return reference(**t, x=x.to(t["W1"].dtype))

    given = by_name(*layer_views(gradient, network.sizes))
    return check(function, parameters, given, tolerance=tolerance, coordinates=0, batch_size=len(x))


class OwnBackward:
    """backprop.py as a hand-written gradient for ``check``. It writes each gradient into the same vector."""

    def __init__(self, network: Network, y: Tensor, cost: str) -> None:
        """For batches with the targets ``y``."""
        self.network, self.y, self.cost = network.to(), y, cost
        self.gradient = torch.zeros_like(self.network.parameters)

    def __call__(self, **t: Tensor) -> Tensors:
        """Every gradient, under its name."""
        for name, own in by_name(self.network.weights, self.network.biases).items():
            own.copy_(t[name])
        passed = backprop.forward(self.network, t["x"])
        gradient, deltas = backprop.backward(self.network, passed, self.y, self.cost, out=self.gradient)
        found = by_name(*layer_views(gradient.clone(), self.network.sizes))
        found |= {f"δ{n}": delta for n, delta in enumerate(deltas, 1)}
        return found | {"x": backprop.input_gradient(deltas[0], self.network.weights[0])}


def by_name(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensors:
    """W1, b1, W2, b2, …"""
    pairs = enumerate(zip(weights, biases, strict=True), 1)
    return {name: t for n, (W, b) in pairs for name, t in ((f"W{n}", W), (f"b{n}", b))}
