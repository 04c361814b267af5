"""Training images turned, stretched and bent a little, each epoch anew: data made from the data one has.

    affine    rotation, shear, scale and shift of the whole image
    elastic   each pixel moved by a smooth random field: uniform noise in −1..1 for each pixel, smoothed by a Gaussian
              of standard deviation σ, times α (Simard, Steinkraus and Platt 2003; Cireşan et al. 2010, sec. 2)

What happens to an image follows from (seed, epoch) and its place among the training images: it is the same in every
process, on every device and in a resumed run, whatever the run's precision. Another device may round a few pixels the
other way. Images stay bytes, so that a training step does not know of all this.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import pi, radians, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bp_torch.data import Examples
from bp_torch.device import full_precision
from bp_torch.values import SIDE as SIDE
from bp_torch.values import Deformation as Deformation

CENTRE = (SIDE - 1) / 2

CHUNK = 1_000
"""Images that are deformed at a time: 3 MB of float32, and twice as much for where their pixels come from."""

KEPT = 0.9999
"""Of the variance of the smooth fields; the rest takes most of the numbers that would have to be drawn."""

ONE_AND_SEVEN = (1, 7)
"""Digits that are turned and sheared half as far: a turned 1 is a 7 to some (Cireşan et al. 2010)."""


class Drawn(NamedTuple):
    """Everything random in the deformations of N images."""

    uniform: Tensor  # (6, N), from −1 to 1: angle, lean, width, height, and the shifts
    waves: Tensor  # the coefficients of the fields, (N, 2, rank, rank), standard normal


class Part(NamedTuple):
    """Images that are deformed with one seed."""

    examples: Examples  # as they came
    seed: int
    out: Tensor  # (N, 784) bytes, where the deformed images are written


class EachEpoch:
    """Deforms images anew in each epoch. While the steps of one run, a thread draws what is random in the next."""

    def __init__(self, how: Deformation, parts: Sequence[Part], epochs: int) -> None:
        """For so many ``epochs``."""
        self.how, self.parts, self.epochs = how, parts, epochs
        self._thread, self._ahead = ThreadPoolExecutor(1), dict[int, list[Future[Drawn]]]()

    def begin(self, epoch: int) -> None:
        """Deform all images as in ``epoch``, and begin to draw for the next."""
        drawn = self._ahead.get(epoch) or self._draw(epoch)
        for part, found in zip(self.parts, drawn, strict=True):
            deformed(part.examples, self.how, part.seed, epoch, part.out, found.result())
        self._ahead = {epoch + 1: self._draw(epoch + 1)} if epoch < self.epochs else {}

    def _draw(self, epoch: int) -> list[Future[Drawn]]:
        return [self._thread.submit(draw, len(p.out), self.how, p.seed, epoch) for p in self.parts]


@full_precision()
def deformed(
    examples: Examples,
    how: Deformation,
    seed: int,
    epoch: int,
    out: Tensor | None = None,
    drawn: Drawn | None = None,
) -> Examples:
    """The same examples with their images deformed, as in ``epoch`` (from 1) of the run with this ``seed``.

    They are written into ``out``, (N, 784) bytes, if that is given. ``drawn``: by ``draw``, None: now.
    """
    device, drawn = examples.x.device, drawn or draw(len(examples.labels), how, seed, epoch)
    labels = torch.full_like(examples.labels, -1) if examples.kind.names else examples.labels  # names: no digits
    moved = (*motions(labels, how, drawn.uniform), drawn.waves, basis_of(how))
    matrices, shifts, waves, basis = (tensor.to(device) for tensor in moved)
    x, basis = torch.empty_like(examples.x) if out is None else out, basis * sqrt(how.alpha)
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        sources = affine_sources(matrices[part], shifts[part])
        if how.alpha:
            sources += basis @ waves[part] @ basis.mT
        x[part] = sampled(examples.x[part], sources)
    return examples.having(x, examples.labels)


def draw(n: int, how: Deformation, seed: int, epoch: int) -> Drawn:
    """Everything random for ``n`` images in ``epoch``. NumPy draws it, on the CPU, and lets other threads run."""
    chance = np.random.default_rng((seed, epoch, 1))  # the shuffles of the epochs are those of (seed, epoch)
    uniform, rank = chance.uniform(-1, 1, (6, n)).astype(np.float32), basis_of(how).shape[1]
    waves = chance.standard_normal((n, 2, rank, rank), np.float32)
    return Drawn(torch.from_numpy(uniform), torch.from_numpy(waves))


def motions(labels: Tensor, how: Deformation, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (N, 2, 2) and shifts (N, 2) from random numbers ``uniform`` (6, N).

    A matrix takes where a pixel is, seen from the centre as (right, down), to where it comes from.
    """
    half = torch.isin(labels.cpu(), torch.tensor(ONE_AND_SEVEN))
    angle, lean = (uniform[k] * radians(most) * (1 - 0.5 * half) for k, most in enumerate((how.rotation, how.shear)))
    width, height = 1 + how.scale * uniform[2:4]
    return affine_matrices(angle, lean, width, height), how.shift * uniform[4:6].T


def affine_matrices(angle: Tensor, lean: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Where pixels come from, (N, 2, 2), for images that are scaled, then sheared, then turned clockwise; radians."""
    cos, sin, tan = angle.cos(), angle.sin(), lean.tan()
    turned_back = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
    one, zero = torch.ones_like(tan), torch.zeros_like(tan)
    upright = torch.stack([torch.stack([one, tan], -1), torch.stack([zero, one], -1)], -2)
    size = torch.stack([1 / width, 1 / height], -1)
    return size[:, :, None] * (upright @ turned_back)


def affine_sources(matrices: Tensor, shifts: Tensor) -> Tensor:
    """The place that each pixel comes from, (N, 2, 28, 28): how far right and how far down, in pixels."""
    line = torch.arange(SIDE, device=matrices.device, dtype=matrices.dtype) - CENTRE
    right, down = line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE)
    places = torch.stack([right, down]).view(2, -1)
    centre = CENTRE - torch.einsum("nij,nj->ni", matrices, shifts)
    return (matrices @ places + centre[:, :, None]).view(-1, 2, SIDE, SIDE)


def basis_of(how: Deformation) -> Tensor:
    """``smooth_basis`` of the elastic field; where there is none, a basis of rank 0."""
    return smooth_basis(how.sigma) if how.alpha else torch.zeros(SIDE, 0)


def smooth_basis(sigma: float) -> Tensor:
    """B (28, r), so that B Z Bᵀ for a standard normal Z (r, r) is such a smooth field, with α = 1.

    Smoothed uniform noise, of variance 1/3, has the covariance c(i − k) c(j − l) / 3 at two pixels (i, j) and (k, l),
    with c(d) = exp(−d²/4σ²) / (2 σ √π). As a sum of many small terms it is close to normal. Drawn by the eigenvectors
    of c it takes r² numbers, 36 for σ = 6, in place of more than 784.
    """
    line = torch.arange(SIDE, dtype=torch.float64)
    c = torch.exp(-((line - line[:, None]) ** 2) / (4 * sigma**2)) / (2 * sigma * sqrt(pi))
    values, vectors = torch.linalg.eigh(c)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = int((values.cumsum(0) < KEPT * values.sum()).sum()) + 1
    basis: Tensor = vectors[:, :rank] * (values[:rank].sqrt() / 3**0.25)
    return basis.float()


def sampled(images: Tensor, sources: Tensor) -> Tensor:
    """The bytes (N, 784) that ``images`` (N, 784) have at ``sources`` (N, 2, 28, 28), bilinearly; 0 outside."""
    grid = (sources * (1 / CENTRE) - 1).permute(0, 2, 3, 1)
    pixels = images.view(-1, 1, SIDE, SIDE).float()
    found = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return found.round_().to(torch.uint8).view(images.shape)
