"""Who may know whom: autograd stays in its rooms, and imports go downward only."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AUTOGRAD = re.compile(r"requires_grad|\.backward\(|torch\.autograd|torch\.func|nn\.Module")
AUTOGRAD_ROOMS = {"verify", "benchmark"}

ROOMS = [  # from the top; a room may import only from those below it
    "__main__",
    "explain",
    "benchmark",
    "verify",
    "training",
    "runlog",
    "checkpoint",
    "walk",
    "backprop",
    "sgd",
    "network",
    "costs",
    "activations",
    "data",
    "distributed",
    "replay",
    "files",
    "cli",
]


def here(path: Path) -> str:
    """The room that a file of bp_torch/ is or is in."""
    return path.relative_to(ROOT / "bp_torch").with_suffix("").parts[0]


def sources() -> list[Path]:
    return [ROOT / "train.py", *sorted((ROOT / "bp_torch").rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_autograd_stays_in_its_rooms(path: Path) -> None:
    if path.is_relative_to(ROOT / "bp_torch") and here(path) in AUTOGRAD_ROOMS:
        return
    code = path.read_text()
    if path.name == "network.py":  # the nn.Sequential conversion names the modules of activations
        code = code.replace("type[nn.Module]", "").replace("list[nn.Module]", "")
    assert AUTOGRAD.findall(code) == []


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bp_torch").rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_imports_go_downward_only(path: Path) -> None:
    if here(path) == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bp_torch."):
            there = room(node.module or "")
            assert there == here(path) or ROOMS.index(there) > ROOMS.index(here(path)), f"{path} imports {there}"


def test_every_room_is_in_the_list() -> None:
    found = {here(path) for path in (ROOT / "bp_torch").rglob("*.py")}
    assert found - {"__init__"} <= set(ROOMS)
