"""Training: the settings of a run, its step, its loop, its folder."""

from bp_torch.checkpoint import NETWORK_FILE
from bp_torch.flags import flag
from bp_torch.training.config import Config
from bp_torch.training.divergence import WrongGradientError
from bp_torch.training.evaluation import Score, evaluate
from bp_torch.training.interruption import Stopped
from bp_torch.training.loop import train
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
