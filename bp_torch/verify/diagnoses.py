"""What is wrong, in words: each pattern of error has a sentence, which is used only if it explains the difference.

To explain means to leave no more than rounding error. If no pattern does, there is no diagnosis. A factor is stated as
it is; a guess at its cause follows only if the check with other lengths confirms it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain

import torch
from torch import Size, Tensor

from bp_torch.verify.comparison import Estimate, norm
from bp_torch.verify.inputs import Tensors
from bp_torch.verify.patterns import ENTRY_PATTERNS, Pair, broadcasts
from bp_torch.verify.problem import Problem
from bp_torch.verify.variation import cause, factor_of

Hypotheses = Callable[[str, Tensors], Iterable[tuple[str, Tensor]]]


@dataclass
class WrongGradient:
    """A gradient that is wrong, and what it should be; in float64 on the CPU.

    Attributes:
        given: as it came; ``shape`` is the one that it should have.
        estimates: what all gradients should be, ``estimate`` is that of this one.
        candidates: all gradients under test, by name.
        beside: other tensors by what they are: inputs, dy and y.
        tolerance, noise: how close ``equal`` is, relative, and as a norm for the whole.
        batch_size: as the caller declared it; 0 if not.
    """

    name: str
    given: Tensor
    shape: Size
    estimates: dict[str, Estimate]
    candidates: Tensors
    beside: Tensors
    tolerance: float
    noise: float
    problem: Problem
    batch_size: int = 0
    ours: Tensor = field(init=False)
    right: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Bring given and expected into one shape: the whole, or (k,) the entries that are known (``partial``)."""
        self.estimate = self.estimates[self.name]
        self.partial = self.estimate.entries is not None
        values = self.estimate.values
        self.right = values if self.partial or values.numel() != math.prod(self.shape) else values.reshape(self.shape)
        if self.given.shape == self.shape:
            self.ours = self.estimate.select(self.given.reshape(-1)).reshape(self.right.shape)

    def equal(self, ours: Tensor, predicted: Tensor) -> bool:
        """Whether the two are the same to rounding error."""
        if ours.shape != predicted.shape:
            return False
        size, error, whole = norm(predicted), norm(ours - predicted), norm(self.estimate.values)
        if not size or not math.isfinite(error):
            return False
        if error <= self.tolerance * size:
            return True
        noise = self.noise / whole if whole else math.inf
        return noise < 0.01 and error <= (self.tolerance + noise) * size


def diagnose(wrong: WrongGradient, more: Hypotheses | None = None) -> str | None:
    """The first sentence that explains the difference, those of ``more`` included; None if there is none."""
    if not wrong.given.isfinite().all():
        return None
    if wrong.given.shape != wrong.shape:
        return _first(wrong, iter(()) if wrong.partial else another_shape(wrong))
    if wrong.equal(wrong.ours, wrong.right):
        return None  # the difference is smaller than what could be explained
    if not wrong.right.any():
        return "should be zero throughout, and is not"
    if not wrong.ours.any():
        return "is zero throughout: is it ever computed?"
    if text := simple_factor(wrong):
        return text
    if wrong.partial:
        return _first(wrong, one_factor(wrong))
    listed = more(wrong.name, wrong.candidates) if more else ()
    own = ((text, wrong.ours, t.detach().cpu().double()) for text, t in listed)
    return _first(wrong, chain(own, *(pattern(wrong) for pattern in (of_another, factor_of_an_input, one_factor)))) or (
        _first(wrong, chain(*(pattern(wrong) for pattern in ENTRY_PATTERNS)))
    )


def _first(wrong: WrongGradient, pairs: Iterable[Pair]) -> str | None:
    return next((text for text, ours, predicted in pairs if wrong.equal(ours, predicted)), None)


def another_shape(wrong: WrongGradient) -> Iterator[Pair]:
    """The right numbers in another layout, or a broadcast tensor whose repetitions are not added up."""
    given, right = wrong.given, wrong.right
    if given.ndim == 2:
        yield "is transposed", given.T, right
    yield "holds the right numbers in another shape", given.reshape(-1), right.reshape(-1)
    for d in range(given.ndim):
        text = f"is not summed over dimension {d}, along which the forward repeated (broadcast) the tensor"
        yield text, given.sum(d).reshape(-1), right.reshape(-1)
    if broadcasts(wrong.shape, given.shape):
        text = "is not summed over the dimensions along which the forward repeated (broadcast) the tensor"
        yield text, given.sum_to_size(wrong.shape), right
    for d in range(right.ndim):
        text = f"is summed over dimension {d}, which the tensor has"
        yield text, given.reshape(-1), right.sum(d).reshape(-1)


# ---- one factor ----


def simple_factor(wrong: WrongGradient) -> str | None:
    """The sign, or a factor whose cause is known: a small number, or a length."""
    factor = factor_of(wrong.ours.reshape(-1), wrong.right.reshape(-1), max(wrong.tolerance, 1e-12))
    if factor is None:
        return None
    found = [text for known, text in _known_factors(wrong) if wrong.equal(wrong.ours, known * wrong.right)]
    if found and (math.isclose(factor, -1, rel_tol=1e-3) or "the batch size" in found[0]):
        return " Or ".join(found)
    if wrong.right.count_nonzero() < 2 and not found:
        return None
    sign = "the sign is wrong, and it " if factor < 0 else ""
    if not wrong.partial and (text := cause(wrong.problem, wrong.name, factor, max(1e-4, 10 * wrong.tolerance))):
        return f"{sign}is {_number(abs(factor))} times what it should be: {text}"
    return found[0] if found else None


def _known_factors(wrong: WrongGradient) -> Iterator[tuple[float, str]]:
    """Each factor that a known mistake makes, and the mistake."""
    yield -1, "the sign is wrong"
    batch = wrong.batch_size
    for factor, text in [
        (batch, f"is {batch} times what it should be, the batch size: the mean over the batch is missing?"),
        (
            1 / batch if batch else 0,
            f"is 1/{batch} of what it should be, one over the batch size: a mean taken twice?",
        ),
        (2, "is 2 times what it should be: added twice, or a factor of 2 that cancels?"),
        (0.5, "is ½ of what it should be, as when the 2 of a square's derivative is lost"),
    ]:
        if factor not in (0, 1):
            yield factor, text
            yield -factor, f"the sign is wrong, and it {text}"


def one_factor(wrong: WrongGradient) -> Iterator[Pair]:
    """A factor that no known mistake makes. Fewer than three entries would be no evidence."""
    if wrong.right.count_nonzero() >= 3:
        size = norm(wrong.right)
        factor = float((wrong.ours / size * (wrong.right / size)).sum())
        sign = "the sign is wrong, and it " if factor < 0 else ""
        text = f"{sign}is {_number(abs(factor))} times what it should be, throughout"
        yield text, wrong.ours, factor * wrong.right


def _number(factor: float) -> str:
    """With the fraction that it is, if that is simple: 0.125 (1/8)."""
    near = Fraction(factor).limit_denominator(64)
    simple = near.denominator > 1 and math.isclose(float(near), factor, rel_tol=1e-6)
    return f"{factor:.6g}" + (f" ({near})" if simple else "")


# ---- other gradients, and other factors ----


def of_another(wrong: WrongGradient) -> Iterator[Pair]:
    """Two gradients swapped."""
    for name, t in wrong.estimates.items():
        if name != wrong.name and t.entries is None and t.values.numel() == wrong.right.numel() > 1:
            yield f"is the gradient of {name}", wrong.ours.reshape(-1), t.values
            yield f"is the gradient of {name}, with the sign wrong", wrong.ours.reshape(-1), -t.values


def factor_of_an_input(wrong: WrongGradient) -> Iterator[Pair]:
    """A product with an input, or with the output, that is missing, or is there once too often."""
    for what, t in wrong.beside.items():
        if t.numel() >= 3 and broadcasts(t.shape, wrong.shape) and t.std() > 0:
            yield f"the factor {what} is missing", wrong.ours * t, wrong.right
            yield f"the factor {what} is there once too often", wrong.ours, wrong.right * t
            if (t == 0).sum() == 0:
                yield f"is divided by {what}, and should not be", wrong.ours * t, wrong.right
    if wrong.right.shape == wrong.ours.shape and torch.equal(wrong.ours.sign(), wrong.right.sign()):
        yield "holds the squares of what it should hold", wrong.ours.abs(), wrong.right.square()
        yield "holds the absolute values of what it should hold", wrong.ours, wrong.right.abs()
    yield "holds the absolute values of what it should hold", wrong.ours, wrong.right.abs()
