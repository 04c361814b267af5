"""Every tag, read back from the event file as TensorBoard reads it."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bp_torch.backprop import backward, example_costs, forward
from bp_torch.checkpoint import State
from bp_torch.convert import load
from bp_torch.data import Examples, batch, first_shuffled
from bp_torch.network import Network
from bp_torch.sgd import SGD
from bp_torch.tensorboard import RunLog, open_writer
from bp_torch.training import Config, StepResult, train

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


def test_tags_are_exactly_these(run: tuple[Path, EventAccumulator]) -> None:
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


def test_step_axis_counts_training_steps(run: tuple[Path, EventAccumulator]) -> None:
    events = run[1]
    assert [event.step for event in events.Scalars("cost/train")] == [5, 10, 15, 20]
    assert [event.step for event in events.Scalars("cost/test")] == [11, 22]
    assert [event.step for event in events.Histograms("weights/layer_1")] == [11, 22]
    assert [event.step for event in events.Images("pictures/confusion")] == [22]


def test_hparams_are_in_the_folder_of_the_run(run: tuple[Path, EventAccumulator]) -> None:
    folder, events = run
    assert len(list(folder.parent.rglob("events.*"))) == 1, "no run below the run"
    plugin = events.summary_metadata
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(plugin)
    content = plugin["_hparams_/session_start_info"].plugin_data.content
    for key in Config().hyperparameters(60_000, 100):
        assert key.encode() in content
    assert events.Scalars("final/test_accuracy")[-1].value == events.Scalars("accuracy/test")[-1].value


def test_hyperparameters_have_the_same_keys_and_types_in_every_run() -> None:
    one = Config().hyperparameters(60_000, 100)
    other = Config(batch_size="full", train_examples=10, cost="softmax-cross-entropy").hyperparameters(10, 10)
    assert {key: type(value) for key, value in one.items()} == {key: type(value) for key, value in other.items()}


def test_histogram_counts_every_number(run: tuple[Path, EventAccumulator]) -> None:
    (*_, last) = run[1].Histograms("weights/layer_1")
    weights = load(run[0] / "network.safetensors").weights[0]
    value = last.histogram_value
    assert (value.num, sum(value.bucket)) == (12_544, 12_544)
    assert (value.min, value.max) == (weights.min().item(), weights.max().item())
    assert value.sum == pytest.approx(weights.double().sum().item(), rel=1e-4)


def one_step(network: Network, mnist: tuple[Examples, Examples]) -> StepResult:
    x, y = batch(first_shuffled(mnist[0], 100, 0), torch.arange(100), network.dtype)
    passed = forward(network, x)
    return StepResult(x, y, passed, backward(network, passed, y))


@pytest.mark.parametrize("at_once", [True, False])
def test_points_of_the_cost_curve_are_means_over_their_interval(
    at_once: bool, tmp_path: Path, mnist: tuple[Examples, Examples]
) -> None:
    network = Network(dtype=torch.float64)
    sgd = SGD(network, 0.5, momentum=0.9)
    log = RunLog(tmp_path, network, 2, State(network.parameters, sgd.velocity, torch.zeros(2).double()))
    log.at_once = at_once
    means = []
    for step in (1, 2):
        result = one_step(network, mnist)
        costs = example_costs(result.forward, result.y)
        log.running.add_(torch.stack([costs.sum(), torch.tensor(100.0)]))
        means.append(costs.mean().item())
        before = network.weights[1].clone()
        sgd.step(result.backward.gradient)
        assert log.step(step, result, sgd)
    ratio = (network.weights[1] - before).norm() / network.weights[1].norm()
    if not at_once:
        assert log.running.tolist() == [0, 0], "the next interval has begun"
        log.writer.flush()
        assert "cost/train" not in read(tmp_path).Tags()["scalars"]
        assert log.write_points()
    log.close()
    events = read(tmp_path)
    assert means[0] != means[1]
    assert [event.value for event in events.Scalars("cost/train")] == [pytest.approx(sum(means) / 2)]
    assert events.Scalars("gradient_norm")[0].value == pytest.approx(result.backward.gradient.norm().item())
    assert events.Scalars("update_to_weight_norm/layer_2")[0].value == pytest.approx(ratio.item())


def test_tensors_with_nan_are_skipped_and_named(tmp_path: Path, mnist: tuple[Examples, Examples]) -> None:
    network = Network()
    log = RunLog(tmp_path, network, 1, State(network.parameters, None, torch.zeros(2).double()))
    result = one_step(network, mnist)
    network.weights[1][0, 0] = torch.nan
    result.backward.deltas[2][0, 0] = torch.inf
    assert log.histograms(result, 1) == ["weights/layer_2", "deltas/layer_3"]
    log.running.fill_(torch.nan)
    assert not log.step(1, result, SGD(network, 1.0)), "a cost that is not finite is reported"
    log.close()
    assert len(read(tmp_path).Tags()["histograms"]) == 6 * 3 - 2


def test_file_of_a_clock_that_was_set_back_still_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for clock in (2_000_000_000.5, 1_000_000_000.5, 1_500_000_000.5, 2_000_000_000.5):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda clock=clock: clock)
            with open_writer(tmp_path) as writer:
                writer.add_scalar("clock", clock, len(list(tmp_path.iterdir())))
    files = sorted(tmp_path.iterdir())
    assert [int(file.name.split(".")[3]) for file in files] == [2_000_000_000 + n for n in range(4)]
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("clock")] == [1, 2, 3, 4]


def test_what_was_logged_after_the_last_checkpoint_is_read_once(tmp_path: Path) -> None:
    network = Network((784, 5, 10))
    for last in (0, 1):  # the first process logged step 2 and was killed; the second goes on from step 1
        log = RunLog(tmp_path, network, 1, State(network.parameters, None, torch.zeros(2), step=last))
        for step in range(last + 1, 3):
            log._histogram("weights/layer_1", network.weights[0], step)
        log.close()
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path))  # as tensorboard --load_fast=false reads
    events.Reload()
    assert [event.step for event in events.Tensors("weights/layer_1")] == [1, 2]
