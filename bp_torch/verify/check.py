"""The entry points: any hand-written gradient, layer or module compared with the references."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bp_torch.text import count
from bp_torch.verify.arrays import in_tensors, references_outside
from bp_torch.verify.calls import Candidate, make_calls
from bp_torch.verify.compare_forward import with_forward
from bp_torch.verify.diagnose import Hypotheses
from bp_torch.verify.judge import Judge
from bp_torch.verify.modules import lent
from bp_torch.verify.problem import Problem, flat, numbered
from bp_torch.verify.proof import prove
from bp_torch.verify.references import NotReproducibleError, References, Trust, first_line
from bp_torch.verify.report import Finding, Report
from bp_torch.verify.second_order import OnceDifferentiableError, second_order_of

Inputs = Any
"""A tensor, a sequence of arguments, or a mapping of them; some must be tensors of real or complex numbers."""
ACCEPTABLE = {
    "inputs overwritten": "overwrites its input|changes its input|is a view of the input",
    "dy overwritten": "writes into dy",
    "other dtype": "has the dtype",
    "dy contiguous": "for a dy that is not contiguous",
    "dy not expanded": "for a dy that is one number, expanded",
}
"""What may be meant of what is called a problem, with words of the problem."""


def check(
    function: Callable[..., Any],
    inputs: Inputs,
    gradient: Any = None,
    *,
    names: Sequence[str] | None = None,
    reference: Callable[..., Any] | None = None,
    tolerance: float | None = None,
    coordinates: int = 200,
    seconds: float = 1.2,
    batch_size: int | None = None,
    seed: int = 0,
    frozen: Sequence[str] = (),
    nearby: float | Callable[..., Any] | None = 0.4,
    second_order: bool = False,
    trust: Trust | None = None,
    hypotheses: Hypotheses | None = None,
    **more: Any,
) -> Report:
    """Compare a hand-written gradient of a scalar function with three independent references.

    Args:
        function: takes the tensors and returns a scalar. If it also computes in float64 when its inputs are float64,
            all three references are available.
        inputs: a tensor, a sequence of arguments (``function(*inputs)``), or a mapping (``function(**inputs)``). An
            argument may be a list of tensors. Those that have no gradient (integers, masks, numbers, None) are passed
            on. None of the tensors needs to require a gradient; they are copied with their strides, and never changed.
        gradient: the hand-written gradient, as a function that is called like ``function``, or as the tensors
            themselves; one for each input, in the same order or under the same names, None for one that is not given.
            A function is called some forty times, in the ways that calls.py lists. None: what autograd computes through
            ``function``, which goes through your own ``torch.autograd.Function``.
        names: of the inputs, for the report; else those of the mapping, or of the function's own arguments.
        reference: the same function in plain differentiable operations, for the references; None: ``function``.
            If both this and ``gradient`` are None, central differences are the only reference.
        tolerance: the relative error that is allowed, and nothing beyond it; None: ``tolerance_of`` the coarsest dtype
            among the inputs, plus a noise allowance where rounding alone moves the gradient further (differences.py).
        coordinates: for central differences, how many entries of each tensor; 0: none. The one that is furthest off
            is among them, the others are drawn from ``seed``, half of them where the gradient is not zero.
        seconds: after which no further entry of a tensor is begun; random directions are taken in any case.
        batch_size: to name it where it is a factor; None: found by shortening the inputs, if they can be.
        seed: of every random choice. A function that draws random numbers starts from it in every call.
        frozen: the names of inputs that have no gradient though they are real numbers: they are passed on.
        nearby: by which part of themselves the inputs are changed where the gradient is called at others; or
            ``make_inputs(seed)``, which draws all inputs anew; None: it is not called at other inputs.
        second_order: also check the derivatives of the gradient of an ``autograd.Function``, by its inputs and by dy.
        trust: "autograd" or "differences", where autograd does not give the derivative of the function (something is
            detached, rounded or straight-through) and so contradicts central differences: the one that is meant. None:
            such a contradiction is the finding, with the verdict SETUP.
        hypotheses: more patterns of error: ``hypotheses(name, given)`` yields pairs of words and the tensor that the
            gradient called ``name`` would then be, computed from the gradients ``given``.
        more: ``compare_forward=False``, or a function: the forward may be any, or has to be this one, and the gradient
            that of ``reference``, as for a surrogate gradient. ``accept=``: names of deviations that are meant, of
            ``ACCEPTABLE``; they become notes. ``linear_within=``: the relative difference between calls that counts as
            none, as for a solver, whose gradient is not linear in dy to the last digit.

    Inputs may be NumPy arrays. Then ``function`` and ``gradient`` are functions of arrays, which return arrays or
    numbers, and central differences alone decide; ``reference`` takes tensors, and makes autograd a reference too.

    Raises:
        TypeError: for inputs among which no tensor has a gradient, or a function that returns no tensor.
        ValueError: for no inputs, an input that is not finite, a function that is not scalar, not finite, not the same
            when called again, or without a gradient; for gradients that do not match the inputs.
    """
    inputs, called, gradient = of_tensors(inputs, function, gradient)
    tensors = None if gradient is None or callable(gradient) else gradient
    backward = gradient if callable(gradient) else None
    given: Any = {"seed": seed, "frozen": frozen, "nearby": nearby}
    problem = Problem(*named(inputs, names, function), called, reference, backward, tensors, **given)
    return check_problem(problem, tolerance, coordinates, seconds, batch_size, second_order, trust, hypotheses, **more)


def check_layer(
    forward: Callable[..., Any],
    inputs: Inputs,
    backward: Callable[..., Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    reference: Callable[..., Any] | None = None,
    seed: int = 0,
    frozen: Sequence[str] = (),
    nearby: float | Callable[..., Any] | None = 0.4,
    **options: Any,
) -> Report:
    """``check`` for a layer: ``backward(dy, *inputs)`` returns the inputs' gradients.

    ``forward(*inputs)`` returns a tensor or several; of several, ``backward`` takes one dy for each, or a tuple of
    them, before the inputs. It is called right after ``forward``, as a training step does, so both may be methods of a
    layer that keeps what it needs. The scalar is Σ y ⊙ dy with random numbers dy in the shape of the outputs y: its
    gradient is ``backward`` at that dy. The other arguments (``options``) and the errors are those of ``check``.
    """
    inputs, called, backward = of_tensors(inputs, forward, backward)
    given: Any = {"seed": seed, "frozen": frozen, "nearby": nearby}
    problem = Problem(*named(inputs, names, forward), called, reference, backward, scalar=False, **given)
    return check_problem(problem, **options)


def check_module(module: nn.Module, inputs: Inputs, *, reference: nn.Module | None = None, **options: Any) -> Report:
    """``check_layer`` for a module with a hand-written backward inside: by its inputs and by its parameters.

    ``reference`` is a module with the same parameter names in plain operations; None: central differences alone decide.
    Parameters that require no gradient are not judged. Buffers (a running mean) start each call as they are now. The
    gradients are those that ``.backward()`` leaves, as a backward that computes the forward again may need it.
    """
    listed = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    judged = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    if reference is not None and not set(judged) <= {n for n, _ in reference.named_parameters()}:
        raise ValueError(f"the reference module has other parameters than the module: wanted {', '.join(judged)}")
    shared = {n for n, _ in reference.named_parameters()} if reference else set[str]()
    still = {n: p.detach() for n, p in module.named_parameters() if n in shared - judged.keys()}  # without a gradient
    names = [*judged, *still]
    arguments = dict(zip(numbered("x", len(listed)), listed, strict=True)) | judged | still
    with lent(module, names) as (forward, stray), lent(reference or module, names) as (plain, _):
        own = {name: options.pop(name) for name in ("seed", "frozen", "nearby") if name in options}
        own["frozen"] = [*own.get("frozen", ()), *still]
        right = plain if reference is not None else None
        more: Any = {"scalar": False, "shared": names, "accumulates": True} | own
        report = check_problem(Problem(arguments, False, forward, right, **more), **options)
    text = "autograd never calls the method backward of {}: give it to check_layer, or put it into an autograd.Function"
    findings = [Finding("setup", name, text.format(one)) for one in stray for name in report.gradients]
    return replace(report, findings=report.findings + findings)


def check_problem(
    problem: Problem,
    tolerance: float | None = None,
    coordinates: int = 200,
    seconds: float = 1.2,
    batch_size: int | None = None,
    second_order: bool = False,
    trust: Trust | None = None,
    hypotheses: Hypotheses | None = None,
    compare_forward: Callable[..., Any] | bool = True,
    accept: Sequence[str] = (),
    linear_within: float = 0.0,
) -> Report:
    """Judge the gradient of a problem; the options are those of ``check``."""
    if unknown := {*accept} - ACCEPTABLE.keys():
        raise ValueError(f"accept: wanted some of {', '.join(ACCEPTABLE)}; got {', '.join(map(repr, sorted(unknown)))}")
    with full_precision():
        try:
            references = References(problem, tolerance, trust)
        except NotReproducibleError as error:
            dtype = str(problem.dtype).removeprefix("torch.")
            return Report([], [Finding("setup", name, str(error)) for name in problem.inputs], dtype=dtype)
        except (ValueError, RuntimeError) as error:
            if "returned an invalid gradient" in str(error):  # autograd's own words on one of another shape
                dtype = str(problem.dtype).removeprefix("torch.")
                return Report([], [Finding("problem", n, first_line(error)) for n in problem.inputs], dtype=dtype)
            references = references_outside(problem, tolerance, error)
        references.linear_within = linear_within
        candidate = Candidate(references)
        returned = max((torch.finfo(y.dtype).eps for y in candidate.outputs), default=0.0)
        if returned > references.eps:  # an output that is always in float32, or comes out of autocast
            references.judge_as(returned)
        make_calls(candidate)
        if not candidate.gradients:
            raise ValueError(f"there is no gradient to check: all of {', '.join(problem.inputs)} are None")
        if not references.gradients and (not coordinates or references.inputs64 is None):
            raise ValueError(f"there is no reference to compare the gradient with: {'; '.join(references.notes)}")
        judge = Judge(candidate, coordinates, seconds, batch_size or 0, hypotheses)
        for name in judge.seem_right:
            prove(judge, name)
        report = judge.explained()
        right = references.problem.reference if compare_forward is True else compare_forward
        report = with_forward(report, candidate, right) if callable(right) else report
        report = with_accepted(report, accept)
        report = replace(report, slopes=functools.partial(taylor_slopes, candidate))
        if compare_forward is not True:
            text = "compared with compare_forward=" if compare_forward else "not compared"
            report.notes.append(f"the forward is {text}, the gradient with that of reference=")
    options = (tolerance, coordinates, seconds, None, False, trust)
    return report + second_report(problem, *options) if second_order else report


def of_tensors(inputs: Any, *functions: Any) -> list[Any]:
    """Inputs and functions as they are; as such of tensors, if an input is a NumPy array."""
    is_array = any(isinstance(t, np.ndarray) for t in tree_leaves(inputs))
    return in_tensors(inputs, *functions) if is_array else [inputs, *functions]


def named(inputs: Inputs, names: Sequence[str] | None, function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """The arguments by name, and whether they are passed by keyword. Raises ValueError for names that do not match."""
    if isinstance(inputs, Mapping):
        return dict(inputs), True
    listed = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    keys = list(names or _argument_names(function, len(listed)))
    if len(keys) != len(listed) or len(set(keys)) != len(keys):
        raise ValueError(f"expected one name for each of {count(len(listed), 'input')}, got {', '.join(keys)}")
    return dict(zip(keys, listed, strict=True)), False


def _argument_names(function: Callable[..., Any], n: int) -> list[str]:
    """The names of the first n arguments, or x1, x2, … if the function does not name them."""
    try:
        arguments = list(inspect.signature(function).parameters.values())[:n]
    except (TypeError, ValueError):
        arguments = []
    if len(arguments) == n and all(a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) for a in arguments):
        return [a.name for a in arguments]
    return numbered("x", n)


def second_report(problem: Problem, *options: Any) -> Report:
    """The report on the derivatives of the gradient."""
    try:
        return check_problem(second_order_of(problem), *options)
    except OnceDifferentiableError:
        text = "has no second derivative: its backward is marked once_differentiable"
        return Report([], [Finding("problem", f"{name} (second order)", text) for name in problem.inputs])


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 matrices have all of its digits inside, whatever is set outside, and there again afterwards.

    torch has two kinds of switches: an older one, which cannot be read once the newer ones say something else.
    """
    switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    newer, older = [switch.fp32_precision for switch in switches], "highest"
    with suppress(RuntimeError):
        older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # sets both kinds
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for switch, precision in zip(switches, newer, strict=True):
            switch.fp32_precision = precision


def with_accepted(report: Report, accept: Sequence[str]) -> Report:
    """The report without what is accepted, which its notes tell."""
    pattern = "|".join(ACCEPTABLE[name] for name in accept) or r"\b\B"
    meant = [f for f in report.findings if f.kind == "problem" and re.search(pattern, f.words)]
    notes = [f"accepted: {f.gradient} {f.words}" for f in meant]
    return replace(report, findings=[f for f in report.findings if f not in meant], notes=report.notes + notes)


def taylor_slopes(candidate: Candidate) -> dict[str, float]:
    """The slope of the Taylor remainder of each gradient, along a random direction; without those that show none."""
    references, found = candidate.references, dict[str, float]()
    for name, g in candidate.gradients.items() if references.inputs64 is not None else ():
        if g.shape == references.inputs[name].shape and g.numel() and not g.is_complex():
            generator = torch.Generator().manual_seed(references.seed + 3)
            direction = torch.randn(g.numel(), generator=generator, dtype=torch.float64)
            slope = references.differences(name).taylor_slope(candidate.in_float64.get(name, flat(g)), direction)
            found |= {name: slope} if slope is not None else {}
    return found
