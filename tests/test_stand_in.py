"""What would fail on a GPU fails here: training, explaining and verifying on a device that is not the CPU."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bp_torch.activations import ACTIVATIONS
from bp_torch.benchmark.contenders import CONTENDERS, NOT_RECORDED, OURS
from bp_torch.benchmark.race import Task, compare
from bp_torch.checkpoint import State
from bp_torch.commands import explain
from bp_torch.commands import verify_networks as verify
from bp_torch.data import load
from bp_torch.explain.options import CommonOptions, ExampleOptions, options_of
from bp_torch.explain.subject import choose_example, open_subject
from bp_torch.training import Config, TrainingError, TrainingStep, loop, open_run, train
from tests.conftest import brief_run
from tests.explain_subject import QUICK
from tests.stand_in import ELSEWHERE, Device


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Every command works on the device."""
    for room in ("training.loop", "explain.subject", "commands.verify_networks"):
        monkeypatch.setattr(f"bp_torch.{room}.choose_device", lambda name: ELSEWHERE)
    monkeypatch.setattr("bp_torch.benchmark.race.synchronize", lambda device: None)
    with Device() as device:
        yield device


@pytest.fixture
def config(tmp_path: Path, data_dir: Path) -> Config:
    """A short run; its steps are not recorded: the graphs that a GPU records have a stand-in of their own."""
    fields: dict[str, Any] = {"data_dir": data_dir, "runs_dir": tmp_path, "run_name": "there", "replay": False}
    return Config(epochs=2, train_examples=1950, momentum=0.9, learning_rate=0.3, log_embedding=True, **fields)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda there, here: there + here,
        lambda there, here: there.index_select(0, torch.tensor([0])),
        lambda there, here: there[[0, 1]],
        lambda there, here: torch.mm(there, here.T),
        lambda there, here: there.numpy(),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mistake: Any, elsewhere: Device) -> None:
    there, here = torch.ones(2, 3, device=ELSEWHERE), torch.ones(2, 3)
    assert there.device == ELSEWHERE and (there @ there.T).tolist() == [[3, 3], [3, 3]]
    with pytest.raises(RuntimeError):
        mistake(there, here)


def test_run_elsewhere_equals_the_run_on_the_cpu(config: Config, elsewhere: Device) -> None:
    train(config)
    train(replace(config, epochs=3, resume=config.runs_dir / "there"))
    assert torch.equal(open_run(config.runs_dir / "there")[1].parameters, on_the_cpu(config))


def on_the_cpu(config: Config) -> Tensor:
    fields = {"train_examples": 1950, "momentum": 0.9, "learning_rate": 0.3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bp_torch.training.loop.choose_device", lambda name: torch.device("cpu"))
        return brief_run(config.runs_dir, config.data_dir, "here", epochs=3, **fields)


def test_no_step_waits_for_the_device_and_an_epoch_does_so_a_few_times(
    config: Config, elsewhere: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For curves, two scores, the largest class, ranges and counts of histograms, a finite θ; 4 for pictures."""
    waits: list[int] = []
    scored = 0  # waits of the scores between the steps of the first epoch
    run, score_early = TrainingStep.run, loop.score_early

    def counted(step: TrainingStep, *arguments: Any) -> Iterator[Any]:
        waits.append(len(elsewhere.waits))
        before = scored
        yield from run(step, *arguments)
        assert len(elsewhere.waits) - waits[-1] == scored - before, "a step waited"

    def counted_scores(*arguments: Any) -> float:
        nonlocal scored
        before = len(elsewhere.waits)
        seconds = score_early(*arguments)
        scored += len(elsewhere.waits) - before
        return seconds

    monkeypatch.setattr(loop, "score_early", counted_scores)
    monkeypatch.setattr(State, "save", lambda state, path: None)
    monkeypatch.setattr(TrainingStep, "run", counted)
    # A network that learns: at chance, it would be asked why.
    learns = replace(config, activation="tanh", cost="softmax-cross-entropy", learning_rate=0.03)
    train(replace(learns, epochs=4, log_embedding=False))
    assert (waits[2] - waits[1], waits[3] - waits[2]) == (11, 7), "with pictures, without"
    assert scored > 0


def test_reduced_precision_and_weight_decay_elsewhere(config: Config, elsewhere: Device) -> None:
    train(replace(config, precision="bf16", weight_decay=1e-4, decay_biases=True, cost="softmax-cross-entropy"))


def test_run_that_diverges_elsewhere_names_the_tensor(config: Config, elsewhere: Device) -> None:
    wild = replace(config, activation="relu", output_activation="relu", learning_rate=1e30)
    with pytest.raises(TrainingError, match="the activations of layer 2 overflowed first"):
        train(wild)


@pytest.mark.parametrize("narrow", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if idea.passes else ()) for n, idea in explain.IDEAS.items()]
)
def test_every_idea_is_explained_elsewhere(name: str, narrow: bool, run: Path, elsewhere: Device) -> None:
    options = options_of(name)(**QUICK.get(name, {}))
    idea = explain.compute(name, open_subject(CommonOptions(run=run, device="cuda")), options)
    assert idea.table() and idea.finding()
    idea.figure(narrow=narrow)


def test_example_that_wants_the_most_is_found_elsewhere(run: Path, elsewhere: Device) -> None:
    there = choose_example(open_subject(CommonOptions(run=run, device="cuda")), ExampleOptions(loudest=True))
    assert there.label == 2 and there.x.device == ELSEWHERE


@pytest.mark.parametrize("activations", [("sigmoid",), pytest.param(ACTIVATIONS, marks=pytest.mark.long)], ids=len)
def test_verify_checks_elsewhere(
    activations: Iterable[str], run: Path, data_dir: Path, elsewhere: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bp_torch.own_backward.Recorder", lambda device, function: function)
    each_once = [(name, name, "quadratic") for name in activations]
    each_once += [("relu", "sigmoid", "binary-cross-entropy"), ("tanh", "identity", "softmax-cross-entropy")]
    monkeypatch.setattr("bp_torch.commands.verify_networks.combinations", lambda: each_once)
    for options in (verify.Options(depths=(2,), data_dir=data_dir), verify.Options(run=run)):
        cases = verify.verify(replace(options, batch_sizes=(3,)))
        assert all(case.report.ok for case in cases)
        assert "central" in {comparison.reference for case in cases for comparison in case.report.comparisons}


def test_contenders_race_elsewhere(data_dir: Path, elsewhere: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.inference_mode", torch.no_grad)  # torch does not let such tensors leave the mode
    examples = load("mnist", data_dir, ELSEWHERE)[0]
    few = examples.map(lambda tensor: tensor[:500])
    names = ("autograd, TensorDataset", "NumPy by hand", "floor")
    contenders = {OURS: CONTENDERS[NOT_RECORDED]} | {name: CONTENDERS[name] for name in names}
    compare(contenders, Task(Config(data_dir=data_dir), few), rounds=1)
