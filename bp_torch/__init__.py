"""Backpropagation by hand, in PyTorch. Start reading at backprop.py."""

import importlib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from bp_torch.values import VERSION

if TYPE_CHECKING:
    from bp_torch.backprop import backward, example_costs, forward, input_gradient, per_example_gradients
    from bp_torch.convert import from_sequential, load, save, to_sequential
    from bp_torch.digits import predict
    from bp_torch.network import Network
    from bp_torch.sgd import SGD

__all__ = [
    "SGD",
    "Network",
    "__version__",
    "backward",
    "example_costs",
    "forward",
    "from_sequential",
    "input_gradient",
    "load",
    "per_example_gradients",
    "predict",
    "save",
    "to_sequential",
]

__version__ = VERSION


def on_demand(package: str, names: Collection[str], *modules: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package, which imports what is asked for: a command answers before torch is loaded."""

    def find(name: str) -> Any:
        for module in modules if name in names else ():
            found = vars(importlib.import_module(f"{package}.{module}"))
            if name in found:
                return found[name]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


__getattr__ = on_demand(__name__, __all__, "backprop", "convert", "network", "sgd", "digits")
