"""Ctrl-C, SIGTERM, or a terminal that closes: noted while training, so that the run can save a checkpoint and stop."""

import os
import signal
import stat
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self

import torch

from bp_torch.cli import UserError, silence, train_command
from bp_torch.distributed import ALONE, World

POLL_EVERY = 16  # polls after which several processes ask each other whether one of them is to stop
HANGUP = getattr(signal, "SIGHUP", None)  # a terminal has closed; not on Windows
BREAK = getattr(signal, "SIGBREAK", None)  # Ctrl-Break; only on Windows


class Stopped(UserError):  # noqa: N818 (no error)
    """The run was asked to stop, and its checkpoint is saved. ``code`` is the exit code, 128 + the signal's number."""

    def __init__(self, received: int, folder: Path, command: str = "") -> None:
        """By the signal ``received``, 0: by that of another process; ``command`` continues, by default train.py."""
        self.received = received or signal.SIGTERM
        self.code = self.exit_code = 128 + self.received
        way = f"continue with: {command or train_command()} --resume {folder}"
        super().__init__(f"stopped by {signal.Signals(self.received).name}, all is saved; {way}")


class Signals:
    """While entered, notes the first SIGINT, SIGTERM or SIGHUP in ``received``; a second, but SIGHUP, acts as usual."""

    received = 0

    def __init__(self, world: World = ALONE, device: torch.device | None = None) -> None:
        """For this process of ``world``, which talks to the others by tensors on its ``device``."""
        self.world, self.device = world, device or torch.device("cpu")

    def should_stop(self, poll: int) -> bool:
        """Whether to stop now. Several processes stop together: they ask each other where ``poll`` is a multiple."""
        if self.world.size == 1:
            return bool(self.received)
        return poll % POLL_EVERY == 0 and self.world.any(bool(self.received), self.device)

    def __enter__(self) -> Self:
        """Install the handlers, in the main thread only: no other may."""
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [number for number in (signal.SIGINT, signal.SIGTERM, HANGUP, BREAK) if number]
            numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup, script &
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()
        if HANGUP in self._before:
            signal.signal(HANGUP, signal.SIG_IGN)  # shells and terminals send it several times
        if number == HANGUP:  # what would be written to the closed terminal goes nowhere: writing to it is an error
            for descriptor in (1, 2):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                    silence(descriptor)
        elif number == signal.SIGINT:
            with suppress(OSError):  # not print: the signal may have come in the middle of one
                os.write(2, b"\nstopping; again to stop at once\n")

    def __exit__(self, *exception: object) -> None:
        """Restore the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
