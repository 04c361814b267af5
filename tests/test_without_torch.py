"""Help, the version and errors in flags come before torch is loaded; a run loads no more than it needs."""

import os
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import get_args

import pytest
import torch

from bp_torch import values
from bp_torch.activations import ACTIVATIONS
from bp_torch.benchmark.scripts import THREAD_VARIABLES
from bp_torch.commands import COMMANDS, explain
from bp_torch.commands.verify_bench import DTYPES
from bp_torch.costs import COSTS, find_cost
from bp_torch.data import FAMILIES
from bp_torch.explain.options import options_of
from bp_torch.training import Config
from bp_torch.verify import bench

ROOT = Path(__file__).parent.parent

HELP = ["--help", "--version", "dance", *(f"{name} --help" for name in COMMANDS)]
HELP += [
    "train --version",
    "ladder run --help",
    "ladder docs --help",
    "verify bench --help",
    "benchmark scripts --help",
]
HELP += ["benchmark accuracy --help", *(f"explain {name} --help" for name in (*explain.IDEAS, "page", "all"))]

WRONG = [
    "train --epochs many",
    "train --learning-rte 1",
    "train --learning-rate 1e-60",
    "train --learning-rate-decay 1e9 --schedule inverse --dtype float16",
    "train --momentum 1",
    "train --weight-decay 1e-9 --dtype float16",
    "train --sizes 784 99",
    "train --cost binary-cross-entropy --output-activation tanh",
    "train --deform elastic --sigma 0.1",
    "train --threads 0",
    "train --resume nowhere",
    "train --recipe nothing",
    "sweep --learning-rate 1 1",
    "sweep --learning-rate -1 2",
    "ladder dance",
    "ladder run nothing",
    "ladder run lesson --first-seed -1",
    "verify --depths 0",
    "verify --dtypes float31",
    "verify bench --dtypes float31",
    "verify nowhere.py:backward",
    "verify nowhere.py:backward --dtypes float31",
    "explain dance",
    "explain nudges --digit 10",
    "explain all --threads 0",
    "explain nudges --label 7",
    "explain nudges --image seven.png --digit 7",
    "predict",
    "predict seven.png --runs nowhere",
    "benchmark --sizes 784 99",
    "benchmark --out picture.jpg",
    "benchmark scripts --rounds 0",
    "benchmark accuracy --targets 50",
]

IN_ONE_PROCESS = """
import contextlib, io, os, sys
from bp_torch import __main__
for line in sys.stdin.read().splitlines():
    sys.argv, said = ["bp_torch", *line.split()], io.StringIO()
    code = 0
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            __main__.main()
    except SystemExit as stop:
        code = stop.code or 0
    heavy = sorted({"torch", "numpy", "matplotlib", "tensorboard"} & set(sys.modules))
    print(line, code, len(said.getvalue()) > 10, said.getvalue().count("\\n") == 1, heavy, sep="; ", flush=True)
"""


def test_help_version_and_errors_do_not_load_torch(tmp_path: Path) -> None:
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1") | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    lines = "\n".join([*HELP, *WRONG])
    command, streams = [sys.executable, "-c", IN_ONE_PROCESS], {"capture_output": True, "encoding": "utf-8"}
    done = subprocess.run(command, input=lines, cwd=tmp_path, env=environment, check=True, **streams)  # type: ignore[call-overload]
    codes = dict.fromkeys(HELP, 0) | dict.fromkeys(["dance", *WRONG], 2) | {"train --resume nowhere": 1}
    one_line = {line: code > 0 or "--version" in line for line, code in codes.items()}
    assert done.stdout.splitlines() == [f"{line}; {code}; True; {one_line[line]}; []" for line, code in codes.items()]
    assert not list(tmp_path.iterdir()), "nothing is written"


A_RUN = """
import sys
from pathlib import Path
from bp_torch.__main__ import main
data_dir, runs, log = sys.argv[1:]
flags = ["--data-dir", data_dir, "--runs-dir", runs, "--epochs", "1", "--train-examples", "500", "--device", "cpu"]
sys.argv = ["bp_torch", "train", *flags, log]
main()
print("loaded:", *sys.modules)
"""


@pytest.mark.parametrize("log", ["--log", "--no-log"])
def test_run_loads_only_what_it_needs(log: str, data_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", A_RUN, str(data_dir), str(tmp_path), log]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    loaded = set(done.stdout.split("loaded:")[1].split())
    unwanted = {"torchvision", "torch._dynamo", "torch._inductor", "matplotlib", "sympy", "scipy", "bp_torch.verify"}
    assert {"torch", "bp_torch.training"} <= loaded and not loaded & unwanted
    assert ("tensorboard" in loaded) == ("PIL" in loaded) == (log == "--log")


# ---- what is said without torch is what torch says ----


@pytest.mark.parametrize("dtype", [dtype for dtype in get_args(values.DTypeName) if dtype != "float64"])
def test_numbers_that_are_zero_or_infinite_in_a_type_are_those_of_torch(dtype: values.DTypeName) -> None:
    def there(value: float) -> float:
        return torch.tensor(value, dtype=torch.float64).to(getattr(torch, dtype)).item()

    zero, infinite = values.ROUNDED_TO[dtype]
    assert there(zero) == 0 < there(zero * 1.001) and there(infinite) == inf > there(infinite * (1 - 1e-6))


def test_costs_need_the_outputs_that_they_absorb() -> None:
    assert {name: cost.absorbs for name, cost in COSTS.items() if cost.absorbs} == values.ABSORBED
    with pytest.raises(ValueError) as said:
        find_cost("binary-cross-entropy", "tanh")
    with pytest.raises(ValueError, match=f"^{said.value}$"):
        Config(cost="binary-cross-entropy", output_activation="tanh")


def test_names_are_those_of_the_tables() -> None:
    assert get_args(values.ActivationName) == tuple(ACTIVATIONS)
    assert get_args(values.CostName) == tuple(COSTS)
    assert get_args(values.DatasetName) == tuple(FAMILIES)
    assert DTYPES == bench.DTYPES


@pytest.mark.parametrize("name", explain.IDEAS)
def test_flags_of_an_idea_are_those_that_it_takes(name: str) -> None:
    idea = getattr(explain.load_idea(name), name.capitalize())
    assert idea.__init__.__annotations__["options"] is options_of(name)


def test_the_modules_of_torch_are_never_searched_for_garbage_but_all_else_is() -> None:
    script = "import gc; from bp_torch.commands import load_torch; load_torch()"
    script += (
        "; import torch; kept = torch.nn.Linear; print(gc.isenabled(), gc.get_freeze_count() > len(gc.get_objects()))"
    )
    script += "; print(any(each is kept for each in gc.get_objects()))"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert found.stdout.split() == ["True", "True", "False"]
