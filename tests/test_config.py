import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bp_torch.deform import Deformation
from bp_torch.training import Config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": (784, 5)}, r"--sizes: wanted 784 \(pixels\) first, 10 \(digits\) last .*, got 784 5"),
        ({"sizes": ()}, "--sizes: .*got none"),
        ({"sizes": (784, 0, 10)}, "--sizes: .*got 784 0 10"),
        ({"epochs": -1}, "--epochs: wanted 0 or more, got -1"),
        ({"epochs": 10**401}, "--epochs: wanted at most 18 digits, got about 401 digits"),
        ({"learning_rate": 10**401, "dtype": "float64"}, "--learning-rate: wanted at most 18 digits"),
        ({"sizes": (784, 10**401, 10)}, "--sizes: wanted at most 18 digits"),
        ({"batch_size": 0}, "--batch-size: wanted 1 or more, got 0"),
        ({"train_examples": 0}, "--train-examples: wanted 1 or more, got 0"),
        ({"threads": 0}, "--threads: wanted 1 to 1024, got 0"),
        ({"seed": -1}, "--seed: wanted 0 or more, got -1"),
        ({"precision": "bf16", "dtype": "float64"}, "--precision bf16: wanted --dtype float32, got float64"),
        ({"precision": "tf32", "verify_every": 10}, "--verify-every: wanted --precision full, bf16 or auto"),
        ({"run_name": "../x"}, r"--run-name: wanted the name of one folder in --runs-dir, got '\.\./x'"),
        ({"run_name": ".."}, "--run-name: wanted the name of one folder"),
        ({"run_name": ""}, "--run-name: wanted the name of one folder"),
        ({"seed": 2**32}, r"--seed: wanted less than 4,294,967,296, got 4294967296"),
        ({"seed": 2.5}, "--seed: wanted a whole number, got 2.5"),
        ({"epochs": True}, "--epochs: wanted a whole number, got True"),
        ({"batch_size": 2.5}, "--batch-size: wanted a whole number or full, got 2.5"),
        ({"batch_size": float("nan")}, "--batch-size: wanted a whole number or full, got nan"),
        ({"data_dir": "data"}, "--data-dir: wanted a Path, got 'data'"),
        ({"threads": 100_000}, "--threads: wanted 1 to 1024, got 100000"),
        ({"run_name": "n" * 201}, "--run-name: wanted at most 200 bytes"),
        ({"run_name": "\ud800"}, "--run-name: wanted characters that this system can write, got '.ud800'"),
        ({"data_dir": Path("a\0")}, "--data-dir: wanted characters that this system can write"),
        ({"log": False, "log_every": 5}, "--log-every has no effect with --no-log"),
        ({"log": False, "histogram_every": 5}, "--histogram-every has no effect with --no-log"),
        ({"log": False, "log_embedding": True}, "--log-embedding has no effect with --no-log"),
        ({"learning_rate": 1e300}, "learning rate is a positive number, but .* is infinite in float32"),
        ({"learning_rate": 1e-9, "dtype": "float16"}, "learning rate is a positive number, but 1e-09 is 0 in float16"),
        ({"learning_rate_decay": 1e300}, "--learning-rate-decay: in epoch 20, the learning rate .* is 0 in float32"),
        ({"weight_decay": 1e308}, "weight decay is zero or a positive number, but .* is infinite in float32"),
        ({"rotation": 5.0}, "--rotation has no effect without --deform affine or both"),
        ({"deform": "elastic", "scale": 0.2}, "--scale has no effect without --deform affine or both"),
        ({"deform": "affine", "alpha": 1.0}, "--alpha has no effect without --deform elastic or both"),
        ({"deform": "both", "scale": 1.5}, "--scale: wanted 0 to 0.9, got 1.5"),
        ({"schedule": "exponential", "learning_rate_decay": 1.0}, "wanted less than 1 with --schedule exponential"),
        ({"learning_rate": 0.0}, "learning rate is a positive number, not 0.0"),
        ({"learning_rate_decay": -0.5}, "--learning-rate-decay: wanted 0 or more, got -0.5"),
        ({"momentum": 1.0}, "momentum is at least 0 and below 1, not 1.0"),
        ({"weight_decay": -0.1}, "weight decay is zero or a positive number, not -0.1"),
        ({"cost": "binary-cross-entropy", "output_activation": "relu"}, "needs sigmoid outputs, the network has relu"),
    ],
)
def test_value_out_of_range_raises_value_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_output_activation_is_the_default_of_the_cost_unless_given() -> None:
    assert Config().outputs == "sigmoid"
    assert Config(cost="softmax-cross-entropy").outputs == "identity"
    assert Config(cost="softmax-cross-entropy", output_activation="tanh").outputs == "tanh"


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("inverse", [2, 2 / 1.5, 2 / 2, 2 / 2.5]),
        ("exponential", [2, 1, 0.5, 0.25]),
        ("cosine", [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5]),
        ("constant", [2, 2, 2, 2]),
    ],
)
def test_learning_rate_follows_the_schedule(schedule: Any, rates: list[float]) -> None:
    config = Config(schedule=schedule, learning_rate=2.0, learning_rate_decay=0.5, epochs=4)
    assert [config.learning_rate_at(epoch) for epoch in (1, 2, 3, 4)] == pytest.approx(rates)


def test_epochs_cannot_change_where_every_learning_rate_depends_on_them() -> None:
    saved = Config(schedule="cosine")
    with pytest.raises(ValueError, match="--epochs cannot change with --schedule cosine"):
        saved.resumed(replace(saved, epochs=30))
    assert saved.resumed(replace(saved, device="cpu"))


def test_kinds_of_deformation_leave_out_the_other() -> None:
    assert Config().deformation is None
    affine, elastic = Config(deform="affine").deformation, Config(deform="elastic", sigma=4.0).deformation
    assert affine == Deformation(alpha=0.0)
    assert elastic == Deformation(0, 0, 0, 0, 4.0, 35.0)
    assert Config(deform="both", shift=1.0).deformation == Deformation(shift=1.0)


def test_config_is_the_same_after_json() -> None:
    config = Config(sizes=(784, 30, 10), data_dir=Path("/d"), batch_size="full", train_examples=5)
    assert Config.from_json(config.to_json()) == config
    fields = json.loads(config.to_json())
    del fields["precision"], fields["replay"]
    assert Config.from_json(json.dumps(fields)) == config, "one of an older version"
    for text in ('{"sizes": [784, 10]}', "[]", "3"):
        with pytest.raises(ValueError, match="not the config of a run"):
            Config.from_json(text)


def test_config_that_is_nested_too_deep_raises_value_error() -> None:
    with pytest.raises(ValueError, match="not the config of a run: "):
        Config.from_json("[" * 100_000)


def test_path_of_the_data_is_absolute_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = Config(data_dir=Path("d")).to_json()
    monkeypatch.chdir("/")
    assert Config.from_json(text).data_dir == tmp_path / "d"


def test_place_of_the_data_and_the_device_may_change_on_resuming() -> None:
    saved = Config()
    given = replace(saved, data_dir=Path("elsewhere"), device="cpu", epochs=3, replay=False)
    assert saved.resumed(given) is given


@pytest.mark.parametrize(
    "damage", [{"batch_size": "foo"}, {"activation": "foo"}, {"epochs": "2"}, {"seed": 1.5}, {"sizes": 3}, {"log": 1}]
)
def test_damaged_config_raises_value_error(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not the config of a run: "):
        Config.from_json(json.dumps(json.loads(Config().to_json()) | damage))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 9}, "--seed 9 differs from the run's 0: only --epochs, --replay, --data-dir and --device may change"),
        ({"momentum": 0.0}, "--momentum 0.0 differs from the run's 0.9"),
    ],
)
def test_flag_that_differs_on_resuming_is_named(given: dict[str, Any], message: str) -> None:
    saved = Config(epochs=30, momentum=0.9)
    with pytest.raises(ValueError, match=message):
        saved.resumed(replace(saved, **given))
