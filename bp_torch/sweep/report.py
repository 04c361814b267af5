"""The report of a sweep: a table, a picture, and sweep.json, of whose rows the other two are made."""

import io
import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bp_torch import text
from bp_torch.files import replace_file
from bp_torch.sweep.config import LISTS, Setting, SweepConfig, short
from bp_torch.training.config import Config

JSON = "sweep.json"
PICTURE = "accuracy.png"
TROUBLE = "trouble"  # in the results: what is said of a network that has learned nothing
TOLD = 3  # networks that have learned nothing of which the table says why
# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
JsonRow = dict[str, Any]  # a row of sweep.json, about a network or a setting


def network_rows(members: list[Config], scores: Mapping[str, list[Any]]) -> list[JsonRow]:
    """The rows of the networks of a group, from the lists of its state. A network that diverged has no scores."""
    lists = [scores[name] for name in ("accuracy", "cost", "best", "diverged", TROUBLE)]
    rows: list[JsonRow] = []
    for member, accuracy, cost, best, diverged, trouble in zip(members, *lists, strict=True):
        setting = {"name": member.run_name, "seed": member.seed} | {name: getattr(member, name) for name in LISTS}
        found = {"test_accuracy": accuracy, "test_cost": cost, f"best_{member.evaluated_on}_accuracy": best}
        found = dict.fromkeys(found) if diverged else found
        rows.append(setting | found | {"diverged_at_step": diverged or None, TROUBLE: trouble or None})
    return rows


def of_setting(setting: Setting, networks: list[JsonRow]) -> list[JsonRow]:
    """The networks of a setting that did not diverge, best first."""
    own = [row for row in networks if tuple(row[name] for name in LISTS) == setting and not row["diverged_at_step"]]
    return sorted(own, key=lambda row: row["test_accuracy"], reverse=True)


def setting_rows(config: SweepConfig, networks: list[JsonRow]) -> list[JsonRow]:
    """The rows of the settings, in the order of the flags. Means are over the networks that did not diverge."""
    rows = []
    for setting in config.settings:
        found = [row["test_accuracy"] for row in of_setting(setting, networks)]
        spread = {"mean": fmean(found) if found else None, "standard_deviation": stdev(found) if found[1:] else None}
        counts = {"best": max(found, default=None), "diverged": config.seeds - len(found)}
        rows.append(dict(zip(LISTS, setting, strict=True)) | {"networks": config.seeds} | spread | counts)
    return rows


def table(config: SweepConfig, networks: list[JsonRow]) -> str:
    """A row for each setting; below, the networks that diverged, by name."""
    shown = [name for name in LISTS if len(getattr(config, name)) > 1] or [LISTS[0]]
    header = [*(name.replace("_", " ") for name in shown), "networks", f"test {config.measure}", "best", "diverged"]
    lines = []
    for row in setting_rows(config, networks):
        mean, best = ("–" if row[name] is None else f"{100 * row[name]:.2f}" for name in ("mean", "best"))
        spread = "" if row["standard_deviation"] is None else f" ± {100 * row['standard_deviation']:.2f}"
        percent = [cell if cell == "–" else f"{cell} %" for cell in (f"{mean}{spread}", best)]
        lines.append([*(short(row[name]) for name in shown), str(row["networks"]), *percent, str(row["diverged"])])
    steps = {row["name"]: row["diverged_at_step"] for row in networks if row["diverged_at_step"]}
    wrong = [f"{name} diverged: its cost is not finite at step {step:,}" for name, step in steps.items()]
    about = "± is the standard deviation over the seeds" if config.seeds > 1 else "one seed has no spread: try --seeds"
    stuck = [text.wrapped(f"{row['name']}: {row[TROUBLE]}", "  ", "    ") for row in networks if row[TROUBLE]]
    if stuck:
        why = "" if len(stuck) <= TOLD else f"; {TOLD} of them, and the others in {JSON}"
        wrong.append(f"{len(stuck):,} of {text.count(len(networks), 'network')} learned nothing{why}:")
    return "\n".join([text.table(header, lines), about, *wrong, *stuck[:TOLD]])


def draw(config: SweepConfig, networks: list[JsonRow]) -> Figure:
    """Accuracy by the learning rate or another list: a dot for each network, a line and a colour for other lists."""
    varied = [name for name in LISTS if len(getattr(config, name)) > 1]
    along = next((name for name in varied if name != "init"), LISTS[0])
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, dict[float, list[float]]] = {}  # of each line: the accuracies at each value along the axis
    for setting in config.settings:
        values = dict(zip(LISTS, setting, strict=True))
        label = ", ".join(f"{name.replace('_', ' ')} {short(values[name])}" for name in varied if name != along)
        line = lines.setdefault(label, {})
        if found := [100 * row["test_accuracy"] for row in of_setting(setting, networks)]:
            line[values[along]] = found
    for (label, line), colour in zip(lines.items(), cycle(COLOURS), strict=False):
        for value, found in sorted(line.items()):
            axes.plot([value] * len(found), found, "o", color=colour, alpha=0.5, markersize=4)
        means = [fmean(line[value]) for value in sorted(line)]
        axes.plot(sorted(line), means, "-", color=colour, linewidth=2, label=label or "mean")
    if along == "learning_rate":
        axes.set_xscale("log")
    ticks = getattr(config, along)
    axes.set_xticks(ticks, [short(value) for value in ticks])
    axes.minorticks_off()
    axes.set(xlabel=along.replace("_", " "), ylabel="% of the test images right")
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    dot = Line2D([], [], color="#777777", marker="o", linestyle="", markersize=4, label="one network")
    axes.legend(handles=[*axes.get_legend_handles_labels()[0], dot], frameon=False)
    seeds, wrong = text.count(config.seeds, "seed"), sum(row["diverged_at_step"] is not None for row in networks)
    title = f"{'-'.join(map(str, config.sizes))}, {text.count(config.epochs, 'epoch')}, {seeds}"
    if wrong:
        title += f"; {text.count(wrong, 'network')} diverged and {'is' if wrong == 1 else 'are'} left out"
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    return figure


def save(config: SweepConfig, networks: list[JsonRow], folder: Path) -> None:
    """Write sweep.json, all that the table and the picture show, and the picture into the sweep's ``folder``."""
    rows = {"settings": setting_rows(config, networks), "networks": networks}
    content = json.dumps({"seeds": config.seeds, "epochs": config.epochs} | rows, indent=2) + "\n"
    replace_file(folder / JSON, content.encode())
    png = io.BytesIO()
    draw(config, networks).savefig(png, dpi=150)
    replace_file(folder / PICTURE, png.getvalue())
