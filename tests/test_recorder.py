"""A recording repeats what it recorded, with what its tensors contain now, in memory that is used again."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bp_torch.activations import ACTIVATIONS
from bp_torch.backprop import backward, example_costs, forward
from bp_torch.costs import COSTS
from bp_torch.data import Examples, batch
from bp_torch.network import Network
from bp_torch.recorder import Recorder, Recording
from bp_torch.sgd import SGD
from bp_torch.training.step import TrainingStep

CPU = torch.device("cpu")


def names(recording: Recording) -> list[str]:
    return [function.__name__ for function, _, _ in recording.calls]


def test_replay_uses_the_current_contents() -> None:
    a, out, total = torch.tensor([1.0, 2.0]), torch.empty(2), torch.zeros(())
    with Recording() as recording:
        torch.add(a, a, out=out)  # into out=
        out.mul_(3)  # in place
        fresh = (a - 1).square_()  # into memory of its own, and in place there
        first = out[:1]  # a view
        total.add_(first.sum() + fresh.sum())
    assert (out.tolist(), total.item()) == ([6, 12], 7)
    a.copy_(torch.tensor([10.0, 20.0]))
    recording.replay()
    assert out.tolist() == [60, 120]
    assert fresh.tolist() == [81, 361], "new tensors are updated too"
    assert total.item() == 7 + 60 + 81 + 361


def test_views_and_queries_are_not_recorded() -> None:
    a = torch.zeros(4, 2)
    with Recording() as recording:
        a.T[:, :3].shape, a.view(8).detach(), a.split(2), len(a), a.is_floating_point()
        a[:2].fill_(1)
    assert names(recording) == ["fill_"]


def test_new_tensors_are_allocated_once() -> None:
    a, total = torch.ones(2), torch.zeros(2)
    with Recording() as recording:
        total.add_((a - 3).clone())  # there is a torch.sub that takes out=, and no such torch.clone
    assert names(recording) == ["sub", "copy_result", "add_"]
    a.fill_(10)
    recording.replay()
    assert total.tolist() == [-2 + 7] * 2


def test_assignment_is_replayed() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    with Recording() as recording:
        b[0] = a.sum()
    a.fill_(3)
    recording.replay()
    assert b.tolist() == [6, 0]


@pytest.mark.parametrize(
    ("call", "read"),
    [
        ("item", Tensor.item),
        ("__float__", float),
        ("__int__", int),
        ("__index__", lambda t: range(3)[t.long()]),
        ("__bool__", bool),
        ("tolist", Tensor.tolist),
        ("numpy", Tensor.numpy),
        ("__array__", np.asarray),
        ("__get__", lambda t: t._version),
        ("is_nonzero", torch.is_nonzero),
        ("__repr__", repr),
        ("equal", lambda t: torch.equal(t, t)),
        ("allclose", lambda t: torch.allclose(t, t)),
        ("__contains__", lambda t: 1.0 in t.view(1)),
        ("max", lambda t: torch.max(t.view(1, 1), 1)),  # new tensors in a tuple
        ("nonzero", torch.nonzero),  # a shape that depends on the contents
        ("masked_select", lambda t: t.masked_select(t > 0)),
        ("unique", torch.unique),
        ("__getitem__", lambda t: t.view(1)[t.view(1) > 0]),
    ],
)
def test_call_that_no_replay_can_update_raises_runtime_error(call: str, read: Callable[[Tensor], Any]) -> None:
    one = torch.ones(())
    message = rf"^{call}\(\) in a recorded step returns .*, which no replay can update: take it out"
    with pytest.raises(RuntimeError, match=message), Recording():
        read(one)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_function_of_torch_jit_raises_runtime_error(way: str) -> None:
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    compiled = torch.jit.script(doubled) if way == "script" else torch.jit.trace(doubled, torch.ones(3))
    recorder = Recorder(CPU, lambda x: compiled(x) + 1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"aten.mul.* in a recorded step is in a function that no replay"):
            recorder(torch.ones(3))
    assert compiled(torch.ones(3)).tolist() == [2, 2, 2], "outside of a step it is as ever"


def test_deep_copies_are_replayed() -> None:
    recorder = Recorder(CPU, lambda x: copy.deepcopy(x).mul_(2) + copy.deepcopy([x, x])[1])
    for value in (1.0, 2.0, 5.0):
        assert recorder(torch.full((3,), value)).tolist() == [3 * value] * 3


def test_step_that_was_refused_is_not_replayed() -> None:
    def step(x: Tensor) -> Tensor:
        doubled = x * 2
        return doubled if refused else doubled * doubled.sum().item()

    refused, recorder = False, Recorder(CPU, step)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="item"):
            recorder(torch.ones(3))
    refused = True
    for value in (1.0, 2.0):
        assert recorder(torch.full((3,), value)).tolist() == [2 * value] * 3


@pytest.mark.parametrize("graph", [False, True], ids=["calls", "graph"])
def test_each_shape_and_dtype_has_its_own_recording(graph: bool, request: pytest.FixtureRequest) -> None:
    if graph:
        request.getfixturevalue("graphs")
    lines: list[int] = []
    total = torch.zeros(1, dtype=torch.float64)

    def add_up(numbers: Tensor) -> Tensor:
        lines.append(len(numbers))
        return total.add_(numbers.sum(0, keepdim=True) * len(numbers))

    recorder, expected = Recorder(CPU, add_up), 0.0
    batches: list[list[float]] = [[1, 2, 3], [4, 5], [6, 7, 8], [9, 10], [11, 12, 13], [0.5, 1.5, 2.5], [3.5, 4, 4]]
    for numbers in batches * 3:
        given = torch.tensor(numbers)
        expected += sum(numbers) * len(numbers)
        assert recorder(given).item() == expected, "in place once, by the first runs too"
        assert given.tolist() == numbers
    assert sorted(lines) == sorted([3, 2, 3] * (1 + graph)), "its lines run once, or twice for a graph"


# ---- memory ----


def chain(x: Tensor) -> Tensor:
    for _ in range(10):
        x = (x - 1) / 2  # the memory of each x is free once the next one is there
    return x


def test_memory_that_the_step_no_longer_uses_is_reused() -> None:
    x, memory = torch.rand(1000), list[Tensor]()
    with Recording(memory) as recording:
        result = chain(x)
    assert sum(block.nbytes for block in memory) <= 4 * x.nbytes
    for _ in range(3):
        x.uniform_()
        recording.replay()
        assert torch.equal(result, chain(x))


def test_recordings_of_two_shapes_share_memory() -> None:
    memory, sizes = list[Tensor](), []
    for n in (1000, 700, 1000):
        with Recording(memory) as recording:
            result = chain(torch.rand(n))
        recording.release(result)
        sizes.append(sum(block.nbytes for block in memory))
    assert sizes == sizes[:1] * 3
    recorder = Recorder(CPU, chain)
    for n in (1000, 700, 1000, 700):
        x = torch.rand(n)
        assert torch.equal(recorder(x), chain(x))


def test_tensor_that_outlives_the_step_is_not_overwritten() -> None:
    cached: list[Tensor] = []

    def step(x: Tensor) -> list[Tensor]:
        if not cached:
            cached.append(torch.arange(20.0) * 3)
        return [x + n for n in range(4)] + [x * cached[0][: len(x)]]

    recorder = Recorder(CPU, step)
    for n in (20, 19, 20, 18, 19):
        x = torch.rand(n)
        assert torch.equal(recorder(x)[-1], x * (torch.arange(n) * 3))
        assert torch.equal(cached[0], torch.arange(20.0) * 3)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_tensor_that_moves_to_other_memory_keeps_it() -> None:
    def step(x: Tensor) -> list[Tensor]:
        resized, taken, doubled = torch.empty(2), torch.zeros(1), x * 2
        torch.add(x, 1, out=resized)
        taken.data = doubled
        del doubled
        return [resized, taken, x[:2] * 3, x[:2] - 1, x * 4, x - 5]

    recorder = Recorder(CPU, step)
    for _ in range(3):
        x = torch.rand(20)
        for ours, expected in zip(recorder(x), step(x), strict=True):
            assert torch.equal(ours, expected)


Operation = Callable[[Tensor, Tensor], Tensor]

OPERATIONS: list[Operation] = [  # from two vectors of one length to another
    lambda a, b: a + b,
    lambda a, b: 2 * a / 3 - b * 0.5,  # temporaries inside an expression
    lambda a, b: torch.sigmoid(a),
    lambda a, b: 1 - a,
    lambda a, b: a.mul_(0.5),  # in place: one tensor under two names
    lambda a, b: (a * a).neg_().add_(1).sub_(b),  # chained in place
    lambda a, b: a[:],  # a view
    lambda a, b: torch.cat([a, b])[2 : 2 + len(a)],  # a view that outlives what it is a view of
    lambda a, b: (a.view(2, -1) * 2).mT.flatten(),
    lambda a, b: torch.stack([a, b]).sum(0),
    lambda a, b: a.sum().expand(len(a)) - b,
    lambda a, b: a.double() + 1,  # a itself, then a new tensor
    lambda a, b: torch.sub(a, b, out=torch.empty_like(a)),
    lambda a, b: torch.where(a > b, a, b),
    lambda a, b: torch.sub(b, a, out=a),
    lambda a, b: (a + 3).split(len(a))[0],  # a view that comes in a tuple
    lambda a, b: (a > 0.3).where(a < b, b > 0.6).double(),  # torch.where has another order of arguments
]


def share_memory(tensors: list[Tensor]) -> list[list[bool]]:
    """For each pair of tensors, whether they are in the same memory."""
    addresses = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    return [[one == other for other in addresses] for one in addresses]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    program=st.lists(
        st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=16
    ),
    returned=st.integers(1, 4),
    inference=st.booleans(),
)
def test_random_steps_equal_those_as_written_and_results_share_no_memory(
    program: list[tuple[Operation, int, int, int]], returned: int, inference: bool
) -> None:
    def step(x: Tensor) -> list[Tensor]:
        named = [x * 1, x - 1, x * x, 2 - x]
        for operation, a, b, result in program:
            named[result] = operation(named[a], named[b])  # the name is bound anew
        return named[:returned]

    with torch.inference_mode(inference):
        recorder = Recorder(CPU, step)
        for n in (6, 6, 8, 6, 8, 6):
            x = torch.rand(n, dtype=torch.float64)
            ours, expected = recorder(x), step(x)
            assert all(map(torch.equal, ours, expected))
            assert share_memory(ours) == share_memory(expected)


# ---- numbers ----


def test_numbers_become_tensors_once() -> None:
    a = torch.rand(3)
    with Recording() as recording:
        b = 2 * a / 3
        b.mul_(0.5)
        b *= 7
        c = (b * 4).div_(8)
        c /= 7
    assert names(recording) == ["mul", "div", "mul_", "mul_", "mul", "div_", "div_"]
    for function, args, _ in recording.calls:
        assert all(isinstance(value, Tensor) for value in args), function
    a.fill_(1)
    recording.replay()
    torch.testing.assert_close(c, torch.full((3,), 1 / 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("shape", [(5,), ()])
def test_numbers_multiply_and_divide_alike_in_every_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    def step(x: Tensor) -> list[Tensor]:
        new = [x * 0.1, x / 3, 7 * x, x * True]
        return [*new, *(t.clone().mul_(3) for t in new), *(t.clone().div_(0.7) for t in new[:2])]

    recorder = Recorder(CPU, step)
    for _ in range(3):
        x = (torch.rand(shape) * 100).to(dtype)
        for ours, expected in zip(recorder(x), step(x), strict=True):
            assert ours.dtype == expected.dtype
            assert torch.equal(ours, expected)


# ---- as plain data ----


def numpy_replay(data: dict[str, Any], contents: dict[str, Tensor]) -> Callable[[str], Any]:
    """Replay ``to_data`` without torch, and return a function that reads a named tensor."""
    memory = [np.zeros(buffer["bytes"], np.uint8) for buffer in data["buffers"]]

    def array(place: dict[str, Any]) -> Any:
        block, item = memory[place["buffer"]], np.dtype(place["dtype"]).itemsize
        flat = block[: len(block) // item * item].view(place["dtype"])[place["offset"] :]
        return np.lib.stride_tricks.as_strided(flat, place["shape"], [item * stride for stride in place["stride"]])

    def value(argument: Any) -> Any:
        return array(argument) if isinstance(argument, dict) else argument

    for place in (argument for call in data["calls"] for argument in call["arguments"] if isinstance(argument, dict)):
        if "value" in data["buffers"][place["buffer"]]:
            array(place)[...] = data["buffers"][place["buffer"]]["value"]
    for name, content in contents.items():
        array(data["tensors"][name])[...] = content.numpy()

    def softmax(x: Any, dim: int) -> Any:
        powers = np.exp(x - x.max(dim, keepdims=True))
        return powers / powers.sum(dim, keepdims=True)

    operations: dict[str, Callable[..., Any]] = {
        "addmm": lambda b, x, w: b + x @ w,
        "baddbmm": lambda b, x, w: b + x @ w,
        "matmul": np.matmul,
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "sign": np.sign,
        "pow": np.power,
        "neg": np.negative,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "square": np.square,
        "add": lambda x, y, alpha=1: x + alpha * y,
        "addcmul": lambda x, y, z, value=1: x + value * y * z,
        "sum": lambda x, dim=None, keepdim=False: x.sum(dim, keepdims=keepdim),
        "mean": np.mean,
        "softmax": softmax,
        "log_softmax": lambda x, dim: np.log(softmax(x, dim)),
        "logaddexp": np.logaddexp,
        "zeros_like": np.zeros_like,
        "index_select": lambda x, dim, indices: x.take(indices, dim),
        "copy": lambda into, x: x,
    }
    for call in data["calls"]:
        arguments = [value(argument) for argument in call["arguments"]]
        array(call["out"])[...] = operations[call["operation"]](*arguments, **call["options"])
    return lambda name: array(data["tensors"][name])


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("networks", [None, 3])
def test_numpy_replays_forward_cost_and_backward(networks: int | None, activation: str, cost: str) -> None:
    fields: dict[str, Any] = {"activation": activation, "networks": networks, "init": "normal", "dtype": torch.float64}
    network, other = (Network((7, 5, 4, 3), seed=seed, **fields) for seed in (0, 9))
    x, y = torch.rand(6, 7, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[torch.arange(6) % 3]
    with torch.inference_mode(), Recording() as recording:
        passed = forward(network, x)
        costs = example_costs(passed, y, cost)
        result = backward(network, passed, y, cost)
    inputs = {"parameters": network.parameters, "x": x, "y": y}
    data = recording.to_data(**inputs, costs=costs, gradient=result.gradient, a=passed.activations[2])
    x, y = torch.rand(6, 7, dtype=torch.float64), y.flip(0)
    read = numpy_replay(json.loads(json.dumps(data)), {"parameters": other.parameters, "x": x, "y": y})
    passed = forward(other, x)
    for name, expected in (
        ("gradient", backward(other, passed, y, cost).gradient),
        ("costs", example_costs(passed, y, cost)),
        ("a", passed.activations[2]),
    ):
        np.testing.assert_allclose(read(name), expected.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@torch.inference_mode()
def test_numpy_replays_a_training_step(mnist: tuple[Examples, Examples], momentum: float) -> None:
    examples = Examples(mnist[0].x[:50], mnist[0].labels[:50])
    network, other = Network((784, 8, 10), dtype=torch.float64), Network((784, 8, 10), dtype=torch.float64, seed=1)
    running, indices = torch.zeros(2, dtype=torch.float64), torch.arange(20)
    optimizer, other_optimizer = (SGD(n, 0.5, momentum=momentum, weight_decay=momentum / 10) for n in (network, other))
    step = TrainingStep(network, optimizer, examples, 20, "quadratic", running=running)
    recording, _ = Recorder(CPU, step.step).record((indices,))
    order = torch.arange(49, 29, -1)
    inputs = {"x": examples.x, "labels": examples.labels, "targets": step.targets}
    inputs["cost_and_one"] = step.cost_and_one
    data = recording.to_data(parameters=network.parameters, indices=indices, running=running, **inputs)
    read = numpy_replay(
        json.loads(json.dumps(data)), inputs | {"parameters": other.parameters.clone(), "indices": order}
    )
    x, y = batch(examples, order, torch.float64)
    passed = forward(other, x)
    other_optimizer.step(backward(other, passed, y).gradient)
    np.testing.assert_allclose(read("parameters"), other.parameters.numpy(), 1e-12, 1e-15)
    np.testing.assert_allclose(read("running"), [example_costs(passed, y).sum().item(), 20], 1e-12)


def test_data_of_any_recording_go_to_json() -> None:
    x, y = torch.rand(4), torch.zeros(4)
    with Recording() as recording:
        y[1:3] = x[:1] * 2
        y.add_(x.sum(dtype=torch.float64))
    data = json.loads(json.dumps(recording.to_data(x=x)))
    assert [call["operation"] for call in data["calls"]] == ["mul", "setitem", "sum", "add"]
    (x_buffer,) = {call["arguments"][0]["buffer"] for call in data["calls"] if call["operation"] == "sum"}
    assert data["tensors"]["x"] == {"buffer": x_buffer, "dtype": "float32", "offset": 0, "shape": [4], "stride": [1]}
    assert data["buffers"][x_buffer] == {"bytes": 16}, "a value is given of numbers only, such as the factor"
    assert {"bytes": 4, "value": 2.0} in data["buffers"]
