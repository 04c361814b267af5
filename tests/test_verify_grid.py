"""Many checks in one table; NumPy; and gradients that are meant to differ."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bp_torch import verify
from bp_torch.verify.check import ACCEPTABLE
from bp_torch.verify.grid import Grid, Row


def forward(x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(x @ w)


def backward(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    delta = dy * (1 - torch.tanh(x @ w) ** 2)
    return delta @ w.mT, x.mT @ delta


def draw(n: int, m: int) -> list[Tensor]:
    return [torch.randn(n, m), torch.randn(m, 3)]


# ---- the grid ----


def test_each_dtype_shape_and_layout_is_checked() -> None:
    grid = verify.check_grid(
        forward,
        draw,
        backward,
        shapes=[(3, 4), (5, 6)],
        layouts=["contiguous", "strided"],
        dtypes=["float64", "float16"],
    )
    grid.assert_ok()
    assert [row.place() for row in grid.rows] == [
        [dtype, shape, layout]
        for dtype in ("float64", "float16")
        for shape in ("3×4", "5×6")
        for layout in ("", "strided")
    ]
    assert {c.shape for c in grid.rows[2].report.comparisons} == {(5, 6), (6, 3)}  # type: ignore[union-attr]
    assert max(map(len, str(grid).splitlines())) <= 80


@pytest.mark.parametrize(
    ("fault", "places"),
    [
        (
            lambda dy, x, w: x.shape[1] > 4,
            ["float64 5×6", "float64 5×6 strided", "bfloat16 5×6", "bfloat16 5×6 strided"],
        ),
        (
            lambda dy, x, w: x.dtype == torch.bfloat16,
            [f"bfloat16 {s}" for s in ("3×4", "3×4 strided", "5×6", "5×6 strided")],
        ),
    ],
)
def test_a_fault_is_found_in_the_checks_that_it_shows_in(fault: Callable[..., bool], places: list[str]) -> None:
    def faulty(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        dx, dw = backward(dy, x, w)
        return (2 * dx if fault(dy, x, w) else dx), dw

    grid = verify.check_grid(
        forward,
        draw,
        faulty,
        shapes=[(3, 4), (5, 6)],
        layouts=["contiguous", "strided"],
        dtypes=["float64", "bfloat16"],
    )
    assert [" ".join(filter(None, row.place())) for row in grid.rows if row.verdict == "WRONG"] == places
    assert grid.verdict == "WRONG" and not grid
    assert any(f"{places[0]} and 3 more: x: is 2 times" in line for line in grid.reasons())
    with pytest.raises(AssertionError, match="WRONG: 4 of 8 checks right"):
        grid.assert_ok()


def test_strided_inputs_are_not_contiguous() -> None:
    seen = list[list[bool]]()

    def noting(x: Tensor, w: Tensor, n: Tensor) -> Tensor:
        seen.append([t.is_contiguous() for t in (x, w, n)])
        return forward(x, w)

    for layout in ("contiguous", "strided"):
        seen.clear()
        given = [*draw(3, 4), torch.tensor(3.0)]
        verify.check_grid(noting, given, reference=lambda x, w, n: forward(x, w), dtypes=["float32"], layouts=[layout])
        assert seen[0] == [layout == "contiguous"] * 2 + [True]


def test_what_cannot_be_checked_is_a_row_that_says_why() -> None:
    grid = verify.check_grid(forward, draw, backward, shapes=[(3, 4), (3,)], dtypes=["float32"])
    assert [row.verdict for row in grid.rows] == ["RIGHT", "SETUP"] and grid.verdict == "SETUP"
    assert grid.rows[1].words == ["draw() missing 1 required positional argument: 'm'"]

    def leaves() -> Any:
        raise SystemExit(0)

    assert verify.check_grid(forward, leaves, backward, dtypes=["float32"]).rows[0].words == ["0"]
    with pytest.raises(ValueError, match="layouts: wanted contiguous or strided, got sideways"):
        verify.check_grid(forward, draw, backward, layouts=["sideways"])


def test_inputs_are_drawn_from_the_seed_in_the_dtype() -> None:
    seen = list[Any]()

    def by_seed(seed: int) -> dict[str, Any]:
        seen.append(seed)
        return {"x": torch.randn(2, 3), "w": torch.randn(3, 2, dtype=torch.complex128), "n": torch.arange(2)}

    def function(x: Tensor, w: Tensor, n: Tensor) -> Tensor:
        seen.append((x.dtype, w.dtype, n.dtype))
        return (x.to(w.dtype) @ w)[n].real

    reports = [verify.check_grid(function, by_seed, reference=function, dtypes=["float32"], seed=s) for s in (7, 7, 8)]
    assert [s for s in seen if isinstance(s, int)] == [7, 7, 8]
    assert (torch.float32, torch.complex64, torch.int64) in seen
    first, again, other = ([c.largest for c in grid.rows[0].report.comparisons] for grid in reports)  # type: ignore[union-attr]
    assert first == again != other
    assert verify.check_grid(lambda x: x.sin(), torch.randn(3), lambda dy, x: dy * x.cos())
    assert verify.check_grid(
        lambda x: x.sin(), lambda n, seed: torch.randn(n), lambda dy, x: dy * x.cos(), shapes=[(3,)]
    )


def test_a_module_is_checked_in_each_dtype() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    grid = verify.check_grid(module, torch.randn(5, 4), reference=module)
    assert grid and module[0].weight.dtype == torch.float32
    assert [c.gradient for c in grid.rows[2].report.comparisons][-1] == "0.bias"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("worst", "code"), [("RIGHT", 0), ("KINK", 0), ("NOISE", 3), ("SETUP", 4), ("WRONG", 1), ("DIED", 5)]
)
def test_the_verdict_is_the_worst_and_each_has_its_exit_code(worst: str, code: int) -> None:
    order = ["RIGHT", "KINK", "NOISE", "SETUP", "WRONG", "DIED"]
    better = order[: order.index(worst)]
    grid = Grid([Row("float32", (), "contiguous", verdict, [], None) for verdict in (*better, worst, *better)])
    assert (
        grid.verdict == worst and json.loads(grid.to_json())["exit_code"] == code and bool(grid) == (worst == "RIGHT")
    )


# ---- NumPy ----


def np_forward(x: Any, w: Any) -> Any:
    return np.maximum(x @ w, 0)


def np_backward(dy: Any, x: Any, w: Any) -> Any:
    delta = dy * (x @ w > 0)
    return delta @ w.T, x.T @ delta


def arrays(dtype: str = "float64") -> list[Any]:
    draw = np.random.default_rng(0).standard_normal
    return [draw((5, 4)).astype(dtype), draw((4, 3)).astype(dtype)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_functions_of_arrays_are_judged_by_central_differences(dtype: str) -> None:
    report = verify.check_layer(np_forward, arrays(dtype), np_backward)
    report.assert_ok()
    assert {c.reference for c in report.comparisons} <= {"central", "directions"} and report.dtype == dtype
    assert report.notes[-1:] == [
        "autograd cannot go through the function, which leaves torch: central differences decide"
    ]


@pytest.mark.parametrize("factor", [-1, 1.001])
def test_a_wrong_gradient_of_arrays_is_wrong(factor: float) -> None:
    def wrong(dy: Any, x: Any, w: Any) -> Any:
        return factor * np_backward(dy, x, w)[0], x.T @ dy

    report = verify.check_layer(np_forward, arrays(), wrong)
    assert report.verdict == "WRONG" and set(report.wrong) == {"x", "w"} and len(report.notes) == 1


@pytest.mark.parametrize(
    ("function", "gradient"),
    [
        (lambda x: float((x**2).sum()), lambda x: 2 * x),
        (lambda x: (x**2).sum(), lambda x: (2 * x[::-1])[::-1]),
        (lambda x: np.square(x).sum(), lambda x: np.broadcast_to(2, x.shape) * x),
    ],
)
def test_scalar_functions_of_arrays(function: Callable[..., Any], gradient: Callable[..., Any]) -> None:
    x = arrays()[0]

    def wrong(x: Any) -> Any:
        return np.asarray(gradient(x)) / 2

    assert verify.check(function, x, gradient) and verify.check(function, {"x": x[::-1].T}, {"x": gradient(x[::-1].T)})
    assert verify.check(function, x, gradient(x)) and verify.check(function, [x], [gradient(x)])
    assert verify.check(function, x, wrong).verdict == verify.check(function, x, wrong(x)).verdict == "WRONG"


def test_what_a_function_of_arrays_writes_is_seen() -> None:
    def writes(dy: Any, x: Any, w: Any) -> Any:
        gradients = np_backward(dy, x, w)
        x += 1
        return gradients

    given = arrays()
    report = verify.check_layer(np_forward, given, writes)
    assert report.problems == {"x": ["the gradient function changes its input x in place"]}
    assert np.array_equal(given[0], arrays()[0])


def test_arrays_beside_functions_of_tensors() -> None:
    report = verify.check_layer(np_forward, arrays(), np_backward, reference=lambda x, w: torch.relu(x @ w))
    report.assert_ok()
    assert {c.reference for c in report.comparisons} >= {"autograd", "central"} and not report.notes
    x = arrays()[0]
    assert verify.check_layer(np.tanh, x, lambda dy, x: dy * (1 - torch.tanh(torch.as_tensor(x)) ** 2))
    assert not verify.check_layer(np.tanh, x, lambda dy, x: dy * (1 - torch.tanh(torch.as_tensor(x))))


@pytest.mark.parametrize("detach", [False, True])
def test_a_function_of_tensors_that_leaves_torch(detach: bool) -> None:
    def leaves(x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh((x.detach() if detach else x).numpy()))

    x = torch.randn(4, 3)
    report = verify.check_layer(leaves, x, lambda dy, x: dy * (1 - torch.tanh(x) ** 2))
    assert report and {c.reference for c in report.comparisons} == {"central"}
    assert verify.check_layer(leaves, x, lambda dy, x: dy * (1 - torch.tanh(x))).verdict == "WRONG"
    with pytest.raises((ValueError, RuntimeError)):
        verify.check_layer(leaves, x)  # there is no gradient


@pytest.mark.parametrize("seed", [127, 153, 259, 279])
def test_value_that_nearly_cancels_invents_no_kinks(seed: int) -> None:
    """Σ y ⊙ dy is then small beside its terms, and so is what the differences of it can be told from."""
    torch.manual_seed(seed)

    def leaves(x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))

    report = verify.check_layer(leaves, torch.randn(4, 3), lambda dy, x: dy * (1 - torch.tanh(x) ** 2))
    assert report.verdict == "RIGHT" and report.skipped == 0, str(report)


def test_a_grid_of_arrays_says_what_numpy_lacks() -> None:
    grid = verify.check_grid(np_forward, arrays("float32"), np_backward, layouts=["contiguous", "strided"])
    assert [row.verdict for row in grid.rows] == ["RIGHT"] * 4 + ["SETUP"] * 2
    assert "bfloat16" in grid.rows[-1].words[0]


# ---- gradients that are meant to differ ----


class Step(torch.autograd.Function):
    """A spike, with the derivative of a sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        s = torch.sigmoid(4 * ctx.saved_tensors[0])
        return dy * 4 * s * (1 - s)


def spike(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


@pytest.mark.parametrize(
    ("reference", "compared", "verdict"),
    [
        (lambda x: torch.sigmoid(4 * x), spike, "RIGHT"),
        (lambda x: torch.sigmoid(4 * x), False, "RIGHT"),
        (lambda x: torch.sigmoid(4 * x), True, "WRONG"),
        (lambda x: torch.sigmoid(4 * x), lambda x: (x > 0.5).to(x.dtype), "WRONG"),
        (lambda x: torch.sigmoid(5 * x), spike, "WRONG"),
    ],
)
def test_the_reference_gives_the_derivative_that_is_meant(reference: Any, compared: Any, verdict: str) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        report = verify.check_layer(Step.apply, x.to(dtype), reference=reference, compare_forward=compared)
        assert report.verdict == verdict
        assert any("the forward is " in note for note in report.notes) == (compared is not True)


def write_dy(dy: Tensor, x: Tensor) -> Tensor:
    gradient = dy * x.cos()
    if 0 not in dy.stride():
        dy.zero_()
    return gradient


def write_x(dy: Tensor, x: Tensor) -> Tensor:
    return x.copy_(dy * x.cos())


DEVIATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "inputs overwritten": write_x,
    "dy overwritten": write_dy,
    "other dtype": lambda dy, x: dy.double() * x.double().cos(),
    "dy contiguous": lambda dy, x: dy.view(-1).view(x.shape) * x.cos(),
    "dy not expanded": lambda dy, x: dy * x.cos() * (2 if 0 in dy.stride() else 1),
}


@pytest.mark.parametrize("name", ACCEPTABLE)
def test_a_deviation_that_is_accepted_becomes_a_note(name: str) -> None:
    x, others = torch.randn(4, 5), [other for other in ACCEPTABLE if other != name]
    if name == "dy contiguous":
        others.remove("dy not expanded")  # an expanded dy cannot be viewed as flat either
    refused = verify.check_layer(torch.sin, x, DEVIATIONS[name], accept=others)
    assert refused.verdict == "WRONG" and refused.problems["x"]
    accepted = verify.check_layer(torch.sin, x, DEVIATIONS[name], accept=ACCEPTABLE)
    assert accepted and f"accepted: x {refused.problems['x'][0]}" in accepted.notes
    wrong = verify.check_layer(torch.sin, x, lambda dy, x: 1.01 * DEVIATIONS[name](dy, x), accept=ACCEPTABLE)
    assert wrong.verdict == "WRONG"


def test_an_unknown_deviation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accept: wanted some of inputs overwritten, .*; got 'anything'"):
        verify.check_layer(torch.sin, torch.randn(3), lambda dy, x: dy * x.cos(), accept=["anything"])


def test_a_solver_may_be_linear_within_its_own_tolerance() -> None:
    A = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    A = A @ A.T + 6 * torch.eye(6, dtype=torch.float64)

    def solve(b: Tensor, steps: int) -> Tensor:
        x = torch.zeros_like(b)
        for _ in range(steps):
            x = x + (b - A @ x) / 40
        return x

    def backward(dy: Tensor, b: Tensor) -> Tensor:  # it gives up sooner where dy is larger
        return solve(dy, 150 - int(8 * dy.norm()))

    b = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def check(**options: Any) -> verify.Report:
        return verify.check_layer(lambda b: torch.linalg.solve(A, b), b, backward, **options)

    error = max(c.relative_error for c in check().comparisons)
    assert 1e-9 < error < 1e-5
    assert "not −2 times as large" in check(tolerance=10 * error).problems["b"][0]
    check(tolerance=10 * error, linear_within=1e-3).assert_ok()
    assert check(tolerance=error / 2, linear_within=1e-3).verdict == "WRONG"
