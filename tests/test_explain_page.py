"""The page in a real browser: its numbers against Python and autograd, and what one does with mouse and keyboard."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bp_torch import backprop
from bp_torch.activations import ACTIVATIONS
from bp_torch.backprop import backward, example_costs, forward
from bp_torch.commands import explain
from bp_torch.costs import COSTS
from bp_torch.data import PIXEL_SCALE, Examples, one_hot
from bp_torch.explain import content_of
from bp_torch.explain import page as exporter
from bp_torch.explain.subject import Subject, UsageError
from bp_torch.network import Network, layer_views
from bp_torch.recorder import Recording
from bp_torch.sgd import SGD
from bp_torch.training import Config
from tests.conftest import Reference

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

ROOT = Path(__file__).parent.parent
Page = Any

RUN = """([data, contents, names]) => {
  const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const filled = Object.entries(contents).map(([name, text]) => [name, floats(text)]);
  const recording = new lesson.Recording(data).run(Object.fromEntries(filled));
  const text = (floats) => Array.from(new Uint8Array(floats.buffer), (byte) => String.fromCharCode(byte)).join("");
  return Object.fromEntries(names.map((name) => [name, btoa(text(Float32Array.from(recording.read(name))))]));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(exporter.write_page(subject), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def opened(browser: Any, file: Path) -> Iterator[Page]:
    """The page in one tab for all tests; at the end no error and no request may have been seen."""
    page, trouble = browser.new_page(viewport={"width": 1400, "height": 950}, reduced_motion="reduce"), list[str]()
    page.on("pageerror", lambda error: trouble.append(error.stack or str(error)))
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on(
        "request", lambda request: None if re.match("(file|data|blob):", request.url) else trouble.append(request.url)
    )
    page.goto(file.as_uri())
    page.wait_for_selector("#title:not(:empty)")
    yield page
    page.close()
    assert trouble == []


def read(page: Page, recording: str, *names: str) -> list[Tensor]:
    """Named tensors of a recording in the page, as they are now, (n,)."""
    values = page.evaluate("([name, all]) => all.map((one) => lesson.recordings[name].read(one))", [recording, names])
    return [torch.tensor(value, dtype=torch.float32) for value in values]


def run(page: Page, data: dict[str, Any], names: list[str], **contents: Tensor) -> dict[str, Tensor]:
    """Named tensors (n,) of recorded ``data`` after the page has run it."""
    packed = {name: base64.b64encode(tensor.numpy().tobytes()).decode() for name, tensor in contents.items()}
    values = page.evaluate(RUN, [data, packed, names])
    return {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32) for name, text in values.items()
    }


def assert_near(ours: Tensor, expected: Tensor) -> None:
    """Within 1e-6 + 5e-5 ‖expected‖."""
    ours, expected = ours.flatten().double(), expected.flatten().double()
    assert ours.shape == expected.shape
    assert (ours - expected).norm() <= 1e-6 + 5e-5 * expected.norm()


def batch_of(examples: Examples, indices: Any) -> tuple[Tensor, Tensor]:
    return examples.x[indices].float() * PIXEL_SCALE, one_hot(examples.labels[indices])


# ---- numbers: the calculator against Python and autograd ----


@pytest.mark.parametrize("trained", [False, True])
def test_every_quantity_of_forty_images_is_that_of_python(opened: Page, subject: Subject, trained: bool) -> None:
    network = subject.network if trained else subject.config.network(torch.device("cpu"))
    recorded = exporter.recording("example", network, "quadratic")
    names = [name for name in recorded["tensors"] if name not in ("x", "y", "parameters")]
    for k in range(20):
        x, y = batch_of(subject.test, [20 * k + trained])
        ours = run(opened, recorded, names, x=x, y=y, parameters=network.parameters)
        expected = exporter.example(network, "quadratic", x, y)
        assert expected.keys() == ours.keys()
        for name in names:
            assert_near(ours[name], expected[name])
        exact = Reference(network.to(dtype=torch.float64), x.double(), y.double(), "quadratic")
        for name, value in {
            "gradient": exact.gradient,
            "wish": -exact.gradient,
            "cost": exact.cost,
            "asked0": -exact.x_gradient,
            "a3": exact.outputs,
            **{f"delta{l}": delta for l, delta in enumerate(exact.deltas, start=1)},
            **sums_and_slopes(network, x),
        }.items():
            assert_near(ours[name], value)


def sums_and_slopes(network: Network, x: Tensor, pushed: tuple[int, Tensor] | None = None) -> dict[str, Tensor]:
    """a, z and σ′ of every layer, written out; the activations of one layer may be ``pushed`` on their way."""
    found, a = dict[str, Tensor](), x.double()
    for l, (W, b) in enumerate(zip(network.weights, network.biases, strict=True), start=1):
        if pushed and pushed[0] == l - 1:
            a = a + pushed[1]
        if len(x) == 1:
            found[f"products{l}"] = W.double() * a
        z = found[f"z{l}"] = a @ W.double().T + b.double()
        a = found[f"a{l}"] = 1 / (1 + torch.exp(-z))
        found[f"slope{l}"] = torch.exp(-z) / (1 + torch.exp(-z)).square()
    return found


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_cost_is_replayed(opened: Page, activation: str, cost: str) -> None:
    outputs = COSTS[cost].absorbs or ("identity" if cost == "softmax-cross-entropy" else activation)
    network = Network((784, 9, 8, 7, 10), activation=activation, output_activation=outputs, init="he")
    recorded = exporter.recording("example", network, cost)
    x, y = torch.rand(1, 784, generator=torch.Generator().manual_seed(1)), one_hot(torch.tensor([3]))
    ours = run(opened, recorded, ["gradient", "cost"], x=x, y=y, parameters=network.parameters)
    exact = Reference(network.to(dtype=torch.float64), x.double(), y.double(), cost)
    assert_near(ours["gradient"], exact.gradient)
    assert_near(ours["cost"], exact.cost)


def test_ten_training_steps_are_those_of_python(opened: Page, subject: Subject) -> None:
    network = subject.config.network(torch.device("cpu"))
    optimizer, begin = SGD(network, 3.0), network.parameters.clone()
    recorded = exporter.recording("step100", network, "quadratic")
    theirs, costs = begin.clone(), []
    for k in range(10):
        x, y = batch_of(subject.training, slice(100 * k, 100 * k + 100))
        passed = forward(network, x)
        costs.append(example_costs(passed, y).mean())
        optimizer.step(backward(network, passed, y).gradient)
        ours = run(opened, recorded, ["parameters", "cost"], x=x, y=y, parameters=theirs, rate=torch.tensor(3.0))
        theirs = ours["parameters"]
        assert ours["cost"].item() == pytest.approx(costs[-1].item(), rel=1e-5)
    way = (network.parameters - begin).norm()
    assert (theirs - network.parameters).norm() <= 1e-6 * way


def test_left_out_phi_prime_is_seen_in_the_layers_before_the_last(
    opened: Page, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backprop, "hidden_delta", lambda delta, W, phi_prime: backprop.input_gradient(delta, W))
    network = subject.network
    recorded = exporter.recording("example", network, "quadratic")
    x, y = batch_of(subject.test, [5])
    ours = run(opened, recorded, ["gradient"], x=x, y=y, parameters=network.parameters)["gradient"].double()
    exact = Reference(network.to(dtype=torch.float64), x.double(), y.double(), "quadratic").gradient
    errors = []
    for layer in zip(*layer_views(ours, network.sizes), *layer_views(exact, network.sizes), strict=True):
        W, b, W_exact, b_exact = layer
        errors.append(((W - W_exact).norm() / W_exact.norm(), (b - b_exact).norm() / b_exact.norm()))
    assert max(errors[2]) < 5e-5
    assert min(*errors[0], *errors[1]) > 0.5


def test_evaluation_and_average_are_those_of_python(opened: Page, subject: Subject) -> None:
    network = subject.network
    recorded = {name: exporter.recording(name, network, "quadratic") for name in ("evaluate", "average")}
    x, y = batch_of(subject.training, slice(1000))
    ours = run(opened, recorded["evaluate"], ["cost", "answers", "right"], x=x, y=y, parameters=network.parameters)
    passed = forward(network, x)
    answers = passed.activations[-1].argmax(1)
    assert ours["cost"].item() == pytest.approx(example_costs(passed, y).mean().item(), rel=1e-5)
    assert ours["answers"].tolist() == torch.bincount(answers, minlength=10).tolist()
    assert ours["right"].item() == pytest.approx((answers == y.argmax(1)).float().mean().item())
    whole = backward(network, passed, y).gradient
    contents = {"total": torch.zeros_like(whole), "count": torch.zeros(1), "whole": whole}
    for k in range(3):
        contents |= {"x": x[k : k + 1], "y": y[k : k + 1], "parameters": network.parameters}
        ours = run(opened, recorded["average"], ["total", "count", "wish", "distance"], **contents)
        contents |= {"total": ours["total"], "count": ours["count"]}
    expected = -backward(network, forward(network, x[:3]), y[:3]).gradient
    assert_near(ours["wish"], expected)
    assert ours["distance"].item() == pytest.approx(((expected + whole).norm() / whole.norm()).item(), rel=1e-3)


def test_plane_is_that_of_the_singular_vectors(opened: Page, subject: Subject) -> None:
    generator, n, network = torch.Generator().manual_seed(0), exporter.PATH, Network((784, 3, 10))
    scale = torch.tensor([5.0, 2.0, *[0.1] * (n - 2)])
    left, right = (torch.linalg.qr(torch.randn(m, n, generator=generator))[0] for m in (n, len(network.parameters)))
    path = (left * scale) @ right.T + 1
    recorded = exporter.recording("plane", network, "quadratic")
    ours = run(opened, recorded, ["along", "across", "along_at", "across_at"], path=path)
    centred = path - path.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    for name, direction in zip(("along", "across"), directions, strict=True):
        assert abs(ours[name] @ direction).item() == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(ours[f"{name}_at"], centred @ ours[name], atol=1e-3, rtol=1e-3)


def test_other_ways_to_write_a_formula_are_replayed(opened: Page) -> None:
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda a: 1 - a,
        lambda a: 1 / (1 + torch.exp(-a)),
        lambda a: a * (1 - a) / 3,
        lambda a: 2**a - a**2,
        lambda a: a.t() @ a,
        lambda a: torch.mm(a, a.mT),
        lambda a: torch.addmm(a[:, :1], a, a.mT, beta=2, alpha=-1),
        lambda a: torch.maximum(a, a.mean(dim=0)) + torch.minimum(a, a.mean(1, keepdim=True)),
        lambda a: a.sum((0, 1)) - a.sum(-1, keepdim=True) + a.sum(),
        lambda a: torch.softmax(a, 0) + torch.log_softmax(a, 1),
        lambda a: a.cumsum(1) - a.cumsum(-2),
        lambda a: a.clone().mul_(a).sub_(1, alpha=2).addcmul_(a, a, value=3).abs().log(),
        lambda a: torch.tanh(a).relu().sign() + torch.zeros_like(a) - torch.ones_like(a),
        lambda a: a.reciprocal() + a.amax(0),
        lambda a: (a[:, None] * a[None]).sum(1).neg(),
    ]
    a = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) + 0.1
    for way in ways:
        with torch.inference_mode(), Recording() as recording:
            result = way(a)
        expected, data = result.clone(), recording.to_data(a=a, result=result)
        exporter.check_repeatable(data)
        assert_near(run(opened, data, ["result"], a=a)["result"], expected)


# ---- the export ----


def recorded_in(file: Path) -> Any:
    (data,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', file.read_text(encoding="utf-8"), re.S
    )
    unpacked = json.loads(data)
    return unpacked | {"recordings": json.loads(zlib.decompress(base64.b64decode(unpacked["recordings"])))}


def test_page_is_one_small_file_with_the_subjects_networks(file: Path, subject: Subject) -> None:
    assert file.stat().st_size < 1_000_000
    loaded = r"""(?:src|(?<!<a )href)=["'](?!data:)|url\(|\bimport\b.*from|@import"""
    assert not re.findall(loaded, file.read_text(encoding="utf-8"))
    networks = recorded_in(file)["networks"]
    for name, network in (("trained", subject.network), ("untrained", subject.config.network(torch.device("cpu")))):
        values = np.frombuffer(zlib.decompress(base64.b64decode(networks[name])), np.float32)
        assert values.tolist() == network.parameters.tolist()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda a, W, b: torch.erf(torch.addmm(b, a, W.mT)), "lacks the operation 'erf'"),
        (lambda a, W, b: (torch.addmm(b, a, W.mT)[None, None] * 1)[0, 0], "at most 3 dimensions, 'mul' has float32"),
        (lambda a, W, b: torch.addmm(b, a, W.mT).div(1.5, rounding_mode="floor"), "option 'rounding_mode'"),
    ],
)
def test_export_names_what_the_page_cannot_repeat(mistake: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backprop, "weighted_sum", mistake)
    with pytest.raises(exporter.PageError, match=message):
        exporter.recording("example", Network((784, 4, 10)), "quadratic")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((784, 129, 64, 10), "the page takes up to 109,386 parameters, as 784-128-64-10 has"),
        ((784, 8, 8, 8, 8, 8, 8, 10), "in up to 6 layers; 784-8-8-8-8-8-8-10 has"),
        ((784, 16, 3), "from 784 pixels to 10 outputs, this one is 784-16-3"),
    ],
)
def test_network_that_is_too_large_is_refused_in_one_line(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        exporter.check_size(sizes)


def test_linter_finds_nothing_in_the_page(tmp_path: Path) -> None:
    if (biome := shutil.which("biome", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")) is None:
        pytest.skip("biome is not installed")
    page = tmp_path / "page.html"
    page.write_text(exporter.template(), encoding="utf-8")
    command = [biome, "lint", "--error-on-warnings", str(page)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr


# ---- what one sees and does ----


def visit(page: Page, file: Path, address: str = "") -> None:
    """Open the page anew in the state of an address."""
    page.goto("about:blank")
    page.goto(f"{file.as_uri()}#{address}")
    page.wait_for_selector("#title:not(:empty)")


def untrained(subject: Subject) -> Network:
    return subject.config.network(torch.device("cpu"))


def shown_image(file: Path, position: int) -> tuple[Tensor, Tensor]:
    images = recorded_in(file)["images"]["shown"]
    pixels = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(images["x"]))), dtype=torch.uint8)
    return pixels.reshape(-1, 784)[[position]].float() / 255, one_hot(torch.tensor([images["labels"][position]]))


def number(said: str) -> float:
    """A number as the page writes it, such as −2.6·10⁻⁴."""
    plain = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")
    return float(said.translate(plain).replace("·10", "e"))


def ranked(values: Tensor) -> dict[str, float]:
    """{place: value}, the largest first."""
    return {str(int(k)): values[k].item() for k in values.abs().argsort(descending=True, stable=True)}


def test_three_lists_of_every_neuron_are_those_of_python(opened: Page, file: Path, subject: Subject) -> None:
    visit(opened, file)
    network = untrained(subject)
    x, y = shown_image(file, 2)
    expected = exporter.example(network, "quadratic", x, y)
    wishes, biases = layer_views(expected["wish"], network.sizes)
    listed = """([name, ids]) => {
      document.querySelector(`.neuron[aria-label^="${name}:"]`).dispatchEvent(new Event("click"));
      return ids.map((id) => {
        document.querySelector(`#${id} .more`)?.click();
        const ways = [...document.querySelectorAll(`#${id} .way`)];
        return ways.map((way) => [way.dataset.place, Number(way.dataset.value)]);
      });
    }"""
    for layer, n in enumerate(network.sizes[1:], start=1):
        for j in range(n):
            name = f"output {j}" if layer == 3 else f"neuron {j} of layer {layer}"
            bias, weights, activations = opened.evaluate(listed, [name, ["biasWay", "weightWays", "activationWays"]])
            assert [place for place, _ in bias] == ["bias"]
            assert bias[0][1] == pytest.approx(biases[layer - 1][j].item(), rel=1e-4, abs=1e-7)
            for ours, theirs in ((weights, wishes[layer - 1][j]), (activations, expected[f"requests{layer}"][j])):
                assert dict(ours) == pytest.approx(ranked(theirs), rel=1e-4, abs=1e-7)
                sizes = [abs(value) for _, value in ours]
                assert sizes == sorted(sizes, reverse=True)


def test_measured_minus_foretold_falls_fourfold_when_the_step_halves(opened: Page, file: Path) -> None:
    visit(opened, file)
    opened.locator("#weightWays .way").first.click()
    gap = "(change) => lesson.measure(lesson.state.picked, change).difference"
    whole, half = (opened.evaluate(gap, change) for change in (0.2, 0.1))
    assert whole / half == pytest.approx(4, rel=0.1)
    opened.locator("#wiggle").fill("0.5")
    said = opened.inner_text("#wiggleText")
    measured, foretold = (float(number) for number in re.findall(r"(\d\.\d+) as", said))
    now = opened.evaluate("() => lesson.measure(lesson.state.picked, 0.5)")
    assert (measured, foretold) == pytest.approx((now["measured"], now["foretold"]), rel=1e-4)
    opened.wait_for_url("**change=0.5**")


def test_ratio_of_two_components_is_that_of_the_gradient(opened: Page, file: Path, subject: Subject) -> None:
    visit(opened, file)
    x, y = shown_image(file, 2)
    gradient = exporter.example(untrained(subject), "quadratic", x, y)["gradient"]
    opened.locator("#weightWays .way").nth(3).click()
    opened.locator("#weightWays .way").first.click()
    p, q = opened.evaluate("[lesson.state.picked, lesson.state.compared]")
    (times,) = re.findall(r"is ([\d.]+) times as sensitive to this one", opened.inner_text("#times"))
    assert float(times) == pytest.approx((gradient[p] / gradient[q]).abs().item(), rel=5e-3)


def slide(page: Page, change: float) -> dict[str, Any]:
    """Move the slider: the activations that the network shows, its answer in words, and its cost."""
    page.locator("#wiggle").fill(str(change))
    labels = page.locator(".neuron").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
    shown = [number(re.findall(r"activation ([^ ,]+)", label)[0]) for label in labels]
    drawn = page.locator(".words .inside").evaluate_all("all => all.map((one) => one.textContent)")
    assert [number(text) for text in drawn] == pytest.approx(shown, abs=0.1)
    return {
        "shown": torch.tensor(shown),
        "said": page.inner_text("#sentence"),
        "cost": page.evaluate("lesson.now('cost')[0]"),
    }


@pytest.mark.parametrize("kind", ["weight", "bias", "activation", "pixel"])
def test_wiggle_moves_the_network(opened: Page, file: Path, subject: Subject, kind: str) -> None:
    network, (x, y) = subject.network, shown_image(file, 2)
    wide, change = network.to(dtype=torch.float64), -1.35
    pushed = None
    if kind in ("weight", "bias"):
        p = {"weight": 16 * 785 + 37, "bias": 16 * 784 + 5}[kind]
        wide.parameters[p] += change
    else:
        layer, k = {"activation": (1, 6), "pixel": (0, 14 * 28 + 14)}[kind]
        p = opened.evaluate(f"lesson.activationAt({layer}, {k})")
        push = torch.zeros(1, network.sizes[layer], dtype=torch.float64)
        push[0, k] = change
        pushed = (layer, push)
    visit(opened, file, f"net=trained&weights={p}.0")
    seen = slide(opened, change)
    found = sums_and_slopes(wide, x, pushed)
    expected = torch.cat([found[f"a{l}"][0] for l in (1, 2, 3)])
    if kind == "activation":
        expected[k] += change
    torch.testing.assert_close(seen["shown"].double(), expected, atol=6e-3, rtol=6e-3)
    assert seen["cost"] == pytest.approx((found["a3"] - y).square().sum().item(), rel=1e-4)
    assert f"is the answer, {found['a3'].argmax().item()}, and" in seen["said"]
    measured = opened.evaluate("([p, change]) => lesson.measure(p, change).measured", [p, change])
    assert measured == pytest.approx(seen["cost"], rel=1e-5)
    opened.click("#still")
    assert opened.evaluate("lesson.now('cost')[0]") != seen["cost"]


def test_row_of_an_activation_wiggles_that_activation(opened: Page, file: Path) -> None:
    visit(opened, file)
    opened.locator("#activationWays .way").first.click()
    name = opened.locator("#activationWays .way span").first.inner_text().split(" w ")[0]
    assert opened.inner_text("#wiggleName") == f"Wiggle the activation of {name} of layer 2"
    assert "Only weights and biases can be changed" in opened.inner_text("#times")


@pytest.mark.parametrize("way", ["bias", "weights", "before"])
def test_granted_request_raises_its_neuron(opened: Page, file: Path, subject: Subject, way: str) -> None:
    """The largest part of the request changes by 1, the others in proportion to it."""
    visit(opened, file, "step=2")
    network, (x, y) = untrained(subject).to(dtype=torch.float64), shown_image(file, 2)
    wishes = exporter.example(network, "quadratic", x.double(), y.double())
    weights, biases = layer_views(wishes["wish"], network.sizes)
    pushed = None
    if way == "bias":
        network.biases[2][2] += biases[2][2].sign()
    elif way == "weights":
        network.weights[2][2] += weights[2][2] / weights[2][2].abs().max()
    else:
        request = wishes["requests3"][2]
        pushed = (2, request / request.abs().max())
    opened.click(f"[data-grant={way}]")
    assert opened.get_attribute(f"[data-grant={way}]", "aria-pressed") == "true"
    outputs = torch.tensor(opened.evaluate("lesson.now('a3')")).double()
    assert_near(outputs, sums_and_slopes(network, x, pushed)["a3"])
    assert outputs[2] > wishes["a3"][0, 2]
    if pushed:
        before = torch.tensor(opened.evaluate("lesson.lit(2)")).double()
        assert_near(before, wishes["a2"][0] + pushed[1])
    opened.click(f"[data-grant={way}]")
    assert_near(torch.tensor(opened.evaluate("lesson.now('a3')")), wishes["a3"])


def test_granted_sum_of_requests_lowers_the_cost(opened: Page, file: Path) -> None:
    visit(opened, file, "step=2")
    before = opened.evaluate("lesson.now('cost')[0]")
    opened.click("#grantSum")
    assert opened.evaluate("lesson.now('cost')[0]") < 0.95 * before
    opened.click("#steps button:nth-child(4)")
    assert opened.evaluate("lesson.state.change") == 0


def test_numbers_stand_beside_the_arrows_and_a_solved_image_has_short_ones(
    opened: Page, file: Path, subject: Subject
) -> None:
    images = [shown_image(file, n) for n in range(20)]
    solved = min(range(20), key=lambda n: example_costs(forward(subject.network, images[n][0]), images[n][1]).item())
    arrows = """() => [...document.querySelectorAll(".neuron")].slice(-10).map((one) => {
      const [, length] = one.querySelector(".spike").style.transform.match(/scale\\(1, (.*)\\)/);
      return [one.nextElementSibling.querySelector(".wish").textContent, Number(length)];
    })"""
    longest = {}
    for net in ("untrained", "trained"):
        visit(opened, file, f"net={net}&step=1&image={solved}")
        found = opened.evaluate(arrows)
        wishes = [-2 * (a - (digit == solved % 10)) for digit, a in enumerate(opened.evaluate("lesson.now('a3')"))]
        assert [number(text) for text, _ in found] == pytest.approx(wishes, rel=0.5, abs=6e-3)
        assert [length for _, length in found] == pytest.approx([18 * wish for wish in wishes], rel=1e-3)
        longest[net] = max(abs(length) for _, length in found)
        assert "full arrow 2" in opened.locator("#net").text_content()
    assert longest["trained"] < 0.7 * longest["untrained"]


def test_cost_is_drawn_as_ten_squares(opened: Page, file: Path, subject: Subject) -> None:
    visit(opened, file)
    network, (x, y) = untrained(subject), shown_image(file, 2)
    squares = (sums_and_slopes(network, x)["a3"] - y).square()[0]
    sides = torch.tensor(
        opened.locator("#squares rect").evaluate_all("all => all.map((one) => one.width.baseVal.value)")
    )
    torch.testing.assert_close(
        sides.square() / sides.square().sum(), (squares / squares.sum()).float(), atol=1e-4, rtol=1e-3
    )
    assert number(opened.inner_text("#costSum").split(": ")[1].rstrip(".")) == pytest.approx(
        squares.sum().item(), rel=5e-3
    )


def test_sum_and_squash_of_a_neuron_are_shown_step_by_step(opened: Page, file: Path, subject: Subject) -> None:
    visit(opened, file, "neuron=2.5")
    found = sums_and_slopes(untrained(subject), shown_image(file, 2)[0])
    said = re.findall(r"= (\S+) ([+−]) (\S+) = (\S+); a = φ\(z\) = (\S+)\.$", opened.inner_text("#madeText"))[0]
    bias, rest, z, a = (number(said[n]) for n in (0, 2, 3, 4))
    assert (z, a) == pytest.approx((found["z2"][0, 5].item(), found["a2"][0, 5].item()), rel=5e-3)
    assert bias + rest * (1 if said[1] == "+" else -1) == pytest.approx(z, abs=0.02)
    steps = opened.locator("#madeChart path.thin").get_attribute("d").count("H")
    assert steps == 17, "the bias, and sixteen products"


def test_distance_is_doubled_and_then_scaled_by_the_slope(opened: Page, file: Path, subject: Subject) -> None:
    visit(opened, file, "neuron=3.2")
    found = sums_and_slopes(untrained(subject), shown_image(file, 2)[0])
    said = opened.inner_text("#neuronWish")
    distance, doubled, slope, own = (
        number(each) for each in re.findall(r"(?:= |twice that, |φ′ = )([+−\d.·⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+\d)", said)
    )
    expected = 1 - found["a3"][0, 2].item()
    assert (distance, doubled) == pytest.approx((expected, 2 * expected), rel=5e-3)
    assert own == pytest.approx(2 * expected * found["slope3"][0, 2].item(), rel=5e-3)
    assert slope == pytest.approx(found["slope3"][0, 2].item(), rel=5e-3)


def test_weight_that_should_grow_most_joins_two_that_fire(opened: Page, file: Path, subject: Subject) -> None:
    visit(opened, file, "net=trained&image=22")
    x, y = shown_image(file, 22)
    wide = subject.network.to(dtype=torch.float64)
    growth = -layer_views(Reference(wide, x.double(), y.double(), "quadratic").gradient, wide.sizes)[0][2]
    j, k = divmod(int(growth.argmax()), 16)
    said = opened.inner_text("#hebbText")
    assert f"leads from neuron {k} of layer 2," in said and f"to output {j}," in said
    assert number(said.split(" = ")[1].rstrip(".")) == pytest.approx(growth.max().item(), rel=0.01)
    opened.click("#hebbShow")
    assert opened.inner_text("#wiggleName") == f"Wiggle the weight from neuron {k} of layer 2 to output {j}"


def test_three_networks_that_learned_from_few_and_many_answer_side_by_side(
    opened: Page, file: Path, subject: Subject
) -> None:
    visit(opened, file, "image=22")
    x, _ = shown_image(file, 22)
    told = recorded_in(file)["learned"]
    assert [each["count"] for each in told] == [100, 1000, 2000]
    assert told[0]["own"] > told[0]["right"] and told[2]["right"] > told[0]["right"]
    said = opened.locator("#learnedCharts p").all_inner_texts()
    for each, text in zip(told, said, strict=True):
        halves = torch.frombuffer(
            bytearray(zlib.decompress(base64.b64decode(each["parameters"]))), dtype=torch.bfloat16
        )
        network = subject.config.network(torch.device("cpu"))
        network.parameters.copy_(halves)
        tests = sums_and_slopes(network, subject.test.x.double() * PIXEL_SCALE)["a3"].argmax(1)
        assert each["right"] == pytest.approx((tests == subject.test.labels).double().mean().item())
        assert text.startswith(f"It says {sums_and_slopes(network, x)['a3'].argmax().item()}")
        assert f"{100 * each['right']:.1f} % of 500" in text


def test_requests_are_added_up_one_after_another(opened: Page, file: Path, subject: Subject) -> None:
    visit(opened, file, "step=2")
    x, y = shown_image(file, 2)
    sums = exporter.example(untrained(subject), "quadratic", x, y)["sums3"]
    for count in (1, 4, 10):
        opened.locator("#sum").fill(str(count))
        for j in (0, 15):
            label = opened.locator(f'.neuron[aria-label^="neuron {j} of layer 2:"]').get_attribute("aria-label")
            (asked,) = re.findall(r"asked for (.*)$", label)
            assert number(asked) == pytest.approx(sums[count - 1, j].item(), rel=0.05)


def test_hovered_edge_tells_weight_activation_delta_and_product(opened: Page, file: Path, subject: Subject) -> None:
    visit(opened, file)
    network, (x, y) = untrained(subject), shown_image(file, 2)
    expected = exporter.example(network, "quadratic", x, y)
    middle = opened.evaluate("""() => {
      const line = document.querySelectorAll("#net line")[100];
      const end = (name) => line[name].baseVal.value;
      const [x, y] = ["x", "y"].map((side) => 0.85 * end(`${side}1`) + 0.15 * end(`${side}2`));
      const at = new DOMPoint(x, y).matrixTransform(document.getElementById("net").getScreenCTM());
      return [at.x, at.y];
    }""")
    opened.mouse.move(0, 0)
    opened.mouse.move(*middle)
    opened.wait_for_selector("#edge:has-text('is the slope')")
    said = opened.inner_text("#edge")
    k, j = map(int, re.findall(r"neuron (\d+) of layer", said)[:2])
    found = [number(text.rstrip(".")) for text in re.findall(r"(?:: weight|=) ([^ ,;]+)", said)]
    delta = expected["delta2"][0, j]
    weight, a = network.weights[1][j, k], expected["a1"][0, k]
    values = torch.stack([weight, a, delta, delta * a, -delta * weight])
    assert found == pytest.approx(values.tolist(), rel=0.05)


def pixel_at(page: Page, column: float, line: float) -> tuple[float, float]:
    """Where a pixel of the network's image is in the window."""
    box = page.locator("#pen").bounding_box()
    return box["x"] + (column + 0.5) / 28 * box["width"], box["y"] + (line + 0.5) / 28 * box["height"]


def draw(page: Page, *points: tuple[float, float]) -> None:
    """A stroke with the mouse through these pixels."""
    page.mouse.move(*pixel_at(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*pixel_at(page, *point), steps=5)
    page.mouse.up()


def test_drawing_into_the_network_asks_which_digit_it_is(opened: Page, file: Path) -> None:
    visit(opened, file, "net=trained&step=2")
    opened.click("#clear")
    assert opened.evaluate("lesson.state.x.every((value) => value === 0)")
    draw(opened, (14, 5), (12.6, 22))
    inked = opened.evaluate("[...lesson.recordings.example.read('x')]")
    assert 20 < sum(value > 0.5 for value in inked) < 120
    opened.click("#centre")
    x = torch.tensor(opened.evaluate("[...lesson.state.x]")).reshape(28, 28)
    rows, columns = ((x.sum(side) * (torch.arange(28) + 0.5)).sum() / x.sum() for side in (1, 0))
    assert abs(rows - 14) <= 0.75 and abs(columns - 14) <= 0.75
    assert opened.inner_text("#title") == "Which digit is this?" and opened.evaluate("lesson.state.step") == 0
    answer = opened.evaluate("lesson.now('a3').indexOf(Math.max(...lesson.now('a3')))")
    assert opened.inner_text("#guess") == f"The network says {answer}. What is it?"
    assert opened.inner_text("#which .guessed") == str(answer)
    drawn = opened.evaluate("lesson.state.x")
    visit(opened, file, opened.evaluate("lesson.address()")[1:])
    assert opened.evaluate("lesson.state.x") == drawn, "the address holds the drawing"
    assert opened.inner_text("#title") == "Which digit is this?", "and that it has no label yet"
    opened.click("#which [data-digit='7']")
    assert opened.inner_text("#title") == "What does this 7 want?" and opened.inner_text("#neuronName") == "Output 7"
    draw(opened, (5, 5), (9, 5))
    assert opened.inner_text("#title") == "What does this 7 want?", "another stroke of the same drawing"
    opened.click("#digits button:nth-of-type(4)")
    draw(opened, (5, 5), (9, 5))
    opened.keyboard.press("Escape")
    opened.click("#steps button:nth-child(2)")
    answer = opened.evaluate("lesson.state.label")
    assert opened.inner_text("#title") == f"What does this {answer} want?", "whoever goes on takes the network's guess"


def test_touched_pixel_is_not_drawn_but_its_weight_is_picked(opened: Page, file: Path) -> None:
    visit(opened, file, "neuron=1.5")
    x, y = pixel_at(opened, 14, 20)
    opened.mouse.move(x, y)
    opened.mouse.down()
    opened.mouse.move(x + 2, y)  # a hand is never quite still
    opened.mouse.up()
    assert opened.evaluate("[lesson.state.image, lesson.state.picked]") == [2, 5 * 784 + 20 * 28 + 14]


def test_address_restores_the_state(opened: Page, file: Path) -> None:
    address = "net=trained&step=3&want=7&neuron=2.5&weights=12000.40&image=12&change=0.35&added=6"
    visit(opened, file, address)
    assert opened.evaluate("lesson.address()") == f"#{address}"
    assert opened.inner_text("#neuronName") == "Neuron 5 of layer 2"
    assert "7" in opened.inner_text("#title") and opened.locator("#steps [aria-current]").inner_text() == "4 ← layer 1"
    visit(opened, file, "net=nonsense&step=99&neuron=7.x&weights=&image=-1&descent=no")
    assert opened.evaluate("lesson.state.step") == 0
    visit(opened, file, f"drawn={'0' * 400}{'f' * 20}{'0' * 364}")
    assert opened.inner_text("#title") == "Which digit is this?" and opened.inner_text("#neuronName") == "Output 0"


def test_descent_lowers_the_cost_and_is_made_again_from_the_address(opened: Page, file: Path) -> None:
    visit(opened, file)
    for mode in ("one", "all", "mini"):
        opened.click(f'[data-mode="{mode}"]')
        for _ in range(2):
            opened.locator("#once").dispatch_event("click")
    opened.select_option("#only", "2")
    for _ in range(3):
        opened.locator("#once").dispatch_event("click")
    theta = opened.evaluate("[...lesson.theta]")
    costs = opened.evaluate("lesson.descent.evaluated.map((one) => one.cost)")
    assert costs[6] < costs[0]
    assert opened.evaluate("lesson.descent.evaluated.at(-1).answers")[2] == 1000, "only 2s: every answer is 2"
    address = opened.evaluate("lesson.address()")
    assert "descent=one.-.3x2%7Eall.-.3x2%7Emini.-.3x2%7Emini.2.3x3" in address
    visit(opened, file, opened.evaluate("lesson.address()")[1:])
    opened.wait_for_selector("#descentText:has-text('9 steps')")
    assert opened.evaluate("[...lesson.theta]") == theta


def test_descent_stops_where_the_cost_is_no_longer_finite(opened: Page, file: Path) -> None:
    visit(opened, file)
    opened.evaluate("lesson.theta.fill(NaN)")
    opened.locator("#once").dispatch_event("click")
    assert "smaller learning rate" in opened.inner_text("#descentText")
    opened.click("#again")
    assert "No step yet" in opened.inner_text("#descentText")


@pytest.mark.parametrize(("left", "few"), [(0, "0 of class 7"), (2, "2 of class 7")])
def test_test_set_that_lacks_a_digit_is_refused(left: int, few: str, subject: Subject) -> None:
    sevens = (subject.test.labels == 7).nonzero()[:, 0]
    kept = torch.ones(len(subject.test.labels), dtype=torch.bool).index_fill(0, sevens[left:], value=False)
    lacking = replace(subject, test=subject.test.map(lambda tensor: tensor[kept]))
    with pytest.raises(UsageError, match=f"the page shows three test images of each class.* this test set has {few}"):
        exporter.write_page(lacking)


def test_three_descents_start_together_and_are_those_of_python(opened: Page, file: Path, subject: Subject) -> None:
    visit(opened, file)
    opened.locator("#rate").fill("-0.3")
    opened.click('[data-mode="three"]')
    for _ in range(2):
        opened.locator("#once").dispatch_event("click")
    rate, walks = opened.evaluate("[Number(document.getElementById('rateText').textContent), lesson.descent.walks]")
    assert opened.locator("#pathChart polyline").count() == opened.locator("#costChart polyline").count() == 3
    network, begin = untrained(subject), untrained(subject).parameters
    optimizer = SGD(network, rate)
    x, y = batch_of(subject.training, slice(1000))
    for step in range(3):
        careful = torch.tensor(walks["all"]["path"][step])
        assert (careful - network.parameters).norm() <= 1e-6 + 1e-4 * (careful - begin).norm()
        optimizer.step(backward(network, forward(network, x), y).gradient)
    assert all(walks[name]["path"][0] == begin.tolist() for name in walks)
    costs = {name: [each["cost"] for each in walks[name]["costs"]] for name in walks}
    assert costs["one"][0] == costs["mini"][0] == costs["all"][0] > costs["all"][-1]
    assert "a drunk man" in opened.inner_text("#pathNote") and "a careful man" in opened.inner_text("#pathNote")
    assert "(2 images in all)" in opened.inner_text("#descentText")
    theta = opened.evaluate("[...lesson.theta]")
    visit(opened, file, opened.evaluate("lesson.address()")[1:])
    opened.wait_for_selector("#descentText:has-text('2 steps each')")
    assert opened.evaluate("[...lesson.theta]") == theta


def test_descent_that_is_stuck_says_so(opened: Page, file: Path) -> None:
    visit(opened, file)
    opened.locator("#rate").fill("1.5")
    for _ in range(4):
        opened.locator("#once").dispatch_event("click")
    answers = opened.evaluate("lesson.descent.evaluated.at(-1).answers")
    assert max(answers) == 1000
    assert f"Stuck: every answer is {answers.index(1000)}." in opened.inner_text("#descentText")


def test_descent_that_is_left_can_be_taken_up_again(opened: Page, file: Path) -> None:
    visit(opened, file)
    for _ in range(3):
        opened.locator("#once").dispatch_event("click")
    theta, address = opened.evaluate("[[...lesson.theta], lesson.address()]")
    opened.click("#networks [data-network=trained]")
    assert opened.inner_text("#back") == "back to the 3 steps before"
    opened.click("#back")
    assert opened.evaluate("[[...lesson.theta], lesson.address()]") == [theta, address]
    assert opened.locator("#back").is_hidden()


def test_replay_says_how_far_it_is(opened: Page, file: Path) -> None:
    visit(opened, file)
    opened.evaluate("""() => {
      globalThis.said = [];
      const text = document.getElementById("descentText");
      new MutationObserver(() => said.push(text.textContent)).observe(text, { childList: true });
    }""")
    opened.evaluate("location.hash = 'descent=mini.-.3x12'")
    opened.wait_for_selector("#descentText:has-text('12 steps:')")
    said = " ".join(opened.evaluate("said"))
    assert "Making 12 steps again: 8 %." in said and "50 %" in said


def test_few_training_images_are_taken_again(subject: Subject) -> None:
    few = Examples(subject.training.x[:30], subject.training.labels[:30])
    taken = exporter.first_images(few)
    assert (
        len(taken.labels) == 1000 and torch.equal(taken.x[30:60], few.x) and torch.equal(taken.labels[:30], few.labels)
    )


def test_average_wish_settles_at_the_negative_gradient(opened: Page, file: Path) -> None:
    visit(opened, file)
    opened.click('[data-add="1"]')
    (first,) = read(opened, "average", "distance")
    opened.click('[data-add="1000"]')
    wish, whole, last, count = read(opened, "average", "wish", "whole_wish", "distance", "count")
    assert first > 0.3 and last < 1e-5 and count == 1000
    assert_near(wish, whole)


OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll("#net text")].filter((text) => text.textContent)
    .map((text) => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([one, p], n) => boxes.slice(n + 1)
    .filter(([, q]) => p.left < q.right && q.left < p.right && p.top + 3 < q.bottom && q.top + 3 < p.bottom)
    .map(([other]) => `${one} / ${other}`));
}"""


@pytest.mark.parametrize("width", [390, 768, 1400])
def test_nothing_scrolls_sideways_and_no_labels_overlap(opened: Page, file: Path, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 900})
    try:
        for step in range(5):
            visit(opened, file, f"step={step}&neuron=1.3")
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            assert opened.evaluate(OVERLAPS) == []
    finally:
        opened.set_viewport_size({"width": 1400, "height": 950})


def test_keyboard_alone_suffices(opened: Page, file: Path) -> None:
    visit(opened, file)
    current = "document.querySelector('#steps [aria-current]').textContent"
    for expected in ("2 outputs", "3 ← layer 2", "4 ← layer 1", "5 ← pixels", "5 ← pixels"):
        opened.keyboard.press("ArrowRight")
        assert opened.evaluate(current) == expected
    opened.keyboard.press("ArrowLeft")
    assert opened.evaluate(current) == "4 ← layer 1"

    def reach(selector: str, key: str = "Tab") -> None:
        for _ in range(120):
            opened.keyboard.press(key)
            if opened.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                assert opened.evaluate("document.activeElement.matches(':focus-visible')")
                return
        pytest.fail(f"Tab does not reach {selector}")

    reach(".neuron")
    opened.keyboard.press("ArrowDown")
    assert opened.inner_text("#neuronName") == "Output 3"
    opened.keyboard.press("Shift+ArrowUp")
    assert opened.inner_text("#neuronName").endswith("of layer 2")
    reach("#wiggle")
    opened.keyboard.press("ArrowRight")
    assert opened.evaluate("lesson.state.change") == pytest.approx(0.05)
    reach("#weightWays .way")
    opened.keyboard.press("Tab")
    picked = opened.evaluate("lesson.state.picked")
    opened.keyboard.press("Enter")
    assert opened.evaluate("lesson.state.picked") != picked
    reach("#once")
    opened.keyboard.press("Enter")
    assert opened.evaluate("lesson.descent.steps") == 1
    reach("#pen", "Shift+Tab")
    opened.keyboard.press("ArrowUp")
    opened.keyboard.press("Space")
    assert opened.evaluate("lesson.state.image") is None
    reach("#which [data-digit='4']", "Shift+Tab")
    opened.keyboard.press("Enter")
    assert opened.inner_text("#title") == "What does this 4 want?"


# ---- sizes, light, finger ----


@contextmanager
def tab(browser: Any, file: Path, address: str = "", **options: Any) -> Iterator[Page]:
    """The page in a tab of its own, which ends with it."""
    context = browser.new_context(reduced_motion="reduce", **options)
    page, errors = context.new_page(), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    visit(page, file, address)
    yield page
    context.close()
    assert errors == []


PIXELS_HIGH = """(selector) => [...document.querySelectorAll(selector)].filter((one) => one.textContent).map((one) =>
  parseFloat(getComputedStyle(one).fontSize) * document.getElementById("net").getScreenCTM().a)"""


@pytest.mark.parametrize("size", [(1024, 768), (1440, 900), (1920, 1080)])
def test_lecture_fills_the_window_with_large_digits(browser: Any, file: Path, size: tuple[int, int]) -> None:
    width, height = size
    with tab(browser, file, "step=2", viewport={"width": width, "height": height}) as page:
        page.click("#lecture")
        assert page.locator("details[open]").count() == 0
        assert min(page.evaluate(PIXELS_HIGH, ".words .inside, .words .wish, .words .digit")) >= 18
        box = page.locator("#net").bounding_box()
        assert box["width"] > 0.93 * width and box["y"] + box["height"] <= height
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("ArrowRight")
        assert page.locator("#steps [aria-current]").inner_text() == "4 ← layer 1"
        assert page.evaluate(OVERLAPS) == []
        address = page.evaluate("lesson.address()")[1:]
        visit(page, file, address)
        assert page.get_attribute("#lecture", "aria-pressed") == "true"
        page.click("#lecture")
        assert page.locator("details:not([open])").count() == 0


def test_zoom_of_200_percent_keeps_the_wide_layout(browser: Any, file: Path) -> None:
    with tab(browser, file, viewport={"width": 720, "height": 450}, device_scale_factor=2) as page:
        image, first, outputs = (
            page.locator(name).bounding_box() for name in ("#pen", ".neuron >> nth=0", ".neuron >> nth=-1")
        )
        assert image["x"] + image["width"] < first["x"] < outputs["x"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 720


CONTRASTS = """(selector) => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const plain = (text) => (text.startsWith("color(") ? parts(text).map((v) => 255 * v) : parts(text));
  const light = (text) => plain(text).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const { backgroundColor } = getComputedStyle(at);
      if (!/^rgba.*, 0\\)$/.test(backgroundColor)) return backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const filled = (one) => getComputedStyle(one.parentElement.previousElementSibling.querySelector("circle + circle"));
  const seen = (one) => one.checkVisibility() && (one.textContent || one.matches(".spike"));
  return [...document.querySelectorAll(selector)].filter(seen).map((one) => {
    const ink = one instanceof SVGElement ? getComputedStyle(one).fill : getComputedStyle(one).color;
    const paper = one.matches(".inside") ? filled(one).fill : ground(one);
    const [p, q] = [light(ink), light(paper)];
    return [(Math.max(p, q) + 0.05) / (Math.min(p, q) + 0.05), one.textContent.slice(0, 40), ink, paper];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_arrows_and_focus_are_seen_in_both_schemes(browser: Any, file: Path, scheme: str) -> None:
    with tab(browser, file, "step=2&net=trained", color_scheme=scheme, viewport={"width": 1400, "height": 950}) as page:
        texts = "p, h1, h2, h3, button:not(:disabled), label, #net text, .chart text, #code span, a, .way span"
        low = [found for found in page.evaluate(CONTRASTS, texts) if found[0] < 4.5]
        assert low == []
        assert min(ratio for ratio, *_ in page.evaluate(CONTRASTS, "#net .spike.raise, #net .spike.lower")) >= 3
        fills = """all => all.map((one) => [getComputedStyle(one.querySelector("circle + circle")).fill,
          Number(one.nextElementSibling.textContent.slice(0, 3))])"""
        shades = page.locator(".neuron").evaluate_all(fills)
        light = {a: sum(map(float, re.findall(r"[\d.]+", fill)[:3])) for fill, a in shades}
        active, quiet = light[max(light)], light[min(light)]
        assert active > quiet if scheme == "dark" else active < quiet
        ring = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--focus')")
        assert (
            page.evaluate(
                "(ring) => { const one = document.createElement('p'); one.id = 'ring'; one.style.color = ring; "
                "one.textContent = 'ring'; document.body.append(one); }",
                ring,
            )
            is None
        )
        assert page.evaluate(CONTRASTS, "#ring")[0][0] >= 3


def test_forced_colours_leave_text_pressed_buttons_and_bars(browser: Any, file: Path) -> None:
    with tab(browser, file, "step=2", forced_colors="active", color_scheme="dark") as page:
        low = [
            found
            for found in page.evaluate(CONTRASTS, "#net text, .chart text, p, h2, h3, #code span")
            if found[0] < 4.5
        ]
        assert low == []
        bar, pressed, free, dot = (
            colours_of(page, name) for name in (".way i", "#steps [aria-current]", "#steps button", ".neuron >> nth=3")
        )
        assert len(bar) > 1, "a bar is seen"
        assert pressed[0] != free[0], "and so is what is pressed"
        assert dot[0] != free[0], "and how active a neuron is"
        adjusted = "getComputedStyle(document.querySelector('#steps [aria-current]')).forcedColorAdjust"
        assert page.evaluate(adjusted) == "none", "else its text has a plate of the text's own colour"


def colours_of(page: Page, selector: str) -> list[tuple[int, ...]]:
    """The colours of an element that cover more than a twentieth of it, as they are on the screen, the widest first."""
    image = Image.open(BytesIO(page.locator(selector).first.screenshot())).convert("RGB")
    pixels = np.asarray(image).reshape(-1, 3)
    counts = Counter(map(tuple, pixels.tolist()))
    return [colour for colour, count in counts.most_common() if count > len(pixels) / 20]


def test_arrow_that_turns_is_not_seen_half_way_in_the_wrong_colour(browser: Any, file: Path) -> None:
    context = browser.new_context(reduced_motion="no-preference")
    page = context.new_page()
    visit(page, file, "step=1&want=2")
    seen = """() => {
      document.getElementById("wanted").value = 5;
      document.getElementById("wanted").dispatchEvent(new Event("change"));
      const height = (one) => new DOMMatrix(getComputedStyle(one).transform).d;
      return [...document.querySelectorAll(".neuron .spike")].slice(-10).map((one) => [one.classList[1], height(one)]);
    }"""
    for colour, height in page.evaluate(seen):
        assert (height > 0) == (colour == "raise")
    context.close()


def test_headings_follow_each_other_and_names_hold_what_is_seen(opened: Page, file: Path) -> None:
    visit(opened, file, "step=2")
    levels = opened.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    names = """() => [...document.querySelectorAll("button[aria-label], [role=button][aria-label]")].map((one) => [
      [...one.childNodes].filter((part) => part.ariaHidden !== "true").map((part) => part.textContent).join("").trim(),
      one.ariaLabel])"""
    for seen, name in opened.evaluate(names):
        assert seen.lower() in name.lower()


PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True}


def test_phone_is_drawn_on_with_a_finger_while_the_answer_is_in_sight(browser: Any, file: Path) -> None:
    with tab(browser, file, "net=trained", device_scale_factor=3, **PHONE) as page:
        touch = page.context.new_cdp_session(page)
        for kind, column, line in [
            ("Start", 10, 6),
            *(("Move", 10 + n, 6) for n in range(9)),
            ("Move", 14, 22),
            ("End", 0, 0),
        ]:
            x, y = pixel_at(page, column, line)
            points = [] if kind == "End" else [{"x": x, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
        page.wait_for_selector("#which:not([hidden])")
        assert page.evaluate("scrollY") == 0 and page.evaluate("lesson.state.x.filter((v) => v > 0.5).length") > 20
        box = page.locator(".neuron >> nth=-1").bounding_box()
        assert box["y"] + box["height"] < 760, "the outputs"
        assert page.locator("#which button >> nth=0").bounding_box()["y"] < page.locator("#pen").bounding_box()["y"]


def test_phone_keeps_network_and_answer_in_sight_while_a_row_is_tapped(browser: Any, file: Path) -> None:
    with tab(browser, file, **PHONE) as page:
        assert "tap a digit" in page.inner_text("#invitation") and page.inner_text("#edge").startswith("Tap an edge")
        page.locator("#activationWays .way >> nth=2").scroll_into_view_if_needed()
        page.locator("#activationWays .way >> nth=2").tap()
        for name in (".neuron >> nth=0", ".neuron >> nth=-1", "#wiggle", "#wiggleText"):
            box = page.locator(name).bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= 760, name
        row, hand = (page.locator(name).bounding_box() for name in ("#activationWays .way >> nth=2", "#hand"))
        assert hand["y"] - row["y"] < 300


# ---- for those who send it on ----


def test_head_tells_those_who_send_it_what_it_is(file: Path) -> None:
    head = file.read_text(encoding="utf-8").split("</head>")[0]
    for name in ('name="description"', 'property="og:title"', 'property="og:description"', 'property="og:image"'):
        (content,) = re.findall(rf'<meta {name} content="([^"]+)">', head)
        assert "{" not in content
    assert content == "page.png" and (ROOT / "docs/page.png").is_file()
    assert 'href="https://www.3blue1brown.com/lessons/backpropagation"' in file.read_text(encoding="utf-8")
    links = tomllib.loads(content_of("web/links.toml"))
    assert links["address"] in (ROOT / "README.md").read_text(encoding="utf-8"), "the README leads there too"


def test_page_that_has_an_address_links_to_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    links = content_of("web/links.toml")
    links = links.replace('repository = ""', 'repository = "https://example.org/code"')
    links = links.replace('address = ""', 'address = "https://example.org/page/"')
    monkeypatch.setattr(exporter, "content_of", lambda name: links if name.endswith("links.toml") else content_of(name))
    page = exporter.template()
    assert 'href="https://example.org/code"' in page and 'content="https://example.org/page/page.png"' in page


def test_published_page_is_the_one_in_docs_with_the_address_of_its_picture(tmp_path: Path) -> None:
    (script,) = re.findall(
        r"run: \|\n((?:          .*\n)+)", (ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8")
    )
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    environment = os.environ | {"ADDRESS": "https://example.org/bp"}
    subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, env=environment, check=True)
    published = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert 'property="og:image" content="https://example.org/bp/page.png"' in published
    assert published.replace("https://example.org/bp/page.png", "page.png") == (ROOT / "docs/page.html").read_text(
        encoding="utf-8"
    )
    assert (tmp_path / "site/page.png").is_file()


def test_requests_play_unless_less_motion_is_wanted(browser: Any, opened: Page, file: Path) -> None:
    visit(opened, file)
    opened.click("#steps button:nth-child(3)")
    assert opened.inner_text("#sumText") == "all 10 requests added up"
    page = browser.new_page(reduced_motion="no-preference")
    page.clock.install(time=datetime(2026, 1, 1))
    visit(page, file)
    page.clock.pause_at(datetime(2026, 1, 1, 1))
    page.locator("#steps button").nth(2).dispatch_event("click")
    assert page.inner_text("#sumText") == "Output 0 asks; sum of 1"
    page.clock.run_for(500)
    assert page.inner_text("#sumText") == "Output 1 asks; sum of 2"
    page.clock.run_for(5000)
    assert page.inner_text("#sumText") == "all 10 requests added up"
    page.close()


def test_without_javascript_there_is_a_picture_and_a_sentence(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert "an image of a 2" in page.inner_text("body") and not page.locator("#app").is_visible()
    assert page.evaluate("[...document.images].map((image) => image.naturalWidth)") == [28, 28]
    context.close()


@pytest.mark.parametrize("sizes", [(784, 10), (784, 128, 64, 10), (784, 12, 9, 8, 11, 10)])
def test_other_networks_have_a_page(
    browser: Any, subject: Subject, tmp_path: Path, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "STEPS", 5)
    config = Config(sizes=sizes, activation="relu", cost="softmax-cross-entropy", init="he")
    network = config.network(torch.device("cpu"))
    file = tmp_path / "page.html"
    file.write_text(exporter.write_page(replace(subject, config=config, network=network)), encoding="utf-8")
    assert file.stat().st_size < 1_500_000
    page, errors = browser.new_page(reduced_motion="reduce"), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    visit(page, file)
    for step in range(len(sizes) + 1):
        page.locator("#steps button").nth(step).dispatch_event("click")
    assert page.locator(".neuron").count() == sum(min(n, 20) for n in sizes[1:])
    for n in {n for n in sizes[1:] if n > 20}:
        assert f": 20 of {n}" in page.locator("#net").text_content()
        assert "the 20 most active neurons are drawn" in page.inner_text("#legend")
    page.click("#once")
    page.close()
    assert errors == []


def test_command_writes_the_page_and_opens_it(
    run: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened_files: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened_files.append)
    monkeypatch.setattr(exporter, "STEPS", 5)
    out = tmp_path / "folder" / "page.html"
    explain.main(["page", "--run", str(run), "--out", str(out), "--open"])
    assert f"wrote {out}" in capsys.readouterr().out and opened_files == [out.as_uri()]
    monkeypatch.setattr(exporter, "fits_page", lambda sizes: False)
    with pytest.raises(SystemExit) as stop:
        explain.main(["page", "--run", str(run), "--out", str(out)])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith("error: the page takes up to") and message.count("\n") == 1


# ---- the page in docs/ ----


def test_page_in_docs_holds_the_recording_of_todays_code() -> None:
    config, file = Config(), ROOT / "docs" / "page.html"
    assert file.stat().st_size < 1_000_000
    data = recorded_in(file)
    network = config.network(torch.device("cpu"))
    fresh = {name: exporter.recording(name, network, config.cost) for name in exporter.RECORDED}
    assert data["recordings"] == json.loads(json.dumps(fresh)), (
        "make it again: python -m bp_torch explain page --out docs/page.html"
    )
    code = re.sub(r'(id="data">).*(</script>)', r'\1"{data}"\2', file.read_text(encoding="utf-8"))
    images = r"data:image/png;base64,[\w+/=]+"
    assert re.sub(images, "", code) == re.sub(r"data:image/png;base64,\{\w+\}", "", exporter.template())
