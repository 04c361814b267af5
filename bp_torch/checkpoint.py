"""One run's state, saved whole and restored exactly: the same numbers, at the same place in the same epoch.

A checkpoint is a plain dict that ``torch.load(weights_only=True)`` takes. It holds no order of examples: that of an
epoch follows from the seed (``data.permutation``), so the place in it is enough.
"""

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bp_torch.files import replace_file

CONFIG = "config.json"
LAST = "last.pt"
BEST = "best.pt"

TENSORS = ("parameters", "velocity", "running")


class CheckpointError(RuntimeError):
    """A run's folder or checkpoint cannot be made, read or used. The message names it and what is wrong with it."""


@dataclass
class State:
    """Where a run stands, between two steps.

    Attributes:
        parameters: θ, (P,).
        velocity: v of the SGD, (P,), or None where it has none.
        running: cost summed over the examples since the last point of the training curve, and their number, (2,).
        epoch: the epoch that the next step belongs to, from 1.
        steps: steps of that epoch already made.
        step: steps made in all.
        best_accuracy: the best on the test set so far, 0..1; −1 before the first.
        network: sizes and activations, for a checkpoint of another network may have tensors of the same length.
    """

    parameters: Tensor
    velocity: Tensor | None
    running: Tensor
    epoch: int = 1
    steps: int = 0
    step: int = 0
    best_accuracy: float = -1.0
    network: str = ""

    def save(self, path: Path) -> None:
        """Put this state in the place of ``path``. Raises OSError, with the old file as it was, when that fails."""
        replace_file(path, lambda file: torch.save(dict(vars(self)), file))  # asdict would copy the tensors

    @classmethod
    def load(cls, path: Path, like: "State") -> "State":
        """What ``save`` wrote, on the device of ``like`` and with tensors of its shape and dtype.

        Raises CheckpointError for a file that is not there, is damaged or foreign, or is of another network.
        """
        try:
            with zipfile.ZipFile(path) as parts:  # torch does not look at the checksums that it writes
                if parts.testzip():
                    raise zipfile.BadZipFile
            state = cls(**torch.load(path, map_location=like.parameters.device, weights_only=True))
            if not all(type(n) is int and n >= 0 for n in (state.epoch, state.steps, state.step)):
                raise ValueError
            kinds = [(name, _kind(getattr(state, name)), _kind(getattr(like, name))) for name in TENSORS]
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # what bytes that are no checkpoint make of an unpickler is anyone's guess
            raise CheckpointError(f"{path} is no checkpoint, or a damaged one") from error
        if state.network != like.network:
            raise CheckpointError(f"{path} is of another network: {state.network}, wanted {like.network}")
        for name, found, wanted in kinds:
            if found != wanted:
                raise CheckpointError(f"{path} is of another network: its {name} are {found}, wanted {wanted}")
        return state

    def become(self, other: "State") -> None:
        """Take over all that ``other`` is, tensors by content: whoever holds these tensors keeps holding them."""
        for name, value in vars(other).items():
            if name not in TENSORS:
                setattr(self, name, value)
            elif value is not None:
                getattr(self, name).copy_(value)


def _kind(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tuple(tensor.shape)} of {tensor.dtype}"


def make_folder(folder: Path, config: str, state: State) -> None:
    """A run's folder with its config.json and a first checkpoint, all at once: killed at any instant, a run can go on.

    Raises CheckpointError if it is there already or cannot be made.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} is there already: choose another --run-name, or go on with --resume {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
            made = Path(beside) / folder.name
            made.mkdir()
            replace_file(made / CONFIG, config.encode())
            state.save(made / LAST)
            made.rename(folder)
    except OSError as error:
        raise CheckpointError(f"cannot make the run's folder {folder}: {error}") from error
