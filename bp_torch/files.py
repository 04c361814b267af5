"""Files are replaced whole: a reader finds the old content or the new, never a part of either; JSON has a checksum."""

import errno
import hashlib
import json
import os
import re
import socket
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

WINDOWS = os.name == "nt"
LARGEST = 2**24  # bytes of a JSON file that is read: the names of 10,000 networks are a megabyte
SUM = "sha256"
LOCK = ".lock"  # in a run's folder, held while it trains; in the folder of all runs, held while a new one is made
WAY_OUT = f"stop that first, or if it is gone remove its {LOCK}"
WAYS = {  # out of an error of the system
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room on the disk",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def replace_file(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``content`` beside ``path``, flush it to disk, then rename it to ``path``.

    Large content may be a function that writes to a file. Raises OSError, naming ``path``, if that fails; ``path`` is
    then unchanged. A process that is killed leaves the unfinished file, which ``remove_unfinished`` removes.
    """
    with naming(path):
        _replace_file(path, content)


def _replace_file(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the system name ``path``: one of writing names no file, or one beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def told(error: Exception) -> str:
    """The file, what went wrong, and what to do: runs/a/last.pt: No space left on device: make room on the disk."""
    if not isinstance(error, OSError) or error.errno is None or error.strerror is None:
        return str(error)
    file = [] if error.filename is None else [os.fsdecode(error.filename)]
    return ": ".join([*file, error.strerror, *filter(None, [WAYS.get(error.errno)])])


def check_writable(path: Path, flag: str) -> None:
    """Make the folder of ``path``, before what takes long. Raises OSError, naming the ``flag``, if it takes no file."""
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(b"room")
    except OSError as error:
        raise OSError(f"cannot write {told(error)}; choose another {flag}") from error


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
    content = (json.dumps(with_sum(values), indent=2) + "\n").encode()
    if len(content) > LARGEST:
        raise OSError(f"{path.name} would have {len(content):,} bytes, and no more than {LARGEST:,} are read again")
    replace_file(path, content)


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
    with regular(path).open("rb") as file:
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


def is_there(path: Path) -> bool:
    """Whether there is something at ``path``, which may be longer than a path can be."""
    try:
        return path.exists()
    except OSError:
        return False


def regular(path: Path) -> Path:
    """``path``, unless a pipe or a device is there, which may have no end. Raises ValueError."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    return path


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


@contextmanager
def lock_in(folder: Path, name: str = LOCK, timeout: float = 60) -> Iterator[None]:
    """Hold the lock of a ``folder``, for all who may write there. Raises OSError, naming it: TimeoutError if held."""
    from filelock import FileLock  # here: it takes long, and help does not need it

    path = folder / name
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(f"{path} is {'a symbolic link' if path.is_symlink() else 'no regular file'}: remove it")
    lock = FileLock(path, timeout, mode=stat.S_IMODE(folder.stat().st_mode) & 0o666)
    try:
        with naming(path), warnings.catch_warnings(action="ignore"):  # that it does without flock
            held = lock.acquire()
    except TimeoutError as error:
        raise TimeoutError(f"{path} is held by {holder_of(path)}: {WAY_OUT}") from error
    except PermissionError as error:
        if not path.exists() or not os.access(folder, os.W_OK):
            raise
        way = "if nothing is training here, remove it, or let its owner do that"
        raise PermissionError(f"{path}: {error.strerror}: {way}") from error
    with held:
        if getattr(lock, "pid", None) is None:  # else filelock wrote it, which takes over from one that has died
            with suppress(OSError):  # Windows lets nobody write what is locked
                path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
        yield


def holder_of(path: Path) -> str:
    """The process that holds a lock: process 12 on ada."""
    found = None
    with suppress(OSError):  # Windows lets nobody read it
        found = re.search(r"(\d+)\s+(?:on )?(\S+)", path.read_text(encoding="utf-8", errors="replace"))
    return f"process {found[1]} on {found[2]}" if found else "another process"


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
