"""The bank is large and its right layers are right, and the score is what docs/verify.md says it is."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bp_torch.commands import verify as command
from bp_torch.verify.bank import LAYERS, Fault, Layer, faulty
from bp_torch.verify.bank.layers import normal
from bp_torch.verify.bench import CHECKERS, DTYPES, MEANINGLESS, Score, add, false_alarms
from tests import verify_held_out

PAGE = (Path(__file__).parent.parent / "docs/verify.md").read_text(encoding="utf-8")


def test_bank_has_60_layers_and_250_faults() -> None:
    faults = [fault for layer in LAYERS.values() for fault in layer.faults.values()]
    assert len(LAYERS) >= 60 and len(faults) >= 250
    assert all(layer.about and layer.faults for layer in LAYERS.values())
    projects = " ".join(fault.seen_in for fault in faults)
    for known in ("Liger 1298", "mamba 537", "cudnn-frontend 385", "llm.c 801", "mlpack 1923", "TinyTorch", "Ng's"):
        assert known in projects


def bits(backward: Callable[..., Any], layer: Layer) -> list[tuple[torch.Size, bytes] | None]:
    """The shapes and bytes of the gradients, then those of dy and the inputs, which may have been written into."""
    inputs = layer.arguments(torch.float64).values()
    given = [normal(*layer.forward(*inputs).shape)(torch.Generator().manual_seed(99), torch.float64), *inputs]
    gradients = backward(*given)
    tensors = [*(gradients if isinstance(gradients, tuple) else [gradients]), *given]
    return [t if t is None else (t.shape, t.contiguous().numpy().tobytes()) for t in tensors]


@pytest.mark.parametrize("layer", LAYERS.values(), ids=list(LAYERS))
def test_each_fault_is_a_piece_of_the_source_and_computes_something_else(layer: Layer) -> None:
    right = bits(layer.backward, layer)
    assert bits(faulty(layer, Fault("no fault", "dy: Tensor", "dy: Tensor")), layer) == right
    for fault in layer.faults.values():
        assert bits(faulty(layer, fault), layer) != right, fault


def test_a_piece_must_be_in_the_source_once() -> None:
    for piece, times in (("tanh(y)", 0), ("tanh", 2)):
        with pytest.raises(ValueError, match=f"tanh, wrong: '{re.escape(piece)}' is there {times} times"):
            faulty(LAYERS["tanh"], Fault("wrong", piece, "0"))


def test_source_is_what_one_would_copy() -> None:
    assert LAYERS["softmax"].source.splitlines() == [
        "def softmax(dy: Tensor, x: Tensor) -> Tensor:",
        "    p = torch.softmax(x, -1)",
        "    inner = (dy * p).sum(-1, keepdim=True)",
        "    return p * (dy - inner)",
    ]
    assert LAYERS["tanh"].faults["x is there in place of a"] == Fault(
        "x is there in place of a", "slope = 1 - a * a", "slope = 1 - x * x", seen_in="tinygrad, an early version"
    )
    assert LAYERS["weighted mean"].faults["the sign of dw is lost"] == Fault(
        "the sign of dw is lost", "return dx, dw", "return dx, -dw", "sign is wrong"
    )


@pytest.mark.parametrize("every", [31, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_false_alarm_and_nearly_every_fault_caught(dtype: str, every: int) -> None:
    ours = Score(dtype, "verify")
    for layer in list(LAYERS.values())[DTYPES.index(dtype) % every :: every]:
        if layer.computes_in(getattr(torch, dtype)):
            add(ours, layer)
    assert ours.alarms == [] and ours.missed == [] and ours.wrongly == 0, ours
    assert ours.rightly >= 0.6 * ours.faults


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_right_backwards_are_called_right(dtype: str) -> None:
    assert false_alarms(40, dtype) == []


def test_check_grads_of_jax_finds_a_fault_and_is_not_asked_of_what_it_cannot_run() -> None:
    pytest.importorskip("jax")
    for name, runs in (("tanh", True), ("layer norm", False)):
        score = Score("float64", "check_grads of JAX")
        add(score, LAYERS[name])
        assert (score.layers, score.alarms, score.missed) == (int(runs), [], [])
        assert score.caught == score.faults and (score.faults > 2) == runs


@pytest.mark.long
def test_held_out_faults_are_caught() -> None:
    score = verify_held_out.score(torch.float32)
    assert score["alarms"] == 0 and score["caught"] == score["faults"] and score["faults"] >= 100


def test_page_has_a_row_for_every_checker_and_dtype() -> None:
    rows = set(re.findall(r"^\| (\w+) \| ([\w' ]+?) \|", PAGE, re.M))
    assert {(d, c) for d in DTYPES for c in CHECKERS if (d, c) not in MEANINGLESS} <= rows


def test_command_prints_the_scores_and_writes_only_what_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command.main(["bench", "--layers", "tanh", "--dtypes", "float64"])
    assert "fast gradcheck" in capsys.readouterr().out and not list(tmp_path.iterdir())
    command.main(["bench", "--layers", "tanh", "--dtypes", "float64", "--json", "score.json"])
    score = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))[0]
    assert score["checker"] == "verify" and {"rightly", "wrongly", "misnamed"} < set(score)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command.main(["bench", "--layers", "tan"])
    assert "the bank has no tan" in capsys.readouterr().err
