import pytest
import torch

from bp_torch.activations import ACTIVATIONS
from tests.conftest import REFERENCE_ACTIVATIONS

Z = torch.cat(
    [torch.linspace(-43, 43, 173, dtype=torch.float64), torch.tensor([-800.0, 0.0, 800.0], dtype=torch.float64)]
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_function_is_torchs_own(name: str) -> None:
    out = torch.empty_like(Z)
    assert ACTIVATIONS[name].function(Z, out) is out
    assert torch.equal(out, REFERENCE_ACTIVATIONS[name](Z))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_function_works_in_place(name: str) -> None:
    z = Z.clone()
    ACTIVATIONS[name].function(z, z)
    assert torch.equal(z, REFERENCE_ACTIVATIONS[name](Z))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_derivative_from_the_output_is_autograds(name: str, dtype: torch.dtype) -> None:
    z = Z.to(dtype).requires_grad_()
    a = REFERENCE_ACTIVATIONS[name](z)
    (wanted,) = torch.autograd.grad(a.sum(), z)
    ours = ACTIVATIONS[name].derivative(a.detach(), torch.empty_like(wanted))
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=4 * torch.finfo(dtype).eps)


def test_relu_has_no_slope_at_zero() -> None:
    zero = torch.zeros(1)
    assert ACTIVATIONS["relu"].derivative(zero, torch.empty(1)).item() == 0
