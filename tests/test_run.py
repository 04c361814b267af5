import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bp_torch.distributed import World
from bp_torch.training import Config, TrainingError, open_run, train
from bp_torch.training.config import LONGEST_NAME
from bp_torch.training.run import default_run_name, start_run
from tests.harness import FORK


def test_twenty_starts_in_one_second_each_have_a_folder(data_dir: Path, tmp_path: Path) -> None:
    config = Config(epochs=0, train_examples=100, log=False, data_dir=data_dir, runs_dir=tmp_path, device="cpu")
    children = [FORK.Process(target=train, args=(config,)) for _ in range(20)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 20
    assert len(list(tmp_path.glob("*/network.safetensors"))) == 20


def test_default_name_that_is_too_long_is_cut_and_has_a_hash_before_the_time(data_dir: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"epochs": 0, "log": False, "data_dir": data_dir, "runs_dir": tmp_path, "device": "cpu"}
    config = Config(sizes=(784, *[16] * 100, 10), train_examples=100, **fields)
    folder = train(config)
    assert len(folder.name) == LONGEST_NAME and re.search(r"-[0-9a-f]{8}_\d{4}-\d{6}$", folder.name)
    assert default_run_name(config)[:-12] != default_run_name(replace(config, seed=1))[:-12]


def test_default_name_begins_with_every_setting_that_is_not_the_default() -> None:
    name = default_run_name(Config(seed=1, cost="binary-cross-entropy", learning_rate=1.0))
    assert re.fullmatch(r"binary-cross-entropy_lr-1_seed-1_784-16-16-10_\d{4}-\d{6}", name)


def test_folder_without_a_trained_network_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no run in .*nowhere .*make one with: bp-torch train"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(Config().to_json())
    with pytest.raises(TrainingError, match=r"no trained network in .*finish it with: bp-torch train --resume .*begun"):
        open_run(tmp_path / "begun")


def test_verification_with_several_processes_raises_training_error(tmp_path: Path, data_dir: Path) -> None:
    config = Config(verify_every=1, data_dir=data_dir, runs_dir=tmp_path)
    with pytest.raises(TrainingError, match=r"--verify-every .* one process: start .* without torchrun"):
        start_run(config, torch.device("cpu"), World(0, 2))
    assert list(tmp_path.iterdir()) == []
