"""What the neurons of a layer ask of the layer before sums to −∂C/∂a, as autograd has it."""

import pytest
import torch

from bp_torch.explain import backwards
from bp_torch.explain.options import ExampleOptions
from bp_torch.explain.subject import Subject, with_example
from tests.explain_subject import KINDS, activation_gradients, forward_and_backward, some_example, some_network


@pytest.mark.parametrize("kind", KINDS)
def test_rows_sum_to_minus_the_gradient_of_the_activations(kind: tuple[str, str, str]) -> None:
    network, example = some_network(kind), some_example()
    passed, back = forward_and_backward(network, example, kind[2])
    expected = activation_gradients(passed, example.y, kind[2])
    steps = backwards.steps_back(network, back.deltas)
    assert [step.layer for step in steps] == [3, 2, 1]
    for step in steps:
        torch.testing.assert_close(step.rows.sum(0), -expected[step.layer - 1], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(step.total, -expected[step.layer - 1], rtol=1e-12, atol=1e-15)


def test_rows_sum_to_minus_the_gradient_before_training_and_after(subject: Subject) -> None:
    options = ExampleOptions(digit=2)
    result = backwards.Backwards(with_example(subject, options), options)
    assert list(result.ways) == ["untrained", "trained"]
    for name, steps in result.ways.items():
        expected = activation_gradients(result.passed[name], result.example.y, "quadratic")
        for step in steps:
            torch.testing.assert_close(step.rows.sum(0), -expected[step.layer - 1], rtol=1e-12, atol=1e-15)
            assert step.error < 1e-14


def test_row_is_proportional_to_the_weights_of_its_neuron() -> None:
    network = some_network(KINDS[0])
    _, back = forward_and_backward(network, some_example(), "quadratic")
    step = backwards.steps_back(network, back.deltas)[0]
    torch.testing.assert_close(step.rows[3], step.wishes[3] * network.weights[-1][3], rtol=1e-13, atol=0)
