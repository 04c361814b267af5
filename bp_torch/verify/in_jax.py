"""A layer of the bank on JAX's arrays, as far as it runs on them unchanged, for ``jax.test_util.check_grads``."""

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Layered = Callable[..., Any]


def in_jax(function: Layered) -> Layered:
    """The same source, in which ``torch`` and ``functional`` are JAX's functions of the same names."""
    import jax  # only where it is installed

    named = SimpleNamespace(**vars(jax.nn) | vars(jax.numpy))
    if not isinstance(function, FunctionType):  # one of torch's own
        return getattr(named, function.__name__)  # type: ignore[no-any-return]
    names = function.__globals__ | {"torch": named, "functional": named}
    return FunctionType(function.__code__, names, closure=function.__closure__)


def agrees(forward: Layered, backward: Layered, right: Layered, inputs: list[Tensor]) -> bool | None:
    """Whether check_grads passes. None if the forward or the right backward does not run on JAX's arrays, or is another
    function there."""
    import jax
    from jax.test_util import check_grads

    jax.config.update("jax_enable_x64", True)
    if any(t.dtype not in (torch.float64, torch.float32) for t in inputs):
        return None
    arrays = [jax.numpy.asarray(t.numpy()) for t in inputs]
    try:
        y, expected = in_jax(forward)(*arrays), forward(*inputs)
        dy = torch.linspace(1, 2, expected.numel(), dtype=expected.dtype).reshape(expected.shape)
        pairs = [(y, expected)]
        for one in (right, backward):
            ours, theirs = in_jax(one)(jax.numpy.asarray(dy.numpy()), *arrays), one(dy, *inputs)
            both = (ours, theirs) if isinstance(theirs, tuple) else ((ours,), (theirs,))
            pairs += zip(*both, strict=True)
        if not all(np.allclose(a, b.numpy(), rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in pairs):
            return None
    except Exception:  # whatever JAX raises for what it does not have
        return None

    @jax.custom_vjp  # type: ignore[untyped-decorator]
    def function(*given: Any) -> Any:
        return in_jax(forward)(*given)

    def backwards(given: Any, dy: Any) -> tuple[Any, ...]:
        found = in_jax(backward)(dy, *given)
        return found if isinstance(found, tuple) else (found,)

    function.defvjp(lambda *given: (function(*given), given), backwards)
    try:
        check_grads(function, arrays, order=1, modes="rev")
    except Exception:  # a wrong gradient, or one of another shape
        return False
    return True
