import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from bp_torch.backprop import backward, forward
from bp_torch.data import Examples, first_shuffled, one_hot, permutation
from bp_torch.runlog import RunLog
from bp_torch.training import (
    Config,
    TrainingError,
    choose_device,
    default_run_name,
    evaluate,
    first_not_finite,
    new_folder,
    open_run,
    spread,
    train,
)
from bp_torch.walk import Seen
from tests.conftest import REFERENCE_COSTS, relative_error

CPU = torch.device("cpu")


@pytest.mark.parametrize("cost", ["quadratic", "softmax-cross-entropy"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ten_steps_are_those_of_sequential_autograd_and_torch_optim(
    cost: Any, momentum: float, mnist: tuple[Examples, Examples]
) -> None:
    examples = first_shuffled(mnist[0], 950, seed=0)  # the tenth batch is short
    config = Config(cost=cost, learning_rate=0.5, momentum=momentum, dtype="float64")
    network = config.network(CPU)
    model = network.to_sequential()
    order = permutation(950, seed=0, epoch=1)

    for _ in config.walk(network, config.descent(network), examples)(order):
        pass

    optimiser = torch.optim.SGD(model.parameters(), lr=0.5, momentum=momentum)
    for chosen in order.split(100):
        outputs = model(examples.x[chosen].double() / 255)
        optimiser.zero_grad()
        REFERENCE_COSTS[cost](outputs, outputs, one_hot(examples.labels[chosen], dtype=torch.float64)).backward()
        optimiser.step()
    wanted = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert relative_error(network.parameters, wanted) <= 1e-13


def test_evaluate_is_the_mean_over_all_examples(
    mnist: tuple[Examples, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = first_shuffled(mnist[1], 1234, seed=0)
    network = Config(dtype="float64", init="normal").network(CPU)
    outputs = network.to_sequential()(examples.x.double() / 255).detach()
    monkeypatch.setattr("bp_torch.training.CHUNK", 500 * sum(network.sizes))
    score = evaluate(network, examples, "quadratic")
    wanted = REFERENCE_COSTS["quadratic"](outputs, outputs, one_hot(examples.labels, dtype=torch.float64))
    assert score.cost == pytest.approx(wanted.item(), rel=1e-12)
    assert score.accuracy == (outputs.argmax(1) == examples.labels).double().mean().item()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": (784, 5)}, r"--sizes: wanted 784 \(pixels\) first, 10 \(digits\) last .*, got 784 5"),
        ({"sizes": ()}, "--sizes: .*got none"),
        ({"sizes": (784, 0, 10)}, "--sizes: .*got 784 0 10"),
        ({"epochs": -1}, "--epochs: wanted 0 or more, got -1"),
        ({"batch_size": 0}, "--batch-size: wanted 1 or more, got 0"),
        ({"train_examples": 0}, "--train-examples: wanted 1 or more, got 0"),
        ({"threads": 0}, "--threads: wanted 1 or more, got 0"),
        ({"seed": -1}, "--seed: wanted 0 or more, got -1"),
        ({"precision": "bf16", "dtype": "float64"}, "--precision bf16: wanted --dtype float32, got float64"),
        ({"precision": "tf32", "verify_every": 10}, "--verify-every: wanted --precision full or bf16"),
        ({"run_name": "../x"}, r"--run-name: wanted the name of one folder in --runs-dir, got '\.\./x'"),
        ({"run_name": ".."}, "--run-name: wanted the name of one folder"),
        ({"run_name": ""}, "--run-name: wanted the name of one folder"),
        ({"seed": 2**32}, r"--seed: wanted less than 2\^32, got 4294967296"),
        ({"learning_rate": 0.0}, "learning rate is a positive number, not 0.0"),
        ({"learning_rate_decay": -0.5}, "--learning-rate-decay: wanted 0 or more, got -0.5"),
        ({"momentum": 1.0}, "momentum is at least 0 and below 1, not 1.0"),
        ({"weight_decay": -0.1}, "weight decay is zero or a positive number, not -0.1"),
        ({"cost": "binary-cross-entropy", "output_activation": "relu"}, "needs sigmoid outputs, the network has relu"),
    ],
)
def test_a_config_that_no_run_can_have_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_the_output_activation_is_the_costs_own_unless_chosen() -> None:
    assert Config().outputs == "sigmoid"
    assert Config(cost="softmax-cross-entropy").outputs == "identity"
    assert Config(cost="softmax-cross-entropy", output_activation="tanh").outputs == "tanh"


def test_a_config_travels_through_json() -> None:
    config = Config(sizes=(784, 30, 10), data_dir=Path("d"), batch_size="full", train_examples=5)
    assert Config.from_json(config.to_json()) == config
    fields = json.loads(config.to_json())
    del fields["precision"], fields["replay"]
    assert Config.from_json(json.dumps(fields)) == config, "one of an older version"
    for text in ('{"sizes": [784, 10]}', "[]", "3"):
        with pytest.raises(ValueError, match="not the config of a run"):
            Config.from_json(text)


@pytest.mark.parametrize(
    "damage", [{"batch_size": "foo"}, {"activation": "foo"}, {"epochs": "2"}, {"seed": 1.5}, {"sizes": 3}, {"log": 1}]
)
def test_a_damaged_config_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"not the config of a run: .*{next(iter(damage))}"):
        Config.from_json(json.dumps(json.loads(Config().to_json()) | damage))


def test_a_default_name_that_is_taken_gets_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bp_torch.training.default_run_name", lambda config: "now")
    for name in ("now", "now_2", "now_3"):
        folder = new_folder(Config(runs_dir=tmp_path))
        assert folder == tmp_path / name
        folder.mkdir()
    assert new_folder(Config(runs_dir=tmp_path, run_name="now")) == tmp_path / "now"


def test_a_network_too_large_for_memory_is_one_line(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"--sizes: .* parameters fit in no memory"):
        Config(sizes=(784, 10**20, 10))
    with pytest.raises(TrainingError, match="no room for this network on cpu"):
        a_run(tmp_path, data_dir, "huge", sizes=(784, 10**9, 10))
    assert not (tmp_path / "huge").exists()


def test_a_full_batch_in_float16_has_a_finite_cost(tmp_path: Path, data_dir: Path) -> None:
    fields: dict[str, Any] = {"epochs": 2, "batch_size": "full", "cost": "softmax-cross-entropy", "learning_rate": 0.1}
    a_run(tmp_path, data_dir, "half", dtype="float16", log_every=1, **fields)  # Σ C_k is above 65,504
    events = EventAccumulator(str(tmp_path / "half"))
    events.Reload()
    assert [event.value for event in events.Scalars("cost/train")] == [pytest.approx(2.3, abs=0.1)] * 2


def test_examples_a_second_counts_examples(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("bp_torch.training.time.perf_counter", lambda: next(clock))  # an epoch takes a second
    a_run(tmp_path, data_dir, "short", epochs=1, train_examples=1001, batch_size=1000)
    events = EventAccumulator(str(tmp_path / "short"))
    events.Reload()
    assert [event.value for event in events.Scalars("examples_per_second")] == [1001]
    assert [event.step for event in events.Scalars("cost/train")] == [2], "a short epoch has its point too"


@pytest.mark.parametrize("log_embedding", [False, True])
def test_what_is_logged_of_the_test_images_is_what_the_network_says_of_them(
    log_embedding: bool,
    tmp_path: Path,
    data_dir: Path,
    mnist: tuple[Examples, Examples],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(RunLog, "end", lambda log, results, x, y, outputs, step: logged.update(outputs=outputs))
    monkeypatch.setattr(RunLog, "embedding", lambda log, x, y, outputs, hidden, step: logged.update(hidden=hidden))
    a_run(tmp_path, data_dir, "logged", epochs=1, train_examples=1000, log_embedding=log_embedding)
    model = open_run(tmp_path / "logged")[1].to_sequential()
    pixels = mnist[1].x.float() / 255
    torch.testing.assert_close(logged["outputs"], model(pixels).detach(), rtol=1e-4, atol=1e-5)
    assert ("hidden" in logged) == log_embedding
    if log_embedding:
        torch.testing.assert_close(logged["hidden"], model[:-2](pixels).detach(), rtol=1e-4, atol=1e-5)


def test_a_run_is_named_by_what_differs() -> None:
    assert default_run_name(Config(seed=1, cost="binary-cross-entropy")).endswith(
        "_784-16-16-10_cost-binary-cross-entropy_seed-1"
    )


def test_a_folder_without_a_trained_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no run in .*nowhere .*make one with: python train\.py"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(Config().to_json())
    with pytest.raises(
        TrainingError, match=r"no trained network in .*finish it with: python train\.py --resume .*begun"
    ):
        open_run(tmp_path / "begun")


def test_tf32_where_there_is_none_is_an_error(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(TrainingError, match="--precision tf32 takes an NVIDIA GPU of 2020 or later, not cpu"):
        a_run(tmp_path, data_dir, "tf32", precision="tf32")
    assert not (tmp_path / "tf32").exists()


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(TrainingError, match=f"no device '{device}' here"):
        choose_device(device)


def a_run(tmp_path: Path, data_dir: Path, name: str, **fields: Any) -> torch.Tensor:
    config = Config(data_dir=data_dir, runs_dir=tmp_path, run_name=name, device="cpu", **fields)
    folder = train(config)
    assert open_run(folder)[0] == config
    return open_run(folder)[1].parameters


def test_one_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path, data_dir: Path) -> None:
    first, again, other = (
        a_run(tmp_path, data_dir, name, epochs=2, train_examples=1050, seed=seed)
        for name, seed in (("first", 4), ("again", 4), ("other", 5))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_full_is_true_gradient_descent(tmp_path: Path, data_dir: Path, mnist: tuple[Examples, Examples]) -> None:
    fields: dict[str, Any] = {"train_examples": 500, "dtype": "float64", "learning_rate": 1.0}
    ours = a_run(tmp_path, data_dir, "full", epochs=1, batch_size="full", **fields)
    examples = first_shuffled(mnist[0], 500, seed=0)
    model = Config(dtype="float64").network(CPU).to_sequential()
    outputs = model(examples.x.double() / 255)
    cost = REFERENCE_COSTS["quadratic"](outputs, outputs, one_hot(examples.labels, dtype=torch.float64))
    gradient = nn.utils.parameters_to_vector(torch.autograd.grad(cost, list(model.parameters())))
    wanted = nn.utils.parameters_to_vector(model.parameters()).detach() - gradient
    assert relative_error(ours, wanted) <= 1e-14


@pytest.mark.parametrize("log", [False, True])
def test_a_cost_that_is_not_finite_stops_the_run(
    log: bool, tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = r"at step 2 \(epoch 1\) the activations of layer 2 went first"
    with pytest.raises(TrainingError, match=rf"cost is not finite: {first}; try a smaller --learning-rate.*last\.pt"):
        a_run(
            tmp_path,
            data_dir,
            "diverging",
            train_examples=500,
            activation="relu",
            output_activation="relu",
            log=log,
            log_every=2,
            learning_rate=1e30,
        )
    assert ("histograms hold NaN or infinity and are not logged" in capsys.readouterr().out) == log
    kept = torch.load(tmp_path / "diverging" / "last.pt", weights_only=True)
    assert kept["parameters"].isfinite().all()


def test_the_tensor_that_went_first_is_named_in_the_order_of_computing() -> None:
    network = Config().network(CPU)
    x, y = torch.rand(5, 784), one_hot(torch.arange(5))
    seen = forward(network, x)
    backward(network, seen, y)
    assert first_not_finite(network, Seen(seen, y), "quadratic") is None
    for tensor, name in (  # each goes before the ones above it
        (network.weights[0], "the weights of layer 1, after the step,"),
        (seen.weight_gradients[1], "the weight gradient of layer 2"),
        (seen.deltas[0], "δ of layer 1"),
        (seen.deltas[2], "δ of layer 3"),
        (seen.activations[2], "the activations of layer 2"),
    ):
        tensor[0, 0] = torch.inf
        assert first_not_finite(network, Seen(seen, y), "quadratic") == name


def test_the_defaults_reach_the_lessons_accuracy(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path, data_dir, "default", threads=1)
    last = capsys.readouterr().out.splitlines()[-2].split()
    assert int(last[0]) <= 20
    assert float(last[4].rstrip("%")) >= 94.5


@pytest.mark.parametrize(("n", "scored"), [(60_000, 8_572), (12_345, 12_345), (20_001, 6_667), (7, 7)])
def test_the_training_score_is_of_examples_from_all_over_the_set(n: int, scored: int) -> None:
    some = spread(Examples(torch.arange(n)[:, None], torch.arange(n)))
    assert len(some.labels) == scored
    assert torch.equal(some.x[:, 0], some.labels)
    assert some.labels[0] == 0 and n - some.labels[-1] <= n // scored
    assert (some.labels % 2).double().mean().item() == pytest.approx(0.5, abs=0.1), "writers take turns"
