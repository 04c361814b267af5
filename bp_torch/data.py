"""MNIST and its 28×28 relatives: from torchvision's folders to tensors on the device.

MNIST itself is part of the package (``bp_torch/mnist``): on first use it is unpacked into ``<directory>/MNIST/raw``,
where ``torchvision.datasets.MNIST`` reads it. The others are downloaded by torchvision. What it read is kept beside the
raw files, so that later uses need no torchvision. Every file is checked before each use. Data of one's own are read by
own_data.py.
"""

import gzip
import hashlib
import socket
import zlib
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from bp_torch.cli import UserError
from bp_torch.examples import PIXEL_SCALE as PIXEL_SCALE
from bp_torch.examples import Examples as Examples
from bp_torch.examples import batch as batch
from bp_torch.examples import first_shuffled as first_shuffled
from bp_torch.examples import one_hot as one_hot
from bp_torch.examples import permutation as permutation
from bp_torch.examples import scaled as scaled
from bp_torch.examples import subsample as subsample
from bp_torch.files import WAYS, in_utf8, lock_in, replace_file, told
from bp_torch.kind import KINDS
from bp_torch.values import CLASSES as CLASSES
from bp_torch.values import PIXELS as PIXELS

Array = np.ndarray[Any, Any]


class DataError(UserError):
    """The data are missing or damaged. The message names the file and what to do."""


class Family(NamedTuple):
    """Where torchvision keeps one data set: ``<directory>/<folder>/raw/<files>``, unpacked from ``archives``."""

    name: str
    options: dict[str, str]
    files: tuple[str, ...]
    archives: tuple[str, ...]
    prefix: str = ""  # of the file of checksums beside these, where several data sets share the folder

    def raw(self, directory: Path) -> Path:
        """The folder of the unpacked files."""
        return directory / self.name / "raw"

    def is_in(self, raw: Path) -> bool:
        """Whether every unpacked file is there."""
        return all((raw / name).is_file() for name in self.files)

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


def _emnist(split: str) -> Family:
    family = _family("EMNIST", f"emnist-{split}-train emnist-{split}-test", archive="gzip.zip", split=split)
    return family._replace(prefix="" if split == "digits" else f"{split}-")


FAMILIES: dict[str, Family] = {
    "mnist": _family("MNIST"),
    "fashion-mnist": _family("FashionMNIST"),
    "kmnist": _family("KMNIST"),
    "qmnist": _family("QMNIST", "qmnist-train qmnist-test", labels="labels-idx2-int"),
    **{name: _emnist(name.removeprefix("emnist-")) for name in KINDS if name.startswith("emnist-")},
}

MNIST_SHA256 = {  # of the four files of MNIST as published, unpacked
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")  # how their names end
TENSORS = "tensors.safetensors"  # beside the raw files, and may be deleted: what torchvision read from them, with sums
NAMES = ("train.x", "train.labels", "test.x", "test.labels")
CHECKSUMS = "SHA256SUMS"  # beside the other families' files: their sums, for ``sha256sum -c``, from when first unpacked


def load(dataset: str, directory: Path, device: torch.device | str = "cpu") -> tuple[Examples, Examples]:
    """The training and the test set, put into ``directory`` on first use. Raises DataError for files that are bad."""
    family, raw = FAMILIES[dataset], FAMILIES[dataset].raw(directory)
    if not _complete(dataset, raw):
        try:
            refuse_others(dataset, directory)
            raw.mkdir(parents=True, exist_ok=True)
            with lock_in(raw, timeout=3600):  # of two processes that start at once, one unpacks or downloads
                if not _complete(dataset, raw):
                    _unpack_mnist(raw) if dataset == "mnist" else _download(family, directory)
        except OSError as error:
            if not family.is_in(raw):  # else it may only be read, which is enough
                raise DataError(f"cannot put {dataset} into {raw}: {told(error)}; choose another --data-dir") from error
    sums, kept = _verify(dataset, raw), raw / f"{family.prefix}{TENSORS}"
    tensors = _kept(kept, sums)
    if tensors is None:
        read = (*_read(family, directory, train=True), *_read(family, directory, train=False))
        tensors = dict(zip(NAMES, read, strict=True))
        with suppress(OSError):  # where it cannot be kept, do without
            replace_file(kept, save_tensors(tensors, sums | _sums_of(tensors)))
    x, labels, test_x, test_labels = (tensor.to(device) for tensor in tensors.values())
    kind = replace(KINDS[dataset], source=str(raw))
    try:
        return Examples(x, labels, kind), Examples(test_x, test_labels, kind)
    except ValueError as error:
        raise DataError(f"{raw} does not hold 28×28 images with one label each: {error}") from error


def refuse_others(dataset: str, directory: Path) -> None:
    """Raise DataError if ``directory`` holds somebody's own data, which would be ignored without a word."""
    known, archives = {family.name for family in FAMILIES.values()}, FAMILIES[dataset].archives
    inside = [path for path in sorted(directory.glob("[!.]*")) if path.name not in known]
    found = [path for path in inside if path.is_file() and is_data(path)]
    if inside and all(any(map(is_data, chain(path.glob("*"), path.glob("*/*")))) for path in inside):
        found.append(directory)  # a folder of folders of images
    if found:
        way = f"to train on it, give --dataset {found[0]}; for {dataset}, choose another --data-dir"
        if found[0].name in archives:
            way = f"if it is that of {dataset}, move it into {FAMILIES[dataset].raw(directory)}; else {way}"
        what = "images" if found[0] == directory else found[0].name
        raise DataError(f"{directory} holds {what}, and no {dataset} yet: {way}")


def is_data(path: Path) -> bool:
    """Whether the name is that of an image, or of a file of examples."""
    return path.suffix.lower() in {*IMAGES, ".csv", ".npz"} or (path.suffix == ".gz" and ".tar" not in path.suffixes)


def folder_of_run(dataset: str, stored: Path) -> Path:
    """``stored``, the folder that a run's config names, if it has the data; else ``data``, the default, to be filled.

    So nothing is unpacked into a folder that a file names and nobody else.
    """
    return stored if _complete(dataset, FAMILIES[dataset].raw(stored)) else Path("data")


def _complete(dataset: str, raw: Path) -> bool:
    """Whether every file is there; for a downloaded data set, also whether its checksums were written."""
    family = FAMILIES[dataset]
    return family.is_in(raw) and (dataset == "mnist" or (raw / f"{family.prefix}{CHECKSUMS}").is_file())


def _unpack_mnist(raw: Path) -> None:
    """Unpack the missing files. Those that are there already are not touched, and are checked like the rest."""
    try:
        import lzma
    except ImportError as error:  # as pyenv builds Python on a Mac without xz
        raise DataError(f"this Python has no lzma ({error}): install xz and then Python again") from error
    for name, wanted in MNIST_SHA256.items():
        if not (raw / name).is_file():
            packed = raw / f"{name}.gz"  # as torchvision leaves it, or somebody's own
            if packed.is_file() and hashlib.sha256(content_of(packed).data).hexdigest() != wanted:
                way = f"to train on it, give --dataset {raw}; for mnist, choose another --data-dir"
                raise DataError(f"{packed} is not that of MNIST: {way}")
            content = resources.files("bp_torch").joinpath("mnist", f"{name}.xz").read_bytes()
            replace_file(raw / name, lzma.decompress(content))


def _download(family: Family, directory: Path) -> None:
    """Let torchvision download and unpack both sets, then write the checksums of files that are complete."""
    raw = family.raw(directory)
    for name in family.files:  # left there by a person, or by a process that died
        if (raw / name).is_file():
            _check_idx(raw / name)
    there = [name for name in family.archives if (raw / name).is_file()]
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(30)  # seconds without an answer: torchvision would wait for ever
        for train in (True, False):
            family.loader(str(directory), train=train, download=True, **family.options)
    except (RuntimeError, OSError, AssertionError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in WAYS:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        needed = [name for name in family.archives if not (name[-3:] == ".gz" and (raw / name[:-3]).is_file())]
        way = f"put {', '.join(name for name in needed if name not in there)} into {raw}, as published, and start again"
        if {*needed[:1]} & {*there}:  # they are unpacked one after another, and this one was not
            way = f"{raw / needed[0]} is not as published: replace it, and start again"
        raise DataError(f"torchvision could not download {family.name} ({reason}): {way}") from error
    finally:
        socket.setdefaulttimeout(before)
    for name in family.files:
        _check_idx(raw / name)
    sums = "".join(f"{_sha256(raw / name)}  {name}\n" for name in family.files)
    replace_file(raw / f"{family.prefix}{CHECKSUMS}", sums.encode())


def _verify(dataset: str, raw: Path) -> dict[str, str]:
    """The checksum of each file. Raises DataError if one is not what it was when it was published, or unpacked.

    Of files without a list of their sums, which may only be read, there is nothing to check.
    """
    family, sums, again = FAMILIES[dataset], MNIST_SHA256, "from the package"
    if dataset != "mnist":
        path = raw / f"{family.prefix}{CHECKSUMS}"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        again = f"from {' and '.join(family.archives)}, together with {path.name}"
        if missing := [name for name in family.files if path.is_file() and name not in sums]:
            raise DataError(f"{path} has no checksum of {missing[0]}: delete it, and it is written anew")
    for name in family.files:
        if sums and _sha256(raw / name) != sums.get(name):
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
    """Raise DataError unless the file is as its IDX header says, and of bytes; QMNIST's labels are of integers."""
    content = content_of(path)
    kind = 12 if path.name.endswith("-int") else 8
    read_idx(path, content)
    if content[2] != kind:
        raise DataError(f"{path} has numbers of the IDX type {content[2]}, wanted {kind}; delete it and start again")


def _read(family: Family, directory: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """The images (N, 784) and the labels (N,) that torchvision reads."""
    for name in family.files:
        _check_idx(family.raw(directory) / name)
    try:
        data = family.loader(str(directory), train=train, **family.options)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise DataError(f"torchvision cannot read {family.raw(directory)}: {error or type(error).__name__}") from error
    images, labels = data.data, data.targets
    if labels.ndim == 2:  # QMNIST: the digit, then who wrote it and where
        labels = labels[:, 0]
    if family.name == "EMNIST":  # stored on its side
        images = images.transpose(1, 2)
    if images.shape[1:] != (28, 28):
        raise DataError(
            f"{family.raw(directory)} does not hold 28×28 images with one label each: {tuple(images.shape)}"
        )
    first = 1 if family.options.get("split") == "letters" else 0  # its labels count from 1
    return images.reshape(-1, PIXELS).contiguous(), labels.contiguous() - first


def content_of(path: Path) -> Array:
    """The bytes of a file, mapped into memory, or those that gzip packed in it. Raises DataError for bad ones."""
    content: Array = np.memmap(path, np.uint8, "c") if path.stat().st_size else np.empty(0, np.uint8)
    if content[:2].tobytes() != b"\x1f\x8b":
        return content
    try:
        return np.frombuffer(bytearray(gzip.decompress(content.data)), np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or altered: {error}") from error


def read_idx(path: Path, content: Array) -> Array:
    """The array in the ``content`` of an IDX file: 0, 0, type, rank, 4 bytes a dimension. Raises DataError."""
    rank, kinds = int((*content[3:4], 0)[0]), {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    shape = [int.from_bytes(content[4 * i : 4 * i + 4].tobytes(), "big") for i in range(1, rank + 1)]
    kind = np.dtype(kinds.get(int((*content[2:3], 8)[0]), "u1"))
    wanted = 4 + 4 * rank + prod(shape) * kind.itemsize if rank else 4
    if not rank or len(content) != wanted:
        raise DataError(f"{path} is truncated: it has {len(content)} bytes, wanted {wanted}; delete it and start again")
    return np.frombuffer(content, kind, offset=4 + 4 * rank).reshape(shape)
