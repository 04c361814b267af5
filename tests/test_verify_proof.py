"""No RIGHT without proof: what excuses an error and what does not, and that each mutant of a right gradient is seen."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bp_torch.verify import check, check_layer
from bp_torch.verify.bank import LAYERS, Layer
from bp_torch.verify.problem import has_gradient


class Sine(torch.autograd.Function):
    """sin x, with a gradient that is too large by a factor, or of which only the first part of the entries is kept."""

    factor, kept = 1.0, 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        g = (Sine.factor * dy * x.cos()).reshape(-1)
        g[int(Sine.kept * g.numel()) :] = 0
        return g.view(dy.shape)


FLOATS = [torch.float64, torch.float32, torch.bfloat16]
WIDE = FLOATS[:2]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- kinks excuse the entries that lie on them ----


def l1(p: Tensor, t: Tensor) -> Tensor:
    return (p - t).abs().mean()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("equal", [1, 40, 90])
def test_equal_entries_of_an_l1_loss_hide_no_fault(dtype: torch.dtype, equal: int) -> None:
    p, t = randn(12, 10, dtype=dtype), randn(12, 10, seed=1, dtype=dtype)
    p.view(-1)[:equal] = t.view(-1)[:equal]

    def verdict(factor: float) -> str:
        return check(l1, [p, t], lambda p, t: [s * factor * (p - t).sign() / p.numel() for s in (1, -1)]).verdict

    assert [verdict(factor) for factor in (1, 0, -1, 2, 1.1)] == ["RIGHT", *["WRONG"] * 4]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("zeros", [1, 100, 101, 1500])
def test_other_slope_at_zero_is_a_kink_however_many_zeros_there_are(dtype: torch.dtype, zeros: int) -> None:
    x = randn(40, 50, dtype=dtype)
    x.view(-1)[:zeros] = 0
    for slope, verdict in ((0.0, "RIGHT"), (1.0, "KINK"), (0.5, "KINK"), (1.5, "WRONG")):
        report = check_layer(torch.relu, x, lambda dy, x, s=slope: dy * ((x > 0) + s * (x == 0)).to(x))
        assert report.verdict == verdict, (slope, str(report))
    report = check_layer(torch.relu, x, lambda dy, x: 1.1 * dy * ((x > 0) + 1.0 * (x == 0)).to(x))
    assert report.verdict == "WRONG", "the other entries are judged by themselves"


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_tied_entries_claim_together_is_checked_along_all_of_them(dtype: torch.dtype) -> None:
    x = randn(6, 5, dtype=dtype)
    x[:, 3] = x[:, 1] = 4.0

    def backward(kind: str) -> Callable[..., Tensor]:
        def dx(dy: Tensor, x: Tensor) -> Tensor:
            top = (x == x.amax(1, keepdim=True)).to(x)
            if kind == "first":
                top[:, 3] = 0
            return dy[:, None] * (top / top.sum(1, keepdim=True) if kind == "shared" else top)

        return dx

    verdicts = [check_layer(lambda x: x.amax(1), x, backward(kind)).verdict for kind in ("shared", "first", "each")]
    assert verdicts == ["RIGHT", "KINK", "WRONG"]


def test_kinks_that_do_not_pull_together_are_excused_one_by_one() -> None:
    x = torch.tensor([1.0, -1.0, 1.0, 0.3, -1.0, 2.0, -0.2, 1.0]).double()
    report = check_layer(functional.hardtanh, x, lambda dy, x: dy * (x.abs() <= 1))
    assert report.verdict == "KINK", str(report)


def test_smooth_function_has_no_kinks_whatever_the_gradient_under_test_is(monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(6, 5)
    for factor in (1.0, 1 + 2e-8, 1 + 1e-7, 1 + 1e-5, 1.001):
        monkeypatch.setattr(Sine, "factor", factor)
        report = check_layer(Sine.apply, x)
        assert report.skipped == 0 and report.verdict == ("RIGHT" if factor == 1 else "WRONG")
    for factor in (1.001, 1.03):
        monkeypatch.setattr(Sine, "factor", factor)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            assert check_layer(Sine.apply, x.to(dtype)).verdict == "WRONG", "its run in float64 is held to differences"


# ---- sixteen bits, and several dtypes ----


def only(dtype: torch.dtype, backward: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that takes no other dtype."""

    def kernel(dy: Tensor, *inputs: Tensor) -> Any:
        if dy.dtype != dtype:
            raise TypeError(f"takes {dtype}")
        return backward(dy, *inputs)

    return kernel


def tanh_backward(dy: Tensor, x: Tensor) -> Tensor:
    return (dy.float() * (1 - torch.tanh(x.float()) ** 2)).to(x.dtype)


@pytest.mark.parametrize("seed", range(4))
def test_small_faults_of_a_kernel_that_takes_bfloat16_only_are_not_right(seed: int) -> None:
    x = randn(64, 128, seed=seed, dtype=torch.bfloat16)

    def verdict(change: Callable[[Tensor], Tensor]) -> str:
        return check_layer(torch.tanh, x, only(torch.bfloat16, lambda dy, x: change(tanh_backward(dy, x)))).verdict

    def missing(g: Tensor) -> Tensor:
        g = g.clone()
        g.view(-1)[g.view(-1).abs().topk(2000).indices[5::500]] = 0
        return g

    assert verdict(lambda g: g) == "RIGHT"
    assert verdict(missing) in ("NOISE", "WRONG"), "4 entries of 8,192"
    assert verdict(lambda g: (1.015 * g.float()).to(g)) in ("NOISE", "WRONG")
    assert verdict(lambda g: 1.1 * g) == "WRONG"


def test_exact_branch_for_float64_excuses_nothing_in_bfloat16() -> None:
    def backward(dy: Tensor, x: Tensor) -> Tensor:
        return dy * (1 - torch.tanh(x) ** 2) if x.dtype == torch.float64 else 1.02 * tanh_backward(dy, x)

    report = check_layer(torch.tanh, randn(64, 128, dtype=torch.bfloat16), backward)
    assert report.verdict in ("NOISE", "WRONG")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sum_that_stops_growing_is_not_right_though_autograd_stops_too(dtype: torch.dtype) -> None:
    ids, w = torch.arange(6000) % 2, torch.tensor([[0.5], [-0.25]], dtype=dtype)

    def gradient(wide: bool) -> Callable[..., Tensor]:
        def dw(ids: Tensor, w: Tensor) -> Tensor:
            total = torch.zeros(w.shape, dtype=torch.float64 if wide else w.dtype)
            for part in range(3000):
                total = total + torch.full_like(total, 0.01) if part < 3000 else total
            return total.to(w.dtype)

        return dw

    verdicts = [check(lambda ids, w: (0.01 * w[ids]).sum(), [ids, w], gradient(wide)).verdict for wide in (True, False)]
    assert verdicts[0] == "RIGHT" and verdicts[1] in ("NOISE", "WRONG")


def test_zero_in_place_of_a_small_float16_number_is_not_right() -> None:
    x = (3e-6 * (1 + randn(20).abs())).half()
    assert check_layer(lambda x: x * x, x, lambda dy, x: 2 * dy * x, tolerance=None).verdict == "RIGHT"
    zero = only(torch.float16, lambda dy, x: 0 * x)
    assert check_layer(lambda x: x * x, x / 10, zero).verdict == "WRONG"


def test_each_gradient_is_judged_at_the_dtype_that_it_went_through() -> None:
    x, w = randn(64, 10, dtype=torch.bfloat16), randn(10, dtype=torch.float32)

    def scale(x: Tensor, w: Tensor) -> Tensor:
        return x.to(w.dtype) * w

    def backward(factor: float) -> Callable[..., Any]:
        def kernel(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            dw = (dy * x.to(w.dtype)).sum(0)
            dw[7] *= factor
            return (dy * w).to(x.dtype), dw

        return kernel

    for kernel in (backward, lambda factor: only(torch.float32, backward(factor))):
        verdicts = [check_layer(scale, [x, w], kernel(factor)).verdict for factor in (1, 1.02)]
        assert verdicts[0] == "RIGHT" and verdicts[1] in ("NOISE", "WRONG")


class Float32Inside(torch.autograd.Function):
    """Cross entropy that computes in float32 whatever it takes, as most kernels do."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor) -> Tensor:
        p = torch.softmax(x.float(), -1)
        ctx.save_for_backward(p, t)
        return -p.gather(1, t[:, None]).log().mean().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        p, t = ctx.saved_tensors
        return (Float32Inside.factor * dy * (p - functional.one_hot(t, p.shape[1])) / len(t)).to(dy.dtype), None


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("reference", [None, functional.cross_entropy])
def test_float32_inside_is_recognised(
    dtype: torch.dtype, reference: Callable[..., Tensor] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, t = randn(16, 10, dtype=dtype), torch.arange(16) % 10
    for factor, verdict in ((1.0, "RIGHT"), (1.003, "WRONG")):
        monkeypatch.setattr(Float32Inside, "factor", factor)
        report = check_layer(Float32Inside.apply, [x, t], reference=reference)
        if reference is None or dtype == torch.float32 or factor != 1:
            assert report.verdict == verdict, str(report)


@pytest.mark.parametrize("dtype", WIDE)
def test_sixteen_bits_inside_are_recognised(dtype: torch.dtype) -> None:
    def forward(x: Tensor) -> Tensor:
        return x.bfloat16().sin().to(x.dtype)

    def backward(dy: Tensor, x: Tensor) -> Tensor:
        return (dy.bfloat16() * x.bfloat16().cos()).to(x.dtype)

    x = randn(6, 5, dtype=dtype)
    assert check_layer(forward, x, backward).verdict == "RIGHT"
    assert check_layer(forward, x, lambda dy, x: -backward(dy, x)).verdict == "WRONG"


# ---- autograd against differences ----


@pytest.mark.parametrize("dtype", FLOATS)
def test_contradiction_of_autograd_and_differences_is_the_finding(dtype: torch.dtype) -> None:
    def detached(x: Tensor) -> Tensor:
        return x * x.exp().detach()

    x = randn(4, 5, dtype=dtype)
    by_autograd, by_differences = (lambda dy, x: dy * x.exp()), (lambda dy, x: dy * x.exp() * (1 + x))
    for backward, trust in ((by_autograd, "autograd"), (by_differences, "differences")):
        report = check_layer(detached, x, backward)
        assert report.verdict == "SETUP" and "detached" in str(report)
        other = {"autograd": "differences", "differences": "autograd"}[trust]
        assert check_layer(detached, x, backward, trust=trust).verdict == "RIGHT"
        assert check_layer(detached, x, backward, trust=other).verdict == "WRONG"
    assert check_layer(detached, x, lambda dy, x: dy * x).verdict == "WRONG"


@pytest.mark.parametrize("dtype", FLOATS)
def test_row_at_padding_idx_gets_no_gradient(dtype: torch.dtype) -> None:
    ids, w = torch.tensor([[0, 2, 2, 5], [0, 0, 1, 5]]), randn(6, 3, dtype=dtype)

    def backward(pads: bool) -> Callable[..., Tensor]:
        def dw(dy: Tensor, ids: Tensor, w: Tensor) -> Tensor:
            dy = dy * (ids != 0)[..., None].to(dy) if pads else dy
            return torch.zeros_like(w).index_add_(0, ids.reshape(-1), dy.reshape(-1, 3))

        return dw

    reports = [
        check_layer(lambda ids, w: functional.embedding(ids, w, 0), [ids, w], backward(pads)) for pads in (True, False)
    ]
    assert [report.verdict for report in reports] == ["RIGHT", "WRONG"]
    assert any("padding_idx" in note for note in reports[0].notes)


# ---- time ----


@pytest.mark.parametrize("seconds", [0.0, 0.01, 100.0])
@pytest.mark.parametrize("shape", [(10, 12), (40, 30)])
def test_verdict_does_not_depend_on_the_time_that_there_is(
    seconds: float, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kept, verdict in ((1.0, "RIGHT"), (0.1, "WRONG"), (0.99, "WRONG")):
        monkeypatch.setattr(Sine, "kept", kept)
        report = check_layer(Sine.apply, randn(*shape), seconds=seconds)
        assert report.verdict == verdict, str(report)
        assert any("time ran out" in note for note in report.notes) == (seconds < 1)


# ---- the forward ----


@pytest.mark.parametrize("dtype", FLOATS)
def test_another_epsilon_in_the_forward_is_named_and_the_gradient_not_blamed(dtype: torch.dtype) -> None:
    class Norm(torch.autograd.Function):
        broken = False

        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            s = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            g = dy * w
            lost = 0 if Norm.broken else x * s**2 * (g * x).mean(-1, keepdim=True)
            return s * (g - lost), (dy * x * s).sum(0)

    def reference(x: Tensor, w: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-4) * w

    inputs = [0.3 * randn(12, 8, dtype=dtype), randn(8, seed=1, dtype=dtype)]
    report = check_layer(Norm.apply, inputs, reference=reference, names=["x", "w"])
    assert report.verdict == "WRONG" and not report.wrong and "That is the cause" in report.forward
    Norm.broken = True
    assert "x" in check_layer(Norm.apply, inputs, reference=reference, names=["x", "w"]).wrong


# ---- the proof ----


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_whose_terms_cancel_is_right_and_an_error_of_their_size_is_not(dtype: torch.dtype) -> None:
    x, b = randn(64, 10, dtype=dtype), randn(10, seed=1, dtype=dtype)

    def normalised(x: Tensor, b: Tensor) -> Tensor:  # the bias does nothing
        h = x + b
        return (h - h.mean(0)) / h.std(0)

    def backward(error: float) -> Callable[..., Any]:
        def dx_db(dy: Tensor, x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            h = (x + b).double()
            s, h = h.std(0), (h - h.mean(0)) / h.std(0)
            g = dy.double()
            dx = (g - g.mean(0) - h * (g * h).sum(0) / (len(h) - 1)) / s
            return dx.to(x), (dx.to(x).sum(0) + error * dx[0]).to(b)

        return dx_db

    assert check_layer(normalised, [x, b], backward(0)).verdict == "RIGHT"
    assert check_layer(normalised, [x, b], backward(3)).verdict == "WRONG"


def test_right_gradient_that_rounding_hides_is_called_noise_and_the_mutant_is_named() -> None:
    x = randn(30, dtype=torch.float32)

    def cancels(x: Tensor) -> Tensor:
        return ((1e5 + x) - 1e5) ** 3

    report = check_layer(cancels, x, only(torch.float32, lambda dy, x: 3 * dy * ((1e5 + x) - 1e5) ** 2))
    assert report.verdict == "NOISE" and "cannot be told from 1.01 times itself" in str(report)


def test_report_says_what_the_check_can_tell() -> None:
    report = check_layer(torch.tanh, randn(6, 5, dtype=torch.float32), tanh_backward)
    proof = report.proofs["x"]
    assert (proof.compared, proof.entries) == (30, 30) and 1e-7 < proof.smallest_error() < 1e-4
    assert {"0", "minus itself", "1.01 times itself"} <= set(proof.mutants)
    assert "proof: 30 of 30 entries compared" in str(report)
    assert report.to_dict()["proofs"]["x"]["mutants"] == proof.mutants
    factor = 1 + proof.smallest_error()
    broken = check_layer(torch.tanh, randn(6, 5, dtype=torch.float32), lambda dy, x: factor * tanh_backward(dy, x))
    assert broken.verdict == "WRONG"


def mutants(g: Tensor) -> Iterator[Tensor]:
    """Written apart from those of the package, with other slices."""
    yield from (torch.zeros_like(g), -g, (1.1 if g.dtype.itemsize == 2 else 1.01) * g)
    for d in (d for d in range(g.ndim) if g.shape[d] > 1):
        for i in {0, g.shape[d] // 2, g.shape[d] - 1}:
            lost = g.clone()
            lost.select(d, i).zero_()
            yield lost
        yield g.roll(1, d)
    lost = g.clone().reshape(-1)
    lost[lost.abs().argmax()] = 0
    yield lost.view(g.shape)
    if g.ndim > 1 and g.shape[-1] == g.shape[-2]:
        yield g.mT.contiguous()


def assert_every_mutant_is_seen(
    forward: Callable[..., Any], inputs: dict[str, Any], backward: Callable[..., Any]
) -> None:
    def gradients(*given: Any) -> list[Any]:
        found = backward(*given)
        return list(found) if isinstance(found, tuple) else [found]

    seen, dy = check_layer(forward, inputs, lambda dy, **t: backward(dy, *t.values()), coordinates=10), None
    assert seen.verdict == "RIGHT", str(seen)
    dy = torch.randn_like(forward(**inputs) if not isinstance(forward(**inputs), tuple) else forward(**inputs)[0])
    for k, g in enumerate(gradients(dy, *[t.clone() if isinstance(t, Tensor) else t for t in inputs.values()])):
        if g is None:
            continue
        for j, mutant in enumerate(mutants(g)):
            if torch.equal(mutant, g) or (mutant - g).abs().max() < 1e-3 * g.abs().max():
                continue

            def mutated(dy: Tensor, /, *, at: tuple[int, int] = (k, j), **t: Any) -> Any:
                found = gradients(dy, *t.values())
                found[at[0]] = list(mutants(found[at[0]]))[at[1]]
                return tuple(found)

            report = check_layer(forward, inputs, mutated, coordinates=10)
            assert report.verdict != "RIGHT", f"gradient {k}, mutant {j}\n{report}"


def by_name(layer: Layer) -> Callable[..., Any]:
    return lambda **t: layer.forward(*t.values())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if i % 61 else []) for i, name in enumerate(LAYERS)],
)
def test_every_mutant_of_a_right_layer_is_seen_from_scratch(name: str, dtype: torch.dtype) -> None:
    layer = LAYERS[name]
    if not layer.computes_in(dtype):
        pytest.skip(f"torch has no {name} in {dtype}")
    assert_every_mutant_is_seen(by_name(layer), layer.arguments(dtype), layer.backward)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 8))])
def test_every_mutant_of_a_random_network_is_seen_from_scratch(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [int(n) for n in torch.randint(3, 9, (4,), generator=generator)]
    phi = [nn.Tanh(), nn.ReLU(), nn.SiLU(), nn.Sigmoid()][seed % 4]
    inputs = {"x": randn(7, sizes[0], seed=seed, dtype=dtype)}
    for n, (before, after) in enumerate(pairwise(sizes), 1):
        inputs[f"W{n}"] = randn(after, before, seed=seed + n, dtype=dtype)

    def forward(**t: Tensor) -> Tensor:
        a = t["x"]
        for n in range(1, len(sizes)):
            a = phi(a @ t[f"W{n}"].T)
        return a

    def backward(dy: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        leaves = {name: t.detach().requires_grad_() for name, t in zip(inputs, values, strict=True)}
        with torch.enable_grad():
            return torch.autograd.grad(forward(**leaves), list(leaves.values()), dy)

    assert all(has_gradient(t) for t in inputs.values())
    assert_every_mutant_is_seen(forward, inputs, backward)
