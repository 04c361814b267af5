"""Whole runs: what they print, log and save, and the network they make."""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from bp_torch.checkpoint import RESULT, State
from bp_torch.convert import to_sequential
from bp_torch.data import Examples, first_shuffled, one_hot
from bp_torch.device import DeviceError
from bp_torch.training import Config, StepResult, Stopped, TrainingError, TrainingStep, loop, open_run, train
from bp_torch.training.interruption import Signals
from bp_torch.training.log import RunLog
from tests.conftest import BEGIN, REFERENCE_COSTS, brief_run, curves, relative_error

CPU = torch.device("cpu")

N = 450
"""Examples: four mini-batches of 100 and a short one."""


def test_network_too_large_for_memory_is_reported_in_one_line(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"--sizes: .* parameters do not fit in any memory"):
        Config(sizes=(784, 10**17, 10))
    with pytest.raises(TrainingError, match="no room for this network on cpu"):
        brief_run(tmp_path, data_dir, "huge", sizes=(784, 10**9, 10))
    assert not (tmp_path / "huge").exists()


def test_full_batch_in_float16_has_a_finite_cost(tmp_path: Path, data_dir: Path) -> None:
    fields: dict[str, Any] = {"epochs": 2, "batch_size": "full", "cost": "softmax-cross-entropy", "learning_rate": 0.1}
    brief_run(tmp_path, data_dir, "half", dtype="float16", log_every=1, **fields)  # Σ C_k is above 65,504
    events = EventAccumulator(str(tmp_path / "half"))
    events.Reload()
    assert [event.value for event in events.Scalars("2 cost, softmax-cross-entropy/train")] == [
        pytest.approx(2.3, abs=0.1)
    ] * 3


def test_examples_per_second_counts_examples(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("bp_torch.training.loop.time.perf_counter", lambda: next(clock))  # a second later at each look
    brief_run(tmp_path, data_dir, "short", epochs=1, train_examples=1001, batch_size=1000)
    events = EventAccumulator(str(tmp_path / "short"))
    events.Reload()
    assert [event.value for event in events.Scalars("7 training/examples per second")] == [
        1001 / 2  # of the three seconds one was spent on the evaluation after the first step
    ]
    assert [event.step for event in events.Scalars("2 cost, quadratic/train")] == [0, 2], (
        "a short epoch has its point too"
    )


def test_examples_per_second_after_resuming_counts_the_rest_of_the_epoch(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(epochs=1, train_examples=N, device="cpu", data_dir=data_dir, runs_dir=tmp_path, run_name="one")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Signals, "should_stop", lambda signals, poll: poll == 2)
        train(config)
    clock = iter(range(1000))
    monkeypatch.setattr("bp_torch.training.loop.time.perf_counter", lambda: next(clock))
    train(replace(config, resume=tmp_path / "one"))
    events = EventAccumulator(str(tmp_path / "one"))
    events.Reload()
    assert [event.value for event in events.Scalars("7 training/examples per second")] == [N - 200]


@pytest.mark.parametrize(
    ("log_embedding", "sizes"), [(False, (784, 16, 16, 10)), (True, (784, 16, 16, 10)), (True, (784, 10))]
)
def test_logged_outputs_are_those_of_the_network(
    log_embedding: bool,
    sizes: tuple[int, ...],
    tmp_path: Path,
    data_dir: Path,
    mnist: tuple[Examples, Examples],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(RunLog, "pictures", lambda log, step, x, y, outputs: logged.update(outputs=outputs))
    monkeypatch.setattr(RunLog, "embedding", lambda log, step, x, y, outputs, hidden: logged.update(hidden=hidden))
    brief_run(tmp_path, data_dir, "logged", sizes=sizes, epochs=1, train_examples=1000, log_embedding=log_embedding)
    model = to_sequential(open_run(tmp_path / "logged")[1])
    pixels = mnist[1].x.float() / 255
    torch.testing.assert_close(logged["outputs"], model(pixels).detach(), rtol=1e-4, atol=1e-5)
    assert ("hidden" in logged) == log_embedding
    if log_embedding:
        torch.testing.assert_close(logged["hidden"], model[:-2](pixels).detach(), rtol=1e-4, atol=1e-5)


def test_tf32_without_a_gpu_makes_no_folder(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(DeviceError, match="--precision tf32 takes an NVIDIA GPU of 2020 or later, not cpu"):
        brief_run(tmp_path, data_dir, "tf32", precision="tf32")
    assert not (tmp_path / "tf32").exists()


@pytest.mark.parametrize(("has", "chosen"), [(True, "bf16"), (False, "full")])
def test_precision_auto_is_bf16_only_where_the_cpu_has_instructions_for_it(
    tmp_path: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has: bool,
    chosen: Any,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": has}, raising=False)
    fields: dict[str, Any] = {"epochs": 1, "train_examples": 500}
    found = brief_run(tmp_path, data_dir, "auto", precision="auto", **fields)
    said = capsys.readouterr().out
    for precision in ("bf16", "full"):
        same = torch.equal(found, brief_run(tmp_path, data_dir, precision, precision=precision, **fields))
        assert same == (precision == chosen)
        assert ("bf16 is slow here" in capsys.readouterr().out) == (precision == "bf16" and not has)
    assert json.loads((tmp_path / "auto" / RESULT).read_text(encoding="utf-8"))["precision"] == chosen
    assert (", --precision bf16" in said) == has and "slow" not in said


def test_one_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path, data_dir: Path) -> None:
    first, again, other = (
        brief_run(tmp_path, data_dir, name, epochs=2, train_examples=1050, seed=seed)
        for name, seed in (("first", 4), ("again", 4), ("other", 5))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_full_batch_is_true_gradient_descent(tmp_path: Path, data_dir: Path, mnist: tuple[Examples, Examples]) -> None:
    fields: dict[str, Any] = {"train_examples": 500, "dtype": "float64", "learning_rate": 1.0}
    ours = brief_run(tmp_path, data_dir, "full", epochs=1, batch_size="full", **fields)
    examples = first_shuffled(mnist[0], 500, seed=0)
    model = to_sequential(Config(dtype="float64").network(CPU))
    outputs = model(examples.x.double() / 255)
    y = one_hot(examples.labels, dtype=torch.float64)
    cost = REFERENCE_COSTS["quadratic"](outputs, outputs, y).mean()
    gradient = nn.utils.parameters_to_vector(torch.autograd.grad(cost, list(model.parameters())))
    expected = nn.utils.parameters_to_vector(model.parameters()).detach() - gradient
    assert relative_error(ours, expected) <= 1e-14


def test_default_run_reaches_94_5_percent(tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brief_run(tmp_path, data_dir, "default", threads=1)
    (last,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("   20 ")]
    assert float(last[4].rstrip("%")) >= 94.5


def test_recorded_run_equals_the_run_as_written(
    tmp_path: Path, data_dir: Path, lazy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, logged = [], []
    for replay in (True, False):
        config = Config(
            replay=replay,
            train_examples=N,
            epochs=3,
            log_every=2,
            checkpoint_every=3,
            device="cpu",
            data_dir=data_dir,
            runs_dir=tmp_path,
            run_name=f"replay-{replay}",
        )
        folder = train(config)
        networks.append(open_run(folder)[1].parameters)
        logged.append(curves(folder))
        monkeypatch.setattr(RunLog, "begin", BEGIN)  # the second run reads its points at once
    assert torch.equal(*networks)
    assert [step for step, _ in logged[0]["2 cost, quadratic/train"]] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert logged[0] == logged[1]


def test_verified_run_is_recorded_and_equals_the_run_without_verification(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_written: list[int] = []
    gradient = TrainingStep.gradient

    def counted(step: TrainingStep, indices: torch.Tensor) -> StepResult:
        as_written.append(len(indices))
        return gradient(step, indices)

    plain = brief_run(tmp_path, data_dir, "plain", epochs=2, train_examples=N)
    monkeypatch.setattr(TrainingStep, "gradient", counted)
    verified = brief_run(tmp_path, data_dir, "verified", epochs=2, train_examples=N, verify_every=1)
    assert torch.equal(verified, plain)
    assert as_written == [100, 50], "the lines of a step run once for each batch size"


def test_verification_of_parameters_that_are_not_finite_raises_training_error(tmp_path: Path, data_dir: Path) -> None:
    fields: dict[str, Any] = {"activation": "relu", "output_activation": "relu", "learning_rate": 1e30}
    with pytest.raises(TrainingError, match=r"cannot verify step 2: .*; try a smaller --learning-rate"):
        brief_run(tmp_path, data_dir, "diverging", train_examples=N, verify_every=1, **fields)


def test_checkpoint_is_saved_after_its_points_are_on_disk(
    tmp_path: Path, data_dir: Path, lazy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: dict[int, list[int]] = {}
    save = State.save

    def note(state: State, path: Path) -> None:
        on_disk[state.step] = [step for step, _ in curves(path.parent).get("2 cost, quadratic/train", [])]
        save(state, path)

    monkeypatch.setattr(State, "save", note)
    fields: dict[str, Any] = {"train_examples": N, "epochs": 2, "log_every": 1, "checkpoint_every": 3}
    train(Config(data_dir=data_dir, runs_dir=tmp_path, device="cpu", **fields))
    assert on_disk == {0: []} | {step: list(range(step + 1)) for step in (3, 5, 6, 9, 10)}


def test_run_ends_with_the_commands_that_can_show_it(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sizes, last in (((784, 5, 10), "touch it:  {} explain page"), ((784, 150, 10), "see it:    {} explain nudges")):
        brief_run(tmp_path, data_dir, f"{sizes[1]}", sizes=sizes, log=False, train_examples=100)
        end = f"{last.format('python -m bp_torch')} --run {tmp_path / str(sizes[1])}"
        assert capsys.readouterr().out.splitlines()[-1] == end


@pytest.mark.parametrize(("device", "said"), [("auto", True), ("cpu", False)])
def test_auto_says_when_a_cpu_would_be_as_fast(
    device: str, said: bool, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("bp_torch.training.loop.cpu_hint", lambda device, multiplications: f"{multiplications:,} only")
    train(Config(epochs=0, log=False, device=device, data_dir=data_dir, runs_dir=tmp_path))
    assert ("\n1,300,200 only\n" in capsys.readouterr().out) == said


def test_the_loop_is_one_short_function() -> None:
    lines = inspect.getsource(loop.train_epochs)
    assert len(lines.splitlines()) <= 80
    calls = ("run.begin_epoch(", "step.run(", "log.step(", "run.evaluate(", "log.scores(", "save_checkpoint(run, also")
    places = [lines.index(call) for call in calls]
    assert places == sorted(places), "gather, step, log, evaluate, log, save"
