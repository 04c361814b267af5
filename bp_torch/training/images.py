"""Pictures for TensorBoard, each (height, width, 3) of bytes: weights as maps, the confusion matrix, images.

A card of TensorBoard shows them 350 pixels wide, and scales by repeating or leaving out pixels: text is sharp only in a
picture that is no larger. Blue is positive and orange is negative, as in explain; what has no sign has other colours.
"""

import io
from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bp_torch.values import CLASSES, SIDE

if TYPE_CHECKING:  # matplotlib takes a while to load, and training imports this module
    from matplotlib.figure import Figure

Picture = npt.NDArray[np.uint8]

WIDTH = 350  # of a card, in pixels
FONT = 12
NARROW = 11  # letters of a caption that fit below one of six images beside each other
INK, PAPER = (27, 36, 48), (255, 255, 255)
POSITIVE, NEGATIVE = np.array([11, 98, 168]), np.array([212, 87, 11])
RIGHT, WRONG = np.array([42, 140, 125]), np.array([168, 72, 107])


def diverging(values: Tensor) -> Picture:
    """Maps (n, h, w) in orange below zero, white at zero, blue above, (n, h, w, 3); each on its own scale."""
    most = values.abs().amax((-2, -1), keepdim=True).clamp_min(1e-30)
    fraction = (values / most).nan_to_num().numpy()[..., None]
    colours = np.where(fraction < 0, NEGATIVE, POSITIVE)
    picture: Picture = (255 + np.abs(fraction) * (colours - 255)).astype(np.uint8)
    return picture


def weight_maps(weights: Tensor, shape: Sequence[int] = (SIDE, SIDE), gap: int = 2) -> Picture:
    """Weights (n, pixels) as n maps in a grid, each on its own scale around zero; those of colours are added up."""
    height, width = shape[:2]
    columns = ceil(sqrt(len(weights)))
    scale = max(1, (WIDTH // columns - gap) // max(height, width))
    maps = diverging(weights.float().cpu().view(-1, height, width, *[*shape, 1][2:3]).sum(-1))
    maps = maps.repeat(scale, 1).repeat(scale, 2)
    rows = ceil(len(maps) / columns)
    down, right = height * scale + gap, width * scale + gap
    sheet = np.full((rows * down + gap, columns * right + gap, 3), 200, np.uint8)
    for n, picture in enumerate(maps):
        top, left = gap + n // columns * down, gap + n % columns * right
        sheet[top : top + down - gap, left : left + right - gap] = picture
    return sheet


def confusion_matrix(labels: Tensor, said: Tensor, classes: int) -> Tensor:
    """How often class i (row) was classified as j (column), (classes, classes)."""
    return torch.bincount(labels * classes + said, minlength=classes**2).view(classes, classes).cpu()


def confusion_picture(matrix: Tensor, names: Sequence[str] = (), cell: int = 0, margin: int = 38) -> Picture:
    """The confusion matrix with its counts, shaded by the fraction of the row: green the right ones, red the wrong.

    A ``cell`` is as large as the width allows. Small ones have no counts, and only some of the classes are named.
    """
    n = len(matrix)
    cell = cell or max(3, min(80, (WIDTH - margin - 2) // n))
    every, what = ceil(FONT / cell), "class" if names or n != CLASSES else "digit"
    image = Image.new("RGB", (margin + n * cell + 2, margin + n * cell + 2), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT)
    fractions = (matrix / matrix.sum(1, keepdim=True).clamp_min(1)).tolist()
    draw.text((margin + n * cell / 2, 9), "what the network said", INK, font, anchor="mm")
    sideways = Image.new("RGB", (n * cell, 17), PAPER)
    ImageDraw.Draw(sideways).text((n * cell / 2, 8), f"what the {what} is", INK, font, anchor="mm")
    image.paste(sideways.rotate(90, expand=True), (1, margin))
    for i, row in enumerate(matrix.tolist()):
        middle = margin + i * cell + cell / 2
        name = names[i][:2] if names else str(i)
        if i % every == 0:
            draw.text((middle, margin - 11), name, INK, font, anchor="mm")
            draw.text((margin - 11, middle), name, INK, font, anchor="mm")
        for j, count in enumerate(row):
            strength = fractions[i][j] if i == j else min(1.0, sqrt(fractions[i][j]) * 2)  # a few mistakes are visible
            fill = tuple((255 + strength * ((RIGHT if i == j else WRONG) - 255)).astype(int).tolist())
            left, top = margin + j * cell, margin + i * cell
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill)
            if count and cell > 2 * FONT:
                ink = PAPER if strength > 0.5 else INK
                draw.text((left + cell / 2 - 1, top + cell / 2 - 1), str(count), ink, font, anchor="mm")
    return np.asarray(image)


def most_wrong(labels: Tensor, outputs: Tensor, most: int = 24) -> Tensor:
    """Indices of the misclassified examples whose own output is furthest below the largest one, worst first."""
    own = outputs.gather(1, labels[:, None])[:, 0]
    worst = (outputs.amax(1) - own).nan_to_num().topk(min(most, len(labels)))
    return worst.indices[worst.values > 0]


def as_bytes(images: Tensor) -> Tensor:
    """Pixels as bytes: those that are floats are from 0 to 1."""
    return images if images.dtype == torch.uint8 else (255 * images).round().byte()


def captioned(images: Tensor, captions: Sequence[str], shape: Sequence[int] = (SIDE, SIDE)) -> Picture:
    """Images (n, pixels), grey ones dark on white, in a grid, each with its caption below."""
    columns = 6 if max(map(len, captions), default=0) <= NARROW else 2
    width, cell = WIDTH // columns, WIDTH // 6
    scale = cell // max(shape[:2]) or cell / max(shape[:2])
    size = round(shape[1] * scale), round(shape[0] * scale)
    height = size[1] + FONT + 6
    sheet = Image.new("RGB", (columns * width, max(1, ceil(len(captions) / columns)) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    shown = as_bytes(images).view(-1, *shape).cpu().numpy()
    for n, (pixels, caption) in enumerate(zip(shown, captions, strict=True)):
        left, top = n % columns * width, n // columns * height
        image = Image.fromarray(pixels if pixels.ndim == 3 else 255 - pixels)
        sheet.paste(image.resize(size, Image.Resampling.NEAREST), (left + (width - size[0]) // 2, top))
        draw.text((left + width / 2, top + height - FONT / 2 - 5), caption, INK, font, anchor="mm")
    return np.asarray(sheet)


def figure_picture(figure: "Figure", inches: float = 4) -> Picture:
    """A figure of matplotlib; one that is as wide as this has the width of a card, and can be read in it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=WIDTH / inches)
    return np.asarray(Image.open(content).convert("RGB"))
