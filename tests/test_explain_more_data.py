"""Networks on fewer examples are trained as long as those on more, and learn less that holds for other images."""

import dataclasses

import pytest
import torch

from bp_torch.data import first_shuffled
from bp_torch.explain import more_data
from bp_torch.explain.subject import Subject, train_steps
from bp_torch.training import Config, evaluate


def test_schedule_for_fewer_examples_sees_as_many_at_the_same_learning_rates() -> None:
    config = Config(epochs=3, learning_rate_decay=0.9)
    fewer = more_data.schedule(config, 50, 2000)
    assert fewer.epochs * 50 == config.epochs * 2000 and fewer.batch_size == 50
    for passes in range(4):  # over all 2000 examples; each is 40 passes over the 50
        assert fewer.learning_rate_at(1 + 40 * passes) == pytest.approx(config.learning_rate_at(1 + passes))


def test_test_score_improves_with_more_examples(subject: Subject) -> None:
    config = dataclasses.replace(subject.config, epochs=20)
    few, many = (more_data.train_on(config, subject.training, subject.test, count)[0] for count in (50, 2000))
    assert many.test.accuracy > few.test.accuracy and many.test.cost < few.test.cost
    assert few.training.accuracy > few.test.accuracy


@pytest.mark.long
def test_deformed_images_help_where_there_are_few(subject: Subject) -> None:
    config = dataclasses.replace(subject.config, epochs=40)
    plain = more_data.train_on(config, subject.training, subject.test, 50, seeds=2)
    before = subject.training.x.clone()
    deformed = more_data.train_on(more_data.deforming(config, "both"), subject.training, subject.test, 50, seeds=2)
    assert torch.equal(subject.training.x, before), "the images themselves stay"
    assert [network.seed for network in deformed] == [0, 1] and all(network.deformed for network in deformed)
    means = [sum(network.test.accuracy for network in networks) / 2 for networks in (plain, deformed)]
    assert means[1] > means[0]


def test_networks_are_those_of_their_seeds_alone(subject: Subject) -> None:
    config = dataclasses.replace(subject.config, epochs=1, seed=5)
    together = more_data.train_on(config, subject.training, subject.test, 130, seeds=3)
    assert [network.seed for network in together] == [5, 6, 7]
    for trained in together:
        own = dataclasses.replace(config, seed=trained.seed)
        some = first_shuffled(subject.training, 130, own.seed)
        network = own.network(subject.training.x.device)
        for _ in train_steps(more_data.schedule(own, 130, len(subject.training.labels)), network, some, ""):
            pass
        for found, examples in ((trained.training, some), (trained.test, subject.test)):
            expected = evaluate(network, examples, own.cost)
            assert found.cost == pytest.approx(expected.cost, rel=1e-4)
            assert found.accuracy == pytest.approx(expected.accuracy, abs=0.01)
