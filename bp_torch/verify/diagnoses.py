"""What is wrong, in words: each function is one hypothesis, and says its sentence only if it explains the difference.

To explain is to leave no more than rounding error. Where no hypothesis does, nothing is said.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from bp_torch.verify.inputs import Tensors
from bp_torch.verify.report import count
from bp_torch.verify.rounding import norm
from bp_torch.verify.witnesses import Testimony, Witnesses

Hypotheses = Callable[[str, Tensors], Iterable[tuple[str, Tensor]]]


class Error:
    """A gradient that is wrong, beside what it should be; in float64 on the CPU.

    Attributes:
        given: as it came, and ``shape`` the one that it should have.
        truth: what it should be; ``truths`` and ``claimed`` are those of all gradients.
        ours, right: given and truth in one shape: the whole, or (k,) the entries that are known. Without ``given`` in
            the right shape there is no ``ours``.
    """

    def __init__(
        self, name: str, claimed: Tensors, truths: dict[str, Testimony], witnesses: Witnesses, batch_size: int
    ) -> None:
        """Of the gradient called ``name``."""
        self.name, self.claimed, self.truths, self.witnesses = name, claimed, truths, witnesses
        self.inputs, self.batch_size, self.truth = witnesses.inputs, batch_size, truths[name]
        self.shape = self.inputs[name].shape
        self.given = claimed[name].detach().cpu().double()
        self.partial = self.truth.entries is not None
        self.right = self.truth.values if self.partial else self.truth.values.reshape(self.shape)
        if self.given.shape == self.shape:
            self.ours = self.truth.of(self.given.reshape(-1)).reshape(self.right.shape)

    def explained(self, ours: Tensor, expected: Tensor) -> bool:
        """Whether ``ours`` is what would be ``expected``, to rounding error."""
        if ours.shape != expected.shape:
            return False
        size, error, whole = norm(expected), norm(ours - expected), norm(self.truth.values)
        if not size or not math.isfinite(error):
            return False
        if error <= self.truth.base * size:
            return True
        slack = self.witnesses.slack(self.name) / whole if whole else math.inf
        return slack < 0.01 and error <= (self.truth.base + slack) * size


def diagnose(error: Error, more: Hypotheses | None = None) -> str | None:
    """What the first hypothesis that explains the error says; None where none does."""
    if not error.given.isfinite().all():
        return None

    def listed(error: Error) -> str | None:
        pairs = more(error.name, error.claimed) if more else ()
        return next((text for text, t in pairs if error.explained(error.ours, t.detach().cpu().double())), None)

    if error.given.shape != error.shape:
        hypotheses = [] if error.partial else [another_shape, not_summed]
    elif not error.right.any():
        hypotheses = []
    else:
        hypotheses = [zero_throughout, named_factor, *([one_factor] if error.partial else [listed, *STRUCTURES])]
    return next((text for hypothesis in hypotheses if (text := hypothesis(error))), None)


# ---- of another shape than its tensor ----


def another_shape(error: Error) -> str | None:
    """The right numbers, laid out otherwise."""
    if error.given.ndim == 2 and error.explained(error.given.T, error.right):
        return "is transposed"
    if error.explained(error.given.reshape(-1), error.right.reshape(-1)):
        return "holds the right numbers in another shape"
    return None


def not_summed(error: Error) -> str | None:
    """One gradient for each repetition of a broadcast tensor."""
    for d in range(error.given.ndim):
        if error.explained(error.given.sum(d).reshape(-1), error.right.reshape(-1)):
            return f"is not summed over dimension {d}, along which the forward repeated (broadcast) the tensor"
    if _broadcasts(error.shape, error.given.shape) and error.explained(
        error.given.sum_to_size(error.shape), error.right
    ):
        return "is not summed over the dimensions along which the forward repeated (broadcast) the tensor"
    return None


# ---- one factor throughout ----


def zero_throughout(error: Error) -> str | None:
    """Nothing there."""
    return "is zero throughout: is it ever computed?" if not error.ours.any() else None


def named_factor(error: Error) -> str | None:
    """A factor that a slip makes. Where two slips would make the same, both are said."""
    found = [text for factor, text in _factors(error) if error.explained(error.ours, factor * error.right)]
    return " Or ".join(found) or None


def _factors(error: Error) -> Iterator[tuple[float, str]]:
    """Each factor, and what slip makes it."""
    slips = [
        (2, "off by exactly a factor of 2"),
        (0.5, "off by exactly a factor of ½, as when the 2 of a square's derivative is lost"),
    ]
    if (batch := error.batch_size) > 1:
        slips = [
            (batch, "off by exactly the batch size: the mean over the batch is missing?"),
            (1 / batch, "off by exactly one over the batch size: a mean where a sum was meant, or taken twice?"),
            *slips,
        ]
    yield -1, "the sign is wrong"
    for factor, text in slips:
        yield factor, text
        yield -factor, f"the sign is wrong, and {text}"
    lengths: dict[int, str] = {}
    for name, t in error.inputs.items():
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


def one_factor(error: Error) -> str | None:
    """A factor that no slip is known for; of fewer than three entries that would be no evidence."""
    if error.right.count_nonzero() < 3:
        return None
    size = norm(error.right)
    factor = float((error.ours / size * (error.right / size)).sum())
    fits = error.explained(error.ours, factor * error.right)
    return f"off by one factor throughout, {factor:.6g}" if fits else None


# ---- in how the entries lie to one another ----


def of_another(error: Error) -> str | None:
    """Two gradients swapped."""
    others = [(name, t) for name, t in error.truths.items() if name != error.name and t.entries is None]
    same = [name for name, t in others if error.explained(error.ours.reshape(-1), t.values)]
    return next((f"is the gradient of {name}" for name in same if error.inputs[name].shape == error.shape), None)


def transposed(error: Error) -> str | None:
    """A square one, transposed."""
    square = error.right.ndim >= 2 and error.shape[-1] == error.shape[-2] > 1
    return "is transposed" if square and error.explained(error.ours, error.right.mT) else None


def mask(error: Error) -> str | None:
    """Right but for entries that should be zero, or that are."""
    ours, right = error.ours, error.right
    zero, missing = (right == 0) & (ours != 0), (ours == 0) & (right != 0)
    if ((right != 0) & (ours != 0)).sum() < 3:
        return None
    if zero.any() and error.explained(ours[~zero], right[~zero]):
        return (
            f"is right wherever the gradient is not zero, but {count(int(zero.sum()), 'entry', 'entries')} should "
            "be zero: a mask is missing?"
        )
    if missing.any() and error.explained(ours, right.masked_fill(missing, 0)):
        return (
            f"is zero in {count(int(missing.sum()), 'entry', 'entries')} where it should not be, "
            "and right elsewhere: masked too much, or not all written?"
        )
    return None


def factor_of_an_input(error: Error) -> str | None:
    """An input that should multiply it, or should not."""
    for other, t in error.inputs.items():
        if t.numel() >= 3 and _broadcasts(t.shape, error.shape):
            factor = t.detach().cpu().double()
            if error.explained(error.ours * factor, error.right):
                return f"the factor {other} is missing"
            if error.explained(error.ours, error.right * factor):
                return f"the factor {other} is there once too often"
    return None


def along_a_dimension(error: Error) -> str | None:
    """The same all along one dimension, or at one place of it."""
    ours, right = error.ours, error.right
    for d in (d for d in range(right.ndim) if right.shape[d] >= 3):
        if error.explained(ours, right + (ours - right).mean(d, keepdim=True)):
            return f"off by an amount that is the same all along dimension {d}: a mean over it is not taken away?"
        squares = (right * right).sum(d, keepdim=True)
        factor = (ours * right).sum(d, keepdim=True) / squares.where(squares > 0, 1.0)
        if error.explained(ours, right * factor):
            low, high = float(factor.min()), float(factor.max())
            return f"off by a factor that is the same all along dimension {d} (from {low:.3g} to {high:.3g} elsewhere)"
        difference = (ours - right).abs().movedim(d, 0)
        at = int(difference.reshape(len(difference), -1).amax(1).argmax())
        rest = torch.arange(right.shape[d]) != at
        if error.explained(ours.movedim(d, 0)[rest], right.movedim(d, 0)[rest]):
            return f"is wrong only at index {at} of dimension {d}, which has the length {right.shape[d]}"
    return None


STRUCTURES = [of_another, transposed, mask, factor_of_an_input, one_factor, along_a_dimension]
"""The most telling first."""


def _broadcasts(small: torch.Size, shape: torch.Size) -> bool:
    """Whether a tensor of shape ``small`` expands to ``shape``."""
    pairs = zip(reversed(small), reversed(shape), strict=False)
    return len(small) <= len(shape) and all(a in (1, b) for a, b in pairs)
