"""The ladder in the terminal, as a page for docs/, and as a picture: error against year, the paper's and ours."""

import hashlib
import io
import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from bp_torch import text
from bp_torch.files import replace_file
from bp_torch.ladder.results import Measured
from bp_torch.ladder.rows import ROWS, Kind, Row

PAGE, PICTURE = "ladder.md", "ladder.png"

MARKS: dict[Kind, str] = {
    "one network": "",
    "chosen by validation": "",
    "best of several": " ᵇ",
    "best of several epochs": " ᵉ",
    "on validation data": " ᵛ",
}
FOOTNOTES = (
    "ᵇ the best of several runs, at their best epoch on the test set; ᵉ at the best epoch on the test set; ᵛ on "
    "validation data. Ours are chosen in none of these ways: mean ± standard deviation over the seeds, on the test "
    "set, at the epoch chosen on held-out training examples."
)
NOT_YET = "not run yet"
NUMBERS = ("published, %", "ours, % (seeds)", "minutes each")
PAPER, OURS = "#D55E00", "#0072B2"


def ours(found: Measured | None) -> str:
    """0.71 ± 0.02 (5)."""
    if found is None:
        return NOT_YET
    spread = "" if found.deviation is None else f" ± {found.deviation:.2f}"
    return f"{found.mean:.2f}{spread} ({len(found.seeds)})"


def network(row: Row) -> str:
    """784-800-10; 784-9×1000-10."""
    first, *hidden, last = row.config().sizes
    middle = f"{len(hidden)}×{hidden[0]}" if len(hidden) > 5 else "-".join(map(str, hidden))
    return f"{first}-{middle}-{last}"


def recipe(row: Row) -> str:
    """The recipe in a few words."""
    config = row.config()
    costs = {"quadratic": "squared error", "binary-cross-entropy": "cross-entropy", "softmax-cross-entropy": "softmax"}
    parts = [config.activation, costs[config.cost], f"{config.epochs} epochs"]
    parts += [config.deform if config.deform != "both" else "affine and elastic"] if config.deformation else []
    parts += [f"weight decay {text.number(config.weight_decay, 1)}"] if config.weight_decay else []
    return ", ".join(parts)


def numbers(row: Row, results: Mapping[str, Measured]) -> list[str]:
    """A cell for each of ``NUMBERS``; the minutes are those of a seed."""
    found = results.get(row.name)
    minutes = "" if found is None else text.number(found.seconds / 60, 2)
    return [f"{row.published:.2f}{MARKS[row.kind]}", ours(found), minutes]


def listing(results: Mapping[str, Measured]) -> str:
    """For the terminal: under each source its rows, each with a line of numbers and one of its network and recipe."""
    rows = [[row.name, *numbers(row, results)] for row in ROWS]
    header, *lines = text.table(["row", *NUMBERS], rows).splitlines()
    shown = ["Errors on the test set of MNIST.", "", header]
    for source, members in groupby(zip(ROWS, lines, strict=True), lambda pair: pair[0].source):
        shown += ["", text.wrapped(source)]
        for row, line in members:
            shown += [line, text.wrapped(f"{network(row)}, {recipe(row)}", "    ")]
    return "\n".join([*shown, "", text.wrapped(footnotes(results))])


def table(results: Mapping[str, Measured]) -> str:
    """For the page: a line for each row, in Markdown."""
    header = ["row", "source", "network", "recipe", *NUMBERS]
    rows = [[f"`{row.name}`", row.group, network(row), recipe(row), *numbers(row, results)] for row in ROWS]
    return f"{text.table(header, rows, right={4, 5, 6}, markdown=True)}\n\n{footnotes(results)}"


def footnotes(results: Mapping[str, Measured]) -> str:
    """What stands below the numbers."""
    return FOOTNOTES + above(results) + machines(results)


def above(results: Mapping[str, Measured]) -> str:
    """The rows without a mark whose published error is below our mean, both as shown; nothing without any."""
    names = [
        row.name
        for row in ROWS
        if not MARKS[row.kind] and (found := results.get(row.name)) and row.published < round(found.mean, 2)
    ]
    return (
        f" Of the rows without such a mark, ours is above the published error in {', '.join(names)}." if names else ""
    )


def machines(results: Mapping[str, Measured]) -> str:
    """On what the rows were measured, a sentence; nothing without results."""
    known = [found for row in ROWS if (found := results.get(row.name))]
    where = dict.fromkeys(
        f"{found.some('machine')}, {text.count(int(threads), 'thread')}, torch {found.some('torch')}"
        for found in known
        for threads in found.some("threads").split(", ")
    )
    dates = sorted({str(seed["date"]) for found in known for seed in found.seeds.values()})
    return f" Measured on {'; '.join(where)}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}." if known else ""


def draw(results: Mapping[str, Measured]) -> Figure:
    """Error against year on a logarithmic axis; a row that was run has a line from the paper's to ours."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    years: dict[int, int] = {}
    shown: set[str] = set()

    def dot(x: float, y: float, label: str, **style: object) -> None:
        axes.plot(x, y, label="_" * (label in shown) + label, linestyle="", **style)  # type: ignore[arg-type]
        shown.add(label)

    for row in ROWS:
        x = row.year + 0.28 * years.setdefault(row.year, 0)
        years[row.year] += 1
        best = bool(MARKS[row.kind])
        label = "published, a best or on validation data" if best else "published"
        dot(x, row.published, label, marker="o", color=PAPER, markerfacecolor="none" if best else PAPER, markersize=6)
        if found := results.get(row.name):
            axes.plot([x, x], [row.published, found.mean], color="#BBBBBB", linewidth=1, zorder=0)
            axes.errorbar(x, found.mean, found.deviation or 0, color=OURS, capsize=2, linewidth=1)
            dot(x, found.mean, "ours, mean ± standard deviation", marker="s", color=OURS, markersize=5)
    groups: dict[str, tuple[int, float]] = {}  # year and lowest error
    for row in ROWS:
        group, errors = row.group.partition(",")[0], [row.published]
        if found := results.get(row.name):
            errors.append(found.mean - (found.deviation or 0))
        groups[group] = row.year, min(*errors, groups.get(group, (0, row.published))[1])
    for group, place in groups.items():
        axes.annotate(group, place, (0, -16), textcoords="offset points", fontsize=8)
    axes.set_xticks(sorted(years))
    axes.set_yscale("log")
    axes.margins(y=0.12)
    ticks = [tick for tick in (0.3, 0.5, 1, 2, 3, 5, 7, 10, 20, 30, 50) if tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="year (rows of one year side by side)", ylabel="% of the test images wrong")
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title("Plain networks on MNIST", loc="left", fontsize=10, fontweight="bold")
    return figure


def digest(results: Mapping[str, Measured]) -> str:
    """A hash of all that the picture shows; it is in the picture's file, under Description."""
    shown = [
        [row.name, row.year, row.published, row.kind, results[row.name].errors if row.name in results else None]
        for row in ROWS
    ]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def page(results: Mapping[str, Measured]) -> str:
    """The text of docs/ladder.md."""
    sources: dict[str, list[Row]] = {}
    for row in ROWS:
        sources.setdefault(row.source, []).append(row)
    about = []
    for source, rows in sources.items():
        about.append(f"**{source}.**")
        notes: dict[str, list[str]] = {}
        for row in rows:
            notes.setdefault(row.note, []).append(f"`{row.name}`")
        about += [f"- {', '.join(names)}: {note}" for note, names in notes.items() if note]
        about.append("")
    return PAGE_TEXT.format(table=table(results), sources="\n".join(about).rstrip(), picture=PICTURE)


PAGE_TEXT = """# The ladder

Published results of plain networks on MNIST since 1998, and the error of the same networks trained by this package. A
recipe is the flags of a row; where it differs from the source, the end of this page says so. The page is made from
[`results.json`](../bp_torch/ladder/results.json) by `python -m bp_torch ladder docs`.

![Error on the test set against the year, published and ours]({picture})

{table}

The minutes are those of one seed, evaluation and logging included; seeds that were trained at once have equal shares of
the time. Other work ran on the machine. The rows of 2003, 2005 and 2010 have `--precision auto`, which is bfloat16 on a
device with instructions for it, and float32 on any other; `results.json` says which a seed was trained in.

## Commands

```bash
python -m bp_torch ladder                                # this table
python -m bp_torch ladder run simard-elastic --seeds 3   # train a row; its results go into results.json
python train.py --recipe simard-elastic                  # the same row as a plain run; other flags override it
python -m bp_torch ladder docs                           # write this page and its picture
```

`ladder run` trains each seed in `runs/ladder/ROW/seed-S`. Several seeds of a small network are trained at once, as a
[sweep](sweep.md), if `runs/ladder/ROW` is not there yet; all others one after another. A folder that is finished is
taken as it is, one that is not is resumed; a folder of another recipe is refused. A training that was started by hand
is found there too:

```bash
python train.py --recipe ROW --seed 0 --runs-dir runs/ladder/ROW --run-name seed-0
```

## Sources, and what we took

{sources}
"""


def write(results: Mapping[str, Measured], folder: Path) -> None:
    """Write page and picture into ``folder``."""
    png = io.BytesIO()
    draw(results).savefig(png, dpi=110, metadata={"Description": digest(results)})
    replace_file(folder / PICTURE, png.getvalue())
    replace_file(folder / PAGE, page(results).encode())
