"""A plane holds what is flat, and keeps a zigzag; the surface is the cost on it."""

import pytest
import torch

from bp_torch.explain import surface
from bp_torch.explain.subject import Subject
from bp_torch.training import evaluate


def test_plane_through_flat_points_holds_them_all() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.float64))[0].T
    points = torch.randn(30, 2, generator=generator, dtype=torch.float64) @ basis + 3
    plane = surface.plane_through(points)
    assert plane.explained == pytest.approx(1)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(plane.centre + plane.project(points) @ plane.axes, points)


def test_surface_is_the_cost_on_the_plane(subject: Subject) -> None:
    start = subject.config.network(torch.device("cpu"))
    plane = surface.plane_through(torch.stack([start.parameters, subject.network.parameters, start.parameters * 0.5]))
    points = torch.stack([start.parameters, subject.network.parameters])
    u, v, costs = surface.surface_on(plane, start, subject.test, "quadratic", points, 3)
    at = start.to()
    at.parameters.copy_(plane.centre + u[2] * plane.axes[0] + v[0] * plane.axes[1])
    assert costs[0, 2].item() == pytest.approx(evaluate(at, subject.test, "quadratic").cost, rel=1e-4)
    expected = evaluate(subject.network, subject.test, "quadratic").cost
    assert surface.cost_at(at, subject.network.parameters, subject.test, "quadratic") == pytest.approx(expected)


def test_plane_of_steps_has_the_careful_way_along_its_first_axis_and_keeps_the_zigzag() -> None:
    down, aside = torch.eye(6)[0], torch.eye(6)[3]
    careful = torch.linspace(0, 2, 5)[:, None] * down
    zigzag = torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0])
    uneven = torch.tensor([0.0, 0.1, 0.6, 0.7, 1.0])
    drunk = uneven[:, None] * down + zigzag[:, None] * aside
    plane = surface.plane_of_steps(careful, drunk)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2))
    torch.testing.assert_close(plane.project(careful), torch.stack([torch.linspace(0, 2, 5), torch.zeros(5)], 1))
    torch.testing.assert_close(plane.project(drunk)[:, 0], uneven)
    torch.testing.assert_close(plane.project(drunk)[:, 1].abs(), zigzag.abs())
    assert plane.explained == pytest.approx(1)
