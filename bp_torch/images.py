"""Pictures for TensorBoard, each (height, width, 3) of bytes: weights as maps, the confusion matrix, digits."""

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Picture = npt.NDArray[np.uint8]

FONT = 22
INK, PAPER = (40, 40, 40), (255, 255, 255)
BLUE, RED = np.array([33, 102, 172]), np.array([178, 24, 43])


def diverging(values: Tensor) -> Picture:
    """Maps (n, h, w) in blue below zero, white at zero, red above, (n, h, w, 3); each on its own scale."""
    most = values.abs().amax((-2, -1), keepdim=True).clamp_min(1e-30)
    fraction = (values / most).nan_to_num().numpy()[..., None]
    colours = np.where(fraction < 0, BLUE, RED)
    picture: Picture = (255 + np.abs(fraction) * (colours - 255)).astype(np.uint8)
    return picture


def weight_maps(weights: Tensor, scale: int = 4, gap: int = 6) -> Picture:
    """Weights (n, 784) as n maps of 28×28 in a grid, each on its own scale around zero."""
    side = int(sqrt(weights.shape[1]))
    maps = diverging(weights.float().cpu().view(-1, side, side)).repeat(scale, 1).repeat(scale, 2)
    columns = ceil(sqrt(len(maps)))
    rows = ceil(len(maps) / columns)
    step = side * scale + gap
    sheet = np.full((rows * step + gap, columns * step + gap, 3), 200, np.uint8)
    for n, picture in enumerate(maps):
        top, left = gap + n // columns * step, gap + n % columns * step
        sheet[top : top + side * scale, left : left + side * scale] = picture
    return sheet


def confusion_matrix(labels: Tensor, said: Tensor, classes: int) -> Tensor:
    """How often digit i (row) was classified as j (column), (classes, classes)."""
    return torch.bincount(labels * classes + said, minlength=classes**2).view(classes, classes).cpu()


def confusion_picture(matrix: Tensor, cell: int = 54, margin: int = 66) -> Picture:
    """The confusion matrix with its counts, shaded by the fraction of the row: right ones blue, wrong ones red."""
    n = len(matrix)
    image = Image.new("RGB", (margin + n * cell + 8, margin + n * cell + 8), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT)
    fractions = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    draw.text((margin + n * cell / 2, 14), "what the network said", INK, font, anchor="mm")
    sideways = Image.new("RGB", (n * cell, 26), PAPER)
    ImageDraw.Draw(sideways).text((n * cell / 2, 13), "what the digit is", INK, font, anchor="mm")
    image.paste(sideways.rotate(90, expand=True), (4, margin))
    for i in range(n):
        middle = margin + i * cell + cell / 2
        draw.text((middle, margin - 18), str(i), INK, font, anchor="mm")
        draw.text((margin - 18, middle), str(i), INK, font, anchor="mm")
        for j in range(n):
            count, fraction = int(matrix[i, j]), float(fractions[i, j])
            strength = fraction if i == j else min(1.0, sqrt(fraction) * 2)  # so that a few mistakes are visible
            fill = tuple((255 + strength * ((BLUE if i == j else RED) - 255)).astype(int).tolist())
            left, top = margin + j * cell, margin + i * cell
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill)
            if count:
                draw.text(
                    (left + cell / 2 - 1, top + cell / 2), str(count), PAPER if strength > 0.5 else INK, font, "mm"
                )
    return np.asarray(image)


def most_wrong(labels: Tensor, outputs: Tensor, most: int = 24) -> Tensor:
    """Indices of the misclassified examples whose own output is furthest below the largest one, worst first."""
    own = outputs.gather(1, labels[:, None])[:, 0]
    worst = (outputs.amax(1) - own).nan_to_num().topk(min(most, len(labels)))
    return worst.indices[worst.values > 0]


def captioned(images: Tensor, captions: Sequence[str], scale: int = 3, columns: int = 6) -> Picture:
    """Digits (n, 784), dark on white, in a grid, each with its caption below."""
    side = int(sqrt(images.shape[1]))
    width, height = side * scale + 32, side * scale + 44
    sheet = Image.new("RGB", (columns * width, max(1, ceil(len(captions) / columns)) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for n, (pixels, caption) in enumerate(zip(images.view(-1, side, side).cpu().numpy(), captions, strict=True)):
        left, top = n % columns * width, n // columns * height
        digit = Image.fromarray(255 - pixels).resize((side * scale, side * scale), Image.Resampling.NEAREST)
        sheet.paste(digit, (left + 16, top + 4))
        draw.text((left + width / 2, top + height - 24), caption, INK, font, anchor="mm")
    return np.asarray(sheet)
