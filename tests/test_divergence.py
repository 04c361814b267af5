from pathlib import Path
from typing import Any

import pytest
import torch

from bp_torch.backprop import backward, forward
from bp_torch.data import one_hot
from bp_torch.network import layer_views
from bp_torch.training import Config, StepResult, TrainingError, train
from bp_torch.training.divergence import first_not_finite
from tests.conftest import brief_run, curves

N = 450


@pytest.mark.parametrize("log", [False, True])
def test_cost_that_is_not_finite_stops_the_run(
    log: bool, tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = r"at step 2 \(epoch 1\) the activations of layer 2 overflowed first"
    with pytest.raises(TrainingError, match=rf"cost is not finite: {first}; try a smaller --learning-rate.*last\.pt"):
        brief_run(
            tmp_path,
            data_dir,
            "diverging",
            train_examples=500,
            activation="relu",
            output_activation="relu",
            log=log,
            log_every=2 if log else 100,
            learning_rate=1e30,
        )
    assert ("histograms contain NaN or infinity and are not logged" in capsys.readouterr().out) == log
    kept = torch.load(tmp_path / "diverging" / "last.pt", weights_only=True)
    assert kept["parameters"].isfinite().all()


def test_first_tensor_to_overflow_is_named_in_the_order_of_computation() -> None:
    network = Config().network(torch.device("cpu"))
    x, y = torch.rand(5, 784), one_hot(torch.arange(5))
    passed = forward(network, x)
    result = StepResult(x, y, passed, backward(network, passed, y))
    assert first_not_finite(result, "quadratic") is None
    for tensor, name in (  # each is computed before the ones above it
        (network.weights[0], "the weights of layer 1, after the step,"),
        (layer_views(result.backward.gradient, network.sizes)[0][1], "the weight gradient of layer 2"),
        (result.backward.deltas[0], "δ of layer 1"),
        (result.backward.deltas[2], "δ of layer 3"),
        (passed.activations[3], "the cost, on finite activations,"),
        (passed.activations[2], "the activations of layer 2"),
    ):
        tensor[0, 0] = 1e30 if "cost" in name else torch.inf
        assert first_not_finite(result, "quadratic") == name


def test_points_before_a_cost_that_is_not_finite_are_logged(tmp_path: Path, data_dir: Path, lazy: None) -> None:
    fields: dict[str, Any] = {"activation": "relu", "output_activation": "relu", "learning_rate": 1e30}
    fields |= {"train_examples": N, "log_every": 1, "checkpoint_every": 3, "data_dir": data_dir, "runs_dir": tmp_path}
    with pytest.raises(TrainingError, match="the cost is not finite: at step 2"):
        train(Config(run_name="diverging", device="cpu", **fields))
    assert [step for step, _ in curves(tmp_path / "diverging")["2 cost, quadratic/train"]] == [0, 1, 2, 3]


def test_cost_that_is_not_finite_only_in_the_evaluation_is_reported(tmp_path: Path, data_dir: Path) -> None:
    fields: dict[str, Any] = {"activation": "relu", "output_activation": "relu", "learning_rate": 1e30}
    with pytest.raises(TrainingError, match="in the evaluation after the epoch, while all of its steps were finite"):
        brief_run(tmp_path, data_dir, "diverging", train_examples=N, batch_size="full", epochs=1, **fields)
