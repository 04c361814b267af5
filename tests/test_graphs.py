"""What a GPU's graphs and their memory would refuse, or do otherwise than the CPU, is found without one."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bp_torch import recorder
from bp_torch.commands import verify_networks as verify
from bp_torch.data import Examples
from bp_torch.network import Network
from bp_torch.recorder import Recorder
from bp_torch.sgd import SGD
from bp_torch.sweep.config import SweepConfig
from bp_torch.sweep.loop import sweep
from bp_torch.training import Config, TrainingStep, open_run, train
from tests.conftest import brief_run
from tests.graphs import CaptureError, Gpu, simulated_gpu
from tests.stand_in import ELSEWHERE

HERE = torch.device("cpu")


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with simulated_gpu() as gpu:
        yield gpu


def there(*numbers: float) -> Tensor:
    return torch.tensor(numbers).to(ELSEWHERE)


def step_of(device: torch.device, sizes: tuple[int, ...] = (784, 5, 10), running: Tensor | None = None) -> TrainingStep:
    """A step of a small network on 40 examples."""
    examples = Examples(
        torch.arange(40 * 784, device=device).view(40, 784).byte(), torch.arange(40, device=device) % 10
    )
    network = Network(sizes, device=device)
    return TrainingStep(network, SGD(network, 0.1), examples, 10, "quadratic", running=running)


# ---- the pools of torch's allocator ----


@pytest.mark.parametrize("function", [lambda x: x + 1, lambda x: x @ x.T], ids=["no product", "product"])
def test_recorder_captures_once_all_others_are_gone(function: Callable[[Tensor], Tensor], gpu: Gpu) -> None:
    for _ in range(2):
        step = Recorder(ELSEWHERE, function)
        for n in (3, 3, 3, 2, 2, 2, 3):
            x = torch.rand(n, 2).to(ELSEWHERE)
            assert torch.equal(step(x).cpu(), function(x).cpu())
        del step
        gc.collect()
    (graphs,) = gpu.graphs.values()
    assert graphs == len(recorder.FIRST_GRAPHS) == 1, "the first graph alone keeps the pool in use"
    assert gpu.captures == 1 + 2 * 2


def test_each_device_has_a_pool_of_its_own(gpu: Gpu) -> None:
    one, other = (recorder.capture_stream(torch.device("meta", n)) for n in (0, 1))
    assert one != other and one == recorder.capture_stream(torch.device("meta", 0))
    assert list(gpu.graphs.values()) == [1, 1]


@pytest.mark.long
def test_networks_are_verified_one_after_another(data_dir: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bp_torch.commands.verify_networks.combinations", lambda: [("tanh", "sigmoid", "quadratic")])
    cases = verify.verify(verify.Options(depths=(1, 2), batch_sizes=(3,), data_dir=data_dir))
    assert len(cases) > 1 and all(case.report.ok for case in cases)
    assert gpu.captures > len(cases)


# ---- graphs that are garbage ----


def test_step_that_nobody_holds_is_gone_with_its_graphs(gpu: Gpu) -> None:
    gc.disable()
    try:
        with torch.inference_mode():
            step = step_of(ELSEWHERE)
            assert len(list(step.run(torch.arange(40, device=ELSEWHERE)))) == 4
        assert sum(gpu.graphs.values()) == 2
        gone = weakref.ref(step)
        del step
        assert gone() is None and sum(gpu.graphs.values()) == 1, "no cycle waits for the garbage collector"
    finally:
        gc.enable()


def test_method_of_an_object_that_is_gone_is_not_recorded() -> None:
    step = Recorder(HERE, step_of(HERE).step)
    with pytest.raises(ReferenceError, match="the object whose method is recorded is gone"):
        step(torch.arange(3))


class Holder:
    """Refers to itself, and so waits for the garbage collector."""

    def __init__(self) -> None:
        self.itself, self.step = self, Recorder(ELSEWHERE, lambda x: x * 2)


@pytest.mark.parametrize("collects", [False, True], ids=["Python collects", "the step collects"])
def test_garbage_is_not_destroyed_within_a_capture(collects: bool, gpu: Gpu) -> None:
    def step(x: Tensor) -> Tensor:
        if collects and gpu.capturing:
            gc.collect()
        return x + 1

    gc.disable()
    try:
        holder = Holder()
        for _ in range(2):
            holder.step(there(1.0))
        del holder
    finally:
        gc.enable()
    second = Recorder(ELSEWHERE, step)
    assert [second(there(n)).tolist() for n in range(3)] == [[1], [2], [3]]


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_afterwards_as_it_was_before(enabled: bool, gpu: Gpu) -> None:
    def step(x: Tensor) -> Tensor:
        assert not gc.isenabled() or not second
        return x / x.item() if second else x

    second = False
    try:
        (gc.enable if enabled else gc.disable)()
        failing = Recorder(ELSEWHERE, step)
        failing(there(1.0))
        second = True
        with pytest.raises(CaptureError, match="waits"):
            failing(there(1.0))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


@pytest.mark.long
def test_groups_of_a_sweep_are_trained_one_after_another(tmp_path: Path, data_dir: Path, gpu: Gpu) -> None:
    config = SweepConfig(learning_rate=(0.3, 3.0), at_once=1, epochs=2, train_examples=150, save="none")
    sweep(replace(config, seeds=2, data_dir=data_dir, runs_dir=tmp_path, run_name="sweep"))
    assert gpu.captures == 1 + 4 * 2, "whole batches and the last of each group"


# ---- a step as a graph ----


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x / x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(1).to(ELSEWHERE),
        lambda x: x if x.sum() > 0 else -x,
    ],
)
def test_step_that_waits_for_the_device_is_refused(wait: Callable[[Tensor], Tensor], gpu: Gpu) -> None:
    step = Recorder(ELSEWHERE, wait)
    step(there(1.0, 2.0))  # as written
    with pytest.raises(CaptureError, match="in a capture"):
        step(there(1.0, 2.0))


def test_nothing_runs_before_the_replay(gpu: Gpu) -> None:
    one, total, seen = there(1.0), there(0.0), list[Any]()

    def step(x: Tensor) -> Tensor:
        total.add_(x)
        return x * 2

    graph, result = recorder.captured(lambda: step(one), ELSEWHERE, *recorder.capture_stream(ELSEWHERE))
    seen += [total.tolist(), result.isnan().tolist()]
    graph.replay()
    assert [*seen, total.tolist(), result.tolist()] == [[0], [True], [1], [2]]


@pytest.mark.parametrize(("logged", "kernels"), [(False, 27), (True, 32)])
@torch.inference_mode()
def test_step_takes_no_more_kernels_than_that(logged: bool, kernels: int, gpu: Gpu) -> None:
    """For 784-16-16-10; one more copies the indices of the batch to where the graph reads them."""
    running = torch.zeros(2, dtype=torch.float64, device=ELSEWHERE) if logged else None
    step = step_of(ELSEWHERE, (784, 16, 16, 10), running)
    list(step.run(torch.arange(40, device=ELSEWHERE)))
    ((_, graph, _),) = step._whole._recorded.values()
    called = [call[0]._schema.name.removeprefix("aten::") for call in graph.calls]
    copies = [n for n, name in enumerate(called) if name == "copy_"]  # of a product into its place: on CUDA one kernel
    assert all(called[n - 1] == "mm" for n in copies) and len(called) - len(copies) == kernels


def test_numbers_of_the_cpu_are_those_of_the_capture(gpu: Gpu) -> None:
    rate = torch.tensor(2.0)
    step = Recorder(ELSEWHERE, lambda x: x * rate)
    found = []
    for n in range(4):
        rate.fill_(n)
        found += step(there(10.0)).tolist()
    assert found == [0, 10, 10, 10], "as written, captured, replayed, replayed"


WIDE: dict[str, Any] = {"activation": "relu", "init": "he", "cost": "softmax-cross-entropy", "learning_rate": 0.1}

TRAININGS: dict[str, dict[str, Any]] = {
    "default": {},
    "momentum": {"momentum": 0.9, "learning_rate": 0.3, "schedule": "cosine"},
    "weight decay": {"weight_decay": 1e-3, "decay_biases": True, "log_every": 1},
    "softmax": {**WIDE, "momentum": 0.9, "validation": 500},
    "tanh": {"activation": "scaled-tanh", "output_activation": "sigmoid", "cost": "binary-cross-entropy"},
    "float64": {"dtype": "float64", "log": False},
    "bf16": {**WIDE, "precision": "bf16"},
    "deformed": {**WIDE, "deform": "both", "validation": 100},
    "in two recordings": {"verify_every": 1, "batch_size": 130},
}


SHORT = ("bf16", "in two recordings")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SHORT else pytest.mark.long) for n in TRAININGS])
def test_training_by_graphs_equals_that_on_the_cpu(
    name: str, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"train_examples": 1050, "epochs": 2} | TRAININGS[name]
    expected = brief_run(tmp_path, data_dir, "here", **fields)
    right = SimpleNamespace(ok=True, gradients=(), worst=0.0)  # tensors of the device have no autograd in a training
    monkeypatch.setattr("bp_torch.own_backward.check_step", lambda *_: right)
    with simulated_gpu() as gpu:
        config = Config(data_dir=data_dir, runs_dir=tmp_path, run_name="there", **fields)
        train(replace(config, epochs=1) if "schedule" not in fields else config)
        train(replace(config, resume=tmp_path / "there"))
        assert gpu.captures > 2
    assert torch.equal(open_run(tmp_path / "there")[1].parameters, expected)
