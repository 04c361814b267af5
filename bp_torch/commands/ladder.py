"""``python -m bp_torch ladder``, ``ladder run ROW`` and ``ladder docs``: flags in, a line for each error."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.commands import load_torch
from bp_torch.flags import Within, check_bounds
from bp_torch.ladder import results
from bp_torch.ladder.results import COMMAND
from bp_torch.training.config import SEEDS, Config
from bp_torch.training.rows import find


@dataclass(frozen=True)
class Options:
    """The flags of ``ladder``, which prints the table."""

    json: Path | None = None
    """File of the results. None: those of the project."""


@dataclass(frozen=True)
class Run(Options):
    """The flags of ``ladder run``. Raises ValueError for a seed that cannot be."""

    json: Path = Path("runs/ladder") / results.FILE.name
    """File to which the results are added; python -m bp_torch ladder --json FILE shows them."""
    seeds: Annotated[int | None, Within(least=1)] = None
    """Number of networks: their seeds are --first-seed, --first-seed + 1, … None: 5, or 3 for a large row."""
    first_seed: int = 0
    """The first seed."""
    threads: int | None = None
    """CPU threads. None: one for a small network, else torch's default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data_dir: Path = Path("data")
    """Folder of the data sets."""
    runs_dir: Path = Path("runs/ladder")
    """Folder of the runs, with a folder for each row in it."""

    def __post_init__(self) -> None:
        """Check the seeds."""
        check_bounds(self)
        if not 0 <= self.first_seed <= SEEDS - (self.seeds or 1):
            raise ValueError(f"--first-seed: wanted 0 or more, all seeds below {SEEDS:,}, got {self.first_seed}")


@dataclass(frozen=True)
class Docs(Options):
    """The flags of ``ladder docs``."""

    out: Path = Path("docs")
    """Folder of ladder.md and ladder.png."""


def main(arguments: list[str]) -> None:
    """Print, train or write. Exit codes: 1 trouble, 2 bad arguments, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM."""
    name, *rest = arguments or [""]
    with one_line_errors():
        try:
            if name == "run":
                train_row(rest)
            elif name == "docs":
                docs = parse(Docs, prog=f"{COMMAND} docs", description="Write docs/ladder.md.", args=rest)
                from bp_torch.ladder.report import PAGE, PICTURE, write

                write(results.read(docs.json or results.FILE), docs.out)
                print(f"saved {docs.out / PAGE} and {docs.out / PICTURE}")
            elif name and not name.startswith("-"):
                fail(f"{COMMAND}: wanted run ROW, docs or nothing, got {name!r}", 2)
            else:
                about = "Published results of plain networks and ours, as a table."
                about += " See also: ladder run ROW, ladder docs."
                options = parse(Options, prog=COMMAND, description=about, args=arguments)
                from bp_torch.ladder.report import listing

                print(listing(results.read(options.json or results.FILE)))
        except ValueError as error:
            fail(str(error), 2)


def train_row(arguments: list[str]) -> None:
    """``ladder run ROW``. Raises ValueError for a row that is not there, and what ``run_row`` raises."""
    read = partial(parse, Run, prog=f"{COMMAND} run ROW", description="Train a row.")
    if {"--help", "-h"} & set(arguments):
        read(args=["--help"])
    if not arguments or arguments[0].startswith("-"):
        fail(f"{COMMAND} run: wanted the name of a row first, got {arguments[0] if arguments else 'none'}", 2)
    row, options = find(arguments[0]), read(args=arguments[1:])
    options = replace(options, seeds=options.seeds or row.seeds)
    results.check(options.json)  # before the training
    fields = {name: getattr(options, name) for name in ("threads", "device", "data_dir", "runs_dir")}
    seeds = range(options.first_seed, options.first_seed + (options.seeds or 1))
    config = Config(recipe=row.name, **fields)
    load_torch(options.threads)
    from bp_torch.ladder.report import ours
    from bp_torch.ladder.run import run_row
    from bp_torch.training.interruption import Stopped

    try:
        measured = run_row(row, config, seeds, options.json)
    except Stopped as stopped:
        fail(f"{stopped}, or start this command again", stopped.code)
    print(f"{row.name}: published {row.published:.2f} % ({row.kind}), ours {ours(measured)} %")
