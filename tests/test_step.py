"""A training step: the same numbers recorded and as written, bit for bit, and those of autograd and torch.optim."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bp_torch.convert import to_sequential
from bp_torch.data import Examples, first_shuffled, one_hot, permutation
from bp_torch.device import DeviceError
from bp_torch.distributed import ALONE, World
from bp_torch.training import Config, StepResult, TrainingStep
from tests.conftest import REFERENCE_COSTS, relative_error

N = 450
"""Examples: four mini-batches of 100 and a short one."""

CPU = torch.device("cpu")


@pytest.fixture
def examples(mnist: tuple[Examples, Examples]) -> Examples:
    return first_shuffled(mnist[0], N, seed=0)


@pytest.mark.parametrize("cost", ["quadratic", "softmax-cross-entropy"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ten_steps_equal_those_of_autograd_and_torch_optim(
    cost: Any, momentum: float, mnist: tuple[Examples, Examples]
) -> None:
    examples = first_shuffled(mnist[0], 950, seed=0)  # the tenth batch is short
    config = Config(cost=cost, learning_rate=0.5, momentum=momentum, dtype="float64")
    network = config.network(CPU)
    model = to_sequential(network)
    order = permutation(950, seed=0, epoch=1)

    for _ in config.training_step(network, config.optimizer(network), examples).run(order):
        pass

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=momentum)
    for indices in order.split(100):
        outputs = model(examples.x[indices].double() / 255)
        optimizer.zero_grad()
        y = one_hot(examples.labels[indices], dtype=torch.float64)
        REFERENCE_COSTS[cost](outputs, outputs, y).mean().backward()
        optimizer.step()
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert relative_error(network.parameters, expected) <= 1e-13


# ---- recorded and as written ----

Trajectory = tuple[TrainingStep, Tensor]


@torch.inference_mode()
def three_epochs(
    config: Config, examples: Examples, device: torch.device = CPU, *, inspect: bool = False
) -> Trajectory:
    """The step, and after each of its steps θ, some of δ, the first y, and the running costs."""
    network = config.network(device)
    running = torch.zeros(2, dtype=torch.float64, device=device)
    examples = examples.map(lambda tensor: tensor.to(device))
    step = config.training_step(network, config.optimizer(network), examples, running=running)
    seen: list[Tensor] = []
    points = []
    for epoch in (1, 2, 3):
        step.optimizer.learning_rate = config.learning_rate_at(epoch)
        order = permutation(N, 0, epoch, device)
        for result in step.run(order, (lambda result: seen.append(result.x.sum())) if inspect else None):
            points.append(
                torch.cat([network.parameters, result.backward.deltas[-1].flatten()[:5], result.y[0], running])
            )
        assert torch.equal(order, permutation(N, 0, epoch, device))
    assert len(seen) == inspect * len(points)
    return step, torch.stack(points)


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9, "weight_decay": 1e-3},
    {"cost": "softmax-cross-entropy", "activation": "relu"},
    {"cost": "binary-cross-entropy", "activation": "tanh", "batch_size": N},
    {"precision": "bf16"},
    {"dtype": "float64", "sizes": (784, 10)},
]


def lengths_as_written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the mini-batches for which the lines of a step run, from now on."""
    lengths: list[int] = []
    gradient = TrainingStep.gradient

    def counted(step: TrainingStep, indices: Tensor) -> StepResult:
        lengths.append(len(indices))
        return gradient(step, indices)

    monkeypatch.setattr(TrainingStep, "gradient", counted)
    return lengths


@pytest.mark.parametrize("fields", CONFIGURATIONS)
@pytest.mark.parametrize("inspect", [False, True], ids=["whole", "inspected"])
@pytest.mark.parametrize("graph", [False, True], ids=["calls", "graph"])
def test_recorded_steps_equal_those_as_written_bit_for_bit(
    graph: bool,
    inspect: bool,
    fields: dict[str, Any],
    examples: Examples,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if graph:
        request.getfixturevalue("graphs")
    lengths = lengths_as_written(monkeypatch)
    _, recorded = three_epochs(Config(learning_rate=0.5, **fields), examples, inspect=inspect)
    sizes = [N] if fields.get("batch_size") == N else [100, 50]
    assert sorted(lengths, reverse=True) == [size for size in sizes for _ in range(1 + graph)]
    lengths.clear()
    _, written = three_epochs(Config(learning_rate=0.5, replay=False, **fields), examples)
    assert sum(lengths) == 3 * N, "without recording, the lines of every step run"
    assert torch.equal(recorded, written)


COMPILE = torch.compile


@pytest.mark.parametrize(
    ("fields", "inspect"),
    [
        pytest.param(fields, inspect, marks=[] if inspect and n == 0 else pytest.mark.long)
        for n, fields in enumerate(CONFIGURATIONS)
        for inspect in (False, True)
    ],
)
def test_compiled_steps_equal_those_as_written_within_rounding(
    fields: dict[str, Any], inspect: bool, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as one graph each, which is then run as it is: what a compiler makes of it is its own."""
    torch._dynamo.reset()
    monkeypatch.setattr("torch.compile", lambda f, options, **rest: COMPILE(f, backend="aot_eager", **rest))
    _, written = three_epochs(Config(**fields, replay=False), examples, inspect=inspect)
    _, compiled = three_epochs(Config(**fields, compile=True), examples, inspect=inspect)
    moved = (written[-1] - written[0]).norm()
    assert (compiled - written).norm(dim=1).max() <= (1e-12 if fields.get("dtype") else 1e-5) * moved


def test_step_that_cannot_be_compiled_is_reported_with_the_flag(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr("torch.compile", lambda f, options, **rest: COMPILE(f, backend=no_compiler, **rest))
    with pytest.raises(DeviceError, match=r"--compile does not work here \(.*\): leave it out"):
        three_epochs(Config(compile=True), examples)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_steps_made_by_the_compiler_equal_those_as_written_within_rounding(examples: Examples) -> None:
    torch._dynamo.reset()
    whole = examples.map(lambda tensor: tensor[:400])
    networks = []
    for config in (Config(dtype="float64", momentum=0.9, compile=True), Config(dtype="float64", momentum=0.9)):
        network = config.network(CPU)
        with torch.inference_mode():
            for _ in config.training_step(network, config.optimizer(network), whole).run(torch.arange(400)):
                pass
        networks.append(network.parameters)
    assert relative_error(*networks) <= 1e-12


def test_running_costs_are_added_up_example_by_example(examples: Examples) -> None:
    config = Config(dtype="float64")
    network = config.network(CPU)
    running = torch.zeros(2, dtype=torch.float64)
    step = config.training_step(network, config.optimizer(network), examples, running=running)
    expected = 0.0
    for epoch in (1, 2):
        for indices in permutation(N, 0, epoch).split(100):
            outputs = to_sequential(network)(examples.x[indices].double() / 255).detach()
            expected += (outputs - one_hot(examples.labels[indices])).square().sum().item()
            for _ in step.run(indices):
                pass
    assert running.tolist() == [pytest.approx(expected, rel=1e-12), 2 * N]


def test_python_number_that_changes_would_be_frozen_and_is_detected(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, written = three_epochs(Config(learning_rate=0.5), examples)

    def step(self: Any, gradient: Tensor) -> None:
        self.parameters.add_(gradient, alpha=-self.learning_rate)

    monkeypatch.setattr("bp_torch.sgd.SGD.step", step)
    _, frozen = three_epochs(Config(learning_rate=0.5), examples)
    assert torch.allclose(frozen[:5], written[:5], rtol=1e-5, atol=1e-6), "in the first epoch the rate is right"
    assert relative_error(frozen[-1], written[-1]) > 1e-4


def test_step_that_reads_a_number_raises_runtime_error(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    update = TrainingStep.update

    def reads(step: TrainingStep, indices: Tensor) -> None:
        step.reduced[-1].item()
        update(step, indices)

    monkeypatch.setattr(TrainingStep, "update", reads)
    with pytest.raises(RuntimeError, match=r"item\(\) in a recorded step returns float"):
        three_epochs(Config(), examples)


def test_inspect_sees_the_gradient_before_the_update(examples: Examples) -> None:
    config = Config(dtype="float64")
    network = config.network(CPU)
    step = config.training_step(network, config.optimizer(network), examples)
    parameters, gradients = [], []

    def inspect(result: StepResult) -> None:
        parameters.append(network.parameters.clone())
        gradients.append(result.backward.gradient.clone())

    shapes = [(len(result.x), len(result.y)) for result in step.run(permutation(N, 0, 1), inspect)]
    assert shapes == [(100, 100)] * 4 + [(50, 50)]
    for before, gradient, after in zip(parameters, gradients, [*parameters[1:], network.parameters], strict=True):
        torch.testing.assert_close(after, before - 3.0 * gradient, rtol=1e-14, atol=1e-15)


@torch.inference_mode()
def test_bf16_computes_in_bfloat16_and_keeps_float32_parameters(examples: Examples) -> None:
    exact, (short, _) = three_epochs(Config(), examples)[0], three_epochs(Config(precision="bf16"), examples)
    (result,) = short.run(torch.arange(100))
    assert short.network.dtype == torch.float32
    assert result.backward.gradient.dtype == result.forward.activations[1].dtype == torch.bfloat16
    parameters = short.network.parameters
    assert 0 < relative_error(parameters, exact.network.parameters) < 0.05
    assert not torch.equal(parameters, parameters.bfloat16().float()), "steps too small for bfloat16 are not lost"


# ---- several processes ----


@dataclass(frozen=True)
class ThreadWorld(World):
    """Processes that are threads: ``vectors`` is where they exchange what they add up."""

    barrier: Barrier = dataclasses.field(default_factory=lambda: Barrier(2, timeout=30))
    vectors: dict[int, Tensor] = dataclasses.field(default_factory=dict)

    def all_reduce(self, vector: Tensor) -> None:
        self.vectors[self.rank] = vector.clone()
        self.barrier.wait()
        vector.copy_(self.vectors[0] + self.vectors[1])
        self.barrier.wait()


@torch.inference_mode()
def two_epochs(examples: Examples, fields: dict[str, Any], world: World = ALONE) -> Tensor:
    """θ and the running costs after two epochs whose last mini-batch is a single example."""
    config = Config(learning_rate=0.5, batch_size=64, dtype="float64", **fields)
    network, running = config.network(CPU), torch.zeros(2, dtype=torch.float64)
    step = config.training_step(network, config.optimizer(network), examples, running=running, world=world)
    for epoch in (1, 2):
        for result in step.run(permutation(449, 0, epoch)):
            assert len(result.x) == len(result.y) <= 64 / world.size
    return torch.cat([network.parameters, running])


def two_epochs_of_two_processes(examples: Examples, fields: dict[str, Any]) -> Tensor:
    first = ThreadWorld(0, 2)
    worlds = (first, dataclasses.replace(first, rank=1))
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda world: two_epochs(examples, fields, world), worlds)
    assert torch.equal(one, other), "both have the same parameters"
    return one


@pytest.mark.parametrize("fields", [{}, {"momentum": 0.9, "cost": "softmax-cross-entropy"}])
def test_two_processes_equal_one_recorded_or_not(fields: dict[str, Any], examples: Examples) -> None:
    recorded = two_epochs_of_two_processes(examples, fields)
    assert relative_error(recorded, two_epochs(examples, fields)) <= 1e-13
    assert torch.equal(recorded, two_epochs_of_two_processes(examples, fields | {"replay": False}))


# ---- on a GPU ----


class OnCuda:
    """What only a GPU can show."""

    @pytest.mark.parametrize("fields", CONFIGURATIONS)
    @pytest.mark.parametrize("device", [f"cuda:{n}" for n in range(min(2, torch.cuda.device_count()))])
    def test_cuda_graph_equals_the_step_as_written(
        self, device: str, fields: dict[str, Any], examples: Examples, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lengths = lengths_as_written(monkeypatch)
        config = Config(learning_rate=0.5, **fields)
        step, recorded = three_epochs(config, examples, torch.device(device))
        assert len(lengths) == 2 * len(set(lengths)), "once as written, once captured"
        _, written = three_epochs(dataclasses.replace(config, replay=False), examples, torch.device(device))
        p = len(step.network.parameters)
        start = config.network(torch.device(device)).parameters
        for one, other in zip(recorded[:, :p], written[:, :p], strict=True):
            assert relative_error(one - start, other - start) <= (1e-2 if "precision" in fields else 1e-5)

    def recorded_step(self, examples: Examples) -> tuple[TrainingStep, Tensor]:
        """A step that every batch size was recorded for, and an order to run it on."""
        device, config = torch.device("cuda"), Config()
        network = config.network(device)
        running = torch.zeros(2, dtype=torch.float64, device=device)
        on_device = examples.map(lambda tensor: tensor.to(device))
        step = config.training_step(network, config.optimizer(network), on_device, running=running)
        orders = [permutation(N, 0, epoch, device) for epoch in (1, 2, 3)]
        for order in orders[:2]:
            list(step.run(order))
        return step, orders[2]

    def test_no_step_waits_for_the_gpu(self, examples: Examples) -> None:
        step, order = self.recorded_step(examples)
        torch.cuda.set_sync_debug_mode("error")
        try:
            list(step.run(order))
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_no_step_allocates_after_it_is_recorded(self, examples: Examples) -> None:
        step, order = self.recorded_step(examples)
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        list(step.run(order))
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


if torch.cuda.is_available():  # elsewhere they are not collected: nobody reads a list of what cannot run

    class TestOnCuda(OnCuda):
        pass
