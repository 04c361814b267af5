"""Draws docs/requests.webp and its dark twin: what one image asks of an untrained network, adding up layer by layer.

    python -m tests.moving_picture

The requests are those of ``explain backwards``: a neuron asks in proportion to its own wish and to its weights, the
requests of a layer are added, and their sum is what the layer before wants.
"""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from bp_torch.backprop import Forward, backward, forward
from bp_torch.explain import style
from bp_torch.explain.backwards import Step, steps_back
from bp_torch.explain.drawing import IMAGE, draw_network, outline, pixel_map
from bp_torch.explain.options import ExampleOptions
from bp_torch.explain.subject import open_subject, with_example
from bp_torch.training import Config

DOCS = Path(__file__).parent.parent / "docs"
SIZE, DPI = (8.3, 4.5), 180  # inches: 100 to the 830 pixels that a README is wide, and twice the pixels, nearly


class Frame(NamedTuple):
    """One picture, its length in milliseconds, and what it shows."""

    title: str
    milliseconds: int
    wishes: dict[int, Tensor]  # of the layers that have some, so far
    layer: int = 0  # whose edges stand out
    rows: Tensor | None = None  # by these values
    neuron: int | None = None  # only those into this neuron
    pixels: Tensor | None = None  # what the pixels are asked


def frames(steps: list[Step], label: int) -> list[Frame]:
    """The wishes of the outputs; neuron by neuron the requests to each layer before, added up; those to the pixels."""
    known = {steps[0].layer: steps[0].wishes}
    found = [Frame(f"An image of a {label} wants output {label} up, and the others down", 2500, dict(known))]
    for step in steps[:-1]:
        before, whose = step.layer - 1, "Output" if step is steps[0] else f"Layer {step.layer}, neuron"
        sums = step.rows.cumsum(0)
        scale = sums.abs().max()
        for j in range(len(sums)):
            so_far = torch.cat([sums[j], scale[None]])  # one entry more than neurons: all frames have its scale
            title = f"{whose} {j} asks layer {before}, in proportion to its weights"
            long = 1400 if j == 0 else 700 if step is steps[0] else 260
            found.append(Frame(title, long, known | {before: so_far}, step.layer, step.rows, j))
        known[before] = torch.cat([sums[-1], scale[None]])
        title = f"All requests together: what layer {before} should change"
        found.append(Frame(title, 2500, dict(known), step.layer, step.rows))
    found.append(
        Frame("The same once more: what layer 1 asks of the pixels", 3500, dict(known), 1, None, None, steps[-1].total)
    )
    return found


@style.styled
def drawn(frame: Frame, passed: Forward) -> Image.Image:
    """The picture of a frame."""
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    figure.text(0.02, 0.955, frame.title, size=14, weight="bold", va="center")
    figure.text(0.02, 0.035, "Blue: up, or positive. Orange: down, or negative.", size=9, color=style.SOFT)
    part = figure.subfigures(3, 1, squeeze=False, height_ratios=(10, 83, 7))[1, 0]
    part.subplots_adjust(0.0, 0.0, 1.03, 1.0)
    draw_network(part, passed=passed, layer=frame.layer, values=frame.rows, neuron=frame.neuron, wishes=frame.wishes)
    if frame.pixels is not None:
        axes = part.axes[0].inset_axes(IMAGE)
        axes.set_anchor("E")
        pixel_map(axes, frame.pixels)
        outline(axes, passed.activations[0])
    written = BytesIO()
    figure.savefig(written, format="png")
    return Image.open(written).convert("RGB")


def dark(picture: Image.Image) -> Image.Image:
    """The picture with the lightness of each pixel turned around (in HSL), and its hue kept."""
    pixels = np.asarray(picture).astype(np.int16)
    turned = pixels + 255 - pixels.max(2, keepdims=True) - pixels.min(2, keepdims=True)
    background = np.array([13, 17, 23])  # of a dark README
    return Image.fromarray((background + turned * (255 - background) / 255).astype(np.uint8))


def save(pictures: list[Image.Image], milliseconds: list[int], path: Path) -> None:
    """Save an animation that never ends."""
    first, *others = pictures
    options = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0}
    first.save(path, "WEBP", quality=82, method=6, minimize_size=True, **options)
    print(f"wrote {path.name}: {len(pictures)} frames, {path.stat().st_size / 1e3:,.0f} kB")


def main() -> None:
    """Draw the frames of a 2, and write both files."""
    options = ExampleOptions(untrained=True, digit=2)
    subject = with_example(open_subject(options), options)
    network = subject.before_and_after["untrained"]
    passed = forward(network, subject.example.x)
    back = backward(network, passed, subject.example.y, Config().cost)
    shown = frames(steps_back(network, back.deltas), subject.example.label)
    pictures, times = [drawn(frame, passed) for frame in shown], [frame.milliseconds for frame in shown]
    save(pictures, times, DOCS / "requests.webp")
    save([dark(picture) for picture in pictures], times, DOCS / "requests-dark.webp")


if __name__ == "__main__":
    main()
