"""How far rounding alone moves a gradient: autograd runs again with the last digit of every operation that rounds
perturbed.

A difference of nearly equal numbers (1 − a of a saturated sigmoid, a gradient that is zero because its terms cancel, a
ReLU's z within rounding of 0) has only few correct digits, by hand or by autograd.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bp_torch.verify.problem import Tensors, autograd, flat

SAMPLES = 8


class PerturbLastDigit(TorchDispatchMode):
    """A context in which the inputs of every operation that rounds are off by up to one unit of rounding, at random
    (Parker 1997, Monte Carlo arithmetic). Those that select or move numbers (relu, max, where, index) run unperturbed.
    """

    ROUNDS = re.compile(
        r"(?!threshold|hard|leaky|max_pool)((add)?mm|(badd)?bmm|mv|dot|linear|convolution|add|r?sub|mul|div|addcmul|addcdiv|sum|cumsum|prod|mean|var|std|"
        r"var_mean|exp|expm1|log|log1p|logsumexp|pow|r?sqrt|reciprocal|square|sigmoid|tanh|erf|sin|cos|"
        r".*(norm|softmax|attention|_backward).*)"
    )

    def __init__(self, seed: int) -> None:
        """Draw from ``seed``."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled: so the compiler, which takes a second or more, is not loaded."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, with perturbed inputs if it rounds and writes nothing in place."""
        name = func._schema.name.removeprefix("aten::")
        if self.ROUNDS.fullmatch(name) and not func._schema.is_mutable:
            args = tree_map_only(Tensor, self._perturb, args)
        return func(*args, **(kwargs or {}))

    def _perturb(self, t: Tensor) -> Tensor:
        if not (t.is_floating_point() or t.is_complex()):
            return t
        wide = torch.promote_types(t.dtype, torch.float32)
        real = torch.float64 if wide in (torch.float64, torch.complex128) else torch.float32
        noise = torch.rand(t.shape, generator=self.generator, dtype=real).mul_(2).sub_(1).to(t.device)
        return t * (1 + noise * torch.finfo(t.dtype).eps).to(t.dtype)


def rounding_noise(function: Callable[[Tensors], Tensor], inputs: Tensors, seed: int) -> Tensors:
    """The mean square by which each entry (n,) of autograd's gradients changes, over some perturbed runs."""
    exact = {name: flat(g) for name, g in autograd(function, inputs)[1].items()}
    noise = {name: torch.zeros_like(g) for name, g in exact.items()}
    for sample in range(SAMPLES):
        with PerturbLastDigit(seed + sample):
            moved = autograd(function, inputs)[1]
        for name, g in exact.items():
            noise[name] += (flat(moved[name]) - g).square().nan_to_num(0, 0, 0) / SAMPLES
    return noise


class DtypesSeen(TorchFunctionMode):
    """A context that notes in which dtypes of real or complex numbers operations compute."""

    def __init__(self) -> None:
        """Start with nothing noted."""
        super().__init__()
        self.eps = 0.0  # the coarsest rounding among them

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func`` and note the dtypes of what it takes and returns."""
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, result)):
            if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()):
                self.eps = max(self.eps, torch.finfo(t.dtype).eps)
        return result
