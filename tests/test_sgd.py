from typing import Any

import pytest
import torch

from bp_torch.network import Network
from bp_torch.sgd import SGD


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("decay_biases", [False, True])
def test_fifty_steps_are_those_of_torch_optim(momentum: float, weight_decay: float, decay_biases: bool) -> None:
    network = Network((5, 4, 3), init="normal", dtype=torch.float64)
    weights = [w.clone().requires_grad_() for w in network.weights]
    biases = [b.clone().requires_grad_() for b in network.biases]
    groups: list[dict[str, Any]] = [
        {"params": weights},
        {"params": biases, "weight_decay": weight_decay * decay_biases},
    ]
    torchs = torch.optim.SGD(
        groups,
        lr=0.3,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    ours = SGD(network, 0.3, momentum=momentum, weight_decay=weight_decay, decay_biases=decay_biases)
    generator = torch.Generator().manual_seed(7)
    for _ in range(50):
        gradient = torch.randn(len(network.parameters), dtype=torch.float64, generator=generator)
        before = gradient.clone()
        ours.step(gradient)
        assert torch.equal(gradient, before), "the gradient is left as it is"
        scratch = Network((5, 4, 3), dtype=torch.float64)
        scratch.parameters.copy_(gradient)
        for parameters, gradients in ((weights, scratch.weights), (biases, scratch.biases)):
            for parameter, part in zip(parameters, gradients, strict=True):
                parameter.grad = part.clone()
        torchs.step()
    for mine, theirs in zip([*network.weights, *network.biases], [*weights, *biases], strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning rate is a positive number, not 0.0"),
        ({"learning_rate": float("nan")}, "learning rate is a positive number, not nan"),
        ({"learning_rate": 1.0, "momentum": 1.0}, "momentum is at least 0 and below 1, not 1.0"),
        ({"learning_rate": 1.0, "weight_decay": -1.0}, "weight decay is zero or a positive number, not -1.0"),
    ],
)
def test_values_out_of_range_are_refused(tiny: Network, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGD(tiny, **arguments)


@pytest.mark.parametrize(
    "gradient", [torch.ones(1), torch.ones(39, dtype=torch.float64), torch.ones(39, dtype=torch.int64)]
)
def test_a_gradient_that_does_not_fit_is_refused(gradient: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"the gradient is \(\d+,\) of .*, wanted \(39,\) of torch\.float32"):
        SGD(Network((5, 4, 3)), 1.0).step(gradient)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_of_lower_precision_moves_parameters_of_higher(momentum: float) -> None:
    network, like = Network((5, 4, 3)), Network((5, 4, 3))
    gradient = torch.linspace(-1, 1, 39).bfloat16()
    ours, torchs = SGD(network, 0.1, momentum=momentum), torch.optim.SGD([like.parameters], lr=0.1, momentum=momentum)
    for _ in range(3):
        ours.step(gradient)
        like.parameters.grad = gradient.float()
        torchs.step()
    torch.testing.assert_close(network.parameters, like.parameters, rtol=1e-6, atol=1e-7)


def test_the_next_step_takes_the_learning_rate_of_now(tiny: Network) -> None:
    sgd, before = SGD(tiny, 1.0), tiny.parameters.clone()
    sgd.learning_rate = 0.25
    sgd.step(torch.ones(39, dtype=torch.float64))
    assert torch.equal(tiny.parameters, before - 0.25)
