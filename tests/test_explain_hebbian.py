"""The nudge of a weight is the product of its three factors."""

import numpy as np
import pytest
import torch

from bp_torch.explain import hebbian
from bp_torch.explain.options import HebbianOptions
from bp_torch.explain.subject import Subject
from tests.explain_subject import KINDS, forward_and_backward, some_example, some_network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_product_with_phi_prime_is_the_nudge(kind: tuple[str, str, str], layer: int) -> None:
    network, example = some_network(kind), some_example()
    passed, back = forward_and_backward(network, example, kind[2])
    result = hebbian.factors(passed, back, example.y, kind[2], layer)
    torch.testing.assert_close(result.exact, result.nudges, rtol=1e-12, atol=1e-17)
    if kind[0] == "sigmoid":  # without φ′ the product is another
        assert (result.together - result.nudges).abs().max() > 0.1 * result.nudges.abs().max()


def test_finding_has_the_correlations_of_numpy_before_training_and_after(subject: Subject) -> None:
    result = hebbian.Hebbian(subject, HebbianOptions())
    found = [
        np.corrcoef(each.together.flatten().numpy(), each.nudges.flatten().numpy())[0, 1]
        for each in result.factors.values()
    ]
    assert result.finding().endswith(f"{found[0]:.2f} before training, {found[1]:.2f} after it")
    assert found[0] > 0.9 and found[0] != found[1]
