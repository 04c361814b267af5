"""The paths are training's, and angles are angles."""

import dataclasses

import torch

from bp_torch.explain import descent
from bp_torch.explain.subject import Subject, train_steps


def test_angle_in_degrees() -> None:
    a = torch.tensor([1.0, 0.0])
    assert [descent.angle(a, torch.tensor(b)) for b in ([2.0, 0.0], [0.0, 3.0], [-1.0, 0.0])] == [0, 90, 180]


def test_angle_to_the_true_gradient_shrinks_with_the_batch(subject: Subject) -> None:
    angles = descent.angles_by_size(subject.network, subject.training, "quadratic", seed=0)
    means = [sum(found) / len(found) for found in angles.values()]
    assert list(angles) == [1, 10, 100, 1000] and means == sorted(means, reverse=True)


def test_path_ends_where_training_ends(subject: Subject) -> None:
    config = dataclasses.replace(subject.config, epochs=2, learning_rate_decay=1.0)
    network = config.network(torch.device("cpu"))
    path = descent.follow_path("", config, network.to(), subject.training, 40)
    for _ in train_steps(dataclasses.replace(config, learning_rate_decay=0.0), network, subject.training, ""):
        pass
    assert path.steps[0] == 0 and path.steps[-1] == 40
    assert torch.equal(path.points[-1], network.parameters)  # 2000 examples, 100 a step: two epochs at one rate


def test_every_step_from_close_is_a_step_of_training(subject: Subject) -> None:
    config = dataclasses.replace(subject.config, learning_rate_decay=0.0, epochs=1)
    path = descent.walk("", config, subject.network.to(), subject.training, 3, range(4))
    points = path.points
    assert path.steps == [0, 1, 2, 3]
    network = subject.network.to()
    for expected, step in zip(points[1:], train_steps(config, network, subject.training, ""), strict=False):
        assert torch.equal(expected, network.parameters) and step <= 3
    assert torch.equal(points[0], subject.network.parameters) and len(points) == 4
