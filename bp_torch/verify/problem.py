"""What is checked: a function or layer, its hand-written backward, and where. Everything that is called is called here.

A layer's outputs y become a scalar, Σ y ⊙ dy, with random numbers dy: its gradient is ``backward`` at that dy. For
complex y it is Re Σ y ⊙ conj(dy), whose gradient by y is dy, as torch has it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bp_torch.verify.inputs import Arguments, Tensors, copies, gradients_by_name, has_gradient

Outputs = list[Tensor]
OutputGradients = list[Tensor]


@dataclass
class Called:
    """One call of the gradient under test: its result, the inputs and dy that it was lent, and the outputs."""

    gradients: Tensors
    inputs: Tensors
    dys: OutputGradients
    outputs: Outputs
    overwritten: list[str] = field(default_factory=list)
    """The inputs that the forward changed before the backward ran."""


@dataclass
class Problem:
    """A function, and a gradient of it by hand.

    Attributes:
        forward: returns a scalar (``scalar``), or a tensor or several. It may be an autograd.Function's ``apply``.
        reference: the same in plain differentiable operations; None: ``forward`` is.
        backward: the gradients, from dy (not if ``scalar``) and the arguments; None: autograd through ``forward``.
        tensors: the gradients themselves, in place of ``backward``.
    """

    arguments: Arguments
    forward: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    backward: Callable[..., Any] | None = None
    tensors: Any = None
    scalar: bool = True
    seed: int = 0
    drawn: dict[Any, OutputGradients] = field(default_factory=dict)
    """The dy in float64, by the shapes of the outputs."""

    @property
    def inputs(self) -> Tensors:
        """What has a gradient."""
        return self.arguments.tensors

    @property
    def is_function(self) -> bool:
        """Whether the gradient under test can be computed again."""
        return self.tensors is None

    # ---- the function ----

    def value(self, t: Tensors) -> Tensor:
        """The scalar, (), by the reference."""
        return self._weighted(self.outputs(self.reference or self.forward, t))

    def outputs(self, function: Callable[..., Any], t: Tensors) -> Outputs:
        """What a function returns, as tensors. Raises TypeError and ValueError as ``check`` does."""
        returned = self.arguments.call(function, t)
        if self.scalar:
            return [_scalar(returned)]
        found = [y for y in tree_leaves(returned) if isinstance(y, Tensor)]
        if not any(has_gradient(y) for y in found):
            raise TypeError(f"the layer returns a {type(returned).__name__}, expected one tensor or several")
        return [y for y in found if has_gradient(y)]

    def output_gradients(self, outputs: Outputs) -> OutputGradients:
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
        real = torch.finfo(self.arguments.dtype).dtype
        narrow: torch.dtype = getattr(torch, real)
        return {torch.float32: torch.complex64}.get(narrow, torch.complex128) if y.is_complex() else narrow

    def _weighted(self, outputs: Outputs) -> Tensor:
        if self.scalar:
            return outputs[0].reshape(())
        terms = [(y * dy.conj()).sum() for y, dy in zip(outputs, self.output_gradients(outputs), strict=True)]
        total = sum(t.real if t.is_complex() else t for t in terms)
        assert isinstance(total, Tensor)
        return total

    # ---- the gradient under test ----

    def call(self, t: Tensors, change: Callable[[Tensor], Tensor] | None = None) -> Called:
        """Run the forward, then the backward, as a training step does; ``change`` is made to every dy."""
        with torch.inference_mode(False), torch.enable_grad():
            lent = copies(t)
            if self.backward is None:
                return self._by_autograd(lent, change)
            if self.scalar:
                lent_to_forward = copies(t)
                self.arguments.call(self.forward, lent_to_forward)
                return Called(gradients_by_name(self.arguments.call(self.backward, lent), self.arguments), lent, [], [])
            outputs = [y.detach() for y in self.outputs(self.forward, lent)]
            overwritten = [name for name in t if not torch.equal(lent[name], t[name])]
            for name in overwritten:
                if any(_shares_memory(lent[name], y) for y in outputs):  # an operation in place, and said to be one
                    lent[name] = copies({name: t[name]})[name]
                    overwritten = [other for other in overwritten if other != name]
            dys = [change(dy) if change else dy for dy in self.output_gradients(outputs)]
            found = self._backward(dys, lent)
            return Called(gradients_by_name(found, self.arguments), lent, dys, outputs, overwritten)

    def _backward(self, dys: OutputGradients, lent: Tensors) -> Any:
        """``backward(dy, *inputs)``; of several outputs ``backward(dy1, dy2, *inputs)``, or a tuple of them first."""
        assert self.backward is not None
        spread = len(dys) == 1 or _takes(self.backward, len(dys) + len(self.arguments.names))
        return self.arguments.call(self.backward, lent, *(dys if spread else [tuple(dys)]))

    def _by_autograd(self, lent: Tensors, change: Callable[[Tensor], Tensor] | None) -> Called:
        """Through the function's own autograd.Function."""
        before = copies(lent)
        leaves, outputs = self._forward_of_leaves(lent)
        overwritten = [name for name, t in leaves.items() if not torch.equal(t.detach(), before[name])]
        dys = [change(dy) if change else dy for dy in self.output_gradients(outputs)]
        found = torch.autograd.grad(outputs, list(leaves.values()), dys, allow_unused=True)
        pairs = zip(leaves.items(), found, strict=True)
        gradients = {name: torch.zeros_like(t) if g is None else g for (name, t), g in pairs}
        return Called(gradients_by_name(gradients, self.arguments), lent, dys, outputs, overwritten)

    def _forward_of_leaves(self, lent: Tensors) -> tuple[Tensors, Outputs]:
        leaves = {name: t.requires_grad_() for name, t in lent.items()}
        outputs = differentiable(lambda t: self.outputs(self.forward, t), leaves)
        require_dependence(outputs, leaves)
        return leaves, [y for y in outputs if y.requires_grad]


def differentiable(function: Callable[[Tensors], Any], leaves: Tensors) -> Any:
    """``function`` of leaves; of copies of them if it works in place, which autograd forbids for a leaf."""
    try:
        return function(leaves)
    except RuntimeError as error:
        if "in-place operation" not in str(error):
            raise
        return function({name: t.clone() for name, t in leaves.items()})


def require_dependence(outputs: Outputs, inputs: Tensors) -> None:
    """Raise ValueError if autograd sees no way from the inputs to the outputs."""
    if not any(y.requires_grad for y in outputs):
        raise ValueError(
            f"as far as autograd can see, the function does not depend on {', '.join(inputs)}: "
            "does it detach them, or leave torch?"
        )


def autograd(function: Callable[[Tensors], Any], inputs: Tensors) -> tuple[Tensor, Tensors, list[str]]:
    """The value () of ``function``, its gradients by autograd, and the names of the inputs that it does not use."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: t.requires_grad_() for name, t in copies(inputs).items()}
        value = _scalar(differentiable(function, leaves))
        require_dependence([value], inputs)
        found = torch.autograd.grad(value.reshape(()), list(leaves.values()), allow_unused=True)
    pairs = list(zip(leaves.items(), found, strict=True))
    gradients = {name: torch.zeros_like(t) if g is None else g.detach() for (name, t), g in pairs}
    unused = [name for (name, _), g in pairs if g is None]
    return value.detach().reshape(()), {n: g.to_dense() if g.is_sparse else g for n, g in gradients.items()}, unused


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"the function returns a {type(value).__name__}, expected a scalar tensor")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"the function returns {value.dtype} of shape {tuple(value.shape)}, expected a floating-point scalar: "
            "return a weighted sum of the outputs, or use check_layer"
        )
    return value


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _takes(function: Callable[..., Any], n: int) -> bool:
    """Whether a function can be called with n arguments; True if that is not known."""
    try:
        inspect.signature(function).bind(*range(n))
    except TypeError:
        return False
    except ValueError:
        pass
    return True
