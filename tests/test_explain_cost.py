"""What the outputs add to the cost of an example is its cost, and the average over all examples is C."""

import pytest
import torch

from bp_torch.backprop import example_costs, forward
from bp_torch.data import batch
from bp_torch.explain import cost
from bp_torch.explain.options import ExampleOptions
from bp_torch.explain.subject import Subject, with_example
from tests.explain_subject import KINDS, some_example, some_network


@pytest.mark.parametrize("kind", KINDS)
def test_terms_of_the_outputs_add_up_to_the_cost(kind: tuple[str, str, str]) -> None:
    example = some_example()
    passed = forward(some_network(kind), example.x)
    terms = cost.terms(passed, example.y, kind[2])
    assert terms.shape == (10,) and (terms >= 0).all()
    torch.testing.assert_close(terms.sum(), example_costs(passed, example.y, kind[2])[0], rtol=1e-13, atol=0)


def test_terms_of_the_quadratic_cost_are_squared_differences() -> None:
    example = some_example()
    passed = forward(some_network(KINDS[0]), example.x)
    expected = (passed.activations[-1][0] - example.y[0]) ** 2
    torch.testing.assert_close(cost.terms(passed, example.y, "quadratic"), expected)


def test_average_over_all_examples_is_that_of_one_batch(subject: Subject) -> None:
    options = ExampleOptions(digit=4)
    result = cost.Cost(with_example(subject, options), options)
    assert list(result.networks) == ["untrained", "trained"] and result.example.label == 4
    x, y = batch(subject.training, torch.arange(len(subject.training.labels)), torch.float64)
    for costs, network in zip(result.networks.values(), subject.before_and_after.values(), strict=True):
        outputs = forward(network, x).activations[-1]
        assert costs.everyone.mean().item() == pytest.approx((outputs - y).square().sum(1).mean().item(), rel=1e-12)
        assert costs.everyone[result.example.position].item() == pytest.approx(costs.total, rel=1e-9)
