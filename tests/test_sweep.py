"""A sweep: each network is the one that train.py makes alone, and none depends on another."""

import json
import os
import random
import signal
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bp_torch.checkpoint import LAST, CheckpointError
from bp_torch.commands.sweep import main
from bp_torch.data import Examples
from bp_torch.files import read_json, with_sum
from bp_torch.sweep.config import SweepConfig
from bp_torch.sweep.group import Group, new_group
from bp_torch.sweep.loop import sweep
from bp_torch.sweep.plan import CACHE, COPIES, groups, working_set
from bp_torch.training import Config, Stopped, TrainingError, evaluate, open_run, read_config, train
from bp_torch.training.interruption import Signals
from bp_torch.training.run import default_run_name
from tests.conftest import brief_run, curves, is_done, relative_error
from tests.harness import FORK
from tests.test_distributed import codes, start

CPU = torch.device("cpu")


@torch.inference_mode()
def trained(config: SweepConfig, mnist: tuple[Examples, Examples]) -> Group:
    """All networks of the sweep as one group after their epochs."""
    group = new_group(config.members(), *mnist)
    while group.state.epoch <= config.epochs:
        for _ in group.rest_of_epoch():
            pass
        group.record(*group.evaluate())
        group.reset_diverged()
        group.state.end_epoch()
    group.choose()
    return group


def alone(member: Config, tmp_path: Path, data_dir: Path, log: bool = False) -> torch.Tensor:
    """The parameters that train.py makes with the flags of one network; with ``log`` its curves too."""
    own = {"runs_dir", "data_dir", "device", "log", *(() if log else ("log_every", "histogram_every"))}
    fields = {name: value for name, value in vars(member).items() if name not in own}
    return brief_run(tmp_path, data_dir, fields.pop("run_name"), log=log, **fields)


SHORT: dict[str, Any] = {"epochs": 5, "train_examples": 950, "dtype": "float64"}
"""Fifty steps, in each epoch a short one."""


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    "lists",
    [
        {"momentum": (0.0, 0.9), "learning_rate": (0.3,)},
        {"init": ("lecun", "normal")},
        pytest.param({"learning_rate": (0.3, 3.0)}, marks=pytest.mark.long),
        pytest.param(
            {"weight_decay": (0.0, 0.01), "momentum": (0.9,), "learning_rate": (0.1, 0.3)}, marks=pytest.mark.long
        ),
    ],
    ids="-".join,
)
def test_fifty_steps_equal_those_of_train_py_alone(
    lists: dict[str, Any], seeds: int, mnist: tuple[Examples, Examples], tmp_path: Path, data_dir: Path
) -> None:
    group = trained(SweepConfig(**lists, **SHORT, seeds=seeds), mnist)
    assert group.order(1).ndim == seeds, "networks of one seed share their batch"
    for network, member in zip(group.network, group.members, strict=True):
        assert relative_error(network.parameters, alone(member, tmp_path, data_dir)) <= 1e-12, member.run_name


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "fields",
    [
        {"deform": "both", "train_examples": 950},
        {"validation": 59_000},
        {"validation": 300, "train_examples": 950, "deform": "affine"},
    ],
    ids=["deformed", "held-out", "both"],
)
def test_deformed_and_held_out_examples_are_those_of_train_py_alone(
    fields: dict[str, Any], seeds: int, mnist: tuple[Examples, Examples], tmp_path: Path, data_dir: Path
) -> None:
    config = SweepConfig(learning_rate=(0.3, 3.0), epochs=3, dtype="float64", seeds=seeds, **fields)
    group = trained(config, mnist)
    final = group.final_network()
    for k, member in enumerate(group.members):
        expected = alone(member, tmp_path, data_dir)
        assert relative_error(final.parameters[k], expected) <= 1e-12, member.run_name
        theirs = json.loads((tmp_path / str(member.run_name) / "result.json").read_text(encoding="utf-8"))
        ours = json.loads(group.result(k).to_json())
        del ours["seconds"], theirs["seconds"], theirs["sha256"]
        assert ours == pytest.approx(theirs)


def test_held_out_examples_choose_the_epoch_of_each_network_that_is_saved(
    config: SweepConfig, tmp_path: Path, data_dir: Path
) -> None:
    held_out = replace(config, validation=500, save="all")
    folder = sweep(held_out)
    report = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    for member in held_out.members():
        own = folder / str(member.run_name)
        expected = alone(member, tmp_path, data_dir)
        assert relative_error(open_run(own)[1].parameters, expected) <= 1e-5
        result = json.loads((own / "result.json").read_text(encoding="utf-8"))
        by_name = next(n for n in report["networks"] if n["name"] == member.run_name)
        assert (by_name["test_accuracy"], by_name["best_validation_accuracy"]) == (
            result["test_accuracy"],
            result["validation_accuracy"],
        )
        train(replace(read_config(own), resume=own))
        assert relative_error(open_run(own)[1].parameters, expected) <= 1e-5


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.long)])
def test_float32_epoch_ends_where_train_py_ends(
    seeds: int, mnist: tuple[Examples, Examples], tmp_path: Path, data_dir: Path
) -> None:
    group = trained(SweepConfig(learning_rate=(1.0, 3.0), epochs=1, seeds=seeds), mnist)
    for network, member in zip(group.network, group.members, strict=True):
        expected, start = alone(member, tmp_path, data_dir), member.network(CPU).parameters
        assert (network.parameters - expected).norm() <= 1e-5 * (expected - start).norm()


@pytest.mark.parametrize("precision", ["full", "bf16"])
@pytest.mark.parametrize("cost", ["quadratic", "softmax-cross-entropy"])
def test_other_flags_hold_in_a_sweep(
    cost: Any, precision: Any, mnist: tuple[Examples, Examples], tmp_path: Path, data_dir: Path
) -> None:
    fields: dict[str, Any] = {"sizes": (784, 8, 10), "activation": "relu", "epochs": 2, "train_examples": 250}
    fields |= {"batch_size": "full", "cost": cost, "precision": precision, "decay_biases": True}
    fields |= {"learning_rate": (0.05, 0.1), "weight_decay": (0.0, 0.1), "dtype": "float32"}
    group = trained(SweepConfig(**fields), mnist)
    for network, member in zip(group.network, group.members, strict=True):
        expected, start = alone(member, tmp_path, data_dir), member.network(CPU).parameters
        least = {"full": 1e-5, "bf16": 1e-2}[precision]  # bfloat16 has 8 bits
        assert (network.parameters - expected).norm() <= least * (expected - start).norm(), member.run_name
    assert json.loads(group.result(0).to_json())["precision"] == precision


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.long)])
def test_steps_replayed_as_a_graph_are_those_of_the_lines(
    seeds: int, mnist: tuple[Examples, Examples], request: pytest.FixtureRequest
) -> None:
    config = SweepConfig(learning_rate=(0.3, 1.0), momentum=(0.0, 0.9), weight_decay=(0.0, 0.1), seeds=seeds, **SHORT)
    recorded, written = (trained(replace(config, replay=replay), mnist) for replay in (True, False))
    request.getfixturevalue("graphs")
    as_graph = trained(config, mnist)
    for group in (recorded, as_graph):
        assert torch.equal(group.network.parameters, written.network.parameters)
        assert group.state.accuracy == written.state.accuracy


def test_network_that_diverges_changes_no_other(mnist: tuple[Examples, Examples]) -> None:
    config = SweepConfig(learning_rate=(1.0, 1e30, 3.0), activation="relu", output_activation="relu", **SHORT)
    with_it, healthy = (trained(replace(config, learning_rate=rates), mnist) for rates in ((1, 1e30, 3), (1, 2, 3)))
    assert with_it.state.diverged == [0, 10, 0]
    assert healthy.state.diverged == [0, 0, 0]
    without = trained(replace(config, learning_rate=(1.0, 3.0)), mnist)
    for k, other in ((0, 0), (2, 1)):
        assert torch.equal(with_it.network[k].parameters, healthy.network[k].parameters)
        assert torch.equal(with_it.network[k].parameters, without.network[other].parameters)


# ---- folders ----


@pytest.fixture
def config(tmp_path: Path, data_dir: Path) -> SweepConfig:
    """Eight short networks in three groups, with all that must survive: momentum, a short batch, checkpoints."""
    return SweepConfig(
        learning_rate=(0.3, 1.0),
        momentum=(0.0, 0.9),
        seeds=2,
        at_once=3,
        epochs=8,
        train_examples=950,
        checkpoint_every=7,
        log_every=3,
        device="cpu",
        threads=1,
        data_dir=data_dir,
        runs_dir=tmp_path,
        run_name="one",
    )


def names(folder: Path) -> set[str]:
    """The networks that have a folder."""
    return {path.parent.name for path in folder.glob("*/config.json")}


def weights(folder: Path, members: Iterable[Config]) -> torch.Tensor:
    """Of all networks, as their folders have them."""
    return torch.stack([open_run(folder / str(member.run_name))[1].parameters for member in members])


def test_every_network_has_the_folder_of_a_run(config: SweepConfig, tmp_path: Path, data_dir: Path) -> None:
    folder = sweep(config)
    members = config.members()
    assert names(folder) == {member.run_name for member in members}
    for member in members:
        own = folder / str(member.run_name)
        assert read_config(own) == replace(member, runs_dir=folder)
        ours, by_train_py = curves(own), member in members[::3]
        assert set(ours) == {f"{what}/{of}" for what in ("1 accuracy", "2 cost, quadratic") for of in ("train", "test")}
        expected = alone(member, tmp_path, data_dir, log=by_train_py)
        assert relative_error(open_run(own)[1].parameters, expected) <= 1e-5
        theirs = curves(tmp_path / str(member.run_name)) if by_train_py else {}
        for tag, points in ours.items() if by_train_py else ():
            assert [step for step, _ in points] == [step for step, _ in theirs[tag]], tag
            assert [v for _, v in points] == pytest.approx([v for _, v in theirs[tag]], rel=1e-3, abs=1e-3), tag
        events = EventAccumulator(str(own))
        events.Reload()
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        assert b"learning_rate" in content and b"momentum" in content
        assert "_hparams_/session_end_info" in events.summary_metadata


def test_network_of_a_sweep_can_be_trained_further_by_train_py(
    config: SweepConfig, tmp_path: Path, data_dir: Path
) -> None:
    folder = sweep(config)
    member = config.members()[1]
    own = folder / str(member.run_name)
    train(replace(read_config(own), resume=own, epochs=10))
    expected = alone(replace(member, epochs=10), tmp_path, data_dir, log=True)
    assert relative_error(open_run(own)[1].parameters, expected) <= 1e-5
    ours, theirs = (curves(path)["2 cost, quadratic/train"] for path in (own, tmp_path / str(member.run_name)))
    assert [step for step, _ in ours] == [step for step, _ in theirs]


def test_table_and_json_hold_mean_and_standard_deviation_of_what_the_networks_score(
    config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(config)
    report = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    scores = {network["name"]: network["test_accuracy"] for network in report["networks"]}
    assert set(scores) == names(folder)
    for setting, row in zip(config.settings, report["settings"], strict=True):
        of = [scores[str(config.member(setting, seed).run_name)] for seed in (0, 1)]
        logged = [curves(folder / str(config.member(setting, seed).run_name))["1 accuracy/test"] for seed in (0, 1)]
        assert of == pytest.approx([points[-1][1] for points in logged])
        assert (row["mean"], row["standard_deviation"]) == pytest.approx((fmean(of), stdev(of)))
        assert (row["best"], row["diverged"], row["networks"]) == (max(of), 0, 2)
    table = capsys.readouterr().out.split("learning rate")[1]
    first = report["settings"][0]
    assert f"{100 * first['mean']:.2f} ± {100 * first['standard_deviation']:.2f} %" in table
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("log", [False, True])
def test_network_that_diverged_is_named_and_trains_anew(
    log: bool, config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = replace(config, learning_rate=(0.3, 1e30), momentum=(0.0,), activation="relu", output_activation="relu")
    folder = sweep(replace(wild, log=log, log_every=3 if log else 100, seeds=1))
    assert "learning-rate-1e+30_seed-0 diverged: its cost is not finite at step" in capsys.readouterr().out
    report = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert [row["diverged"] for row in report["settings"]] == [0, 1]
    assert report["networks"][1]["test_accuracy"] is None
    assert report["networks"][1]["diverged_at_step"] == (3 if log else 7), "the first that shows it, not the last"
    own = folder / "learning-rate-1e+30_seed-0"
    with pytest.raises(TrainingError, match="no trained network"):
        open_run(own)
    with pytest.raises(TrainingError, match=r"the cost is not finite: at step 2 \(epoch 1\) the activations of layer"):
        train(replace(read_config(own), resume=own))
    assert not is_done(own)


@pytest.mark.parametrize("save", ["best", pytest.param("none", marks=pytest.mark.long)])
def test_only_chosen_networks_are_saved(save: Any, config: SweepConfig) -> None:
    folder = sweep(replace(config, save=save))
    report = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    best = set()
    for row in report["settings"]:
        of = [n for n in report["networks"] if all(n[key] == row[key] for key in ("learning_rate", "momentum"))]
        best.add(max(of, key=lambda network: float(network["test_accuracy"]))["name"])
    assert names(folder) == (best if save == "best" else set())
    for name in names(folder):
        open_run(folder / name)
    assert not list(folder.glob(f"groups/*/{LAST}"))


# ---- stopping and resuming ----


@pytest.mark.parametrize("wanted", [2, pytest.param(8, marks=pytest.mark.long)])
def test_sweep_that_is_killed_goes_on_bit_for_bit(wanted: int, config: SweepConfig) -> None:
    whole = sweep(replace(config, run_name="whole"))
    instants, folder, kills = random.Random(0), config.runs_dir / "one", 0
    while kills < wanted:
        again = replace(config, resume=folder) if (folder / "config.json").exists() else config
        child = FORK.Process(target=sweep, args=(again,))
        child.start()
        child.join(instants.uniform(0.05, 0.3))
        if child.is_alive():
            assert child.pid
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        if child.exitcode == 0:
            break
    assert kills
    sweep(replace(config, resume=folder) if folder.exists() else config)
    members = config.members()
    assert torch.equal(weights(folder, members), weights(whole, members))
    for member in members:
        assert curves(folder / str(member.run_name)) == curves(whole / str(member.run_name))
    assert (folder / "sweep.json").read_text(encoding="utf-8") == (whole / "sweep.json").read_text(encoding="utf-8")
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"], "nothing half written is left"


@pytest.mark.parametrize("change", [{"learning_rate": (0.5, 3.0)}, {"seed": 7}, {"epochs": 2}])
def test_other_settings_are_refused_on_resuming_a_sweep(change: dict[str, Any], config: SweepConfig) -> None:
    config = replace(config, epochs=1, learning_rate=(0.3, 3.0), run_name="s")
    folder = sweep(config)
    before = (folder / "sweep.json").read_bytes()
    with pytest.raises(TrainingError, match=r"cannot continue .*s: --[a-z-]+ .* differs"):
        sweep(replace(config, resume=folder, **change))
    assert (folder / "sweep.json").read_bytes() == before


def test_stopped_sweep_names_the_command_to_continue(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(replace(config, run_name="whole", save="best"))
    asked: list[int] = []

    def at_the_hundredth(signals: Signals, step: int) -> bool:
        asked.append(step)
        signals.received = signal.SIGINT if len(asked) == 100 else 0
        return bool(signals.received)

    with monkeypatch.context() as patch:
        patch.setattr(Signals, "should_stop", at_the_hundredth)
        with pytest.raises(Stopped, match=r"stopped by SIGINT, all is saved; .*bp_torch sweep --resume .*one$") as stop:
            sweep(replace(config, save="best"))
    assert stop.value.code == 130
    folder = config.runs_dir / "one"
    assert not names(folder)
    sweep(replace(config, save="best", resume=folder))
    best = [member for member in config.members() if member.run_name in names(whole)]
    assert names(folder) == names(whole)
    assert torch.equal(weights(folder, best), weights(whole, best))


def test_sweep_goes_on_from_its_checkpoint_with_a_network_that_diverged(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = replace(config, learning_rate=(0.001, 100.0), activation="identity", output_activation="identity")
    wild = replace(wild, seeds=1, at_once=4)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Signals, "should_stop", lambda signals, poll: poll == 25)
        sweep(wild)
    folder = config.runs_dir / "one"
    capsys.readouterr()
    sweep(replace(wild, resume=folder))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("    1/1")]
    assert [int(line[1]) for line in lines] == list(range(3, 9)), "25 steps are two epochs and a half"
    report = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert [network["diverged_at_step"] for network in report["networks"]] == [None, None, 3, 3]
    whole = sweep(replace(wild, run_name="whole"))
    assert torch.equal(weights(folder, wild.members()[:2]), weights(whole, wild.members()[:2]))


@pytest.mark.parametrize("stop", [25, *(pytest.param(stop, marks=pytest.mark.long) for stop in (1, 45))])
def test_stopped_sweep_that_deforms_and_holds_out_goes_on_bit_for_bit(
    stop: int, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(config, learning_rate=(3.0, 10.0), momentum=(0.0,), validation=300, deform="affine", epochs=6)
    whole = sweep(replace(own, run_name="whole"))
    results = [
        json.loads((whole / str(member.run_name) / "result.json").read_text(encoding="utf-8"))
        for member in own.members()
    ]
    assert any(result["epoch"] < 5 for result in results), "some network was at its best before the last stop"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Signals, "should_stop", lambda signals, poll: poll == stop)
        sweep(own)
    folder = sweep(replace(own, resume=config.runs_dir / "one"))
    assert torch.equal(weights(folder, own.members()), weights(whole, own.members()))
    ours, theirs = (json.loads((path / "sweep.json").read_text(encoding="utf-8")) for path in (folder, whole))
    assert ours == theirs


def test_sweep_that_is_being_trained_cannot_be_resumed_meanwhile(config: SweepConfig) -> None:
    folder = config.runs_dir / "one"
    child = FORK.Process(target=sweep, args=(replace(config, epochs=10_000),))
    child.start()
    while not (folder / "groups/1" / LAST).exists():
        child.join(0.05)
        assert child.exitcode is None
    try:
        with pytest.raises(CheckpointError, match=f"one is being trained by process {child.pid} on"):
            sweep(replace(config, epochs=10_000, resume=folder))
    finally:
        child.kill()
        child.join()


def test_checkpoint_of_another_group_is_refused(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Signals, "should_stop", lambda *_: True)
        sweep(config)
    folder = config.runs_dir / "one"
    path = folder / "groups/1" / LAST
    fields = torch.load(path, weights_only=True)
    for change in ({"best": [0.0]}, {"points": [(1, 2.0, "cost", [0.0])]}, {"diverged": 3}, {"network": "2 of it"}):
        torch.save(fields | change, path)
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged, or not a checkpoint|is of another network"):
            sweep(replace(config, resume=folder))
    for plan in ('[["other"]]', "[]", "{", "[[3]]"):
        (folder / "groups.json").write_text(plan, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"groups\.json is damaged, or of another sweep"):
            sweep(replace(config, resume=folder))


def test_damaged_results_are_named(config: SweepConfig) -> None:
    folder = sweep(replace(config, epochs=1))
    path = folder / "groups/2/results.json"
    found = read_json(path)
    one, other = f"{found['accuracy'][0]:.3f}"[:4], "0.99"
    contents = ["{", "{}", "3", '{"accuracy": [], "cost": [], "best": [], "diverged": []}', "[" * 100_000]
    contents += [path.read_text(encoding="utf-8").replace(one, other, 1), json.dumps(found)]
    wrong: dict[str, list[Any]] = {"accuracy": [1.5], "cost": [True], "best_epoch": [7], "diverged": [-1]}
    for name, value in wrong.items():
        contents.append(json.dumps(with_sum(found | {name: value * len(found[name])})))
    for content in contents:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"groups/2/results\.json is damaged: remove it"):
            sweep(replace(config, epochs=1, resume=folder))
    (folder / "groups/2/results.json").unlink()
    before = (folder / "sweep.json").read_text(encoding="utf-8")
    sweep(replace(config, epochs=1, resume=folder))
    assert (folder / "sweep.json").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("save", ["all", "best"])
def test_no_epochs_score_the_initial_values(save: Any, config: SweepConfig, mnist: tuple[Examples, Examples]) -> None:
    folder = sweep(replace(config, epochs=0, save=save))
    report = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    member = config.members()[0]
    accuracy = evaluate(member.network(CPU), mnist[1], "quadratic").accuracy
    assert report["networks"][0]["test_accuracy"] == pytest.approx(accuracy, abs=1e-3)
    assert len(names(folder)) == (8 if save == "all" else 4)


def test_processes_share_the_groups(config: SweepConfig, tmp_path: Path) -> None:
    whole = sweep(replace(config, run_name="whole"))
    assert codes(start(2, tmp_path / "store", partial(sweep, config))) == [0, 0]
    members = config.members()
    assert torch.equal(weights(tmp_path / "one", members), weights(whole, members))
    assert (tmp_path / "one/sweep.json").read_text(encoding="utf-8") == (whole / "sweep.json").read_text(
        encoding="utf-8"
    )


# ---- how many at once, and flags ----


@pytest.mark.long
def test_results_do_not_depend_on_how_many_are_at_once(config: SweepConfig) -> None:
    members = config.members()
    one, other = (sweep(replace(config, run_name=str(k), at_once=k)) for k in (1, 8))
    assert relative_error(weights(other, members), weights(one, members)) <= 1e-5


def test_groups_fit_the_cache_and_share_their_batches_where_they_can() -> None:
    rates = tuple(0.1 * n for n in range(1, 25))
    many = groups(SweepConfig(learning_rate=rates, seeds=2), CPU)
    assert [len(group) for group in many] == [24, 24], "one seed each"
    own = groups(SweepConfig(seeds=20), CPU)
    assert max(map(len, own)) * working_set(own[0][0], separate_batches=True) <= CACHE
    assert sorted(map(len, own)) == [6, 7, 7]
    assert [len(group) for group in groups(SweepConfig(seeds=20, at_once=16), CPU)] == [10, 10]
    assert [len(group) for group in groups(SweepConfig(sizes=(784, 512, 10), seeds=3), CPU)] == [1, 1, 1]


@pytest.mark.parametrize("error", [AttributeError, ValueError])
def test_memory_that_the_system_does_not_tell_is_guessed(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sysconf(name: str) -> int:
        raise error(name)  # as a Mac and Windows do

    monkeypatch.setattr("os.sysconf", sysconf, raising=False)
    assert len(groups(SweepConfig(seeds=4), CPU)) == 1
    large = SweepConfig(sizes=(784, 2**14, 2**12, 10), seeds=4)
    assert len(groups(large, CPU)) == 4 and len(groups(replace(large, at_once=4), CPU)) == 1, "nothing is refused"


def test_more_networks_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SweepConfig(seeds=8, at_once=8)
    size = COPIES * working_set(config.members()[0], separate_batches=True)
    monkeypatch.setattr("bp_torch.sweep.plan.free_memory", lambda device: 8 * size)
    assert len(groups(config, CPU)) == 1
    monkeypatch.setattr("bp_torch.sweep.plan.free_memory", lambda device: 8 * size - 1)
    with pytest.raises(ValueError, match="--at-once 8: 8 networks need about"):
        groups(config, CPU)
    assert len(groups(replace(config, at_once=None), CPU)) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--learning-rate", "--learning-rate: wanted one value or more, got none"),
        ("--init he he", "--init: wanted each value once, got he twice"),
        ("--momentum 0.5 0.50", "--momentum: wanted each value once, got 0.5 twice"),
        ("--momentum 0.5 1", "momentum is at least 0 and below 1, not 1.0"),
        ("--learning-rate 1 -3", "the learning rate is a positive number, not -3.0"),
        ("--sizes 784,16,10 784,32,10", "--sizes"),
        ("--seeds 0", "--seeds: wanted 1 or more, got 0"),
        ("--at-once 0", "--at-once: wanted 1 or more, got 0"),
        ("--seeds 10001", "wanted at most 10,000 networks, got 10,001"),
        ("--seed 4294967295 --seeds 2", "--seeds: wanted seeds below 4,294,967,296, got 4294967296"),
        ("--verify-every 5", "--verify-every is for one network"),
        ("--compile --seeds 2", "--compile is for one network at a time: give --at-once 1"),
        ("--save some", "--save"),
        ("--seeds 9999 --at-once 9999 --sizes 784 100000 10", "--at-once 9999: 9,999 networks need about"),
    ],
)
def test_bad_flags_are_refused_in_one_line_before_any_work(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*flags.split(), "--runs-dir", str(tmp_path), "--data-dir", str(tmp_path), "--device", "cpu"])
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


def test_only_some_flags_may_change_on_resuming(
    config: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(replace(config, epochs=1))
    for change in ("--epochs 2", "--seeds 3", "--learning-rate 1 3"):
        with pytest.raises(SystemExit):
            main(["--resume", str(folder), *change.split()])
        assert "only --replay, --data-dir and --device may change on resuming" in capsys.readouterr().err
    main(["--resume", str(folder), "--no-replay"])
    assert "saved" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--resume", str(tmp_path)])
    assert "no sweep in" in capsys.readouterr().err


def test_default_name_says_what_differs_from_the_defaults() -> None:
    config = SweepConfig(learning_rate=(0.3, 1.0), seeds=4, at_once=2, save="best")
    assert default_run_name(config).startswith("lr-0.3-1_seeds-4_784-16-16-10_")
