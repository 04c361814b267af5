"""The rest of backprop.py under test: its costs, its gradients of single examples, and a recording of its steps."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bp_torch import backprop
from bp_torch.network import Network, layer_views
from bp_torch.recorder import Recorder
from bp_torch.verify.backward import by_name
from bp_torch.verify.comparison import Comparison, Estimate, compare, norm
from bp_torch.verify.inputs import Tensors, flat
from bp_torch.verify.problem import autograd
from bp_torch.verify.reference_network import ReferenceNetwork
from bp_torch.verify.references import tolerance_of
from bp_torch.verify.report import Report

MOST = 7  # examples whose own gradients are compared


def check_parts(network: Network, batches: list[tuple[Tensor, Tensor]], cost: str) -> Report:
    """Costs and single examples' gradients of the last batch, and a recorded step on each batch (x, y) in turn.

    All against autograd in float64. The recorded batches come again, halved: so each size is replayed for new numbers.
    """
    x, y = batches[-1]
    examples = [(x[k : k + 1], y[k : k + 1]) for k in range(min(len(x), MOST))]
    wide = network.to(dtype=torch.float64)
    each = backprop.per_example_gradients(network, x[:MOST], y[:MOST], cost)
    costs = backprop.example_costs(backprop.forward(network, x[:MOST]), y[:MOST], cost)

    def singles(of: Network) -> tuple[Tensor, Tensor]:
        found = [reference(of, one, target, cost) for one, target in examples]
        return torch.stack([value for value, _ in found]), torch.stack([g for _, g in found])

    compared = [
        against("costs", costs, singles(wide)[0], lambda: singles(network)[0]),
        against("each example", each, singles(wide)[1], lambda: singles(network)[1]),
    ]
    step = Recorder(network.device, lambda x, y: gradient(network, x, y, cost))
    for x, y in [*batches, *((x / 2, y) for x, y in batches)]:
        right = reference(wide, x, y, cost)[1]
        own = partial(lambda x, y: reference(network, x, y, cost)[1], x, y)
        compared.append(against("recorded", step(x, y), right, own))
    return Report(compared, tolerance=tolerance_of(network.dtype), dtype=str(network.dtype).removeprefix("torch."))


def gradient(network: Network, x: Tensor, y: Tensor, cost: str) -> Tensor:
    """∇C (P,), by backprop.py."""
    return backprop.backward(network, backprop.forward(network, x), y, cost).gradient


def reference(network: Network, x: Tensor, y: Tensor, cost: str) -> tuple[Tensor, Tensor]:
    """C () and ∇C (P,) of a batch by autograd, in the network's dtype."""
    function, x = ReferenceNetwork(network, y, cost), x.to(network.dtype)

    def of_parameters(t: Tensors) -> Tensor:
        return function(**t, x=x)

    value, found, _ = autograd(of_parameters, by_name(network.weights, network.biases))
    whole = torch.zeros_like(network.parameters)
    for name, part in by_name(*layer_views(whole, network.sizes)).items():
        part.copy_(found[name])
    return value, whole


def against(name: str, ours: Tensor, right: Tensor, own: Callable[[], Tensor]) -> Comparison:
    """One comparison with autograd in float64. 8 times the error of ``own``, autograd's, is allowed."""
    expected, eps = flat(right), float(torch.finfo(ours.dtype).eps)
    tiny = 64 * torch.finfo(ours.dtype).smallest_normal * len(expected) ** 0.5
    reference = "autograd" if ours.dtype == torch.float64 else "float64"
    estimate = Estimate(reference, expected, None, norm(expected), tolerance_of(ours.dtype), tiny)

    def noise() -> float:  # the second term is of numbers near 1 that cancel, as p − y and 1 − a² do
        return 8 * norm(flat(own()) - expected) + 4 * eps * math.sqrt(len(expected))

    return compare(name, tuple(ours.shape), flat(ours), estimate, noise)
