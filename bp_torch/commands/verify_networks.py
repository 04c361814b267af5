"""What ``python -m bp_torch verify`` checks, and how it tells what was found."""

from itertools import chain, product
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from bp_torch.activations import ACTIVATIONS
from bp_torch.commands.verify_options import Options as Options
from bp_torch.costs import COSTS
from bp_torch.data import DataError, batch, first_shuffled
from bp_torch.device import choose_device
from bp_torch.kind import Kind
from bp_torch.network import Network
from bp_torch.own_backward import check_own, check_parts
from bp_torch.text import count, folded, table
from bp_torch.training import Config, TrainingError, open_run, read_config
from bp_torch.training.run import load_data
from bp_torch.verify.report import HEADER, Comparison, Report, explanations, grouped, wrapped_lines

DEPTHS = (1, 2, 3, 4)
SATURATED = 4.0  # times the parameters of the deepest networks: most of their sigmoids are then near 0 or 1
COLUMNS = ["", "hidden", "L", "B", "dtype", *HEADER[1:5]]  # L layers, B examples; the first columns of a report
NUMBERS = {COLUMNS.index(name) for name in ("L", "B", "error", "allowed")}


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


# ---- what is checked ----


def verify(options: Options) -> list[Case]:
    """Check the backward of every network with every batch size. Raises TrainingError, DeviceError and DataError."""
    device = choose_device(options.device)
    config = read_config(options.run) if options.run else Config(dataset=options.dataset or "mnist")
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise DataError(f"--data-dir: there is no folder {options.data_dir}, and a check makes none")
    test = load_data(config, device, options.run, options.data_dir)[1]
    if (most := max(options.batch_sizes)) > len(test.labels):
        raise TrainingError(f"--batch-sizes: wanted at most the {len(test.labels):,} examples there are, got {most:,}")
    examples = first_shuffled(test, most, options.seed)
    settings = {"tolerance": options.tolerance, "coordinates": options.coordinates, "seed": options.seed}
    todo, cases = list(product(networks(options, test.kind, device), options.batch_sizes)), []
    for (network, cost), n in tqdm(todo, unit="network", leave=False, disable=None, delay=2):
        x, y = batch(examples, torch.arange(n, device=device), network.dtype)
        y[1::2] = 0.9 * y[1::2] + 0.1 / test.kind.outputs  # every second target is soft
        report = check_own(network, x, y, cost, **settings)
        if n == options.batch_sizes[-1]:
            batches = [batch(examples, torch.arange(n, device=device), network.dtype) for n in options.batch_sizes]
            report += check_parts(network, batches, cost)
        cases.append(Case(network, cost, n, report))
    return cases


def networks(options: Options, kind: Kind, device: torch.device) -> list[tuple[Network, str]]:
    """The networks to check, with their costs, for data of this ``kind``."""
    dtypes = [getattr(torch, name) for name in options.dtypes]
    if options.run is not None:
        config, trained = open_run(options.run, device)
        return [(trained.to(dtype=dtype), config.cost) for dtype in dtypes]
    found, depths = [], options.depths or DEPTHS
    for (hidden, output, cost), dtype, depth in product(combinations(), dtypes, depths):
        sizes, seed = (kind.inputs, *[16] * (depth - 1), kind.outputs), options.seed
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
    sizes = "-".join(map(str, network.sizes)) if options.run else f"{network.sizes[0]}-16-…-{network.sizes[-1]}"
    shown = f"the worst error of each {'gradient' if options.run else 'combination'}; L layers, B examples; "
    limits = {case.report.dtype: f"{case.report.tolerance:.1e} in {case.report.dtype}" for case in cases}
    by_autograd = [c.identical for c in comparisons if c.reference == "autograd"]
    return [
        f"{'' if options.verbose else shown}sizes {sizes} on {network.device}",
        *explanations(comparisons, ", ".join(limits.values())),
        f"identical to autograd bit for bit: {sum(by_autograd) / max(1, len(by_autograd)):.0%}",
    ]
