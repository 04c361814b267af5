"""Who may import whom: autograd stays in its rooms, and imports go downward only; and the mathematics stays short."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bp_torch"
AUTOGRAD = re.compile(
    r"requires_grad|enable_grad|\.backward\(|torch\.autograd|torch\.func\b|nn\.Module|nn\.Parameter"
    r"|from torch import .*\b(?:autograd|func)\b"
)
AUTOGRAD_ROOMS = ("verify", "benchmark")

ROOMS = [  # from the top; a module may import only from its own room and from those below it
    "__main__",
    "__init__",
    "commands",
    "explain",
    "ladder",
    "benchmark",
    "sweep",
    "training",
    "training.loop",
    "training.divergence",
    "training.run",
    "training.log",
    "training.event_file",
    "training.images",
    "training.stuck",
    "training.config",
    "training.rows",
    "training.evaluation",
    "training.interruption",
    "training.step",
    "own_backward",
    "verify",
    "checkpoint",
    "digits",
    "backprop",
    "sgd",
    "convert",
    "network",
    "costs",
    "activations",
    "own_data",
    "deform",
    "data",
    "examples",
    "distributed",
    "device",
    "recorder",
    "cli",
    "help",
    "kind",
    "values",
    "flags",
    "text",
    "files",
]

MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
"""The file of each module by its name in the package, such as training.step, or training.__init__."""


def room(module: str) -> str:
    """The longest entry of ROOMS that a module is, or is in."""
    rooms = [name for name in ROOMS if f"{module}.".startswith(f"{name}.")]
    assert rooms, f"{module} has no room: enter it in ROOMS"
    return max(rooms, key=len)


def imported(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """The modules of the package that a module imports anywhere in it, and the import."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import, which this test cannot follow"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "bp_torch":
                while (
                    parts and ".".join(parts[1:]) not in MODULES and ".".join([*parts[1:], "__init__"]) not in MODULES
                ):
                    parts.pop()  # what a module defines
                yield ".".join(parts[1:]) or "__init__", node


def test_autograd_is_used_only_in_its_rooms() -> None:
    for path in (ROOT / "train.py", *MODULES.values()):
        code = path.read_text(encoding="utf-8")
        if path.name == "convert.py":  # the nn.Sequential conversion names the modules of activations
            code = code.replace("type[nn.Module]", "").replace("list[nn.Module]", "")
        if path.relative_to(ROOT).parts[1:2] not in [(name,) for name in AUTOGRAD_ROOMS]:
            assert AUTOGRAD.findall(code) == [], path


def test_imports_go_downward_only() -> None:
    for module in MODULES:
        here = room(module)
        for name, node in imported(module):
            there = room(name)
            downward = there == here or ROOMS.index(there) > ROOMS.index(here)
            assert downward, f"{module}, line {node.lineno}, imports {name}"


def test_no_file_is_in_a_circle_of_imports() -> None:
    TopologicalSorter({module: {name for name, _ in imported(module)} for module in MODULES}).prepare()


def test_verify_knows_nothing_of_this_project_but_text() -> None:
    own = [module for module in MODULES if room(module) == "verify"]
    known = {name for module in own for name, _ in imported(module)}
    assert {name for name in known if room(name) != "verify"} == {"text"}


def test_every_room_has_a_module() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)


def test_the_mathematics_is_short() -> None:
    lines = {
        name: len(MODULES[name].read_text(encoding="utf-8").splitlines())
        for name in ("backprop", "activations", "costs")
    }
    assert lines["backprop"] <= 120
    assert sum(lines.values()) <= 220
    equations = {"forward", "weighted_sum", "output_delta", "hidden_delta", "bias_gradient", "weight_gradient"}
    for node in ast.parse(MODULES["backprop"].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name in equations:
            equations.remove(node.name)
            assert node.end_lineno is not None and node.end_lineno <= 90
    assert not equations
