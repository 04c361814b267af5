"""The state of one run, saved and restored exactly: the same numbers, at the same step of the same epoch.

A checkpoint is a plain dict that ``torch.load(weights_only=True)`` reads. The order of the examples is not in it: that
follows from the seed and the epoch (``data.permutation``).
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
        best_accuracy: the best on the test set so far, 0..1; −1 before the first.
        network: sizes and activations, since a checkpoint of another network may have tensors of the same length.
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
        """Write this state to ``path``. Raises OSError if that fails; the old file is then unchanged."""
        replace_file(path, lambda file: torch.save(dict(vars(self)), file))  # asdict would copy the tensors

    @classmethod
    def load(cls, path: Path, like: "State") -> "State":
        """Read what ``save`` wrote, to the device of ``like``, with tensors of its shapes and dtypes.

        Raises CheckpointError for a file that is missing, damaged, no checkpoint, or of another network.
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
        except Exception as error:  # an unpickler may raise anything for bytes that are no checkpoint
            raise CheckpointError(f"{path} is damaged, or not a checkpoint") from error
        if state.network != like.network:
            raise CheckpointError(f"{path} is of another network: {state.network}, wanted {like.network}")
        for name, found, wanted in kinds:
            if found != wanted:
                raise CheckpointError(f"{path} is of another network: its {name} are {found}, wanted {wanted}")
        return state

    def become(self, other: "State") -> None:
        """Copy the values of ``other``; tensors keep their identity and receive its contents."""
        for name, value in vars(other).items():
            if name not in TENSORS:
                setattr(self, name, value)
            elif value is not None:
                getattr(self, name).copy_(value)


def _kind(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tuple(tensor.shape)} of {tensor.dtype}"


def make_folder(folder: Path, config: str, state: State) -> None:
    """Make a run's folder with its config.json and a first checkpoint, in one step: after a kill it can be resumed.

    Raises CheckpointError if it exists or cannot be made.
    """
    if folder.exists():
        raise CheckpointError(
            f"{folder} exists already: choose another --run-name, or continue it with --resume {folder}"
        )
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
