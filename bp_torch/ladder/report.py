"""The ladder in the terminal, as a page for docs/, and as a picture: error against year, the paper's and ours."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from bp_torch import text
from bp_torch.files import replace_file
from bp_torch.ladder.results import Measured
from bp_torch.training.config import Config
from bp_torch.training.rows import ROWS, Kind, Row

PAGE, PICTURE = "ladder.md", "ladder.png"

MARKS: dict[Kind, str] = {"best of several": " ᵇ", "best of several epochs": " ᵉ", "on validation data": " ᵛ"}
FOOTNOTES = (
    "ᵇ the best of several runs, at their best epoch on the test set; ᵉ at the best epoch on the test set; ᵛ on "
    "validation data. Ours are not chosen in these ways: they are mean ± standard deviation over the seeds, on the "
    "test set, at the epoch that is best on held-out training examples."
)
NOT_YET = "not run yet"
NUMBERS = ("published, %", "ours, % (seeds)", "minutes each")
COSTS = {"quadratic": "squared error", "binary-cross-entropy": "cross-entropy", "softmax-cross-entropy": "softmax"}
PAPER, OURS = "#D55E00", "#0072B2"


def ours(found: Measured | None) -> str:
    """0.71 ± 0.02 (5)."""
    if found is None:
        return NOT_YET
    spread = "" if found.deviation is None else f" ± {found.deviation:.2f}"
    return f"{found.mean:.2f}{spread} ({len(found.seeds)})"


def network(row: Row) -> str:
    """784-800-10; 784-9×1000-10."""
    first, *hidden, last = Config(recipe=row.name).sizes
    middle = f"{len(hidden)}×{hidden[0]}" if len(hidden) > 5 else "-".join(map(str, hidden))
    return f"{first}-{middle}-{last}"


def summary(row: Row) -> str:
    """The recipe in a few words."""
    config = Config(recipe=row.name)
    parts = [config.activation, COSTS[config.cost], f"{config.epochs} epochs"]
    parts += [config.deform if config.deform != "both" else "affine and elastic"] if config.deformation else []
    parts += [f"weight decay {text.number(config.weight_decay, 1)}"] if config.weight_decay else []
    return ", ".join(parts)


def numbers(row: Row, results: Mapping[str, Measured]) -> list[str]:
    """A cell for each of ``NUMBERS``; the minutes are the mean over the seeds."""
    found = results.get(row.name)
    minutes = text.number(fmean(seed["seconds"] for seed in found.seeds.values()) / 60, 2) if found else ""
    return [f"{row.published:.2f}{MARKS.get(row.kind, '')}", ours(found), minutes]


def listing(results: Mapping[str, Measured]) -> str:
    """For the terminal: under each source its rows, each with a line of numbers and one of its network and recipe."""
    rows = [[row.name, *numbers(row, results)] for row in ROWS]
    header, *lines = text.table(["row", *NUMBERS], rows).splitlines()
    shown = ["Errors on the test set of MNIST.", "", header]
    for source, members in groupby(zip(ROWS, lines, strict=True), lambda pair: pair[0].source):
        shown += ["", text.wrapped(source)]
        for row, line in members:
            shown += [line, text.wrapped(f"{network(row)}, {summary(row)}", "    ")]
    return "\n".join([*shown, "", text.wrapped(footnotes(results))])


def table(results: Mapping[str, Measured]) -> str:
    """For the page: a line for each row, in Markdown."""
    header = ["row", "source", "network", "recipe", *NUMBERS]
    rows = [[f"`{row.name}`", row.group, network(row), summary(row), *numbers(row, results)] for row in ROWS]
    return f"{text.table(header, rows, right={4, 5, 6}, markdown=True)}\n\n{footnotes(results)}"


def footnotes(results: Mapping[str, Measured]) -> str:
    """Below the numbers: the marks, the rows in which ours is worse, and the machines."""
    return FOOTNOTES + above(results) + machines(results)


def above(results: Mapping[str, Measured]) -> str:
    """The rows without a mark whose published error is below our mean, both as shown; nothing without any."""
    pairs = [(row, results[row.name].mean) for row in ROWS if row.name in results and row.kind not in MARKS]
    names = ", ".join(row.name for row, mean in pairs if row.published < round(mean, 2))
    return f" In these rows without a mark, our error is above the published one: {names}." if names else ""


def machines(results: Mapping[str, Measured]) -> str:
    """A sentence about where and when the rows were measured; nothing without results."""
    seeds = [seed for row in ROWS if row.name in results for seed in results[row.name].seeds.values()]
    each = [f"{seed['machine']}, {text.count(seed['threads'], 'thread')}, torch {seed['torch']}" for seed in seeds]
    dates = sorted(seed["date"] for seed in seeds)
    when = " to ".join(dict.fromkeys(dates[:1] + dates[-1:]))
    return f" Measured on {'; '.join(dict.fromkeys(each))}; {when}." if seeds else ""


def draw(results: Mapping[str, Measured]) -> Figure:
    """Error against year on a logarithmic axis; a row that was run has a line from the paper's to ours."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    years: Counter[int] = Counter()
    groups: dict[str, tuple[int, float]] = {}  # year and lowest error
    for row in ROWS:
        x = row.year + 0.28 * years[row.year]
        years[row.year] += 1
        label, fill = ("published, a best or on validation data", "none") if row.kind in MARKS else ("published", PAPER)
        axes.plot(x, row.published, "o", color=PAPER, markerfacecolor=fill, markersize=6, label=label)
        lowest = row.published
        if found := results.get(row.name):
            deviation = found.deviation or 0
            axes.plot([x, x], [row.published, found.mean], color="#BBBBBB", linewidth=1, zorder=0)
            axes.errorbar(x, found.mean, deviation, color=OURS, capsize=2, linewidth=1)
            axes.plot(x, found.mean, "s", color=OURS, markersize=5, label="ours, mean ± standard deviation")
            lowest = min(lowest, found.mean - deviation)
        group = row.group.partition(",")[0]
        groups[group] = row.year, min(lowest, groups.get(group, (0, lowest))[1])
    for group, place in groups.items():
        axes.annotate(group, place, (0, -16), textcoords="offset points", fontsize=8)
    axes.set(xlabel="year (rows of one year side by side)", ylabel="% of the test images wrong")
    axes.set(xticks=sorted(years), yscale="log")
    axes.margins(y=0.12)
    ticks = [tick for tick in (0.3, 0.5, 1, 2, 3, 5, 7, 10, 20, 30, 50) if tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))  # every point has a label
    axes.legend(list(once.values()), list(once), frameon=False)
    axes.set_title("Plain networks on MNIST", loc="left", fontsize=10, fontweight="bold")
    return figure


def digest(results: Mapping[str, Measured]) -> str:
    """A hash of all that the picture shows; it is in the picture's file, under Description."""
    errors = {name: found.errors for name, found in results.items()}
    shown = [[row.name, row.year, row.published, row.kind, errors.get(row.name)] for row in ROWS]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def page(results: Mapping[str, Measured]) -> str:
    """The text of docs/ladder.md, from page.md."""
    template = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    return template.format(table=table(results), sources=sources(), picture=PICTURE)


def sources() -> str:
    """Each source, and below it what we took of it for which rows, in Markdown."""
    blocks = []
    for source, rows in groupby(ROWS, attrgetter("source")):
        notes: dict[str, list[str]] = {}
        for row in rows:
            notes.setdefault(row.note, []).append(f"`{row.name}`")
        blocks.append("\n".join([f"**{source}.**", *(f"- {', '.join(notes[note])}: {note}" for note in notes if note)]))
    return "\n\n".join(blocks)


def write(results: Mapping[str, Measured], folder: Path) -> None:
    """Write page and picture into ``folder``."""
    png = io.BytesIO()
    draw(results).savefig(png, dpi=110, metadata={"Description": digest(results)})
    replace_file(folder / PICTURE, png.getvalue())
    replace_file(folder / PAGE, page(results).encode())
