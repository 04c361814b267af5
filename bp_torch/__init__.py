"""Backpropagation by hand, in PyTorch. Start reading at backprop.py."""

from bp_torch.backprop import Trace, backward, forward, input_gradient, per_example_gradients
from bp_torch.network import Network
from bp_torch.sgd import SGD

__all__ = ["SGD", "Network", "Trace", "backward", "forward", "input_gradient", "per_example_gradients"]
