import errno
import io
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from bp_torch.files import (
    LARGEST,
    LOCK,
    check_writable,
    lock_in,
    naming,
    read_json,
    remove_unfinished,
    replace_file,
    told,
    write_json,
)
from tests.harness import FORK, linux, posix


def test_failed_write_by_a_function_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    replace_file(path, lambda file: file.write(b"old"))

    def half(file: BinaryIO) -> None:
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(path, half)
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"old", 1)


def test_failed_flush_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    replace_file(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            replace_file(path, b"new")
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"old", 1)
    replace_file(path, b"new")
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"new", 1)
    assert path.stat().st_mode & 0o600 == 0o600


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [".last.pt", ".lock", "last.pt", ".other.pt.abcd1234", ".last.pt.short", "last.pt.abcd1234"]
    for name in [*kept, ".last.pt.abcd_234", ".best.pt.00000000"]:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, ("last.pt", "best.pt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_full_disk_is_told_from_under_the_error_of_torch_save(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            if self.tell() + len(content) > 10_000:
                raise OSError(28, "No space left on device")
            return super().write(content)

    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '.*/f'$"):
        replace_file(tmp_path / "f", lambda file: torch.save({"a": torch.zeros(10_000)}, Full()))
    assert not list(tmp_path.iterdir())


def test_json_is_read_as_it_was_written_or_not_at_all(tmp_path: Path) -> None:
    path, values = tmp_path / "a.json", {"rate": 0.5, "sizes": [784, 10], "name": "a\udcffβ", "cost": float("inf")}
    write_json(path, values)
    assert read_json(path) == values
    text, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(text)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        with suppress(ValueError):
            assert read_json(path) == values, "a space for another"


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"{" * 10, b'"text"', b"\xff\xfe{}", b'{"name": "\xe9"}', b"", b" " * (LARGEST + 1)]
)
def test_json_that_nobody_wrote_raises_value_error(content: bytes, older: bool, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "a.json", older=older)


def test_json_that_would_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a\.json would have 1\d,\d{3},\d{3} bytes"):
        write_json(tmp_path / "a.json", {"names": "n" * LARGEST})
    assert not (tmp_path / "a.json").exists()


@posix
def test_only_regular_files_are_read_as_json(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("fifo", "link"):
        with pytest.raises(ValueError, match=f"{name} is not a regular file"):
            read_json(tmp_path / name)


def test_json_without_a_checksum_is_one_of_an_older_version(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"rate": 0.5}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", older=True) == {"rate": 0.5}
    with pytest.raises(ValueError, match="does not have the checksum that it states"):
        read_json(tmp_path / "a.json")


@posix
def test_lock_has_the_mode_of_its_folder_and_is_no_link(tmp_path: Path) -> None:
    for mode in (0o777, 0o770, 0o700):
        (folder := tmp_path / f"{mode:o}").mkdir()
        folder.chmod(mode)
        with lock_in(folder):
            assert (folder / LOCK).stat().st_mode & 0o777 == mode & 0o666
    (tmp_path / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="is a symbolic link: remove it"), lock_in(tmp_path):
        pass
    assert not (tmp_path / "victim").exists()
    (tmp_path / LOCK).unlink()
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(OSError, match="is no regular file: remove it"), lock_in(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left on device: make room on the disk"),
        (errno.EFBIG, "File too large: raise the limit of a file's size (ulimit -f)"),
        (errno.EMFILE, "Too many open files: raise the limit of open files (ulimit -n)"),
        (errno.EROFS, "Read-only file system"),
    ],
)
def test_error_of_the_system_names_the_file_and_the_way_out(number: int, says: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(OSError, match=r"f'$") as caught, naming(path):
        raise OSError(number, os.strerror(number), f"{path}.beside")
    assert told(caught.value) == f"{path}: {says}"
    with pytest.raises(OSError, match=r"^of ours$") as caught, naming(path):
        raise OSError("of ours")
    assert told(caught.value) == "of ours"


@linux
def test_place_that_cannot_be_written_is_named_with_its_flag_and_nothing_is_left(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/f", "--out")
    assert list((tmp_path / "new").iterdir()) == []
    for path, says in ((tmp_path, "Is a directory"), (Path("/proc/none/f"), "No such file or directory")):
        with pytest.raises(OSError, match=f"^cannot write {path}: {says}; choose another --out$"):
            check_writable(path, "--out")


def test_lock_that_another_process_holds_is_named_after_a_while(tmp_path: Path) -> None:
    with (
        lock_in(tmp_path),
        pytest.raises(
            TimeoutError, match=f"^{tmp_path / LOCK} is held by process {os.getpid()} on .*: stop that first, or if"
        ),
        lock_in(tmp_path, timeout=0.1),
    ):
        pass
    with lock_in(tmp_path, timeout=0):
        pass


@linux
@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root may become another user")
def test_lock_of_another_user_is_named_with_the_way_out(tmp_path: Path) -> None:
    (folder := tmp_path / "runs").mkdir()
    (folder / LOCK).touch()
    (folder / LOCK).chmod(0o644)
    folder.chmod(0o777)
    place = os.open(folder, os.O_RDONLY)  # another user may not look into the folders above

    def as_another(said: Any) -> None:
        os.fchdir(place)
        os.setuid(65534)
        try:
            with lock_in(Path()):
                said.put("taken")
        except Exception as error:
            said.put(str(error))

    with lock_in(tmp_path):  # another user may not read what is imported here
        pass
    said = FORK.Queue()
    child = FORK.Process(target=as_another, args=(said,))
    child.start()
    assert said.get() == (
        f"{LOCK}: Permission denied: if nothing is training here, remove it, or let its owner do that"
    )
    child.join()
