"""``python -m bp_torch benchmark``, ``benchmark scripts`` and ``benchmark accuracy``: measure, print, draw a picture.

On the CPU one thread is the default: on small layers a second one mostly waits. NumPy's library reads its number of
threads only once, when it is loaded, so the command starts itself again with that number in the environment.
"""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

from bp_torch.benchmark import accuracy, scripts
from bp_torch.benchmark.accuracy import Accuracy
from bp_torch.benchmark.scripts import THREAD_VARIABLES, Scripts
from bp_torch.cli import one_line_errors, parse
from bp_torch.commands import load_torch
from bp_torch.files import WINDOWS, check_writable, replace_file
from bp_torch.flags import Within, check_bounds
from bp_torch.training.config import Config

COMMAND = "python -m bp_torch benchmark"

SWEEP: tuple[tuple[tuple[int, ...], int], ...] = (
    ((784, 16, 16, 10), 100),
    ((784, 100, 10), 100),
    ((784, 512, 512, 10), 256),
    ((784, 2048, 2048, 10), 1024),
)
"""Sizes and batch size of each measurement of --sweep."""


@dataclass(frozen=True)
class Options:
    """The flags of ``benchmark``. Raises ValueError for a value that cannot be measured."""

    sizes: tuple[int, ...] | None = None
    """Neurons per layer: 784 pixels first, 10 digits last. None: 784 16 16 10."""
    batch_size: int | None = None
    """Examples per step. None: 100."""
    sweep: bool = False
    """Measure four sizes, from small to large. Not with --sizes and --batch-size. Takes minutes."""
    networks: Annotated[int | None, Within(least=2)] = None
    """Number of networks that are trained at once, as in a sweep, and compared with one alone, without a picture. None:
    time the contenders."""
    device: str = "cpu"
    """cpu, cuda, cuda:N, or auto for the first GPU there is."""
    threads: int = 1
    """CPU threads, for all contenders."""
    rounds: Annotated[int, Within(least=1)] = 7
    """Times that each contender is timed; the median is reported."""
    json: bool = False
    """Print the results as JSON instead of tables."""
    out: Path = Path("benchmark.png")
    """File of the picture."""
    data_dir: Path = Path("data")
    """Folder of the data sets; filled on first use."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check_bounds(self)
        if self.out.suffix != ".png":
            raise ValueError(f"--out: wanted a name that ends in .png, got {self.out}")
        if not self.out.parent.is_dir():
            raise ValueError(f"--out: no folder {self.out.parent}")
        if self.networks and self.sweep:
            raise ValueError("--networks: wanted no --sweep")
        for flag, value in (("sizes", self.sizes), ("batch-size", self.batch_size)):
            if self.sweep and value is not None:
                raise ValueError(f"--{flag} has no effect with --sweep, which has its own: leave one of them out")
        self.configs()

    def configs(self) -> list[Config]:
        """The config of each measurement. Raises ValueError for sizes, a batch size or threads that cannot be."""
        own = self.sizes or SWEEP[0][0], SWEEP[0][1] if self.batch_size is None else self.batch_size
        return [
            Config(sizes=sizes, batch_size=batch_size, threads=self.threads, data_dir=self.data_dir, log=False)
            for sizes, batch_size in (SWEEP if self.sweep else (own,))
        ]


def main(arguments: list[str]) -> None:
    """``python -m bp_torch benchmark``, ``benchmark scripts`` and ``benchmark accuracy``."""
    if arguments[:1] == ["accuracy"]:
        about = "Seconds from starting a process until its test accuracy reaches a target."
        until = parse(Accuracy, prog=f"{COMMAND} accuracy", description=about, args=arguments[1:])
        with one_line_errors():
            load_torch()
            accuracy.measure(until)
            print(f"\n{accuracy.table(accuracy.read(until.out))}")
        return
    if arguments[:1] == ["scripts"]:
        about = "Seconds from starting a process to the trained network of the default run."
        wanted = parse(Scripts, prog=f"{COMMAND} scripts", description=about, args=arguments[1:])
        with one_line_errors():
            run_scripts(wanted)
        return
    about = "Time the hand-written backward beside what you would otherwise write. See also: benchmark scripts, "
    about += "benchmark accuracy."
    options = parse(Options, prog=COMMAND, description=about, args=arguments)
    threads = dict.fromkeys(THREAD_VARIABLES, str(options.threads))
    if not threads.items() <= os.environ.items():
        start_again(["-m", "bp_torch", "benchmark", *arguments], os.environ | threads)
    with one_line_errors():
        load_torch(options.threads)
        run(options)


def start_again(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Become another Python. On Windows, wait for it: a process that is replaced there ends for who started it."""
    command = [sys.executable, *arguments]
    if WINDOWS:
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)
    os.execve(sys.executable, command, environment)


def run_scripts(wanted: Scripts) -> None:
    """Start the scripts and report. Raises BenchmarkError or DataError."""
    load_torch()
    import torch

    from bp_torch.benchmark.report import describe_machine
    from bp_torch.data import load

    load("mnist", wanted.data_dir)  # unpacked before the first measurement
    machine = describe_machine(torch.device("cpu")) | {"threads": wanted.threads}
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    print(f"\n{scripts.table(scripts.measure(wanted))}")


def run(options: Options) -> None:
    """Measure and report. Raises BenchmarkError, DeviceError, DataError or OSError."""
    import torch

    from bp_torch.benchmark.contenders import CPU_CONTENDERS, CUDA_CONTENDERS
    from bp_torch.benchmark.networks import compare_networks
    from bp_torch.benchmark.race import TOLERANCE, Task, compare
    from bp_torch.benchmark.report import as_json, contender_table, describe_machine, draw, growth_table, networks_table
    from bp_torch.data import load
    from bp_torch.device import choose_device, set_precision

    if not options.networks:
        check_writable(options.out, "--out")
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    set_precision("full", device)
    examples, _ = load("mnist", options.data_dir, device)
    machine = describe_machine(device)
    show = (lambda text: None) if options.json else print
    show(", ".join(f"{name} {value}" for name, value in machine.items()))
    tasks = [Task(config, examples) for config in options.configs()]
    if options.networks:
        results = compare_networks(tasks[0], options.networks, options.rounds)
        report = {"machine": machine, "rounds": options.rounds, "results": results}
        print(json.dumps(report, indent=2) if options.json else f"\n{networks_table(results)}")
        return
    measurements = []
    for task in tasks:
        contenders = CUDA_CONTENDERS if device.type == "cuda" else CPU_CONTENDERS
        measurements.append(compare(contenders, task, options.rounds))
        show(f"\n{contender_table(measurements[-1])}")
    if options.sweep:
        show(f"\n{growth_table(measurements)}")
    show(f"\nall end at the same weights, within {TOLERANCE:.0e} of the distance that ours moved in the first epoch")
    png = io.BytesIO()
    draw(measurements, machine).savefig(png, dpi=150)
    replace_file(options.out, png.getvalue())
    show(f"saved {options.out}")
    if options.json:
        print(as_json(measurements, machine, options.rounds))
