"""Stochastic gradient descent: the step down the flat vector, with the exact meaning of ``torch.optim.SGD``.

Weights decay, biases do not, unless ``decay_biases``. Nothing else here knows what the parameters are for.
"""

import torch
from torch import Tensor

from bp_torch.network import Network, layer_views


class SGD:
    """θ ← θ − η v, with v ← μ v + ∇C + λ θ (momentum μ, weight decay λ; v starts at zero).

    Attributes:
        learning_rate: η > 0.
        rate: η as a tensor in the dtype of θ, so that a recorded step uses its current value.
        momentum: μ, 0 ≤ μ < 1.
        weight_decay: λ ≥ 0, on the weights, and on the biases too with ``decay_biases``.
        velocity: v, (…, P), or None where μ = λ = 0 and v is the gradient itself.
    """

    def __init__(
        self,
        network: Network,
        learning_rate: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        decay_biases: bool = False,
    ) -> None:
        """For ``network.parameters``. Raises ValueError for a learning rate, momentum or weight decay out of range."""
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is at least 0 and below 1, not {momentum}")
        if weight_decay != 0:
            check_positive("weight decay", weight_decay, network.dtype, "zero or a positive number")
        self.parameters = network.parameters
        self.rate = self.parameters.new_empty(())
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.velocity: Tensor | None = None
        self._decaying: list[tuple[Tensor, Tensor]] = []  # parts of v and of θ
        if momentum or weight_decay:
            self.velocity = torch.zeros_like(self.parameters)
            if decay_biases:
                self._decaying = [(self.velocity, self.parameters)]
            elif weight_decay:
                velocities, _ = layer_views(self.velocity, network.sizes)
                self._decaying = list(zip(velocities, network.weights, strict=True))

    @property
    def learning_rate(self) -> float:
        """η. Raises ValueError for a value that is not positive, or that is 0 or infinite in the dtype of θ."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: float) -> None:
        check_positive("the learning rate", learning_rate, self.parameters.dtype)
        self._learning_rate = learning_rate
        self.rate.fill_(learning_rate)

    def step(self, gradient: Tensor) -> None:
        """One step against ``gradient`` (…, P), which is not changed and may have a lower precision than θ.

        Raises ValueError for a gradient of another shape or of a dtype that does not fit.
        """
        dtype = self.parameters.dtype
        fits = gradient.is_floating_point() and torch.promote_types(gradient.dtype, dtype) == dtype
        if gradient.shape != self.parameters.shape or not fits:
            wanted = f"{tuple(self.parameters.shape)} of {dtype}"
            raise ValueError(f"the gradient is {tuple(gradient.shape)} of {gradient.dtype}, wanted {wanted}")
        if self.velocity is not None:
            self.velocity.mul_(self.momentum).add_(gradient)
            for velocity, parameters in self._decaying:
                velocity.add_(parameters, alpha=self.weight_decay)
        self.parameters.addcmul_(self.direction(gradient), self.rate, value=-1)

    def direction(self, gradient: Tensor) -> Tensor:
        """v after the step with ``gradient``, (…, P)."""
        return gradient if self.velocity is None else self.velocity


def check_positive(name: str, value: float, dtype: torch.dtype, wanted: str = "a positive number") -> None:
    """Raise ValueError unless ``value`` is positive and finite, and still is when it is rounded to ``dtype``."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {wanted}, not {value}")
    rounded = torch.tensor(value, dtype=torch.float64).to(dtype).item()
    if not 0 < rounded < float("inf"):
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} is {wanted}, but {value} is {'0' if rounded == 0 else 'infinite'} in {kind}")
