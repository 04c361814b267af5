"""How a layer of the bank is written, and the faults in its backward.

A backward stands as one would copy it. The string below its return lists its faults, parted by lines or semicolons:

    w is lost: dy * w → dy | factor w is missing    a piece of the source → its replacement | the diagnosis expected
    n for n − 1: n = len(x)  # llm.c 801            a line, for the one that begins like it  # where it is a real bug
    ±, or ± dw of w                                 two faults: what is returned, or its part dw, which is the gradient
                                                    of w, has the wrong sign, or is added twice
"""

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.check import check_layer
from bp_torch.verify.report import Report

Backward = Callable[..., Any]
Draw = Callable[[torch.Generator, torch.dtype], Tensor]


@dataclass(frozen=True)
class Fault:
    """A replacement of one piece in the source of a backward."""

    name: str
    piece: str  # is in the right source once
    replacement: str
    expected_diagnosis: str = ""  # regular expression for the words that name the fault; "" if no words are known
    seen_in: str = ""  # the project in which it is a real bug


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer, its right backward with the faults in it, and its inputs."""

    name: str
    about: str  # y as a formula
    forward: Callable[..., Any]  # y of the inputs
    backward: Backward  # the gradients of the inputs, from dy and the inputs; None for an input that has none
    inputs: dict[str, Draw]

    @property
    def identifier(self) -> str:
        """The name as one of Python: layer_norm."""
        return re.sub(r"\W+", "_", self.name)

    @cached_property
    def source(self) -> str:
        """The source of the backward: without its decorator, and without the faults."""
        text = inspect.getsource(self.backward)
        definition: Any = ast.parse(text).body[0]
        return "\n".join(text.splitlines()[definition.lineno - 1 : definition.body[-2].end_lineno])

    @cached_property
    def code(self) -> str:
        """The backward, after the functions that it calls, as one pastes it below ``import torch``."""
        parts, scope = list[str](), self.backward.__globals__

        def add(source: str) -> None:
            for name in [node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]:
                if inspect.isfunction(one := scope.get(name)) and one.__module__ == self.backward.__module__:
                    add(inspect.getsource(one).rstrip())
            if bare(source) not in parts:
                parts.append(bare(source))

        add(re.sub(r"\Adef \w+", f"def {self.identifier}_backward", self.source))
        return "\n\n\n".join(parts)

    @cached_property
    def faults(self) -> dict[str, Fault]:
        """The faults by name."""
        definition: Any = ast.parse(inspect.getsource(self.backward)).body[0]
        entries = re.split(r"[;\n] *", definition.body[-1].value.value)
        return {fault.name: fault for entry in entries for fault in described(entry, self.source)}

    def arguments(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
        """Random inputs in ``dtype``."""
        generator = torch.Generator().manual_seed(seed)
        return {name: draw(generator, dtype) for name, draw in self.inputs.items()}

    def judged(self, backward: Backward, dtype: torch.dtype, seed: int = 0, **options: Any) -> Report:
        """The report of ``verify`` on a backward of this layer, at inputs drawn from ``seed``."""
        arguments = self.arguments(dtype, seed)
        return check_layer(self.forward, list(arguments.values()), backward, names=list(arguments), **options)

    def check(self, fault: int = 0, dtype: torch.dtype = torch.float64) -> Report:
        """The report on the right backward, or on that with fault 1, 2, …. Raises ValueError for a number beyond."""
        if not 0 <= fault <= len(self.faults):
            raise ValueError(f"{self.name} has the faults 1 to {len(self.faults)}, got {fault}")
        backward = faulty(self, [*self.faults.values()][fault - 1]) if fault else self.backward
        return self.judged(backward, dtype, seconds=60)  # all differences, also on a busy machine

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Whether torch can: it has no linear algebra in 16 bits."""
        try:
            self.forward(*self.arguments(dtype).values())
        except RuntimeError:
            return False
        return True


LAYERS: dict[str, Layer] = {}


def layer(name: str, about: str, forward: Callable[..., Any], /, **inputs: Any) -> Callable[[Backward], Backward]:
    """Enter a backward into ``LAYERS``. The inputs are shapes, or functions of a generator and a dtype."""

    def entered(backward: Backward) -> Backward:
        draws = {key: normal(*kind) if isinstance(kind, tuple) else kind for key, kind in inputs.items()}
        LAYERS[name] = Layer(name, about, forward, backward, draws)
        return backward

    return entered


def described(entry: str, source: str) -> list[Fault]:
    """The fault that an entry of the list describes, or the two that ± stands for."""
    lines = [line.partition("  # ")[0].strip() for line in source.splitlines()]
    if entry.startswith("±"):
        gradient, of, name = entry[1:].strip().partition(" of ")
        gradient = gradient or lines[-1].removeprefix("return ")
        bracketed = gradient if gradient.isidentifier() else f"({gradient})"
        negated, doubled = (lines[-1].replace(gradient, factor + bracketed, 1) for factor in ("-", "2 * "))
        words, course = "2 times what it should be", "the planted * 2 of Ng's course"
        sign = Fault(f"the sign{of and ' of d'}{name} is lost", lines[-1], negated, "sign is wrong")
        return [sign, Fault(f"{'d' + name if of else 'it'} is added twice", lines[-1], doubled, words, course)]
    entry, _, seen_in = entry.partition("  # ")
    entry, _, diagnosis = entry.partition(" | ")
    name, _, change = entry.partition(": ")
    piece, arrow, replacement = change.partition("→")
    if not arrow:
        begin = re.split("(?<=return )|(?<= = )", change)[0]
        piece, replacement = "\n".join(line for line in lines if line.startswith(begin)), change
    return [Fault(name, piece.strip(), replacement.strip(), diagnosis, seen_in)]


def bare(source: str) -> str:
    """The source of a function without its types, and with every name as it is after ``import torch``."""
    first, rest = re.split(r"(?<=:)\n", source, maxsplit=1)
    first = re.sub(r" -> [^:]+:$", ":", re.sub(r": (?:Tensor|int|float|bool)\b", "", first))
    first = re.sub(r" = (?=[^ ]+[,)])", "=", first)
    rest = re.sub(r"(?m)^( +\w+): Tensor =", r"\1 =", rest)
    return re.sub(r"(?<!nn\.)\bfunctional\.", "torch.nn.functional.", f"{first}\n{rest}")


@cache
def faulty(layer: Layer, fault: Fault) -> Backward:
    """The backward with this fault. Raises ValueError if the piece is not in the right one exactly once."""
    if (times := layer.source.count(fault.piece)) != 1:
        raise ValueError(f"{layer.name}, {fault.name}: {fault.piece!r} is there {times} times, wanted once")
    source, scope = layer.source.replace(fault.piece, fault.replacement), dict(layer.backward.__globals__)
    exec(compile(source, f"<{layer.name}, {fault.name}>", "exec"), scope)
    backward: Backward = scope[layer.backward.__name__]
    return backward


# ---- the inputs of a layer ----


def normal(*shape: int, scale: float = 1.0, shift: float | Tensor = 0.0) -> Draw:
    """Normally distributed numbers."""
    return lambda g, dtype: (shift + scale * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)


def positive(*shape: int) -> Draw:
    """Numbers from 0.5 to 2."""
    return lambda g, dtype: (0.5 + 1.5 * torch.rand(shape, generator=g, dtype=torch.float64)).to(dtype)


def indices(high: int, *shape: int) -> Draw:
    """Whole numbers below ``high``."""
    return lambda g, dtype: torch.randint(high, shape, generator=g)


def chosen(share: float, *shape: int) -> Draw:
    """A mask that is true for this share of the entries."""
    return lambda g, dtype: torch.rand(shape, generator=g) < share
