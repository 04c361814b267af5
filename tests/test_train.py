"""train.py as a person runs it: a process of its own, on real MNIST."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from bp_torch import backprop
from bp_torch.network import Network
from bp_torch.training import Config
from train import main

TRAIN = Path(__file__).parent.parent / "train.py"


def train(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TRAIN), *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_one_epoch_on_2000_examples(tmp_path: Path) -> None:
    done = train("--epochs", "1", "--train-examples", "2000", "--run-name", "r", "--device", "cpu", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), "no progress bar where the output is not a terminal"
    about, head, epoch, saved = done.stdout.splitlines()
    assert "13,002 parameters, 2,000 training examples, batches of 100, on cpu" in about
    assert head.split("  ")[0] == "epoch"
    number, *values = epoch.replace("%", "").replace(",", "").split()
    assert number == "1"
    cost, accuracy, test_cost, test_accuracy, rate, _ = map(float, values)
    assert 0 < cost < 1 and 0 < test_cost < 1 and 5 < accuracy < 100 and 5 < test_accuracy < 100 and rate > 0
    assert saved == "saved runs/r/network.safetensors"
    assert Network.load(tmp_path / "runs/r/network.safetensors").sizes == (784, 16, 16, 10)
    assert (tmp_path / "data/MNIST/raw").is_dir(), "data and runs lie where the command was typed"


def test_a_mistake_is_told_in_one_line_on_stderr(tmp_path: Path) -> None:
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
        (["--data-dir", "/dev/null"], 1, "cannot put mnist into /dev/null/MNIST/raw"),
        (["--runs-dir", "/dev/null", "--data-dir", "DATA"], 1, "cannot make the run's folder /dev/null/"),
    ],
)
def test_every_mistake_has_its_line_and_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *(str(data_dir) if word == "DATA" else word for word in arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert (stop.value.code, said.out) == (code, "")
    assert line.startswith("error: ") and message in line


def test_a_wrong_gradient_stops_the_run_with_a_report(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--verify-every 3 --epochs 1 --train-examples 1000 --device cpu"
    arguments = ["train.py", *flags.split(), "--data-dir", str(data_dir), "--runs-dir", str(tmp_path), "--run-name"]
    monkeypatch.setattr(sys, "argv", [*arguments, "right"])
    main()
    monkeypatch.setattr(sys, "argv", [*arguments, "wrong"])
    monkeypatch.setattr(backprop, "bias_gradient", lambda delta, out: out.copy_(delta[0]))
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert said.err == ("error: the hand-written gradient of step 3 (epoch 1) disagrees with autograd, see above\n")
    assert "b1" in said.out and (tmp_path / "wrong/last.pt").is_file()


def test_help_tells_every_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    said = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in said
