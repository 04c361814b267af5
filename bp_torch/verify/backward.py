"""This project's own backward as something to check: its reference by torch's own operations, and its own mistakes."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from bp_torch import backprop
from bp_torch.costs import COSTS
from bp_torch.data import PIXEL_SCALE
from bp_torch.network import MODULES, Network, layer_views
from bp_torch.verify.check import check
from bp_torch.verify.diagnoses import Hypotheses
from bp_torch.verify.inputs import Tensors
from bp_torch.verify.report import Report
from bp_torch.verify.witnesses import autograd

REFERENCE_COSTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "quadratic": lambda z, a, y: functional.mse_loss(a, y, reduction="sum") / len(y),
    "binary-cross-entropy": lambda z, a, y: functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(y),
    "softmax-cross-entropy": lambda z, a, y: functional.cross_entropy(a, y),
}
"""torch's own cost of a batch, a function of z^L, a^L and y. A cost not listed is differentiated as costs.py has it."""


def check_own(network: Network, x: Tensor, y: Tensor, cost: str, **options: float | None) -> Report:
    """``check`` of backprop.py on one batch: W^l, b^l, δ^l and x. x (B, n_0) is scaled to 0..1, y is (B, n_L).

    ``options`` are tolerance, coordinates and seed of ``check``, and what is raised is.
    """
    inputs: Tensors = {}
    for n in range(network.depth, 0, -1):  # in the order in which backprop comes by them
        w, b = network.weights[n - 1], network.biases[n - 1]
        inputs |= {f"δ{n}": w.new_zeros(len(x), len(b)), f"b{n}": b, f"W{n}": w}
    inputs["x"] = x
    return check(
        Reference(network, y, cost),
        inputs,
        OwnBackward(network, y, cost),
        batch_size=len(x),
        hypotheses=slips(network, inputs, y, cost),
        **options,  # type: ignore[arg-type]
    )


def check_step(
    network: Network,
    x: Tensor,
    y: Tensor,
    cost: str,
    x_scale: float,
    gradient: Tensor,
    *,
    tolerance: float | None = None,
) -> Report:
    """The live ``gradient`` (P,) of a training step against autograd, in the same dtype and in float64.

    For the mini-batch x (B, n_0), not yet scaled, and y (B, n_L) that the gradient was computed from, with the
    parameters still as they were then: call it before the step. Nothing of it is kept or changed. Raises ValueError
    where parameters or cost are not finite.
    """
    with torch.inference_mode(False):
        x, y, parameters = x.clone() * x_scale, y.clone(), _parameters((network.weights, network.biases))
    reference = Reference(network, y, cost)

    def function(**t: Tensor) -> Tensor:
        return reference(**t, x=x.to(t["W1"].dtype))

    given = _parameters(layer_views(gradient, network.sizes))
    return check(function, parameters, given, tolerance=tolerance, coordinates=0, batch_size=len(x))


def _parameters(views: tuple[list[Tensor], list[Tensor]]) -> Tensors:
    """W1, b1, W2, b2, …"""
    pairs = enumerate(zip(*views, strict=True), 1)
    return {name: t for n, (w, b) in pairs for name, t in ((f"W{n}", w), (f"b{n}", b))}


class Reference:
    """A network's cost of one batch in plain differentiable operations, none of them from backprop.py.

    It is a function of W1, b1, δ1, …, x. The δ are probes: zeros (B, n_l) added to the weighted sums z^l, so that the
    derivative with respect to them is ∂C/∂z^l.
    """

    def __init__(self, network: Network, y: Tensor, cost: str) -> None:
        """Raise ValueError for an activation that network.py gives no torch module of."""
        names = [network.activation_of(layer) for layer in range(network.depth)]
        if missing := set(names) - set(MODULES):
            raise ValueError(f"no reference for {', '.join(missing)}: add its torch module to MODULES in network.py")
        self.phi: list[Callable[[Tensor], Tensor]] = [MODULES[name]().forward for name in names]
        self.y = y
        self.cost: Callable[[Tensor, Tensor, Tensor], Tensor] = REFERENCE_COSTS.get(
            cost, lambda z, a, y: COSTS[cost].per_example(z, a, y).mean()
        )

    def __call__(self, **t: Tensor) -> Tensor:
        """C, ()."""
        z, a = self.layers(t)
        return self.cost(z[-1], a[-1], self.y.to(a[-1].dtype))

    def layers(self, t: Tensors) -> tuple[list[Tensor], list[Tensor]]:
        """[z^1, …, z^L] and [a^0, …, a^L]."""
        sums, activations = [], [t["x"]]
        for n, phi in enumerate(self.phi, 1):
            z = functional.linear(activations[-1], t[f"W{n}"], t[f"b{n}"])
            sums.append(z + t[f"δ{n}"] if f"δ{n}" in t else z)
            activations.append(phi(sums[-1]))
        return sums, activations


class OwnBackward:
    """backprop.py as a hand-written gradient for ``check``: one trace, used again and again as in training."""

    def __init__(self, network: Network, y: Tensor, cost: str) -> None:
        """For batches of ``len(y)`` examples; the inputs come scaled, and go in as training has them."""
        self.network, self.y, self.cost = network.to(), y, cost
        self.trace = backprop.Trace(self.network, len(y), PIXEL_SCALE)

    def __call__(self, **t: Tensor) -> Tensors:
        """Every gradient, under its name."""
        for name, own in _parameters((self.network.weights, self.network.biases)).items():
            own.copy_(t[name])
        trace = backprop.forward(self.network, t["x"] / PIXEL_SCALE, self.trace)
        gradient = backprop.backward(self.network, trace, self.y, self.cost)
        found = _parameters(layer_views(gradient.clone(), self.network.sizes))
        found |= {f"δ{n}": delta.clone() for n, delta in enumerate(trace.deltas, 1)}
        return found | {"x": backprop.input_gradient(self.network, trace)}


# ---- the slips that one can make in backprop.py ----

FOLLOWS = "right for the δ that it was given, which is wrong"


def slips(network: Network, inputs: Tensors, y: Tensor, cost: str) -> Hypotheses:
    """What each of backprop's gradients would be if one thing were wrong, out of the δ that it was made from.

    With the δ as the hand-written backward has it, an error is found where it is made; what comes after it on the way
    back then is right for what it was given.
    """

    def hypotheses(name: str, given: Tensors) -> Iterator[tuple[str, Tensor]]:
        t = {key: value.detach().cpu().double() for key, value in inputs.items()}
        reference = Reference(network, y.cpu().double(), cost)
        z, a = reference.layers(t)
        deltas = [given[f"δ{n}"].detach().cpu().double() for n in range(1, network.depth + 1)]
        n = int(name[1:] or 0)
        if name == f"δ{network.depth}":
            yield from output_slips(reference, z[-1], a[-1], bool(COSTS[cost].absorbs))
        elif name[0] == "δ":
            here, behind = reference.phi[n - 1], reference.phi[n]
            slopes = _slope(here, z[n - 1]), _slope(here, a[n]), _slope(behind, z[n])
            yield from hidden_slips(deltas[n], t[f"W{n + 1}"], *slopes)
        elif name[0] == "b":
            yield from bias_slips(deltas[n - 1])
        elif name[0] == "W":
            yield from weight_slips(deltas[n - 1], a[n - 1], a[n], z[n - 2] if n > 1 else None)
        else:
            right = deltas[0] @ t["W1"]
            yield FOLLOWS, right
            yield "is scaled as the pixels are (input_gradient)", right * PIXEL_SCALE

    return hypotheses


def _slope(phi: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """φ′(z)."""
    return autograd(lambda t: phi(t["z"]).sum(), {"z": z})[1]["z"]


def output_slips(reference: Reference, z: Tensor, a: Tensor, absorbs: bool) -> Iterator[tuple[str, Tensor]]:
    """In BP1."""
    phi, cost, y = reference.phi[-1], reference.cost, reference.y
    slope = _slope(phi, z)
    if not absorbs:
        error = autograd(lambda t: cost(z, t["a"], y), {"a": a})[1]["a"]
        yield "the slope φ′(z) is missing (output_delta, BP1)", error
        yield "the slope φ′ is taken at a, not at z (output_delta, BP1)", error * _slope(phi, a)
    right = autograd(lambda t: cost(t["z"], phi(t["z"]), y), {"z": z})[1]["z"]
    yield "there is one slope φ′(z) too many (output_delta, BP1)", right * slope


def hidden_slips(
    delta: Tensor, w: Tensor, slope: Tensor, slope_at_a: Tensor, slope_behind: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """In BP2, from the δ (B, n_l) and W of the layer behind."""
    back = delta @ w
    yield FOLLOWS, back * slope
    yield "the slope φ′(z) is missing (hidden_delta, BP2)", back
    yield "the slope φ′(z) is there twice (hidden_delta, BP2)", back * slope * slope
    yield "the slope φ′ is taken at a, not at z (hidden_delta, BP2)", back * slope_at_a
    if back.shape == delta.shape:
        yield "W is transposed (desires, BP2)", delta @ w.T * slope
        yield "the slope φ′ is that of the layer behind (hidden_delta, BP2)", back * slope_behind
        yield "the product with W is missing (desires, BP2)", delta * slope


def bias_slips(delta: Tensor) -> Iterator[tuple[str, Tensor]]:
    """In BP3."""
    yield FOLLOWS, delta.sum(0)
    yield "is the mean over the batch once more, not the sum (bias_gradient, BP3)", delta.mean(0)
    for one in delta:
        yield "is the δ of one example alone: not summed over the batch (bias_gradient, BP3)", one


def weight_slips(delta: Tensor, before: Tensor, own: Tensor, z: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """In BP4, with the activations before the weights and those of their ``own`` layer; z before, None in layer 1."""
    yield FOLLOWS, delta.T @ before
    if z is None:
        yield "the inputs are not scaled (weight_gradient, BP4)", delta.T @ before / PIXEL_SCALE
        yield "the inputs are scaled twice (weight_gradient, BP4)", delta.T @ before * PIXEL_SCALE
    else:
        yield "has z in place of the activations before it (weight_gradient, BP4)", delta.T @ z
    if own.shape == before.shape:
        yield "has the activations of its own layer, not of the one before (weight_gradient, BP4)", delta.T @ own
    for d, a in zip(delta, before, strict=True):
        yield "is that of one example alone: not summed over the batch (weight_gradient, BP4)", torch.outer(d, a)
