"""What every command shares: flags out of a dataclass, and errors in one line with an exit code.

Exit codes: 0 done, 1 trouble with data, device or a run, 2 bad arguments, 128 + N stopped by signal N, such as
130 by Ctrl-C.
"""

import contextlib
import difflib
import errno
import io
import itertools
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from bp_torch.files import WINDOWS, told
from bp_torch.flags import flag, in_words, types_of
from bp_torch.help import help_text
from bp_torch.text import wrapped
from bp_torch.values import VERSION

T = TypeVar("T")


class UserError(RuntimeError):
    """An error that the user can mend: a command tells it in one line, and exits with ``exit_code``."""

    exit_code = 1


def train_command() -> str:
    """How the user starts a training, for messages: as just now, or by the package."""
    program = Path(sys.argv[0])
    if program.parts[-2:] == ("bp_torch", "__main__.py"):
        return "python -m bp_torch train"
    return "python train.py" if program.name == "train.py" else "bp-torch train"


def parse(
    config: type[T],
    *,
    description: str,
    prog: str | None = None,
    args: Sequence[str] | None = None,
    default: T | None = None,
) -> T:
    """An instance of the dataclass ``config`` from ``args``, or else ``sys.argv``, and from ``default``.

    What tyro or the dataclass itself (by a ValueError) refuses is reported in one line on stderr, exit 2.
    """
    given = sys.argv[1:] if args is None else args
    replace_what_cannot_be_shown()
    if {"-h", "--help"} & set(given):
        print(help_text(config, prog or Path(sys.argv[0]).name, description))
        sys.exit()
    if "--version" in given:
        print(f"bp_torch {VERSION}")
        sys.exit()
    errors = io.StringIO()
    try:
        if not given:
            return config() if default is None else default
        import tyro  # here: start and the help must come first

        with contextlib.redirect_stderr(errors):
            start = tyro.MISSING_NONPROP if default is None else default
            return tyro.cli(config, prog=prog, description=description, args=args, default=start)
    except ValueError as error:
        fail(str(error), 2)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        fail(refusal(_one_line(errors.getvalue()), config, given), 2)


def replace_what_cannot_be_shown() -> None:
    """Let a terminal that cannot show √, δ or a byte of a file's name show ? instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def streams_that_show_all() -> Iterator[None]:
    """Inside, a stream shows ? instead of what it cannot show; for calls from Python, whose streams these are."""
    before = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    replace_what_cannot_be_shown()
    try:
        yield
    finally:
        for stream, errors in before:
            stream.reconfigure(errors=errors)


def refusal(message: str, config: type[Any], args: Sequence[str]) -> str:
    """Say what tyro refuses of ``args`` in the words of this project: the flag, what it takes, and what came."""
    flags = {flag(name): hint for name, hint in types_of(config).items()}
    words = [word.replace("_", "-") if word.startswith("--") else word for word in args]
    found = re.search(r"(?:^Error parsing | argument '(?:\(')?)(--[\w-]+)", message)  # tyro 1.0.0: '('--size',)'
    if found and (name := found[1]) in flags and name in words:
        values = itertools.takewhile(lambda word: not word.startswith("--"), args[words.index(name) + 1 :])
        return f"{name}: wanted {in_words(flags[name])}, got {' '.join(values)[:200] or 'nothing'}"
    if unknown := re.search(r"^Unrecognized options: ([^\s,]+)", message):
        typed, names = unknown[1].strip("-"), {each.strip("-"): each for each in flags}
        short = [name for name in names if typed == "".join(part[0] for part in name.split("-"))]  # lr, wd
        alike = (short if len(typed) > 1 else []) or difflib.get_close_matches(typed, names, n=1)
        return f"{message}: " + (f"did you mean {names[alike[0]]}?" if alike else "see --help")
    return re.sub(r"^Error parsing \w+: ", "", message)


def _one_line(boxed: str) -> str:
    """The sentence inside the box that tyro draws, from its title to its first rule; the flags' help comes below."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    _, *parts = re.split(".*(?:─{2,}|-{4,}).*", plain)  # the top, with the title, and rules; in ASCII, of hyphens
    return " ".join(re.sub("^[│ ]+|[│ ]+$", "", parts[0], flags=re.MULTILINE).split()) if parts else boxed


def unknown(what: str, name: str, names: Collection[str]) -> NoReturn:
    """Refuse a ``name`` that is none of the ``names`` of commands, ideas or the like."""
    alike = difflib.get_close_matches(name, names, n=1)
    fail(
        f"unknown {what} {name!r}: " + (f"did you mean {alike[0]}?" if alike else f"choose from {', '.join(names)}"), 2
    )


def fail(message: str, code: int) -> NoReturn:
    """Print ``message`` on stderr and exit: as one line, which a terminal shows in as many as it needs."""
    line = f"error: {' '.join(message.split())}"
    try:
        print(wrapped(line) if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
    except OSError:
        silence(2)
    sys.exit(code)


def silence(descriptor: int) -> None:
    """Let what is still to be written to a stream that cannot be written go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def is_without_reader(error: Exception) -> bool:
    """Whether the reader of stdout is gone (``| head``). Windows calls the output an invalid argument then."""
    invalid = WINDOWS and isinstance(error, OSError) and error.errno == errno.EINVAL and not error.filename
    return invalid or isinstance(error, BrokenPipeError)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn UserError, OSError, too little memory and the like into one line and an exit code; Ctrl-C into exit 130."""
    try:
        yield
    except (UserError, OSError) as error:
        if is_without_reader(error):
            silence(1)
            sys.exit(141)  # 128 + SIGPIPE, silently
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        if isinstance(error, OSError) and error.strerror and not error.filename:
            fail(f"cannot write the output: {error.strerror}", 1)
        fail(*((str(error), error.exit_code) if isinstance(error, UserError) else (told(error), 1)))
    except ImportError as error:  # a library that is missing, or whose parts cannot be opened
        fail(f"cannot load {error.name or 'a library'}: {error}", 1)
    except (MemoryError, RuntimeError) as error:
        if "can't start new thread" in str(error):
            fail("cannot start a thread: raise the limit of processes (ulimit -u), or of memory", 1)
        if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate", str(error)):
            raise
        fail(f"not enough memory: {(str(error).splitlines() or [''])[0]}", 1)
    except KeyboardInterrupt:
        fail("stopped", 130)
