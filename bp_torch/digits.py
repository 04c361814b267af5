"""One handwritten digit in any picture, prepared as those of MNIST were; and what a network answers.

    predict(network, "seven.jpg")

MNIST's digits are light on black. Each was scaled into 20×20 pixels, its proportions kept, and placed in 28×28 with its
centre of mass in the middle. ``prepared`` does this to a drawing, a scan or a photo: it finds the ink, and takes away
the paper, the light and the noise. Strokes thinner than those of MNIST are made as wide.
"""

import io
import warnings
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad

from bp_torch.backprop import forward
from bp_torch.cli import UserError
from bp_torch.examples import check_inputs, scaled
from bp_torch.network import Network
from bp_torch.values import CLASSES, PIXELS, SIDE

if TYPE_CHECKING:  # imported where it is used: tensors need no Pillow
    from PIL.Image import Image

LARGEST_FILE = 2**28  # bytes
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
KEPT = 1000  # pixels along the longer side that are kept of a larger picture
WORK = 192  # pixels along the longer side of what is looked at
BOX = 20  # pixels along the longer side of a digit of MNIST
STROKE = 2.0  # pixels of that box: how wide strokes are at least
SMALLEST = 4  # two pixels each, along the longer side of a digit; what is smaller is dust or noise
FAINT = 0.04  # what is darker than the paper by a smaller part is no ink
DARK = 0.05  # light of black: keeps noise in deep shadow from looking like ink


class ImageError(UserError):
    """A picture that cannot be read, or does not show one digit. The message says what it is."""


class Prediction(NamedTuple):
    """The answer of a network to one picture."""

    answer: int  # the digit whose output is the largest
    outputs: Tensor  # a^L, (10,)
    x: Tensor  # (784,): the picture as the network gets it, from 0 to 1


def predict(network: Network, images: Any) -> list[Prediction]:
    """The answers of ``network`` to each of the ``images``: one of those that ``prepared`` takes, or a list of them.

    A tensor (N, 784), of bytes or of numbers from 0 to 1, is prepared already, and goes into the network as it is.

    Raises ImageError, which names the file, or else the place in the list; and ValueError for a network that is not one
    from 784 pixels to 10 outputs, and for what is no image.
    """
    check_digits(network)
    if isinstance(images, np.ndarray) and images.ndim == 2 and images.shape[1] == PIXELS:
        raise ValueError(f"is {images.shape} prepared images, or one? give torch.from_numpy(x), or an image of Pillow")
    if not isinstance(images, Tensor):
        several = isinstance(images, list | tuple) or (
            isinstance(images, np.ndarray) and images.ndim > 2 and not is_image(images)
        )
        x = torch.stack([_named(image, place) for place, image in enumerate(images if several else [images])])
    else:
        x = images
        if x.shape[1:] != (PIXELS,):
            raise ValueError(f"a tensor of prepared images is (N, {PIXELS}), not {tuple(x.shape)}")
        check_inputs(x, unit=True)
    x = (scaled(x, network.dtype) if x.dtype == torch.uint8 else x.to(network.dtype)).to(network.device)
    outputs = forward(network, x).activations[-1]
    return list(map(Prediction, outputs.argmax(1).tolist(), outputs, x))


def _named(image: Any, place: int) -> Tensor:
    try:
        return prepared(image)
    except ImageError as error:
        raise ImageError(f"{image if isinstance(image, str | Path) else f'image {place}'}: {error}") from error


def check_digits(network: Network) -> None:
    """Raise ValueError unless ``network`` is one, from 784 pixels to 10 outputs."""
    if network.leading or (network.sizes[0], network.sizes[-1]) != (PIXELS, CLASSES):
        raise ValueError(f"wanted one network from {PIXELS} pixels to {CLASSES} outputs, got {network}")


def is_image(values: "np.ndarray[Any, Any]") -> bool:
    """Whether an array is (H, W), or (H, W, 1, 3 or 4)."""
    return values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3, 4))


# ---- files ----


def opened(file: Path) -> "Image":
    """The picture in a file, upright. Raises ImageError."""
    try:
        if file.exists() and not file.is_file():  # to open a pipe would wait for somebody who writes
            raise ImageError(f"it is a {'folder' if file.is_dir() else 'pipe or a device'}, not a file")
        with file.open("rb") as stream:
            return decoded(stream.read(LARGEST_FILE + 1))
    except (OSError, ValueError) as error:
        raise ImageError(getattr(error, "strerror", None) or str(error)) from error


def decoded(content: bytes) -> "Image":
    """The picture that the bytes of a file hold, upright. Raises ImageError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not 0 < len(content) <= LARGEST_FILE:
        raise ImageError("it is empty" if not content else f"it has more than {LARGEST_FILE:,} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()  # WEBP and TIFF too
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.draft(None, (KEPT, KEPT))  # of a larger JPEG only half the pixels are read, or fewer
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ImageError(f"it is no picture of a kind that can be read: wanted {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow raises errors of every kind for what is damaged
        raise ImageError(f"it is damaged: {' '.join(str(error).split()) or type(error).__name__}") from error


def pixels_of(image: Any) -> Tensor:
    """The colours of a picture on its paper, (3, H, W), from 0 to 1. Where it is transparent there is paper."""
    from PIL import Image

    if not isinstance(image, Image.Image) or image.mode[0] in "IF":  # 16 bits: Pillow would cut them off at 255
        values = np.asarray(image)
        if not is_image(values) or values.dtype.kind not in "buif" or not values.size:
            got = f"{type(image).__name__} {values.shape} of {values.dtype}"
            raise ValueError(f"wanted a path, an image of Pillow, or an array (H, W) or (H, W, 3 or 4), got {got}")
        if values.dtype != np.uint8:
            values = np.nan_to_num(values.astype(np.float64))
            values = ((values - values.min()) * (255 / (np.ptp(values) or 1))).round().astype(np.uint8)
        image = Image.fromarray(values.squeeze(2) if values.shape[2:] == (1,) else values)
    image = image.convert("RGBA")
    image.thumbnail((KEPT, KEPT), Image.Resampling.BILINEAR, reducing_gap=2)
    colours, alpha = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255).split([3, 1])
    seen = colours[:, alpha[0] > 0]
    if not seen.numel():
        return torch.ones_like(colours)
    paper = seen.median(1).values if alpha.mean() > 0.5 else (seen.mean() < 0.5).float().expand(3)
    return torch.lerp(paper[:, None, None], colours, alpha)


# ---- from a picture to a digit of MNIST ----


def prepared(image: Any) -> Tensor:
    """The one digit in a picture as an input of a network, (784,), from 0 to 1. Raises ImageError.

    ``image`` is the path of a file, an image of Pillow, or an array of NumPy, (H, W) or (H, W, 3 or 4).
    Raises ValueError for anything else.
    """
    pixels = pixels_of(opened(Path(image)) if isinstance(image, str | Path) else image)
    for _ in range(3):  # a digit that is a small part of the picture is looked at more closely
        small = resized(pixels, WORK)
        ink = ink_of_digit(grey(small))
        box = (top, bottom), (left, right) = [extent((ink > 0.5).any(axis)) for axis in (1, 0)]
        size = max(bottom - top, right - left)
        if size > WORK // 3:
            break
        scale = max(pixels.shape) / WORK
        rows, columns = [slice(max(0, int(scale * (a - size / 2))), int(scale * (b + size / 2)) + 1) for a, b in box]
        pixels = pixels[:, rows, columns]
    return centred(ink[top:bottom, left:right])


def resized(pixels: Tensor, longest: int) -> Tensor:
    """A picture (C, H, W) with so many pixels along its longer side."""
    scale = longest / max(pixels.shape[1:])
    size = [max(1, round(scale * n)) for n in pixels.shape[1:]]
    return interpolate(pixels[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def extent(mask: Tensor) -> tuple[int, int]:
    """Where the true values of a mask (n,) begin, and where they end."""
    places = mask.nonzero()[:, 0]
    return int(places[0]), int(places[-1]) + 1


def grey(pixels: Tensor) -> Tensor:
    """The one colour, (H, W), from 0 to 1, in which details of a picture (3, H, W) differ most: red on green too."""
    small = resized(pixels, 64)
    detail = (small - avg_pool2d(small, 9, 1, 4, count_include_pad=False)).flatten(1)
    axis: Tensor = torch.linalg.eigh(detail @ detail.mT).eigenvectors[:, -1]
    axis = axis / axis.abs().sum() * (1 if axis.sum() >= 0 else -1)
    return torch.einsum("c,chw->hw", axis, pixels) - axis.clamp(max=0).sum()


def ink_of_digit(grey: Tensor) -> Tensor:
    """How much ink of the one digit is where, (H, W), from 0 to 1. Raises ImageError."""
    margin = WORK // 4
    light = lighting(grey, margin)
    wide = light.clone()  # the picture, with as much paper around it as its edges let expect
    wide[margin:-margin, margin:-margin] = grey
    found = []
    for seen in (wide, 1 - wide):  # dark ink on light paper, or light on dark
        paper = closed(seen)
        missing = 1 - (seen + DARK) / (paper + DARK)  # the part of the light, in a shadow too
        ink = cleaned(missing[margin:-margin, margin:-margin])
        alone, digits = digit_alone(ink)
        found.append((like_a_digit(ink, alone) * sharp(grey, alone) ** 8, digits, alone))  # counts most
    _, digits, alone = max(found, key=lambda each: each[0])
    if digits != 1:
        some = f"there are {digits} digits in it: wanted one, cut the others off"
        raise ImageError(some if digits else "there is no digit in it")
    return alone


def like_a_digit(ink: Tensor, alone: Tensor) -> float:
    """How much a part of the ink looks like strokes: a long edge for its area, large, full, and alone."""
    area, edge = area_and_edge(alone)
    size = max(int((alone > 0.5).any(axis).sum()) for axis in (0, 1))
    at_edges = float(torch.cat([ink[0], ink[-1], ink[:, 0], ink[:, -1]]).mean())
    full = float(alone.square().sum()) / max(area, 1)  # strokes have ink throughout, shadows fade
    return float(full * edge**2 / max(area, 1) * size**0.5 * (1 - at_edges) ** 3)


def sharp(grey: Tensor, alone: Tensor) -> float:
    """How much the picture changes at the edge of ink, by its largest change: paper between digits just ends there."""
    mask = (alone > 0.5).float()[None]
    edge = (mask + max_pool2d(-mask, 3, 1, 1))[0] > 0
    change = (max_pool2d(grey[None], 9, 1, 4) + max_pool2d(-grey[None], 9, 1, 4))[0][edge]
    return float(change.mean() / change.max()) if len(change) else 0.0


def area_and_edge(ink: Tensor) -> tuple[float, float]:
    """How many pixels of (H, W) are ink, and how many of them are beside paper."""
    mask = (ink > 0.5).float()[None]
    return float(mask.sum()), float((mask + max_pool2d(-mask, 3, 1, 1)).sum())


def cleaned(ink: Tensor) -> Tensor:
    """Ink (H, W) without paper, lines and noise, from 0 to 1; nothing where there is nothing else."""
    ink = ink - ruled_lines(ink)
    ink = ink - ink.quantile(0.2)  # of a digit that fills its picture there is little paper
    noise = (ink - ink.roll(3, 0)).abs().median()  # of neighbours, nearly all of which are both ink or both paper
    floor = FAINT + 5 * noise
    found = ink[ink > floor]
    if not len(found):
        return torch.zeros_like(ink)
    return ((ink - floor) / (0.8 * (found.quantile(0.95) - floor) + 1e-6)).clamp(0, 1)


def lighting(grey: Tensor, margin: int) -> Tensor:
    """How light the paper is, (H, W) and a ``margin`` around it: the smooth surface on which most of the pixels lie."""
    places = [(torch.arange(-margin, n + margin) + 0.5) / n * 2 - 1 for n in grey.shape]
    y, x = torch.meshgrid(*places, indexing="ij")
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])
    inside = [terms[:, margin:-margin, margin:-margin], grey[None]]
    some, values = (resized(each, 48).flatten(1).mT for each in inside)
    trust = 1 + 2.0 * (some[:, 1:3].abs().amax(1, keepdim=True) > 0.8)  # near the edges there is more paper
    weights = trust
    for _ in range(20):  # towards the least sum of absolute differences, in which a minority has no say
        solution = torch.linalg.lstsq(weights * some, weights * values).solution
        weights = trust / ((values - some @ solution).abs() + 0.01).sqrt()
    return torch.einsum("c,chw->hw", solution[:, 0], terms).clamp(float(grey.min()), float(grey.max()))


def closed(values: Tensor) -> Tensor:
    """``values`` (H, W) without dark places that are narrower than 63 pixels: what is around them covers them."""
    for sign in (1, -1):
        values = pad(sign * values[None], [31] * 4, value=-inf)
        for n, step in ((9, 1), (7, 9)):  # the largest of 9 pixels, then of 7 of these, and so of 63
            for window in ((1, n), (n, 1)):
                values = max_pool2d(values, window, 1, dilation=step)
        values = sign * values[0]
    return values


def ruled_lines(ink: Tensor) -> Tensor:
    """The ink (H, W) of lines from edge to edge, two or more, as ruled and checked paper has them."""
    found = torch.zeros_like(ink)
    for axis, picture in enumerate((ink, ink.mT)):
        ends = torch.stack([picture[:10].mean(0), picture[-10:].mean(0)]).amin(0)  # a digit hardly reaches both edges
        lines = picture.quantile(0.3, 0).minimum(ends).clamp(min=0)
        if (lines > FAINT).long().diff().eq(1).sum() > 1:
            found = found.maximum(lines.unsqueeze(axis))
    return found


def digit_alone(ink: Tensor) -> tuple[Tensor, int]:
    """The ink (H, W) of the largest digit, without specks and edges, and the number of digits."""
    labels = connected(max_pool2d((ink > 0.5).float()[None], 2, ceil_mode=True)[0])
    if not labels.any():
        return ink, 0
    names, areas = labels[labels > 0].unique(return_counts=True)
    names, areas = names[areas > areas.max() / 50], areas[areas > areas.max() / 50]
    boxes = torch.tensor([[extent(part.any(axis)) for axis in (1, 0)] for part in (labels == n for n in names)])
    low, high = boxes.unbind(-1)  # (n, 2): row and column where each part begins, and where it ends
    inside = ((low > 0) & (high < torch.tensor(labels.shape))).all(1)
    if (
        8 * ((high - low).amax(1) * inside).max() > (high - low).max()
    ):  # what reaches the edge is the table, or the next digit
        names, areas, low, high = names[inside], areas[inside], low[inside], high[inside]
    main = areas.argmax()
    gap = torch.maximum(low - high[main], low[main] - high).amax(1)  # free rows or columns between a part and the main
    size = (high - low)[main].amax()
    others = ((high - low)[:, 0] > size / 2) & (gap > size / 12)
    mask = torch.isin(labels, names[gap < size / 5]).float().repeat_interleave(2, 0).repeat_interleave(2, 1)
    alone = ink * max_pool2d(mask[None], 5, 1, 2)[0][: ink.shape[0], : ink.shape[1]]
    return alone, (1 + int(others.sum())) * int(size >= SMALLEST)


def connected(mask: Tensor) -> Tensor:
    """A number for each connected part of a mask (H, W) of zeros and ones, at all of its places; 0 elsewhere."""
    labels = torch.arange(1.0, mask.numel() + 1).view_as(mask) * mask
    while not torch.equal(spread := max_pool2d(labels[None], 3, 1, 1)[0] * mask, labels):
        labels = spread
    return labels


def centred(ink: Tensor) -> Tensor:
    """The ink of a digit, (H, W), as MNIST has it, (784,): in a box of 20×20, its centre of mass in the middle."""
    area, edge = area_and_edge(ink)
    missing = int((max(ink.shape) * STROKE / BOX - 2 * area / edge) / 2)
    if missing > 0:
        ink = max_pool2d(pad(ink, [missing] * 4)[None], 2 * missing + 1, 1, missing)[0]
    rows, columns = (max(1, round(BOX * n / max(ink.shape))) for n in ink.shape)
    small = interpolate(ink[None, None], (rows, columns), mode="area")[0, 0]
    x = torch.zeros(SIDE, SIDE)
    top, left = (  # MNIST rounds up: the centre of mass is in one of the places from 14 to 15
        min(max(0, ceil(SIDE / 2 - float(mass @ (torch.arange(n) + 0.5) / mass.sum()))), SIDE - n)
        for mass, n in ((small.sum(1), rows), (small.sum(0), columns))
    )
    x[top : top + rows, left : left + columns] = small
    return x.flatten()
