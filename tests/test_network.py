import copy
import pickle
from collections.abc import Callable
from itertools import pairwise, product
from math import sqrt

import pytest
import torch
from torch import nn

from bp_torch.activations import ACTIVATIONS
from bp_torch.backprop import backward, example_costs, forward
from bp_torch.convert import to_sequential
from bp_torch.network import Network, parameter_count
from bp_torch.sgd import SGD
from tests.harness import FORK


def test_784_16_16_10_has_13002_parameters() -> None:
    assert parameter_count((784, 16, 16, 10)) == len(Network().parameters) == 13_002


def test_weights_and_biases_are_views_in_the_order_of_torch() -> None:
    network = Network((3, 2, 4))
    network.parameters.copy_(torch.arange(20.0))
    assert network.weights[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert network.biases[0].tolist() == [6, 7]
    model = to_sequential(network)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), network.parameters)
    network.biases[1].fill_(-1)
    assert network.parameters[-4:].tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("init", "deviation"), [("lecun", 1 / 20), ("normal", 1.0), ("he", 2**0.5 / 20), ("uniform", 1 / (20 * 3**0.5))]
)
def test_initial_values_have_their_standard_deviation(init: str, deviation: float) -> None:
    network = Network((400, 300, 10), init=init, seed=3)
    assert network.weights[0].std().item() == pytest.approx(deviation, rel=0.02)  # 120,000 draws: 0.2 % each σ
    if init == "normal":
        assert network.biases[0].std().item() == pytest.approx(1, rel=0.2)
    else:
        assert not network.biases[0].any()
    if init == "uniform":
        assert 0.0499 < network.weights[0].abs().max().item() <= 0.05


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_last_layer_alone_has_the_output_activation(depth: int) -> None:
    network = Network((3,) * (depth + 1), activation="relu", output_activation="tanh")
    names = ["relu"] * (depth - 1) + ["tanh"]
    assert [network.activation_of(layer) for layer in range(depth)] == names
    assert [layer.phi for layer in network.layers] == [ACTIVATIONS[name] for name in names]


SCALES: dict[str, Callable[[int], float]] = {
    "lecun": lambda n_in: 1 / sqrt(n_in),  # LeCun et al. 1998, eq. 16
    "he": lambda n_in: sqrt(2 / n_in),  # He et al. 2015, eq. 10
    "normal": lambda n_in: 1.0,  # Nielsen, ch. 1
    "uniform": lambda n_in: 1 / sqrt(n_in),  # Glorot and Bengio 2010, eq. 1
}
"""By which the standard normal numbers of a layer are multiplied; those of "uniform" are uniform in −1..1."""


def published_initial_values(sizes: tuple[int, ...], init: str, seed: int) -> torch.Tensor:
    """θ as the papers have it, from numbers drawn for the whole of θ at once."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.empty(sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes)), dtype=torch.float64)
    theta.uniform_(-1, 1, generator=generator) if init == "uniform" else theta.normal_(generator=generator)
    start = 0
    for n_in, n_out in pairwise(sizes):
        biases = start + n_in * n_out
        theta[start:biases] *= SCALES[init](n_in)
        theta[biases : biases + n_out] *= init == "normal"
        start = biases + n_out
    return theta


@pytest.mark.parametrize("init", SCALES)
@pytest.mark.parametrize("sizes", [(784, 16, 16, 10), (1, 1), (2, 3, 1), (100, 64, 65), (400, 300, 10)], ids=str)
def test_initial_values_are_the_published_ones_to_the_last_digit(sizes: tuple[int, ...], init: str) -> None:
    for seed, dtype in product((0, 1, 2**32 - 1), (torch.float64, torch.float32)):
        rounding = 2 * torch.finfo(dtype).eps
        expected = published_initial_values(sizes, init, seed).to(dtype)
        ours = Network(sizes, init=init, seed=seed, dtype=dtype).parameters
        torch.testing.assert_close(ours, expected, rtol=rounding, atol=0)
        several = Network(sizes, init=["he", init], seed=[9, seed], networks=2, dtype=dtype)
        torch.testing.assert_close(several.parameters[1], expected, rtol=rounding, atol=0)


def test_one_seed_gives_the_same_values_in_every_dtype() -> None:
    double, single = Network(seed=5, dtype=torch.float64), Network(seed=5, dtype=torch.float32)
    assert torch.equal(double.parameters.float(), single.parameters)
    assert not torch.equal(Network(seed=6).parameters, single.parameters)


def test_part_of_several_networks_is_a_view() -> None:
    several = Network((5, 4, 3), networks=3, seed=7)
    assert torch.equal(several[1].parameters, Network((5, 4, 3), seed=8).parameters)
    several[-1].weights[0].fill_(2)
    assert (several.weights[0][2] == 2).all()
    assert several[1:].leading == (2,)
    x = torch.ones(2, 5)
    assert torch.allclose(forward(several, x).activations[-1][1], forward(several[1], x).activations[-1])
    assert len(list(several)) == 3
    with pytest.raises(IndexError):
        several[3]
    with pytest.raises(TypeError, match="is one network: only one of networks=K has a part"):
        several[0][0]


def test_each_of_several_networks_may_have_its_own_seed_and_initial_values() -> None:
    several = Network((5, 4, 3), networks=3, init=["lecun", "normal", "he"], seed=[4, 4, 9])
    for network, init, seed in zip(several, ("lecun", "normal", "he"), (4, 4, 9), strict=True):
        assert torch.equal(network.parameters, Network((5, 4, 3), init=init, seed=seed).parameters)
    with pytest.raises(ValueError, match="wanted 3 initial values and seeds, one for each network, got 3 and 2"):
        Network((5, 4, 3), networks=3, seed=[1, 2])
    with pytest.raises(ValueError, match="unknown initial values 'zeros'"):
        Network((5, 4, 3), networks=2, init=["he", "zeros"])


@pytest.mark.parametrize("sizes", [(), (3,), (3, 0), (3, -1), (3, 2.5)])
def test_invalid_sizes_raise_value_error(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or more positive whole numbers"):
        Network(sizes)


def test_unknown_names_and_dtypes_raise_value_error() -> None:
    with pytest.raises(
        ValueError, match="unknown activation 'swish': choose from sigmoid, relu, tanh, scaled-tanh, identity"
    ):
        Network((2, 2), activation="swish")
    with pytest.raises(ValueError, match="unknown initial values 'zeros': choose from lecun, normal, he, uniform"):
        Network((2, 2), init="zeros")
    with pytest.raises(ValueError, match="networks: wanted a whole number from 1, or None, got 0"):
        Network((2, 2), networks=0)
    with pytest.raises(
        ValueError, match=r"a network needs a dtype of float64, float32, bfloat16, float16, not torch.int64"
    ):
        Network((2, 2), dtype=torch.int64)
    with pytest.raises(ValueError, match="a network needs a dtype of float64"):
        Network((2, 2), dtype=torch.float8_e4m3fn)


def test_to_returns_a_copy_in_another_dtype(device: torch.device) -> None:
    network = Network((4, 3, 2), activation="relu", seed=4)
    moved = network.to(dtype=torch.float64, device=device)
    assert (moved.dtype, moved.device.type, moved.activation) == (torch.float64, device.type, "relu")
    assert torch.equal(moved.parameters.float().cpu(), network.parameters)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_to_a_dtype_of_no_network_raises_value_error(dtype: torch.dtype, tiny: Network) -> None:
    with pytest.raises(ValueError, match=f"a network needs a dtype of float64, .*, not {dtype}"):
        tiny.to(dtype=dtype)


def test_several_networks_have_the_initial_values_of_consecutive_seeds() -> None:
    together = Network((6, 5, 3), networks=3, seed=7, init="normal")
    assert together.parameters.shape == (3, parameter_count((6, 5, 3)))
    for k in range(3):
        assert torch.equal(together.parameters[k], Network((6, 5, 3), seed=7 + k, init="normal").parameters)
    together.parameters[1].fill_(-1)
    assert all((W[1] == -1).all() and not (W[0] == -1).any() for W in together.weights)


COPIES: dict[str, Callable[[Network], Network]] = {
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "to": lambda network: network.to(),
}


@pytest.mark.parametrize("networks", [None, 2])
@pytest.mark.parametrize("way", COPIES)
def test_copied_network_learns(way: str, networks: int | None) -> None:
    original = Network((8, 6, 4), output_activation="identity", dtype=torch.float64, networks=networks)
    before, network = original.parameters.clone(), COPIES[way](original)
    assert torch.equal(network.parameters, before)
    x, y = torch.rand(20, 8, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[torch.arange(20) % 4]
    sgd, start = SGD(network, 0.1), example_costs(forward(network, x), y).mean()
    for _ in range(50):
        sgd.step(backward(network, forward(network, x), y).gradient)
    assert example_costs(forward(network, x), y).mean() < 0.9 * start
    parts = [tensor.flatten(len(network.leading)) for W, b, _ in network.layers for tensor in (W, b.unsqueeze(-1))]
    assert torch.equal(torch.cat(parts, -1), network.parameters), "its tensors are views into its parameters"
    assert way == "copy" or torch.equal(original.parameters, before), "it has parameters of its own"


def test_parameters_can_only_be_changed_in_place(tiny: Network) -> None:
    for name in ("parameters", "weights", "biases", "layers", "sizes", "activation"):
        with pytest.raises(AttributeError, match=rf"network\.{name} cannot be assigned: .*parameters\.copy_\(vector\)"):
            setattr(tiny, name, getattr(tiny, name))
    with pytest.raises(TypeError, match=r"cannot be replaced: .*network\.weights\[0\]\.copy_\(W\)"):
        tiny.weights[0] = torch.zeros(4, 5)
    tiny.parameters.copy_(torch.zeros(39))
    assert not tiny.weights[0].any()


@pytest.mark.parametrize("part", ["parameters", "weights", "biases"])
def test_views_of_other_memory_than_the_parameters_are_refused(part: str, tiny: Network) -> None:
    tensor = tiny.parameters if part == "parameters" else getattr(tiny, part)[1]
    tensor.data = tensor.clone()
    with pytest.raises(ValueError, match=r"no longer views into the parameters .*change the numbers in place"):
        forward(tiny, torch.zeros(1, 5, dtype=torch.float64))


def test_networks_that_were_sent_to_other_processes_learn_there(tiny: Network) -> None:
    with FORK.Pool(2) as pool:
        costs = pool.map(descend, [tiny, Network((5, 4, 3), dtype=torch.float64, seed=1)])
    assert all(after < 0.5 * before for before, after in costs)


def descend(network: Network) -> tuple[float, float]:
    """The cost before and after 50 steps."""
    x, y = torch.eye(5, dtype=torch.float64), torch.eye(5, 3, dtype=torch.float64)
    sgd, costs = SGD(network, 3.0), []
    for _ in range(51):
        passed = forward(network, x)
        costs.append(example_costs(passed, y).mean().item())
        sgd.step(backward(network, passed, y).gradient)
    return costs[0], costs[-1]
