"""Many networks: the time for each of K, beside one trained alone.

    python -m bp_torch benchmark --networks 16

Two tasks: K learning rates and one seed, so that all networks share their batches; and K seeds, each with a shuffle of
its own. Ours are the groups that the sweep makes. All are timed in turns: whatever else the machine does slows all of
them alike, and the ratio to the network alone is the median of the ratios within a turn.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bp_torch.benchmark.contenders import Contender, Task, UnavailableError, ours
from bp_torch.benchmark.race import TOLERANCE, BenchmarkError, synchronize
from bp_torch.benchmark.report import Machine
from bp_torch.benchmark.with_jax import jax_contender
from bp_torch.data import permutation
from bp_torch.sweep import SweepConfig, new_group
from bp_torch.sweep.plan import groups
from bp_torch.text import number, table
from bp_torch.training import Config

ALONE = "ours, one network alone"


class Several(NamedTuple):
    """What is trained: K networks, on the examples of ``task``, in the groups that the sweep would make."""

    task: Task
    groups: list[list[Config]]

    @property
    def members(self) -> list[Config]:
        """All networks."""
        return [member for group in self.groups for member in group]

    @property
    def own_order(self) -> bool:
        """Whether each network has a shuffle of its own."""
        return len({member.seed for member in self.members}) > 1

    def start(self) -> Tensor:
        """The initial values, (K, P)."""
        return torch.stack([member.network(self.task.device).parameters for member in self.members])

    def order(self, epoch: int) -> Tensor:
        """The indices of an epoch: (n,), or (K, n) where each network has its own."""
        n, device = len(self.task.examples.labels), self.task.device
        orders = {m.seed: permutation(n, m.seed, epoch, device) for m in self.members}
        return torch.stack([orders[m.seed] for m in self.members]) if self.own_order else next(iter(orders.values()))


def of_rates(task: Task, networks: int) -> Several:
    """K learning rates from 0.3 to 3, one seed: at 10, rounding alone grows to a third of the way within an epoch."""
    rates = tuple(round(0.3 * 10 ** (k / max(1, networks - 1)), 4) for k in range(networks))
    return several(task, learning_rate=rates)


def of_seeds(task: Task, networks: int) -> Several:
    """K seeds, one learning rate."""
    return several(task, seeds=networks)


def several(task: Task, **lists: Any) -> Several:
    """The networks of the sweep with the task's sizes and batches."""
    config = SweepConfig(sizes=task.config.sizes, batch_size=task.batch_size, log=False, **lists)
    return Several(task, groups(config, task.device))


def at_once(what: Several) -> Contender:
    """Ours: the groups of the sweep, one after another."""
    task = what.task
    made = [new_group(members, task.examples, task.examples) for members in what.groups]
    for group in made:
        group.step.optimizer.learning_rate = group.learning_rate()

    @torch.inference_mode()
    def epoch(order: Tensor) -> None:
        first = 0
        for group in made:
            part = order[first : first + len(group.members)] if what.own_order else order
            deque(group.step.run(part[0] if part.ndim == 2 and len(part) == 1 else part), maxlen=0)
            first += len(group.members)

    return Contender(epoch, lambda: torch.cat([group.network.parameters for group in made]))


def one_after_another(what: Several) -> Contender:
    """Ours: each network alone."""
    single = [ours(what.task._replace(config=member)) for member in what.members]

    def epoch(order: Tensor) -> None:
        for k, contender in enumerate(single):
            contender.epoch(order[k] if what.own_order else order)

    return Contender(epoch, lambda: torch.stack([contender.parameters() for contender in single]))


def vmapped(what: Several) -> Contender:
    """JAX: ``jit(vmap(scan))``."""
    rates = [member.learning_rate for member in what.members]
    return jax_contender(what.task, what.start(), rates, own_order=what.own_order)


MAKERS: dict[str, Callable[[Several], Contender]] = {
    "ours, at once": at_once,
    "ours, one after another": one_after_another,
    "JAX, jit(vmap(scan))": vmapped,
}


class NetworksResult(NamedTuple):
    """What was measured of one contender."""

    name: str
    networks: int
    seconds: float | None = None  # for an epoch of one network: the median of the turns, by the number of networks
    ratio: float | None = None  # to one network alone, ours: the median of the ratios of each turn
    difference: float | None = None  # as in race.TOLERANCE, from ours
    note: str = ""  # why it cannot run


def race(task: Task, networks: int, rounds: int) -> list[NetworksResult]:
    """Time all contenders in turns. Raises BenchmarkError for one that does not end where ours ends."""
    alone = Several(task, [[task.config]])
    lanes: dict[str, tuple[Several, Contender]] = {}
    results: dict[str, NetworksResult] = {}
    for kind, what in (("one shuffle", of_rates(task, networks)), ("a shuffle each", of_seeds(task, networks))):
        results |= first_epochs({f"{name}, {kind}": make for name, make in MAKERS.items()}, what, lanes)
    singles = {ALONE: one_after_another, "JAX, jit(scan), one network alone": lambda what: jax_contender(what.task)}
    results = first_epochs(singles, alone, lanes) | results
    times: dict[str, list[float]] = {name: [] for name in lanes}
    for epoch in range(2, 2 + rounds):
        for name, (what, contender) in lanes.items():
            times[name].append(time_epoch(what, contender, epoch) / len(what.members))
    for name in lanes:
        ratio = median(own / alone for own, alone in zip(times[name], times[ALONE], strict=True))
        results[name] = results[name]._replace(seconds=median(times[name]), ratio=ratio)
    return list(results.values())


def first_epochs(
    makers: Mapping[str, Callable[[Several], Contender]], what: Several, lanes: dict[str, tuple[Several, Contender]]
) -> dict[str, NetworksResult]:
    """Run an epoch of each contender, compare where it ends, and enter those that can run into ``lanes``."""
    start, end, results = what.start(), Tensor(), {}
    for name, make in makers.items():
        try:
            contender = make(what)
            time_epoch(what, contender, 1)
        except UnavailableError as reason:
            results[name] = NetworksResult(name, len(what.members), note=str(reason))
            continue
        found = contender.parameters().reshape(start.shape)
        if not results:
            end = found.clone()
        difference = ((found - end).norm(dim=-1) / (end - start).norm(dim=-1)).max().item()
        if not difference <= TOLERANCE:
            raise BenchmarkError(f"{name!r} does not do the same task: it ends {difference:.1e} of the way from ours")
        results[name] = NetworksResult(name, len(what.members), difference=difference)
        lanes[name] = what, contender
    return results


def time_epoch(what: Several, contender: Contender, epoch: int) -> float:
    """Seconds that the contender takes for an epoch of all networks, with the shuffles."""
    synchronize(what.task.device)
    begin = time.perf_counter()
    order = what.order(epoch)
    contender.epoch(order)
    synchronize(what.task.device)
    return time.perf_counter() - begin


def networks_table(results: list[NetworksResult]) -> str:
    """One row for each contender."""
    header = ("contender", "networks", "ms per epoch and network", "÷ one alone", "difference from ours")
    lines = []
    for result in results:
        if result.seconds is None or result.ratio is None or result.difference is None:
            lines.append([result.name, str(result.networks), f"cannot run here: {result.note}", "", ""])
            continue
        values = (1e3 * result.seconds, result.ratio, result.difference)
        lines.append([result.name, str(result.networks), *map(partial(number, digits=3), values)])
    return table(header, lines, markdown=True)


def networks_json(results: list[NetworksResult], machine: Machine, rounds: int) -> str:
    """Everything that was measured, to be read by a program."""
    report = {"machine": machine, "rounds": rounds, "results": [result._asdict() for result in results]}
    return json.dumps(report, indent=2)
