import gzip
import hashlib
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from bp_torch import data
from bp_torch.data import (
    CHECKSUMS,
    TENSORS,
    DataError,
    Examples,
    batch,
    first_shuffled,
    load,
    one_hot,
    permutation,
    subsample,
)
from bp_torch.kind import Kind
from bp_torch.network import Network
from bp_torch.training import evaluate
from tests.harness import FORK

TWO = Path("MNIST/raw/t10k-labels-idx1-ubyte")


def test_packaged_mnist_equals_that_of_torchvision(mnist: tuple[Examples, Examples], data_dir: Path) -> None:
    for examples, train in zip(mnist, (True, False), strict=True):
        theirs = datasets.MNIST(str(data_dir), train=train)
        assert torch.equal(examples.x.view(-1, 28, 28), theirs.data)
        assert torch.equal(examples.labels, theirs.targets)
    assert [len(examples.labels) for examples in mnist] == [60_000, 10_000]
    assert mnist[0].labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as printed in every tutorial


def test_existing_files_are_used_and_not_written(data_dir: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name in data.MNIST_SHA256:
        (raw / name).symlink_to(data_dir / "MNIST/raw" / name)
    load("mnist", tmp_path)
    assert {path.name for path in raw.iterdir()} == {*data.MNIST_SHA256, TENSORS}
    assert all((raw / name).is_symlink() for name in data.MNIST_SHA256)


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: b"", lambda content: content[:99] + b"\7" + content[100:]],
    ids=["truncated", "empty", "altered"],
)
def test_damaged_file_raises_data_error_naming_it(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    load("mnist", tmp_path)
    path = tmp_path / TWO
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is truncated or altered: delete it"):
        load("mnist", tmp_path)
    path.unlink()
    load("mnist", tmp_path)


@pytest.mark.parametrize("dataset", ["mnist", "qmnist"])
def test_torchvision_reads_a_data_set_once(
    dataset: str, published: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dataset != "mnist":
        published(dataset)
    first = load(dataset, tmp_path)
    monkeypatch.setattr("bp_torch.data.Family.loader", property(lambda family: pytest.fail("torchvision is used")))
    for one, other in zip(load(dataset, tmp_path), first, strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.labels, other.labels)
        assert (one.x.dtype, one.labels.dtype) == (torch.uint8, other.labels.dtype) and one.x.is_contiguous()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:-99] + bytes([content[-99] ^ 1]) + content[-98:],
        lambda content: content.replace(b"[3,784]", b"[4,588]", 1),
        lambda content: content.replace(b'"I64"', b'"F64"', 1),
        lambda content: content.replace(b"train.x", b"trial.x"),
        None,
    ],
    ids=["short", "half", "empty", "altered", "another shape", "another dtype", "another name", "of other raw files"],
)
def test_damaged_tensors_are_read_from_the_raw_files_again(
    damage: Callable[[bytes], bytes] | None,
    published: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = published("emnist-digits")
    first, path = load("emnist-digits", tmp_path), raw / TENSORS
    whole = path.read_bytes()
    if damage:
        assert damage(whole) != whole
        path.write_bytes(damage(whole))
    else:
        path.write_bytes(whole.replace(data._sha256(raw / data.FAMILIES["emnist-digits"].files[0]).encode(), b"0" * 64))
    for _ in range(2):
        again = load("emnist-digits", tmp_path)
        assert torch.equal(again[0].x, first[0].x) and torch.equal(again[1].labels, first[1].labels)
        monkeypatch.setattr("bp_torch.data.Family.loader", property(lambda family: pytest.fail("it is written anew")))


def test_tensors_that_cannot_be_kept_are_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("mnist", tmp_path)
    (tmp_path / "MNIST/raw" / TENSORS).unlink()

    def full(path: Path, content: bytes) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("bp_torch.data.replace_file", full)
    assert len(load("mnist", tmp_path)[1].labels) == 10_000


def test_old_cache_of_torchvision_raises_data_error(tmp_path: Path) -> None:
    load("mnist", tmp_path)
    (tmp_path / "MNIST/processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1)), tmp_path / "MNIST/processed" / name)
    with pytest.raises(DataError, match=r"processed holds \.pt files"):
        load("mnist", tmp_path)


def test_folder_that_cannot_be_written_raises_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot put mnist into .*file.*choose another --data-dir"):
        load("mnist", tmp_path / "file")


def test_two_processes_that_start_at_once_both_succeed(tmp_path: Path) -> None:
    def reads() -> None:
        assert len(load("mnist", tmp_path)[0].labels) == 60_000

    both = [FORK.Process(target=reads) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]


# ---- the other families, as torchvision would have downloaded them, in small ----


def idx(array: torch.Tensor, kind: int) -> bytes:
    return (
        bytes([0, 0, kind, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.numpy().tobytes()
    )


def archives(dataset: str, images: torch.Tensor) -> dict[str, bytes]:
    """Packed files of ``dataset`` with these images in both sets, labels 0, 1, 2, …"""
    labels = torch.arange(len(images), dtype=torch.uint8) + (dataset == "emnist-letters")  # which count from 1
    extended = torch.zeros(len(images), 8, dtype=torch.int32)
    extended[:, 0] = labels
    packed = {}
    for name in data.FAMILIES[dataset].files:
        if "images" in name:
            content = idx(images, 8)
        elif name.endswith("idx2-int"):
            content = bytes([0, 0, 12, 2]) + b"".join(n.to_bytes(4, "big") for n in extended.shape)
            content += extended.numpy().byteswap().tobytes()
        else:
            content = idx(labels, 8)
        packed[name] = gzip.compress(content)
    return packed


IMAGES = torch.arange(3 * 28 * 28).view(3, 28, 28).to(torch.uint8)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts small archives of a family where a user would, and makes torchvision expect their MD5 sums."""

    def put(dataset: str) -> Path:
        family = data.FAMILIES[dataset]
        raw = family.raw(tmp_path)
        raw.mkdir(parents=True)
        md5 = {}
        for name, content in archives(dataset, IMAGES).items():
            if dataset.startswith("emnist"):  # torchvision unpacks gzip.zip, then the files in it
                (raw / name).write_bytes(gzip.decompress(content))
            else:
                (raw / f"{name}.gz").write_bytes(content)
                md5[f"{name}.gz"] = hashlib.md5(content).hexdigest()
        resources = family.loader.resources
        if isinstance(resources, dict):
            changed = {k: [(u, md5.get(u.rsplit("/")[-1], m)) for u, m in v] for k, v in resources.items()}
            monkeypatch.setattr(family.loader, "resources", changed)
        elif not dataset.startswith("emnist"):
            monkeypatch.setattr(family.loader, "resources", [(url, md5[url]) for url, _ in resources])
        return raw

    return put


@pytest.mark.parametrize("dataset", [name for name in data.FAMILIES if name != "mnist"])
def test_other_data_sets_are_read_and_checked_at_each_use(
    dataset: str, published: Callable[[str], Path], tmp_path: Path
) -> None:
    raw = published(dataset)
    upright = IMAGES.transpose(1, 2) if dataset.startswith("emnist") else IMAGES
    for _ in range(2):
        for examples in load(dataset, tmp_path):
            assert torch.equal(examples.x.view(-1, 28, 28), upright)
            assert examples.labels.tolist() == [0, 1, 2]
    assert (raw / f"{data.FAMILIES[dataset].prefix}{CHECKSUMS}").read_text(encoding="utf-8").count("\n") == 4
    damaged = raw / data.FAMILIES[dataset].files[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match=f"{damaged.name} is truncated or altered"):
        load(dataset, tmp_path)


def test_truncated_file_is_found_on_first_use_too(published: Callable[[str], Path], tmp_path: Path) -> None:
    raw = published("emnist-digits")
    path = raw / data.FAMILIES["emnist-digits"].files[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=rf"{path.name} is truncated: it has 2358 bytes, wanted 2368"):
        load("emnist-digits", tmp_path)


@pytest.mark.parametrize("left", ["read only", "with checksums"])
def test_complete_folder_that_may_only_be_read_is_read(
    left: str, published: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = published("kmnist")
    load("kmnist", tmp_path)
    if left == "read only":
        (raw / CHECKSUMS).unlink()

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(raw))

    for name in ("lock_in", "replace_file"):
        monkeypatch.setattr(f"bp_torch.data.{name}", denied)
    assert load("kmnist", tmp_path)[0].labels.tolist() == [0, 1, 2]
    damaged = raw / data.FAMILIES["kmnist"].files[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        load("kmnist", tmp_path)


# ---- somebody else's data ----


def put(path: Path, content: bytes = b"1,2,3\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["letters.csv"], "holds letters.csv, and no mnist yet: to train on it, give --dataset .*/letters.csv; for mn"),
        (["train-images-idx3-ubyte.gz"], "holds train-images-idx3-ubyte.gz, .* move it into .*/MNIST/raw; else"),
        (["a.npz", "notes.md"], "holds a.npz, and no mnist"),
        (["cat/1.png", "dog/2.PNG", ".DS_Store"], "holds images, and no mnist yet: .*--dataset .*/here; for mnist"),
        (["train/cat/1.jpg", "test/cat/2.jpg"], "holds images"),
        (["1.jpeg"], "holds 1.jpeg"),
    ],
)
def test_folder_with_data_of_ones_own_is_refused(files: list[str], message: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for name in files:
        put(here / name)
    with pytest.raises(DataError, match=message):
        load("mnist", here)
    assert {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()} == {*files}, (
        "nothing is unpacked"
    )


def test_folder_with_other_things_takes_mnist(tmp_path: Path) -> None:
    for name in ("docs/picture.png", "notes.md", "package/code.py", "FashionMNIST/raw/a.gz", "cifar-10.tar.gz"):
        put(tmp_path / name)
    assert len(load("mnist", tmp_path)[1].labels) == 10_000
    put(tmp_path / "letters.csv")
    assert load("mnist", tmp_path)[0].kind.source == str(tmp_path / "MNIST/raw"), (
        "it is there, and what is read is said"
    )


def test_foreign_archives_in_the_place_of_mnist_are_refused(tmp_path: Path, data_dir: Path) -> None:
    raw, name = tmp_path / "MNIST/raw", "t10k-labels-idx1-ubyte"
    put(raw / f"{name}.gz", gzip.compress(b"\0\0\x08\1\0\0\0\1\5"))
    with pytest.raises(DataError, match=rf"{name}.gz is not that of MNIST: to train on it, give --dataset .*raw"):
        load("mnist", tmp_path)
    put(raw / f"{name}.gz", gzip.compress((data_dir / "MNIST/raw" / name).read_bytes()))
    assert len(load("mnist", tmp_path)[1].labels) == 10_000


def test_archives_that_are_there_are_not_asked_for_as_if_they_were_not(
    published: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = published("fashion-mnist")
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError, match=r"raw/t10k-images-idx3-ubyte.gz is not as published: replace it") as caught:
        load("fashion-mnist", tmp_path)
    assert "train-images" not in str(caught.value) and "put" not in str(caught.value)
    monkeypatch.setattr(datasets.EMNIST, "url", "http://127.0.0.1:9/gzip.zip")
    put(tmp_path / "EMNIST/raw/gzip.zip")
    with pytest.raises(DataError, match=r"EMNIST/raw/gzip.zip is not as published: replace it"):
        load("emnist-letters", tmp_path)


@pytest.mark.parametrize("kind", [0, 9, 11, 12, 13, 14, 255])
@pytest.mark.parametrize("summed", [False, True])
def test_numbers_of_another_type_are_refused_by_name(
    kind: int, summed: bool, published: Callable[[str], Path], tmp_path: Path
) -> None:
    raw = published("kmnist")
    load("kmnist", tmp_path)
    (raw / TENSORS).unlink()
    path = raw / "t10k-images-idx3-ubyte"
    content, item = path.read_bytes(), {11: 2, 12: 4, 13: 4, 14: 8}.get(kind, 1)
    path.write_bytes(content[:2] + bytes([kind]) + content[3:16] + content[16:] * item)
    sums = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in raw.glob("*ubyte")]
    (raw / CHECKSUMS).write_text("".join(sums), encoding="utf-8") if summed else (raw / CHECKSUMS).unlink()
    with pytest.raises(
        DataError, match=f"{path.name} has numbers of the IDX type {kind}, wanted 8.*delete it and start again"
    ):
        load("kmnist", tmp_path)


@pytest.mark.parametrize("shape", [(0, 28, 28), (3, 14, 56), (3, 784)])
def test_images_of_another_shape_are_refused(
    shape: tuple[int, ...], published: Callable[[str], Path], tmp_path: Path
) -> None:
    raw = published("kmnist")
    load("kmnist", tmp_path)
    (raw / TENSORS).unlink()
    (raw / CHECKSUMS).unlink()
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(torch.zeros(shape, dtype=torch.uint8), 8))
    with pytest.raises(DataError, match=r"KMNIST/raw does not hold 28×28 images|cannot read|could not download"):
        load("kmnist", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", "é".encode("latin-1"), b"0" * 64 + b"  other\n"])
def test_checksums_that_are_none_are_named(content: bytes, published: Callable[[str], Path], tmp_path: Path) -> None:
    raw = published("kmnist")
    load("kmnist", tmp_path)
    (raw / CHECKSUMS).write_bytes(content)
    with pytest.raises(DataError, match=f"{CHECKSUMS} has no checksum of train-images-idx3-ubyte: delete it"):
        load("kmnist", tmp_path)
    (raw / CHECKSUMS).unlink()
    assert len(load("kmnist", tmp_path)[0].labels) == 3


def test_full_disk_names_the_file_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    way = "No space left on device: make room on the disk; choose another --data-dir"
    with pytest.raises(DataError, match=f"cannot put mnist into .*: .*/train-images-idx3-ubyte: {way}"):
        load("mnist", tmp_path)
    assert [path.name for path in (tmp_path / "MNIST/raw").iterdir()] == [".lock"]


def test_failed_download_names_the_folder_and_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError) as caught:
        load("fashion-mnist", tmp_path)
    assert f"into {tmp_path / 'FashionMNIST' / 'raw'}" in str(caught.value)
    for name in data.FAMILIES["fashion-mnist"].archives:
        assert name in str(caught.value)


# ---- labels and batches ----


def test_one_hot_equals_that_of_torch() -> None:
    labels = torch.tensor([3, 0, 9])
    assert torch.equal(one_hot(labels), torch.nn.functional.one_hot(labels, 10).float())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1, 10]), "label 10 is not one of 0 to 9"),
        (torch.tensor([-1]), "label -1 is not one of 0 to 9"),
        (torch.tensor([1.0]), r"integers, not \(1,\) of torch.float32"),
        (torch.tensor([[1]]), r"integers, not \(1, 1\) of torch.int64"),
    ],
)
def test_invalid_labels_raise_value_error(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_hot(labels)
    with pytest.raises(ValueError, match=message.replace(r"(1, 1)", ".*")):
        Examples(torch.zeros(len(labels), 784), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_labels_of_every_integer_type_are_taken(dtype: torch.dtype) -> None:
    examples = Examples(torch.zeros(3, 784), torch.tensor([3, 0, 9]).to(dtype))
    assert examples.labels.dtype == torch.int64 and examples.labels.tolist() == [3, 0, 9]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((2, 784), 255.0), "x holds floats from 255 to 255, wanted 0 to 1, or bytes of 0 to 255"),
        (torch.tensor([[-1.0] + [0.5] * 783] * 2), "x holds floats from -1 to 0.5, wanted 0 to 1"),
        (torch.tensor([[float("nan")] + [0.5] * 783] * 2), "x holds floats from nan to nan, wanted 0 to 1"),
        (torch.zeros(2, 784, dtype=torch.int64), "x is torch.int64, wanted torch.uint8"),
        (torch.zeros(2, 784, dtype=torch.bool), "x is torch.bool, wanted torch.uint8"),
        (torch.zeros(2, 28, 28), r"x has shape \(2, 28, 28\), wanted \(2, 784\), .*x.flatten\(1\)"),
        (torch.zeros(3, 784), r"x has shape \(3, 784\), wanted \(2, 784\), a row for each label"),
        (np.zeros((2, 784)), r"x is a ndarray, wanted a tensor: torch.as_tensor\(x\)"),
    ],
)
def test_pixels_that_are_neither_bytes_nor_0_to_1_raise_value_error(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Examples(x, torch.tensor([1, 2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_from_0_to_1_score_as_the_bytes_do(mnist: tuple[Examples, Examples], dtype: torch.dtype) -> None:
    some = first_shuffled(mnist[1], 500, seed=0)
    network = Network((784, 30, 10), init="normal")
    wanted = evaluate(network, some, "quadratic")
    found = evaluate(network, Examples(some.x.to(dtype) / 255, some.labels), "quadratic")
    assert found.accuracy == wanted.accuracy and found.cost == pytest.approx(wanted.cost, rel=1e-5)


def test_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    first = permutation(1000, seed=1, epoch=1)
    assert torch.equal(first, permutation(1000, seed=1, epoch=1))
    assert first.sort().values.tolist() == list(range(1000))
    drawn = [first, *(permutation(1000, seed, epoch) for seed, epoch in ((1, 2), (2, 1), (2**31, 1), (1, 0), (0, 1)))]
    assert not any(torch.equal(one, other) for one, other in combinations(drawn, 2)), "(1, 2) is not (2, 1)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batches_hold_every_example_once_scaled_to_0_1(
    mnist: tuple[Examples, Examples], dtype: torch.dtype, device: torch.device
) -> None:
    examples = first_shuffled(mnist[1], 250, seed=0).map(lambda tensor: tensor.to(device))
    order = permutation(250, seed=0, epoch=1, device=device)
    batches = [batch(examples, indices, dtype) for indices in order.split(100)]
    assert [len(x) for x, _ in batches] == [100, 100, 50]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    torch.testing.assert_close(x, (examples.x[order].double() / 255).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(y, one_hot(examples.labels[order], dtype=dtype))


@pytest.mark.parametrize(("n", "kept"), [(60_000, 8_572), (12_345, 12_345), (20_001, 6_667), (7, 7)])
def test_subsample_is_evenly_spaced_at_an_odd_distance(n: int, kept: int) -> None:
    some = subsample(Examples(torch.arange(n)[:, None].double(), torch.arange(n), Kind(1, n, image=())))
    assert len(some.labels) == kept
    assert torch.equal(some.x[:, 0], some.labels)
    assert some.labels[0] == 0 and n - some.labels[-1] <= n // kept
    assert (some.labels % 2).double().mean().item() == pytest.approx(0.5, abs=0.1), "writers alternate"


def test_first_shuffled_takes_the_start_of_one_shuffle(mnist: tuple[Examples, Examples]) -> None:
    few, more = first_shuffled(mnist[0], 100, seed=3), first_shuffled(mnist[0], 200, seed=3)
    assert torch.equal(few.x, more.x[:100]) and torch.equal(few.labels, more.labels[:100])
    assert not torch.equal(few.labels, mnist[0].labels[:100])
    assert torch.equal(few.labels, mnist[0].labels[permutation(60_000, seed=3, epoch=0)[:100]]), "epochs count from 1"
