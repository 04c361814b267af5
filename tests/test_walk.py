"""A step, and its recording: what a CUDA graph would replay is what the step does, on a machine without a GPU too."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bp_torch.backprop import Trace
from bp_torch.data import Examples, first_shuffled, permutation
from bp_torch.runlog import RunLog
from bp_torch.training import Config, open_run, train
from bp_torch.walk import Walk
from tests.conftest import relative_error

N = 450
"""Examples: four mini-batches of 100 and a short one."""


aten = torch.ops.aten
READS = {aten.item.default, aten.is_nonzero.default, aten._local_scalar_dense.default}
"""The ways that a number takes to the host."""


class Tape(TorchDispatchMode):
    """A CUDA graph in slow motion: notes every operation with the very tensors it reads and writes, and runs it again.

    As with a graph, what is written into a tensor that was there before is not written while recording, numbers are
    those of the recording for ever, and a read by the host is an error.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noted: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        written = [
            (args[i] if i < len(args) else kwargs[argument.name])
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info and argument.alias_info.is_write
        ]
        self.kept += [(tensor, tensor.clone()) for tensor in written]
        result = func(*args, **kwargs)
        self.noted.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        """What was there before the recording is as it was."""
        for tensor, before in reversed(self.kept):
            tensor.copy_(before)

    def replay(self) -> None:
        for func, args, kwargs, result in self.noted:
            again = func(*args, **kwargs)
            if isinstance(result, Tensor) and result.data_ptr() != again.data_ptr():
                result.copy_(again)  # memory that the recording itself had asked for


@contextmanager
def tape(graph: Tape, **_: object) -> Iterator[None]:
    """In the place of ``torch.cuda.graph``."""
    with graph:
        yield
    graph.undo()


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Let every walk record its steps, on the CPU."""
    made: list[Tape] = []

    def make() -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr("torch.cuda.CUDAGraph", make)
    monkeypatch.setattr("torch.cuda.graph", tape)
    monkeypatch.setattr("bp_torch.walk.can_record", lambda device: True)
    return made


@pytest.fixture
def examples(mnist: tuple[Examples, Examples]) -> Examples:
    return first_shuffled(mnist[0], N, seed=0)


@torch.inference_mode()
def walked(config: Config, examples: Examples, *, epochs: int = 3, running: bool = True) -> tuple[Walk, Tensor]:
    """A walk of some epochs, and the way it went: θ after every step, and what it cost."""
    network = config.network(torch.device("cpu"))
    tally = torch.zeros(2, dtype=torch.float64)
    walk = config.walk(network, config.descent(network), examples, running=tally if running else None)
    way = []
    for epoch in range(1, epochs + 1):
        walk.sgd.learning_rate = config.rate_in(epoch)
        for seen in walk(permutation(N, 0, epoch)):
            way.append(torch.cat([network.parameters, seen.trace.deltas[-1].flatten()[:5], seen.y[0], tally]))
    return walk, torch.stack(way)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"momentum": 0.9, "weight_decay": 1e-3},
        {"cost": "softmax-cross-entropy", "activation": "relu"},
        {"cost": "binary-cross-entropy", "activation": "tanh", "batch_size": 450},
        {"precision": "bf16"},
        {"dtype": "float64", "sizes": (784, 10)},
    ],
)
def test_a_recorded_walk_goes_the_way_of_the_written_one(
    fields: dict[str, Any], examples: Examples, taped: list[Tape]
) -> None:
    config = Config(learning_rate=0.5, **fields)
    _, recorded = walked(config, examples)
    sizes = 1 if fields.get("batch_size") else 2
    assert len(taped) == sizes, "one recording for the whole batches, one for the short ones"
    _, written = walked(Config(graph=False, learning_rate=0.5, **fields), examples)
    assert len(taped) == sizes
    assert torch.equal(recorded, written)


def test_a_number_that_changes_is_baked_in_and_would_be_seen(
    examples: Examples, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(learning_rate=0.5)
    _, written = walked(config, examples)

    def step(self: Any, gradient: Tensor) -> None:
        self.parameters.add_(gradient, alpha=-self.learning_rate)

    monkeypatch.setattr("bp_torch.sgd.SGD.step", step)
    _, baked = walked(config, examples)
    assert torch.allclose(baked[:5], written[:5], rtol=1e-5, atol=1e-6)
    assert relative_error(baked[-1], written[-1]) > 1e-4


def test_a_step_that_the_host_would_wait_for_cannot_be_recorded(
    examples: Examples, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Trace.tally_up

    def tally_up(self: Trace, costs: Tensor) -> None:
        before(self, costs)
        assert costs.sum().item() > 0

    monkeypatch.setattr(Trace, "tally_up", tally_up)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        walked(Config(), examples)


def test_what_is_looked_into_is_not_recorded(examples: Examples, taped: list[Tape]) -> None:
    config = Config()
    network = config.network(torch.device("cpu"))
    walk = config.walk(network, config.descent(network), examples)
    shown = []
    for _ in walk(permutation(N, 0, 1), inspect=lambda x, y, gradient: shown.append((len(x), len(y)))):
        pass
    assert shown == [(100, 100)] * 4 + [(50, 50)]
    assert not taped


def test_a_run_of_recorded_steps_is_that_of_written_ones(
    tmp_path: Path, data_dir: Path, taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logging, checkpoints and all; points of the curves read only at the end of an epoch, as on a GPU."""
    fields: dict[str, Any] = {"train_examples": N, "epochs": 3, "log_every": 2, "checkpoint_every": 3}
    fields |= {"data_dir": data_dir, "runs_dir": tmp_path, "device": "cpu"}
    begin = RunLog.begin

    def begin_lazily(self: RunLog, *arguments: Any) -> None:
        self.at_once = False
        begin(self, *arguments)

    monkeypatch.setattr(RunLog, "begin", begin_lazily)
    networks = []
    for graph in (True, False):
        folder = train(Config(graph=graph, run_name=f"graph-{graph}", **fields))
        networks.append(open_run(folder)[1].parameters)
        assert len(taped) == 2
    assert torch.equal(*networks)


def test_bf16_keeps_its_parameters_in_float32(examples: Examples) -> None:
    exact, short = (walked(Config(precision=precision), examples) for precision in (None, "bf16"))
    walk = short[0]
    assert (walk.network.dtype, walk.working.dtype, walk.trace.gradient.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    )
    assert 0 < relative_error(walk.network.parameters, exact[0].network.parameters) < 0.02
    start = Config().network(torch.device("cpu")).parameters
    rounded = Config(dtype="bfloat16").network(torch.device("cpu")).parameters
    assert not torch.equal(start, rounded.float())
