"""Train a network on handwritten digits by hand-written backpropagation.

    python train.py                                   784-16-16-10 sigmoids, mini-batches of 100
    python train.py --sizes 784 100 10 --cost binary-cross-entropy --learning-rate 0.5
    python train.py --batch-size full --epochs 200    true gradient descent
    python train.py --resume runs/NAME                go on where the last checkpoint of a run stands
    torchrun --nproc-per-node 2 train.py              two processes, the same network
    tensorboard --logdir runs                         look at what was learned, and how

Where to read on: the loop is ``train`` in bp_torch/training.py, the four equations are in bp_torch/backprop.py.
"""

import torch

from bp_torch.checkpoint import CheckpointError
from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.data import DataError
from bp_torch.distributed import DistributedError
from bp_torch.training import Config, Stopped, TrainingError, WrongGradientError, read_config, train
from bp_torch.verify import check_step

DESCRIPTION = "Train a network on handwritten digits by hand-written backpropagation."


def main() -> None:
    """Read the flags, train, turn trouble into one line and an exit code."""
    config = parse(Config, prog="train.py", description=DESCRIPTION)
    with one_line_errors(torch.OutOfMemoryError, TrainingError, DataError, CheckpointError, DistributedError, OSError):
        if config.resume:
            was = read_config(config.resume)
            typed = parse(
                Config, prog="train.py", description=DESCRIPTION, default=was
            )  # flags not typed are the run's
            try:
                config = was.resumed(typed)
            except ValueError as error:
                fail(str(error), 2)
        try:
            train(config, check=check_step)
        except Stopped as stopped:
            fail(str(stopped), stopped.code)
        except WrongGradientError as wrong:
            print(wrong.verdict)
            fail(str(wrong), 1)


if __name__ == "__main__":
    main()
