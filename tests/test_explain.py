"""The command, its page, its pictures, and the network and examples that it explains."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bp_torch.backprop import backward, example_costs, forward
from bp_torch.commands import explain
from bp_torch.data import Examples, batch
from bp_torch.digits import prepared
from bp_torch.explain import IDEAS, About, style
from bp_torch.explain.drawing import diverging
from bp_torch.explain.idea import new_figure
from bp_torch.explain.index import Section, html
from bp_torch.explain.options import ExampleOptions, options_of
from bp_torch.explain.subject import (
    Subject,
    UsageError,
    all_costs,
    choose_example,
    full_gradient,
    newest_run,
)
from bp_torch.files import replace_file
from bp_torch.training import Config
from bp_torch.training.log import add_figures
from tests.drawn_digits import drawn
from tests.explain_subject import QUICK, forward_and_backward
from tests.followed import functions_run

ROOT = Path(__file__).parent.parent


# ---- examples and runs ----


def test_example_is_chosen_by_digit_and_index(subject: Subject) -> None:
    labels = subject.training.labels
    assert choose_example(subject, ExampleOptions(index=5)).position == 5
    twos = (labels == 2).nonzero()[:, 0]
    assert choose_example(subject, ExampleOptions(digit=2, index=3)).position == twos[3]
    for index in (-1, len(twos)):
        with pytest.raises(UsageError, match="--index: wanted 0 to"):
            choose_example(subject, ExampleOptions(digit=2, index=index))


def test_loudest_example_has_the_largest_output_delta(subject: Subject) -> None:
    twos = (subject.training.labels == 2).nonzero()[:, 0]
    examples = [choose_example(subject, ExampleOptions(digit=2, index=i)) for i in range(len(twos))]
    deltas = [forward_and_backward(subject.exact, example, "quadratic")[1].deltas[-1] for example in examples]
    largest = max(range(len(twos)), key=lambda i: deltas[i].norm().item())
    assert choose_example(subject, ExampleOptions(digit=2, loudest=True)).position == twos[largest]


def test_default_example_is_the_one_nearest_to_the_mean_that_is_classified_as_what_it_is(subject: Subject) -> None:
    twos = (subject.training.labels == 2).nonzero()[:, 0]
    x, _ = batch(subject.training, twos, torch.float64)
    far = (x - x.mean(0)).square().sum(1)
    answers = forward(subject.exact, x).activations[-1].argmax(1)
    nearest = min((i for i in range(len(twos)) if answers[i] == 2), key=lambda i: far[i].item())
    assert choose_example(subject, ExampleOptions()).position == twos[nearest]
    bad = subject.network.to()
    bad.biases[-1][2] = -100  # calls nothing a 2
    for other in (replace(subject, network=bad), replace(subject, network=bad, trained=False)):
        assert choose_example(other, ExampleOptions(digit=2)).position == twos[int(far.argmin())]


def test_test_example_is_one_of_the_test_set(subject: Subject) -> None:
    twos = (subject.test.labels == 2).nonzero()[:, 0]
    example = choose_example(subject, ExampleOptions(test=True, digit=2, index=3))
    assert example.position == twos[3] and example.name == f"a 2 (test example {twos[3]:,})"
    assert example.x[0].equal(subject.test.x[twos[3]].double() * (1 / 255))
    for options in (ExampleOptions(test=True), ExampleOptions(test=True, digit=8, loudest=True)):
        example = choose_example(subject, options)
        assert example.label == subject.test.labels[example.position] == (options.digit or 2)


@pytest.mark.parametrize("test", [False, True])
def test_mistake_is_one_that_the_network_gets_wrong(subject: Subject, test: bool) -> None:
    examples = subject.test if test else subject.training
    x, _ = batch(examples, slice(None), torch.float32)
    answers = forward(subject.network, x).activations[-1].argmax(1)
    wrong = (answers != examples.labels).nonzero()[:, 0]
    for index in (0, 3, len(wrong) - 1):
        example = choose_example(subject, ExampleOptions(test=test, mistakes=True, index=index))
        assert example.position == wrong[index]
        called = f"that the network calls an? {answers[wrong[index]]} \\({'test' if test else 'training'} example"
        assert re.search(called, example.name) and example.label == examples.labels[wrong[index]]
    assert choose_example(subject, ExampleOptions(test=test, mistakes=True)).position == wrong[0]
    loudest = choose_example(subject, ExampleOptions(test=test, mistakes=True, loudest=True))
    assert loudest.position in wrong and loudest.position != wrong[0]
    of_digit = wrong[examples.labels[wrong] == 5]
    assert choose_example(subject, ExampleOptions(test=test, mistakes=True, digit=5)).position == of_digit[0]
    with pytest.raises(UsageError, match=f"^--index: wanted 0 to {len(wrong) - 1}, got {len(wrong)}$"):
        choose_example(subject, ExampleOptions(test=test, mistakes=True, index=len(wrong)))


def test_network_without_mistakes_says_so(subject: Subject) -> None:
    one = Examples(
        subject.test.x[:1],
        forward(subject.network, batch(subject.test, slice(1), torch.float32)[0]).activations[-1].argmax(1),
    )
    with pytest.raises(UsageError, match="--mistakes: there is no test example that the network gets wrong"):
        choose_example(replace(subject, test=one), ExampleOptions(test=True, mistakes=True))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A picture of a 4 in a file."""
    ink = drawn(4, np.random.default_rng(0), 240, 24)
    Image.fromarray((255 * (1 - ink)).astype(np.uint8)).save(tmp_path / "four.png")
    return tmp_path / "four.png"


def test_own_image_is_what_the_network_answers_or_what_the_label_says(subject: Subject, own: Path) -> None:
    answer = int(forward(subject.exact, prepared(own)[None].double()).activations[-1].argmax())
    example = choose_example(subject, ExampleOptions(image=own))
    assert example.x.equal(prepared(own)[None].double()) and example.label == answer
    assert example.name.endswith(f"a {answer} (in four.png, as the network answers)".removeprefix("a "))
    labelled = choose_example(subject, ExampleOptions(image=own, label=8))
    assert (labelled.label, labelled.name) == (8, "an 8 (in four.png)") and labelled.x.equal(example.x)
    assert labelled.y.tolist() == [[0.0] * 8 + [1.0, 0.0]]


EXAMPLES: dict[str, dict[str, Any]] = {
    "image": {"image": True},
    "image and label": {"image": True, "label": 9},
    "test": {"test": True},
    "mistakes": {"mistakes": True, "test": True},
}


@pytest.mark.parametrize(
    "which",
    [pytest.param(which, marks=() if which in ("image", "mistakes") else pytest.mark.long) for which in EXAMPLES],
)
@pytest.mark.parametrize("name", [name for name in IDEAS if issubclass(options_of(name), ExampleOptions)])
def test_every_idea_of_one_example_takes_every_example(subject: Subject, own: Path, name: str, which: str) -> None:
    chosen = EXAMPLES[which] | ({"image": own} if "image" in EXAMPLES[which] else {})
    options = options_of(name)(**chosen)
    idea = explain.compute(name, subject, options)
    example = choose_example(subject, options)
    figure = idea.figure()
    check_inside(figure)
    assert f"The example is {example.name}." in " ".join(figure.texts[1].get_text().split())
    assert example.name in idea.table()
    assert idea.example.x.equal(example.x) and idea.example.label == example.label


def test_newest_run_is_the_default(tmp_path: Path) -> None:
    for name, when in (("old", 1_000), ("new", 3_000), ("middle", 2_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "network.safetensors").touch()
        os.utime(tmp_path / name / "network.safetensors", (when, when))
    (tmp_path / "unfinished").mkdir()
    assert newest_run(tmp_path).name == "new"


@pytest.mark.parametrize("chunk", [700, 10_000])
def test_gradient_over_chunks_equals_gradient_of_one_batch(subject: Subject, chunk: int) -> None:
    network, training = subject.exact, subject.training
    x, y = batch(training, torch.arange(len(training.labels)), torch.float64)
    passed = forward(network, x)
    torch.testing.assert_close(all_costs(network, training, "quadratic"), example_costs(passed, y), rtol=1e-13, atol=0)
    expected = backward(network, passed, y).gradient
    torch.testing.assert_close(full_gradient(network, training, "quadratic", chunk), expected, rtol=0, atol=1e-15)


# ---- pictures ----


@pytest.mark.parametrize("name", IDEAS)
def test_every_idea_draws_its_picture_and_prints_its_table(subject: Subject, name: str) -> None:
    idea = explain.compute(name, subject, options_of(name)(**QUICK.get(name, {})))
    figure = idea.figure()
    assert figure.get_size_inches()[0] * figure.dpi >= 1200
    head = " ".join(figure.texts[0].get_text().split())
    assert head == idea.finding() and len(head) > 30
    assert all(axes.get_xlabel() for axes in figure.axes if axes.lines and axes.get_xticks().size)
    check_inside(figure)
    assert len(idea.table().splitlines()) > 4


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "nudges" else pytest.mark.long) for n in IDEAS])
def test_narrow_picture_of_every_idea_is_whole_and_legible(subject: Subject, name: str) -> None:
    idea = explain.compute(name, subject, options_of(name)(**QUICK.get(name, {})))
    narrow = idea.figure(narrow=True)
    check_inside(narrow)
    check_legible(narrow)


def check_inside(figure: Figure) -> None:
    """Nothing is cut off at the sides."""
    figure.set_dpi(40)
    figure.draw_without_rendering()
    left, right = figure.get_tightbbox().intervalx  # inches
    assert left > -0.03 and right < figure.get_figwidth() + 0.03


def check_legible(figure: Figure) -> None:
    """All type has 11 pixels or more where the picture is 356 pixels wide, as on a screen of 390."""
    written = [each for each in figure.findobj(Text) if each.get_text().strip() and each.get_visible()]
    pixels_a_point = 356 / figure.get_figwidth() / 72
    assert min(float(each.get_fontsize()) for each in written) * pixels_a_point >= 11


@pytest.mark.parametrize("sizes", [(784, 10), pytest.param((784, 40, 9, 8, 10), marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["cost", "gradient", "nudges", "hebbian", "backwards", "average", "batches"])
@pytest.mark.parametrize("narrow", [False, pytest.param(True, marks=pytest.mark.long)])
def test_other_networks_draw_as_well(subject: Subject, name: str, sizes: tuple[int, ...], narrow: bool) -> None:
    config = Config(sizes=sizes, activation="relu", cost="softmax-cross-entropy", init="he")
    few = Examples(subject.training.x[:60], subject.training.labels[:60])
    network = config.network(torch.device("cpu"))
    other = replace(subject, config=config, network=network, training=few, trained=False)
    options = options_of(name)(**({"batch_size": 20} if name == "batches" else {}))
    idea = explain.compute(name, other, options)
    check_inside(idea.figure(narrow=narrow))
    assert "Untrained" in idea.table()


def test_zero_is_in_the_middle_of_a_diverging_scale() -> None:
    axes = new_figure(1.0, "a finding", "a note", "a network").subplots()
    drawn = diverging(axes, torch.tensor([[-1.0, 3.0]]), 3.0)
    assert drawn.get_clim() == (-3.0, 3.0) and style.DIVERGING(0.5)[:3] == pytest.approx((0.97, 0.97, 0.96), abs=0.01)


# ---- the command ----


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "unknown idea 'nonsense': choose from cost, gradient"),
        (["only", "--digit", "12"], "--digit: wanted 0 to 9, got 12"),
        (["nudges", "--neuron", "10"], "--neuron: wanted 0 to 9, got 10"),
        (["nudges", "--index", "2000", "--run", "RUN"], "--index: wanted 0 to 1999, got 2000"),
        (["backwards", "--digit", "2", "--index", "-1", "--run", "RUN"], "--index: wanted 0 to"),
        (["hebbian", "--layer", "4", "--run", "RUN"], "--layer: wanted 1 to 3, got 4"),
        (["average", "--first", "1996", "--run", "RUN"], "--first: wanted 0 to 1,994"),
        (["gradient", "--run", "no/such/run"], "no trained network in no/such/run; train one with: bp-torch train"),
        (["gradient"], "no run in runs/ holds a trained network; train one with: bp-torch train"),
        (["gradient", "--run", "RUN", "--out", "picture.bmp"], "--out: wanted a file ending in .png"),
        (["gradient", "--run", "RUN", "--untrained"], "exclude each other"),
        (["gradient", "--ratio", "1"], "--ratio: wanted above 1, got 1"),
        (["nudges", "--index", "3", "--loudest"], "--index and --loudest exclude each other"),
        (["nudges", "--label", "3"], "--label has no effect without --image"),
        (["cost", "--image", "four.png", "--mistakes"], "--image and --mistakes exclude each other"),
        (["hebbian", "--image", "none.png", "--run", "RUN"], "--image none.png: No such file or directory"),
        (["backwards", "--image", ".", "--run", "RUN"], "--image .: it is a folder, not a file"),
        (["batches", "--shown", "7"], "--shown: wanted 1 to 6, got 7"),
        (["batches", "--run", "RUN", "--batch-size", "2001"], "--batch-size: wanted 1 to 2,000, got 2001"),
        (["descent", "--mini-steps", "0"], "--mini-steps: wanted 1 or more, got 0"),
        (["descent", "--seed", str(10**23)], "--seed: wanted 0 to 4,294,967,295, got 1"),
        (["nudges", "--threads", "100000"], "--threads: wanted 1 to 1024, got 100000"),
        (["descent", "--run", "RUN", "--single-learning-rate", "1e300"], "--single-learning-rate: the learning rate"),
        (["all", "--nonsense"], "--nonsense"),
        (["nudges", "--run", "RUN", "--device", "tpu"], "no device 'tpu' here"),
    ],
)
def test_mistake_is_reported_in_one_line(
    arguments: list[str],
    said: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        explain.main([str(run) if argument == "RUN" else argument for argument in arguments])
    message = capsys.readouterr().err
    assert stop.value.code == (1 if "--device" in arguments else 2)
    assert message.startswith("error: ") and message.count("\n") == 1 and said in message


def test_help_lists_all_ideas(capsys: pytest.CaptureFixture[str]) -> None:
    explain.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in (*IDEAS, "page", "all"))


def test_picture_is_written_and_logged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folder" / "picture.png"
    explain.main(["nudges", "--run", str(run), "--digit", "2", "--out", str(out), "--log"])
    said = capsys.readouterr().out
    assert "bang for the buck at output 2" in said and f"wrote {out}" in said
    assert out.read_bytes().startswith(b"\x89PNG")
    assert sum(b"explain/nudges" in events.read_bytes() for events in run.glob("events.out.tfevents.*")) == 1


def test_figure_for_a_folder_that_cannot_be_written_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        add_figures(tmp_path / "nowhere", {})


def test_all_ideas_make_a_page_from_the_quick_ones_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"backwards": IDEAS["backwards"]._replace(passes=1)}
    monkeypatch.setattr(explain, "IDEAS", slow | {"hebbian": IDEAS["hebbian"]})
    written: list[str] = []
    write = replace_file

    def noted(path: Path, content: bytes) -> None:
        written.append(path.name)
        if path.name == "index.html":
            written.append(f"{content.count(b'Being computed')} to come")
        write(path, content)

    monkeypatch.setattr("bp_torch.commands.explain.replace_file", noted)
    before = set(run.iterdir())
    explain.main(["all", "--run", str(run), "--out", str(tmp_path), "--log"])
    assert [name for name in written if "narrow" not in name] == [
        *("page.html", "hebbian.png", "index.html", "1 to come"),
        *("backwards.png", "index.html", "0 to come"),
    ]
    said = capsys.readouterr().out
    assert said.startswith("This takes about ") and "backwards" in said.splitlines()[0]
    (events,) = set(run.iterdir()) - before
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in ("hebbian", "backwards"):
        assert (tmp_path / f"{name}.png").is_file() and f'<a class="picture" href="{name}.png"' in page
        assert (tmp_path / f"{name}.narrow.png").is_file() and f'srcset="{name}.narrow.png"' in page
        assert f"explain/{name}".encode() in events.read_bytes()
        assert f"<h2>{IDEAS[name].heading.capitalize()[:30]}" in page
    places = ('<a href="page.html">', '<a href="#backwards">', '<a href="#hebbian">', '<section id="hebbian">')
    assert [*map(page.index, places)] == sorted(map(page.index, places))
    assert (tmp_path / "page.html").is_file()
    assert IDEAS["backwards"].words.split(",")[0] in page and "sum of the rows" in page


def test_sections_lead_to_those_before_and_after() -> None:
    page = html("", [Section(name, About(name.upper(), "", ())) for name in "abc"])
    assert page.count('rel="prev"') == page.count('rel="next"') == 2
    middle = page[page.index('<section id="b">') : page.index('<section id="c">')]
    assert '<a href="#a" rel="prev">← A</a><a href="#c" rel="next">C →</a>' in middle


def test_text_in_the_page_is_escaped() -> None:
    about = About("about", "1 < 2 & 3", ("backprop.forward",))
    page = html("a < b", [Section("x", about, "finding", "<table>")])
    assert "1 &lt; 2 &amp; 3" in page and "&lt;table&gt;" in page and "a &lt; b" in page


# ---- the functions that an idea says it is made by ----

ROW = re.compile(r"^\| .* \| \[`(\w+)`\]\((?:\.\./)?(bp_torch/explain/\w+\.py)\) \| (.*) \|$", re.MULTILINE)
CALL = re.compile(r"\[`([\w.]+)`\]\([\w./]*?(\w+)\.py\)")


def documented(page: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """{idea: (file, functions)} from the table of the page."""
    rows = {}
    for idea, file, made_by in ROW.findall(page):
        rows[idea] = file, tuple(f"{module}.{function}" for function, module in CALL.findall(made_by))
    return rows


def test_docs_name_every_idea_with_its_file_and_functions() -> None:
    files = {name: Path(explain.load_idea(name).__file__).relative_to(ROOT).as_posix() for name in IDEAS}
    page = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    assert documented(page) == {name: (file, IDEAS[name].made_by) for name, file in files.items()}


@pytest.mark.parametrize("name", IDEAS)
def test_functions_that_an_idea_names_are_called(subject: Subject, name: str) -> None:
    few = Examples(subject.training.x[:120], subject.training.labels[:120])
    small = replace(subject, training=few, config=replace(subject.config, epochs=1))
    quick = QUICK.get(name, {}) | {"only": {"steps": 3}, "batches": {"batch_size": 50}}.get(name, {})
    options, made_by = options_of(name)(**quick), IDEAS[name].made_by
    found = functions_run(lambda: explain.compute(name, small, options))
    assert made_by and set(made_by) <= {f"{Path(code.co_filename).stem}.{code.co_qualname}" for code in found}
