"""The default run as a person waits for it, beside t₀: importing torch and making the 12,000 steps alone. In turns.

    python -m tests.start_times                     nine turns, medians; on a quiet machine
    python -m tests.start_times --turns 3 --cpu     seconds of the processor, where other work runs

It prints t₀, the run with and without a log and their ratios to t₀, what logging adds, and the seconds until help, the
version and an error.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bp_torch.benchmark.scripts import THREAD_VARIABLES

ROOT = Path(__file__).parent.parent

STEPS_ALONE = """
import torch
from collections import deque
from pathlib import Path
from bp_torch.data import load, permutation
from bp_torch.training.config import Config
import sys
torch.set_num_threads(1)
config, (examples, _) = Config(log=False), load("mnist", Path(sys.argv[1]))
network = config.network(torch.device("cpu"))
step = config.training_step(network, config.optimizer(network), examples)
with torch.inference_mode():
    for epoch in range(1, config.epochs + 1):
        step.optimizer.learning_rate = config.learning_rate_at(epoch)
        deque(step.run(permutation(60_000, 0, epoch)), maxlen=0)
"""

LOADING = """
import torch, sys
from pathlib import Path
from bp_torch.data import load
load("mnist", Path(sys.argv[1]))
"""


def seconds_of(command: list[str], folder: str, *, cpu: bool) -> float:
    """Seconds of a process in ``folder``, or those that it had the processor."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1") | {"PYTHONPATH": str(ROOT)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    nowhere = subprocess.DEVNULL
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, stdout=nowhere, stderr=nowhere, check=False)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime if cpu else took


def main() -> None:
    """Start all in turns, print medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.start_times")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    given = parser.parse_args()
    data = str(given.data_dir.absolute())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(data)
        train = [str(ROOT / "train.py")]
        commands = {
            "import torch": ["-c", "import torch"],
            "data and torch": ["-c", LOADING, data],
            "data, torch and steps": ["-c", STEPS_ALONE, data],
            "run": train,
            "run --no-log": [*train, "--no-log"],
            "--help": ["-m", "bp_torch", "train", "--help"],
            "--version": ["-m", "bp_torch", "--version"],
            "a wrong value": ["-m", "bp_torch", "train", "--epochs", "many"],
            "explain nudges --help": ["-m", "bp_torch", "explain", "nudges", "--help"],
        }
        seconds_of(commands["data and torch"], folder, cpu=False)  # unpacks the data, and warms the disk
        turns = {name: list[float]() for name in commands}
        for _ in range(given.turns):
            for name, command in commands.items():
                turns[name].append(seconds_of(command, folder, cpu=given.cpu))
    found = {name: median(times) for name, times in turns.items()}
    found["t0: importing torch, and the steps"] = (
        found["import torch"] + found["data, torch and steps"] - found["data and torch"]
    )
    t0 = found["t0: importing torch, and the steps"]
    for name, seconds in found.items():
        print(f"{name:40} {seconds:6.3f} s")
    print(f"with a log {found['run'] / t0:.2f} t0, without {found['run --no-log'] / t0:.2f} t0")
    print(f"a log adds {found['run'] / found['run --no-log'] - 1:.1%}")


if __name__ == "__main__":
    main()
