"""What lets a wrong backward pass a naive check: each with a planted fault in it."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bp_torch.verify import check, check_layer, check_module
from tests.test_verify import Cube


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


X, W = randn(6, 5), randn(5, 5, seed=1)


def tanh_backward(dy: Tensor, x: Tensor) -> Tensor:
    return dy * (1 - torch.tanh(x) ** 2)


def linear(x: Tensor, w: Tensor) -> Tensor:
    return x @ w.mT


def linear_backward(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return dy @ w, dy.mT @ x


def test_report_is_true_only_if_right() -> None:
    assert check_layer(torch.tanh, X, tanh_backward)
    assert not check_layer(torch.tanh, X, lambda dy, x: dy)


# ---- the output gradient ----


def reads_memory(dy: Tensor, x: Tensor) -> Tensor:
    dense = torch.as_strided(dy, dy.shape, torch.empty(dy.shape).stride()) if min(dy.stride()) else dy
    return tanh_backward(dense, x)


def reads_expanded_memory(dy: Tensor, x: Tensor) -> Tensor:
    return tanh_backward(dy if min(dy.stride()) else torch.zeros_like(dy), x)


def takes_a_view(dy: Tensor, x: Tensor) -> Tensor:
    return tanh_backward(dy.view(-1).view(x.shape), x)


def writes_into_dy(dy: Tensor, x: Tensor) -> Tensor:
    return dy.mul_(1 - torch.tanh(x) ** 2)


def squares_dy(dy: Tensor, x: Tensor) -> Tensor:
    first = dy.flatten()[0]
    return tanh_backward(dy, x) * (1 if first > 0 else 3)


@pytest.mark.parametrize(
    ("backward", "said"),
    [
        (reads_memory, "is wrong for a dy that is not contiguous"),
        (reads_expanded_memory, "is wrong for a dy that is one number, expanded, as y.sum() gives it"),
        (takes_a_view, "fails for a dy that is not contiguous"),
        (writes_into_dy, "writes into dy"),
        (squares_dy, "a gradient is linear in dy"),
    ],
)
def test_output_gradient_comes_in_every_layout(backward: Callable[..., Any], said: str) -> None:
    report = check_layer(torch.tanh, X[:, :4], backward)
    assert report.verdict == "WRONG"
    assert any(said in text for text in report.problems["x"]), report


class Scaled(torch.autograd.Function):
    """A scalar loss that ignores the gradient that comes in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x**2).sum()

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return 2 * x


def test_scalar_function_must_weigh_its_output_gradient() -> None:
    report = check(Scaled.apply, X, reference=lambda x: (x**2).sum())
    assert report.verdict == "WRONG" and "ignores dy" in str(report)


def test_strides_of_the_inputs_are_kept() -> None:
    seen = []

    def backward(dy: Tensor, x: Tensor) -> Tensor:
        seen.append(x.stride())
        return tanh_backward(dy, x)

    for x in (X.mT, X[:, :1].expand(6, 4), X[::2]):
        seen.clear()
        assert check_layer(torch.tanh, x, backward)
        assert seen[0] == x.stride() and seen.count(x.stride()) > len(seen) / 2


# ---- the forward ----


def test_wrong_forward_is_said_to_be_that() -> None:
    report = check_layer(lambda x: 1.01 * torch.tanh(x), X, tanh_backward, reference=torch.tanh)
    assert report.verdict == "WRONG" and "the forward differs from the reference: y is off by 1.0e-02" in str(report)
    report = check_layer(lambda x: torch.tanh(x).mT, X, lambda dy, x: tanh_backward(dy.mT, x), reference=torch.tanh)
    assert "of shape [5, 6], the reference [6, 5]" in str(report)


class Cached:
    """A student's layer: the forward keeps what the backward needs; ``fresh`` False: only from the first call."""

    def __init__(self, fresh: bool) -> None:
        self.fresh, self.y = fresh, torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        if self.fresh or not self.y.numel():
            self.y = y
        return y

    def backward(self, dy: Tensor, x: Tensor) -> Tensor:
        return dy * (1 - self.y**2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_layer_that_keeps_state_is_judged_as_it_is_used(dtype: torch.dtype) -> None:
    good, stale = Cached(True), Cached(False)
    assert check_layer(good.forward, X.to(dtype), good.backward)
    assert not check_layer(stale.forward, X.to(dtype), stale.backward)


def test_input_that_the_forward_overwrites_unseen_is_found() -> None:
    def forward(x: Tensor) -> Tensor:
        y = torch.tanh(x)
        x.copy_(1 - y**2)  # saves memory, and ruins what others saved
        return y

    report = check_layer(forward, X, lambda dy, x: dy * x, reference=torch.tanh)
    assert report.verdict == "WRONG" and "the forward overwrites its input x" in " ".join(report.problems["x"])


# ---- the arguments ----


def test_unused_and_unjudged_arguments_are_named() -> None:
    unused = check_layer(lambda x, w: torch.tanh(x), [X, W], lambda dy, x, w: (tanh_backward(dy, x), 0 * w))
    assert unused.ok and "1 gradient right, w not judged" in str(unused)
    missing = check_layer(linear, [X, W], lambda dy, x, w: (dy @ w, None))
    assert missing.ok and "1 gradient right, w not judged" in str(missing)
    wrong = check_layer(lambda x, w: torch.tanh(x), [X, W], lambda dy, x, w: (tanh_backward(dy, x), w))
    assert wrong.wrong == ["w"]


class ForgetsTheWeight(torch.autograd.Function):
    """Returns None for an input that matters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return x @ w.mT

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Any:
        return dy[0] @ ctx.saved_tensors[0], None


def test_none_from_an_autograd_function_is_zero_and_wrong() -> None:
    report = check_layer(ForgetsTheWeight.apply, [X, W], reference=linear, names=["x", "w"])
    assert report.wrong == ["w"] and "zero throughout" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16])
def test_gradient_of_another_dtype_is_a_fault(dtype: torch.dtype) -> None:
    report = check_layer(torch.tanh, X, lambda dy, x: tanh_backward(dy, x).to(dtype))
    assert not report.ok and f"has the dtype {str(dtype)[6:]}, expected float64" in str(report)


# ---- randomness ----


def test_random_numbers_are_the_same_in_every_call_and_dtype() -> None:
    def forward(x: Tensor) -> Tensor:
        y: Tensor = x * (torch.rand_like(x) > 0.5) * 2
        return y

    def backward(dy: Tensor, x: Tensor) -> Tensor:
        return forward(dy)

    class Dropout(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.keep = torch.rand_like(x) > 0.5
            y: Tensor = x * ctx.keep * 2
            return y

        @staticmethod
        def backward(ctx: Any, *dy: Tensor) -> Tensor:
            dx: Tensor = dy[0] * ctx.keep * 2
            return dx

    note, seen = "draws random numbers: every call starts from the same seed", list[bytes]()

    def drawn(x: Tensor) -> Tensor:
        y = forward(x)
        seen.append((y.detach() == 0).numpy().tobytes())
        return y

    for seed in (1, 2):
        torch.manual_seed(seed)
        check_layer(Dropout.apply, X, reference=drawn, names=["x"], nearby=None)
    assert len(set(seen)) == 1
    before = torch.get_rng_state()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for reference in (None, forward):
            report = check_layer(Dropout.apply, X.to(dtype), reference=reference, names=["x"])
            assert report.ok and note in " ".join(str(report).split()), report
        report = check_layer(forward, X.to(dtype), backward)  # another mask than the forward drew
        assert report.verdict == "WRONG" and note in " ".join(str(report).split())
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_random_whatever_the_seed_is_called_that() -> None:
    own = random.SystemRandom()
    report = check_layer(torch.tanh, X, lambda dy, x: tanh_backward(dy, x) * own.random())
    assert report.verdict == "SETUP" and "draws random numbers of its own" in str(report)
    report = check_layer(lambda x: x * own.random(), X, lambda dy, x: dy)
    assert report.verdict == "SETUP" and "for the same inputs" in str(report)


# ---- what can be checked ----


def test_several_outputs_in_both_conventions() -> None:
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(x), x.sum(1)

    def spread(dy: Tensor, ds: Tensor, x: Tensor) -> Tensor:
        return dy * torch.cos(x) + ds[:, None]

    assert check_layer(forward, X, spread)
    assert check_layer(forward, X, lambda dys, x: spread(dys[0], dys[1], x))
    assert not check_layer(forward, X, lambda dy, ds, x: dy * torch.cos(x))


def test_complex_inputs() -> None:
    z = torch.complex(randn(4, 3), randn(4, 3, seed=1))
    assert check_layer(lambda z: z * z, z, lambda dy, z: dy * 2 * z.conj())
    report = check_layer(lambda z: z * z, z, lambda dy, z: dy * 2 * z)
    assert not report.ok
    assert check(lambda z: (z.abs() ** 2).sum(), z, lambda z: 2 * z)


def test_arguments_without_gradient_are_passed_on() -> None:
    labels, mask = torch.tensor([1, 0, 2, 2, 4, 3]), torch.tensor([True, True, False, True, True, False])

    def loss(x: Tensor, labels: Tensor, mask: Tensor, scale: float, nothing: None) -> Tensor:
        return scale * (functional.cross_entropy(x, labels, reduction="none") * mask).sum()

    def gradient(x: Tensor, labels: Tensor, mask: Tensor, scale: float, nothing: None) -> Tensor:
        return scale * (torch.softmax(x, 1) - functional.one_hot(labels, 5)) * mask[:, None]

    arguments = [X, labels, mask, 0.5, None]
    assert check(loss, arguments, gradient)
    assert check(loss, arguments, lambda *given: (gradient(*given), None, None, None, None))
    assert not check(loss, arguments, lambda *given: 2 * gradient(*given))


def test_empty_tensors_and_masks_with_infinity() -> None:
    assert check_layer(torch.tanh, torch.zeros(0, 3), tanh_backward)
    report = check_layer(torch.tanh, torch.zeros(0, 3), lambda dy, x: torch.zeros(3))
    assert not report.ok and "has the shape [3], expected [0, 3]" in str(report)
    mask = torch.zeros(6, 5, dtype=torch.float64).masked_fill(torch.ones(6, 5).triu(1) > 0, -torch.inf)

    def backward(dy: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.softmax(x + mask, -1)
        dx = p * (dy - (dy * p).sum(-1, keepdim=True))
        return dx, dx

    assert check_layer(lambda x, mask: torch.softmax(x + mask, -1), [X, mask], backward)


def test_sparse_gradients_and_sparse_inputs() -> None:
    indices = torch.tensor([0, 2, 2])

    def backward(dy: Tensor, indices: Tensor, w: Tensor) -> Tensor:
        return torch.sparse_coo_tensor(indices[None], dy, w.shape)

    assert check_layer(lambda i, w: w[i], [indices, W], backward, names=["i", "w"])
    with pytest.raises(TypeError, match=r"input x is sparse .* give x.to_dense\(\)"):
        check(lambda x: x.to_dense().sum(), X.to_sparse(), lambda x: x)


def test_forward_in_place() -> None:
    assert check_layer(lambda x: x.relu_(), X, lambda dy, x: dy * (x > 0))
    assert check_layer(lambda x: x.exp_(), X, lambda dy, x: dy * x.exp())
    assert check(lambda x: x.mul_(2).sum(), X, lambda x: torch.full_like(x, 2))


def test_linear_algebra_in_half_gets_a_clear_word() -> None:
    a = (W @ W.mT + torch.eye(5)).half()
    with pytest.raises(ValueError, match=r"cannot compute the function in float16 .*: check it in float32"):
        check(lambda a: torch.linalg.inv(a).sum(), a, lambda a: a)


class Block(nn.Module):
    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 4).double()
        self.by_hand = by_hand

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        out: Tensor = Cube.apply(y) if self.by_hand else y**3
        return out


def test_module_with_a_backward_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    for reference in (None, Block(False)):
        report = check_module(Block(True), X, reference=reference)
        assert report.ok and report.gradients == ["x", "layer.weight", "layer.bias"]
    monkeypatch.setattr(Cube, "factor", 3.3)
    for reference in (None, Block(False)):
        assert len(check_module(Block(True), X, reference=reference).wrong) == 3


class DetachedCube(Cube):
    """The first derivative is right, the second is lost."""

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0].detach()
        return dy[0] * 3 * x**2


def test_second_order() -> None:
    assert check_layer(Cube.apply, X, reference=lambda x: x**3, second_order=True, names=["x"])
    assert check_layer(DetachedCube.apply, X, reference=lambda x: x**3, names=["x"])
    report = check_layer(DetachedCube.apply, X, reference=lambda x: x**3, second_order=True, names=["x"])
    assert report.wrong == ["x (second order)"]


# ---- verdicts ----


def test_verdict_is_kink_only_if_every_entry_that_differs_is_on_one() -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    at_kink = check_layer(torch.relu, x, lambda dy, x: dy * (x >= 0))
    assert at_kink.verdict == "KINK" and not at_kink.ok and "one-sided" in str(at_kink)
    assert "WRONG" not in str(at_kink)
    assert check_layer(torch.relu, x, lambda dy, x: dy * torch.where(x == 0, 3.0, (x > 0).double())).verdict == "WRONG"
    assert check_layer(torch.relu, x, lambda dy, x: dy * (x >= -1)).verdict == "WRONG"
    small = torch.tensor([1 + 5e-5, 1, 1, 1], dtype=torch.float64)
    assert check_layer(torch.tanh, x, lambda dy, x: tanh_backward(dy, x) * small).verdict == "WRONG", "no kink there"


def bf16_only(dy: Tensor, x: Tensor, error: float) -> Tensor:
    if x.dtype != torch.bfloat16:
        raise RuntimeError("this kernel takes bfloat16")
    return (tanh_backward(dy.float(), x.float()) * (1 + error)).bfloat16()


def test_sixteen_bits_without_float64_give_right_noise_and_wrong() -> None:
    x = randn(40, 30, dtype=torch.bfloat16)

    def verdict(error: float) -> str:
        return check_layer(torch.tanh, x, lambda dy, x: bf16_only(dy, x, error)).verdict

    assert [verdict(error) for error in (0, 0.02, 0.3)] == ["RIGHT", "NOISE", "WRONG"]


def test_unwritten_row_cannot_hide_in_a_large_tensor() -> None:
    x = randn(3000, 30, dtype=torch.bfloat16)

    def backward(dy: Tensor, x: Tensor) -> Tensor:
        dx = bf16_only(dy, x, 0)
        dx[1234] = 0
        return dx

    report = check_layer(torch.tanh, x, backward)
    assert report.verdict == "WRONG" and "index 1234 of dimension 0" in str(report)


def test_small_fault_in_bfloat16_is_found_by_running_it_in_float64() -> None:
    x = randn(40, 30, dtype=torch.bfloat16)
    report = check_layer(torch.tanh, x, lambda dy, x: 1.01 * tanh_backward(dy, x))
    assert report.verdict == "WRONG" and "1.01 times" in str(report)


def test_report_is_80_columns_wide_with_the_verdict_first() -> None:
    report = check_layer(linear, [X, W], lambda dy, x, w: (dy @ w.mT, dy.mT @ x / len(x)))
    lines = str(report).splitlines()
    assert lines[0] == "WRONG: 2 of 2 gradients wrong" and max(map(len, lines)) <= 80
    assert not any("float64" in line and line.startswith("WRONG ") for line in lines)
    right = check_layer(torch.tanh, X, tanh_backward, names=["x"]).verbose()
    slope = " ".join(right.split()).split("lets it show): x ")[1].split()[0]
    assert abs(float(slope) - 2) < 0.1


def test_random_right_backwards_pass() -> None:
    draw = random.Random(0)
    for seed in range(40):
        dtype = draw.choice([torch.float64, torch.float32, torch.bfloat16])
        shape = draw.choice([(1, 1), (1, 7), (9, 1), (5, 5), (17, 33)])
        x, w = randn(*shape, seed=seed, dtype=dtype), randn(3, shape[1], seed=seed + 1, dtype=dtype)
        assert check_layer(linear, [x, w], linear_backward, coordinates=5)
        assert check_layer(torch.tanh, x * draw.choice([1e-3, 1, 30]), tanh_backward, coordinates=5)
