"""The settings of each row of the ladder, a room above this one, from its data: what ``--recipe`` names."""

import tomllib
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from bp_torch.values import CLASSES, PIXELS

Table = dict[str, Any]


@cache
def recipes() -> dict[str, Table]:
    """The fields of Config that each row sets."""
    text = Path(__file__).parents[1].joinpath("ladder", "rows.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    rows = ((source, name, row) for source in table["sources"] for name, row in source["rows"].items())
    return {name: settings(layers(table, source, row)) for source, name, row in rows}


def layers(table: Table, source: Table, row: Table) -> list[Table]:
    """The parts that the source names, the source, the parts that the row names, the row: later ones win."""
    parts = [[table["parts"][part] for part in layer.get("parts", [])] for layer in (source, row)]
    return [*parts[0], source, *parts[1], row]


def settings(layers: list[Table]) -> Table:
    """The fields of Config that these layers of a row set together."""
    fields = dict(chain.from_iterable(layer.get("fields", {}).items() for layer in layers))
    if "hidden" in layers[-1]:
        fields["sizes"] = (PIXELS, *layers[-1]["hidden"], CLASSES)
    return fields
