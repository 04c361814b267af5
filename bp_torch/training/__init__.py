"""Training: the settings of a run, its step, its loop, its folder."""

from typing import TYPE_CHECKING

from bp_torch.values import on_demand

if TYPE_CHECKING:
    from bp_torch.checkpoint import NETWORK_FILE
    from bp_torch.training.config import Config, TrainingError, read_config
    from bp_torch.training.divergence import WrongGradientError
    from bp_torch.training.evaluation import Score, evaluate
    from bp_torch.training.interruption import Stopped
    from bp_torch.training.loop import train
    from bp_torch.training.run import open_run
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
    "open_run",
    "read_config",
    "train",
]

__getattr__ = on_demand(__name__, __all__, "config", "step", "evaluation", "interruption", "run", "divergence", "loop")
