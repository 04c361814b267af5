import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bp_torch.convert import save
from bp_torch.distributed import World
from bp_torch.explain.options import NetworkOptions
from bp_torch.explain.subject import open_subject
from bp_torch.files import is_utf8
from bp_torch.network import Network
from bp_torch.training import Config, TrainingError, open_run, read_config, train
from bp_torch.training.config import LONGEST_NAME
from bp_torch.training.run import default_run_name, first_network, start_run
from tests.harness import FORK, linux


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


@pytest.mark.parametrize("stem", [b"caf\xe9", b"a\nb", b"\xc2\xa0\x1b[31m", "δ".encode() * 120])
def test_default_name_can_be_written_whatever_the_name_of_the_data(stem: bytes, tmp_path: Path) -> None:
    name = default_run_name(Config(dataset=tmp_path / os.fsdecode(stem + b".csv")))
    assert len(name.encode()) <= LONGEST_NAME
    assert name.isprintable()
    assert "dataset-" in name


def test_default_name_begins_with_every_setting_that_is_not_the_default() -> None:
    name = default_run_name(Config(seed=1, cost="binary-cross-entropy", learning_rate=1.0))
    assert re.fullmatch(r"binary-cross-entropy_lr-1_seed-1_784-16-16-10_\d{4}-\d{6}", name)


def test_folder_without_a_trained_network_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no run in .*nowhere .*make one with: bp-torch train"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(Config().to_json(), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"no trained network in .*finish it with: bp-torch train --resume .*begun"):
        open_run(tmp_path / "begun")


def test_verification_with_several_processes_raises_training_error(tmp_path: Path, data_dir: Path) -> None:
    config = Config(verify_every=1, data_dir=data_dir, runs_dir=tmp_path)
    with pytest.raises(TrainingError, match=r"--verify-every .* one process: start .* without torchrun"):
        start_run(config, torch.device("cpu"), World(0, 2))
    assert list(tmp_path.iterdir()) == []


def test_run_and_its_data_may_be_moved_together(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone, moved = tmp_path / "clone", tmp_path / "moved"
    shutil.copytree(data_dir, clone / "data", copy_function=os.link)
    monkeypatch.chdir(clone)
    folder = train(Config(epochs=1, train_examples=100, device="cpu", log=False, run_name="one"))
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["data_dir"] == "../../data"
    monkeypatch.chdir(tmp_path)
    clone.rename(moved)
    saved = read_config(moved / "runs/one")
    assert saved.data_dir == moved / "data"
    open_subject(NetworkOptions(run=moved / "runs/one"))
    train(replace(saved, resume=moved / "runs/one", epochs=2))
    assert {path.name for path in tmp_path.iterdir()} == {"moved"}, "nothing is unpacked anew"


@pytest.mark.parametrize(
    "name",
    ["no\u00a0break", "wide\u3000space", "-dash"]
    + [pytest.param(name, marks=linux) for name in ("a\ttab", "\x07bell", "new\nline", "latin-\udce9", "  ")],
)
def test_run_in_a_folder_of_any_name_is_opened_again(name: str, data_dir: Path, tmp_path: Path) -> None:
    place, log = tmp_path / name, is_utf8(Path(name))
    shutil.copytree(data_dir, place / "data", copy_function=os.link)
    config = Config(epochs=1, train_examples=100, device="cpu", data_dir=place / "data", runs_dir=place, log=log)
    folder = train(config)
    saved, network = open_run(folder)
    assert saved == config and network.parameters.isfinite().all()
    assert len(open_subject(NetworkOptions(run=folder)).training.labels) == 100
    train(replace(saved, resume=folder, epochs=2))
    if not is_utf8(folder):
        with pytest.raises(TrainingError, match="TensorBoard opens no name that is not UTF-8"):
            train(replace(config, log=True))
        assert [path.name for path in place.iterdir() if path.name not in ("data", ".lock")] == [folder.name]


@pytest.mark.parametrize("stored", ["/elsewhere", "../victim", "elsewhere"])
def test_data_are_unpacked_only_where_the_user_says(
    stored: str, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = train(Config(epochs=1, train_examples=100, device="cpu", log=False, data_dir=data_dir))
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {
        "data_dir": stored.replace("/else", f"{tmp_path}/else")
    }
    (folder / "config.json").write_text(
        json.dumps({n: v for n, v in fields.items() if n != "sha256"}), encoding="utf-8"
    )
    asked: list[Path] = []
    monkeypatch.setattr("bp_torch.training.run.load", lambda dataset, directory, device: asked.append(directory))
    saved = read_config(folder)
    for directory in (saved.data_dir, tmp_path / "named"):
        with pytest.raises(TypeError):
            train(replace(saved, resume=folder, epochs=2, data_dir=directory))
    with pytest.raises(TypeError):
        open_subject(NetworkOptions(run=folder))
    assert asked == [Path("data"), tmp_path / "named", Path("data")]


# ---- --start-from ----


def brief(data_dir: Path, tmp_path: Path, name: str, **fields: Any) -> Config:
    given: dict[str, Any] = {"epochs": 2, "train_examples": 500, "log": False, "device": "cpu"} | fields
    return Config(data_dir=data_dir, runs_dir=tmp_path, run_name=name, **given)


def test_run_starts_from_the_weights_of_a_file_and_resumes_without_it(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(brief(data_dir, tmp_path, "first"))
    file = tmp_path / "weights.safetensors"
    shutil.copy(first / "network.safetensors", file)
    monkeypatch.chdir(tmp_path)
    here = Path("weights.safetensors")
    unmoved = train(brief(data_dir, tmp_path, "unmoved", start_from=here, epochs=0))
    assert torch.equal(open_run(unmoved)[1].parameters, open_run(first)[1].parameters)
    config = brief(data_dir, tmp_path, "whole", start_from=here, seed=7)
    whole = train(config)
    assert default_run_name(replace(config, run_name=None)).startswith(
        "epochs-2_examples-500_seed-7_from-weights_784-16-16-10_"
    )
    part = train(replace(config, run_name="part", epochs=1))
    assert read_config(part).start_from == file, "found again from any folder"
    file.unlink()
    train(replace(read_config(part), resume=part, epochs=2))
    assert torch.equal(open_run(part)[1].parameters, open_run(whole)[1].parameters)
    assert not torch.equal(open_run(part)[1].parameters, open_run(first)[1].parameters)


def test_file_of_another_network_is_refused_with_the_flags_that_it_needs(data_dir: Path, tmp_path: Path) -> None:
    save(Network((784, 12, 10), activation="tanh"), tmp_path / "other.safetensors")
    config = brief(data_dir, tmp_path, "one", start_from=tmp_path / "other.safetensors")
    flags = "--sizes 784 12 10 --activation tanh --output-activation sigmoid"
    with pytest.raises(TrainingError, match=f"--start-from: .*other.safetensors holds another network: add {flags}"):
        train(config)
    for name, message in {"none": "no file", "config.json": "holds no network"}.items():
        (tmp_path / "config.json").write_text("{}", encoding="utf-8")
        with pytest.raises(TrainingError, match=f"--start-from: .*{message}"):
            train(replace(config, start_from=tmp_path / name))
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("name", ["nowhere", "9" * 401])
def test_what_the_system_says_of_a_file_comes_without_its_number(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as of_run:
        open_run(tmp_path / name)
    config = Config(epochs=0, start_from=tmp_path / name, log=False, runs_dir=tmp_path / "runs", device="cpu")
    with pytest.raises(TrainingError) as of_start:
        first_network(config, torch.device("cpu"))
    for error in (of_run, of_start):
        assert name in str(error.value) and "Errno" not in str(error.value)
