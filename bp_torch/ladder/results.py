"""The results of each row: ``results.json`` beside this file, and one in the folder of the runs of a user."""

import dataclasses
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from bp_torch.files import check_writable, lock_in, read_json, write_json
from bp_torch.flags import flags_of
from bp_torch.training.config import Config

COMMAND = "python -m bp_torch ladder"
FILE = Path(__file__).with_name("results.json")


class Measured(NamedTuple):
    """The results of a row."""

    seeds: dict[int, dict[str, Any]]  # for each seed what ``run.read_result`` returns
    config: dict[str, Any]  # the ``recipe``

    @property
    def errors(self) -> list[float]:
        """The error of each seed on the test set, in %."""
        return [self.seeds[seed]["test_error"] for seed in sorted(self.seeds)]

    @property
    def mean(self) -> float:
        """The mean of the errors."""
        return fmean(self.errors)

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the errors over the seeds; None for one."""
        return stdev(self.errors) if len(self.seeds) > 1 else None


def recipe(config: Config) -> dict[str, Any]:
    """The fields that decide which networks come out, as JSON has them."""
    fields, flags = dataclasses.asdict(config), flags_of(type(config))
    return json.loads(json.dumps({name: fields[name] for name in fields if flags[name].role == "recipe"}))  # type: ignore[no-any-return]


def read(file: Path = FILE) -> dict[str, Measured]:
    """The results of every row that has some. Raises ValueError for a file that holds something else."""
    try:
        rows, defaults = read_json(file) if file.exists() else {}, recipe(Config())  # of flags that came later
        found = {
            name: Measured({int(seed): values for seed, values in row["seeds"].items()}, defaults | row["config"])
            for name, row in rows.items()
        }
        errors = [error for measured in found.values() for error in measured.errors]
        if not all(isinstance(error, int | float) and 0 <= error <= 100 for error in errors):
            raise ValueError("an error is from 0 to 100 %")
        return found
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} holds no results of the ladder: {error!r}") from error


def check(file: Path) -> None:
    """Raise ValueError unless results can be added to ``file``, whose folder is made if it is not there."""
    read(file)
    try:
        check_writable(file, "--json")
        with lock_in(file.parent, f".{file.name}.lock"):
            pass
    except OSError as error:
        raise ValueError(str(error)) from error


def add(name: str, measured: Measured, file: Path = FILE) -> Measured:
    """Add seeds to the results of a row; those of another config are dropped. Returns all that the row then has."""
    with lock_in(file.parent, f".{file.name}.lock"):  # another process may add to it at the same time
        return _add(name, measured, file)


def _add(name: str, measured: Measured, file: Path) -> Measured:
    rows = read(file)
    if name in rows and rows[name].config == recipe(Config()) | measured.config:
        measured = measured._replace(seeds=rows[name].seeds | measured.seeds)
    rows[name] = measured
    data = {
        row: {"config": found.config, "seeds": {str(seed): found.seeds[seed] for seed in sorted(found.seeds)}}
        for row, found in sorted(rows.items())
    }
    write_json(file, data)
    return measured
