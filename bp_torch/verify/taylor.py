"""The slope of the Taylor remainder, the oldest test of a gradient: it is 2 if the gradient is right, else 1."""

import math

import torch

from bp_torch.verify.candidate import Candidate
from bp_torch.verify.inputs import flat
from bp_torch.verify.references import References


def slopes(references: References, candidate: Candidate) -> dict[str, float]:
    """How fast |f(x + hv) − f(x) − h⟨gradient, v⟩| falls with h, by input, along a random direction v.

    Without those whose remainder is rounding only, as for a linear function.
    """
    if references.inputs64 is None:
        return {}
    found = {}
    for name, gradient in candidate.gradients.items():
        if gradient.shape != references.inputs[name].shape or not gradient.numel() or gradient.is_complex():
            continue
        differences = references.differences(name)
        ours = candidate.widened.get(name, flat(gradient))
        generator = torch.Generator().manual_seed(references.seed + 3)
        v = torch.randn(len(ours), generator=generator, dtype=torch.float64)
        slope, size = float(ours @ v), max(abs(differences.middle), 1e-300)
        remainders = []
        for h in (1e-2, 1e-3):
            moved = differences.moved(v.to(differences.start.device), h)
            remainders.append(abs(moved - differences.middle - h * slope))
        if min(remainders) > 1e-13 * size:
            found[name] = math.log10(remainders[0] / remainders[1])
    return found
