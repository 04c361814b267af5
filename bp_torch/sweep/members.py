"""The folder of one network of a sweep: that of a run, with its config, checkpoint, network, and event file."""

import tempfile
from contextlib import closing
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch

from bp_torch.checkpoint import BEST, CONFIG, LAST, NETWORK_FILE, RESULT, State
from bp_torch.convert import save as save_network
from bp_torch.files import replace_file
from bp_torch.sweep.config import LISTS
from bp_torch.sweep.group import Group
from bp_torch.training.config import Config
from bp_torch.training.evaluation import Score
from bp_torch.training.log import RunLog


def save_member(group: Group, k: int, sweep: Path) -> None:
    """Make the folder of network ``k`` in that of the ``sweep``, in one step, unless it is there.

    A network that diverged has its first checkpoint and no network: train.py --resume trains it anew, and says which
    tensor overflowed first.
    """
    member = replace(group.members[k], runs_dir=sweep)
    assert member.run_name
    folder = sweep / member.run_name
    if folder.exists():
        return
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=sweep) as beside:
        made = Path(beside) / folder.name
        made.mkdir()
        replace_file(made / CONFIG, member.to_json().encode())
        group.member_state(k).save(made / LAST)
        if member.validation and not group.state.diverged[k]:
            group.best_state(k).save(made / BEST)
        if member.log:
            log_member(group, k, made, member)
        if not group.state.diverged[k]:
            result = group.result(k)
            save_network(result.network, made / NETWORK_FILE)
            replace_file(made / RESULT, result.to_json().encode())
        made.rename(folder)


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
