"""How the tests are run: long ones only when asked for, and no process that a test starts outlives it.

What Windows or macOS lack is skipped there: tests that use FORK, and those marked ``posix`` or ``linux``.

python -m pytest           the short tests
python -m pytest --long    the long ones too: compilers, twenty kills, whole runs, real waiting
"""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
SIGNALS = {n: 128 + n for n in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)) if n}
"""The signals that stop a training, with its exit codes."""

LINUX = sys.platform == "linux" and hasattr(os, "fork")
linux = pytest.mark.skipif(not LINUX, reason="it needs a fork, /proc, /dev/full or names of any bytes, as Linux has")
posix = pytest.mark.skipif(
    not hasattr(os, "mkfifo"), reason="it needs signals, a pipe, bash or a mode, as Windows has not"
)


class NoFork:
    """Stands for FORK where there is none: a test that asks for a process is skipped."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        pytest.skip("it forks: Windows cannot, and macOS must not with threads")


FORK: Any = multiprocessing.get_context("fork") if LINUX else NoFork()  # the child starts with torch loaded


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests that are long by nature too")


def pytest_configure() -> None:
    """Take signals as a shell in the foreground does, and let every process that a test starts die with this one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    os.environ["PYTHONIOENCODING"] = "utf-8"  # of the processes that tests start, whatever the system's is
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a job of nohup ignores it
    if LINUX:
        os.register_at_fork(after_in_child=die_with_parent)
        started = partialmethod(subprocess.Popen.__init__, preexec_fn=die_with_parent)
        subprocess.Popen.__init__ = started  # type: ignore[assignment]
    tqdm.set_lock(threading.RLock())  # its default is shared by forked processes: one that is killed may hold it


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests, unless they are asked for."""
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(autouse=True)
def children_end_with_their_test() -> Iterator[None]:
    """Kill what a test forked and left: Python would wait for it at its end."""
    yield
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def die_with_parent() -> None:
    """Let Linux kill this process as soon as the one that started it is gone, however that ended."""
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_for(path: Path, patience: float = 60) -> None:
    """Wait until a file is there. Raises AssertionError if it does not come within ``patience`` seconds."""
    end = time.monotonic() + patience
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)
