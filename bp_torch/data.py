"""MNIST and its 28×28 relatives: from torchvision's folders to tensors on the device, and shuffled mini-batches.

MNIST itself is part of the package (``bp_torch/mnist``): on first use it is unpacked into ``<directory>/MNIST/raw``,
where ``torchvision.datasets.MNIST`` reads it. The others are downloaded by torchvision. What it read is kept beside the
raw files, so that later uses need no torchvision. Every file is checked before each use. Pixels are kept as bytes,
0..255, until ``batch`` scales them. Nothing here knows of a network.
"""

import hashlib
from contextlib import suppress
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from bp_torch.cli import UserError
from bp_torch.files import in_utf8, lock_in, replace_file
from bp_torch.values import CLASSES as CLASSES
from bp_torch.values import PIXELS as PIXELS

PIXEL_SCALE = 1 / 255  # takes a pixel byte, 0..255, to an input of the network, 0..1


class DataError(UserError):
    """The data are missing or damaged. The message names the file and what to do."""


class Examples(NamedTuple):
    """Images and the digits that they show, on one device."""

    x: Tensor  # (N, 784), uint8
    labels: Tensor  # (N,), int64 from 0 to 9


class Family(NamedTuple):
    """Where torchvision keeps one data set: ``<directory>/<folder>/raw/<files>``, unpacked from ``archives``."""

    name: str
    options: dict[str, str]
    files: tuple[str, ...]
    archives: tuple[str, ...]

    def raw(self, directory: Path) -> Path:
        """The folder of the unpacked files."""
        return directory / self.name / "raw"

    @property
    def loader(self) -> Any:
        """The class of torchvision, which takes as long to import as torch: not before it is used."""
        from torchvision import datasets

        return getattr(datasets, self.name)


def _family(
    name: str, parts: str = "train t10k", labels: str = "labels-idx1-ubyte", archive: str = "", **options: str
) -> Family:
    files = tuple(f"{part}-{kind}" for part in parts.split() for kind in ("images-idx3-ubyte", labels))
    return Family(name, options, files, (archive,) if archive else tuple(f"{file}.gz" for file in files))


FAMILIES: dict[str, Family] = {
    "mnist": _family("MNIST"),
    "fashion-mnist": _family("FashionMNIST"),
    "kmnist": _family("KMNIST"),
    "qmnist": _family("QMNIST", "qmnist-train qmnist-test", labels="labels-idx2-int"),
    "emnist-digits": _family("EMNIST", "emnist-digits-train emnist-digits-test", archive="gzip.zip", split="digits"),
}

MNIST_SHA256 = {  # of the four files of MNIST as published, unpacked
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
TENSORS = "tensors.safetensors"  # beside the raw files, and may be deleted: what torchvision read from them, with sums
NAMES = ("train.x", "train.labels", "test.x", "test.labels")
CHECKSUMS = "SHA256SUMS"  # beside the other families' files: their sums, for ``sha256sum -c``, from when first unpacked


def load(dataset: str, directory: Path, device: torch.device | str = "cpu") -> tuple[Examples, Examples]:
    """The training and the test set, put into ``directory`` on first use. Raises DataError for files that are bad."""
    family = FAMILIES[dataset]
    raw = family.raw(directory)
    if not _complete(dataset, raw):
        try:
            raw.mkdir(parents=True, exist_ok=True)
            with lock_in(raw):  # of two processes that start at once, one unpacks
                if not _complete(dataset, raw):
                    _unpack_mnist(raw) if dataset == "mnist" else _download(family, directory)
        except OSError as error:
            raise DataError(f"cannot put {dataset} into {raw}: {error}; choose another --data-dir") from error
    sums = _verify(dataset, raw)
    tensors = _kept(raw / TENSORS, sums)
    if tensors is None:
        read = (*_read(family, directory, train=True), *_read(family, directory, train=False))
        tensors = dict(zip(NAMES, read, strict=True))
        with suppress(OSError):  # where it cannot be kept, do without
            replace_file(raw / TENSORS, save_tensors(tensors, sums | _sums_of(tensors)))
    x, labels, test_x, test_labels = (tensor.to(device) for tensor in tensors.values())
    return Examples(x, labels), Examples(test_x, test_labels)


def folder_of_run(dataset: str, stored: Path) -> Path:
    """``stored``, the folder that a run's config names, if it has the data; else ``data``, the default, to be filled.

    So nothing is unpacked into a folder that a file names and nobody else.
    """
    return stored if _complete(dataset, FAMILIES[dataset].raw(stored)) else Path("data")


def _complete(dataset: str, raw: Path) -> bool:
    """Whether every file is there; for a downloaded data set, also whether its checksums were written."""
    marks = () if dataset == "mnist" else (CHECKSUMS,)
    return all((raw / name).is_file() for name in (*FAMILIES[dataset].files, *marks))


def _unpack_mnist(raw: Path) -> None:
    """Unpack the missing files. Those that are there already are not touched, and are checked like the rest."""
    try:
        import lzma
    except ImportError as error:  # as pyenv builds Python on a Mac without xz
        raise DataError(f"this Python has no lzma ({error}): install xz and then Python again") from error
    for name in FAMILIES["mnist"].files:
        if not (raw / name).is_file():
            packed = resources.files("bp_torch").joinpath("mnist", f"{name}.xz")
            replace_file(raw / name, lzma.decompress(packed.read_bytes()))


def _download(family: Family, directory: Path) -> None:
    """Let torchvision download and unpack both sets, then write the checksums of files that are complete."""
    raw = family.raw(directory)
    for name in family.files:  # left there by a person, or by a process that died
        if (raw / name).is_file():
            _check_idx(raw / name)
    try:
        for train in (True, False):
            family.loader(str(directory), train=train, download=True, **family.options)
    except (RuntimeError, OSError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise DataError(
            f"torchvision could not download {family.name} ({reason[0].strip()}): "
            f"put {', '.join(family.archives)} into {raw}, as published, and start again"
        ) from error
    for name in family.files:
        _check_idx(raw / name)
    sums = "".join(f"{_sha256(raw / name)}  {name}\n" for name in family.files)
    replace_file(raw / CHECKSUMS, sums.encode())


def _verify(dataset: str, raw: Path) -> dict[str, str]:
    """The checksum of each file. Raises DataError if one is not what it was when it was published, or unpacked."""
    sums, again = MNIST_SHA256, "from the package"
    if dataset != "mnist":
        lines = (raw / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        again = f"from {' and '.join(FAMILIES[dataset].archives)}, together with {CHECKSUMS}"
    for name in FAMILIES[dataset].files:
        if _sha256(raw / name) != sums.get(name):
            raise DataError(f"{raw / name} is truncated or altered: delete it and it is unpacked again {again}")
    processed = raw.parent / "processed"
    if any(processed.glob("*.pt")):
        files = f"{processed} holds .pt files"
        raise DataError(f"{files}, which torchvision would read unchecked in place of {raw}: delete it")
    return sums


def _kept(path: Path, sums: dict[str, str]) -> dict[str, Tensor] | None:
    """The tensors in ``path``, mapped into memory; None unless they are whole, and of raw files with these ``sums``."""
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            tensors, about = {name: file.get_tensor(name) for name in NAMES}, file.metadata()
    except (OSError, SafetensorError):
        return None
    return tensors if about == sums | _sums_of(tensors) else None


def _sums_of(tensors: dict[str, Tensor]) -> dict[str, str]:
    """The checksum of each tensor's numbers, by its name and kind."""
    return {
        f"{name} {tuple(tensor.shape)} {tensor.dtype}": hashlib.sha256(tensor.numpy().data).hexdigest()
        for name, tensor in tensors.items()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_idx(path: Path) -> None:
    """Raise DataError unless the file is as long as its IDX header says: 0, 0, type, rank, then 4 bytes a dimension."""
    content = path.read_bytes()
    item_size = {8: 1, 9: 1, 11: 2, 12: 4, 13: 4, 14: 8}
    rank = content[3] if len(content) > 3 else 0
    shape = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, rank + 1)]
    wanted = 4 + 4 * rank + prod(shape) * item_size.get(content[2], 0) if rank else 4
    if not rank or len(content) != wanted:
        raise DataError(f"{path} is truncated: it has {len(content)} bytes, wanted {wanted}; delete it and start again")


def _read(family: Family, directory: Path, *, train: bool) -> Examples:
    data = family.loader(str(directory), train=train, **family.options)
    images, labels = data.data, data.targets
    if labels.ndim == 2:  # QMNIST: the digit, then who wrote it and where
        labels = labels[:, 0]
    if family.name == "EMNIST":  # stored on its side
        images = images.transpose(1, 2)
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or not 0 <= labels.min() <= labels.max() < CLASSES:
        raise DataError(f"{family.raw(directory)} does not hold 28×28 images with one label from 0 to 9 each")
    return Examples(images.reshape(-1, PIXELS), labels.contiguous())


def one_hot(labels: Tensor, classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> Tensor:
    """The targets y (B, classes) of ``labels`` (B,): 1 for the class, else 0. Raises ValueError for another label."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are a (B,) tensor of integers, not {tuple(labels.shape)} of {labels.dtype}")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(f"label {wrong[0].item()} is not one of 0 to {classes - 1}")
    return _one_hot(labels, classes, dtype)


def _one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    y = torch.zeros(len(labels), classes, dtype=dtype, device=labels.device)
    return y.scatter_(1, labels[:, None].long(), 1)


def permutation(n: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """The order (n,) of ``epoch``: drawn from (seed, epoch) alone, so the same in every process and resumed run."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n)).to(device, torch.int64)


def first_shuffled(examples: Examples, n: int, seed: int) -> Examples:
    """The first n of the shuffled examples. Epochs count from 1; this is the shuffle of epoch 0."""
    indices = permutation(len(examples.labels), seed, 0, examples.x.device)[:n]
    return Examples(examples.x[indices], examples.labels[indices])


def subsample(examples: Examples, about: int = 10_000) -> Examples:
    """``about`` so many of the examples, evenly spaced over all of them; all of fewer."""
    # An odd distance: in MNIST easy and hard writers alternate, and one parity is 2 points above the other.
    every = max(1, len(examples.labels) // about) | 1
    return Examples(*(tensor[::every] for tensor in examples))


def batch(
    examples: Examples, indices: Tensor | slice, dtype: torch.dtype, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (B, 784), scaled to 0..1, and the targets y (B, 10) of the examples at ``indices`` (B,), or in a slice.

    x is written into the first rows of ``out``, if that is given.
    """
    x, labels = (each[indices] if isinstance(indices, slice) else each.index_select(0, indices) for each in examples)
    return scaled(x, dtype, out=None if out is None else out[: len(x)]), _one_hot(labels, CLASSES, dtype)


def scaled(pixels: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """``pixels``, bytes, as inputs of the network: from 0 to 1; in ``out``, if that is given."""
    x = pixels.new_empty(pixels.shape, dtype=dtype) if out is None else out
    if pixels.device.type == "cpu":  # where two calls are quicker than one that casts as it multiplies
        return x.copy_(pixels).mul_(PIXEL_SCALE)
    return torch.mul(pixels, torch.tensor(PIXEL_SCALE, dtype=torch.promote_types(dtype, torch.float32)), out=x)
