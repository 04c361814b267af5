import pytest
import torch

from bp_torch.costs import COSTS
from tests.conftest import REFERENCE_COSTS

Z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
Y = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0, 1]]


def outputs(cost: str, z: torch.Tensor) -> torch.Tensor:
    return z if cost == "softmax-cross-entropy" else z.sigmoid()


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("scale", [1, 43, 1000])
def test_cost_is_torchs_own_even_when_saturated(cost: str, scale: float) -> None:
    z = Z * scale
    a = outputs(cost, z)
    torch.testing.assert_close(COSTS[cost].per_example(z, a, Y).mean(), REFERENCE_COSTS[cost](z, a, Y))


def test_quadratic_cost_has_no_half() -> None:
    a, y = torch.tensor([[0.5, 0.8]]), torch.tensor([[1.0, 0.0]])
    assert COSTS["quadratic"].per_example(a, a, y).item() == pytest.approx(0.25 + 0.64)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("soft", [False, True])
def test_error_is_the_derivative_by_autograd(cost: str, soft: bool) -> None:
    y = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) if soft else Y
    z = Z.clone().requires_grad_()
    a = outputs(cost, z)
    by = z if COSTS[cost].absorbs else a
    (wanted,) = torch.autograd.grad(REFERENCE_COSTS[cost](z, a, y) * len(y), by)
    torch.testing.assert_close(COSTS[cost].error(a.detach(), y, torch.empty_like(y)), wanted)


@pytest.mark.parametrize("cost", ["binary-cross-entropy", "softmax-cross-entropy"])
def test_a_saturated_wrong_output_keeps_its_gradient(cost: str) -> None:
    z = torch.tensor([[200.0, -200.0]])
    y = torch.tensor([[0.0, 1.0]])
    error = COSTS[cost].error(outputs(cost, z), y, torch.empty_like(y))
    assert error.tolist() == [[1.0, -1.0]]
    assert COSTS[cost].per_example(z, outputs(cost, z), y).item() == 400
