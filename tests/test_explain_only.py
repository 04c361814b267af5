"""Training on one digit alone makes the network classify everything as that digit."""

import torch

from bp_torch.explain import only
from bp_torch.explain.options import OnlyOptions
from bp_torch.explain.subject import Subject


def test_training_on_one_digit_makes_every_prediction_that_digit(subject: Subject) -> None:
    before = subject.network.parameters.clone()
    first, second = (only.Only(subject, OnlyOptions(digit=3, steps=150)) for _ in range(2))
    fraction = first.fractions[:, 3]
    assert fraction[0] < 0.2 and fraction[-1] > 0.6
    torch.testing.assert_close(first.fractions.sum(1), torch.ones(151, dtype=torch.float64))
    assert torch.equal(first.fractions, second.fractions)
    assert torch.equal(subject.network.parameters, before)


def test_rows_that_are_the_same_become_one() -> None:
    fraction = torch.tensor([0.1, 0.4, 0.6, 0.8, 1.0, 1.0])
    predictions = torch.tensor([[0, 1], [2, 1], [2, 1], [2, 2], [2, 2], [2, 2]])
    assert only.figure_steps(fraction, predictions) == [0, 1, 3]
