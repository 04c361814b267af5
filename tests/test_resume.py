"""A run that is stopped or killed is resumed to the same weights, bit for bit."""

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bp_torch.backprop import Forward, forward
from bp_torch.checkpoint import BEST, HISTORY, LAST, LOCK, CheckpointError
from bp_torch.convert import load
from bp_torch.data import Examples, first_shuffled
from bp_torch.deform import Deformation, deformed
from bp_torch.network import Network
from bp_torch.training import Config, Stopped, TrainingError, open_run, read_config, train
from bp_torch.training.interruption import Signals
from bp_torch.training.log import RunLog
from tests.conftest import curves, is_done
from tests.harness import FORK, SIGNALS, linux, posix, wait_for


@pytest.fixture
def config(tmp_path: Path, data_dir: Path) -> Config:
    """A short run with all that must survive: momentum, a short last batch, checkpoints inside an epoch."""
    return Config(
        epochs=30,
        train_examples=1950,
        momentum=0.9,
        learning_rate=0.3,
        checkpoint_every=7,
        log_every=3,
        device="cpu",
        threads=1,
        data_dir=data_dir,
        runs_dir=tmp_path,
    )


def weights(config: Config, name: str) -> torch.Tensor:
    return load(config.runs_dir / name / "network.safetensors").parameters


def history(folder: Path) -> bytes:
    return (folder / HISTORY).read_bytes()


def resumed(config: Config, name: str) -> Config:
    return replace(config, run_name=name, resume=config.runs_dir / name)


@pytest.mark.parametrize("wanted", [3, pytest.param(20, marks=pytest.mark.long)])
def test_kills_at_random_instants_change_nothing(wanted: int, config: Config) -> None:
    config = replace(config, epochs=20 if wanted < 20 else 60)
    train(replace(config, run_name="whole"))
    instants = random.Random(0)
    folder = config.runs_dir / "killed"
    kills = 0
    while kills < wanted:
        again = resumed(config, "killed") if folder.exists() else replace(config, run_name="killed")
        child = FORK.Process(target=train, args=(again,))
        child.start()
        child.join(instants.uniform(0.1, 0.4))
        assert child.pid is not None
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        if child.exitcode == 0:  # done before the kill: begin anew with the rest of the kills
            assert torch.equal(weights(config, "killed"), weights(config, "whole"))
            folder.rename(folder.with_name(f"done-{len(list(config.runs_dir.iterdir()))}"))
    train(resumed(config, "killed") if folder.exists() else replace(config, run_name="killed"))
    assert torch.equal(weights(config, "killed"), weights(config, "whole"))
    assert curves(folder) == curves(config.runs_dir / "whole"), "one unbroken curve"
    assert history(folder) == history(config.runs_dir / "whole")


def test_results_are_logged_once_if_the_process_dies_after_them(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = replace(config, epochs=2, run_name="died")

    def dies(self: RunLog) -> None:
        close(self)
        raise RuntimeError("died with everything logged")

    close = RunLog.close
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="died with everything logged"):
        patch.setattr(RunLog, "close", dies)
        train(once)
    train(resumed(once, "died"))
    for tag, points in curves(config.runs_dir / "died").items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), tag
    assert is_done(config.runs_dir / "died")


def test_epochs_in_two_parts_equal_epochs_at_once(config: Config) -> None:
    train(replace(config, epochs=5, run_name="whole"))
    train(replace(config, epochs=2, run_name="part"))
    train(replace(resumed(config, "part"), epochs=5))
    assert torch.equal(weights(config, "part"), weights(config, "whole"))
    assert read_config(config.runs_dir / "part").epochs == 5
    assert (
        curves(config.runs_dir / "part")["2 cost, quadratic/train"]
        == curves(config.runs_dir / "whole")["2 cost, quadratic/train"]
    )


@posix
@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_signal_saves_a_checkpoint_and_names_the_command_to_continue(
    number: signal.Signals, code: int, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(config, epochs=3)
    train(replace(short, run_name="whole"))

    def signalled(self: Signals) -> Signals:
        signals = enter(self)
        threading.Timer(0.02, os.kill, (os.getpid(), number)).start()
        return signals

    enter = Signals.__enter__
    monkeypatch.setattr(Signals, "__enter__", signalled)
    monkeypatch.setattr("bp_torch.training.loop.tqdm.update", lambda self: time.sleep(0.003))
    with pytest.raises(Stopped, match=rf"stopped by {number.name}, all is saved; .*--resume .*stopped") as stopped:
        train(replace(short, run_name="stopped"))
    assert stopped.value.code == code
    monkeypatch.undo()
    train(resumed(short, "stopped"))
    assert torch.equal(weights(config, "stopped"), weights(config, "whole"))


@pytest.mark.parametrize(
    "when",
    [
        "on the test examples",
        *(pytest.param(w, marks=pytest.mark.long) for w in ("on the training examples", "for the PR curves")),
    ],
)
def test_signal_during_an_evaluation_is_heeded_there(
    when: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(config, epochs=2, log_embedding=when == "for the PR curves")
    train(replace(short, run_name="whole"))
    chunks: list[int] = []

    def counted(network: Network, x: torch.Tensor) -> Forward:
        if len(x) > short.batch_size:  # type: ignore[operator]
            chunks.append(len(x))
            if len(chunks) == number:
                signal.raise_signal(signal.SIGTERM)
        return forward(network, x)

    # 1,950 training examples are 3 chunks and a small one, 10,000 test examples 16; PR curves are of the test examples.
    # The network is evaluated at steps 0, 1, 5, 10, 20 and 40.
    before = 4 * 19
    number = before + {"on the training examples": 1, "on the test examples": 7, "for the PR curves": 2 * 19 + 4}[when]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("bp_torch.training.evaluation.forward", counted)
        train(replace(short, run_name="stopped"))
    assert len(chunks) == number, "the rest of the evaluation was not awaited"
    train(resumed(short, "stopped"))
    assert torch.equal(weights(config, "stopped"), weights(config, "whole"))
    stopped, whole = (config.runs_dir / name for name in ("stopped", "whole"))
    assert curves(stopped) == curves(whole)
    assert histogram_steps(stopped) == histogram_steps(whole) == [0, 20, 40]
    best = [torch.load(folder / BEST, weights_only=True) for folder in (stopped, whole)]
    assert torch.equal(best[0]["parameters"], best[1]["parameters"])


def histogram_steps(folder: Path) -> list[int]:
    """The steps of a histogram, as ``tensorboard --load_fast=false`` reads them."""
    events = plugin_event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Tensors("9 weights/layer 1")]


def test_epochs_may_be_lowered_to_what_is_done(config: Config) -> None:
    train(replace(config, epochs=2, run_name="whole"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Signals, "should_stop", lambda signals, poll: poll == 0)  # at the end of an epoch
        train(replace(config, run_name="part"))
    part = resumed(config, "part")
    with pytest.raises(TrainingError, match=r"--epochs 0: epoch 1 of .*part is done or begun already"):
        train(replace(part, epochs=0))
    train(replace(part, epochs=1))
    folder = config.runs_dir / "part"
    assert read_config(folder).epochs == 1
    assert is_done(folder)
    train(replace(part, epochs=1))
    assert [step for step, _ in curves(folder)["1 accuracy/test"]][-2:] == [10, 20], "logged once"
    train(replace(part, epochs=2))
    assert torch.equal(weights(config, "part"), weights(config, "whole"))


@pytest.mark.parametrize("change", [{"seed": 7}, {"learning_rate": 0.5}, {"momentum": 0.0}, {"threads": None}])
def test_other_settings_are_refused_on_resuming_and_change_no_file(change: dict[str, Any], config: Config) -> None:
    train(replace(config, epochs=1, run_name="one"))
    before = {path.name: path.read_bytes() for path in (config.runs_dir / "one").iterdir() if path.name != LOCK}
    with pytest.raises(TrainingError, match=r"cannot continue .*one: --[a-z-]+ .* differs"):
        train(replace(resumed(config, "one"), epochs=1, **change))
    assert {path: (config.runs_dir / "one" / path).read_bytes() for path in before} == before


def test_run_that_is_being_trained_cannot_be_resumed_meanwhile(config: Config) -> None:
    child = FORK.Process(target=train, args=(replace(config, epochs=10_000, run_name="one"),))
    child.start()
    wait_for(config.runs_dir / "one" / BEST)
    try:
        with pytest.raises(CheckpointError, match=f"one is being trained by process {child.pid} on"):
            train(resumed(config, "one"))
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


@linux
def test_run_whose_terminal_closes_saves_and_stops(config: Config) -> None:
    import pty

    child, terminal = pty.fork()
    if child == 0:
        code = 0
        try:
            train(replace(config, epochs=10_000, run_name="one"))
        except Stopped as stopped:
            code = stopped.code
        finally:
            os._exit(code)
    wait_for(config.runs_dir / "one" / BEST)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    state = torch.load(config.runs_dir / "one" / LAST, weights_only=True)
    assert state["step"] >= 20, "it was saved after the first epoch, or later"


@pytest.mark.parametrize("change", [{"steps": 30}, {"step": 7}, {"epoch": 9}])
def test_checkpoint_of_a_step_that_is_not_in_its_epoch_is_refused(change: dict[str, int], config: Config) -> None:
    train(replace(config, epochs=1, run_name="one"))
    path = config.runs_dir / "one" / LAST
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(CheckpointError, match=r"last\.pt is of another run: step \d+ of epoch \d is not its step"):
        train(replace(resumed(config, "one"), epochs=2))


@posix
def test_config_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(TrainingError, match=r"config\.json is not a regular file"):
        read_config(tmp_path)


def test_deformed_images_are_those_of_the_epoch_after_resuming_too(
    config: Config, mnist: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    deforming = replace(config, epochs=3, deform="both", checkpoint_every=None)
    train(replace(deforming, run_name="whole"))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Signals, "should_stop", lambda signals, poll: poll == 27)  # in the second epoch
        train(replace(deforming, run_name="stopped"))
    seen: list[torch.Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "deformed", lambda log, examples, step: seen.append(examples.x.clone()))
        train(resumed(deforming, "stopped"))
    assert torch.equal(weights(config, "stopped"), weights(config, "whole"))
    assert not torch.equal(weights(config, "whole"), plain(replace(config, epochs=3)))
    originals = first_shuffled(mnist[0], 1950, seed=0)
    for epoch, images in zip((2, 3), seen, strict=True):
        assert torch.equal(images, deformed(originals, Deformation(), seed=0, epoch=epoch).x)


def test_what_is_drawn_after_an_evaluation_is_drawn_once_if_that_was_stopped(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, polls = replace(config, epochs=1, run_name="once", checkpoint_every=None), list[int]()

    def in_the_evaluation(signals: Signals, poll: int) -> bool:
        polls.append(poll)
        return polls.count(5) == 2  # step 5, and the fifth part of the test set

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Signals, "should_stop", in_the_evaluation)
        train(once)
    train(resumed(once, "once"))
    events = EventAccumulator(str(config.runs_dir / "once"))
    events.Reload()
    for shown in (events.Images("3 pictures/confusion"), events.Histograms("9 deltas/layer 1")):
        assert [event.step for event in shown][-1:] == [20]
    assert [event.step for event in events.Images("3 pictures/confusion")] == [0, 20]


def plain(config: Config) -> torch.Tensor:
    train(replace(config, run_name="plain"))
    return weights(config, "plain")


def test_history_has_what_is_printed_and_logged_of_every_epoch(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(replace(config, epochs=4, run_name="one"))
    names, *lines = (line.split(",") for line in history(folder).decode().splitlines())
    assert names == ["epoch", "step", "learning_rate", "train_cost", "train_accuracy", "test_cost", "test_accuracy"]
    assert [line[:3] for line in lines] == [[f"{e}", f"{20 * e}", f"{config.learning_rate_at(e)}"] for e in range(1, 5)]
    printed = re.findall(r"^ +(\d)   +([\d.]+) +([\d.]+)%   +([\d.]+) +([\d.]+)%", capsys.readouterr().out, re.M)
    for line, row in zip(lines, printed, strict=True):
        costs, parts = [f"{float(n):.4f}" for n in line[3::2]], [f"{100 * float(n):.2f}" for n in line[4::2]]
        assert (line[0], costs[0], parts[0], costs[1], parts[1]) == row
    logged = curves(folder)["1 accuracy/test"][-4:]
    assert [float(line[6]) for line in lines] == pytest.approx([accuracy for _, accuracy in logged], rel=1e-6)


def test_history_is_written_anew_from_the_checkpoint(config: Config) -> None:
    train(replace(config, epochs=4, run_name="whole"))
    folder = train(replace(config, epochs=2, run_name="part"))
    (folder / HISTORY).write_text(
        "epoch,step\n1,20\n2,40\n3,60\n", encoding="utf-8"
    )  # as if killed after this file, before the other
    train(replace(resumed(config, "part"), epochs=4))
    assert history(folder) == history(config.runs_dir / "whole")


def test_damaged_checkpoint_is_named_and_not_changed(config: Config) -> None:
    train(replace(config, epochs=1, run_name="one"))
    path = config.runs_dir / "one" / LAST
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"one.last\.pt is damaged, or not a checkpoint"):
        train(resumed(replace(config, epochs=2), "one"))
    assert len(path.read_bytes()) == 1000


def test_best_checkpoint_is_that_of_the_best_epoch(config: Config) -> None:
    train(replace(config, epochs=12, run_name="one"))
    accuracies = [accuracy for _, accuracy in curves(config.runs_dir / "one")["1 accuracy/test"]][4:]
    best = torch.load(config.runs_dir / "one" / BEST, weights_only=True)
    assert best["best_accuracy"] == pytest.approx(max(accuracies), rel=1e-6)
    assert best["epoch"] == accuracies.index(max(accuracies)) + 2, "it stands before the next epoch"


def write_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)


def disk_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the small file system that ``folder`` stands on."""
    with pytest.raises(OSError, match="No space left"), (folder.parent / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 1 MB, where this machine lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if (
        not hasattr(os, "geteuid")
        or os.geteuid()
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("no right to mount a file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def check_full(
    config: Config, fill: Callable[[Path, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(config, epochs=2, run_name="one")
    train(first)
    kept = (config.runs_dir / "one" / LAST).read_bytes()
    fill(config.runs_dir / "one", monkeypatch)
    named = r"one/[\w.]+: No space left on device: make room|No space left on device: '.*/one/"
    with pytest.raises((TrainingError, OSError), match=named):
        train(replace(resumed(config, "one"), epochs=4))
    assert (config.runs_dir / "one" / LAST).read_bytes() == kept
    assert open_run(config.runs_dir / "one")[1].sizes == (784, 16, 16, 10)
    assert [path.name for path in (config.runs_dir / "one").glob(".*")] == [LOCK], "nothing half written is left"


def test_failed_write_keeps_the_previous_checkpoint(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    check_full(config, write_fails, monkeypatch)


def test_full_disk_keeps_the_previous_checkpoint(
    config: Config, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_full(replace(config, runs_dir=small_disk), disk_is_full, monkeypatch)
