"""The hand-written gradient against autograd, and that each fault one could plant in it is caught."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, vmap

from bp_torch import backprop
from bp_torch.activations import ACTIVATIONS, Activation
from bp_torch.backprop import Trace, backward, costs, desires, forward, input_gradient, per_example_gradients
from bp_torch.costs import COSTS, Cost
from bp_torch.network import Network, layer_views
from tests.conftest import REFERENCE_COSTS, Reference, relative_error

SIZES = {1: (9, 4), 2: (9, 6, 4), 3: (9, 7, 6, 4), 4: (9, 8, 7, 6, 4)}

COMBINATIONS = [
    (activation, output, cost)
    for activation, output, cost in product(ACTIVATIONS, ACTIVATIONS, COSTS)
    if COSTS[cost].absorbs in (None, output)
]

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def a_batch(network: Network, batch: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, network.sizes[0], generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(network.sizes[-1], (batch,), generator=generator)
    y = torch.eye(network.sizes[-1], dtype=torch.float64)[labels]
    return x.to(network.parameters), y.to(network.parameters)


def worst_error(network: Network, x: Tensor, y: Tensor, cost: str) -> float:
    """The largest relative error over every tensor of the backward: each ∂C/∂W^l and ∂C/∂b^l, each δ^l, ∂C/∂x."""
    reference = Reference(network, x, y, cost)
    trace = forward(network, x)
    gradient = backward(network, trace, y, cost)
    ours = [*flatten(layer_views(gradient, network.sizes)), *trace.deltas, input_gradient(network, trace)]
    wanted = [*flatten(layer_views(reference.gradient, network.sizes)), *reference.deltas, reference.x_gradient]
    return max(relative_error(one, other) for one, other in zip(ours, wanted, strict=True))


def flatten(views: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
    return [*views[0], *views[1]]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("depth", SIZES)
@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_every_gradient_is_autograds(
    activation: str, output: str, cost: str, depth: int, dtype: torch.dtype, device: torch.device
) -> None:
    network = Network(
        SIZES[depth], activation=activation, output_activation=output, seed=depth, dtype=dtype, device=device
    )
    for batch in (1, 2, 7, 100):
        x, y = a_batch(network, batch, seed=batch)
        assert worst_error(network, x, y, cost) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_the_cost_is_torchs_own(activation: str, output: str, cost: str) -> None:
    network = Network(SIZES[3], activation=activation, output_activation=output, dtype=torch.float64)
    x, y = a_batch(network, 7)
    torch.testing.assert_close(costs(forward(network, x), y, cost).mean(), Reference(network, x, y, cost).cost)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=5).map(tuple),
    combination=st.sampled_from(COMBINATIONS),
    batch=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    saturation=st.sampled_from([1.0, 43.0, 300.0]),
)
def test_any_network_agrees_saturated_ones_too(
    sizes: tuple[int, ...], combination: tuple[str, str, str], batch: int, seed: int, saturation: float
) -> None:
    activation, output, cost = combination
    network = Network(sizes, activation=activation, output_activation=output, seed=seed, dtype=torch.float64)
    x, y = a_batch(network, batch, seed, scale=saturation)
    assert worst_error(network, x, y, cost) <= 1e-12 * digits_lost(network, x)


def digits_lost(network: Network, x: Tensor) -> float:
    """How much saturation magnifies rounding: 1 − a² of an a near ±1 is the difference of two near numbers."""
    trace = forward(network, x)
    lost = 1.0
    for layer, a in enumerate(trace.activations[1:]):
        if network.activation_of(layer) in ("tanh", "sigmoid"):
            slopes = trace.slope(layer)
            lost *= max(1.0, 1e-3 / slopes[slopes > 0].min().item()) if (slopes > 0).any() else 1.0
        assert a.isfinite().all()
    return lost


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batch=st.integers(1, 20), seed=st.integers(0, 1000), dead=st.integers(0, 4))
def test_relu_at_exactly_zero_agrees(batch: int, seed: int, dead: int) -> None:
    network = Network((6, 5, 5, 3), activation="relu", output_activation="relu", seed=seed, dtype=torch.float64)
    for w in network.weights[:2]:
        w[:dead] = 0  # with zero biases, z is exactly 0 there
    x, y = a_batch(network, batch, seed)
    assert worst_error(network, x, y, "quadratic") <= 1e-12
    assert not dead or not forward(network, x).activations[1][:, :dead].any()


@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_per_example_gradients_are_those_of_torch_func(activation: str, output: str, cost: str) -> None:
    network = Network(SIZES[3], activation=activation, output_activation=output, dtype=torch.float64, init="normal")
    x, y = a_batch(network, 7)
    if cost == "binary-cross-entropy":  # torch's stable form takes the weighted sums
        model = Network(SIZES[3], activation=activation, output_activation="identity", dtype=torch.float64)
        model.parameters.copy_(network.parameters)
        module = model.to_sequential()
    else:
        module = network.to_sequential()

    def example_cost(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(module, parameters, (x[None],))
        return REFERENCE_COSTS[cost](outputs, outputs, y[None])

    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    wanted = vmap(grad(example_cost), in_dims=(None, 0, 0))(parameters, x, y)
    ours = per_example_gradients(network, x, y, cost)
    assert relative_error(ours, torch.cat([part.flatten(1) for part in wanted.values()], 1)) <= 1e-12


@pytest.mark.parametrize(("activation", "output", "cost"), COMBINATIONS)
def test_the_mean_over_examples_is_the_gradient_of_the_batch(activation: str, output: str, cost: str) -> None:
    network = Network(SIZES[4], activation=activation, output_activation=output, dtype=torch.float64)
    x, y = a_batch(network, 50)
    each = per_example_gradients(network, x, y, cost)
    assert each.shape == (50, len(network.parameters))
    assert relative_error(each.mean(0), backward(network, forward(network, x), y, cost)) <= 1e-12


def test_the_wishes_of_the_outputs_add_up(tiny: Network) -> None:
    x, y = a_batch(tiny, 6)
    trace = forward(tiny, x)
    backward(tiny, trace, y)
    one_by_one = sum(trace.deltas[1][:, j : j + 1] * tiny.weights[1][j] for j in range(3))
    assert isinstance(one_by_one, Tensor)
    torch.testing.assert_close(desires(trace.deltas[1], tiny.weights[1]), one_by_one)


def test_a_share_of_a_batch_counts_by_the_whole(tiny: Network) -> None:
    x, y = a_batch(tiny, 10)
    whole = backward(tiny, forward(tiny, x), y).clone()
    shares = [backward(tiny, forward(tiny, x[part]), y[part], examples=10) for part in (slice(0, 7), slice(7, 10))]
    torch.testing.assert_close(shares[0] + shares[1], whole, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("batch", [4, 10])
def test_a_trace_serves_batch_after_batch_and_short_ones(tiny: Network, batch: int) -> None:
    trace = Trace(tiny, 10)
    backward(tiny, forward(tiny, a_batch(tiny, 10, seed=1)[0], trace), a_batch(tiny, 10, seed=1)[1])
    x, y = a_batch(tiny, batch, seed=2)
    again = backward(tiny, forward(tiny, x, trace), y)
    assert torch.equal(again, backward(tiny, forward(tiny, x), y))
    assert again.data_ptr() == trace.gradient.data_ptr(), "in the same memory"


def test_pixels_may_stay_bytes_when_the_trace_scales_them(tiny: Network) -> None:
    x, y = a_batch(tiny, 8)
    trace = Trace(tiny, 8, x_scale=1 / 255)
    ours = backward(tiny, forward(tiny, x * 255, trace), y)
    torch.testing.assert_close(ours, Reference(tiny, x, y, "quadratic").gradient, rtol=1e-12, atol=1e-14)


def test_inputs_that_require_grad_are_taken_as_they_are(tiny: Network) -> None:
    x, _ = a_batch(tiny, 3)
    assert torch.equal(forward(tiny, x.requires_grad_()).activations[-1], forward(tiny, x.detach()).activations[-1])
    y = torch.eye(3, dtype=torch.float64)
    plain = backward(tiny, forward(tiny, x), y)
    assert torch.equal(backward(tiny, forward(tiny, x), y.clone().requires_grad_()), plain)


# ---- planted faults: every one must be caught by the comparison that the tests above rest on ----


def no_mean(cost: Cost, a: Tensor, y: Tensor, slope: Tensor, share: Tensor, out: Tensor) -> Tensor:
    return cost.error(a, y, out).mul_(slope)


def no_output_slope(cost: Cost, a: Tensor, y: Tensor, slope: Tensor, share: Tensor, out: Tensor) -> Tensor:
    return cost.error(a, y, out).mul_(share)


def no_hidden_slope(delta: Tensor, w: Tensor, slope: Tensor, out: Tensor) -> Tensor:
    return torch.mm(delta, w, out=out)


def transposed_weight(delta: Tensor, w: Tensor, slope: Tensor, out: Tensor) -> Tensor:
    return torch.mm(delta, w.T, out=out).mul_(slope)


def bias_of_one_example(delta: Tensor, out: Tensor) -> Tensor:
    return out.copy_(delta[0])


def slope_of_z(a: Tensor, out: Tensor) -> Tensor:
    return torch.sub(1, a, out=out)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a dropped 1/B": lambda patch: patch.setattr(backprop, "output_delta", no_mean),
    "the 2 lost": lambda patch: patch.setitem(
        COSTS, "quadratic", COSTS["quadratic"]._replace(error=lambda a, y, out: torch.sub(a, y, out=out))
    ),
    "φ′ missing at the output": lambda patch: patch.setattr(backprop, "output_delta", no_output_slope),
    "φ′ missing in a hidden layer": lambda patch: patch.setattr(backprop, "hidden_delta", no_hidden_slope),
    "a transposed weight": lambda patch: patch.setattr(backprop, "hidden_delta", transposed_weight),
    "a bias gradient not summed": lambda patch: patch.setattr(backprop, "bias_gradient", bias_of_one_example),
    "a wrong φ′": lambda patch: patch.setitem(
        ACTIVATIONS, "sigmoid", Activation(ACTIVATIONS["sigmoid"].function, slope_of_z)
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network((5, 4, 4, 4), init="normal", dtype=torch.float64)
    x, y = a_batch(network, 7)
    assert worst_error(network, x, y, "quadratic") <= 1e-12
    FAULTS[fault](monkeypatch)
    assert worst_error(network, x, y, "quadratic") > 1e-2


# ---- bad input: what came, what was wanted ----


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.float64), r"x has shape \(2, 4\), wanted \(batch, 5\)"),
        (torch.zeros(5, dtype=torch.float64), r"x has shape \(5,\), wanted \(batch, 5\)"),
        (torch.zeros(2, 5), r"x is torch\.float32, the network is torch\.float64"),
        (torch.zeros(2, 5, dtype=torch.uint8), r"x is torch\.uint8, the network is torch\.float64"),
        (torch.zeros(2, 5, dtype=torch.float64, device="meta"), "x is on meta, the network is on cpu"),
    ],
)
def test_an_x_that_does_not_fit_is_refused(tiny: Network, x: Tensor, message: str) -> None:
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
def test_a_y_that_does_not_fit_is_refused(tiny: Network, y: Tensor, message: str) -> None:
    trace = forward(tiny, torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=message):
        backward(tiny, trace, y)


def test_an_empty_batch_has_no_mean(tiny: Network) -> None:
    trace = forward(tiny, torch.zeros(0, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="mean over an empty batch"):
        backward(tiny, trace, torch.zeros(0, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="an empty batch has no gradients"):
        per_example_gradients(tiny, torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64))


def test_a_batch_larger_than_the_trace_is_refused(tiny: Network) -> None:
    with pytest.raises(ValueError, match="the batch has 5 examples, the trace has room for 4"):
        forward(tiny, torch.zeros(5, 5, dtype=torch.float64), Trace(tiny, 4))


def test_a_trace_of_another_network_is_refused(tiny: Network) -> None:
    other = Trace(Network((5, 6, 3), dtype=torch.float64), 2)
    with pytest.raises(ValueError, match=r"the trace is of a network of sizes \(5, 6, 3\), this one is Network\(5-4-3"):
        forward(tiny, torch.zeros(2, 5, dtype=torch.float64), other)


def test_costs_that_do_not_fit_are_refused(tiny: Network) -> None:
    x, y = a_batch(tiny, 2)
    with pytest.raises(ValueError, match="unknown cost 'hinge': choose from quadratic, "):
        backward(tiny, forward(tiny, x), y, "hinge")
    with pytest.raises(ValueError, match="unknown cost 'hinge': choose from quadratic, "):
        costs(forward(tiny, x), y, "hinge")
    with pytest.raises(ValueError, match=r"y has shape \(2, 2\), the outputs have \(2, 3\)"):
        costs(forward(tiny, x), y[:, :2])
    relus = Network((5, 3), output_activation="relu", dtype=torch.float64)
    with pytest.raises(ValueError, match="binary-cross-entropy needs sigmoid outputs, the network has relu"):
        backward(relus, forward(relus, x), y, "binary-cross-entropy")
