"""The command ``train.py``, as a process of its own, and ``python -m bp_torch train``, on real MNIST."""

import dataclasses
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bp_torch import __main__ as package
from bp_torch import backprop
from bp_torch.commands import start
from bp_torch.convert import load
from bp_torch.training import Config, Stopped, read_config
from tests.harness import posix

TRAIN = Path(__file__).parent.parent / "train.py"

Command = Callable[..., None]


@pytest.fixture(params=["train.py", "bp_torch train"])
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``train.py`` or ``python -m bp_torch train`` in this process, with the words of its command line."""
    main = partial(start, "train", None) if request.param == "train.py" else package.main

    def run(*words: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", [*request.param.split(), *map(str, words)])
        main()

    return run


def train(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TRAIN), *arguments], cwd=cwd, capture_output=True, encoding="utf-8", timeout=120
    )


def test_one_epoch_on_2000_examples(tmp_path: Path) -> None:
    done = train("--epochs", "1", "--train-examples", "2000", "--run-name", "r", "--device", "cpu", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), "no progress bar where the output is not a terminal"
    about, head, epoch, *rest = done.stdout.splitlines()
    place = next(n for n, line in enumerate(rest) if line.startswith("saved "))
    not_yet, saved, next_commands = rest[:place], rest[place], rest[place + 1 :]
    assert "13,002 parameters, 2,000 training examples, batches of 100, on cpu" in about
    assert head.split("  ")[0] == "epoch"
    number, *values = epoch.replace("%", "").replace(",", "").split()
    assert number == "1"
    cost, accuracy, test_cost, test_accuracy, rate, _ = map(float, values)
    assert 0 < cost < 1 and 0 < test_cost < 1 and 5 < accuracy < 100 and 5 < test_accuracy < 100 and rate > 0
    assert saved == f"saved {Path('runs/r/network.safetensors')}"
    assert " ".join(not_yet).endswith("the gradient follows the labels: try more --epochs, or a larger --learning-rate")
    assert next_commands == [
        "watch it:  tensorboard --logdir runs --samples_per_plugin images=100",
        "           http://localhost:6006/#scalars&_smoothingWeight=0",
        f"touch it:  python -m bp_torch explain page --run {Path('runs/r')}",
    ]
    assert load(tmp_path / "runs/r/network.safetensors").sizes == (784, 16, 16, 10)
    assert (tmp_path / "data/MNIST/raw").is_dir(), "data and runs lie where the command was typed"


def test_bad_flag_is_reported_in_one_line_on_stderr(tmp_path: Path) -> None:
    done = train("--sizes", "784", "5", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --sizes: wanted 784 (pixels) first, 10 (digits) last and positive numbers between, got 784 5\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--nope", "3"], 2, "Unrecognized options: --nope"),
        (["--sizes", "784", "ten"], 2, "--sizes"),
        (["--batch-size", "some"], 2, "--batch-size"),
        (["--cost", "linear"], 2, "--cost"),
        (["--momentum", "2"], 2, "momentum is at least 0 and below 1, not 2.0"),
        (["--train-examples", "60001", "--data-dir", "DATA"], 1, "--train-examples: mnist has 60,000, got 60,001"),
        (["--device", "cuda:99"], 1, "no device 'cuda:99' here"),
        pytest.param(["--data-dir", "/dev/null"], 1, "cannot put mnist into /dev/null/MNIST/raw", marks=posix),
        pytest.param(
            ["--runs-dir", "/dev/null", "--data-dir", "DATA"], 1, "cannot make the run's folder /dev/null/", marks=posix
        ),
    ],
)
def test_errors_have_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    data_dir: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*(data_dir if word == "DATA" else word for word in arguments))
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert (stop.value.code, said.out) == (code, "")
    assert line.startswith("error: ") and message in line


def test_wrong_gradient_stops_the_run_with_a_report(
    data_dir: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--verify-every", "3", "--epochs", "1", "--train-examples", "1000", "--device", "cpu"]
    flags += ["--data-dir", str(data_dir), "--runs-dir", str(tmp_path)]
    command(*flags, "--run-name", "right")
    assert re.search(
        r"\n18 gradients checked against autograd, worst relative error \de-\d\d\n", capsys.readouterr().out
    )
    monkeypatch.setattr(backprop, "bias_gradient", lambda delta, out: out.copy_(delta[0]))
    with pytest.raises(SystemExit) as stop:
        command(*flags, "--run-name", "wrong")
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert said.err == ("error: the hand-written gradient of step 3 (epoch 1) disagrees with autograd, see above\n")
    assert "b1" in said.out and (tmp_path / "wrong/last.pt").is_file()


def test_help_has_every_flag(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command("--help")
    assert not stop.value.code
    said = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in said


def test_resumed_run_keeps_the_flags_it_was_started_with(
    data_dir: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--epochs", "1", "--train-examples", "500", "--momentum", "0.5", "--device", "cpu", "--run-name", "one"]
    command(*flags, "--data-dir", data_dir, "--runs-dir", tmp_path)
    folder = tmp_path / "one"
    command("--resume", folder, "--epochs", "2")
    assert f"continuing {folder} at epoch 2, step 0 of 5\n" in capsys.readouterr().out
    command("--resume", folder)
    assert f"all 2 epochs of {folder} are done: raise --epochs to continue\n" in capsys.readouterr().out
    config = read_config(folder)
    assert (config.epochs, config.train_examples, config.momentum) == (2, 500, 0.5)
    assert load(folder / "network.safetensors").sizes == config.sizes
    with pytest.raises(SystemExit) as stop:
        command("--resume", folder, "--seed", "9")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --seed 9 differs from the run's 0: only --epochs, --replay")


def test_stopped_run_has_the_exit_code_of_the_signal(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(config: Config) -> None:
        raise Stopped(signal.SIGTERM, Path("runs/one"))

    monkeypatch.setattr("bp_torch.training.loop.train", stopped)
    with pytest.raises(SystemExit) as stop:
        command("--device", "cpu")
    assert stop.value.code == 143
    assert capsys.readouterr().err.startswith("error: stopped by SIGTERM, all is saved; continue with: ")
