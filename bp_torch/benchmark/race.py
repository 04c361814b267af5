"""The race: first every contender runs one epoch and must end where the first ends; then they are timed in turns.

In turns, because whatever else the machine does then slows all of them alike. The time of an epoch is the median of the
turns. A contender that needs more than two ``TURN``s for an epoch runs only the first part of it in a turn, and its
time is scaled up.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import nan
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from bp_torch.benchmark.scripts import BenchmarkError
from bp_torch.data import Examples, permutation
from bp_torch.network import Network
from bp_torch.training import Config

FLOOR = "floor"
"""The name of the contender that learns nothing."""

TOLERANCE = 1e-3
"""How far from ours a contender may end, relative to how far ours moved: ‖θ − θ_ours‖ / ‖θ_ours − θ_start‖.

Each library adds float32 numbers in its own order: after one epoch that alone makes a difference of 1e-7 to 1e-5. A
learning rate that is wrong by one percent makes one of about 1e-2."""

TURN = 1.0
"""Seconds: an epoch that takes more than twice as long is timed on its first part."""

PROBE = 5  # batches on which the time of a batch is estimated


class UnavailableError(RuntimeError):
    """A contender cannot run on this machine. The message says why."""


class Task(NamedTuple):
    """The work of every contender: to train one network, or K networks."""

    config: Config  # of the network; of K networks, with the sizes and the batches of all
    examples: Examples  # the first training examples of the config's data set
    groups: Sequence[list[Config]] = ()  # of K networks: those that the sweep would train at once; of one: none

    @property
    def members(self) -> list[Config]:
        """The config of each network."""
        return [member for group in self.groups for member in group] or [self.config]

    @property
    def own_order(self) -> bool:
        """Whether each of several networks has a shuffle of its own."""
        return len({member.seed for member in self.members}) > 1

    @property
    def device(self) -> torch.device:
        """Where the contenders run, all but the NumPy one."""
        return self.examples.x.device

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        assert isinstance(self.config.batch_size, int)
        return self.config.batch_size

    def network(self) -> Network:
        """A new network with the initial values, the same for all contenders."""
        return self.config.network(self.device)

    def start(self) -> Tensor:
        """The initial values: (P,), or (K, P)."""
        values = [member.network(self.device).parameters for member in self.members]
        return torch.stack(values) if self.groups else values[0]

    def order(self, epoch: int) -> Tensor:
        """The shuffled indices of one epoch, the same for all contenders: (n,), or (K, n) if each has its own."""
        n, seeds = len(self.examples.labels), [member.seed for member in self.members]
        orders = {seed: permutation(n, seed, epoch, self.device) for seed in seeds}
        return torch.stack([orders[seed] for seed in seeds]) if self.own_order else orders[seeds[0]]


class Contender(NamedTuple):
    """One way to train the networks of a task."""

    epoch: Callable[[Tensor], None]  # makes one step for each batch of the order that it is given
    parameters: Callable[[], Tensor]  # θ, (P,) or (K, P)


Maker = Callable[[Task], Contender]
"""Makes a contender that starts from the initial values. It raises UnavailableError, or an epoch does."""


class Timing(NamedTuple):
    """The measurements of one contender."""

    name: str
    seconds: float | None = None  # for an epoch, the median of the turns; None for a contender that cannot run here
    fraction: float = 1.0  # how much of an epoch was timed in a turn, 1 for all of it
    first_epoch: float | None = None  # its seconds; not one of the turns, for it holds what is compiled and recorded
    difference: float | None = None  # how far from ours it ended, as in TOLERANCE; None for the floor
    note: str = ""  # why it cannot run


class Measurement(NamedTuple):
    """The timings of all contenders at one network and batch size."""

    sizes: tuple[int, ...]
    batch_size: int
    parameters: int
    examples: int
    results: list[Timing]

    def seconds(self, name: str) -> float:
        """An epoch of the contender ``name``, NaN where it cannot run."""
        return next((r.seconds for r in self.results if r.name == name and r.seconds is not None), nan)

    def ratio(self, name: str, other: str) -> float:
        """How many times as long as ``other`` the contender ``name`` takes."""
        return self.seconds(name) / self.seconds(other)

    @property
    def network(self) -> str:
        """The sizes as text: 784-16-16-10."""
        return "-".join(map(str, self.sizes))


def compare(contenders: Mapping[str, Maker], task: Task, rounds: int) -> Measurement:
    """Race the contenders, ours first. Raises BenchmarkError for one that does not end where ours ends."""
    timings, _ = race([(task, contenders)], rounds)
    n, examples = task.network().parameters.numel(), len(task.examples.labels)
    return Measurement(task.config.sizes, task.batch_size, n, examples, list(timings.values()))


def race(
    tasks: Sequence[tuple[Task, Mapping[str, Maker]]], rounds: int, turn: float = TURN
) -> tuple[dict[str, Timing], dict[str, list[float]]]:
    """The timing of every contender of every task, and, of those that can run, the seconds of each turn."""
    timings: dict[str, Timing] = {}
    running: dict[str, Callable[[int], float]] = {}
    for task, contenders in tasks:
        found, able = first_epochs(contenders, task)
        for name, contender in able.items():
            fraction = fraction_per_turn(contender, task, found[name].first_epoch or 0.0, turn)
            found[name] = found[name]._replace(fraction=fraction)
            running[name] = partial(time_epoch, contender, task, fraction=fraction)
        timings |= found
    turns: dict[str, list[float]] = {name: [] for name in running}
    for epoch in range(2, 2 + rounds):
        for name in list(running):
            try:
                turns[name].append(running[name](epoch))
            except UnavailableError as reason:  # as when the compiler of a graph gives up later than in the first epoch
                timings[name] = Timing(name, note=str(reason))
                del running[name], turns[name]
    return timings | {name: timings[name]._replace(seconds=median(turns[name])) for name in turns}, turns


def first_epochs(contenders: Mapping[str, Maker], task: Task) -> tuple[dict[str, Timing], dict[str, Contender]]:
    """Run one epoch of each contender; return the timings, and those that can run. Raises as ``compare``."""
    torch._dynamo.reset()  # or what is compiled would first compare each call with what was compiled for another size
    start, end = task.start(), Tensor()
    timings, running = dict[str, Timing](), dict[str, Contender]()
    for name, make in contenders.items():
        try:
            contender = make(task)
            seconds = time_epoch(contender, task, epoch=1)
        except UnavailableError as reason:
            timings[name] = Timing(name, note=str(reason))
            continue
        if not running:
            end = contender.parameters().clone()
        difference = None if name == FLOOR else distance(contender.parameters(), end, start)
        if difference is not None and not difference <= TOLERANCE:
            text = f"differ from ours by {difference:.1e} of the distance that ours moved; {TOLERANCE:.0e} is allowed"
            raise BenchmarkError(f"{name!r} does not do the same task: after one epoch its parameters {text}")
        timings[name] = Timing(name, first_epoch=seconds, difference=difference)
        running[name] = contender
    return timings, running


def distance(found: Tensor, end: Tensor, start: Tensor) -> float:
    """How far from ours a contender ended, as in TOLERANCE; of K networks, the one that ended farthest."""
    return float(((found - end).norm(dim=-1) / (end - start).norm(dim=-1)).max())


def fraction_per_turn(contender: Contender, task: Task, first_epoch: float, turn: float) -> float:
    """How much of an epoch fits into a turn: all of it, or, if it is long, a whole number of batches."""
    batch = task.batch_size / len(task.examples.labels)
    if first_epoch <= 2 * turn or PROBE * batch >= 1:
        return 1.0
    # the first epoch may have been long only because something was compiled, so a few batches are timed again
    batches = int(turn / (time_epoch(contender, task, 1, PROBE * batch) * batch))
    fraction = max(batches, PROBE) * batch
    return fraction if fraction < 0.5 else 1.0


def time_epoch(contender: Contender, task: Task, epoch: int, fraction: float = 1.0) -> float:
    """Seconds that ``contender`` takes for an epoch: for the shuffle, and for the first ``fraction``, scaled up."""
    synchronize(task.device)
    start = time.perf_counter()
    order = task.order(epoch)
    synchronize(task.device)
    shuffled = time.perf_counter()
    contender.epoch(order[..., : round(fraction * order.shape[-1])])
    synchronize(task.device)
    return shuffled - start + (time.perf_counter() - shuffled) / fraction


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
