"""The mistake in words: each pattern of error has a sentence, which is used only if it explains the difference.

To explain means to leave no more than rounding error. If no pattern does, there is no diagnosis. A factor is stated as
it is. It is called a length only if the same check with shorter inputs shows that it changes with one: that 8 is also
the batch size says nothing; that the factor is 7 for a batch of 7 does.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain, combinations, product
from typing import Any

import torch
from torch import Size, Tensor

from bp_torch.text import count
from bp_torch.verify.calls import Candidate
from bp_torch.verify.patterns import Pair, entry_patterns, indices_of, mask
from bp_torch.verify.problem import Change, Problem, Tensors, as_real, autograd, copies, flat, norm, numbered
from bp_torch.verify.references import EPS32, tolerance_of
from bp_torch.verify.report import Estimate, apart

Hypotheses = Callable[[str, Tensors], Iterable[tuple[str, Tensor]]]
MOST_VARIATIONS = 12
LARGE = 10**6  # entries, above which fewer are made


class WrongGradient:
    """A gradient that is wrong, and what it should be; from float64, with less rounding, if it is wrong there too."""

    def __init__(
        self, name: str, candidate: Candidate, expected: dict[str, Estimate], in_float64: bool, batch_size: int
    ) -> None:
        """Bring the gradient and what is ``expected`` into one shape."""
        references, outputs = candidate.references, candidate.outputs
        self.name, self.problem, self.candidates = name, candidate.problem, candidate.gradients
        self.batch_size = batch_size  # as the caller declared it; 0 if not
        self.shape = Size(references.shape(name))  # that the gradient should have
        self.given, self.estimates = as_real(candidate.gradients[name]), expected
        self.tolerance = references.tolerance  # how close ``equal`` is, relative
        if in_float64:
            self.given, outputs = candidate.in_float64[name].reshape(self.shape), candidate.outputs_in_float64
            right = references.gradients["float64"]
            self.estimates = {n: Estimate("float64", v, None, norm(v), self.tolerance) for n, v in right.items()}
            self.tolerance = tolerance_of(torch.float64 if candidate.eps_in_float64 < EPS32 else torch.float32)
            self.problem = replace(self.problem, arguments=self.problem.arguments | (references.inputs64 or {}))
        self.noise = 0.0 if in_float64 else references.noise_allowance(name)  # the same, as a norm for the whole
        masks = {n: t for n, t in self.problem.arguments.items() if isinstance(t, Tensor) and t.dtype == torch.bool}
        known = masks | references.inputs
        if candidate.dys and not self.problem.scalar:
            for kind, tensors in (("dy", candidate.dys), ("y", outputs)):
                known |= dict(zip(numbered(kind, len(tensors)), tensors, strict=True))
        self.known_tensors = {n: t.detach().cpu().double() for n, t in known.items() if not t.is_complex()}
        self.estimate = self.estimates[name]
        self.partial = self.estimate.entries is not None  # then ours and right are (k,), the entries that are known
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

    def first(self, pairs: Iterable[Pair]) -> str | None:
        """The first sentence that is true, and leaves little of the difference."""
        size, most = norm(self.right), math.inf
        if self.given.shape == self.shape and size:
            most = norm(self.ours - self.right) / size / 6
        for text, ours, predicted in pairs:
            if self.equal(ours, predicted) and norm(ours - predicted) <= most * norm(predicted):
                return text
        return None

    def right_for(self, inputs: Tensors, change: Change) -> Tensor:
        """The right gradient by autograd at these inputs, for every dy changed; NaN where the function cannot be."""
        try:
            return as_real(autograd(partial(self.problem.value, change=change), inputs)[1][self.name])
        except Exception:  # whatever a function raises for inputs that do not fit each other
            return torch.full_like(self.right, math.nan)


def diagnose(wrong: WrongGradient, more: Hypotheses | None = None) -> str | None:
    """The first sentence that explains the difference, those of ``more`` included; None if there is none."""
    if not wrong.given.isfinite().all():
        return None
    if wrong.given.shape != wrong.shape:
        return None if wrong.partial else wrong.first(another_shape(wrong))
    if wrong.equal(wrong.ours, wrong.right):
        return None  # the difference is smaller than what could be explained
    if not wrong.right.any():
        return "should be zero throughout, and is not"
    if norm(wrong.right) < wrong.tolerance * norm(wrong.ours):
        return "should be zero, but for rounding, and is not"
    if not wrong.ours.any():
        return "is zero throughout: is it ever computed?"
    if text := simple_factor(wrong):
        return text
    if wrong.partial:
        return wrong.first(chain(one_factor(wrong), mask(wrong.ours, wrong.right)))
    listed = more(wrong.name, wrong.candidates) if more else ()
    own = ((text, wrong.ours, t.detach().cpu().double()) for text, t in listed)
    whole = (of_another, factor_of_an_input, one_factor, over_another_dimension, elsewhere)
    entries = entry_patterns(wrong.ours, wrong.right, wrong.known_tensors, wrong.tolerance)
    several = chain(*(pattern(wrong) for pattern in whole), mask(wrong.ours, wrong.right), of_a_part(wrong), entries)
    return wrong.first(chain(own, several))


def furthest(ours: Tensor, right: Tensor, limit: float, place: Callable[[int], list[int]]) -> str:
    """How many entries (n,) are off by more than ``limit``, and the one that is furthest off, at ``place(i)``."""
    off = (ours - right).abs()
    i, n = int(off.argmax()), int((off > limit).sum())
    one, other = apart(float(ours[i]), float(right[i]))
    how_many = f"{n:,} of {len(off):,} entries are off" if n else "no entry is far off alone, and together they are"
    found = f"{how_many}, and no pattern that is known explains it"
    return f"{found}; the furthest is at {place(i)}: {one}, where {other} is right"


def autograds_own_nan(name: str, right: Tensor) -> str:
    """A note on a gradient by autograd (n,) that is not finite everywhere."""
    where = count(int((~right.isfinite()).sum()), "entry", "entries")
    return (
        f"autograd's own gradient of {name} is not finite at {where}, as where torch.where leaves out a branch that is "
        "infinite, or at the root of 0: there it is no reference"
    )


def another_shape(wrong: WrongGradient) -> Iterator[Pair]:
    """The right numbers in another layout, or a broadcast tensor whose repetitions are not added up."""
    given, right = wrong.given, wrong.right
    broadcast = "along which the forward repeated (broadcast) the tensor"
    if given.ndim == 2:
        yield "is transposed", given.T, right
    yield "holds the right numbers in another shape", given.reshape(-1), right.reshape(-1)
    for d in range(given.ndim):
        yield f"is not summed over dimension {d}, {broadcast}", given.sum(d).reshape(-1), right.reshape(-1)
    if _broadcasts(wrong.shape, given.shape):
        yield f"is not summed over the dimensions {broadcast}", given.sum_to_size(wrong.shape), right
    for d in range(right.ndim):
        text = f"is summed over dimension {d}, which the tensor has"
        yield text, given.reshape(-1), right.sum(d).reshape(-1)


# ---- other gradients, and other factors ----


def of_another(wrong: WrongGradient) -> Iterator[Pair]:
    """Two gradients swapped."""
    for name, t in wrong.estimates.items():
        if name != wrong.name and t.entries is None and t.values.numel() == wrong.right.numel() > 1:
            yield f"is the gradient of {name}", wrong.ours.reshape(-1), t.values
            yield f"is the gradient of {name}, with the sign wrong", wrong.ours.reshape(-1), -t.values


def factor_of_an_input(wrong: WrongGradient) -> Iterator[Pair]:
    """A product with an input, or with the output, that is missing, or is there once too often."""
    for what, t in wrong.known_tensors.items():
        if t.numel() >= 3 and _broadcasts(t.shape, wrong.shape) and t.std() > 0:
            yield f"the factor {what} is missing", wrong.ours * t, wrong.right
            yield f"the factor {what} is there once too often", wrong.ours, wrong.right * t
            if (t == 0).sum() == 0:
                yield f"is divided by {what}, and should not be", wrong.ours * t, wrong.right
    if wrong.right.shape == wrong.ours.shape and torch.equal(wrong.ours.sign(), wrong.right.sign()):
        yield "holds the squares of what it should hold", wrong.ours.abs(), wrong.right.square()
    yield "holds the absolute values of what it should hold", wrong.ours, wrong.right.abs()


def _broadcasts(small: Size, shape: Size) -> bool:
    """Whether a tensor of shape ``small`` expands to ``shape``."""
    pairs = zip(reversed(small), reversed(shape), strict=False)
    return len(small) <= len(shape) and all(a in (1, b) for a, b in pairs)


# ---- another sum, or the right gradient of something else ----


def over_another_dimension(wrong: WrongGradient) -> Iterator[Pair]:
    """dy, or its product with an input or y, summed over another dimension than that which is meant."""
    dy = wrong.known_tensors.get("dy", torch.ones(()))
    terms = [dy, *(dy * t for t in wrong.known_tensors.values() if _broadcasts(t.shape, dy.shape))]
    for term, meant, d in product(terms, range(dy.ndim), range(dy.ndim)):
        if d != meant and wrong.equal(wrong.right, term.sum(meant)):
            yield f"is summed over dimension {d} of dy, and should be over {meant}", wrong.ours, term.sum(d)


def elsewhere(wrong: WrongGradient) -> Iterator[Pair]:
    """The right gradient, were an input, or dy, conjugated or transposed."""
    inputs, lost = wrong.problem.inputs, "conjugated: a conjugate is lost?"
    for name, t in inputs.items():
        square = t.ndim >= 2 and t.shape[-1] == t.shape[-2] > 1
        if (t.is_complex() or square) and _computes(wrong):
            changed = inputs | {name: t.conj().resolve_conj() if t.is_complex() else t.mT.contiguous()}
            what = f"would be right for {name} {lost if t.is_complex() else 'transposed'}"
            yield what, wrong.ours, wrong.right_for(changed, torch.clone)
            yield f"would be right for dy {lost}", wrong.ours, wrong.right_for(inputs, torch.conj)


def of_a_part(wrong: WrongGradient) -> Iterator[Pair]:
    """A sum over a dimension of dy that leaves out some of it, or counts some of it twice."""
    shape, start = wrong.known_tensors.get("dy", torch.ones(())).shape, time.monotonic()
    if not shape or wrong.right.numel() < 3 or not _computes(wrong):
        return
    inputs, seconds = wrong.problem.inputs, time.monotonic() - start
    for d in (d for d, n in enumerate(shape) if n > 1 and n * wrong.right.numel() < 10 * LARGE and seconds * n < 1):
        kept = torch.eye(shape[d], dtype=torch.float64)
        weights = kept.reshape(-1, *(n if k == d else 1 for k, n in enumerate(shape))).to(inputs[wrong.name].real)
        shares = torch.stack([wrong.right_for(inputs, one.mul) for one in weights])
        sums = bool(((shares != 0).sum(0) > 1).any())
        for counted in (1 - kept, kept, 1 + kept, kept.cumsum(0)[:-1], kept.flip(0).cumsum(0)[:-1]) if sums else ():
            for row in counted:
                left = indices_of(row == 0 if row.min() == 0 else row == 2)
                what = f"leaves out {left}" if row.min() == 0 else f"counts {left} twice"
                total = torch.tensordot(row, shares, 1)
                yield f"{what} of dimension {d} of dy, over which it is summed", wrong.ours, total


def _computes(wrong: WrongGradient) -> bool:
    """Whether autograd gives the right gradient: not if it goes through the backward under test."""
    return wrong.equal(wrong.right_for(wrong.problem.inputs, torch.clone), wrong.right)


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
    if not wrong.partial and (text := cause(wrong.problem, wrong.name, factor, max(1e-4, 10 * wrong.tolerance))):
        return f"{_times(factor)}: {text}"
    return found[0] if found else None


def _known_factors(wrong: WrongGradient) -> Iterator[tuple[float, str]]:
    """Each factor that a known mistake makes, and the mistake."""
    yield -1, "the sign is wrong"
    batch = wrong.batch_size
    known = [
        (batch, f"is {batch} times what it should be, the batch size: the mean over the batch is missing?"),
        (1 / max(1, batch), f"is 1/{batch} of what it should be, one over the batch size: a mean taken twice?"),
        (2, "is 2 times what it should be"),
        (0.5, "is ½ of what it should be"),
    ]
    for factor, text in known:
        if factor not in (0, 1):
            yield factor, text
            yield -factor, f"the sign is wrong, and it {text}"


def one_factor(wrong: WrongGradient) -> Iterator[Pair]:
    """A factor that no known mistake makes. Fewer than three entries would be no evidence."""
    if wrong.right.count_nonzero() >= 3:
        size = norm(wrong.right)
        factor = float((wrong.ours / size * (wrong.right / size)).sum())
        yield f"{_times(factor)}, throughout", wrong.ours, factor * wrong.right


def _times(factor: float) -> str:
    """The factor in words, with the fraction that it is, if that is simple: 0.125 (1/8)."""
    sign, factor = "the sign is wrong, and it " if factor < 0 else "", abs(factor)
    near = Fraction(factor).limit_denominator(64)
    simple = near.denominator > 1 and math.isclose(float(near), factor, rel_tol=1e-6)
    return f"{sign}is {apart(factor, 1)[0]}{f' ({near})' if simple else ''} times what it should be"


def factor_of(ours: Tensor, right: Tensor, tolerance: float) -> float | None:
    """c with ours = c · right to ``tolerance``, if there is one."""
    size = norm(right)
    if not size or not ours.isfinite().all():
        return None
    factor = float((ours / size) @ (right / size))
    left = norm(ours - factor * right)
    explains = left <= tolerance * abs(factor) * size and left <= 0.1 * norm(ours - right)
    return factor if explains and factor else None


# ---- whether the factor is a length ----

Arguments = dict[str, Any]
Length = tuple[str, str, tuple[int, ...]]  # of some dimensions of a tensor: in words, its name, the dimensions

FORMS: list[tuple[str, Callable[[float], float], str]] = [
    ("{}", lambda n: n, "a mean is missing, or a sum is there in its place"),
    ("1 / {}", lambda n: 1 / n, "a mean is taken twice, or in place of a sum"),
    ("the root of {}", math.sqrt, "a scale is missing"),
    ("1 / the root of {}", lambda n: 1 / math.sqrt(n), "there is a scale too many"),
    ("n / (n − 1) with n {}", lambda n: n / (n - 1) if n > 1 else math.nan, "n − 1 where n was meant"),
    ("(n − 1) / n with n {}", lambda n: (n - 1) / n if n > 1 else math.nan, "n where n − 1 was meant"),
]
"""How a length can make a factor, and the mistakes that do."""


def cause(problem: Problem, name: str, factor: float, tolerance: float) -> str | None:
    """Which length makes the gradient of ``name`` ``factor`` times too large, if other lengths show it."""

    def length(of: Length, arguments: Arguments) -> int:
        return math.prod(arguments[of[1]].shape[d] for d in of[2])

    def close(one: float, other: float) -> bool:
        return math.isclose(one, abs(other), rel_tol=1e-3)

    here = problem.arguments | _output(problem)
    matching = [(of, form) for of in _lengths(here) for form in FORMS if close(form[1](length(of, here)), factor)]
    if not matching or problem.tensors is not None:
        return None
    measured = list(_measured_elsewhere(problem, name, tolerance))
    for of, (text, form, mistake) in matching:
        if all(close(form(length(of, there)), other) for there, other in measured):
            for there, other in measured:
                if length(of, there) != length(of, here):
                    shown = f"{abs(other):.4g} where that is {length(of, there)}"
                    return f"{text.format(of[0])} ({shown}): {mistake}?"
    return None


def _lengths(arguments: Arguments) -> Iterator[Length]:
    """The length of each dimension of each tensor, and the products of several."""
    tensors = [(name, t) for name, t in arguments.items() if isinstance(t, Tensor)]
    for several in range(1, 5):
        for name, t in tensors:
            for dims in combinations(range(min(t.ndim, 5)), several):
                words = f"the length of dimension {dims[0]} of {name}"
                if several > 1:
                    words = f"the number of entries along dimensions {', '.join(map(str, dims))} of {name}"
                if several == t.ndim > 1:
                    words = f"the number of entries of {name}"
                yield words, name, dims


def _measured_elsewhere(problem: Problem, name: str, tolerance: float) -> Iterator[tuple[Arguments, float]]:
    """Each set of shorter arguments that the function and its gradient take, and the factor with them."""
    entries, made = sum(t.numel() for t in problem.inputs.values()), 0
    for arguments in _shortened(problem.arguments):
        if made >= (MOST_VARIATIONS if entries < LARGE else 3):
            return
        try:
            other = replace(problem, arguments=arguments)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of arguments that are broadcast, which only fit each other by chance
                ours = flat(other.call(other.inputs).gradients[name])
                right = flat(autograd(other.value, other.inputs)[1][name])
        except Exception:  # whatever a function raises for arguments that do not fit each other
            continue
        made += 1
        if len(ours) == len(right) and (factor := factor_of(ours, right, tolerance)) is not None:
            yield arguments | _output(other), factor


def _output(problem: Problem) -> Arguments:
    """dy, if there is one output that is not a scalar: it has lengths of its own."""
    if problem.scalar:
        return {}
    with torch.no_grad():
        outputs = problem.outputs(problem.reference or problem.forward, copies(problem.inputs))
    return {"dy": outputs[0]} if len(outputs) == 1 else {}


def _shortened(arguments: Arguments) -> Iterator[Arguments]:
    """Arguments in which one dimension of all tensors that have a length there, or all of that length, is shorter."""
    tensors = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}
    seen: set[tuple[torch.Size, ...]] = set()
    for n in dict.fromkeys(n for t in tensors.values() for n in t.shape if n > 2):
        places = [{(name, k)} for name, t in tensors.items() for k in range(t.ndim) if t.shape[k] == n]
        first = {(name, 0) for name, t in tensors.items() if t.ndim and t.shape[0] == n}
        last = {(name, t.ndim - 1) for name, t in tensors.items() if t.ndim and t.shape[-1] == n}
        for chosen in (first, last, set().union(*places), *places):
            for length in (n - 1, n // 2):
                cut = dict(arguments)
                for name, k in chosen:
                    cut[name] = cut[name].narrow(k, 0, length).clone()
                shapes = tuple(cut[name].shape for name in tensors)
                if length > 1 and chosen and shapes not in seen:
                    seen.add(shapes)
                    yield cut
