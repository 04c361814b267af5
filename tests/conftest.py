"""What the tests share: quiet torch, the devices there are, real MNIST, and small networks to look at."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional

from bp_torch.data import Examples, load
from bp_torch.network import Network, layer_views
from bp_torch.recorder import Recording
from bp_torch.training import Config, open_run, train
from bp_torch.training.log import RunLog

pytest_plugins = ["tests.harness", "tests.explain_subject"]

os.environ["COLUMNS"] = "80"  # however wide the terminal is
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else the compiler starts processes of its own
torch.set_num_threads(1)  # small tensors: a second thread only waits
torch.set_float32_matmul_precision("highest")  # whatever the environment says

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Path]:
    """A data directory with MNIST in it, unpacked once for all processes, and read once by each."""
    of_all = tmp_path_factory.getbasetemp().parent if worker_id != "master" else tmp_path_factory.getbasetemp()
    directory = of_all / "shared-data"
    load("mnist", directory)

    def read(dataset: str, folder: Path, device: torch.device | str) -> tuple[Examples, Examples]:
        shared = (dataset, folder, torch.device(device).type) == ("mnist", directory, "cpu")
        return read_once() if shared else load(dataset, folder, device)

    @cache
    @torch.inference_mode(False)  # whoever asks first: autograd takes these tensors too
    def read_once() -> tuple[Examples, Examples]:
        return load("mnist", directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bp_torch.training.run.load", read)
        yield directory


@pytest.fixture(scope="session")
def mnist(data_dir: Path) -> tuple[Examples, Examples]:
    return load("mnist", data_dir)


@pytest.fixture
def tiny() -> Network:
    return Network((5, 4, 3), dtype=torch.float64)


REFERENCE_COSTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "quadratic": lambda z, a, y: functional.mse_loss(a, y, reduction="none").sum(-1),
    "binary-cross-entropy": lambda z, a, y: functional.binary_cross_entropy_with_logits(z, y, reduction="none").sum(-1),
    "softmax-cross-entropy": lambda z, a, y: functional.cross_entropy(
        a.flatten(0, -2), y.flatten(0, -2), reduction="none"
    ).view(y.shape[:-1]),
}
"""torch's own costs of each example, (…, B), as functions of z^L, a^L and y, each (…, B, n_L)."""

REFERENCE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "scaled-tanh": lambda z: 1.7159 * torch.tanh(2 / 3 * z),
    "identity": lambda z: z,
}


class Reference:
    """The same network, or K of them, with the same cost and batch, by autograd: the oracle of every gradient test.

    Attributes:
        cost: C, (…).
        outputs: a^L, (…, B, n_L).
        gradient: ∇C, (…, P), in the order of θ.
        deltas: [∂C/∂z^1, …, ∂C/∂z^L].
        x_gradient: ∂C/∂x, (…, B, n_0).
    """

    def __init__(self, network: Network, x: Tensor, y: Tensor, cost: str) -> None:
        parameters = network.parameters.clone().requires_grad_()
        x = x.expand(*parameters.shape[:-1], *x.shape[-2:]).clone().requires_grad_()
        sums, a = [], x
        for layer, (W, b) in enumerate(zip(*layer_views(parameters, network.sizes), strict=True)):
            sums.append(torch.einsum("...bi,...oi->...bo", a, W) + b.unsqueeze(-2))
            a = REFERENCE_ACTIVATIONS[network.activation_of(layer)](sums[-1])
        each = REFERENCE_COSTS[cost](sums[-1], a, y.expand(a.shape)).mean(-1)
        gradients = torch.autograd.grad(each.sum(), [parameters, *sums, x])
        self.cost = each.detach()
        self.outputs = a.detach()
        self.gradient, *self.deltas, self.x_gradient = gradients


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """‖ours − expected‖ / ‖expected‖, and 0 where both are zero."""
    difference = torch.linalg.vector_norm(ours - expected).item()
    return difference / torch.linalg.vector_norm(expected).item() if difference else 0.0


class DelayedGraph(Recording):
    """Stands in for a CUDA graph: what is captured has not run, and all memory is as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[tuple[Tensor, Tensor]] = []

    def make(self, func: Any, args: Any, kwargs: Any) -> Any:
        before = [(value, value.clone()) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        result = super().make(func, args, kwargs)
        self.before += [(tensor, contents) for tensor, contents in before if result is tensor]
        return result


@contextmanager
def delayed_capture(graph: DelayedGraph, **_: object) -> Iterator[None]:
    """In the place of ``torch.cuda.graph``."""
    with graph:
        yield
    for tensor, before in reversed(graph.before):
        tensor.copy_(before)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is taken for a GPU whose graphs are DelayedGraphs."""
    monkeypatch.setattr("torch.cuda.CUDAGraph", DelayedGraph)
    monkeypatch.setattr("torch.cuda.graph", delayed_capture)
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    monkeypatch.setattr("bp_torch.recorder.capture_stream", lambda device: (None, None))
    monkeypatch.setattr("bp_torch.recorder.records_graphs", lambda device: True)
    monkeypatch.setattr("bp_torch.recorder.no_garbage", nullcontext)  # it takes long in a large process


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} of a run, as TensorBoard reads it, but for the one that is a matter of time."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith("examples per second")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def is_done(folder: Path) -> bool:
    """Whether HParams shows the run as one that came to its end."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return "_hparams_/session_end_info" in events.summary_metadata


def brief_run(runs_dir: Path, data_dir: Path, name: str, **fields: Any) -> Tensor:
    """The parameters of the network that ``train`` makes on the CPU with these fields of Config."""
    config = Config(data_dir=data_dir, runs_dir=runs_dir, run_name=name, device="cpu", **fields)
    folder = train(config)
    assert open_run(folder)[0] == config
    return open_run(folder)[1].parameters


BEGIN = RunLog.begin


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of the curves are read only at the end of an epoch or for a checkpoint, as on a GPU."""

    def begin(log: RunLog, *arguments: Any) -> None:
        log.at_once = False
        BEGIN(log, *arguments)

    monkeypatch.setattr(RunLog, "begin", begin)
