"""The ladder: rows as data, trained as plain runs, and a page that is made from the results."""

import json
import os
import re
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from bp_torch.commands import start
from bp_torch.ladder import report, results
from bp_torch.ladder.results import Measured, add, read, recipe
from bp_torch.ladder.run import run_row
from bp_torch.training import Config, Stopped, TrainingError, open_run, train
from bp_torch.training.interruption import Signals
from bp_torch.training.rows import ROWS, Kind, Row, find, read_rows
from tests.harness import FORK, linux

DOCS = Path(__file__).parent.parent / "docs"

FIELDS: dict[str, Any] = {
    "train_examples": 500,
    "validation": 100,
    "epochs": 3,
    "batch_size": 50,
    "sizes": (784, 8, 10),
}
SEED = {"epoch": 3, "seconds": 90.0, "machine": "a CPU", "threads": 1, "torch": "2", "date": "2026-01-01"}
SMALL = Row("small", "test", 2000, "nobody", 50.0, "one network", FIELDS)


@pytest.fixture
def config(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr("bp_torch.training.rows.ROWS", [SMALL])
    return Config(
        recipe=SMALL.name, data_dir=data_dir, runs_dir=tmp_path / "ladder", device="cpu", threads=1, log=False
    )


def test_rows_are_the_published_ones() -> None:
    published = {row.name: row.published for row in ROWS}
    assert len(published) == len(ROWS) == 25
    by_group: dict[str, list[float]] = {}
    for row in ROWS:
        by_group.setdefault(row.group, []).append(row.published)
        assert row.kind in get_args(Kind)
        config = Config(recipe=row.name)
        assert config.validation, "ours is measured at an epoch that was chosen without the test set"
        assert (config.sizes[0], config.sizes[-1], config.seed, config.recipe) == (784, 10, 0, row.name)
    assert by_group == {
        "the lesson": [6.37],
        "LeCun 1998": [4.7, 4.5, 3.05, 2.95, 3.6, 3.8, 2.5, 2.45],
        "Simard 2003": [1.6, 1.1, 0.7, 0.9],
        "Hinton 2005": [1.53],
        "Cireşan 2010": [0.49, 0.46, 0.41, 0.35, 0.44],
        "Nielsen, ch. 1": [4.58, 3.41],
        "Nielsen, ch. 3": [4.51, 3.18, 2.08, 1.96],
    }


@pytest.mark.parametrize("name", ["no such row", "", "SMALL"])
def test_recipe_that_is_no_row_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=rf"--recipe: no row '{name}' in the ladder: choose from .*nielsen"):
        Config(recipe=name)
    with pytest.raises(SystemExit) as stop:
        start("train", [f"--recipe={name}"])
    assert stop.value.code == 2 and f"no row '{name}' in the ladder" in capsys.readouterr().err
    assert [Config(recipe=row.name).recipe for row in ROWS] == [row.name for row in ROWS]


def test_recipe_from_python_has_the_settings_of_the_row_but_for_those_that_are_given() -> None:
    assert [Config(recipe=row.name) for row in ROWS] == [Config(**row.fields, recipe=row.name) for row in ROWS]
    name, fields = "nielsen-quadratic-30", find("nielsen-quadratic-30").fields | {"recipe": "nielsen-quadratic-30"}
    assert fields["epochs"] == 30 and fields["sizes"] == (784, 30, 10)
    assert Config(recipe=name, epochs=20) == Config(**fields | {"epochs": 20}), "20 is the default, and was given"
    assert Config((784, 40, 10), recipe=name) == Config(**fields | {"sizes": (784, 40, 10)})
    older = {key: value for key, value in json.loads(Config(recipe=name).to_json()).items() if key != "schedule"}
    assert Config.from_json(json.dumps(older)).schedule == "inverse", "that of a version without the flag"
    with pytest.raises(
        ValueError, match=r"--recipe nielsen-quadratic-30: wanted its settings \(.*--epochs 30.*\), got"
    ):
        replace(Config(), recipe=name)


def test_row_of_nielsen_is_his_recipe() -> None:
    config = Config(recipe="nielsen-regularized-100-slow")
    assert (config.batch_size, config.epochs, config.validation, config.schedule) == (10, 60, 10_000, "constant")
    assert config.weight_decay * 50_000 == pytest.approx(5) and config.learning_rate == 0.1
    assert Config(recipe="nielsen-quadratic-30").learning_rate * 2 == 3.0, "our cost has no factor ½"


def test_row_is_trained_once_and_its_results_are_those_of_its_runs(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    measured = run_row(SMALL, config, range(2), file)
    assert sorted(measured.seeds) == [0, 1]
    assert (config.runs_dir / "small" / "sweep.json").exists(), "small networks are trained at once"
    for seed, found in measured.seeds.items():
        folder = config.runs_dir / "small" / f"seed-{seed}"
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert found["test_error"] == pytest.approx(100 - 100 * result["test_accuracy"])
        assert found["epoch"] == result["epoch"] and found["threads"] == 1
        assert found["precision"] == "full"
        assert open_run(folder)[0].seed == seed
    capsys.readouterr()
    again = run_row(SMALL, config, range(1, 3), file)
    out = capsys.readouterr().out
    assert sorted(again.seeds) == [0, 1, 2], "the seeds that were there stay"
    assert {seed: again.seeds[seed] for seed in (0, 1)} == measured.seeds
    assert out.count("epoch   train cost") == 1, "seed 1 is taken as it is"
    assert read(file) == {"small": again}


def test_run_started_by_hand_and_stopped_is_resumed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_row(SMALL, config, range(1), tmp_path / "whole.json")
    other = replace(config, runs_dir=tmp_path / "other")
    by_hand = replace(other, runs_dir=tmp_path / "other" / "small", run_name="seed-0")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Signals, "should_stop", lambda self, poll: poll == 0)
        train(by_hand)
    resumed = run_row(SMALL, other, range(1), tmp_path / "resumed.json")
    assert resumed.errors == whole.errors
    assert resumed.seeds[0]["epoch"] == whole.seeds[0]["epoch"]


def test_folder_of_another_recipe_is_refused(config: Config, tmp_path: Path) -> None:
    run_row(SMALL, config, range(1), tmp_path / "results.json")
    with pytest.raises(TrainingError, match=r"seed-0 is a run with --epochs 3, the row has 4: move the folder away"):
        run_row(SMALL, replace(config, epochs=4), range(1), tmp_path / "results.json")


def test_stopped_sweep_of_another_recipe_is_refused_before_it_is_trained(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Signals, "should_stop", lambda self, poll: True)
        run_row(SMALL, config, range(2), tmp_path / "results.json")
    capsys.readouterr()
    with pytest.raises(TrainingError, match=r"small is a run with --epochs 3, the row has 4: move the folder away"):
        run_row(SMALL, replace(config, epochs=4), range(2), tmp_path / "results.json")
    assert capsys.readouterr().out == ""
    assert len(run_row(SMALL, config, range(2), tmp_path / "results.json").seeds) == 2


def test_results_of_another_config_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    add("small", Measured({0: {"test_error": 1.0}}, {"epochs": 3}), file)
    add("large", Measured({0: {"test_error": 3.0}}, {"epochs": 3}), file)
    assert sorted(add("small", Measured({1: {"test_error": 2.0}}, {"epochs": 3}), file).seeds) == [0, 1]
    assert sorted(add("small", Measured({2: {"test_error": 2.0}}, {"epochs": 4}), file).seeds) == [2]
    assert sorted(read(file)) == ["large", "small"]
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"results.json holds no results of the ladder"):
        read(file)


def test_processes_that_add_at_once_lose_no_row(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    measured = Measured({0: {"test_error": 1.0}}, {"epochs": 3})
    names = [f"row-{n}" for n in range(8)]
    children = [FORK.Process(target=add_all, args=(names[n::2], measured, file)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert sorted(read(file)) == names


def add_all(names: list[str], measured: Measured, file: Path) -> None:
    def slow(file: Path) -> dict[str, Measured]:
        found = read(file)
        time.sleep(0.01)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "read", slow)
        for name in names:
            add(name, measured, file)


def test_last_seeds_there_are_can_be_trained_and_results_go_to_the_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run_row(row: Row, config: Config, seeds: range, file: Path) -> Measured:
        asked.append((seeds, file))
        return Measured({seed: SEED | {"test_error": 1.0} for seed in seeds}, {})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bp_torch.ladder.run.run_row", run_row)
    start("ladder", ["run", "lesson", "--first-seed", "4294967294", "--seeds", "2"])
    assert asked == [(range(2**32 - 2, 2**32), Path("runs/ladder/results.json"))]


def test_recipe_sets_the_defaults_of_the_other_flags(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--runs-dir", str(tmp_path), "--data-dir", str(data_dir), "--device", "cpu", "--threads", "1"]
    less = ["--epochs", "1", "--train-examples", "300", "--no-log", "--seed", "3", "--rotation", "5", "--sigma", "4"]
    start("train", ["--recipe", "ciresan-1000-500", "--run-name", "one", *place, *less])
    found = open_run(tmp_path / "one")[0]
    assert replace(found, threads=None, device="auto") == Config(
        recipe="ciresan-1000-500",
        epochs=1,
        train_examples=300,
        log=False,
        seed=3,
        rotation=5.0,
        sigma=4.0,
        runs_dir=tmp_path,
        data_dir=data_dir,
        run_name="one",
    )
    start("train", ["--resume", str(tmp_path / "one")])
    assert "all 1 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "arguments"), [("train", ["--recipe", "lenet"]), ("ladder", ["run", "lenet", "--seeds", "1"])]
)
def test_unknown_row_is_one_line_with_the_names(
    command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        start(command, arguments)
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: no row 'lenet' in the ladder: choose from lesson, lecun-300, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk"], "wanted run ROW, docs or nothing, got 'walk'"),
        (["run"], "wanted the name of a row first, got none"),
        (["run", "--seeds", "3"], "wanted the name of a row first, got --seeds"),
        (["run", "lesson", "--seeds", "0"], "--seeds: wanted 1 or more, got 0"),
        (["run", "lesson", "--first-seed", "-1"], "--first-seed: wanted 0 or more"),
        (["run", "lesson", "--first-seed", "4294967295", "--seeds", "2"], "--first-seed: wanted 0 or more, all seeds"),
        (["run", "lesson", "--first-seed", "4294967295"], "--first-seed: wanted 0 or more, all seeds"),
        (["run", "lesson", "--first-seed", "9" * 401], "--first-seed: wanted at most 18 digits"),
        pytest.param(
            ["run", "lesson", "--json", "/proc/none/results.json"],
            "cannot write /proc/none/results.json: No such file",
            marks=linux,
        ),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        start("ladder", arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_table_shows_what_was_measured_and_what_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    seeds = {n: SEED | {"test_error": error} for n, error in enumerate((0.6, 0.7, 0.8))}
    found = {"simard-elastic": Measured(seeds, {})}
    for shown, name in ((report.listing(found), "simard-elastic "), (report.table(found), "| `simard-elastic` ")):
        (row,) = [line for line in shown.splitlines() if line.startswith(name)]
        assert row.replace("|", "").split()[-6:] == ["0.70", "0.70", "±", "0.10", "(3)", "1.5"]
        assert shown.count(report.NOT_YET) == len(ROWS) - 1
        assert "4.58 ᵇ" in shown and "1.96 ᵛ" in shown
        assert "Measured on a CPU, 1 thread, torch 2; 2026-01-01." in shown.replace("\n", " ")


def test_rows_above_the_published_error_are_named_unless_that_is_a_best() -> None:
    errors = {"simard-elastic": 0.7049, "simard-affine": 1.11, "ciresan-9x1000": 0.45, "nielsen-quadratic-30": 5.0}
    found = {name: Measured({0: SEED | {"test_error": error}}, {}) for name, error in errors.items()}
    sentence = "our error is above the published one: simard-affine, ciresan-9x1000."
    assert sentence in report.listing(found).replace("\n", " ") and sentence in report.table(found)
    del found["simard-affine"], found["ciresan-9x1000"]
    assert "is above" not in report.table(found)


def test_table_fits_the_terminal_and_names_source_network_and_recipe_of_each_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = report.listing(read())
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for row in ROWS:
        about = re.escape(f"{report.network(row)}, {report.summary(row)}")
        (place,) = [match.start() for match in re.finditer(rf" {row.name} [^,]{{10,40}} {about} ", words)]
        assert max((row.source for row in ROWS), key=lambda source: words.rfind(source, 0, place)) == row.source


def test_page_and_picture_are_made_from_the_results() -> None:
    found = read()
    again = "write them anew: python -m bp_torch ladder docs"
    assert (DOCS / report.PAGE).read_text(encoding="utf-8") == report.page(found), again
    with Image.open(DOCS / report.PICTURE) as picture:
        assert picture.info["Description"] == report.digest(found), again
    for name, measured in found.items():
        assert measured.config == recipe(Config(recipe=name)), f"{name} was measured with another recipe"
        used = {seed["precision"] for seed in measured.seeds.values()}
        assert used <= ({"bf16", "full"} if measured.config["precision"] == "auto" else {"full"})


def test_results_are_in_the_package() -> None:
    assert results.FILE.is_file() and os.path.commonpath([results.FILE, DOCS.parent / "bp_torch"]).endswith("bp_torch")


def test_data_are_in_the_package() -> None:
    package = DOCS.parent / "bp_torch"
    settings = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    packed = {
        file for part in settings["tool"]["setuptools"]["package-data"]["bp_torch"] for file in package.glob(part)
    }
    assert {file for file in (package / "ladder").iterdir() if file.is_file() and file.suffix != ".py"} <= packed


def test_row_is_made_of_layers_of_which_the_later_ones_win() -> None:
    table = """
        [parts.slow]
        fields = { epochs = 9, seed = 1 }
        note = "Slow."
        [parts.wide]
        fields = { seed = 3 }
        note = "Wide."
        [[sources]]
        group = "a group"
        year = 2001
        source = "A paper"
        seeds = 2
        parts = ["slow"]
        fields = { epochs = 5, seed = 2 }
        note = "Of the source."
        [sources.rows]
        one = { published = 1.5, hidden = [30, 20], parts = ["wide"], note = "Its own." }
        two = { published = 2.5, kind = "best of several", fields = { epochs = 7 } }
    """
    one, two = read_rows(table)
    fields = {"epochs": 5, "seed": 3, "sizes": (784, 30, 20, 10)}
    note = "Slow. Of the source. Wide. Its own."
    assert one == Row("one", "a group", 2001, "A paper", 1.5, "one network", fields, note, 2)
    fields = {"epochs": 7, "seed": 2}
    assert two == Row("two", "a group", 2001, "A paper", 2.5, "best of several", fields, "Slow. Of the source.", 2)
