"""The words of a report: what is explained is explained to rounding error, and nothing else is said."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.verify import check, check_layer
from bp_torch.verify.diagnose import autograds_own_nan, furthest
from bp_torch.verify.report import apart


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def said(forward: Callable[..., Any], inputs: list[Any], backward: Callable[..., Any]) -> dict[str, list[str]]:
    report = check_layer(forward, inputs, backward)
    assert report.verdict == "WRONG", report
    return report.diagnoses


X, W = randn(8, 8), randn(8, seed=1)
SUMS = [
    (lambda dy, x: (dy * x).sum(1), "is summed over dimension 1 of dy, and should be over 0"),
    (lambda dy, x: (dy * x)[:5].sum(0), "leaves out indices 5 to 7 of dimension 0 of dy, over which it is summed"),
    (lambda dy, x: (dy * x)[1:].sum(0), "leaves out index 0 of dimension 0 of dy, over which it is summed"),
    (lambda dy, x: (dy * x)[3], "leaves out 7 indices, 0 the first, of dimension 0 of dy, over which it is summed"),
    (
        lambda dy, x: (dy * x).sum(0) + dy[2] * x[2],
        "counts index 2 twice of dimension 0 of dy, over which it is summed",
    ),
]


@pytest.mark.parametrize(("dw", "words"), SUMS, ids=[words for _, words in SUMS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_wrong_axis_and_a_part_of_a_sum_are_named(
    dw: Callable[[Tensor, Tensor], Tensor], words: str, dtype: torch.dtype
) -> None:
    found = said(lambda x, w: x * w, [X.to(dtype), W.to(dtype)], lambda dy, x, w: (dy * w, dw(dy, x)))
    assert found == {words: ["w"]}


def test_no_part_of_a_sum_is_blamed_for_an_error_that_is_none() -> None:
    wrong = randn(8, seed=7)
    assert said(lambda x, w: x * w, [X, W], lambda dy, x, w: (dy * w, (dy * x).sum(0) + wrong)) == {}


def test_a_lost_conjugate_is_named() -> None:
    x, w = torch.complex(randn(4, 3), randn(4, 3, seed=1)), torch.complex(randn(4, 3, seed=2), randn(4, 3, seed=3))
    found = said(lambda x, w: x * w, [x, w], lambda dy, x, w: (dy * w, dy.conj() * x.conj()))
    lost = "conjugated: a conjugate is lost?"
    assert found == {f"would be right for w {lost}": ["x"], f"would be right for dy {lost}": ["w"]}


def test_a_transposed_weight_is_named() -> None:
    found = said(lambda x, w: x @ w.T, [X[:5], randn(8, 8, seed=2)], lambda dy, x, w: (dy @ w.T, dy.T @ x))
    assert found == {"would be right for w transposed": ["x"]}


def test_an_error_on_the_support_alone_is_named() -> None:
    mask = randn(8, 8, seed=3) > 0.3
    masked = said(lambda x, m: x**2 * m, [X, mask], lambda dy, x, m: (dy * (2 * x + 0.3 * x**2) * m, None))
    assert masked == {"is wrong only where m is true, and right elsewhere": ["x"]}
    below = said(lambda x: functional.elu(x), [X], lambda dy, x: torch.where(x > 0, dy, dy * x.cos()))
    assert below == {"is wrong only where x < 0, and right elsewhere": ["x"]}


def test_2_and_half_are_said_without_a_guess() -> None:
    q, k = randn(5, 6, 4), randn(5, 3, 4, seed=1)  # k serves two heads each

    def backward(dy: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        d = dy[..., None]
        return (d * k[:, :, None]).reshape(5, 6, 4), (d * q.reshape(5, 3, 2, 4)).mean(2)

    found = said(lambda q, k: (q.reshape(5, 3, 2, 4) * k[:, :, None]).sum(-1), [q, k], backward)
    assert found == {"is ½ of what it should be": ["k"]}


def test_numbers_are_printed_as_far_as_they_differ() -> None:
    assert apart(1.71928, 1.7193) == ("1.71928", "1.7193")
    assert apart(1.719281, 1.719282) == ("1.719281", "1.719282")
    assert apart(2.0, 2.0) == ("2", "2")
    found = said(torch.sin, [X], lambda dy, x: (1 + 1e-8) * dy * torch.cos(x))
    assert found == {"is 1.00000001 times what it should be, throughout": ["x"]}
    words = furthest(torch.tensor([1.0, 2.0000001]), torch.tensor([1.0, 2.0]), 1e-3, lambda i: [i])
    assert words.startswith("no entry is far off alone") and "at [1]: 2.0000002" not in words.split("where")[1]


def test_nan_of_autograds_own_is_explained() -> None:
    words = autograds_own_nan("x", torch.tensor([1.0, math.nan, math.inf]))
    assert words.startswith("autograd's own gradient of x is not finite at 2 entries, as where torch.where")


def test_no_warning_of_a_shorter_batch_leaks_out() -> None:
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        report = check(functional.mse_loss, [X, randn(8, 8, seed=5)], lambda x, y: (2 * (x - y) / 8, -2 * (x - y) / 8))
    assert report.verdict == "WRONG" and len(report.diagnoses) == 1 and leaked == []


def test_a_pattern_that_leaves_much_of_the_difference_is_not_said() -> None:
    def backward(dy: Tensor, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise TypeError("this kernel takes bfloat16")
        return (0.9 * dy * x.cos() * (1 + 0.03 * randn(8, 8, seed=3))).to(x)

    assert said(lambda x: x.sin(), [X.bfloat16()], backward) == {}
