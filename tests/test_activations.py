import pytest
import torch

from bp_torch.activations import ACTIVATIONS
from tests.conftest import REFERENCE_ACTIVATIONS

Z = torch.cat(
    [torch.linspace(-43, 43, 173, dtype=torch.float64), torch.tensor([-800.0, 0.0, 800.0], dtype=torch.float64)]
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_function_equals_that_of_torch(name: str) -> None:
    assert torch.equal(ACTIVATIONS[name].function(Z), REFERENCE_ACTIVATIONS[name](Z))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_derivative_from_the_output_equals_autograd(name: str, dtype: torch.dtype) -> None:
    z = Z.to(dtype, copy=True).requires_grad_()
    a = REFERENCE_ACTIVATIONS[name](z)
    (expected,) = torch.autograd.grad(a.sum(), z)
    ours = ACTIVATIONS[name].derivative(a.detach())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=4 * torch.finfo(dtype).eps)


def test_relu_derivative_is_zero_at_zero() -> None:
    zero = torch.zeros(1)
    assert ACTIVATIONS["relu"].derivative(zero).item() == 0
