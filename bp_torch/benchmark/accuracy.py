"""Time to accuracy: seconds from starting a process until its test accuracy reaches a target.

    python -m bp_torch benchmark accuracy                        all targets, five seeds; hours
    python -m bp_torch benchmark accuracy --targets 97 --seeds 1

Imports, data and the evaluation after each epoch are included. Each measurement is a new process, which is ended as
soon as the target is reached. What the JSON file has already is not measured again, so the command can be stopped.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, Literal

from bp_torch import text
from bp_torch.benchmark.scripts import THREAD_VARIABLES, BenchmarkError
from bp_torch.files import check_writable, read_json, write_json
from bp_torch.flags import Within, check_bounds

ContenderName = Literal["ours", "autograd", "scikit-learn"]

NAMES: dict[ContenderName, str] = {
    "ours": "ours, `train.py`",
    "autograd": "the same by autograd and a `DataLoader`",
    "scikit-learn": "scikit-learn's `MLPClassifier`",
}

RECIPES: dict[float, str] = {
    97.0: "--sizes 784 128 10 --learning-rate 0.1 --momentum 0.9 --batch-size 100 --epochs 3",
    98.0: "--sizes 784 256 10 --learning-rate 0.1 --momentum 0.9 --batch-size 100 --epochs 8",
    99.0: "--sizes 784 500 300 10 --learning-rate 0.1 --momentum 0.9 --batch-size 128 --epochs 15"
    " --rotation 10 --shear 10 --scale 0.1 --sigma 5 --alpha 30",
    99.4: "--sizes 784 1000 500 10 --learning-rate 0.05 --momentum 0.9 --batch-size 128 --epochs 100"
    " --rotation 15 --shear 15 --scale 0.17 --sigma 5 --alpha 38",
}
"""Flags of train.py for each target; ``OURS`` are the same in all of them."""

OURS = "--activation relu --init he --cost softmax-cross-entropy --schedule cosine"
SKLEARN_TARGETS = (97.0, 98.0)
SKLEARN_EPOCHS = 1_000
HERE = Path(__file__).parent

EPOCH_LINE = re.compile(r"^\s*\d+\s+(?:[\d.]+\s+[\d.]+%\s+[\d.]+\s+|accuracy )([\d.]+)%")
"""A line of train.py, or of the two scripts, and its accuracy on the test set in %."""


@dataclass(frozen=True)
class Accuracy:
    """The flags of ``benchmark accuracy``. Raises ValueError for what cannot be measured."""

    targets: tuple[float, ...] = tuple(RECIPES)
    """Accuracies on the test set in %."""
    contenders: tuple[ContenderName, ...] = tuple(NAMES)
    """Who is measured; scikit-learn for 97 and 98 only."""
    seeds: Annotated[int, Within(least=1)] = 5
    """Runs of each, with the seeds 0, 1, …; at most three for 99.4."""
    threads: Annotated[int, Within(least=1)] = 2
    """CPU threads."""
    give_up: Annotated[float, Within(above=0)] = 1200.0
    """Seconds after which a run is ended."""
    out: Path = Path("time-to-accuracy.json")
    """File of the results."""
    data_dir: Path = Path("data")
    """Folder of the data sets; filled before the first measurement."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_bounds(self)
        if unknown := [target for target in self.targets if target not in RECIPES]:
            wanted = ", ".join(f"{target:g}" for target in RECIPES)
            raise ValueError(f"--targets: wanted some of {wanted}, got {unknown[0]:g}")


def shown(contender: ContenderName, target: float) -> str:
    """The command as one would type it, without seed, threads and folders."""
    flags = RECIPES[target]
    if contender == "scikit-learn":
        sizes, batch = re.findall(r"--sizes [\d ]+\d|--batch-size \d+", flags)
        return f"python bp_torch/benchmark/with_sklearn.py {sizes} {batch} --epochs {SKLEARN_EPOCHS}"
    if contender == "autograd":
        return f"python bp_torch/benchmark/with_autograd.py {flags}"
    return f"python train.py {OURS} {flags}" + " --deform both" * ("--sigma" in flags)


def command(contender: ContenderName, target: float, seed: int, wanted: Accuracy, runs: Path) -> list[str]:
    """The process that is started. Ours is train.py by its other name, which needs no clone."""
    _, file, *flags = shown(contender, target).split()
    start = ["-m", "bp_torch", "train"] if contender == "ours" else [str(HERE / Path(file).name)]
    places = ["--seed", str(seed), "--data-dir", str(wanted.data_dir)]
    places += [] if contender == "scikit-learn" else ["--threads", str(wanted.threads)]
    places += ["--runs-dir", str(runs), "--device", "cpu"] if contender == "ours" else []
    return [sys.executable, *start, *flags, *places]


def seconds_until(target: float, command: list[str], threads: int, give_up: float) -> float | None:
    """Seconds until ``command`` prints an accuracy of ``target`` %, else None. Raises BenchmarkError if it fails."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"PYTHONUNBUFFERED": "1"}
    as_text: dict[str, Any] = {"encoding": "utf-8", "errors": "replace"}  # whatever it prints: numbers are ASCII
    with tempfile.TemporaryFile("w+", **as_text) as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, **as_text)
        timer = threading.Timer(give_up, process.kill)
        timer.start()
        assert process.stdout
        try:
            for line in process.stdout:
                found = EPOCH_LINE.match(line)
                if found and float(found[1]) >= target:
                    return time.perf_counter() - start
            took = time.perf_counter() - start
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        if process.returncode and took < give_up:
            errors.seek(0)
            said = errors.read().strip().splitlines() or ["no message"]
            raise BenchmarkError(f"{' '.join(command[1:4])} … ended with code {process.returncode}: {said[-1]}")
    return None


def read(file: Path) -> list[dict[str, Any]]:
    """The measurements so far. Raises BenchmarkError for a file that holds something else."""
    try:
        found = read_json(file)["measurements"] if file.exists() else []
        if not isinstance(found, list) or not all(isinstance(one, dict) and "contender" in one for one in found):
            raise ValueError("it is no list of measurements")
    except (ValueError, KeyError) as error:
        raise BenchmarkError(f"{file} is damaged ({error}): choose another --out") from error
    return found


def measure(wanted: Accuracy) -> None:
    """Make the measurements that ``out`` does not have, in turns: all contenders of a seed, then the next seed."""
    import torch

    from bp_torch.benchmark.report import describe_machine
    from bp_torch.data import load

    read(wanted.out)
    check_writable(wanted.out, "--out")
    load("mnist", wanted.data_dir)  # unpacked before the first measurement
    machine = describe_machine(torch.device("cpu"))
    tasks = [
        (target, seed, contender)
        for target in wanted.targets
        for seed in range(min(wanted.seeds, 3) if target > 99 else wanted.seeds)
        for contender in wanted.contenders
        if contender != "scikit-learn" or target in SKLEARN_TARGETS
    ]
    for target, seed, contender in tasks:
        same = {"target": target, "seed": seed, "contender": contender, "threads": wanted.threads}
        done = read(wanted.out)
        if any(same.items() <= one.items() for one in done):
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as runs:
            started = command(contender, target, seed, wanted, Path(runs))
            seconds = seconds_until(target, started, wanted.threads, wanted.give_up)
        about = {"command": shown(contender, target), "give_up": wanted.give_up}
        about |= {name: machine[name] for name in ("cpu", "torch", "python", "date")}
        write_json(wanted.out, {"measurements": [*done, same | {"seconds": seconds} | about]})
        said = "not reached" if seconds is None else f"{seconds:.1f} s"
        print(f"{target:g} %, seed {seed}, {contender}: {said}", flush=True)


def cell(found: list[dict[str, Any]]) -> str:
    """4.3 ± 0.1; or how many did not get there, and the limit."""
    times = [one["seconds"] for one in found if one["seconds"] is not None]
    if missing := len(found) - len(times):
        limit = f"not within {max(one['give_up'] for one in found):,.0f} s, or its epochs"
        return f"{limit}: {missing} of {len(found)}" if times else limit
    spread = f" ± {text.number(stdev(times), 2)}" if len(times) > 1 else ""
    return f"{text.number(fmean(times))}{spread}" if times else ""


def table(measurements: list[dict[str, Any]]) -> str:
    """A row for each contender, a column for each target, in Markdown; below, the commands."""
    targets = sorted({one["target"] for one in measurements})
    rows = {name: [NAMES[name]] for name in NAMES if any(one["contender"] == name for one in measurements)}
    commands = dict[str, None]()
    for target in targets:
        for name, row in rows.items():
            found = [one for one in measurements if (one["contender"], one["target"]) == (name, target)]
            row.append(cell(found))
            commands |= dict.fromkeys(f"- {target:g} %: `{one['command']}`" for one in found)
    header = ["seconds until the test accuracy is", *(f"{target:g} %" for target in targets)]
    return "\n".join([text.table(header, list(rows.values()), markdown=True), "", *commands])
