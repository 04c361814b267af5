"""Digits as people bring them: drawn with pens of several widths, and those of MNIST enlarged and photographed."""

import io
from math import cos, pi, sin
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Points = list[tuple[float, float]]
Array = np.ndarray[Any, Any]


def arc(x: float, y: float, across: float, down: float, start: float, end: float) -> Points:
    """Points of an ellipse around (x, y), from one angle to another in degrees: 0 is right, 90 is down."""
    angles = np.linspace(start, end, 24) * pi / 180
    return [(x + across * cos(angle), y + down * sin(angle)) for angle in angles]


STROKES: list[list[Points]] = [  # of each digit, in a box from (0, 0), top left, to (1, 1)
    [arc(0.5, 0.5, 0.36, 0.5, -80, 290)],
    [[(0.56, 0.0), (0.5, 0.5), (0.46, 1.0)]],
    [[*arc(0.48, 0.27, 0.33, 0.27, 190, 385), (0.5, 0.62), (0.14, 0.97), (0.86, 0.95)]],
    [[*arc(0.45, 0.25, 0.3, 0.25, 200, 440), *arc(0.45, 0.73, 0.34, 0.27, 280, 520)]],
    [[(0.25, 0.05), (0.14, 0.55), (0.86, 0.52)], [(0.7, 0.08), (0.64, 1.0)]],
    [[(0.8, 0.02), (0.3, 0.04), (0.24, 0.42), *arc(0.45, 0.68, 0.33, 0.3, 230, 510)]],
    [[(0.66, 0.0), (0.34, 0.3), *arc(0.47, 0.72, 0.29, 0.27, 200, 560)]],
    [[(0.12, 0.08), (0.85, 0.05), (0.55, 0.5), (0.4, 1.0)]],
    [[*arc(0.5, 0.25, 0.26, 0.25, 60, -240), *arc(0.5, 0.74, 0.31, 0.26, -60, 240), (0.63, 0.47)]],
    [[*arc(0.47, 0.28, 0.29, 0.27, 0, -360), (0.74, 0.45), (0.62, 1.0)]],
]


def drawn(digit: int, rng: np.random.Generator, size: int, pen: float, canvas: int = 400) -> Array:
    """The ink of a digit, (canvas, canvas) from 0 to 1, ``size`` pixels high, in strokes of ``pen`` pixels.

    It is a little turned, leaning, wide or narrow, shaky, and off the middle.
    """
    image = Image.new("L", (2 * canvas, 2 * canvas))  # drawn at twice the size, then smoothed
    draw, angle, lean = ImageDraw.Draw(image), rng.uniform(-0.12, 0.12), rng.uniform(-0.1, 0.2)
    wide, (right, down) = rng.uniform(0.6, 0.85), rng.uniform(-1, 1, 2) * 0.35 * (canvas - size)
    for stroke in STROKES[digit]:
        points = np.array(stroke) + np.cumsum(rng.normal(0, 0.004, (len(stroke), 2)), 0) - 0.5
        x, y = wide * points[:, 0] - lean * points[:, 1], points[:, 1]
        x, y = x * cos(angle) - y * sin(angle), x * sin(angle) + y * cos(angle)
        places = 2 * (np.stack([x * size + right, y * size + down], 1) + canvas / 2)
        draw.line([*map(tuple, places)], 255, round(2 * pen), "curve")
        for a, b in places:
            draw.ellipse((a - pen, b - pen, a + pen, b + pen), 255)
    return np.asarray(image.resize((canvas, canvas), Image.Resampling.BOX), np.float64) / 255


def coloured(ink: Array, paper: tuple[int, int, int], pen: tuple[int, int, int]) -> Array:
    """The ink (H, W) on paper, (H, W, 3) from 0 to 255."""
    colours: Array = np.array(paper) + ink[..., None] * (np.array(pen) - np.array(paper))
    return colours


def lit(picture: Array, rng: np.random.Generator, falling: float = 0.5, shadow: float = 0.0) -> Array:
    """The picture in uneven light, which falls to one side by a part, with a part of it missing in a shadow."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * pi)
    across = (x * cos(angle) + y * sin(angle)) / 1.5
    light = 1 - falling * (across + 1) / 2
    soft = 1 / (1 + np.exp(-(x * cos(angle + 1) + y * sin(angle + 1) - 0.1) * 40))
    seen: Array = picture * (light * (1 - shadow * soft))[..., None]
    return seen


def photographed(picture: Array, rng: np.random.Generator, noise: float = 8.0, quality: int = 60) -> Image.Image:
    """The picture (H, W, 3) with noise, as a JPEG that was written and read."""
    values = (picture + rng.normal(0, noise, picture.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(values).save(file := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(file)


def enlarged(x: Array, size: int = 400) -> Array:
    """A digit of MNIST (784,), from 0 to 1, as ink of ``size`` × ``size`` pixels."""
    image = Image.fromarray((x.reshape(28, 28) * 255).round().astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float64) / 255


def turned(ink: Array, degrees: float, right: int, down: int, canvas: int) -> Array:
    """The ink turned, on a larger canvas, off its middle."""
    image = Image.fromarray((ink * 255).round().astype(np.uint8)).rotate(degrees, Image.Resampling.BICUBIC)
    whole = Image.new("L", (canvas, canvas))
    whole.paste(image, ((canvas - image.width) // 2 + right, (canvas - image.height) // 2 + down))
    return np.asarray(whole, np.float64) / 255
