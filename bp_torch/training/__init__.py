"""Training: the settings of a run, its step, its loop, its folder."""

from bp_torch.checkpoint import NETWORK_FILE
from bp_torch.training.config import Config, flag
from bp_torch.training.evaluation import Score, evaluate
from bp_torch.training.interruption import Stopped
from bp_torch.training.loop import WrongGradientError, train
from bp_torch.training.run import TrainingError, open_run, read_config
from bp_torch.training.step import StepResult, TrainingStep

__all__ = [
    "NETWORK_FILE",
    "Config",
    "Score",
    "StepResult",
    "Stopped",
    "TrainingError",
    "TrainingStep",
    "WrongGradientError",
    "evaluate",
    "flag",
    "open_run",
    "read_config",
    "train",
]


def main(arguments: list[str] | None = None) -> None:
    """``python train.py``, with the flags of the command line; or ``python -m bp_torch train`` with ``arguments``."""
    from bp_torch.training import command

    command.main(arguments, "python train.py" if arguments is None else "python -m bp_torch train")
