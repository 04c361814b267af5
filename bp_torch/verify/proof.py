"""Whether a wrong gradient would have been seen: mutants of one that seems right, judged as it was judged.

A mutant is what the gradient would be after a coarse mistake. A check that one of them passes proves nothing.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bp_torch.verify.judge import FAR, Judge, Trial
from bp_torch.verify.problem import norm
from bp_torch.verify.references import COARSE
from bp_torch.verify.report import NONE, Proof

SURELY = 100.0  # times a rough measure of rounding: what is further off needs no better one
Mutation = Callable[[Tensor], Tensor]
"""From a gradient in its own shape to the mutant."""


def prove(judge: Judge, name: str) -> None:
    """Judge mutants of a gradient that seems right: if one of them would be right too, nothing has been shown."""
    references, trial, found = judge.references, judge.seem_right[name], judge.estimates[name]
    shape, tolerance = references.shape(name), references.tolerance_for(name)
    factor = 1.01 if trial.in_float64 is not None or tolerance < 4e-3 else max(1.1, 1 + 2.5 * tolerance)
    known = torch.zeros(len(trial.ours), dtype=torch.bool)  # what a reference gives, by itself or in a direction
    for estimate in (e for e in found.values() if len(e.values)):
        known[slice(None) if estimate.entries is None else estimate.entries] = True
    compared, tried, survivor = int(known.sum()), list[str](), ""
    for words, mutation in mutations((trial.ours * known).reshape(shape), factor, tolerance):
        tried.append(words)
        if not is_seen(judge, name, trial.changed(lambda t, of=mutation: of(t.reshape(shape)).reshape(-1))):  # type: ignore[misc]
            survivor = words
            break
    coarse = references.eps_of(name) > COARSE and trial.in_float64 is not None and not survivor
    if coarse and norm(trial.ours) > FAR * norm(references.noise(name)):
        alone = 1.5  # in 16 bits only, whatever the run in float64 is
        tried.append(f"{alone:.3g} times itself in {judge.dtype}")
        if not is_seen(judge, name, Trial(alone * trial.ours, trial.in_float64)):
            survivor = tried[-1]
    if 2 * compared < len(known):
        text = f"only {compared:,} of its {len(known):,} entries could be compared: "
        judge.say("noise", name, text + what_would_tell(judge))
    elif not tried:
        judge.report.notes.append(f"{name}: the gradient is zero throughout")
    elif survivor and not is_zero(judge, name, trial):
        text = f"cannot be told from {survivor}, which would be called right as well: "
        judge.say("noise", name, text + what_would_tell(judge))
    judge.report.proofs[name] = Proof(compared, len(known), tried, partial(smallest_error, judge, name, trial))


def what_would_tell(judge: Judge) -> str:
    """Where a mutant could be told from the gradient."""
    if not judge.references.gradients:
        return "a reference=, or more seconds= and coordinates=, would tell"
    if judge.references.dtype != torch.float64:
        return "the same check in float64 would tell"
    return "inputs at which less of it is rounding would tell"


def is_seen(judge: Judge, name: str, trial: Trial) -> bool:
    """Whether a mutant is called wrong."""
    found = judge.estimates[name]
    trials = [(trial.ours, e) for e in found.values() if e.reference != "autograd" or "float64" not in found]
    if trial.in_float64 is not None:
        trials += [(trial.in_float64, estimate) for estimate in judge.widened(name, found)]
    for ours, estimate in trials:
        error = (estimate.select(ours) - estimate.values).abs()
        if estimate.ratio(error, NONE) > 1 and len(error):
            spread = math.sqrt(len(error)) if estimate.directions is not None else 1.0
            if norm(error) > SURELY * spread * judge.references.rough_noise(name):
                return True
            if not estimate.agrees(ours, partial(judge.allowance, name, estimate)):
                return True
    return judge.wrong_part(name, trial, found) is not None


def is_zero(judge: Judge, name: str, trial: Trial) -> bool:
    """Whether the gradient is zero to rounding, and an error of the size of the terms that cancel in it is seen."""
    references, right, uncertain = judge.references, judge.best(name), 0.0
    if right is None:
        central = judge.estimates[name].get("central")
        if central is None or len(central.values) < len(trial.ours):
            return False
        right, uncertain = central.values, norm(torch.as_tensor(central.uncertainty))
    noise = norm(references.noise(name, torch.float64 if references.inputs64 is not None else None))
    if norm(right) > FAR * noise + uncertain + references.underflow * math.sqrt(len(right)):
        return False
    generator = torch.Generator().manual_seed(references.seed)
    direction = torch.randn(len(right), generator=generator, dtype=torch.float64)
    direction *= norm(references.noise(name)) / references.eps_of(name) / norm(direction)
    return is_seen(judge, name, trial.changed(direction.add))


def smallest_error(judge: Judge, name: str, trial: Trial) -> float:
    """About the smallest uniform error, relative, that would be called wrong; infinite if none is."""
    error = 1e-12
    while error < 8 and not is_seen(judge, name, trial.changed(partial(torch.mul, other=1 + error))):
        error *= math.sqrt(10)
    return error if error < 8 else math.inf


# ---- mutants ----


def mutations(g: Tensor, factor: float, tolerance: float) -> Iterator[tuple[str, Mutation]]:
    """Each in words; those that change a gradient ``g`` by more than the tolerance."""
    for words, mutation in every_mutation(g, factor):
        moved = (mutation(g) - g).abs()
        if bool((moved > 2 * tolerance * torch.maximum(g.abs(), mutation(g).abs())).any()):
            yield words, mutation


def every_mutation(g: Tensor, factor: float) -> Iterator[tuple[str, Mutation]]:
    """Zero, −1, a factor, the largest entry, slice and pair of slices of each dimension, and transposed."""
    yield "0", torch.zeros_like
    yield "minus itself", torch.neg
    yield f"{factor:.3g} times itself", lambda t: factor * t
    largest = int(g.abs().argmax())
    yield "itself without its largest entry", lambda t: t.flatten().index_fill(0, torch.tensor(largest), 0).view_as(t)
    for d in (d for d in range(g.ndim) if g.shape[d] >= 2):
        slices = g.movedim(d, 0).reshape(g.shape[d], -1)
        i = int(slices.square().sum(1).argmax())
        j = int((slices - slices[i]).square().sum(1).argmax())
        order = torch.arange(g.shape[d])
        order[i], order[j] = j, i
        if g.ndim > 1:
            words = f"itself without index {i} of dimension {d}"
            yield words, lambda t, d=d, i=i: t.index_fill(d, torch.tensor(i), 0)  # type: ignore[misc]
        words = f"itself with indices {min(i, j)} and {max(i, j)} of dimension {d} swapped"
        yield words, lambda t, d=d, order=order: t.index_select(d, order)  # type: ignore[misc]
    if g.ndim >= 2 and g.shape[-1] == g.shape[-2] > 1:
        yield "its transpose", lambda t: t.mT
