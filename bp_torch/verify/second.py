"""Second derivatives: a check of the gradient's own gradient."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bp_torch.verify.inputs import Arguments
from bp_torch.verify.problem import Problem, differentiable


def second_order_of(problem: Problem) -> Problem:
    """The function Σ ∂f/∂x ⊙ v of the inputs x, with random numbers v: its gradient needs the second derivatives of f.

    Raises ValueError for a gradient that is not an ``autograd.Function``.
    """
    if not problem.is_function or problem.backward is not None:
        raise ValueError("second_order: wanted an autograd.Function, whose backward autograd differentiates")
    arguments = {f"{name} (second order)": value for name, value in problem.arguments.arguments.items()}
    given = Arguments(arguments, None, str)
    given.by_keyword = False
    plain = replace(problem, arguments=given)
    return Problem(
        given,
        _derivative(plain, problem.forward, problem.arguments.by_keyword, list(problem.arguments.arguments)),
        _derivative(plain, problem.reference, problem.arguments.by_keyword, list(problem.arguments.arguments))
        if problem.reference
        else None,
        seed=problem.seed,
    )


def _derivative(
    problem: Problem, function: Callable[..., Any], by_keyword: bool, names: list[str]
) -> Callable[..., Any]:
    def called(*values: Any) -> Any:
        return function(**dict(zip(names, values, strict=True))) if by_keyword else function(*values)

    def derivative(*values: Any) -> Any:
        with torch.enable_grad():
            tensors = dict(zip(problem.arguments.names, values, strict=True))
            leaves = {n: t for n, t in tensors.items() if n in problem.inputs}
            leaves = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in leaves.items()}
            y = differentiable(lambda t: problem.outputs(called, t), leaves)
            dys = problem.output_gradients(y)
            found = torch.autograd.grad(y, list(leaves.values()), dys, create_graph=True, allow_unused=True)
            generator = torch.Generator().manual_seed(problem.seed + 2)
            total = next(iter(leaves.values())).real.sum() * 0
            for t, g in zip(leaves.values(), found, strict=True):
                v = torch.randn(t.shape, generator=generator).to(t.device, t.real.dtype)
                total = total + (g.real * v).sum() if g is not None else total
            return total

    return derivative
