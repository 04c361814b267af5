"""Train the seeds of a row, each in runs/ladder/ROW/seed-S: small networks by the sweep, large ones one by one.

A folder that is there is not trained anew: one that is finished is read, one that is not is resumed. So a long training
may be started by hand, with train.py --recipe ROW --seed S --runs-dir runs/ladder/ROW --run-name seed-S.
"""

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import torch

from bp_torch.benchmark.report import describe_machine
from bp_torch.checkpoint import CONFIG, NETWORK_FILE, RESULT
from bp_torch.device import choose_device
from bp_torch.files import read_json
from bp_torch.flags import WHOLE, fits, flag
from bp_torch.ladder.results import COMMAND, FILE, Measured, add, recipe
from bp_torch.sweep.config import LISTS, SweepConfig
from bp_torch.sweep.loop import sweep
from bp_torch.sweep.plan import quickest
from bp_torch.sweep.report import JSON
from bp_torch.training import Config, TrainingError, train
from bp_torch.training.config import read_config, read_config_as
from bp_torch.training.rows import Row
from bp_torch.training.run import RunResult


def run_row(row: Row, wanted: Config, seeds: range, file: Path = FILE) -> Measured:
    """Train what is missing, with the settings of ``wanted``, and add all seeds to the results in ``file``."""
    measured = Measured({}, recipe(wanted))
    train_together(row, wanted, seeds)
    for seed in seeds:
        config = dataclasses.replace(wanted, seed=seed, runs_dir=wanted.runs_dir / row.name, run_name=f"seed-{seed}")
        folder = config.runs_dir / f"seed-{seed}"
        if (folder / CONFIG).exists():
            saved = read_config(folder)
            check_same(folder, saved, config)
            config = dataclasses.replace(saved, resume=folder)
        if not ((folder / RESULT).exists() and (folder / NETWORK_FILE).exists()):  # the network is written last
            print(f"{row.name}, seed {seed}")
            train(config)
        result = read_result(folder)
        measured = add(row.name, Measured({seed: result}, measured.config), file)
        print(f"{row.name}, seed {seed}: test error {result['test_error']:.2f} %")
    return measured


def train_together(row: Row, wanted: Config, seeds: range) -> None:
    """Train the seeds of a small network by the sweep, whose folder is that of the row. Else there is nothing to do."""
    folder, device = wanted.runs_dir / row.name, choose_device(wanted.device)
    if (folder / CONFIG).exists():  # a sweep, to be resumed if it was stopped
        begun = read_config_as(SweepConfig, folder, f"no sweep in {folder}", f"{COMMAND} run {row.name}")
        check_same(folder, begun.members()[0], dataclasses.replace(wanted, seed=begun.seed))
        if not (folder / JSON).exists():
            sweep(dataclasses.replace(begun, resume=folder))
    elif not folder.exists() and len(seeds) > 1 and quickest(wanted, device, separate_batches=True) > 1:
        lists = {name: (getattr(wanted, name),) for name in LISTS}
        own = {"recipe": None, "run_name": row.name, "seed": seeds.start, "seeds": len(seeds)}
        sweep(SweepConfig(**vars(wanted) | lists | own))


def check_same(folder: Path, saved: Config, wanted: Config) -> None:
    """Raise TrainingError if the run in ``folder`` is of another recipe."""
    has, wants = recipe(saved) | {"seed": saved.seed}, recipe(wanted) | {"seed": wanted.seed}
    for name in wants:
        if has[name] != wants[name]:
            text = f"{folder} is a run with {flag(name)} {has[name]}, the row has {wants[name]}"
            raise TrainingError(f"{text}: move the folder away")


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a seed as results.json has it. Raises TrainingError for a result.json that is damaged."""
    path = folder / RESULT
    try:
        found = read_json(path)
        kinds = get_type_hints(RunResult) | {"threads": int, "torch": str}
        wrong = [name for name, kind in kinds.items() if not fits(found[name], kind)]
        wrong += [name for name in kinds if name.endswith("accuracy") and not 0 <= found[name] <= 1]
        if wrong or not 0 <= found["seconds"] < WHOLE:
            raise ValueError(f"{(wrong or ['seconds'])[0]} cannot be")
        device = "cuda" if found["device"] == "cuda" else "cpu"
        return {
            "test_error": round(100 * (1 - found["test_accuracy"]), 4),
            "validation_error": round(100 * (1 - found["validation_accuracy"]), 4),
            "epoch": found["epoch"],
            "seconds": found["seconds"],
            "precision": found["precision"],
            "machine": describe_machine(torch.device(device))["device" if device == "cuda" else "cpu"],
            "threads": found["threads"],
            "torch": found["torch"],
            "date": datetime.fromtimestamp(path.stat().st_mtime).date().isoformat(),
        }
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{path} is damaged, or of an older version ({error!r}): move the folder away") from error
