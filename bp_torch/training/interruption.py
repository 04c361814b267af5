"""Ctrl-C and SIGTERM: noted while training, so that the run can save a checkpoint and then stop."""

import signal
import threading
from pathlib import Path
from types import FrameType

import torch

from bp_torch.distributed import World

ASK_EVERY = 16
"""Steps after which several processes ask each other whether one of them is to stop."""


class Stopped(Exception):  # noqa: N818 (no error)
    """The run was asked to stop, and its checkpoint is saved. ``code`` is the exit code, 128 + the signal's number."""

    def __init__(self, received: int, folder: Path) -> None:
        """By the signal ``received``."""
        self.code = 128 + received
        super().__init__(
            f"stopped by {signal.Signals(received).name}, all is saved; continue with: "
            f"python train.py --resume {folder}"
        )


class Signals:
    """While entered, the first SIGINT or SIGTERM is noted in ``received``; a second one has its usual effect."""

    received = 0

    def asked(self, step: int, world: World, device: torch.device) -> bool:
        """Whether to stop after ``step``. Several processes ask each other now and then, to stop at the same step."""
        if world.size == 1:
            return bool(self.received)
        return step % ASK_EVERY == 0 and world.any(bool(self.received), device)

    def __enter__(self) -> "Signals":
        """Install the handlers, in the main thread only: no other may."""
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        """Restore the handlers."""
        self._restore()
