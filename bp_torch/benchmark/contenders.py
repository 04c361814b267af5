"""The contenders: each trains the same network on the same batches; those of autograd as their documentation has it."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bp_torch.benchmark.race import FLOOR, Contender, Maker, Task, UnavailableError
from bp_torch.benchmark.with_jax import jax_contender
from bp_torch.convert import to_sequential
from bp_torch.data import CLASSES, PIXEL_SCALE, PIXELS, one_hot
from bp_torch.device import DeviceError
from bp_torch.network import layer_views
from bp_torch.recorder import Recorder, captured


def or_unavailable(contender: Contender, error: type[Exception]) -> Contender:
    """The contender, but an ``error`` in an epoch says that it is unavailable: there is no compiler, or no graph."""

    def epoch(order: Tensor) -> None:
        try:
            contender.epoch(order)
        except error as reason:
            raise UnavailableError([*str(reason).strip().splitlines(), repr(reason)][0]) from reason

    return contender._replace(epoch=epoch)


def ours(task: Task, *, record: bool = True) -> Contender:
    """The training step of train.py; without ``record`` every step runs line by line."""
    network = task.network()
    step = task.config.training_step(network, task.config.optimizer(network), task.examples, record=record)

    @torch.inference_mode()
    def epoch(order: Tensor) -> None:
        deque(step.run(order), maxlen=0)

    return Contender(epoch, lambda: network.parameters)


def ours_compiled(task: Task) -> Contender:
    """The training step of train.py --compile."""
    return or_unavailable(ours(task._replace(config=replace(task.config, compile=True))), DeviceError)


Batches = Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]]
"""Takes the indices of an epoch to its batches, x (B, 784) and y (B, 10)."""


def usual_step(
    task: Task, *, fused: bool = False, compile_mode: str | None = None
) -> tuple[nn.Sequential, Callable[[Tensor, Tensor], None]]:
    """The usual code: ``nn.Sequential``, and ``backward()`` and ``optim.SGD``; compiled if a mode is given."""
    model = to_sequential(task.network())
    optimizer = torch.optim.SGD(model.parameters(), lr=task.config.learning_rate, fused=fused)

    def mean_cost(x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(model(x), y, reduction="sum") / len(y)

    cost = torch.compile(mean_cost, dynamic=False, mode=compile_mode) if compile_mode else mean_cost

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        cost(x, y).backward()
        optimizer.step()

    return model, step


def autograd(task: Task, batches: Batches, **options: Any) -> Contender:
    """The usual step for each of the batches."""
    model, step = usual_step(task, **options)

    def epoch(order: Tensor) -> None:
        for x, y in batches(order):
            step(x, y)

    return Contender(epoch, lambda: parameters_to_vector(model.parameters()).detach())


def loader_batches(task: Task, dataset: Dataset[Any]) -> Batches:
    """Batches of ``dataset`` from a DataLoader, on a GPU with the options of pytorch/examples."""
    gpu = task.device.type == "cuda"
    indices: list[int] = []
    loader = DataLoader(
        dataset, task.batch_size, sampler=indices, num_workers=int(gpu), persistent_workers=gpu, pin_memory=gpu
    )

    def batches(order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        indices[:] = order.tolist()
        for x, y in loader:
            yield x.to(task.device), y.to(task.device)

    return batches


def autograd_examples(task: Task) -> Contender:
    """As pytorch/examples trains on MNIST: torchvision's data set, ``ToTensor`` on each image, a DataLoader."""
    from torchvision import datasets  # takes as long to import as torch: not for the help
    from torchvision.transforms import ToTensor

    load = loader_batches(task, datasets.MNIST(str(task.config.data_dir), train=True, transform=ToTensor()))
    return autograd(
        task, lambda order: ((x.flatten(1), functional.one_hot(y, CLASSES).float()) for x, y in load(order))
    )


def in_memory(task: Task) -> tuple[Tensor, Tensor]:
    """All examples as the network reads them: x (N, 784) from 0 to 1, y (N, 10)."""
    return task.examples.x * PIXEL_SCALE, one_hot(task.examples.labels)


def autograd_loader(task: Task) -> Contender:
    """A TensorDataset of floats and a DataLoader."""
    return autograd(task, loader_batches(task, TensorDataset(*(tensor.cpu() for tensor in in_memory(task)))))


def autograd_in_memory(task: Task, compile_mode: str | None = None) -> Contender:
    """All examples as floats on the device, and SGD's fused step."""
    x, y = in_memory(task)

    def batches(order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in order.split(task.batch_size):
            yield x[indices], y[indices]

    return autograd(task, batches, fused=True, compile_mode=compile_mode)


def autograd_compiled(task: Task, mode: str = "default") -> Contender:
    """The same, with forward and backward compiled."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a GPU that nobody asked for
    # RuntimeError: no compiler, or a Python that torch.compile does not know yet
    return or_unavailable(autograd_in_memory(task, mode), RuntimeError)


def autograd_cuda_graph(task: Task) -> Contender:
    """A whole step in a CUDA graph, as PyTorch's notes on CUDA graphs have it: the copied batch, backward, SGD."""
    x, y = in_memory(task)
    model, step = usual_step(task, fused=True)
    still_x, still_y = x[: task.batch_size].clone(), y[: task.batch_size].clone()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    stream = torch.cuda.Stream(task.device)
    stream.wait_stream(torch.cuda.current_stream(task.device))
    with torch.cuda.stream(stream):  # warmed up on another stream, as the notes ask
        for _ in range(3):
            step(still_x, still_y)
    torch.cuda.current_stream(task.device).wait_stream(stream)
    graph, _ = captured(partial(step, still_x, still_y), task.device, stream, None)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)  # in place: the graph writes to this memory

    def epoch(order: Tensor) -> None:
        for indices in order.split(task.batch_size):
            if len(indices) < task.batch_size:
                step(x[indices], y[indices])
                continue
            torch.index_select(x, 0, indices, out=still_x)
            torch.index_select(y, 0, indices, out=still_y)
            graph.replay()

    return Contender(epoch, lambda: parameters_to_vector(model.parameters()).detach())


def numpy_by_hand(task: Task) -> Contender:
    """A second backward, for this comparison only, in NumPy: sigmoids, quadratic cost, buffers that are made once."""
    images, targets = task.examples.x.cpu().numpy(), one_hot(task.examples.labels).cpu().numpy()
    theta = task.network().parameters.cpu().numpy().copy()
    gradient = np.empty_like(theta)
    weights, biases, weight_gradients, bias_gradients = (
        [view.numpy() for view in views]
        for flat in (theta, gradient)
        for views in layer_views(torch.from_numpy(flat), task.config.sizes)
    )
    pixels, x, y = (np.empty((task.batch_size, n), t) for n, t in ((PIXELS, np.uint8), (PIXELS, "f4"), (CLASSES, "f4")))
    outputs, deltas, phi_primes = (
        [np.empty((task.batch_size, n), np.float32) for n in task.config.sizes[1:]] for _ in range(3)
    )
    scale = np.float32(PIXEL_SCALE)

    def step(indices: Any) -> None:
        n = len(indices)
        images.take(indices, 0, pixels[:n], mode="clip")  # any other mode gathers into a copy first
        targets.take(indices, 0, y[:n], mode="clip")
        np.copyto(x[:n], pixels[:n])
        activations = [x[:n], *(a[:n] for a in outputs)]
        for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = np.matmul(activations[layer], w.T, out=activations[layer + 1])
            if layer == 0:
                z *= scale  # fewer multiplications here and on the gradient than on the pixels
            z += b
            np.negative(z, out=z)
            np.exp(z, out=z)
            z += 1
            np.reciprocal(z, out=z)
        last = len(weights) - 1
        delta = np.subtract(activations[-1], y[:n], out=deltas[last][:n])
        delta *= np.float32(2 / n)
        for layer in range(last, -1, -1):
            a, phi_prime = activations[layer + 1], phi_primes[layer][:n]
            np.subtract(1, a, out=phi_prime)
            phi_prime *= a
            delta *= phi_prime
            np.sum(delta, 0, out=bias_gradients[layer])
            np.matmul(delta.T, activations[layer], out=weight_gradients[layer])
            if layer > 0:
                delta = np.matmul(delta, weights[layer], out=deltas[layer - 1][:n])
        np.multiply(weight_gradients[0], scale, out=weight_gradients[0])
        np.multiply(gradient, np.float32(task.config.learning_rate), out=gradient)
        np.subtract(theta, gradient, out=theta)

    def epoch(order: Tensor) -> None:
        indices = order.cpu().numpy()
        with np.errstate(over="ignore"):  # e^−z of a very negative z is ∞, and 1 / (1 + ∞) is 0, which is right
            for first in range(0, len(indices), task.batch_size):
                step(indices[first : first + task.batch_size])

    return Contender(epoch, lambda: torch.from_numpy(theta).to(task.device))


def floor(task: Task) -> Contender:
    """The work that no implementation can do without. It learns nothing.

    For each batch: gather the pixels as bytes, turn them into floats, multiply the large matrices; recorded and
    replayed as ours is. The products of a layer (a Wᵀ forward; δᵀ a and, except for the first layer, δ W backward)
    count as large if it has at least a tenth of the weights of the largest. All else (biases, φ, the step) is left out.
    """
    weights = task.network().weights
    large = [layer for layer, w in enumerate(weights) if 10 * w.numel() >= max(w.numel() for w in weights)]
    gradients = [torch.zeros_like(w) for w in weights]
    images = task.examples.x
    pixels = images.new_empty(task.batch_size, PIXELS)
    activations, deltas = (
        [torch.zeros(task.batch_size, n, device=task.device) for n in task.config.sizes] for _ in range(2)
    )

    def step(indices: Tensor) -> None:
        n = len(indices)
        a, delta = [t[:n] for t in activations], [t[:n] for t in deltas]
        a[0].copy_(torch.index_select(images, 0, indices, out=pixels[:n]))
        for layer in large:
            torch.mm(a[layer], weights[layer].T, out=a[layer + 1])
            torch.mm(delta[layer + 1].T, a[layer], out=gradients[layer])
            if layer > 0:
                torch.mm(delta[layer + 1], weights[layer], out=delta[layer])

    replayed = Recorder(task.device, step)

    @torch.inference_mode()
    def epoch(order: Tensor) -> None:
        for indices in order.split(task.batch_size):
            replayed(indices)

    return Contender(epoch, lambda: weights[0])


OURS, NOT_RECORDED, IN_MEMORY = "ours", "ours, not recorded", "autograd, in memory"

CONTENDERS: dict[str, Maker] = {
    OURS: ours,
    NOT_RECORDED: partial(ours, record=False),
    "ours, compiled": ours_compiled,
    "autograd, pytorch/examples": autograd_examples,
    "autograd, TensorDataset": autograd_loader,
    IN_MEMORY: autograd_in_memory,
    "autograd, torch.compile": autograd_compiled,
    "NumPy by hand": numpy_by_hand,
    FLOOR: floor,
}
"""The contenders on every device, ours first."""

CPU_CONTENDERS = CONTENDERS | {"JAX, jit(scan)": jax_contender}
"""On a CPU: the last where JAX is installed."""

CUDA_CONTENDERS = CONTENDERS | {
    "autograd, reduce-overhead": partial(autograd_compiled, mode="reduce-overhead"),
    "autograd, CUDA graph by hand": autograd_cuda_graph,
}
"""On an NVIDIA GPU: with those whose steps are replayed as CUDA graphs, too."""
