"""The entry points: any hand-written gradient, layer or module compared with the references."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bp_torch.verify.candidate import Candidate
from bp_torch.verify.compare_forward import with_forward
from bp_torch.verify.diagnose import Hypotheses
from bp_torch.verify.judge import Judge
from bp_torch.verify.problem import Inputs, Problem, copies, differentiable, flat, named
from bp_torch.verify.references import NotReproducibleError, References, Trust
from bp_torch.verify.report import Finding, Report


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
    second_order: bool = False,
    trust: Trust | None = None,
    hypotheses: Hypotheses | None = None,
) -> Report:
    """Compare a hand-written gradient of a scalar function with three independent references.

    Args:
        function: takes the tensors and returns a scalar. If it also computes in float64 when its inputs are float64,
            all three references are available.
        inputs: a tensor, a sequence of arguments (``function(*inputs)``), or a mapping (``function(**inputs)``). Those
            that have no gradient (integers, masks, numbers, None) are passed on. None of the tensors needs to require
            a gradient; they are copied with their strides, and never changed.
        gradient: the hand-written gradient, as a function that is called like ``function``, or as the tensors
            themselves; one for each input, in the same order or under the same names, None for one that is not given.
            A function is called several times, at other inputs in between, to find out what it keeps from call to
            call. None: what autograd computes through ``function``, which goes through your own
            ``torch.autograd.Function``.
        names: of the inputs, for the report; else those of the mapping, or of the function's own arguments.
        reference: the same function in plain differentiable operations, for the references; None: ``function``.
            If both this and ``gradient`` are None, central differences are the only reference.
        tolerance: the relative error that is allowed, and nothing beyond it; None: ``tolerance_of`` the coarsest dtype
            among the inputs, plus a noise allowance where rounding alone moves the gradient further (compare.py).
        coordinates: for central differences, how many entries of each tensor; 0: none. The one that is furthest off
            is among them, the others are drawn from ``seed``, half of them where the gradient is not zero.
        seconds: after which no further entry of a tensor is begun; random directions are taken in any case.
        batch_size: to name it where it is a factor; None: found by shortening the inputs, if they can be.
        seed: of every random choice.
        second_order: also check the derivatives of the gradient, of an ``autograd.Function`` that has them.
        trust: "autograd" or "differences", where autograd does not give the derivative of the function (something is
            detached, rounded or straight-through) and so contradicts central differences: the one that is meant. None:
            such a contradiction is the finding, with the verdict SETUP.
        hypotheses: more patterns of error: ``hypotheses(name, given)`` yields pairs of words and the tensor that the
            gradient called ``name`` would then be, computed from the gradients ``given``.

    Raises:
        TypeError: for inputs among which no tensor has a gradient, or a function that returns no tensor.
        ValueError: for no inputs, an input that is not finite, a function that is not scalar, not finite, not the same
            when called again, or without a gradient; for gradients that do not match the inputs.
    """
    tensors = None if gradient is None or callable(gradient) else gradient
    backward = gradient if callable(gradient) else None
    problem = Problem(*named(inputs, names, function), function, reference, backward, tensors, seed=seed)
    return check_problem(problem, tolerance, coordinates, seconds, batch_size, second_order, trust, hypotheses)


def check_layer(
    forward: Callable[..., Any],
    inputs: Inputs,
    backward: Callable[..., Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    reference: Callable[..., Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Report:
    """``check`` for a layer: ``backward(dy, *inputs)`` returns the inputs' gradients.

    ``forward(*inputs)`` returns a tensor or several; of several, ``backward`` takes one dy for each, or a tuple of
    them, before the inputs. It is called right after ``forward``, as a training step does, so both may be methods of a
    layer that keeps what it needs. The scalar is Σ y ⊙ dy with random numbers dy in the shape of the outputs y: its
    gradient is ``backward`` at that dy. dy also comes scaled, in other strides, and as one number, expanded. The other
    arguments (``options``) and the errors are those of ``check``.
    """
    problem = Problem(*named(inputs, names, forward), forward, reference, backward, scalar=False, seed=seed)
    return check_problem(problem, **options)


def check_module(module: nn.Module, inputs: Inputs, *, reference: nn.Module | None = None, **options: Any) -> Report:
    """``check_layer`` for a module with a hand-written backward inside: by its inputs and by its parameters.

    ``reference`` is a module with the same parameter names in plain operations; None: central differences alone decide.
    Buffers (a running mean) start each call as they are now, and are not changed.
    """
    listed = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    keys = ["x"] if len(listed) == 1 else [f"x{i}" for i in range(1, len(listed) + 1)]

    def of(one: nn.Module) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            given, values = arguments[: len(listed)], dict(zip(parameters, arguments[len(listed) :], strict=True))
            dtype = next((t.dtype for t in arguments if isinstance(t, Tensor) and t.is_floating_point()), None)
            state = {n: b.to(dtype) if b.is_floating_point() else b.clone() for n, b in copies(dict(buffers)).items()}
            return torch.func.functional_call(one, values | state, given)

        buffers = list(one.named_buffers())
        return function

    if reference is not None and {n for n, _ in reference.named_parameters()} != set(parameters):
        raise ValueError(f"the reference module has other parameters than the module: wanted {', '.join(parameters)}")
    return check_layer(
        of(module),
        [*listed, *parameters.values()],
        names=[*keys, *parameters],
        reference=of(reference) if reference is not None else None,
        **options,
    )


def check_problem(
    problem: Problem,
    tolerance: float | None = None,
    coordinates: int = 200,
    seconds: float = 1.2,
    batch_size: int | None = None,
    second_order: bool = False,
    trust: Trust | None = None,
    hypotheses: Hypotheses | None = None,
) -> Report:
    """Judge the gradient of a problem; the options are those of ``check``."""
    with full_precision():
        try:
            references = References(problem, tolerance, trust)
        except NotReproducibleError as error:
            dtype = str(problem.dtype).removeprefix("torch.")
            return Report([], [Finding("setup", name, str(error)) for name in problem.inputs], dtype=dtype)
        candidate = Candidate(references)
        returned = max((torch.finfo(y.dtype).eps for y in candidate.outputs), default=0.0)
        if returned > references.eps:  # an output that is always in float32, or comes out of autocast
            references.judge_as(returned)
        if not candidate.gradients:
            raise ValueError(f"there is no gradient to check: all of {', '.join(problem.inputs)} are None")
        if not references.gradients and (not coordinates or references.inputs64 is None):
            raise ValueError(f"there is no reference to compare the gradient with: {'; '.join(references.notes)}")
        report = Judge(candidate, coordinates, seconds, batch_size or 0, hypotheses).report
        report = with_forward(report, candidate) if problem.reference else report
        report = replace(report, slopes=functools.partial(taylor_slopes, candidate))
    return (
        report + check_problem(second_order_of(problem), tolerance, coordinates, seconds, trust=trust)
        if second_order
        else report
    )


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


def second_order_of(problem: Problem) -> Problem:
    """Σ ∂f/∂x ⊙ v as a function of the inputs x, v random: its gradient needs the second derivatives of f."""
    if problem.tensors is not None or problem.backward is not None:
        raise ValueError("second_order: wanted an autograd.Function, whose backward autograd differentiates")

    def derivative(function: Callable[..., Any], *values: Any) -> Any:
        with torch.enable_grad():
            leaves = {n: t for n, t in zip(problem.arguments, values, strict=True) if n in problem.inputs}
            leaves = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in leaves.items()}
            y = differentiable(lambda t: problem.outputs(function, t), leaves)
            dys, generator = problem.output_gradients(y), torch.Generator().manual_seed(problem.seed + 2)
            found = torch.autograd.grad(y, list(leaves.values()), dys, create_graph=True, allow_unused=True)
            total = next(iter(leaves.values())).real.sum() * 0
            for t, g in zip(leaves.values(), found, strict=True):
                v = torch.randn(t.shape, generator=generator).to(t.device, t.real.dtype)
                total = total + (g.real * v).sum() if g is not None else total
            return total

    forward = functools.partial(derivative, problem.forward)
    reference = functools.partial(derivative, problem.reference) if problem.reference else None
    arguments = {f"{name} (second order)": value for name, value in problem.arguments.items()}
    return Problem(arguments, False, forward, reference, seed=problem.seed)
