"""A score of gradient checkers: how many faults of the bank each one finds, and how many right backwards it fails.

Every checker gets the same backward, with one fault, in each dtype; and every backward without a fault. All are used
as they come: gradcheck, and gradcheck in its fast mode; assert_close at PyTorch's default tolerances against autograd;
and the rule of flash-attention's tests, by which an error may be twice PyTorch's in that dtype, both against float64;
where JAX is installed its check_grads, of what runs on its arrays (in_jax.py). ``outside`` is the score on the cases.
"""

import re
import sys
import time
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bp_torch.verify.bank import LAYERS, Backward, Layer, faulty
from bp_torch.verify.bank.layers import normal
from bp_torch.verify.cases import Case, Version, cases, function_of
from bp_torch.verify.in_jax import agrees
from bp_torch.verify.problem import Tensors, autograd, has_gradient
from bp_torch.verify.report import Report

DTYPES = ("float64", "float32", "bfloat16")


@dataclass
class Score:
    """The score of one checker on the bank in one dtype, with the names that it has in JSON."""

    dtype: str
    checker: str
    faults: int = 0
    layers: int = 0
    caught: int = 0  # of the faults
    noise: int = 0  # of those caught, the verdict is NOISE
    rightly: int = 0  # of those caught, the diagnosis is the expected one
    wrongly: int = 0  # of those caught, the diagnosis is another
    seconds: float = 0.0
    alarms: list[str] = field(default_factory=list)  # right layers that do not pass
    missed: list[str] = field(default_factory=list)  # faults that pass
    misnamed: list[str] = field(default_factory=list)  # faults with another diagnosis, and that diagnosis


@dataclass
class Finding:
    """The answer of a checker for one backward."""

    passes: bool
    words: str = ""  # what is wrong
    noise: bool = False  # the verdict is NOISE


def bench(dtypes: Collection[str] = DTYPES, names: Collection[str] = ()) -> list[Score]:
    """The score of every checker on every fault of the layers with these names. No names: of all layers."""
    layers = [layer for name, layer in LAYERS.items() if not names or name in names]
    scores = {(d, c): Score(d, c) for d in dtypes for c in CHECKERS if (d, c) not in MEANINGLESS}
    todo = [(layer, d) for d in dtypes for layer in layers if layer.computes_in(getattr(torch, d))]
    for layer, dtype in tqdm(todo, unit="layer", leave=False, disable=None, delay=2, file=sys.stderr):
        for score in scores.values():
            if score.dtype == dtype:
                add(score, layer)
    return list(scores.values())


def add(score: Score, layer: Layer) -> None:
    """Add one layer, right and with each of its faults, to the score."""
    check, dtype = CHECKERS[score.checker], getattr(torch, score.dtype)
    start = time.process_time()
    if found := check(layer, layer.backward, dtype):
        add_right(score, layer.name, found)
    for fault in layer.faults.values():
        if found := check(layer, faulty(layer, fault), dtype):
            add_wrong(score, f"{layer.name}: {fault.name}", found, fault.expected_diagnosis)
    score.seconds += time.process_time() - start


def add_right(score: Score, name: str, found: Finding) -> None:
    """Add the answer for a right backward."""
    score.layers += 1
    score.alarms += [] if found.passes else [name]


def add_wrong(score: Score, name: str, found: Finding, expected_diagnosis: str) -> None:
    """Add the answer for a wrong one."""
    score.faults += 1
    score.caught += not found.passes
    score.noise += found.noise
    if found.passes:
        score.missed.append(name)
    elif found.words and expected_diagnosis and re.search(expected_diagnosis, found.words):
        score.rightly += 1
    elif found.words:
        score.wrongly += 1
        score.misnamed.append(f"{name}: {found.words}")


def outside(chosen: Collection[Case] | None = None) -> list[Score]:
    """The score of verify, and of gradcheck in float64, on the versions of these cases; None: of all."""
    scores = [Score("", checker) for checker in OUTSIDE]
    for case in tqdm(chosen or cases(), unit="case", leave=False, disable=None, delay=2, file=sys.stderr):
        for version, score in product(case.versions, scores):
            start = time.process_time()
            if found := OUTSIDE[score.checker](case, version):
                name = f"{case.name}: {version.way}: {version.name}"
                add_right(score, name, found) if version.right else add_wrong(score, name, found, version.words)
            score.seconds += time.process_time() - start
    return scores


def false_alarms(n: int, dtype: str) -> list[str]:
    """Those of n right backwards at random inputs, of random scales, that verify does not call right."""
    layers, found = [one for one in LAYERS.values() if one.computes_in(getattr(torch, dtype))], list[str]()
    for seed in tqdm(range(n), unit="check", leave=False, disable=None, delay=2, file=sys.stderr):
        layer = layers[seed % len(layers)]
        report = layer.judged(layer.backward, getattr(torch, dtype), seed + 1, coordinates=10)
        if not report.ok:
            found.append(f"{layer.name}, seed {seed + 1}: {report.verdict}")
    return found


# ---- the checkers ----


def by_verify(layer: Layer, backward: Backward, dtype: torch.dtype) -> Finding:
    """``check_layer``, as it comes."""
    report = layer.judged(backward, dtype)
    return Finding(report.ok, words_of(report), report.verdict == "NOISE")


def words_of(report: Report) -> str:
    """All that it says of what is wrong, but for the place."""
    forward = [f"the forward {report.forward}"] if report.forward else []
    return " | ".join([*report.diagnoses, *(text for texts in report.problems.values() for text in texts), *forward])


def by_verdict(case: Case, version: Version) -> Finding:
    """The verdict of verify in every dtype of the case. A version that is wrong passes if the verdict is not due."""
    reports = list[Report]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in case.dtypes:
            with suppress(Exception):  # then there is one report fewer
                reports.append(case.report(version, dtype))
    due = len(reports) == len(case.dtypes) and all(report.verdict in version.due for report in reports)
    words = " | ".join(dict.fromkeys(filter(None, map(words_of, reports))))
    return Finding(due is version.right, words, any(report.verdict == "NOISE" for report in reports))


def by_gradcheck(layer: Layer, backward: Backward, dtype: torch.dtype, fast: bool = False) -> Finding:
    """``torch.autograd.gradcheck`` of an autograd.Function with the backward in it."""
    function = function_of({"reference": lambda *given: layer.forward(*given).clone(), "backward": backward})
    given = [t.requires_grad_() if has_gradient(t) else t for t in layer.arguments(dtype).values()]
    return gradcheck(function, given, fast)


def gradcheck(function: Callable[..., Any], given: list[Any], fast: bool, twice: bool = False) -> Finding:
    """The answer of gradcheck, and of gradgradcheck if ``twice``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.autograd.gradcheck(function, given, fast_mode=fast)
            return Finding(not twice or torch.autograd.gradgradcheck(function, given, fast_mode=fast))
        except Exception:  # a wrong gradient, or one that it cannot check
            return Finding(False)


def outside_by_gradcheck(case: Case, version: Version, fast: bool = False) -> Finding | None:
    """gradcheck of a version in float64, whatever the dtype of the case. None for NumPy, which it does not take."""
    if version.way == "numpy":
        return None
    drawn = case.arguments(torch.float64)
    given = [t.to(torch.promote_types(t.dtype, torch.float64)) if has_gradient(t) else t for t in drawn]
    for t in given[:1] if version.way == "frozen" else given:
        t.requires_grad_(has_gradient(t))
    function = function_of(case.scope(version))
    copied = lambda *t: function(*(x.clone() for x in t))  # noqa: E731 (it may work in place)
    return gradcheck(copied, given, fast, version.way == "twice")


def gradients(layer: Layer, backward: Backward, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The layer's gradients: by hand, by autograd in the same dtype, by autograd in float64."""
    arguments = layer.arguments(dtype)
    dy = normal(*layer.forward(*arguments.values()).shape)(torch.Generator().manual_seed(99), dtype)
    ours = backward(dy.clone(), *[t.clone() for t in arguments.values()])

    def by_autograd(kind: torch.dtype) -> Tensors:
        leaves = {name: t.to(kind) for name, t in arguments.items() if has_gradient(t)}
        return autograd(lambda t: (layer.forward(*(arguments | t).values()) * dy.to(kind)).sum(), leaves)[1]

    own, best = by_autograd(dtype), by_autograd(torch.float64)
    pairs = zip(arguments, ours if isinstance(ours, tuple) else (ours,), strict=True)
    return [(g, own[name], best[name]) for name, g in pairs if name in own and g is not None]


def by_assert_close(layer: Layer, backward: Backward, dtype: torch.dtype) -> Finding:
    """``torch.testing.assert_close`` with autograd, at its default tolerances."""
    try:
        for g, a, _ in gradients(layer, backward, dtype):
            torch.testing.assert_close(g, a)
    except (AssertionError, RuntimeError):
        return Finding(False)
    return Finding(True)


def by_twice(layer: Layer, backward: Backward, dtype: torch.dtype) -> Finding:
    """An error of at most twice autograd's own, as flash-attention's tests have it."""
    try:
        found = gradients(layer, backward, dtype)
        return Finding(all((g - f).abs().max() <= 2 * (a - f).abs().max() for g, a, f in found))
    except RuntimeError:  # a gradient of another shape
        return Finding(False)


def by_check_grads(layer: Layer, backward: Backward, dtype: torch.dtype) -> Finding | None:
    """``jax.test_util.check_grads`` at its default tolerances; None for what does not run on JAX's arrays."""
    agreed = agrees(layer.forward, backward, layer.backward, list(layer.arguments(dtype).values()))
    return None if agreed is None else Finding(agreed)


CHECKERS: dict[str, Callable[[Layer, Backward, torch.dtype], Finding | None]] = {
    "verify": by_verify,
    "gradcheck": by_gradcheck,
    "fast gradcheck": partial(by_gradcheck, fast=True),
    "assert_close": by_assert_close,
    "twice PyTorch's": by_twice,
}
if find_spec("jax"):
    CHECKERS["check_grads of JAX"] = by_check_grads
MEANINGLESS = {
    ("float64", "twice PyTorch's"),
    ("bfloat16", "check_grads of JAX"),
}  # it has no error, or does not take it
OUTSIDE: dict[str, Callable[[Case, Version], Finding | None]] = {
    "verify": by_verdict,
    "gradcheck": outside_by_gradcheck,
    "fast gradcheck": partial(outside_by_gradcheck, fast=True),
}
