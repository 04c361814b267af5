"""The top floor: one file for each command reads flags, calls a room, and prints. Nothing below imports these files.

A command's file holds its flags, and imports its room in the function that runs, after ``load_torch``: help and errors
in flags do not wait for torch.
"""

import gc
import importlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bp_torch.cli import one_line_errors, replace_what_cannot_be_shown
from bp_torch.files import naming

COMMANDS = {  # each command, a module of this package, and what it does
    "train": "train a network on handwritten digits (the same as python train.py)",
    "sweep": "train networks of many settings and seeds at once, and compare them",
    "ladder": "compare published results of plain networks with ours",
    "verify": "check the backward against autograd and central differences",
    "predict": "say which digit your own picture shows",
    "explain": "show every idea of backpropagation on a trained network",
    "benchmark": "compare the speed of training with the usual ways to write it",
}

LOADING = "loading torch …"


def start(command: str, arguments: list[str] | None) -> None:
    """Import and run the command of this name with its ``arguments``. None: those of ``sys.argv``, for train.py."""
    open_missing_streams()
    replace_what_cannot_be_shown()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a home in which it can keep no fonts
    os.environ["MPLBACKEND"] = "agg"  # pictures are files: a window, or a name that is none, has no part in them
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_at_once)
    with one_line_errors():
        try:
            importlib.import_module(f"bp_torch.commands.{command}").main(arguments)
        finally:
            sys.stdout.flush()
            stop_as_usual()


def load_torch(threads: int | None = None) -> None:
    """Import torch, which takes a second or more, to use so many threads. From then on, Ctrl-C is as usual."""
    if sys.stderr.isatty():
        print(LOADING, end="\r", file=sys.stderr, flush=True)
    with naming(Path()):
        Path.cwd()  # of a folder that is gone, torch would end the process
    try_threads((os.cpu_count() or 1) + (threads or 0) + 2)
    gc.disable()  # what is imported stays: to search it for garbage, now and at the end, takes half as long again
    try:
        importlib.import_module("torch")
    except ValueError as error:  # one of its libraries reads a variable of the environment, TQDM_MININTERVAL, say
        raise ImportError(str(error), name="torch") from error
    gc.freeze()
    gc.enable()
    if sys.stderr.isatty():
        print(" " * len(LOADING), end="\r", file=sys.stderr, flush=True)
    stop_as_usual()


def try_threads(count: int) -> None:
    """Raise RuntimeError where so many threads cannot start: NumPy's library would end the process, in many lines."""
    done = threading.Event()
    try:
        for _ in range(count):
            threading.Thread(target=done.wait).start()
    finally:
        done.set()


def open_missing_streams() -> None:
    """Open what the shell closed (2>&-) as a stream to nowhere: the next file that is opened would take its place."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))


def stop_as_usual() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def stop_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Exit from a Ctrl-C while modules are imported: there is nothing to save, and an exception would abort in C++."""
    os.write(2, b"error: stopped\n")
    os._exit(128 + number)
