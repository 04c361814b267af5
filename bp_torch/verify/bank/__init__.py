"""A bank of layers with their right backwards, and of faults in these: what ``verify bench`` is scored on."""

from bp_torch.verify.bank import attention, entries, formulas, losses, normalisation, products, recurrent
from bp_torch.verify.bank.layers import LAYERS, Backward, Fault, Layer, faulty

__all__ = ["LAYERS", "Backward", "Fault", "Layer", "faulty"]
__all__ += ["attention", "entries", "formulas", "losses", "normalisation", "products", "recurrent"]
