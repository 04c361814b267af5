"""Backpropagation by hand, in PyTorch. Start reading at backprop.py."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bp_torch.backprop import backward, example_costs, forward, input_gradient, per_example_gradients
    from bp_torch.convert import from_sequential, load, save, to_sequential
    from bp_torch.network import Network
    from bp_torch.sgd import SGD

__all__ = [
    "SGD",
    "Network",
    "backward",
    "example_costs",
    "forward",
    "from_sequential",
    "input_gradient",
    "load",
    "per_example_gradients",
    "save",
    "to_sequential",
]

MODULES = ("backprop", "convert", "network", "sgd")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: a command answers before torch is loaded."""
    if name in __all__:
        for module in MODULES:
            found = vars(importlib.import_module(f"bp_torch.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module 'bp_torch' has no attribute {name!r}")
