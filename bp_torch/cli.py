"""What every command shares: flags out of a dataclass, and errors in one line with an exit code.

Exit codes: 0 done, 1 trouble with data, device or a run, 2 bad arguments, 130 stopped by Ctrl-C.
"""

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn, TypeVar

import tyro

T = TypeVar("T")


def parse(
    config: type[T],
    *,
    description: str,
    prog: str | None = None,
    args: Sequence[str] | None = None,
    default: T | None = None,
) -> T:
    """An instance of the dataclass ``config`` from the command line (``args``, or else ``sys.argv``).

    Flags that are not given come from ``default``, or else from the fields' own defaults.
    What tyro or the dataclass itself (by a ValueError) refuses is reported in one line on stderr, exit 2.
    """
    errors = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show √ or δ shows ? instead
            stream.reconfigure(errors="replace")
    try:
        with contextlib.redirect_stderr(errors):
            start = tyro.MISSING_NONPROP if default is None else default
            return tyro.cli(config, prog=prog, description=description, args=args, default=start)
    except ValueError as error:
        fail(str(error), 2)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        fail(re.sub(r"^Error parsing \w+: ", "", _one_line(errors.getvalue())), 2)


def _one_line(boxed: str) -> str:
    """The sentence inside the box that tyro draws, from its title to its first rule; the flags' help comes below."""
    parts: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", boxed).splitlines():
        if re.search("─{2,}|-{4,}", line):  # the top of the box, with the title, or a rule; in ASCII, of hyphens
            parts.append([])
        else:
            parts[-1].append(line.strip("│ "))
    return " ".join(filter(None, parts[1])) if len(parts) > 1 else boxed


def fail(message: str, code: int) -> NoReturn:
    """Print ``message`` as one line on stderr and exit."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def one_line_errors(*trouble: type[Exception]) -> Iterator[None]:
    """Turn the exceptions of ``trouble`` into one line and exit 1, and Ctrl-C into exit 130."""
    try:
        yield
    except trouble as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("stopped", 130)
