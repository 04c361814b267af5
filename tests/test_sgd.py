from typing import Any

import pytest
import torch

from bp_torch.network import Network
from bp_torch.sgd import SGD


@pytest.mark.parametrize(("sizes", "steps"), [((5, 4, 3), 50), ((784, 300, 10), 3)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("decay_biases", [False, True])
def test_steps_equal_those_of_torch_optim(
    momentum: float, weight_decay: float, decay_biases: bool, sizes: tuple[int, ...], steps: int
) -> None:
    network = Network(sizes, init="normal", dtype=torch.float64)
    weights = [w.clone().requires_grad_() for w in network.weights]
    biases = [b.clone().requires_grad_() for b in network.biases]
    groups: list[dict[str, Any]] = [
        {"params": weights},
        {"params": biases, "weight_decay": weight_decay * decay_biases},
    ]
    reference = torch.optim.SGD(groups, lr=0.3, momentum=momentum, weight_decay=weight_decay)
    ours = SGD(network, 0.3, momentum=momentum, weight_decay=weight_decay, decay_biases=decay_biases)
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        gradient = torch.randn(len(network.parameters), dtype=torch.float64, generator=generator)
        before = gradient.clone()
        ours.step(gradient)
        assert torch.equal(gradient, before), "the gradient is not changed"
        scratch = Network(sizes, dtype=torch.float64)
        scratch.parameters.copy_(gradient)
        for parameters, gradients in ((weights, scratch.weights), (biases, scratch.biases)):
            for parameter, part in zip(parameters, gradients, strict=True):
                parameter.grad = part.clone()
        reference.step()
    for one, other in zip([*network.weights, *network.biases], [*weights, *biases], strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-13, atol=1e-13)


def test_several_networks_step_as_each_of_them_alone() -> None:
    arguments: dict[str, Any] = {"learning_rate": 0.3, "momentum": 0.9, "weight_decay": 0.01}
    together = Network((5, 4, 3), dtype=torch.float64, networks=2)
    alone = [Network((5, 4, 3), dtype=torch.float64, seed=seed) for seed in (0, 1)]
    optimizers = [SGD(network, **arguments) for network in (together, *alone)]
    for _ in range(3):
        gradient = torch.randn(2, 39, dtype=torch.float64)
        for optimizer, part in zip(optimizers, (gradient, *gradient), strict=True):
            optimizer.step(part)
    assert torch.equal(together.parameters, torch.stack([network.parameters for network in alone]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("decay_biases", [False, True])
def test_several_networks_step_with_their_own_settings(dtype: torch.dtype, decay_biases: bool) -> None:
    settings = {"learning_rate": [0.3, 1.0, 3.0], "momentum": [0.9, 0.0, 0.5], "weight_decay": [0.0, 0.01, 0.1]}
    together = Network((5, 4, 3), init="normal", dtype=dtype, networks=3)
    tensors: dict[str, Any] = {name: torch.tensor(values, dtype=torch.float64) for name, values in settings.items()}
    optimizer = SGD(together, **tensors, decay_biases=decay_biases)
    alone = [together[k].to() for k in range(3)]
    arguments: list[dict[str, Any]] = [{name: values[k] for name, values in settings.items()} for k in range(3)]
    optimizers = [SGD(alone[k], **arguments[k], decay_biases=decay_biases) for k in range(3)]
    generator = torch.Generator().manual_seed(7)
    for step in range(5):
        optimizer.learning_rate = tensors["learning_rate"] / (1 + step)
        gradient = torch.randn(3, 39, dtype=torch.float64, generator=generator).to(dtype)
        optimizer.step(gradient)
        for own, rate, part in zip(optimizers, settings["learning_rate"], gradient, strict=True):
            own.learning_rate = rate / (1 + step)
            own.step(part)
    expected = torch.stack([network.parameters for network in alone])
    tolerance = {torch.float64: 1e-14, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(together.parameters, expected, rtol=tolerance, atol=tolerance)


def test_settings_of_several_networks_are_not_rounded_to_bfloat16() -> None:
    momentum = [0.9, 0.99]  # the nearest of 8 bits are 0.8984 and 0.9883
    together = Network((5, 4, 3), init="normal", dtype=torch.bfloat16, networks=2)
    alone = [network.to() for network in together]
    optimizer = SGD(together, 0.5, momentum=torch.tensor(momentum, dtype=torch.float64))
    optimizers = [SGD(network, 0.5, momentum=own) for network, own in zip(alone, momentum, strict=True)]
    for gradient in torch.randn(20, 2, 39, generator=torch.Generator().manual_seed(7)).bfloat16():
        optimizer.step(gradient)
        for own, part in zip(optimizers, gradient, strict=True):
            own.step(part)
    assert torch.equal(together.parameters, torch.stack([network.parameters for network in alone]))


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "weight_decay"])
def test_settings_of_other_networks_raise_value_error(name: str) -> None:
    arguments: dict[str, Any] = {"learning_rate": 0.3} | {name: torch.tensor([0.1, 0.2])}
    for networks in (None, 3):
        with pytest.raises(ValueError, match=r"one for each network, .*, got a tensor of shape \(2,\)"):
            SGD(Network((5, 4, 3), networks=networks), **arguments)
    optimizer = SGD(Network((5, 4, 3), networks=2), **arguments)
    with pytest.raises(ValueError, match="learning rate is a positive number, not -1"):
        optimizer.learning_rate = torch.tensor([0.1, -1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning rate is a positive number, not 0.0"),
        ({"learning_rate": float("nan")}, "learning rate is a positive number, not nan"),
        ({"learning_rate": -1.0}, "learning rate is a positive number, not -1.0"),
        ({"learning_rate": 1.0, "momentum": 1.0}, "momentum is at least 0 and below 1, not 1.0"),
        ({"learning_rate": 1.0, "weight_decay": -1.0}, "weight decay is zero or a positive number, not -1.0"),
    ],
)
def test_values_out_of_range_raise_value_error(tiny: Network, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGD(tiny, **arguments)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (torch.float32, -1.0, "the learning rate is a positive number, not -1.0"),
        (torch.float32, 0.0, "the learning rate is a positive number, not 0.0"),
        (torch.float32, float("nan"), "the learning rate is a positive number, not nan"),
        (torch.float32, 1e-50, "the learning rate is a positive number, but 1e-50 is 0 in float32"),
        (torch.float32, 1e300, r"the learning rate is a positive number, but 1e\+300 is infinite in float32"),
        (torch.float16, 1e-8, "the learning rate is a positive number, but 1e-08 is 0 in float16"),
    ],
)
def test_learning_rate_that_trains_nothing_raises_value_error(dtype: torch.dtype, value: float, message: str) -> None:
    network = Network((5, 4, 3), dtype=dtype)
    sgd = SGD(network, 1.0)
    with pytest.raises(ValueError, match=message):
        sgd.learning_rate = value
    assert sgd.learning_rate == 1.0
    with pytest.raises(ValueError, match=message):
        SGD(network, value)


def test_weight_decay_is_bounded_by_the_dtype() -> None:
    with pytest.raises(
        ValueError, match=r"weight decay is zero or a positive number, but 1e\+308 is infinite in float32"
    ):
        SGD(Network((5, 4, 3)), 1.0, weight_decay=1e308)


@pytest.mark.parametrize(
    "gradient", [torch.ones(1), torch.ones(39, dtype=torch.float64), torch.ones(39, dtype=torch.int64)]
)
def test_gradient_that_does_not_fit_raises_value_error(gradient: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"the gradient is \(\d+,\) of .*, wanted \(39,\) of torch\.float32"):
        SGD(Network((5, 4, 3)), 1.0).step(gradient)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_of_lower_precision_steps_parameters_of_higher(momentum: float) -> None:
    network, like = Network((5, 4, 3)), Network((5, 4, 3))
    gradient = torch.linspace(-1, 1, 39).bfloat16()
    ours = SGD(network, 0.1, momentum=momentum)
    reference = torch.optim.SGD([like.parameters], lr=0.1, momentum=momentum)
    for _ in range(3):
        ours.step(gradient)
        like.parameters.grad = gradient.float()
        reference.step()
    torch.testing.assert_close(network.parameters, like.parameters, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_a_step_would_not_use_cannot_be_assigned(momentum: float, tiny: Network) -> None:
    optimizer = SGD(tiny, 0.3, momentum=momentum, weight_decay=momentum / 100)
    before = dict(vars(optimizer))
    for name in ("momentum", "weight_decay", "velocity", "rate", "parameters"):
        with pytest.raises(AttributeError, match=rf"optimizer\.{name} cannot be assigned.*: (make|copy)"):
            setattr(optimizer, name, torch.zeros_like(tiny.parameters))
    assert all(vars(optimizer)[name] is value for name, value in before.items())
    optimizer.learning_rate = 0.1
    assert optimizer.learning_rate == 0.1 and optimizer.rate == torch.tensor(0.1, dtype=tiny.dtype)


def test_next_step_uses_the_current_learning_rate(tiny: Network) -> None:
    sgd, before = SGD(tiny, 1.0), tiny.parameters.clone()
    sgd.learning_rate = 0.25
    sgd.step(torch.ones(39, dtype=torch.float64))
    assert torch.equal(tiny.parameters, before - 0.25)
