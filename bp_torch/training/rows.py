"""The rows of the ladder, a room above, read from its rows.toml: published results, and our recipe for each."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from bp_torch.values import CLASSES, PIXELS

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


def read_rows(text: str) -> Iterator[Row]:
    """Every row of the table: its source, the parts named by the source, the parts named by the row, the row itself."""
    table = tomllib.loads(text)
    for source in table["sources"]:
        for name, row in source["rows"].items():
            parts = [[table["parts"][part] for part in layer.get("parts", [])] for layer in (source, row)]
            layers = [*parts[0], source, *parts[1], row]
            fields = dict(chain.from_iterable(layer.get("fields", {}).items() for layer in layers))
            if "hidden" in row:
                fields["sizes"] = (PIXELS, *row["hidden"], CLASSES)
            note = " ".join(layer["note"] for layer in layers if "note" in layer)
            about = {"kind": "one network", "seeds": Row.seeds} | source | row
            about |= {"name": name, "fields": fields, "note": note}
            yield Row(**{key: about[key] for key in Row.__annotations__})


ROWS = tuple(read_rows(Path(__file__).parents[1].joinpath("ladder", "rows.toml").read_text(encoding="utf-8")))


def find(name: str) -> Row:
    """The row of this name. Raises ValueError, with the names there are."""
    if found := [row for row in ROWS if row.name == name]:
        return found[0]
    raise ValueError(f"no row {name!r} in the ladder: choose from {', '.join(row.name for row in ROWS)}")
