"""A right gradient passes, a wrong one is caught and diagnosed, and no right one is called wrong."""

import contextlib
import io
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bp_torch import backprop, own_backward, verify
from bp_torch.backprop import backward, forward
from bp_torch.commands import verify as command
from bp_torch.commands.verify_networks import combinations
from bp_torch.costs import Cost
from bp_torch.network import Network, layer_views
from bp_torch.training import Config, train
from bp_torch.verify import check, check_layer, check_own, check_step

DTYPES = [torch.float32, torch.float64]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def compared(report: verify.Report, gradient: str, reference: str) -> verify.Comparison:
    return next(c for c in report.comparisons if (c.gradient, c.reference) == (gradient, reference))


def references(report: verify.Report, gradient: str) -> set[str]:
    return {c.reference for c in report.comparisons if c.gradient == gradient}


# ---- backwards from elsewhere ----


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    mean, var = x.mean(0), x.var(0, unbiased=False)
    return (x - mean) / torch.sqrt(var + 1e-5) * gamma + beta


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    centred: bool = True,
    scaled: bool = True,
    summed: bool = True,
    projected: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    std = torch.sqrt(x.var(0, unbiased=False) + 1e-5)
    xhat = (x - x.mean(0)) / std
    dxhat = dy * gamma if scaled else dy
    dx = dxhat - (dxhat.mean(0) if centred else 0) - (xhat * (dxhat * xhat).mean(0) if projected else 0)
    return dx / std, (dy * xhat).sum(0), dy.sum(0) if summed else dy


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), gamma, beta)


def layer_norm_backward(
    dy: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, *, scaled: bool = True, inverse: bool = True
) -> tuple[Tensor, ...]:
    std = torch.sqrt(x.var(1, unbiased=False, keepdim=True) + 1e-5)
    xhat = (x - x.mean(1, keepdim=True)) / std
    dxhat = dy * gamma if scaled else dy
    dx = dxhat - dxhat.mean(1, keepdim=True) - xhat * (dxhat * xhat).mean(1, keepdim=True)
    return dx / std if inverse else dx, (dy * xhat).sum(0), dy.sum(0)


def softmax_backward(dy: Tensor, x: Tensor, *, coupled: bool = True) -> Tensor:
    p = torch.softmax(x, -1)
    return p * (dy - (dy * p).sum(-1, keepdim=True) if coupled else dy)


def attention(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor) -> Tensor:
    scores = q @ (k + key_bias).mT / math.sqrt(q.shape[-1])
    return torch.softmax(scores.masked_fill(causal(len(q)), -math.inf), -1) @ v


def causal(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def attention_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor, *, scaled: bool = True, swapped: bool = False
) -> tuple[Tensor, ...]:
    scale = 1 / math.sqrt(q.shape[-1])
    p = torch.softmax((q @ (k + key_bias).mT * scale).masked_fill(causal(len(q)), -math.inf), -1)
    dp = dy @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * (scale if scaled else 1)
    dq, dk = ds @ (k + key_bias), ds.mT @ q
    return dk if swapped else dq, dq if swapped else dk, p.mT @ dy, dk.sum(0)


def relu_backward(dy: Tensor, x: Tensor, *, masked: bool = True) -> Tensor:
    return dy * (x > 0) if masked else dy


LAYERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, ...]]]] = {
    "batch norm": (batch_norm, batch_norm_backward, [(12, 5), (5,), (5,)]),
    "layer norm": (layer_norm, layer_norm_backward, [(12, 5), (5,), (5,)]),
    "softmax": (lambda x: torch.softmax(x, -1), softmax_backward, [(7, 9)]),
    "attention": (attention, attention_backward, [(6, 4), (6, 4), (6, 4), (4,)]),
    "relu": (torch.relu, relu_backward, [(7, 9)]),
}


def layer_inputs(name: str, dtype: torch.dtype) -> list[Tensor]:
    return [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(LAYERS[name][2])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_right_backward_of_common_layers_passes(name: str, dtype: torch.dtype) -> None:
    layer, layer_backward, _ = LAYERS[name]
    report = check_layer(layer, layer_inputs(name, dtype), layer_backward)
    report.assert_ok()
    assert all(references(report, name) == set(verify.REFERENCES) for name in report.gradients)
    assert "right" in str(report)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "fault", "wrong", "said"),
    [
        ("batch norm", {"centred": False}, ["x"], "constant along dimension 0"),
        ("batch norm", {"scaled": False}, ["x"], "the factor gamma is missing"),
        ("batch norm", {"summed": False}, ["beta"], "not summed over dimension 0"),
        ("batch norm", {"projected": False}, ["x"], "along dimension 0, a multiple of x, plus a constant"),
        ("layer norm", {"scaled": False}, ["x"], None),
        ("layer norm", {"inverse": False}, ["x"], "a factor that is constant along dimension 1"),
        ("softmax", {"coupled": False}, ["x"], "along dimension 1, a multiple of y:"),
        (
            "attention",
            {"scaled": False},
            ["q", "k", "key_bias"],
            "2 times what it should be: the root of the length of dimension 1",
        ),
        ("attention", {"swapped": True}, ["q", "k"], "is the gradient of"),
        ("relu", {"masked": False}, ["x"], "a mask is missing?"),
    ],
)
def test_wrong_backward_of_common_layers_is_caught_and_diagnosed(
    name: str, fault: dict[str, bool], wrong: list[str], said: str | None, dtype: torch.dtype
) -> None:
    layer, layer_backward, _ = LAYERS[name]
    names = ["x"] if len(LAYERS[name][2]) == 1 else None
    report = check_layer(
        layer, layer_inputs(name, dtype), lambda *t: layer_backward(*t, **fault), names=names, coordinates=80
    )
    assert set(report.wrong) - {"key_bias"} == set(wrong) - {"key_bias"}  # that one's gradient is zero but for rounding
    if said is None:
        assert report.diagnoses == {}
    else:
        assert any(said in text for text in report.diagnoses), report


def test_gradient_that_is_only_rounding_error_passes_with_a_note() -> None:
    layer, layer_backward, _ = LAYERS["attention"]
    report = check_layer(layer, layer_inputs("attention", torch.float32), layer_backward)
    assert report.ok and compared(report, "key_bias", "autograd").relative_error > 1e-2
    assert any("key_bias" in note and "rounding" in note for note in report.notes)


class Cube(torch.autograd.Function):
    factor = 3.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return dy[0] * Cube.factor * x**2


def test_custom_autograd_function_is_compared_with_central_differences_or_a_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = randn(4, 3)

    def custom(x: Tensor) -> Tensor:
        out: Tensor = Cube.apply(x).sum()
        return out

    alone = check(custom, x)
    beside = check(custom, x, reference=lambda x: (x**3).sum())
    assert alone.ok and references(alone, "x") == {"central"}
    assert beside.ok and references(beside, "x") == set(verify.REFERENCES)
    monkeypatch.setattr(Cube, "factor", 2.0)
    for report in (check(custom, x), check(custom, x, reference=lambda x: (x**3).sum())):
        assert not report.ok and "0.666667" in next(iter(report.diagnoses))
    itself = check(custom, x, lambda x: 2 * x**2)  # autograd is then the very backward that is checked
    assert itself.verdict == "SETUP" and compared(itself, "x", "autograd").ok
    assert "Pass a reference" in itself.setup["x"][0]


# ---- the shapes that an error has ----

W = randn(5, 5, seed=1)
X = randn(8, 5, seed=2)


def square(x: Tensor, w: Tensor) -> Tensor:
    return ((x @ w.to(x.dtype).T) ** 2).sum() / len(x)


def square_gradient(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    z = x @ w.T
    return 2 * z @ w / len(x), 2 * z.T @ x / len(x)


def one_row_off(g: Tensor) -> Tensor:
    g = g.clone()
    g[3] += 1
    return g


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda g: g * 8, "is 8 times what it should be, throughout"),
        (lambda g: g / 8, "is 0.125 (1/8) times what it should be, throughout"),
        (lambda g: -g, "the sign is wrong"),
        (lambda g: -8 * g, "the sign is wrong, and it is 8 times what it should be"),
        (lambda g: g * 2, "is 2 times what it should be"),
        (lambda g: g / 2, "is ½ of what it should be"),
        (lambda g: g * 5, "is 5 times what it should be, throughout"),
        (lambda g: g * math.sqrt(5), "is 2.23607 times what it should be, throughout"),
        (lambda g: g * 1.2345, "is 1.2345 times what it should be, throughout"),
        (lambda g: g.T, "is transposed"),
        (lambda g: g.reshape(-1), "the right numbers in another shape"),
        (lambda g: g * 0, "is zero throughout"),
        (lambda g: g * (torch.arange(5) != 2), "is zero in 5 entries where it should not be"),
        (lambda g: g + 0.125, "off by the same amount in every entry, 0.125"),
        (one_row_off, "is wrong only at index 3 of dimension 0"),
        (lambda g: g + 0.1 * randn(5, 5, seed=9).to(g.dtype), None),
        (lambda g: g * (1 + 0.01 * randn(5, 5, seed=9).to(g.dtype)), None),
    ],
)
def test_error_with_a_known_pattern_is_diagnosed_and_no_other(
    spoil: Callable[[Tensor], Tensor], said: str | None, dtype: torch.dtype
) -> None:
    def gradient(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        dx, dw = square_gradient(x, w)
        return dx, spoil(dw)

    report = check(square, [X.to(dtype), W.to(dtype)], gradient)
    assert report.wrong == ["w"]
    assert [said in text for text in report.diagnoses] == [True] if said else report.diagnoses == {}
    with pytest.raises(AssertionError, match="1 of 2 gradients wrong"):
        report.assert_ok()


def test_diagnosis_of_every_gradient_is_printed_once() -> None:
    report = check(square, [X, W], lambda x, w: tuple(8 * g for g in square_gradient(x, w)))
    assert report.diagnosis_lines() == ["every gradient: is 8 times what it should be, throughout"]


def test_length_is_named_as_the_cause_of_a_factor_only_if_it_is() -> None:
    batch = check(square, [X, W], lambda x, w: tuple(len(x) * g for g in square_gradient(x, w)))
    (text,) = batch.diagnoses
    assert text.startswith("is 8 times what it should be: the length of dimension 0 of x (7 where that is 7)")
    neurons = check(square, [X, W], lambda x, w: tuple(g / math.sqrt(len(w)) for g in square_gradient(x, w)))
    (text,) = neurons.diagnoses
    assert "1 / the root of the length of dimension 0 of w" in text
    two = check(square, [X[:2], W], lambda x, w: tuple(2 * g for g in square_gradient(x, w)))
    assert list(two.diagnoses) == ["is 2 times what it should be"]


class Stale:
    """Answers with the gradient of the call before."""

    kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        now = square_gradient(x, w)
        before, self.kept = self.kept or now, now
        return before


class Accumulating:
    """Adds to its buffers and never clears them."""

    def __init__(self) -> None:
        self.buffers = torch.zeros_like(X), torch.zeros_like(W)

    def __call__(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return tuple(buffer.add_(g) for buffer, g in zip(self.buffers, square_gradient(x, w), strict=True))


class Lending:
    """Is right, and hands out the same memory every time: the next result overwrites it."""

    def __init__(self) -> None:
        self.buffers = torch.zeros_like(X), torch.zeros_like(W)

    def __call__(self, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return tuple(buffer.copy_(g) for buffer, g in zip(self.buffers, square_gradient(x, w), strict=True))


def test_state_kept_between_calls_is_found() -> None:
    stale, accumulating, lending = (check(square, [X, W], kind()) for kind in (Stale, Accumulating, Lending))
    assert stale.diagnoses == {"is the gradient at the inputs of the call before: a stale buffer": ["x", "w"]}
    assert accumulating.diagnoses == {"adds to what the calls before left: its buffer is not cleared": ["x", "w"]}
    assert not stale.ok and not accumulating.ok and not lending.ok
    assert "returns the same memory at every call" in lending.problems["x"][0]


def test_gradient_function_that_changes_its_inputs_is_wrong() -> None:
    def gradient(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        found = square_gradient(x, w)
        x.zero_()
        return found

    report = check(square, [X, W], gradient)
    assert not report.ok and "changes its input x in place" in str(report)
    assert X.any()


# ---- kinks, zeros, saturation, what is not finite ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("near", [0.0, 1e-9, -1e-7, 1e-6])
def test_entry_on_a_kink_is_skipped_and_counted_and_a_wrong_entry_is_not(near: float, dtype: torch.dtype) -> None:
    x = torch.tensor([0.5, near, -0.5, 1.0], dtype=dtype)
    scale = torch.tensor([2.0, 3.0, 4.0, 5.0], dtype=dtype)

    def function(x: Tensor) -> Tensor:
        return (torch.relu(x) * scale.to(x.dtype)).sum()

    right = scale * (x > 0)
    report = check(function, x, right)
    report.assert_ok()
    assert report.skipped == 1 and "1 skipped: a step crosses a kink" in str(report)
    for i in (0, 1, 3):
        wrong = right.clone()
        wrong[i] += 0.01
        spoiled = check(function, x, wrong)
        assert not spoiled.ok and spoiled.skipped == 1
        assert compared(spoiled, "x", "autograd").where == (i,)
        assert compared(spoiled, "x", "central").ok == (i == 1)


def test_two_kinks_that_cancel_in_the_values_are_found() -> None:
    x = torch.zeros(1, dtype=torch.float64)

    def odd(x: Tensor) -> Tensor:  # is x itself, but autograd takes 0 for the derivative of both ReLUs at 0
        return (torch.relu(x) - torch.relu(-x)).sum()

    report = check(odd, x, torch.zeros(1, dtype=torch.float64))
    assert report.ok and report.skipped == 1


def rounded(y: Tensor) -> Tensor:
    """As float32 would, but in float64, so that no dtype shows it; with a derivative of 1."""
    return y + (torch.round(y * 2**24) / 2**24 - y).detach()


@pytest.mark.parametrize("narrow", [lambda y: y.float().double(), rounded])
def test_random_noise_in_a_function_is_no_kink(narrow: Callable[[Tensor], Tensor]) -> None:
    def noisy(x: Tensor) -> Tensor:
        return narrow(torch.sin(x)).sum()

    reports = [check(noisy, x, torch.cos(x), tolerance=1e-3) for x in (randn(20, seed=seed) for seed in range(4))]
    assert all(report.ok for report in reports)
    assert sum(report.skipped for report in reports) <= 20, "of 80 entries: most are compared"


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e-6, 1e6, 1e200])
def test_tiny_and_huge_gradients_are_checked(scale: float) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.sin(x).sum() * scale

    x = randn(6)
    assert check(function, x, lambda x: torch.cos(x) * scale).ok
    assert not check(function, x, lambda x: torch.cos(x) * scale * 1.01).ok


def test_gradient_without_any_reference_is_noted_as_not_checked() -> None:
    report = check(lambda x: x.sqrt().sum(), torch.zeros(2), torch.zeros(2))  # infinite by autograd, a kink
    assert any("x is not checked" in note for note in report.notes)


def test_zero_gradient_passes_only_as_zero() -> None:
    x = -randn(6).abs() - 0.1

    def function(x: Tensor) -> Tensor:
        return torch.relu(x).sum()

    assert check(function, x, torch.zeros_like).ok
    assert not check(function, x, torch.ones_like).ok


def test_nan_and_wrong_shapes_fail() -> None:
    dx, dw = square_gradient(X, W)
    dx[2, 1] = math.nan
    report = check(square, [X, W], [dx, dw[:4]])
    assert "x: holds 1 entry that is not finite, the first at [2, 1]" in str(report)
    assert "w: has the shape [4, 5], expected [5, 5]" in str(report)
    assert json.loads(report.to_json())["comparisons"][0]["relative_error"] is None


def test_gradient_that_is_not_given_is_not_checked() -> None:
    report = check(square, {"x": X, "w": W}, lambda x, w: {"w": square_gradient(x, w)[1]})
    assert report.ok and report.gradients == ["w"]
    assert check(square, [X, W], (None, square_gradient(X, W)[1])).gradients == ["w"]


def test_identical_means_equal_bit_for_bit() -> None:
    def double(x: Tensor) -> Tensor:
        return (2 * x).sum()

    assert compared(check(double, X, torch.full_like(X, 2)), "x", "autograd").identical
    assert not compared(check(double, X, torch.full_like(X, 2 + 1e-15)), "x", "autograd").identical
    minus_zero = check(lambda x: (0 * x).sum(), X, -torch.zeros_like(X))
    assert minus_zero.ok and not compared(minus_zero, "x", "autograd").identical


def test_function_without_float64_is_compared_with_autograd_alone_with_a_note() -> None:
    w = W.float()
    report = check(lambda x: ((x @ w.T) ** 2).sum(), X.float(), lambda x: 2 * x @ w.T @ w)
    assert report.ok and references(report, "x") == {"autograd"}
    assert any("unavailable" in note for note in report.notes)
    assert not check(lambda x: ((x @ w.T) ** 2).sum(), X.float(), lambda x: x @ w.T @ w).ok


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_error_beyond_the_tolerance_is_wrong_and_one_within_it_is_not(dtype: torch.dtype) -> None:
    x, w = X.to(dtype), W.to(dtype)
    (dx, dw), allowed = square_gradient(x, w), verify.tolerance_of(dtype)
    within = check(square, [x, w], [dx * (1 + 0.8 * allowed), dw])
    beyond = check(square, [x, w], [dx * (1 + 1.2 * allowed), dw])
    assert within.ok and beyond.wrong == ["x"]
    assert compared(beyond, "x", "autograd").error_ratio == pytest.approx(1.2, rel=0.05), "rounding adds little"


def test_gradient_nearer_to_float64_than_autograds_own_is_right() -> None:
    eps = torch.finfo(torch.float32).eps

    def function(x: Tensor) -> Tensor:
        return (x * (1 + 1000 * torch.finfo(x.dtype).eps)).sum()  # has a constant that is coarser in float32

    x = X.float()
    report = check(function, x, torch.ones_like(x))
    assert report.ok and not compared(report, "x", "autograd").ok
    assert check(function, x, torch.full_like(x, 1 + 10_000 * eps)).wrong == ["x"]


def test_explicit_tolerance_is_used() -> None:
    dx, dw = square_gradient(X.float(), W.float())
    wrong = dx * (1 + 1e-3)
    assert not check(square, [X.float(), W.float()], [wrong, dw]).ok
    assert check(square, [X.float(), W.float()], [wrong, dw], tolerance=1e-2).ok


@pytest.mark.parametrize(
    ("function", "inputs", "gradient", "error", "said"),
    [
        (
            lambda x: x * 2,
            X,
            X,
            ValueError,
            r"returns torch.float64 of shape \(8, 5\), expected a floating-point scalar",
        ),
        (lambda x: 1.0, X, X, TypeError, "returns a float"),
        (lambda x: x.detach().sum(), X, None, ValueError, "does not depend on x"),
        (lambda x: x.sum(), torch.arange(3), X, TypeError, "input x is torch.int64, which has no gradient"),
        (lambda x: x.sum(), X > 0, X, TypeError, "input x is torch.bool"),
        (lambda x: x.sum(), torch.tensor([1.0, math.nan]), X, ValueError, r"input x holds 1 entry .* first at \[1\]"),
        (lambda x: x.sum(), torch.tensor([1.0, math.inf]), X, ValueError, "not finite"),
        (lambda x: x.log().sum(), torch.zeros(2), X, ValueError, "the function is -inf"),
        (lambda: torch.zeros(()), [], [], ValueError, "no inputs"),
        (lambda x: x.sum(), [3.0], X, TypeError, "input x is a float, expected a tensor"),
        (square, [X, W], [X], ValueError, "there are 1 gradients for 2 inputs x, w"),
        (square, [X, W], {"x": X, "v": W}, ValueError, "a gradient is called v, the inputs are x, w"),
        (square, [X, W], [None, None], ValueError, "no gradient to check"),
        (square, [X, W], ["x", W], TypeError, "the gradient of x is a str"),
    ],
)
def test_bad_input_raises_a_clear_error(
    function: Callable[..., Any], inputs: Any, gradient: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        check(function, inputs, gradient)
    assert "\n" not in str(caught.value)


def test_report_prints_and_converts_to_json() -> None:
    report = check(square, [X, W], square_gradient)
    as_dict = json.loads(report.to_json())
    assert as_dict["ok"] and [(c["gradient"], c["reference"]) for c in as_dict["comparisons"]] == [
        (name, reference) for name in ("x", "w") for reference in verify.REFERENCES
    ]
    text = str(report)
    assert "2 gradients right" in text and "65 of 65 entries" in text


def test_tolerances_are_those_of_the_docstring() -> None:
    for dtype, written in (
        ("float64", "3.7e-11"),
        ("float32", "2.4e-05"),
        ("float16", "9.8e-03"),
        ("bfloat16", "3.9e-02"),
    ):
        assert f"{verify.tolerance_of(getattr(torch, dtype)):.1e}" == written
        assert written in (verify.__doc__ or "")


# ---- this project's own backward ----

COMBINATIONS = combinations()


def a_batch(network: Network, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, network.sizes[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = torch.eye(network.sizes[-1], dtype=network.dtype)[torch.arange(n) % network.sizes[-1]]
    return x.to(network.dtype), y


def a_random_network(seed: int) -> tuple[Network, Tensor, Tensor, str]:
    """Sizes, depth, activations, cost, batch, dtype and what is extreme about it are all drawn from ``seed``."""
    draw = random.Random(seed)
    hidden, output, cost = draw.choice(COMBINATIONS)
    sizes = [draw.choice([1, 2, 3, 5, 8, 16, 16, 33]) for _ in range(draw.randint(2, 5))]
    network = Network(
        sizes,
        activation=hidden,
        output_activation=output,
        init=draw.choice(["lecun", "he", "normal", "uniform"]),
        seed=seed,
        dtype=draw.choice(DTYPES),
    )
    x, y = a_batch(network, draw.choice([1, 2, 3, 7, 20, 100]), seed)
    match draw.choice(["plain", "saturated", "zeros", "dead", "tiny"]):
        case "saturated":
            x = x * draw.choice([10, 43, 100, 300])
            network.parameters.mul_(draw.choice([1, 5]))
        case "zeros":  # z = 0 exactly, in the middle of a ReLU's kink
            x[::2] = 0
            for b in network.biases:
                b.zero_()
        case "dead":
            for w in network.weights[:-1]:
                w[::2] = 0
            for b in network.biases:
                b.zero_()
        case "tiny":  # every kink within a step
            network.parameters.mul_(1e-6)
    return network, x, y, cost


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in (1, 2, 3))])
def test_no_false_alarm_over_200_random_networks(part: int) -> None:
    hidden = (
        0  # by rounding, where nearly every neuron is saturated: then a mutant is named that would be right as well
    )
    for seed in range(50 * part, 50 * (part + 1)):
        network, x, y, cost = a_random_network(seed)
        report = check_own(network, x, y, cost, coordinates=5, seed=seed)
        honest = report.verdict == "NOISE" and all("cannot be told from" in words for words in report.noise.values())
        assert report.ok or honest, f"seed {seed}: {network}, {len(x)} examples, {cost}\n{report}"
        assert report.diagnoses == {}
        hidden += honest
    assert hidden <= 2


OUTPUT_DELTA, INPUT_GRADIENT = backprop.output_delta, backprop.input_gradient


def sum_not_mean(cost: Cost, a: Tensor, y: Tensor, phi_prime: Tensor, examples: int) -> Tensor:
    return OUTPUT_DELTA(cost, a, y, phi_prime, 1)


def two_lost(cost: Cost, a: Tensor, y: Tensor, phi_prime: Tensor, examples: int) -> Tensor:
    return OUTPUT_DELTA(cost, a, y, phi_prime, examples) / 2


def sign_lost(cost: Cost, a: Tensor, y: Tensor, phi_prime: Tensor, examples: int) -> Tensor:
    return -OUTPUT_DELTA(cost, a, y, phi_prime, examples)


def no_output_phi_prime(cost: Cost, a: Tensor, y: Tensor, phi_prime: Tensor, examples: int) -> Tensor:
    return cost.derivative(a, y) / examples


def no_hidden_phi_prime(delta: Tensor, W: Tensor, phi_prime: Tensor) -> Tensor:
    return INPUT_GRADIENT(delta, W)


def weight_transposed(delta: Tensor, W: Tensor) -> Tensor:
    return INPUT_GRADIENT(delta, W.mT if W.shape[0] == W.shape[1] else W)


def first_example_only(delta: Tensor, out: Tensor) -> Tensor:
    return out.copy_(delta[0])


def bias_not_cleared(delta: Tensor, out: Tensor) -> Tensor:
    return out.add_(delta.sum(0))


def gradient_transposed(delta: Tensor, a: Tensor, out: Tensor) -> Tensor:
    g = delta.mT @ a
    return out.copy_(g.mT if g.shape[0] == g.shape[1] else g)


def product_missing(delta: Tensor, W: Tensor) -> Tensor:
    return delta if W.shape[0] == W.shape[1] else INPUT_GRADIENT(delta, W)


def outer_product_of_one(delta: Tensor, a: Tensor, out: Tensor) -> Tensor:
    return torch.outer(delta[2], a[2], out=out)


def last_example_lost(delta: Tensor, a: Tensor, out: Tensor) -> Tensor:
    return out.copy_(delta[:-1].mT @ a[:-1])


class StaleWeights:
    """Returns each weight gradient one call late."""

    def __init__(self) -> None:
        self.kept: dict[torch.Size, Tensor] = {}

    def __call__(self, delta: Tensor, a: Tensor, out: Tensor) -> Tensor:
        now = delta.mT @ a
        before = self.kept.get(out.shape, now)
        self.kept[out.shape] = now
        return out.copy_(before)


FAULTS: list[tuple[str, Callable[[], Callable[..., Any]], str, str | None]] = [
    (
        "output_delta",
        lambda: sum_not_mean,
        "δ3",
        "is 7 times what it should be, the batch size: the mean over the batch is missing?",
    ),
    ("output_delta", lambda: two_lost, "δ3", "is ½ of what it should be"),
    ("output_delta", lambda: sign_lost, "δ3", "the sign is wrong"),
    ("output_delta", lambda: no_output_phi_prime, "δ3", "φ′(z) is missing (output_delta, BP1)"),
    ("hidden_delta", lambda: no_hidden_phi_prime, "δ2", "φ′(z) is missing (hidden_delta, BP2)"),
    ("input_gradient", lambda: weight_transposed, "δ1", "W is transposed (input_gradient, BP2)"),
    ("input_gradient", lambda: product_missing, "δ1", "the product with W is missing (input_gradient, BP2)"),
    ("bias_gradient", lambda: first_example_only, "b2", "not the sum over the batch (bias_gradient, BP3)"),
    ("bias_gradient", lambda: bias_not_cleared, "b2", "its buffer is not cleared"),
    ("weight_gradient", lambda: outer_product_of_one, "W2", "not the sum over the batch (weight_gradient, BP4)"),
    ("weight_gradient", lambda: gradient_transposed, "W2", "is transposed"),
    ("weight_gradient", StaleWeights, "W2", "a stale buffer"),
    ("weight_gradient", lambda: last_example_lost, "W2", None),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh", "scaled-tanh"])
@pytest.mark.parametrize(("target", "fault", "tensor", "said"), FAULTS)
def test_every_planted_fault_is_caught_and_diagnosed(
    target: str,
    fault: Callable[[], Callable[..., Any]],
    tensor: str,
    said: str | None,
    activation: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = Network((20, 16, 16, 10), activation=activation, seed=1, dtype=dtype)
    x, y = a_batch(network, 7)
    check_own(network, x, y, "quadratic", coordinates=5).assert_ok()
    monkeypatch.setattr(backprop, target, fault())
    report = check_own(network, x, y, "quadratic", coordinates=5)
    assert not report.ok
    named = [text for text, names in report.diagnoses.items() if tensor in names]
    assert [said in text for text in named] == [True] if said else named == [], report
    followers = next((names for text, names in report.diagnoses.items() if text.startswith("follows")), [])
    assert tensor not in followers


def test_gradients_that_follow_from_a_fault_are_distinguished_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network((20, 16, 16, 10), seed=1)
    monkeypatch.setattr(backprop, "input_gradient", weight_transposed)
    report = check_own(network, *a_batch(network, 7), "quadratic", coordinates=0)
    assert report.diagnoses == {
        "W is transposed (input_gradient, BP2)": ["δ1"],
        "follows correctly from a wrong δ": ["b1", "W1", "x"],
    }


# ---- a step of training ----


def step_report(network: Network, factor: float = 1.0) -> verify.Report:
    x, y = a_batch(network, 10)
    gradient = backward(network, forward(network, x), y).gradient
    layer_views(gradient, network.sizes)[0][0].mul_(factor)
    before = network.parameters.clone(), gradient.clone()
    report = check_step(network, x, y, "quadratic", gradient)
    assert torch.equal(network.parameters, before[0]) and torch.equal(gradient, before[1])
    return report


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_step_is_checked_under_inference_mode(dtype: torch.dtype) -> None:
    with torch.inference_mode():
        network = Network((20, 16, 10), dtype=dtype)
        report = step_report(network)
        report.assert_ok()
        assert report.gradients == ["W1", "b1", "W2", "b2"]
        wrong = step_report(network, factor=1.001)
        assert wrong.wrong == ["W1"]


# ---- the command ----


def run(arguments: str, *more: str) -> tuple[str, int]:
    """What ``python -m bp_torch verify`` prints, and its exit code."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            command.main([*arguments.split(), *more])
        except SystemExit as stop:
            return out.getvalue(), int(stop.code or 0)
    return out.getvalue(), 0


@pytest.fixture
def digits(data_dir: Path) -> tuple[str, ...]:
    return ("--data-dir", str(data_dir), "--device", "cpu")


def test_command_prints_each_combination_once(digits: tuple[str, ...]) -> None:
    text, code = run("--depths 2 --batch-sizes 1 7 --dtypes float32 --coordinates 0", *digits)
    lines = [line for line in text.splitlines() if line.startswith("ok ")]
    assert code == 0 and len(lines) == len(COMBINATIONS) == 55
    assert "935 gradients of 110 networks right" in text


def test_verbose_and_json_print_every_comparison(digits: tuple[str, ...]) -> None:
    text, code = run("--depths 1 2 --batch-sizes 2 --dtypes float64 --verbose", *digits)
    assert code == 0 and sum(line.startswith("ok ") for line in text.splitlines()) == 55 * ((4 + 7) * 2 + 2 * 4)
    as_json, code = run("--depths 1 --batch-sizes 2 --dtypes float64 --json", *digits)
    found = json.loads(as_json)
    assert code == 0 and found["ok"] and len(found["networks"]) == 55
    assert {c["gradient"] for c in found["networks"][0]["comparisons"] if c["ok"]} == {
        "W1",
        "b1",
        "δ1",
        "x",
        "costs",
        "each example",
        "recorded",
    }


def test_command_exits_1_with_a_diagnosis(digits: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backprop, "output_delta", sum_not_mean)
    text, code = run("--depths 2 --batch-sizes 7 --dtypes float32 --coordinates 0", *digits)
    assert code == 1 and "440 of 550 gradients wrong" in text
    diagnosis = "is 7 times what it should be, the batch size: the mean over the batch is missing? (55 networks)"
    assert diagnosis in " ".join(text.split())


def test_command_checks_a_trained_network(
    digits: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = Path(digits[1])
    folder = train(
        Config(runs_dir=tmp_path, data_dir=data_dir, epochs=1, train_examples=500, device="cpu", activation="relu")
    )
    text, code = run("", "--run", str(folder), "--device", "cpu")
    assert code == 0 and "784-16-16-10" in text and "86 gradients of 8 networks right" in text
    assert sum(line.startswith("ok ") for line in text.splitlines()) == 13
    capsys.readouterr()
    assert run("", "--run", str(tmp_path / "nowhere"))[1] == 1
    assert "no run in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--depths 0", "--depths: wanted 1 to 100, got 0"),
        ("--depths 2000000", "--depths: wanted 1 to 100, got 2000000"),
        ("--seed 100000000000000000000000", "--seed: wanted 0 to 4,294,967,295, got 1"),
        ("--run r --depths 2", "--depths has no effect with --run"),
        ("--run r --dataset mnist", "--dataset has no effect with --run"),
        ("--batch-sizes 0", "--batch-sizes: wanted 1 or more"),
        ("--tolerance 2", "--tolerance: wanted a relative error"),
        ("--dtypes float8", "float8"),
        ("--colour", "--colour"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments)[1] == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "gradient"),
    [("per_example_gradients", "each example"), ("example_costs", "costs")],
)
def test_command_judges_costs_and_single_examples(
    target: str, gradient: str, digits: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(backprop, target)

    def wrong(*given: Any, **named: Any) -> Tensor:
        found: Tensor = right(*given, **named)
        return found.mul_(1.01)

    monkeypatch.setattr(backprop, target, wrong)
    text, code = run("--depths 1 --batch-sizes 3 7 --dtypes float64 --coordinates 0", *digits)
    assert code == 1 and gradient in text


def test_command_judges_a_replayed_recording(digits: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bp_torch.recorder.Recording.replay", lambda recording: None)
    text, code = run("--depths 2 --batch-sizes 3 7 --dtypes float64 --coordinates 0", *digits)
    assert code == 1 and "recorded" in text


SATURATING = (30, 39, 40)  # seeds for which φ′ of some output has few digits left


def saturating(seed: int) -> tuple[Network, Tensor, Tensor]:
    network = Network((16, 16, 16, 16, 26), activation="identity", output_activation="scaled-tanh", seed=seed)
    network = network.to(dtype=torch.float64)
    network.parameters.mul_(4.0)
    labels = torch.randint(26, (100,), generator=torch.Generator().manual_seed(seed))
    return network, 3 * randn(100, 16, seed=seed), functional.one_hot(labels, 26).double()


@pytest.mark.parametrize("seed", SATURATING)
def test_right_gradients_of_saturated_outputs_are_called_right(seed: int) -> None:
    network, x, y = saturating(seed)
    report = own_backward.check_parts(network, [(x, y)], "quadratic")
    assert str(report).startswith("RIGHT"), report


@pytest.mark.parametrize("seed", SATURATING)
def test_gradient_of_saturated_outputs_that_is_off_by_a_millionth_is_wrong(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, y = saturating(seed)
    right = backward

    def a_little_off(*given: Any, **options: Any) -> Any:
        found = right(*given, **options)
        return found._replace(gradient=found.gradient * (1 + 1e-6))

    monkeypatch.setattr(own_backward, "backward", a_little_off)
    report = own_backward.check_parts(network, [(x, y)], "quadratic")
    assert str(report).startswith("WRONG"), report


def test_check_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("", "--data-dir", str(tmp_path / "nowhere"))[1] == 1
    assert "there is no folder" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_checks_of_this_project_are_handed_on() -> None:
    assert verify.check_own is own_backward.check_own and verify.check_step is own_backward.check_step
    with pytest.raises(AttributeError, match="no attribute 'check_other'"):
        _ = verify.check_other


def test_import_loads_no_plots_and_no_compiler() -> None:
    code = "import sys, bp_torch.verify; print([m for m in sys.modules if m.split('.')[0] in {'torchvision', "
    code += "'matplotlib', 'tensorboard'} or m == 'torch._dynamo'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8").stdout == "[]\n"
