"""The hard test: runs are killed, disks fill up, files are damaged, and every command line and call is a mistake.

    python -m tests.torture --minutes 10 --seed 1
    python -m tests.torture --minutes 2 --only misuse gradient

Nothing may be lost or silently wrong: a resumed run ends with the weights and curves of one that was never stopped, a
damaged file is refused or read as it was, a mistake is one line and an exit code. Every trial is printed, and what
failed is printed again at the end. It is not part of the test suite: it takes as long as it is given. What it tries is
in tests/torture_cases.py.
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
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from bp_torch.convert import load
from bp_torch.data import load as load_data
from bp_torch.files import with_sum
from tests.conftest import curves
from tests.torture_cases import ENVIRONMENTS, LONG, MISTAKES, Failure, InProcess

ROOT = Path(__file__).parent.parent
PLACE = ["--train-examples", "1950", "--device", "cpu", "--checkpoint-every", "7"]
RUN = [*PLACE, "--log-every", "3", "--epochs", "60", "--momentum", "0.9", "--learning-rate", "0.3"]
SHORT = ["--train-examples", "500", "--device", "cpu", "--epochs", "2"]
SWEEP = [*PLACE, "--epochs", "40", "--learning-rate", "0.3", "3", "--seeds", "3", "--at-once", "2", "--no-log"]
OFFLINE = dict.fromkeys(["http_proxy", "https_proxy"], "http://127.0.0.1:9/")
HOMELESS = {"HOME": "/nonexistent"}
SIGNALS = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
NO_FLOCK = """import fcntl
def flock(descriptor, operation):
    raise OSError(38, "Function not implemented")
fcntl.flock = flock
"""
"""A sitecustomize.py: the locks of a file system that has no flock."""


class Torture:
    """The trials, in a folder of their own, with a run that was never stopped to compare with."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Make the place."""
        self.folder, self.chance = folder, random.Random(seed)
        (folder / "patched").mkdir()
        (folder / "patched/sitecustomize.py").write_text(NO_FLOCK, encoding="utf-8")
        (folder / "inside").mkdir()
        inside = InProcess(folder / "inside", self.chance)
        self.processes: dict[str, Callable[[], str]] = {
            "interrupt": self.interrupt,
            "sweep": self.interrupt_sweep,
            "two": self.two_at_once,
            "damage": self.damage,
            "results": self.damage_results,
            "data": self.damage_data,
            "lock": self.damage_lock,
            "disk": self.full_disk,
            "limit": self.limits,
            "environment": self.environment,
            "line": self.command_line,
        }
        self.inside: dict[str, Callable[[], str]] = {
            "flags": inside.flags,
            "config": inside.config,
            "config-file": inside.config_file,
            "state": inside.state,
            "network-file": inside.network_file,
            "gradient": inside.gradient,
            "misuse": inside.misuse,
        }

    @cached_property
    def whole(self) -> Path:
        """A run that was never stopped."""
        self.train("--run-name", "whole", *RUN)
        return self.folder / "runs/whole"

    @cached_property
    def whole_sweep(self) -> Path:
        """A sweep that was never stopped."""
        self.succeed("sweep", "--run-name", "sweep", *SWEEP)
        return self.folder / "runs/sweep"

    def start(
        self,
        *words: str,
        limit: str = "",
        user: int = 0,
        no_flock: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> "subprocess.Popen[str]":
        """A command of the package, by another ``user`` perhaps, below a ``limit`` of prlimit."""
        command = [sys.executable, "-m", "bp_torch", *words]
        if user:
            command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
        if limit:
            command = ["prlimit", limit, *command]
        path = f"{self.folder / 'patched'}:{ROOT}" if no_flock else str(ROOT)
        variables = os.environ | {"PYTHONPATH": path} | dict(environment or {})
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=variables,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            encoding="utf-8",
        )

    def finish(self, child: "subprocess.Popen[str]", patience: float = 180) -> tuple[int, str]:
        """The exit code and what was said on stderr, which is one line at most, after that of a first Ctrl-C."""
        try:
            _, error = child.communicate(timeout=patience)
        except subprocess.TimeoutExpired as late:
            child.kill()
            raise Failure(f"it was not done after {patience:g} s: {child.args!r}"[-600:]) from late
        error = error.replace("\nstopping; again to stop at once\n", "")
        error = error.replace("\nlibgomp: Invalid value for environment variable OMP_NUM_THREADS\n", "")
        if "Traceback" in error or error.count("\n") > 1:
            raise Failure(f"exit code {child.returncode}, and more than one line:\n{error[-2000:]}")
        if child.returncode in (1, 2) and not error.startswith("error: "):
            raise Failure(f"exit code {child.returncode} without words: {error}")
        return child.returncode, error

    def succeed(self, *words: str) -> None:
        """Run a command that has to come to its end."""
        code, error = self.finish(self.start(*words))
        if code:
            raise Failure(f"{' '.join(words)} exits with {code}: {error}")

    def train(self, *words: str) -> None:
        """Train to the end."""
        self.succeed("train", *words)

    # ---- the trials: each returns what it did, or raises Failure ----

    def interrupt(self) -> str:
        """Interrupt a run again and again, then let it end."""
        name, done, no_flock = f"run-{self.chance.randrange(10**9)}", [], self.chance.random() < 0.3
        run = self.folder / "runs" / name
        for _ in range(self.chance.randint(1, 4)):
            words = ["--resume", f"runs/{name}"] if run.exists() else ["--run-name", name, *RUN]
            child = self.start("train", *words, no_flock=no_flock)
            number = self.chance.choice(list(SIGNALS))
            time.sleep(self.chance.uniform(0, 5))
            child.send_signal(number)
            code, error = self.finish(child)
            done.append(f"{number.name} ({code})")
            if code not in (0, -number, SIGNALS[number]):
                raise Failure(f"{done}, flock {not no_flock}: {error}")
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

    def interrupt_sweep(self) -> str:
        """Interrupt a sweep again and again, then let it end: every network is that of one that was never stopped."""
        name, done, whole = f"sweep-{self.chance.randrange(10**9)}", [], self.whole_sweep
        folder = self.folder / "runs" / name
        for _ in range(self.chance.randint(1, 3)):
            words = ["--resume", f"runs/{name}"] if folder.exists() else ["--run-name", name, *SWEEP]
            child = self.start("sweep", *words)
            number = self.chance.choice(list(SIGNALS))
            time.sleep(self.chance.uniform(1, 6))
            child.send_signal(number)
            code, error = self.finish(child)
            done.append(f"{number.name} ({code})")
            if code not in (0, -number, SIGNALS[number]):
                raise Failure(f"sweep, {done}: {error}")
        self.succeed("sweep", *(["--resume", f"runs/{name}"] if folder.exists() else ["--run-name", name, *SWEEP]))
        names = sorted(path.parent.name for path in whole.glob("*/network.safetensors"))
        for member in names:
            if (folder / member / "network.safetensors").read_bytes() != (
                whole / member / "network.safetensors"
            ).read_bytes():
                raise Failure(f"sweep, {member}: other weights after {done}")
        if len(names) != 6:
            raise Failure(f"sweep: {len(names)} networks")
        return ", ".join(done)

    def two_at_once(self) -> str:
        """Start several runs with the default name at once."""
        no_flock, before = self.chance.random() < 0.5, set(self.folder.glob("runs/*"))
        children = [self.start("train", *SHORT, no_flock=no_flock) for _ in range(4)]
        codes = [self.finish(child)[0] for child in children]
        made = {path for path in self.folder.glob("runs/*") if path.is_dir()} - before  # not .lock
        if codes != [0] * 4 or len(made) != 4:
            raise Failure(f"exit codes {codes}, {len(made)} folders")
        return "four starts, four folders"

    def spoil(self, path: Path) -> str:
        """Damage a file in one of many ways."""
        content = bytearray(path.read_bytes())
        hows = ["bytes", "cut", "empty", "fifo", "/dev/zero", "deep", "folder", "missing", "401 digits", "not UTF-8"]
        how = self.chance.choice(hows)
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
        elif how == "401 digits" and path.suffix == ".json":
            values = {name: value for name, value in json.loads(content).items() if name != "sha256"}
            name = self.chance.choice(list(values))
            values[name] = self.chance.choice([LONG, [LONG] * 3, {"a": LONG}])
            path.write_text(json.dumps(with_sum(values)), encoding="utf-8")
            return f"{how} in {name}"
        elif how != "missing":
            other = {"empty": b"", "deep": b"[" * 10**5, "not UTF-8": b"\xff\xfe" + bytes(content[:100])}
            path.write_bytes(other.get(how, bytes(content)))
        return how

    def damage(self) -> str:
        """Damage a file of a finished run, then resume, explain or verify it."""
        run, whole = self.folder / "runs/damaged", self.whole
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        path = run / self.chance.choice(["config.json", "last.pt", "network.safetensors", "result.json"])
        how = self.spoil(path)
        what = ["train", "--resume", "runs/damaged", "--epochs", "61"]
        if path.name != "last.pt":
            read = ["verify", "--run", "runs/damaged", "--batch-sizes", "2"]
            what = self.chance.choice([what, read, ["explain", "nudges", "--run", "runs/damaged"]])
        code, error = self.finish(self.start(*what))
        tried = f"{path.name}: {how}, {what[0]}"
        if code == 0 and path.name == "network.safetensors" and what[0] != "train":
            if not torch.equal(load(path).parameters, load(whole / path.name).parameters):
                raise Failure(f"{tried}: other weights are taken")
        elif code == 0 and path.name == "last.pt" and how != "bytes":
            raise Failure(f"{tried}: accepted")
        elif code not in (0, 1, 2):
            raise Failure(f"{tried}: exit code {code}, {error}")
        return f"{tried} ({code})"

    def damage_results(self) -> str:
        """Damage a file of a finished sweep, resume it, and compare what it prints."""
        folder, whole = self.folder / "runs/spoiled", self.whole_sweep
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        path = self.chance.choice(
            [folder / "groups.json", folder / "config.json", *folder.glob("groups/*/results.json")]
        )
        how = self.spoil(path)
        child = self.start("sweep", "--resume", "runs/spoiled")
        code, error = self.finish(child)
        tried = f"{path.relative_to(folder)}: {how} ({code})"
        if code == 0:
            found, wanted = ((each / "sweep.json").read_text(encoding="utf-8") for each in (folder, whole))
            if found != wanted:
                raise Failure(f"{tried}: other results")
        elif code not in (1, 2):
            raise Failure(f"{tried}: {error}")
        return tried

    def damage_data(self) -> str:
        """Damage the data set of a family, as a user or another program may, and train on it."""
        folder = self.folder / "data-damaged"
        shutil.rmtree(folder, ignore_errors=True)
        raw, dataset = folder / "MNIST/raw", "mnist"
        load_data("mnist", folder)
        if self.chance.random() < 0.5:  # a family whose sums nobody published
            dataset = "kmnist"
            (folder / "KMNIST").mkdir()
            raw = raw.rename(folder / "KMNIST/raw")
            (raw / "tensors.safetensors").unlink()
            self.succeed("train", *SHORT, "--data-dir", str(folder), "--dataset", dataset, "--no-log")
        path = self.chance.choice([path for path in raw.iterdir() if path.name != ".lock"])
        if path.name.endswith("ubyte") and self.chance.random() < 0.5:
            how = f"type {(kind := self.chance.choice([9, 11, 12, 13, 14, 0, 255]))}"
            content = bytearray(path.read_bytes())
            item = {11: 2, 12: 4, 13: 4, 14: 8}.get(kind, 1)
            content[2] = kind
            path.write_bytes(bytes(content[:16]) + bytes(content[16:]) * item)
            (raw / "tensors.safetensors").unlink(missing_ok=True)
            with (raw / "SHA256SUMS").open("w", encoding="utf-8") as sums:
                subprocess.run(["sha256sum", *(f.name for f in raw.glob("*ubyte"))], cwd=raw, stdout=sums, check=True)
            if self.chance.random() < 0.5:
                (raw / "SHA256SUMS").unlink()
        else:
            how = self.spoil(path)
        tried = f"{dataset}, {path.name}: {how}"
        name = f"data-{self.chance.randrange(10**9)}"
        words = ["train", *SHORT, "--data-dir", str(folder), "--dataset", dataset, "--run-name", name, "--no-log"]
        try:
            code, error = self.finish(self.start(*words, environment=OFFLINE))
        except Failure as failure:
            raise Failure(f"{tried}: {failure}") from failure
        if code == 0:
            self.same_as_clean(name, tried)
        elif code != 1:
            raise Failure(f"{tried}: exit code {code}, {error}")
        return f"{tried} ({code})"

    def same_as_clean(self, name: str, tried: str) -> None:
        """Raise Failure unless the short run ``name`` has the weights of one in the usual place."""
        clean = self.folder / "runs/clean"
        if not clean.exists():
            self.train(*SHORT, "--run-name", "clean")
        found = load(self.folder / "runs" / name / "network.safetensors").parameters
        if not torch.equal(found, load(clean / "network.safetensors").parameters):
            raise Failure(f"{tried}: other weights")

    def damage_lock(self) -> str:
        """Put something in the place of a lock, and train, perhaps as another user."""
        name = f"locks-{self.chance.randrange(10**9)}"
        runs = self.folder / name
        runs.mkdir(mode=0o777)
        runs.chmod(0o777)
        how = self.chance.choice(["link", "fifo", "folder", "text", "0644", "0000", "dead", "loop"])
        path, user, no_flock = runs / ".lock", 0, self.chance.random() < 0.4
        if how == "link":
            path.symlink_to(self.folder / "victim")
        elif how == "loop":
            path.symlink_to(path)
        elif how == "fifo":
            os.mkfifo(path)
        elif how == "folder":
            path.mkdir()
        elif how == "dead":
            path.write_text(f"{2**22 - 1}\n{os.uname().nodename}\n", encoding="utf-8")
        else:
            path.write_text("process 12 on host" if how == "text" else "", encoding="utf-8")
        if how[0] == "0":
            path.chmod(int(how, 8))
            user = 65534 if os.geteuid() == 0 else 0
        words = ["--data-dir", str(self.shared_data), "--runs-dir", name, *SHORT, "--no-log"]
        code, error = self.finish(self.start("train", *words, user=user, no_flock=no_flock, environment=HOMELESS))
        tried = f"{name} {how}, user {user}, flock {not no_flock} ({code})"
        if (self.folder / "victim").exists():
            raise Failure(f"{tried}: a file was made through the link")
        if code not in (0, 1) or (code and ".lock" not in error):
            raise Failure(f"{tried}: {error}")
        if code and how in ("text", "dead") and not no_flock:
            raise Failure(f"{tried}: {error}")
        return f"{tried} {error.strip()[-90:]}"

    @cached_property
    def shared_data(self) -> Path:
        """A data folder that other users may read."""
        self.folder.chmod(0o755)
        load_data("mnist", self.folder / "shared-data")
        return self.folder / "shared-data"

    # ---- too little of something ----

    @contextmanager
    def disk(self, size: int) -> Iterator[Path]:
        """A file system of so many bytes."""
        disk = self.folder / f"disk-{self.chance.randrange(10**9)}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
        try:
            yield disk
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def full_disk(self) -> str:
        """Run a command on a disk that fills up: one line that names a file of it. With more room, it goes on."""
        if os.geteuid():
            return "no right to make a disk"
        whole, size = self.whole, int(10 ** self.chance.uniform(4, 6.3))
        with self.disk(size) as disk:
            way = self.chance.choice(["runs", "runs", "sweep", "data", "explain", "page", "ladder", "benchmark"])
            if way == "data":
                size = int(10 ** self.chance.uniform(5, 8.2))
                subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            words = {
                "runs": ["train", "--runs-dir", str(disk), "--run-name", "run", *RUN],
                "sweep": ["sweep", "--runs-dir", str(disk), "--run-name", "run", *SWEEP],
                "data": ["train", "--data-dir", str(disk), "--run-name", f"on-{disk.name}", *SHORT],
                "explain": ["explain", "nudges", "--run", str(whole), "--out", str(disk / "a/b.png")],
                "page": ["explain", "page", "--run", str(whole), "--out", str(disk / "page.html")],
                "ladder": [
                    "ladder",
                    "run",
                    "lesson",
                    "--seeds",
                    "1",
                    "--json",
                    f"{disk}/a.json",
                    "--runs-dir",
                    str(disk),
                ],
                "benchmark": ["benchmark", "--rounds", "1", "--networks", "2", "--data-dir", str(disk)],
            }[way]
            code, error = self.finish(self.start(*words))
            tried = f"{way}, a disk of {size:,} bytes ({code})"
            if code and (disk.name not in error or "make room" not in error):
                raise Failure(f"{tried}: {error}")
            if left := [path.name for path in disk.rglob(".*") if not path.name.endswith("lock")]:
                raise Failure(f"{tried}: left behind: {left}")
            subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
            if way in ("runs", "sweep"):
                again = [words[0], "--resume", str(disk / "run")] if (disk / "run").exists() else words
                self.succeed(*again)
            if way == "runs":
                self.compare(disk / "run", tried)
            if way == "sweep":
                for path in self.whole_sweep.glob("*/network.safetensors"):
                    if path.read_bytes() != (disk / "run" / path.parent.name / path.name).read_bytes():
                        raise Failure(f"{tried}: other weights")
        return f"{tried} {error.strip()[-100:]}"

    def limits(self) -> str:
        """Run a command below a limit: one line that says what to do. Without it, it goes on."""
        name = f"limit-{self.chance.randrange(10**9)}"
        kind = self.chance.choice(["fsize", "nofile", "nproc"])
        low, high = {"fsize": (0, 200_000), "nofile": (5, 40), "nproc": (1, 12)}[kind]
        limit, user = f"--{kind}={self.chance.randint(low, high)}", 0
        words = ["train", "--run-name", name, *RUN]
        if self.chance.random() < 0.3:
            words = ["explain", "nudges", "--run", str(self.whole), "--out", str(self.folder / "limited.png")]
        if kind == "nproc":  # root has no such limit
            user = 65534 if os.geteuid() == 0 else 0
            words += ["--data-dir", str(self.shared_data), *(["--threads", "4"] if self.chance.random() < 0.5 else [])]
            words += ["--runs-dir", self.open_folder] if words[0] == "train" else ["--out", f"{self.open_folder}/a.png"]
        code, error = self.finish(self.start(*words, limit=limit, user=user, environment=HOMELESS))
        tried = f"{words[0]}, {limit} ({code})"
        if code and (code != 1 or "ulimit" not in error):
            raise Failure(f"{tried}: {error}")
        run = self.folder / "runs" / name
        if words[0] == "train" and not user:
            self.train(*(["--resume", str(run)] if run.exists() else words[1:]))
            self.compare(run, tried)
        return f"{tried} {error.strip()[-100:]}"

    @cached_property
    def open_folder(self) -> str:
        """A folder that everybody may write in."""
        folder = self.folder / "open"
        folder.mkdir()
        folder.chmod(0o777)
        return str(folder)

    def environment(self) -> str:
        """Run a command in an environment that is unusual: the weights are the same, or it is one line."""
        names = self.chance.sample(list(ENVIRONMENTS), self.chance.choice([1, 1, 2, 3]))
        variables = {name: self.chance.choice(ENVIRONMENTS[name]) for name in names}
        name = f"in-{self.chance.randrange(10**9)}"
        words = self.chance.choice(
            [["train", "--run-name", name, *SHORT]] * 3
            + [["explain", "nudges", "--run", str(self.whole)], ["ladder"], ["train", "--help"], ["sweep", "--help"]]
            + [["verify", "--depths", "1", "--batch-sizes", "2"], ["explain", "cost", "--help"], ["train", "--sed"]]
        )
        mask = self.chance.choice([0o022, 0o000, 0o077, 0o027])
        before = os.umask(mask)
        try:
            code, error = self.finish(self.start(*words, environment=variables))
        finally:
            os.umask(before)
        tried = f"{' '.join(words[:2])}, {variables}, umask {mask:o} ({code})"
        if code not in (0, 1) and words[-1] != "--sed":
            raise Failure(f"{tried}: {error}")
        if code == 0 and words[0] == "train" and len(words) > 2:
            self.same_as_clean(name, tried)
        return f"{tried} {error.strip()[-100:]}"

    def command_line(self) -> str:
        """A flag with a value that it cannot have, or must survive."""
        _ = self.whole
        words = self.chance.choice(MISTAKES).split()
        code, error = self.finish(self.start(*words))
        if code not in (1, 2) or not error.startswith("error: "):
            raise Failure(f"{' '.join(words)}: exit code {code}, {error}")
        return f"{' '.join(words)[:80]} ({code}: {error.strip()[7:60]}…)"


def main() -> None:
    """Try for so many minutes; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the trials; drawn by default")
    parser.add_argument("--only", nargs="+", help="names of trials")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    end, failed, tried = time.monotonic() + 60 * options.minutes, [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(Path(folder), options.seed)
        trials = torture.processes | torture.inside
        while time.monotonic() < end:
            group = torture.chance.choice([torture.processes, torture.inside])
            name = torture.chance.choice(options.only or list(group))
            for _ in range(200 if name in torture.inside else 1):
                tried[name] += 1
                try:
                    said = trials[name]()
                except Exception as error:  # a Failure, or a fault of the trial
                    what = error if isinstance(error, Failure) else traceback.format_exc()
                    failed.append(f"{name}: {what}")
                    said = f"FAILED {what}"
                if said.startswith("FAILED") or name not in torture.inside:
                    print(ascii(f"{name}: {said}")[1:-1], flush=True)
    print(f"tried {json.dumps(tried)}, {len(failed)} failed")
    print(*map(ascii, failed), sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
