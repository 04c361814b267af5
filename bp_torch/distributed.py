"""Several processes, one network: each takes its shard of every mini-batch, and the gradients are added up.

The processes are started by torchrun, which tells each its place in the environment (RANK, WORLD_SIZE, LOCAL_RANK):

    torchrun --nproc-per-node 2 train.py

The backend is NCCL between GPUs and gloo between CPUs. Nothing here knows what is summed.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bp_torch.cli import UserError

PATIENCE = timedelta(seconds=45)  # how long a process waits for the others before it treats them as dead
BEAT = 1.0  # seconds between two signs of life
GRACE = 15.0  # seconds between a signal and an exit without the main thread, if that hangs


class DistributedError(UserError):
    """The processes cannot start or continue together. The message says why."""


@dataclass(frozen=True)
class World:
    """This process among all: number ``rank`` of ``size``. ``World()`` is a single process, which sends nothing."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints, logs and saves."""
        return self.rank == 0

    def shard(self, whole: Tensor) -> Tensor:
        """This process's part of ``whole`` along its first dimension. Shards may differ by one row, or be empty."""
        if self.size == 1:
            return whole
        n = len(whole)
        return whole[self.rank * n // self.size : (self.rank + 1) * n // self.size]

    def all_reduce(self, vector: Tensor) -> None:
        """Add up ``vector`` over all processes, in place. Raises DistributedError if one of them is gone."""
        if self.size > 1:
            with lost_process_reported():
                dist.all_reduce(vector)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` with those of the first process. Raises DistributedError if one is gone."""
        if self.size > 1:
            with lost_process_reported():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def same(self, text: str) -> str:
        """The ``text`` of the first process, in every process. Raises DistributedError if one is gone."""
        texts = [text]
        if self.size > 1:
            with lost_process_reported():
                dist.broadcast_object_list(texts, src=0)
        return texts[0]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether ``flag`` is true in any process. Raises DistributedError if one is gone."""
        raised = torch.tensor(float(flag), device=device)
        self.all_reduce(raised)
        return bool(raised.item())


ALONE = World()  # a single process


@contextmanager
def lost_process_reported() -> Iterator[None]:
    """Turn the errors of a lost connection into a DistributedError."""
    try:
        yield
    except DistributedError:
        raise
    except RuntimeError as error:  # gloo and NCCL have no narrower class in common
        raise DistributedError(f"lost contact with another process ({str(error).splitlines()[0]})") from error


def local_device(name: str) -> str:
    """The device that ``name`` (a flag's value) means for this process: of several, each takes its own GPU.

    Raises DistributedError if there are fewer GPUs than processes, or if all would use one numbered GPU.
    """
    on_gpu = name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())
    if _number("WORLD_SIZE", 1) == 1 or not on_gpu:
        return name
    if ":" in name:
        raise DistributedError(f"--device {name} would be shared by all processes: wanted --device cuda")
    gpus, own = torch.cuda.device_count(), _number("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    if gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        own = 0  # srun --gpus-per-task=1 shows each process only its own, torchrun all of the machine
    if own >= gpus:
        found = f"this is process {own}, counted from 0, of this machine, but {gpus} GPUs are visible"
        raise DistributedError(f"{found}: start one process per GPU, or choose --device cpu")
    return f"cuda:{own}"


def _number(variable: str, default: int | str | None = None) -> int:
    """The number in an environment variable that torchrun sets."""
    value = os.environ.get(variable, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DistributedError(f"{variable} is {value!r} here: several processes need torchrun") from error


@contextmanager
def joined(device: torch.device, store: str = "env://") -> Iterator[World]:
    """Join the processes that torchrun started, for the time of the context; without torchrun, a world of one process.

    They meet at the URL ``store``. Raises DistributedError if the others do not come.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield World()
        return
    on_gpu, rank = device.type == "cuda", _number("RANK")
    if not dist.is_available():
        raise DistributedError("this build of torch has no torch.distributed: start one process")
    if on_gpu and not dist.is_nccl_available():
        raise DistributedError("several GPUs need NCCL, which this build of torch lacks: choose --device cpu")
    # Torch would end this process with an abort and a page of text; the watch does it with a line.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    with lost_process_reported():
        if on_gpu:
            torch.cuda.set_device(device)
        try:
            met, _, _ = next(iter(dist.rendezvous(store, rank, size, timeout=PATIENCE)))  # type: ignore[attr-defined]
            backend, own = ("nccl", device) if on_gpu else ("gloo", None)
            dist.init_process_group(backend, store=met, rank=rank, world_size=size, timeout=PATIENCE, device_id=own)
        except ValueError as error:
            raise DistributedError(f"cannot meet the other processes: {error}") from error
    with Watch(met.clone(), rank, size):
        try:
            yield World(rank, size)
        finally:
            dist.destroy_process_group()


class Watch:
    """While entered, a thread that ends this process if another one is gone, or if a signal finds it hanging.

    Every process leaves signs of life in the ``store`` where they met, and reads those of the others. It is needed
    because NCCL reports nothing: a sum with a dead process waits in the queue of the GPU, and the main thread waits for
    the GPU, where neither an exception nor the handler of a signal reaches it.
    """

    def __init__(
        self, store: Any, rank: int, size: int, patience: float = PATIENCE.total_seconds(), grace: float = GRACE
    ) -> None:
        """For process ``rank`` of ``size``. ``patience`` and ``grace`` are in seconds."""
        self.store = dist.PrefixStore("watch", store)  # type: ignore[attr-defined]
        self.rank, self.size, self.patience, self.grace = rank, size, patience, grace
        self._signals, self._wake = socket.socketpair()  # no pipe: Windows waits for sockets only
        self._wake.setblocking(False)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        """Start. Signals are noted here too, by Python's own handler, which runs even while the main thread hangs."""
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def __exit__(self, kind: object, *exception: object) -> None:
        """Stop. Who leaves without an error is not gone: the others may still be saving."""
        if self._main:
            signal.set_wakeup_fd(self._before)
        self._wake.send(b"\0")
        self._thread.join()
        if kind is None:
            with suppress(RuntimeError):  # the process that keeps the store may have left already
                self.store.set(str(self.rank), "done")
        self._signals.close()
        self._wake.close()

    def _run(self) -> None:
        last = {other: ("", time.monotonic()) for other in range(self.size) if other != self.rank}
        beat, late = 0, {}  # late: by which time a signal must have reached its handler, and that handler
        while True:
            if select.select([self._signals], [], [], BEAT)[0]:
                for number in self._signals.recv(100):
                    if number == 0:
                        return
                    late[number] = time.monotonic() + self.grace, signal.getsignal(number)
            now, beat = time.monotonic(), beat + 1
            for number, (end, handler) in late.items():
                # Training puts the default in the place of its handler as soon as that is called: it may go on then.
                waits = callable(handler) and handler is not signal.default_int_handler
                if now > end and waits and signal.getsignal(number) is handler:
                    name = signal.Signals(number).name
                    self._exit(f"stopped by {name} while waiting for another process", 128 + number)
            try:
                self.store.set(str(self.rank), str(beat))
                for other, (sign, seen) in last.items():
                    found = self.store.get(str(other)).decode() if self.store.check([str(other)]) else ""
                    if found not in (sign, "done"):
                        last[other] = found, now
                    elif found != "done" and now - seen > self.patience:
                        self._exit(f"lost contact with process {other} of {self.size}, counted from 0", 1)
            except RuntimeError:  # the process that keeps the store is gone
                if now - max(seen for _, seen in last.values()) > self.patience:
                    self._exit("lost contact with the process where all met", 1)

    def _exit(self, message: str, code: int) -> None:
        """End the process from here: its main thread cannot."""
        with suppress(OSError):  # the terminal may be closed
            print(f"error: {message}; the last checkpoint is intact", file=sys.stderr, flush=True)
        os._exit(code)
