"""The state of one run, saved and restored exactly: the same numbers, at the same step of the same epoch.

A checkpoint is a plain dict that ``torch.load(weights_only=True)`` reads. The order of the examples is not in it: that
follows from the seed and the epoch (``data.permutation``).
"""

import os
import shutil
import socket
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import inf
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from bp_torch.cli import UserError
from bp_torch.files import remove_unfinished, replace_file, unfinished

CONFIG = "config.json"
LAST = "last.pt"
BEST = "best.pt"
NETWORK_FILE = "network.safetensors"
RESULT = "result.json"

LOCK = ".lock"
"""In a run's folder, held while it trains; in the folder of all runs, held while a new one is made."""

TENSORS = ("parameters", "velocity", "running")


class CheckpointError(UserError):
    """A run's folder or checkpoint cannot be made, read or used. The message names it and the reason."""


@dataclass
class State:
    """Everything that changes in a run, between two steps.

    Attributes:
        parameters: θ, (P,).
        velocity: v of the SGD, (P,), or None where it has none.
        running: the costs of the examples since the last point of the training curve, summed, and their number, (2,).
        epoch: the epoch that the next step belongs to, from 1.
        steps: steps of that epoch already made.
        step: steps made in all.
        best_accuracy: the best so far on the test set, or on the examples held out, 0..1; −1 before the first.
        network: sizes and activations, since a checkpoint of another network may have tensors of the same length.
        reported: the epoch after which the results of the run were logged; 0 before.
        seconds: how long training has taken, evaluation and logging included.
    """

    parameters: Tensor
    velocity: Tensor | None
    running: Tensor
    epoch: int = 1
    steps: int = 0
    step: int = 0
    best_accuracy: float = -1.0
    network: str = ""
    reported: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write this state to ``path``. Raises OSError if that fails; the old file is then unchanged."""
        content = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        replace_file(path, lambda file: torch.save(content, file))

    @classmethod
    def load(cls, path: Path, like: "State") -> "State":
        """Read what ``save`` wrote, to the CPU, with tensors of the shapes and dtypes of ``like``.

        Raises CheckpointError for a file that is missing, damaged, no checkpoint, or of another network.
        """
        try:
            if path.exists() and not path.is_file():
                raise CheckpointError(f"{path} is not a regular file")
            with zipfile.ZipFile(path) as parts:  # torch does not look at the checksums that it writes
                if parts.testzip() or any(part.compress_type for part in parts.infolist()):  # nor does it compress
                    raise zipfile.BadZipFile
            state = cls(**torch.load(path, map_location="cpu", weights_only=True))
            state._check_types()
            kinds = [(name, _kind(getattr(state, name)), _kind(getattr(like, name))) for name in TENSORS]
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # an unpickler may raise anything for bytes that are no checkpoint
            raise CheckpointError(f"{path} is damaged, or not a checkpoint") from error
        if state.network != like.network:
            raise CheckpointError(f"{path} is of another network: {state.network}, wanted {like.network}")
        for name, found, wanted in kinds:
            if found != wanted:
                raise CheckpointError(f"{path} is of another network: its {name} are {found}, wanted {wanted}")
        if not all(tensor.isfinite().all() for tensor in (state.parameters, state.velocity) if tensor is not None):
            raise CheckpointError(f"{path} holds numbers that are not finite")
        return state

    def _check_types(self) -> None:
        """Raise ValueError for a tensor that is not a plain one, and for a number or a name that cannot be."""
        tensors = [self.parameters, self.running, *([] if self.velocity is None else [self.velocity])]
        if not all(type(t) is Tensor and t.layout == torch.strided and not t.is_meta for t in tensors):
            raise ValueError
        counts = {"epoch": 1, "steps": 0, "step": 0, "reported": 0}
        if not all(type(n := getattr(self, name)) is int and n >= least for name, least in counts.items()):
            raise ValueError
        if type(self.best_accuracy) is not float or not -1 <= self.best_accuracy <= 1 or type(self.network) is not str:
            raise ValueError
        if type(self.seconds) is not float or not 0 <= self.seconds < inf:
            raise ValueError

    def become(self, other: "State") -> None:
        """Copy the values of ``other``; tensors keep their identity and receive its contents."""
        for name, value in vars(other).items():
            if name not in TENSORS:
                setattr(self, name, value)
            elif value is not None:
                getattr(self, name).copy_(value)


def _kind(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tuple(tensor.shape)} of {tensor.dtype}"


def make_folder(folder: Path, config: str, state: State | None, *, numbered: bool = False) -> Path:
    """Make a run's folder with its config.json and a first checkpoint, in one step: after a kill it can be resumed.

    A sweep's folder has no ``state`` of its own.
    With ``numbered``, a name that exists gets the next number: NAME_2. Returns the folder.
    Raises CheckpointError if it exists or cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / LOCK):  # of two processes that start at once, each makes a folder of its own
            remove_unfinished_folders(folder.parent)
            if numbered:
                folder = next(free for free in numbered_names(folder) if not free.exists())
            if folder.exists():
                raise CheckpointError(
                    f"{folder} exists already: choose another --run-name, or continue it with --resume {folder}"
                )
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
                made = Path(beside) / folder.name
                made.mkdir()
                replace_file(made / CONFIG, config.encode())
                if state:
                    state.save(made / LAST)
                made.rename(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot make the run's folder {folder}: {error}; choose another --run-name or --runs-dir"
        ) from error
    return folder


def numbered_names(folder: Path) -> Iterator[Path]:
    """NAME, NAME_2, NAME_3, …"""
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}_{number}")


def remove_unfinished_folders(runs: Path) -> None:
    """Remove the folders that killed processes left half made in ``runs``. Nobody may be making one meanwhile."""
    for path in runs.iterdir():
        name = unfinished(path)
        if name and path.is_dir() and {inside.name for inside in path.iterdir()} <= {name}:
            shutil.rmtree(path)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's ``folder`` for this process alone, and remove what killed ones left in it.

    Raises CheckpointError, which names the holder, if another process holds it.
    """
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout as error:
        holder = (folder / LOCK).read_text() or "another process"
        raise CheckpointError(f"{folder} is being trained by {holder}: stop that first") from error
    with lock:
        (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        remove_unfinished(folder, (CONFIG, LAST, BEST, NETWORK_FILE, RESULT))
        yield
