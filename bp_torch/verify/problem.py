"""The problem: a function or layer, its inputs, and its hand-written backward. All that is called is called here.

A layer's outputs y become a scalar, Σ y ⊙ dy, with random numbers dy: its gradient is ``backward`` at that dy. For
complex y it is Re Σ y ⊙ conj(dy), whose gradient by y is dy, as torch has it. Inputs that cannot be checked are refused
with a one-line error.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bp_torch.text import count

Tensors = dict[str, Tensor]
Inputs = Any
"""A tensor, a sequence of arguments, or a mapping of them; some must be tensors of real or complex numbers."""
Change = Callable[[Tensor], Tensor]


@dataclass
class CallResult:
    """One call of the gradient under test."""

    gradients: Tensors
    inputs: Tensors  # as they were lent to it, and as they are after the call
    dys: list[Tensor] = field(default_factory=list)  # that the backward was given, as they are after the call
    outputs: list[Tensor] = field(default_factory=list)  # of the forward
    overwritten: list[str] = field(default_factory=list)  # the inputs that the forward changed before the backward ran


@dataclass
class Problem:
    """A function, its arguments, and a gradient of it by hand. Raises TypeError and ValueError as ``check`` does."""

    arguments: dict[str, Any]  # by name: tensors that a gradient exists for, and what is only passed on
    by_keyword: bool  # how the arguments are passed
    forward: Callable[..., Any]  # returns a scalar (``scalar``), or tensors; it may be an autograd.Function's ``apply``
    reference: Callable[..., Any] | None = None  # the same in plain differentiable operations; None: ``forward`` is
    backward: Callable[..., Any] | None = None  # (dy unless ``scalar``, *arguments); None: autograd through ``forward``
    tensors: Any = None  # the gradients themselves, in place of ``backward``; None: they can be computed again
    scalar: bool = True
    seed: int = 0
    drawn: dict[Any, list[Tensor]] = field(default_factory=dict)  # the dy in float64, by the shapes of the outputs
    inputs: Tensors = field(init=False)  # the arguments that have a gradient
    dtype: torch.dtype = field(init=False)  # the coarsest of the inputs'; kept, for DtypesSeen sees it being asked for

    def __post_init__(self) -> None:
        """Find the inputs."""
        if not self.arguments:
            raise ValueError("there are no inputs: expected at least one tensor")
        self.inputs = {name: t for name, t in self.arguments.items() if has_gradient(t)}
        if not self.inputs:
            name, value = next(iter(self.arguments.items()))
            if not isinstance(value, Tensor):
                raise TypeError(f"input {name} is a {type(value).__name__}, expected a tensor")
            raise TypeError(f"input {name} is {value.dtype}, which has no gradient, and there is no other input")
        for name, t in self.inputs.items():
            _require_usable(name, t)
        self.dtype = max((t.dtype for t in self.inputs.values()), key=lambda dtype: torch.finfo(dtype).eps)

    def nearby(self) -> Tensors:
        """The inputs with every entry changed by up to 0.4 of itself: none changes its sign."""
        generator = torch.Generator().manual_seed(self.seed)

        def moved(t: Tensor) -> Tensor:
            noise = 0.8 * torch.rand(t.shape, generator=generator) - 0.4
            return t * (1 + noise.to(t.device, t.real.dtype))

        return {name: copy_of(t, change=moved) for name, t in self.inputs.items()}

    # ---- the function ----

    def value(self, t: Tensors) -> Tensor:
        """The scalar, (), by the reference."""
        outputs = self.outputs(self.reference or self.forward, t)
        if self.scalar:
            return outputs[0].reshape(())
        total = sum(WeightedSum.apply(y, dy) for y, dy in zip(outputs, self.output_gradients(outputs), strict=True))
        assert isinstance(total, Tensor)
        return total

    def outputs(self, function: Callable[..., Any], t: Tensors) -> list[Tensor]:
        """The tensors that a function returns. Raises TypeError and ValueError as ``check`` does."""
        returned = self._apply(function, t)
        if self.scalar:
            return [_scalar(returned)]
        if not (found := [y for y in tree_leaves(returned) if has_gradient(y)]):
            raise TypeError(f"the layer returns a {type(returned).__name__}, expected one tensor or several")
        return found

    def output_gradients(self, outputs: list[Tensor]) -> list[Tensor]:
        """The dy of the check: 1 for a scalar, else random numbers in the outputs' shapes, the same in every dtype."""
        if self.scalar:
            return [torch.ones_like(y) for y in outputs]
        key = tuple((y.shape, y.is_complex()) for y in outputs)
        if key not in self.drawn:
            generator = torch.Generator().manual_seed(self.seed + 10**6)  # not what the inputs may have been drawn as
            kinds = [torch.complex128 if y.is_complex() else torch.float64 for y in outputs]
            drawn = [torch.randn(y.shape, generator=generator, dtype=k) for y, k in zip(outputs, kinds, strict=True)]
            self.drawn[key] = [dy.to(self._narrow(y)).to(dy) for dy, y in zip(drawn, outputs, strict=True)]
        return [dy.to(y.device, y.dtype, copy=True) for dy, y in zip(self.drawn[key], outputs, strict=True)]

    def _narrow(self, y: Tensor) -> torch.dtype:
        """The dtype that dy is rounded to: that of the check, so that in float64 it is the same numbers."""
        narrow: torch.dtype = getattr(torch, torch.finfo(self.dtype).dtype)
        return {torch.float32: torch.complex64}.get(narrow, torch.complex128) if y.is_complex() else narrow

    def _apply(self, function: Callable[..., Any], t: Tensors, *first: Any) -> Any:
        """``function`` of ``first``, and then of all arguments with the tensors ``t`` among them."""
        given = {name: t.get(name, value) for name, value in self.arguments.items()}
        given |= {name: value.clone() for name, value in given.items() if isinstance(value, Tensor) and name not in t}
        return function(*first, **given) if self.by_keyword else function(*first, *given.values())

    # ---- the gradient under test ----

    def call(self, t: Tensors, change: Change | None = None) -> CallResult:
        """Run the forward, then the backward, as a training step does; ``change`` is made to every dy."""
        with torch.inference_mode(False), torch.enable_grad():
            lent = copies(t)
            if self.backward is None:
                return self._call_by_autograd(lent, change)
            if self.scalar:
                self._apply(self.forward, copies(t))
                return CallResult(self.by_name(self._apply(self.backward, lent)), lent)
            outputs = [y.detach() for y in self.outputs(self.forward, lent)]
            changed = [name for name in t if not torch.equal(lent[name], t[name])]
            memory = {y.untyped_storage().data_ptr() for y in outputs}
            openly = [name for name in changed if lent[name].untyped_storage().data_ptr() in memory]
            lent |= copies({name: t[name] for name in openly})  # an operation in place, and said to be one
            overwritten = [name for name in changed if name not in openly]
            dys = [change(dy) if change else dy for dy in self.output_gradients(outputs)]
            spread = len(dys) == 1 or _takes(self.backward, len(dys) + len(self.arguments))
            found = self._apply(self.backward, lent, *(dys if spread else [tuple(dys)]))
            return CallResult(self.by_name(found), lent, dys, outputs, overwritten)

    def _call_by_autograd(self, lent: Tensors, change: Change | None) -> CallResult:
        """Through the function's own autograd.Function."""
        before = copies(lent)
        leaves = {name: t.requires_grad_() for name, t in lent.items()}
        outputs = differentiable(lambda t: self.outputs(self.forward, t), leaves)
        require_dependence(outputs, leaves)
        outputs = [y for y in outputs if y.requires_grad]
        overwritten = [name for name, t in leaves.items() if not torch.equal(t.detach(), before[name])]
        dys = [change(dy) if change else dy for dy in self.output_gradients(outputs)]
        found = torch.autograd.grad(outputs, list(leaves.values()), dys, materialize_grads=True)
        return CallResult(self.by_name(dict(zip(leaves, found, strict=True))), lent, dys, outputs, overwritten)

    def by_name(self, gradients: Any) -> Tensors:
        """Gradients by the inputs' names, dense, without those that are None. Raises ValueError if they do not fit."""
        names = list(self.inputs)
        if isinstance(gradients, Mapping):
            if unknown := [str(name) for name in gradients if name not in self.arguments]:
                raise ValueError(f"a gradient is called {', '.join(unknown)}, the inputs are {', '.join(names)}")
            listed = dict(gradients)
        else:
            several = list(gradients) if isinstance(gradients, tuple | list) else [gradients]
            keys = next((keys for keys in (list(self.arguments), names) if len(keys) == len(several)), None)
            if keys is None:
                inputs = count(len(self.arguments), "input")
                raise ValueError(f"there are {len(several)} gradients for {inputs} {', '.join(self.arguments)}")
            listed = dict(zip(keys, several, strict=True))
        return {name: _dense(name, g, self.inputs[name]) for name in names if (g := listed.get(name)) is not None}


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


def _takes(function: Callable[..., Any], n: int) -> bool:
    """Whether a function can be called with n arguments; True if that is not known."""
    try:
        inspect.signature(function).bind(*range(n))
    except (TypeError, ValueError) as error:
        return isinstance(error, ValueError)  # there is no signature
    return True


# ---- autograd ----


def autograd(function: Callable[[Tensors], Any], inputs: Tensors) -> tuple[Tensor, Tensors, list[str]]:
    """The value () of ``function``, its gradients by autograd, and the names of the inputs that it does not use."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: t.requires_grad_() for name, t in copies(inputs).items()}
        value = _scalar(differentiable(function, leaves)).reshape(())
        require_dependence([value], inputs)
        found = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), allow_unused=True), strict=True))
    gradients = {n: torch.zeros_like(t) if (g := found[n]) is None else _dense(n, g, t) for n, t in leaves.items()}
    return value.detach(), gradients, [name for name, g in found.items() if g is None]


def differentiable(function: Callable[[Tensors], Any], leaves: Tensors) -> Any:
    """``function`` of leaves; of copies of them if it works in place, which autograd forbids for a leaf."""
    try:
        return function(leaves)
    except RuntimeError as error:
        if "in-place operation" not in str(error):
            raise
        return function({name: t.clone() for name, t in leaves.items()})


def require_dependence(outputs: list[Tensor], inputs: Tensors) -> None:
    """Raise ValueError if autograd sees no way from the inputs to the outputs."""
    if not any(y.requires_grad for y in outputs):
        text = f"as far as autograd can see, the function does not depend on {', '.join(inputs)}"
        raise ValueError(f"{text}: does it detach them, or leave torch?")


class WeightedSum(torch.autograd.Function):
    """Re Σ y ⊙ conj(dy), (), whose gradient by y is dy as it is: no product in it rounds."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, dy: Tensor) -> Tensor:
        """From y and dy in one shape."""
        ctx.save_for_backward(dy)
        total = (y * dy.conj()).sum()
        return total.real if total.is_complex() else total

    @staticmethod
    def backward(ctx: Any, *g: Any) -> tuple[Tensor, None]:
        """By y, for the gradient g () of the sum, which is 1."""
        (dy,) = ctx.saved_tensors
        return (dy.clone() if float(g[0]) == 1 else g[0] * dy), None


# ---- what can be checked ----


def has_gradient(t: Any) -> bool:
    """Whether it is a tensor of real or complex numbers."""
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())


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


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"the function returns a {type(value).__name__}, expected a scalar tensor")
    if value.numel() != 1 or not value.is_floating_point():
        text = f"the function returns {value.dtype} of shape {tuple(value.shape)}, expected a floating-point scalar"
        raise ValueError(f"{text}: return a weighted sum of the outputs, or use check_layer")
    return value


def _dense(name: str, g: Any, like: Tensor) -> Tensor:
    """One gradient as a tensor of its own dtype, or of the input's if it comes as plain numbers."""
    try:
        plain = isinstance(g, int | float | complex | list | tuple)
        t = torch.as_tensor(g, dtype=like.dtype if plain else None).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"the gradient of {name} is a {type(g).__name__}, expected a tensor") from error
    return t if t.layout == torch.strided else t.to_dense()


# ---- copies ----


def copies(tensors: Tensors) -> Tensors:
    """Each with memory of its own, in the same strides, and detached."""
    return {name: copy_of(t) for name, t in tensors.items()}


def copy_of(t: Tensor, dtype: torch.dtype | None = None, change: Change | None = None) -> Tensor:
    """A copy with the same strides: what is transposed or expanded stays so. ``change`` is made to each entry once."""
    t, dtype = t.detach(), dtype or t.dtype
    strides = zip(t.stride(), t.shape, strict=True)
    once = t[tuple(slice(0, 1) if stride == 0 and n else slice(None) for stride, n in strides)]
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


def in_float64(tensors: Tensors) -> Tensors:
    """Each in float64 or complex128, on the CPU where the device has no float64."""
    there = {name: t.detach().cpu() if t.device.type == "mps" else t.detach() for name, t in tensors.items()}
    return {name: copy_of(t, torch.complex128 if t.is_complex() else torch.float64) for name, t in there.items()}


# ---- as vectors ----


def as_real(t: Tensor) -> Tensor:
    """In float64 on the CPU; a complex number is two entries of one more dimension."""
    t = t.detach().cpu()
    return torch.view_as_real(t.to(torch.complex128).resolve_conj()) if t.is_complex() else t.double()


def flat(t: Tensor) -> Tensor:
    """As (n,), in float64, on the CPU; a complex number is two entries."""
    return as_real(t).reshape(-1)


def norm(t: Tensor) -> float:
    """‖t‖, without overflow or underflow of the squares."""
    plain = float(torch.linalg.vector_norm(t))
    if 1e-100 < plain < 1e100 or not t.numel():
        return plain
    largest = float(t.abs().max())
    return largest * float(torch.linalg.vector_norm(t / largest)) if 0 < largest < math.inf else largest
