"""Backpropagation by hand, in PyTorch. Start reading at backprop.py."""

from typing import TYPE_CHECKING

from bp_torch.values import VERSION, on_demand

if TYPE_CHECKING:
    import bp_torch.verify as verify
    from bp_torch.backprop import backward, example_costs, forward, input_gradient, per_example_gradients
    from bp_torch.convert import from_sequential, load, save, to_sequential
    from bp_torch.digits import predict
    from bp_torch.network import Network
    from bp_torch.sgd import SGD
    from bp_torch.training.config import Config
    from bp_torch.training.evaluation import evaluate
    from bp_torch.training.loop import train
    from bp_torch.training.run import open_run

__all__ = [
    "SGD",
    "Config",
    "Network",
    "__version__",
    "backward",
    "evaluate",
    "example_costs",
    "forward",
    "from_sequential",
    "input_gradient",
    "load",
    "open_run",
    "per_example_gradients",
    "predict",
    "save",
    "to_sequential",
    "train",
    "verify",
]

__version__ = VERSION

# In this order, so that none is loaded in vain.
_FILES = ("training.config", "network", "backprop", "convert", "sgd", "digits", "training.evaluation", "training.run")

__getattr__ = on_demand(__name__, __all__, *_FILES, "training.loop", "verify")


def __dir__() -> list[str]:
    """The names that one needs."""
    return list(__all__)
