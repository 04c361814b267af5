"""The checks for a GPU run without one, and one that dies is told."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_check import STAGES, line_of, outcome, parsed
from tests.gpu_steps import CHECKS, EPOCH, ROOT


def test_every_check_has_its_time() -> None:
    assert [name for stage in STAGES for name in stage] == list(CHECKS)


def test_check_that_dies_is_told(tmp_path: Path) -> None:
    given = parsed(["--device", "toaster", "--only", "pools", "--out", str(tmp_path)])
    name, found, output = outcome("pools", 60, given, tmp_path, float("inf"))
    assert not found["ok"] and found["code"] == 1 and "toaster" in found["said"][-2] + found["said"][-1]
    assert "Traceback" in output and re.match(r"pools +FAILED +[\d.]+ s +\{", line_of(name, found))


def test_check_without_time_has_not_passed(tmp_path: Path) -> None:
    found = outcome("pools", 60, parsed([]), tmp_path, 0.0)[1]
    assert found == {"ok": False, "said": ["no time was left"]} and "FAILED" in line_of("pools", found)


def test_lines_of_training_are_read() -> None:
    said = (
        "epoch   train cost\n    3       0.1066    93.32%       0.1097    93.06%      253,367      0.24\nsaved runs\n"
    )
    assert EPOCH.findall(said) == [("93.06", "253,367")]


@pytest.mark.long
@pytest.mark.parametrize("names", [["machine", "pools", "garbage", "graphs"], ["train", "deform"], ["resume", "two"]])
def test_checks_run_without_a_gpu(names: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_check", "--device", "cpu", "--small", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", *names], cwd=ROOT, capture_output=True, encoding="utf-8")
    results: dict[str, Any] = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert done.returncode == 0 and list(results) == names, done.stdout
    assert all(found["ok"] for found in results.values())
    assert (tmp_path / "results.txt").read_text(encoding="utf-8").count("\n") == len(names)
