"""The tensors that come into a check, each under a name; what cannot be checked is refused with a one-line error."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bp_torch.text import count

Tensors = dict[str, Tensor]
Inputs = Any
"""A tensor, a sequence of arguments, or a mapping of them; some must be tensors of real or complex numbers."""
Adapter = Callable[[Callable[..., Any]], Callable[[Tensors], Any]]
"""Makes a function of several arguments into a function of one ``Tensors``."""


class Arguments:
    """The arguments of a function: those that a gradient exists for, and those that are only passed on.

    Attributes:
        tensors: by name, what can have a gradient.
        names: of all arguments, in order.
    """

    def __init__(self, inputs: Inputs, names: Sequence[str] | None, function: Callable[..., Any]) -> None:
        """Raise TypeError and ValueError as ``check`` does."""
        self.by_keyword = isinstance(inputs, Mapping)
        if self.by_keyword:
            self.arguments = dict(inputs)
        else:
            listed = [inputs] if isinstance(inputs, Tensor) else list(inputs)
            keys = list(names or _argument_names(function, len(listed)))
            if len(keys) != len(listed) or len(set(keys)) != len(keys):
                raise ValueError(f"expected one name for each of {count(len(listed), 'input')}, got {', '.join(keys)}")
            self.arguments = dict(zip(keys, listed, strict=True))
        if not self.arguments:
            raise ValueError("there are no inputs: expected at least one tensor")
        self.names = list(self.arguments)
        self.tensors: Tensors = {name: t for name, t in self.arguments.items() if has_gradient(t)}
        if not self.tensors:
            raise _no_gradient_possible(*next(iter(self.arguments.items())))
        for name, t in self.tensors.items():
            _require_usable(name, t)
        self.dtype = max((t.dtype for t in self.tensors.values()), key=lambda dtype: torch.finfo(dtype).eps)

    def replaced(self, arguments: dict[str, Any]) -> "Arguments":
        """The same, with other values."""
        other = Arguments(arguments, None, str)
        other.by_keyword = self.by_keyword
        return other

    def call(self, function: Callable[..., Any], tensors: Tensors, *first: Any) -> Any:
        """``function`` of ``first``, and then of all arguments with these ``tensors`` among them."""
        found = {name: tensors.get(name, value) for name, value in self.arguments.items()}
        found |= {name: t.clone() for name, t in found.items() if isinstance(t, Tensor) and name not in tensors}
        return function(*first, **found) if self.by_keyword else function(*first, *found.values())


def has_gradient(t: Any) -> bool:
    """Whether it is a tensor of real or complex numbers."""
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())


def _argument_names(function: Callable[..., Any], n: int) -> list[str]:
    """The names of the first n arguments, or x1, x2, … if the function does not name them."""
    try:
        arguments = list(inspect.signature(function).parameters.values())[:n]
    except (TypeError, ValueError):
        arguments = []
    if len(arguments) == n and all(a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) for a in arguments):
        return [a.name for a in arguments]
    return ["x"] if n == 1 else [f"x{i}" for i in range(1, n + 1)]


def _no_gradient_possible(name: str, value: Any) -> TypeError:
    if not isinstance(value, Tensor):
        return TypeError(f"input {name} is a {type(value).__name__}, expected a tensor")
    return TypeError(f"input {name} is {value.dtype}, which has no gradient, and there is no other input")


def _require_usable(name: str, t: Tensor) -> None:
    if t.layout != torch.strided:
        kind = str(t.layout).removeprefix("torch.")
        raise TypeError(f"input {name} is sparse ({kind}): give {name}.to_dense(), and let the function convert it")
    if t.dtype in (torch.complex32,) or torch.finfo(t.dtype).bits < 16:
        raise TypeError(f"input {name} is {t.dtype}, in which torch computes almost nothing: expected a wider dtype")
    if not (t.isfinite() | t.isneginf() if t.is_floating_point() else t.isfinite()).all():
        raise ValueError(f"input {name} holds {not_finite(t)}")


def not_finite(t: Tensor) -> str:
    """How many entries are NaN or infinite, and where the first is."""
    bad = (~t.isfinite()).nonzero()
    return f"{count(len(bad), 'entry that is', 'entries that are')} not finite, the first at {bad[0].tolist()}"


def gradients_by_name(gradients: Any, arguments: Arguments) -> Tensors:
    """The gradients under the inputs' names, dense, without those that are None.

    There may be one for each argument, or for each that can have one. Raises ValueError if they do not match.
    """
    tensors, names = arguments.tensors, list(arguments.tensors)
    if isinstance(gradients, Mapping):
        if unknown := [str(name) for name in gradients if name not in arguments.names]:
            raise ValueError(f"a gradient is called {', '.join(unknown)}, the inputs are {', '.join(names)}")
        listed = dict(gradients)
    else:
        several = list(gradients) if isinstance(gradients, tuple | list) else [gradients]
        keys = next((keys for keys in (arguments.names, names) if len(keys) == len(several)), None)
        if keys is None:
            inputs = count(len(arguments.names), "input")
            raise ValueError(f"there are {len(several)} gradients for {inputs} {', '.join(arguments.names)}")
        listed = dict(zip(keys, several, strict=True))
    found: Tensors = {}
    for name in names:
        if (g := listed.get(name)) is not None:
            try:
                plain = isinstance(g, int | float | complex | list | tuple)
                t = torch.as_tensor(g, dtype=tensors[name].dtype if plain else None).detach()
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"the gradient of {name} is a {type(g).__name__}, expected a tensor") from error
            found[name] = t if t.layout == torch.strided else t.to_dense()
    return found


# ---- copies ----


def copies(tensors: Tensors) -> Tensors:
    """Each with memory of its own, in the same strides, and detached."""
    return {name: copy_of(t) for name, t in tensors.items()}


def copy_of(t: Tensor, dtype: torch.dtype | None = None, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """A copy with the same strides: what is transposed or expanded stays so. ``change`` is made to each entry once."""
    t, dtype = t.detach(), dtype or t.dtype
    once = t[
        tuple(slice(0, 1) if stride == 0 and n else slice(None) for stride, n in zip(t.stride(), t.shape, strict=True))
    ]
    values = change(once) if change else once
    try:
        kept = torch.empty_strided(once.shape, once.stride(), dtype=dtype, device=t.device)
        return kept.copy_(values).expand(t.shape)
    except RuntimeError:  # memory that overlaps in another way
        return values.to(dtype, copy=True).expand(t.shape)


def not_contiguous(t: Tensor) -> Tensor:
    """The same values in another layout: transposed, or in every second place of the memory."""
    if t.ndim >= 2 and min(t.shape[-2:]) > 1:
        return t.mT.contiguous().mT
    wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1])
    return wide[..., ::2].copy_(t)


def wider(t: Tensor) -> Tensor:
    """In float64 or complex128, on the CPU where the device has no float64."""
    t = t.detach().cpu() if t.device.type == "mps" else t.detach()
    return copy_of(t, torch.complex128 if t.is_complex() else torch.float64)


def as_real(t: Tensor) -> Tensor:
    """In float64 on the CPU; a complex number is two entries of one more dimension."""
    t = t.detach().cpu()
    return torch.view_as_real(t.to(torch.complex128).resolve_conj()) if t.is_complex() else t.double()


def flat(t: Tensor) -> Tensor:
    """As (n,), in float64, on the CPU; a complex number is two entries."""
    return as_real(t).reshape(-1)
