"""The hand-written gradient against autograd, for one network and for several at once; each planted fault is caught."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, vmap

from bp_torch import backprop
from bp_torch.activations import ACTIVATIONS, Activation
from bp_torch.backprop import backward, example_costs, forward, input_gradient, per_example_gradients
from bp_torch.convert import to_sequential
from bp_torch.costs import COSTS, Cost
from bp_torch.network import Network, layer_views
from tests.conftest import DEVICES, REFERENCE_COSTS, Reference, relative_error

SIZES = {1: (9, 4), 2: (9, 6, 4), 3: (9, 7, 6, 4), 4: (9, 8, 7, 6, 4)}

COMBINATIONS = [
    (activation, output, cost)
    for activation, output, cost in product(ACTIVATIONS, ACTIVATIONS, COSTS)
    if COSTS[cost].absorbs in (None, output)
]

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def with_biases(network: Network) -> Network:
    """The network with random biases in place of zeros."""
    generator = torch.Generator().manual_seed(1)
    for b in network.biases:
        b.copy_(torch.randn(b.shape, generator=generator, dtype=torch.float64))
    return network


def a_batch(network: Network, batch: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, network.sizes[0], generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(network.sizes[-1], (batch,), generator=generator)
    y = torch.eye(network.sizes[-1], dtype=torch.float64)[labels]
    return x.to(network.parameters), y.to(network.parameters)


def worst_error(network: Network, x: Tensor, y: Tensor, cost: str) -> float:
    """The largest relative error of all that is computed: a^L, C, each ∂C/∂W^l and ∂C/∂b^l, each δ^l, ∂C/∂x."""
    reference, passed = Reference(network, x, y, cost), forward(network, x)
    gradient, deltas = backward(network, passed, y, cost)
    ours = [passed.activations[-1], example_costs(passed, y, cost).mean(-1)]
    expected = [reference.outputs, reference.cost]
    ours += [*flatten(layer_views(gradient, network.sizes)), *deltas, input_gradient(deltas[0], network.weights[0])]
    expected += [*flatten(layer_views(reference.gradient, network.sizes)), *reference.deltas, reference.x_gradient]
    return max(relative_error(one, other) for one, other in zip(ours, expected, strict=True))


def flatten(views: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]) -> list[Tensor]:
    return [*views[0], *views[1]]


@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_every_gradient_equals_autograd(activation: str, output: str, cost: str, device: torch.device) -> None:
    fields: dict[str, Any] = {"activation": activation, "output_activation": output, "device": device}
    for depth, dtype in product(SIZES, TOLERANCE):
        network = with_biases(Network(SIZES[depth], seed=depth, dtype=dtype, **fields))
        for batch in (1, 2, 7, 100):
            x, y = a_batch(network, batch, seed=batch)
            error = worst_error(network, x, y, cost)
            assert error <= TOLERANCE[dtype], f"{depth} layers in {dtype}, a batch of {batch}"


@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_costs_equal_those_of_torch(activation: str, output: str, cost: str) -> None:
    network = Network(SIZES[3], activation=activation, output_activation=output, dtype=torch.float64)
    x, y = a_batch(network, 7)
    ours = example_costs(forward(network, x), y, cost)
    assert ours.shape == (7,)
    torch.testing.assert_close(ours.mean(), Reference(network, x, y, cost).cost)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=5).map(tuple),
    combination=st.sampled_from(COMBINATIONS),
    batch=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    saturation=st.sampled_from([1.0, 43.0, 300.0]),
)
def test_random_networks_equal_autograd_saturated_ones_included(
    sizes: tuple[int, ...], combination: tuple[str, str, str], batch: int, seed: int, saturation: float
) -> None:
    activation, output, cost = combination
    network = Network(sizes, activation=activation, output_activation=output, seed=seed, dtype=torch.float64)
    x, y = a_batch(network, batch, seed, scale=saturation)
    assert worst_error(network, x, y, cost) <= 1e-12 * digits_lost(network, x)


def digits_lost(network: Network, x: Tensor) -> float:
    """How much saturation magnifies rounding: 1 − a² of an a near ±1 is the difference of two near numbers."""
    lost = 1.0
    for layer, a in enumerate(forward(network, x).activations[1:]):
        if network.activation_of(layer) in ("tanh", "scaled-tanh", "sigmoid"):
            phi_prime = network.layers[layer].phi.derivative(a)
            positive = phi_prime[phi_prime > 0]
            lost *= max(1.0, 1e-3 / positive.min().item()) if len(positive) else 1.0
        assert a.isfinite().all()
    return lost


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batch=st.integers(1, 20), seed=st.integers(0, 1000), dead=st.integers(0, 4))
def test_relu_at_exactly_zero_equals_autograd(batch: int, seed: int, dead: int) -> None:
    network = Network((6, 5, 5, 3), activation="relu", output_activation="relu", seed=seed, dtype=torch.float64)
    for w in network.weights[:2]:
        w[:dead] = 0  # with zero biases, z is exactly 0 there
    x, y = a_batch(network, batch, seed)
    assert worst_error(network, x, y, "quadratic") <= 1e-12
    assert not dead or not forward(network, x).activations[1][:, :dead].any()


@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_per_example_gradients_equal_torch_func(activation: str, output: str, cost: str) -> None:
    network = Network(SIZES[3], activation=activation, output_activation=output, dtype=torch.float64, init="normal")
    x, y = a_batch(network, 7)
    if cost == "binary-cross-entropy":  # torch's stable form takes the weighted sums
        model = Network(SIZES[3], activation=activation, output_activation="identity", dtype=torch.float64)
        model.parameters.copy_(network.parameters)
        module = to_sequential(model)
    else:
        module = to_sequential(network)

    def example_cost(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(module, parameters, (x[None],))
        return REFERENCE_COSTS[cost](outputs, outputs, y[None]).mean()

    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    expected = vmap(grad(example_cost), in_dims=(None, 0, 0))(parameters, x, y)
    ours = per_example_gradients(network, x, y, cost)
    assert relative_error(ours, torch.cat([part.flatten(1) for part in expected.values()], 1)) <= 1e-12


@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_mean_of_per_example_gradients_is_the_gradient(activation: str, output: str, cost: str) -> None:
    network = Network(SIZES[4], activation=activation, output_activation=output, dtype=torch.float64)
    x, y = a_batch(network, 50)
    each = per_example_gradients(network, x, y, cost)
    assert each.shape == (50, len(network.parameters))
    assert relative_error(each.mean(0), backward(network, forward(network, x), y, cost).gradient) <= 1e-12


def test_input_gradient_is_the_sum_over_neurons(tiny: Network) -> None:
    x, y = a_batch(tiny, 6)
    deltas = backward(tiny, forward(tiny, x), y).deltas
    one_by_one = sum(deltas[1][:, j : j + 1] * tiny.weights[1][j] for j in range(3))
    assert isinstance(one_by_one, Tensor)
    torch.testing.assert_close(input_gradient(deltas[1], tiny.weights[1]), one_by_one)


def test_gradients_of_shards_add_up_to_that_of_the_batch(tiny: Network) -> None:
    x, y = a_batch(tiny, 10)
    whole = backward(tiny, forward(tiny, x), y).gradient
    parts = [backward(tiny, forward(tiny, x[part]), y[part], examples=10) for part in (slice(0, 7), slice(7, 10))]
    torch.testing.assert_close(parts[0].gradient + parts[1].gradient, whole, rtol=1e-13, atol=1e-15)
    empty = backward(tiny, forward(tiny, x[:0]), y[:0], examples=10).gradient
    assert not empty.any()


def test_gradient_is_written_into_out(tiny: Network) -> None:
    x, y = a_batch(tiny, 4)
    out = torch.full_like(tiny.parameters, torch.nan)
    result = backward(tiny, forward(tiny, x), y, out=out)
    assert result.gradient is out
    assert torch.equal(out, backward(tiny, forward(tiny, x), y).gradient)


@pytest.mark.parametrize("part", ["x", "parameters", "weight", "activation"])
@pytest.mark.parametrize("networks", [None, 2])
def test_writing_between_forward_and_backward_raises_value_error(networks: int | None, part: str) -> None:
    network = Network((5, 4, 3), dtype=torch.float64, networks=networks)
    x, y = a_batch(network, 3)
    passed = forward(network, x)
    backward(network, passed, y)
    backward(network, passed, y)  # as often as one likes
    hidden = passed.activations[1]
    written = {"x": x, "parameters": network.parameters, "weight": network.weights[1], "activation": hidden}[part]
    written.mul_(1.5)
    with pytest.raises(ValueError, match="was written to after the forward pass: go forward again"):
        backward(network, passed, y)
    assert worst_error(network, x, y, "quadratic") <= 1e-12, "after another forward pass all is well"


def test_out_that_does_not_fit_raises_value_error(tiny: Network) -> None:
    x, y = a_batch(tiny, 4)
    passed, like = forward(tiny, x), tiny.parameters
    for out in (like.new_empty(3, len(like)), like.new_empty(len(like) + 1), like.new_empty(1, len(like)), like.half()):
        with pytest.raises(ValueError, match=r"out is \(.*, wanted \("):
            backward(tiny, passed, y, out=out)
    for out in (like, like.view(-1)):
        with pytest.raises(ValueError, match="out is in the memory of θ"):
            backward(tiny, passed, y, out=out)


def test_inputs_that_require_grad_are_accepted(tiny: Network) -> None:
    x, _ = a_batch(tiny, 3)
    assert torch.equal(forward(tiny, x.requires_grad_()).activations[-1], forward(tiny, x.detach()).activations[-1])
    y = torch.eye(3, dtype=torch.float64)
    plain = backward(tiny, forward(tiny, x), y).gradient
    assert torch.equal(backward(tiny, forward(tiny, x), y.clone().requires_grad_()).gradient, plain)


# ---- every size: batches to 257, layers to 300 wide, the 784 inputs ----

K = 3

EDGES = [*(2**n + d for n in range(1, 9) for d in (-1, 0, 1)), 99, 100, 101]
"""Where code that works in blocks, or on so many at most, would go wrong: 1, 2, 3, …, 255, 256, 257, and around 100."""

WIDTHS = st.sampled_from(EDGES) | st.integers(1, 300)
BATCHES = st.sampled_from(EDGES) | st.integers(1, 257)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Sizes of one to four layers, a third of them with the inputs of MNIST."""
    return draw(st.just(784) | WIDTHS | WIDTHS), *draw(st.lists(WIDTHS, min_size=1, max_size=4))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=shapes(),
    combination=st.sampled_from(COMBINATIONS),
    batch=BATCHES,
    networks=st.sampled_from([None, None, 1, K]),
    seed=st.integers(0, 2**32 - K),
)
@example((784, 300, 129, 65, 10), ("tanh", "sigmoid", "quadratic"), 257, None, 1)
@example((784, 64, 10), ("sigmoid", "sigmoid", "binary-cross-entropy"), 101, K, 2)
@example((65, 257, 64, 300), ("relu", "identity", "softmax-cross-entropy"), 128, K, 3)
@example((5, 4, 3), ("scaled-tanh", "scaled-tanh", "quadratic"), 60_000, None, 4)
@example((3, 1000, 2500, 3), ("tanh", "identity", "softmax-cross-entropy"), 2, None, 5)
def test_networks_of_every_size_equal_autograd(
    device: str,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    combination: tuple[str, str, str],
    batch: int,
    networks: int | None,
    seed: int,
) -> None:
    activation, output, cost = combination
    fields: dict[str, Any] = {"activation": activation, "output_activation": output, "networks": networks}
    network = with_biases(Network(sizes, **fields, seed=seed, dtype=dtype, device=device))
    x, y = batches(network, batch) if networks == K else a_batch(network, batch, seed)
    assert worst_error(network, x, y, cost) <= TOLERANCE[dtype]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=shapes(),
    combination=st.sampled_from(COMBINATIONS),
    batch=BATCHES,
    networks=st.sampled_from([None, K]),
    seed=st.integers(0, 2**32 - K),
)
@example((784, 65, 10), ("tanh", "sigmoid", "quadratic"), 20, None, 1)
@example((9, 7, 4), ("relu", "identity", "softmax-cross-entropy"), 257, K, 2)
def test_per_example_gradients_of_every_size_equal_autograd(
    sizes: tuple[int, ...], combination: tuple[str, str, str], batch: int, networks: int | None, seed: int
) -> None:
    activation, output, cost = combination
    fields: dict[str, Any] = {"activation": activation, "output_activation": output, "dtype": torch.float64}
    network = with_biases(Network(sizes, **fields, networks=networks, seed=seed))
    x, y = a_batch(network, min(batch, 1 + 2**20 // network.parameters.numel()), seed)
    ours = per_example_gradients(network, x, y, cost)
    for one, each in zip(network if networks else [network], ours.view(-1, *ours.shape[-2:]), strict=True):
        one_for_each_example = Network(sizes, **fields, networks=len(x))
        one_for_each_example.parameters.copy_(one.parameters)
        expected = Reference(one_for_each_example, x.unsqueeze(1), y.unsqueeze(1), cost).gradient
        assert max(map(relative_error, each, expected)) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_near_float64(dtype: torch.dtype) -> None:
    for activation, output, cost in COMBINATIONS:
        network = with_biases(Network(SIZES[3], activation=activation, output_activation=output, dtype=dtype))
        x, y = a_batch(network, 20)
        expected = Reference(network.to(dtype=torch.float64), x.double(), y.double(), cost).gradient
        error = relative_error(backward(network, forward(network, x), y, cost).gradient.double(), expected)
        assert error <= 4 * torch.finfo(dtype).eps, (activation, output, cost)


# ---- several networks at once: the leading dimension ----


@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_gradients_of_several_networks_equal_autograd(
    activation: str, output: str, cost: str, device: torch.device
) -> None:
    fields: dict[str, Any] = {"activation": activation, "output_activation": output, "device": device}
    for depth, dtype, batch in product(SIZES, TOLERANCE, (1, 7)):
        network = with_biases(Network(SIZES[depth], networks=K, dtype=dtype, **fields))
        for name, (x, y) in {"for all": a_batch(network, batch), "for each": batches(network, batch)}.items():
            error = worst_error(network, x, y, cost)
            assert error <= TOLERANCE[dtype], f"{depth} layers in {dtype}, one batch of {batch} {name}"


def batches(network: Network, batch: int) -> tuple[Tensor, Tensor]:
    """A batch for each of K networks: x (K, B, n_0) and y (K, B, n_L)."""
    x, y = zip(*(a_batch(network, batch, seed=k) for k in range(K)), strict=True)
    return torch.stack(x), torch.stack(y)


@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_several_networks_equal_each_of_them_alone(activation: str, output: str, cost: str) -> None:
    for depth, dtype in product(SIZES, TOLERANCE):
        fields = {"activation": activation, "output_activation": output, "dtype": dtype}
        several_equal_each_alone(SIZES[depth], cost, fields, f"{depth} layers in {dtype}")


def several_equal_each_alone(sizes: tuple[int, ...], cost: str, fields: dict[str, Any], case: str) -> None:
    """Gradient, costs and per-example gradients of K networks are those of each of them."""
    together = Network(sizes, networks=K, seed=5, **fields)
    alone = [Network(sizes, seed=5 + k, **fields) for k in range(K)]
    assert torch.equal(together.parameters, torch.stack([network.parameters for network in alone])), case
    with_biases(together)
    (x, y), (xs, ys) = a_batch(together, 7), batches(together, 7)
    given = {"one batch for all": (x, y), "a batch for each": (xs, ys), "other targets for each": (x, ys)}
    for said, (x_given, y_given) in given.items():
        passed = forward(together, x_given)
        ours = {
            "gradient": backward(
                together, passed, y_given, cost, out=torch.full_like(together.parameters, torch.nan)
            ).gradient,
            "costs": example_costs(passed, y_given, cost),
            "per-example gradients": per_example_gradients(together, x_given, y_given, cost),
        }
        for k, (network, x_k, y_k) in enumerate(zip(alone, x_given.expand_as(xs), y_given.expand_as(ys), strict=True)):
            network.parameters.copy_(together.parameters[k])
            passed = forward(network, x_k)
            expected = {
                "gradient": backward(network, passed, y_k, cost).gradient,
                "costs": example_costs(passed, y_k, cost),
                "per-example gradients": per_example_gradients(network, x_k, y_k, cost),
            }
            for name, one in ours.items():
                what = f"{name} of network {k} with {case}, {said}"
                assert one[k].shape == expected[name].shape, what
                assert relative_error(one[k], expected[name]) <= TOLERANCE[together.dtype], what


# ---- planted faults: every one must be caught by the comparison that the tests above rest on ----


def no_mean(cost: Cost, a: Tensor, y: Tensor, phi_prime: Tensor, examples: int) -> Tensor:
    return cost.derivative(a, y) * phi_prime


def no_output_phi_prime(cost: Cost, a: Tensor, y: Tensor, phi_prime: Tensor, examples: int) -> Tensor:
    return cost.derivative(a, y) / examples


def phi_prime_of_the_layer_above(patch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    output_delta, hidden_delta = backprop.output_delta, backprop.hidden_delta

    def output(cost: Cost, a: Tensor, y: Tensor, phi_prime: Tensor, examples: int) -> Tensor:
        seen.append(phi_prime)
        return output_delta(cost, a, y, phi_prime, examples)

    def hidden(delta: Tensor, W: Tensor, phi_prime: Tensor) -> Tensor:
        seen.append(phi_prime)
        return hidden_delta(delta, W, seen[-2])

    patch.setattr(backprop, "output_delta", output)
    patch.setattr(backprop, "hidden_delta", hidden)


def transposed_weight(delta: Tensor, W: Tensor, phi_prime: Tensor) -> Tensor:
    return delta @ W.mT * phi_prime


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a dropped 1/B": lambda patch: patch.setattr(backprop, "output_delta", no_mean),
    "the 2 lost": lambda patch: patch.setitem(COSTS, "quadratic", COSTS["quadratic"]._replace(derivative=torch.sub)),
    "φ′ missing at the output": lambda patch: patch.setattr(backprop, "output_delta", no_output_phi_prime),
    "φ′ missing in a hidden layer": lambda patch: patch.setattr(
        backprop, "hidden_delta", lambda delta, W, phi_prime: delta @ W
    ),
    "φ′ of the wrong layer": phi_prime_of_the_layer_above,
    "a transposed weight": lambda patch: patch.setattr(backprop, "hidden_delta", transposed_weight),
    "a bias gradient not summed": lambda patch: patch.setattr(
        backprop, "bias_gradient", lambda delta, out: out.copy_(delta[..., 0, :])
    ),
    "a weight gradient of one example": lambda patch: patch.setattr(
        backprop, "weight_gradient", lambda delta, a, out: out.copy_(delta[..., :1, :].mT @ a[..., :1, :])
    ),
    "a wrong φ′": lambda patch: patch.setitem(
        ACTIVATIONS, "sigmoid", Activation(ACTIVATIONS["sigmoid"].function, lambda a: 1 - a)
    ),
}


@pytest.mark.parametrize("networks", [None, K])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, networks: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"init": "normal", "dtype": torch.float64, "networks": networks}
    network = Network((5, 4, 4, 4), **fields)
    x, y = a_batch(network, 7)
    assert worst_error(network, x, y, "quadratic") <= 1e-12
    FAULTS[fault](monkeypatch)
    network = Network((5, 4, 4, 4), **fields)
    assert worst_error(network, x, y, "quadratic") > 1e-2


# ---- bad input: the message says what came and what was wanted ----


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.float64), r"x has shape \(2, 4\), wanted \(batch, 5\)"),
        (torch.zeros(5, dtype=torch.float64), r"x has shape \(5,\), wanted \(batch, 5\)"),
        (torch.zeros(3, 2, 5, dtype=torch.float64), r"x has shape \(3, 2, 5\), wanted \(batch, 5\)"),
        (torch.zeros(2, 5), r"x is torch\.float32, the network is torch\.float64"),
        (torch.zeros(2, 5, dtype=torch.uint8), r"x is torch\.uint8, the network is torch\.float64"),
        (torch.zeros(2, 5, dtype=torch.float64, device="meta"), "x is on meta, the network is on cpu"),
    ],
)
def test_x_that_does_not_fit_raises_value_error(tiny: Network, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forward(tiny, x)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.float64), r"y has shape \(2, 2\), wanted \(batch, 3\)"),
        (torch.zeros(3, 3, dtype=torch.float64), "y has 3 rows, the batch that went forward has 2"),
        (torch.zeros(2, 3), r"y is torch\.float32, the network is torch\.float64"),
        (torch.zeros(2, 3, dtype=torch.float64, device="meta"), "y is on meta, the network is on cpu"),
    ],
)
def test_y_that_does_not_fit_raises_value_error(tiny: Network, y: Tensor, message: str) -> None:
    passed = forward(tiny, torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=message):
        backward(tiny, passed, y)
    with pytest.raises(ValueError, match=message):
        example_costs(passed, y)


def test_list_or_array_says_how_to_make_a_tensor(tiny: Network) -> None:
    for x in ([[0.0] * 5], torch.zeros(1, 5).numpy(), None):
        said = rf"x is of the type {type(x).__name__}, wanted a tensor: torch\.tensor\(x, dtype=torch\.float64\)"
        with pytest.raises(ValueError, match=said):
            forward(tiny, x)  # type: ignore[arg-type]
    passed = forward(tiny, torch.zeros(1, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="y is of the type list, wanted a tensor"):
        backward(tiny, passed, [[0.0] * 3])  # type: ignore[arg-type]


def test_batch_of_other_networks_raises_value_error() -> None:
    network = Network((5, 3), networks=2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x has shape \(3, 4, 5\), wanted \(2, batch, 5\) for Network\(2 × 5-3"):
        forward(network, torch.zeros(3, 4, 5, dtype=torch.float64))


@pytest.mark.parametrize("examples", [2.5, float("nan"), True, -3])
def test_mean_is_over_a_whole_number_of_examples(examples: Any, tiny: Network) -> None:
    passed = forward(tiny, torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=f"a whole number of examples, at least one, not {examples}"):
        backward(tiny, passed, torch.zeros(2, 3, dtype=torch.float64), examples=examples)


def test_empty_batch_has_no_mean(tiny: Network) -> None:
    passed = forward(tiny, torch.zeros(0, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="a whole number of examples, at least one, not 0"):
        backward(tiny, passed, torch.zeros(0, 3, dtype=torch.float64))
    empty = torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64)
    assert per_example_gradients(tiny, *empty).shape == (0, 39)


@pytest.mark.parametrize("sizes", [(5, 4, 3), (5, 6, 3), (5, 3)])
def test_forward_pass_of_another_network_raises_value_error(tiny: Network, sizes: tuple[int, ...]) -> None:
    x, y = a_batch(tiny, 2)
    other = forward(Network(sizes, dtype=torch.float64), x)
    with pytest.raises(ValueError, match=r"the forward pass is of another network, Network.*; wanted one of Network"):
        backward(tiny, other, y)


def test_costs_that_do_not_fit_raise_value_error(tiny: Network) -> None:
    x, y = a_batch(tiny, 2)
    with pytest.raises(ValueError, match="unknown cost 'hinge': choose from quadratic, "):
        backward(tiny, forward(tiny, x), y, "hinge")
    with pytest.raises(ValueError, match="unknown cost 'hinge': choose from quadratic, "):
        example_costs(forward(tiny, x), y, "hinge")
    relus = Network((5, 3), output_activation="relu", dtype=torch.float64)
    with pytest.raises(ValueError, match="binary-cross-entropy needs sigmoid outputs, the network has relu"):
        backward(relus, forward(relus, x), y, "binary-cross-entropy")
