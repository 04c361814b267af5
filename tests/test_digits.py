"""Pictures of one digit: read from any file, prepared as MNIST was, and answered as clean pixels are."""

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import bp_torch
from bp_torch.backprop import forward
from bp_torch.data import Examples
from bp_torch.digits import ImageError, decoded, predict, prepared
from bp_torch.network import Network
from bp_torch.training import Config, open_run, train
from tests.drawn_digits import Array, coloured, drawn, enlarged, lit, photographed, turned

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.fixture(scope="session")
def network(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A network that has learned from all of MNIST for a few seconds."""
    runs = tmp_path_factory.mktemp("runs")
    config = Config(epochs=5, device="cpu", data_dir=data_dir, runs_dir=runs, log=False)
    return open_run(train(config))[1]


def picture(digit: int = 5, size: int = 240, pen: float = 24.0) -> Array:
    """A drawn digit, black on white, (400, 400) from 0 to 255."""
    return (255 * (1 - drawn(digit, np.random.default_rng(digit), size, pen))).round().astype(np.uint8)


# ---- the answers ----

Rendering = Callable[[int, np.random.Generator], Any]


def marker(digit: int, rng: np.random.Generator) -> Any:
    return coloured(drawn(digit, rng, 300, 38), WHITE, (20, 20, 20)).astype(np.uint8)


def ballpoint(digit: int, rng: np.random.Generator) -> Any:
    ink = drawn(digit, rng, 160, 5, 700)
    return photographed(lit(coloured(ink, (250, 246, 230), (40, 50, 140)), rng, 0.3), rng)


def chalk(digit: int, rng: np.random.Generator) -> Any:
    ink = drawn(digit, rng, 230, 16) * rng.uniform(0.7, 1, (400, 400))
    return photographed(lit(coloured(ink, (45, 70, 55), (225, 225, 215)), rng, 0.4), rng, 6)


def shadowed(digit: int, rng: np.random.Generator) -> Any:
    ink = drawn(digit, rng, 200, 16)
    return photographed(lit(coloured(ink, (235, 215, 150), (60, 40, 40)), rng, 0.5, 0.45), rng, 10, 40)


def checked(digit: int, rng: np.random.Generator) -> Any:
    ink, page = drawn(digit, rng, 220, 15), np.zeros((400, 400))
    page[10::50] = page[11::50] = page[:, 22::50] = page[:, 23::50] = 1
    paper = WHITE * (1 - 0.45 * page[..., None] * np.array([0.8, 0.4, 0.1]))
    return paper + ink[..., None] * (np.array([150, 20, 30]) - paper)


RENDERINGS: list[Rendering] = [marker, ballpoint, chalk, shadowed, checked]


def test_drawn_digits_are_read(network: Network) -> None:
    wrong = []
    for rendering in RENDERINGS:
        for digit in range(10):
            seen = rendering(digit, np.random.default_rng((digit, RENDERINGS.index(rendering))))
            (found,) = predict(network, seen)
            if found.answer != digit:
                wrong.append(f"{rendering.__name__} {digit}: {found.answer}")
    assert len(wrong) <= 5, wrong


def mills() -> dict[str, Callable[[Array, np.random.Generator], Any]]:
    """Ways from a digit of MNIST, (784,), to a picture of it."""

    def photo(x: Array, rng: np.random.Generator) -> Any:
        ink = turned(enlarged(x), rng.uniform(-6, 6), 50, -30, 640)
        return photographed(lit(coloured(ink, (240, 225, 190), (50, 45, 70)), rng, 0.5, 0.3), rng)

    return {
        "enlarged": lambda x, _: (255 * enlarged(x)).astype(np.uint8),
        "inverted": lambda x, _: (255 * (1 - enlarged(x))).astype(np.uint8),
        "off the middle": lambda x, _: (255 * turned(enlarged(x, 300), 0, 90, -60, 560)).astype(np.uint8),
        "coloured": lambda x, _: coloured(enlarged(x), (250, 220, 90), (40, 60, 160)).astype(np.uint8),
        "photographed": photo,
    }


@pytest.mark.parametrize("mill", mills())
def test_digits_of_mnist_are_answered_as_their_clean_pixels_are(
    mill: str, network: Network, mnist: tuple[Examples, Examples]
) -> None:
    clean = mnist[1].x[: 40 if mill == "photographed" else 15].float() / 255
    milled = [mills()[mill](x.numpy(), np.random.default_rng(n)) for n, x in enumerate(clean)]
    answers = [found.answer for found in predict(network, milled)]
    expected = forward(network, clean).activations[-1].argmax(1).tolist()
    assert sum(map(int.__ne__, answers, expected)) <= 2, list(zip(answers, expected, strict=True))


# ---- the preparation ----


@pytest.mark.parametrize("digit", range(10))
def test_prepared_digit_is_in_a_box_of_20_with_its_mass_in_the_middle(digit: int) -> None:
    x = prepared(picture(digit)).view(28, 28)
    rows, columns = ((x.sum(axis) > 0).nonzero()[:, 0] for axis in (1, 0))
    sides = [int(places[-1] - places[0]) + 1 for places in (rows, columns)]
    assert max(sides) == 20
    middle = [float((x.sum(axis) * (torch.arange(28) + 0.5)).sum() / x.sum()) for axis in (1, 0)]
    assert min(middle) > 13.99 and max(middle) < 15.01  # where MNIST has it
    assert x.min() == 0 and x.max() > 0.99


def likeness(x: Tensor, other: Tensor) -> float:
    """The correlation of two images, one of which may lie a pixel further to a side, as rounding has it."""
    shifted = [x.view(28, 28).roll((down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return max(float(torch.corrcoef(torch.stack([each.flatten(), other]))[0, 1]) for each in shifted)


def test_digits_of_mnist_are_prepared_as_they_are(mnist: tuple[Examples, Examples]) -> None:
    found = torch.tensor([likeness(prepared(x.view(28, 28).numpy()), x / 255) for x in mnist[1].x[:30]])
    assert found.mean() > 0.96 and found.min() > 0.8


def test_thin_strokes_are_made_as_wide_as_those_of_mnist(mnist: tuple[Examples, Examples]) -> None:
    ink = (mnist[1].x[:1000].double() / 255).mean()
    thin = torch.stack([prepared(picture(digit, 300, 3)) for digit in range(10)]).mean()
    assert 0.5 * ink < thin < 1.5 * ink


def saved(image: Image.Image, **how: Any) -> Image.Image:
    """The image written to a file and read again, as ``how`` says."""
    image.save(file := io.BytesIO(), **{"format": "PNG", **how})
    return decoded(file.getvalue())


def on_side(image: Image.Image) -> Image.Image:
    """A picture that a camera took on its side, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90°
    return saved(image.transpose(Image.Transpose.ROTATE_90), format="JPEG", quality=95, exif=exif)


def transparent(image: Image.Image, ink: tuple[int, int, int]) -> Image.Image:
    """Ink alone, on nothing."""
    whole = Image.new("RGBA", image.size, (*ink, 0))
    whole.putalpha(image.point(lambda value: 255 - value))
    return saved(whole)


def sixteen_bits(image: Image.Image) -> Image.Image:
    return saved(Image.fromarray(np.asarray(image).astype(np.uint16) * 100 + 9000))


def with_clear_corners(image: Image.Image) -> Image.Image:
    """White paper whose edge is transparent."""
    whole = image.convert("RGBA")
    whole.putalpha(Image.new("L", image.size, 0))
    whole.paste(image.crop((20, 20, 380, 380)), (20, 20))
    return saved(whole)


def red_on_green(image: Image.Image) -> Image.Image:
    """Ink that is as bright as the paper."""
    red, green = image.point(lambda value: 200 - value // 2), image.point(lambda value: 73 + value // 4)
    return Image.merge("RGB", [red, green, Image.new("L", image.size, 60)])


FORMS: dict[str, Callable[[Image.Image], Any]] = {
    "inverted": lambda image: image.point(lambda value: 255 - value),
    "array": np.asarray,
    "array with a channel": lambda image: np.asarray(image)[..., None],
    "array of floats": lambda image: np.asarray(image) / 255,
    "array of truth values": lambda image: np.asarray(image) > 128,
    "JPEG": partial(saved, format="JPEG", quality=90),
    "WEBP": partial(saved, format="WEBP"),
    "GIF": partial(saved, format="GIF"),
    "TIFF": partial(saved, format="TIFF"),
    "palette": lambda image: saved(image.convert("RGB").quantize(8)),
    "palette with transparency": lambda image: saved(image.convert("P"), transparency=255),
    "CMYK": lambda image: saved(image.convert("CMYK"), format="JPEG", quality=95),
    "one bit": lambda image: saved(image.convert("1")),
    "16 bits": sixteen_bits,
    "32 bits": lambda image: Image.fromarray(np.asarray(image).astype(np.float32) * 3.5),
    "on its side": on_side,
    "black on nothing": lambda image: transparent(image, BLACK),
    "white on nothing": lambda image: transparent(image, WHITE),
    "clear corners": with_clear_corners,
    "red on green": red_on_green,
    "huge": lambda image: image.resize((4000, 4000)),
    "small": lambda image: image.resize((50, 50), Image.Resampling.BOX),
    "a small part": lambda image: Image.fromarray(np.pad(np.asarray(image), 1500, constant_values=255)),
}


@pytest.mark.parametrize("form", FORMS)
def test_picture_is_prepared_alike_in_every_form(form: str) -> None:
    for digit in (2, 5):
        image = Image.fromarray(picture(digit))
        assert likeness(prepared(FORMS[form](image)), prepared(image)) > 0.94


def test_dark_lines_of_checked_paper_are_taken_away() -> None:
    page = np.ones((400, 400))
    page[13::50] = page[14::50] = page[:, 31::50] = page[:, 32::50] = 0.3
    for digit in (3, 7):
        ink = picture(digit)
        assert likeness(prepared(np.minimum(ink, 255 * page).astype(np.uint8)), prepared(ink)) > 0.9


# ---- what is no picture of one digit ----


def blank() -> Array:
    return np.full((300, 300, 3), 240, np.uint8)


def two_digits() -> Array:
    return np.concatenate([picture(1), picture(7)], 1)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (blank(), "there is no digit in it"),
        (photographed(lit(blank().astype(float), np.random.default_rng(1), 0.6), np.random.default_rng(0)), "no digit"),
        (Image.new("RGBA", (60, 60), (0, 0, 0, 0)), "there is no digit in it"),
        (Image.new("L", (1, 1)), "there is no digit in it"),
        (two_digits(), "there are 2 digits in it: wanted one"),
        (np.concatenate([two_digits(), two_digits()]), "there are 4 digits in it"),
    ],
    ids=["blank", "paper", "nothing", "a pixel", "two", "four"],
)
def test_picture_without_one_digit_is_refused(seen: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        prepared(seen)


def test_several_digits_beside_one_another_are_refused(mnist: tuple[Examples, Examples]) -> None:
    """The paper between them looks like strokes, and has to be told from ink: nearly always, in either colour."""
    images, chance, refused = mnist[1].x.view(-1, 28, 28).numpy(), np.random.default_rng(0), 0
    for _ in range(6):
        for down, across, dark in ((1, 2, 1), (1, 2, 0), (1, 3, 1), (1, 3, 0), (2, 2, 1), (2, 2, 0)):
            grid = images[chance.integers(0, 10_000, (down, across))].transpose(0, 2, 1, 3)
            page = np.pad(grid.reshape(28 * down, 28 * across), 6)
            try:
                prepared(Image.fromarray(255 - page if dark else page).resize((120 * across, 120 * down)))
            except ImageError as error:
                refused += "wanted one" in str(error)
    assert refused >= 35, f"{refused} of 36"


def png(image: Image.Image) -> bytes:
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"Dear Sir or Madam", "it is no picture of a kind that can be read: wanted PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "it is no picture"),
        (png(Image.fromarray(picture()))[:-300], "it is damaged: "),
        (png(Image.new("1", (20_000, 10_000))), r"it has more than 89,478,485 pixels"),
        (png(Image.new("1", (10_000, 10_000))), r"it has more than 89,478,485 pixels"),
    ],
    ids=["empty", "text", "PostScript", "cut off", "bomb", "small bomb"],
)
def test_file_that_is_no_picture_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(ImageError, match=f"^{said}"):
        prepared(tmp_path / "file.png")
    with pytest.raises(ImageError, match=f"^{tmp_path}/file.png: {said}"):
        predict(Network(), [picture(), tmp_path / "file.png"])


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "none.png", "No such file"), (tmp_path, "a folder"), (tmp_path / "pipe", "a pipe")):
        with pytest.raises(ImageError, match=said):
            prepared(path)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_file_is_read_or_refused(seed: int) -> None:
    chance = np.random.default_rng(seed)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        Image.fromarray(picture()).resize((60, 60)).save(file := io.BytesIO(), kind)
        for _ in range(8):
            content = bytearray(file.getvalue())
            for place in chance.integers(0, len(content), 6):
                content[place] = chance.integers(0, 256)
            try:
                x = prepared(decoded(bytes(content[: chance.integers(1, len(content) + 1)])))
            except ImageError as error:
                assert str(error) and "\n" not in str(error)
            else:
                assert x.shape == (784,) and x.min() >= 0 and x.max() <= 1


# ---- from Python ----


def test_predict_takes_one_or_several_pictures_of_any_kind(network: Network, tmp_path: Path) -> None:
    assert bp_torch.predict is predict
    image = Image.fromarray(picture(7))
    image.save(tmp_path / "seven.png")
    one = predict(network, image)[0]
    assert one.answer == 7 and one.outputs.argmax() == 7 and one.x.equal(prepared(image))
    assert one.outputs.equal(forward(network, one.x[None]).activations[-1][0])
    path = tmp_path / "seven.png"
    each: list[Any] = [path, str(path), image, np.asarray(image), [image, path], (image,), np.stack([picture(7)] * 2)]
    each += [np.stack([picture(7)] * 3, -1), np.stack([picture(7)] * 3, -1)[None]]
    for given in each:
        assert {found.answer for found in predict(network, given)} == {7}
    assert len(predict(network, [image, path])) == len(predict(network, np.stack([picture(7)] * 2))) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_predict_takes_prepared_tensors_as_they_are(
    dtype: torch.dtype, network: Network, mnist: tuple[Examples, Examples]
) -> None:
    bytes_ = mnist[1].x[:50]
    network = network.to(dtype=dtype)
    expected = forward(network, (bytes_.double() / 255).to(dtype)).activations[-1].argmax(1).tolist()
    for x in (bytes_, bytes_ / 255, bytes_.double() / 255):
        assert [found.answer for found in predict(network, x)] == expected


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(784), r"a tensor of prepared images is \(N, 784\), not \(784,\)"),
        (torch.zeros(2, 28, 28), r"a tensor of prepared images is \(N, 784\), not \(2, 28, 28\)"),
        (torch.full((1, 784), 255.0), "wanted 0 to 1"),
        (np.zeros(784), r"an array \(H, W\) or \(H, W, 3 or 4\), got ndarray \(784,\) of float64"),
        (7, r"an array \(H, W\) or \(H, W, 3 or 4\), got int \(\) of int64"),
    ],
)
def test_predict_refuses_what_is_no_image(images: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        predict(Network(), images)


@pytest.mark.parametrize("network", [Network((4, 3)), Network(networks=2), Network((784, 26))], ids=repr)
def test_predict_refuses_networks_of_anything_else(network: Network) -> None:
    with pytest.raises(ValueError, match=r"wanted one network from 784 pixels to 10 outputs, got Network\("):
        predict(network, picture())


def test_every_picture_stays_as_it_is(network: Network) -> None:
    image, array, tensor = Image.fromarray(picture()).convert("RGBA"), picture(), torch.rand(1, 784)
    before = image.tobytes(), array.copy(), tensor.clone()
    for given in (image, array, tensor):
        predict(network, given)
    assert image.tobytes() == before[0] and (array == before[1]).all() and tensor.equal(before[2])
