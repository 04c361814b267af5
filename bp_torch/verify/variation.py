"""Whether a factor is a length: the same check with shorter inputs, to see if the factor changes with one of them.

That 8 is also the batch size says nothing. That the factor is 7 for a batch of 7 does.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.comparison import norm
from bp_torch.verify.inputs import copies, flat
from bp_torch.verify.problem import Problem, autograd

Arguments = dict[str, Any]
MOST = 12  # variations
LARGE = 10**6  # entries, above which fewer are made

FORMS: list[tuple[str, Callable[[float], float], str]] = [
    ("{}", lambda n: n, "a mean is missing, or a sum is there in its place"),
    ("1 / {}", lambda n: 1 / n, "a mean is taken twice, or in place of a sum"),
    ("the root of {}", math.sqrt, "a scale is missing"),
    ("1 / the root of {}", lambda n: 1 / math.sqrt(n), "there is a scale too many"),
    ("n / (n − 1) with n {}", lambda n: n / (n - 1) if n > 1 else math.nan, "n − 1 where n was meant"),
    ("(n − 1) / n with n {}", lambda n: (n - 1) / n if n > 1 else math.nan, "n where n − 1 was meant"),
]
"""How a length can make a factor, and the mistakes that do."""


@dataclass
class Measured:
    """A factor, and the arguments that it was measured with."""

    arguments: Arguments
    factor: float


def factor_of(ours: Tensor, right: Tensor, tolerance: float) -> float | None:
    """c with ours = c · right to ``tolerance``, if there is one."""
    size = norm(right)
    if not size or not ours.isfinite().all():
        return None
    factor = float((ours / size) @ (right / size))
    left = norm(ours - factor * right)
    explains = left <= tolerance * abs(factor) * size and left <= 0.1 * norm(ours - right)
    return factor if explains and factor else None


def cause(problem: Problem, name: str, factor: float, tolerance: float) -> str | None:
    """Which length makes the gradient of ``name`` ``factor`` times too large, if other lengths show it."""
    here = problem.arguments.arguments | _output(problem)
    matching = [(q, form) for q in quantities(here) for form in FORMS if _close(form[1](q[1](here)), abs(factor))]
    if not matching or not problem.is_function:
        return None
    measured = list(measure(problem, name, tolerance))
    for (words, length), (text, form, mistake) in matching:
        if all(_close(form(length(m.arguments)), abs(m.factor)) for m in measured):
            other = next((m for m in measured if length(m.arguments) != length(here)), None)
            if other is not None:
                shown = f"{_short(other.factor)} where that is {length(other.arguments)}"
                return f"{text.format(words)} ({shown}): {mistake}?"
    return None


def quantities(arguments: Arguments) -> Iterator[tuple[str, Callable[[Arguments], int]]]:
    """The length of each dimension of each tensor, and the products of several: what they are, and how to get them."""
    tensors = [(name, t) for name, t in arguments.items() if isinstance(t, Tensor)]
    for several in range(1, 5):
        for name, t in tensors:
            for dims in combinations(range(min(t.ndim, 5)), several):
                words = f"the length of dimension {dims[0]} of {name}"
                if several > 1:
                    words = f"the number of entries along dimensions {', '.join(map(str, dims))} of {name}"
                if several == t.ndim > 1:
                    words = f"the number of entries of {name}"
                yield words, _product(name, dims)


def _product(name: str, dims: tuple[int, ...]) -> Callable[[Arguments], int]:
    return lambda arguments: math.prod(arguments[name].shape[d] for d in dims)


def measure(problem: Problem, name: str, tolerance: float) -> Iterator[Measured]:
    """The factor with each set of shorter arguments that the function and its gradient take."""
    entries = sum(t.numel() for t in problem.inputs.values())
    made = 0
    for arguments in shortened(problem.arguments.arguments):
        if made >= (MOST if entries < LARGE else 3):
            return
        try:
            other = replace(problem, arguments=problem.arguments.replaced(arguments))
            ours = flat(other.call(other.inputs).gradients[name])
            right = flat(autograd(other.value, other.inputs)[1][name])
        except Exception:  # whatever a function raises for arguments that do not fit each other
            continue
        made += 1
        if len(ours) == len(right) and (factor := factor_of(ours, right, tolerance)) is not None:
            yield Measured(arguments | _output(other), factor)


def _output(problem: Problem) -> Arguments:
    """dy, if there is one output that is not a scalar: it has lengths of its own."""
    if problem.scalar:
        return {}
    with torch.no_grad():
        outputs = problem.outputs(problem.reference or problem.forward, copies(problem.inputs))
    return {"dy": outputs[0]} if len(outputs) == 1 else {}


def shortened(arguments: Arguments) -> Iterator[Arguments]:
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


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-3)


def _short(factor: float) -> str:
    return f"{abs(factor):.4g}"
