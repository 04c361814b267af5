from pathlib import Path
from typing import BinaryIO

import pytest

from bp_torch.files import replace_file


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
