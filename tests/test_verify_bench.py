"""The bank is large and its right layers are right, and the score is what docs/verify.md says it is."""

import json
import re
from pathlib import Path

import pytest
import torch

from bp_torch.commands import verify as command
from bp_torch.verify.bank import load
from bp_torch.verify.bench import CHECKERS, DTYPES, MEANINGLESS, Options, bench, false_alarms
from tests import verify_held_out

BANK = load()
PAGE = (Path(__file__).parent.parent / "docs/verify.md").read_text()


def test_bank_has_60_layers_and_250_faults() -> None:
    faults = {name: layer.faults() for name, layer in BANK.items()}
    assert len(BANK) >= 60 and sum(len(found.said) for found in faults.values()) >= 250
    assert all(found.said for found in faults.values())
    sources = " ".join(source for found in faults.values() for source in found.sources.values())
    for known in ("Liger 1298", "mamba 537", "cudnn-frontend 385", "llm.c 801", "mlpack 1923", "TinyTorch", "Ng's"):
        assert known in sources


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_false_alarm_and_nearly_every_fault_caught(dtype: str) -> None:
    names = tuple(list(BANK)[{"float64": 0, "float32": 1, "bfloat16": 2}[dtype] :: 6])
    ours = next(s for s in bench(Options(dtypes=(dtype,), layers=names)) if s.checker == "verify")
    assert ours.alarms == [] and ours.missed == [] and ours.wrongly == 0, ours
    assert ours.rightly >= 0.6 * ours.faults


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_right_backwards_are_called_right(dtype: str) -> None:
    assert false_alarms(40, dtype) == []


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
    assert json.loads((tmp_path / "score.json").read_text())[0]["checker"] == "verify"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command.main(["bench", "--layers", "tan"])
    assert "the bank has no tan" in capsys.readouterr().err
