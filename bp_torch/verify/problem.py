"""The problem: a function or layer, its inputs, and its hand-written backward. All that is called is called here.

A layer's outputs y become a scalar, Σ y ⊙ dy, with random numbers dy: its gradient is ``backward`` at that dy. For
complex y it is Re Σ y ⊙ conj(dy), whose gradient by y is dy, as torch has it. Inputs that cannot be checked are refused
with a one-line error. A function that draws random numbers gets the same ones in every call, and in every dtype.
"""

import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from bp_torch.text import count

Tensors = dict[str, Tensor]
Change = Callable[[Tensor], Tensor]


class Randomness:
    """Seeds each call of a function alike, if the first call of its kind has drawn from a global generator."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.seen: set[str] = set()  # the kinds of call that were made
        self.draws = False  # whether any of them drew random numbers

    def alike(self, kind: str, seed: int, narrow: torch.dtype) -> AbstractContextManager[None]:
        """A context in which to make one call of a kind; the generators are afterwards as they were."""
        needs_no_seed = kind in self.seen and not self.draws
        return nullcontext() if needs_no_seed else self._seeded(kind, seed, narrow)

    @contextmanager
    def _seeded(self, kind: str, seed: int, narrow: torch.dtype) -> Iterator[None]:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        before = random.getstate()
        with torch.random.fork_rng(devices=devices):
            try:
                torch.default_generator.manual_seed(seed)
                random.seed(seed)
                for device in devices:
                    torch.cuda.default_generators[device].manual_seed(seed)
                start = _state(devices)
                with DrawAlike(narrow):
                    yield
                self.seen.add(kind)
                self.draws = self.draws or _state(devices) != start
            finally:
                random.setstate(before)


def _state(devices: Any) -> list[Any]:
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return [random.getstate(), *(state.numpy().tobytes() for state in states)]


class DrawAlike(TorchFunctionMode):
    """A context in which torch draws the same numbers in every dtype: in float64, then rounded to one dtype.

    Else ``torch.rand_like(x) > 0.5`` is another mask in float64 than in float32.
    """

    IN_PLACE = (Tensor.uniform_, Tensor.normal_, Tensor.exponential_, Tensor.bernoulli_)
    UNIFORM, NORMAL = (torch.rand, torch.rand_like), (torch.randn, torch.randn_like)

    def __init__(self, narrow: torch.dtype) -> None:
        """Round to ``narrow``."""
        super().__init__()
        self.narrow = narrow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``; if it draws, draw again in float64, from the same state of the generator."""
        kwargs = kwargs or {}
        draws = func in (*self.IN_PLACE, *self.UNIFORM, *self.NORMAL, torch.bernoulli)
        if not draws or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            state = torch.get_rng_state()
            result: Tensor = func(*args, **kwargs)
            torch.set_rng_state(state)
            wide = torch.empty(result.shape, dtype=torch.float64)
            if func in self.UNIFORM:  # [0, 1) stays that
                eps = torch.finfo(self.narrow).eps
                return result.copy_((wide.uniform_() / eps).floor() * eps)
            if func in self.IN_PLACE:
                func(wide, *(t.cpu() if isinstance(t, Tensor) else t for t in args[1:]), **kwargs)
            else:
                wide.normal_() if func in self.NORMAL else wide.bernoulli_(args[0].double().cpu())
            return result.copy_(wide.to(self.narrow))


@dataclass
class CallResult:
    """One call of the gradient under test."""

    gradients: Tensors
    inputs: Tensors  # as they were lent to it, and as they are after the call
    dys: list[Tensor] = field(default_factory=list)  # that the backward was given, as they are after the call
    outputs: list[Tensor] = field(default_factory=list)  # of the forward
    overwritten: list[str] = field(default_factory=list)  # the inputs that the forward changed before the backward ran


@dataclass
class Progress:
    """How far the calls of the gradient under test have come."""

    calls: int = 0
    stage: str = "forward"  # or "backward": which of them the last call began


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
    frozen: Sequence[str] = ()  # arguments of real numbers that are passed on, and have no gradient
    nearby: Any = 0.4  # the other inputs: changed by up to this part of themselves, drawn by a function, or None
    shared: Sequence[str] = ()  # the parameters of a module: two calls in one graph have these in common
    accumulates: bool = False  # the gradients are those that .backward() leaves in .grad
    form: dict[str, Any] = field(default_factory=dict)  # what is passed: names, in the lists that the arguments are in
    drawn: dict[Any, list[Tensor]] = field(default_factory=dict)  # the dy, by what the outputs are
    randomness: Randomness = field(default_factory=Randomness)
    progress: Progress = field(default_factory=Progress)  # of the calls, here and at other arguments
    plain: bool = field(init=False)  # whether no argument is a list of inputs
    inputs: Tensors = field(init=False)  # the arguments that have a gradient
    dtype: torch.dtype = field(init=False)  # the coarsest of the inputs'; kept, for DtypesSeen sees it being asked for

    def __post_init__(self) -> None:
        """Find the inputs."""
        if not self.arguments:
            raise ValueError("there are no inputs: expected at least one tensor")
        if not self.form:
            self.form = {name: names_in(name, value) for name, value in self.arguments.items()}
            self.arguments = {n: t for name, value in self.arguments.items() for n, t in spread(self.form[name], value)}
        self.plain = all(isinstance(inner, str) for inner in self.form.values())
        if unknown := set(self.frozen) - {*self.form, *self.arguments}:
            names = ", ".join(self.arguments)
            raise ValueError(f"frozen: there is no input {', '.join(sorted(unknown))}, the inputs are {names}")
        fixed = {n for name in self.frozen for n in tree_leaves(self.form.get(name, name))}
        self.inputs = {name: t for name, t in self.arguments.items() if has_gradient(t) and name not in fixed}
        if not self.inputs and fixed:
            raise ValueError("frozen: wanted at least one input of real numbers that is not frozen")
        if not self.inputs:
            name, value = next(iter(self.arguments.items()))
            if not isinstance(value, Tensor):
                raise TypeError(f"input {name} is a {type(value).__name__}, expected a tensor")
            raise TypeError(f"input {name} is {value.dtype}, which has no gradient, and there is no other input")
        for name, t in self.inputs.items():
            _require_usable(name, t)
        self.dtype = max((t.dtype for t in self.inputs.values()), key=lambda dtype: torch.finfo(dtype).eps)

    def is_frozen(self, name: str) -> bool:
        """Whether an argument is passed on though it could have a gradient."""
        return has_gradient(self.arguments[name]) and name not in self.inputs

    # ---- the function ----

    def value(self, t: Tensors, change: Change | None = None) -> Tensor:
        """The scalar, (), by the reference; ``change`` is made to every dy."""
        outputs = self.outputs(self.reference or self.forward, t)
        if self.scalar:
            scalar = outputs[0].reshape(())
            return scalar * change(torch.ones_like(scalar)).sum() if change else scalar
        dys = [change(dy) if change else dy for dy in self._drawn_for(outputs)]
        return reduce(torch.add, map(weighted_sum, outputs, dys))

    def outputs(self, function: Callable[..., Any], t: Tensors) -> list[Tensor]:
        """The tensors that a function returns. Raises TypeError and ValueError as ``check`` does."""
        kind = "reference" if function is self.reference else "forward"
        with self.randomness.alike(kind, self.seed, self.dtype):
            return self._outputs(function, t)

    def _outputs(self, function: Callable[..., Any], t: Tensors) -> list[Tensor]:
        returned = self._apply(function, t)
        if self.scalar:
            return [_scalar(returned)]
        several = [returned] if isinstance(returned, Tensor) else tree_leaves(returned)
        if not (found := [y for y in several if has_gradient(y)]):
            raise TypeError(f"the layer returns a {type(returned).__name__}, expected one tensor or several")
        kept = self.differentiable_outputs if len(found) > 1 and self.backward is None else []
        return [y for y, keep in zip(found, kept, strict=True) if keep] if len(kept) == len(found) else found

    @cached_property
    def differentiable_outputs(self) -> list[bool]:
        """Of each output of an autograd.Function whether it has a derivative: it may be marked as having none."""
        with torch.enable_grad():
            leaves = {name: t.requires_grad_() for name, t in copies(self.inputs).items()}
            returned = differentiable(lambda t: self._apply(self.forward, t), leaves, self.inputs)
        found = [y.requires_grad for y in tree_leaves(returned) if has_gradient(y)]
        return found if any(found) else [True] * len(found)

    def output_gradients(self, outputs: list[Tensor]) -> list[Tensor]:
        """The dy of the check: 1 for a scalar, else random numbers in the outputs' shapes, the same in every dtype."""
        if self.scalar:
            return [torch.ones_like(y) for y in outputs]
        return [dy.clone() for dy in self._drawn_for(outputs)]

    def _drawn_for(self, outputs: list[Tensor]) -> list[Tensor]:
        """These, drawn once for each dtype and shape: not to be written into."""
        key = tuple((y.shape, y.dtype, y.device) for y in outputs)
        if key in self.drawn:
            return self.drawn[key]
        with torch._C.DisableTorchFunction():  # DtypesSeen looks for what the function does
            generator = torch.Generator().manual_seed(self.seed + 10**6)  # not what the inputs may have been drawn as
            kinds = [torch.complex128 if y.is_complex() else torch.float64 for y in outputs]
            drawn = [torch.randn(y.shape, generator=generator, dtype=k) for y, k in zip(outputs, kinds, strict=True)]
            self.drawn[key] = [dy.to(self._narrow(y)).to(y) for dy, y in zip(drawn, outputs, strict=True)]
            return self.drawn[key]

    def _narrow(self, y: Tensor) -> torch.dtype:
        """The dtype that dy is rounded to: that of the check, so that in float64 it is the same numbers."""
        narrow: torch.dtype = getattr(torch, torch.finfo(self.dtype).dtype)
        return {torch.float32: torch.complex64}.get(narrow, torch.complex128) if y.is_complex() else narrow

    def _apply(self, function: Callable[..., Any], t: Tensors, *first: Any) -> Any:
        """``function`` of ``first``, and then of all arguments with the tensors ``t`` among them."""
        given = {name: t[name] if name in t else self._passed_on(value, t) for name, value in self.arguments.items()}
        passed = given if self.plain else tree_map(given.__getitem__, self.form)
        return function(*first, **passed) if self.by_keyword else function(*first, *passed.values())

    def _passed_on(self, value: Any, t: Tensors) -> Any:
        """A copy of what has no gradient; real numbers are in float64 where the inputs ``t`` are."""
        if not isinstance(value, Tensor):
            return value
        wide = has_gradient(value) and any(x.dtype != self.inputs[name].dtype for name, x in t.items())
        return in_float64({"": value})[""] if wide else value.clone()

    # ---- the gradient under test ----

    def call(self, t: Tensors, change: Change | None = None, **way: Any) -> CallResult:
        """Run the forward, then the backward, as a training step does; ``change`` is made to every dy.

        ``lent`` is the memory that the inputs come in, a copy if it is not given. The other words are those of
        ``_call_by_autograd``.
        """
        lent = way.pop("lent", None)
        self.progress.stage, self.progress.calls = "forward", self.progress.calls + 1
        lent = copies(t) if lent is None else lent
        with torch.inference_mode(False), torch.enable_grad(), self.randomness.alike("call", self.seed, self.dtype):
            if self.backward is None:
                return self._call_by_autograd(t, lent, change, **way)
            if self.scalar:
                self._apply(self.forward, copies(t))
                self.progress.stage = "backward"
                return CallResult(self.by_name(self._apply(self.backward, lent)), lent)
            outputs = [y.detach() for y in self._outputs(self.forward, lent)]
            changed = [name for name in t if not torch.equal(lent[name], t[name])]
            memory = {y.untyped_storage().data_ptr() for y in outputs}
            openly = [name for name in changed if lent[name].untyped_storage().data_ptr() in memory]
            lent |= copies({name: t[name] for name in openly})  # an operation in place, and said to be one
            overwritten = [name for name in changed if name not in openly]
            dys = [change(dy) if change else dy for dy in self.output_gradients(outputs)]
            self.progress.stage = "backward"
            spread = len(dys) == 1 or takes(self.backward, len(dys) + len(self.form))
            found = self._apply(self.backward, lent, *(dys if spread else [tuple(dys)]))
            return CallResult(self.by_name(found), lent, dys, outputs, overwritten)

    def _call_by_autograd(
        self,
        t: Tensors,
        lent: Tensors,
        change: Change | None,
        frozen: Sequence[str] = (),  # inputs that require no gradient
        only: int | None = None,  # the one output that is used
        between: Tensors | None = None,  # other inputs, at which the forward runs once more before the backward
        times: int = 1,  # the backward runs over one graph; the last gradients are returned
    ) -> CallResult:
        """Through the function's own autograd.Function."""
        leaves = {name: x.requires_grad_(name not in frozen) for name, x in lent.items()}
        outputs = differentiable(lambda t: self._outputs(self.forward, t), leaves, t)
        if between is not None:
            others = {name: x.requires_grad_() for name, x in copies(between).items()}
            others |= {name: leaves[name] for name in self.shared if name in leaves}
            kept = differentiable(lambda t: self._outputs(self.forward, t), others, between)
        require_dependence(outputs, leaves)
        outputs = [y for y in outputs if y.requires_grad]
        overwritten = [name for name, x in leaves.items() if not torch.equal(x.detach(), t[name])]
        dys = [change(dy) if change else dy for dy in self.output_gradients(outputs)]
        used = slice(only, only + 1) if only is not None else slice(None)
        wanted, self.progress.stage = {name: x for name, x in leaves.items() if x.requires_grad}, "backward"
        for time in range(times):
            found = self._differentiate(outputs[used], dys[used], wanted, retain_graph=time + 1 < times)
        if between is not None:
            del kept
        return CallResult(self.by_name(found), lent, dys, outputs, overwritten)

    def _differentiate(self, outputs: list[Tensor], dys: list[Tensor], leaves: Tensors, retain_graph: bool) -> Tensors:
        values = list(leaves.values())
        if not self.accumulates:
            found = torch.autograd.grad(outputs, values, dys, retain_graph=retain_graph, materialize_grads=True)
            return dict(zip(leaves, found, strict=True))
        for leaf in values:
            leaf.grad = None
        torch.autograd.backward(outputs, dys, retain_graph=retain_graph)
        return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}

    def by_name(self, gradients: Any) -> Tensors:
        """Gradients by the inputs' names, dense, without those that are None. Raises ValueError if they do not fit."""
        names = list(self.inputs)
        if isinstance(gradients, Mapping):
            if unknown := [str(name) for name in gradients if name not in self.form and name not in self.arguments]:
                raise ValueError(f"a gradient is called {', '.join(unknown)}, the inputs are {', '.join(names)}")
            listed = dict(gradients)
        else:
            several = list(gradients) if isinstance(gradients, tuple | list) else [gradients]
            outer = [name for name, form in self.form.items() if any(n in self.inputs for n in tree_leaves(form))]
            fitting = (
                keys for keys in (list(self.form), outer, list(self.arguments), names) if len(keys) == len(several)
            )
            if (keys := next(fitting, None)) is None:
                inputs = count(len(self.form), "input")
                raise ValueError(f"there are {len(several)} gradients for {inputs} {', '.join(self.form)}")
            listed = dict(zip(keys, several, strict=True))
        flat = {n: g for name, value in listed.items() for n, g in spread(self.form.get(name, name), value)}
        return {name: _dense(name, g, self.inputs[name]) for name in names if (g := flat.get(name)) is not None}


# ---- arguments ----


def numbered(name: str, n: int) -> list[str]:
    """A name for each of n things: the name itself if there is one, else with 1 to n behind it."""
    return [name] if n == 1 else [f"{name}{i}" for i in range(1, n + 1)]


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


# ---- autograd ----


def autograd(function: Callable[[Tensors], Any], inputs: Tensors) -> tuple[Tensor, Tensors, list[str]]:
    """The value () of ``function``, its gradients by autograd, and the names of the inputs that it does not use."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: t.requires_grad_() for name, t in copies(inputs).items()}
        value = _scalar(differentiable(function, leaves, inputs)).reshape(())
        require_dependence([value], inputs)
        try:
            several = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        except RuntimeError as error:
            if "incompatible with .grad()" not in str(error):
                raise
            _scalar(differentiable(function, leaves, inputs)).backward()  # torch.utils.checkpoint may want this
            several = tuple(leaf.grad for leaf in leaves.values())  # type: ignore[misc]
        found = dict(zip(leaves, several, strict=True))
    gradients = {n: torch.zeros_like(t) if (g := found[n]) is None else _dense(n, g, t) for n, t in leaves.items()}
    return value.detach(), gradients, [name for name, g in found.items() if g is None]


def differentiable(function: Callable[[Tensors], Any], leaves: Tensors, values: Tensors) -> Any:
    """``function`` of leaves; of copies of the ``values`` if it works in place, which autograd forbids for a leaf."""
    try:
        return function(leaves)
    except RuntimeError as error:
        if "in-place operation" not in str(error):
            raise
        with torch.no_grad():  # it may have been written before it was refused
            leaves = {name: t if torch.equal(t, values[name]) else t.copy_(values[name]) for name, t in leaves.items()}
        return function({name: t.clone() for name, t in leaves.items()})


def require_dependence(outputs: list[Tensor], inputs: Tensors) -> None:
    """Raise ValueError if autograd sees no way from the inputs to the outputs."""
    if not any(y.requires_grad for y in outputs):
        text = f"as far as autograd can see, the function does not depend on {', '.join(inputs)}"
        raise ValueError(f"{text}: does it detach them, or leave torch?")


def weighted_sum(y: Tensor, dy: Tensor) -> Tensor:
    """Re Σ y ⊙ conj(dy), ()."""
    if y.requires_grad:
        total: Tensor = WeightedSum.apply(y, dy)
        return total
    return (y * dy.conj()).sum().real if y.is_complex() else (y * dy).sum()


class WeightedSum(torch.autograd.Function):
    """Re Σ y ⊙ conj(dy), (), whose gradient by y is dy as it is: no product in it rounds."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, dy: Tensor) -> Tensor:
        """From y and dy in one shape."""
        ctx.save_for_backward(dy)
        return weighted_sum(y.detach(), dy)

    @staticmethod
    def backward(ctx: Any, *g: Any) -> tuple[Tensor, None]:
        """By y, for the gradient g () of the sum, which is 1."""
        (dy,) = ctx.saved_tensors
        return (dy.clone() if float(g[0]) == 1 else g[0] * dy), None


# ---- what can be checked ----


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
