"""How far rounding alone moves a gradient: autograd runs again with the last digit of every operation perturbed.

A difference of nearly equal numbers (1 − a of a saturated sigmoid, a gradient that is zero because its terms cancel, a
ReLU's z within rounding of 0) has only few correct digits, by hand or by autograd.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from bp_torch.verify.comparison import flat, norm
from bp_torch.verify.inputs import Tensors

SAMPLES = 8


class PerturbLastDigit(TorchDispatchMode):
    """A context in which the inputs of every operation that rounds are off by up to one unit of rounding, at random.

    So each result has an error such as its own arithmetic makes (Parker 1997, Monte Carlo arithmetic). Operations
    that only select or move numbers (relu, max, where, index) run unperturbed.
    """

    ROUNDS = re.compile(
        r"(add)?mm|(badd)?bmm|mv|dot|linear|convolution|add|r?sub|mul|div|addcmul|addcdiv|sum|cumsum|prod|mean|var|std|"
        r"var_mean|exp|expm1|log|log1p|logsumexp|pow|r?sqrt|reciprocal|square|sigmoid|tanh|erf|sin|cos|"
        r".*(norm|softmax|attention|_backward).*"
    )

    def __init__(self, seed: int) -> None:
        """Draw from ``seed``."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, with perturbed inputs if it rounds and writes nothing in place."""
        name = func._schema.name.removeprefix("aten::")
        if self.ROUNDS.fullmatch(name) and not func._schema.is_mutable:
            args = tree_map_only(Tensor, self._perturb, args)
        return func(*args, **(kwargs or {}))

    def _perturb(self, t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        wide = torch.promote_types(t.dtype, torch.float32)
        generator = self.generators.setdefault(t.device, torch.Generator(t.device).manual_seed(self.seed))
        noise = torch.rand(t.shape, generator=generator, dtype=wide, device=t.device).mul_(2).sub_(1)
        return t * (1 + noise * torch.finfo(t.dtype).eps).to(t.dtype)


def rounding_noise(gradients: Callable[[], Tensors], seed: int) -> dict[str, float]:
    """The largest ‖change‖ of each of autograd's ``gradients`` over some perturbed runs."""
    exact = gradients()
    noise = dict.fromkeys(exact, 0.0)
    for sample in range(SAMPLES):
        with PerturbLastDigit(seed + sample):
            moved = gradients()
        for name, g in exact.items():
            change = norm(flat(moved[name]) - flat(g))
            noise[name] = max(noise[name], change if math.isfinite(change) else 0.0)
    return noise
