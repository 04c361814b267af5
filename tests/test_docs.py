"""The README and docs/ are true: examples print what is shown, excerpts are the source, flags and links exist."""

import importlib
import itertools
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bp_torch import __version__, backprop
from bp_torch.activations import ACTIVATIONS
from bp_torch.benchmark.accuracy import Accuracy
from bp_torch.benchmark.scripts import Scripts
from bp_torch.cli import parse
from bp_torch.commands import benchmark, explain, ladder, predict, verify_bench, verify_options
from bp_torch.commands.train import of_recipe
from bp_torch.convert import MODULES
from bp_torch.costs import COSTS
from bp_torch.explain import options as explain_options
from bp_torch.sweep.config import SweepConfig
from bp_torch.training import Config, train
from bp_torch.training.rows import find

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Block(NamedTuple):
    """A fenced block. A ``python`` block that names a ``file`` is an excerpt of that file; any other is an example."""

    language: str
    file: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [
        Block(*found)
        for found in re.findall(r"^```(\w*) ?(\S*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    ]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


# ---- examples and excerpts ----


@pytest.fixture
def unpatched() -> Iterator[None]:
    """Restores what an example replaces or adds."""
    tables: list[dict[str, Any]] = [vars(backprop), ACTIVATIONS, COSTS, MODULES]
    saved = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, saved, strict=True):
        table.clear()
        table.update(before)


@each_page
def test_examples_print_what_is_shown(
    page: Path,
    tmp_path: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unpatched: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(data_dir)
    names: dict[str, Any] = {"__name__": "example"}
    found = [*blocks(page), Block("", "", "")]
    for block, following in itertools.pairwise(found):
        if block.language == "python" and not block.file:
            exec(compile(block.text, page.name, "exec"), names)
            assert_same_output(capsys.readouterr().out, following.text if following.language == "text" else "")


def assert_same_output(printed: str, shown: str) -> None:
    """The same words and, up to rounding on another machine, the same numbers; spaces do not count. … is some lines."""
    ours, (theirs, *rest) = printed.split(), [part.split() for part in shown.split("\n…\n")]
    if rest:
        assert len(ours) > len(theirs) + len(rest[0]), f"printed:\n{printed}"
        ours, theirs = ours[: len(theirs)] + ours[-len(rest[0]) :], theirs + rest[0]
    same = len(ours) == len(theirs) and all(map(same_word, ours, theirs))
    assert same, f"printed:\n{printed}\nshown:\n{shown}"


def same_word(one: str, other: str) -> bool:
    if one == other or not re.fullmatch(r"[+-]?\d+\.\d+(e-?\d+)?", other):
        return one == other
    return float(one) == pytest.approx(float(other), rel=0.5 if "e-" in other else 1e-3)


@each_page
def test_excerpts_are_lines_of_the_source(page: Path) -> None:
    for block in blocks(page):
        if block.file:
            source = (ROOT / block.file).read_text(encoding="utf-8")
            indented = [textwrap.indent(block.text, " " * spaces) for spaces in (0, 4, 8)]
            assert any(f"\n{lines}" in source for lines in indented), f"not in {block.file}:\n{block.text}"


@pytest.mark.long
def test_training_prints_what_the_readme_shows(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Config(runs_dir=tmp_path, data_dir=data_dir, device="cpu"))
    out = capsys.readouterr().out.replace(str(data_dir), "data")
    about, header, *epochs, saved, watch, address, touch = out.splitlines()
    (shown,) = [block.text.splitlines() for block in blocks(ROOT / "README.md") if block.text.startswith(about)]
    assert shown[1] == header
    for ours, readme in zip((saved, watch, address, touch), shown[-4:], strict=True):
        name = r"784-16-16-10_\d{4}-\d{6}"
        assert re.sub(name, "NAME", ours.replace(str(tmp_path), "runs")) == re.sub(name, "NAME", readme)
    rows = {line.split()[0]: numbers(line) for line in epochs}
    for line in shown[2:-4]:
        if line != "…":
            found, stated = rows[line.split()[0]], numbers(line)
            assert found[0:3:2] == pytest.approx(stated[0:3:2], rel=0.1), "costs"
            assert found[1:4:2] == pytest.approx(stated[1:4:2], abs=1), "accuracies"
    assert numbers(epochs[-1])[3] == pytest.approx(94.9, abs=0.6), "the accuracy that the README states"


def numbers(line: str) -> list[float]:
    """Costs, accuracies in %, examples per second and seconds of one epoch."""
    return [float(word.strip("%").replace(",", "")) for word in line.split()[1:]]


# ---- commands, flags, paths, links ----


def options_of(command: str, idea: str = "") -> Any:
    if command == "explain":
        return explain_options.options_of(idea)
    options = {
        "train": Config,
        "sweep": SweepConfig,
        "ladder": ladder.Run,
        "ladder docs": ladder.Docs,
        "verify": verify_options.Options,
        "bench": verify_bench.Options,
        "file": verify_options.FileOptions,
        "layer": verify_options.LayerOptions,
        "predict": predict.Options,
        "benchmark": benchmark.Options,
        "accuracy": Accuracy,
        "scripts": Scripts,
    }
    return options[command]


def commands() -> list[str]:
    """Every command of this project that a page shows, one in each line of a bash block or in a code span."""
    shown = [line for page in PAGES for line in code_spans(page)]
    for block in (block for page in PAGES for block in blocks(page) if block.language == "bash"):
        shown += block.text.splitlines()
    parts = [part.strip() for line in shown for part in line.split("#")[0].split("&&")]
    return [
        part
        for part in parts
        if re.match(r"(python|torchrun) .*train\.py|(python|torchrun .*) -m bp_torch\b|bp-torch\b", part)
    ]


@pytest.mark.parametrize("line", dict.fromkeys(commands()))
def test_commands_are_accepted(line: str) -> None:
    words = shlex.split(line, comments=True)
    if any(word.endswith("train.py") for word in words):
        command, arguments = "train", words[words.index("train.py") + 1 :]
    else:
        command, *arguments = words[words.index("bp_torch") + 1 :] if "bp_torch" in words else words[1:] or ["train"]
    if command == "verify" and arguments[:1] == ["bench"]:
        command, arguments = "bench", arguments[1:]
    if command == "verify" and arguments[:1] == ["layer"]:
        command, arguments = "layer", [*itertools.dropwhile(lambda word: word[:1] != "-", arguments)]
        arguments = ["1" if word == "N" else word for word in arguments]
    if command == "verify" and arguments and ":" in arguments[0]:
        command, arguments = "file", [*itertools.dropwhile(lambda word: ":" in word, arguments)]
    if command == "benchmark" and arguments[:1] in (["accuracy"], ["scripts"]):
        command, arguments = arguments[0], arguments[1:]
    if command == "predict":
        files, arguments = predict.split(arguments)
        assert files
    if command == "ladder" and arguments[:1] == ["run"]:
        find(arguments[1])
        arguments = arguments[2:]
    elif command == "ladder" and arguments:
        command, arguments = f"ladder {arguments[0]}", arguments[1:]
    if command == "train" and "--recipe" in arguments:
        arguments = [word.replace("ROW", "lesson") for word in arguments]
    idea = arguments.pop(0) if command == "explain" and arguments else "all"
    if idea == "IDEA":
        idea = "all"
    if "--help" not in arguments:
        default = of_recipe(arguments) if command == "train" else None
        parse(options_of(command, idea), description="", args=arguments, default=default)


def test_some_commands_are_found() -> None:
    assert {"python train.py", "python -m bp_torch verify", "python -m bp_torch benchmark --sweep"} <= set(commands())


def known_flags() -> set[str]:
    commands = ("train", "sweep", "ladder", "verify", "file", "layer", "predict", "benchmark", "accuracy")
    options = [options_of(command) for command in commands]
    options += [options_of("explain", idea) for idea in (*explain.IDEAS, "page", "all")]
    names = {field.name.replace("_", "-") for kind in options for field in fields(kind)}
    return {f"--{prefix}{name}" for name in names for prefix in ("", "no-")} | {"--help", "--version"}


@each_page
def test_flags_exist(page: Path) -> None:
    flags = {span.split()[0] for span in code_spans(page) if span.startswith("--")}
    assert flags <= known_flags()


@each_page
def test_paths_exist(page: Path) -> None:
    for span in code_spans(page):
        if re.fullmatch(r"(bp_torch|tests|docs|\.ci|\.github)/[\w./-]*", span):
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"\w+\.py", span):
            assert any((folder / span).exists() for folder in (ROOT, ROOT / "bp_torch", ROOT / "tests")), span


@each_page
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith(("https://", "http://")):
            path, _, heading = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not heading or heading in headings(file), target


def headings(page: Path) -> set[str]:
    """The headings of a page as they stand in a link."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---- the README ----


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 170


def test_readme_names_every_page() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README


def test_every_equation_names_its_function() -> None:
    rows = re.findall(r"^\| (forward|BP\d) \|.*\| `(\w+)` \|$", README, re.M)
    assert [row[0] for row in rows] == ["forward", "BP1", "BP2", "BP3", "BP4"]
    for equation, function in rows[1:]:
        assert (getattr(backprop, function).__doc__ or "").startswith(f"{equation}:")


def test_readme_has_two_commands_and_ci_runs_the_second() -> None:
    section = README.split("## Two commands")[1].split("\n## ")[0]
    lines = re.findall(r"```bash\n(.*?)```", section, re.S)
    assert lines == ["pip install -e . && python train.py\n", 'pip install -e ".[test]" && python -m pytest\n']
    (pattern,) = re.findall(r"grep -m 1 -E '(.*?)' README\.md", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    found = next(line for line in README.splitlines() if re.search(pattern, line))
    assert f"{found}\n" == lines[1]


# ---- other pages ----


def test_contributing_names_the_tables_that_each_file_has() -> None:
    functions = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Add a flag")[0]
    items = re.findall(r"^\d\. \[`([\w/.]+)`\](.*(?:\n   .*)*)", functions, re.M)
    assert len(items) == 8
    for file, text in items:
        names = re.findall(r"`([A-Z]\w*|absorbs)`", text)
        assert names
        for name in names:
            assert re.search(rf"^ *{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.M), (
                f"{name} is not in {file}"
            )


def test_explain_page_names_the_functions_of_each_idea() -> None:
    rows = re.findall(
        r"^\| .* \| \[`(\w+)`\]\((\S+)\) \| (.*) \|$", (ROOT / "docs/explain.md").read_text(encoding="utf-8"), re.M
    )
    assert [name for name, _, _ in rows] == list(explain.IDEAS)
    for name, file, made_by in rows:
        assert (ROOT / "docs" / file).resolve() == Path(explain.load_idea(name).__file__)
        called = re.findall(r"\[`([\w.]+)`\]\(\S*?(\w+)\.py\)", made_by)
        assert tuple(f"{module}.{function}" for function, module in called) == explain.IDEAS[name].made_by


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in ("CITATION.cff", "CHANGELOG.md"):
        (first, *_) = re.findall(r"^(?:version: |## )([\d.]+)", (ROOT / name).read_text(encoding="utf-8"), re.M)
        assert first == project["version"] == __version__, name


def test_console_script_and_types_are_there() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = settings["project"]["scripts"]["bp-torch"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["bp_torch"]
    assert (ROOT / "bp_torch/py.typed").is_file()
