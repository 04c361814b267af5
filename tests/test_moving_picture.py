"""The moving picture of the README is of the requests as they are, and small enough to be loaded."""

import torch
from PIL import Image

from bp_torch.backprop import backward, forward
from bp_torch.convert import to_sequential
from bp_torch.explain.backwards import steps_back
from bp_torch.network import Network
from tests.conftest import REFERENCE_COSTS
from tests.moving_picture import DOCS, dark, frames


def test_requests_add_up_to_minus_the_gradient_of_the_activations() -> None:
    network = Network((784, 16, 16, 10), dtype=torch.float64)
    x, y = torch.rand(1, 784, dtype=torch.float64), torch.eye(10, dtype=torch.float64)[2:3]
    shown = frames(steps_back(network, backward(network, forward(network, x), y).deltas), 2)
    model = to_sequential(network)
    middle = model[:4](x).detach().requires_grad_()  # a²
    output = model[4:](middle)
    (wanted,) = torch.autograd.grad(REFERENCE_COSTS["quadratic"](output, output, y).sum(), middle)
    sums = next(frame for frame in shown if frame.title.startswith("All requests")).wishes[2]
    torch.testing.assert_close(sums[:16], -wanted[0])
    assert sums[16] >= sums[:16].abs().max(), "the scale of all frames"
    for name in ("requests", "requests-dark"):
        path = DOCS / f"{name}.webp"
        with Image.open(path) as picture:
            assert getattr(picture, "n_frames", 1) == len(shown) == 30
        assert path.stat().st_size < 1e6


def test_dark_twin_turns_lightness_around_and_keeps_the_hue() -> None:
    pixels = dark(Image.new("RGB", (2, 1), (11, 98, 168))), dark(Image.new("RGB", (1, 1), (255, 255, 255)))
    assert pixels[1].getpixel((0, 0)) == (13, 17, 23)
    red, green, blue = pixels[0].getpixel((0, 0))  # type: ignore[misc]
    assert red < green < blue
