"""Every tag, read back from the event file as TensorBoard reads it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from bp_torch.backprop import Trace, backward, costs, forward
from bp_torch.checkpoint import State
from bp_torch.data import PIXEL_SCALE, Examples, first_shuffled, one_hot
from bp_torch.network import Network
from bp_torch.runlog import RunLog, confusion_matrix, diverging, most_wrong, weight_maps
from bp_torch.sgd import SGD
from bp_torch.training import Config, train

KINDS = ("weights", "biases", "weight_gradients", "bias_gradients", "activations", "deltas")


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)
    )
    events.Reload()
    return events


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> tuple[Path, EventAccumulator]:
    config = Config(
        epochs=2,
        train_examples=1050,
        log_every=5,
        log_embedding=True,
        data_dir=data_dir,
        runs_dir=tmp_path_factory.mktemp("runs"),
        run_name="one",
    )
    folder = train(config)
    return folder, read(folder)


def test_every_tag_is_there_and_no_other(run: tuple[Path, EventAccumulator]) -> None:
    tags = run[1].Tags()
    layers = [f"layer_{n}" for n in (1, 2, 3)]
    assert set(tags["scalars"]) == {
        "cost/train",
        "cost/test",
        "accuracy/train",
        "accuracy/test",
        "examples_per_second",
        "learning_rate",
        "gradient_norm",
        "final/test_accuracy",
        "final/test_cost",
        *(f"update_to_weight_norm/{layer}" for layer in layers),
    }
    assert set(tags["histograms"]) == {f"{kind}/{layer}" for kind in KINDS for layer in layers}
    assert set(tags["images"]) == {"pictures/first_layer", "pictures/confusion", "pictures/most_wrong"}
    assert set(tags["tensors"]) == {
        "custom_scalars__config__",
        *(f"run/{text}/text_summary" for text in ("command", "config", "versions", "machine")),
        *(f"precision_recall/digit_{digit}" for digit in range(10)),
    }


def test_the_step_axis_counts_steps_everywhere(run: tuple[Path, EventAccumulator]) -> None:
    events = run[1]
    assert [event.step for event in events.Scalars("cost/train")] == [5, 10, 15, 20]
    assert [event.step for event in events.Scalars("cost/test")] == [11, 22]
    assert [event.step for event in events.Histograms("weights/layer_1")] == [11, 22]
    assert [event.step for event in events.Images("pictures/confusion")] == [22]


def test_hparams_are_in_the_runs_own_folder(run: tuple[Path, EventAccumulator]) -> None:
    folder, events = run
    assert len(list(folder.parent.rglob("events.*"))) == 1, "no run below the run"
    plugin = events.summary_metadata
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(plugin)
    content = plugin["_hparams_/session_start_info"].plugin_data.content
    for key in Config().hyperparameters(60_000, 100):
        assert key.encode() in content
    assert events.Scalars("final/test_accuracy")[-1].value == events.Scalars("accuracy/test")[-1].value


def test_every_run_has_the_same_hyperparameters() -> None:
    one = Config().hyperparameters(60_000, 100)
    other = Config(batch_size="full", train_examples=10, cost="softmax-cross-entropy").hyperparameters(10, 10)
    assert {key: type(value) for key, value in one.items()} == {key: type(value) for key, value in other.items()}


def test_a_histogram_counts_every_number(run: tuple[Path, EventAccumulator]) -> None:
    (*_, last) = run[1].Histograms("weights/layer_1")
    weights = Network.load(run[0] / "network.safetensors").weights[0]
    value = last.histogram_value
    assert (value.num, sum(value.bucket)) == (12_544, 12_544)
    assert (value.min, value.max) == (weights.min().item(), weights.max().item())
    assert value.sum == pytest.approx(weights.double().sum().item(), rel=1e-4)


def one_step(network: Network, mnist: tuple[Examples, Examples]) -> tuple[Trace, Tensor]:
    examples = first_shuffled(mnist[0], 100, 0)
    y = one_hot(examples.labels, dtype=network.dtype)
    trace = forward(network, examples.x.to(network.dtype) * PIXEL_SCALE)
    backward(network, trace, y)
    trace.tally_up(costs(trace, y))
    return trace, y


@pytest.mark.parametrize("at_once", [True, False])
def test_the_points_of_a_curve_are_means_over_their_interval(
    at_once: bool, tmp_path: Path, mnist: tuple[Examples, Examples]
) -> None:
    network = Network(dtype=torch.float64)
    sgd = SGD(network, 0.5, momentum=0.9)
    log = RunLog(tmp_path, network, 2, State(network.parameters, sgd.velocity, torch.zeros(2).double()))
    log.at_once = at_once
    seen = []
    for step in (1, 2):
        trace, y = one_step(network, mnist)
        log.running.add_(trace.tally, alpha=100)
        seen.append(costs(trace, y).mean().item())
        before = network.weights[1].clone()
        sgd.step(trace.gradient)
        assert log.step(step, trace, sgd)
    ratio = (network.weights[1] - before).norm() / network.weights[1].norm()
    if not at_once:
        assert log.running.tolist() == [0, 0], "the next interval has begun"
        log.writer.flush()
        assert "cost/train" not in read(tmp_path).Tags()["scalars"]
        assert log.write_points()
    log.close()
    events = read(tmp_path)
    assert seen[0] != seen[1]
    assert [event.value for event in events.Scalars("cost/train")] == [pytest.approx(sum(seen) / 2)]
    assert events.Scalars("gradient_norm")[0].value == pytest.approx(trace.gradient.norm().item())
    assert events.Scalars("update_to_weight_norm/layer_2")[0].value == pytest.approx(ratio.item())


def test_tensors_with_nan_are_skipped_and_named(tmp_path: Path, mnist: tuple[Examples, Examples]) -> None:
    network = Network()
    log = RunLog(tmp_path, network, 1, State(network.parameters, None, torch.zeros(2).double()))
    trace, _ = one_step(network, mnist)
    network.weights[1][0, 0] = torch.nan
    trace.deltas[2][0, 0] = torch.inf
    assert log.histograms(trace, 1) == ["weights/layer_2", "deltas/layer_3"]
    log.running.fill_(torch.nan)
    assert not log.step(1, trace, SGD(network, 1.0)), "a cost that is not finite is told"
    log.close()
    assert len(read(tmp_path).Tags()["histograms"]) == 6 * 3 - 2


def test_the_confusion_matrix_counts_by_digit_and_answer() -> None:
    matrix = confusion_matrix(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 2, 2, 0]), 3)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 2], [1, 0, 0]]


def test_the_most_wrong_are_wrong_and_worst_first() -> None:
    outputs = torch.tensor([[0.9, 0.1], [0.6, 0.5], [1.0, 0.0], [0.2, 0.8]])
    assert most_wrong(torch.tensor([0, 1, 1, 1]), outputs).tolist() == [2, 1]


def test_maps_are_white_at_zero_red_above_and_blue_below() -> None:
    zero, above, below = diverging(torch.tensor([[[0.0, 2.0], [-2.0, 1.0]]]))[0].reshape(-1, 3)[:3].astype(int)
    assert zero.tolist() == [255, 255, 255]
    assert above[0] > above[2] and below[2] > below[0]
    assert weight_maps(torch.zeros(5, 784)).dtype == np.uint8
