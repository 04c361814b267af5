"""``python -m bp_torch explain IDEA``: print the numbers of an idea and draw its picture on a real network.

    python -m bp_torch explain backwards --digit 2
    python -m bp_torch explain all

An idea is loaded only when it is named. Nothing here computes.
"""

import importlib
import inspect
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.explain.subject import CommonOptions, Subject, UsageError, full_gradient, open_subject
from bp_torch.files import replace_file
from bp_torch.text import fitted, named, wrapped
from bp_torch.training.log import add_figures

IDEAS = {
    "cost": "the cost of one image: ten squared differences, added up",
    "gradient": "how sensitive the cost is to each weight and bias",
    "nudges": "what one image wants of every output, and three ways to get it",
    "hebbian": "whether neurons that fire together are wired together",
    "backwards": "what each neuron asks of the layer before it, and the sum that is passed on",
    "only": "what happens to a network that listens to one digit alone",
    "average": "the wishes of all images side by side; their average is −∇C",
    "batches": "the examples, shuffled and cut into mini-batches",
    "descent": "a few careful steps down, or many quick ones that stagger",
    "minimum": "whether the run ended in a minimum, or was still going down",
    "data": "how much better the network gets with more training examples",
}
"""Every idea as its heading, in the order of the lesson."""

PASSES = {"only": 11, "average": 13, "minimum": 30, "descent": 58, "data": 70}
"""The ideas that take long, by their time in passes forward and back over all training examples."""

QUICK = 38
"""The time of all others together, in such passes."""

FILE_TYPES = (".png", ".svg", ".pdf")

PAGE = "a page for the browser that holds the network, to touch: page.html"

EVERY_IDEA = "all of them, as one folder of pictures and a page, index.html"

WHERE = "Each has its own --help. The network is that of the newest run in runs/; make one with: python train.py"


def usage() -> str:
    """What can be asked for."""
    ideas = IDEAS | {"page": PAGE, "all": EVERY_IDEA}
    return "\n\n".join(
        [
            "usage: python -m bp_torch explain IDEA [OPTIONS]",
            wrapped("Show an idea on a trained network: numbers as a table, and a picture."),
            named(ideas),
            wrapped(WHERE),
        ]
    )


def main(arguments: list[str]) -> None:
    """The command: show the idea that the first argument names."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in (*IDEAS, "page", "all"):
        fail(f"unknown idea {name!r}: choose from {', '.join(IDEAS)}, page, all", 2)
    kind = AllOptions if name == "all" else load_idea(name).Options
    about = {"page": f"Write {PAGE}.", "all": f"Show {EVERY_IDEA}."}.get(name) or load_idea(name).IDEA
    options = parse(kind, prog=f"python -m bp_torch explain {name}", description=about, args=rest)
    with one_line_errors():
        if name == "all":
            show_all(options)
        elif name == "page":
            show_page(options)
        else:
            show(name, options)


def load_idea(name: str) -> Any:
    """The module of an idea."""
    return importlib.import_module(f"bp_torch.explain.{'more_data' if name == 'data' else name}")


def show(name: str, options: Any) -> None:
    """Print the numbers of the idea ``name`` and write its picture."""
    from bp_torch.explain.style import file_content

    if options.out is not None and options.out.suffix not in FILE_TYPES:
        raise UsageError(f"--out: wanted a file ending in {', '.join(FILE_TYPES)}, got {options.out}")
    subject = open_subject(options)
    out = options.out or subject.folder / "explained" / f"{name}.png"
    idea = load_idea(name)
    result = idea.explain(subject, options)
    print(fitted(f"{idea.table(result)}\n\n{idea.finding(result)}.\n"))
    figure = idea.figure(result)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, file_content(figure, out.suffix))
    if options.log:
        add_figures(subject.folder, {name: narrow_figure(idea, result) or figure})
    print(f"wrote {out}")


def show_page(options: Any) -> None:
    """Write the page that holds the network, and open it if that is asked for."""
    from bp_torch.explain.page import write_page

    subject = open_subject(options)
    out = options.out or subject.folder / "explained" / "page.html"
    page = write_page(subject)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, page.encode())
    print(f"wrote {out}")
    if options.open:
        webbrowser.open(out.resolve().as_uri())


@dataclass(frozen=True)
class AllOptions(CommonOptions):
    """The flags of ``explain all``."""

    out: Path | None = None
    """Folder of the pictures and index.html. None: explained/ in the run's folder."""


def show_all(options: AllOptions) -> None:
    """Write every idea's picture, and the page that explains them: what is quick at once, then the rest."""
    from bp_torch.explain.index import Section, html

    subject = open_subject(options)
    folder = options.out or subject.folder / "explained"
    folder.mkdir(parents=True, exist_ok=True)
    ideas = {name: load_idea(name) for name in IDEAS}
    sections = {
        name: Section(name, heading[0].upper() + heading[1:], ideas[name].IDEA, ideas[name].MADE_BY)
        for name, heading in IDEAS.items()
    }
    print(wrapped(duration(seconds_a_pass(subject))))
    pages, figures = write_touchable(subject, folder), {}
    order = sorted(IDEAS, key=lambda name: PASSES.get(name, 0))
    with tqdm(order, unit="idea", leave=False, disable=None) as bar:
        for name in bar:
            bar.set_description(name)
            start = time.perf_counter()
            figures[name], result = explained(ideas[name], subject, folder / name)
            sections[name] = sections[name]._replace(result=result)
            replace_file(folder / "index.html", html(subject.caption, list(sections.values()), pages).encode())
            bar.write(wrapped(f"{result.finding}.", f"{name:10} {time.perf_counter() - start:6.1f} s   ", " " * 22))
    if options.log:
        add_figures(subject.folder, figures)
    print(f"wrote {folder / 'index.html'}")


def seconds_a_pass(subject: Subject) -> float:
    """How long one pass forward and back over all training examples takes."""
    start = time.perf_counter()
    full_gradient(subject.exact, subject.training, subject.config.cost)
    return time.perf_counter() - start


def duration(a_pass: float) -> str:
    """How long ``explain all`` will take, from the seconds of one pass."""
    long = ", ".join(f"{name} {passes * a_pass:.0f}" for name, passes in PASSES.items() if name in IDEAS)
    quick, total = (a_pass * passes for passes in (QUICK, QUICK + sum(PASSES.values())))
    return f"This takes about {total:.0f} s: {quick:.0f} for what is quick, then {long}"


def write_touchable(subject: Subject, folder: Path) -> dict[str, str]:
    """Write page.html, and return the link to it, {file: words}; nothing for a network that it cannot show."""
    from bp_torch.explain.page import PageError, write_page

    try:
        replace_file(folder / "page.html", write_page(subject).encode())
    except (PageError, UsageError) as error:
        print(f"no page.html: {error}")
        return {}
    return {"page.html": "The network itself, to touch"}


def explained(idea: Any, subject: Subject, file: Path) -> tuple[Any, Any]:
    """The figure of one idea for TensorBoard, and its result for the page. Its pictures are ``file`` with endings."""
    from bp_torch.explain.index import Result
    from bp_torch.explain.style import file_content

    result = idea.explain(subject, idea.Options())
    figure = idea.figure(result)
    replace_file(file.with_suffix(".png"), file_content(figure))
    narrow = narrow_figure(idea, result)
    if narrow:
        replace_file(file.with_suffix(".narrow.png"), file_content(narrow))
    return narrow or figure, Result(idea.finding(result), idea.table(result), narrow is not None)


def narrow_figure(idea: Any, result: Any) -> Any:
    """The figure of an idea for a narrow screen, or for a card of TensorBoard; None if it has none."""
    return idea.figure(result, narrow=True) if "narrow" in inspect.signature(idea.figure).parameters else None
