import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bp_torch import __main__ as commands
from bp_torch.cli import one_line_errors, parse


@dataclass
class Flags:
    many: tuple[int, ...] = (1, 2)
    """Numbers."""
    size: float = 1.0
    """A size."""

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"--size: wanted 0 or more, got {self.size}")


def test_flags_that_are_not_given_come_from_the_default() -> None:
    assert parse(Flags, description="", args=["--size", "2"]) == Flags(size=2)
    assert parse(Flags, description="", args=["--size", "2"], default=Flags(many=(5,))) == Flags((5,), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "big"], "error: Error parsing --size"),
        (["--colour", "red"], "error: Unrecognized options: --colour, red\n"),
        (["--size", "-1"], "error: --size: wanted 0 or more, got -1.0\n"),
    ],
)
def test_wrong_flag_is_reported_in_one_line_with_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Flags, description="", args=arguments)
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(message) and "helptext" not in said.err


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        with one_line_errors(OSError):
            raise error

    return work


def test_errors_are_reported_in_one_line_with_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for error, code, line in ((OSError("no\nroom"), 1, "no room"), (KeyboardInterrupt(), 130, "stopped")):
        with pytest.raises(SystemExit) as stop:
            raising(error)()
        assert (stop.value.code, capsys.readouterr().err) == (code, f"error: {line}\n")
    with pytest.raises(KeyError):  # an unexpected error keeps its traceback
        raising(KeyError("a bug"))()


def test_package_lists_its_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bp_torch"])
    commands.main()
    said = capsys.readouterr().out
    assert all(name in said for name in commands.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["bp_torch", "dance"])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: unknown command 'dance': choose from train, verify, explain, benchmark\n"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_help_of_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bp_torch", name, "--help"])
    with contextlib.suppress(SystemExit):
        commands.main()
    assert f"bp_torch {name}" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_help_and_errors_print_in_any_encoding(encoding: str) -> None:
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    code = (
        "import sys, tests.test_cli as t; from bp_torch.cli import parse\n"
        "try: parse(t.Flags, description='δ', args=['--help'])\n"
        "except SystemExit: parse(t.Flags, description='δ', args=['--size', 'δ'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, encoding=encoding, check=False
    )
    assert done.returncode == 2
    assert "--size" in done.stdout and ("δ" in done.stdout) == (encoding == "utf-8")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Error parsing --size: could not convert string to float") and "help" not in line
