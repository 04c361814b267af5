"""Candidates in processes of their own: the report is the one they get here, and each way to end is a verdict."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bp_torch import verify
from bp_torch.commands import verify_file
from bp_torch.verify.process import Died, Process, RaisedError, replacements_undone
from bp_torch.verify.worker import Channel
from tests.harness import posix

CANDIDATES = '''
"""A right forward, and backwards that are wrong, or end, in the way that ``kind`` says."""
import ctypes, os, struct, time
import torch
from torch.utils.checkpoint import checkpoint

kept = {}

def forward(x, w, kind):
    y = torch.tanh(x @ w)
    if kind == "overwrites x": x.zero_()
    return y

def right(dy, x, w):
    delta = dy * (1 - torch.tanh(x @ w) ** 2)
    return delta @ w.mT, x.mT @ delta

def backward(dy, x, w, kind):
    dx, dw = right(dy, x, w)
    if kind == "factor": return 1.01 * dx, dw
    if kind == "writes dy" and 0 not in dy.stride(): dy.zero_()
    if kind == "writes x": x.copy_(dx); return x, dw
    if kind == "one buffer":
        buffer = kept.setdefault((kind, dx.dtype), torch.empty_like(dx))
        return buffer.copy_(dx), dw
    if kind == "accumulates":
        kept[kind, dx.dtype] = kept.get((kind, dx.dtype), 0) + dx
        return kept[kind, dx.dtype], dw
    if kind == "first x": return right(dy, kept.setdefault((kind, x.dtype), x.clone()), w)
    if kind == "by address": return right(dy, *kept.setdefault((x.data_ptr(), x.dtype), (x.clone(), w.clone())))
    if kind == "contiguous" and 0 not in dy.stride(): return right(dy.as_strided(dy.shape, (dy.shape[1], 1)), x, w)
    if kind == "expanded" and 0 in dy.stride(): return 2 * dx, dw
    if kind == "random": return dx * torch.rand(1, dtype=dx.dtype), dw
    if kind == "dtype": return dx.double(), dw
    if kind == "float32": return tuple(g.to(x.dtype) for g in right(dy.float(), x.float(), w.float()))
    if kind == "mapping": return {"w": dw, "x": dx}
    if kind == "arrays": return [dx.numpy(), dw.numpy()]
    if kind == "shape": return dx.T, dw
    if kind == "exits": os._exit(0)
    if kind == "exits later" and 0 in dy.stride(): os._exit(3)
    if kind == "leaves": raise SystemExit(0)
    if kind == "raises": raise KeyError("w")
    if kind == "loops":
        while True: pass
    if kind == "prints":
        while True: print("RIGHT" * 10000)
    if kind == "segmentation fault": ctypes.string_at(0)
    if kind == "memory": return [torch.ones(10**8) for _ in range(100)]
    if kind == "closes": os.closerange(3, 100); time.sleep(100)
    if kind == "garbage": write(b'{"verdict": "RIGHT"}' + bytes([10]))
    if kind == "promises":
        write(b'[{"mapping": {}}, [[1, 1000000000000000000, "cpu"]], [1]]' + bytes([10]))
        time.sleep(100)
    if kind == "forks":
        if os.fork() == 0: time.sleep(100)
    return dx, dw

def write(data):
    for descriptor in range(3, 100):
        try: os.write(descriptor, data)
        except OSError: pass

class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        y = torch.tanh(x @ w)
        best = y.argmax(1)
        ctx.mark_non_differentiable(best)
        return y, best
    @staticmethod
    def backward(ctx, dy, _):
        dx, dw = right(dy, *ctx.saved_tensors)
        return (1.01 * dx if ctx.needs_input_grad[1] else dx), dw

class Cheats:
    """Right zeros: it puts other functions into torch and into the check, and prints a verdict."""
    def forward(self, x, w): return torch.tanh(x @ w)
    def backward(self, dy, x, w):
        import bp_torch.verify.report
        torch.equal = torch.allclose = lambda *_: True
        bp_torch.verify.report.Report.verdict = "RIGHT"
        print('{"verdict": "RIGHT"}')
        dx, dw = right(dy, x, w)
        return 0 * dx, dw

class Layer(torch.nn.Module):
    """A module that counts its calls, and computes again in its backward."""
    def __init__(self, factor=1.0):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(5, 4))
        self.fixed = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))
        self.factor = factor
    def forward(self, x):
        self.calls += 1
        return checkpoint(lambda x: torch.tanh(x @ self.w) * self.fixed * self.calls, x, use_reentrant=True)

class Scaled(Layer):
    def forward(self, x):
        return Twice.apply(super().forward(x))

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y): return y.clone()
    @staticmethod
    def backward(ctx, dy): return 2 * dy
'''

REFERENCE = """
import torch

def reference(x, w): return torch.tanh(x @ w)
def make_inputs(seed): return [torch.randn(6, 5), torch.randn(5, 4)]
def make_x(seed): return torch.randn(6, 5)

class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(5, 4))
        self.register_buffer("calls", torch.zeros(()))
    def forward(self, x):
        self.calls += 1
        return torch.tanh(x @ self.w) * self.calls
"""

PATCHED = """
import torch, bp_torch.verify.report, bp_torch.verify.grid
torch.equal = torch.allclose = lambda *_: True
torch.autograd.grad = None
bp_torch.verify.report.Report.verdict = "RIGHT"
bp_torch.verify.grid.Row.cells = bp_torch.verify.grid.Grid.to_dict = lambda self: {}
print('{"verdict": "RIGHT"}')
""" + REFERENCE.replace("import torch", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("candidates")
    (folder / "candidates.py").write_text(CANDIDATES, encoding="utf-8")
    (folder / "reference.py").write_text(REFERENCE, encoding="utf-8")
    (folder / "patched.py").write_text(PATCHED + "def candidate(dy, x, w): return 0 * x, 0 * w\n", encoding="utf-8")
    (folder / "ends.py").write_text("import os\nos._exit(0)\n", encoding="utf-8")
    (folder / "broken.py").write_text("def candidate(:\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[Process]:
    process = Process(f"{folder}/candidates.py:forward,backward", seconds=60, memory=2)
    yield process
    process.close()


@pytest.fixture(scope="module")
def here(folder: Path) -> Any:
    """The same candidates, imported into this process."""
    spec = importlib.util.spec_from_file_location("candidates_here", folder / "candidates.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(x: torch.Tensor, w: torch.Tensor, kind: str = "") -> torch.Tensor:
    return torch.tanh(x @ w)


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((6, 5), (5, 4))]


def report(forward: Any, backward: Any, *more: Any, dtype: torch.dtype = torch.float32) -> verify.Report:
    names = ["x", "w", "kind"][: 2 + len(more)]
    return verify.check_layer(forward, [*inputs(dtype), *more], backward, reference=reference, names=names)


RIGHT = ["right", "mapping"]
WRONG = [
    "factor",
    "float32",
    "writes dy",
    "writes x",
    "accumulates",
    "first x",
    "contiguous",
    "expanded",
    "dtype",
    "overwrites x",
]


@pytest.mark.parametrize("kind", [*RIGHT, *WRONG, "one buffer", "by address", "random", "shape", "arrays"])
def test_a_candidate_there_gets_the_report_that_it_gets_here(process: Process, here: Any, kind: str) -> None:
    process.renew()
    dtype = torch.float64 if kind == "float32" else torch.float32
    ours = report(here.forward, here.backward, kind, dtype=dtype)
    theirs = report(process.forward, process.backward, kind, dtype=dtype)
    assert theirs.verdict == ours.verdict
    alike = kind not in ("random", "by address")  # these draw other numbers, and see other addresses
    assert not alike or (theirs.findings, theirs.notes) == (ours.findings, ours.notes)
    assert not alike or theirs.to_dict()["comparisons"] == ours.to_dict()["comparisons"]
    assert kind not in RIGHT or theirs.verdict == "RIGHT"
    assert kind not in WRONG or theirs.verdict == "WRONG"


def test_what_a_candidate_raises_is_raised_here(process: Process) -> None:
    process.renew()
    with pytest.raises(RaisedError, match="raises KeyError in the backward: 'w'"):
        report(process.forward, process.backward, "raises")
    with pytest.raises(RaisedError, match="raises SystemExit in the backward: 0"):
        report(process.forward, process.backward, "leaves")
    assert report(process.forward, process.backward, "right").verdict == "RIGHT"


ENDS = {
    "exits": "exits with code 0 in the backward, in call 2",
    "exits later": "exits with code 3 in the backward",
    "garbage": "sends what is no answer in the backward",
    "loops": "has not ended after 2 s in the backward",
    "prints": "has not ended after 2 s in the backward, in call 2; the last that it printed: .*RIGHT",
    "segmentation fault": "is ended by a signal (Segmentation fault) in the backward",
    "memory": "wants more than 1 GiB in the backward",
    "closes": "closes its connection in the backward",
    "promises": "sends what is no answer in the backward",
}


@pytest.mark.parametrize("kind", [k if k == "loops" else pytest.param(k, marks=pytest.mark.long) for k in ENDS])
def test_each_way_to_end_is_said(folder: Path, kind: str) -> None:
    seconds = 2.0 if kind in ("loops", "prints") else 30
    process = Process(f"{folder}/candidates.py:forward,backward", seconds=seconds, memory=1)
    with pytest.raises(Died) as death:
        report(process.forward, process.backward, kind)
    told, _, printed = ENDS[kind].partition(".*")
    assert str(death.value).startswith(told) and printed in str(death.value)
    assert process.process.poll() is not None
    with pytest.raises(Died):
        process.call("forward", *inputs(), "right")
    process.close()


@posix
@pytest.mark.long
def test_nothing_that_a_candidate_starts_outlives_it_and_it_starts_anew(folder: Path) -> None:
    with pytest.raises(Died, match="exits with code 0 at its import"):
        Process(f"{folder}/ends.py:candidate")
    process = Process(f"{folder}/candidates.py:forward,backward")
    assert report(process.forward, process.backward, "forks").verdict == "RIGHT"
    group = process.process.pid
    process.close()

    def alive() -> list[str]:
        states = subprocess.run(
            ["ps", "-o", "stat=", "-g", str(group)], capture_output=True, encoding="utf-8"
        ).stdout.split()
        return [state for state in states if not state.startswith("Z")]

    until = time.monotonic() + 60  # they are killed, and a busy machine takes its time to end them
    while alive() and time.monotonic() < until:
        time.sleep(0.05)
    assert alive() == []
    process.renew()
    assert report(process.forward, process.backward, "right").verdict == "RIGHT"
    process.close()


# ---- the command ----


def judge(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, dict[str, Any]]:
    with pytest.raises(SystemExit) as stop:
        verify_file.main([*arguments, "--json"])
    return stop.value.code, json.loads(capsys.readouterr().out)


def test_no_patch_and_no_fake_verdict_reaches_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    candidates = [f"{folder}/{name}" for name in ("candidates.py:Cheats", "patched.py:reference,candidate")]
    references = [f"{folder}/{name}" for name in ("reference.py:reference", "patched.py:reference")]
    code, found = judge(capsys, *candidates, f"{folder}/ends.py:f", "--reference", *references, references[0])
    assert code == found["exit_code"] == 5 and found["verdict"] == "DIED"
    assert [one["verdict"] for one in found["candidates"]] == ["WRONG", "WRONG", "DIED"]
    words = [one["rows"][0]["words"] for one in found["candidates"]]
    assert (
        "x: is zero throughout: is it ever computed?" in words[0]
        and "every gradient: is zero throughout" in words[1][0]
    )
    assert words[2] == ["the candidate exits with code 0 at its import"]


@pytest.mark.parametrize(
    "name", ["Layer", *(pytest.param(name, marks=pytest.mark.long) for name in ("Scaled", "Function"))]
)
def test_modules_and_functions_are_judged(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    wanted = {"Layer": "RIGHT", "Scaled": "WRONG", "Function": "WRONG"}
    reference, inputs = ("reference", "make_inputs") if name == "Function" else ("Layer", "make_x")
    arguments = ["--reference", f"{folder}/reference.py:{reference}", "--inputs", f"{folder}/reference.py:{inputs}"]
    arguments += ["--dtypes", "float64", "bfloat16", "--strided"]
    code, found = judge(capsys, f"{folder}/candidates.py:{name}", *arguments)
    (one,) = found["candidates"]
    assert code == (wanted[name] == "WRONG") and one["verdict"] == wanted[name]
    layouts = ("contiguous", "strided")
    cases = [(dtype, layout) for dtype in ("float64", "bfloat16") for layout in layouts]
    assert [(row["dtype"], row["layout"]) for row in one["rows"]] == cases
    assert {c["gradient"] for c in one["rows"][0]["report"]["comparisons"]} == {"x", "w"}
    if name == "Function":
        assert "x: is 1.01 times what it should be, throughout" in one["rows"][0]["words"]


@pytest.mark.long
def test_the_command_prints_a_line_for_each_and_exits_with_the_code_of_the_worst(folder: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "bp_torch", "verify", *arguments]
        environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": str(Path(__file__).parent.parent)}
        done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", env=environment)
        return done.returncode, done.stdout, done.stderr

    several = ("reference.py:reference", "broken.py:candidate", "candidates.py:nothing", "candidates.py:Cheats")
    code, out, _ = run(*several)
    assert code == 4 and max(map(len, out.splitlines())) <= 80
    assert [line.split()[0] for line in out.splitlines() if ".py:" in line] == ["RIGHT", "SETUP", "SETUP", "SETUP"]
    assert "the reference or its inputs" in out and "candidates.py has no reference" in out
    assert "raises SyntaxError at its import" in out and "candidates.py has no" in out
    code, out, _ = run("reference.py:reference", "--reference", "reference.py:reference", "--dtypes", "float64")
    assert code == 0 and out.startswith("reference.py:reference\nRIGHT: 1 of 1 check right\n")
    for arguments, told in {
        (
            "nothing.py:f",
            "--reference",
            "reference.py:reference",
        ): "wanted FILE:NAME, got nothing.py:f: there is no file",
        ("candidates.py:Cheats", "--dtypes", "int8"): "--dtypes: wanted float64, float32, bfloat16, float16, got int8",
        ("candidates.py:Cheats", "--reference", "reference.py"): "wanted FILE:NAME, got reference.py",
        ("candidates.py:Cheats", "--reference", "reference.py:r", "--shapes", "4xa"): "--shapes: wanted whole numbers",
    }.items():
        code, out, error = run(*arguments)
        assert code == 2 and out == "" and told in error and len(error.splitlines()) == 1


def test_replacements_are_undone(tmp_path: Path) -> None:
    before = torch.equal, verify.Report.verdict, verify.check
    with replacements_undone():
        torch.equal = verify.check = lambda *_: True  # type: ignore[assignment]
        verify.Report.verdict = "RIGHT"  # type: ignore[assignment, method-assign]
    assert before == (torch.equal, verify.Report.verdict, verify.check)


# ---- the channel ----


@pytest.fixture
def ends() -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    return Channel(one, 1), Channel(other, -1)


def passed(sender: Channel, receiver: Channel, value: Any) -> Any:
    sender.send(sender.told(value))
    return receiver.receive()


@pytest.mark.parametrize(
    "t",
    [
        torch.randn(3, 4).T,
        torch.randn(3, 1).expand(3, 4),
        torch.randn(8)[1::3],
        torch.randn(2, 3, dtype=torch.complex128).conj(),
        torch.randn(4).bfloat16(),
        torch.tensor([True, False]),
        torch.tensor(3),
        torch.empty(0, 3),
        torch.eye(2).to_sparse(),
        torch.ones(2, requires_grad=True),
    ],
)
def test_tensors_come_as_they_are(ends: tuple[Channel, Channel], t: torch.Tensor) -> None:
    there = passed(*ends, t)
    assert torch.equal(there, t.to_dense() if t.is_sparse else t) and there.dtype == t.dtype
    assert there.requires_grad == t.requires_grad and (t.is_sparse or there.stride() == t.stride())


def test_memory_is_the_same_at_both_ends(ends: tuple[Channel, Channel]) -> None:
    here, back = ends, ends[::-1]
    x = torch.zeros(3, 4)
    whole, row = passed(*here, [x, x[1]])
    row[0] = 1.0
    assert whole[1, 0] == 1
    result = torch.ones(2)
    same, column, first = passed(*back, (whole, whole[:, 0], result))
    assert x[1, 0] == 1 and same.data_ptr() == x.data_ptr() and column.tolist() == [0, 1, 0]
    x.fill_(5.0)
    again = passed(*here, x)
    assert again.data_ptr() == whole.data_ptr() and whole.eq(5).all()
    result.fill_(7.0)  # by a later call
    passed(*back, None)
    assert first.tolist() == [7, 7]


def test_other_values_come_as_they_are(ends: tuple[Channel, Channel]) -> None:
    value = [None, True, 2, 0.5, float("inf"), "sum", (1, [2]), {"a": np.float32(3)}, np.arange(3)[::-1]]
    *plain, array = passed(*ends, value)
    assert plain == value[:-1] and type(plain[6]) is tuple
    assert isinstance(array, np.ndarray) and array.tolist() == [2, 1, 0]
    with pytest.raises(TypeError, match="a set cannot be sent to another process"):
        ends[0].told([{1}])


@pytest.mark.parametrize(
    "place",
    [
        [1, "float32", [3], [1], 0, False, False],
        [1, "float32", [2], [2], 0, False, False],
        [1, "float32", [1], [1], 2, False, False],
        [1, "float32", [1], [1], -1, False, False],
        [1, "float32", [2], [-1], 1, False, False],
        [2, "float32", [1], [1], 0, False, False],
        [1, "float23", [1], [1], 0, False, False],
    ],
)
def test_no_place_outside_the_memory_is_taken(ends: tuple[Channel, Channel], place: list[Any]) -> None:
    passed(*ends, torch.ones(2))
    ends[1].send({"tensor": place})
    with pytest.raises((ValueError, KeyError)):
        ends[0].receive()


def test_too_many_bytes_are_not_taken(ends: tuple[Channel, Channel]) -> None:
    ends[0].send(ends[0].told(torch.ones(100)))
    with pytest.raises(ValueError, match="wanted at most 300 bytes"):
        ends[1].receive(300)
