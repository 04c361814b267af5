"""The package from Python and in a notebook: its names, activations and costs of a user's own, what a cell shows."""

import ast
import base64
import html
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import bp_torch
from bp_torch import Network, from_sequential, load, open_run, own_data, save, to_sequential, train, verify
from bp_torch.activations import ACTIVATIONS, Activation
from bp_torch.backprop import forward
from bp_torch.convert import MODULES
from bp_torch.costs import COSTS, Cost
from bp_torch.data import Examples
from bp_torch.explain import compute
from bp_torch.sweep.config import SweepConfig
from bp_torch.sweep.loop import sweep
from bp_torch.training import Config

ROOT = Path(__file__).parent.parent

LOOK = """
import sys
before = set(sys.modules)
import bp_torch
print(dir(bp_torch))
bp_torch.Config()
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} & {"torch", "numpy", "tyro", "tqdm"}))
"""


def test_top_shows_its_names_and_loads_nothing_before_they_are_used() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    shown, loaded = done.stdout.splitlines()
    assert loaded == "[]" and ast.literal_eval(shown) == dir(bp_torch)
    wanted = {"train", "Config", "Network", "forward", "backward", "verify", "open_run", "evaluate", "load"}
    assert wanted <= set(dir(bp_torch)) and len(dir(bp_torch)) < 25
    for name in dir(bp_torch):
        found = getattr(bp_torch, name)
        assert name == "__version__" or found.__name__.removeprefix("bp_torch.") == name
    with pytest.raises(AttributeError, match="module 'bp_torch' has no attribute 'nothing'"):
        bp_torch.nothing  # noqa: B018


# ---- an activation and a cost of one's own ----


@pytest.fixture
def own() -> Iterator[None]:
    """Softplus, a quartic cost, and one by z that absorbs softplus, in the tables for a while."""
    tables: list[dict[str, Any]] = [ACTIVATIONS, COSTS]
    before = [dict(table) for table in tables]
    ACTIVATIONS["softplus"] = Activation(functional.softplus, lambda a: 1 - torch.exp(-a))
    COSTS["quartic"] = Cost(lambda z, a, y: (a - y).pow(4).sum(-1), lambda a, y: 4 * (a - y).pow(3))
    COSTS["by z"] = Cost(
        lambda z, a, y: (functional.softplus(z) - y).square().sum(-1),
        lambda a, y: 2 * (a - y) * (1 - torch.exp(-a)),
        absorbs="softplus",
    )
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


def test_own_activation_is_that_of_a_network_of_torch_and_of_a_file(own: None, tmp_path: Path) -> None:
    network, x = Network((5, 4, 4, 3), activation="softplus", output_activation="relu"), torch.randn(6, 5)
    model = to_sequential(network)
    theirs = torch.relu(model[4](functional.softplus(model[2](functional.softplus(model[0](x))))))
    assert torch.equal(model(x), theirs) and torch.allclose(forward(network, x).activations[-1], theirs, atol=1e-6)
    save(network, tmp_path / "own.safetensors")
    for same in (from_sequential(model), load(tmp_path / "own.safetensors")):
        assert torch.equal(same.parameters, network.parameters) and str(same) == str(network)
    ACTIVATIONS.pop("softplus")
    with pytest.raises(ValueError, match=r"own\.safetensors holds no network: unknown activation 'softplus'"):
        load(tmp_path / "own.safetensors")


@pytest.mark.parametrize("cost", ["quartic", "by z", "quadratic"])
def test_own_derivatives_are_verified_by_autograd(cost: str, own: None) -> None:
    network = Network((6, 5, 4, 3), activation="softplus", output_activation="softplus", dtype=torch.float64)
    x, y = torch.rand(7, 6, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1, 2, 0]]
    assert verify.check_own(network, x, y, cost).ok
    ACTIVATIONS["softplus"] = Activation(functional.softplus, lambda a: torch.exp(-a))
    wrong = Network((6, 5, 4, 3), activation="softplus", output_activation="softplus", dtype=torch.float64)
    assert verify.check_own(wrong, x, y, cost).verdict == "WRONG"


def test_own_names_are_trained_checked_swept_and_explained(own: None, tmp_path: Path, data_dir: Path) -> None:
    place: dict[str, Any] = {"data_dir": data_dir, "runs_dir": tmp_path, "device": "cpu", "epochs": 1}
    place |= {"train_examples": 300, "activation": "softplus"}
    quartic, by_z = ({**place, "cost": cost} for cost in ("quartic", "by z"))
    folder = train(Config(verify_every=1, **quartic))
    config, network = open_run(folder)
    assert (config.activation, config.cost, network.activation) == ("softplus", "quartic", "softplus")
    assert "softplus" in folder.name and "quartic" in folder.name
    assert Config(**by_z).outputs == "softplus"
    with pytest.raises(ValueError, match="by z needs softplus outputs, the network has relu"):
        Config(output_activation="relu", **by_z)
    swept = sweep(SweepConfig(learning_rate=(0.1, 1.0), **quartic))
    assert open_run(swept / "learning-rate-1_seed-0")[1].activation == "softplus"
    idea = compute("nudges", run=folder, digit=3, data_dir=data_dir)
    assert "quartic" in idea.caption


def test_name_in_no_table_is_refused_with_those_that_there_are() -> None:
    for field, known in {"activation": "sigmoid, relu, tanh", "cost": "quadratic, binary-cross-entropy"}.items():
        with pytest.raises(ValueError, match=f"^--{field}: wanted {known}.*, got 'softplus'$"):
            Config(**{field: "softplus"})  # type: ignore[arg-type]
    assert "softplus" not in MODULES


# ---- a notebook ----


def rows(shown: str) -> list[list[str]]:
    """The columns of the lines between <pre> and </pre>."""
    (text,) = re.findall("<pre>(.*?)</pre>", shown, re.S)
    return [line.split() for line in text.splitlines()]


def test_network_is_a_table_of_its_layers() -> None:
    about, _, header, *layers = rows(Network((784, 16, 10), activation="tanh", networks=3)._repr_html_())
    assert about[1:4] == ["×", "784-16-10,", "tanh,"] and about[0] == "Network(3"
    assert header == ["layer", "inputs", "neurons", "parameters", "activation"]
    assert layers == [["1", "784", "16", "12,560", "tanh"], ["2", "16", "10", "170", "sigmoid"]]


def test_report_is_what_it_prints_and_no_name_is_a_tag() -> None:
    x = torch.rand(3, dtype=torch.float64)
    report = verify.check(lambda **t: (t["<b>"] ** 2).sum(), {"<b>": x}, lambda **t: {"<b>": t["<b>"]})
    shown = report._repr_html_()
    assert re.fullmatch('<pre><b style="color: #cf222e">WRONG</b>: [^<>]*&lt;b&gt;[^<>]*</pre>', shown)
    assert html.unescape(re.sub("<.*?>", "", shown)) == str(report)
    right = verify.check(lambda x: (x**2).sum(), x, lambda x: 2 * x)._repr_html_()
    assert right.startswith('<pre><b style="color: #1a7f37">RIGHT</b>: 1 gradient right')


NOTEBOOK = """import bp_torch
from pathlib import Path
from bp_torch.explain import compute
---
config = bp_torch.Config(epochs=2, train_examples=500, data_dir=Path({data!r}), runs_dir=Path({runs!r}), device="cpu")
folder = bp_torch.train(config)
---
bp_torch.open_run(folder)[1]
---
import torch
bp_torch.verify.check(lambda x: (x**2).sum(), torch.rand(3), lambda x: 2 * x)
---
compute("backwards", run=folder, data_dir=Path({data!r}))"""


@pytest.mark.long
def test_notebook_shows_bars_tables_and_pictures(tmp_path: Path, data_dir: Path) -> None:
    for module in ("nbclient", "ipykernel", "ipywidgets"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    import nbformat
    from nbclient import NotebookClient

    sources = NOTEBOOK.format(data=str(data_dir), runs=str(tmp_path / "runs")).split("\n---\n")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    imported, trained, network, report, idea = ([*cell.outputs] for cell in book.cells)
    assert imported == [] and [len(shown) for shown in (network, report, idea)] == [1, 1, 1], "no warning"
    said = "".join(output.get("text", "") for output in trained)
    lines = r"784-16-16-10: .*\nepoch .*\n    1 .*\n    2 .*\n(.*\n)*saved .*\nwatch .*\n .*\ntouch .*\n"
    assert re.fullmatch(lines, said)
    assert ["application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in trained].count(True) == 1
    assert rows(network[0]["data"]["text/html"])[3] == ["1", "784", "16", "12,560", "sigmoid"]
    assert "RIGHT</b>: 1 gradient right" in report[0]["data"]["text/html"]
    assert Image.open(io.BytesIO(base64.b64decode(idea[0]["data"]["image/png"]))).width > 1000


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda net, x: bp_torch.evaluate(net, x, "quadratic"), r"wanted Examples\(x, labels\), got a Tensor"),
        (lambda net, x: bp_torch.predict(net, x.numpy()), r"is \(3, 784\) prepared images, or one\? give torch"),
        (lambda net, x: bp_torch.predict(net, x / 255), "divided by 255 twice: wanted 0 to 1"),
        (lambda net, x: bp_torch.predict(net, 2 * x), "x holds floats from 0 to 2, wanted 0 to 1"),
        (lambda net, x: Examples(x / 255, torch.arange(3)), "divided by 255 twice: wanted 0 to 1"),
        (lambda net, x: Examples(x.view(3, 28, 28), torch.arange(3)), r"wanted \(3, 784\), .*rows by x.flatten\(1\)"),
    ],
)
def test_what_is_given_in_another_form_is_a_sentence(call: Any, said: str) -> None:
    x = torch.linspace(0, 1, 3 * 784).view(3, 784)
    with pytest.raises(ValueError, match=said):
        call(bp_torch.Network(), x)


def test_run_is_opened_by_the_text_of_its_path(run: Path) -> None:
    assert torch.equal(bp_torch.open_run(str(run))[1].parameters, bp_torch.open_run(run)[1].parameters)


def test_pixels_that_a_file_has_divided_by_255_twice_become_0_to_1(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8))
    np.savez(tmp_path / "twice.npz", x=pixels / 255 / 255, y=np.arange(40) % 2)
    training, _ = own_data.load(tmp_path / "twice.npz")
    assert float(training.x.max()) == 1
