"""The forward under test against the reference, as strictly as the gradient: in its own dtype, and run in float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.calls import Candidate
from bp_torch.verify.differences import CENTRAL_ACCURACY, Differences, root_mean_square, rounding_errors
from bp_torch.verify.problem import Problem, Tensors, copies, flat, in_float64, norm
from bp_torch.verify.references import ALLOWED_IN_FLOAT64, EPS32, NOISE_FACTOR, References, tolerance_of
from bp_torch.verify.report import Allowance, Estimate, Report


def with_forward(report: Report, candidate: Candidate, expected: Callable[..., Any]) -> Report:
    """The report, with what is wrong in the forward; gradients that are right for that forward are not blamed."""
    if not (text := wrong_forward(candidate, expected)):
        return report
    rightful = [name for name in report.wrong if follows_own_forward(candidate, name)]
    if not rightful:
        return replace(report, forward=text)
    compared = [replace(c, decides=c.decides and c.gradient not in rightful) for c in report.comparisons]
    findings = [f for f in report.findings if f.gradient not in rightful]
    text += f". That is the cause: what is given for {', '.join(rightful)} is the gradient of this forward"
    return replace(report, forward=text, comparisons=compared, findings=findings)


def wrong_forward(candidate: Candidate, expected: Callable[..., Any]) -> str:
    """How the forward differs from the one that is ``expected``; "" if it does not."""
    references, problem = candidate.references, candidate.problem
    with torch.inference_mode(False), torch.no_grad():
        ours = candidate.outputs or problem.outputs(problem.forward, copies(problem.inputs))
        right = problem.outputs(expected, copies(problem.inputs))
        best = problem.outputs(expected, copies(references.inputs64)) if references.inputs64 else right
    if len(ours) != len(right):
        return f"returns {len(ours)} tensors, the reference {len(right)}"
    in_float64 = candidate.outputs_in_float64 if references.inputs64 else []
    for i, (y, own, r) in enumerate(zip(ours, right, best, strict=True)):
        which = f" {i + 1}" if len(ours) > 1 else ""
        if y.shape != own.shape:
            return f"returns y{which} of shape {list(y.shape)}, the reference {list(own.shape)}"
        a, b, c = flat(y), flat(own), flat(r)
        known = b.isfinite() & c.isfinite()
        if not torch.equal(a.isfinite(), b.isfinite()) and not torch.equal(a.isfinite(), c.isfinite()):
            return f"returns y{which} that is not finite where the reference is, or the reverse"
        eps = max(torch.finfo(own.dtype).eps, torch.finfo(y.dtype).eps, references.eps_inside)
        tolerance = references.given_tolerance or eps ** (2 / 3)
        estimate = Estimate("", c[known], None, norm(c[known]), tolerance, references.underflow)

        apart = (b - c)[known].abs()
        if not estimate.agrees(a[known], partial(output_allowance, references, expected, i, known, apart)):
            return f"differs from the reference: y{which} is off by {_share(a[known], c[known])} of its norm"
        if len(in_float64) > i and in_float64[i].shape == r.shape and candidate.eps_in_float64 < references.eps:
            allowed = ALLOWED_IN_FLOAT64 if candidate.eps_in_float64 < EPS32 else tolerance_of(torch.float32)
            wide = flat(in_float64[i])[known]
            if norm(wide - c[known]) > max(allowed, 4 * references.eps64) * norm(c[known]) + references.underflow:
                share = _share(wide, c[known])
                return f"differs from the reference: run in float64, y{which} is off by {share} of its norm"
    return ""


def _share(y: Tensor, right: Tensor) -> str:
    error, size = norm(y - right), norm(right)
    return f"{error / size if size else error:.1e}"


def output_allowance(
    references: References, expected: Callable[..., Any], i: int, known: Tensor, apart: Tensor
) -> Allowance:
    """How far rounding may move each of the ``known`` entries of the i-th output: by a few times what it moves the
    reference's, and how far that is ``apart`` (k,) from float64."""
    problem = references.problem
    with torch.inference_mode(False), torch.no_grad():
        moved = rounding_errors(lambda: {"y": problem.outputs(expected, copies(problem.inputs))[i]}, references.seed)
    return NOISE_FACTOR * (root_mean_square(moved["y"])[known] + apart), 0.0


def follows_own_forward(candidate: Candidate, name: str) -> bool:
    """Whether a gradient is that of the forward under test, by differences of it along random directions."""
    references, problem = candidate.references, candidate.problem
    ours = candidate.in_float64.get(name, flat(candidate.gradients[name]))
    if name in {f.gradient for f in candidate.findings if f.kind == "problem"} or not ours.isfinite().all():
        return False
    own: Problem = replace(problem, reference=None)

    def unused(inputs: Tensors) -> Tensor:
        return ours

    try:
        differences = Differences(own.value, in_float64(references.inputs), name, unused, ours)
        generator = torch.Generator().manual_seed(references.seed + 5)
        for _ in range(3):
            v = torch.randn(len(ours), generator=generator, dtype=torch.float64)
            derivative = differences.along(v, CENTRAL_ACCURACY * norm(ours))
            allowed = 4 * max(ALLOWED_IN_FLOAT64, CENTRAL_ACCURACY) if candidate.in_float64 else references.tolerance
            off = abs(derivative.value - float(ours @ v))
            if not off <= allowed * norm(ours) + 4 * derivative.uncertainty or not math.isfinite(off):
                return False
    except Exception:  # the forward under test may not take float64
        return False
    return True
