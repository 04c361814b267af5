"""Backpropagation by hand, in PyTorch. Start reading at backprop.py."""

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
