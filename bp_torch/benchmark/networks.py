"""Many networks: the time for each of K, beside one trained alone.

    python -m bp_torch benchmark --networks 16

Two tasks: K learning rates and one seed, so that all networks share their batches; and K seeds, each with a shuffle of
its own. Ours are the groups that the sweep makes. The ratio is the median of those within a turn.
"""

from collections import deque
from collections.abc import Mapping
from functools import partial
from math import inf
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bp_torch.benchmark.contenders import ours
from bp_torch.benchmark.race import Contender, Maker, Task, race
from bp_torch.benchmark.with_jax import jax_contender
from bp_torch.sweep.config import SweepConfig
from bp_torch.sweep.group import new_group
from bp_torch.sweep.plan import groups

ALONE = "ours, one network alone"


def tasks_of_many(task: Task, networks: int) -> dict[str, Task]:
    """The tasks of a sweep with the sizes and batches of ``task``: K rates and one seed; K seeds and one rate."""
    # from 0.3 to 3: at a rate of 10, rounding alone grows to a third of the way within an epoch
    rates = tuple(round(0.3 * 10 ** (k / max(1, networks - 1)), 4) for k in range(networks))
    sweep = partial(SweepConfig, sizes=task.config.sizes, batch_size=task.batch_size, log=False)
    sweeps = {"one shuffle": sweep(learning_rate=rates), "a shuffle each": sweep(seeds=networks)}
    return {kind: task._replace(groups=groups(config, task.device)) for kind, config in sweeps.items()}


def at_once(task: Task) -> Contender:
    """Ours: the groups of the sweep, one after another."""
    made = [new_group(members, task.examples, task.examples) for members in task.groups]
    for group in made:
        group.step.optimizer.learning_rate = group.learning_rate()

    @torch.inference_mode()
    def epoch(order: Tensor) -> None:
        first = 0
        for group in made:
            part = order[first : first + len(group.members)] if task.own_order else order
            deque(group.step.run(part[0] if part.ndim == 2 and len(part) == 1 else part), maxlen=0)
            first += len(group.members)

    return Contender(epoch, lambda: torch.cat([group.network.parameters for group in made]))


def one_after_another(task: Task) -> Contender:
    """Ours: each network alone."""
    single = [ours(task._replace(config=member, groups=())) for member in task.members]

    def epoch(order: Tensor) -> None:
        for k, contender in enumerate(single):
            contender.epoch(order[k] if task.own_order else order)

    return Contender(epoch, lambda: torch.stack([contender.parameters() for contender in single]))


MAKERS: dict[str, Maker] = {
    "ours, at once": at_once,
    "ours, one after another": one_after_another,
    "JAX, jit(vmap(scan))": jax_contender,
}


def compare_networks(task: Task, networks: int, rounds: int) -> list[dict[str, Any]]:
    """Time all contenders in turns: the seconds for an epoch of one network, and the ratio to one network alone."""
    alone: dict[str, Maker] = {ALONE: ours, "JAX, jit(scan), one network alone": jax_contender}
    tasks: list[tuple[Task, Mapping[str, Maker]]] = [(task, alone)]
    for kind, many in tasks_of_many(task, networks).items():
        tasks.append((many, {f"{name}, {kind}": make for name, make in MAKERS.items()}))
    timings, turns = race(tasks, rounds, turn=inf)
    results = []
    for name, k in [(name, len(each.members)) for each, contenders in tasks for name in contenders]:
        result = {"name": name, "networks": k, "seconds": None, "ratio": None}
        if name in turns:
            ratios = [own / k / single for own, single in zip(turns[name], turns[ALONE], strict=True)]
            result |= {"seconds": median(turns[name]) / k, "ratio": median(ratios)}
        results.append(result | {"difference": timings[name].difference, "note": timings[name].note})
    return results
