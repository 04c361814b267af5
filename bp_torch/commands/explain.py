"""``python -m bp_torch explain IDEA``: print the numbers of an idea and draw its picture on a real network.

    python -m bp_torch explain backwards --digit 2
    python -m bp_torch explain all

An idea is loaded only when it is named. Nothing here computes.
"""

import time
import webbrowser
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bp_torch.cli import one_line_errors, parse, unknown
from bp_torch.commands import load_torch
from bp_torch.explain import IDEAS as IDEAS
from bp_torch.explain import compute as compute
from bp_torch.explain import load_idea as load_idea
from bp_torch.explain.options import AllOptions, options_of
from bp_torch.files import check_writable, replace_file
from bp_torch.text import fitted, named, wrapped

if TYPE_CHECKING:
    from bp_torch.explain.subject import Subject

QUICK = 38  # the time of all ideas together that have no ``passes``, in passes over all training examples
FILE_TYPES = (".png", ".svg", ".pdf")
PAGE = "a page for the browser that holds the network, to touch: page.html"
EVERY_IDEA = "all of them, as one folder of pictures and a page, index.html"
WHERE = "Each has its own --help. The network is that of the newest run in runs/; make one with: python train.py"


def main(arguments: list[str]) -> None:
    """Show the idea that the first argument names."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m bp_torch explain IDEA [OPTIONS]\n")
        print(wrapped("Show an idea on a trained network: numbers as a table, and a picture."))
        headings = {name: about.heading for name, about in IDEAS.items()}
        print(f"\n{named(headings | {'page': PAGE, 'all': EVERY_IDEA})}\n\n{wrapped(WHERE)}")
        return
    if name not in (*IDEAS, "page", "all"):
        unknown("idea", name, (*IDEAS, "page", "all"))
    about = IDEAS[name].words if name in IDEAS else f"Write {PAGE}." if name == "page" else f"Show {EVERY_IDEA}."
    options = parse(options_of(name), prog=f"python -m bp_torch explain {name}", description=about, args=rest)
    with one_line_errors():
        load_torch(options.threads)
        {"all": show_all, "page": show_page}.get(name, partial(show, name))(options)


def show(name: str, options: Any) -> None:
    """Print the numbers of the idea ``name`` and write its picture."""
    from bp_torch.explain.idea import file_content
    from bp_torch.explain.subject import UsageError, open_subject
    from bp_torch.training.log import add_figures

    if options.out is not None and options.out.suffix not in FILE_TYPES:
        raise UsageError(f"--out: wanted a file ending in {', '.join(FILE_TYPES)}, got {options.out}")
    subject = open_subject(options)
    out = options.out or subject.folder / "explained" / f"{name}.png"
    check_writable(out, "--out")
    idea = compute(name, subject, options)
    if names := subject.training.kind.names:
        print(wrapped(f"classes: {', '.join(f'{label} {name}' for label, name in enumerate(names))}\n"))
    print(fitted(f"{idea.table()}\n\n{idea.finding()}.\n"))
    replace_file(out, file_content(idea.figure(), out.suffix))
    if options.log:
        add_figures(subject.folder, {name: idea.figure(narrow=True)})
    print(f"wrote {out}")


def show_page(options: Any) -> None:
    """Write the page that holds the network, and open it if that is asked for."""
    from bp_torch.explain.page import write_page
    from bp_torch.explain.subject import open_subject

    subject = open_subject(options)
    out = options.out or subject.folder / "explained" / "page.html"
    check_writable(out, "--out")
    replace_file(out, write_page(subject).encode())
    print(f"wrote {out}")
    if options.open:
        webbrowser.open(out.resolve().as_uri())


def show_all(options: AllOptions) -> None:
    """Write every idea's pictures, and the page that explains them: what is quick at once, then the rest."""
    from bp_torch.explain.idea import file_content
    from bp_torch.explain.index import Section, html
    from bp_torch.explain.subject import open_subject
    from bp_torch.training.log import add_figures

    subject = open_subject(options)
    folder = options.out or subject.folder / "explained"
    check_writable(folder / "index.html", "--out")
    print(wrapped(forecast(subject)))
    pages, cards = write_touchable(subject, folder), {}
    sections = {name: Section(name, about) for name, about in IDEAS.items()}
    with tqdm(sorted(IDEAS, key=lambda name: IDEAS[name].passes), unit="idea", leave=False, disable=None) as bar:
        for name in bar:
            bar.set_description(name)
            start = time.perf_counter()
            idea = compute(name, subject, options_of(name)())
            cards[name] = idea.figure(narrow=True)
            replace_file(folder / f"{name}.png", file_content(idea.figure()))
            replace_file(folder / f"{name}.narrow.png", file_content(cards[name]))
            sections[name] = Section(name, IDEAS[name], idea.finding(), idea.table())
            replace_file(folder / "index.html", html(subject.caption, list(sections.values()), pages).encode())
            took = f"{name:10} {time.perf_counter() - start:6.1f} s   "
            bar.write(wrapped(f"{idea.finding()}.", took, " " * 22))
    if options.log:
        add_figures(subject.folder, cards)
    print(f"wrote {folder / 'index.html'}")


def forecast(subject: "Subject") -> str:
    """How long ``explain all`` will take, from the time of one pass over all training examples."""
    from bp_torch.explain.subject import full_gradient

    start = time.perf_counter()
    full_gradient(subject.exact, subject.training, subject.config.cost)
    a_pass = time.perf_counter() - start
    long = {name: about.passes * a_pass for name, about in IDEAS.items() if about.passes}
    quick = QUICK * a_pass
    by_name = ", ".join(f"{name} {long[name]:.0f}" for name in sorted(long, key=long.__getitem__))
    return f"This takes about {quick + sum(long.values()):.0f} s: {quick:.0f} for what is quick, then {by_name}"


def write_touchable(subject: "Subject", folder: Path) -> dict[str, str]:
    """Write page.html, and return the link to it, {file: words}; nothing for a network that it cannot show."""
    from bp_torch.explain.page import PageError, write_page
    from bp_torch.explain.subject import UsageError

    try:
        replace_file(folder / "page.html", write_page(subject).encode())
    except (PageError, UsageError) as error:
        print(f"no page.html: {error}")
        return {}
    return {"page.html": "The network itself, to touch"}
