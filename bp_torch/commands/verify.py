"""``python -m bp_torch verify``: every activation and cost on real digits, or one trained network."""

import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import product
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from bp_torch.activations import ACTIVATIONS
from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.costs import COSTS
from bp_torch.data import CLASSES, PIXELS, DataError, DatasetName, batch, first_shuffled, load
from bp_torch.device import choose_device
from bp_torch.network import Network
from bp_torch.own_backward import check_own, check_parts
from bp_torch.text import count, folded, table, wrapped
from bp_torch.training import TrainingError, open_run, read_config
from bp_torch.training.config import SEEDS, DTypeName
from bp_torch.verify import bench
from bp_torch.verify.report import HEADER, Comparison, Report, explanations

DEPTHS = (1, 2, 3, 4)
DEEPEST = 100


@dataclass(frozen=True)
class Options:
    """What is checked: without --run, networks of every activation, output activation and cost on real digits."""

    run: Path | None = None
    """Folder of a run: check with its trained network, on the test examples of its data.
    None: check untrained networks of every kind."""
    depths: tuple[int, ...] | None = None
    """Layers with weights; hidden ones have 16 neurons. Not with --run. None: 1 2 3 4."""
    batch_sizes: tuple[int, ...] = (1, 2, 7, 100)
    """Examples in a batch."""
    dtypes: tuple[DTypeName, ...] = ("float32", "float64")
    """Types in which the hand-written backward computes."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N, for the backward and autograd."""
    tolerance: float | None = None
    """Largest relative error that is allowed. None: ε^(2/3) of the dtype, and more where rounding alone causes it."""
    coordinates: int = 1
    """Entries of each tensor for central differences, the one that is furthest off included. 0: none."""
    dataset: DatasetName | None = None
    """Data set. Not with --run, which takes its own. None: mnist."""
    data_dir: Path | None = None
    """Folder of the data sets. None: data, or that of the run."""
    seed: int = 0
    """Seed of the initial values, the examples and the entries."""
    verbose: bool = False
    """Print every gradient of every network."""
    json: bool = False
    """Print everything as JSON."""

    def __post_init__(self) -> None:
        """Check every field."""
        depths = DEPTHS if self.depths is None else self.depths
        wanted = {"depths": (depths, 1, DEEPEST), "batch-sizes": (self.batch_sizes, 1, inf)}
        wanted |= {"coordinates": ((self.coordinates,), 0, inf), "seed": ((self.seed,), 0, SEEDS - 1)}
        for flag, (numbers, least, most) in wanted.items():
            if not numbers or min(numbers) < least or max(numbers) > most:
                bounds = f"{least} or more" if most == inf else f"{least} to {most:,}"
                raise ValueError(f"--{flag}: wanted {bounds}, got {' '.join(map(str, numbers)) or 'nothing'}")
        for flag, value in (("depths", self.depths), ("dataset", self.dataset)):
            if self.run is not None and value is not None:
                raise ValueError(f"--{flag} has no effect with --run, which has its own: leave one of them out")
        if not self.dtypes:
            raise ValueError("--dtypes: wanted at least one")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance: wanted a relative error between 0 and 1, got {self.tolerance}")


class Case(NamedTuple):
    """One network on one batch, and the report of its check."""

    network: Network
    cost: str
    batch_size: int
    report: Report

    @property
    def dtype(self) -> str:
        """Of the network, without "torch."."""
        return str(self.network.dtype).removeprefix("torch.")

    @property
    def group(self) -> str:
        """The heading under which it is printed."""
        return f"{self.cost}, {self.network.output_activation} outputs"

    def row(self, comparison: Comparison) -> list[str]:
        """The cells of one comparison, below ``COLUMNS``."""
        mark, *cells = comparison.row()[:5]
        return [mark, self.network.activation, str(self.network.depth), str(self.batch_size), self.dtype, *cells]

    def to_dict(self) -> dict[str, Any]:
        """Everything that was found, in plain numbers and words."""
        network = self.network
        names = {"activation": network.activation, "output_activation": network.output_activation, "cost": self.cost}
        about = {"sizes": list(network.sizes), "batch_size": self.batch_size}
        return about | names | {"dtype": self.dtype, "device": str(network.device)} | self.report.to_dict()


SATURATED = 4.0
"""What the parameters of the deepest networks are multiplied by: most of their sigmoids are then near 0 or 1."""

COLUMNS = ["", "hidden", "L", "B", "dtype", *HEADER[1:5]]
"""L layers, B examples; the first columns of a report."""


def main(arguments: list[str]) -> None:
    """Print what is found, or with ``bench`` the scores. Exit code 1 if any gradient is wrong."""
    if arguments[:1] == ["bench"]:
        bench.main(arguments[1:])
        return
    options = parse(
        Options,
        prog="python -m bp_torch verify",
        description="Check the hand-written backward against autograd and central differences.",
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
    """What the command prints: the comparisons, the diagnoses, how it was compared, and the verdict."""
    printed = every_comparison(cases) if options.verbose else worst_comparisons(cases, options)
    gradients = count(sum(len(case.report.gradients) for case in cases), "gradient")
    networks, bad = count(len(cases), "network"), sum(not case.report.ok for case in cases)
    verdict = f"{gradients} of {networks} right"
    if bad:
        verdict = f"{sum(len(case.report.wrong) for case in cases):,} of {gradients} wrong, in {bad:,} of {networks}"
    said = [*diagnosis_lines(cases), *conditions(cases, options), verdict]
    return "\n".join([folded("\n".join(printed)), "", *(wrapped(line, "", "  ") for line in said)])


def every_comparison(cases: list[Case]) -> list[str]:
    """The whole table of each report, below its network."""
    blocks = []
    for case in cases:
        network = f"{case.network.activation}, {count(case.network.depth, 'layer')}, {case.dtype}"
        heading = f"{case.group}: {network}, {count(case.batch_size, 'example')}"
        blocks.append(f"{heading}\n{case.report.table(case.report.gradients)}\n")
    return "\n".join(blocks).splitlines()


def worst_comparisons(cases: list[Case], options: Options) -> list[str]:
    """Of each combination, or of each gradient of a trained network, the worst; if any is wrong, only wrong ones."""
    pairs = [(case, c) for case in cases for c in case.report.comparisons]
    alike: dict[tuple[str, str], list[tuple[Case, Comparison]]] = defaultdict(list)
    for case, c in [(case, c) for case, c in pairs if not c.ok] or pairs:
        alike[case.group, c.gradient if options.run else case.network.activation].append((case, c))
    shown = [max(several, key=lambda pair: pair[1].error_ratio) for several in alike.values()]
    right = {COLUMNS.index(name) for name in ("L", "B", "error", "allowed")}
    header, *lines = table(COLUMNS, [case.row(c) for case, c in shown], right=right).splitlines()
    printed = [header]
    for group in dict.fromkeys(case.group for case, _ in shown):
        printed += ["", group, *(line for line, (case, _) in zip(lines, shown, strict=True) if case.group == group)]
    return printed


def diagnosis_lines(cases: list[Case]) -> list[str]:
    """Each problem and diagnosis once, with the gradients and the number of networks that it holds for."""
    names: dict[str, set[str]] = defaultdict(set)
    networks: Counter[str] = Counter()
    for case in cases:
        found = {text: set(gradients) for text, gradients in case.report.diagnoses.items()}
        for gradient, problems in case.report.problems.items():
            for problem in problems:
                found.setdefault(problem, set()).add(gradient)
        networks.update(list(found))
        for text, gradients in found.items():
            names[text] |= gradients
    lines = [f"{', '.join(sorted(names[text]))}: {text} ({count(n, 'network')})" for text, n in networks.most_common()]
    if unexplained := sum(not case.report.ok and not case.report.diagnoses for case in cases):
        lines.append(f"no diagnosis for {count(unexplained, 'network')}")
    return [*lines, ""] if lines else []


def conditions(cases: list[Case], options: Options) -> list[str]:
    """What was compared, and how."""
    network, comparisons = cases[0].network, [c for case in cases for c in case.report.comparisons]
    sizes = "-".join(map(str, network.sizes)) if options.run else f"{PIXELS}-16-…-{CLASSES}"
    shown = f"the worst error of each {'gradient' if options.run else 'combination'}; L layers, B examples; "
    limits = {case.dtype: f"{case.report.tolerance:.1e} in {case.dtype}" for case in cases}
    by_autograd = [c.identical for c in comparisons if c.reference == "autograd"]
    return [
        f"{'' if options.verbose else shown}sizes {sizes} on {network.device}",
        *explanations(comparisons, ", ".join(limits.values())),
        f"identical to autograd bit for bit: {sum(by_autograd) / max(1, len(by_autograd)):.0%}",
    ]
