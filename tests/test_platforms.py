"""macOS and Windows: what is missing there, what is refused, what has other names. Each test imitates the system."""

import ast
import errno
import importlib.util
import io
import json
import ntpath
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path, PurePath
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from bp_torch import distributed, verify
from bp_torch.benchmark.accuracy import seconds_until
from bp_torch.benchmark.scripts import OURS, Scripts, seconds_of
from bp_torch.checkpoint import LOCK, CheckpointError, locked, made_whole, make_folder
from bp_torch.cli import one_line_errors
from bp_torch.commands import benchmark, load_torch
from bp_torch.data import DataError, load, permutation
from bp_torch.device import DeviceError
from bp_torch.distributed import DistributedError, Watch, joined
from bp_torch.files import can_be_a_name, replace_file
from bp_torch.sweep.config import SweepConfig
from bp_torch.sweep.loop import sweep
from bp_torch.training import Config, train
from bp_torch.training.interruption import Signals, Stopped
from bp_torch.training.run import default_run_name
from bp_torch.training.step import compiled_lines
from bp_torch.verify.process import Process

ROOT = Path(__file__).parent.parent


# ---- files ----


def refusing(times: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Refuse to rename so often, as Windows does while a virus scanner reads. Returns the pauses."""
    pauses, rename = list[float](), Path.replace

    def refuse(path: Path, place: Path) -> Path:
        nonlocal times
        times -= 1
        if times >= 0:
            raise PermissionError(errno.EACCES, "Access is denied", str(path))
        return rename(path, place)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_file_that_is_being_read_is_replaced_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    monkeypatch.setattr("bp_torch.files.WINDOWS", True)
    with monkeypatch.context() as patch:
        pauses = refusing(3, patch)
        replace_file(path, b"new")
    assert path.read_bytes() == b"new" and len(pauses) == 3
    with monkeypatch.context() as patch, pytest.raises(PermissionError, match="Access is denied"):
        pauses = refusing(100, patch)
        replace_file(path, b"newer")
    assert path.read_bytes() == b"new" and 1 < sum(pauses) < 3, "who reads it longer is told"
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
    monkeypatch.setattr("bp_torch.files.WINDOWS", False)
    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        pauses = refusing(1, patch)
        replace_file(path, b"newer")
    assert not pauses, "elsewhere it is the right to write that is missing"


def test_folder_that_is_being_read_is_renamed_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bp_torch.files.WINDOWS", True)
    refusing(2, monkeypatch)
    with made_whole(tmp_path / "run") as made:
        (made / "file").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["run", os.path.join("run", "file")]  # noqa: PTH118


NAMES = ["a", "784-16-16-10_1124-120000", "console", "com", "com10", "a.con", "é", "a b", ".a", "lpt²x"]
NO_NAMES = ["a:b", "a*", "a?", 'a"b', "<a", "a>b", "a|b", "a\\b", "a/b", "a\n", "\x1f", "a.", "a ", "..."]
NO_NAMES += ["con", "CON", "nul.txt", "Aux.tar.gz", "com1", "COM¹", "lpt9.a", "prn .txt", "conin$", "CONOUT$"]


def test_names_of_folders_are_those_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bp_torch.files.WINDOWS", False)
    assert all(map(can_be_a_name, NAMES + NO_NAMES))
    monkeypatch.setattr("bp_torch.files.WINDOWS", True)
    assert [name for name in NAMES + NO_NAMES if can_be_a_name(name)] == NAMES
    if reserved := getattr(ntpath, "isreserved", None):  # of Python 3.13
        assert [name for name in NAMES + NO_NAMES if not reserved(name) and not set(":/\\") & set(name)] == NAMES
    with pytest.raises(CheckpointError, match="Windows has no folders of the name 'con': choose another --run-name"):
        make_folder(tmp_path / "con", "{}", None)
    assert not list(tmp_path.iterdir())


def test_name_of_a_run_leaves_room_in_a_path_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(sizes=(784, *[16] * 50, 10))
    assert 150 < len(default_run_name(config)) <= 200
    monkeypatch.setattr("bp_torch.training.run.DEFAULT_NAME", 60)
    (name, other) = (default_run_name(each) for each in (config, Config(sizes=(784, *[16] * 51, 10))))
    longest = rf"C:\Users\somebody\Documents\bp_torch\runs\.{name}.12345678\{name}\.network.safetensors.12345678"
    assert len(longest) < 260 and name != other


def test_lock_that_nobody_may_read_or_write_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> str:
        assert path.name == LOCK
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for name in ("read_text", "write_text"):
        monkeypatch.setattr(Path, name, refuse)
    with (
        locked(tmp_path),
        pytest.raises(CheckpointError, match="is being trained by another process"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


class Backslashes(type(Path())):  # type: ignore[misc]
    """A path that is printed as Windows does."""

    def __str__(self) -> str:
        return PurePath.__str__(self).replace("/", "\\")

    def as_posix(self) -> str:
        return PurePath.__str__(self).replace("\\", "/")


def test_paths_in_a_config_are_those_of_any_system() -> None:
    config = Config(runs_dir=Backslashes("my/runs"), data_dir=Backslashes("a/data"))
    assert str(config.runs_dir) == "my\\runs"
    found = json.loads(config.to_json())
    assert found["runs_dir"] == "my/runs" and found["data_dir"].endswith("/a/data")


def is_text(call: ast.Call) -> bool:
    """Whether a call opens a file or a pipe as text, in what the code says."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    modes = [mode for mode in map(ast.unparse, call.args) if re.fullmatch(r"'[rwax]\+?[bt]?\+?'", mode)]
    mode = given.get("mode") or "".join(modes)
    if name in ("open", "fdopen"):
        return "b" not in mode and (bool(mode) or not call.args or ast.unparse(call.func) == "open")
    if name in ("TemporaryFile", "NamedTemporaryFile"):
        return bool(mode) and "b" not in mode
    return name in ("read_text", "write_text") or given.get("text") == "True" or "universal_newlines" in given


@pytest.mark.parametrize("folder", ["bp_torch", "tests"])
def test_text_is_never_in_the_encoding_of_the_system(folder: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(code)) if re.search(r"_text\(|open\(|File\(|text=|newlines", code) else ():
            if isinstance(node, ast.Call) and is_text(node):
                words = [word.arg for word in node.keywords]
                if not {"encoding", None} & set(words):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert found == []


def test_lines_end_in_the_same_byte_on_every_system() -> None:
    """Git for Windows would write two: bash does not run such a .ci/run."""
    assert "* text=auto eol=lf\n" in (ROOT / ".gitattributes").read_text(encoding="utf-8")
    assert [path for path in ROOT.rglob("*.py") if b"\r" in path.read_bytes()] == []


# ---- output ----


def ends(error: Exception) -> object:
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise error
    return stop.value.code


def test_reader_that_is_gone_is_no_error_where_there_is_no_sigpipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    silenced: list[int] = []
    monkeypatch.setattr("bp_torch.cli.silence", silenced.append)
    monkeypatch.delattr(signal, "SIGPIPE", raising=False)
    assert ends(BrokenPipeError(errno.EPIPE, "Broken pipe")) == 141
    monkeypatch.setattr("bp_torch.cli.WINDOWS", True)
    assert ends(OSError(errno.EINVAL, "Invalid argument")) == 141
    assert silenced == [1, 1] and capsys.readouterr().err == ""
    assert ends(OSError(errno.EINVAL, "Invalid argument", "a?.png")) == 1
    assert "a?.png: Invalid argument" in capsys.readouterr().err
    monkeypatch.setattr("bp_torch.cli.WINDOWS", False)
    assert ends(OSError(errno.EINVAL, "Invalid argument")) == 1


@pytest.mark.parametrize("encoding", ["cp437", "cp1252", "ascii"])
@pytest.mark.parametrize("call", ["train", "sweep"])
def test_calls_from_python_show_what_the_code_page_can_show(
    call: str, encoding: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief: dict[str, Any] = {"epochs": 0, "train_examples": 100, "device": "cpu", "log": False}
    brief |= {"data_dir": data_dir, "runs_dir": tmp_path, "run_name": "√∂"}
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    train(Config(**brief)) if call == "train" else sweep(SweepConfig(**brief))
    stream.flush()
    said = stream.buffer.getvalue().decode(encoding)
    assert f"saved {tmp_path / ('√?' if encoding == 'cp437' else '??')}" in said
    with pytest.raises(UnicodeEncodeError):
        stream.write("∂")


def test_line_about_loading_is_erased_without_codes_that_old_consoles_print(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    load_torch()
    shown, blank, rest = stream.getvalue().split("\r")
    assert blank == " " * len(shown) and (rest, "\x1b" in shown) == ("", False)


def test_what_a_measured_process_prints_may_be_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.{0}.buffer.write(bytes([0xff, 0x81, 10])); sys.{0}.flush(); print('1 accuracy 98.5%')"
    assert seconds_until(98, [sys.executable, "-c", code.format("stdout")], 1, 60) is not None
    fails = f"{code.format('stderr')}; sys.exit(1)"
    with pytest.raises(RuntimeError, match="ended with code 1: \ufffd\ufffd"):
        seconds_until(99, [sys.executable, "-c", fails], 1, 60)
    monkeypatch.setattr("bp_torch.benchmark.scripts.COMMANDS", {OURS: ["-c", code.format("stdout")]})
    assert len(seconds_of(OURS, Scripts(data_dir=tmp_path), str(tmp_path))) == 1


# ---- processes and signals ----


def test_processes_watch_each_other_by_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows waits for nothing else, and Python 3.11 has no set_blocking there."""
    waited, wait, wake = list[bool](), select.select, signal.set_wakeup_fd

    def sockets_only(readers: list[Any], *rest: Any) -> Any:
        waited.append(all(isinstance(each, socket.socket) for each in readers))
        return wait(readers, *rest)

    def socket_only(descriptor: int, **options: bool) -> int:
        assert descriptor == -1 or stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        return wake(descriptor, **options)

    monkeypatch.delattr(os, "set_blocking", raising=False)
    monkeypatch.setattr(select, "select", sockets_only)
    monkeypatch.setattr(signal, "set_wakeup_fd", socket_only)
    monkeypatch.setattr(distributed, "BEAT", 0.01)
    with Watch(HashStore(), 0, 1):
        end = time.monotonic() + 30
        while len(waited) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(waited) >= 3 and all(waited)


def module_again(file: str | Path, name: str) -> ModuleType:
    """The module in ``file``, executed once more, under another name."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_process_needs_no_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PrefixStore", "rendezvous", "init_process_group", "is_nccl_available"):
        monkeypatch.delattr(f"torch.distributed.{name}")
    monkeypatch.setattr("torch.distributed.is_available", lambda: False)
    without = module_again(str(distributed.__file__), "without_distributed")
    with without.joined(torch.device("cpu")) as world:
        assert world.size == 1
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(without.DistributedError, match=r"no torch\.distributed: start one process"):
        without.joined(torch.device("cpu")).__enter__()


def test_several_gpus_without_nccl_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: False)
    with pytest.raises(DistributedError, match=r"several GPUs need NCCL.*choose --device cpu"):
        joined(torch.device("cuda:0")).__enter__()


def test_ctrl_break_stops_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bp_torch.training.interruption.HANGUP", None)
    number = getattr(signal, "SIGBREAK", None) or signal.SIGUSR1
    monkeypatch.setattr("bp_torch.training.interruption.BREAK", number)
    before = signal.getsignal(number)
    with Signals() as signals:
        signal.raise_signal(number)
    assert signals.received == number and Stopped(number, Path("run")).code == 128 + number
    assert signal.getsignal(number) == before


def test_benchmark_waits_for_itself_where_no_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], *, env: dict[str, str], check: bool) -> SimpleNamespace:
        started.append((command, env))
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(benchmark, "WINDOWS", True)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delattr(os, "execve")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--threads", "2"])
    ((command, environment),) = started
    assert stop.value.code == 3 and command == [sys.executable, "-m", "bp_torch", "benchmark", "--threads", "2"]
    assert environment["OPENBLAS_NUM_THREADS"] == "2"


@pytest.mark.long
def test_candidate_has_its_own_process_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It inherits the socket, there are no groups of processes, and it has neither ``resource`` nor ``prctl``."""
    (tmp_path / "resource.py").write_text("raise ImportError\n", encoding="utf-8")
    (tmp_path / "square.py").write_text("def f(x): return x * x\ndef b(dy, x): return 2 * x * dy\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("bp_torch.verify.process.WINDOWS", True)
    monkeypatch.delattr(os, "killpg", raising=False)
    candidate = Process(f"{tmp_path}/square.py:f,b")
    x = torch.linspace(-1, 1, 6)
    found = verify.check_layer(candidate.forward, [x], candidate.backward, reference=torch.square, names=["x"])
    assert found.verdict == "RIGHT", found
    candidate.close()
    assert candidate.process.poll() is not None


# ---- libraries ----


def test_order_of_an_epoch_is_int64_where_numpy_counts_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = permutation(100, 3, 1)
    generator = np.random.default_rng
    narrow = lambda seed: SimpleNamespace(permutation=lambda n: generator(seed).permutation(n).astype(np.int32))  # noqa: E731
    monkeypatch.setattr(np.random, "default_rng", narrow)
    assert permutation(100, 3, 1).dtype == torch.int64 and torch.equal(permutation(100, 3, 1), usual)


def test_python_without_lzma_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac has none where Python was built before xz was installed."""
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(DataError, match=r"this Python has no lzma \(.*\): install xz and then Python again"):
        load("mnist", tmp_path)


def test_system_that_torch_does_not_compile_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(DeviceError, match=r"--compile does not work here \(torch.compile is not.*\): leave it out"):
        compiled_lines(lambda indices: indices)


# ---- the tests themselves ----


def test_tests_are_collected_where_posix_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(method: str) -> None:
        raise ValueError(f"cannot find context for {method!r}")

    for name in ("pty", "fcntl", "resource", "termios", "grp", "pwd"):
        monkeypatch.setitem(sys.modules, name, None)
    for owner, names in {
        signal: ["SIGHUP", "SIGPIPE", "SIGKILL", "SIGSTOP", "SIGUSR1", "SIGALRM", "SIGCHLD"],
        os: ["fork", "mkfifo", "killpg", "register_at_fork", "geteuid", "getuid", "sysconf", "set_blocking", "openpty"],
    }.items():
        for name in names:
            monkeypatch.delattr(owner, name)
    monkeypatch.setattr("multiprocessing.get_context", refuse)
    harness = module_again(ROOT / "tests" / "harness.py", "harness_again")
    monkeypatch.setitem(sys.modules, "tests.harness", harness)
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        if re.search("harness|signal|fork|fcntl|pty|resource|mkfifo", path.read_text(encoding="utf-8")):
            module_again(path, f"again_{path.stem}")
    assert harness.posix.mark.args == (True,)
    with pytest.raises(pytest.skip.Exception, match="it forks"):
        harness.FORK.Process(target=print)
