"""Cases from outside the bank: kinds of faults that are known from public places, each written anew, in text files.

A case is a paragraph. Its first line: the name, the place that the kind is known from, the inputs as in the bank (with
dtypes before them, if the kind is about these), and y as an expression. Then the backward as one would write it, from
dy and the inputs. With a line ``y = …`` it is an autograd.Function, whose forward that line is, and those that begin
with ``ctx.``; dz is the gradient of a second output. Then the versions, after the verdict that is due:

    RIGHT as written; in other words: a piece of the source → what replaces it
    WRONG the sign is lost: return -dy * w | the words that name it; alone w is lost: return dy

A line replaces the one that begins like it. A word of ``WAYS`` before the name says how verify gets the version: as a
backward (layer), as an autograd.Function beside the reference (function), without one (alone), with its second
derivatives (twice), within a module whose parameters are all inputs but the first, also frozen ones, or in NumPy.
``kept`` is a dictionary that lasts from call to call.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bp_torch.verify.bank.layers import Draw, Fault, chosen, described, indices, normal, positive
from bp_torch.verify.check import check_layer, check_module
from bp_torch.verify.report import Report

VERDICT = re.compile(r" *((?:RIGHT|KINK|WRONG|NOISE|SETUP)(?:/[A-Z]+)*) (.*)")
WAYS = ("layer", "function", "alone", "twice", "module", "frozen", "numpy")


@dataclass(frozen=True)
class Version:
    """One way to write the backward of a case."""

    name: str
    due: tuple[str, ...]  # the verdicts that are due
    way: str  # of WAYS
    source: str
    words: str = ""  # regular expression for what should be said

    @property
    def right(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.due[0] in ("RIGHT", "KINK")


@dataclass(frozen=True)
class Case:
    """A function with backwards of it, and the place where such a fault is known from."""

    name: str
    seen_in: str
    dtypes: tuple[torch.dtype, ...]
    inputs: dict[str, Draw]
    forward: str  # an expression of the inputs
    versions: list[Version]

    def arguments(self, dtype: torch.dtype) -> list[Tensor]:
        """The inputs."""
        generator = torch.Generator().manual_seed(0)
        return [draw(generator, dtype) for draw in self.inputs.values()]

    def scope(self, version: Version) -> dict[str, Any]:
        """The names that the source of a version defines, anew, and the ``reference``."""
        scope = NAMES | {"kept": {}}
        exec(compile(version.source, f"<{self.name}, {version.name}>", "exec"), scope)
        scope["reference"] = eval(f"lambda {', '.join(self.inputs)}: {self.forward}", scope)
        return scope

    def report(self, version: Version, dtype: torch.dtype) -> Report:
        """The report of verify on a version."""
        scope, inputs = self.scope(version), self.arguments(dtype)
        check = partial(check_layer, names=list(self.inputs))
        if version.way in ("module", "frozen"):
            return check_module(Checkpointed(scope, version, inputs), inputs[:1])
        if version.way in ("layer", "numpy"):
            given = [t.numpy() for t in inputs] if version.way == "numpy" else inputs
            return check(scope["reference"], given, scope["backward"])
        reference = None if version.way == "alone" else scope["reference"]
        return check(function_of(scope), inputs, reference=reference, second_order=version.way == "twice")


def function_of(scope: dict[str, Any]) -> Callable[..., Any]:
    """The autograd.Function of a source: its own, or one that saves its inputs for the backward."""

    def forward(ctx: Any, *given: Any) -> Any:
        ctx.save_for_backward(*given)
        return scope["reference"](*given)

    def backward(ctx: Any, *dys: Any) -> Any:
        return scope["backward"](*dys, *ctx.saved_tensors)

    own = scope if "forward" in scope else locals()
    names = {key: staticmethod(own[key]) for key in ("forward", "backward")}
    made: Any = type("Function", (torch.autograd.Function,), names)
    return made.apply  # type: ignore[no-any-return]


class Checkpointed(nn.Module):
    """A module that computes its forward again in the backward."""

    def __init__(self, scope: dict[str, Any], version: Version, inputs: list[Tensor]) -> None:
        """With all inputs but the first as parameters."""
        super().__init__()
        self.function, trained = function_of(scope), version.way == "module"
        self.kept = nn.ParameterList([nn.Parameter(t.clone(), requires_grad=trained) for t in inputs[1:]])

    def forward(self, x: Tensor) -> Any:
        """The function of the source."""
        return checkpoint(lambda t: self.function(t, *self.kept), x, use_reentrant=False)


@cache
def cases() -> list[Case]:
    """Those of all files."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.txt"))]
    return [case(block) for text in texts for block in re.split(r"\n(?=\S)", text.strip()) if block[0] != "#"]


def case(text: str) -> Case:
    """The case that a paragraph describes. Raises ValueError if a piece is not in the source exactly once."""
    head, *lines = text.replace(" |\n    ", " | ").splitlines()
    name, seen_in, inputs, forward = head.split(" | ")
    dtypes, _, inputs = inputs.rpartition(": ")
    kinds = tuple(getattr(torch, dtype) for dtype in (dtypes or "float64 float32").split())
    draws = eval(f"dict({inputs})", dict(NAMES))
    draws = {key: normal(*draw) if isinstance(draw, tuple) else draw for key, draw in draws.items()}
    source, versions = written_out([line[4:] for line in lines if not VERDICT.match(line)], draws), list[Version]()
    way_it_is = "function" if "def forward" in source else "layer"
    lists = [found.groups() for line in lines if (found := VERDICT.match(line))]
    for due, entry in [(due, entry) for due, entries in lists for entry in entries.split("; ")]:
        way, _, rest = entry.partition(" ")
        way, rest = (way, rest) if way in WAYS else (way_it_is, entry)
        faults = [Fault(rest, "", "")]
        if ": " in rest or rest[0] == "±":
            faults = described(rest, source[source.index("def backward") :])
        for fault in faults:
            if fault.piece and (times := source.count(fault.piece)) != 1:
                raise ValueError(f"{name}, {fault.name}: {fault.piece!r} is there {times} times, wanted once")
            changed = source.replace(fault.piece, fault.replacement) if fault.piece else source
            versions.append(Version(fault.name, tuple(due.split("/")), way, changed, fault.expected_diagnosis))
    return Case(name, seen_in, kinds, draws, forward, versions)


def written_out(lines: list[str], inputs: Iterable[str]) -> str:
    """The source of a backward, or of the forward and the backward of an autograd.Function."""
    names = ", ".join(inputs)
    first = [line for line in lines if line.startswith(("y = ", "ctx."))]
    rest = [line for line in lines if line not in first]
    if not first:
        return "\n    ".join([f"def backward(dy, {names}):", *rest])
    dys = "dy, dz" if any(line.startswith("y = (") for line in first) else "dy"
    used = any(re.search(rf"\b{name}\b", line) for name in inputs for line in rest)
    saved = [f"ctx.save_for_backward({names})"] if used else []
    taken = [f"{names}, = ctx.saved_tensors"] if used else []
    texts = [f"def forward(ctx, {names}):", *saved, *first, "return y"]
    return "\n    ".join(texts) + "\n" + "\n    ".join([f"def backward(ctx, {dys}):", *taken, *rest]) + "\n"


# ---- what the text files speak of ----


def equilibrium(x: Tensor, w: Tensor) -> Tensor:
    """The z with z = tanh(z w + x)."""
    z = torch.zeros_like(x)
    for _ in range(40):
        z = torch.tanh(z @ w + x)
    return z


NAMES: dict[str, Any] = {"functional": functional, "math": math, "np": np, "torch": torch, "equilibrium": equilibrium}
NAMES |= {draw.__name__: draw for draw in (chosen, indices, normal, positive)} | {
    "always": lambda dtype, *shape: lambda g, _: normal(*shape)(g, dtype),  # in this dtype, whatever the others'
    "complexes": lambda *shape: lambda g, dtype: torch.view_as_complex(normal(*shape, 2)(g, dtype)),
    "fixed": lambda *numbers: lambda g, dtype: torch.tensor(numbers, dtype=dtype),
    "swapped": lambda *shape: lambda g, dtype: normal(*shape[::-1])(g, dtype).mT,  # a matrix, column after column
    "whole": lambda *shape, most=2: lambda g, dtype: torch.randint(-most, most + 1, shape, generator=g).to(dtype),
}
