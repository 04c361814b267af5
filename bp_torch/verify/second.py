"""Second derivatives: a check of the gradient's own gradient."""

from collections.abc import Callable
from typing import Any

import torch

from bp_torch.verify.problem import Problem, differentiable


def second_order_of(problem: Problem) -> Problem:
    """The function Σ ∂f/∂x ⊙ v of the inputs x, with random numbers v: its gradient needs the second derivatives of f.

    Raises ValueError for a gradient that is not an ``autograd.Function``.
    """
    if problem.tensors is not None or problem.backward is not None:
        raise ValueError("second_order: wanted an autograd.Function, whose backward autograd differentiates")
    return Problem(
        {f"{name} (second order)": value for name, value in problem.arguments.items()},
        False,
        _derivative(problem, problem.forward),
        _derivative(problem, problem.reference) if problem.reference else None,
        seed=problem.seed,
    )


def _derivative(problem: Problem, function: Callable[..., Any]) -> Callable[..., Any]:
    def derivative(*values: Any) -> Any:
        with torch.enable_grad():
            leaves = {n: t for n, t in zip(problem.arguments, values, strict=True) if n in problem.inputs}
            leaves = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in leaves.items()}
            y = differentiable(lambda t: problem.outputs(function, t), leaves)
            dys = problem.output_gradients(y)
            found = torch.autograd.grad(y, list(leaves.values()), dys, create_graph=True, allow_unused=True)
            generator = torch.Generator().manual_seed(problem.seed + 2)
            total = next(iter(leaves.values())).real.sum() * 0
            for t, g in zip(leaves.values(), found, strict=True):
                v = torch.randn(t.shape, generator=generator).to(t.device, t.real.dtype)
                total = total + (g.real * v).sum() if g is not None else total
            return total

    return derivative
