import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from bp_torch import __main__ as package
from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.commands import COMMANDS, start
from tests.harness import linux, posix


@dataclass
class Flags:
    many: tuple[int, ...] = (1, 2)
    """Numbers."""
    how_many: int = 3
    """A number."""
    size: float = 1.0
    """A size."""
    kind: Literal["thin", "thick"] | int | None = None
    """A kind. None: any."""

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"--size: wanted 0 or more, got {self.size}")


def test_flags_that_are_not_given_come_from_the_default() -> None:
    assert parse(Flags, description="", args=["--size", "2"]) == Flags(size=2)
    assert parse(Flags, description="", args=["--size", "2"], default=Flags(many=(5,))) == Flags((5,), size=2)


def test_without_flags_there_is_nothing_to_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.setattr(sys, "argv", ["try"])
    assert parse(Flags, description="") == parse(Flags, description="", args=[]) == Flags()
    assert parse(Flags, description="", args=[], default=Flags(size=2)) == Flags(size=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "big"], "error: --size: wanted a number, got big\n"),
        (["--size"], "error: --size: wanted a number, got nothing\n"),
        (["--many", "1,2"], "error: --many: wanted whole numbers, with a space between, got 1,2\n"),
        (["--kind", "red"], "error: --kind: wanted thin, thick or a whole number, got red\n"),
        (["--sizes", "2"], "error: Unrecognized options: --sizes, 2: did you mean --size?\n"),
        (["--hm", "2"], "error: Unrecognized options: --hm, 2: did you mean --how-many?\n"),
        (["--colour", "red"], "error: Unrecognized options: --colour, red: see --help\n"),
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
        with one_line_errors():
            raise error

    return work


def test_errors_are_reported_in_one_line_with_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for error, code, line in ((OSError("no\nroom"), 1, "no room"), (KeyboardInterrupt(), 130, "stopped")):
        with pytest.raises(SystemExit) as stop:
            raising(error)()
        assert (stop.value.code, capsys.readouterr().err) == (code, f"error: {line}\n")
    for short in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes\nstack")):
        with pytest.raises(SystemExit) as stop:
            raising(short)()
        said = capsys.readouterr().err
        assert stop.value.code == 1 and said.startswith("error: not enough memory") and "stack" not in said
    others: list[tuple[BaseException, str]] = [
        (OSError(28, "No space left on device", "runs/a"), "runs/a: No space left on device: make room on the disk"),
        (OSError(28, "No space left on device"), "cannot write the output: No space left on device"),
        (
            ImportError("libx.so: cannot open shared object file: Too many open files", name="x"),
            "cannot load x: libx.so",
        ),
        (RuntimeError("can't start new thread"), "cannot start a thread: raise the limit of processes (ulimit -u)"),
    ]
    for other, line in others:
        with pytest.raises(SystemExit) as stop:
            raising(other)()
        said = capsys.readouterr().err
        assert stop.value.code == 1 and said.startswith(f"error: {line}") and said.count("\n") == 1
    with pytest.raises(RuntimeError, match="a bug"):
        raising(RuntimeError("a bug"))()
    with pytest.raises(KeyError):  # an unexpected error keeps its traceback
        raising(KeyError("a bug"))()


def test_package_lists_its_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bp_torch"])
    package.main()
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["bp_torch", "dance"])
    with pytest.raises(SystemExit) as stop:
        package.main()
    assert stop.value.code == 2
    wanted = ", ".join(COMMANDS)
    assert capsys.readouterr().err == f"error: unknown command 'dance': choose from {wanted}\n"


@pytest.mark.parametrize(("typed", "meant"), [(["trian"], "train"), (["explain", "nudge"], "nudges")])
def test_alike_command_or_idea_is_suggested(
    typed: list[str], meant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bp_torch", *typed])
    with pytest.raises(SystemExit) as stop:
        package.main()
    assert stop.value.code == 2 and capsys.readouterr().err.endswith(f"{typed[-1]!r}: did you mean {meant}?\n")


def test_terminal_shows_an_error_with_whole_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        fail("there is no file runs/784-16-16-10/explained/nudges.png in it", 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: there is no file", "runs/784-16-16-10/explained/nudges.png", "in it"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_of_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bp_torch", name, "--help"])
    with contextlib.suppress(SystemExit):
        package.main()
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
    assert line.startswith("error: --size: wanted a number, got ")


ROOT = Path(__file__).parent.parent

SHELL = {
    "stderr closed": ("2>&-", 0),
    "stdout closed": (">&-", 0),
    "all closed": (">&- 2>&- <&-", 0),
    "a reader that stops": ("| true; exit ${PIPESTATUS[0]}", 141),
    "a full disk": (">/dev/full", 1),
}

A_COMMAND = """
import importlib, os, sys, types
from bp_torch import commands
importlib.import_module = lambda name: types.SimpleNamespace(main=main)
"""


def shell(code: str, redirection: str) -> subprocess.CompletedProcess[str]:
    """Run ``start`` on a ``main`` that is defined by ``code``."""
    script = f"{A_COMMAND}\n{code}\ncommands.start('main', [])"
    command = ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)


@posix
@pytest.mark.parametrize("way", [pytest.param(way, marks=linux) if "disk" in way else way for way in SHELL])
def test_output_that_nobody_takes_ends_in_an_exit_code_and_no_traceback(way: str) -> None:
    redirection, code = SHELL[way]
    done = shell("main = lambda _: print('x' * 10**6)", redirection)
    line = "error: cannot write the output: No space left on device\n" if way == "a full disk" else ""
    assert (done.returncode, done.stderr) == (code, line)


@posix
def test_closed_streams_are_not_taken_by_the_next_file(tmp_path: Path) -> None:
    code = f"main = lambda _: open({str(tmp_path / 'out')!r}, 'w').write(str(os.open('/dev/null', 0)))"
    assert shell(code, ">&- 2>&- <&-").returncode == 0
    assert int((tmp_path / "out").read_text(encoding="utf-8")) >= 3


@posix
def test_ctrl_c_while_modules_are_imported_has_no_traceback() -> None:
    code = "def importing(name):\n  print('importing', flush=True)\n  import time\n  time.sleep(60)"
    script = f"{A_COMMAND}\n{code}\nimportlib.import_module = importing\ncommands.start('main', [])"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as child:
        assert child.stdout and child.stdout.readline() == "importing\n"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate()
    assert (child.returncode, said) == (130, "error: stopped\n")


@posix
def test_threads_that_cannot_start_are_told_before_torch_is_loaded() -> None:
    code = "import threading; threading._start_new_thread = lambda *_: (_ for _ in ()).throw(RuntimeError(\n"
    code += '"can\'t start new thread"))\ndef main(_): commands.load_torch()'
    done = shell(code, "")
    line = "error: cannot start a thread: raise the limit of processes (ulimit -u), or of memory\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_ctrl_c_is_as_usual_after_a_command() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit):
            start("train", ["--epochs", "many"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_command_starts_without_torch() -> None:
    code = "import sys, bp_torch.cli; assert not {'torch', 'tyro'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_variable_that_a_library_of_torch_cannot_read_is_a_line(tmp_path: Path) -> None:
    variables = os.environ | {"TQDM_MININTERVAL": "x", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "bp_torch", "train", "--epochs", "0"]
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.startswith(b"error: cannot load torch: ")


def test_no_command_warns_of_a_home_in_which_matplotlib_keeps_no_fonts(tmp_path: Path) -> None:
    variables = os.environ | {"MPLCONFIGDIR": os.devnull, "MPLBACKEND": "none"}
    words = [sys.executable, "-m", "bp_torch", "ladder"]
    done = subprocess.run(words, cwd=tmp_path, env=variables | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
