"""The reports of the measurements: tables in Markdown, JSON, and a picture."""

import json
import platform
import re
from datetime import date
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bp_torch.benchmark.contenders import IN_MEMORY, NOT_RECORDED, OURS
from bp_torch.benchmark.race import FLOOR, TOLERANCE, TURN, Measurement, Timing
from bp_torch.text import count, number, table

Machine = dict[str, str | int]


def describe_machine(device: torch.device) -> Machine:
    """The date, the hardware and the versions of a measurement."""
    info = Path("/proc/cpuinfo")
    names = (
        re.findall(r"^model name\s*: *(.*\S)", info.read_text(encoding="utf-8"), re.MULTILINE) if info.exists() else []
    )
    return {
        "date": date.today().isoformat(),
        "cpu": (names or [platform.processor() or platform.machine()])[0],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "numpy": np.__version__,
    }


def contender_table(m: Measurement) -> str:
    """A title and one row for each contender."""
    header = ("contender", "ms per epoch", "÷ ours", "÷ floor", "first epoch, s", "difference from ours")
    rows = []
    for r in m.results:
        cells = [f"cannot run here: {r.note}", "", "", "", ""]
        if r.seconds is not None and r.first_epoch is not None:
            time = ("" if r.fraction == 1 else "~") + number(1e3 * r.seconds)
            ratios = [number(m.ratio(r.name, other)) for other in (OURS, FLOOR)]
            cells = [time, *ratios, number(r.first_epoch), "" if r.difference is None else number(r.difference, 1)]
        rows.append([r.name, *cells])
    title = f"{m.network}, batches of {m.batch_size:,}, {m.parameters:,} parameters, {m.examples:,} examples"
    text = f"{title}\n\n{table(header, rows, markdown=True)}"
    if any(r.fraction < 1 for r in m.results):
        text += f"\n\n~ timed on the first part of the epoch, about {TURN:g} s of it, and scaled up"
    return text


def growth_table(measurements: list[Measurement]) -> str:
    """How the time grows with the parameters and the batch, one row for each measurement."""
    rows = [
        {
            "network, batch": f"{m.network}, {m.batch_size:,}",
            "parameters": f"{m.parameters:,}",
            "ours, µs per step": number(1e6 * m.seconds(OURS) / ceil(m.examples / m.batch_size)),
            "ours, µs per example": number(1e6 * m.seconds(OURS) / m.examples),
            "ours, ps per example and parameter": number(1e12 * m.seconds(OURS) / m.examples / m.parameters),
            "ours ÷ floor": number(m.ratio(OURS, FLOOR)),
            "in-memory autograd ÷ ours": number(m.ratio(IN_MEMORY, OURS)),
        }
        for m in measurements
    ]
    return table(list(rows[0]), [list(row.values()) for row in rows], markdown=True)


def networks_table(results: list[dict[str, Any]]) -> str:
    """One row for each contender of many networks at once."""
    header = ("contender", "networks", "ms per epoch and network", "÷ one alone", "difference from ours")
    rows = []
    for result in results:
        cells = [f"cannot run here: {result['note']}", "", ""]
        if result["seconds"] is not None:
            cells = [number(value) for value in (1e3 * result["seconds"], result["ratio"], result["difference"])]
        rows.append([result["name"], str(result["networks"]), *cells])
    return table(header, rows, markdown=True)


def as_json(measurements: list[Measurement], machine: Machine, rounds: int) -> str:
    """Everything that was measured, to be read by a program."""

    def result(m: Measurement, r: Timing) -> dict[str, Any]:
        return r._asdict() | {f"ratio_to_{other}": r.seconds and m.ratio(r.name, other) for other in (OURS, FLOOR)}

    reported = [m._asdict() | {"results": [result(m, r) for r in m.results]} for m in measurements]
    report = {"machine": machine, "rounds": rounds, "tolerance": TOLERANCE, "measurements": reported}
    return json.dumps(report, indent=2)


COLOURS = {OURS: "#0072B2", NOT_RECORDED: "#56B4E9", FLOOR: "#777777"}
"""Okabe and Ito's blues, and grey; people with any kind of colour vision can tell them from the others' orange."""


def draw(measurements: list[Measurement], machine: Machine) -> Figure:
    """A panel for each measurement, in it a dot for each contender, on one logarithmic axis."""
    rows = [sum(r.seconds is not None for r in m.results) for m in measurements]
    figure = Figure(figsize=(9, 0.34 * sum(rows) + 0.7 * len(rows) + 0.8), layout="constrained")
    panels = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    for axes, m in zip(panels, measurements, strict=True):
        draw_panel(axes, m)
    times = [1e3 * r.seconds for m in measurements for r in m.results if r.seconds is not None]
    room = (max(times) / min(times)) ** 0.3  # for the last label, three tenths of what the dots take
    panels[-1].set_xlim(min(times) / 1.5, max(times) * room)
    label = f"milliseconds for an epoch of {measurements[0].examples:,} examples, logarithmic; × is relative to ours"
    panels[-1].set_xlabel(label)
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numpy"))
    threads = count(int(machine["threads"]), "thread")
    about = f"{machine['cpu']}, {threads}, device {machine['device']}, {versions}"
    figure.supxlabel(about, fontsize=8, color="#555555")
    return figure


def draw_panel(axes: Axes, m: Measurement) -> None:
    """The time of an epoch, and beside each dot its ratio to ours. The slowest is at the bottom."""
    times = {r.name: 1e3 * r.seconds for r in m.results if r.seconds is not None}
    names = sorted(times, key=lambda name: -times[name])
    white: dict[str, Any] = {"color": "white", "pad": 1}  # behind the labels, over the grid
    for name in names:
        axes.plot(times[name], name, "o", color=COLOURS.get(name, "#E69F00"), zorder=3)
        label = f"{number(times[name])} ms, {number(m.ratio(name, OURS))}×"
        at = (times[name], name)
        axes.annotate(label, at, (9, 0), textcoords="offset points", va="center", fontsize=9, bbox=white)
    axes.set_xscale("log")
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 3)), major_formatter=StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.margins(y=0.6 / len(names))
    ratio = number(m.ratio(IN_MEMORY, OURS), 2)
    title = f"{m.network}, batches of {m.batch_size:,}: autograd in memory takes {ratio}× our time"
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
