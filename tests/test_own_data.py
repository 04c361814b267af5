"""Data of one's own: every format holds the same, what is done to it is said, and what cannot be read is a sentence."""

import csv
import gzip
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bp_torch import own_data
from bp_torch.commands import train as train_command
from bp_torch.commands import verify_networks
from bp_torch.data import DataError, Examples
from bp_torch.explain.options import NetworkOptions
from bp_torch.explain.subject import UsageError, open_subject
from bp_torch.kind import Kind
from bp_torch.sweep.config import SweepConfig
from bp_torch.sweep.loop import sweep
from bp_torch.training import Config, TrainingError, open_run, read_config, train
from bp_torch.training.evaluation import evaluate
from bp_torch.training.run import kind_of_run, load_data
from tests.harness import FORK, posix

Array = np.ndarray[Any, Any]
CHANCE = np.random.default_rng(0)
X = CHANCE.integers(0, 256, (40, 8, 9), dtype=np.uint8)  # images that are higher than wide
Y = np.arange(40) % 3
SQUARE = X[:, :, :8].copy()


def rows(x: Array, y: Array) -> list[list[Any]]:
    return [[label, *pixels] for label, pixels in zip(y.tolist(), x.reshape(len(x), -1).tolist(), strict=True)]


def write_csv(path: Path, table: list[list[Any]], separator: str = ",", **how: Any) -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, **how).writerows(table)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def idx(array: Array) -> bytes:
    assert array.dtype == np.uint8
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def as_keras(folder: Path, x: Array, y: Array) -> Path:
    np.savez(folder / "a.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    return folder / "a.npz"


def as_one_hot_with_channels(folder: Path, x: Array, y: Array) -> Path:
    x, y = x[:, None], np.eye(3, dtype=np.float32)[y]
    np.savez_compressed(folder / "a.npz", X_train=x[:30], y_train=y[:30], X_test=x[30:], y_test=y[30:])
    return folder / "a.npz"


def as_kaggle(folder: Path, x: Array, y: Array) -> Path:
    head = [["label", *(f"pixel{k}" for k in range(x[0].size))]]
    write_csv(folder / "test.csv", head + rows(x[30:], y[30:]))
    return write_csv(folder / "train.csv", head + rows(x[:30], y[:30]))


def as_plain_csv(folder: Path, x: Array, y: Array) -> Path:
    write_csv(folder / "my_test.csv.gz", rows(x[30:], y[30:]), ";")
    return write_csv(folder / "my_train.csv.gz", rows(x[:30], y[:30]), ";")


def as_quoted_csv(folder: Path, x: Array, y: Array) -> Path:
    head = ["Id", *range(x[0].size), "Class"]  # columns that are named by numbers
    found = [[f"n{n}", *pixels, label] for n, (label, *pixels) in enumerate(rows(x, y))]
    for name, part in (("testing", found[30:]), ("training", found[:30])):
        path = write_csv(folder / f"{name}.csv", [head, *part], quoting=csv.QUOTE_ALL)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return path


def as_idx(folder: Path, x: Array, y: Array) -> Path:
    for part, taken in (("train", slice(30)), ("t10k", slice(30, 40))):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(x[taken]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(y[taken].astype(np.uint8)))
    return folder


def as_packed_idx(folder: Path, x: Array, y: Array) -> Path:
    for path in list(as_idx(folder, x, y).iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return folder / "train-images-idx3-ubyte.gz"


def as_images(folder: Path, x: Array, y: Array) -> Path:
    for n, (pixels, label) in enumerate(zip(x, y, strict=True)):
        path = folder / ("train" if n < 30 else "test") / str(label) / f"{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(["L", "RGB", "LA"][n % 3]).save(path)
    (folder / "train/.DS_Store").write_text("", encoding="utf-8")
    return folder


FORMS = [as_keras, as_one_hot_with_channels, as_idx, as_packed_idx, as_images]
TABLES = [as_kaggle, as_plain_csv, as_quoted_csv]


@pytest.mark.parametrize("write", [*FORMS, *TABLES])
def test_every_format_holds_the_same(write: Callable[[Path, Array, Array], Path], tmp_path: Path) -> None:
    x = X if write in FORMS else SQUARE
    training, test = own_data.load(write(tmp_path, x, Y))
    assert (training.kind.image, training.kind.outputs, training.kind.names) == (x.shape[1:], 3, ())
    assert training.x.dtype == torch.uint8 and training.kind.seed is None
    for found, taken in ((training, slice(30)), (test, slice(30, 40))):
        order, wanted = found.labels.argsort(stable=True), np.argsort(Y[taken], kind="stable")
        assert found.labels[order].tolist() == Y[taken][wanted].tolist()
        assert np.array_equal(found.x[order].numpy(), x[taken][wanted].reshape(len(wanted), -1))


# ---- inputs ----


def test_columns_are_standardised_by_the_training_examples(tmp_path: Path) -> None:
    x = np.stack([CHANCE.normal(50, 9, 40), CHANCE.exponential(0.01, 40), np.full(40, 0.1)], 1)
    np.savez(tmp_path / "a.npz", x_train=x[:30], y_train=Y[:30], x_test=x[30:], y_test=Y[30:])
    training, test = own_data.load(tmp_path / "a.npz")
    mean, deviation = x[:30].mean(0), x[:30].std(0)
    assert training.kind.shift == pytest.approx(mean) and training.kind.scale[:2] == pytest.approx(deviation[:2])
    assert training.kind.scale[2] == 1, "a constant column is zero"
    for found, values in ((training, x[:30]), (test, x[30:])):
        wanted = (values - mean) / [*deviation[:2], 1]
        assert found.x.numpy() == pytest.approx(wanted.astype(np.float32), abs=1e-6)
    assert "each column minus its mean, divided by its standard deviation" in str(training.kind)


@pytest.mark.parametrize(
    ("pixels", "said", "wanted"),
    [
        (np.arange(49) % 17, "from 0 to 16", np.arange(49) % 17 / 16),
        (np.linspace(0, 1, 49), "from 0 to 1", np.linspace(0, 1, 49)),
        (np.linspace(0, 0.5, 49), "from 0 to 1", np.linspace(0, 0.5, 49)),
        (np.arange(49) + 180, "from 0 to 255", (np.arange(49) + 180) / 255),
        (np.arange(49) % 2 == 0, "from 0 to 1", np.arange(49) % 2 == 0),
    ],
    ids=["0 to 16", "0 to 1", "dark", "bytes", "black and white"],
)
@pytest.mark.parametrize("flat", [True, False])
def test_pixels_become_0_to_1(pixels: Array, said: str, wanted: Array, flat: bool, tmp_path: Path) -> None:
    x = np.stack([pixels] * 30)
    np.savez(tmp_path / "a.npz", x=x if flat else x.reshape(-1, 7, 7), y=Y[:30])
    training, _ = own_data.load(tmp_path / "a.npz")
    assert training.kind.image == (7, 7) and f"pixels {said} become 0 to 1" in str(training.kind)
    scale = 255 if training.x.dtype == torch.uint8 else 1
    assert training.x[0].numpy() / scale == pytest.approx(wanted.astype(float), abs=1e-6)


def test_transparent_images_are_on_white_and_colours_are_kept(tmp_path: Path) -> None:
    for name, colour in (("a", (255, 0, 0, 255)), ("b", (0, 0, 0, 0))):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (3, 2), colour).save(tmp_path / name / "1.png")
    training, _ = own_data.load(tmp_path)
    assert training.kind.image == (2, 3, 3) and training.kind.names == ("a", "b")
    assert training.x.view(2, 6, 3)[:, 0].tolist() == [[255, 0, 0], [255, 255, 255]]


# ---- classes ----


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1, 2], ()),
        ([3, 5, 7], ("3", "5", "7")),
        ([-1, 1], ("-1", "1")),
        ([10, 9, 2], ("2", "9", "10")),
        (["b", "a", "10", "9"], ("9", "10", "a", "b")),
        ([1.0, 2.0], ("1", "2")),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_labels_are_numbered_in_order_and_keep_their_names(
    labels: list[Any], names: tuple[str, ...], column: bool, tmp_path: Path
) -> None:
    y = np.array(labels * 12)
    if column:
        path = write_csv(tmp_path / "a.csv", [[label, 0.5, n] for n, label in enumerate(y.tolist())])
    else:
        path = tmp_path / "a.npz"
        np.savez(path, x=np.stack([np.full(len(y), 0.5), np.arange(len(y))], 1), y=y)
    training, test = own_data.load(path)
    assert training.kind.names == names
    for examples in (training, test):
        numbers = examples.x[:, 1].double() * training.kind.scale[1] + training.kind.shift[1]
        for number, label in zip(numbers.round().long().tolist(), examples.labels.tolist(), strict=True):
            assert training.kind.name(label) == str(labels[number % len(labels)]).removesuffix(".0")


# ---- the test set ----


def test_a_part_is_held_out_by_the_seed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(100.0)[:, None], y=np.arange(100) % 2)
    found = [own_data.load(tmp_path / "a.npz", seed=seed) for seed in (0, 0, 1)]
    numbers = []
    for training, test in found:
        values = [
            examples.x[:, 0].double() * training.kind.scale[0] + training.kind.shift[0] for examples in (training, test)
        ]
        kept, held = (sorted(each.round().long().tolist()) for each in values)
        assert len(held) == 20 and sorted(kept + held) == list(range(100))
        numbers.append(held)
    assert numbers[0] == numbers[1] != numbers[2]
    assert "tested on 20 of the 100 examples, drawn by --seed 1" in str(found[2][0].kind) and found[2][0].kind.seed == 1
    assert found[0][0].kind.sha256 == found[1][0].kind.sha256 != found[2][0].kind.sha256


def test_few_examples_are_all_trained_and_tested_on(tmp_path: Path) -> None:
    training, test = own_data.load(write_csv(tmp_path / "xor.csv", [[0, 0, 0], [1, 0, 1], [1, 1, 0], [0, 1, 1]]))
    assert (
        torch.equal(training.x, test.x) and len(training.x) == 4 and set(training.x.flatten().tolist()) == {-1.0, 1.0}
    )
    assert "tested on the same 4 examples, too few to hold some out" in str(training.kind)


def test_kaggles_test_file_without_labels_is_not_taken_for_a_test_set(tmp_path: Path) -> None:
    as_kaggle(tmp_path, SQUARE, Y)
    write_csv(tmp_path / "test.csv", [[f"pixel{k}" for k in range(64)], *(row[1:] for row in rows(SQUARE, Y))])
    training, _ = own_data.load(tmp_path / "train.csv")
    assert training.kind.seed == 0 and "tested on 6 of the 30" in str(training.kind)


def test_known_constants_and_seed_are_used_and_other_examples_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", GOOD)
    training, _ = own_data.load(path, seed=3)
    known = replace(training.kind, shift=(0.0, 0.0), scale=(1.0, 1.0))
    with pytest.raises(DataError, match="is not what the run was trained on"):  # its checksum is of other inputs
        own_data.load(path, known=known)
    whole = own_data.read_csv(path, 0)
    raw, _ = own_data.made(whole, whole, 0, known)
    assert raw.x.tolist() == [[n, n * n] for n in raw.x[:, 0].tolist()], "they are as in the file"
    again, _ = own_data.load(path, seed=9, known=training.kind)
    assert again.kind == training.kind and torch.equal(again.x, training.x)
    write_csv(path, [[*row, 1] for row in GOOD])
    with pytest.raises(DataError, match="is not what the run was trained on"):
        own_data.load(path, known=training.kind)


# ---- what cannot be read ----


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def save(name: str, content: bytes | str | list[list[Any]] | dict[str, Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        if isinstance(content, dict):
            np.savez(path, **content)
        elif isinstance(content, list):
            write_csv(path, content)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def images_of_two_sizes(folder: Path) -> Path:
    for name, side in (("a", 3), ("b", 4)):
        (folder / name).mkdir()
        Image.new("L", (side, 3)).save(folder / name / "1.png")
    return folder


def no_image(folder: Path) -> Path:
    save("a/1.png", b"\x89PNG no image")(folder)
    return folder


def folder_without_images(folder: Path) -> Path:
    for name in ("a/1.png", "b/notes.txt"):
        save(name, "")(folder)
    return folder


def sixteen_bits(folder: Path) -> Path:
    for name in ("a", "b"):
        (folder / name).mkdir()
        Image.fromarray(np.zeros((3, 3), np.uint16)).save(folder / name / "1.png")
    return folder


def zip_of_text(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.npz", "w") as file:
        for name in ("x.npy", "y.npy"):
            file.writestr(name, pickle.dumps(Harmful()))
    return folder / "a.npz"


GOOD = [[n % 2, n, n * n] for n in range(30)]
ZERO = np.zeros((4, 2))
HUGE = np.full((30, 7, 7), 1.5e308) * np.where(np.arange(49).reshape(7, 7) % 2, 1, -1)
FAR = np.full((2, 2), 1e300)
HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda folder: folder / "no.csv", "no.csv.*No such file"),
    "empty folder": (lambda folder: folder, "holds nothing: wanted an .npz"),
    "folder with a file": (lambda folder: save("a.csv", GOOD)(folder).parent, "holds a.csv: wanted"),
    "folder without images": (folder_without_images, "b holds notes.txt: wanted"),
    "two sizes": (images_of_two_sizes, "differ in size: .*a/1.png has 3×3 pixels, .*b/1.png 4×3"),
    "no image": (no_image, "cannot read .*a/1.png"),
    "16 bits": (sixteen_bits, "1.png: its pixels are of mode I;16, wanted 8 bits"),
    "empty CSV": (save("a.csv", ""), "has 0 columns: wanted a label and numbers"),
    "header alone": (save("a.csv", "label,x,y\n"), "a.csv holds no rows of numbers"),
    "one column": (save("a.csv", "1\n2\n"), "has 1 column: wanted a label and numbers"),
    "text": (save("a.csv", [*GOOD[:4], [1, "red", 3], *GOOD]), r"row 5, column 2, has 'red': wanted a finite number"),
    "text, named": (save("a.csv", [["label", "x", "hue"], [0, 1, 2], [1, 3, "red"]]), r"row 3, column 3 \(hue\)"),
    "missing": (save("a.csv", [*GOOD[:2], [1, "", 3]]), "row 3, column 2, has ''"),
    "NaN": (save("a.csv", [*GOOD[:2], [1, "nan", 3]]), "row 3, column 2, has 'nan'"),
    "ragged": (save("a.csv", [*GOOD[:2], [1, 2]]), "row 3, has 2 columns, the first row 3"),
    "long row": (save("a.csv", [*GOOD[:2], [1, 2, 3, 4]]), "row 3, has 4 columns, the first row 3"),
    "latin-1": (save("a.csv", "1,2\n3,\xe9".encode("latin-1")), "cannot read .*a.csv: its text is not in UTF-8"),
    "label 1.5": (save("a.csv", [*GOOD, [1.5, 2, 3]]), "has the label '1.5': wanted whole numbers or names"),
    "no label": (save("a.csv", [*GOOD, ["", 2, 3]]), "has the label ''"),
    "one class": (save("a.csv", [[7, n, n] for n in range(30)]), "holds one class only, 7"),
    "as many labels": (save("a.csv", [[n, n, n] for n in range(30)]), "has 30 labels for 30 examples"),
    "picture": (save("a.png", b"\x89PNG\r\n\x1a\n"), "a.png is not a data set: wanted"),
    "one array": (save("a.npy", b"\x93NUMPY\1\0"), "a.npy is not a data set: wanted"),
    "binary": (save("a.bin", b"a\0b\0"), "a.bin is not a data set"),
    "half a gzip": (save("a.csv.gz", gzip.compress(b"1,2\n" * 99)[:20]), "cannot read .*a.csv.gz"),
    "pickles": (save("a.npz", {"x": np.array([Harmful()] * 4, object), "y": ZERO}), "pickled objects, which are never"),
    "pickled": (save("a.npz", pickle.dumps(Harmful())), "a.npz is not a data set"),
    "no arrays": (save("a.npz", {"a": ZERO, "b": ZERO}), "has a, b: wanted x_train, y_train"),
    "no zip": (save("a.npz", b"PK\3\4 and no more"), "cannot read .*a.npz"),
    "few labels": (save("a.npz", {"x": ZERO, "y": np.zeros(3)}), r"y has shape \(3,\) .*one label for each of 4"),
    "two labels": (save("a.npz", {"x": ZERO, "y": ZERO}), r"y has shape \(4, 2\) .*one label for each of 4"),
    "words": (save("a.npz", {"x": np.array([["a"]] * 4), "y": np.arange(4)}), "x has shape .* type <U1, wanted"),
    "complex": (save("a.npz", {"x": ZERO + 1j, "y": np.arange(4)}), "type complex128, wanted numbers"),
    "infinite": (save("a.npz", {"x": ZERO + np.inf, "y": np.arange(4) % 2}), "holds NaN or infinity"),
    "no examples": (save("a.npz", {"x": np.zeros((0, 2)), "y": np.zeros(0)}), r"x has shape \(0, 2\)"),
    "IDX without labels": (save("a-images-idx3-ubyte", idx(X)), "no labels beside it: .*a-labels-idx1-ubyte"),
    "IDX of labels": (save("a-labels-idx1-ubyte", idx(X[:, 0, 0])), "no labels beside it: wanted a file of images"),
    "IDX cut": (save("a-images-idx3-ubyte", idx(X)[:-1]), "no labels beside it"),
    "an open quote": (save("a.csv", 'label,x,y\n"' + "0,1,2\n" * 30), "row 2, has 1 column, the first row 3"),
    "1_0": (save("a.csv", [*GOOD, [1, "1_0", 3]]), "row 31, column 2, has '1_0'"),
    "1,000 digits": (save("a.csv", [*GOOD, [1, "9" * 1000, 3]]), "has '9{50}': wanted a finite number"),
    "no arrays, but files": (zip_of_text, "it holds other files than arrays; wanted arrays of numbers"),
    "squares too large": (save("a.csv", [[n % 2, 1e300 * n, n] for n in range(30)]), "so large, or so small"),
    "squares too small": (save("a.csv", [[n % 2, 1e-320 * n, n] for n in range(30)]), "so large, or so small"),
    "range too large": (save("a.npz", {"x": HUGE, "y": np.arange(30) % 2}), "so large, or so small"),
    "test too far": (save("a.npz", {"x": X[:, 0, :2], "y": Y, "x_test": FAR, "y_test": Y[:2]}), "finite ones"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("head", "row", "said"),
    [
        ([], lambda k: [k / 8, k * k, "ab"[k % 2]], ", its label in column 3, tested"),
        (["width", "variety", "height"], lambda k: [k, "ab"[k % 2], k], ", its label in column 2 (variety), tested"),
        ([], lambda k: [k % 4 / 8, k / 7, k % 2], ", its label in column 3, tested"),
        ([], lambda k: [k % 2, k / 7, k % 4], ", its label in column 1, tested"),
        (["digit", "a", "b"], lambda k: [k % 2, k / 7, "0"], ", tested"),
    ],
)
def test_column_of_labels_is_found_and_said_where_no_name_says_it(
    head: list[str], row: Callable[[int], list[Any]], said: str, tmp_path: Path
) -> None:
    file = write_csv(tmp_path / "a.csv", [head] * bool(head) + [row(k) for k in range(40)])
    training, test = own_data.load(file)
    labels = torch.cat([training.labels, test.labels])
    assert training.kind.source.startswith(f"{file}{said}")
    assert (training.kind.inputs, training.kind.outputs, int(labels.sum())) == (2, 2, 20)


@pytest.mark.parametrize("names", ["images labels", "X Y", "X_Train Y_Train"])
def test_arrays_of_an_npz_are_known_by_other_names(names: str, tmp_path: Path) -> None:
    arrays: dict[str, Any] = dict(zip(names.split(), (SQUARE, Y), strict=True))
    np.savez(tmp_path / "a.npz", **arrays)
    assert own_data.load(tmp_path / "a.npz")[0].kind.words == "8×8 images, 3 classes"


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_is_a_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "data"
    inside.mkdir()
    with pytest.raises(DataError, match=message) as caught:
        own_data.load(write(inside))
    assert "\n" not in str(caught.value) and not (tmp_path / "executed").exists()


@posix
@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a/1.png", "train-images-idx3-ubyte"])
def test_pipe_is_refused_in_the_place_of_any_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="is not a regular file"):  # to open it would wait for somebody who writes
        own_data.load(tmp_path if name == "a/1.png" else tmp_path / name)


def test_labels_of_many_digits_stay_apart(tmp_path: Path) -> None:
    labels = [str(2**53), str(2**53 + 1), "1_0", "10"]
    training, _ = own_data.load(write_csv(tmp_path / "a.csv", [[labels[n % 4], n, n * n] for n in range(40)]))
    assert set(training.kind.names) == set(labels)


def test_csv_may_begin_with_a_letter_that_is_not_ascii(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [["Größe", "label"], *([n, n % 2] for n in range(30))])
    assert own_data.load(path)[0].kind.inputs == 1
    path = write_csv(tmp_path / "b.csv", [["äöü", "label"], *([n, n % 2] for n in range(30))])
    assert own_data.load(path)[0].kind.inputs == 1


def test_training_and_test_set_of_different_shapes_are_a_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=ZERO, y_train=[0, 1, 0, 1], x_test=np.zeros((4, 3)), y_test=[0, 1, 0, 1])
    with pytest.raises(DataError, match=r"differ in shape: \(2,\) and \(3,\)"):
        own_data.load(tmp_path / "a.npz")


# ---- runs ----


def spirals(n: int = 600) -> list[list[Any]]:
    label, t = np.arange(n) % 2, np.sqrt(CHANCE.random(n)) * 7
    return [
        [k, float(a * np.cos(a + np.pi * k)), float(a * np.sin(a + np.pi * k))] for k, a in zip(label, t, strict=True)
    ]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes with names, in two columns: the quadrants."""
    x = np.random.default_rng(3).normal(7, 5, (500, 2))
    named = np.array(["ne", "nw", "se", "sw"])[2 * (x[:, 1] < 7) + (x[:, 0] < 7)]
    found: list[list[Any]] = [["label", "east", "north"]]
    found += [[name, *map(float, row)] for name, row in zip(named, x, strict=True)]
    return write_csv(tmp_path_factory.mktemp("own") / "quadrants.csv", found)


def config_of(dataset: Path, runs: Path, **fields: Any) -> Config:
    own: dict[str, Any] = {"dataset": dataset, "runs_dir": runs, "device": "cpu", "run_name": "own", "batch_size": 20}
    return Config(**own | fields)


def test_run_on_a_table_learns_it_and_says_what_it_read(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(config_of(table, tmp_path, epochs=30, log_embedding=True))
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("2-16-16-4: 388 parameters, 400 training examples, batches of 20, on cpu")
    assert (
        "quadrants.csv, tested on 100 of the 500 examples, drawn by --seed 0: 2 columns, 4 classes (ne, nw, se, sw)"
        in second
    )
    assert second.endswith(
        "each column minus its mean, divided by its standard deviation, both of the training examples"
    )
    assert not any("explain" in line for line in lines), "which shows digits only"
    config, network = open_run(folder)
    assert config.sizes == network.sizes == (2, 16, 16, 4) and config.dataset == table
    training, test = load_data(config, network.device, folder)
    assert evaluate(network, test, config.cost).accuracy > 0.9
    assert asdict(kind_of_run(folder)) == json.loads((folder / "config.json").read_text(encoding="utf-8"))["data"] | {
        name: getattr(training.kind, name)
        for name in ("image", "names", "shift", "scale", "target_shift", "target_scale")
    }
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["3 pictures/confusion"], "there are no pixels"
    assert "8 average precision/class se" in events.Tags()["scalars"]
    (metadata,) = folder.rglob("metadata.tsv")
    assert {line.split("\t")[0] for line in metadata.read_text(encoding="utf-8").splitlines()[1:]} == {
        "ne",
        "nw",
        "se",
        "sw",
    }


@pytest.mark.long
def test_xor_and_spirals_are_learned(tmp_path: Path) -> None:
    xor = write_csv(tmp_path / "xor.csv", [[0, 0, 0], [1, 0, 1], [1, 1, 0], [0, 1, 1]])
    how = {"log": False, "learning_rate_decay": 0.0}
    network = open_run(train(config_of(xor, tmp_path, epochs=2000, sizes=(2, 4, 2), run_name="xor", **how)))[1]
    examples = own_data.load(xor)[0]
    assert evaluate(network, examples, "quadratic").accuracy == 1
    path = write_csv(tmp_path / "spirals.csv", spirals())
    fields = {"sizes": (2, 32, 32, 2), "activation": "tanh", "learning_rate": 0.1, "momentum": 0.9, "epochs": 150}
    network = open_run(train(config_of(path, tmp_path, run_name="spirals", **fields, **how)))[1]
    assert evaluate(network, own_data.load(path)[1], "quadratic").accuracy > 0.95


def test_resumed_run_is_the_same_and_other_data_are_refused(table: Path, tmp_path: Path) -> None:
    fields = {"validation": 50, "epochs": 4, "seed": 5}
    whole = train(config_of(table, tmp_path, run_name="whole", **fields))
    moved = tmp_path / "moved" / table.name
    moved.parent.mkdir()
    moved.write_bytes(table.read_bytes())
    folder = train(config_of(moved, tmp_path, **fields | {"epochs": 2}))
    train(replace(read_config(folder), resume=folder, epochs=3))
    there = tmp_path / "there" / table.name
    there.parent.mkdir()
    moved.rename(there)
    saved = read_config(folder)
    with pytest.raises(DataError, match=r"moved/quadrants.csv.*No such file"):
        train(replace(saved, resume=folder, epochs=4))
    train(saved.resumed(replace(saved, resume=folder, epochs=4, dataset=there)))
    assert torch.equal(open_run(folder)[1].parameters, open_run(whole)[1].parameters)
    there.write_text(there.read_text(encoding="utf-8").replace("\n", "\nne,1,1\n", 1), encoding="utf-8")
    with pytest.raises(DataError, match=r"quadrants.csv is not what the run was trained on: it has another"):
        train(replace(read_config(folder), resume=folder, epochs=5))
    with pytest.raises(DataError, match="another checksum"):
        verify_networks.verify(verify_networks.Options(run=folder, device="cpu"))


def test_networks_of_a_sweep_are_those_of_single_runs(table: Path, tmp_path: Path) -> None:
    lists: dict[str, Any] = {
        "learning_rate": (1.0, 2.0),
        "momentum": (0.0,),
        "weight_decay": (0.0,),
        "init": ("lecun",),
    }
    single = config_of(table, tmp_path, epochs=2, log=False, run_name=None)
    folder = sweep(SweepConfig(**vars(single) | lists | {"seeds": 2, "run_name": "sweep", "sizes": Config.sizes}))
    member = folder / "learning-rate-2_seed-1"
    assert kind_of_run(member).seed == 0, "all are tested on the same examples"
    config, network = open_run(member)
    _, test = load_data(config, network.device, member)
    accuracy = json.loads((member / "result.json").read_text(encoding="utf-8"))["test_accuracy"]
    assert evaluate(network, test, config.cost).accuracy == accuracy
    alone = train(config_of(table, tmp_path, epochs=2, log=False, learning_rate=2.0, run_name="alone"))
    other = open_run(folder / "learning-rate-2_seed-0")[1]
    assert torch.allclose(open_run(alone)[1].parameters, other.parameters, atol=1e-5)


def test_two_processes_train_as_one(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_part(rank: int) -> None:
        os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)})
        train(config_of(table, tmp_path, epochs=2, log=False, targets=0, run_name="two"), f"file://{tmp_path}/meet")

    both = [FORK.Process(target=train_part, args=(rank,)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    alone = train(config_of(table, tmp_path, epochs=2, log=False, run_name="one"))
    (one, other) = (open_run(folder)[1].parameters for folder in (tmp_path / "two", alone))
    assert torch.allclose(one, other, atol=1e-5)


def test_verify_checks_a_run_and_a_path(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_networks, "combinations", lambda: [("tanh", "sigmoid", "quadratic")])
    folder = train(config_of(table, tmp_path, epochs=1, log=False))
    options = verify_networks.Options(device="cpu", batch_sizes=(3,), dtypes=("float64",))
    cases = verify_networks.verify(replace(options, run=folder))
    assert len(cases) == 1 and cases[0].network.sizes == (2, 16, 16, 4) and cases[0].report.ok
    cases = verify_networks.verify(replace(options, dataset=table, depths=(2,)))
    assert all(case.network.sizes == (2, 16, 4) and case.report.ok for case in cases)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": (784, 30, 10)}, "--sizes: wanted 2 first and 4 last for 2 columns, 4 classes, got 784 30 10"),
        ({"deform": "affine"}, "--deform: wanted bytes of 28×28 images, .*quadrants.csv has 2 columns, 4 classes"),
        ({"train_examples": 401}, "--train-examples: .*quadrants.csv has 400, got 401"),
    ],
)
def test_what_does_not_fit_the_data_is_a_sentence(
    fields: dict[str, Any], message: str, table: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(config_of(table, tmp_path, **fields))
    assert not (tmp_path / "own").exists()


def test_explain_says_that_it_shows_digits_alone(table: Path, tmp_path: Path) -> None:
    folder = train(config_of(table, tmp_path, epochs=0, log=False))
    with pytest.raises(UsageError, match=r"explain draws 28×28 images of ten classes, .*csv has 2 columns, 4 classes"):
        open_subject(NetworkOptions(run=folder))


def test_unknown_name_of_a_data_set_is_bad_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train_command.main(["--dataset", "minst"])
    assert stop.value.code == 2
    assert re.fullmatch(
        r"error: --dataset: wanted mnist, .*, or a path; there is no 'minst' here\n", capsys.readouterr().err
    )


# ---- real targets ----


@pytest.mark.parametrize(
    ("rate", "reason"),
    [(1.0, ".* saturated.* a much smaller --learning-rate than 1"), (1e-6, "the weights moved by .*")],
)
def test_real_targets_of_which_nothing_is_explained_are_told(
    rate: float, reason: str, houses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config_of(houses, tmp_path, targets=2, epochs=3, learning_rate=rate, log=False))
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(f"the network explains nothing of its targets: {reason}", said)


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two targets that follow from three columns, in units of their own."""
    x = np.random.default_rng(4).normal(0, 1, (600, 3)) * [3, 0.1, 500]
    y = np.stack([1e5 * np.sin(x[:, 0] / 3) + 2e4 * x[:, 1], x[:, 2] / 500 - x[:, 0]], 1)
    found = [["a", "b", "c", "price", "age"], *np.concatenate([x, y], 1).tolist()]
    return write_csv(tmp_path_factory.mktemp("own") / "houses.csv", found)


def test_real_targets_are_learned(houses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"targets": 2, "epochs": 40, "learning_rate": 0.05, "validation": 60, "activation": "tanh"}
    folder = train(config_of(houses, tmp_path, **fields, log_embedding=True))
    said = capsys.readouterr().out
    assert "3 columns, 2 targets (price, age); each column and target minus its mean" in said and "explained" in said
    assert "explains nothing" not in said
    config, network = open_run(folder)
    assert network.sizes == (3, 16, 16, 2) and network.output_activation == "identity"
    _, test = load_data(config, network.device, folder)
    x = torch.tensor(np.loadtxt(houses, delimiter=",", skiprows=1))[:, :3]
    y = torch.tensor(np.loadtxt(houses, delimiter=",", skiprows=1))[:, 3:]
    kind = kind_of_run(folder)
    a = ((x - torch.tensor(kind.shift)) / torch.tensor(kind.scale)).float()
    for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        a = a @ W.T + b if layer == 2 else torch.tanh(a @ W.T + b)
    predicted = a.double() * torch.tensor(kind.target_scale) + torch.tensor(kind.target_shift)
    assert ((predicted - y).square().mean(0) / y.var(0) < 0.1).all(), "in the units of the file"
    score = evaluate(network, test, "quadratic")
    y = test.labels.double()
    squares = [(evaluated - y).square().sum() for evaluated in (outputs_of(network, test.x), y.mean(0))]
    assert score.accuracy == pytest.approx(1 - (squares[0] / squares[1]).item(), abs=1e-5) and score.accuracy > 0.9
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["test_accuracy"] == pytest.approx(
        score.accuracy
    )
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == []


def outputs_of(network: Any, x: torch.Tensor) -> torch.Tensor:
    a = x
    for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        a = a @ W.T + b if layer == network.depth - 1 else torch.tanh(a @ W.T + b)
    return a.double()


def test_named_targets_need_not_be_last_and_an_npz_has_them_in_y(houses: Path, tmp_path: Path) -> None:
    table = [line.split(",") for line in houses.read_text(encoding="utf-8").splitlines()]
    turned = [["y1", "y2", *row[:3]] if n == 0 else [*row[3:], *row[:3]] for n, row in enumerate(table)]
    numbers = np.array(table[1:], float)
    np.savez(tmp_path / "a.npz", x=numbers[:, :3], y=numbers[:, 3:])
    wanted = own_data.load(houses, targets=2)
    assert wanted[0].labels.mean(0).abs().max() < 1e-6 and (wanted[0].labels.std(0) - 1).abs().max() < 2e-3
    for path in (write_csv(tmp_path / "turned.csv", turned), tmp_path / "a.npz"):
        for found, examples in zip(own_data.load(path, targets=2), wanted, strict=True):
            assert torch.equal(found.x, examples.x) and torch.equal(found.labels, examples.labels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": 3}, r"has 5 columns|targets"),
        ({"targets": 5}, "has 5 columns: wanted 5 targets and numbers"),
    ],
)
def test_more_targets_than_columns_are_a_sentence(fields: dict[str, Any], message: str, houses: Path) -> None:
    if fields["targets"] == 5:
        with pytest.raises(DataError, match=message):
            own_data.load(houses, **fields)
    else:
        assert own_data.load(houses, **fields)[0].kind.inputs == 2


@pytest.mark.parametrize(
    "fields", [{"dataset": "mnist"}, {"cost": "softmax-cross-entropy"}, {"output_activation": "tanh"}]
)
def test_real_targets_need_identity_outputs_and_the_quadratic_cost(fields: dict[str, Any], houses: Path) -> None:
    with pytest.raises(ValueError, match="--targets: wanted --dataset PATH, --cost quadratic and --output-activation"):
        config_of(**{"dataset": houses, "runs": Path("runs"), "targets": 2} | fields)  # type: ignore[arg-type]


def test_kind_is_the_same_after_json(houses: Path) -> None:
    kind = own_data.load(houses, targets=2)[0].kind
    assert Kind.from_dict(json.loads(json.dumps(asdict(kind)))) == kind
    with pytest.raises((TypeError, ValueError)):
        Kind.from_dict({"inputs": "3"})


def test_examples_of_a_table_take_any_finite_float() -> None:
    kind = Kind(2, 3, image=())
    assert Examples(torch.tensor([[-5.0, 7.0]]), torch.tensor([2]), kind).x.shape == (1, 2)
    with pytest.raises(ValueError, match="x holds floats from -inf to 7, wanted finite ones"):
        Examples(torch.tensor([[-torch.inf, 7.0]]), torch.tensor([2]), kind)


def test_path_that_is_longer_than_a_path_can_be_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"--dataset: wanted mnist, .* there is no '999"):
        Config(dataset=Path("9" * 401))
