"""Other inputs for a function: in the domain that the given ones are in, as far as their numbers show it.

A symmetric matrix stays symmetric and positive definite, probabilities still sum to one, what is sorted stays sorted,
zeros stay zero, no entry changes its sign unless there are as many of either. Or the caller draws the other inputs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bp_torch.verify.problem import Problem, copy_of, has_gradient, names_in, spread, takes

Correction = Callable[[Tensor], Tensor]


class Elsewhere:
    """The same problem at other arguments."""

    def __init__(self, problem: Problem) -> None:
        """Look at the inputs."""
        self.nearby = problem.nearby
        movable = {n: t for n, t in problem.inputs.items() if t.numel() and not t.is_complex() and t.isfinite().all()}
        self.symmetric = {name for name, t in movable.items() if is_symmetric(t)}
        self.whole = {name for name, t in movable.items() if t.numel() > 1 and torch.equal(t, t.round())}
        self.orthogonal = {name for name, t in movable.items() if is_orthogonal(t)}
        kinds = self.symmetric | self.whole | self.orthogonal
        self.domains = {name: domain(t) for name, t in movable.items() if name not in kinds}

    def moved(self, problem: Problem, seed: int, mirrored: bool = False, part: float | None = None) -> Problem | None:
        """At inputs changed by up to ``part`` of themselves, else by ``nearby``; None if there are to be none.

        ``mirrored``: those that are as often negative as positive get other signs, and another size, too.
        """
        if self.nearby is None:
            return None
        if callable(self.nearby) and part is None:
            return _drawn(problem, self.nearby, seed)
        generator, part = torch.Generator().manual_seed(seed), part or self.nearby

        def change(name: str, t: Tensor) -> Tensor:
            if name in self.orthogonal:  # the rows are a rotation of those that were
                return torch.cat([t[..., 1:, :], t[..., :1, :] * (-1) ** (t.shape[-2] - 1)], -2)
            if name in self.whole - self.symmetric:  # labels, counts, masks
                return t.roll(1, 0)
            noise = (part * (2 * torch.rand(t.shape, generator=generator) - 1)).to(t.device, t.real.dtype)
            if name in self.symmetric:
                scale = 1 + noise[..., 0] / 2
                return t * scale[..., :, None] * scale[..., None, :]
            corrections = self.domains.get(name)
            if mirrored and corrections == [] and 0.2 < float((t < 0).double().mean()) < 0.8:
                sign = torch.randint(2, t.shape, generator=generator).to(t) * 2 - 1
                return t * (1 + noise) * sign * (0.75 if t.abs().max() <= 1 else 1.5)
            bounded = not t.is_complex() and t.numel() > 0 and bool(t.abs().max() <= 1)
            new = t + noise * torch.minimum(t.abs(), 1 - t.abs()) if bounded else t * (1 + noise)
            for correct in corrections or []:
                new = correct(new)
            return new

        other = {name: copy_of(t, None, partial(change, name)) for name, t in problem.inputs.items()}
        return replace(problem, arguments=problem.arguments | other)

    def relabelled(self, problem: Problem) -> tuple[Problem, list[str]]:
        """With the integers and masks of other examples, and their names; offsets and what is causal stay."""
        generator, found = torch.Generator().manual_seed(problem.seed + 5), dict[str, Tensor]()
        batches = [t.shape[0] for t in problem.arguments.values() if isinstance(t, Tensor) and t.ndim]
        for name, t in problem.arguments.items():
            if not isinstance(t, Tensor) or has_gradient(t) or t.ndim == 0 or t.numel() < 2:
                continue
            d = 0 if batches.count(t.shape[0]) > 1 else t.shape.index(max(t.shape))
            if (t.ndim == 1 and (t[1:] >= t[:-1]).all()) or (t.ndim > 1 and torch.equal(t, t.tril())):
                continue
            new = t.index_select(d, torch.randperm(t.shape[d], generator=generator).to(t.device))
            new = t.roll(1, d) if torch.equal(new, t) else new
            if not torch.equal(new, t):
                found[name] = new
        return replace(problem, arguments=problem.arguments | found) if found else problem, list(found)

    def resized(self, problem: Problem, lengths: Mapping[int, int], first_only: bool = False) -> Problem:
        """With some lengths of all tensors replaced by smaller ones, or only where they come first."""
        arguments = dict(problem.arguments)
        for name, t in arguments.items() if not self.orthogonal else ():
            if not isinstance(t, Tensor):
                continue
            new = t
            for d in range(min(t.ndim, 1) if first_only else t.ndim):
                new = new.narrow(d, 0, lengths.get(t.shape[d], t.shape[d]))
            if new.numel() and not has_gradient(t) and t.dtype != torch.bool and not first_only:
                for old, length in lengths.items():  # labels and indices of what is no longer there
                    new = new % length if length <= int(t.max()) < old else new
            for correct in self.domains.get(name, []) if new.numel() else []:
                new = correct(new)
            arguments[name] = copy_of(new)
        return replace(problem, arguments=arguments)


def _drawn(problem: Problem, draw: Callable[..., Any], seed: int) -> Problem:
    given = draw(seed) if takes(draw, 1) else draw()
    if not isinstance(given, Mapping):
        listed = [given] if isinstance(given, Tensor) else list(given)
        if len(listed) != len(problem.form):
            raise ValueError(f"nearby: it drew {len(listed)} inputs, wanted {len(problem.form)}, as the check has")
        given = dict(zip(problem.form, listed, strict=True))
    form = {name: names_in(name, value) for name, value in given.items()}
    arguments = {n: t for name, value in given.items() for n, t in spread(form[name], value)}
    return replace(problem, arguments=arguments, form=form)


def is_symmetric(t: Tensor) -> bool:
    """Whether it holds matrices that are symmetric to rounding error."""
    if t.ndim < 2 or t.shape[-1] != t.shape[-2] or t.shape[-1] == 1:
        return False
    return bool((t - t.mT).abs().max() <= 8 * torch.finfo(t.dtype).eps * t.abs().max())


def is_orthogonal(t: Tensor) -> bool:
    """Whether it holds square matrices whose rows are orthogonal to rounding error, and of norm 1."""
    if t.ndim < 2 or t.shape[-1] != t.shape[-2] or t.shape[-1] == 1:
        return False
    wide = t.to(torch.promote_types(t.dtype, torch.float32))
    return bool((wide @ wide.mT - torch.eye(t.shape[-1]).to(wide)).abs().max() <= 32 * torch.finfo(t.dtype).eps)


def domain(t: Tensor) -> list[Correction]:
    """Return changes that bring a moved tensor back to sums, norms or an order that ``t`` has along a dimension."""
    return [correct for d in range(t.ndim) if t.shape[d] > 1 for correct in _domain_along(t, d)]


def _domain_along(t: Tensor, d: int) -> Iterator[Correction]:
    wide, eps = t.detach().to(torch.promote_types(t.dtype, torch.float32)), min(32 * torch.finfo(t.dtype).eps, 0.02)
    low, high = (float(bound) for bound in wide.aminmax())
    total = _constant(wide.sum(d), eps, max(-low, high))
    if total == 0:
        yield lambda t: t - t.mean(d, keepdim=True)
    elif total is not None and low >= 0:
        yield lambda t: t * (total / t.sum(d, keepdim=True))
    elif size := _constant(torch.linalg.vector_norm(wide, dim=d), eps, max(-low, high)):
        yield lambda t: normalize(t, dim=d) * size
    elif high <= 0 and _constant(wide.exp().sum(d), eps, 1.0):
        yield lambda t: t.log_softmax(d)
    if t.shape[d] > 2 and (wide.diff(dim=d) >= 0).all():
        yield lambda t: t.sort(d).values


def _constant(values: Tensor, eps: float, size: float) -> float | None:
    """The number that all values are to rounding error; of a single value only if it is 0 or 1."""
    low, high = (float(bound) for bound in values.aminmax())
    room = eps * max(size, abs(high))
    if high - low > room or (values.numel() == 1 and min(abs(high), abs(high - 1)) > room):
        return None
    return 0.0 if abs(high) <= room else (low + high) / 2
