"""``python -m bp_torch verify``: every activation and cost on real digits, or one trained network."""

import json
import sys
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from tqdm import tqdm

from bp_torch.activations import ACTIVATIONS
from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.commands import verify_bench, verify_file
from bp_torch.costs import COSTS
from bp_torch.data import CLASSES, PIXELS, DataError, DatasetName, batch, first_shuffled, load
from bp_torch.device import choose_device
from bp_torch.flags import Within, check_bounds, flag
from bp_torch.network import Network
from bp_torch.own_backward import check_own, check_parts
from bp_torch.text import count, folded, table
from bp_torch.training import TrainingError, open_run, read_config
from bp_torch.training.config import SEEDS, DTypeName
from bp_torch.verify.report import HEADER, Comparison, Report, explanations, grouped, wrapped_lines

DEPTHS = (1, 2, 3, 4)
SATURATED = 4.0  # times the parameters of the deepest networks: most of their sigmoids are then near 0 or 1
COLUMNS = ["", "hidden", "L", "B", "dtype", *HEADER[1:5]]  # L layers, B examples; the first columns of a report
NUMBERS = {COLUMNS.index(name) for name in ("L", "B", "error", "allowed")}


@dataclass(frozen=True)
class Options:
    """The checks: without --run, of networks of every activation, output activation and cost on real digits."""

    run: Path | None = None
    """Folder of a run: check with its trained network, on the test examples of its data.
    None: check untrained networks of every kind."""
    depths: Annotated[tuple[int, ...] | None, Within(least=1, most=100)] = None
    """Layers with weights; hidden ones have 16 neurons. Not with --run. None: 1 2 3 4."""
    batch_sizes: Annotated[tuple[int, ...], Within(least=1)] = (1, 2, 7, 100)
    """Examples in a batch."""
    dtypes: tuple[DTypeName, ...] = ("float32", "float64")
    """Types in which the hand-written backward computes."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N, for the backward and autograd."""
    tolerance: float | None = None
    """Largest relative error that is allowed. None: ε^(2/3) of the dtype, and more where rounding alone causes it."""
    coordinates: Annotated[int, Within(least=0)] = 1
    """Entries of each tensor for central differences, the one that is furthest off included. 0: none."""
    dataset: DatasetName | None = None
    """Data set. Not with --run, which takes its own. None: mnist."""
    data_dir: Path | None = None
    """Folder of the data sets. None: data, or that of the run."""
    seed: Annotated[int, Within(least=0, most=SEEDS - 1)] = 0
    """Seed of the initial values, the examples and the entries."""
    verbose: bool = False
    """Print every gradient of every network."""
    json: bool = False
    """Print everything as JSON."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_bounds(self)
        for name in ("depths", "batch_sizes", "dtypes"):
            if getattr(self, name) == ():
                raise ValueError(f"{flag(name)}: wanted at least one")
        for name in ("depths", "dataset"):
            if self.run is not None and getattr(self, name) is not None:
                raise ValueError(f"{flag(name)} has no effect with --run, which has its own: leave one of them out")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance: wanted a relative error between 0 and 1, got {self.tolerance}")


class Case(NamedTuple):
    """One network on one batch, and the report of its check."""

    network: Network
    cost: str
    batch_size: int
    report: Report

    @property
    def group(self) -> str:
        """The heading under which it is printed."""
        return f"{self.cost}, {self.network.output_activation} outputs"

    def __str__(self) -> str:
        """The whole table, below the network."""
        network = f"{self.network.activation}, {count(self.network.depth, 'layer')}, {self.report.dtype}"
        heading = f"{self.group}: {network}, {count(self.batch_size, 'example')}"
        return f"{heading}\n{self.report.table(self.report.gradients)}"

    def row(self, c: Comparison) -> list[str]:
        """The cells of one comparison, below ``COLUMNS``."""
        mark, *cells = c.row()[:5]
        sizes = [str(self.network.depth), str(self.batch_size)]
        return [mark, self.network.activation, *sizes, self.report.dtype, *cells]

    def to_dict(self) -> dict[str, Any]:
        """Everything that was found, in plain numbers and words."""
        network = self.network
        about = {"sizes": list(network.sizes), "batch_size": self.batch_size, "activation": network.activation}
        about |= {"output_activation": network.output_activation, "cost": self.cost, "dtype": self.report.dtype}
        return about | {"device": str(network.device)} | self.report.to_dict()


def main(arguments: list[str]) -> None:
    """Print what is found, or with ``bench`` the scores. Exit code 1 if any gradient is wrong."""
    if arguments[:1] == ["bench"]:
        verify_bench.main(arguments[1:])
        return
    if arguments and not arguments[0].startswith("-"):
        verify_file.main(arguments)
        return
    options = parse(
        Options,
        prog="python -m bp_torch verify",
        description="Check this project's hand-written backward against autograd and central differences. With bench: "
        "score the checkers. With FILE:NAME: judge candidates in files.",
        args=arguments,
    )
    torch.set_num_threads(1)  # the tensors are small: a second thread only waits
    with one_line_errors():
        try:
            cases = verify(options)
        except ValueError as error:
            fail(str(error), 1)
    ok = all(case.report.ok for case in cases)
    if options.json:
        print(json.dumps({"ok": ok, "networks": [case.to_dict() for case in cases]}, indent=2))
    else:
        print(summary(cases, options))
    if not ok:
        sys.exit(1)


# ---- what is checked ----


def verify(options: Options) -> list[Case]:
    """Check the backward of every network with every batch size. Raises TrainingError, DeviceError and DataError."""
    device = choose_device(options.device)
    config = read_config(options.run) if options.run else None
    dataset, directory = (config.dataset, config.data_dir) if config else (options.dataset or "mnist", Path("data"))
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise DataError(f"--data-dir: there is no folder {options.data_dir}, and a check makes none")
    test = load(dataset, options.data_dir or directory, device)[1]
    if (most := max(options.batch_sizes)) > len(test.labels):
        raise TrainingError(f"--batch-sizes: wanted at most the {len(test.labels):,} examples there are, got {most:,}")
    examples = first_shuffled(test, most, options.seed)
    settings = {"tolerance": options.tolerance, "coordinates": options.coordinates, "seed": options.seed}
    todo, cases = list(product(networks(options, device), options.batch_sizes)), []
    for (network, cost), n in tqdm(todo, unit="network", leave=False, disable=None, delay=2):
        x, y = batch(examples, torch.arange(n, device=device), network.dtype)
        y[1::2] = 0.9 * y[1::2] + 0.1 / CLASSES  # every second target is soft
        report = check_own(network, x, y, cost, **settings)
        if n == options.batch_sizes[-1]:
            batches = [batch(examples, torch.arange(n, device=device), network.dtype) for n in options.batch_sizes]
            report += check_parts(network, batches, cost)
        cases.append(Case(network, cost, n, report))
    return cases


def networks(options: Options, device: torch.device) -> list[tuple[Network, str]]:
    """The networks to check, with their costs."""
    dtypes = [getattr(torch, name) for name in options.dtypes]
    if options.run is not None:
        config, trained = open_run(options.run, device)
        return [(trained.to(dtype=dtype), config.cost) for dtype in dtypes]
    found, depths = [], options.depths or DEPTHS
    for (hidden, output, cost), dtype, depth in product(combinations(), dtypes, depths):
        sizes, seed = (PIXELS, *[16] * (depth - 1), CLASSES), options.seed
        network = Network(sizes, activation=hidden, output_activation=output, seed=seed, dtype=dtype, device=device)
        for b in network.biases:  # which start at zero, and would hide a mistake there
            b.add_(0.1 * torch.randn(b.shape, generator=torch.Generator().manual_seed(seed)).to(b))
        if depth == max(depths):
            network.parameters.mul_(SATURATED)
        found.append((network, cost))
    return found


def combinations() -> list[tuple[str, str, str]]:
    """Every activation, output activation and cost that can be combined."""
    return [
        (hidden, output, cost)
        for cost, output, hidden in product(COSTS, ACTIVATIONS, ACTIVATIONS)
        if COSTS[cost].absorbs in (None, output)
    ]


# ---- what is printed ----


def summary(cases: list[Case], options: Options) -> str:
    """The comparisons, the diagnoses, how it was compared, and the verdict."""
    printed = "\n\n".join(map(str, cases)) if options.verbose else folded(worst_comparisons(cases, options))
    gradients = count(sum(len(case.report.gradients) for case in cases), "gradient")
    networks, bad = count(len(cases), "network"), sum(not case.report.ok for case in cases)
    verdict = f"{gradients} of {networks} right"
    if bad:
        verdict = f"{sum(len(case.report.wrong) for case in cases):,} of {gradients} wrong, in {bad:,} of {networks}"
    found = [wrapped_lines(lines) for lines in (diagnosis_lines(cases), [*conditions(cases, options), verdict])]
    return "\n\n".join([printed, *(lines for lines in found if lines)])


def worst_comparisons(cases: list[Case], options: Options) -> str:
    """Of each combination, or of each gradient of a trained network, the worst; if any is wrong, only wrong ones."""
    pairs = [(case, c) for case in cases for c in case.report.comparisons]
    pairs = [(case, c) for case, c in pairs if not c.ok] or pairs
    keys = [(case.group, c.gradient if options.run else case.network.activation) for case, c in pairs]
    alike = grouped(zip(keys, pairs, strict=True))
    shown = [max(several, key=lambda pair: pair[1].error_ratio) for several in alike.values()]
    header, *lines = table(COLUMNS, [case.row(c) for case, c in shown], right=NUMBERS).splitlines()
    groups = grouped(zip([case.group for case, _ in shown], lines, strict=True))
    return "\n\n".join([header, *("\n".join([group, *rows]) for group, rows in groups.items())])


def diagnosis_lines(cases: list[Case]) -> list[str]:
    """Each problem and diagnosis once, with the gradients and the number of networks that it holds for."""
    found = grouped(pair for case in cases for pair in case.report.by_words("diagnosis", "problem").items())
    lines = [
        f"{', '.join(sorted(set(chain(*several))))}: {text} ({count(len(several), 'network')})"
        for text, several in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    if unexplained := sum(not case.report.ok and not case.report.diagnoses for case in cases):
        lines.append(f"no diagnosis for {count(unexplained, 'network')}")
    return lines


def conditions(cases: list[Case], options: Options) -> list[str]:
    """The networks, the comparisons, and how they were made."""
    network, comparisons = cases[0].network, [c for case in cases for c in case.report.comparisons]
    sizes = "-".join(map(str, network.sizes)) if options.run else f"{PIXELS}-16-…-{CLASSES}"
    shown = f"the worst error of each {'gradient' if options.run else 'combination'}; L layers, B examples; "
    limits = {case.report.dtype: f"{case.report.tolerance:.1e} in {case.report.dtype}" for case in cases}
    by_autograd = [c.identical for c in comparisons if c.reference == "autograd"]
    return [
        f"{'' if options.verbose else shown}sizes {sizes} on {network.device}",
        *explanations(comparisons, ", ".join(limits.values())),
        f"identical to autograd bit for bit: {sum(by_autograd) / max(1, len(by_autograd)):.0%}",
    ]
