"""Two and three processes train the same network as one, and stop if one of them dies."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import FileStore, HashStore  # type: ignore[attr-defined]

from bp_torch import backprop, distributed
from bp_torch.checkpoint import LAST, RESULT
from bp_torch.cli import one_line_errors
from bp_torch.convert import load
from bp_torch.distributed import DistributedError, Watch, World, joined, local_device
from bp_torch.training import Config, Stopped, step, train
from bp_torch.training.interruption import Signals
from bp_torch.training.run import start_run
from tests.conftest import relative_error
from tests.harness import FORK, SIGNALS, wait_for


@pytest.fixture
def config(tmp_path: Path, data_dir: Path) -> Config:
    """Fifty steps in float64, batches that neither two nor three divide, and a short last one."""
    return Config(
        epochs=2,
        train_examples=2401,
        batch_size=97,
        learning_rate=1.0,
        momentum=0.5,
        weight_decay=1e-4,
        dtype="float64",
        device="cpu",
        threads=1,
        data_dir=data_dir,
        runs_dir=tmp_path,
    )


def start(size: int, store: Path, work: Callable[[str], object]) -> list[BaseProcess]:
    """``size`` processes that each do ``work`` with the store's address, as torchrun would have started them."""

    def child(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        with one_line_errors():
            try:
                work(f"file://{store}")
            except Stopped as stopped:
                os._exit(stopped.code)

    processes: list[BaseProcess] = [FORK.Process(target=child, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def codes(processes: list[BaseProcess], patience: float = 60) -> list[int | None]:
    for process in processes:
        process.join(patience)
    ended = [process.exitcode for process in processes]
    for process in processes:  # one that hangs fails the test, and would then keep pytest from ending
        process.kill()
    return ended


def weights(config: Config, name: str) -> torch.Tensor:
    return load(config.runs_dir / name / "network.safetensors").parameters


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_trains_the_same_network(config: Config, size: int, tmp_path: Path) -> None:
    train(replace(config, run_name="alone"))
    together = start(size, tmp_path / "store", lambda store: train(replace(config, run_name="together"), store))
    assert codes(together) == [0] * size
    assert relative_error(weights(config, "together"), weights(config, "alone")) <= 1e-12
    assert len(list((tmp_path / "together").glob("events.*"))) == 1
    scores = [torch.load(tmp_path / name / LAST, weights_only=True)["best_accuracy"] for name in ("alone", "together")]
    assert scores[0] == scores[1] > 0, "the shards of the test set are added up too"


def test_processes_choose_the_same_network_by_the_examples_held_out(config: Config, tmp_path: Path) -> None:
    held_out = replace(config, validation=100, epochs=4)
    train(replace(held_out, run_name="alone"))
    together = start(2, tmp_path / "store", lambda store: train(replace(held_out, run_name="together"), store))
    assert codes(together) == [0] * 2
    assert relative_error(weights(config, "together"), weights(config, "alone")) <= 1e-12
    results = [json.loads((tmp_path / name / RESULT).read_text(encoding="utf-8")) for name in ("alone", "together")]
    for key in ("test_accuracy", "epoch", "validation_accuracy"):
        assert results[0][key] == results[1][key], key


def test_shards_may_be_empty(config: Config, tmp_path: Path) -> None:
    few = replace(config, train_examples=41, batch_size=2, epochs=3)  # of each two, one of three gets none
    train(replace(few, run_name="alone"))
    together = start(3, tmp_path / "store", lambda store: train(replace(few, run_name="together"), store))
    assert codes(together) == [0] * 3
    assert relative_error(weights(config, "together"), weights(config, "alone")) <= 1e-12


def test_run_is_resumed_with_another_number_of_processes(config: Config, tmp_path: Path) -> None:
    train(replace(config, run_name="alone", epochs=3))
    first = start(3, tmp_path / "one", lambda store: train(replace(config, run_name="moved", epochs=1), store))
    assert codes(first) == [0] * 3
    rest = replace(config, run_name="moved", epochs=3, resume=tmp_path / "moved")
    assert codes(start(2, tmp_path / "two", lambda store: train(rest, store))) == [0] * 2
    assert relative_error(weights(config, "moved"), weights(config, "alone")) <= 1e-12


@pytest.mark.parametrize("dead", [0, 1])
def test_run_ends_when_a_process_dies(
    config: Config, dead: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    endless = replace(config, run_name="dying", epochs=10_000)
    processes = start(2, tmp_path / "store", lambda store: train(endless, store))
    wait_for(tmp_path / "dying" / "best.pt")
    pid = processes[dead].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    before = time.monotonic()
    ended = codes(processes)
    assert time.monotonic() - before < 60
    assert ended[dead] == -signal.SIGKILL
    assert ended[1 - dead] == 1
    said = capfd.readouterr().err
    assert "lost contact with another process" in said and "Traceback" not in said
    torch.load(tmp_path / "dying" / LAST, weights_only=True)


def test_signal_to_one_process_stops_all_at_the_same_step(config: Config, tmp_path: Path) -> None:
    long = replace(config, run_name="stopped", epochs=300)
    processes = start(2, tmp_path / "store", lambda store: train(long, store))
    wait_for(tmp_path / "stopped" / "best.pt")
    pid = processes[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    assert codes(processes) == [143, 143]
    state = torch.load(tmp_path / "stopped" / LAST, weights_only=True)
    alone = start_run(replace(long, run_name="alone"), torch.device("cpu"), World())
    while alone.state.step < state["step"]:
        for _ in islice(alone.rest_of_epoch(), state["step"] - alone.state.step):
            pass
        if alone.state.steps == alone.steps_per_epoch:
            alone.state.end_epoch()
    assert relative_error(state["parameters"], alone.state.parameters) <= 1e-12


def test_shards_make_up_the_whole() -> None:
    whole = torch.arange(100)
    for size in (1, 2, 3, 7, 101):
        shards = [World(rank, size).shard(whole) for rank in range(size)]
        assert torch.equal(torch.cat(shards), whole)
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_without_torchrun_the_world_is_one_process() -> None:
    with joined(torch.device("cpu")) as world:
        assert world == World(0, 1)
        assert world.any(True, torch.device("cpu"))


@pytest.mark.parametrize("size", ["2", "x"])
def test_invalid_environment_is_named(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(DistributedError, match="here: several processes need torchrun"), joined(torch.device("cpu")):
        pass


def test_all_processes_start_from_the_values_of_the_first(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(config, run_name="alone"))

    def other_start(store: str) -> None:
        seed = config.seed + int(os.environ["RANK"])  # as if a machine drew other numbers from the same seed
        right = Config.network
        monkeypatch.setattr(Config, "network", lambda self, device: right(replace(self, seed=seed), device))
        train(replace(config, run_name="together"), store)

    assert codes(start(2, tmp_path / "store", other_start)) == [0, 0]
    assert relative_error(weights(config, "together"), weights(config, "alone")) <= 1e-12


PLACES: dict[str, tuple[dict[str, str], int, str]] = {
    "torchrun, two on a machine": ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 2, "cuda:1"),
    "torchrun, one on each machine": ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, 1, "cuda:0"),
    "torchrun, one on each machine of eight GPUs": ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, 8, "cuda:0"),
    "srun, each sees all": ({"SLURM_LOCALID": "1"}, 2, "cuda:1"),
    "srun, each sees its own": ({"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": "3"}, 1, "cuda:0"),
}
"""How processes are started: the environment of one, the GPUs that it sees, and the one that it takes."""


@pytest.mark.parametrize("place", PLACES)
def test_each_process_takes_its_own_gpu(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, gpus, own = PLACES[place]
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_LOCALID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"WORLD_SIZE": "4"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert [local_device(name) for name in ("cpu", "cuda", "auto")] == ["cpu", own, own]
    with pytest.raises(
        DistributedError, match="--device cuda:0 would be shared by all processes: wanted --device cuda"
    ):
        local_device("cuda:0")


def test_more_processes_than_gpus_raise_distributed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(DistributedError, match="this is process 1, counted from 0, of this machine, but 1 GPUs"):
        local_device("cuda")


def test_processes_on_gpus_meet_with_nccl_and_the_device_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    met: dict[str, Any] = {}
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        "torch.distributed.rendezvous",
        lambda *arguments, **options: [(HashStore(), 1, 2)],
    )
    monkeypatch.setattr(
        "torch.distributed.init_process_group", lambda backend, **options: met.update(options, backend=backend)
    )
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: met.update(current=device))
    with joined(torch.device("cuda:1")) as world:
        assert world == World(1, 2)
    assert met["backend"] == "nccl" and met["device_id"] == met["current"] == torch.device("cuda:1")


@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.long] * (n != signal.SIGTERM)) for n in SIGNALS])
def test_process_that_has_noted_a_signal_may_take_its_time(number: signal.Signals, tmp_path: Path) -> None:
    """Until all processes ask each other, and while the checkpoint is saved."""

    def work() -> None:
        with Watch(FileStore(str(tmp_path / "store"), 1), 0, 1, grace=0.1), Signals() as signals:
            time.sleep(0.2)
            os.kill(os.getpid(), number)  # unlike raise_signal, it lets the handler run before the watch looks
            time.sleep(2.5)  # more than two looks of the watch
            os._exit(77 if signals.received == number else 1)

    child = FORK.Process(target=work)
    child.start()
    assert codes([child]) == [77]


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM while waiting for another process; the last checkpoint is intact"),
        pytest.param(
            None,
            1,
            "lost contact with process 1 of 2, counted from 0; the last checkpoint is intact",
            marks=pytest.mark.long,
        ),
    ],
)
def test_process_that_waits_for_one_that_hangs_ends_with_a_line(
    number: int | None,
    code: int,
    said: str,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(distributed, "Watch", partial(Watch, patience=60 if number else 4, grace=1))
    endless = replace(config, run_name="hanging", epochs=10_000)
    waiting, hanging = start(2, tmp_path / "store", lambda store: train(endless, store))
    wait_for(tmp_path / "hanging" / "best.pt")
    assert waiting.pid and hanging.pid
    os.kill(hanging.pid, signal.SIGSTOP)
    try:
        time.sleep(0.5)
        if number:
            os.kill(waiting.pid, number)
        waiting.join(20)
        assert waiting.exitcode == code
        assert capfd.readouterr().err.splitlines() == [f"error: {said}"]
        torch.load(tmp_path / "hanging" / LAST, weights_only=True)
    finally:
        for process in (waiting, hanging):
            process.kill()
            process.join()


def test_mean_of_means_would_be_caught(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: each process averages over its own shard, and the sums are halved."""
    train(replace(config, run_name="alone"))
    right = backprop.backward

    def own_mean(*arguments: Any, examples: int, out: torch.Tensor) -> backprop.Backward:
        network, passed, y, cost = arguments
        result = right(network, passed, y, cost, out=out)
        out.div_(2)
        return result

    monkeypatch.setattr(step, "backward", own_mean)
    together = start(2, tmp_path / "store", lambda store: train(replace(config, run_name="wrong"), store))
    assert codes(together) == [0, 0]
    assert relative_error(weights(config, "wrong"), weights(config, "alone")) > 1e-6


def test_recorded_steps_of_two_processes_equal_those_as_written(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_written, forward = FORK.Value("i"), backprop.forward

    def counted(*arguments: Any) -> backprop.Forward:
        with as_written.get_lock():
            as_written.value += 1
        return forward(*arguments)

    monkeypatch.setattr(step, "forward", counted)
    for name, replay, lines_run in (("recorded", True, 2 * 2), ("written", False, 2 * 50)):
        run = replace(config, run_name=name, replay=replay)
        as_written.value = 0
        assert codes(start(2, tmp_path / f"store_{name}", partial(train, run))) == [0, 0]
        assert as_written.value == lines_run, "each process: once for each batch size, or in each of 50 steps"
    assert torch.equal(weights(config, "recorded"), weights(config, "written"))
