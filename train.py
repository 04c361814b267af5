"""Train a network on handwritten digits by hand-written backpropagation.

    python train.py                                   784-16-16-10 sigmoids, mini-batches of 100
    python train.py --sizes 784 100 10 --activation relu --init he --cost softmax-cross-entropy --learning-rate 0.3
    python train.py --batch-size full --epochs 200    true gradient descent

Where to read on: the loop is ``train`` in bp_torch/training.py, the four equations are in bp_torch/backprop.py.
"""

from bp_torch.cli import one_line_errors, parse
from bp_torch.data import DataError
from bp_torch.training import Config, TrainingError, train


def main() -> None:
    """Read the flags, train, turn trouble into one line and an exit code."""
    config = parse(
        Config, prog="train.py", description="Train a network on handwritten digits by hand-written backpropagation."
    )
    with one_line_errors(TrainingError, DataError, OSError):
        train(config)


if __name__ == "__main__":
    main()
