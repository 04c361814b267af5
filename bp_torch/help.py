"""The help of a command: every flag of its dataclass in groups, with what it means, at the width of the terminal.

What a flag means is the docstring below its field. Groups are named by the class, in ``groups``: {first field: name}.
"""

import ast
import inspect
import textwrap
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from bp_torch.flags import alternatives, types_of
from bp_torch.text import wrapped

METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}  # the word for a value of each type
WHOLE = "\x1f"  # stands for a space at which no line ends


def help_text(config: type[Any], prog: str, description: str) -> str:
    """Usage, description, and all flags of the dataclass ``config``."""
    hints, told = types_of(config), docstrings(config)
    blocks = [f"usage: {prog} [OPTIONS]", wrapped(description)]
    for name, members in grouped(config).items():
        entries = [entry(field, hints[field.name], told[field.name]) for field in members]
        blocks.append("\n".join([f"{name}:", *entries]))
    other = [_lines("--help, -h", "Show this help."), _lines("--version", "Show the version.")]
    blocks.append("\n".join(["other:", *other]))
    return "\n\n".join(blocks)


def grouped(config: type[Any]) -> "dict[str, list[Field[Any]]]":
    """The fields by group. A class's own come before those of its base classes; without a name they are "options".

    Those of its ``refused``, which only its base class takes, are left out.
    """
    found: dict[str, list[Field[Any]]] = {}
    owners = {name: owner for owner in config.__mro__ for name in vars(owner).get("__annotations__", {})}
    for owner in config.__mro__:
        name, names = "options", vars(owner).get("groups", {})
        for field in fields(config):
            if owners[field.name] is owner and field.name not in getattr(config, "refused", ()):
                name = names.get(field.name, name)
                found.setdefault(name, []).append(field)
    return found


def entry(field: "Field[Any]", hint: Any, says: str) -> str:
    """The lines of one flag: how it is written, what it does, and what holds without it."""
    flag, default = field.name.replace("_", "-"), field.default
    if default in (None, ()):
        return _lines(f"--{flag} {metavar(hint)}", says.replace("None: ", "unset: "))
    if default is False:
        return _lines(f"--{flag}", says)
    written = f"--{flag}, --no-{flag}" if default is True else f"--{flag} {metavar(hint)}"
    words = [f"--{flag}"] if default is True else default if isinstance(default, tuple) else [default]
    return _lines(written, f"{says} default:{WHOLE}{WHOLE.join(map(str, words))}")


def _lines(written: str, says: str) -> str:
    """A flag, and below it the text, indented."""
    return f"{wrapped(written, '  ', '      ')}\n{wrapped(says, '      ')}".replace(WHOLE, " ")


def metavar(hint: Any) -> str:
    """The values of a type, as a flag's line has them: INT, PATH, full | half, FLOAT ..."""
    found = []
    for one in alternatives(hint):
        if get_origin(one) is tuple:
            found.append(f"{metavar(get_args(one)[0])} ...")
        elif one is not NoneType:
            found.append(one if isinstance(one, str) else METAVARS[one])
    return " | ".join(found)


def docstrings(config: type[Any]) -> dict[str, str]:
    """The docstring below each field of a dataclass and its base classes, in one line."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for node, below in zip(body.body, body.body[1:], strict=False):
            match node, below:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(says))):
                    found[name] = " ".join(says.split())
    return found
