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
def test_cost_equals_that_of_torch_when_saturated_too(cost: str, scale: float) -> None:
    z = Z * scale
    a = outputs(cost, z)
    torch.testing.assert_close(COSTS[cost].value(z, a, Y), REFERENCE_COSTS[cost](z, a, Y))


def test_quadratic_cost_has_no_half() -> None:
    a, y = torch.tensor([[0.5, 0.8]]), torch.tensor([[1.0, 0.0]])
    assert COSTS["quadratic"].value(a, a, y).item() == pytest.approx(0.25 + 0.64)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("soft", [False, True])
def test_derivative_equals_autograd(cost: str, soft: bool) -> None:
    y = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) if soft else Y
    z = Z.clone().requires_grad_()
    a = outputs(cost, z)
    by = z if COSTS[cost].absorbs else a
    (expected,) = torch.autograd.grad(REFERENCE_COSTS[cost](z, a, y).sum(), by)
    torch.testing.assert_close(COSTS[cost].derivative(a.detach(), y), expected)


@pytest.mark.parametrize("cost", ["binary-cross-entropy", "softmax-cross-entropy"])
def test_saturated_wrong_output_keeps_its_gradient(cost: str) -> None:
    z = torch.tensor([[200.0, -200.0]])
    y = torch.tensor([[0.0, 1.0]])
    derivative = COSTS[cost].derivative(outputs(cost, z), y)
    assert derivative.tolist() == [[1.0, -1.0]]
    assert COSTS[cost].value(z, outputs(cost, z), y).item() == 400
