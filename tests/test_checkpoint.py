import errno
import io
import json
import os
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bp_torch.checkpoint import CONFIG, LAST, LOCK, CheckpointError, State, locked, make_folder
from tests.harness import FORK, posix


def a_state(n: int = 6, velocity: bool = True, dtype: torch.dtype = torch.float32) -> State:
    numbers = torch.arange(n, dtype=dtype)
    return State(
        numbers, numbers * 2 if velocity else None, torch.tensor([3.0, 4.0], dtype=torch.float64), 2, 7, 607, 0.9
    )


def test_state_is_restored_exactly_into_the_same_tensors(tmp_path: Path) -> None:
    a_state().save(tmp_path / LAST)
    now = State(torch.zeros(6), torch.zeros(6), torch.zeros(2, dtype=torch.float64))
    held = now.parameters
    now.copy_from(State.load(tmp_path / LAST, like=now))
    assert (now.epoch, now.steps, now.step, now.best_accuracy) == (2, 7, 607, 0.9)
    assert now.parameters is held and held.tolist() == [0, 1, 2, 3, 4, 5]
    assert now.velocity is not None and now.velocity.tolist() == [0, 2, 4, 6, 8, 10]
    assert now.running.tolist() == [3, 4]


def test_state_is_saved_without_a_copy_of_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, written = a_state(), []
    monkeypatch.setattr("torch.save", lambda content, file: written.append((content, file)))
    state.save(tmp_path / LAST)
    ((content, file),) = written
    assert content["parameters"] is state.parameters and content["velocity"] is state.velocity
    assert isinstance(file, io.BufferedWriter), "and straight into the file"


def test_checkpoint_is_a_plain_dict(tmp_path: Path) -> None:
    a_state().save(tmp_path / LAST)
    assert type(torch.load(tmp_path / LAST, weights_only=True)) is dict


def test_invalid_file_raises_checkpoint_error_naming_it(tmp_path: Path) -> None:
    path = tmp_path / LAST
    with pytest.raises(CheckpointError, match=r"cannot read .*last\.pt: No such file"):
        State.load(path, like=a_state())
    a_state().save(path)
    whole = path.read_bytes()
    middle = whole.index(torch.arange(6.0).numpy().tobytes()) + 4
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", b"something else", whole[: len(whole) // 2], whole[:-30], flipped):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged, or not a checkpoint"):
            State.load(path, like=a_state())
    for foreign in ({"weights": torch.zeros(2)}, [1, 2], torch.zeros(3)):
        torch.save(foreign, path)
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged, or not a checkpoint"):
            State.load(path, like=a_state())


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (a_state(7), r"its parameters are \(6,\) of torch\.float32, wanted \(7,\)"),
        (a_state(dtype=torch.float64), r"its parameters are \(6,\) of torch\.float32, wanted \(6,\) of torch\.float64"),
        (a_state(velocity=False), r"its velocity are \(6,\) of torch\.float32, wanted none"),
    ],
)
def test_checkpoint_of_another_network_raises_checkpoint_error(like: State, message: str, tmp_path: Path) -> None:
    a_state().save(tmp_path / LAST)
    with pytest.raises(CheckpointError, match=f"is of another network: {message}"):
        State.load(tmp_path / LAST, like=like)


def test_checkpoint_of_other_sizes_with_as_many_parameters_raises_checkpoint_error(tmp_path: Path) -> None:
    replace(a_state(), network="784-20-30-10").save(tmp_path / LAST)
    with pytest.raises(CheckpointError, match="is of another network: 784-20-30-10, wanted 784-30-20-10"):
        State.load(tmp_path / LAST, like=replace(a_state(), network="784-30-20-10"))


@pytest.mark.parametrize(
    "field",
    [
        {"epoch": "2"},
        {"epoch": 0},
        {"steps": -1},
        {"step": 1.5},
        {"step": True},
        {"reported": None},
        {"best_accuracy": 7.0},
        {"best_accuracy": "0.9"},
        {"network": 3},
        {"parameters": [1.0]},
        {"parameters": torch.zeros(6, device="meta")},
        {"parameters": torch.zeros(6).to_sparse()},
        {"parameters": torch.full((6,), torch.nan)},
        {"parameters": torch.nn.Parameter(torch.zeros(6))},
        {"velocity": torch.full((6,), torch.inf)},
        {"running": torch.tensor(0.0)},
        {"colour": 1},
    ],
)
def test_invalid_field_raises_checkpoint_error(field: dict[str, Any], tmp_path: Path) -> None:
    torch.save(asdict(a_state()) | field, tmp_path / LAST)
    with pytest.raises(CheckpointError, match=r"last\.pt (is|holds numbers that are not finite)"):
        State.load(tmp_path / LAST, like=a_state())


@posix
def test_checkpoint_that_is_no_regular_file_raises_checkpoint_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("fifo", "zeros", "."):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            State.load(tmp_path / name, like=a_state())


def test_checkpoint_that_would_unpack_to_more_than_it_has_raises_checkpoint_error(tmp_path: Path) -> None:
    a_state().save(tmp_path / LAST)
    with (
        zipfile.ZipFile(tmp_path / LAST) as parts,
        zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in parts.namelist():
            out.writestr(name, parts.read(name))
    with pytest.raises(CheckpointError, match="packed is damaged"):
        State.load(tmp_path / "packed", like=a_state())


def test_folder_is_held_by_one_process_that_is_named(tmp_path: Path) -> None:
    def hold(entered: Any, done: Any) -> None:
        with locked(tmp_path):
            entered.set()
            done.wait()

    entered, done = FORK.Event(), FORK.Event()
    holder = FORK.Process(target=hold, args=(entered, done))
    holder.start()
    entered.wait()
    with (
        pytest.raises(CheckpointError, match=f"is being trained by process {holder.pid} on .*: stop that"),
        locked(tmp_path),
    ):
        pass
    holder.kill()
    holder.join()
    (tmp_path / ".last.pt.abcd1234").touch()
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK], "a process that is dead holds nothing"


@posix
def test_dead_process_holds_nothing_where_there_is_no_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def hold(entered: Any, done: Any) -> None:
        with locked(tmp_path):
            entered.set()
            done.wait()

    def die(entered: Any) -> None:
        with locked(tmp_path):
            os._exit(0)

    before = FORK.Process(target=die, args=(None,))  # where there was a flock: the folder has moved since
    before.start()
    before.join()
    assert (tmp_path / LOCK).read_text(encoding="utf-8").startswith(f"{before.pid}\n")
    monkeypatch.setattr("fcntl.flock", no_flock)
    entered, done = FORK.Event(), FORK.Event()
    holder = FORK.Process(target=hold, args=(entered, done))
    holder.start()
    entered.wait()
    way = "stop that first, or if it is gone remove its .lock"
    with (
        pytest.raises(CheckpointError, match=f"is being trained by process {holder.pid} on .*: {way}"),
        locked(tmp_path),
    ):
        pass
    holder.kill()
    holder.join()
    with locked(tmp_path), pytest.raises(CheckpointError, match=f"by process {os.getpid()} on"), locked(tmp_path):
        pass


def test_folder_that_a_killed_process_left_half_made_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".one.abcd1234" / "one").mkdir(parents=True)
    (tmp_path / ".two.abcd1234" / "three").mkdir(parents=True)
    make_folder(tmp_path / "four", json.dumps({}), a_state())
    assert {path.name for path in tmp_path.iterdir()} == {"four", LOCK, ".two.abcd1234"}


def test_name_that_exists_gets_a_number(tmp_path: Path) -> None:
    for name in ("one", "one_2", "one_3"):
        assert make_folder(tmp_path / "one", "{}", a_state(), numbered=True) == tmp_path / name


@posix
def test_name_that_is_too_long_is_refused_with_the_flag_that_sets_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"File name too long.*choose another --run-name"):
        make_folder(tmp_path / ("n" * 300), "{}", a_state())


def test_folder_is_complete_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot make the run's folder .*one: .*No space left"):
            make_folder(tmp_path / "one", "{}", a_state())
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    make_folder(tmp_path / "one", "{}", a_state())
    assert {path.name for path in tmp_path.rglob("*")} == {"one", CONFIG, LAST, LOCK}
    with pytest.raises(
        CheckpointError, match="one exists already: choose another --run-name, or continue it with --resume"
    ):
        make_folder(tmp_path / "one", "{}", a_state())
