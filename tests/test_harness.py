"""The tests themselves: a test that hangs fails with all stacks, its children die, and long tests wait for --long."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import linux, posix, wait_for

ROOT = Path(__file__).parent.parent

TESTS = """
import subprocess, sys, threading, time
from pathlib import Path
import pytest
from tests.harness import FORK

def test_that_waits_for_ever():
    threading.Thread(target=waits_beside, daemon=True).start()
    threading.Event().wait()

def waits_beside():
    time.sleep(1000)

def test_that_leaves_children():
    forked = FORK.Process(target=time.sleep, args=(1000,))
    forked.start()
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    Path("children.part").write_text(f"{forked.pid} {started.pid}", encoding="utf-8")
    Path("children.part").rename("children")
    time.sleep(1000)

@pytest.mark.long
def test_that_is_long(): pass
"""


def command(folder: Path, *words: str) -> list[str]:
    """Runs pytest on ``TESTS``, with the settings of this project, in one process."""
    (folder / "test_some.py").write_text(TESTS, encoding="utf-8")
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "tests.harness", "-n", "0"]
    return [sys.executable, "-m", "pytest", *settings, "-p", "no:cacheprovider", *words, str(folder / "test_some.py")]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@posix
def test_test_that_hangs_fails_with_the_stacks_of_all_threads(tmp_path: Path) -> None:
    hanging = command(tmp_path, "-o", "timeout=0.5", "-k", "for_ever")
    done = subprocess.run(hanging, cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1 and "Timeout" in done.stdout
    assert "in waits_beside" in done.stdout + done.stderr and "threading.Event().wait()" in done.stdout


@linux
def test_children_die_with_the_process_that_runs_the_tests(tmp_path: Path) -> None:
    leaving = command(tmp_path, "-k", "leaves_children")
    with subprocess.Popen(leaving, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL) as tests:
        try:
            wait_for(tmp_path / "children")
        finally:
            tests.kill()
    for pid in map(int, (tmp_path / "children").read_text(encoding="utf-8").split()):
        end = time.monotonic() + 30
        while is_running(pid):
            assert time.monotonic() < end, f"process {pid} outlives the tests"
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("words", "said"), [(["--long"], "1 passed, 2 deselected"), ([], "3 deselected")])
def test_long_tests_are_run_when_asked_for(words: list[str], said: str, tmp_path: Path) -> None:
    long = command(tmp_path, "-k", "is_long", *words)
    done = subprocess.run(long, cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8", check=False)
    assert said in done.stdout
