"""The state of one run, saved and restored exactly: the same numbers, at the same step of the same epoch.

A checkpoint is a plain dict that ``torch.load(weights_only=True)`` reads. The order of the examples is not in it: that
follows from the seed and the epoch (``examples.permutation``).
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Self

import torch
from torch import Tensor

from bp_torch.cli import UserError
from bp_torch.files import LOCK as LOCK
from bp_torch.files import (
    WAY_OUT,
    can_be_a_name,
    holder_of,
    lock_in,
    moved,
    remove_unfinished,
    replace_file,
    told,
    unfinished,
    write_json,
)
from bp_torch.flags import Within, check_bounds, check_types
from bp_torch.values import CONFIG as CONFIG

LAST = "last.pt"
BEST = "best.pt"
NETWORK_FILE = "network.safetensors"
RESULT = "result.json"
HISTORY = "history.csv"

Count = Annotated[int, Within(least=0)]


class CheckpointError(UserError):
    """A run's folder or checkpoint cannot be made, read or used. The message names it and the reason."""


@dataclass
class State:
    """Everything that changes in a run, between two steps."""

    parameters: Tensor  # θ, (P,)
    velocity: Tensor | None  # v of the SGD, (P,); None where it has none
    running: Tensor  # since the last point of the training curve: the examples' costs, summed, and their number, (2,)
    epoch: Annotated[int, Within(least=1)] = 1  # the epoch that the next step belongs to
    steps: Count = 0  # steps of that epoch already made
    step: Count = 0  # steps made in all
    best_accuracy: Annotated[float, Within(-1, 1)] = -1.0  # on the test set or the examples held out; −1: none so far
    network: str = ""  # sizes and activations: a checkpoint of another network may have tensors of the same shape
    reported: Count = 0  # the epoch after which the results of the run were logged; 0 before
    seconds: Annotated[float, Within(least=0)] = 0.0  # spent on training, evaluation and logging
    waited: Count = 0  # epochs since the accuracy last rose
    history: list[tuple[float, ...]] = field(default_factory=list)  # of each epoch, the columns of history.csv

    def count_step(self) -> None:
        """Note that a step was made."""
        self.steps += 1
        self.step += 1

    def end_epoch(self) -> None:
        """Let the next step be the first of the next epoch."""
        self.epoch += 1
        self.steps = 0

    def save(self, path: Path) -> None:
        """Write this state to ``path``. Raises OSError if that fails; the old file is then unchanged."""
        content = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        replace_file(path, lambda file: torch.save(content, file))

    @classmethod
    def load(cls, path: Path, like: Self) -> Self:
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
            check_types(state)
            check_bounds(state)
            tensors = [value for value in vars(state).values() if isinstance(value, Tensor)]
            if any(tensor.is_meta or tensor.layout != torch.strided for tensor in tensors):
                raise ValueError("a tensor has no numbers, or is sparse")
            kinds = [(name, _kind(getattr(state, name)), _kind(value)) for name, value in vars(like).items()]
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"cannot read {told(error)}") from error
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

    def copy_from(self, other: Self) -> None:
        """Copy the values of ``other``; tensors keep their identity and receive its contents."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Tensor):
                mine.copy_(value)
            else:
                setattr(self, name, value)


def _kind(value: object) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else "none"


def make_folder(folder: Path, config: str, state: State | None, *, numbered: bool = False) -> Path:
    """Make a run's folder with its config.json and a first checkpoint, in one step: after a kill it can be resumed.

    A sweep's has no ``state``. With ``numbered``, a name that exists gets the next number: NAME_2. Returns the folder.
    """
    if not can_be_a_name(folder.name):
        raise CheckpointError(f"Windows has no folders of the name {folder.name!r}: choose another --run-name")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_in(folder.parent):  # of two processes that start at once, each makes a folder of its own
            remove_unfinished_folders(folder.parent)
            if numbered:
                others = (folder.with_name(f"{folder.name}_{number}") for number in count(2))
                folder = next(free for free in chain([folder], others) if not free.exists())
            if folder.exists():
                way = f"choose another --run-name, or continue it with --resume {folder}"
                raise CheckpointError(f"{folder} exists already: {way}")
            with made_whole(folder) as made:
                write_json(made / CONFIG, json.loads(config))
                if state:
                    state.save(made / LAST)
    except OSError as error:
        way = "choose another --run-name or --runs-dir"
        raise CheckpointError(f"cannot make the run's folder {folder}: {told(error)}; {way}") from error
    return folder


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A folder to be filled, which is then renamed to ``folder``: that is complete, or not there."""
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
    ) as beside:
        made = Path(beside) / folder.name
        made.mkdir()
        yield made
        moved(made, folder)


def remove_unfinished_folders(runs: Path) -> None:
    """Remove the folders that killed processes left half made in ``runs``. Nobody may be making one meanwhile."""
    for path in runs.iterdir():
        name = unfinished(path)
        if name and path.is_dir() and {inside.name for inside in path.iterdir()} <= {name}:
            shutil.rmtree(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's ``folder``, and remove what killed processes left in it. CheckpointError names another holder."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_in(folder, timeout=0))
        except TimeoutError as error:
            holder = holder_of(folder / LOCK)
            raise CheckpointError(f"{folder} is being trained by {holder}: {WAY_OUT}") from error
        remove_unfinished(folder, (CONFIG, LAST, BEST, NETWORK_FILE, RESULT, HISTORY))
        yield
