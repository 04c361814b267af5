"""scikit-learn's MLPClassifier, which chooses its own optimizer (Adam) and rate, one epoch after another.

    python bp_torch/benchmark/with_sklearn.py --sizes 784 128 10 --batch-size 100 --epochs 20

It knows nothing of bp_torch nor of torch. After each epoch it prints the accuracy on the test set.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier


def read(raw: Path, name: str) -> Any:
    """The images, 0..1, and the labels of MNIST's files."""
    images = np.frombuffer((raw / f"{name}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((raw / f"{name}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return images.reshape(-1, 784).astype(np.float32) / 255, labels


def main() -> None:
    """Train, and print a line for each epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    for name, default in {"batch-size": 100, "seed": 0, "data-dir": Path("data")}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    flags = parser.parse_args()
    (x, labels), test = (read(flags.data_dir / "MNIST" / "raw", name) for name in ("train", "t10k"))
    model = MLPClassifier(flags.sizes[1:-1], batch_size=flags.batch_size, random_state=flags.seed)
    for epoch in range(1, flags.epochs + 1):
        model.partial_fit(x, labels, classes=np.arange(10))
        print(f"{epoch} accuracy {model.score(*test):.4%}", flush=True)


if __name__ == "__main__":
    main()
