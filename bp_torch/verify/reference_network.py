"""A network and its cost in torch's own differentiable operations, none of them from backprop.py."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from bp_torch.convert import MODULES
from bp_torch.costs import find_cost
from bp_torch.network import Network
from bp_torch.verify.inputs import Tensors

REFERENCE_COSTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "quadratic": lambda z, a, y: functional.mse_loss(a, y, reduction="sum") / len(y),
    "binary-cross-entropy": lambda z, a, y: functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(y),
    "softmax-cross-entropy": lambda z, a, y: functional.cross_entropy(a, y),
}
"""torch's own cost of a batch, from z^L, a^L and y. A cost that is not listed is differentiated as costs.py has it."""


class ReferenceNetwork:
    """The cost of one batch as a function of W1, b1, δ1, …, x.

    The δ are zeros (B, n_l) that are added to the weighted sums z^l: the derivative with respect to them is ∂C/∂z^l.

    Attributes:
        phi: the activation of each layer.
        absorbs: whether the derivative of the cost is taken with respect to z^L, not a^L.
    """

    def __init__(self, network: Network, y: Tensor, cost: str) -> None:
        """Raise ValueError for an activation without a torch module, or a cost that does not fit the network."""
        names = [network.activation_of(layer) for layer in range(network.depth)]
        if missing := set(names) - set(MODULES):
            raise ValueError(f"no reference for {', '.join(missing)}: add its torch module to MODULES in convert.py")
        self.phi: list[Callable[[Tensor], Tensor]] = [MODULES[name]().forward for name in names]
        self.absorbs = bool(find_cost(cost, network.output_activation).absorbs)
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
        """[z^1, …, z^L] and [a^0, …, a^L]."""
        sums, activations = [], [t["x"]]
        for n, phi in enumerate(self.phi, 1):
            z = functional.linear(activations[-1], t[f"W{n}"], t[f"b{n}"])
            sums.append(z + t[f"δ{n}"] if f"δ{n}" in t else z)
            activations.append(phi(sums[-1]))
        return sums, activations
