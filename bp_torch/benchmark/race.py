"""The race: first every contender runs one epoch and must end where ours ends; then they are timed in turns.

In turns, because whatever else the machine does then slows all of them alike. The time of an epoch is the median of the
turns. A contender that needs more than two ``TURN``s for an epoch runs only the first part of it in a turn, and its
time is scaled up.
"""

import time
from collections.abc import Mapping
from math import nan
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from bp_torch.benchmark.contenders import FLOOR, OURS, Contender, Maker, Task, UnavailableError
from bp_torch.cli import UserError

TOLERANCE = 1e-3
"""How far from ours a contender may end, relative to how far ours moved: ‖θ − θ_ours‖ / ‖θ_ours − θ_start‖.

Each library adds float32 numbers in its own order: after one epoch that alone makes a difference of 1e-7 to 1e-5. A
learning rate that is wrong by one percent makes one of about 1e-2."""

TURN = 1.0
"""Seconds: an epoch that takes more than twice as long is timed on its first part."""

PROBE = 5  # batches on which the time of a batch is estimated


THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Where the libraries of numerics read their number of threads, once, when they are loaded."""


class BenchmarkError(UserError):
    """The contenders cannot be compared. The message says which one, and why."""


class Result(NamedTuple):
    """What was measured of one contender."""

    name: str
    seconds: float | None = None  # for an epoch, the median of the turns; None for a contender that cannot run here
    fraction: float = 1.0  # how much of an epoch was timed in a turn, 1 for all of it
    first_epoch: float | None = None  # its seconds; not one of the turns, for it holds what is compiled and recorded
    difference: float | None = None  # how far from ours it ended, as in TOLERANCE; None for the floor
    note: str = ""  # why it cannot run


class Measurement(NamedTuple):
    """All results for one network and batch size."""

    sizes: tuple[int, ...]
    batch_size: int
    parameters: int
    examples: int
    results: list[Result]

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
    """Run the first epochs, then time every contender ``rounds`` times, each time for one epoch or about a ``TURN``.

    Ours must be the first of the contenders. Raises BenchmarkError for a contender that does not end where ours ends.
    """
    results, running = first_epochs(contenders, task)
    fractions = {
        name: fraction_per_turn(contender, task, results[name].first_epoch or 0.0)
        for name, contender in running.items()
    }
    times: dict[str, list[float]] = {name: [] for name in running}
    for epoch in range(2, 2 + rounds):
        for name, contender in list(running.items()):
            try:
                times[name].append(time_epoch(contender, task, epoch, fractions[name]))
            except UnavailableError as reason:  # as when the compiler of a graph gives up later than in the first epoch
                results[name] = Result(name, note=str(reason))
                del running[name]
    for name in running:
        results[name] = results[name]._replace(seconds=median(times[name]), fraction=fractions[name])
    n, examples = task.network().parameters.numel(), len(task.examples.labels)
    return Measurement(task.config.sizes, task.batch_size, n, examples, list(results.values()))


def first_epochs(contenders: Mapping[str, Maker], task: Task) -> tuple[dict[str, Result], dict[str, Contender]]:
    """Run one epoch of each contender; return the results, and those that can run. Raises as ``compare``."""
    torch._dynamo.reset()  # or what is compiled would first compare each call with what was compiled for another size
    start, end = task.network().parameters, Tensor()
    results, running = {}, {}
    for name, make in contenders.items():
        try:
            contender = make(task)
            seconds = time_epoch(contender, task, epoch=1)
        except UnavailableError as reason:
            results[name] = Result(name, note=str(reason))
            continue
        if name == OURS:
            end = contender.parameters().clone()
        difference = None if name == FLOOR else ((contender.parameters() - end).norm() / (end - start).norm()).item()
        if difference is not None and not difference <= TOLERANCE:
            raise BenchmarkError(
                f"{name!r} does not do the same task: after one epoch its parameters differ from ours by "
                f"{difference:.1e} of the distance that ours moved; {TOLERANCE:.0e} is allowed"
            )
        results[name] = Result(name, first_epoch=seconds, difference=difference)
        running[name] = contender
    return results, running


def fraction_per_turn(contender: Contender, task: Task, first_epoch: float) -> float:
    """How much of an epoch fits into a turn: all of it, or, if it is long, a whole number of batches.

    The first epoch may have been long only because something was compiled, so a few batches are timed again.
    """
    batch = task.batch_size / len(task.examples.labels)
    if first_epoch <= 2 * TURN or PROBE * batch >= 1:
        return 1.0
    batches = int(TURN / (time_epoch(contender, task, 1, PROBE * batch) * batch))
    fraction = max(batches, PROBE) * batch
    return fraction if fraction < 0.5 else 1.0


def time_epoch(contender: Contender, task: Task, epoch: int, fraction: float = 1.0) -> float:
    """Seconds that ``contender`` takes for an epoch: for the shuffle, and for the first ``fraction``, scaled up."""
    synchronize(task.device)
    start = time.perf_counter()
    order = task.order(epoch)
    synchronize(task.device)
    shuffled = time.perf_counter()
    contender.epoch(order[: round(fraction * len(order))])
    synchronize(task.device)
    return shuffled - start + (time.perf_counter() - shuffled) / fraction


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
