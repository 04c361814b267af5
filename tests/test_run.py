from pathlib import Path

import pytest
import torch

from bp_torch.distributed import World
from bp_torch.training import Config, TrainingError, open_run
from bp_torch.training.run import default_run_name, new_folder, start_run


def test_default_name_that_exists_gets_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bp_torch.training.run.default_run_name", lambda config: "now")
    for name in ("now", "now_2", "now_3"):
        folder = new_folder(Config(runs_dir=tmp_path))
        assert folder == tmp_path / name
        folder.mkdir()
    assert new_folder(Config(runs_dir=tmp_path, run_name="now")) == tmp_path / "now"


def test_default_name_has_every_setting_that_is_not_the_default() -> None:
    assert default_run_name(Config(seed=1, cost="binary-cross-entropy")).endswith(
        "_784-16-16-10_cost-binary-cross-entropy_seed-1"
    )


def test_folder_without_a_trained_network_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no run in .*nowhere .*make one with: python train\.py"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(Config().to_json())
    with pytest.raises(
        TrainingError, match=r"no trained network in .*finish it with: python train\.py --resume .*begun"
    ):
        open_run(tmp_path / "begun")


def test_verification_with_several_processes_raises_training_error(tmp_path: Path, data_dir: Path) -> None:
    config = Config(verify_every=1, data_dir=data_dir, runs_dir=tmp_path)
    with pytest.raises(TrainingError, match=r"--verify-every .* one process: start .* without torchrun"):
        start_run(config, torch.device("cpu"), World(0, 2))
    assert list(tmp_path.iterdir()) == []
