"""``python -m bp_torch verify FILE:NAME …``: candidates in files, each in a process of its own, against a reference."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import torch

from bp_torch.cli import fail, parse
from bp_torch.flags import Within, check_bounds, flag
from bp_torch.text import count, wrapped
from bp_torch.training.config import SEEDS
from bp_torch.verify.grid import EXIT_CODES, Grid, Row, check_grid
from bp_torch.verify.process import Died, Process, RaisedError, replacements_undone
from bp_torch.verify.worker import as_functions, load


@dataclass(frozen=True)
class Options:
    """The reference, the inputs, and the limits of every candidate."""

    reference: tuple[str, ...] = ()
    """FILE:NAME of the same in plain operations, one for all or one for each. None: reference in the candidate's file,
    which is imported here then."""
    inputs: tuple[str, ...] = ()
    """FILE:NAME of inputs, or of a function of a seed or a shape that draws them. None: make_inputs in the
    reference's file."""
    dtypes: tuple[str, ...] = ("float32",)
    """float64, float32, bfloat16, float16: what inputs of real numbers are brought to."""
    shapes: tuple[str, ...] = ()
    """Numbers that the function of the inputs is called with, such as 4x8 16x129. None: it is called with the seed."""
    strided: bool = False
    """Check with inputs that are not contiguous, too."""
    seconds: Annotated[float, Within(above=0)] = 60.0
    """Time that a candidate has for each check."""
    memory: Annotated[float, Within(above=0)] = 8.0
    """GiB that a candidate may take, beyond what torch takes."""
    tolerance: float | None = None
    """Largest relative error that is allowed. None: that of the dtype."""
    seed: Annotated[int, Within(least=0, most=SEEDS - 1)] = 0
    """Seed of the inputs and of every random choice."""
    verbose: bool = False
    """Print the table of each candidate, and the report of each check that is not RIGHT."""
    json: bool = False
    """Print everything as JSON."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_bounds(self)
        known = ("float64", "float32", "bfloat16", "float16")
        if bad := [name for name in self.dtypes if name not in known]:
            raise ValueError(f"--dtypes: wanted {', '.join(known)}, got {' '.join(bad)}")
        if bad := [shape for shape in self.shapes if not all(n.isdecimal() for n in shape.split("x"))]:
            raise ValueError(f"--shapes: wanted whole numbers with x between them, such as 4x8, got {' '.join(bad)}")
        if not self.dtypes:
            raise ValueError("--dtypes: wanted at least one")


def main(arguments: list[str]) -> None:
    """Print a verdict on each candidate, and exit with the code of the worst (``EXIT_CODES``)."""
    candidates = list(takewhile(lambda word: not word.startswith("-"), arguments))
    rest = arguments[len(candidates) :]
    about = "Check the backward of each candidate in a process of its own."
    options = parse(Options, prog="python -m bp_torch verify FILE:NAME ...", description=about, args=rest)
    for name in ("reference", "inputs"):
        if (n := len(getattr(options, name))) not in (0, 1, len(candidates)):
            each = count(len(candidates), "candidate")
            fail(f"{flag(name)}: wanted one, or one for each of {each}, got {n}", 2)
    for place in (*candidates, *options.reference, *options.inputs):
        path, _, name = place.rpartition(":")
        if not name or not Path(path).is_file():
            fail(f"wanted FILE:NAME, got {place}" + (f": there is no file {path}" if path else ""), 2)
    torch.set_num_threads(1)
    found = [(place, judged(place, options, k)) for k, place in enumerate(candidates)]
    worst = max((grid.verdict for _, grid in found), key=list(EXIT_CODES).index)
    if options.json:
        plain = {"verdict": worst, "exit_code": EXIT_CODES[worst]}
        plain["candidates"] = [{"candidate": place} | grid.to_dict() for place, grid in found]
        print(json.dumps(plain, indent=2))
    else:
        print("\n\n".join(printed(found, options.verbose)))
    sys.exit(EXIT_CODES[worst])


def judged(place: str, options: Options, k: int) -> Grid:
    """The verdict on candidate ``k``. It is imported in its own process first, and what that does happens there."""
    try:
        process = Process(place, seconds=options.seconds, memory=options.memory)
    except Died as death:
        return without_report("DIED", f"the candidate {death}")
    except RaisedError as error:
        return without_report("SETUP", f"the candidate {error}")
    own = (
        options.reference[k % len(options.reference)] if options.reference else place.rpartition(":")[0] + ":reference"
    )
    draw = options.inputs[k % len(options.inputs)] if options.inputs else f"{own.rpartition(':')[0]}:make_inputs"
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes] or [()]
    layouts = ("contiguous", "strided")[: 1 + options.strided]
    with contextlib.closing(process), contextlib.redirect_stdout(sys.stderr):  # stdout is for the verdict
        try:
            with replacements_undone():
                torch.manual_seed(options.seed)
                reference, (make_inputs,) = as_functions(load(own)[:1])[0], load(draw)
        except (Exception, SystemExit) as error:  # an exit at its import is no verdict
            return without_report("SETUP", f"the reference or its inputs: {error!r}")
        return check_grid(
            process,
            make_inputs,
            reference=reference,
            dtypes=options.dtypes,
            shapes=shapes,
            layouts=layouts,
            seed=options.seed,
            tolerance=options.tolerance,
        )


def without_report(verdict: str, words: str) -> Grid:
    """The verdict on a candidate that no check was made of."""
    return Grid([Row("", (), "", verdict, [words], None)])


def printed(found: list[tuple[str, Grid]], verbose: bool) -> Iterator[str]:
    """A line for each candidate if there are several; of one, or if ``verbose``, all that there is."""
    if len(found) > 1:
        why = [wrapped(reason, " " * 7) for _, grid in found for reason in grid.reasons()[:1] or [""]]
        lines = [f"{grid.verdict:7}{place}\n{text}" for (place, grid), text in zip(found, why, strict=True)]
        yield "\n".join(line.rstrip() for line in lines)
    for place, grid in found if verbose or len(found) == 1 else ():
        yield f"{place}\n{grid}"
        yield from (str(row.report) for row in grid.rows if verbose and row.report is not None and not row.report)
