"""A step, and its replay: the same numbers, bit for bit, on a machine without a GPU as well."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from bp_torch.backprop import Trace
from bp_torch.checkpoint import State
from bp_torch.data import Examples, first_shuffled, one_hot, permutation
from bp_torch.replay import Tape
from bp_torch.runlog import RunLog
from bp_torch.training import Config, TrainingError, open_run, train
from bp_torch.walk import Inspect, Seen, Walk
from tests.conftest import curves, relative_error

N = 450
"""Examples: four mini-batches of 100 and a short one."""

CPU = torch.device("cpu")


class SlowGraph(Tape):
    """A CUDA graph in slow motion: what is noted has not run, and every piece of memory is as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [(value, value.clone()) for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        result = super().__torch_function__(func, types, args, kwargs)
        self.kept += [(tensor, held) for tensor, held in before if result is tensor]
        return result


@contextmanager
def slow_capture(graph: SlowGraph, **_: object) -> Iterator[None]:
    """In the place of ``torch.cuda.graph``."""
    with graph:
        yield
    for tensor, before in reversed(graph.kept):
        tensor.copy_(before)


Way = tuple[Walk, Tensor]


@pytest.fixture
def examples(mnist: tuple[Examples, Examples]) -> Examples:
    return first_shuffled(mnist[0], N, seed=0)


@torch.inference_mode()
def walked(config: Config, examples: Examples, device: torch.device = CPU, stream: object = None) -> Way:
    """A walk of three epochs, and its way: after every step θ, some of δ, the first y, and what it has cost so far."""
    network = config.network(device)
    tally = torch.zeros(2, dtype=torch.float64, device=device)
    examples = Examples(*(tensor.to(device) for tensor in examples))
    walk = config.walk(network, config.descent(network), examples, running=tally)
    if stream and walk._replay:
        walk._replay._stream = stream  # type: ignore[assignment]
    way = []
    for epoch in (1, 2, 3):
        walk.sgd.learning_rate = config.rate_in(epoch)
        order = permutation(N, 0, epoch, device)
        for seen in walk(order):
            way.append(torch.cat([network.parameters, seen.trace.deltas[-1].flatten()[:5], seen.y[0], tally]))
        assert torch.equal(order, permutation(N, 0, epoch, device))
    return walk, torch.stack(way)


WALKS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9, "weight_decay": 1e-3},
    {"cost": "softmax-cross-entropy", "activation": "relu"},
    {"cost": "binary-cross-entropy", "activation": "tanh", "batch_size": N},
    {"precision": "bf16"},
    {"dtype": "float64", "sizes": (784, 10)},
]


def steps_entered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the mini-batches that ``Walk.step`` is gone through for, line by line, from now on."""
    entered: list[int] = []
    step = Walk.step

    def enter(walk: Walk, chosen: Tensor, inspect: Inspect | None = None) -> Seen:
        entered.append(len(chosen))
        return step(walk, chosen, inspect)

    monkeypatch.setattr(Walk, "step", enter)
    return entered


@pytest.mark.parametrize("fields", WALKS)
@pytest.mark.parametrize("graph", [False, True], ids=["tape", "graph"])
def test_a_replayed_walk_goes_the_way_of_the_written_one(
    graph: bool, fields: dict[str, Any], examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.CUDAGraph", SlowGraph)
    monkeypatch.setattr("torch.cuda.graph", slow_capture)
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    entered = steps_entered(monkeypatch)
    _, replayed = walked(Config(learning_rate=0.5, **fields), examples, stream="a stream" if graph else None)
    sizes = [N] if fields.get("batch_size") == N else [100, 50]
    assert sorted(entered, reverse=True) == [size for size in sizes for _ in range(1 + graph)]
    entered.clear()
    _, written = walked(Config(learning_rate=0.5, replay=False, **fields), examples)
    assert sum(entered) == 3 * N, "without a replay, every step is gone through"
    assert torch.equal(replayed, written)


def test_what_a_walk_costs_is_added_up_example_by_example(examples: Examples) -> None:
    config = Config(dtype="float64")
    network = config.network(CPU)
    running = torch.zeros(2, dtype=torch.float64)
    walk = config.walk(network, config.descent(network), examples, running=running)
    wanted = 0.0
    for epoch in (1, 2):
        for chosen in (order := permutation(N, 0, epoch)).split(100):
            outputs = network.to_sequential()(examples.x[chosen].double() / 255).detach()
            wanted += (outputs - one_hot(examples.labels[chosen])).square().sum().item()
            for _ in walk(chosen):
                pass
        assert len(order) == N
    assert running.tolist() == [pytest.approx(wanted, rel=1e-12), 2 * N]


def test_a_number_that_changes_would_be_frozen_and_is_seen(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    _, written = walked(Config(learning_rate=0.5), examples)

    def step(self: Any, gradient: Tensor) -> None:
        self.parameters.add_(gradient, alpha=-self.learning_rate)

    monkeypatch.setattr("bp_torch.sgd.SGD.step", step)
    _, frozen = walked(Config(learning_rate=0.5), examples)
    assert torch.allclose(frozen[:5], written[:5], rtol=1e-5, atol=1e-6), "in the first epoch the rate is the right one"
    assert relative_error(frozen[-1], written[-1]) > 1e-4


def test_a_step_that_reads_a_number_is_refused(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trace, "tally_up", lambda trace, costs: trace.tally.fill_(costs.sum().item()))
    with pytest.raises(RuntimeError, match=r"item\(\) in a step gives float"):
        walked(Config(), examples)


def test_a_step_that_is_looked_into_is_taken_as_it_is_written(examples: Examples) -> None:
    config = Config()
    network = config.network(CPU)
    walk = config.walk(network, config.descent(network), examples)
    shown: list[tuple[int, ...]] = []
    for seen in walk(permutation(N, 0, 1), lambda x, y, gradient: shown.append((len(x), len(y), len(gradient)))):
        assert seen.trace.examples == shown[-1][0]
    assert shown == [(100, 100, 13_002)] * 4 + [(50, 50, 13_002)]


AT_ONCE = RunLog.begin


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of the curves are read only at the end of an epoch, or for a checkpoint, as on a GPU."""

    def begin(log: RunLog, *arguments: Any) -> None:
        log.at_once = False
        AT_ONCE(log, *arguments)

    monkeypatch.setattr(RunLog, "begin", begin)


def test_a_run_of_replayed_steps_is_that_of_written_ones(
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
        monkeypatch.setattr(RunLog, "begin", AT_ONCE)  # the second run reads its points as they come
    assert torch.equal(*networks)
    assert [step for step, _ in logged[0]["cost/train"]] == [2, 4, 6, 8, 10, 12, 14]
    assert logged[0] == logged[1]


def test_a_checkpoint_is_saved_when_the_points_before_it_are_on_disk(
    tmp_path: Path, data_dir: Path, lazy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: dict[int, list[int]] = {}
    save, write = State.save, RecordWriter.write

    def slowly(writer: RecordWriter, record: bytes) -> None:  # in a thread of its own, which a checkpoint waits for
        time.sleep(0.005)
        write(writer, record)

    def note(state: State, path: Path) -> None:
        on_disk[state.step] = [step for step, _ in curves(path.parent).get("cost/train", [])]
        save(state, path)

    monkeypatch.setattr(RecordWriter, "write", slowly)
    monkeypatch.setattr(State, "save", note)
    fields: dict[str, Any] = {"train_examples": N, "epochs": 2, "log_every": 1, "checkpoint_every": 3}
    train(Config(data_dir=data_dir, runs_dir=tmp_path, device="cpu", **fields))
    assert on_disk == {step: list(range(1, step + 1)) for step in (0, 3, 5, 6, 9, 10)}


def test_the_points_before_a_cost_that_is_not_finite_are_logged(tmp_path: Path, data_dir: Path, lazy: None) -> None:
    fields: dict[str, Any] = {"activation": "relu", "output_activation": "relu", "learning_rate": 1e30}
    fields |= {"train_examples": N, "log_every": 1, "checkpoint_every": 3, "data_dir": data_dir, "runs_dir": tmp_path}
    with pytest.raises(TrainingError, match="the cost is not finite: at step 2"):
        train(Config(run_name="diverging", device="cpu", **fields))
    assert [step for step, _ in curves(tmp_path / "diverging")["cost/train"]] == [1, 2, 3]


def test_bf16_goes_forward_and_back_in_bfloat16_and_keeps_float32_parameters(examples: Examples) -> None:
    exact, short = (walked(Config(precision=precision), examples)[0] for precision in ("full", "bf16"))
    assert short.network.dtype == torch.float32
    assert short.trace.gradient.dtype == short.trace.activations[1].dtype == torch.bfloat16
    assert 0 < relative_error(short.network.parameters, exact.network.parameters) < 0.02
    kept = short.network.parameters
    assert not torch.equal(kept, kept.bfloat16().float()), "steps too small for bfloat16 are not lost"


# ---- on a GPU ----


CUDA_DEVICES = [
    pytest.param(f"cuda:{n}", marks=pytest.mark.skipif(torch.cuda.device_count() <= n, reason=f"no GPU {n} here"))
    for n in (0, 1)
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
class TestOnCuda:
    """What only a GPU can show."""

    @pytest.mark.parametrize("fields", WALKS)
    @pytest.mark.parametrize("device", CUDA_DEVICES)
    def test_a_cuda_graph_goes_the_way_of_the_written_step(
        self, device: str, fields: dict[str, Any], examples: Examples, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entered = steps_entered(monkeypatch)
        config = Config(learning_rate=0.5, **fields)
        walk, replayed = walked(config, examples, torch.device(device))
        assert len(entered) == 2 * len(set(entered)), "once as it is written, once recorded"
        _, written = walked(dataclasses.replace(config, replay=False), examples, torch.device(device))
        p = len(walk.network.parameters)
        start = config.network(torch.device(device)).parameters
        for one, other in zip(replayed[:, :p], written[:, :p], strict=True):
            assert relative_error(one - start, other - start) <= (1e-2 if "precision" in fields else 1e-5)

    def test_no_step_waits_for_the_gpu(self, examples: Examples) -> None:
        device, config = torch.device("cuda"), Config()
        network = config.network(device)
        tally = torch.zeros(2, dtype=torch.float64, device=device)
        walk = config.walk(network, config.descent(network), Examples(*(t.to(device) for t in examples)), running=tally)
        orders = [permutation(N, 0, epoch, device) for epoch in (1, 2, 3)]
        for order in orders[:2]:  # every size is recorded by then
            list(walk(order))
        torch.cuda.set_sync_debug_mode("error")
        try:
            list(walk(orders[2]))
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_no_step_allocates_after_the_first_epochs(self, examples: Examples) -> None:
        device, config = torch.device("cuda"), Config()
        network = config.network(device)
        walk = config.walk(network, config.descent(network), Examples(*(t.to(device) for t in examples)))
        orders = [permutation(N, 0, epoch, device) for epoch in (1, 2, 3)]
        for order in orders[:2]:
            list(walk(order))
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        list(walk(orders[2]))
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
