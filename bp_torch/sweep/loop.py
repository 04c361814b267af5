"""The sweep: its folder, its groups one after another, the folders of its networks, and what they found.

A group has a checkpoint of its own, in ``groups/1``, ``groups/2``, … of the sweep's folder, until its results are
there. Of several processes, each trains every so-manieth group, and they tell each other only the folder's name; the
one that ends last reports.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from bp_torch import checkpoint
from bp_torch.checkpoint import CheckpointError, State, locked, made_whole, make_folder, remove_unfinished_folders
from bp_torch.cli import streams_that_show_all
from bp_torch.convert import save as save_network
from bp_torch.data import Examples
from bp_torch.device import choose_device, set_precision, set_threads, settings_kept
from bp_torch.distributed import World, joined, local_device
from bp_torch.files import lock_in, read_json, remove_unfinished, told, write_json
from bp_torch.kind import Kind
from bp_torch.sweep import report
from bp_torch.sweep.config import COMMAND, LISTS, SweepConfig
from bp_torch.sweep.group import Group, GroupState, new_group
from bp_torch.sweep.plan import groups
from bp_torch.sweep.report import TROUBLE
from bp_torch.text import count
from bp_torch.training.config import Config, TrainingError, check_resumed, read_config_as
from bp_torch.training.evaluation import Score
from bp_torch.training.interruption import Signals, Stopped
from bp_torch.training.log import RunLog
from bp_torch.training.loop import early_steps, synchronize
from bp_torch.training.run import config_text, default_run_name, load_data, write_history

GROUPS = "groups"
PLAN = "groups.json"  # the networks that are trained at once, by name: a sweep is resumed with the groups it began with
RESULTS = "results.json"


class SweepRun(NamedTuple):
    """A sweep in this process."""

    config: SweepConfig
    plan: list[list[Config]]  # the networks of each group
    data: tuple[Examples, Examples]
    folder: Path

    def group_folder(self, number: int) -> Path:
        """The folder of group ``number``, from 0."""
        return self.folder / GROUPS / str(number + 1)


@settings_kept()
@streams_that_show_all()
@torch.inference_mode()
def sweep(config: SweepConfig, store: str = "env://") -> Path:
    """Train all networks, print a line for each epoch of each group, and save what ``config`` says. Returns the folder.

    Raises ValueError for more networks than memory, and whatever ``training.train`` raises but WrongGradientError.
    """
    device = choose_device(local_device(config.device))
    data = load_data(config, device)
    config = config.fitted(data[0].kind)
    plan = groups(config, device)
    set_precision(config.precision, device)
    with ExitStack() as stack:
        with joined(device, store) as world:  # only to agree on the folder
            folder = stack.enter_context(opened(config, plan, data[0].kind, world))
        run = SweepRun(config, read_plan(config, folder), data, folder)
        if world.is_first:
            print(introduction(run, device, world))
        train_groups(run, range(world.rank, len(run.plan), world.size))
        if all((run.group_folder(number) / RESULTS).exists() for number in range(len(run.plan))):
            with lock_in(folder / GROUPS, timeout=3600):  # two processes may end at the same time
                finish(run)
    return folder


@contextmanager
def opened(config: SweepConfig, plan: list[list[Config]], kind: Kind, world: World) -> Iterator[Path]:
    """The sweep's folder, made anew or the one to ``resume``, which no other sweep may use meanwhile."""
    folder = config.resume or config.runs_dir / (config.run_name or default_run_name(config))
    if world.is_first and not config.resume:
        folder = make_folder(folder, config_text(config, folder, kind), None, numbered=config.run_name is None)
    with locked(folder) if world.is_first else nullcontext():
        if config.resume:
            make = f"{COMMAND} --learning-rate 1 3"
            check_resumed(config, read_config_as(SweepConfig, folder, f"no sweep in {folder}", make))
        if world.is_first:
            remove_unfinished_folders(folder)
            remove_unfinished(folder, (report.JSON, report.PICTURE, PLAN))
            if not (folder / PLAN).exists():
                names = [[member.run_name for member in members] for members in plan]
                write_json(folder / PLAN, {"groups": names})
        yield Path(world.same(str(folder)))


def read_plan(config: SweepConfig, folder: Path) -> list[list[Config]]:
    """The groups that the sweep in ``folder`` began with. Raises CheckpointError if they are not of ``config``."""
    members = {member.run_name: member for member in config.members()}
    try:
        plan = [[members.pop(name) for name in names] for names in read_json(folder / PLAN)["groups"]]
        if members:
            raise KeyError(f"{len(members)} networks are missing")
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / PLAN} is damaged, or of another sweep") from error
    return plan


def introduction(run: SweepRun, device: torch.device, world: World) -> str:
    """The networks, and the header of the lines that follow."""
    config, plan = run.config, run.plan
    networks, precision, kind = sum(map(len, plan)), config.precision_on(device), run.data[0].kind
    at_once, done = max(map(len, plan)), len(list((run.folder / GROUPS).glob(f"*/{RESULTS}")))
    return (
        f"{count(networks, 'network')} {'-'.join(map(str, config.sizes))}: {count(len(config.settings), 'setting')}, "
        f"{count(config.seeds, 'seed')}, at most {at_once} at once, on {device.type}"
        + (f", in {world.size} processes" if world.size > 1 else "")
        + (f", --precision {precision}" if precision != "full" else "")
        + (f"\ndata: {kind}" if kind.sha256 else f"; data: {kind.source}")
        + (f"\ncontinuing {run.folder}: {done} of {count(len(plan), 'group')} done" if config.resume else "")
        + f"\n  group   epoch   best {config.evaluated_on}   median   diverged   examples/s   seconds"
    )


def train_groups(run: SweepRun, mine: range) -> None:
    """Train the groups of this process that have no results yet. Raises Stopped, with a checkpoint saved."""
    with Signals() as signals, tqdm(unit="step", leave=False, disable=None) as bar:
        for number in mine:
            own = run.group_folder(number)
            own.mkdir(parents=True, exist_ok=True)
            with locked(own):
                remove_unfinished(own, (RESULTS,))
                if not (own / RESULTS).exists():
                    group = open_group(run, number)
                    steps = run.config.epochs * group.steps_per_epoch
                    bar.total = steps * len(mine)
                    bar.update(steps * mine.index(number) + group.state.step - bar.n)
                    try:
                        train_group(group, f"{number + 1:3}/{len(run.plan)}", signals, bar)
                    except Stopped as stopped:
                        raise Stopped(stopped.received, run.folder, COMMAND) from None
                    if run.config.save == "all":
                        for k in range(len(group.members)):
                            save_member(group, k, run.folder)
                    scores = {name: getattr(group.state, name) for name in group.state.EACH}
                    trouble = ["" if step else group.trouble(k) for k, step in enumerate(group.state.diverged)]
                    write_json(own / RESULTS, scores | {TROUBLE: trouble})
                if run.config.save != "best":
                    (own / checkpoint.LAST).unlink(missing_ok=True)


def open_group(run: SweepRun, number: int) -> Group:
    """A group as its last checkpoint has it, or else before its first step."""
    group = new_group(run.plan[number], *run.data, run.group_folder(number))
    set_threads(group.config.threads, group.step.batch_size * group.network.parameters.shape[-1])
    if (group.folder / checkpoint.LAST).exists():
        group.restore()
    return group


def train_group(group: Group, name: str, signals: Signals, bar: "tqdm[Any]") -> None:
    """Train a group to the end, as training/loop.py trains one network: step, take points, evaluate, save."""
    config, state, per_epoch = group.config, group.state, group.steps_per_epoch
    early = early_steps(per_epoch) if config.log else set()

    def stop_if_asked(poll: int) -> None:
        if signals.should_stop(poll):
            save_checkpoint(group)
            raise Stopped(signals.received, group.folder)

    while state.epoch <= config.epochs:
        if config.log and state.step == 0:
            score_early(group)
        start, first = time.perf_counter(), state.steps
        for _ in group.rest_of_epoch():
            bar.update()
            group.take_point()
            if state.step in early:
                start += score_early(group)
            if state.steps == per_epoch:
                continue  # saved below, after the evaluation
            stop_if_asked(state.step)
            if config.checkpoint_every and state.step % config.checkpoint_every == 0:
                save_checkpoint(group)
        synchronize(group.network.device)
        seconds = time.perf_counter() - start
        scores = group.evaluate(stop_if_asked)
        group.record(*scores)
        group.take_scores(*scores)
        examples = max(0, group.examples - first * group.step.batch_size) * len(group.members)
        bar.write(epoch_line(group, name, examples / seconds, seconds))
        state.end_epoch()
        save_checkpoint(group)
        if signals.received:
            raise Stopped(signals.received, group.folder)
    if config.epochs == 0:
        group.record(*group.evaluate())
    if state.reported < config.epochs or config.epochs == 0:
        group.choose()
        save_checkpoint(group)


def score_early(group: Group) -> float:
    """Evaluate before the first step or within the first epoch, for the curves. Returns the seconds it took."""
    synchronize(group.network.device)
    start = time.perf_counter()
    group.take_scores(*group.evaluate())
    return time.perf_counter() - start


def save_checkpoint(group: Group) -> None:
    """Save the state of the group, in which the networks that diverged are marked."""
    group.write_points()
    group.reset_diverged()
    group.state.seconds = time.perf_counter() - group.begun
    try:
        group.state.save(group.folder / checkpoint.LAST)
    except OSError as error:
        raise TrainingError(f"cannot save {told(error)}; the previous checkpoint is intact") from error


def epoch_line(group: Group, name: str, rate: float, seconds: float) -> str:
    """How the networks of the group do after an epoch."""
    state = group.state
    scores = [score for score, wrong in zip(state.accuracy, state.diverged, strict=True) if not wrong]
    best, middle = (f"{100 * of(scores):7.2f}%" if scores else "       –" for of in (max, median))
    width = len(f"best {group.config.evaluated_on}")
    wrong = len(state.accuracy) - len(scores)
    return f"{name:>7}   {state.epoch:5}   {best:>{width}} {middle}   {wrong:8}   {rate:10,.0f}   {seconds:7.2f}"


def save_member(group: Group, k: int, folder: Path) -> None:
    """Make the folder of network ``k``, one of a run, in that of the sweep, in one step, unless it is there."""
    # One that diverged has its first checkpoint and no network: train.py --resume says which tensor overflowed first.
    member, diverged = replace(group.members[k], runs_dir=folder), group.state.diverged[k]
    assert member.run_name
    if (own := folder / member.run_name).exists():
        return
    with made_whole(own) as made:
        write_json(made / checkpoint.CONFIG, json.loads(config_text(member, own, group.training.kind)))
        (state := group.member_state(k)).save(made / checkpoint.LAST)
        if state.history:
            write_history(made, member.evaluated_on, state.history)
        if member.validation and not diverged:
            group.best_state(k).save(made / checkpoint.BEST)
        if member.log:
            log_member(group, k, made, member)
        if not diverged:
            save_network(group.final_network()[k], made / checkpoint.NETWORK_FILE)
            write_json(made / checkpoint.RESULT, json.loads(group.result(k).to_json()))


def log_member(group: Group, k: int, folder: Path, member: Config) -> None:
    """Write the event file of network ``k`` into ``folder``: its row in HParams and its curves."""
    state, network = group.state, group.network[k]
    before = State(network.parameters, None, torch.zeros(2))
    end = state.diverged[k] or state.step
    with closing(RunLog(folder, network, 1, before, member.cost, member.evaluated_on)) as log:
        varied = [name for name in LISTS if len({getattr(other, name) for other in group.members}) > 1]
        log.begin(member, member.hyperparameters(group.examples, group.step.batch_size), varied)
        for step, taken, tag, values in state.points:
            if step <= end and isfinite(values[k]):
                log.scalars({tag: values[k]}, step, taken)
        if not state.diverged[k]:
            log.end(Score(state.cost[k], state.accuracy[k]), state.step)


def finish(run: SweepRun) -> None:
    """Print the table, save picture and JSON, and the best networks if only they are saved."""
    config, found = run.config, list[report.JsonRow]()
    for number, members in enumerate(run.plan):
        path = run.group_folder(number) / RESULTS
        try:
            found += report.network_rows(members, read_scores(path, members))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} is damaged: remove it, and its networks are trained again") from error
    if config.save == "best":
        save_chosen(run, {row["name"] for each in config.settings for row in report.of_setting(each, found)[:1]})
    report.save(config, found, run.folder)
    print(f"\n{report.table(config, found)}\nsaved {run.folder / report.JSON} and {run.folder / report.PICTURE}")


def read_scores(path: Path, members: list[Config]) -> dict[str, list[Any]]:
    """The lists in the results of a group of these networks. Raises ValueError, TypeError or KeyError for bad ones."""
    found, most = read_json(path), {"accuracy": 1, "best": 1, "best_epoch": max(1, members[0].epochs)}
    for name, first in GroupState.EACH.items():
        values = found[name]
        if len(values) != len(members) or any(type(value) is not type(first) for value in values):
            raise ValueError(f"{name} is not a value for each network")
        if any(value < min(first, 0) or value > most.get(name, value) for value in values):
            raise ValueError(f"{name} is out of bounds")
    return {TROUBLE: [""] * len(members)} | found


def save_chosen(run: SweepRun, names: set[str]) -> None:
    """Save the networks of these ``names``, and remove the checkpoints of their groups."""
    for number, members in enumerate(run.plan):
        if (last := run.group_folder(number) / checkpoint.LAST).exists():
            group = open_group(run, number)
            for k, member in enumerate(members):
                if member.run_name in names:
                    save_member(group, k, run.folder)
            last.unlink()
