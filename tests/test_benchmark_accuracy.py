"""Time to accuracy: what a process prints is found, in time or not, and kept."""

import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from bp_torch.benchmark import accuracy
from bp_torch.benchmark.accuracy import EPOCH_LINE, RECIPES, Accuracy, command, measure, seconds_until, shown, table
from bp_torch.benchmark.scripts import BenchmarkError
from bp_torch.cli import parse
from bp_torch.training import Config, train


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_line_of_every_contender_is_read(tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Config(epochs=1, train_examples=300, runs_dir=tmp_path, data_dir=data_dir, device="cpu", log=False))
    *_, line = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("1 ")]
    match = EPOCH_LINE.match(line)
    assert match and f"{match[1]}%" == line.split()[4]
    script = EPOCH_LINE.match("12 accuracy 97.1200%")
    assert script and float(script[1]) == 97.12
    assert not EPOCH_LINE.match("epoch   train cost  accuracy    test cost  accuracy   examples/s   seconds")


def test_seconds_are_those_until_the_line_that_reaches_the_target() -> None:
    code = "import time\nfor n in (96, 97, 98): time.sleep(0.2); print(f'{n} accuracy {n}.0%', flush=True)"
    first, second = (seconds_until(target, python(code), 1, 60) for target in (96.0, 97.0))
    assert first is not None and second is not None and 0.2 <= first < second and second >= 0.4
    assert seconds_until(99.0, python(code), 1, 60) is None


def test_run_that_takes_too_long_is_ended() -> None:
    assert seconds_until(97.0, python("import time; time.sleep(600)"), 1, 0.3) is None


def test_error_of_a_process_is_named() -> None:
    with pytest.raises(BenchmarkError, match="ended with code 1: ValueError: no such thing"):
        seconds_until(97.0, python("raise ValueError('no such thing')"), 1, 60)


def test_recipes_are_commands_of_train_py(tmp_path: Path) -> None:
    for target in RECIPES:
        words = shlex.split(shown("ours", target))
        config = parse(Config, description="", args=words[2:])
        assert config.schedule == "cosine" and not config.validation
        assert bool(config.deformation) == (target > 98)
        started = command("ours", target, 3, Accuracy(), tmp_path)
        assert started[1:4] == ["-m", "bp_torch", "train"] and started[4 : 4 + len(words[2:])] == words[2:]


def test_what_is_measured_is_kept_and_not_measured_again(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def fake(target: float, command: list[str], threads: int, give_up: float) -> float | None:
        asked.append(command)
        return None if "with_autograd" in command[1] else float(len(asked))

    monkeypatch.setattr(accuracy, "seconds_until", fake)
    options = Accuracy(targets=(97.0, 99.4), seeds=4, out=tmp_path / "times.json", data_dir=data_dir, give_up=7.0)
    measure(options)
    assert len(asked) == 4 * 3 + 3 * 2, "three seeds and no scikit-learn for the last target"
    found = accuracy.read(options.out)
    assert [one["seconds"] for one in found[:3]] == [1.0, None, 3.0]
    measure(options)
    assert len(asked) == 18
    lines = table(found).splitlines()
    assert lines[2].startswith("| ours, `train.py` | 5.50 ± 3.9 |")
    assert "not within 7 s, or its epochs" in lines[3]
    capsys.readouterr()


@pytest.mark.parametrize("script", ["with_autograd.py", "with_sklearn.py"])
def test_scripts_know_nothing_of_this_package(script: str) -> None:
    assert (
        "import bp_torch" not in (text := (accuracy.HERE / script).read_text(encoding="utf-8"))
        and "from bp_torch" not in text
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": (95.0,)}, "--targets: wanted some of 97, 98, 99, 99.4, got 95"),
        ({"seeds": 0}, "--seeds: wanted 1 or more, got 0"),
        ({"give_up": 0.0}, "--give-up: wanted above 0, got 0.0"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Accuracy(**fields)
    assert set(accuracy.NAMES) == set(get_args(accuracy.ContenderName))


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text("{", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"times.json is damaged .*choose another --out"):
        accuracy.read(tmp_path / "times.json")
