"""Data of one's own as examples: an NPZ, a CSV, IDX files, or a folder of images by class.

A reader returns a ``Table``, numbers and labels as they are there; ``load`` makes inputs, classes and a test set of it.
Nothing that is read is run: pickles are refused. Nothing here knows of a network or a run.
"""

import csv
import gzip
import hashlib
import io
import re
import warnings
import zlib
from collections.abc import Callable, Collection
from itertools import chain, islice
from math import isfinite, isqrt, prod
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from zipfile import BadZipFile

import numpy as np
import torch

from bp_torch.data import IMAGES, Array, DataError, content_of, read_idx
from bp_torch.examples import TWICE, Examples
from bp_torch.files import regular
from bp_torch.kind import Kind
from bp_torch.text import count

FEWEST = 20  # examples of which some are held out as the test set
PART, MOST = 5, 10_000  # one in so many is held out, but no more than this
SMALLEST = 7  # pixels along each side of an image that comes as a row of numbers
SHOWN = 50  # characters of what is wrong
DARK = 127  # where no pixel is above this, the brightest becomes 1, and not 255

LABELS = ("label", "labels", "class", "target", "y", "digit", "letter", "species", "category")  # columns of a CSV
TARGETS = r"(target|y)s?[ _]?\d*"
IDS = ("", "id", "index", "unnamed: 0")  # columns that only number the rows
TRAINING_ARRAYS = ("x_train y_train", "train_images train_labels", "x y", "data target", "images labels")
TEST_ARRAYS = ("x_test y_test", "test_images test_labels")
TRAINING, TEST = ("train", "training"), ("test", "testing", "t10k", "val", "valid", "validation")  # files and folders
CHANGED = "{} is not what the run was trained on: it has another checksum"
WANTED = "wanted an .npz with x and y, a .csv, IDX files, or a folder with a folder of images for each class"


class Table(NamedTuple):
    """The numbers and labels of some files, as they are there."""

    x: Array  # (N, n_0), or images (N, height, width) or (N, height, width, 3): finite numbers
    y: Array  # (N,) labels, numbers or names; or real targets (N, n_L)
    source: str  # where it was read
    names: tuple[str, ...] = ()  # of the real targets


def load(path: Path, targets: int = 0, seed: int = 0, known: Kind | None = None) -> tuple[Examples, Examples]:
    """The training and the test set at ``path``, on the CPU: with so many real ``targets``, or for 0 with classes.

    Where there is no test set, a part drawn by ``seed`` is held out as one. Seed and constants are those of the kind
    that is ``known``, if one is. Raises DataError for what cannot be read, and for examples that are not of that kind.
    """
    seed = known.seed if known and known.seed is not None else seed
    try:
        whole, test = read(path, targets)
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: its text is not in UTF-8; save it so") from error
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; {WANTED}") from error
    n, source, drawn_by = len(whole.x), whole.source, None
    if test:
        source += f", tested on {count(len(test.x), 'example')} of {test.source}"
    elif n < FEWEST:
        test, source = whole, f"{source}, tested on the same {count(n, 'example')}, too few to hold some out"
    else:
        order, held, drawn_by = np.random.default_rng((seed, 0, 2)).permutation(n), min(n // PART, MOST), seed
        parts = (np.sort(order[held:]), np.sort(order[:held]))
        whole, test = (whole._replace(x=whole.x[rows], y=whole.y[rows]) for rows in parts)
        source += f", tested on {held:,} of the {n:,} examples, drawn by --seed {seed}"
    try:
        with np.errstate(all="ignore"):  # what comes of it is checked
            sets = made(whole, test, targets, known, source=source, seed=drawn_by)
    except ValueError as error:
        raise DataError(f"cannot use {path}: {error}") from error
    if known and known.sha256 != sets[0].kind.sha256:
        raise DataError(CHANGED.format(path))
    return sets


def made(whole: Table, test: Table, targets: int, known: Kind | None, **about: Any) -> tuple[Examples, Examples]:
    """Both sets as examples of one kind, which says ``about`` their source. Constants are those of the training set.

    Those of a ``known`` kind are taken from there: another machine may round a mean otherwise.
    """
    if whole.x.shape[1:] != test.x.shape[1:]:
        shapes = f"{whole.x.shape[1:]} and {test.x.shape[1:]}"
        raise DataError(f"the examples of {whole.source} and {test.source} differ in shape: {shapes}")
    if known and known.inputs != prod(whole.x.shape[1:]):
        raise DataError(CHANGED.format(whole.source))
    image, tables = known.image if known else image_shape(whole.x), (whole, test)
    shift, scale = pixel_range(whole.x) if image else standard(whole.x)
    shift, scale = (known.shift, known.scale) if known else (shift, scale)
    about |= {"inputs": prod(whole.x.shape[1:]), "image": image, "shift": shift, "scale": scale, "real": targets > 0}
    if targets:
        shift, scale = (known.target_shift, known.target_scale) if known else standard(whole.y)
        labels = [((table.y - shift) / scale).astype(np.float32) for table in tables]
        about |= {"outputs": targets, "names": whole.names, "target_shift": shift, "target_scale": scale}
    else:
        names, indices = classes(np.concatenate([table.y for table in tables]), whole.source)
        labels = np.split(indices, [len(whole.y)])
        about |= {"outputs": len(names), "names": () if names == [str(k) for k in range(len(names))] else tuple(names)}
    x, sums = [as_inputs(table.x, Kind(**about)) for table in tables], hashlib.sha256()
    for part in (*x, *labels):
        sums.update(np.ascontiguousarray(part).data)
    kind = Kind(**about, sha256=sums.hexdigest())
    training, held_out = (Examples(torch.from_numpy(x[k]), torch.from_numpy(labels[k]), kind) for k in (0, 1))
    return training, held_out


# ---- inputs and classes ----


def image_shape(x: Array) -> tuple[int, ...]:
    """The shape of an image, or () where the inputs are no pixels. A square number of bytes or of 0..1 is an image."""
    side = isqrt(x.shape[1])
    square = x.ndim == 2 and side >= SMALLEST and side**2 == x.shape[1]
    unit = square and x.min() >= 0 and (x.max() <= 1 or are_bytes(x))
    return x.shape[1:] if x.ndim > 2 else (side, side) if unit else ()


def are_bytes(x: Array) -> bool:
    """Whether all are whole numbers from 0 to 255."""
    return x.dtype == np.uint8 or bool(x.min() >= 0 and x.max() <= 255 and (x == np.floor(x)).all())


def pixel_range(x: Array) -> tuple[tuple[float], tuple[float]]:
    """Shift and scale by which pixels become 0 to 1, one for all: of bytes 0 and 255."""
    low, high = min(0.0, float(x.min())), float(x.max())
    high = 255.0 if low == 0 and DARK < high <= 255 else max(high, low + 1.0) if TWICE < high <= 1 else high
    return (low,), (high - low,)


def standard(values: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column of ``values`` (N, n); of one that is constant, 1 for the latter."""
    mean, deviation = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    return tuple(mean.tolist()), tuple(np.where(values.max(0) == values.min(0), 1.0, deviation).tolist())


def as_inputs(x: Array, kind: Kind) -> Array:
    """The numbers (N, …) as rows of inputs (N, n_0): bytes, or float32 that are shifted and scaled."""
    x = x.reshape(len(x), -1)
    if kind.image and (kind.shift, kind.scale) == ((0.0,), (255.0,)) and are_bytes(x):
        return x.astype(np.uint8)
    values: Array = ((x - np.array(kind.shift)) / np.array(kind.scale)).astype(np.float32)
    return values.clip(0, 1) if kind.image else values


def classes(labels: Array, source: str) -> tuple[list[str], Array]:
    """The names of the classes in their order, and the class of each label. Raises DataError for what is no class."""
    found, indices = np.unique(labels, return_inverse=True)
    names = [str(label).strip() for label in found.tolist()]
    numbers = [float(name) if is_number(name) else None for name in names]
    if bad := [name for name, n in zip(names, numbers, strict=True) if not name or (n is not None and n % 1 != 0)]:
        raise DataError(
            f"{source} has the label {bad[0][:SHOWN]!r}: wanted whole numbers or names; or give --targets 1"
        )
    names = [name if n is None else str(as_integer(name)) for name, n in zip(names, numbers, strict=True)]
    order = sorted(set(names), key=lambda name: (not is_number(name), float(name) if is_number(name) else 0, name))
    if len(order) == 1:
        raise DataError(f"{source} holds one class only, {order[0]}: there is nothing to tell apart")
    if len(labels) >= FEWEST and 2 * len(order) > len(labels):
        way = "name the column of the labels: label; for real targets, give --targets 1"
        raise DataError(f"{source} has {len(order):,} labels for {len(labels):,} examples: {way}")
    return order, np.array([order.index(name) for name in names])[indices.reshape(-1)]


def as_integer(number: str) -> int:
    """The integer that is written so, or as 3.0: a float does not hold all digits of a long one."""
    try:
        return int(number)
    except ValueError:
        return int(float(number))


def table(x: Array, y: Array, source: str, targets: int, names: Collection[str] = ()) -> Table:
    """A table of arrays whose shapes and contents fit. Raises DataError where they do not."""
    x = x.astype(np.uint8) if x.dtype == bool else x[:, None] if x.ndim == 1 else x
    if x.ndim == 4 and x.shape[3] not in (1, 3):  # the colours come first
        x = np.moveaxis(x, 1, 3)
    x = x[..., 0] if x.shape[3:] == (1,) else x
    if x.dtype.kind not in "uif" or x.ndim not in (2, 3, 4) or x.shape[3:] not in ((), (3,)) or not x.size:
        wanted = "numbers (N, inputs), (N, height, width) or (N, height, width, 3)"
        raise DataError(f"{source}: x has shape {x.shape} and type {x.dtype}, wanted {wanted}")
    if targets:
        y = y.reshape(len(y), -1)
    elif y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "buif" and (np.sort(y, 1)[:, -2:] == (0, 1)).all():
        y = y.argmax(1)  # they were one-hot
    elif y.shape[1:] == (1,):
        y = y[:, 0]
    if y.shape != (len(x), targets)[: 1 + (targets > 0)] or (targets and y.dtype.kind not in "buif"):
        wanted = f"{targets} numbers, by --targets," if targets else "one label"
        raise DataError(f"{source}: y has shape {y.shape} and type {y.dtype}, wanted {wanted} for each of {len(x):,}")
    if not np.isfinite(x).all() or (targets and not np.isfinite(y).all()):
        raise DataError(f"{source} holds NaN or infinity: wanted finite numbers")
    return Table(x, y.astype(np.float64) if targets else y, source, tuple(names))


# ---- files ----


def read(path: Path, targets: int) -> tuple[Table, Table | None]:
    """The training set at ``path``, and the test set that is there or beside it; None for none."""
    if path.is_dir():
        return read_folder(path, targets)
    with opened(path) as file:
        start = file.read(4)
    if start.startswith(b"PK"):
        return read_npz(path, targets)
    text = start.decode(errors="replace")
    if text.startswith("\ufffd") or (b"\0" in start and start[:2] != b"\0\0"):
        raise DataError(f"{path} is not a data set: {WANTED}")
    reader = read_idx_pair if b"\0" in start else read_csv
    names = [re.sub("train(ing)?", word, path.name) for word in TEST]  # mnist_test.csv beside mnist_train.csv
    beside = [path.with_name(name) for name in names if name != path.name and path.with_name(name).is_file()]
    if reader is read_csv:  # a test set without labels, as Kaggle's, has fewer columns
        beside = [other for other in beside if len(first_row(other)[1]) == len(first_row(path)[1])]
    return reader(path, targets), reader(beside[0], targets) if beside else None


def opened(path: Path) -> Any:
    """The file, to read bytes; unpacked, if gzip packed it."""
    with regular(path).open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def read_npz(path: Path, targets: int) -> tuple[Table, Table | None]:
    """The arrays of ``TRAINING_ARRAYS``, and of ``TEST_ARRAYS`` if they are there, as keras has them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            inside = {name.lower(): name for name in file.files}
            found = [[n for n in names if {*n.split()} <= {*inside}] for names in (TRAINING_ARRAYS, TEST_ARRAYS)]
            pairs = [[file[inside[name]] for name in names[0].split()] for names in found if names]
            if not all(isinstance(part, np.ndarray) for part in chain(*pairs)):  # else the bytes of the file
                raise ValueError("it holds other files than arrays")
    except (ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        pickled = re.search("pickled|Object arrays", str(error))
        reason = "it holds pickled objects, which are never run" if pickled else error
        raise DataError(f"cannot read {path}: {reason}; wanted arrays of numbers, saved by np.savez") from error
    if not found[0]:
        raise DataError(f"{path} has {', '.join(file.files)}: wanted x_train, y_train, x_test and y_test, or x and y")
    training, *test = (table(x, y, str(path), targets) for x, y in pairs)
    return training, test[0] if test else None


def read_idx_pair(path: Path, targets: int) -> Table:
    """The IDX file of images, and that of labels beside it."""
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == path or not labels.is_file():
        raise DataError(f"{path} has no labels beside it: wanted a file of images, and {labels.name}")
    x, y = (read_idx(file, content_of(file)) for file in (path, labels))
    return table(x, y, str(path), targets)


def read_folder(folder: Path, targets: int) -> tuple[Table, Table | None]:
    """IDX files in a folder, or a folder of images for each class, perhaps in folders train and test."""
    inside = {path.name.lower(): path for path in sorted(folder.glob("[!.]*"))}
    idx = {name.removesuffix(".gz"): path for name, path in inside.items() if re.search("images.idx3", name)}
    if idx := {name: path for name, path in idx.items() if "train" in name} or idx:
        if len(idx) > 1:
            raise DataError(f"{folder} holds {', '.join(idx)}: give --dataset the path of one of these files")
        return read(next(iter(idx.values())), targets)
    training, test = (next((inside[name] for name in names if name in inside), None) for names in (TRAINING, TEST))
    return read_images(training or folder, targets), read_images(test, targets) if training and test else None


def read_images(folder: Path, targets: int) -> Table:
    """The images in the folders of ``folder``, whose names are the classes."""
    folders = {path: sorted(path.glob("*")) for path in sorted(folder.glob("[!.]*")) if path.is_dir()}
    files = {path: [file for file in found if file.suffix.lower() in IMAGES] for path, found in folders.items()}
    if targets or not files or not all(files.values()):
        bad = next((path for path, found in files.items() if not found), folder)
        holds = ", ".join(sorted(path.name for path in bad.glob("*"))[:5]) or "nothing"
        raise DataError(f"{bad} holds {holds}: {WANTED}{', which has no real --targets' * (targets > 0)}")
    images, (first, *_) = list[Array](), chain(*files.values())
    for file in chain(*files.values()):
        images.append(pixels(file))
        if images[-1].shape[:2] != images[0].shape[:2]:
            one, other = ("×".join(map(str, image.shape[1::-1])) for image in (images[0], images[-1]))
            raise DataError(f"images differ in size: {first} has {one} pixels, {file} {other}; wanted one size")
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else image[..., None].repeat(3, 2) for image in images]
    labels = np.repeat([path.name for path in files], [len(found) for found in files.values()])
    return table(np.stack(images), labels, str(folder), targets)


def pixels(file: Path) -> Array:
    """An image as bytes (height, width), or in colour (height, width, 3); what is transparent is white."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(regular(file)) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"its pixels are of mode {image.mode}, wanted 8 bits")
            whole = image.convert("RGBA")
        found = np.asarray(Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole))[..., :3]
    except Exception as error:  # a decoder may raise anything for bytes that are no image
        raise DataError(f"cannot read {file}: {error}") from error
    return found[..., 0] if (found == found[..., :1]).all() else found


# ---- CSV ----


def read_csv(path: Path, targets: int) -> Table:
    """A row for each example, its label in the ``label_column``; or real targets, named so or last."""
    separator, head = first_row(path)
    header = not any(map(is_number, head)) or any(cell.lower() in (*LABELS[:3], *IDS[1:]) for cell in head)
    names = [cell.lower() if header else "-" for cell in head]
    columns = [k for k, name in enumerate(names) if name not in IDS]
    if len(columns) <= max(1, targets):
        wanted = f"{targets} targets" if targets else "a label"
        raise DataError(f"{path} has {count(len(columns), 'column')}: wanted {wanted} and numbers, with , between")
    named = [k for k in columns if re.fullmatch(TARGETS, names[k])]
    chosen = named if len(named) == targets else columns[-targets:]
    said = ""
    if not targets:
        chosen = [label_column(path, separator, names, columns)]
        name = f" ({head[chosen[0]]})" if header else ""
        said = "" if names[chosen[0]] in LABELS else f", its label in column {chosen[0] + 1}{name}"
    found = dict[str, int]()
    texts: dict[Any, Callable[[str], float]] = {k: lambda _: 0 for k, name in enumerate(names) if name in IDS}
    if not targets:
        texts[chosen[0]] = lambda text: found.setdefault(text, len(found))
    dtype = np.dtype(np.float32 if len(names) > SMALLEST**2 else np.float64)  # bytes are exact in both
    with io.TextIOWrapper(opened(path), "utf-8-sig", newline="") as file, warnings.catch_warnings(action="ignore"):
        how: dict[str, Any] = {"skiprows": int(header), "quotechar": '"', "comments": None, "ndmin": 2}
        try:
            numbers = np.loadtxt(file, dtype, delimiter=separator, converters=texts, **how)
            if not numbers.size or numbers.shape[1] != len(names) or not np.isfinite(numbers).all():
                raise ValueError
        except ValueError as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            file.seek(0)
            raise DataError(f"{path}{fault(file, separator, header, texts)}") from error
    inputs = sorted({*columns} - {*chosen})
    source = f"{path}{said} without {', '.join(head[k] or 'the first' for k in texts if k not in chosen)}"
    y = numbers[:, chosen] if targets else np.array(list(found))[numbers[:, chosen[0]].astype(int)]
    targeted = [head[k] for k in chosen] if header and targets else ()
    return table(numbers[:, inputs], y, source.removesuffix(" without "), targets, targeted)


def label_column(path: Path, separator: str, names: list[str], columns: list[int]) -> int:
    """The column of ``LABELS``, or the only one of text; or else the first.

    Where the first has fractions and the last whole numbers that recur, in the first hundred rows, it is the last.
    """
    if named := [names.index(label) for label in LABELS if label in names]:
        return named[0]
    with io.TextIOWrapper(opened(path), "utf-8-sig", newline="") as file:
        rows = [cells for cells in islice(csv.reader(file, delimiter=separator), 1, 100) if len(cells) == len(names)]
    numbers = {k: [float(cells[k]) for cells in rows if is_number(cells[k], finite=True)] for k in columns}
    texts = [k for k in columns if not numbers[k]]
    whole = [all(number % 1 == 0 for number in numbers[k]) for k in columns]
    few = 2 * len({*numbers[columns[-1]]}) <= len(rows)
    return texts[0] if len(texts) == 1 else columns[-1 if whole[-1] and few and not whole[0] else 0]


def first_row(path: Path) -> tuple[str, list[str]]:
    """The separator of the columns of a CSV, and the cells of its first row."""
    with io.TextIOWrapper(opened(path), "utf-8-sig", newline="") as file:
        first = file.readline()
    separator = max(",;\t", key=first.count)
    return separator, [cell.strip() for cell in next(csv.reader([first], delimiter=separator), [])]


def fault(file: TextIO, separator: str, header: bool, texts: Collection[Any]) -> str:
    """The first row of a CSV that is not as it has to be, in words; the columns ``texts`` need no numbers."""
    rows = [(number, cells) for number, cells in enumerate(csv.reader(file, delimiter=separator), 1) if cells]
    head = rows[0][1]
    for number, cells in rows[header:]:
        if len(cells) != len(head):
            return f", row {number}, has {count(len(cells), 'column')}, the first row {len(head)}: wanted equally many"
        for k, cell in enumerate(cells):
            if k not in texts and not is_number(cell, finite=True):
                name = f" ({head[k].strip()})" if header else ""
                way = "wanted a finite number; or name this column label, if it is that"
                return f", row {number}, column {k + 1}{name}, has {cell[:SHOWN]!r}: {way}"
    return " holds no rows of numbers"


def is_number(cell: str, *, finite: bool = False) -> bool:
    """Whether it can be read as a number: by more than Python, which reads 1_0 too."""
    try:
        return (isfinite(float(cell)) or not finite) and cell.isascii() and "_" not in cell
    except ValueError:
        return False
