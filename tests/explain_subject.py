"""What the tests of explain share: a run that was really trained, briefly, and small networks for one example."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bp_torch.backprop import Backward, Forward, backward, forward
from bp_torch.data import Examples, one_hot
from bp_torch.explain.options import CommonOptions
from bp_torch.explain.subject import Example, Subject, open_subject
from bp_torch.network import Network
from bp_torch.training import Config, train
from tests.conftest import Reference

KINDS = [
    ("sigmoid", "sigmoid", "quadratic"),
    ("relu", "identity", "softmax-cross-entropy"),
    ("tanh", "sigmoid", "binary-cross-entropy"),
    ("scaled-tanh", "scaled-tanh", "quadratic"),
]
"""Activation, output activation and cost."""

QUICK: dict[str, dict[str, Any]] = {
    "only": {"steps": 30},
    "descent": {"full_steps": 5, "mini_steps": 40, "single_steps": 100, "close_steps": 4, "grid": 5},
    "data": {"epochs": 1, "seeds": 2},
    "minimum": {"directions": 2},
}
"""Options with which each idea is quick."""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The folder of a short run."""
    runs = tmp_path_factory.mktemp("runs")
    fields: dict[str, Any] = {"device": "cpu", "threads": 1, "data_dir": data_dir, "runs_dir": runs}
    return train(Config(epochs=15, train_examples=2000, run_name="brief", **fields))


@pytest.fixture(scope="session")
def subject(run: Path) -> Subject:
    """Its network, with fewer test images."""
    whole = open_subject(CommonOptions(run=run))
    return replace(whole, test=Examples(whole.test.x[:500], whole.test.labels[:500]))


def some_network(kind: tuple[str, str, str], sizes: tuple[int, ...] = (784, 7, 5, 10)) -> Network:
    activation, output_activation, _ = kind
    return Network(sizes, activation=activation, output_activation=output_activation, seed=1, dtype=torch.float64)


def some_example() -> Example:
    x = torch.rand(1, 784, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Example(x, one_hot(torch.tensor([2]), dtype=torch.float64), 2, 0, "a 2")


def forward_and_backward(network: Network, example: Example, cost: str) -> tuple[Forward, Backward]:
    passed = forward(network, example.x)
    return passed, backward(network, passed, example.y, cost)


def activation_gradients(passed: Forward, y: Tensor, cost: str) -> list[Tensor]:
    """[∂C/∂a^0, …, ∂C/∂a^(L−1)] of one example, each (n_l,), from autograd: a^l is the input of the layers after it."""
    network, gradients = passed.network, []
    for layer, a in enumerate(passed.activations[:-1]):
        rest = Network(
            network.sizes[layer:],
            activation=network.activation,
            output_activation=network.output_activation,
            dtype=network.dtype,
        )
        rest.parameters.copy_(network.parameters[-len(rest.parameters) :])
        gradients.append(Reference(rest, a, y, cost).x_gradient[0])
    return gradients
