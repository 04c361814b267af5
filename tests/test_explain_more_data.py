"""Networks on fewer examples are trained as long as those on more, and learn less that holds for other images."""

import dataclasses

import pytest

from bp_torch.explain import more_data
from bp_torch.explain.subject import Subject
from bp_torch.training import Config


def test_schedule_for_fewer_examples_sees_as_many_at_the_same_learning_rates() -> None:
    config = Config(epochs=3, learning_rate_decay=0.9)
    fewer = more_data.schedule(config, 50, 2000)
    assert fewer.epochs * 50 == config.epochs * 2000 and fewer.batch_size == 50
    for passes in range(4):  # over all 2000 examples; each is 40 passes over the 50
        assert fewer.learning_rate_at(1 + 40 * passes) == pytest.approx(config.learning_rate_at(1 + passes))


def test_test_score_improves_with_more_examples(subject: Subject) -> None:
    config = dataclasses.replace(subject.config, epochs=20)
    few, many = (more_data.train_on(config, subject.training, subject.test, count) for count in (50, 2000))
    assert many.test.accuracy > few.test.accuracy and many.test.cost < few.test.cost
    assert few.training.accuracy > few.test.accuracy
