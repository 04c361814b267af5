"""The catalogue of layers: its formulas are what the code computes, its code is right, its pages are up to date."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bp_torch.commands import verify as command
from bp_torch.verify import layers
from bp_torch.verify.bank import LAYERS, Layer
from bp_torch.verify.bank.catalogue import Catalogue, plain, slug, squeezed
from bp_torch.verify.bank.sections import section
from bp_torch.verify.problem import has_gradient
from tests import layer_pages as pages
from tests.latex import evaluate

DOCS = Path(__file__).parent.parent / "docs"
DERIVED = ["linear", "cross entropy", "softmax", "batch norm", "layer norm", "rms norm", "attention", "gelu", "silu"]
DERIVED += ["convolution", "max pooling", "embedding", "lstm", "dropout", "rotary embedding"]

each_layer = pytest.mark.parametrize("name", layers)


def inputs_of(layer: Layer) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The inputs in float64, y, and a dy."""
    inputs = layer.arguments(torch.float64)
    y = layer.forward(*inputs.values())
    return inputs, y, torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def as_tuple(gradients: Any) -> tuple[Any, ...]:
    return gradients if isinstance(gradients, tuple) else (gradients,)


def by_autograd(layer: Layer, inputs: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    leaves = {name: t.detach().clone().requires_grad_(has_gradient(t)) for name, t in inputs.items()}
    (layer.forward(*leaves.values()) * dy).sum().backward()
    return {name: t.grad for name, t in leaves.items() if t.grad is not None}


def pasted(layer: Layer) -> Callable[..., Any]:
    """The function that the shown code defines, after ``import torch`` and nothing else."""
    names: dict[str, Any] = {}
    exec(compile(f"import torch\n\n\n{layer.code}\n", layer.name, "exec"), names)
    found: Callable[..., Any] = names[f"{layer.identifier}_backward"]
    return found


# ---- the records ----


def test_every_layer_of_the_bank_has_one_record_and_is_found_by_its_own_name() -> None:
    assert sorted(name for family in layers.families for name in family.records) == sorted(LAYERS)
    assert len(layers) == len(set(layers)) == len(LAYERS)
    for name in LAYERS:
        assert layers[name] is layers[slug(name)] is layers[f"{name} backward"] is LAYERS[name]


def test_no_two_layers_have_a_name_in_common() -> None:
    names = [
        (squeezed(one), name)
        for family in layers.families
        for name, record in family.records.items()
        for one in [name, *record.also.split(", ")]
    ]
    for key in dict(names):
        assert len({name for one, name in names if one == key}) == 1, key


def test_each_layer_has_three_faults_a_use_and_a_source_with_a_link() -> None:
    for name in layers:
        record = layers.record(layers[name])
        assert len(layers[name].faults) >= 2, name
        assert record.use.endswith(".") and re.search(r"\]\((https://|http://|\.\./)", record.source), name


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("LayerNorm", "layer norm"),
        ("nn.LayerNorm", "layer norm"),
        ("layernorm backward", "layer norm"),
        ("torch.nn.functional.layer_norm", "layer norm"),
        ("layer normalisation", "layer norm"),
        ("layer normalization gradient", "layer norm"),
        ("batchnorm", "batch norm"),
        ("BatchNorm2d", "batch norm"),
        ("softmax with cross-entropy", "cross entropy"),
        ("CrossEntropyLoss", "cross entropy"),
        ("scaled dot product attention", "attention"),
        ("GQA", "grouped attention"),
        ("conv2d", "convolution"),
        ("maxpool2d", "max pooling of images"),
        ("nn.Dropout", "dropout"),
        ("RoPE", "rotary embedding"),
        ("swish", "silu"),
        ("fully connected", "linear"),
        ("MSE", "mean square error"),
        ("bce", "binary cross entropy"),
        ("LSTM", "lstm"),
        ("torch.cumsum", "cumulative sum"),
        ("SwiGLU", "swiglu"),
        ("DPO", "preference"),
    ],
)
def test_layers_are_found_as_people_search_for_them(typed: str, name: str) -> None:
    assert layers[typed].name == name


@pytest.mark.parametrize(
    ("typed", "meant"), [("layr norm", "layer-norm"), ("norm", "rms-norm"), ("convolutoin", "convolution")]
)
def test_a_name_that_is_not_there_leads_to_those_like_it(typed: str, meant: str) -> None:
    with pytest.raises(KeyError, match=f"did you mean .*{meant}"):
        layers[typed]


def test_a_name_like_nothing_is_told_where_the_list_is() -> None:
    with pytest.raises(KeyError, match="verify layer"):
        layers["qqq"]
    assert "qqq" not in layers and isinstance(layers, Catalogue)


# ---- the formulas ----


def dimensions(layer: Layer, tensors: dict[str, Tensor]) -> dict[str, float]:
    """The lengths that the shapes name, such as B and n: each is the same in all tensors."""
    text, found = layers.record(layer).shapes, dict[str, float]()
    told = [
        (name, [d for d in dims.split(", ") if d != "…"], tensors[name].shape)
        for names, dims in re.findall(r"\b((?:\w(?:, | and ))*\w) \(([^)]*)\)", text)
        for name in re.split(", | and ", names)
    ]
    assert {name for name, _, _ in told} == set(tensors), "every tensor has a shape, and nothing else has"
    for name, dims, shape in told:
        assert len(dims) == len(shape) or "…" in text, name
        for dim, length in zip(dims, shape[-len(dims) :], strict=True):
            if dim.isidentifier():
                assert found.setdefault(dim, length) == length, f"{dim} of {name}"
    found |= {name: eval(value, dict(found)) for name, value in re.findall(r"\b([A-Z]) = ([\dA-Z /]+)", text)}
    for name, dims, shape in told:
        for dim, length in zip(dims, shape[-len(dims) :], strict=True):
            assert eval(re.sub(r"(\d)([A-Z])", r"\1 * \2", dim), dict(found)) == length, f"{dim} of {name}"
    return found


@each_layer
def test_the_formulas_are_the_forward_and_the_backward(name: str) -> None:
    layer = layers[name]
    record = layers.record(layer)
    inputs, y, dy = inputs_of(layer)
    gradients = as_tuple(layer.backward(dy.clone(), *inputs.values()))
    expected = {f"d{key}": g for key, g in zip(inputs, gradients, strict=True) if g is not None}
    output = re.split("[ _]", record.forward.split("\n")[-1])[0]
    constants = dimensions(layer, inputs | {output: y})
    shapes = {key: tuple(g.shape) for key, g in expected.items()} | {output: tuple(y.shape)}
    formulas = record.forward.split("\n") + record.backward.split("\n")
    found = evaluate(formulas, inputs | {f"d{output}": dy}, shapes, constants)
    for key, wanted in {output: y, **expected}.items():
        torch.testing.assert_close(found[key].reshape(wanted.shape), wanted, rtol=1e-9, atol=1e-10, msg=key)


@each_layer
def test_the_formulas_render_on_github_and_in_a_terminal(name: str) -> None:
    record = layers.record(layers[name])
    for line in [*record.forward.split("\n"), *record.backward.split("\n")]:
        assert not re.search(r"\\[\\{},;!_#%|*]|\]\(|\$|<|>", line), f"Markdown changes this: {line}"
        assert line.count("{") == line.count("}") and not re.search(r"[\\{}]", plain(line)), plain(line)


def test_a_formula_as_text() -> None:
    assert plain(r"dx_{ki} = \sum_j dy_{kj} w_{ji}") == "dx_ki = Σ_j dy_kj w_ji"
    assert plain(r"\hat x_{ki} = \frac{x_{ki} - \mu_k}{\sigma_k}") == "x̂_ki = (x_ki − μ_k)/σ_k"
    assert plain(r"y = \sqrt{\frac{2}{\pi}} [x \gt 0] e^{-x}") == "y = √(2/π) [x > 0] e^(−x)"
    assert plain(r"dx_{k,c,j} = dy_{k,c,\lfloor j/2 \rfloor}") == "dx[k,c,j] = dy[k,c,⌊j/2⌋]"


def test_a_wrong_sign_or_index_in_a_formula_is_seen() -> None:
    inputs, _, dy = inputs_of(LAYERS["linear"])
    record, known = layers.record(LAYERS["linear"]), inputs | {"dy": dy}
    right = evaluate(record.backward.split("\n"), known, {}, {})
    for piece, other in (("dy_{kj} w_{ji}", "dy_{kj} w_{ij}"), ("dy_{kj} x_{ki}", "-dy_{kj} x_{ki}")):
        wrong = evaluate(record.backward.replace(piece, other).split("\n"), known, {}, {})
        assert any(not torch.allclose(wrong[key], right[key]) for key in right), piece


# ---- the code ----


@each_layer
def test_the_code_can_be_pasted_below_import_torch_and_is_right(name: str) -> None:
    layer = layers[name]
    inputs, _, dy = inputs_of(layer)
    gradients = as_tuple(pasted(layer)(dy.clone(), *inputs.values()))
    reference = by_autograd(layer, inputs, dy)
    assert {key for key, g in zip(inputs, gradients, strict=True) if g is not None} == set(reference)
    for key, g in zip(inputs, gradients, strict=True):
        if key in reference:
            torch.testing.assert_close(g, reference[key], rtol=1e-10, atol=1e-11)


@each_layer
def test_the_code_is_short_and_fits_80_columns(name: str) -> None:
    *helpers, backward = layers[name].code.split("\n\n\n")
    assert len(backward.splitlines()) <= 16 and all(len(helper.splitlines()) <= 14 for helper in helpers)
    assert max(map(len, layers[name].code.splitlines())) <= 80
    assert not re.search(r"Tensor\b|\bmath\.|(?<!nn\.)functional\.", layers[name].code.replace("Tensors", ""))


# ---- the pages ----


def shown(layer: Layer, number: int) -> str:
    """What the page of a layer has in the last column."""
    text = (DOCS / "layers" / f"{layers.family(layer).name}.md").read_text(encoding="utf-8")
    rows = text.split(f"\n## {layer.name}\n")[1].split("\n## ")[0]
    (last,) = re.findall(rf"^\| {number} \| .* \| (.*?) \|$", rows, re.M)
    return str(last).replace("\\|", "|")


def test_the_pages_are_what_the_command_writes() -> None:
    for path, text in pages.written(DOCS, words=shown).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m tests.layer_pages"
    assert {path.stem for path in (DOCS / "layers").glob("*.md")} == {family.name for family in layers.families}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if i % 12 else []) for i, name in enumerate(layers)]
)
def test_the_pages_say_what_verify_says(name: str) -> None:
    for number in range(1, len(layers[name].faults) + 1):
        assert pages.said(layers[name], number) == shown(layers[name], number)


def test_the_layers_that_are_asked_for_most_are_derived() -> None:
    hand = {name for path in (DOCS / "layers").glob("*.md") for name in pages.by_hand(path)}
    assert set(DERIVED) <= hand


def test_what_is_said_to_be_missing_is_in_torch_and_not_here() -> None:
    names = re.findall(r"`(nn\.\w+)`", pages.by_hand(DOCS / "layers.md")["missing"])
    assert len(names) >= 20
    for name in names:
        assert hasattr(torch.nn, name.removeprefix("nn.")) and name not in layers, name


# ---- the command ----


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_list_has_every_layer_and_fits(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["layer"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "} == set(layers)


@each_layer
def test_a_section_fits(name: str, narrow: None) -> None:
    lines = section(layers[name]).splitlines()
    assert [line for line in lines if len(line) > 80 and " " in line.strip()] == []


def test_a_layer_is_checked_and_broken(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["layer", "layer-norm"])
    printed = capsys.readouterr().out
    assert "def layer_norm_backward(dy, x, w, b):" in printed and "RIGHT: 3 gradients right" in printed
    with pytest.raises(SystemExit) as stop:
        command.main(["layer", "LayerNorm", "--fault", "3", "--dtype", "float32"])
    printed = capsys.readouterr().out
    assert stop.value.code == 1 and "the mean is lost: mean = g.mean(-1, keepdim=True) → mean = 0" in " ".join(
        printed.split()
    )
    assert "WRONG: 1 of 3 gradients wrong" in printed and "float64" in printed
    assert "constant along dimension 1: its mean is not subtracted?" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["layr-norm"], "no layer is called 'layr-norm': did you mean layer-norm"),
        (["tanh", "--fault", "99"], "tanh has the faults 1 to 5, got 99"),
        (["--fault", "1"], "--fault: wanted the name of a layer before it"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["layer", *arguments])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and words in printed.err and not printed.out


def test_pages_keep_what_is_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "softmax.md").write_text(
        pages.HAND.format("softmax", "By hand.\n\nIn two parts."), encoding="utf-8"
    )
    for _ in range(2):
        pages.write(tmp_path, words=lambda layer, number: "words")
        page = (tmp_path / "layers" / "softmax.md").read_text(encoding="utf-8")
        assert page.count("By hand.\n\nIn two parts.") == 1 and "[softmax](#softmax)†" in page
        assert page.index("def softmax_backward") < page.index("By hand.") < page.index("the sum is lost")
