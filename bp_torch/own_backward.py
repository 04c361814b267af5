"""This project's own backward put to ``verify``: backprop.py on a batch, and the live gradient of a training step.

The references are computed by torch's own operations, none of them from backprop.py. A wrong gradient of ``check_own``
is compared with what it would be after each mistake that one can make in backprop.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch import backprop
from bp_torch.backprop import backward, forward
from bp_torch.convert import MODULES, FromTable
from bp_torch.costs import find_cost
from bp_torch.network import Network, layer_views
from bp_torch.recorder import Recorder
from bp_torch.verify.check import check
from bp_torch.verify.problem import Tensors, autograd, flat, norm
from bp_torch.verify.references import tolerance_of
from bp_torch.verify.report import Allowance, Comparison, Estimate, Report, compare

MOST_EXAMPLES = 7  # whose own gradients are compared
FOLLOWS = "follows correctly from a wrong δ"

Mistakes = Iterator[tuple[str, Tensor]]


def check_own(network: Network, x: Tensor, y: Tensor, cost: str, **options: Any) -> Report:
    """``check``, with its options, of backprop.py on the batch x (B, n_0), y (B, n_L): by W^l, b^l, z^l (δ^l) and x."""
    inputs: Tensors = {}
    for n in range(network.depth, 0, -1):  # in the order in which backprop computes their gradients
        W, b = network.weights[n - 1], network.biases[n - 1]
        inputs |= {f"δ{n}": W.new_zeros(len(x), len(b)), f"b{n}": b, f"W{n}": W}
    inputs["x"] = x
    reference, own = ReferenceNetwork(network, y, cost), own_backward(network, y, cost)
    return check(reference, inputs, own, batch_size=len(x), hypotheses=partial(mistakes, reference, inputs), **options)


def check_step(
    network: Network, x: Tensor, y: Tensor, cost: str, gradient: Tensor, *, tolerance: float | None = None
) -> Report:
    """The live ``gradient`` (P,) of a training step against autograd, in the same dtype and in float64.

    The mini-batch x (B, n_0), y (B, n_L) and the parameters must be those that it was computed with: call this before
    the step. Nothing is kept or changed. Raises ValueError if parameters or cost are not finite.
    """
    with torch.inference_mode(False):
        x, y, parameters = x.clone(), y.clone(), by_name(network.weights, network.biases)
    function = partial(ReferenceNetwork(network, y, cost), x=x)
    given = by_name(*layer_views(gradient, network.sizes))
    return check(function, parameters, given, tolerance=tolerance, coordinates=0, batch_size=len(x))


def check_parts(network: Network, batches: list[tuple[Tensor, Tensor]], cost: str) -> Report:
    """Costs and single examples' gradients of the last batch, and a recorded step on each batch (x, y), by float64."""
    x, y = batches[-1][0][:MOST_EXAMPLES], batches[-1][1][:MOST_EXAMPLES]
    in_float64 = network.to(dtype=torch.float64)

    def one_by_one(of: Network) -> tuple[Tensor, Tensor]:
        found = [by_autograd(of, x[k : k + 1], y[k : k + 1], cost) for k in range(len(x))]
        return torch.stack([value for value, _ in found]), torch.stack([g for _, g in found])

    def each_through_outputs() -> Tensor:
        return torch.stack([through_outputs(in_float64, x[k : k + 1], y[k : k + 1], cost) for k in range(len(x))])

    each = backprop.per_example_gradients(network, x, y, cost)
    costs = backprop.example_costs(forward(network, x), y, cost)
    right_costs, right_each = one_by_one(in_float64)
    compared = [
        against_float64("costs", costs, right_costs, lambda: one_by_one(network)[0]),
        against_float64("each example", each, right_each, lambda: one_by_one(network)[1], each_through_outputs),
    ]
    step = Recorder(network.device, lambda x, y: backward(network, forward(network, x), y, cost).gradient)
    for x, y in [*batches, *((x / 2, y) for x, y in batches)]:  # each size is recorded, then replayed for new numbers
        right = by_autograd(in_float64, x, y, cost)[1]
        same_dtype = partial(lambda x, y: by_autograd(network, x, y, cost)[1], x, y)
        through = partial(through_outputs, in_float64, x, y, cost)
        compared.append(against_float64("recorded", step(x, y), right, same_dtype, through))
    return Report(compared, tolerance=tolerance_of(network.dtype), dtype=str(network.dtype).removeprefix("torch."))


def against_float64(
    name: str, ours: Tensor, right: Tensor, same_dtype: Callable[[], Tensor], through: Callable[[], Tensor] = Tensor
) -> Comparison:
    """One comparison with autograd in float64. 8 times autograd's own error in the ``same_dtype`` is allowed.

    In float64 that is not known: what a few ε in every δ^L cause is allowed, by ``through``, which is for errors of 1.
    """
    expected, eps = flat(right), float(torch.finfo(ours.dtype).eps)
    tiny = 64 * torch.finfo(ours.dtype).smallest_normal
    reference = "autograd" if ours.dtype == torch.float64 else "float64"
    estimate = Estimate(reference, expected, None, norm(expected), tolerance_of(ours.dtype), tiny)

    def noise() -> Allowance:  # the second term is of numbers near 1 that cancel, as p − y and 1 − a² do
        near_1 = math.sqrt(len(expected)) + (norm(flat(through())) if ours.dtype == torch.float64 else 0.0)
        return 0.0, 8 * norm(flat(same_dtype()) - expected) + 4 * eps * near_1

    return compare(name, tuple(ours.shape), flat(ours), estimate, noise)


def by_autograd(network: Network, x: Tensor, y: Tensor, cost: str) -> tuple[Tensor, Tensor]:
    """C () and ∇C (P,) of a batch by autograd, in the network's dtype."""
    return value_and_gradient(network, partial(ReferenceNetwork(network, y, cost), x=x))


def through_outputs(network: Network, x: Tensor, y: Tensor, cost: str) -> Tensor:
    """The gradient (P,) of the mean over the examples of Σ_j z^L_j: ∇C, if every ∂C_k/∂z^L_j were 1."""
    reference = ReferenceNetwork(network, y, cost)
    return value_and_gradient(network, lambda **t: reference.layers({**t, "x": x})[0][-1].sum() / len(x))[1]


def value_and_gradient(network: Network, function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """The value () and the gradient (P,) by autograd of a ``function`` of W1, b1, …, at those of the ``network``."""
    value, found, _ = autograd(lambda t: function(**t), by_name(network.weights, network.biases))
    return value, torch.cat([g.reshape(-1) for g in found.values()])


def by_name(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensors:
    """W1, b1, W2, b2, …"""
    pairs = enumerate(zip(weights, biases, strict=True), 1)
    return {name: t for n, (W, b) in pairs for name, t in ((f"W{n}", W), (f"b{n}", b))}


def own_backward(network: Network, y: Tensor, cost: str) -> Callable[..., Tensors]:
    """backprop.py as a hand-written gradient for ``check``. It writes each gradient into the same vector."""
    own = network.to()
    out = torch.zeros_like(own.parameters)

    def gradients(**t: Tensor) -> Tensors:
        for name, parameter in by_name(own.weights, own.biases).items():
            parameter.copy_(t[name])
        gradient, deltas = backward(own, forward(own, t["x"]), y, cost, out=out)
        found = by_name(*layer_views(gradient.clone(), own.sizes))
        found |= {f"δ{n}": delta for n, delta in enumerate(deltas, 1)}
        return found | {"x": backprop.input_gradient(deltas[0], own.weights[0])}

    return gradients


# ---- the reference: a network and its cost in torch's own differentiable operations ----

REFERENCE_COSTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "quadratic": lambda z, a, y: functional.mse_loss(a, y, reduction="sum") / len(y),
    "binary-cross-entropy": lambda z, a, y: functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(y),
    "softmax-cross-entropy": lambda z, a, y: functional.cross_entropy(a, y),
}
"""torch's own cost of a batch, from z^L, a^L and y. A cost that is not listed is differentiated as costs.py has it."""


class ReferenceNetwork:
    """The cost of one batch as a function of W1, b1, δ1, …, x. The δ are zeros that are added to z^l, (B, n_l)."""

    def __init__(self, network: Network, y: Tensor, cost: str) -> None:
        """Raise ValueError for a cost that does not fit the network."""
        names = [network.activation_of(layer) for layer in range(network.depth)]
        self.phi: list[Callable[[Tensor], Tensor]] = [MODULES.get(n, partial(FromTable, n))().forward for n in names]
        self.absorbs = bool(find_cost(cost, network.output_activation).absorbs)  # the derivative is by z^L, not a^L
        self._y, self._cost = y, cost

    def __call__(self, **t: Tensor) -> Tensor:
        """C, ()."""
        z, a = self.layers(t)
        return self.cost(z[-1], a[-1])

    def cost(self, z: Tensor, a: Tensor) -> Tensor:
        """C, (), from z^L and a^L."""
        y = self._y.to(a)
        if self._cost in REFERENCE_COSTS:
            return REFERENCE_COSTS[self._cost](z, a, y)
        return find_cost(self._cost).value(z, a, y).mean()

    def layers(self, t: Tensors) -> tuple[list[Tensor], list[Tensor]]:
        """[z^1, …, z^L] and [a^0, …, a^L], in the dtype of W1."""
        sums, activations = [], [t["x"].to(t["W1"].dtype)]
        for n, phi in enumerate(self.phi, 1):
            z = functional.linear(activations[-1], t[f"W{n}"], t[f"b{n}"])
            sums.append(z + t[f"δ{n}"] if f"δ{n}" in t else z)
            activations.append(phi(sums[-1]))
        return sums, activations


# ---- the mistakes that one can make in backprop.py, and the gradients that they give ----


def mistakes(reference: ReferenceNetwork, inputs: Tensors, name: str, given: Tensors) -> Mistakes:
    """The gradient ``name`` with one mistake in it, for each mistake, computed from the δ that it was made from.

    These are among the gradients ``given``, so what is computed from a wrong δ is recognised as following from it.
    """
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
        mean = "is the mean over the batch, not the sum: 1/B is in δ already (bias_gradient, BP3)"
        one = "is the δ of one example, not the sum over the batch (bias_gradient, BP3)"
        delta = deltas[n - 1]
        return iter([(FOLLOWS, delta.sum(0)), (mean, delta.mean(0)), *((one, example) for example in delta)])
    if name[0] == "W":
        return in_weight_gradient(deltas[n - 1], a[n - 1], a[n], z[n - 2] if n > 1 else None)
    return iter([(FOLLOWS, deltas[0] @ t["W1"])])


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


def in_weight_gradient(delta: Tensor, before: Tensor, own: Tensor, z: Tensor | None) -> Mistakes:
    """BP4, with the activations before the weights, those of their ``own`` layer, and z before (None in layer 1)."""
    yield FOLLOWS, delta.T @ before
    if z is not None:
        yield "has z in place of the activations before it (weight_gradient, BP4)", delta.T @ z
    if own.shape == before.shape:
        yield "has the activations of its own layer, not of the one before (weight_gradient, BP4)", delta.T @ own
    for d, a in zip(delta, before, strict=True):
        yield "is that of one example, not the sum over the batch (weight_gradient, BP4)", torch.outer(d, a)
