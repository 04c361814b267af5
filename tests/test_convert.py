"""A network to and from nn.Sequential and to and from a file: unchanged, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from bp_torch.backprop import forward
from bp_torch.convert import from_sequential, load, save, to_sequential
from bp_torch.network import Network


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh", "identity"])
@pytest.mark.parametrize("output", ["sigmoid", "relu", "tanh", "identity"])
def test_sequential_and_back_gives_the_same_network(activation: str, output: str) -> None:
    fields: dict[str, Any] = {"activation": activation, "output_activation": output, "init": "normal"}
    network = Network((6, 5, 4, 3), dtype=torch.float64, **fields)
    model = to_sequential(network)
    x = torch.randn(7, 6, dtype=torch.float64)
    torch.testing.assert_close(forward(network, x).activations[-1], model(x).detach())
    back = from_sequential(model)
    assert (back.sizes, back.activation, back.output_activation) == (network.sizes, activation, output)
    assert torch.equal(back.parameters, network.parameters)
    nn.init.zeros_(next(model.parameters()))
    assert network.weights[0].any(), "the copy is its own"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2, bias=False)), "module 0 is Linear.*bias=False"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), "module 1 is Dropout"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), "module 2 is Tanh"),
        (nn.Sequential(nn.ReLU()), "module 0 is ReLU"),
        (nn.Sequential(nn.Flatten()), "at least one nn.Linear"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)),
            "one activation for all hidden layers, got relu, tanh",
        ),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(4, 2)), "takes 4 inputs, the layer before it gives 3"),
    ],
)
def test_unsupported_sequential_raises_value_error(model: nn.Sequential, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_sequential(model)


def test_leading_flatten_is_dropped() -> None:
    assert from_sequential(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid())).sizes == (4, 3)


def test_file_and_back_gives_the_same_network(tmp_path: Path) -> None:
    network = Network((6, 5, 3), activation="tanh", output_activation="identity", dtype=torch.float64, init="normal")
    save(network, tmp_path / "n.safetensors")
    back = load(tmp_path / "n.safetensors")
    assert repr(back) == repr(network)
    assert torch.equal(back.parameters, network.parameters)
    assert [path.name for path in tmp_path.iterdir()] == ["n.safetensors"], "nothing is left beside it"
    first = (tmp_path / "n.safetensors").read_bytes()
    save(back, tmp_path / "n.safetensors")
    assert (tmp_path / "n.safetensors").read_bytes() == first


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "n.safetensors"
    save(Network((2, 2), seed=1), path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(Network((2, 2), seed=2), path)
    assert torch.equal(load(path).parameters, Network((2, 2), seed=1).parameters)
    assert [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]


def test_invalid_file_raises_value_error_naming_it(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    with pytest.raises(FileNotFoundError, match=r"n\.safetensors"):
        load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match=r"n\.safetensors holds no network"):
        load(path)
    safetensors.torch.save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="'network' is missing"):
        load(path)
    save(Network((3, 2)), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"n\.safetensors holds no network"):
        load(path)
    about = {"sizes": [4, 2], "activation": "sigmoid", "output_activation": "sigmoid"}
    safetensors.torch.save_file({"W1": torch.zeros(2, 3), "b1": torch.zeros(2)}, path, {"network": json.dumps(about)})
    with pytest.raises(ValueError, match=r"W1 is \(2, 3\), the sizes say \(2, 4\)"):
        load(path)
