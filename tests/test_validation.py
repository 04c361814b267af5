"""Held-out examples choose the epoch; the test set is looked at once, with its network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bp_torch.checkpoint import BEST
from bp_torch.convert import load
from bp_torch.data import Examples, permutation
from bp_torch.training import Config, Stopped, TrainingError, evaluate, train
from bp_torch.training.interruption import Signals
from bp_torch.training.run import load_data, split
from tests.conftest import curves

N = 60


@pytest.fixture
def config(tmp_path: Path, data_dir: Path) -> Config:
    """A run whose last epoch is not its best on so few examples."""
    fields: dict[str, Any] = {"sizes": (784, 12, 10), "learning_rate": 6.0, "device": "cpu", "threads": 1}
    return Config(
        epochs=12, train_examples=1200, validation=N, batch_size=50, data_dir=data_dir, runs_dir=tmp_path, **fields
    )


def outcome(folder: Path) -> tuple[dict[str, Any], Tensor]:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result.pop("seconds") > 0 and len(result.pop("sha256")) == 64
    assert (result.pop("device"), result.pop("precision")) == ("cpu", "full")
    assert (result.pop("threads"), result.pop("torch")) == (1, torch.__version__)
    return result, load(folder / "network.safetensors").parameters


def test_last_of_the_shuffled_examples_are_held_out(config: Config, mnist: tuple[Examples, Examples]) -> None:
    order = permutation(60_000, config.seed, 0)
    training, held_out = split(mnist[0], config)
    assert held_out is not None
    assert torch.equal(training.x, mnist[0].x[order[:1200]])
    assert torch.equal(held_out.labels, mnist[0].labels[order[-N:]])
    rest, _ = split(mnist[0], replace(config, train_examples=None))
    assert torch.equal(rest.x, mnist[0].x[order[:-N]])
    assert split(mnist[0], Config()) == (mnist[0], None)


@pytest.mark.parametrize("log", [True, pytest.param(False, marks=pytest.mark.long)])
def test_network_of_the_best_epoch_on_them_is_saved_and_tested(
    config: Config, mnist: tuple[Examples, Examples], capsys: pytest.CaptureFixture[str], log: bool
) -> None:
    result, parameters = outcome(train(replace(config, run_name="chosen", log=log)))
    held_out = split(mnist[0], config)[1]
    assert held_out is not None
    by_epoch = []
    for epochs in range(1, config.epochs + 1):  # the same run, ended there; it draws no other number
        folder = train(replace(config, run_name=f"until-{epochs}", epochs=epochs, validation=0, log=False))
        network = load(folder / "network.safetensors")
        by_epoch.append((evaluate(network, held_out, config.cost).accuracy, epochs, network))
    accuracy, epoch, network = max(by_epoch, key=lambda each: each[:2])
    assert epoch < config.epochs, "the case of interest: the last epoch is not the best"
    assert torch.equal(parameters, network.parameters)
    score = evaluate(network, mnist[1], config.cost)
    assert result == {
        "test_accuracy": score.accuracy,
        "test_cost": score.cost,
        "epoch": epoch,
        "epochs": config.epochs,
        "validation_accuracy": accuracy,
    }
    out = capsys.readouterr().out.split("saved ")[0]
    assert "epoch   train cost  accuracy   validation cost  accuracy   examples/s" in out
    sentence = f"by the network of epoch {epoch}, the best of {config.epochs} on {N} held-out examples\n"
    assert out.endswith(f"test accuracy {100 * score.accuracy:.2f} %, cost {score.cost:.4f}, {sentence}")
    if log:
        logged = curves(config.runs_dir / "chosen")
        per_epoch = 1200 // 50
        for tag in ("1 accuracy/validation", "2 cost, quadratic/validation"):
            assert [step for step, _ in logged[tag] if step >= per_epoch] == [
                per_epoch * epoch for epoch in range(1, config.epochs + 1)
            ]
        last = per_epoch * config.epochs
        for tag, expected in (("1 accuracy/test", score.accuracy), ("2 cost, quadratic/test", score.cost)):
            assert [step for step, _ in logged[tag]] == [last], "once"
            assert logged[tag][0][1] == pytest.approx(expected)


def test_default_run_is_unchanged_and_has_a_result(config: Config, mnist: tuple[Examples, Examples]) -> None:
    folder = train(replace(config, validation=0, epochs=2, run_name="plain"))
    result, _ = outcome(folder)
    score = evaluate(load(folder / "network.safetensors"), mnist[1], config.cost)
    assert (result["test_accuracy"], result["epoch"], result["validation_accuracy"]) == (score.accuracy, 2, None)
    assert [step for step, _ in curves(folder)["1 accuracy/test"]] == [0, 1, 6, 12, 24, 48]


@pytest.mark.parametrize("stop", [2, 11])
def test_stopped_and_resumed_run_chooses_the_same_network(
    stop: int, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(replace(config, run_name="whole"))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        moments = iter([False] * (stop - 1) + [True])
        patch.setattr(Signals, "should_stop", lambda self, poll: poll == 0 and next(moments))
        train(replace(config, run_name="stopped"))
    folder = config.runs_dir / "stopped"
    assert not (folder / "result.json").exists()
    train(replace(config, run_name="stopped", resume=folder))
    (result, parameters), (expected, wanted) = outcome(folder), outcome(whole)
    assert result == expected and torch.equal(parameters, wanted)
    train(replace(config, run_name="stopped", resume=folder))  # what is done is not done again
    assert outcome(folder)[0] == expected and torch.equal(load(folder / "network.safetensors").parameters, wanted)
    assert len(curves(folder)["1 accuracy/test"]) == 1
    best = torch.load(folder / BEST, weights_only=True)
    assert torch.equal(best["parameters"], wanted)


def test_held_out_images_are_not_deformed(config: Config, mnist: tuple[Examples, Examples]) -> None:
    deformed = replace(config, deform="both", epochs=2, run_name="deformed")
    result, _ = outcome(train(deformed))
    held_out = split(mnist[0], config)[1]
    assert held_out is not None
    network = load(deformed.runs_dir / "deformed" / "network.safetensors")
    assert evaluate(network, held_out, config.cost).accuracy == result["validation_accuracy"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_examples": None, "validation": 60_000}, "--validation: mnist has 60,000, wanted at most 59,999"),
        (
            {"train_examples": 59_000, "validation": 1_001},
            "--train-examples 59,000 and --validation: mnist has 60,000, wanted at most 1,000, got 1,001",
        ),
        ({"train_examples": 60_001, "validation": 0}, "--train-examples: mnist has 60,000, got 60,001"),
    ],
)
def test_more_examples_than_there_are_raise_training_error(
    fields: dict[str, Any], message: str, config: Config
) -> None:
    with pytest.raises(TrainingError, match=message):
        load_data(replace(config, **fields), torch.device("cpu"))


# ---- --patience ----


def accuracies(folder: Path) -> list[float]:
    lines = (folder / "history.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith("validation_cost,validation_accuracy")
    return [float(line.split(",")[-1]) for line in lines[1:]]


def last_epoch(found: list[float], patience: int) -> int:
    """The epoch that so many in a row end, of which none is better than all before."""
    waits = [len(found[:n]) - 1 - found[:n].index(max(found[:n])) for n in range(1, len(found) + 1)]
    return next((n for n, wait in enumerate(waits, 1) if wait == patience), len(found))


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_the_run_and_changes_nothing_before(
    patience: int, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, epochs=30, log=False)
    whole = train(replace(config, run_name="whole"))
    end = last_epoch(accuracies(whole), patience)
    assert end < 30, "the case of interest"
    impatient = replace(config, patience=patience, run_name="impatient")
    folder = train(impatient)
    assert accuracies(folder) == accuracies(whole)[:end]
    result, parameters = outcome(folder)
    assert (result["epochs"], result["validation_accuracy"]) == (end, max(accuracies(folder)))
    shorter = outcome(train(replace(config, epochs=end, run_name="shorter")))
    assert shorter[0] == result and torch.equal(shorter[1], parameters)
    capsys.readouterr()
    train(replace(impatient, resume=folder, epochs=40))
    assert f"is done: --patience {patience} ended it with epoch {end}\n" in capsys.readouterr().out
    assert outcome(folder)[0] == result and len(accuracies(folder)) == end, "what is done is not done again"


def test_patience_counts_on_after_a_stop(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, epochs=30, log=False, patience=3)
    whole = train(replace(config, run_name="whole"))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        moments = iter([False] * (len(accuracies(whole)) - 2) + [True])
        patch.setattr(Signals, "should_stop", lambda self, poll: poll == 0 and next(moments))
        train(replace(config, run_name="stopped"))
    folder = train(replace(config, run_name="stopped", resume=config.runs_dir / "stopped"))
    assert (folder / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    assert outcome(folder)[0] == outcome(whole)[0]


def test_patience_without_held_out_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="--patience has no effect without --validation"):
        Config(patience=3)
