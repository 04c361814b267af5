"""What a sweep found: a table, a picture, and sweep.json."""

import io
import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bp_torch import text
from bp_torch.files import replace_file
from bp_torch.sweep.config import LISTS, Setting, SweepConfig, setting_of, short
from bp_torch.training.config import Config

JSON = "sweep.json"
PICTURE = "accuracy.png"

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which people with any kind of colour vision can tell apart."""


class NetworkResult(NamedTuple):
    """How one network did. ``accuracy`` and ``cost`` are on the test set, after training."""

    member: Config
    accuracy: float
    cost: float
    best: float
    diverged: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        assert self.member.run_name
        return self.member.run_name

    def to_data(self) -> dict[str, Any]:
        """Its row in sweep.json. A network that diverged has no scores."""
        values = {"name": self.name, "seed": self.member.seed}
        values |= {name: getattr(self.member, name) for name in LISTS}
        scores = {
            "test_accuracy": self.accuracy,
            "test_cost": self.cost,
            f"best_{self.member.evaluated_on}_accuracy": self.best,
        }
        values |= {name: None if self.diverged else score for name, score in scores.items()}
        return values | {"diverged_at_step": self.diverged or None}


class SettingRow(NamedTuple):
    """What the seeds of one setting have in common. Means are over those that did not diverge, NaN over none."""

    setting: Setting
    results: list[NetworkResult]

    @property
    def accuracies(self) -> list[float]:
        """Of the networks that did not diverge."""
        return [result.accuracy for result in self.results if not result.diverged]

    def to_data(self) -> dict[str, Any]:
        """Its entry in sweep.json."""
        found = self.accuracies
        return dict(zip(LISTS, self.setting, strict=True)) | {
            "networks": len(self.results),
            "mean": fmean(found) if found else None,
            "standard_deviation": stdev(found) if len(found) > 1 else None,
            "best": max(found, default=None),
            "diverged": len(self.results) - len(found),
        }


def rows(config: SweepConfig, results: list[NetworkResult]) -> list[SettingRow]:
    """The results by setting, in the order of the flags."""
    return [SettingRow(s, [result for result in results if setting_of(result.member) == s]) for s in config.settings]


def best_of(row: SettingRow) -> NetworkResult | None:
    """The network of a setting with the best accuracy, if one did not diverge."""
    finite = [result for result in row.results if not result.diverged]
    return max(finite, key=lambda result: result.accuracy, default=None)


def table(config: SweepConfig, results: list[NetworkResult]) -> str:
    """A row for each setting; below, the networks that diverged, by name."""
    shown = [name for name in LISTS if len(getattr(config, name)) > 1] or [LISTS[0]]
    header = [*(name.replace("_", " ") for name in shown), "networks", "test accuracy", "best", "diverged"]
    lines = []
    for row in rows(config, results):
        data = row.to_data()
        spread = "" if data["standard_deviation"] is None else f" ± {100 * data['standard_deviation']:.2f}"
        lines.append(
            [
                *(short(data[name]) for name in shown),
                str(data["networks"]),
                "–" if data["mean"] is None else f"{100 * data['mean']:.2f}{spread} %",
                "–" if data["best"] is None else f"{100 * data['best']:.2f} %",
                str(data["diverged"]),
            ]
        )
    wrong = [f"{result.name} diverged: its cost is not finite at step {result.diverged:,}" for result in results
             if result.diverged]  # fmt: skip
    about = "± is the standard deviation over the seeds" if config.seeds > 1 else "one seed has no spread: try --seeds"
    return "\n".join([text.table(header, lines), about, *wrong])


def as_json(config: SweepConfig, results: list[NetworkResult]) -> str:
    """Everything that the table and the picture show, to be read by a program."""
    report = {
        "seeds": config.seeds,
        "epochs": config.epochs,
        "settings": [row.to_data() for row in rows(config, results)],
        "networks": [result.to_data() for result in results],
    }
    return json.dumps(report, indent=2) + "\n"


def draw(config: SweepConfig, results: list[NetworkResult]) -> Figure:
    """Accuracy by the learning rate, or else by the first list of numbers with several values.

    Each network is a dot, the means are a line; every combination of the other lists has a colour.
    """
    along = next((n for n, name in enumerate(LISTS[:3]) if len(getattr(config, name)) > 1), 0)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[SettingRow]] = {}
    for row in rows(config, results):
        others = [f"{LISTS[n].replace('_', ' ')} {short(value)}" for n, value in enumerate(row.setting)
                  if n != along and len(getattr(config, LISTS[n])) > 1]  # fmt: skip
        lines.setdefault(", ".join(others), []).append(row)
    for (label, line), colour in zip(lines.items(), cycle(COLOURS), strict=False):
        line = sorted((row for row in line if row.accuracies), key=lambda row: row.setting[along])
        for row in line:
            at = [row.setting[along]] * len(row.accuracies)
            axes.plot(at, [100 * accuracy for accuracy in row.accuracies], "o", color=colour, alpha=0.5, markersize=4)
        means = [100 * fmean(row.accuracies) for row in line]
        axes.plot([row.setting[along] for row in line], means, "-", color=colour, linewidth=2, label=label or "mean")
    name = LISTS[along].replace("_", " ")
    if name == "learning rate":
        axes.set_xscale("log")
    values = getattr(config, LISTS[along])
    axes.set_xticks(values, [short(value) for value in values])
    axes.minorticks_off()
    axes.set(xlabel=name, ylabel="% of the test images right")
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    dot = Line2D([], [], color="#777777", marker="o", linestyle="", markersize=4, label="one network")
    axes.legend(handles=[*axes.get_legend_handles_labels()[0], dot], frameon=False)
    wrong = sum(result.diverged > 0 for result in results)
    seeds = text.count(config.seeds, "seed")
    left_out = (
        f"; {text.count(wrong, 'network')} diverged and {'is' if wrong == 1 else 'are'} left out" if wrong else ""
    )
    title = f"{'-'.join(map(str, config.sizes))}, {text.count(config.epochs, 'epoch')}, {seeds}{left_out}"
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    return figure


def save(config: SweepConfig, results: list[NetworkResult], folder: Path) -> None:
    """Write sweep.json and the picture into the sweep's ``folder``."""
    replace_file(folder / JSON, as_json(config, results).encode())
    png = io.BytesIO()
    draw(config, results).savefig(png, dpi=150)
    replace_file(folder / PICTURE, png.getvalue())


def to_results(members: list[Config], scores: Mapping[str, list[Any]]) -> list[NetworkResult]:
    """The results of a group, from ``scores``: {"accuracy": [...], "cost": [...], "best": [...], "diverged": [...]}."""
    values = zip(*(scores[name] for name in ("accuracy", "cost", "best", "diverged")), strict=True)
    return [NetworkResult(member, *own) for member, own in zip(members, values, strict=True)]
