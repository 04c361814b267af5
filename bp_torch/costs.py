"""What a training example costs, and the output δ that sets its wishes going backwards (BP1).

The cost of a batch is the mean over its examples. A cost is a function of the last layer alone: its weighted sums z,
its activations a and the wanted outputs y, all (B, n_L). Nothing here knows of the layers before.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

CostName = Literal["quadratic", "binary-cross-entropy", "softmax-cross-entropy"]


class Cost(NamedTuple):
    """One example's cost C_k and how it changes with the output.

    ``per_example(z, a, y)`` gives C_k for each row, (B,). ``error(a, y, out)`` writes ∂C_k/∂a, (B, n_L), unless
    ``absorbs`` names an output activation: the cost demands that one, its φ′ cancels against the cost's own
    derivative, and ``error`` is ∂C_k/∂z already.
    """

    per_example: Callable[[Tensor, Tensor, Tensor], Tensor]
    error: Callable[[Tensor, Tensor, Tensor], Tensor]
    absorbs: str | None = None


def quadratic(z: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """C_k = Σ_j (a_j − y_j)²: the squared differences to the wanted outputs, added up, without a ½."""
    return (a - y).square_().sum(1)


def quadratic_error(a: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """∂C_k/∂a = 2 (a − y): each output is pushed in proportion to how far off it is."""
    torch.sub(a, y, out=out)
    return out.add_(out)  # twice itself: a product with the number 2 would allocate


def binary_cross_entropy(z: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """C_k = −Σ_j [y_j ln σ(z_j) + (1 − y_j) ln(1 − σ(z_j))] = Σ_j [ln(1 + e^z_j) − y_j z_j].

    The second form takes z, so a saturated output (a rounded to 0 or 1) costs what it should and not ∞.
    """
    return (torch.logaddexp(z, torch.zeros_like(z)) - y * z).sum(1)


def binary_cross_entropy_error(a: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """∂C_k/∂z = a − y: σ′ cancels, so an output that is saturated and wrong still learns (Nielsen, ch. 3, eq. 67)."""
    return torch.sub(a, y, out=out)


def softmax_cross_entropy(z: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """C_k = −Σ_j y_j ln p_j with p = softmax(a): the outputs are scores, the softmax belongs to the cost."""
    return -(y * torch.log_softmax(a, 1)).sum(1)


def softmax_cross_entropy_error(a: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """∂C_k/∂a = p Σ_j y_j − y, which is p − y for a distribution y. With identity outputs this is δ itself."""
    return torch.softmax(a, 1, out=out).mul_(y.sum(1, keepdim=True)).sub_(y)


COSTS: dict[str, Cost] = {
    "quadratic": Cost(quadratic, quadratic_error),
    "binary-cross-entropy": Cost(binary_cross_entropy, binary_cross_entropy_error, absorbs="sigmoid"),
    "softmax-cross-entropy": Cost(softmax_cross_entropy, softmax_cross_entropy_error),
}
