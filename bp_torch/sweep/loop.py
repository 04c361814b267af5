"""The sweep: its folder, its groups one after another, and what they found.

The steps are those of training/loop.py. A group has a checkpoint of its own, in ``groups/1``, ``groups/2``, … of the
sweep's folder, until its results are there. Of several processes, each trains every so-manieth group, and they tell
each other only the folder's name; the one that ends last reports.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

from bp_torch.checkpoint import LAST, LOCK, CheckpointError, held, make_folder, remove_unfinished_folders
from bp_torch.data import Examples
from bp_torch.device import choose_device, set_precision, set_threads
from bp_torch.distributed import World, joined, local_device
from bp_torch.files import remove_unfinished, replace_file
from bp_torch.sweep import report
from bp_torch.sweep.config import SweepConfig
from bp_torch.sweep.group import Curves, Group, new_group
from bp_torch.sweep.members import save_member
from bp_torch.sweep.plan import groups
from bp_torch.text import count
from bp_torch.training.config import Config
from bp_torch.training.interruption import Signals, Stopped
from bp_torch.training.loop import ignore, save_checkpoint, stop_if_asked, train_steps
from bp_torch.training.run import default_run_name, load_data

GROUPS = "groups"
PLAN = "groups.json"
"""Which networks are trained at once, by their names: a sweep is resumed with the groups that it began with."""
RESULTS = "results.json"

COMMAND = "python -m bp_torch sweep"


@torch.inference_mode()
def sweep(config: SweepConfig, store: str = "env://") -> Path:
    """Train all networks, print a line for each epoch of each group, and save what ``config`` says. Returns the folder.

    Raises ValueError for more networks than memory, and whatever ``training.train`` raises but WrongGradientError.
    """
    device = choose_device(local_device(config.device))
    plan = groups(config, device)
    set_precision(config.precision, device)
    data = load_data(config, device)
    with ExitStack() as stack:
        with joined(device, store) as world:  # only to agree on the folder
            folder = stack.enter_context(opened(config, plan, world))
        plan = read_plan(config, folder)
        if world.is_first:
            print(introduction(config, plan, device, world, folder))
        train_groups(config, plan, range(world.rank, len(plan), world.size), data, folder)
        if all((folder / GROUPS / str(number) / RESULTS).exists() for number in range(1, len(plan) + 1)):
            with FileLock(folder / GROUPS / LOCK):  # two processes may end at the same time
                finish(config, plan, data, folder)
    return folder


@contextmanager
def opened(config: SweepConfig, plan: list[list[Config]], world: World) -> Iterator[Path]:
    """The sweep's folder, made anew or the one to ``resume``, which no other sweep may use meanwhile."""
    folder = config.resume or config.runs_dir / (config.run_name or default_run_name(config))
    if world.is_first and not config.resume:
        folder = make_folder(folder, config.to_json(), None, numbered=config.run_name is None)
    with held(folder) if world.is_first else nullcontext():
        if world.is_first:
            remove_unfinished_folders(folder)
            remove_unfinished(folder, (report.JSON, report.PICTURE, PLAN))
            if not (folder / PLAN).exists():
                names = [[member.run_name for member in members] for members in plan]
                replace_file(folder / PLAN, json.dumps(names).encode())
        yield Path(world.same(str(folder)))


def read_plan(config: SweepConfig, folder: Path) -> list[list[Config]]:
    """The groups that the sweep in ``folder`` began with. Raises CheckpointError if they are not of ``config``."""
    members = {member.run_name: member for member in config.members()}
    try:
        plan = [[members.pop(name) for name in names] for names in json.loads((folder / PLAN).read_text())]
        if members:
            raise KeyError(f"{len(members)} networks are missing")
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / PLAN} is damaged, or of another sweep") from error
    return plan


def introduction(
    config: SweepConfig, plan: list[list[Config]], device: torch.device, world: World, folder: Path
) -> str:
    """What will be trained, and the header of the lines that follow."""
    networks, precision = sum(map(len, plan)), config.precision_on(device)
    at_once, done = max(map(len, plan)), len(list((folder / GROUPS).glob(f"*/{RESULTS}")))
    return (
        f"{count(networks, 'network')} {'-'.join(map(str, config.sizes))}: {count(len(config.settings), 'setting')}, "
        f"{count(config.seeds, 'seed')}, at most {at_once} at once, on {device.type}"
        + (f", in {world.size} processes" if world.size > 1 else "")
        + (f", --precision {precision}" if precision != "full" else "")
        + (f"\ncontinuing {folder}: {done} of {count(len(plan), 'group')} done" if config.resume else "")
        + f"\n  group   epoch   best {config.evaluated_on}   median   diverged   examples/s   seconds"
    )


def train_groups(
    config: SweepConfig, plan: list[list[Config]], mine: range, data: tuple[Examples, Examples], folder: Path
) -> None:
    """Train the groups of this process that have no results yet. Raises Stopped, with a checkpoint saved."""
    with Signals() as signals, tqdm(unit="step", leave=False, disable=None) as bar:
        for number in mine:
            own = folder / GROUPS / str(number + 1)
            own.mkdir(parents=True, exist_ok=True)
            with held(own):
                remove_unfinished(own, (RESULTS,))
                if not (own / RESULTS).exists():
                    group = open_group(plan[number], data, own)
                    steps = config.epochs * group.steps_per_epoch
                    bar.total = steps * len(mine)
                    bar.update(steps * mine.index(number) + group.state.step - bar.n)
                    try:
                        train_group(group, f"{number + 1:3}/{len(plan)}", signals, bar)
                    except Stopped as stopped:
                        raise Stopped(stopped.code - 128, folder, COMMAND) from None
                    if config.save == "all":
                        for k in range(len(group.members)):
                            save_member(group, k, folder)
                    scores = {name: getattr(group.state, name) for name in group.state.EACH}
                    replace_file(own / RESULTS, json.dumps(scores).encode())
                if config.save != "best":
                    (own / LAST).unlink(missing_ok=True)


def open_group(members: list[Config], data: tuple[Examples, Examples], folder: Path) -> Group:
    """A group as its last checkpoint in ``folder`` has it, or else before its first step."""
    group = new_group(members, *data, folder)
    set_threads(group.config.threads, group.step.batch_size * group.network.parameters.shape[-1])
    if (folder / LAST).exists():
        group.restore()
    return group


def train_group(group: Group, name: str, signals: Signals, bar: "tqdm[Any]") -> None:
    """Train a group to the end: the epochs of training/loop.py, for K networks."""
    config, state = group.config, group.state
    log = (
        Curves(state, min(config.log_every, group.steps_per_epoch), config.cost, config.evaluated_on)
        if config.log
        else None
    )
    while state.epoch <= config.epochs:
        result, rate, seconds = train_steps(group, log, signals, bar)
        pause = partial(stop_if_asked, group, log, result, signals)
        scores = group.evaluate(pause)
        group.record(*scores)
        if log:
            log.scores(*scores, state.step)
        bar.write(epoch_line(group, name, rate * len(group.members), seconds))
        group.end_epoch()
        save_checkpoint(group, log, result)
        if signals.received:
            raise Stopped(signals.received, group.folder)
    if config.epochs == 0:
        group.record(*group.evaluate(ignore))
    if state.reported < config.epochs or config.epochs == 0:
        group.choose(ignore)
        save_checkpoint(group, log, None)


def epoch_line(group: Group, name: str, rate: float, seconds: float) -> str:
    """How the networks of the group do after an epoch."""
    state = group.state
    scores = [score for score, wrong in zip(state.accuracy, state.diverged, strict=True) if not wrong]
    best, middle = (f"{100 * of(scores):7.2f}%" if scores else "       –" for of in (max, median))
    width = len(f"best {group.config.evaluated_on}")
    wrong = len(state.accuracy) - len(scores)
    return f"{name:>7}   {state.epoch:5}   {best:>{width}} {middle}   {wrong:8}   {rate:10,.0f}   {seconds:7.2f}"


def finish(config: SweepConfig, plan: list[list[Config]], data: tuple[Examples, Examples], folder: Path) -> None:
    """Print the table, save picture and JSON, and the best networks if only they are saved."""
    results: list[report.Result] = []
    for number, members in enumerate(plan, 1):
        path = folder / GROUPS / str(number) / RESULTS
        try:
            results += report.to_results(members, json.loads(path.read_text()))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} is damaged: remove it, and its networks are trained again") from error
    if config.save == "best":
        best = [report.best_of(row) for row in report.rows(config, results)]
        save_chosen({result.name for result in best if result}, plan, data, folder)
    report.save(config, results, folder)
    print(f"\n{report.table(config, results)}\nsaved {folder / report.JSON} and {folder / report.PICTURE}")


def save_chosen(names: set[str], plan: list[list[Config]], data: tuple[Examples, Examples], folder: Path) -> None:
    """Save the networks of these ``names``, and remove the checkpoints of their groups."""
    for number, members in enumerate(plan, 1):
        own = folder / GROUPS / str(number)
        if (own / LAST).exists():
            group = open_group(members, data, own)
            for k, member in enumerate(members):
                if member.run_name in names:
                    save_member(group, k, folder)
            (own / LAST).unlink()
