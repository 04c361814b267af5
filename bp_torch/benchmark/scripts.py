"""What a person waits for: seconds from starting a process to the trained network of the default run.

    python -m bp_torch benchmark scripts

784-16-16-10, 20 epochs: imports, data, training, and an evaluation at the end, of ours and of scripts that are written
for the purpose (default_run.py). All run in turns, each time in a new process.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

from bp_torch import text
from bp_torch.cli import UserError
from bp_torch.flags import Within, check_bounds
from bp_torch.values import check_threads

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Where the libraries of numerics read their number of threads, once, when they are loaded."""

STEPS_ALONE = """
import time
start = time.perf_counter()
import torch
seconds = time.perf_counter() - start
from collections import deque
from pathlib import Path
from bp_torch.data import load, permutation
from bp_torch.training import Config
torch.set_num_threads({threads})
config, (examples, _) = Config(log=False), load("mnist", Path({data_dir!r}))
network = config.network(torch.device("cpu"))
step = config.training_step(network, config.optimizer(network), examples)
start = time.perf_counter()
with torch.inference_mode():
    for epoch in range(1, config.epochs + 1):
        step.optimizer.learning_rate = config.learning_rate_at(epoch)
        deque(step.run(permutation(60_000, 0, epoch)), maxlen=0)
print(seconds + time.perf_counter() - start)
"""
"""Prints its own seconds: to import torch, and to make the steps."""

SCRIPT = str(Path(__file__).with_name("default_run.py"))
OURS, ALONE = "ours, `--no-log`", "importing torch and our steps alone"
COMMANDS: dict[str, list[str]] = {
    OURS: ["-m", "bp_torch", "train", "--no-log"],
    "ours": ["-m", "bp_torch", "train"],
    "NumPy by hand": [SCRIPT, "numpy"],
    "JAX, `jit(scan)`": [SCRIPT, "jax"],
    "scikit-learn's `MLPClassifier`": [SCRIPT, "sklearn"],
    "autograd, tensors in memory": [SCRIPT, "autograd"],
    "autograd as in pytorch/examples, with a `DataLoader`": [SCRIPT, "loader"],
    ALONE: ["-c", STEPS_ALONE],
}
"""What follows ``python``; data, threads and the folder of the runs are added."""


class BenchmarkError(UserError):
    """What cannot be compared, or measured. The message says which contender, and why."""


@dataclass(frozen=True)
class Scripts:
    """The flags of ``benchmark scripts``."""

    rounds: Annotated[int, Within(least=1)] = 3
    """Times that each is started, in turns; the median is reported."""
    threads: int = 1
    """CPU threads of each."""
    json: bool = False
    """Print the seconds of all turns as JSON."""
    data_dir: Path = Path("data")
    """Folder of the data sets; filled before the first measurement."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_bounds(self)
        check_threads(self.threads)


def measure(wanted: Scripts) -> dict[str, list[float]]:
    """The seconds of each turn of each contender; none of one whose library is missing. Raises BenchmarkError."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(wanted.rounds):
        for name in COMMANDS:
            with tempfile.TemporaryDirectory() as runs:
                seconds[name] += seconds_of(name, wanted, runs)
    return seconds


def seconds_of(name: str, wanted: Scripts, runs: str) -> list[float]:
    """The seconds of one run; none if its library is missing. Raises BenchmarkError if it fails or learns nothing."""
    data_dir, threads = str(wanted.data_dir.absolute()), str(wanted.threads)
    command = [part.replace("{threads}", threads).replace("{data_dir!r}", repr(data_dir)) for part in COMMANDS[name]]
    if name != ALONE:
        command += ["--data-dir", data_dir, "--threads", threads]
        command += ["--runs-dir", runs, "--device", "cpu"] if command[0] == "-m" else []
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, threads)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    said = done.stdout.split()
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if "ModuleNotFoundError" in reason:
            return []
        raise BenchmarkError(f"{name}: ended with code {done.returncode}: {reason}")
    if name == ALONE:
        return [float(said[-1])]
    accuracies = [float(word.rstrip("%")) for word in said if word.endswith("%")]
    if not accuracies or accuracies[-1] < 90:
        raise BenchmarkError(f"{name}: wanted a test accuracy of 90 % or more, got {accuracies[-1:] or 'none'}")
    return [took]


def table(seconds: dict[str, list[float]]) -> str:
    """A row for each contender, the quickest first, in Markdown."""
    found = {name: median(times) for name, times in seconds.items() if times}
    rows = [[name, *cells(found[name], found)] for name in sorted(found, key=found.__getitem__)]
    rows += [[f"{name}: not installed", "", "", ""] for name in seconds if name not in found]
    header: Sequence[str] = ("from the start of the process to the trained network", "seconds", "÷ ours", "÷ the least")
    return text.table(header, rows, markdown=True)


def cells(value: float, found: dict[str, float]) -> list[str]:
    """The seconds, and their ratios to ours and to what is the least for ours."""
    return [text.number(value), text.number(value / found[OURS]), text.number(value / found[ALONE])]


def as_json(seconds: dict[str, list[float]], machine: dict[str, str | int]) -> str:
    """Everything that was measured."""
    return json.dumps({"machine": machine, "seconds": seconds}, indent=2)
