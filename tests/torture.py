"""The hard test: a run is killed, signalled and damaged at random, and every command line is a mistake.

    python -m tests.torture --minutes 10 --seed 1

Nothing may be lost or silently wrong: a resumed run ends with the weights and curves of one that was never stopped, a
damaged file is refused or read as it was, a mistake is one line and an exit code. Every trial is printed, and what
failed is printed again at the end. It is not part of the test suite: it takes as long as it is given.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from bp_torch.convert import load
from tests.conftest import curves

ROOT = Path(__file__).parent.parent
RUN = ["--train-examples", "1950", "--epochs", "60", "--momentum", "0.9", "--learning-rate", "0.3", "--device", "cpu"]
RUN += ["--checkpoint-every", "7", "--log-every", "3"]
SIGNALS = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


class Failure(AssertionError):  # noqa: N818 (a finding)
    """What must not happen. The message says what was tried and what came."""


class Torture:
    """The trials, in a folder of their own, with a run that was never stopped to compare with."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Train the run to compare with."""
        self.folder, self.chance = folder, random.Random(seed)
        self.train("--run-name", "whole", *RUN)
        self.whole = folder / "runs/whole"
        self.trials: dict[str, Callable[[], str]] = {
            "kills and signals": self.interrupt,
            "two at once": self.two_at_once,
            "damaged file": self.damage,
            "command line": self.command_line,
        }

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """A command of the package."""
        command = [sys.executable, "-m", "bp_torch", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, encoding="utf-8")

    def finish(self, child: "subprocess.Popen[str]", said: str = "") -> tuple[int, str]:
        """The exit code and what was said on stderr, which is one line at most, after that of a first Ctrl-C."""
        try:
            _, error = child.communicate(timeout=180)
        except subprocess.TimeoutExpired as late:
            child.kill()
            raise Failure("it was not done after three minutes") from late
        error = error.replace("\nstopping; again to stop at once\n", "")
        if "Traceback" in error or error.count("\n") > 1:
            raise Failure(f"exit code {child.returncode}, and more than one line:\n{error[-2000:]}")
        return child.returncode, error

    def train(self, *words: str) -> None:
        """Train to the end."""
        code, error = self.finish(self.start("train", *words))
        if code:
            raise Failure(f"{' '.join(words)} exits with {code}: {error}")

    # ---- the trials: each returns what it did, or raises Failure ----

    def interrupt(self) -> str:
        """Interrupt a run again and again, then let it end."""
        name, done = f"run-{self.chance.randrange(10**9)}", []
        run = self.folder / "runs" / name
        for _ in range(self.chance.randint(1, 4)):
            child = self.start("train", *(["--resume", f"runs/{name}"] if run.exists() else ["--run-name", name, *RUN]))
            number = self.chance.choice(list(SIGNALS))
            time.sleep(self.chance.uniform(0, 5))
            child.send_signal(number)
            code, error = self.finish(child)
            done.append(f"{number.name} ({code})")
            if code not in (0, -number, SIGNALS[number]):
                raise Failure(f"{done}: {error}")
        self.train(*(["--resume", f"runs/{name}"] if run.exists() else ["--run-name", name, *RUN]))
        self.compare(run, ", ".join(done))
        return ", ".join(done)

    def compare(self, run: Path, after: str) -> None:
        """Raise Failure unless the run equals the one that was never stopped, and left nothing half written."""
        if not torch.equal(*(load(folder / "network.safetensors").parameters for folder in (run, self.whole))):
            raise Failure(f"other weights after {after}")
        if curves(run) != curves(self.whole):
            raise Failure(f"other curves after {after}")
        left = [path.name for path in (*run.glob(".*"), *run.parent.glob(".*")) if path.name != ".lock"]
        if left:
            raise Failure(f"left behind after {after}: {left}")

    def two_at_once(self) -> str:
        """Start several runs with the default name at once."""
        before = set(self.folder.glob("runs/*"))
        children = [self.start("train", *RUN, "--epochs", "1") for _ in range(4)]
        codes = [self.finish(child)[0] for child in children]
        made = set(self.folder.glob("runs/*")) - before
        if codes != [0] * 4 or len(made) != 4:
            raise Failure(f"exit codes {codes}, {len(made)} folders")
        return "four starts, four folders"

    def damage(self) -> str:
        """Damage a file of a finished run, then resume, explain or verify it."""
        run = self.folder / "runs/damaged"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.whole, run)
        path = run / self.chance.choice(["config.json", "last.pt", "network.safetensors"])
        how = self.chance.choice(["bytes", "cut", "empty", "fifo", "/dev/zero", "deep", "folder"])
        content = bytearray(path.read_bytes())
        path.unlink()
        if how == "bytes":
            for _ in range(self.chance.choice([1, 1, 10])):
                content[self.chance.randrange(len(content))] = self.chance.randrange(256)
        elif how == "cut":
            del content[self.chance.randrange(len(content)) :]
        if how == "fifo":
            os.mkfifo(path)
        elif how == "/dev/zero":
            path.symlink_to(how)
        elif how == "folder":
            path.mkdir()
        else:
            path.write_bytes({"empty": b"", "deep": b"[" * 10**5}.get(how, bytes(content)))
        what = ["train", "--resume", "runs/damaged", "--epochs", "61"]
        if path.name != "last.pt":
            what = self.chance.choice([what, ["verify", "--run", "runs/damaged", "--batch-sizes", "2"]])
        code, error = self.finish(self.start(*what))
        tried = f"{path.name}: {how}, {what[0]}"
        if code == 0 and path.name == "network.safetensors" and what[0] == "verify":
            network = load(path)
            if not torch.equal(network.parameters, load(self.whole / path.name).parameters):
                raise Failure(f"{tried}: other weights are taken")
        elif code == 0 and path.name == "last.pt" and how != "bytes":
            raise Failure(f"{tried}: accepted")
        elif code not in (0, 1, 2):
            raise Failure(f"{tried}: exit code {code}, {error}")
        return f"{tried} ({code})"

    def command_line(self) -> str:
        """A flag with a value that it cannot have, or must survive."""
        words = self.chance.choice(MISTAKES).split()
        code, error = self.finish(self.start(*words))
        if code not in (1, 2) or not error.startswith("error: "):
            raise Failure(f"{' '.join(words)}: exit code {code}, {error}")
        return f"{' '.join(words)} ({code}: {error.strip()[7:60]}…)"


MISTAKES = [
    *(f"train --learning-rate {value}" for value in ("-1", "nan", "0", "inf", "1e300", "1e-60", "ten")),
    *(f"train --weight-decay {value}" for value in ("-1", "nan", "1e308", "inf")),
    *(f"train --momentum {value}" for value in ("-0.1", "1", "nan")),
    *(f"train --batch-size {value}" for value in ("0", "-3", "2.5", "nan", "True", "some")),
    *(f"train --epochs {value}" for value in ("-1", "1.5", "")),
    *(f"train --sizes {value}" for value in ("784", "784 0 10", "10 784", "784 99999999999999999999 10", "784 x 10")),
    *(f"train --seed {value}" for value in ("-1", str(2**32), str(10**30))),
    *(f"train --threads {value}" for value in ("0", "-1", "100000")),
    *(f"train --device {value}" for value in ("cuda:99", "tpu", "meta", "mps", "cpu:7:8")),
    *(f"train --run-name {value}" for value in ("..", "a/b", "n" * 300, "\x07bell", "\udcff")),
    *(f"train --no-log {value}" for value in ("--log-every 5", "--log-embedding", "--histogram-every 2")),
    *(f"train --data-dir {value}" for value in ("/dev/null", "/proc/none")),
    *(f"train --runs-dir {value} --epochs 0" for value in ("/dev/null", "/proc/none")),
    *(f"train --resume {value}" for value in ("nowhere", "/dev/null", "runs/whole --seed 5", "runs/whole --epochs 3")),
    "train --sizes 784 1000000000 10",
    "train --precision tf32 --device cpu",
    "train --cost binary-cross-entropy --output-activation relu",
    "train --train-examples 70000",
    *(f"verify {value}" for value in ("--depths 2000000", f"--seed {10**23}", "--batch-sizes 0", "--tolerance 2")),
    *(f"verify --run runs/whole {value}" for value in ("--depths 2", "--dataset kmnist", "--batch-sizes 99999")),
    *(f"explain {value}" for value in ("nothing", "only --digit 11", "nudges --threads 100000", "data --seeds 0")),
    *(f"explain nudges --run {value}" for value in ("nowhere", "/dev/null", "runs/whole --untrained")),
    f"explain descent --run runs/whole --seed {10**23}",
    "explain nudges --run runs/whole --out picture.xyz",
    *(f"benchmark {value}" for value in ("--sweep --sizes 784 10", "--threads 100000", "--rounds 0", "--out x.jpg")),
    "benchmark --sizes 784 1000000000 10",
]


def main() -> None:
    """Try for so many minutes; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the trials; drawn by default")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    end, failed, tried = time.monotonic() + 60 * options.minutes, [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(Path(folder), options.seed)
        while time.monotonic() < end:
            name, trial = torture.chance.choice(list(torture.trials.items()))
            tried[name] += 1
            try:
                print(f"{name}: {trial()}", flush=True)
            except Failure as failure:
                failed.append(f"{name}: {failure}")
                print(f"FAILED {failed[-1]}", flush=True)
    print(f"tried {json.dumps(tried)}, {len(failed)} failed")
    print("\n".join(failed))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
