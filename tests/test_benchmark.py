"""The benchmark compares what is comparable, and says so when it is not. No test here asserts a time."""

import io
import json
import os
from collections import deque
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bp_torch import benchmark
from bp_torch.backprop import forward
from bp_torch.benchmark import (
    CONTENDERS,
    FLOOR,
    OURS,
    PLAIN,
    TOLERANCE,
    BenchmarkError,
    Measurement,
    Runner,
    Work,
    as_json,
    autograd_in_memory,
    first_epochs,
    growth,
    machine,
    main,
    picture,
    race,
    table,
)
from bp_torch.data import PIXELS, Examples, load, permutation
from bp_torch.training import Config

COMPILED = "autograd, torch.compile"
FEW = {name: CONTENDERS[name] for name in (OURS, PLAIN, FLOOR)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The first 450 examples in batches of 100, so that the last is short."""
    directory = tmp_path_factory.mktemp("data")
    training, _ = load("mnist", directory)
    return Work(Config(data_dir=directory), Examples(training.x[:450], training.labels[:450]))


def measured(contenders: dict[str, Any], work: Work) -> Measurement:
    return Measurement(work.config.sizes, work.batch_size, 13_002, 450, race(contenders, work, rounds=2))


# ---- all do the same work ----


def test_all_contenders_end_at_the_same_weights(work: Work) -> None:
    contenders = {name: make for name, make in CONTENDERS.items() if name != COMPILED}
    results, runners = first_epochs(contenders, work)
    assert [r.name for r in results] == list(contenders) == list(runners)
    for result in results:
        assert result.name == FLOOR or (result.difference is not None and result.difference <= TOLERANCE)
    assert (runners[PLAIN].parameters() - work.network().parameters).norm() > 0.1


@pytest.mark.parametrize("sizes", [(784, 10), (784, 30, 10), (784, 40, 40, 10)])
def test_numpy_and_the_floor_take_every_depth(work: Work, sizes: tuple[int, ...]) -> None:
    contenders = {name: CONTENDERS[name] for name in (OURS, "NumPy by hand", FLOOR)}
    first_epochs(contenders, work._replace(config=Config(sizes=sizes, batch_size=64)))


def wrong_rate(work: Work) -> Runner:
    return autograd_in_memory(work._replace(config=Config(learning_rate=2.97)))


def wrong_batches(work: Work) -> Runner:
    right = autograd_in_memory(work)
    return Runner(lambda order: right.epoch(order[:-1]), right.parameters)


def wrong_order(work: Work) -> Runner:
    right = autograd_in_memory(work)
    return Runner(lambda order: right.epoch(order.flip(0)), right.parameters)


def not_finite(work: Work) -> Runner:
    right = autograd_in_memory(work)
    return Runner(right.epoch, lambda: right.parameters() * float("nan"))


@pytest.mark.parametrize("wrong", [wrong_rate, wrong_batches, wrong_order, not_finite])
def test_a_contender_that_does_other_work_is_caught(work: Work, wrong: Any) -> None:
    with pytest.raises(BenchmarkError, match="'the wrong one' does not do the same work"):
        race({**FEW, "the wrong one": wrong}, work, rounds=1)


# ---- what is told ----


def test_json_tells_everything(work: Work) -> None:
    m = measured(FEW, work)
    told = json.loads(as_json([m], benchmark.Options(rounds=2), machine(CPU)))
    assert set(told) == {"machine", "rounds", "tolerance", "measurements"}
    assert {"cpu", "threads", "device", "python", "torch", "numpy"} <= set(told["machine"])
    (one,) = told["measurements"]
    assert (one["sizes"], one["batch_size"], one["parameters"], one["examples"]) == (
        [784, 16, 16, 10],
        100,
        13_002,
        450,
    )
    assert [r["name"] for r in one["results"]] == list(FEW)
    for r in one["results"]:
        assert r["seconds"] > 0
        assert r["first_epoch"] > 0
        assert r["ratio_to_ours"] == r["seconds"] / m.seconds(OURS)
        assert r["ratio_to_floor"] == r["seconds"] / m.seconds(FLOOR)
        assert (r["difference"] is None) == (r["name"] == FLOOR)


def test_a_contender_that_cannot_run_is_said_so(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(**_: Any) -> Any:
        def wrap(_: Any) -> Any:
            def call(*_: Any) -> Any:
                raise RuntimeError("no compiler here\nand much more")

            return call

        return wrap

    monkeypatch.setattr(torch, "compile", no_compiler)
    m = measured({**FEW, COMPILED: CONTENDERS[COMPILED]}, work)
    assert f"| {COMPILED} | cannot run here: no compiler here | | | | |" in table(m).splitlines()
    (told,) = json.loads(as_json([m], benchmark.Options(), machine(CPU)))["measurements"]
    assert told["results"][-1]["seconds"] is None
    assert told["results"][-1]["note"] == "no compiler here"
    assert picture([m], machine(CPU)).startswith(b"\x89PNG")


def test_the_table_has_a_row_for_each(work: Work) -> None:
    m = measured(FEW, work)
    rows = table(m).splitlines()
    assert rows[0] == "784-16-16-10, batches of 100, 13,002 parameters, 450 examples"
    assert [row.split(" | ")[0] for row in rows[4:]] == [f"| {name}" for name in FEW]
    assert rows[4].split(" | ")[2] == "1.00"
    assert "~" not in table(m)
    assert len(growth([m, m]).splitlines()) == 4


def test_a_long_epoch_is_timed_on_its_first_part(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "TURN", 0.0)
    small = work._replace(config=Config(batch_size=10))
    asked: list[int] = []

    def counting(work: Work) -> Runner:
        right = autograd_in_memory(work)

        def epoch(order: torch.Tensor) -> None:
            asked.append(len(order))
            right.epoch(order)

        return Runner(epoch, right.parameters)

    m = measured({**FEW, "counted": counting}, small)
    assert asked == [450, 50, 50, 50]  # all of the first epoch, five batches to see how long they take, the turns
    assert m.results[-1].share == pytest.approx(50 / 450)
    assert "| counted | ~" in table(m)


def test_the_picture_is_drawn(work: Work) -> None:
    m = measured(FEW, work)
    one, two = (matplotlib.image.imread(io.BytesIO(picture([m] * n, machine(CPU)))) for n in (1, 2))
    assert two.shape[0] > one.shape[0]
    blue = torch.tensor([0, 0x72, 0xB2]) / 255
    assert (torch.from_numpy(one[:, :, :3]) - blue).abs().amax(2).lt(0.01).sum() > 1000  # the bar of ours


# ---- the command ----


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds: wanted 1 or more, got 0"),
        (["--threads", "-1"], "--threads: wanted 1 or more, got -1"),
        (["--batch-size", "0"], "--batch-size: wanted 1 or more, got 0"),
        (["--sizes", "3", "10"], "--sizes"),
        (["--out", "picture.jpg"], "--out: wanted a name that ends in .png"),
        (["--out", "nowhere/picture.png"], "--out: no folder nowhere"),
        (["--colour"], "--colour"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in benchmark.THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")


def test_a_device_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one_thread(monkeypatch)
    with pytest.raises(SystemExit) as stop:
        main(["--device", "cuda:99", "--out", str(tmp_path / "picture.png")])
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_starts_anew_with_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    started: list[tuple[list[str], dict[str, str]]] = []

    def execve(_: str, command: list[str], environment: dict[str, str]) -> None:
        started.append((command, environment))
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(SystemExit):
        main(["--threads", "2", "--json"])
    ((command, environment),) = started
    assert command[1:] == ["-m", "bp_torch", "benchmark", "--threads", "2", "--json"]
    assert {environment[name] for name in benchmark.THREAD_VARIABLES} == {"2"}


@pytest.mark.parametrize("sweep", [False, True])
def test_the_command_prints_and_draws(
    work: Work, sweep: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one_thread(monkeypatch)
    monkeypatch.setattr(benchmark, "CONTENDERS", FEW)
    monkeypatch.setattr(benchmark, "SWEEP", (((784, 16, 16, 10), 100), ((784, 20, 10), 50)))
    monkeypatch.setattr(benchmark, "load", lambda *_: (work.examples, work.examples))
    out = tmp_path / "picture.png"
    arguments = ["--rounds", "1", "--out", str(out), *(["--sweep"] if sweep else [])]
    main(arguments)
    said = capsys.readouterr().out
    assert said.count(f"| {OURS} |") == (2 if sweep else 1)
    assert ("ps an example and parameter" in said) == sweep
    assert out.read_bytes().startswith(b"\x89PNG")
    main([*arguments, "--json"])
    assert len(json.loads(capsys.readouterr().out)["measurements"]) == (2 if sweep else 1)


# ---- memory ----


def allocated(work: Work, *, with_trace: bool = True, logged: bool = False) -> int:
    """Bytes that ten steps allocate after the first."""
    network = work.network()
    running = torch.zeros(2, dtype=torch.float64) if logged else None
    walk = work.config.walk(network, work.config.descent(network), work.examples, running=running)
    x, _ = walk.batches.gather(work.order(1)[: work.batch_size])
    with torch.inference_mode():
        steps = walk(work.order(1)[:110])
        next(steps)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            for _ in range(10):
                next(steps)
                if not with_trace:
                    forward(network, x)
    return sum(max(0, op.self_cpu_memory_usage) for op in seen.key_averages())


def test_no_step_allocates_a_tensor_after_the_first(work: Work) -> None:
    tens = work._replace(config=Config(batch_size=10))
    smallest = 4 * 10 * 10  # a δ of the last layer, or y
    assert allocated(tens) == 0
    assert allocated(tens, logged=True) < smallest  # 20 bytes a step: torch makes tensors of the numbers in a mean
    assert allocated(tens, with_trace=False) >= 10 * smallest  # what the lines above would see


def bytes_held(*owners: object) -> int:
    """The memory of every tensor that the owners hold, each piece of memory once."""
    found: dict[int, int] = {}

    def visit(thing: object) -> None:
        if isinstance(thing, torch.Tensor):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, list | tuple):
            for part in thing:
                visit(part)
        elif isinstance(thing, dict):
            visit(list(thing.values()))
        elif hasattr(thing, "__dict__"):
            visit(list(vars(thing).values()))

    visit(owners)
    return sum(found.values())


@pytest.mark.parametrize(("sizes", "batch_size"), [((784, 16, 16, 10), 100), ((784, 512, 512, 10), 256)])
def test_a_run_holds_little_more_than_data_parameters_activations_and_deltas(
    work: Work, sizes: tuple[int, ...], batch_size: int
) -> None:
    examples = load("mnist", work.config.data_dir)
    config = Config(sizes=sizes, batch_size=batch_size)
    network = config.network(CPU)
    walk = config.walk(network, config.descent(network), examples[0], running=torch.zeros(2))
    order = permutation(2 * batch_size + 1, 0, 1)
    with torch.inference_mode():
        deque(walk(order), maxlen=0)
    held = bytes_held(examples, order, walk)
    data = sum(tensor.nbytes for part in examples for tensor in part)
    activations_and_deltas = 4 * batch_size * (PIXELS + 2 * sum(sizes[1:]))
    assert held <= 1.2 * (data + network.parameters.nbytes + activations_and_deltas)
