import pytest
import torch

from bp_torch.convert import to_sequential
from bp_torch.data import Examples, first_shuffled, one_hot
from bp_torch.network import Network
from bp_torch.training import Config, evaluate
from tests.conftest import REFERENCE_COSTS

CPU = torch.device("cpu")


def test_evaluate_is_the_mean_over_all_examples(
    mnist: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = first_shuffled(mnist[1], 1234, seed=0)
    network = Config(dtype="float64", init="normal").network(CPU)
    outputs = to_sequential(network)(examples.x.double() / 255).detach()
    monkeypatch.setattr("bp_torch.training.evaluation.CHUNK", 500 * sum(network.sizes))
    score = evaluate(network, examples, "quadratic")
    expected = REFERENCE_COSTS["quadratic"](outputs, outputs, one_hot(examples.labels, dtype=torch.float64)).mean()
    assert score.cost == pytest.approx(expected.item(), rel=1e-12)
    assert score.accuracy == (outputs.argmax(1) == examples.labels).double().mean().item()


def test_evaluate_takes_one_network(mnist: tuple[Examples, Examples]) -> None:
    for several in (Network(networks=2), Network(networks=1)):
        with pytest.raises(ValueError, match=r"is not one network: take network\[0\], network\[1\] and so on"):
            evaluate(several, mnist[1], "quadratic")
