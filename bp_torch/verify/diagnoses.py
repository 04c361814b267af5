"""What is wrong, in words: each pattern of error has a sentence, which is used only if it explains the difference.

To explain means to leave no more than rounding error. If no pattern does, there is no diagnosis.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from bp_torch.text import count
from bp_torch.verify.comparison import Estimate, norm
from bp_torch.verify.inputs import Tensors
from bp_torch.verify.references import References

Hypotheses = Callable[[str, Tensors], Iterable[tuple[str, Tensor]]]
Patterns = Iterator[tuple[str, Tensor, Tensor]]
"""A sentence, and two tensors that are equal if it is true."""


class WrongGradient:
    """A gradient that is wrong, and what it should be; in float64 on the CPU.

    Attributes:
        given: as it came; ``shape`` is the one that it should have.
        estimates: what all gradients should be, ``estimate`` is that of this one.
        ours, right: given and expected in one shape: the whole, or (k,) the entries that are known (``partial``).
            If ``given`` has a wrong shape, there is no ``ours``.
    """

    def __init__(
        self, name: str, candidates: Tensors, estimates: dict[str, Estimate], references: References, batch_size: int
    ) -> None:
        """Of the gradient called ``name``."""
        self.name, self.candidates, self.estimates, self.references = name, candidates, estimates, references
        self.inputs, self.batch_size, self.estimate = references.inputs, batch_size, estimates[name]
        self.shape = self.inputs[name].shape
        self.given = candidates[name].detach().cpu().double()
        self.partial = self.estimate.entries is not None
        self.right = self.estimate.values if self.partial else self.estimate.values.reshape(self.shape)
        if self.given.shape == self.shape:
            self.ours = self.estimate.select(self.given.reshape(-1)).reshape(self.right.shape)

    def equal(self, ours: Tensor, predicted: Tensor) -> bool:
        """Whether the two are the same to rounding error."""
        if ours.shape != predicted.shape:
            return False
        size, error, whole = norm(predicted), norm(ours - predicted), norm(self.estimate.values)
        if not size or not math.isfinite(error):
            return False
        if error <= self.estimate.tolerance * size:
            return True
        noise = self.references.noise_allowance(self.name) / whole if whole else math.inf
        return noise < 0.01 and error <= (self.estimate.tolerance + noise) * size


def diagnose(wrong: WrongGradient, more: Hypotheses | None = None) -> str | None:
    """The first sentence that explains the difference, those of ``more`` included; None if there is none."""
    if not wrong.given.isfinite().all() or not wrong.right.any():
        return None
    if wrong.given.shape != wrong.shape:
        patterns = iter(()) if wrong.partial else another_shape(wrong)
    elif not wrong.ours.any():
        return "is zero throughout: is it ever computed?"
    elif factors := [text for factor, text in known_factors(wrong) if wrong.equal(wrong.ours, factor * wrong.right)]:
        return " Or ".join(factors)  # two mistakes can make the same factor
    elif wrong.partial:
        patterns = one_factor(wrong)
    else:
        listed = more(wrong.name, wrong.candidates) if more else ()
        own = ((text, wrong.ours, t.detach().cpu().double()) for text, t in listed)
        patterns = chain(own, *(pattern(wrong) for pattern in PATTERNS))
    return next((text for text, ours, predicted in patterns if wrong.equal(ours, predicted)), None)


def another_shape(wrong: WrongGradient) -> Patterns:
    """The right numbers in another layout, or a broadcast tensor whose repetitions are not added up."""
    given, right = wrong.given, wrong.right
    if given.ndim == 2:
        yield "is transposed", given.T, right
    yield "holds the right numbers in another shape", given.reshape(-1), right.reshape(-1)
    for d in range(given.ndim):
        text = f"is not summed over dimension {d}, along which the forward repeated (broadcast) the tensor"
        yield text, given.sum(d).reshape(-1), right.reshape(-1)
    if _broadcasts(wrong.shape, given.shape):
        text = "is not summed over the dimensions along which the forward repeated (broadcast) the tensor"
        yield text, given.sum_to_size(wrong.shape), right


def known_factors(wrong: WrongGradient) -> Iterator[tuple[float, str]]:
    """Each factor that a known mistake makes, and the mistake."""
    yield -1, "the sign is wrong"
    batch = wrong.batch_size
    for factor, text in [
        (batch, "off by exactly the batch size: the mean over the batch is missing?"),
        (1 / batch, "off by exactly one over the batch size: a mean where a sum was meant, or taken twice?"),
        (2, "off by exactly a factor of 2"),
        (0.5, "off by exactly a factor of ½, as when the 2 of a square's derivative is lost"),
    ]:
        if factor != 1:
            yield factor, text
            yield -factor, f"the sign is wrong, and {text}"
    lengths: dict[int, str] = {}
    for name, t in wrong.inputs.items():
        for d, n in enumerate(t.shape):
            lengths.setdefault(n, f"the length of dimension {d} of {name}")
        lengths.setdefault(t.numel(), f"the number of entries of {name}")
    for n, what in lengths.items():
        if n > 2 and n != batch:
            yield n, f"off by exactly {n}, {what}: a sum where a mean was meant?"
            yield 1 / n, f"off by exactly 1/{n}, {what}: a mean where a sum was meant?"
        if n > 2 and n != 4:
            yield math.sqrt(n), f"off by exactly √{n}, the root of {what}: a scale is missing?"
            yield 1 / math.sqrt(n), f"off by exactly 1/√{n}, the root of {what}: a scale too many?"


# ---- patterns over the entries ----


def of_another(wrong: WrongGradient) -> Patterns:
    """Two gradients swapped."""
    for name, t in wrong.estimates.items():
        if name != wrong.name and t.entries is None and wrong.inputs[name].shape == wrong.shape:
            yield f"is the gradient of {name}", wrong.ours.reshape(-1), t.values


def transposed(wrong: WrongGradient) -> Patterns:
    """A square gradient, transposed."""
    if wrong.right.ndim >= 2 and wrong.shape[-1] == wrong.shape[-2] > 1:
        yield "is transposed", wrong.ours, wrong.right.mT


def mask(wrong: WrongGradient) -> Patterns:
    """Right except for entries that should be zero, or that are zero and should not be."""
    ours, right = wrong.ours, wrong.right
    zero, missing = (right == 0) & (ours != 0), (ours == 0) & (right != 0)
    if ((right != 0) & (ours != 0)).sum() < 3:
        return
    if zero.any():
        entries = count(int(zero.sum()), "entry", "entries")
        text = f"is right wherever the gradient is not zero, but {entries} should be zero: a mask is missing?"
        yield text, ours[~zero], right[~zero]
    if missing.any():
        entries = count(int(missing.sum()), "entry", "entries")
        text = f"is zero in {entries} where it should not be, and right elsewhere: masked too much, or not all written?"
        yield text, ours, right.masked_fill(missing, 0)


def factor_of_an_input(wrong: WrongGradient) -> Patterns:
    """A product with an input that is missing, or is there once too often."""
    for other, t in wrong.inputs.items():
        if t.numel() >= 3 and _broadcasts(t.shape, wrong.shape):
            factor = t.detach().cpu().double()
            yield f"the factor {other} is missing", wrong.ours * factor, wrong.right
            yield f"the factor {other} is there once too often", wrong.ours, wrong.right * factor


def one_factor(wrong: WrongGradient) -> Patterns:
    """A factor that no known mistake makes. Fewer than three entries would be no evidence."""
    if wrong.right.count_nonzero() >= 3:
        size = norm(wrong.right)
        factor = float((wrong.ours / size * (wrong.right / size)).sum())
        yield f"off by one factor throughout, {factor:.6g}", wrong.ours, factor * wrong.right


def along_a_dimension(wrong: WrongGradient) -> Patterns:
    """An error that is constant along one dimension, or in one place of it."""
    ours, right = wrong.ours, wrong.right
    for d in (d for d in range(right.ndim) if right.shape[d] >= 3):
        text = f"off by an amount that is constant along dimension {d}: its mean is not subtracted?"
        yield text, ours, right + (ours - right).mean(d, keepdim=True)
        squares = (right * right).sum(d, keepdim=True)
        factor = (ours * right).sum(d, keepdim=True) / squares.where(squares > 0, 1.0)
        low, high = float(factor.min()), float(factor.max())
        text = f"off by a factor that is constant along dimension {d}, from {low:.3g} to {high:.3g} over the others"
        yield text, ours, right * factor
        difference = (ours - right).abs().movedim(d, 0)
        at = int(difference.reshape(len(difference), -1).amax(1).argmax())
        rest = torch.arange(right.shape[d]) != at
        text = f"is wrong only at index {at} of dimension {d}, which has the length {right.shape[d]}"
        yield text, ours.movedim(d, 0)[rest], right.movedim(d, 0)[rest]


PATTERNS = [of_another, transposed, mask, factor_of_an_input, one_factor, along_a_dimension]
"""The most specific first."""


def _broadcasts(small: torch.Size, shape: torch.Size) -> bool:
    """Whether a tensor of shape ``small`` expands to ``shape``."""
    pairs = zip(reversed(small), reversed(shape), strict=False)
    return len(small) <= len(shape) and all(a in (1, b) for a, b in pairs)
