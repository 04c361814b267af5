"""Deformed images: nothing where nothing is asked for, torchvision's rotation, the fields that smoothed noise makes."""

from dataclasses import asdict
from math import pi, radians, sqrt
from threading import current_thread, main_thread
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from bp_torch.data import Examples
from bp_torch.deform import (
    SIDE,
    Deformation,
    Drawn,
    EachEpoch,
    Part,
    affine_matrices,
    affine_sources,
    deformed,
    draw,
    motions,
    sampled,
    smooth_basis,
)

NOTHING: dict[str, float] = dict.fromkeys(asdict(Deformation()), 0.0)


def only(**values: float) -> Deformation:
    return Deformation(**NOTHING | values)


@pytest.fixture
def examples(mnist: tuple[Examples, Examples]) -> Examples:
    return mnist[0].map(lambda tensor: tensor[:3000])


def test_nothing_is_the_identity_bit_for_bit(examples: Examples) -> None:
    same = deformed(examples, only(), seed=3, epoch=1)
    assert torch.equal(same.x, examples.x) and same.labels is examples.labels


@pytest.mark.parametrize("degrees", [-30, 7, 90])
def test_rotation_is_that_of_torchvision(degrees: float, examples: Examples) -> None:
    images, one = examples.x[:20], torch.ones(20)
    matrices = affine_matrices(one * radians(degrees), 0 * one, one, one)
    ours = sampled(images, affine_sources(matrices, torch.zeros(20, 2)))
    theirs = rotate(images.view(-1, 1, SIDE, SIDE).float(), -degrees, InterpolationMode.BILINEAR).view(20, -1)
    assert (ours - theirs).abs().max() <= 0.51, "but for the rounding to bytes"


@pytest.mark.parametrize(
    ("parameters", "right", "down"),
    [
        ({"width": 1.25}, 12.5, 5.0),
        ({"height": 1.2}, 10.0, 6.0),
        ({"lean": 0.2}, 10 - 5 * torch.tensor(0.2).tan().item(), 5.0),
        ({"shift": (2.0, -3.0)}, 12.0, 2.0),
    ],
)
def test_scale_shear_and_shift_move_a_point_as_they_say(parameters: dict[str, Any], right: float, down: float) -> None:
    """The pixel 10 to the right of the centre and 5 below it is found where it is moved to."""
    shift = torch.tensor([parameters.pop("shift", (0.0, 0.0))])
    values = {"angle": 0.0, "lean": 0.0, "width": 1.0, "height": 1.0} | parameters
    matrix = affine_matrices(*(torch.tensor([value]) for value in values.values()))
    source = matrix[0] @ (torch.tensor([right, down]) - shift[0])
    torch.testing.assert_close(source, torch.tensor([10.0, 5.0]))
    corner = affine_sources(matrix, shift)[0, :, 0, 0] - 13.5
    torch.testing.assert_close(corner, matrix[0] @ (torch.tensor([-13.5, -13.5]) - shift[0]))


def test_what_comes_from_outside_the_image_is_black() -> None:
    white = torch.full((1, SIDE * SIDE), 255, dtype=torch.uint8)
    moved = sampled(white, affine_sources(torch.eye(2)[None], torch.tensor([[3.0, -2.0]]))).view(SIDE, SIDE)
    assert not moved[:, :3].any() and not moved[-2:].any(), "it moved 3 to the right and 2 up"
    assert (moved[:-2, 3:] == 255).all()


def smoothed_noise(sigma: float, fields: int) -> Tensor:
    """Uniform noise, smoothed by a sum over neighbours with the weights of a Gaussian: as the papers say it."""
    reach = int(4 * sigma)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-(line**2) / (2 * sigma**2))
    weights /= weights.sum()
    side = SIDE + 2 * reach
    noise = 2 * torch.rand(fields, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    rows = functional.conv2d(noise, weights.view(1, 1, 1, -1))
    return functional.conv2d(rows, weights.view(1, 1, -1, 1)).squeeze(1)


@pytest.mark.parametrize("sigma", [4.0, 6.0])
def test_fields_have_the_covariance_of_smoothed_noise(sigma: float) -> None:
    basis = smooth_basis(sigma).double()
    z = torch.randn(
        4000, basis.shape[1], basis.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    ours, theirs = basis @ z @ basis.T, smoothed_noise(sigma, 1000)
    for places in [(14, 14, 14, 14), (0, 0, 0, 0), (14, 14, 14, 19), (14, 14, 20, 10), (2, 3, 25, 20)]:
        i, j, k, l = places
        one, other = ((field[:, i, j] * field[:, k, l]).mean() for field in (ours, theirs))
        theory = torch.exp(torch.tensor(-((i - k) ** 2 + (j - l) ** 2) / (4 * sigma**2))) / (12 * pi * sigma**2)
        noise = 1 / (12 * pi * sigma**2)
        assert abs(one - theory) < 0.08 * noise and abs(other - theory) < 0.15 * noise


def test_standard_deviation_of_the_field_is_the_papers(examples: Examples) -> None:
    how = only(sigma=6.0, alpha=35.0)
    waves = draw(len(examples.labels), how, seed=0, epoch=1).waves
    fields = how.alpha * smooth_basis(6) @ waves @ smooth_basis(6).T
    assert fields.std().item() == pytest.approx(35 / (sqrt(3) * 6 * 2 * sqrt(pi)), rel=0.02)


def test_images_follow_from_seed_and_epoch_alone(examples: Examples) -> None:
    first = deformed(examples, Deformation(), seed=1, epoch=2)
    assert torch.equal(deformed(examples, Deformation(), seed=1, epoch=2).x, first.x)
    for seed, epoch in ((1, 3), (2, 2)):
        other = deformed(examples, Deformation(), seed, epoch)
        assert (other.x != first.x).any(1).float().mean() > 0.99
        assert torch.equal(other.labels, examples.labels)


class Rounded(TorchFunctionMode):
    """Products lose digits unless the precision is full, as those of a GPU do under --precision tf32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.matmul, Tensor.__matmul__, torch.einsum) and torch.get_float32_matmul_precision() == "high":
            args = tuple(arg.bfloat16().float() if isinstance(arg, Tensor) else arg for arg in args)
        return func(*args, **(kwargs or {}))


def test_images_do_not_depend_on_the_precision_of_the_run(examples: Examples) -> None:
    few = Examples(examples.x[:50], examples.labels[:50])
    expected = deformed(few, Deformation(), seed=1, epoch=2)
    try:
        torch.set_float32_matmul_precision("high")
        with Rounded():
            assert torch.equal(deformed(few, Deformation(), seed=1, epoch=2).x, expected.x)
            assert not torch.equal(deformed.__wrapped__(few, Deformation(), seed=1, epoch=2).x, expected.x)  # type: ignore[attr-defined]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_next_epoch_is_drawn_in_a_thread_and_the_images_are_the_same(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int, bool]] = []

    def noted(n: int, how: Deformation, seed: int, epoch: int) -> Drawn:
        drawn.append((epoch, seed, current_thread() is main_thread()))
        return draw(n, how, seed, epoch)

    few = Examples(examples.x[:300], examples.labels[:300])
    parts = [Part(few, seed, torch.empty_like(few.x)) for seed in (1, 7)]
    deforming = EachEpoch(Deformation(), parts, epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr("bp_torch.deform.draw", noted)
        deforming.begin(1)
        deforming._thread.submit(lambda: None).result()  # once this has run, so has all that was asked for before
    assert drawn == [(epoch, seed, False) for epoch in (1, 2) for seed in (1, 7)]
    for epoch in (2, 2, 3, 1):  # as a run that goes back to its checkpoint
        deforming.begin(epoch)
        assert list(deforming._ahead) == [epoch + 1] * (epoch < 3), "nothing is drawn beyond the last epoch"
        for part in parts:
            assert torch.equal(part.out, deformed(few, Deformation(), part.seed, epoch).x)


def test_mean_of_many_deformed_images_is_centred_where_the_originals_are(examples: Examples) -> None:
    def centre(x: Tensor) -> Tensor:
        mean = x.double().mean(0).view(SIDE, SIDE)
        line = torch.arange(SIDE, dtype=torch.float64)
        return torch.stack([mean.sum(0) @ line, mean.sum(1) @ line]) / mean.sum()

    moved = deformed(examples, Deformation(shift=3.0), seed=0, epoch=1)
    torch.testing.assert_close(centre(moved.x), centre(examples.x), rtol=0, atol=0.15)
    assert moved.x.double().mean() == pytest.approx(examples.x.double().mean().item(), rel=0.05)


def test_ones_and_sevens_are_turned_half_as_far(examples: Examples) -> None:
    how = only(rotation=15.0)
    matrices, _ = motions(examples.labels, how, draw(len(examples.labels), how, seed=0, epoch=1).uniform)
    angles = torch.atan2(matrices[:, 0, 1], matrices[:, 0, 0]).rad2deg().abs()
    half = (examples.labels == 1) | (examples.labels == 7)
    assert 7.3 < angles[half].max() <= 7.5
    assert 14.7 < angles[~half].max() <= 15.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rotation": -1}, "--rotation: wanted 0 to 180, got -1"),
        ({"scale": 1.5}, "--scale: wanted 0 to 0.9, got 1.5"),
        ({"alpha": float("nan")}, "--alpha: wanted 0 to 10,000, got nan"),
        ({"sigma": 0.1}, "--sigma: wanted 0.5 or more for an elastic field, got 0.1"),
    ],
)
def test_value_out_of_range_raises_value_error(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Deformation(**values)
