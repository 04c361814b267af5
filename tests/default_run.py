"""The default run of train.py as one writes it with other libraries: 784-16-16-10, 20 epochs in batches of 100.

    python tests/default_run.py numpy

``python -m bp_torch benchmark scripts`` times it. It knows nothing of bp_torch. Each function is a script of its own,
which imports what that would; at the end it prints the accuracy on the test set. scikit-learn chooses its own cost,
optimizer and rate.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

SIZES, EPOCHS, BATCH = (784, 16, 16, 10), 20, 100


def rate(epoch: int) -> float:
    """The learning rate of an epoch, from 0."""
    return 3 / (1 + 0.1 * epoch)


def mnist(folder: Path) -> tuple[Any, Any, Any, Any]:
    """The images, 0..1, and the labels of MNIST's files: of training, and of the test."""
    found: list[Any] = []
    for name in ("train", "t10k"):
        images = np.frombuffer((folder / f"MNIST/raw/{name}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        labels = np.frombuffer((folder / f"MNIST/raw/{name}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
        found += [images.reshape(-1, 784).astype(np.float32) / 255, labels.astype(np.int64)]
    return found[0], found[1], found[2], found[3]


def weights() -> list[Any]:
    """[W^1, b^1, W^2, …]: normal, with a standard deviation of 1/√n_in; zero."""
    normal = np.random.default_rng(0).standard_normal
    pairs = [(normal((m, n), np.float32) / np.float32(n**0.5), np.zeros(m, np.float32)) for n, m in pairwise(SIZES)]
    return [part for pair in pairs for part in pair]


def with_numpy(folder: Path, threads: int) -> float:
    """A backward by hand."""
    x, labels, test_x, test_labels = mnist(folder)
    y, parameters = np.eye(10, dtype=np.float32)[labels], weights()
    layers, order = list(zip(parameters[::2], parameters[1::2], strict=True)), np.random.default_rng(1)

    def forward(a: Any) -> list[Any]:
        activations = [a]
        for W, b in layers:
            activations.append(1 / (1 + np.exp(-(activations[-1] @ W.T + b))))
        return activations

    for epoch in range(EPOCHS):
        for indices in np.split(order.permutation(len(x)), len(x) // BATCH):
            a = forward(x[indices])
            delta = 2 / BATCH * (a[-1] - y[indices]) * a[-1] * (1 - a[-1])
            for l in reversed(range(len(layers))):
                W, b = layers[l]
                before = (delta @ W) * a[l] * (1 - a[l]) if l else None
                W -= np.float32(rate(epoch)) * (delta.T @ a[l])
                b -= np.float32(rate(epoch)) * delta.sum(0)
                delta = before
    return float((forward(test_x)[-1].argmax(1) == test_labels).mean())


def with_jax(folder: Path, threads: int) -> float:
    """Each epoch is one compiled scan."""
    import jax
    from jax import numpy as jnp

    x, labels, test_x, test_labels = map(jnp.asarray, mnist(folder))
    y = jax.nn.one_hot(labels, 10)

    def outputs(parameters: Any, a: Any) -> Any:
        for W, b in zip(parameters[::2], parameters[1::2], strict=True):
            a = jax.nn.sigmoid(a @ W.T + b)
        return a

    def cost(parameters: Any, x: Any, y: Any) -> Any:
        return ((outputs(parameters, x) - y) ** 2).sum() / len(x)

    def train(parameters: Any, order: Any, rate: Any) -> Any:
        def step(parameters: Any, indices: Any) -> Any:
            slope = jax.grad(cost)(parameters, x[indices], y[indices])
            return [p - rate * s for p, s in zip(parameters, slope, strict=True)], None

        return jax.lax.scan(step, parameters, order.reshape(-1, BATCH))[0]

    compiled, parameters = jax.jit(train), [jnp.asarray(part) for part in weights()]
    order = np.random.default_rng(1)
    for epoch in range(EPOCHS):
        parameters = compiled(parameters, order.permutation(len(x)), rate(epoch))
    return float((outputs(parameters, test_x).argmax(1) == test_labels).mean())


def with_sklearn(folder: Path, threads: int) -> float:
    """Its own cost, and Adam."""
    import warnings

    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")  # it may want more epochs
    x, labels, *test = mnist(folder)
    model = MLPClassifier(SIZES[1:-1], activation="logistic", batch_size=BATCH, max_iter=EPOCHS, random_state=0)
    return float(model.fit(x, labels).score(*test))


def with_autograd(folder: Path, threads: int) -> float:
    """Tensors in memory, nn.Sequential, backward() and optim.SGD."""
    import torch

    x, labels, test_x, test_labels = (torch.from_numpy(array) for array in mnist(folder))

    def batches() -> Iterator[Any]:
        for indices in torch.randperm(len(x)).split(BATCH):
            yield x[indices], labels[indices]

    return trained(batches, test_x, test_labels, threads, fused=True)


def with_loader(folder: Path, threads: int) -> float:
    """The same with a DataLoader of torchvision's MNIST, as in pytorch/examples."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    torch.set_num_threads(threads)
    to_tensor = transforms.ToTensor()
    training, test = (datasets.MNIST(str(folder), train=train, transform=to_tensor) for train in (True, False))
    loader = DataLoader(training, BATCH, shuffle=True)
    test_x, test_labels = (torch.cat(parts) for parts in zip(*DataLoader(test, 1000), strict=True))
    return trained(lambda: loader, test_x, test_labels, threads, fused=False)


def trained(batches: Callable[[], Iterable[Any]], test_x: Any, test_labels: Any, threads: int, *, fused: bool) -> float:
    """The accuracy of a module of torch after its epochs."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(threads)
    model = nn.Sequential(nn.Flatten(), *(part for n, m in pairwise(SIZES) for part in (nn.Linear(n, m), nn.Sigmoid())))
    for parameter, value in zip(model.parameters(), weights(), strict=True):
        parameter.data = torch.from_numpy(value)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate(0), fused=fused)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = rate(epoch)
        for x, labels in batches():
            optimizer.zero_grad()
            y = functional.one_hot(labels, 10).float()
            (functional.mse_loss(model(x), y, reduction="sum") / BATCH).backward()
            optimizer.step()
    with torch.no_grad():
        return float((model(test_x).argmax(1) == test_labels).float().mean())


SCRIPTS = {"numpy": with_numpy, "jax": with_jax, "sklearn": with_sklearn}
SCRIPTS |= {"autograd": with_autograd, "loader": with_loader}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    print(f"test accuracy {SCRIPTS[flags.script](flags.data_dir, flags.threads):.2%}")
