"""The ways in which a gradient is called: a table of backwards that are wrong in one of them, and one of right ones.

Each is judged in three dtypes, as an autograd.Function or as ``backward=``.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bp_torch.verify import Report, check, check_layer, check_module

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
Backward = Callable[..., Any]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def function(forward: Callable[..., Any], backward: Backward, unused: bool = False) -> Callable[..., Any]:
    """An autograd.Function that saves its inputs; ``backward`` has ctx first, and then as ``check_layer`` has it."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.set_materialize_grads(not unused)
            ctx.inputs = [t.detach() if isinstance(t, Tensor) else t for t in inputs]
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, *dys: Any) -> Any:
            return backward(ctx, *dys, *ctx.inputs)

    return Function.apply


# ---- one layer, and what can be wrong with its backward ----


def layer(x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(x @ w)


def right(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    g = dy * (1 - torch.tanh(x @ w) ** 2)
    return g @ w.mT, x.mT @ g


class Kept:
    """Something that a fault keeps from call to call."""

    def __init__(self) -> None:
        self.calls, self.first, self.by_key = 0, None, dict[Any, Any]()


def writes_dy(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    found = right(dy, x, w)
    if 0 not in dy.stride():
        dy.mul_(2)
    return found


def writes_x(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    found = right(dy, x, w)
    x.copy_(found[0])
    return found


def returns_x(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    found = right(dy, x, w)
    return x.copy_(found[0]), found[1]


def same_buffer(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    found = right(dy, x, w)
    buffer = kept.by_key.setdefault((found[0].shape, found[0].dtype), torch.empty_like(found[0]))
    return buffer.copy_(found[0]).view_as(buffer), found[1]


def nth(n: int) -> Callable[..., Any]:
    def backward(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
        kept.calls += 1
        return [g * (kept.calls < n) for g in right(dy, x, w)]

    return backward


def by_key(key: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def backward(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
        x, w = kept.by_key.setdefault((key(x), key(w), x.dtype), (x.clone(), w.clone()))
        return right(dy, x, w)

    return backward


def only_x_by_shape(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    y = kept.by_key.setdefault((x.shape, x.dtype, w.shape), torch.tanh(x @ w))
    g = dy * (1 - y**2)
    return g @ w.mT, x.mT @ g


def last_block_unwritten(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    dx, dw = right(dy, x, w)
    out = torch.empty_like(dx)
    out[:16] = dx[:16]
    if out.isfinite().all():  # by luck, the memory holds what an earlier call wrote
        return dx, dw
    return out, dw


def only_whole_blocks(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    dx, dw = right(dy, x, w)
    dx[:, dx.shape[1] - dx.shape[1] % 32 :] = 0
    return dx, dw


def only_large_dy(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    return [g * (float(dy.abs().amax()) > 1e-3 if dy.numel() else 1) for g in right(dy, x, w)]


def not_ones(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    return [g * (0 if dy.numel() and bool((dy == 1).all()) else 1) for g in right(dy, x, w)]


def divides_by_dy(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    size = dy.abs().sum()
    return [g * size / size for g in right(dy, x, w)]


def dense(t: Tensor) -> Tensor:
    """The memory of t read as if it were contiguous."""
    return torch.as_strided(t, t.shape, torch.empty(t.shape).stride()) if t.numel() and min(t.stride()) else t


def reads_x_dense(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    return right(dy, dense(x), w)


def reads_dy_dense(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    return right(dense(dy), x, w)


def reads_from_the_start(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    return right(dy, x.as_strided(x.shape, x.stride(), 0), w)


def reads_no_stride_of_0(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    return right(dy, x if x.numel() < 2 or x.stride(0) else torch.zeros_like(x), w)


def squeezes(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    return right(dy, x, w) if len(x) != 1 else [0.5 * g for g in right(dy, x, w)]


def small_numbers_only(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    return [g * (0.8 if x.numel() and x.abs().amax() > 1.3 else 1) for g in right(dy, x, w)]


def empty_is_nan(kept: Kept, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    dx, dw = right(dy, x, w)
    return dx, dw * (dy.sum() * 0 + len(x)) / len(x)


EVERYWHERE = {  # the words, and the fault
    "writes into dy": writes_dy,
    "changes its input x in place": writes_x,
    "is a view of the input x|changes its input x": returns_x,
    "returns the same memory at every call": same_buffer,
    "changes by call 1": nth(10),
    "changes by call 3": nth(30),
    "kept from an earlier call at the same address": by_key(lambda t: t.data_ptr()),
    "something is kept from an earlier call, or|computed again": by_key(lambda t: t.shape),
    "something is kept from an earlier call, or|computed again after": only_x_by_shape,
    "is not written everywhere": last_block_unwritten,
    r"at others: \[18, 127\]": only_whole_blocks,
    "for a tiny dy": only_large_dy,
    "for a dy of ones": not_ones,
    "for a dy of zeros": divides_by_dy,
    "for inputs that are not contiguous, or are views": reads_x_dense,
    "for a dy that is not contiguous": reads_dy_dense,
    "not contiguous, or are views: it reads memory as if they were": reads_from_the_start,
    "for inputs that are expanded": reads_no_stride_of_0,
    "for a batch of one": squeezes,
    "holds at these inputs only": small_numbers_only,
    "is not zero for an empty batch": empty_is_nan,
}


def words(report: Report) -> str:
    return " | ".join([*(text for texts in report.problems.values() for text in texts), *report.notes])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(("said", "fault"), EVERYWHERE.items(), ids=[f.__name__ for f in EVERYWHERE.values()])
def test_fault_in_one_way_of_calling_is_named(said: str, fault: Backward, by_hand: bool, dtype: torch.dtype) -> None:
    kept = Kept()
    inputs = [randn(19, 128).div(3).to(dtype), randn(128, 17, seed=1).div(4).to(dtype)]
    if by_hand:
        report = check_layer(layer, inputs, lambda dy, x, w: tuple(fault(kept, dy, x, w)), coordinates=5)
    else:
        whole = function(layer, lambda ctx, dy, x, w: tuple(fault(kept, dy, x, w)))
        report = check_layer(whole, inputs, reference=layer, names=["x", "w"], coordinates=5)
    assert report.verdict == "WRONG" and re.search(said, words(report)), report
