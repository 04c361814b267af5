"""The nudges of the outputs are minus the derivative of the cost, the three ways are parts of −∇C."""

import pytest
import torch

from bp_torch.backprop import forward, per_example_gradients
from bp_torch.explain import nudges
from bp_torch.explain.options import NudgesOptions
from bp_torch.explain.subject import Subject, with_example
from bp_torch.network import layer_views
from tests.explain_subject import KINDS, activation_gradients, forward_and_backward, some_example, some_network


def test_nudges_are_proportional_to_the_distance_from_the_targets(subject: Subject) -> None:
    options = NudgesOptions(digit=7)
    result = nudges.Nudges(with_example(subject, options), options)
    assert list(result.nudges) == ["untrained", "trained"]
    for name, network in subject.before_and_after.items():
        outputs, found = result.outputs[name], result.nudges[name]
        torch.testing.assert_close(found, 2 * (result.example.y[0] - outputs), rtol=1e-14, atol=0)
        assert found[7] > 0 and (found[[j for j in range(10) if j != 7]] < 0).all()
        torch.testing.assert_close(outputs, forward(network, result.example.x).activations[-1][0])
    assert result.nudges["untrained"].abs().min() > 0.1  # an untrained network is wrong in every output


@pytest.mark.parametrize("kind", KINDS)
def test_three_ways_are_components_of_the_negative_gradient(kind: tuple[str, str, str]) -> None:
    network, example = some_network(kind), some_example()
    passed, back = forward_and_backward(network, example, kind[2])
    weights, biases = layer_views(per_example_gradients(network, example.x, example.y, kind[2])[0], network.sizes)
    expected = activation_gradients(passed, example.y, kind[2])[-1]
    total = torch.zeros_like(expected)
    for neuron in range(10):
        ways = nudges.ways_to_move(passed, back, neuron)
        torch.testing.assert_close(ways.weights, -weights[-1][neuron], rtol=1e-13, atol=0)
        assert ways.bias == pytest.approx(-biases[-1][neuron].item(), rel=1e-13)
        torch.testing.assert_close(ways.weights, ways.bias * ways.a, rtol=1e-12, atol=1e-18)
        torch.testing.assert_close(ways.activations, ways.bias * ways.w, rtol=1e-12, atol=1e-18)
        total += ways.activations
    torch.testing.assert_close(total, -expected, rtol=1e-12, atol=1e-15)


def test_ways_are_ranked_by_size() -> None:
    network = some_network(KINDS[0])
    ways = nudges.ways_to_move(*forward_and_backward(network, some_example(), "quadratic"), 2)
    sizes = [abs(nudge) for _, nudge in ways.ranked()]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 1 + 2 * 5
