"""A run that learns nothing says so, with the reason; one that learns never does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bp_torch.convert import save
from bp_torch.data import Examples
from bp_torch.network import Network
from bp_torch.sweep.config import SweepConfig
from bp_torch.sweep.loop import sweep
from bp_torch.training import Config, open_run, train
from bp_torch.training.stuck import is_chance

Fields = dict[str, Any]
SOFTMAX: Fields = {"cost": "softmax-cross-entropy"}
RELU: Fields = {"activation": "relu", "init": "he"}
long = pytest.mark.long


def deep(layers: int) -> tuple[int, ...]:
    return (784, *[30] * layers, 10)


def said(fields: Fields, data_dir: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What a run says of its network after an epoch, and at the end."""
    place: Fields = {"log": False, "device": "cpu", "data_dir": data_dir, "runs_dir": runs}
    capsys.readouterr()
    train(Config(**place | fields))
    printed = " ".join(capsys.readouterr().out.split("saved ")[0].split())
    found = re.findall(r"the network (?:is stuck|has learned nothing).*?(?=$| \d+ +\d+\.\d{4} | the network )", printed)
    at_once = [line for line in found if "of the test images" not in line]
    assert len(at_once) <= 1 >= len(found) - len(at_once), found
    return ("".join(at_once), "".join(line for line in found if line not in at_once))


# ---- networks that learn nothing ----

SATURATED = (
    r"(?:all|\d+ % of the) activations of layer \d+ are saturated, .*?: try a much smaller --learning-rate than \d+$"
)
DEAD = r"all ReLUs of layer \d+ are 0 for every image, .*: try a much smaller --learning-rate than \d+$"
UNMOVED = r"the weights moved by [\d.·⁻⁰¹²³⁴-⁹]+ of their size in all: try a larger --learning-rate"
SHRUNK = r"the weights shrank to [\d.·⁻⁰¹²³⁴-⁹]+ of their size: try a smaller --weight-decay$"
FADES = r"δ fades by 10[⁴-⁹] from the last layer to layer 1: try --activation relu --init he, or fewer layers$"

NOTHING: dict[str, tuple[Fields, str, bool]] = {  # fields, the reason, and whether it is plain after an epoch
    "rate 1000": ({"learning_rate": 1000.0}, SATURATED, True),
    "rate 32": ({"learning_rate": 32.0}, SATURATED, False),
    "rate 100 in four layers": ({"learning_rate": 100.0, "sizes": deep(4)}, SATURATED, True),
    "tanh at 100": ({"learning_rate": 100.0, "activation": "tanh"}, SATURATED, True),
    "momentum 0.99": ({"momentum": 0.99}, SATURATED, True),
    "cross-entropy at 50": ({"cost": "binary-cross-entropy", "learning_rate": 50.0}, SATURATED, False),
    "rate 1e-9": ({"learning_rate": 1e-9}, UNMOVED, True),
    "rate 1e-9 above chance": ({"learning_rate": 1e-9, "seed": 3}, UNMOVED, False),
    "rate 1e-9, ReLU": ({"learning_rate": 1e-9} | RELU | SOFTMAX, UNMOVED, True),
    "rate 1e-9, saturated from the first": ({"learning_rate": 1e-9, "init": "normal"}, UNMOVED, True),
    "rate 1e-5": ({"learning_rate": 1e-5}, UNMOVED, False),
    "six sigmoid layers": ({"sizes": deep(6), "learning_rate": 0.5} | SOFTMAX, FADES, False),
    "eight sigmoid layers": ({"sizes": deep(8)}, FADES, False),
    "ReLU at 10": ({"learning_rate": 10.0} | RELU | SOFTMAX, DEAD, True),
    "ReLU outputs": ({"output_activation": "relu"} | RELU, DEAD, True),
    "weight decay 10": ({"weight_decay": 10.0, "learning_rate": 0.05}, SHRUNK, False),
    "weight decay 0.1": ({"weight_decay": 0.1}, SHRUNK, False),
}
SHORT = ("rate 1000", "rate 1e-9", "rate 1e-9 above chance", "ReLU outputs", "weight decay 10", "six sigmoid layers")


@pytest.mark.parametrize("name", [n if n in SHORT else pytest.param(n, marks=long) for n in NOTHING])
def test_run_that_learns_nothing_says_why(
    name: str, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields, reason, plain = NOTHING[name]
    at_once, at_the_end = said({"epochs": 3} | fields, data_dir, tmp_path, capsys)
    assert re.search(reason, at_the_end), at_the_end
    assert bool(at_once) == plain and (not plain or re.search(reason, at_once)), at_once
    stuck = plain or name.endswith("above chance")
    start = "the network is stuck: " if stuck else "the network has learned nothing yet: "
    chance = "before the first step it was " if name.endswith("above chance") else "one answer to all gets 11.35 %; "
    assert at_the_end.startswith(start) and chance in at_the_end


def shuffled(data: tuple[Examples, Examples]) -> tuple[Examples, Examples]:
    training, test = data
    order = torch.randperm(len(training.labels), generator=torch.Generator().manual_seed(0))
    return training.having(training.x, training.labels[order]), test


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"epochs": 2},
            "no larger than with shuffled labels: try more --epochs, and check the labels",
        ),
        (
            {
                "epochs": 20,
                "train_examples": 300,
                "batch_size": 10,
                "learning_rate": 0.1,
                "sizes": (784, 99, 10),
                "seed": 1,
            }
            | (RELU | SOFTMAX),
            "nothing that holds for others: .* but .* of the training images. do the labels of both mean the same.$",
        ),
    ],
)
def test_labels_that_say_nothing_are_suspected(
    fields: Fields,
    reason: str,
    data_dir: Path,
    mnist: tuple[Examples, Examples],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bp_torch.training.run.load", lambda *_: shuffled(mnist))
    at_once, at_the_end = said(fields, data_dir, tmp_path, capsys)
    assert at_once == "" and re.search(reason, at_the_end), at_the_end


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_weights_of_zero_are_told(
    activation: str, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Network((784, 16, 10), activation=activation)
    network.parameters.zero_()
    save(network, tmp_path / "zero.safetensors")
    fields: Fields = {"activation": activation, "sizes": (784, 16, 10), "epochs": 2, "train_examples": 6000}
    for told in said(fields | {"start_from": tmp_path / "zero.safetensors"}, data_dir, tmp_path, capsys):
        assert told.endswith("all weights are 0, and so is their gradient: start from others")


# ---- networks that learn ----

LEARN: dict[str, Fields] = {
    "the defaults": {"epochs": 1},
    "few steps": {"epochs": 2, "train_examples": 1000},
    "deep, one epoch": {"epochs": 1, "sizes": deep(10), "learning_rate": 0.05} | RELU | SOFTMAX,
    "one neuron": {"epochs": 2, "sizes": (784, 1, 10)},
    "slow": {"epochs": 1, "learning_rate": 1e-3} | RELU | SOFTMAX,
    "slower, in three epochs": {"epochs": 3, "learning_rate": 1e-4} | RELU | SOFTMAX,
    "slow sigmoids": {"epochs": 5, "learning_rate": 0.03},
    "20 examples": {"epochs": 200, "train_examples": 20, "batch_size": 5},
    "four sigmoid layers": {"epochs": 2, "sizes": deep(4)},
    "five sigmoid layers, which start after epoch 5": {"epochs": 14, "sizes": deep(5), "learning_rate_decay": 0.0},
    "softmax in four sigmoid layers": {"epochs": 2, "sizes": deep(4), "learning_rate": 0.5} | SOFTMAX,
    "ReLU": {"epochs": 1, "learning_rate": 0.1} | RELU | SOFTMAX,
    "tanh": {"epochs": 1, "activation": "tanh", "learning_rate": 0.3},
    "scaled tanh": {"epochs": 1, "activation": "scaled-tanh", "learning_rate": 0.05},
    "linear": {"epochs": 1, "activation": "identity", "learning_rate": 0.01},
    "no hidden layer": {"epochs": 1, "sizes": (784, 10), "learning_rate": 0.5},
    "normal initial values": {"epochs": 1, "init": "normal"},
    "saturated from the first": {"epochs": 1, "init": "normal", "sizes": (784, 100, 10)},
    "rate 10": {"epochs": 1, "learning_rate": 10.0},
    "full batches": {"epochs": 40, "batch_size": "full", "learning_rate_decay": 0.0},
    "single examples": {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "train_examples": 3000},
    "momentum": {"epochs": 1, "momentum": 0.9, "learning_rate": 0.3},
    "cross-entropy": {"epochs": 1, "cost": "binary-cross-entropy", "learning_rate": 0.5},
    "bfloat16": {"epochs": 1, "dtype": "bfloat16", "learning_rate": 0.5},
    "float16": {"epochs": 1, "dtype": "float16", "learning_rate": 1.0},
    "weight decay": {"epochs": 1, "weight_decay": 1e-3},
    "cosine": {"epochs": 2, "schedule": "cosine"},
    "deformed": {"epochs": 1, "deform": "both", "train_examples": 20_000},
}
FAST = ("the defaults", "few steps", "one neuron", "slow", "slower, in three epochs", "deep, one epoch")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=long) for n in LEARN])
def test_run_that_learns_says_nothing(
    name: str, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(LEARN[name], data_dir, tmp_path, capsys) == ("", "")


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": 1, "learning_rate": 0.01},
        {"epochs": 10, "train_examples": 100},
        pytest.param({"epochs": 4, "batch_size": "full"}, marks=long),
        pytest.param({"epochs": 2, "dtype": "bfloat16", "learning_rate": 0.05}, marks=long),
        pytest.param({"epochs": 8, "train_examples": 100, "validation": 50}, marks=long),
    ],
)
def test_run_that_has_not_begun_is_told_to_go_on(
    fields: Fields, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_once, at_the_end = said(fields, data_dir, tmp_path, capsys)
    assert at_once == "" and at_the_end.startswith("the network has learned nothing yet: ")
    assert at_the_end.endswith("the gradient follows the labels: try more --epochs, or a larger --learning-rate")


# ---- the rule ----


def balanced(classes: int, n: int) -> Tensor:
    return torch.arange(n) % classes


@pytest.mark.parametrize(("classes", "n"), [(10, 10_000), (2, 1000), (47, 18_800), (26, 200)])
def test_answers_at_random_are_chance_and_more_is_not(classes: int, n: int) -> None:
    labels, generator = balanced(classes, n), torch.Generator().manual_seed(0)
    answers = torch.randint(classes, (400, n), generator=generator)
    found = (answers == labels).double().mean(1)
    assert sum(is_chance(accuracy, labels) for accuracy in found.tolist()) >= 397
    p = 1 / classes
    assert not is_chance(p + 4 * (p * (1 - p) / n) ** 0.5, labels)


def test_chance_is_that_of_the_largest_class() -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    assert is_chance(0.9, labels) and is_chance(0.5, labels) and not is_chance(0.94, labels)


def test_of_few_examples_what_is_nearer_to_all_right_is_not_chance() -> None:
    xor = torch.tensor([0, 1, 1, 0])
    assert [is_chance(right / 4, xor) for right in range(5)] == [True, True, True, False, False]
    assert not is_chance(1.0, torch.zeros(7, dtype=torch.int64))


# ---- where else it is said ----


def test_finished_run_says_it_again_on_resuming(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: Fields = {"learning_rate": 1e-9, "epochs": 1, "train_examples": 200, "run_name": "one"}
    first = said(fields, data_dir, tmp_path, capsys)
    assert first[1] and said(fields | {"resume": tmp_path / "one"}, data_dir, tmp_path, capsys) == first


def test_sweep_counts_the_networks_that_learned_nothing(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place: Fields = {"data_dir": data_dir, "runs_dir": tmp_path, "device": "cpu", "run_name": "swept"}
    rates = (1e-9, 1.0, 1000.0)
    folder = sweep(SweepConfig(learning_rate=rates, seeds=2, epochs=2, train_examples=20_000, log=False, **place))
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "4 of 6 networks learned nothing; 3 of them, and the others in sweep.json: learning-rate-1e-09_seed-0: the "
        in printed
    )
    assert len(re.findall(UNMOVED, printed)) == 2 and len(re.findall(SATURATED.removesuffix("$"), printed)) == 1
    rows = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["networks"]
    for row in rows:
        assert bool(row["trouble"]) == (row["learning_rate"] != 1.0)
    alone = Config(
        learning_rate=1000.0, seed=1, epochs=2, train_examples=20_000, log=False, **place | {"run_name": "one"}
    )
    train(alone)
    told = " ".join(capsys.readouterr().out.split("saved")[0].split())
    assert told.endswith(next(row["trouble"] for row in rows if (row["learning_rate"], row["seed"]) == (1000.0, 1)))
    result = sweep(
        SweepConfig(resume=folder, learning_rate=rates, seeds=2, epochs=2, train_examples=20_000, log=False, **place)
    )
    assert result == folder and "4 of 6 networks learned nothing" in capsys.readouterr().out


def test_saying_it_changes_no_weight(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields: Fields = {"learning_rate": 1000.0, "epochs": 3, "train_examples": 2000, "device": "cpu", "log": False}
    place: Fields = {"data_dir": data_dir, "runs_dir": tmp_path}
    told = train(Config(run_name="told", **fields, **place))
    assert "is stuck" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bp_torch.training.stuck.is_chance", lambda accuracy, labels: False)
        untold = train(Config(run_name="untold", **fields, **place))
    assert "stuck" not in capsys.readouterr().out
    assert torch.equal(open_run(told)[1].parameters, open_run(untold)[1].parameters)
