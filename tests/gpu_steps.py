"""The checks of gpu_check.py: each takes a Setup and returns a dict for JSON, whose ``ok`` says whether it passed."""

import gc
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bp_torch.benchmark.contenders import CONTENDERS, CUDA_CONTENDERS, OURS
from bp_torch.benchmark.race import Task, race
from bp_torch.data import Examples, load, permutation
from bp_torch.deform import Deformation, deformed
from bp_torch.device import set_precision
from bp_torch.recorder import Recorder
from bp_torch.training import Config, open_run

ROOT = Path(__file__).parent.parent

Found = dict[str, Any]

SIZES = (((784, 16, 16, 10), 100), ((784, 100, 10), 100), ((784, 512, 512, 10), 256), ((784, 2048, 2048, 10), 1024))
"""Sizes and batch sizes, from what waits for kernels to what multiplies."""

WIDE = "--sizes 784 512 512 10 --activation relu --init he --cost softmax-cross-entropy --learning-rate 0.1"
WIDE += " --momentum 0.9 --batch-size 256 --weight-decay 1e-4"

ACCURACY = {"default": 93.06, "wide": 96.95}
"""On the test set in %, after 3 and 2 epochs on a CPU: torch 2.14.1, float32, seed 0, 2026-11-28."""

TOLERANCE = 0.35
"""Percentage points: one image in 300, more than from one order of additions to another, less than a mistake."""


class Setup(NamedTuple):
    """Where the checks work, and until when."""

    device: torch.device
    small: bool
    work: Path  # for data and runs
    end: float  # in the time of time.monotonic()

    @staticmethod
    def of(device: str, small: bool, work: Path, seconds: float) -> "Setup":
        """A check that has so many seconds. Raises RuntimeError if the device is not there."""
        end = time.monotonic() + seconds
        return Setup(torch.empty(1, device=device).device, small, work, end)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic() - 1

    @property
    def places(self) -> list[str]:
        """The flags of every command."""
        return ["--device", str(self.device), "--data-dir", str(self.work / "data")]

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def unpack(self) -> None:
        """Make the files of MNIST."""
        load("mnist", self.work / "data")

    def examples(self) -> Examples:
        """MNIST's training examples on the device."""
        return load("mnist", self.work / "data", self.device)[0]

    def few(self, examples: int) -> list[str]:
        """The flag for fewer training examples, if the check is a small one."""
        return ["--train-examples", str(examples)] * self.small

    def run(self, command: str, *words: str) -> tuple[int, str, float]:
        """Run a command of the package in the time that is left."""
        return run([sys.executable, "-m", "bp_torch", command, *self.places, *words], self.left, cwd=ROOT)


def run(command: list[str], seconds: float, **options: Any) -> tuple[int, str, float]:
    """The exit code of a command, all that it said, and its seconds; it is killed after ``seconds``, code -9."""
    start, pipe = time.perf_counter(), subprocess.PIPE
    options |= {"encoding": "utf-8", "start_new_session": True}
    process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, **options)
    try:
        said = process.communicate(timeout=max(1, seconds))[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with all that it started
        said = process.communicate()[0]
    return process.returncode, said, time.perf_counter() - start


def last_lines(said: str, lines: int = 4) -> list[str]:
    return said.strip().splitlines()[-lines:]


def error_of(error: Exception) -> str:
    return f"{type(error).__name__}: {[*str(error).splitlines(), ''][0][:200]}"


def timed(function: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median seconds of a call, by events on a GPU."""
    function()
    seconds = list[float]()
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# ---- the machine, and the memory of graphs ----


def machine(setup: Setup) -> Found:
    """What it is, and how fast it copies and multiplies."""
    commit = run(["git", "rev-parse", "HEAD"], 10, cwd=ROOT)[1].strip()
    found: Found = {"ok": True, "commit": commit, "python": platform.python_version(), "torch": torch.__version__}
    precisions = {"full": torch.float32} | ({"tf32": torch.float32, "bf16": torch.bfloat16} if setup.gpu else {})
    if setup.gpu:
        properties = torch.cuda.get_device_properties(setup.device)
        found |= {"cuda": torch.version.cuda, "gpu": properties.name, "processors": properties.multi_processor_count}
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu",
            "--format=csv,noheader",
        ]
        code, said, _ = run(query, 10)
        found["nvidia-smi"] = said.strip() if code == 0 else "not there"
        numbers = torch.rand(2**29, device=setup.device)
        into = torch.empty_like(numbers)
        found["copy, TB/s"] = 2e-12 * numbers.nbytes / timed(lambda: into.copy_(numbers), setup.device, 10)
        del numbers, into
    n = 512 if setup.small else 8192
    for precision, dtype in precisions.items():
        set_precision("tf32" if precision == "tf32" else "full", setup.device)
        a, b = (torch.randn(n, n, device=setup.device).to(dtype) for _ in range(2))
        found[f"products in {precision}, TFLOPS"] = 2e-12 * n**3 / timed(partial(torch.mm, a, b), setup.device)
    return found


def pools(setup: Setup) -> Found:
    """Recorders one after another, on each GPU: a pool whose graphs are all gone takes no more."""
    found: Found = {"ok": True}
    devices = [torch.device("cuda", n) for n in range(torch.cuda.device_count())] if setup.gpu else [setup.device]
    for device in devices[:2]:
        steps: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": lambda x: x + 1,
            "product": partial(torch.mm, mat2=torch.rand(64, 64, device=device)),
        }
        for kind, step in steps.items():
            try:
                for _ in range(3):
                    recorder = Recorder(device, step)
                    for n in (8, 8, 8, 5, 5, 5, 8):
                        x = torch.rand(n, 64, device=device)
                        assert torch.allclose(recorder(x), step(x)), "a wrong result"
                    del recorder
                    gc.collect()
                found[f"{kind}, {device}"] = "ok"
            except Exception as error:
                found |= {"ok": False, f"{kind}, {device}": error_of(error)}
    return found


class Cycle:
    """A step that waits for the garbage collector when nobody holds it any more."""

    def __init__(self, device: torch.device, collect: list[bool]) -> None:
        w = torch.rand(64, 64, device=device)

        def lines(x: Tensor) -> Tensor:
            if collect:
                gc.collect()
            return x @ w

        self.itself, self.lines, self.recorder = self, lines, Recorder(device, lines)


def garbage(setup: Setup) -> Found:
    """Graphs that nobody refers to, while another is captured."""
    collect: list[bool] = []
    gc.disable()
    first, second = (Cycle(setup.device, collect) for _ in range(2))
    x = torch.rand(8, 64, device=setup.device)
    for _ in range(3):
        first.recorder(x)
    second.recorder(x)
    del first
    collect.append(True)
    try:
        same = all(torch.allclose(second.recorder(x), second.lines(x)) for _ in range(3))
        return {"ok": same, "said": "" if same else "a wrong result"}
    except Exception as error:
        return {"ok": False, "said": error_of(error)}


# ---- the step ----


def graphs(setup: Setup) -> Found:
    """A replayed step beside one as written: where they end, microseconds, kernels; and what logging adds."""
    examples = setup.examples()
    todo = [(sizes, batch, "full") for sizes, batch in (SIZES[::2] if setup.small else SIZES)]
    if setup.gpu:
        todo += [(*SIZES[3], "tf32"), (*SIZES[3], "bf16"), (*SIZES[0], "bf16")]
    found: Found = {"ok": True}
    for sizes, batch, precision in todo:
        name = f"{'-'.join(map(str, sizes))}, {batch}, {precision}"
        config = Config(sizes=sizes, batch_size=batch, precision=precision, learning_rate=1.0)  # type: ignore[arg-type]
        try:
            set_precision(precision, setup.device)
            row = found[name] = step_of(setup, config, examples, batch)
            found["ok"] = found["ok"] and row["difference"] <= (1e-4 if precision == "full" else 1e-2)
        except Exception as error:
            found |= {"ok": False, name: error_of(error)}
    return found


def step_of(setup: Setup, config: Config, examples: Examples, batch: int) -> Found:
    """What ``graphs`` says of one network."""
    row: Found = {}
    ends: dict[str, Tensor] = {}
    order = permutation(len(examples.labels), 0, 1, setup.device)[: batch * (20 if setup.small else 60) + batch // 2]
    whole = order[: len(order) // batch * batch]
    for kind in ("replayed", "as written", "replayed and logged"):
        network = config.network(setup.device)
        running = torch.zeros(2, dtype=torch.float64, device=setup.device) if "logged" in kind else None
        optimizer, record = config.optimizer(network), kind != "as written"
        step = config.training_step(network, optimizer, examples, record=record, running=running)

        def steps(order: Tensor, step: Any = step) -> None:
            for _ in step.run(order):
                pass

        with torch.inference_mode():
            for _ in range(3):
                steps(order)
            ends[kind] = network.parameters.clone()
            row[f"{kind}, µs"] = 1e6 * timed(partial(steps, whole), setup.device) * batch / len(whole)
            if setup.gpu and not record:
                row |= kernels(partial(steps, order[:batch]))
    start = config.network(setup.device).parameters
    row["equal"] = torch.equal(ends["replayed"], ends["as written"])
    way = (ends["as written"] - start).norm()
    row["difference"] = ((ends["replayed"] - ends["as written"]).norm() / way).item()
    return row


def kernels(step: Callable[[], object], repeats: int = 5) -> Found:
    """How many kernels a step launches, their microseconds, and the longest."""
    try:
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
            for _ in range(repeats):
                step()
            torch.cuda.synchronize()
    except Exception as error:  # the profiler is not what is checked
        return {"profiler": error_of(error)}
    each = defaultdict[str, list[float]](list)
    for event in profiled.events() or ():
        if str(event.device_type).endswith("CUDA"):
            each[event.name[:70]].append(event.time_range.elapsed_us() / repeats)
    longest = sorted(each.items(), key=lambda pair: -sum(pair[1]))[:8]
    return {
        "kernels": sum(map(len, each.values())) / repeats,
        "kernels, µs": round(sum(map(sum, each.values())), 1),
        "longest, µs": {name: round(sum(times), 2) for name, times in longest},
    }


def deform(setup: Setup) -> Found:
    """Deformed images beside those of the CPU: the same but for rounding, whatever the run's precision is."""
    here = load("mnist", setup.work / "data")[0]
    few = here.map(lambda tensor: tensor[: 1_000 if setup.small else 20_000])
    there = few.map(lambda tensor: tensor.to(setup.device))
    expected, ink = deformed(few, Deformation(), seed=0, epoch=1).x.int(), max(1, int((few.x > 0).sum()))
    found: Found = {"ok": True}
    for precision in ("full", *["tf32"] * setup.gpu):
        set_precision(precision, setup.device)
        apart = (deformed(there, Deformation(), seed=0, epoch=1).x.int().cpu() - expected).abs()
        found[precision] = {"pixels": int((apart > 0).sum()) / ink, "levels": int(apart.max())}
        found["ok"] = found["ok"] and found[precision]["pixels"] <= 0.01 and found[precision]["levels"] <= 1
    set_precision("full", setup.device)
    seconds = timed(lambda: deformed(there, Deformation(), seed=0, epoch=1), setup.device, 3)
    return found | {"seconds for 60,000": seconds * 60_000 / len(few.labels)}


# ---- the commands ----


def tests(setup: Setup) -> Found:
    """The tests that are collected only where there is a GPU, those of the step first."""
    found: Found = {"ok": True}
    select = "cuda" if setup.gpu else "test_random_steps or test_replay_uses"
    files = {"step": ["tests/test_step.py"], "all": ["tests", "--deselect", "tests/test_step.py"]}
    if not setup.gpu:
        files = {"recorder": ["tests/test_recorder.py", "-n", "0"]}
    for name, words in files.items():
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--maxfail=25", "--tb=line", "-rfE"]
        command += [*words, "-k", select, *["-n", "6"] * setup.gpu]
        code, said, took = run(command, setup.left, cwd=ROOT)
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)(?: - (.{0,160}))?", said, re.M)
        found[name] = {"code": code, "seconds": round(took, 1), "failed": failed, "said": last_lines(said, 2)}
        found["ok"] = found["ok"] and code == 0
    return found


EPOCH = re.compile(r"^ *\d+ +[\d.]+ +[\d.]+% +[\d.]+ +([\d.]+)% +([\d,]+) +[\d.]+$", re.M)
"""A line of train.py: accuracy on the test set in %, and examples per second."""


def trained(setup: Setup, name: str, *flags: str) -> Found:
    """One run of train.py."""
    place = [] if "--resume" in flags else ["--run-name", name]
    code, said, took = setup.run("train", "--runs-dir", str(setup.work / "runs"), *place, *flags)
    rows = EPOCH.findall(said)
    found: Found = {"code": code, "seconds": round(took, 1), "accuracy": float(rows[-1][0]) if rows else None}
    found["examples/s"] = [int(rate.replace(",", "")) for _, rate in rows]
    return found | ({"said": last_lines(said)} if code else {})


def train(setup: Setup) -> Found:
    """Trainings with the speed of each epoch; two of them reach the accuracy that they reach on a CPU."""
    wide, few = WIDE.split(), setup.few(3000)
    todo = {
        "default": ["--epochs", "3"],
        "wide": ["--epochs", "2", "--verify-every", "100", *wide],
        "wide, bf16": ["--epochs", "2", "--precision", "bf16", *wide],
        "as written": ["--epochs", "1", "--no-replay"],
        "deformed": ["--epochs", "3", "--deform", "both", *wide],
    }
    if setup.gpu:
        todo["wide, tf32"] = ["--epochs", "2", "--precision", "tf32", *wide]
    found: Found = {name: trained(setup, name.replace(", ", "-"), *flags, *few) for name, flags in todo.items()}
    ok = all(one["code"] == 0 for one in found.values())
    for name, expected in ACCURACY.items():
        if not setup.small:
            ok = ok and abs((found[name]["accuracy"] or 0) - expected) <= TOLERANCE
    return {"ok": ok} | found


def resume(setup: Setup) -> Found:
    """A run ends with the same numbers when it is repeated, resumed after an epoch, or stopped within one."""
    runs = setup.work / "runs-to-resume"
    flags = ["--momentum", "0.9", "--learning-rate", "0.3", "--checkpoint-every", "37", "--validation", "1000"]
    flags += ["--train-examples", "6050" if setup.small else "30050", "--runs-dir", str(runs)]
    three = ["--epochs", "3", *flags]
    codes = [trained(setup, name, *three)["code"] for name in ("whole", "again")]
    codes += [trained(setup, "parts", "--epochs", "1", *flags)["code"]]
    command = [sys.executable, "-m", "bp_torch", "train", *setup.places, *three, "--run-name", "stopped"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stop_within_an_epoch(process, runs / "stopped" / "last.pt", setup.left / 2)
    for name in ("parts", "stopped"):
        codes.append(trained(setup, name, *three, "--resume", str(runs / name))["code"])
    found: Found = {"ok": codes == [0] * 5, "codes": codes, "stopped with": process.returncode}
    whole = state_of(runs / "whole")
    for name in ("again", "parts", "stopped"):
        apart = [float((a - b).abs().max()) for a, b in zip(whole, state_of(runs / name), strict=True)]
        found[f"{name}, apart"] = max(apart)
        found["ok"] = found["ok"] and not max(apart)
    return found


def stop_within_an_epoch(process: "subprocess.Popen[bytes]", checkpoint: Path, seconds: float) -> None:
    """Send SIGTERM once a checkpoint has been replaced, and wait for the end."""
    end, first = time.monotonic() + seconds, 0
    while process.poll() is None and time.monotonic() < end:
        written = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        first = first or written
        if written != first:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.005)
    try:
        process.wait(max(1, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def state_of(run: Path) -> list[Tensor]:
    """The tensors of a run's last checkpoint."""
    state = torch.load(run / "last.pt", map_location="cpu", weights_only=True)
    return [state[name] for name in ("parameters", "velocity", "running")]


def verify(setup: Setup) -> Found:
    """Every activation and cost, one network after another: each is a recording of its own."""
    flags = ["--json", "--depths", "2", "--batch-sizes", "2", "7", "--coordinates", "8", "--dtypes", "float32"]
    code, said, took = setup.run("verify", *flags, *["bfloat16"] * setup.gpu)
    found: Found = {"ok": code == 0, "code": code, "seconds": round(took, 1)}
    try:
        return found | {"networks": len(json.loads(said[said.index("{") :])["networks"])}
    except ValueError:
        return found | {"said": last_lines(said)}


TWO = """
import sys
from pathlib import Path
import torch.distributed as dist
from bp_torch.training import Config, loop, train
device, work, name, n = sys.argv[1:]
loop.local_device = lambda given: device
join = dist.init_process_group
dist.init_process_group = lambda backend, device_id=None, **options: join("gloo", **options)
train(Config(runs_dir=Path(work, "runs"), data_dir=Path(work, "data"), run_name=name, device=device, epochs=3,
             train_examples=int(n), momentum=0.9, learning_rate=0.3, dtype="float64"))
"""


def two(setup: Setup) -> Found:
    """Two processes on the one device, by gloo in the place of NCCL: an all-reduce between two recordings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    n = "1950" if setup.small else "10050"
    command = [sys.executable, "-c", TWO, str(setup.device), str(setup.work)]
    code, said, _ = run([*command, "alone", n], setup.left, cwd=ROOT)
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "cwd": ROOT}
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen([*command, "both", n], env=os.environ | meeting | {"RANK": rank, "LOCAL_RANK": rank}, **pipe)
        for rank in ("0", "1")
    ]
    codes = [code]
    for process in processes:
        try:
            said = process.communicate(timeout=max(1, setup.left))[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[0]
        codes.append(process.returncode)
    if codes != [0, 0, 0]:
        return {"ok": False, "codes": codes, "said": last_lines(said)}
    alone, both = (open_run(setup.work / "runs" / name)[1].parameters for name in ("alone", "both"))
    difference = ((alone - both).norm() / alone.norm()).item()
    return {"ok": difference <= 1e-10, "difference": difference}


def sweep(setup: Setup) -> Found:
    """Many networks at once; then groups one after another, each of which is recorded after the last is gone."""
    rates = [f"{0.3 * 10 ** (k / 15):.3f}" for k in range(4 if setup.small else 16)]
    common = ["--save", "none", "--runs-dir", str(setup.work / "runs"), "--epochs", "2", "--learning-rate", *rates]
    common += ["--seeds", "2" if setup.small else "8"]
    found: Found = {"ok": True}
    groups = ["--at-once", "4", "--train-examples", "2050"] if setup.small else ["--at-once", "16"]
    for name, flags in (("at once", setup.few(2000)), ("groups", groups)):
        code, said, took = setup.run("sweep", *common, *flags, "--run-name", f"sweep, {name}")
        rows = re.findall(r"^ *\d+/\d+ +\d+ +([\d.]+)%.* ([\d,]+) +[\d.]+$", said, re.M)
        found[name] = {"code": code, "seconds": round(took, 1), "best": [best for best, _ in rows[-1:]]}
        found[name] |= {"examples/s": [rate for _, rate in rows[:8]]} | ({"said": last_lines(said)} if code else {})
        found["ok"] = found["ok"] and code == 0
    return found


# ---- beside the usual ways ----


def compared(setup: Setup, todo: Iterable[tuple[tuple[int, ...], int]], *names: str) -> Found:
    """Contenders in turns, at each of the sizes; they must end where ours ends."""
    torch.set_num_threads(1)
    set_precision("full", setup.device)
    examples, known = setup.examples(), CUDA_CONTENDERS if setup.gpu else CONTENDERS
    chosen = {name: known[name] for name in names if name in known}
    found: Found = {"ok": True}
    for sizes, batch in todo:
        name = f"{'-'.join(map(str, sizes))}, {batch}"
        try:
            task = Task(Config(sizes=sizes, batch_size=batch, data_dir=setup.work / "data"), examples)
            timings, _ = race([(task, chosen)], rounds=2 if setup.small else 5, turn=0.4)
            found[name] = rows_of(timings)
        except Exception as error:
            found |= {"ok": False, name: error_of(error)}
        print(name, found[name], flush=True)
    return found


def rows_of(timings: Mapping[str, Any]) -> Found:
    """Milliseconds of an epoch, beside ours, seconds of the first epoch, how far from ours it ended."""
    ours = timings[OURS].seconds
    return {
        name: [round(1e3 * t.seconds, 2), round(t.seconds / ours, 3), round(t.first_epoch or 0, 2), t.difference]
        if t.seconds is not None
        else t.note[:160]
        for name, t in timings.items()
    }


def benchmark(setup: Setup) -> Found:
    """Ours, autograd in memory and by hand in a graph, and the floor."""
    names = (OURS, "ours, not recorded", "autograd, in memory", "autograd, CUDA graph by hand", "floor")
    return compared(setup, SIZES[: 1 if setup.small else 4], *names)


def compile(setup: Setup) -> Found:
    """What goes through a compiler, which is slow to start: at both ends of the sizes."""
    names = (
        OURS,
        "ours, compiled",
        "autograd, torch.compile",
        "autograd, reduce-overhead",
        "autograd, CUDA graph by hand",
    )
    return compared(setup, SIZES[:1] if setup.small else SIZES[::3], *names)


def networks(setup: Setup) -> Found:
    """Many networks at once, for each of them."""
    code, said, took = setup.run("benchmark", "--networks", "4" if setup.small else "32", "--rounds", "2", "--json")
    found: Found = {"ok": code == 0, "code": code, "seconds": round(took, 1)}
    try:
        rows = json.loads(said[said.index("{") :])["results"]
    except ValueError:
        return found | {"said": last_lines(said)}
    return found | {"ms per epoch": {row["name"]: row["seconds"] and round(1e3 * row["seconds"], 2) for row in rows}}


CHECKS: dict[str, Callable[[Setup], Found]] = {
    check.__name__: check
    for check in (
        machine,
        pools,
        garbage,
        graphs,
        tests,
        train,
        resume,
        verify,
        two,
        deform,
        sweep,
        benchmark,
        compile,
        networks,
    )
}
"""The checks by their names."""
