"""The work of ``python -m bp_torch verify FILE:NAME …``, and how it tells what was found."""

import contextlib
import json
import sys
from collections.abc import Iterator

import torch

from bp_torch.commands.verify_options import FileOptions
from bp_torch.text import coloured, wrapped
from bp_torch.verify.grid import EXIT_CODES, Grid, Row, check_grid
from bp_torch.verify.process import Died, Process, RaisedError, replacements_undone
from bp_torch.verify.worker import as_functions, load


def tell(candidates: list[str], options: FileOptions) -> int:
    """Print a verdict on each candidate. Returns the exit code of the worst."""
    torch.set_num_threads(1)
    found = [(place, judged(place, options, k)) for k, place in enumerate(candidates)]
    worst = max((grid.verdict for _, grid in found), key=list(EXIT_CODES).index)
    if options.json:
        plain = {"verdict": worst, "exit_code": EXIT_CODES[worst]}
        plain["candidates"] = [{"candidate": place} | grid.to_dict() for place, grid in found]
        print(json.dumps(plain, indent=2))
    else:
        print(coloured("\n\n".join(printed(found, options.verbose))))
    return EXIT_CODES[worst]


def judged(place: str, options: FileOptions, k: int) -> Grid:
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
