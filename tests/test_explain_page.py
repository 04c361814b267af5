"""The page in a real browser: its numbers against Python and autograd, and what one does with mouse and keyboard."""

import base64
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bp_torch import backprop
from bp_torch.activations import ACTIVATIONS
from bp_torch.backprop import backward, example_costs, forward
from bp_torch.costs import COSTS
from bp_torch.data import PIXEL_SCALE, Examples, one_hot
from bp_torch.explain import page as exporter
from bp_torch.explain.subject import Subject, UsageError
from bp_torch.network import Network, layer_views
from bp_torch.sgd import SGD
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
  return Object.fromEntries(names.map((name) => [name, recording.read(name)]));
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
    file.write_text(exporter.write_page(subject))
    return file


@pytest.fixture(scope="module")
def opened(browser: Any, file: Path) -> Iterator[Page]:
    """The page in one tab for all tests; at the end no error and no request may have been seen."""
    page, trouble = browser.new_page(viewport={"width": 1400, "height": 950}, reduced_motion="reduce"), list[str]()
    page.on("pageerror", lambda error: trouble.append(str(error)))
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
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


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
        }.items():
            assert_near(ours[name], value)


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
    assert (theirs - network.parameters).norm() <= 1e-6 * way + 1e-7 * begin.norm()


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
    generator = torch.Generator().manual_seed(0)
    network = Network((784, 3, 10))
    scale = torch.tensor([5.0, 2.0, *[0.1] * 98])
    left, right = (torch.linalg.qr(torch.randn(n, 100, generator=generator))[0] for n in (100, len(network.parameters)))
    path = (left * scale) @ right.T + 1
    recorded = exporter.recording("plane", network, "quadratic")
    ours = run(opened, recorded, ["directions", "coordinates"], path=path)
    centred = path - path.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    overlap = ours["directions"].reshape(2, -1) @ directions.T
    torch.testing.assert_close(overlap.abs(), torch.eye(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        ours["coordinates"].reshape(100, 2), centred @ (overlap @ directions).T, atol=1e-2, rtol=0
    )


# ---- the export ----


def recorded_in(file: Path) -> Any:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.S)
    return json.loads(data)


def test_page_is_one_small_file_with_the_subjects_networks(file: Path, subject: Subject) -> None:
    assert file.stat().st_size < 1_000_000
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|\bimport\b.*from|@import""", file.read_text())
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
