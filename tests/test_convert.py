"""A network to and from nn.Sequential and to and from a file: unchanged, or refused by name."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bp_torch.activations import ACTIVATIONS
from bp_torch.backprop import forward
from bp_torch.convert import from_sequential, load, save, to_sequential
from bp_torch.network import Network


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("output", ACTIVATIONS)
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


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(module: Any) -> Any:
    module.register_forward_hook(lambda module, x, y: 2 * y)
    return module


def patched(module: Any) -> Any:
    module.forward = lambda x: 2 * x
    return module


def tied(name: str, transposed: bool = False) -> nn.Sequential:
    """Two linears that share a weight or a bias, as autoencoders do."""
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    shared = getattr(one, name)
    setattr(other, name, nn.Parameter(shared.T) if transposed else shared)
    return nn.Sequential(one, other)


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
        (nn.Sequential(Doubled(2, 2)), r"module 0 is Doubled\("),
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))), r"module 0 is ParametrizedLinear\("),
        (nn.Sequential(hooked(nn.Linear(2, 2))), r"module 0 is Linear\(.*\) with hooks"),
        (nn.Sequential(nn.Linear(2, 2), hooked(nn.ReLU())), r"module 1 is ReLU\(\) with hooks"),
        (hooked(nn.Sequential(nn.Linear(2, 2))), "plain nn.Sequential, got Sequential with hooks"),
        (nn.Sequential(patched(nn.Linear(2, 2))), r"module 0 is Linear\(.*\) with a forward of its own"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(2, 2)), r"module 0 is Flatten\(start_dim=0"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "one dtype and device for all, got .*float64"),
        (nn.Sequential(*[nn.Linear(2, 2)] * 2), "module 1, Linear.* comes twice"),
        (tied("weight"), "module 1, Linear.* comes twice, it or its weights"),
        (tied("bias"), "module 1, Linear.* comes twice, it or its weights"),
        (tied("weight", transposed=True), "module 1, Linear.* comes twice, it or its weights"),
    ],
)
def test_unsupported_sequential_raises_value_error(model: nn.Sequential, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_sequential(model)


@pytest.mark.parametrize("seed", range(5))
def test_damaged_file_never_gives_another_network(seed: int, tmp_path: Path) -> None:
    path, network, chance = tmp_path / "n.safetensors", Network((6, 5, 3), init="normal"), random.Random(seed)
    save(network, path)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 20))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])
        try:
            back = load(path)
        except ValueError:
            continue
        assert repr(back) == repr(network) and torch.equal(back.parameters, network.parameters)


@pytest.mark.parametrize("networks", [1, 3])
def test_several_networks_are_no_single_one(networks: int, tmp_path: Path) -> None:
    network, path = Network((3, 2), networks=networks, init="normal"), tmp_path / "n.safetensors"
    for use in (lambda: save(network, path), lambda: to_sequential(network)):
        with pytest.raises(ValueError, match=r"is not one network: take network\[0\]"):
            use()
    assert not path.exists()
    save(network[0], path)
    assert torch.equal(load(path).parameters, network.parameters[0])


def test_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    network, path = Network((3, 2)), tmp_path / "n.safetensors"
    about = {"sizes": [3, 2], "activation": "sigmoid", "output_activation": "sigmoid"}
    tensors = {"W1": network.weights[0].contiguous(), "b1": network.biases[0].clone()}
    safetensors.torch.save_file(tensors, path, {"network": json.dumps(about)})
    assert torch.equal(load(path).parameters, network.parameters)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ('{"sizes": [784, 1000000000, 10], "activation": "relu", "output_activation": "relu"}', "the sizes say"),
        ('{"sizes": [3, 2], "activation": "relu", "output_activation": "relu", "colour": 1}', "colour"),
        (
            '{"sizes": [3, 2], "activation": "relu", "output_activation": "relu", "networks": 3}',
            "have networks",
        ),
        ('{"sizes": [3, 2], "activation": "relu", "output_activation": "relu", "seed": 3}', "metadata have seed"),
        ('{"sizes": [3, 2], "activation": ["relu"], "output_activation": "relu"}', "holds no network"),
        ("[" * 100_000, "holds no network"),
        ("[3]", "holds no network"),
    ],
)
def test_wrong_metadata_raises_value_error_before_memory_is_taken(about: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    safetensors.torch.save_file({"W1": torch.zeros(2, 3), "b1": torch.zeros(2)}, path, {"network": about})
    with pytest.raises(ValueError, match=message):
        load(path)


def test_file_of_other_numbers_than_floats_raises_value_error(tmp_path: Path) -> None:
    about = {"sizes": [3, 2], "activation": "sigmoid", "output_activation": "sigmoid"}
    tensors = {"W1": torch.zeros(2, 3, dtype=torch.float8_e4m3fn), "b1": torch.zeros(2)}
    safetensors.torch.save_file(tensors, tmp_path / "n.safetensors", {"network": json.dumps(about)})
    with pytest.raises(ValueError, match="its numbers are F8_E4M3, wanted one of F64, F32, BF16, F16"):
        load(tmp_path / "n.safetensors")


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
    with pytest.raises(ValueError, match=r"W1 is \[2, 3\], the sizes say \[2, 4\]"):
        load(path)


@pytest.mark.parametrize("given", [[Network(), Network()], nn.Sequential(nn.Linear(2, 2)), None], ids=type)
def test_what_is_no_network_is_named(given: Any, tmp_path: Path) -> None:
    for use in (lambda: save(given, tmp_path / "n.safetensors"), lambda: to_sequential(given)):
        with pytest.raises(ValueError, match=rf"^wanted a bp_torch\.Network, got {type(given).__name__}$"):
            use()


def test_state_dict_is_no_network(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    given: Any
    for given in (model.state_dict(), dict(model.state_dict())):
        with pytest.raises(ValueError, match=r"^a state_dict holds no activations: make the nn\.Sequential"):
            from_sequential(given)
    for given in (None, 3, [model]):
        with pytest.raises(ValueError, match=f"^wanted a plain nn.Sequential, got {type(given).__name__}$"):
            from_sequential(given)


@pytest.mark.parametrize("zipped", [True, False])
def test_file_of_torch_is_named(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(nn.Linear(3, 2).state_dict(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"m\.pt was written by torch\.save, wanted a \.safetensors file of bp_torch\.save"
    ):
        load(path)
