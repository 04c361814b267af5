"""The lesson, made visible: a command for each idea, that prints its numbers and draws its picture on a real network.

    python -m bp_torch explain backwards --digit 2
    python -m bp_torch explain all

Every idea is a file of this package with the same parts: ``Options`` (its flags), ``explain`` (computes, from a network
and its data, and calls backprop.py for all mathematics), ``finding`` (one sentence), ``table`` and ``figure``. They are
loaded only when asked for. Nothing here computes.
"""

import dataclasses
import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.data import DataError
from bp_torch.files import replace_file
from bp_torch.training import TrainingError

IDEAS = {
    "gradient": "how sensitive the cost is to each weight and bias, by name",
    "nudges": "what one image wants of every output, and three ways to get it",
    "backwards": "what each neuron asks of the layer before, and the sum that is handed on",
    "hebbian": "whether neurons that fire together are wired together",
    "average": "every example's wishes beside each other; their average is −∇C",
    "only": "what becomes of a network that listens to one digit alone",
    "descent": "all examples per step, mini-batches, single examples: three ways down",
    "data": "how much better it gets with more training examples",
    "minimum": "whether the run came to rest at the bottom, or was still sliding",
}

ON_THE_PAGE: dict[str, dict[str, Any]] = {"gradient": {"wiggle": True}}
"""Flags that differ from an idea's defaults in ``explain all``."""

USAGE = (
    "usage: python -m bp_torch explain IDEA [OPTIONS]\n\n"
    "Show an idea on a trained network: numbers as a table, and a picture.\n\n"
    + "\n".join(f"  {name:10} {says}" for name, says in IDEAS.items())
    + "\n  all        all of them, as one folder of pictures and a page, index.html\n\n"
    "Each has its own --help. The network is that of the newest run in runs/; make one with: python train.py"
)


def main(arguments: list[str]) -> None:
    """Show the idea that the first argument names."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
    elif name == "all":
        _run(
            show_all,
            parse(AllOptions, prog="python -m bp_torch explain all", description=USAGE.splitlines()[2], args=rest),
        )
    elif name in IDEAS:
        idea = load_idea(name)
        options = parse(idea.Options, prog=f"python -m bp_torch explain {name}", description=idea.IDEA, args=rest)
        _run(show, name, options)
    else:
        fail(f"unknown idea {name!r}: choose from {', '.join(IDEAS)}, all", 2)


def load_idea(name: str) -> Any:
    """The module of an idea."""
    return importlib.import_module(f"bp_torch.explain.{'more_data' if name == 'data' else name}")


def _run(command: Any, *arguments: Any) -> None:
    """Run ``command``; what the arguments got wrong ends in one line and exit 2, other trouble in exit 1."""
    from bp_torch.explain.subject import UsageError

    with one_line_errors(TrainingError, DataError, OSError):
        try:
            command(*arguments)
        except UsageError as error:
            fail(str(error), 2)


# ---- one idea ----


def show(name: str, options: Any) -> None:
    """Print the numbers of an idea and write its picture."""
    from bp_torch.explain.style import check_kind, content
    from bp_torch.explain.subject import open_subject

    if options.out is not None:
        check_kind(options.out)
    subject = open_subject(options)
    out = options.out or subject.folder / "explained" / f"{name}.png"
    idea = load_idea(name)
    result = idea.explain(subject, options)
    print(f"{idea.table(result)}\n\n{idea.finding(result)}.\n")
    figure = idea.figure(result)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, content(figure, out.suffix))
    if options.log:
        log_picture(subject.folder, name, figure)
    print(f"wrote {out}")


def log_picture(folder: Path, name: str, figure: Any) -> None:
    """Put the picture of an idea into the TensorBoard of the run in ``folder``."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder) as writer:
        writer.add_figure(f"explain/{name}", figure)


# ---- all of them ----


@dataclass(frozen=True)
class AllOptions:
    """The flags of ``explain all``."""

    run: Path | None = None
    """Folder of the run whose network is explained. None: the newest in runs/."""
    untrained: bool = False
    """Explain a network fresh from its initial values, with all defaults, instead of a run's."""
    out: Path | None = None
    """Folder of the pictures and index.html. None: explained/ in the run's folder."""
    log: bool = False
    """Put the pictures into the run's TensorBoard as well."""
    data_dir: Path | None = None
    """Folder of the data sets. None: the run's own."""
    device: str = "cpu"
    """auto, cpu, cuda or cuda:N. The CPU suffices; float64 is needed."""
    threads: int = 1
    """CPU threads. Small networks are quickest on one."""

    def __post_init__(self) -> None:
        """Refuse no threads at all."""
        if self.threads < 1:
            raise ValueError(f"--threads: wanted 1 or more, got {self.threads}")


def show_all(options: AllOptions) -> None:
    """Write every idea's picture, and the page that sets them beside what they show."""
    from bp_torch.explain.page import Section, html
    from bp_torch.explain.style import content
    from bp_torch.explain.subject import open_subject

    shared = dataclasses.asdict(options) | {"out": None}
    subject = open_subject(load_idea("gradient").Options(**shared))
    folder = options.out or subject.folder / "explained"
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    with tqdm(IDEAS, unit="idea", leave=False, disable=None) as bar:
        for name in bar:
            bar.set_description(name)
            start, idea = time.perf_counter(), load_idea(name)
            result = idea.explain(subject, idea.Options(**shared, **ON_THE_PAGE.get(name, {})))
            figure = idea.figure(result)
            replace_file(folder / f"{name}.png", content(figure))
            if options.log:
                log_picture(subject.folder, name, figure)
            sections.append(
                Section(name, IDEAS[name], idea.IDEA, idea.finding(result), idea.table(result), idea.MADE_BY)
            )
            bar.write(f"{name:10} {time.perf_counter() - start:6.1f} s   {idea.finding(result)}")
    replace_file(folder / "index.html", html(subject.caption, sections).encode())
    print(f"wrote {folder / 'index.html'}")
