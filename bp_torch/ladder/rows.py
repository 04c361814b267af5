"""The rows of the ladder, read from rows.toml: published results, and the recipe with which we train each."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bp_torch.training.config import Config
from bp_torch.training.recipes import layers, settings

COMMAND = "python -m bp_torch ladder"

Kind = Literal["one network", "best of several", "best of several epochs", "on validation data", "chosen by validation"]
"""What kind of number the published one is. ``one network``: the source says no more."""


@dataclass(frozen=True)
class Row:
    """A published result, and our recipe for it."""

    name: str
    group: str  # the source in a word or two
    year: int
    source: str
    published: float  # the error on the test set, in %
    kind: Kind
    fields: dict[str, Any]  # those of Config
    note: str = ""  # what the source does not say, or what we do otherwise
    seeds: int = 5

    def config(self, **changes: Any) -> Config:
        """The config of a run of this row, with ``changes``."""
        return Config(**self.fields | {"recipe": self.name} | changes)


def read_rows(text: str) -> Iterator[Row]:
    """Every row of the table: its source, the parts named by the source, the parts named by the row, the row itself."""
    table = tomllib.loads(text)
    for source in table["sources"]:
        for name, row in source["rows"].items():
            found = layers(table, source, row)
            note = " ".join(layer["note"] for layer in found if "note" in layer)
            about = {"kind": "one network", "seeds": Row.seeds} | source | row
            about |= {"name": name, "fields": settings(found), "note": note}
            yield Row(**{key: about[key] for key in Row.__annotations__})


ROWS = tuple(read_rows(Path(__file__).with_name("rows.toml").read_text(encoding="utf-8")))


def find(name: str) -> Row:
    """The row of this name. Raises ValueError, with the names there are."""
    if found := [row for row in ROWS if row.name == name]:
        return found[0]
    raise ValueError(f"no row {name!r} in the ladder: choose from {', '.join(row.name for row in ROWS)}")
