import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from bp_torch.backprop import forward
from bp_torch.network import Network, parameter_count


def test_the_network_of_the_lesson_has_13002_parameters() -> None:
    assert parameter_count((784, 16, 16, 10)) == len(Network().parameters) == 13_002


def test_weights_and_biases_are_views_in_torchs_order() -> None:
    network = Network((3, 2, 4))
    network.parameters.copy_(torch.arange(20.0))
    assert network.weights[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert network.biases[0].tolist() == [6, 7]
    model = network.to_sequential()
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), network.parameters)
    network.biases[1].fill_(-1)
    assert network.parameters[-4:].tolist() == [-1] * 4


@pytest.mark.parametrize(("init", "deviation"), [("lecun", 1 / 20), ("normal", 1.0), ("he", 2**0.5 / 20)])
def test_initial_values_have_the_deviation_of_their_name(init: str, deviation: float) -> None:
    network = Network((400, 300, 10), init=init, seed=3)
    assert network.weights[0].std().item() == pytest.approx(deviation, rel=0.02)  # 120,000 draws: 0.2 % each σ
    if init == "normal":
        assert network.biases[0].std().item() == pytest.approx(1, rel=0.2)
    else:
        assert not network.biases[0].any()


def test_one_seed_is_one_start_in_every_dtype() -> None:
    double, single = Network(seed=5, dtype=torch.float64), Network(seed=5, dtype=torch.float32)
    assert torch.equal(double.parameters.float(), single.parameters)
    assert not torch.equal(Network(seed=6).parameters, single.parameters)


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh", "identity"])
@pytest.mark.parametrize("output", ["sigmoid", "relu", "tanh", "identity"])
def test_a_network_travels_to_sequential_and_back(activation: str, output: str) -> None:
    network = Network((6, 5, 4, 3), activation=activation, output_activation=output, dtype=torch.float64)
    model = network.to_sequential()
    x = torch.randn(7, 6, dtype=torch.float64)
    torch.testing.assert_close(forward(network, x).activations[-1], model(x).detach())
    back = Network.from_sequential(model)
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
def test_a_sequential_that_is_no_such_network_is_refused(model: nn.Sequential, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network.from_sequential(model)


def test_flatten_in_front_is_dropped() -> None:
    assert Network.from_sequential(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid())).sizes == (4, 3)


def test_a_network_travels_to_a_file_and_back(tmp_path: Path) -> None:
    network = Network((6, 5, 3), activation="tanh", output_activation="identity", dtype=torch.float64, seed=9)
    network.save(tmp_path / "n.safetensors")
    back = Network.load(tmp_path / "n.safetensors")
    assert repr(back) == repr(network)
    assert torch.equal(back.parameters, network.parameters)
    assert [path.name for path in tmp_path.iterdir()] == ["n.safetensors"], "nothing is left beside it"
    first = (tmp_path / "n.safetensors").read_bytes()
    back.save(tmp_path / "n.safetensors")
    assert (tmp_path / "n.safetensors").read_bytes() == first


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "n.safetensors"
    Network((2, 2), seed=1).save(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Network((2, 2), seed=2).save(path)
    assert torch.equal(Network.load(path).parameters, Network((2, 2), seed=1).parameters)
    assert [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]


def test_a_file_that_is_no_network_is_named(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    with pytest.raises(FileNotFoundError, match=r"n\.safetensors"):
        Network.load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match=r"n\.safetensors holds no network"):
        Network.load(path)
    safetensors.torch.save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="'network' is missing"):
        Network.load(path)
    Network((3, 2)).save(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"n\.safetensors holds no network"):
        Network.load(path)
    about = {"sizes": [4, 2], "activation": "sigmoid", "output_activation": "sigmoid"}
    safetensors.torch.save_file({"W1": torch.zeros(2, 3), "b1": torch.zeros(2)}, path, {"network": json.dumps(about)})
    with pytest.raises(ValueError, match=r"W1 is \(2, 3\), the sizes say \(2, 4\)"):
        Network.load(path)


@pytest.mark.parametrize("sizes", [(), (3,), (3, 0), (3, -1), (3, 2.5)])
def test_sizes_that_no_network_has_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or more positive whole numbers"):
        Network(sizes)


def test_unknown_names_and_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'swish': choose from sigmoid, relu, tanh, identity"):
        Network((2, 2), activation="swish")
    with pytest.raises(ValueError, match="unknown initial values 'zeros': choose from lecun, normal, he"):
        Network((2, 2), init="zeros")
    with pytest.raises(ValueError, match=r"a network needs a floating dtype, not torch\.int64"):
        Network((2, 2), dtype=torch.int64)


def test_to_gives_a_copy_in_another_dtype(device: torch.device) -> None:
    network = Network((4, 3, 2), activation="relu", seed=4)
    moved = network.to(dtype=torch.float64, device=device)
    assert (moved.dtype, moved.device.type, moved.activation) == (torch.float64, device.type, "relu")
    assert torch.equal(moved.parameters.float().cpu(), network.parameters)
