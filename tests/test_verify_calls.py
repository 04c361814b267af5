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
from tests.test_verify import Cube

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

    apply: Callable[..., Any] = Function.apply
    return apply


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
    "kept from an earlier call|changes by call": by_key(lambda t: t.data_ptr()),
    "something is kept from an earlier call, or|computed again": by_key(lambda t: t.shape),
    "something is kept from an earlier call, or|computed again after": only_x_by_shape,
    "is not written everywhere|changes when it is computed again": last_block_unwritten,
    r"at others: \[18, 127\]": only_whole_blocks,
    "for a tiny dy": only_large_dy,
    "for a dy of ones": not_ones,
    "for a dy of zeros": divides_by_dy,
    "for inputs that are not contiguous, or are views": reads_x_dense,
    "for a dy that is not contiguous": reads_dy_dense,
    "contiguous, or are views: it reads memory in between or around": reads_from_the_start,
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


# ---- what only an autograd.Function can get wrong ----


class Overwritten:
    """Where a second use of the function leaves what the first saved."""

    x = w = torch.empty(0)


def shared_by_uses(ctx: Any, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    return right(dy, Overwritten.x, Overwritten.w)


def layer_that_keeps(x: Tensor, w: Tensor) -> Tensor:
    Overwritten.x, Overwritten.w = x.detach(), w.detach()
    return layer(x, w)


def spends_what_it_saved(ctx: Any, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    y = ctx.__dict__.setdefault("y", torch.tanh(x @ w))
    g = y.square_().neg_().add_(1).mul_(dy)
    return g @ w.mT, x.mT @ g


def deletes_what_it_saved(ctx: Any, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    ctx.inputs = [None, None]
    return right(dy, x, w)


def dw_if_x_is_needed(ctx: Any, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    dx, dw = right(dy, x, w)
    return dx, dw if ctx.needs_input_grad[0] else torch.zeros_like(dw)


def unbound_if_not_needed(ctx: Any, dy: Tensor, x: Tensor, w: Tensor) -> Any:
    if ctx.needs_input_grad[1]:
        found = right(dy, x, w)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("said", "forward", "backward"),
    [
        ("used twice in a graph: the second use overwrites", layer_that_keeps, shared_by_uses),
        ("in a second backward over one graph", layer, spends_what_it_saved),
        ("fails in a second backward over one graph", layer, deletes_what_it_saved),
        ("is wrong if x requires no gradient", layer, dw_if_x_is_needed),
        ("fails if an input requires no gradient", layer, unbound_if_not_needed),
    ],
)
def test_fault_in_a_graph_is_named(said: str, forward: Backward, backward: Backward, dtype: torch.dtype) -> None:
    inputs = [randn(9, 7).to(dtype), randn(7, 5, seed=1).to(dtype)]
    report = check_layer(function(forward, backward), inputs, reference=layer, names=["x", "w"], coordinates=5)
    assert report.verdict == "WRONG" and said in words(report), report


def sine_and_exponential(ctx: Any, ds: Any, de: Any, x: Tensor) -> Any:
    return sum(dy * slope for dy, slope in ((ds, x.cos()), (de, x.exp())) if dy is not None)


def fails_for_none(ctx: Any, ds: Any, de: Any, x: Tensor) -> Any:
    return ds * x.cos() + de * x.exp()


def nothing_for_none(ctx: Any, ds: Any, de: Any, x: Tensor) -> Any:
    return None if ds is None or de is None else ds * x.cos() + de * x.exp()


@pytest.mark.parametrize("dtype", DTYPES)
def test_unused_output_is_tried(dtype: torch.dtype) -> None:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.exp()

    x = randn(4, 3).to(dtype)
    assert check_layer(function(both, sine_and_exponential, unused=True), x, reference=both, names=["x"])
    for backward, said in ((fails_for_none, "fails if one of its outputs is not used"), (nothing_for_none, "is None")):
        report = check_layer(function(both, backward, unused=True), x, reference=both, names=["x"])
        assert report.verdict == "WRONG" and said in words(report), report


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalar_function_that_writes_into_dy_is_wrong(dtype: torch.dtype) -> None:
    def total(x: Tensor) -> Tensor:
        return (x**2).sum()

    report = check(function(total, lambda ctx, dy, x: 2 * x * dy.mul_(1)), randn(5).to(dtype), reference=total)
    assert report.ok
    report = check(function(total, lambda ctx, dy, x: x * dy.mul_(2)), randn(5).to(dtype), reference=total)
    assert report.verdict == "WRONG" and "writes into dy" in words(report)


# ---- labels and masks ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [False, True])
def test_labels_and_masks_are_other_ones_in_later_calls(kept: bool, dtype: torch.dtype) -> None:
    def masked(x: Tensor, mask: Tensor) -> Tensor:
        return (x * mask).cumsum(1)

    def weighted(x: Tensor, labels: Tensor, w: Tensor) -> Tensor:
        return functional.cross_entropy(x, labels, w.detach().abs(), label_smoothing=0.1)

    for plain, others in (
        (functional.cross_entropy, [torch.randint(0, 11, (5,), generator=torch.Generator().manual_seed(1))]),
        (masked, [randn(5, 11, seed=1) > 0.5]),
    ):
        first = dict[torch.dtype, Any]()

        def backward(ctx: Any, dy: Tensor, x: Tensor, *others: Tensor, plain: Any = plain, first: Any = first) -> Any:
            others = first.setdefault(x.dtype, others) if kept else others
            with torch.enable_grad():
                leaf = x.clone().requires_grad_()
                return torch.autograd.grad(plain(leaf, *others), leaf, dy)[0], None

        report = check_layer(function(plain, backward), [randn(5, 11).to(dtype), *others], reference=plain)
        assert report.ok is not kept and (not kept or "with other" in words(report)), report


# ---- right ones ----


def tanh_backward(ctx: Any, dy: Tensor, x: Tensor) -> Tensor:
    return dy * (1 - torch.tanh(x) ** 2)


def in_any_order(dy: Tensor, ids: Tensor, w: Tensor) -> Any:
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(torch.seed() % 2**31))
    return None, torch.zeros_like(w).index_add_(0, ids[order], dy[order])


def batch_norm(x: Tensor, gamma: Tensor) -> Tensor:
    return (x - x.mean(0)) * torch.rsqrt(x.var(0, unbiased=False) + 1e-5) * gamma


def batch_norm_backward(dy: Tensor, x: Tensor, gamma: Tensor) -> Any:
    r = torch.rsqrt(x.var(0, unbiased=False) + 1e-5)
    h, g = (x - x.mean(0)) * r, dy * gamma
    return r * (g - g.mean(0) - h * (g * h).mean(0)), (dy * h).sum(0)


def contiguous_only(dy: Tensor, x: Tensor) -> Tensor:
    if not x.is_contiguous():
        raise RuntimeError("x must be contiguous")
    return dy * (1 - torch.tanh(x) ** 2)


def positive_definite(dtype: torch.dtype) -> Tensor:
    b = randn(4, 4)
    return (b @ b.mT + 4 * torch.eye(4)).to(dtype)


SYMMETRIC = positive_definite(torch.float64)
P = torch.softmax(randn(5, 4), 1)

RIGHT: dict[str, tuple[Callable[..., Any], list[Tensor], Callable[..., Any], Callable[..., Any] | None]] = {
    "identity returns dy": (lambda x: x * 1, [randn(3, 4)], lambda dy, x: dy, None),
    "sum of two": (lambda x, y: x + y, [randn(3, 4), randn(3, 4, seed=1)], lambda dy, x, y: (dy, dy), None),
    "atomics": (lambda ids, w: w[ids], [torch.arange(200) * 7 % 4, randn(4, 6)], in_any_order, None),
    "batch norm": (batch_norm, [randn(12, 5), randn(5, seed=1)], batch_norm_backward, None),
    "contiguous only": (torch.tanh, [randn(3, 4)], contiguous_only, None),
    "lengths of its own": (lambda x: x.sum(), [randn(30)], lambda dy, x: dy.expand(30).clone(), None),
    "logdet": (
        lambda a: torch.linalg.cholesky(a).diagonal().log().sum() * 2,
        [SYMMETRIC],
        lambda dy, a: dy * torch.linalg.inv(a),
        torch.logdet,
    ),
    "soft labels": (
        lambda z, p: functional.cross_entropy(z, p.detach(), reduction="none"),
        [randn(5, 4, seed=3), P],
        lambda dy, z, p: (dy[:, None] * (torch.softmax(z, 1) - p), None),
        None,
    ),
    "one-hot": (
        lambda z, p: functional.cross_entropy(z, p.detach(), reduction="none"),
        [randn(5, 4, seed=3), torch.eye(4, dtype=torch.float64)[[0, 2, 1, 3, 2]]],
        lambda dy, z, p: (dy[:, None] * (torch.softmax(z, 1) - p), None),
        None,
    ),
    "log-probabilities": (
        lambda q: q.exp().sum(1) - 1 + (q * P.to(q)).sum(1),
        [torch.log_softmax(randn(5, 4), 1)],
        lambda dy, q: dy[:, None] * (q.exp() / q.exp().sum(1, keepdim=True) + P.to(q)),
        None,
    ),
    "unit vectors": (
        lambda x: x.square().sum(1).sqrt() + x[:, 0],
        [functional.normalize(randn(5, 4), dim=1)],
        lambda dy, x: dy[:, None] * (x + torch.tensor([1.0, 0, 0, 0]).to(x)),
        None,
    ),
    "sorted": (
        lambda x: x.sort().values.diff(),
        [randn(9).sort().values],
        lambda dy, x: functional.pad(dy, (1, 0)) - functional.pad(dy, (0, 1)),
        None,
    ),
    "within -1 and 1": (torch.acos, [randn(3, 4).tanh()], lambda dy, x: -dy / (1 - x * x).sqrt(), None),
    "positive": (torch.log, [randn(3, 4).exp()], lambda dy, x: dy / x, None),
    "scalar input": (lambda x: x * x, [randn()], lambda dy, x: 2 * x * dy, None),
    "offsets": (
        lambda w, starts: torch.stack([part.sum(0) for part in torch.tensor_split(w, starts[1:].tolist())]),
        [randn(9, 3), torch.tensor([0, 2, 6])],
        lambda dy, w, starts: (dy.repeat_interleave(torch.diff(starts, append=torch.tensor([len(w)])), 0), None),
        None,
    ),
    "causal": (
        lambda x, keep: torch.softmax(x.masked_fill(~keep, -torch.inf), -1),
        [randn(5, 5), torch.ones(5, 5).tril() > 0],
        lambda dy, x, keep: (lambda p: (p * (dy - (dy * p).sum(-1, keepdim=True)), None))(
            torch.softmax(x.masked_fill(torch.ones_like(x).triu(1) > 0, -torch.inf), -1)
        ),
        None,
    ),
    "whole numbers": (
        lambda x, n: x * n.detach(),
        [randn(4, 3), torch.tensor([[1.0], [2.0], [0.0], [3.0]], dtype=torch.float64)],
        lambda dy, x, n: (dy * n, None),
        None,
    ),
    "complex": (
        lambda z: z * z,
        [torch.complex(randn(3, 4), randn(3, 4, seed=1))],
        lambda dy, z: 2 * dy * z.conj(),
        None,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RIGHT)
def test_right_backward_is_right_in_every_way_of_calling(name: str, dtype: torch.dtype) -> None:
    forward, inputs, backward, reference = RIGHT[name]
    if dtype == torch.bfloat16 and name in ("logdet", "soft labels", "unit vectors", "log-probabilities"):
        pytest.skip("torch does not compute it, or 8 bits do not sum to one")
    inputs = [t.to(dtype if t.is_floating_point() else t.dtype) for t in inputs]
    report = check_layer(forward, inputs, backward, reference=reference)
    assert report.ok, report


class Dirty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:
        return 2 * dy[0]


class WithStatistic(torch.autograd.Function):
    """The second output is a number to look at."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y, lse = torch.softmax(x, -1), x.logsumexp(-1)
        ctx.save_for_backward(y)
        ctx.mark_non_differentiable(lse)
        return y, lse

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> Tensor:
        y: Tensor = ctx.saved_tensors[0]
        return y * (dys[0] - (dys[0] * y).sum(-1, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_marked_dirty_and_outputs_marked_non_differentiable(dtype: torch.dtype) -> None:
    x = randn(4, 5).to(dtype)
    for reference in (None, lambda x: 2 * x):
        assert check_layer(Dirty.apply, x, reference=reference, names=["x"])
    for reference in (None, lambda x: (torch.softmax(x, -1), x.logsumexp(-1)), lambda x: torch.softmax(x, -1)):
        assert check_layer(WithStatistic.apply, x, reference=reference, names=["x"])


# ---- the arguments ----


def weighted(xs: list[Tensor], state: dict[str, Tensor], w: Tensor) -> Tensor:
    return sum((x * w for x in xs), torch.zeros_like(w)) + state["h"].exp()


def weighted_backward(dy: Tensor, xs: list[Tensor], state: dict[str, Tensor], w: Tensor) -> Any:
    return [dy * w for _ in xs], {"h": dy * state["h"].exp()}, dy * (xs[0] + xs[1])


def test_arguments_may_be_lists_and_dicts_of_tensors() -> None:
    inputs = [[randn(3, 4), randn(3, 4, seed=1)], {"h": randn(3, 4, seed=2)}, randn(3, 4, seed=3)]
    report = check_layer(weighted, inputs, weighted_backward)
    assert report.ok and report.gradients == ["xs[0]", "xs[1]", "state[h]", "w"]
    report = check_layer(weighted, inputs, lambda dy, xs, state, w: ([dy * w, dy], None, dy * (xs[0] + xs[1])))
    assert report.wrong == ["xs[1]"] and "state[h] not judged" in report.headline()
    with pytest.raises(ValueError, match="there are 2 gradients for 3 inputs xs, state, w"):
        check_layer(weighted, inputs, lambda dy, xs, state, w: (dy, dy))


class Kernel(torch.autograd.Function):
    """It refuses to be differentiated by x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, length: Tensor) -> Tensor:
        if ctx.needs_input_grad[0]:
            raise RuntimeError("no gradient by x")
        k = torch.exp(-x.square() / length)
        ctx.save_for_backward(x, length, k)
        return k

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Any:
        x, length, k = ctx.saved_tensors
        return None, (dy[0] * k * x.square() / length**2).sum().reshape(1)


def test_input_that_is_frozen_is_passed_on_in_every_dtype() -> None:
    inputs = [randn(5).float(), torch.tensor([0.7])]
    report = check_layer(Kernel.apply, inputs, names=["x", "length"], frozen=["x"])
    assert report.ok and report.gradients == ["length"] and "x not judged (it is frozen)" in report.headline()
    with pytest.raises(ValueError, match="frozen: there is no input y, the inputs are x, length"):
        check_layer(Kernel.apply, inputs, names=["x", "length"], frozen=["y"])
    with pytest.raises(ValueError, match="wanted at least one input of real numbers that is not frozen"):
        check_layer(torch.tanh, randn(3), names=["x"], frozen=["x"])


def only_small(dy: Tensor, x: Tensor) -> Tensor:
    return dy * torch.where(x.abs() < 1e3, 1 - torch.tanh(x) ** 2, 1.0)


def near_its_inputs(dy: Tensor, x: Tensor) -> Tensor:
    return dy * (1 - torch.tanh(x) ** 2) * (1 if (x - randn(4, 3).to(x)).abs().amax() < 0.1 else 2)


def test_other_inputs_are_as_near_as_the_caller_says() -> None:
    x = randn(4, 3)
    assert not check_layer(torch.tanh, x, near_its_inputs)
    assert check_layer(torch.tanh, x, near_its_inputs, nearby=None)
    drawn = []

    def make_inputs(seed: int) -> list[Tensor]:
        drawn.append(seed)
        return [1e4 * randn(4, 3, seed=seed)]

    assert not check_layer(torch.tanh, x, only_small, nearby=make_inputs) and len(set(drawn)) > 0
    assert check_layer(torch.tanh, x, only_small)
    with pytest.raises(ValueError, match="nearby: it drew 2 inputs, wanted 1"):
        check_layer(torch.tanh, x, only_small, nearby=lambda seed: [x, x])


# ---- second derivatives ----


class CubeOnce(Cube):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dy: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return dy[0] * 3 * x**2


class CubeDetached(Cube):
    """Its derivative by dy is lost."""

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return dy[0].detach() * 3 * x**2


@pytest.mark.parametrize("reference", [None, lambda x: x**3])
def test_second_order_is_by_dy_too_and_names_what_cannot_be_differentiated(reference: Any) -> None:
    x = randn(5)
    report = check_layer(Cube.apply, x, reference=reference, second_order=True, names=["x"])
    assert report.ok and report.gradients == ["x", "x (second order)", "dy (second order)"]
    lost = check_layer(CubeDetached.apply, x, reference=reference, second_order=True, names=["x"])
    assert lost.wrong == ["dy (second order)"]
    once = check_layer(CubeOnce.apply, x, reference=reference, second_order=True, names=["x"])
    assert once.wrong == ["x (second order)"] and "marked once_differentiable" in words(once)


# ---- modules ----


class Layer(nn.Module):
    def __init__(self, n: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.run = inner, run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.inner, x)


class Recomputed(torch.autograd.Function):
    """Leaves the parameters' gradients by ``.backward()``, as a reversible block does."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, inner: nn.Module, x: Tensor, anchor: Tensor) -> Tensor:
        ctx.inner = inner
        ctx.save_for_backward(x)
        with torch.no_grad():
            found: Tensor = inner(x)
            return found

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Any:
        with torch.enable_grad():
            leaf = ctx.saved_tensors[0].detach().requires_grad_()
            torch.autograd.backward(ctx.inner(leaf), Recomputed.factor * dy[0])
        return None, leaf.grad, None


def reversible(inner: Any, x: Tensor) -> Tensor:
    found: Tensor = Recomputed.apply(inner, x, inner.linear.weight)
    return found


@pytest.mark.parametrize(
    "run",
    [
        lambda inner, x: checkpoint(inner, x, use_reentrant=False),
        lambda inner, x: checkpoint(inner, x, use_reentrant=True),
        reversible,
    ],
)
def test_module_whose_backward_computes_the_forward_again(run: Callable[..., Tensor]) -> None:
    inner, x = Layer().double(), randn(4, 3)
    before = {name: t.clone() for name, t in inner.state_dict().items()}
    plain = Wrapped(inner, lambda inner, x: inner(x))
    for reference in (plain, None):
        report = check_module(Wrapped(inner, run), x, reference=reference)
        assert report.ok and len(report.gradients) == 3, report
    assert all(isinstance(p, nn.Parameter) and p.grad is None for p in inner.parameters())
    assert all(torch.equal(t, before[name]) for name, t in inner.state_dict().items())


def test_wrong_recomputation_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recomputed, "factor", 2.0)
    inner = Layer()
    plain = Wrapped(inner, lambda inner, x: inner(x))
    assert len(check_module(Wrapped(inner, reversible), randn(4, 3).float(), reference=plain).wrong) == 3


class WithStrayBackward(Layer):
    def backward(self, dy: Tensor) -> Tensor:
        return 0 * dy


def test_method_backward_that_autograd_never_calls_is_said() -> None:
    report = check_module(WithStrayBackward(), randn(4, 3).float(), reference=Layer())
    assert report.verdict == "SETUP" and "never calls the method backward of WithStrayBackward" in str(report).replace(
        "\n ", ""
    )


def test_parameters_that_require_no_gradient_are_not_judged() -> None:
    module = Layer()
    module.linear.weight.requires_grad_(False)
    report = check_module(module, randn(4, 3).float(), reference=module)
    assert report.ok and report.gradients == ["x", "linear.bias"]


def test_recurrent_module_and_tied_parameters() -> None:
    lstm = nn.LSTM(3, 4)
    assert check_module(lstm, randn(5, 2, 3).float(), reference=nn.LSTM(3, 4))
    tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    report = check_module(tied, randn(5, 3).float(), reference=tied)
    assert report.ok and report.gradients == ["x", "0.weight", "0.bias", "2.bias"]
