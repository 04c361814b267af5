"""``benchmark scripts``: the scripts of the contenders do the same training, and each is timed as a process."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bp_torch.benchmark import scripts
from bp_torch.benchmark.scripts import COMMANDS, OURS, BenchmarkError, Scripts
from bp_torch.commands.benchmark import main
from bp_torch.data import PIXEL_SCALE, Examples
from bp_torch.training import Config
from tests import default_run

FEW = 2_000


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, mnist: tuple[Examples, Examples]) -> Callable[[str], np.ndarray]:
    """θ that a script ends with after two epochs of a few examples, in the order of ``default_rng(1)``."""
    used: list[Any] = []
    start, generator = default_run.weights, np.random.default_rng

    def weights() -> list[Any]:
        used[:] = start()
        return used

    def few(folder: Path) -> tuple[Any, ...]:
        return tuple(part.copy() for x, y in mnist for part in (x[:FEW].numpy() / np.float32(255), y[:FEW].numpy()))

    def train(script: str) -> np.ndarray:
        order = generator(1)
        monkeypatch.setattr("torch.randperm", lambda n: torch.from_numpy(order.permutation(n)))
        default_run.SCRIPTS[script](Path(), 1)
        return np.concatenate([part.ravel() for part in used])

    monkeypatch.setattr(default_run, "EPOCHS", 2)
    monkeypatch.setattr(default_run, "weights", weights)
    monkeypatch.setattr(default_run, "mnist", few)
    return train


def test_scripts_train_as_ours_does(trained: Callable[[str], Any], mnist: tuple[Examples, Examples]) -> None:
    config = Config()
    network = config.network(torch.device("cpu"))
    start = np.concatenate([part.ravel() for part in default_run.weights()])
    network.parameters.copy_(torch.from_numpy(start))
    step = config.training_step(network, config.optimizer(network), mnist[0].map(lambda part: part[:FEW]))
    order = np.random.default_rng(1)
    for epoch in (1, 2):
        step.optimizer.learning_rate = config.learning_rate_at(epoch)
        list(step.run(torch.from_numpy(order.permutation(FEW))))
    ours = network.parameters.numpy()
    for script in ("numpy", "autograd"):
        assert np.linalg.norm(trained(script) - ours) <= 1e-4 * np.linalg.norm(ours - start), script


def test_scripts_read_what_torchvision_reads(data_dir: Path, mnist: tuple[Examples, Examples]) -> None:
    x, labels, test_x, test_labels = default_run.mnist(data_dir)
    for found, of in ((x, mnist[0].x), (test_x, mnist[1].x)):
        assert found.shape == of.shape
        np.testing.assert_allclose(found[::500], of[::500].numpy() * PIXEL_SCALE, rtol=1e-6)
    assert (labels == mnist[0].labels.numpy()).all() and (test_labels == mnist[1].labels.numpy()).all()


def test_defaults_of_the_scripts_are_those_of_train() -> None:
    config = Config()
    assert (config.sizes, config.epochs, config.batch_size) == (
        default_run.SIZES,
        default_run.EPOCHS,
        default_run.BATCH,
    )
    for epoch in range(config.epochs):
        assert default_run.rate(epoch) == pytest.approx(config.learning_rate_at(epoch + 1))
    assert set(default_run.SCRIPTS) == {
        command[1] for command in COMMANDS.values() if command[0] == str(scripts.SCRIPT)
    }


def says(words: str) -> list[str]:
    return ["-c", f"import sys; print({words!r}, *sys.argv[1:])"]


def test_each_is_started_in_turns_and_the_median_counts(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["-c", "import no_such_module"]
    commands = {OURS: says("94.1%"), "slow": [*says("93%")], "other": missing}
    clock = iter([0, 2, 0, 6, 0, 1, 0, 4, 0, 8, 0, 1, 0, 3, 0, 7, 0, 1])
    monkeypatch.setattr(scripts, "COMMANDS", commands)
    monkeypatch.setattr("bp_torch.benchmark.scripts.time.perf_counter", lambda: next(clock))
    main(["scripts", "--data-dir", str(data_dir)])
    *_, head, rule, ours, slow, other = capsys.readouterr().out.splitlines()
    assert head.endswith("| seconds | ÷ ours |") and set(rule) <= set("|:- ")
    assert ours == f"| {OURS} | 3.00 | 1.00 |" and slow == "| slow | 7.00 | 2.33 |"
    assert other == "| other: not installed |  |  |"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (says("accuracy 12.5%"), r"ours, `--no-log`: wanted a test accuracy of 90 % or more, got \['12.5'\]"),
        (says("done"), r"ours, `--no-log`: wanted a test accuracy of 90 % or more, got none"),
        (["-c", "raise SystemExit('no room')"], "ours, `--no-log`: ended with code 1: no room"),
    ],
)
def test_what_fails_or_learns_nothing_is_named(
    command: list[str], message: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts, "COMMANDS", {OURS: command})
    with pytest.raises(BenchmarkError, match=message):
        scripts.measure(Scripts(rounds=1, data_dir=data_dir))


@pytest.mark.long
def test_every_script_reaches_the_accuracy_of_the_default_run(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["scripts", "--rounds", "1", "--data-dir", str(data_dir)])
    said = capsys.readouterr().out
    there = {"jax": importlib.util.find_spec("jax"), "sklearn": importlib.util.find_spec("sklearn")}
    for name, command in COMMANDS.items():
        assert (f"| {name} | " in said) == (there.get(command[1], True) is not None), name
