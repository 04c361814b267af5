"""The benchmark compares only what does the same task, and reports what it measured. No test here asserts a time."""

import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bp_torch.backprop import forward
from bp_torch.benchmark import networks
from bp_torch.benchmark.contenders import (
    CONTENDERS,
    IN_MEMORY,
    OURS,
    autograd_compiled,
    autograd_cuda_graph,
    autograd_in_memory,
    ours,
)
from bp_torch.benchmark.networks import MAKERS, at_once, one_after_another, tasks_of_many
from bp_torch.benchmark.race import (
    FLOOR,
    TOLERANCE,
    Contender,
    Measurement,
    Task,
    Timing,
    UnavailableError,
    compare,
    first_epochs,
)
from bp_torch.benchmark.report import as_json, contender_table, describe_machine, draw, growth_table
from bp_torch.benchmark.scripts import THREAD_VARIABLES, BenchmarkError
from bp_torch.benchmark.with_jax import jax_contender, load_jax
from bp_torch.commands import benchmark as command
from bp_torch.commands.benchmark import main
from bp_torch.data import PIXELS, Examples, batch, load, permutation
from bp_torch.training import Config

COMPILED = "autograd, torch.compile"
FEW = {name: CONTENDERS[name] for name in (OURS, IN_MEMORY, FLOOR)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task(data_dir: Path) -> Task:
    """The first 450 examples in batches of 100, so that the last is short."""
    training, _ = load("mnist", data_dir)
    return Task(Config(data_dir=data_dir), Examples(training.x[:450], training.labels[:450]))


def measured(*seconds: float, fraction: float = 1.0) -> Measurement:
    """A measurement in which the contenders of ``FEW`` took so long for an epoch."""
    differences = (0.0, 1.2e-6, None)
    results = [
        Timing(name, time, fraction, 2 * time, difference)
        for name, time, difference in zip(FEW, seconds, differences, strict=True)
    ]
    return Measurement((784, 16, 16, 10), 100, 13_002, 450, results)


# ---- all do the same task ----


def test_all_contenders_end_at_the_same_weights(task: Task) -> None:
    contenders = {name: make for name, make in CONTENDERS.items() if name != COMPILED}
    results, running = first_epochs(contenders, task)
    assert list(results) == list(contenders) == list(running)
    for name, result in results.items():
        assert name == FLOOR or (result.difference is not None and result.difference <= TOLERANCE)
    assert (running[IN_MEMORY].parameters() - task.network().parameters).norm() > 0.1


@pytest.mark.parametrize("sizes", [(784, 10), (784, 30, 10), (784, 40, 40, 10)])
def test_numpy_and_the_floor_run_at_every_depth(task: Task, sizes: tuple[int, ...]) -> None:
    contenders = {name: CONTENDERS[name] for name in (OURS, "NumPy by hand", FLOOR)}
    first_epochs(contenders, task._replace(config=Config(sizes=sizes, batch_size=64)))


def wrong_learning_rate(task: Task) -> Contender:
    return autograd_in_memory(task._replace(config=Config(learning_rate=2.97)))


def one_example_missing(task: Task) -> Contender:
    right = autograd_in_memory(task)
    return Contender(lambda order: right.epoch(order[:-1]), right.parameters)


def wrong_order(task: Task) -> Contender:
    right = autograd_in_memory(task)
    return Contender(lambda order: right.epoch(order.flip(0)), right.parameters)


def not_finite(task: Task) -> Contender:
    right = autograd_in_memory(task)
    return Contender(right.epoch, lambda: right.parameters() * float("nan"))


@pytest.mark.parametrize("wrong", [wrong_learning_rate, one_example_missing, wrong_order, not_finite])
def test_a_contender_that_does_another_task_raises(task: Task, wrong: Callable[[Task], Contender]) -> None:
    with pytest.raises(BenchmarkError, match="'the wrong one' does not do the same task"):
        compare({**FEW, "the wrong one": wrong}, task, rounds=1)


# ---- the race ----


def test_compare_times_every_contender(task: Task) -> None:
    m = compare(FEW, task, rounds=2)
    assert (m.sizes, m.batch_size, m.parameters, m.examples) == ((784, 16, 16, 10), 100, 13_002, 450)
    assert [r.name for r in m.results] == list(FEW)
    for r in m.results:
        assert r.seconds is not None and r.first_epoch is not None
        assert r.seconds > 0
        assert r.first_epoch > 0
        assert r.fraction == 1
        assert (r.difference is None) == (r.name == FLOOR)


def test_a_long_epoch_is_timed_on_its_first_part_and_scaled_up(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def counting(task: Task) -> Contender:
        right = autograd_in_memory(task)

        def epoch(order: torch.Tensor) -> None:
            lengths.append(len(order))
            clock[0] += len(order) / 64
            right.epoch(order)

        return Contender(epoch, right.parameters)

    small = task._replace(config=Config(batch_size=10))
    result = compare({**FEW, "counted": counting}, small, rounds=2).results[-1]
    assert lengths == [450, 50, 60, 60]  # the first epoch, five batches to estimate that six take a second, the turns
    assert result.fraction == pytest.approx(60 / 450)
    assert result.first_epoch == 450 / 64
    assert result.seconds == pytest.approx(450 / 64)


def test_a_contender_that_cannot_run_is_reported_with_its_reason(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> Any:
            raise RuntimeError("no compiler here\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    m = compare({**FEW, COMPILED: CONTENDERS[COMPILED]}, task, rounds=1)
    assert f"| {COMPILED} | cannot run here: no compiler here |" in contender_table(m)
    (reported,) = json.loads(as_json([m], describe_machine(CPU), rounds=1))["measurements"]
    assert reported["results"][-1]["seconds"] is None
    assert reported["results"][-1]["ratio_to_ours"] is None
    assert reported["results"][-1]["note"] == "no compiler here"
    assert set(dots(m)) == set(FEW)


def test_a_contender_that_gives_up_in_a_later_turn_is_reported_with_its_reason(task: Task) -> None:
    def gives_up(task: Task) -> Contender:
        right, epochs = autograd_in_memory(task), iter([False, True])

        def epoch(order: torch.Tensor) -> None:
            if next(epochs):
                raise UnavailableError("no more memory for graphs")
            right.epoch(order)

        return Contender(epoch, right.parameters)

    m = compare({**FEW, "gives up": gives_up}, task, rounds=3)
    assert "| gives up | cannot run here: no more memory for graphs |" in contender_table(m)


def test_what_is_compiled_is_kept_for_all_contenders_of_a_size(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[None] = []
    monkeypatch.setattr("torch._dynamo.reset", lambda: resets.append(None))
    monkeypatch.setattr("torch.compile", lambda function, **_: function)
    compare({**FEW, "one": autograd_compiled, "two": autograd_compiled}, task, rounds=1)
    assert len(resets) == 1


def test_the_step_in_a_graph_by_hand_starts_from_the_initial_values_on_its_own_device(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, Any] = {}
    streams = SimpleNamespace(wait_stream=lambda stream: None)
    for name in ("stream", "CUDAGraph"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_: nullcontext())
    monkeypatch.setattr("torch.cuda.Stream", lambda device: streams)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: streams)
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext(used.update(device=device)))
    monkeypatch.setattr("torch.cuda.graph", lambda graph, **options: nullcontext(used.update(options)))
    assert torch.equal(autograd_cuda_graph(task).parameters(), task.network().parameters), "the warm-up is undone"
    assert used["device"] == task.device and used["stream"] is streams


# ---- the report ----


def cells(table: str) -> list[list[str]]:
    """The cells of every row of a Markdown table, without the head."""
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines() if row.startswith("|")][2:]


def test_the_table_has_a_row_for_each_contender() -> None:
    text = contender_table(measured(0.1, 0.35, 0.05))
    assert text.splitlines()[0] == "784-16-16-10, batches of 100, 13,002 parameters, 450 examples"
    assert cells(text) == [
        [OURS, "100", "1.00", "2.00", "0.200", "0"],
        [IN_MEMORY, "350", "3.50", "7.00", "0.700", "1·10⁻⁶"],
        [FLOOR, "50.0", "0.500", "1.00", "0.100", ""],
    ]
    assert "~" not in text


def test_a_scaled_time_is_marked_in_the_table() -> None:
    text = contender_table(measured(1.0, 3.5, 0.5, fraction=0.25))
    assert [row[1] for row in cells(text)] == ["~1,000", "~3,500", "~500"]
    assert "scaled up" in text


def test_the_growth_table_has_a_row_for_each_measurement() -> None:
    m = measured(0.1, 0.35, 0.05)
    row = ["784-16-16-10, 100", "13,002", "20,000", "222", "17,091", "2.00", "3.50"]
    assert cells(growth_table([m, m])) == [row, row]


def test_json_holds_everything() -> None:
    m = measured(0.1, 0.35, 0.05)
    reported = json.loads(as_json([m], describe_machine(CPU), rounds=2))
    assert set(reported) == {"machine", "rounds", "tolerance", "measurements"}
    assert (reported["rounds"], reported["tolerance"]) == (2, TOLERANCE)
    assert {"cpu", "threads", "device", "python", "torch", "numpy"} <= set(reported["machine"])
    (one,) = reported["measurements"]
    results = one.pop("results")
    assert one == {"sizes": [784, 16, 16, 10], "batch_size": 100, "parameters": 13_002, "examples": 450}
    for got, r in zip(results, m.results, strict=True):
        assert r.seconds is not None
        assert got == r._asdict() | {"ratio_to_ours": r.seconds / 0.1, "ratio_to_floor": r.seconds / 0.05}


def dots(m: Measurement) -> dict[str, float]:
    """Where the picture has the dot of each contender, in milliseconds."""
    (axes,) = draw([m], describe_machine(CPU)).axes
    assert axes.get_xscale() == "log"
    return {str(np.asarray(line.get_ydata()).item()): np.asarray(line.get_xdata()).item() for line in axes.lines}


def test_the_picture_has_a_dot_at_the_time_of_each_contender() -> None:
    assert dots(measured(0.1, 0.35, 0.05)) == pytest.approx({OURS: 100, IN_MEMORY: 350, FLOOR: 50})


def test_the_picture_has_a_panel_for_each_measurement() -> None:
    m = measured(0.1, 0.35, 0.05)
    one, two = (draw([m] * n, describe_machine(CPU)) for n in (1, 2))
    assert (len(one.axes), len(two.axes)) == (1, 2)
    assert two.get_figheight() > one.get_figheight()


# ---- the command ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds: wanted 1 or more, got 0"),
        (["--threads", "-1"], "--threads: wanted 1 to 1024, got -1"),
        (["--threads", "100000"], "--threads: wanted 1 to 1024, got 100000"),
        (["--sweep", "--sizes", "784", "10"], "--sizes has no effect with --sweep"),
        (["--sweep", "--batch-size", "100"], "--batch-size has no effect with --sweep"),
        (["--batch-size", "0"], "--batch-size: wanted 1 or more, got 0"),
        (["--sizes", "3", "10"], "--sizes"),
        (["--out", "picture.jpg"], "--out: wanted a name that ends in .png"),
        (["--out", "nowhere/picture.png"], "--out: no folder nowhere"),
        (["--colour"], "--colour"),
    ],
)
def test_bad_arguments_give_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")


def test_a_missing_device_gives_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one_thread(monkeypatch)
    with pytest.raises(SystemExit) as stop:
        main(["--device", "cuda:99", "--out", str(tmp_path / "picture.png")])
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_starts_itself_again_with_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    started: list[tuple[list[str], dict[str, str]]] = []

    def execve(_: str, command: list[str], environment: dict[str, str]) -> None:
        started.append((command, environment))
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(SystemExit):
        main(["--threads", "2", "--json"])
    ((arguments, environment),) = started
    assert arguments[1:] == ["-m", "bp_torch", "benchmark", "--threads", "2", "--json"]
    assert {environment[name] for name in THREAD_VARIABLES} == {"2"}


@pytest.mark.parametrize("sweep", [False, True])
def test_the_command_prints_tables_or_json_and_writes_a_picture(
    task: Task, sweep: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one_thread(monkeypatch)
    monkeypatch.setattr("bp_torch.benchmark.contenders.CPU_CONTENDERS", FEW)
    monkeypatch.setattr(command, "SWEEP", (((784, 16, 16, 10), 100), ((784, 20, 10), 50)))
    monkeypatch.setattr("bp_torch.data.load", lambda *_: (task.examples, task.examples))
    out = tmp_path / "picture.png"
    arguments = ["--rounds", "1", "--out", str(out), *(["--sweep"] if sweep else [])]
    main(arguments)
    printed = capsys.readouterr().out
    assert printed.count(f"| {OURS} |") == (2 if sweep else 1)
    assert ("per example and parameter" in printed) == sweep
    assert out.read_bytes().startswith(b"\x89PNG")
    blue = torch.tensor([0, 0x72, 0xB2]) / 255  # the dot of ours
    pixels = torch.from_numpy(matplotlib.image.imread(io.BytesIO(out.read_bytes()))[:, :, :3])
    assert (pixels - blue).abs().amax(2).lt(0.01).sum() > 50
    main([*arguments, "--json"])
    assert len(json.loads(capsys.readouterr().out)["measurements"]) == (2 if sweep else 1)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        main([*arguments, "--json"])
    assert capsys.readouterr().out == "", "nothing is printed before the picture is saved"


# ---- the memory of a step ----


def bytes_allocated(task: Task, *, with_forward: bool = False, logged: bool = False) -> int:
    """Bytes that ten steps allocate after the first."""
    network = task.network()
    running = torch.zeros(2, dtype=torch.float64) if logged else None
    step = task.config.training_step(network, task.config.optimizer(network), task.examples, running=running)
    x, _ = batch(task.examples, task.order(1)[: task.batch_size], network.dtype)
    with torch.inference_mode():
        steps = step.run(task.order(1)[:110])
        next(steps)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
            for _ in range(10):
                next(steps)
                if with_forward:
                    forward(network, x)
    return sum(max(0, op.self_cpu_memory_usage) for op in measured.key_averages())


def test_no_step_allocates_a_tensor_after_the_first(task: Task) -> None:
    tens = task._replace(config=Config(batch_size=10))
    smallest = 4 * 10 * 10  # a δ of the last layer, or y
    assert bytes_allocated(tens) == 0
    assert bytes_allocated(tens, logged=True) < smallest  # 20 bytes a step: torch makes tensors of Python numbers
    assert bytes_allocated(tens, with_forward=True) >= 10 * smallest  # what the lines above would find


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
    data_dir: Path, sizes: tuple[int, ...], batch_size: int
) -> None:
    examples = load("mnist", data_dir)
    config = Config(sizes=sizes, batch_size=batch_size)
    network = config.network(CPU)
    step = config.training_step(network, config.optimizer(network), examples[0], running=torch.zeros(2))
    order = permutation(2 * batch_size + 1, 0, 1)
    with torch.inference_mode():
        deque(step.run(order), maxlen=0)
    held = bytes_held(examples, order, step)
    data = sum(tensor.nbytes for part in examples for tensor in part)
    activations_and_deltas = 4 * batch_size * (PIXELS + 2 * sum(sizes[1:]))
    assert held <= 1.2 * (data + network.parameters.nbytes + activations_and_deltas)


# ---- many networks, and JAX ----


@pytest.mark.parametrize("kind", ["one shuffle", "a shuffle each"])
def test_networks_at_once_end_where_each_alone_ends(kind: str, task: Task) -> None:
    five = tasks_of_many(task, 5)[kind]
    assert len(five.members) == 5 and five.own_order == (kind == "a shuffle each")
    contenders = {name: make for name, make in MAKERS.items() if make is not jax_contender}
    timings, running = first_epochs(contenders, five)
    assert list(running) == list(contenders)
    for name, contender in running.items():
        difference = timings[name].difference
        assert difference is not None and difference <= 1e-5
        assert ((contender.parameters() - five.start()).norm(dim=-1) > 0.1).all(), "it has learned something"


def test_networks_that_do_another_task_are_refused(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "MAKERS", {"ours": at_once, "idle": one_after_another})
    other = task._replace(config=dataclasses.replace(task.config, seed=5))
    monkeypatch.setattr(networks, "ours", lambda alone: ours(other))
    with pytest.raises(BenchmarkError, match="'idle, one shuffle' does not do the same task"):
        networks.compare_networks(task, 3, rounds=1)


def test_without_jax_its_rows_say_so(
    task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_thread(monkeypatch)
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setattr("bp_torch.data.load", lambda *_: (task.examples, task.examples))
    main(["--networks", "3", "--rounds", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [("JAX is not installed" in row) for row in rows] == ["JAX" in row for row in rows]
    assert len(rows) == 2 + 2 * len(MAKERS)
    main(["--networks", "3", "--rounds", "1", "--json"])
    report = json.loads(capsys.readouterr().out)
    for result in report["results"]:
        assert (result["seconds"] is None) == result["name"].startswith("JAX")
    (alone,) = [result for result in report["results"] if result["name"] == networks.ALONE]
    assert alone["ratio"] == 1


def test_jax_works_on_the_cpu_unless_told_otherwise(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NPROC", "XLA_FLAGS", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(default_backend=lambda: "gpu"))
    with pytest.raises(UnavailableError, match="measured on the CPU only, and here JAX works on gpu"):
        jax_contender(task)
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    load_jax()
    assert os.environ["JAX_PLATFORMS"] == "cuda"


IN_JAX = """
import sys
from pathlib import Path
from bp_torch.benchmark import Task
from bp_torch.benchmark.race import first_epochs
from bp_torch.benchmark.networks import MAKERS, tasks_of_many
from bp_torch.benchmark.contenders import CONTENDERS
from bp_torch.benchmark.scripts import THREAD_VARIABLES
from bp_torch.benchmark.with_jax import jax_contender
from bp_torch.data import Examples, load
from bp_torch.training import Config
training, _ = load("mnist", Path(sys.argv[1]))
task = Task(Config(log=False), Examples(training.x[:450], training.labels[:450]))
for sizes in ((784, 10), (784, 30, 10)):
    one = task._replace(config=Config(sizes=sizes, batch_size=64))
    results, running = first_epochs({"ours": CONTENDERS["ours"], "jax": jax_contender}, one)
    print(results["jax"].difference, (running["jax"].parameters() - one.network().parameters).norm().item())
for three in tasks_of_many(task, 3).values():
    results, running = first_epochs(MAKERS, three)
    contender = running["JAX, jit(vmap(scan))"]
    moved = (contender.parameters() - three.start()).norm(dim=-1).min().item()
    print(results["JAX, jit(vmap(scan))"].difference, moved)
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed here")
def test_jax_makes_the_same_networks(data_dir: Path) -> None:
    # In a process of its own: JAX starts threads, and other tests fork.
    command = [sys.executable, "-c", IN_JAX, str(data_dir)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, encoding="utf-8", check=True)
    for line in done.stdout.splitlines():
        difference, moved = map(float, line.split())
        assert 0 < difference <= 1e-5
        assert moved > 0.1
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("flags", "message"), [(["--networks", "1"], "2 or more, got 1"), (["--networks", "4", "--sweep"], "no --sweep")]
)
def test_networks_that_cannot_be_measured_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
    assert f"--networks: wanted {message}" in capsys.readouterr().err
