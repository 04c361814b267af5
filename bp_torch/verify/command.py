"""``python -m bp_torch verify``: every activation and cost on real digits, or one trained network."""

import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from bp_torch.activations import ACTIVATIONS
from bp_torch.cli import one_line_errors, parse
from bp_torch.costs import COSTS
from bp_torch.data import CLASSES, PIXEL_SCALE, PIXELS, DataError, DatasetName, first_shuffled, load, one_hot
from bp_torch.network import Network
from bp_torch.training import DTypeName, TrainingError, choose_device, open_run, read_config
from bp_torch.verify.backward import check_own
from bp_torch.verify.report import COLUMNS, Report, Row, count, footnotes, short, table


@dataclass(frozen=True)
class Options:
    """What is verified: without --run, networks of every activation, output activation and cost on real digits."""

    run: Path | None = None
    """Folder of a run: verify the network that it trained, on the test examples of its data."""
    depths: tuple[int, ...] = (1, 2, 3, 4)
    """Layers with weights; those between are of 16 neurons. Not for --run."""
    batch_sizes: tuple[int, ...] = (1, 2, 7, 100)
    """Examples in a batch."""
    dtypes: tuple[DTypeName, ...] = ("float32", "float64")
    """Types that the hand-written backward computes in."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps, where the backward and autograd compute."""
    tolerance: float | None = None
    """Relative error that is allowed, and then no more. None: ε^(2/3) of the dtype, and what rounding does."""
    coordinates: int = 1
    """Central differences for each tensor: of the entry that is furthest off, and of others. 0: none."""
    dataset: DatasetName = "mnist"
    """The digits. For --run: those that it was trained on."""
    data_dir: Path | None = None
    """Folder of the data sets. None: data, or that of the run."""
    seed: int = 0
    """Seed of the initial values, and of which examples and entries are tried."""
    verbose: bool = False
    """Print every tensor of every network."""
    json: bool = False
    """Print everything as JSON."""

    def __post_init__(self) -> None:
        """Refuse what cannot be verified."""
        wanted = {"depths": (self.depths, 1), "batch-sizes": (self.batch_sizes, 1)}
        wanted |= {"coordinates": ((self.coordinates,), 0), "seed": ((self.seed,), 0)}
        for flag, (numbers, least) in wanted.items():
            if not numbers or min(numbers) < least:
                raise ValueError(f"--{flag}: wanted {least} or more, got {' '.join(map(str, numbers)) or 'nothing'}")
        if not self.dtypes:
            raise ValueError("--dtypes: wanted at least one")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance: wanted a relative error between 0 and 1, got {self.tolerance}")


class Case(NamedTuple):
    """One network on one batch, and what was found."""

    network: Network
    cost: str
    batch_size: int
    report: Report

    @property
    def group(self) -> str:
        """The headline that it is printed under."""
        return f"{self.cost}, {self.network.output_activation} outputs"

    def cells(self, row: Row) -> list[str]:
        """A row as it is printed, in the order of ``HEADER``."""
        net = self.network
        own = [net.activation, str(net.depth), str(self.batch_size), short(net.dtype)]
        return [row.mark, *own, row.name, *row.cells()]


HEADER = ["", "hidden", "L", "B", "dtype", "", *COLUMNS]
"""L layers, B examples; the tensor needs no headline."""


def main(arguments: list[str]) -> None:
    """Print what is found; exit 1 when anything disagrees."""
    options = parse(
        Options,
        prog="python -m bp_torch verify",
        description="Hold the hand-written backward against autograd and central differences.",
        args=arguments,
    )
    torch.set_num_threads(1)  # small tensors: a second thread only waits
    with one_line_errors(TrainingError, DataError, OSError, ValueError):
        cases = verify(options)
    print(to_json(cases) if options.json else summary(cases, options))
    if not all(case.report.ok for case in cases):
        sys.exit(1)


# ---- what is verified ----


def verify(options: Options) -> list[Case]:
    """Check the backward of every network on every batch size. Raises TrainingError and DataError."""
    device = choose_device(options.device)
    trained_on = read_config(options.run) if options.run else None
    dataset, directory = (trained_on.dataset, trained_on.data_dir) if trained_on else (options.dataset, Path("data"))
    test = load(dataset, options.data_dir or directory, device)[1]
    if (most := max(options.batch_sizes)) > len(test.labels):
        raise TrainingError(f"--batch-sizes: there are {len(test.labels):,} examples, wanted {most:,}")
    examples = first_shuffled(test, most, options.seed)
    todo = list(product(networks(options, device), options.batch_sizes))
    cases = []
    for (network, cost), n in tqdm(todo, unit="network", leave=False, disable=None, delay=2):
        x, y = examples.x[:n].to(network.dtype) * PIXEL_SCALE, one_hot(examples.labels[:n], dtype=network.dtype)
        chosen = {"tolerance": options.tolerance, "coordinates": options.coordinates, "seed": options.seed}
        cases.append(Case(network, cost, n, check_own(network, x, y, cost, **chosen)))
    return cases


def networks(options: Options, device: torch.device) -> list[tuple[Network, str]]:
    """The networks that are verified, with their costs."""
    dtypes = [getattr(torch, name) for name in options.dtypes]
    if options.run is not None:
        config, trained = open_run(options.run, device)
        return [(trained.to(dtype=dtype), config.cost) for dtype in dtypes]

    def fresh(hidden: str, output: str, dtype: torch.dtype, depth: int) -> Network:
        sizes = (PIXELS, *[16] * (depth - 1), CLASSES)
        names = {"activation": hidden, "output_activation": output}
        return Network(sizes, **names, seed=options.seed, dtype=dtype, device=device)

    return [
        (fresh(hidden, output, dtype, depth), cost)
        for (hidden, output, cost), dtype, depth in product(combinations(), dtypes, options.depths)
    ]


def combinations() -> list[tuple[str, str, str]]:
    """Every activation, output activation and cost that go together."""
    return [
        (hidden, output, cost)
        for cost, output, hidden in product(COSTS, ACTIVATIONS, ACTIVATIONS)
        if COSTS[cost].absorbs in (None, output)
    ]


# ---- what is printed ----


def summary(cases: list[Case], options: Options) -> str:
    """What the command prints: of each combination the worst tensor, if any is wrong only those; or everything."""
    pairs = [(case, row) for case in cases for row in case.report.rows]
    wrong = [(case, row) for case, row in pairs if not row.ok]
    shown = pairs
    if not options.verbose:
        alike: dict[tuple[str, str], list[tuple[Case, Row]]] = defaultdict(list)
        for case, row in wrong or pairs:
            alike[case.group, row.name if options.run else case.network.activation].append((case, row))
        shown = [max(several, key=lambda pair: pair[1].badness) for several in alike.values()]
    header, *lines = table(HEADER, [case.cells(row) for case, row in shown])
    printed = [header]
    for group in dict.fromkeys(case.group for case, _ in shown):
        printed += ["", group, *(line for line, (case, _) in zip(lines, shown, strict=True) if case.group == group)]
    rows = [row for _, row in pairs]
    total = f"{count(len(rows), 'gradient')}", f"{count(len(cases), 'network')}"
    bad = sum(not case.report.ok for case in cases)
    verdict = (
        f"{len(wrong):,} of {total[0]} wrong, in {bad:,} of {total[1]}" if wrong else f"{total[0]} of {total[1]} right"
    )
    return "\n".join([*printed, "", *_diagnosis_lines(cases), *_conditions(cases, rows, options), verdict])


def _diagnosis_lines(cases: list[Case]) -> list[str]:
    """Each diagnosis once, with the tensors and the number of networks that it holds for."""
    names: dict[str, set[str]] = defaultdict(set)
    networks = Counter(text for case in cases for text in case.report.diagnoses)
    for case in cases:
        for text, tensors in case.report.diagnoses.items():
            names[text].update(tensors)
    lines = [f"{', '.join(sorted(names[text]))}: {text} ({count(n, 'network')})" for text, n in networks.most_common()]
    if unexplained := sum(not case.report.ok and not case.report.diagnoses for case in cases):
        lines.append(f"no diagnosis for {count(unexplained, 'network')}")
    return [*lines, ""] if lines else []


def _conditions(cases: list[Case], rows: list[Row], options: Options) -> list[str]:
    """What was compared, and how."""
    network = cases[0].network
    sizes = "-".join(map(str, network.sizes)) if options.run else f"{PIXELS}-16-…-{CLASSES}"
    shown = "every tensor" if options.verbose else f"the worst of each {'tensor' if options.run else 'combination'}"
    limits = {short(case.network.dtype): f"{case.report.tolerance:.1e}" for case in cases}
    return [
        f"{shown} of L layers and B examples; sizes {sizes} on {network.device}",
        *footnotes(rows, ", ".join(f"{limit} in {dtype}" for dtype, limit in limits.items())),
        f"=: equal to autograd's bit for bit, as are {sum(row.bitwise_equal for row in rows) / len(rows):.0%} of all",
    ]


def to_json(cases: list[Case]) -> str:
    """Everything that was found, for a program to read."""
    about = [
        {
            "sizes": list(case.network.sizes),
            "activation": case.network.activation,
            "output_activation": case.network.output_activation,
            "cost": case.cost,
            "batch_size": case.batch_size,
            "dtype": short(case.network.dtype),
            "device": str(case.network.device),
        }
        | case.report.to_dict()
        for case in cases
    ]
    return json.dumps({"ok": all(case.report.ok for case in cases), "networks": about}, indent=2)
