"""The repeated run ends at the run's own network, and the curvature is that of the Hessian as autograd has it."""

import pytest
import torch
from torch import Tensor

from bp_torch.data import PIXEL_SCALE, Examples, one_hot
from bp_torch.explain import minimum
from bp_torch.explain.idea import file_content
from bp_torch.explain.options import MinimumOptions
from bp_torch.explain.subject import Subject
from bp_torch.network import Network, layer_views


def test_repeated_run_ends_at_the_same_network(subject: Subject) -> None:
    result = minimum.Minimum(subject, MinimumOptions(directions=1))
    assert result.difference == 0
    assert len(result.costs) == 16  # the start, and 15 epochs
    assert result.norms[-1] == pytest.approx(result.gradient_norm, rel=1e-3)
    assert result.lines[0].slope == pytest.approx(-result.gradient_norm, rel=1e-9) and result.lines[0].decrease > 0


@pytest.mark.parametrize("curvatures", [(0.18, 3e-4, 0.002), (0.18, -3e-4, 0.002), (-2.0, -3e-9, 0.0), (0.0, 0.0, 0.0)])
def test_scale_of_the_curvatures_has_ticks_around_them(subject: Subject, curvatures: tuple[float, ...]) -> None:
    result = minimum.Minimum(subject, MinimumOptions(directions=2, epochs=0))
    result.lines = [line._replace(curvature=value) for line, value in zip(result.lines, curvatures, strict=True)]
    figure = result.figure()
    assert file_content(figure)
    (axes,) = (axes for axes in figure.axes if axes.get_xlabel().startswith("curvature"))
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert all(low <= value <= high for value in curvatures)
    assert len(shown) >= 3 and min(shown) <= max(min(curvatures), 1e-3) and max(shown) >= max(curvatures) / 10


def test_curvature_matches_the_hessian_of_autograd() -> None:
    network = Network((784, 3, 10), seed=1, dtype=torch.float64)
    x = torch.randint(256, (20, 784), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    examples = Examples(x, torch.arange(20) % 10)
    direction = torch.randn(len(network.parameters), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction /= direction.norm()

    def cost_of(theta: Tensor) -> Tensor:
        a = examples.x.double() * PIXEL_SCALE
        for w, b in zip(*layer_views(theta, network.sizes), strict=True):
            a = torch.sigmoid(a @ w.T + b)
        return (a - one_hot(examples.labels, dtype=torch.float64)).square().sum(1).mean()

    _, product = torch.autograd.functional.hvp(cost_of, network.parameters, direction)
    curvature = minimum.curvature(network, examples, "quadratic", direction)
    assert curvature == pytest.approx((direction @ product).item(), rel=1e-5)
