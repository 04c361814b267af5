"""The gradient predicts how the cost changes, and its components have the names of their parameters."""

import pytest
import torch

from bp_torch.explain import gradient
from bp_torch.explain.options import GradientOptions
from bp_torch.explain.subject import Subject, UsageError, full_gradient
from bp_torch.network import layer_views


def test_wiggle_agrees_with_the_gradient_to_second_order(subject: Subject) -> None:
    network, training = subject.exact, subject.training
    vector = full_gradient(network, training, "quadratic")
    order = gradient.sensitivity_order(vector)
    indices = [int(order[0]), int(order[50])]
    before = network.parameters.clone()
    errors: dict[float, list[tuple[float, float]]] = {}
    for h in (2e-2, 1e-2):
        moved = gradient.wiggle(network, training, "quadratic", vector, indices, h)
        errors[h] = [(abs(w.up - w.predicted), abs(w.change - w.predicted)) for w in moved]
    for (coarse, coarse_both), (fine, fine_both) in zip(errors[2e-2], errors[1e-2], strict=True):
        assert coarse / fine == pytest.approx(4, rel=0.1)  # C(θ + h) − C(θ) − h g is of the second order in h
        assert coarse_both / fine_both == pytest.approx(8, rel=0.1)  # and the mean of up and down of the third
    assert torch.equal(network.parameters, before)


def test_same_wiggle_of_two_weights_changes_the_cost_in_the_ratio_of_their_components(subject: Subject) -> None:
    result = gradient.Gradient(subject, GradientOptions(ratio=8))
    assert result.measured_ratio == pytest.approx(result.ratio, rel=1e-2)
    assert [w.position for wiggles in result.wiggles for w in wiggles] == [i for i in result.pair for _ in range(2)]
    last = len(result.gradient) - 16 * 10 - 10
    assert result.edges == [((i - last) // 16, (i - last) % 16) for i in result.pair]


def test_pair_has_the_largest_component_of_the_last_layer_and_one_that_is_so_many_times_less() -> None:
    sizes = (784, 3, 2)
    vector = torch.zeros(784 * 3 + 3 + 3 * 2 + 2)
    weights, _ = layer_views(vector, sizes)
    weights[0][0, 0] = 1e3  # of another layer
    weights[1].copy_(torch.tensor([[1.0, 20.0, -64.0], [-2.1, 0.5, 0.0]]))
    first, second = gradient.find_pair(vector, sizes, 32)
    assert (vector[first].item(), vector[second].item()) == pytest.approx((-64.0, -2.1))
    weights[1].zero_()
    weights[1][0, 0] = 1
    with pytest.raises(UsageError, match="nothing to compare"):
        gradient.find_pair(vector, sizes, 32)


def test_parameter_names_match_their_indices() -> None:
    sizes = (784, 16, 16, 10)
    numbered = torch.arange(13_002)
    weights, biases = layer_views(numbered, sizes)
    name = gradient.parameter_name
    assert name(sizes, int(weights[0][3, 14 * 28 + 9])) == "weight from pixel (14, 9) to neuron 3 of layer 1"
    assert name(sizes, int(weights[2][8, 5])) == "weight from neuron 5 of layer 2 to output 8"
    assert name(sizes, int(biases[2][2])) == "bias of output 2"
    assert len({name(sizes, i) for i in range(13_002)}) == 13_002
    for wrong in (-1, 13_002):
        with pytest.raises(ValueError, match="no parameter"):
            name(sizes, wrong)
