"""Functions of NumPy arrays, and others that autograd cannot go through: central differences judge their gradients."""

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from bp_torch.verify.problem import Problem
from bp_torch.verify.references import References


def as_tensor(value: Any) -> Tensor:
    """An array or a number as a tensor, which shares its memory where torch can."""
    array = np.asarray(value)
    return torch.from_numpy(array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy())


def in_tensors(inputs: Any, *functions: Any) -> list[Any]:
    """Inputs and functions of arrays as such of tensors, whose memory the arrays share."""
    kinds = (np.ndarray, np.generic, float)

    def of_tensors(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tensors = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        arrays = tree_map_only(Tensor, Tensor.numpy, tensors)
        try:
            returned = function(*arrays[0], **arrays[1])
        except TypeError:  # one of tensors, beside others of arrays
            returned = function(*tensors[0], **tensors[1])
        return tree_map_only(kinds, as_tensor, returned)

    found = [functools.partial(of_tensors, f) if callable(f) else tree_map_only(kinds, as_tensor, f) for f in functions]
    return [tree_map_only(np.ndarray, as_tensor, inputs), *found]


class OutsideAutograd(torch.autograd.Function):
    """One step of autograd that calls a function with detached tensors. Its gradient, zeros, is only there for form."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function."""
        ctx.args = [t.detach() if isinstance(t, Tensor) else t for t in args]
        outputs = [y for y in tree_leaves(function(*ctx.args)) if isinstance(y, Tensor)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *dys: Any) -> Any:
        """Return zeros."""
        return None, *[torch.zeros_like(t) if isinstance(t, Tensor) else None for t in ctx.args]


def references_outside(problem: Problem, tolerance: float | None, error: Exception) -> References:
    """The references by differences alone, if the ``error`` says that autograd cannot go through the function, and the
    gradient is by hand; else the error is raised."""
    by_hand = problem.backward is not None or problem.tensors is not None
    if not by_hand or not re.search(r"leave torch\?|Can't call numpy\(\) on Tensor", str(error)):
        raise error
    function = problem.reference or problem.forward

    def step(*args: Any, **kwargs: Any) -> Any:
        def called(*t: Any) -> Any:
            return function(*t[: len(args)], **dict(zip(kwargs, t[len(args) :], strict=True)))

        return OutsideAutograd.apply(called, *args, *kwargs.values())

    problem = replace(problem, reference=step) if problem.reference else replace(problem, forward=step)
    references = References(problem, tolerance, "differences")
    references.notes.append("autograd cannot go through the function, which leaves torch: central differences decide")
    return references
