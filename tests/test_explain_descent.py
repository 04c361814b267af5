"""The paths are training's, the plane holds what is flat, the surface is the cost on it, and angles are angles."""

import dataclasses

import pytest
import torch

from bp_torch.explain import descent
from bp_torch.explain.subject import Subject, train_steps
from bp_torch.training import evaluate


def test_plane_through_flat_points_holds_them_all() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.float64))[0].T
    points = torch.randn(30, 2, generator=generator, dtype=torch.float64) @ basis + 3
    plane = descent.plane_through(points)
    assert plane.explained == pytest.approx(1)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(plane.centre + plane.project(points) @ plane.axes, points)


def test_surface_is_the_cost_on_the_plane(subject: Subject) -> None:
    start = subject.config.network(torch.device("cpu"))
    plane = descent.plane_through(torch.stack([start.parameters, subject.network.parameters, start.parameters * 0.5]))
    points = plane.project(torch.stack([start.parameters, subject.network.parameters]))
    u, v, costs = descent.surface_on(plane, start, subject.test, "quadratic", points, 3)
    at = start.to()
    at.parameters.copy_(plane.centre + u[2] * plane.axes[0] + v[0] * plane.axes[1])
    assert costs[0, 2].item() == pytest.approx(evaluate(at, subject.test, "quadratic").cost, rel=1e-4)
    expected = evaluate(subject.network, subject.test, "quadratic").cost
    assert descent.cost_at(at, subject.network.parameters, subject.test, "quadratic") == pytest.approx(expected)


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


def test_plane_of_steps_has_the_careful_way_along_its_first_axis_and_keeps_the_zigzag() -> None:
    down, aside = torch.eye(6)[0], torch.eye(6)[3]
    careful = torch.linspace(0, 2, 5)[:, None] * down
    zigzag = torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0])
    uneven = torch.tensor([0.0, 0.1, 0.6, 0.7, 1.0])
    drunk = uneven[:, None] * down + zigzag[:, None] * aside
    plane = descent.plane_of_steps(careful, drunk)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2))
    torch.testing.assert_close(plane.project(careful), torch.stack([torch.linspace(0, 2, 5), torch.zeros(5)], 1))
    torch.testing.assert_close(plane.project(drunk)[:, 0], uneven)
    torch.testing.assert_close(plane.project(drunk)[:, 1].abs(), zigzag.abs())
    assert plane.explained == pytest.approx(1)


def test_every_step_from_close_is_a_step_of_training(subject: Subject) -> None:
    config = dataclasses.replace(subject.config, learning_rate_decay=0.0, epochs=1)
    points, _ = descent.every_step(config, subject.network.to(), subject.training, 3)
    network = subject.network.to()
    for expected, step in zip(points[1:], train_steps(config, network, subject.training, ""), strict=False):
        assert torch.equal(expected, network.parameters) and step <= 3
    assert torch.equal(points[0], subject.network.parameters) and len(points) == 4
