"""The lesson, made visible: each idea, with its numbers and its picture, on a real network.

Every idea is a file of this package with a subclass of ``Idea``. Flags are in options.py, words in ideas.toml.
"""

import importlib
import tomllib
from importlib import resources
from typing import Any, NamedTuple


class About(NamedTuple):
    """One idea in words."""

    heading: str
    words: str
    made_by: tuple[str, ...]  # the functions that it calls, as "module.function"
    note: str = ""  # how to read the picture, with places for attributes of the ``idea``
    passes: float = 0  # its time in passes forward and back over all training examples, if it takes long


def content_of(file: str) -> str:
    """The text of a file of this package."""
    return resources.files(__name__).joinpath(file).read_text(encoding="utf-8")


def about(words: str, note: str, made_by: list[str], **others: Any) -> About:
    """One entry of ideas.toml."""
    return About(words=" ".join(words.split()), note=" ".join(note.split()), made_by=tuple(made_by), **others)


IDEAS = {name: about(**told) for name, told in tomllib.loads(content_of("ideas.toml")).items()}
"""Every idea by its name, in the order of the lesson."""


def load_idea(name: str) -> Any:
    """The module of an idea, or of the page."""
    return importlib.import_module(f"bp_torch.explain.{'more_data' if name == 'data' else name}")


def compute(name: str, subject: Any = None, options: Any = None, **flags: Any) -> Any:
    """The ``Idea`` of this name and its flags: compute("nudges", run=folder, digit=2). Raises ValueError, UserError."""
    from bp_torch.explain.options import options_of
    from bp_torch.explain.subject import open_subject, with_example

    options = options or options_of(name)(**flags)
    subject = with_example(subject or open_subject(options), options)
    return getattr(load_idea(name), name.capitalize())(subject, options)
