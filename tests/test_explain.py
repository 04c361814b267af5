"""Every idea's statement as an identity in float64, every figure drawn once, and what the command refuses."""

import dataclasses
import re
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from bp_torch import explain
from bp_torch.backprop import backward, costs, forward, per_example_gradients
from bp_torch.costs import COSTS
from bp_torch.data import PIXEL_SCALE, Examples, one_hot
from bp_torch.explain import average, backwards, descent, gradient, hebbian, minimum, more_data, nudges, only, style
from bp_torch.explain.page import Section, html
from bp_torch.explain.subject import (
    CommonOptions,
    Example,
    ExampleOptions,
    Subject,
    UsageError,
    choose_example,
    each_cost,
    look,
    newest_run,
    open_subject,
    walk_down,
    whole_gradient,
)
from bp_torch.network import Network, layer_views
from bp_torch.training import Config, evaluate, train

ROOT = Path(__file__).parent.parent

KINDS = [
    ("sigmoid", "sigmoid", "quadratic"),
    ("relu", "identity", "softmax-cross-entropy"),
    ("tanh", "sigmoid", "binary-cross-entropy"),
]

QUICK: dict[str, dict[str, Any]] = {
    "gradient": {"wiggle": True},
    "only": {"steps": 30},
    "descent": {"full_steps": 5, "mini_steps": 40, "single_steps": 100, "grid": 5},
    "data": {"epochs": 1, "seeds": 2},
    "minimum": {"directions": 2},
}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A network that was really trained, briefly."""
    runs = tmp_path_factory.mktemp("runs")
    return train(Config(epochs=15, train_examples=2000, threads=1, data_dir=data_dir, runs_dir=runs, run_name="brief"))


@pytest.fixture(scope="session")
def subject(run: Path) -> Subject:
    """The trained network, with fewer test images."""
    whole = open_subject(CommonOptions(run=run))
    return whole._replace(test=Examples(whole.test.x[:500], whole.test.labels[:500]))


def some_network(kind: tuple[str, str, str], sizes: tuple[int, ...] = (784, 7, 5, 10)) -> Network:
    activation, output_activation, _ = kind
    return Network(sizes, activation=activation, output_activation=output_activation, seed=1, dtype=torch.float64)


def some_example(seed: int = 0) -> Example:
    x = torch.rand(1, 784, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Example(x, one_hot(torch.tensor([2]), dtype=torch.float64), 2, 0)


def by_autograd(network: Network, example: Example, cost: str) -> list[Tensor]:
    """∂C/∂a of every layer but the last, the pixels' first, as autograd has them."""
    a = example.x.clone().requires_grad_()
    kept, z = [a], a
    for layer, (w, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        z = torch.nn.functional.linear(a, w, b)
        name = network.activation_of(layer)
        a = z if name == "identity" else getattr(torch, name)(z)
        kept.append(a)
    value = COSTS[cost].per_example(z, a, example.y).mean()
    return [grad[0] for grad in torch.autograd.grad(value, kept[:-1])]


# ---- backwards and nudges ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_desires_sum_to_minus_the_derivative_by_the_activations(kind: tuple[str, str, str]) -> None:
    network, example = some_network(kind), some_example()
    trace = look(network, example, kind[2])
    expected = by_autograd(network, example, kind[2])
    steps = backwards.steps_back(network, trace)
    assert [step.layer for step in steps] == [3, 2, 1]
    for step in steps:
        torch.testing.assert_close(step.rows.sum(0), -expected[step.layer - 1], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(step.total, -expected[step.layer - 1], rtol=1e-12, atol=1e-15)


def test_on_a_trained_network_too(subject: Subject) -> None:
    result = backwards.explain(subject, backwards.Options(digit=2))
    expected = by_autograd(subject.exact, result.example, "quadratic")
    for step in result.steps:
        torch.testing.assert_close(step.rows.sum(0), -expected[step.layer - 1], rtol=1e-12, atol=1e-15)
        assert step.error < 1e-14


def test_each_row_is_one_neuron_in_proportion_to_its_weights() -> None:
    network, example = some_network(KINDS[0]), some_example()
    step = backwards.steps_back(network, look(network, example, "quadratic"))[0]
    torch.testing.assert_close(step.rows[3], step.wishes[3] * network.weights[-1][3], rtol=1e-13, atol=0)


def test_the_nudges_are_as_large_as_the_outputs_are_off(subject: Subject) -> None:
    result = nudges.explain(subject, nudges.Options(digit=7))
    off = result.example.y[0] - result.outputs
    torch.testing.assert_close(result.nudges, 2 * off, rtol=1e-14, atol=0)
    assert result.nudges[7] > 0 and (result.nudges[[j for j in range(10) if j != 7]] < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_ways_are_the_gradient(kind: tuple[str, str, str]) -> None:
    network, example = some_network(kind), some_example()
    trace = look(network, example, kind[2])
    weights, biases = layer_views(per_example_gradients(network, example.x, example.y, kind[2])[0], network.sizes)
    expected = by_autograd(network, example, kind[2])[-1]
    total = torch.zeros_like(expected)
    for neuron in range(10):
        ways = nudges.avenues(network, trace, neuron)
        torch.testing.assert_close(ways.weights, -weights[-1][neuron], rtol=1e-13, atol=0)
        assert ways.bias == pytest.approx(-biases[-1][neuron].item(), rel=1e-13)
        torch.testing.assert_close(ways.weights, ways.bias * ways.before, rtol=1e-12, atol=1e-18)
        torch.testing.assert_close(ways.activations, ways.bias * ways.w, rtol=1e-12, atol=1e-18)
        total += ways.activations
        sizes = [abs(nudge) for _, nudge in ways.ranked()]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == 1 + 2 * 5
    torch.testing.assert_close(total, -expected, rtol=1e-12, atol=1e-15)


# ---- hebbian ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_activation_times_wanted_times_slope_is_the_nudge(kind: tuple[str, str, str], layer: int) -> None:
    network, example = some_network(kind), some_example()
    trace = look(network, example, kind[2])
    parts = hebbian.hebbian(network, trace, example.y, kind[2], layer)
    result = hebbian.Hebbian(example, layer, *parts, "")
    torch.testing.assert_close(result.exact, result.nudges, rtol=1e-12, atol=1e-17)
    if kind[0] == "sigmoid":  # the loose analogy alone is off by φ′
        assert (result.together - result.nudges).abs().max() > 0.1 * result.nudges.abs().max()


# ---- gradient ----


def test_a_wiggle_agrees_with_the_gradient_to_the_second_order(subject: Subject) -> None:
    network, training = subject.exact, subject.training
    slope = whole_gradient(network, training, "quadratic")
    order = gradient.sensitivity_order(slope)
    places = [int(order[0]), int(order[50])]
    before = network.parameters.clone()
    errors: dict[float, list[tuple[float, float]]] = {}
    for h in (2e-2, 1e-2):
        moved = gradient.wiggle(network, training, "quadratic", slope, places, h)
        errors[h] = [(abs(w.up - w.foretold), abs(w.change - w.foretold)) for w in moved]
    for (coarse, coarse_both), (fine, fine_both) in zip(errors[2e-2], errors[1e-2], strict=True):
        assert coarse / fine == pytest.approx(4, rel=0.1)  # C(θ + h) − C(θ) − h g is of the second order in h
        assert coarse_both / fine_both == pytest.approx(8, rel=0.1)  # and the mean of up and down of the third
    assert torch.equal(network.parameters, before)


def test_the_costs_change_by_the_ratio_of_the_components(subject: Subject) -> None:
    result = gradient.explain(subject, gradient.Options(wiggle=True))
    most, least = result.wiggles[0], result.wiggles[-1]
    assert (most.place, least.place) == (int(result.order[0]), int(result.order[-1]))
    assert abs(most.change / least.change) == pytest.approx(result.ratio, rel=1e-3)
    assert result.gradient[result.order].abs().min() > 0
    assert len(result.order) + int((result.gradient == 0).sum()) == 13_002


def test_every_parameter_has_the_name_of_its_place() -> None:
    sizes = (784, 16, 16, 10)
    numbered = torch.arange(13_002)
    weights, biases = layer_views(numbered, sizes)
    name = gradient.parameter_name
    assert name(sizes, int(weights[0][3, 14 * 28 + 9])) == "weight from pixel (14, 9) to neuron 3 of layer 1"
    assert name(sizes, int(weights[2][8, 5])) == "weight from neuron 5 of layer 2 to neuron 8 of layer 3"
    assert name(sizes, int(biases[2][2])) == "bias of neuron 2 of layer 3"
    assert len({name(sizes, i) for i in range(13_002)}) == 13_002
    for wrong in (-1, 13_002):
        with pytest.raises(ValueError, match="no parameter"):
            name(sizes, wrong)


@pytest.mark.parametrize("chunk", [700, 10_000])
def test_the_gradient_over_chunks_is_that_of_one_batch(subject: Subject, chunk: int) -> None:
    network, cost = subject.exact, "quadratic"
    x = subject.training.x.double() * PIXEL_SCALE
    y = one_hot(subject.training.labels, dtype=torch.float64)
    trace = forward(network, x)
    torch.testing.assert_close(each_cost(network, subject.training, cost), costs(trace, y, cost), rtol=1e-13, atol=0)
    expected = backward(network, trace, y, cost)
    torch.testing.assert_close(whole_gradient(network, subject.training, cost, chunk), expected, rtol=0, atol=1e-15)


# ---- average ----


def test_the_average_of_the_wishes_is_the_negative_gradient(subject: Subject) -> None:
    network, n = subject.exact, len(subject.training.labels)
    parts = list(average.every_wish(network, subject.training, "quadratic", 230))
    alone = torch.cat(parts)
    wishes = average.add_up(iter(parts), n)
    at_once = -whole_gradient(network, subject.training, "quadratic", chunk=n)
    assert (wishes.average - at_once).abs().max() < 1e-15
    torch.testing.assert_close(wishes.deviation, alone.std(0, correction=0), rtol=1e-6, atol=1e-12)
    speaking, same = alone != 0, (alone.sign() == at_once.sign()) & (alone != 0)
    torch.testing.assert_close(wishes.agreement.nan_to_num(), (same.sum(0).double() / speaking.sum(0)).nan_to_num())
    lengths = alone.norm(dim=1).mean()
    assert wishes.cancelled == pytest.approx(1 - (at_once.norm() / lengths).item(), rel=1e-9)


def test_an_average_that_misses_a_few_examples_is_seen(subject: Subject) -> None:
    network, n = subject.exact, len(subject.training.labels)
    parts = list(average.every_wish(network, subject.training, "quadratic", 100))
    wishes = average.add_up(iter(parts[:-1]), n - 100)
    at_once = -whole_gradient(network, subject.training, "quadratic", chunk=n)
    assert (wishes.average - at_once).abs().max() > 1e-10


# ---- only, descent, data, minimum ----


def test_listening_to_one_digit_alone_makes_everything_that_digit(subject: Subject) -> None:
    before = subject.network.parameters.clone()
    results = [only.explain(subject, only.Options(digit=3, steps=150)) for _ in range(2)]
    share = results[0].shares[:, 3]
    assert share[0] < 0.2 and share[-1] > 0.6
    torch.testing.assert_close(results[0].shares.sum(1), torch.ones(151, dtype=torch.float64))
    assert torch.equal(results[0].shares, results[1].shares)
    assert torch.equal(subject.network.parameters, before)


def test_the_plane_holds_paths_that_are_flat() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.float64))[0].T
    points = torch.randn(30, 2, generator=generator, dtype=torch.float64) @ basis + 3
    plane = descent.plane_through(points)
    assert plane.explained == pytest.approx(1)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(plane.centre + plane.project(points) @ plane.axes, points)


def test_the_surface_is_the_cost_on_the_plane(subject: Subject) -> None:
    start = subject.config.network(torch.device("cpu"))
    plane = descent.plane_through(torch.stack([start.parameters, subject.network.parameters, start.parameters * 0.5]))
    places = plane.project(torch.stack([start.parameters, subject.network.parameters]))
    surface = descent.surface_under(plane, start, subject.test, "quadratic", places, 3)
    at = start.to()
    at.parameters.copy_(plane.centre + surface.u[2] * plane.axes[0] + surface.v[0] * plane.axes[1])
    expected = evaluate(at, subject.test, "quadratic").cost
    assert surface.costs[0, 2].item() == pytest.approx(expected, rel=1e-4)
    assert descent.cost_at(at, subject.network.parameters, subject.test, "quadratic") == pytest.approx(
        evaluate(subject.network, subject.test, "quadratic").cost, rel=1e-6
    )


def test_angles_are_angles_and_shrink_with_the_batch(subject: Subject) -> None:
    a = torch.tensor([1.0, 0.0])
    assert [descent.angle(a, torch.tensor(b)) for b in ([2.0, 0.0], [0.0, 3.0], [-1.0, 0.0])] == [0, 90, 180]
    angles = descent.angles_by_size(subject.network, subject.training, "quadratic", seed=0)
    means = [sum(found) / len(found) for found in angles.values()]
    assert list(angles) == [1, 10, 100, 1000] and means == sorted(means, reverse=True)


def test_a_path_is_the_walk_of_training(subject: Subject) -> None:
    config = dataclasses.replace(subject.config, epochs=2, learning_rate_decay=1.0)
    network = config.network(torch.device("cpu"))
    path = descent.take_path("", config, network.to(), subject.training, 40)
    for _ in walk_down(dataclasses.replace(config, learning_rate_decay=0.0), network, subject.training, ""):
        pass
    assert path.steps[0] == 0 and path.steps[-1] == 40
    assert torch.equal(path.points[-1], network.parameters)  # 2000 examples, 100 a step: two epochs, at one rate


def test_fewer_examples_are_seen_as_many_times_as_makes_up_for_it() -> None:
    config = Config(epochs=3, learning_rate_decay=0.9)
    fewer = more_data.schedule(config, 50, 2000)
    assert fewer.epochs * 50 == config.epochs * 2000 and fewer.batch_size == 50
    for passes in range(4):  # over all examples; each is 40 over the fewer
        assert fewer.rate_in(1 + 40 * passes) == pytest.approx(config.rate_in(1 + passes))


def test_more_examples_teach_more(subject: Subject) -> None:
    config = dataclasses.replace(subject.config, epochs=20)
    few, many = (more_data.learn(config, subject.training, subject.test, count) for count in (50, 2000))
    assert many.test.accuracy > few.test.accuracy and many.test.cost < few.test.cost
    assert few.training.accuracy > few.test.accuracy


def test_the_walk_again_ends_where_the_run_had_ended(subject: Subject) -> None:
    result = minimum.explain(subject, minimum.Options(directions=1))
    assert result.gap == 0
    assert [place.epoch for place in result.course] == list(range(16))
    assert result.course[-1].slope == pytest.approx(result.slope, rel=1e-3)
    assert result.along.slope == pytest.approx(-result.slope, rel=1e-9) and result.along.fall > 0


def test_the_curvature_is_that_of_the_hessian() -> None:
    network = some_network(KINDS[0], (784, 3, 10))
    x = torch.randint(256, (20, 784), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    examples = Examples(x, torch.arange(20) % 10)
    direction = torch.randn(len(network.parameters), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction /= direction.norm()

    def cost_of(theta: Tensor) -> Tensor:
        weights, biases = layer_views(theta, network.sizes)
        a = examples.x.double() * PIXEL_SCALE
        for w, b in zip(weights, biases, strict=True):
            a = torch.sigmoid(a @ w.T + b)
        return (a - one_hot(examples.labels, dtype=torch.float64)).square().sum(1).mean()

    _, product = torch.autograd.functional.hvp(cost_of, network.parameters, direction)
    found = minimum.curvature(network, examples, "quadratic", direction)
    assert found == pytest.approx((direction @ product).item(), rel=1e-5)


# ---- examples and runs ----


def test_an_example_is_chosen_by_digit_and_index(subject: Subject) -> None:
    labels = subject.training.labels
    assert choose_example(subject, ExampleOptions(index=5)).place == 5
    twos = (labels == 2).nonzero()[:, 0]
    assert choose_example(subject, ExampleOptions(digit=2, index=3)).place == twos[3]
    loudest = choose_example(subject, ExampleOptions(digit=2))
    deltas = [
        look(subject.exact, choose_example(subject, ExampleOptions(digit=2, index=i)), "quadratic").deltas[-1]
        for i in range(len(twos))
    ]
    assert loudest.place == twos[max(range(len(twos)), key=lambda i: deltas[i].norm().item())]
    for index in (-1, len(twos)):
        with pytest.raises(UsageError, match="--index: wanted 0 to"):
            choose_example(subject, ExampleOptions(digit=2, index=index))


def test_the_newest_run_is_taken(tmp_path: Path) -> None:
    import os

    for name, when in (("old", 1_000), ("new", 3_000), ("middle", 2_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "network.safetensors").touch()
        os.utime(tmp_path / name / "network.safetensors", (when, when))
    (tmp_path / "unfinished").mkdir()
    assert newest_run(tmp_path).name == "new"


# ---- figures ----


@pytest.mark.parametrize("name", explain.IDEAS)
def test_every_idea_draws_its_picture(subject: Subject, name: str) -> None:
    idea = explain.load_idea(name)
    result = idea.explain(subject, idea.Options(**QUICK.get(name, {})))
    figure = idea.figure(result)
    assert figure.get_size_inches()[0] * figure.dpi >= 1200
    head = " ".join(figure.texts[0].get_text().split())
    assert head == idea.finding(result) and len(head) > 30
    assert all(axes.get_xlabel() for axes in figure.axes if axes.lines and axes.get_xticks().size)
    figure.set_dpi(40)
    figure.canvas.draw()
    assert len(idea.table(result).splitlines()) > 4


@pytest.mark.parametrize("sizes", [(784, 10), (784, 40, 9, 8, 10)])
@pytest.mark.parametrize("name", ["gradient", "nudges", "backwards", "hebbian", "average"])
def test_other_networks_draw_as_well(subject: Subject, name: str, sizes: tuple[int, ...]) -> None:
    config = Config(sizes=sizes, activation="relu", cost="softmax-cross-entropy", init="he")
    few = Examples(subject.training.x[:60], subject.training.labels[:60])
    other = subject._replace(config=config, network=config.network(torch.device("cpu")), training=few, trained=False)
    idea = explain.load_idea(name)
    result = idea.explain(other, idea.Options())
    figure = idea.figure(result)
    figure.set_dpi(30)
    figure.canvas.draw()
    assert "Untrained" in idea.table(result)


def test_zero_is_in_the_middle_of_a_diverging_scale() -> None:
    page = style.Page(1.0, "a finding", "a note", "a network")
    drawn = style.diverging(page.axes(0, 0, 1, 1), torch.tensor([[-1.0, 3.0]]), 3.0)
    assert drawn.get_clim() == (-3.0, 3.0) and style.DIVERGING(0.5)[:3] == pytest.approx((0.97, 0.97, 0.96), abs=0.01)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (32.0, "32 times"),
        (3.24, "3.2 times"),
        (0.999, "1.0 times"),
        (4.1e6, "4.1 million times"),
        (76e12, "76 trillion times"),
    ],
)
def test_a_ratio_in_words(value: float, said: str) -> None:
    assert style.times(value) == said


def test_a_small_number_in_words() -> None:
    assert [style.number(value, 2) for value in (0, -4.12e-7, 0.0312, 1234)] == ["0", "−4.1·10⁻⁷", "0.031", "1,234"]


# ---- the command ----


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        explain.main(list(arguments))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "unknown idea 'nonsense': choose from gradient"),
        (["only", "--digit", "12"], "--digit: wanted 0 to 9, got 12"),
        (["nudges", "--neuron", "10"], "--neuron: wanted 0 to 9, got 10"),
        (["nudges", "--index", "2000", "--run", "RUN"], "--index: wanted 0 to 1999, got 2000"),
        (["backwards", "--digit", "2", "--index", "-1", "--run", "RUN"], "--index: wanted 0 to"),
        (["hebbian", "--layer", "4", "--run", "RUN"], "--layer: wanted 1 to 3, got 4"),
        (["average", "--first", "1996", "--run", "RUN"], "--first: wanted 0 to 1,994"),
        (["gradient", "--run", "no/such/run"], "no trained network in no/such/run; train one with: python train.py"),
        (["gradient"], "no run in runs/ holds a trained network; train one with: python train.py"),
        (["gradient", "--run", "RUN", "--out", "picture.bmp"], "--out: wanted a file ending in .png"),
        (["gradient", "--run", "RUN", "--untrained"], "exclude each other"),
        (["descent", "--mini-steps", "0"], "--mini-steps: wanted 1 or more, got 0"),
        (["all", "--nonsense"], "--nonsense"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str],
    said: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *(str(run) if argument == "RUN" else argument for argument in arguments))


def test_help_lists_the_ideas(capsys: pytest.CaptureFixture[str]) -> None:
    explain.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in (*explain.IDEAS, "all"))


def test_a_picture_is_written_and_logged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folder" / "picture.png"
    explain.main(["nudges", "--run", str(run), "--digit", "2", "--out", str(out), "--log"])
    said = capsys.readouterr().out
    assert "bang for the buck at output 2" in said and f"wrote {out}" in said
    assert out.read_bytes().startswith(b"\x89PNG")
    assert sum(b"explain/nudges" in events.read_bytes() for events in run.glob("events.out.tfevents.*")) == 1


def test_all_of_them_make_a_page(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explain, "IDEAS", {name: explain.IDEAS[name] for name in ("backwards", "hebbian")})
    before = set(run.iterdir())
    explain.main(["all", "--run", str(run), "--out", str(tmp_path), "--log"])
    (events,) = set(run.iterdir()) - before
    page = (tmp_path / "index.html").read_text()
    for name in ("backwards", "hebbian"):
        assert (tmp_path / f"{name}.png").is_file() and f'<img src="{name}.png"' in page
        assert f"explain/{name}".encode() in events.read_bytes()
    assert backwards.IDEA.split(",")[0] in page and "sum of the rows" in page


def test_what_is_not_html_is_escaped() -> None:
    page = html("a < b", [Section("x", "about", "1 < 2 & 3", "finding", "<table>", ("backprop.forward",))])
    assert "1 &lt; 2 &amp; 3" in page and "&lt;table&gt;" in page and "a &lt; b" in page


# ---- the table of the README ----

ROW = re.compile(r"^\| .* \| \[`(\w+)`\]\((bp_torch/explain/\w+\.py)\) \| (.*) \|$", re.MULTILINE)
CALL = re.compile(r"\[`([\w.]+)`\]\(bp_torch/(\w+)\.py\)")


def rows_of_the_readme() -> dict[str, tuple[str, tuple[str, ...]]]:
    text = (ROOT / "README.md").read_text()
    return {
        name: (file, tuple(f"{module}.{function}" for function, module in CALL.findall(made_by)))
        for name, file, made_by in ROW.findall(text)
    }


def entered(idea: Any, subject: Subject, options: Any) -> set[str]:
    """The functions of bp_torch, as "module.function", that run while the idea is computed."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        idea.explain(subject, options)
    finally:
        sys.setprofile(None)
    return {f"{Path(code.co_filename).stem}.{code.co_qualname}" for code in seen if "bp_torch" in code.co_filename}


def test_the_readme_names_every_idea() -> None:
    assert list(rows_of_the_readme()) == list(explain.IDEAS)


@pytest.mark.parametrize("name", explain.IDEAS)
def test_the_readme_names_the_functions_that_make_an_idea(subject: Subject, name: str) -> None:
    file, made_by = rows_of_the_readme()[name]
    idea = explain.load_idea(name)
    assert Path(idea.__file__) == ROOT / file
    assert made_by == idea.MADE_BY and made_by
    few = Examples(subject.training.x[:120], subject.training.labels[:120])
    small = subject._replace(training=few, config=dataclasses.replace(subject.config, epochs=1))
    quick = QUICK.get(name, {}) | ({"steps": 3} if name == "only" else {})
    assert set(made_by) <= entered(idea, small, idea.Options(**quick))
