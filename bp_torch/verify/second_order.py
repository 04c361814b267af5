"""The derivatives of a gradient as a problem of its own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.problem import Problem, copies, differentiable, numbered


class OnceDifferentiableError(Exception):
    """Says that a backward is marked as ``once_differentiable``: autograd would take its derivative for zero."""


def is_once_differentiable(gradients: Sequence[Tensor | None]) -> bool:
    """Whether one of them was computed by a backward that is marked so."""
    nodes = [g.grad_fn for g in gradients if g is not None and g.grad_fn]
    for node in nodes:  # it grows
        nodes.extend(following for following, _ in node.next_functions if following and following not in nodes)
    return any("Error" in node.name() for node in nodes)


def second_order_of(problem: Problem) -> Problem:
    """Σ ∂f/∂x ⊙ v as a function of the inputs x and of dy, v random: its gradient needs the second derivatives of f."""
    if problem.tensors is not None or problem.backward is not None:
        raise ValueError("second_order: wanted an autograd.Function, whose backward autograd differentiates")
    with torch.no_grad():
        dys = problem.output_gradients(problem.outputs(problem.forward, copies(problem.inputs)))

    def derivative(function: Callable[..., Any], *values: Any) -> Any:
        with torch.enable_grad():
            leaves = {n: t for n, t in zip(problem.arguments, values, strict=False) if n in problem.inputs}
            leaves = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in leaves.items()}
            y = differentiable(lambda t: problem.outputs(function, t), leaves, copies(leaves))
            generator = torch.Generator().manual_seed(problem.seed + 2)
            found = torch.autograd.grad(
                y, list(leaves.values()), values[len(problem.arguments) :], create_graph=True, allow_unused=True
            )
            if is_once_differentiable(found):
                raise OnceDifferentiableError
            total = next(iter(leaves.values())).real.sum() * 0
            for t, g in zip(leaves.values(), found, strict=True):
                v = torch.randn(t.shape, generator=generator).to(t.device, t.real.dtype)
                total = total + (g.real * v).sum() if g is not None else total
            return total

    forward = functools.partial(derivative, problem.forward)
    reference = functools.partial(derivative, problem.reference) if problem.reference else None
    named_dys = dict(zip(numbered("dy", len(dys)), dys, strict=True))
    arguments = {f"{name} (second order)": value for name, value in (problem.arguments | named_dys).items()}
    fixed = [f"{name} (second order)" for name in problem.arguments if problem.is_frozen(name)]
    nearby = None if callable(problem.nearby) else problem.nearby
    return Problem(arguments, False, forward, reference, seed=problem.seed, frozen=fixed, nearby=nearby)
