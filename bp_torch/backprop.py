"""Backpropagation: one pass forward that keeps what it computes, one pass backward that answers with the gradient.

The four equations are the four functions BP1 to BP4 below (Nielsen, *Neural Networks and Deep Learning*, ch. 2, which
has them for one example; here every row of a batch is an example). ``backward`` is the order in which they are used.

Shapes: x (B, n_0), y (B, n_L), a^l and δ^l (B, n_l), W^l (n_l, n_{l−1}), b^l (n_l,). δ^l means ∂C/∂z^l, with C the mean
cost of the batch. Lists over layers count from zero: ``weights[0]`` is W^1 and ``deltas[0]`` is δ^1, while
``activations[0]`` is the input and ``activations[1]`` is a^1.

Nothing here uses autograd, draws a random number or moves a weight.
"""

from copy import copy
from typing import Self, TypeVar, overload

import torch
from torch import Tensor

from bp_torch.activations import ACTIVATIONS
from bp_torch.costs import COSTS, Cost
from bp_torch.network import Network, layer_views


class ForwardTrace:
    """What a batch leaves behind on its way forward. Made once, a trace serves every batch of its size.

    Attributes:
        activations: [a^0, …, a^L], each (B, n_l); a^0 is the batch itself, and empty before the first ``forward``.
        z: z^L, (B, n_L), the last layer's weighted sums; the costs need them.
        phi: [φ of layer 1, …, φ of layer L].
        x_scale: the network sees x_scale · x. Pixels can so stay 0..255 in the batch, and the factor 1/255 rides along
            in the two products that touch them. ``activations[0]`` is not yet scaled.
    """

    def __init__(self, network: Network, batch_size: int, x_scale: float = 1.0) -> None:
        """Make the buffers for ``batch_size`` examples on the network's device, in its dtype."""
        new = network.parameters.new_empty
        self.sizes = network.sizes
        self.x_scale = x_scale
        self.phi = [ACTIVATIONS[network.activation_of(layer)] for layer in range(network.depth)]
        self.z = new(batch_size, network.sizes[-1])
        self.activations = [new(0, network.sizes[0]), *(new(batch_size, n) for n in network.sizes[1:])]

    def first(self, n: int) -> Self:
        """The trace of a shorter batch of ``n`` examples, in the same memory. Raises ValueError if n has no room."""
        if n > len(self.z):
            raise ValueError(f"the batch has {n} examples, the trace has room for {len(self.z)}")
        short = copy(self)
        short.z = self.z[:n]
        short.activations = [a[:n] for a in self.activations]
        return short


class Trace(ForwardTrace):
    """What a batch leaves behind on its way forward and back.

    Attributes:
        deltas: [δ^1, …, δ^L], each (B, n_l).
        transposed: [δ^1ᵀ, …, δ^Lᵀ], each (n_l, B), views of them.
        share: 1/B, (): what one example counts in the mean. A tensor, so that a product with it allocates nothing.
        gradient: ∇C, (P,), in the order of θ.
        sums: [∇C, C, 1], (P + 2,): what adds up over the shares of a batch. ``gradient`` and ``tally`` are views.
        tally: [C, 1], or a share's part of both, (2,), written by ``tally_up``.
        weight_gradients, bias_gradients: ∂C/∂W^l and ∂C/∂b^l, views into ``gradient``.
    """

    def __init__(self, network: Network, batch_size: int, x_scale: float = 1.0) -> None:
        """Make the buffers for ``batch_size`` examples on the network's device, in its dtype."""
        super().__init__(network, batch_size, x_scale)
        new, n_out = network.parameters.new_empty, network.sizes[1:]
        self.deltas = [new(batch_size, n) for n in n_out]
        self.transposed = [delta.T for delta in self.deltas]
        self.share = new(())
        self.examples = 0  # what ``share`` is one of
        scratch = new(batch_size * max(n_out))
        self._slopes = [scratch[: batch_size * n].view(batch_size, n) for n in n_out]  # one memory for all layers
        self.sums = torch.zeros(len(network.parameters) + 2, dtype=network.dtype, device=network.device)
        self.gradient, self.tally = self.sums[:-2], self.sums[-2:]
        self._cost, self._part = self.tally
        self.weight_gradients, self.bias_gradients = layer_views(self.gradient, network.sizes)

    def first(self, n: int) -> Self:
        """The trace of a shorter batch of ``n`` examples, in the same memory. Raises ValueError if n has no room."""
        short = super().first(n)
        short.deltas = [delta[:n] for delta in self.deltas]
        short.transposed = [delta.T for delta in short.deltas]
        short.share = self.share.clone()
        short._slopes = [slope[:n] for slope in self._slopes]
        return short

    def tally_up(self, costs: Tensor) -> None:
        """Note what the examples cost, (B,), and what part of the batch they are; means, so that no dtype overflows."""
        part = costs.shape[0] / self.examples
        if part:
            torch.mean(costs, 0, out=self._cost)
        if part != 1:
            self._cost.mul_(part)
        self._part.fill_(part)

    def slope(self, layer: int) -> Tensor:
        """φ′(z^l), (B, n_l), of ``layer`` (an index into ``deltas``), good until the next slope is asked for."""
        return self.phi[layer].derivative(self.activations[layer + 1], self._slopes[layer])


AnyTrace = TypeVar("AnyTrace", bound=ForwardTrace)


# ---- forward ----


@overload
def forward(network: Network, x: Tensor, trace: None = None) -> Trace: ...


@overload
def forward(network: Network, x: Tensor, trace: AnyTrace) -> AnyTrace: ...


def forward(network: Network, x: Tensor, trace: ForwardTrace | None = None) -> ForwardTrace:
    """a^l = φ(a^{l−1} W^lᵀ + b^l), layer after layer, for a batch x (B, n_0).

    Returns the trace, whose ``activations[-1]`` are the outputs: ``trace`` refilled (its first B rows where it has room
    for more), or a new one where none is given. Raises ValueError when x is not of the network's shape, dtype and
    device, or has more rows than the trace, or when the trace is of another network.
    """
    check_batch("x", x, network, network.sizes[0])
    if trace is None:
        trace = Trace(network, x.shape[0])
    elif trace.sizes != network.sizes:
        raise ValueError(f"the trace is of a network of sizes {trace.sizes}, this one is {network}")
    elif x.shape[0] != trace.z.shape[0]:
        trace = trace.first(x.shape[0])
    trace.activations[0] = a = x.detach()
    scale = trace.x_scale
    last = network.depth - 1
    for layer, (w_transposed, b) in enumerate(zip(network.transposed, network.biases, strict=True)):
        out = trace.activations[layer + 1]
        z = trace.z if layer == last else out  # hidden layers: φ works in place, for φ′ needs only a
        torch.addmm(b, a, w_transposed, alpha=scale, out=z)  # (B, n_out)
        a = trace.phi[layer].function(z, out)
        scale = 1.0
    return trace


def costs(trace: ForwardTrace, y: Tensor, cost: str = "quadratic") -> Tensor:
    """C_k of every example of the batch that went forward last, (B,). The batch's cost C is their mean.

    Raises ValueError for a y (B, n_L) of another shape, or an unknown cost.
    """
    check_cost(cost)
    if y.shape != trace.z.shape:
        raise ValueError(f"y has shape {tuple(y.shape)}, the outputs have {tuple(trace.z.shape)}")
    return COSTS[cost].per_example(trace.z, trace.activations[-1], y)


# ---- backward ----


def output_delta(cost: Cost, a: Tensor, y: Tensor, slope: Tensor, share: Tensor, out: Tensor) -> Tensor:
    """BP1: δ^L = ∂C/∂a^L ⊙ φ′(z^L), (B, n_L), with the slope φ′(z^L).

    How far off each output is says how much it should change; an example's wish counts for a ``share``, 1/B. This is
    the one place where the mean over the batch is taken.
    """
    delta = cost.error(a, y, out).mul_(share)
    return delta if cost.absorbs else delta.mul_(slope)


def desires(delta: Tensor, w: Tensor, out: Tensor | None = None) -> Tensor:
    """∂C/∂a^{l−1} = δ^l W^l, (B, n_{l−1}): with the sign turned, what layer l wants of the activations before it.

    Row j of W^l, times δ_j, is what neuron j alone wants, in proportion to its weights. The product adds up the wishes
    of all neurons. Forward this was z^l = a^{l−1} W^lᵀ + b^l.
    """
    return torch.mm(delta, w, out=out)


def hidden_delta(delta: Tensor, w: Tensor, slope: Tensor, out: Tensor) -> Tensor:
    """BP2: δ^{l−1} = (δ^l W^l) ⊙ φ′(z^{l−1}), (B, n_{l−1}), with the slope φ′(z^{l−1}).

    The wishes have gone one layer back, and the same begins anew. Forward this was a^{l−1} = φ(z^{l−1}).
    """
    return desires(delta, w, out).mul_(slope)


def bias_gradient(delta: Tensor, out: Tensor) -> Tensor:
    """BP3: ∂C/∂b^l = Σ_k δ^l_k, (n_l,): the first way to change z, the bias, which counts in full."""
    return torch.sum(delta, 0, out=out)


def weight_gradient(delta_transposed: Tensor, a: Tensor, scale: float, out: Tensor) -> Tensor:
    """BP4: ∂C/∂W^l = δ^lᵀ a^{l−1}, (n_l, n_{l−1}): the second way, in proportion to the activation before the weight.

    The brighter the neuron in front, the more its weight can do. The product sums over the examples. ``scale`` is
    ``x_scale`` in layer 1, else 1.
    """
    return torch.addmm(out, delta_transposed, a, beta=0, alpha=scale, out=out)


def backward(network: Network, trace: Trace, y: Tensor, cost: str = "quadratic", examples: int | None = None) -> Tensor:
    """∇C, (P,), for the batch that went forward last and its wanted outputs y (B, n_L).

    ``examples`` is the number that the mean is over, B unless the batch is a share of a larger one. Returns
    ``trace.gradient``; the δ of every layer are in ``trace.deltas``. Both are overwritten by the next call.
    Raises ValueError for a y that does not fit the network or the batch, for an empty batch, an unknown cost, or one
    that does not go with the output activation.
    """
    check_batch("y", y, network, network.sizes[-1])
    if y.shape[0] != trace.z.shape[0]:
        raise ValueError(f"y has {len(y)} rows, the batch that went forward has {len(trace.z)}")
    examples = y.shape[0] if examples is None else examples
    if examples < 1:
        raise ValueError("the mean over an empty batch is not defined: wanted at least one example")
    if examples != trace.examples:
        trace.share.fill_(1 / examples)
        trace.examples = examples
    check_cost(cost, network.output_activation)

    last = network.depth - 1
    y, a = y.detach(), trace.activations[-1]
    delta = output_delta(COSTS[cost], a, y, trace.slope(last), trace.share, out=trace.deltas[last])  # BP1
    for layer in range(last, -1, -1):
        a, w, scale = trace.activations[layer], network.weights[layer], 1.0 if layer else trace.x_scale
        bias_gradient(delta, out=trace.bias_gradients[layer])  # BP3
        weight_gradient(trace.transposed[layer], a, scale, out=trace.weight_gradients[layer])  # BP4
        if layer > 0:
            delta = hidden_delta(delta, w, trace.slope(layer - 1), out=trace.deltas[layer - 1])  # BP2
    return trace.gradient


def input_gradient(network: Network, trace: Trace) -> Tensor:
    """∂C/∂a^0, (B, n_0), after ``backward``: the wishes come out at the pixels, which no training moves.

    With an ``x_scale`` these are the scaled pixels, x_scale · x.
    """
    return desires(trace.deltas[0], network.weights[0])


def per_example_gradients(network: Network, x: Tensor, y: Tensor, cost: str = "quadratic") -> Tensor:
    """∂C_k/∂θ of every example k alone, (B, P). Their mean is the gradient of the batch.

    BP3 and BP4 without the sum over examples. Raises ValueError as ``forward`` and ``backward`` do.
    """
    trace = forward(network, x)
    if not x.shape[0]:
        raise ValueError("an empty batch has no gradients: wanted at least one example")
    backward(network, trace, y, cost, examples=1)  # δ of each example's own cost
    gradients = network.parameters.new_empty(len(x), len(network.parameters))
    weights, biases = layer_views(gradients, network.sizes)
    for delta, a, w, b in zip(trace.deltas, trace.activations[:-1], weights, biases, strict=True):
        torch.mul(delta[:, :, None], a[:, None, :], out=w)  # (B, n_out, n_in)
        b.copy_(delta)  # (B, n_out)
    return gradients


# ---- what came and what was wanted ----


def check_batch(name: str, batch: Tensor, network: Network, width: int) -> None:
    """Raise ValueError unless ``batch`` is (B, width) in the network's dtype and on its device."""
    if batch.ndim != 2 or batch.shape[1] != width:
        raise ValueError(f"{name} has shape {tuple(batch.shape)}, wanted (batch, {width}) for {network}")
    if batch.dtype != network.parameters.dtype:
        raise ValueError(f"{name} is {batch.dtype}, the network is {network.dtype}")
    if batch.device != network.parameters.device:
        raise ValueError(f"{name} is on {batch.device}, the network is on {network.device}")


def check_cost(cost: str, output_activation: str | None = None) -> None:
    """Raise ValueError unless ``cost`` is known and goes with the output activation, where that is given."""
    if cost not in COSTS:
        raise ValueError(f"unknown cost {cost!r}: choose from {', '.join(COSTS)}")
    absorbs = COSTS[cost].absorbs
    if absorbs and output_activation and absorbs != output_activation:
        raise ValueError(f"{cost} needs {absorbs} outputs, the network has {output_activation}")
