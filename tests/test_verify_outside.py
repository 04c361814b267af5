"""What outsiders write: right and wrong functions that verify once misjudged, most of them without a reference."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bp_torch.verify import check_layer, check_module
from bp_torch.verify.report import Report

NOT_RIGHT = ["NOISE", "WRONG"]
FLOATS = [torch.float64, torch.float32, torch.bfloat16]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def alone(forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor) -> Report:
    """The report on an autograd.Function without a reference."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Tensor) -> Any:
            ctx.save_for_backward(*given)
            return forward(*given)

        @staticmethod
        def backward(ctx: Any, *dys: Tensor) -> Any:
            return backward(*dys, *ctx.saved_tensors)

    return check_layer(Function.apply, list(inputs))


@pytest.mark.parametrize(
    ("factor", "verdicts"), [(1.0, ["RIGHT"]), (1.05, ["NOISE", "WRONG"]), (1.5, ["NOISE", "WRONG"])]
)
def test_exact_branch_for_float64_excuses_nothing_without_a_reference(factor: float, verdicts: list[str]) -> None:
    def backward(dy: Tensor, x: Tensor) -> Tensor:
        s = x.sigmoid()
        return dy * s * (1 + x * (1 - s)) * (1.0 if x.dtype == torch.float64 else factor)

    report = alone(functional.silu, backward, randn(32, 24, dtype=torch.bfloat16))
    assert report.verdict in verdicts, str(report)


@pytest.mark.parametrize("every", [7, 33])
def test_single_calls_that_are_wrong_are_seen(every: int) -> None:
    calls = 0

    def backward(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return dy @ w.T * (calls % every != 0), x.T @ dy * (calls % every != 0)

    assert check_layer(torch.matmul, [randn(19, 12), randn(12, 9, seed=1)], backward).verdict == "WRONG"


def batch_norm_backward(dy: Tensor, x: Tensor, g: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = (x.var(0, unbiased=False) + 1e-5).rsqrt()
    h, q = (x - x.mean(0)) * s, dy * g
    return s * (q - q.mean(0) - h * (q * h).mean(0)), (dy * h).sum(0), dy.sum(0)


@pytest.mark.parametrize("seed", range(3))
def test_batch_norm_is_right_without_a_reference(seed: int) -> None:
    def forward(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, g, b, training=True)

    inputs = randn(16, 7, seed=seed), randn(7, seed=seed + 10), randn(7, seed=seed + 20)
    report = alone(forward, batch_norm_backward, *inputs)
    assert report.verdict == "RIGHT", str(report)


def test_what_works_in_halves_is_right_at_even_lengths() -> None:
    def rotate(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), -1)

    report = check_layer(rotate, randn(3, 8), lambda dy, x: -rotate(dy))
    assert report.verdict == "RIGHT" and any("even lengths" in note for note in report.notes)


def test_what_is_kept_is_found_without_a_reference() -> None:
    kept: dict[Any, Tensor] = {}

    def by_shape(dy: Tensor, x: Tensor) -> Tensor:
        return dy * kept.setdefault(x.shape, x.cos().clone()).to(dy)

    def labels(dy: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, None]:
        t = kept.setdefault("t", t.clone())
        return dy * (x.softmax(1) - functional.one_hot(t, 6)) / len(t), None

    assert alone(torch.sin, by_shape, randn(4, 5)).verdict == "WRONG"
    report = alone(functional.cross_entropy, labels, randn(5, 6), torch.tensor([1, 3, 0, 2, 5]))
    assert report.verdict == "WRONG" and "are they kept" in str(report)


@pytest.mark.parametrize("dtype", FLOATS)
def test_terms_that_cancel_are_judged_without_a_reference(dtype: torch.dtype) -> None:
    def forward(x: Tensor, c: Tensor) -> Tensor:
        return (x + c).log_softmax(-1)

    def backward(dy: Tensor, x: Tensor, c: Tensor, wrong: bool = False) -> tuple[Tensor, Tensor]:
        g = dy - (x + c).softmax(-1) * dy.sum(-1, keepdim=True)
        return g, (dy if wrong else g).sum(-1, keepdim=True)

    inputs = randn(6, 9, dtype=dtype), randn(6, 1, seed=1, dtype=dtype)
    assert alone(forward, backward, *inputs).verdict == "RIGHT"
    assert alone(forward, partial(backward, wrong=True), *inputs).verdict == "WRONG"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("seed", range(2))
def test_saturated_smooth_function_has_no_kinks(seed: int, dtype: torch.dtype) -> None:
    x = (4 * randn(6, 9, seed=seed)).to(dtype)
    assert alone(torch.tanh, lambda dy, x: dy * (1 - torch.tanh(x) ** 2), x).verdict == "RIGHT"


def test_mixed_dtypes_are_judged_without_a_reference() -> None:
    def forward(x: Tensor, w: Tensor) -> Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * w).to(x.dtype)

    def backward(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        h, g = x.float(), dy.float()
        s = torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
        q = g * w
        return (s * (q - h * s * s * (q * h).mean(-1, keepdim=True))).to(x.dtype), (g * h * s).sum(0).to(w.dtype)

    inputs = randn(6, 8, dtype=torch.bfloat16), randn(8, seed=1)
    assert alone(forward, backward, *inputs).verdict == "RIGHT"
    assert alone(forward, lambda *given: (backward(*given)[0], -backward(*given)[1]), *inputs).verdict == "WRONG"


def test_frozen_parameters_of_a_module_are_those_of_the_reference() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w.T + self.b

    report = check_module(Linear(), randn(5, 6), reference=Linear())
    assert report.verdict == "RIGHT" and "b" not in report.gradients, str(report)


def test_gradient_of_another_shape_out_of_a_function_is_wrong() -> None:
    report = alone(torch.matmul, lambda dy, x, w: (dy @ w.T, dy.T @ x), randn(4, 5), randn(5, 3, seed=1))
    assert report.verdict == "WRONG" and "invalid gradient" in str(report)


def test_exact_numbers_in_another_dtype_are_not_said_to_differ() -> None:
    report = check_layer(torch.tanh, randn(4, 5), lambda dy, x: (dy * (1 - torch.tanh(x) ** 2)).double())
    assert report.verdict == "WRONG" and not report.where and not report.diagnoses
