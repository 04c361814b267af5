"""What a person waits for: seconds from starting a process to the trained network of the default run.

    python -m bp_torch benchmark scripts

784-16-16-10, 20 epochs: imports, data, training, and an evaluation at the end, of ours and of scripts that are written
for the purpose, in tests/default_run.py of a clone. All run in turns, each time in a new process.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from bp_torch import text
from bp_torch.cli import UserError
from bp_torch.flags import Within, check_bounds
from bp_torch.values import MOST_THREADS

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Where the libraries of numerics read their number of threads, once, when they are loaded."""

SCRIPT = Path(__file__).parents[2] / "tests" / "default_run.py"
OURS = "ours, `--no-log`"
COMMANDS: dict[str, list[str]] = {
    OURS: ["-m", "bp_torch", "train", "--no-log"],
    "ours": ["-m", "bp_torch", "train"],
    "NumPy by hand": [str(SCRIPT), "numpy"],
    "JAX, `jit(scan)`": [str(SCRIPT), "jax"],
    "scikit-learn's `MLPClassifier`": [str(SCRIPT), "sklearn"],
    "autograd, tensors in memory": [str(SCRIPT), "autograd"],
    "autograd as in pytorch/examples, with a `DataLoader`": [str(SCRIPT), "loader"],
}
"""What follows ``python``; data, threads and the folder of the runs are added."""


class BenchmarkError(UserError):
    """A contender cannot be compared, or measured. The message says which, and why."""


@dataclass(frozen=True)
class Scripts:
    """The flags of ``benchmark scripts``."""

    rounds: Annotated[int, Within(least=1)] = 3
    """Times that each is started, in turns; the median is reported."""
    threads: Annotated[int, Within(least=1, most=MOST_THREADS)] = 1
    """CPU threads of each."""
    data_dir: Path = Path("data")
    """Folder of the data sets; filled before the first measurement."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_bounds(self)


def measure(wanted: Scripts) -> dict[str, list[float]]:
    """The seconds of each turn of each contender; none of one whose library is missing. Raises BenchmarkError."""
    if not SCRIPT.exists():
        raise BenchmarkError(f"there is no {SCRIPT}: run this command in a clone of the repository")
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(wanted.rounds):
        for name in COMMANDS:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as runs:
                seconds[name] += seconds_of(name, wanted, runs)
    return seconds


def seconds_of(name: str, wanted: Scripts, runs: str) -> list[float]:
    """The seconds of one run; none if its library is missing. Raises BenchmarkError if it fails or learns nothing."""
    data_dir, threads = str(wanted.data_dir.absolute()), str(wanted.threads)
    command = [sys.executable, *COMMANDS[name], "--data-dir", data_dir, "--threads", threads]
    command += ["--runs-dir", runs, "--device", "cpu"] if "train" in command else []
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, threads)
    start = time.perf_counter()
    pipes: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(command, env=environment, check=False, **pipes)
    took = time.perf_counter() - start
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if "ModuleNotFoundError" in reason:
            return []
        raise BenchmarkError(f"{name}: ended with code {done.returncode}: {reason}")
    accuracies = re.findall(r"([\d.]+)%", done.stdout)
    if not accuracies or float(accuracies[-1]) < 90:
        raise BenchmarkError(f"{name}: wanted a test accuracy of 90 % or more, got {accuracies[-1:] or 'none'}")
    return [took]


def table(seconds: dict[str, list[float]]) -> str:
    """A row for each contender, the quickest first, in Markdown."""
    found = {name: median(times) for name, times in seconds.items() if times}
    rows = [[name, text.number(found[name]), text.number(found[name] / found[OURS])] for name in found]
    rows.sort(key=lambda row: found[row[0]])
    rows += [[f"{name}: not installed", "", ""] for name in seconds if name not in found]
    header = ("from the start of the process to the trained network", "seconds", "÷ ours")
    return text.table(header, rows, markdown=True)
