"""Every tag, read back from the event file as TensorBoard reads it."""

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from bp_torch.backprop import backward, example_costs, forward
from bp_torch.checkpoint import State
from bp_torch.convert import load
from bp_torch.data import Examples, batch, first_shuffled
from bp_torch.network import Network
from bp_torch.sgd import SGD
from bp_torch.training import Config, StepResult, train
from bp_torch.training.event_file import BLOCK, EventFile, checksum, masked, open_writer
from bp_torch.training.log import DESCRIPTIONS, RunLog, average_precision, described
from bp_torch.training.loop import TENSORBOARD, has_pictures

ALWAYS = ("9 weights", "9 biases")
AFTER_A_STEP = ("9 activations", "9 deltas", "9 weight gradients", "9 bias gradients")


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
    layers = [f"layer {n}" for n in (1, 2, 3)]
    assert set(tags["scalars"]) == {
        "1 accuracy/train",
        "1 accuracy/test",
        "2 cost, quadratic/train",
        "2 cost, quadratic/test",
        *(f"{what}/{layer}" for what in ("4 update to weight", "5 size of delta", "6 saturated") for layer in layers),
        "7 training/examples per second",
        "7 training/learning rate",
        "7 training/gradient norm",
        *(f"8 average precision/digit {digit}" for digit in range(10)),
    }
    assert set(tags["histograms"]) == {f"{kind}/{layer}" for kind in ALWAYS + AFTER_A_STEP for layer in layers}
    assert set(tags["images"]) == {"3 pictures/first layer", "3 pictures/confusion", "3 pictures/most wrong"}
    assert set(tags["tensors"]) == {
        "custom_scalars__config__",
        *(f"run/{text}/text_summary" for text in ("command", "config", "versions", "machine")),
        *(f"precision recall/digit {digit}" for digit in range(10)),
    }


def test_step_axis_counts_training_steps(run: tuple[Path, EventAccumulator]) -> None:
    events = run[1]
    assert [event.step for event in events.Scalars("2 cost, quadratic/train")] == [0, 5, 10, 15, 20]
    assert [event.step for event in events.Histograms("9 activations/layer 1")] == [11, 22]


def test_what_it_has_learned_is_seen_from_the_beginning(run: tuple[Path, EventAccumulator]) -> None:
    events = run[1]
    for tag in ("2 cost, quadratic/test", "1 accuracy/train", "1 accuracy/test"):
        assert [event.step for event in events.Scalars(tag)] == [0, 2, 5, 11, 22], "11 steps, their half and quarter"
    for name in ("first layer", "confusion", "most wrong"):
        assert [event.step for event in events.Images(f"3 pictures/{name}")] == [0, 11, 22]
    assert [event.step for event in events.Histograms("9 weights/layer 1")] == [0, 11, 22]
    assert events.Scalars("1 accuracy/test")[0].value < 0.2


def test_every_scalar_histogram_and_picture_has_a_description(run: tuple[Path, EventAccumulator]) -> None:
    tags, metadata = run[1].Tags(), run[1].summary_metadata
    for tag in (*tags["scalars"], *tags["histograms"], *tags["images"]):
        assert metadata[tag].summary_description == described(tag)
        assert metadata[tag].data_class, "without it, TensorBoard drops the description"
    for what, says in DESCRIPTIONS.items():
        assert "Healthy: " in says or what in ("7 training", "8 average precision", "explain") or "/" in what


def test_first_columns_of_hparams_are_those_that_one_compares(run: tuple[Path, EventAccumulator]) -> None:
    content = run[1].summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    first = {info.name for info in experiment.hparam_infos if info.differs}
    assert first == {"sizes", "activation", "cost", "learning_rate", "batch_size"}
    assert [info.name.tag for info in experiment.metric_infos] == ["1 accuracy/test"]


def test_projector_knows_what_the_network_said(run: tuple[Path, EventAccumulator]) -> None:
    (file,) = run[0].rglob("metadata.tsv")
    header, *rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    assert header == ["label", "said", "right"] and len(rows) == 2000
    assert all((label == said) == (right == "right") for label, said, right in rows)


def test_average_precision_is_the_mean_of_the_precisions_at_each_positive() -> None:
    positive, scores = torch.tensor([True, False, True, False]), torch.tensor([0.9, 0.8, 0.7, 0.1])
    assert average_precision(positive, scores) == pytest.approx((1 + 2 / 3) / 2)


def test_hparams_are_in_the_folder_of_the_run(run: tuple[Path, EventAccumulator]) -> None:
    folder, events = run
    assert len(list(folder.parent.rglob("events.*"))) == 1, "no run below the run"
    plugin = events.summary_metadata
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(plugin)
    content = plugin["_hparams_/session_start_info"].plugin_data.content
    for key in Config().hyperparameters(60_000, 100):
        assert key.encode() in content


def test_hyperparameters_have_the_same_keys_and_types_in_every_run() -> None:
    one = Config().hyperparameters(60_000, 100)
    other = Config(batch_size="full", train_examples=10, cost="softmax-cross-entropy").hyperparameters(10, 10)
    assert {key: type(value) for key, value in one.items()} == {key: type(value) for key, value in other.items()}


def test_histogram_counts_every_number(run: tuple[Path, EventAccumulator]) -> None:
    (*_, last) = run[1].Histograms("9 weights/layer 1")
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
    log = RunLog(tmp_path, network, 2, State(network.parameters, sgd.velocity, torch.zeros(2).double()), "quadratic")
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
        log.flush()
        assert "2 cost, quadratic/train" not in read(tmp_path).Tags()["scalars"]
        assert log.write_points()
    log.close()
    events = read(tmp_path)
    assert means[0] != means[1]
    assert [event.value for event in events.Scalars("2 cost, quadratic/train")] == [pytest.approx(sum(means) / 2)]
    assert events.Scalars("7 training/gradient norm")[0].value == pytest.approx(result.backward.gradient.norm().item())
    assert events.Scalars("4 update to weight/layer 2")[0].value == pytest.approx(ratio.log10().item())
    size = result.backward.deltas[1].square().mean().sqrt()
    assert events.Scalars("5 size of delta/layer 2")[0].value == pytest.approx(size.log10().item())


def test_tensors_with_nan_are_skipped_and_named(tmp_path: Path, mnist: tuple[Examples, Examples]) -> None:
    network = Network()
    log = RunLog(tmp_path, network, 1, State(network.parameters, None, torch.zeros(2).double()), "quadratic")
    result = one_step(network, mnist)
    network.weights[1][0, 0] = torch.nan
    result.backward.deltas[2][0, 0] = torch.inf
    assert log.histograms(result, 1) == ["9 weights/layer 2", "9 deltas/layer 3"]
    log.running.fill_(torch.nan)
    assert not log.step(1, result, SGD(network, 1.0)), "a cost that is not finite is reported"
    log.close()
    assert len(read(tmp_path).Tags()["histograms"]) == 6 * 3 - 2


def test_histogram_of_magnitudes_is_of_their_logarithms_without_zeros(tmp_path: Path) -> None:
    file = EventFile(tmp_path, described)
    values = torch.tensor([0.0, 0.01, -0.1, 10.0])
    assert file.histograms({}, {"9 deltas/layer 1": values, "9 deltas/layer 2": torch.zeros(3)}, 1) == []
    file.writer.close()
    events = read(tmp_path)
    assert events.Tags()["histograms"] == ["9 deltas/layer 1"], "there is nothing to show of zeros alone"
    (event,) = events.Histograms("9 deltas/layer 1")
    found = event.histogram_value
    assert (found.num, found.min, found.max) == (3, pytest.approx(-2), pytest.approx(1))
    assert found.sum == pytest.approx(-2)


@pytest.mark.parametrize(("activation", "tag"), [("tanh", "6 saturated"), ("relu", "6 dead ReLUs")])
def test_fractions_of_saturated_activations_and_dead_relus(
    activation: Any, tag: str, tmp_path: Path, mnist: tuple[Examples, Examples]
) -> None:
    network = Network((784, 4, 10), activation=activation)
    network.biases[0][:3] = torch.tensor([-1e3, -1e3, -1e3 if activation == "tanh" else 1e3])
    log = RunLog(tmp_path, network, 1, State(network.parameters, None, torch.ones(2).double()), "quadratic")
    assert log.step(1, one_step(network, mnist), SGD(network, 1.0))
    log.close()
    events = read(tmp_path)
    assert events.Scalars(f"{tag}/layer 1")[0].value == (0.75 if activation == "tanh" else 0.5)
    assert "6 saturated/layer 2" in events.Tags()["scalars"], "its outputs are sigmoids"


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


@pytest.mark.parametrize("n", [0, 1, 8, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 40_000])
def test_checksum_is_that_of_tensorboard(n: int) -> None:
    for data in (bytes(n), b"\xff" * n, random.Random(n).randbytes(n)):
        assert masked(checksum(data)) == masked_crc32c(data)


def test_pictures_are_drawn_the_more_rarely_the_later(tmp_path: Path, data_dir: Path) -> None:
    assert [epoch for epoch in range(1, 50) if has_pictures(epoch)] == [1, 2, 4, 8, 16, 32]
    folder = train(Config(epochs=6, train_examples=100, histogram_every=2, data_dir=data_dir, runs_dir=tmp_path))
    events = read(folder)
    assert [event.step for event in events.Images("3 pictures/confusion")] == [0, 2, 4, 6]
    assert [event.step for event in events.Histograms("9 weights/layer 1")] == [0, 2, 4, 6]
    folder = train(Config(epochs=7, train_examples=100, data_dir=data_dir, runs_dir=tmp_path))
    events = read(folder)
    assert [event.step for event in events.Images("3 pictures/confusion")] == [0, 1, 2, 4, 7], "and at the end"
    assert [event.step for event in events.Histograms("9 weights/layer 1")] == list(range(8))


def test_what_was_logged_after_the_last_checkpoint_is_read_once(tmp_path: Path) -> None:
    network = Network((784, 5, 10))
    for last in (0, 1):  # the first process logged step 2 and was killed; the second goes on from step 1
        log = RunLog(tmp_path, network, 1, State(network.parameters, None, torch.zeros(2), step=last), "quadratic")
        for step in range(last + 1, 3):
            log.histograms(None, step)
        log.close()
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path))  # as tensorboard --load_fast=false reads
    events.Reload()
    assert [event.step for event in events.Tensors("9 weights/layer 1")] == [1, 2]


@pytest.mark.long
def test_printed_address_shows_the_curves_without_smoothing(run: tuple[Path, EventAccumulator]) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("there is no Chromium")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run[0].parent), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as server:
        try:
            address = next(line.split(" at ")[1].split()[0] for line in server.stderr or () if " at http" in line)
            with sync_api.sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                page = browser.new_page()
                page.goto(TENSORBOARD.replace("http://localhost:6006/", address), wait_until="domcontentloaded")
                page.get_by_text("1 accuracy/test").first.wait_for()
                assert page.locator("tf-smoothing-input input").first.input_value() == "0"
                browser.close()
        finally:
            server.kill()
