"""``python -m bp_torch verify FILE:NAME …``: candidates in files, each in a process of its own, against a reference."""

import sys
from itertools import takewhile
from pathlib import Path

from bp_torch.cli import fail, parse
from bp_torch.commands import load_torch
from bp_torch.commands.verify_options import FileOptions
from bp_torch.flags import flag
from bp_torch.text import count


def main(arguments: list[str]) -> None:
    """Print a verdict on each candidate, and exit with the code of the worst (``EXIT_CODES``)."""
    candidates = list(takewhile(lambda word: not word.startswith("-"), arguments))
    rest = arguments[len(candidates) :]
    about = "Check the backward of each candidate in a process of its own."
    options = parse(FileOptions, prog="python -m bp_torch verify FILE:NAME ...", description=about, args=rest)
    for name in ("reference", "inputs"):
        if (n := len(getattr(options, name))) not in (0, 1, len(candidates)):
            each = count(len(candidates), "candidate")
            fail(f"{flag(name)}: wanted one, or one for each of {each}, got {n}", 2)
    for place in (*candidates, *options.reference, *options.inputs):
        path, _, name = place.rpartition(":")
        if not name or not Path(path).is_file():
            fail(f"wanted FILE:NAME, got {place}" + (f": there is no file {path}" if path else ""), 2)
    load_torch()
    from bp_torch.commands.verify_candidates import tell

    sys.exit(tell(candidates, options))
