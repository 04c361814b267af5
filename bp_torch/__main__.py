"""python -m bp_torch COMMAND, also as bp-torch: each of ``COMMANDS`` has its own --help."""

import sys

from bp_torch.cli import one_line_errors, unknown
from bp_torch.commands import COMMANDS, start
from bp_torch.text import named, wrapped
from bp_torch.values import VERSION

USAGE = "usage: bp-torch COMMAND [OPTIONS], or python -m bp_torch COMMAND [OPTIONS]"


def main() -> None:
    """Hand the arguments to the command that the first one names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        with one_line_errors():
            print(f"{wrapped(USAGE)}\n\n{named(COMMANDS)}\n\nEach command has its own --help.", flush=True)
    elif name == "--version":
        print(f"bp_torch {VERSION}")
    elif name not in COMMANDS:
        unknown("command", name, COMMANDS)
    else:
        start(name, arguments)


if __name__ == "__main__":
    main()
