"""What a run ends with, in words and as result.json."""

import json
from typing import NamedTuple

import torch

from bp_torch.network import Network
from bp_torch.training.evaluation import Score


class RunResult(NamedTuple):
    """The network that a run ends with, its epoch, its score on the test set, and its accuracy on those held out.

    ``epochs`` is how many the run had, ``seconds`` how long it took; ``precision`` is that of its passes.
    """

    network: Network
    epoch: int
    on_test: Score
    validation_accuracy: float | None
    epochs: int
    seconds: float
    precision: str

    def sentence(self, held_out: int) -> str:
        """The result in words, of a run with so many examples held out."""
        return (
            f"test accuracy {self.on_test.accuracy:.2%}, cost {self.on_test.cost:.4f}, by the network of epoch "
            f"{self.epoch}, the best of {self.epochs} on {held_out:,} held-out examples"
        ).replace("%", " %")

    def to_json(self) -> str:
        """The text of result.json."""
        values = {
            "test_accuracy": self.on_test.accuracy,
            "test_cost": self.on_test.cost,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "validation_accuracy": self.validation_accuracy,
            "seconds": round(self.seconds, 2),
            "precision": self.precision,
            "device": self.network.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        return json.dumps(values, indent=2) + "\n"
