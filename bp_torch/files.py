"""Files are replaced whole: a reader finds the old content or the new, never a part of either; JSON has a checksum."""

import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:  # imported where it is used: it takes long, and help does not need it
    from filelock import FileLock

WINDOWS = os.name == "nt"
LARGEST = 2**24  # bytes of a JSON file that is read: the names of 10,000 networks are a megabyte
SUM = "sha256"
LOCK = ".lock"  # in a run's folder, held while it trains; in the folder of all runs, held while a new one is made


def replace_file(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``content`` beside ``path``, flush it to disk, then rename it to ``path``.

    Large content may be a function that writes to a file. Raises OSError if that fails; ``path`` is then unchanged.
    A process that is killed leaves the unfinished file, which ``remove_unfinished`` removes.
    """
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                try:
                    content(file)
                except RuntimeError as error:  # torch.save reports a full disk by a long one of its own
                    raise next((cause for cause in causes(error) if isinstance(cause, OSError)), error) from None
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o666 & ~_umask())  # mkstemp is for secrets: 0600
        moved(Path(beside), path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def moved(made: Path, place: Path) -> None:
    """Rename a file over another, or a folder. Windows refuses while any program reads it, a virus scanner, say."""
    for pause in (0.01, 0.05, 0.2, 0.5, 1.0) if WINDOWS else ():
        with suppress(PermissionError):
            made.replace(place)
            return
        time.sleep(pause)
    made.replace(place)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write ``values``, and the SHA-256 of their JSON, to ``path``, whole. Raises OSError."""
    replace_file(path, (json.dumps(with_sum(values), indent=2) + "\n").encode())


def with_sum(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` and the SHA-256 of their JSON."""
    text = json.dumps(values, sort_keys=True)
    return values | {SUM: hashlib.sha256(text.encode()).hexdigest()}


def without_sum(found: dict[str, Any]) -> dict[str, Any]:
    """The values without their checksum. Raises ValueError where that is missing or is that of other values."""
    values = {name: value for name, value in found.items() if name != SUM}
    if with_sum(values)[SUM] != found.get(SUM):
        raise ValueError("it was altered: it does not have the checksum that it states")
    return values


def read_json(path: Path, *, older: bool = False) -> dict[str, Any]:
    """The values in a JSON file, which with ``older`` may lack a checksum. Raises OSError, or ValueError."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes")
    try:
        found = json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("brackets within brackets") from error
    if not isinstance(found, dict):
        raise ValueError("it holds no names with values")
    return found if older and SUM not in found else without_sum(found)


def causes(error: BaseException) -> list[BaseException]:
    """``error``, and those in whose handling it was raised: a chain that may come back to where it was."""
    chain = [error]
    while (before := chain[-1].__context__) and before not in chain:
        chain.append(before)
    return chain


def can_be_a_name(name: str) -> bool:
    """Whether a folder may have this ``name``: on Windows not ``a:b``, ``a.`` or ``con.a``, which would be a device."""
    devices = r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9¹²³]) *(\.|$)"
    return not (WINDOWS and re.search(rf'[<>:"/\\|?*\x00-\x1f]|[. ]$|^{devices}', name, re.IGNORECASE))


def is_utf8(path: Path) -> bool:
    """Whether the bytes of a name are UTF-8: other bytes are, in Python, halves of a character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


def lock_in(folder: Path) -> "FileLock":
    """The lock of a ``folder``, for all who may write there. Raises OSError for one that is a symbolic link."""
    from filelock import FileLock

    if (folder / LOCK).is_symlink():
        raise OSError(f"{folder / LOCK} is a symbolic link: remove it")
    return FileLock(folder / LOCK, mode=stat.S_IMODE(folder.stat().st_mode) & 0o666)


@contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """``path``, or for a name that is not UTF-8, which safetensors does not open, a link to it for a while."""
    if is_utf8(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.absolute())
        yield link


def remove_unfinished(folder: Path, names: Iterable[str]) -> None:
    """Remove what ``replace_file`` left beside the files of these ``names``. Nobody may be writing them meanwhile."""
    names = set(names)
    for path in folder.iterdir():
        if unfinished(path) in names and path.is_file():
            path.unlink(missing_ok=True)


def unfinished(path: Path) -> str | None:
    """The name under which ``path`` would have been finished, if tempfile named it ``.NAME.xxxxxxxx``."""
    found = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", path.name)
    return found and found[1]


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask
