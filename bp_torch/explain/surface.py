"""The cost as a surface: planes through points of θ, the cost on them, and its contours.

``descent`` draws its paths over two of these. Nothing here takes a step.
"""

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from tqdm.auto import tqdm

from bp_torch.data import Examples
from bp_torch.explain import style
from bp_torch.explain.drawing import array, colourbar
from bp_torch.network import Network
from bp_torch.training import evaluate

Surface = tuple[Tensor, Tensor, Tensor]  # u (G,) and v (G,) of a grid on a plane, and C there, (G, G), a row for each v


class Plane(NamedTuple):
    """A plane in θ."""

    centre: Tensor  # a point on it, (P,)
    axes: Tensor  # two orthonormal directions, (2, P)
    explained: float  # the variance, 0..1

    def project(self, points: Tensor) -> Tensor:
        """Coordinates (S, 2) of points (S, P)."""
        return (points - self.centre) @ self.axes.T


def plane_through(points: Tensor) -> Plane:
    """The plane that fits the points (S, P) best: through their mean, along their first two principal directions."""
    centre = points.mean(0)
    _, sizes, directions = torch.linalg.svd(points - centre, full_matrices=False)
    axes = directions[:2]
    towards = ((points[-1] - points[0]) @ axes.T).sign()  # an SVD leaves the signs open
    axes = axes * torch.where(towards == 0, 1.0, towards)[:, None]
    return Plane(centre, axes, ((sizes[:2] ** 2).sum() / (sizes**2).sum()).item())


def plane_of_steps(careful: Tensor, drunk: Tensor) -> Plane:
    """The plane whose first axis the careful man (S, P) follows; along the second the drunk man's steps differ most.

    A plane fitted to the points of a random walk would show it as a smooth curve; one fitted to its steps does not.
    """
    way, steps = careful[-1] - careful[0], drunk.diff(dim=0)
    down = way / way.norm().clamp_min(1e-30)
    aside = steps - (steps @ down)[:, None] * down
    _, sizes, directions = torch.linalg.svd(aside - aside.mean(0), full_matrices=False)
    explained = (sizes[0] ** 2 / (sizes**2).sum().clamp_min(1e-30)).item()
    return Plane(careful[0], torch.stack([down, directions[0]]), explained)


def cost_at(network: Network, theta: Tensor, examples: Examples, cost: str) -> float:
    """C at ``theta`` (P,), which becomes the θ of ``network``."""
    network.parameters.copy_(theta)
    return evaluate(network, examples, cost).cost


def surface_on(plane: Plane, network: Network, examples: Examples, cost: str, points: Tensor, grid: int) -> Surface:
    """The cost on a square of the ``plane`` that covers the ``points`` (S, P), with ``grid`` points along each side."""
    points = plane.project(points).cpu()
    low, high = points.min(0).values, points.max(0).values
    margin = 0.15 * (high - low).clamp_min(1e-6)
    ends = [(float(low[i] - margin[i]), float(high[i] + margin[i])) for i in range(2)]
    u, v = (torch.linspace(*end, grid, dtype=points.dtype) for end in ends)
    (p, q), network, rows = plane.axes, network.to(), tqdm(v.tolist(), "surface", leave=False, disable=None)
    costs = [[cost_at(network, plane.centre + i * p + j * q, examples, cost) for i in u.tolist()] for j in rows]
    return u, v, torch.tensor(costs)


def contours(axes: Axes, surface: Surface, digits: int) -> None:
    """Lines of equal cost, and the scale with so many significant digits."""
    u, v, costs = map(array, surface)
    levels = np.geomspace(max(costs.min(), 1e-6), max(costs.max(), costs.min() * 1.001, 2e-6), 14)
    drawn = axes.contourf(u, v, costs, levels=levels, cmap=style.SURFACE, extend="both")
    axes.contour(u, v, costs, levels=levels, colors=style.SOFT, linewidths=0.5)
    colourbar(drawn, axes, "cost").ax.yaxis.set_major_formatter(f"{{x:.{digits}g}}")
