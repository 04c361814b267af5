"""The command ``predict``: answers, pictures in shades, JSON, and a line for what has no answer."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bp_torch.backprop import forward
from bp_torch.commands import predict
from bp_torch.digits import prepared
from bp_torch.training import Config, open_run, train
from tests.drawn_digits import drawn

ROOT = Path(__file__).parent.parent


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    ink = drawn(7, np.random.default_rng(0), 240, 24)
    Image.fromarray((255 * (1 - ink)).astype(np.uint8)).save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    Image.new("L", (60, 40), 250).save(tmp_path / "blank.png")
    return tmp_path / "blank.png"


def test_answer_comes_with_the_picture_and_the_ten_outputs(
    seven: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = prepared(seven)
    outputs = forward(open_run(run)[1], x[None]).activations[-1][0].tolist()
    for columns, times in ((100, 2), (80, 2), (60, 1)):
        monkeypatch.setenv("COLUMNS", str(columns))
        predict.main([str(seven), "--run", str(run)])
        network, empty, answer, *lines = capsys.readouterr().out.splitlines()
        assert network == f"network: {run}, 784-16-16-10, mnist" and not empty
        assert answer.startswith(f"{seven}: 7") and len(lines) == 28 and max(map(len, lines)) <= columns
        for line, row in zip(lines, x.view(28, 28).tolist(), strict=True):
            shown = "".join(" ░▒▓█"[round(4 * ink)] * times for ink in row)
            assert line[: 28 * times].ljust(28 * times) == shown
        beside = [line[28 * times :].split() for line in lines]
        assert [[int(words[0]), float(words[1])] for words in beside if words] == [
            [digit, pytest.approx(output, abs=0.0051)] for digit, output in enumerate(outputs)
        ]


def images_by_name(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    names = np.array([f"{'zyxwvutsrq'[k % 10]}-kind" for k in range(40)])
    np.savez(folder / "own.npz", x=pixels, y=names)
    return folder / "own.npz"


def test_answer_is_the_name_of_the_class(seven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = train(Config(dataset=images_by_name(tmp_path), runs_dir=tmp_path, epochs=1, log=False, device="cpu"))
    best = int(forward(open_run(own)[1], prepared(seven)[None]).activations[-1].argmax())
    name = sorted(f"{letter}-kind" for letter in "zyxwvutsrq")[best]
    capsys.readouterr()
    predict.main([str(seven), "--run", str(own)])
    said = capsys.readouterr().out
    assert f"\n{seven}: {name}" in said and "light on black, as MNIST's" in said
    assert [line.split()[-1] for line in said.splitlines() if "-kind" in line][1:] == [
        f"{letter}-kind" for letter in "qrstuvwxyz"
    ]
    predict.main([str(seven), "--run", str(own), "--json"])
    assert json.loads(capsys.readouterr().out)[0]["answer"] == name


def test_network_of_other_inputs_is_refused(seven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).normal(size=(40, 784))
    np.savez(tmp_path / "own.npz", x=pixels, y=np.arange(40) % 10)  # standardised: not what a picture becomes
    own = train(Config(dataset=tmp_path / "own.npz", runs_dir=tmp_path, epochs=1, log=False, device="cpu"))
    with pytest.raises(SystemExit) as stop:
        predict.main([str(seven), "--run", str(own)])
    assert stop.value.code == 2 and "has 784 columns, 10 classes" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_shades_are_those_that_the_encoding_has(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    shown = predict.shown([0.0, 0.25, 0.5, 0.75, 1.0, *[0.0] * 779], [0.0] * 9 + [1.0])
    assert shown.splitlines()[0].split() == [("  ░░▒▒▓▓██" if encoding == "utf-8" else "  ..::**##").strip()]
    print(shown)
    out.flush()


def test_json_is_a_list_of_files_with_answers_and_outputs(
    seven: Path, blank: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        predict.main(["--json", str(blank), "--run", str(run), str(seven), str(seven)])
    said = capsys.readouterr()
    assert (stop.value.code, said.err) == (1, f"error: {blank}: there is no digit in it\n")
    (found,) = json.loads(said.out)
    outputs = forward(open_run(run)[1], prepared(seven)[None]).activations[-1][0]
    assert found == {"file": str(seven), "answer": 7, "outputs": outputs.tolist()}


def test_prepared_pictures_are_saved(seven: Path, run: Path, tmp_path: Path) -> None:
    predict.main([str(seven), "--run", str(run), "--save", str(tmp_path / "new" / "folder")])
    with Image.open(tmp_path / "new" / "folder" / "1-seven.png") as image:
        assert (image.size, image.mode) == ((28, 28), "L")
        pixels = torch.from_numpy(np.array(image)).view(-1)
    assert (pixels - 255 * prepared(seven)).abs().max() < 0.51


def test_outputs_of_the_softmax_cost_are_probabilities(
    seven: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {"data_dir": data_dir, "runs_dir": tmp_path, "run_name": "softmax", "device": "cpu"}
    run = train(Config(cost="softmax-cross-entropy", learning_rate=0.5, epochs=2, train_examples=1000, **fields))
    capsys.readouterr()
    predict.main([str(seven), "--run", str(run), "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    scores = forward(open_run(run)[1], prepared(seven)[None]).activations[-1][0]
    assert found["outputs"] == pytest.approx(torch.softmax(scores, 0).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("outputs", "word"),
    [
        ([0.01, 0.95, 0.02], ""),
        ([0.01, 0.9, 0.44], ""),
        ([0.01, 0.9, 0.46], ", but not convincing: output 1 is 0.90, output 2 0.46"),
        ([0.31, 0.49, 0.01], ", but not convincing: output 1 is 0.49, output 0 0.31"),
        ([-0.5, -0.2, -0.3], ", but not convincing: output 1 is −0.20, output 2 −0.30"),
    ],
)
def test_answer_of_no_network_that_is_sure_has_a_word(outputs: list[float], word: str) -> None:
    assert predict.doubt(outputs) == word


@pytest.mark.parametrize(
    ("arguments", "files", "flags"),
    [
        (["a", "b"], ["a", "b"], []),
        (["--run", "r", "a"], ["a"], ["--run", "r"]),
        (["a", "--json", "-", "--save", "s"], ["a", "-"], ["--json", "--save", "s"]),
        (["--run=r", "a"], ["a"], ["--run=r"]),
        (["a", "--run"], ["a"], ["--run"]),
        (["--json", "--", "--a.png", "a"], ["--a.png", "a"], ["--json"]),
        (["a", "a"], ["a"], []),
    ],
)
def test_files_come_before_between_and_after_flags(arguments: list[str], files: list[str], flags: list[str]) -> None:
    assert predict.split(arguments) == (files, flags)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "wanted python -m bp_torch predict FILE ..., got no file"),
        (["--json"], 2, "wanted python -m bp_torch predict FILE ..., got no file"),
        (["seven.png", "--runs", "x"], 2, "Unrecognized options: --runs: did you mean --run?"),
        (["seven.png", "--run"], 2, "--run: wanted a path, got nothing"),
        (["seven.png"], 2, "no run in runs/ holds a trained network; train one with: bp-torch train"),
        (["seven.png", "--run", "nowhere"], 2, "no trained network in nowhere; train one with: bp-torch train"),
        (["none.png", "--run", "RUN"], 1, "none.png: No such file or directory"),
        ([".", "--run", "RUN"], 1, ".: it is a folder, not a file"),
        (["seven.png", "--run", "RUN", "--save", "seven.png"], 1, "seven.png"),
    ],
)
def test_mistake_is_reported_in_one_line(
    arguments: list[str],
    code: int,
    said: str,
    seven: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(seven.parent)
    with pytest.raises(SystemExit) as stop:
        predict.main([str(run) if argument == "RUN" else argument for argument in arguments])
    message = capsys.readouterr().err
    assert stop.value.code == code
    assert message.startswith("error: ") and message.count("\n") == 1 and said in message


def test_stdin_is_a_file_as_well(seven: Path, run: Path) -> None:
    command = [sys.executable, "-m", "bp_torch", "predict", "-", "--run", str(run)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    with seven.open("rb") as stdin:
        done = subprocess.run(
            command, stdin=stdin, env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
        )
    assert "\n-: 7" in done.stdout and "####" in done.stdout and not done.stderr
