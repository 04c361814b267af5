"""The tensors that come into a check, each under a name; what has no gradient is refused with a one-line error."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bp_torch.text import count

Tensors = dict[str, Tensor]
Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
Adapter = Callable[[Callable[..., Any]], Callable[[Tensors], Any]]
"""Makes a function of several arguments into a function of one ``Tensors``."""


def named(inputs: Inputs, names: Sequence[str] | None, function: Callable[..., Any]) -> tuple[Tensors, Adapter]:
    """The inputs under names, and how a function of them is called: by keyword if they came as a mapping.

    Raises TypeError and ValueError as ``check`` does.
    """

    def adapt(f: Callable[..., Any]) -> Callable[[Tensors], Any]:
        return (lambda t: f(**t)) if isinstance(inputs, Mapping) else (lambda t: f(*t.values()))

    if isinstance(inputs, Mapping):
        tensors = dict(inputs)
    else:
        listed = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        keys = list(names or _argument_names(function, len(listed)))
        if len(keys) != len(listed) or len(set(keys)) != len(keys):
            raise ValueError(f"expected one name for each of {count(len(listed), 'input')}, got {', '.join(keys)}")
        tensors = dict(zip(keys, listed, strict=True))
    if not tensors:
        raise ValueError("there are no inputs: expected at least one tensor")
    for name, t in tensors.items():
        _require_gradient_possible(name, t)
    return tensors, adapt


def _argument_names(function: Callable[..., Any], n: int) -> list[str]:
    """The names of the first n arguments, or x1, x2, … if the function does not name them."""
    try:
        arguments = list(inspect.signature(function).parameters.values())[:n]
    except (TypeError, ValueError):
        arguments = []
    if len(arguments) == n and all(a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) for a in arguments):
        return [a.name for a in arguments]
    return ["x"] if n == 1 else [f"x{i}" for i in range(1, n + 1)]


def _require_gradient_possible(name: str, t: Tensor) -> None:
    """Raise TypeError or ValueError for an input that can have no gradient."""
    if not isinstance(t, Tensor):
        raise TypeError(f"input {name} is a {type(t).__name__}, expected a tensor")
    if not t.is_floating_point():
        raise TypeError(
            f"input {name} is {t.dtype}, which has no gradient: let the function close over it, "
            "as in check(lambda x: function(x, labels), x, …)"
        )
    if t.numel() == 0:
        raise ValueError(f"input {name} is empty: its shape is {tuple(t.shape)}")
    if not t.isfinite().all():
        raise ValueError(f"input {name} holds {not_finite(t)}")


def not_finite(t: Tensor) -> str:
    """How many entries are NaN or infinite, and where the first is."""
    bad = (~t.isfinite()).nonzero()
    return f"{count(len(bad), 'entry that is', 'entries that are')} not finite, the first at {bad[0].tolist()}"


def gradients_by_name(gradients: Any, names: Sequence[str]) -> Tensors:
    """The gradients under the inputs' names, without those that are None. Raises ValueError if they do not match."""
    if isinstance(gradients, Mapping):
        if unknown := [str(name) for name in gradients if name not in names]:
            raise ValueError(f"a gradient is called {', '.join(unknown)}, the inputs are {', '.join(names)}")
        listed = dict(gradients)
    else:
        several = list(gradients) if isinstance(gradients, tuple | list) else [gradients]
        if len(several) != len(names):
            raise ValueError(f"there are {len(several)} gradients for {count(len(names), 'input')} {', '.join(names)}")
        listed = dict(zip(names, several, strict=True))
    found: Tensors = {}
    for name in names:
        if (g := listed.get(name)) is not None:
            try:
                found[name] = torch.as_tensor(g).detach()
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"the gradient of {name} is a {type(g).__name__}, expected a tensor") from error
    return found


def copies(tensors: Tensors) -> Tensors:
    """Each with memory of its own, and detached."""
    return {name: t.detach().clone() for name, t in tensors.items()}
