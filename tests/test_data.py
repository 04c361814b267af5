import gzip
import hashlib
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

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
    labels = torch.arange(len(images), dtype=torch.uint8)
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
            if dataset == "emnist-digits":  # torchvision unpacks gzip.zip, then the files in it
                (raw / name).write_bytes(gzip.decompress(content))
            else:
                (raw / f"{name}.gz").write_bytes(content)
                md5[f"{name}.gz"] = hashlib.md5(content).hexdigest()
        resources = family.loader.resources
        if isinstance(resources, dict):
            changed = {k: [(u, md5.get(u.rsplit("/")[-1], m)) for u, m in v] for k, v in resources.items()}
            monkeypatch.setattr(family.loader, "resources", changed)
        elif dataset != "emnist-digits":
            monkeypatch.setattr(family.loader, "resources", [(url, md5[url]) for url, _ in resources])
        return raw

    return put


@pytest.mark.parametrize("dataset", [name for name in data.FAMILIES if name != "mnist"])
def test_other_data_sets_are_read_and_checked_at_each_use(
    dataset: str, published: Callable[[str], Path], tmp_path: Path
) -> None:
    raw = published(dataset)
    upright = IMAGES.transpose(1, 2) if dataset == "emnist-digits" else IMAGES
    for _ in range(2):
        for examples in load(dataset, tmp_path):
            assert torch.equal(examples.x.view(-1, 28, 28), upright)
            assert examples.labels.tolist() == [0, 1, 2]
    assert (raw / CHECKSUMS).read_text(encoding="utf-8").count("\n") == 4
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
    examples = Examples(*(tensor.to(device) for tensor in first_shuffled(mnist[1], 250, seed=0)))
    order = permutation(250, seed=0, epoch=1, device=device)
    batches = [batch(examples, indices, dtype) for indices in order.split(100)]
    assert [len(x) for x, _ in batches] == [100, 100, 50]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    torch.testing.assert_close(x, (examples.x[order].double() / 255).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(y, one_hot(examples.labels[order], dtype=dtype))


@pytest.mark.parametrize(("n", "kept"), [(60_000, 8_572), (12_345, 12_345), (20_001, 6_667), (7, 7)])
def test_subsample_is_evenly_spaced_at_an_odd_distance(n: int, kept: int) -> None:
    some = subsample(Examples(torch.arange(n)[:, None], torch.arange(n)))
    assert len(some.labels) == kept
    assert torch.equal(some.x[:, 0], some.labels)
    assert some.labels[0] == 0 and n - some.labels[-1] <= n // kept
    assert (some.labels % 2).double().mean().item() == pytest.approx(0.5, abs=0.1), "writers alternate"


def test_first_shuffled_takes_the_start_of_one_shuffle(mnist: tuple[Examples, Examples]) -> None:
    few, more = first_shuffled(mnist[0], 100, seed=3), first_shuffled(mnist[0], 200, seed=3)
    assert torch.equal(few.x, more.x[:100]) and torch.equal(few.labels, more.labels[:100])
    assert not torch.equal(few.labels, mnist[0].labels[:100])
    assert torch.equal(few.labels, mnist[0].labels[permutation(60_000, seed=3, epoch=0)[:100]]), "epochs count from 1"
