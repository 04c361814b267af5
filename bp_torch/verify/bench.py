"""``python -m bp_torch verify bench``: what verify and other checkers find of the faults in the bank.

Every checker gets the same backward, with one fault planted, in each dtype; and every backward without a fault. The
others are used as they come: gradcheck, and gradcheck in its fast mode; assert_close at PyTorch's default tolerances
against autograd; and the rule of flash-attention's tests, by which an error may be twice that of PyTorch in the same
dtype, both against float64.
"""

import json
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bp_torch.cli import parse
from bp_torch.text import table
from bp_torch.verify.bank import Bugs, Layer, load
from bp_torch.verify.check import check_layer
from bp_torch.verify.report import Report

DTYPES = ("float64", "float32", "bfloat16")
COLUMNS = ["dtype", "checker", "caught", "false alarms", "diagnosed", "wrongly", "seconds"]


@dataclass(frozen=True)
class Options:
    """What is scored."""

    dtypes: tuple[str, ...] = DTYPES
    """float64, float32, bfloat16, float16."""
    layers: tuple[str, ...] = ()
    """Names of layers in the bank. None: all."""
    rights: int = 0
    """Also check so many random right backwards in each dtype, by verify alone."""
    markdown: bool = False
    """Print the table as in docs/verify.md."""
    missed: bool = False
    """Print the faults that verify does not find, and those that it explains wrongly."""
    json: Path | None = None
    """Write everything to this file. None: no file is written."""

    def __post_init__(self) -> None:
        """Check every field."""
        known = (*DTYPES, "float16")
        if bad := [name for name in self.dtypes if name not in known]:
            raise ValueError(f"--dtypes: wanted {', '.join(known)}, got {' '.join(bad)}")
        if bad := [name for name in self.layers if name not in load()]:
            raise ValueError(f"--layers: the bank has no {', '.join(bad)}; it has {', '.join(load())}")
        if self.rights < 0:
            raise ValueError(f"--rights: wanted 0 or more, got {self.rights}")


@dataclass
class Score:
    """What one checker made of the bank in one dtype."""

    dtype: str
    checker: str
    faults: int = 0
    layers: int = 0
    caught: int = 0
    noise: int = 0
    rightly: int = 0
    wrongly: int = 0
    seconds: float = 0.0
    alarms: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)

    def row(self) -> list[str]:
        """The cells below ``COLUMNS``."""
        named = [f"{self.rightly} of {self.faults}", str(self.wrongly)] if self.checker == "verify" else ["", ""]
        alarms = f"{len(self.alarms)} of {self.layers}"
        caught = f"{self.caught} of {self.faults}"
        return [self.dtype, self.checker, caught, alarms, *named, f"{self.seconds:.0f}"]


@dataclass
class Finding:
    """What a checker says of one backward: whether it passes, and in words what is wrong."""

    passes: bool
    words: str = ""
    noise: bool = False


def main(arguments: list[str]) -> None:
    """Print the scores."""
    options = parse(Options, prog="python -m bp_torch verify bench", description="Score the checkers.", args=arguments)
    torch.set_num_threads(1)
    scores = bench(options)
    bank = load()
    faults = sum(len(layer.faults().said) for layer in bank.values())
    print(f"{len(bank)} layers, {faults} faults, torch {torch.__version__}\n")
    print(table(COLUMNS, [score.row() for score in scores], right=range(2, 7), markdown=options.markdown))
    for score in scores:
        print_details(score, options.missed)
    if options.rights:
        for dtype in options.dtypes:
            alarms = false_alarms(options.rights, dtype)
            print(
                f"{dtype}: {len(alarms)} false alarms over {options.rights} random right backwards", *alarms, sep="\n  "
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(score) for score in scores], indent=2) + "\n")


def print_details(score: Score, missed: bool) -> None:
    """What verify misses, or names wrongly, or calls wrong without a fault."""
    if score.checker != "verify":
        return
    for title, names in (
        ("false alarms", score.alarms),
        ("missed", score.missed if missed else []),
        ("named wrongly", score.misnamed if missed else []),
    ):
        if names:
            print(f"\n{score.dtype}, {title}:", *names, sep="\n  ")
    if score.noise:
        print(f"\n{score.dtype}: {score.noise} of those caught are called NOISE")


def bench(options: Options) -> list[Score]:
    """Every checker on every fault of the chosen layers."""
    layers = [layer for name, layer in load().items() if not options.layers or name in options.layers]
    scores = {(d, c): Score(d, c) for d in options.dtypes for c in CHECKERS if (d, c) not in MEANINGLESS}
    todo = [(layer, d) for d in options.dtypes for layer in layers if layer.computes_in(getattr(torch, d))]
    for layer, dtype in tqdm(todo, unit="layer", leave=False, disable=None, delay=2, file=sys.stderr):
        for checker in CHECKERS:
            if (dtype, checker) in scores:
                add(scores[dtype, checker], layer)
    return list(scores.values())


def add(score: Score, layer: Layer) -> None:
    """One layer, right and with each of its faults, to the score."""
    faults, check, dtype = layer.faults(), CHECKERS[score.checker], getattr(torch, score.dtype)
    start = time.process_time()
    score.layers += 1
    if not check(layer, Bugs(), dtype, 0).passes:
        score.alarms.append(layer.name)
    for name, said in faults.said.items():
        found = check(layer, Bugs(name), dtype, 0)
        score.faults += 1
        score.caught += not found.passes
        score.noise += found.noise
        if found.passes:
            score.missed.append(f"{layer.name}: {name}")
        elif found.words and said and re.search(said, found.words):
            score.rightly += 1
        elif found.words:
            score.wrongly += 1
            score.misnamed.append(f"{layer.name}: {name}: {found.words}")
    score.seconds += time.process_time() - start


# ---- the checkers ----


def by_verify(layer: Layer, bugs: Bugs, dtype: torch.dtype, seed: int) -> Finding:
    """``check_layer``, as it comes."""
    report = reported(layer, bugs, dtype, seed)
    noise = report.verdict == "NOISE"
    said = [*report.diagnoses, *(text for texts in report.problems.values() for text in texts)]
    return Finding(report.ok, " | ".join(said), noise)


def reported(layer: Layer, bugs: Bugs, dtype: torch.dtype, seed: int, **options: Any) -> Report:
    """The report on one backward."""
    arguments = layer.arguments(dtype, seed)

    def backward(dy: Tensor, *given: Any) -> Any:
        return layer.backward(bugs, dy, *given)

    return check_layer(layer.forward, list(arguments.values()), backward, names=list(arguments), **options)


def by_gradcheck(fast: bool) -> Callable[[Layer, Bugs, torch.dtype, int], Finding]:
    """``torch.autograd.gradcheck`` of an autograd.Function with the backward in it."""

    def check(layer: Layer, bugs: Bugs, dtype: torch.dtype, seed: int) -> Finding:
        given = [t.requires_grad_() if is_real(t) else t for t in layer.arguments(dtype, seed).values()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return Finding(torch.autograd.gradcheck(as_function(layer, bugs), given, fast_mode=fast))
            except Exception:  # a wrong gradient, or one that it cannot check
                return Finding(False)

    return check


def as_function(layer: Layer, bugs: Bugs) -> Any:
    """The layer as an autograd.Function."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> Any:
            ctx.save_for_backward(*given)
            return layer.forward(*given).clone()

        @staticmethod
        def backward(ctx: Any, *dys: Any) -> Any:
            found = layer.backward(bugs, dys[0], *ctx.saved_tensors)
            return found

    return Function.apply


def is_real(t: Any) -> bool:
    """Whether a gradient by it exists."""
    return isinstance(t, Tensor) and t.is_floating_point()


def gradients(layer: Layer, bugs: Bugs, dtype: torch.dtype, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The layer's gradients: by hand, by autograd in the same dtype, by autograd in float64."""
    given = list(layer.arguments(dtype, seed).values())
    y = layer.forward(*given)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 99), dtype=torch.float64).to(dtype)
    ours = layer.backward(bugs, dy.clone(), *[t.clone() for t in given])
    several = ours if isinstance(ours, tuple) else (ours,)

    def by_autograd(kind: torch.dtype) -> list[Any]:
        leaves = [t.to(kind).requires_grad_() if is_real(t) else t for t in given]
        real = [t for t in leaves if is_real(t)]
        found = iter(torch.autograd.grad(layer.forward(*leaves), real, dy.to(kind)))
        return [next(found) if is_real(t) else None for t in leaves]

    triples = zip(several, by_autograd(dtype), by_autograd(torch.float64), strict=True)
    return [(g, a, f) for g, a, f in triples if f is not None and g is not None]


def by_assert_close(layer: Layer, bugs: Bugs, dtype: torch.dtype, seed: int) -> Finding:
    """``torch.testing.assert_close`` with autograd, at its default tolerances."""
    try:
        for g, a, _ in gradients(layer, bugs, dtype, seed):
            torch.testing.assert_close(g, a)
    except (AssertionError, RuntimeError):
        return Finding(False)
    return Finding(True)


def by_twice(layer: Layer, bugs: Bugs, dtype: torch.dtype, seed: int) -> Finding:
    """An error of at most twice autograd's own, as flash-attention's tests have it."""
    try:
        found = gradients(layer, bugs, dtype, seed)
        return Finding(all((g - f).abs().max() <= 2 * (a - f).abs().max() for g, a, f in found))
    except RuntimeError:  # a gradient of another shape
        return Finding(False)


CHECKERS = {
    "verify": by_verify,
    "gradcheck": by_gradcheck(False),
    "fast gradcheck": by_gradcheck(True),
    "assert_close": by_assert_close,
    "twice PyTorch's": by_twice,
}
MEANINGLESS = {("float64", "twice PyTorch's")}  # autograd's own error is unknown there


# ---- random right backwards ----


def false_alarms(n: int, dtype: str) -> list[str]:
    """Those of n right backwards at random inputs, of random scales, that verify does not call right."""
    layers, found = [one for one in load().values() if one.computes_in(getattr(torch, dtype))], list[str]()
    for seed in tqdm(range(n), unit="check", leave=False, disable=None, delay=2, file=sys.stderr):
        layer = layers[seed % len(layers)]
        report = reported(layer, Bugs(), getattr(torch, dtype), seed + 1, coordinates=10)
        if not report.ok:
            found.append(f"{layer.name}, seed {seed + 1}: {report.verdict}")
    return found
