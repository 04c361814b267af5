"""The arguments of a function by name: those that have a gradient, in lists too, and what is only passed on."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from bp_torch.text import count

Inputs = Any
"""A tensor, a sequence of arguments, or a mapping of them; some must be tensors of real or complex numbers."""


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
    return ["x"] if n == 1 else [f"x{i}" for i in range(1, n + 1)]


def takes(function: Callable[..., Any], n: int) -> bool:
    """Whether a function can be called with n arguments; True if that is not known."""
    try:
        inspect.signature(function).bind(*range(n))
    except (TypeError, ValueError) as error:
        return isinstance(error, ValueError)  # there is no signature
    return True


def names_in(name: str, value: Any) -> Any:
    """The name of an argument; of a list, tuple or dict with inputs in it the names of what is in it, in the same."""
    if isinstance(value, list | tuple | dict) and any(has_gradient(t) for t in tree_leaves(value)):
        if isinstance(value, dict):
            return {key: names_in(f"{name}[{key}]", inner) for key, inner in value.items()}
        several = [names_in(f"{name}[{i}]", inner) for i, inner in enumerate(value)]
        return tuple(several) if isinstance(value, tuple) else several
    return name


def spread(form: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The names in a form, and what stands in their places in ``value``."""
    if isinstance(form, str):
        yield form, value
        return
    for key, inner in form.items() if isinstance(form, dict) else enumerate(form):
        yield from spread(inner, None if value is None else value[key])


def has_gradient(t: Any) -> bool:
    """Whether it is a tensor of real or complex numbers."""
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
