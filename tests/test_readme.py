"""The README does what it says."""

import re
from pathlib import Path

import pytest

from bp_torch import backprop

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_from_python_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (section,) = re.findall(r"## From Python\n\n```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(section, names)
    assert (tmp_path / "network.safetensors").is_file()


def test_every_equation_names_a_function_of_backprop() -> None:
    rows = re.findall(r"^\| (forward|BP\d) \|.*\| `(\w+)` \|$", README, re.MULTILINE)
    assert [row[0] for row in rows] == ["forward", "BP1", "BP2", "BP3", "BP4"]
    for equation, function in rows[1:]:
        assert (getattr(backprop, function).__doc__ or "").startswith(f"{equation}:")


def test_every_file_it_lists_is_there() -> None:
    for name in re.findall(r"^\| `((?:bp_torch/|tests/)[\w/.]*|train\.py)`", README, re.MULTILINE):
        assert (Path(__file__).parent.parent / name).exists(), name


def test_there_are_two_commands_and_ci_runs_the_second() -> None:
    section = README.split("## Two commands")[1].split("\n## ")[0]
    commands = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    assert [command.count("\n") for command in commands] == [1, 1]
    assert commands[1].startswith("pip install") and "pytest" in commands[1]
