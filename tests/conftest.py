"""What the tests share: quiet torch, the devices there are, real MNIST, and small networks to look at."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional

from bp_torch.data import Examples, load
from bp_torch.network import Network

torch.set_num_threads(1)  # small tensors: a second thread only waits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"))]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with MNIST in it, unpacked once for all tests."""
    directory = tmp_path_factory.mktemp("data")
    load("mnist", directory)
    return directory


@pytest.fixture(scope="session")
def mnist(data_dir: Path) -> tuple[Examples, Examples]:
    return load("mnist", data_dir)


@pytest.fixture
def tiny() -> Network:
    return Network((5, 4, 3), dtype=torch.float64)


REFERENCE_COSTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "quadratic": lambda z, a, y: functional.mse_loss(a, y, reduction="sum") / len(y),
    "binary-cross-entropy": lambda z, a, y: functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(y),
    "softmax-cross-entropy": lambda z, a, y: functional.cross_entropy(a, y),
}
"""torch's own costs of a batch, as functions of z^L, a^L and y."""

REFERENCE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "identity": lambda z: z,
}


class Reference:
    """The same network, cost and batch by autograd: the oracle of every gradient test.

    Attributes:
        cost: C, ().
        gradient: ∇C, (P,), in the order of θ.
        deltas: [∂C/∂z^1, …, ∂C/∂z^L].
        x_gradient: ∂C/∂x, (B, n_0).
    """

    def __init__(self, network: Network, x: Tensor, y: Tensor, cost: str) -> None:
        weights = [w.clone().requires_grad_() for w in network.weights]
        biases = [b.clone().requires_grad_() for b in network.biases]
        x = x.clone().requires_grad_()
        sums = []
        a = x
        for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
            sums.append(functional.linear(a, w, b))
            a = REFERENCE_ACTIVATIONS[network.activation_of(layer)](sums[-1])
        value = REFERENCE_COSTS[cost](sums[-1], a, y)
        parameters = [tensor for layer in zip(weights, biases, strict=True) for tensor in layer]
        gradients = torch.autograd.grad(value, [*parameters, *sums, x])
        self.cost = value.detach()
        self.outputs = a.detach()
        self.gradient = torch.nn.utils.parameters_to_vector(gradients[: len(parameters)])
        self.deltas = gradients[len(parameters) : -1]
        self.x_gradient = gradients[-1]


def relative_error(ours: Tensor, wanted: Tensor) -> float:
    """‖ours − wanted‖ / ‖wanted‖, and 0 where both are zero."""
    difference = torch.linalg.vector_norm(ours - wanted).item()
    return difference / torch.linalg.vector_norm(wanted).item() if difference else 0.0


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} of a run, as TensorBoard reads it, but for the one that is a matter of time."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "examples_per_second"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
