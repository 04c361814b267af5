"""``python -m bp_torch verify bench``: what verify and other checkers find in the bank, and in cases from outside."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bp_torch.cli import fail, parse
from bp_torch.commands import load_torch
from bp_torch.files import check_writable, replace_file
from bp_torch.flags import Within, check_bounds
from bp_torch.text import table

if TYPE_CHECKING:
    from bp_torch.verify.bench import Score

DTYPES = ("float64", "float32", "bfloat16")
COLUMNS = ["dtype", "checker", "caught", "false alarms", "diagnosed", "wrongly", "seconds"]
OUTSIDE = ["checker", "right", "wrong", *COLUMNS[4:]]


@dataclass(frozen=True)
class Options:
    """The faults and dtypes of the score, and its form."""

    dtypes: tuple[str, ...] = DTYPES
    """float64, float32, bfloat16, float16."""
    layers: tuple[str, ...] = ()
    """Names of layers in the bank. None: all, and the cases from outside."""
    rights: Annotated[int, Within(least=0)] = 0
    """Number of random right backwards that verify also checks, in each dtype."""
    markdown: bool = False
    """Print the table as in docs/verify.md."""
    missed: bool = False
    """Print the faults that verify misses or explains wrongly, and the cases with a wrong verdict."""
    json: Path | None = None
    """Write everything to this file. None: no file is written."""

    def __post_init__(self) -> None:
        """Check every field."""
        known = (*DTYPES, "float16")
        if bad := [name for name in self.dtypes if name not in known]:
            raise ValueError(f"--dtypes: wanted {', '.join(known)}, got {' '.join(bad)}")
        check_bounds(self)


def main(arguments: list[str]) -> None:
    """Print the scores."""
    about = "Count the faults that verify and other checkers find in the bank of layers."
    options = parse(Options, prog="python -m bp_torch verify bench", description=about, args=arguments)
    if options.json:
        check_writable(options.json, "--json")
    load_torch()
    import torch

    from bp_torch.verify.bank import LAYERS
    from bp_torch.verify.bench import bench, false_alarms, outside
    from bp_torch.verify.cases import cases

    if bad := [name for name in options.layers if name not in LAYERS]:
        fail(f"--layers: the bank has no {', '.join(bad)}; it has {', '.join(LAYERS)}", 2)
    torch.set_num_threads(1)
    scores = bench(options.dtypes, options.layers)
    faults = sum(len(layer.faults) for layer in LAYERS.values())
    print(f"{len(LAYERS)} layers, {faults} faults, torch {torch.__version__}\n")
    print(table(COLUMNS, [row(score) for score in scores], right=range(2, 7), markdown=options.markdown))
    if not options.layers:
        versions = [version for case in cases() for version in case.versions]
        right = sum(version.right for version in versions)
        print(f"\n{len(cases())} cases from outside, {right} right versions, {len(versions) - right} wrong ones\n")
        scores += (found := outside())
        rows = [[score.checker, *outside_row(score)] for score in found]
        print(table(OUTSIDE, rows, right=range(1, 6), markdown=options.markdown))
    for score in [score for score in scores if score.checker == "verify"]:
        print_details(score, options.missed)
    for dtype in options.dtypes if options.rights else ():
        alarms = false_alarms(options.rights, dtype)
        print(f"{dtype}: {len(alarms)} false alarms over {options.rights} random right backwards", *alarms, sep="\n  ")
    if options.json:
        replace_file(options.json, (json.dumps([asdict(score) for score in scores], indent=2) + "\n").encode())


def row(score: "Score") -> list[str]:
    """The cells below ``COLUMNS``."""
    caught, alarms = f"{score.caught} of {score.faults}", f"{len(score.alarms)} of {score.layers}"
    return [score.dtype, score.checker, caught, alarms, *last_cells(score)]


def outside_row(score: "Score") -> list[str]:
    """The cells below ``OUTSIDE`` but for the first: how many versions have the verdict that is due."""
    right, wrong = score.layers - len(score.alarms), score.caught
    return [f"{right} of {score.layers}", f"{wrong} of {score.faults}", *last_cells(score)]


def last_cells(score: "Score") -> list[str]:
    """The diagnoses, if it is verify's, and the time."""
    named = [f"{score.rightly} of {score.faults}", str(score.wrongly)]
    return [*(named if score.checker == "verify" else ["", ""]), f"{score.seconds:.0f}"]


def print_details(score: "Score", missed: bool) -> None:
    """Print the right layers that verify calls wrong, and if ``missed`` the faults that it misses or names wrongly."""
    asked = {"missed": score.missed, "named wrongly": score.misnamed} if missed else {}
    for title, names in ({"false alarms": score.alarms if score.dtype or missed else []} | asked).items():
        if names:
            print(f"\n{score.dtype or 'cases from outside'}, {title}:", *names, sep="\n  ")
    if score.noise and score.dtype:
        print(f"\n{score.dtype}: {score.noise} of those caught are called NOISE")
