"""Stochastic gradient descent: the step down the flat vector, with the exact meaning of ``torch.optim.SGD``.

Weights decay, biases do not, unless ``decay_biases``. Nothing else here knows what the parameters are for. Of K
networks, each may have its own learning rate, momentum and weight decay: each of these is a number or a (K,) tensor.
"""

import torch
from torch import Tensor

from bp_torch.network import Network, layer_views
from bp_torch.values import check_momentum, check_positive, check_weight_decay


class SGD:
    """θ ← θ − η v, with v ← μ v + ∇C + λ θ (momentum μ, weight decay λ; v starts at zero). Only η can be assigned."""

    rate: Tensor  # η in the dtype of θ, so that a recorded step uses its current value
    momentum: float | Tensor  # μ, 0 ≤ μ < 1
    weight_decay: float | Tensor  # λ ≥ 0, of the weights, and of the biases too with decay_biases
    velocity: Tensor | None  # v, (…, P), or None where μ = λ = 0 and v is the gradient itself

    def __init__(
        self,
        network: Network,
        learning_rate: float | Tensor,
        *,
        momentum: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        decay_biases: bool = False,
    ) -> None:
        """For ``network.parameters``. Raises ValueError for a learning rate, momentum or weight decay out of range."""
        self.parameters = network.parameters
        for number in self.each(momentum):
            check_momentum(number)
        for number in self.each(weight_decay):
            check_weight_decay(number, str(network.dtype).removeprefix("torch."))
        self.rate = self.parameters.new_empty((*network.leading, 1) if isinstance(learning_rate, Tensor) else ())
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self._decaying: list[tuple[Tensor, Tensor]] = []  # parts of v and of θ
        self._momentum, self._decay = self._column(momentum), self._column(weight_decay)
        decays = any(self.each(weight_decay))
        moves = decays or any(self.each(momentum))
        self.velocity = torch.zeros_like(self.parameters) if moves else None
        if self.velocity is not None:
            if decay_biases:
                self._decaying = [(self.velocity, self.parameters)]
            elif decays:
                velocities, _ = layer_views(self.velocity, network.sizes)
                self._decaying = list(zip(velocities, network.weights, strict=True))

    def __setattr__(self, name: str, value: object) -> None:
        """Set what ``__init__`` sets, and the learning rate. Raises AttributeError for the others."""
        if name in vars(self) and not name.startswith("_"):
            way = "copy into it" if isinstance(vars(self)[name], Tensor) else "make another SGD"
            raise AttributeError(f"optimizer.{name} cannot be assigned, for a step uses its first value: {way}")
        super().__setattr__(name, value)

    @property
    def learning_rate(self) -> float | Tensor:
        """η, or those of the networks, (K,). Raises ValueError unless positive and finite in the dtype of θ."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | Tensor) -> None:
        for number in self.each(learning_rate):
            check_positive("the learning rate", number, str(self.parameters.dtype).removeprefix("torch."))
        if isinstance(learning_rate, Tensor):
            self.rate.copy_(learning_rate.unsqueeze(-1))
        else:
            self.rate.fill_(learning_rate)
        self._learning_rate = learning_rate

    def each(self, value: float | Tensor) -> list[float]:
        """The numbers of ``value``. Raises ValueError for a tensor that has not one for each network."""
        if not isinstance(value, Tensor):
            return [value]
        if value.ndim != 1 or value.shape != self.parameters.shape[:-1]:
            wanted = f"a number, or one for each network, {tuple(self.parameters.shape[:-1])}"
            raise ValueError(f"wanted {wanted}, got a tensor of shape {tuple(value.shape)}")
        return value.tolist()

    def _column(self, value: float | Tensor) -> float | Tensor:
        """A number as it is; (K,) numbers as (K, 1), in float32 at least, as torch takes a number."""
        if not isinstance(value, Tensor):
            return value
        dtype = torch.promote_types(self.parameters.dtype, torch.float32)
        return value.to(self.parameters.device, dtype).unsqueeze(-1)

    def step(self, gradient: Tensor) -> None:
        """One step against ``gradient`` (…, P), which stays, of θ's precision or lower; else it raises ValueError."""
        dtype = self.parameters.dtype
        fits = gradient.is_floating_point() and torch.promote_types(gradient.dtype, dtype) == dtype
        if gradient.shape != self.parameters.shape or not fits:
            wanted = f"{tuple(self.parameters.shape)} of {dtype}"
            raise ValueError(f"the gradient is {tuple(gradient.shape)} of {gradient.dtype}, wanted {wanted}")
        if self.velocity is not None:
            self.velocity.mul_(self._momentum).add_(gradient)
            for velocity, parameters in self._decaying:
                if isinstance(self._decay, Tensor):
                    velocity.addcmul_(parameters, self._decay.view(-1, *[1] * (parameters.ndim - 1)))
                else:
                    velocity.add_(parameters, alpha=self._decay)
        self.parameters.addcmul_(self.direction(gradient), self.rate, value=-1)

    def direction(self, gradient: Tensor) -> Tensor:
        """v after the step with ``gradient``, (…, P)."""
        return gradient if self.velocity is None else self.velocity
