"""Several processes, one network: each takes its share of every mini-batch, and what the shares want is added up.

The processes are started by torchrun, which tells each its place in the environment (RANK, WORLD_SIZE, LOCAL_RANK):

    torchrun --nproc-per-node 2 train.py

Sums travel over NCCL between GPUs and over gloo between CPUs. Nothing here knows what is summed.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(seconds=45)
"""How long a process waits for the others before it takes them for dead."""


class DistributedError(RuntimeError):
    """The processes cannot work together, or no longer. The message says why."""


@dataclass(frozen=True)
class World:
    """This process among all: number ``rank`` of ``size``. Alone, ``World()``, every sum is already complete."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints, logs and saves."""
        return self.rank == 0

    def share(self, whole: Tensor) -> Tensor:
        """This process's part of ``whole``, cut along its first dimension; uneven or empty where it must be."""
        if self.size == 1:
            return whole
        n = len(whole)
        return whole[self.rank * n // self.size : (self.rank + 1) * n // self.size]

    def sum(self, vector: Tensor) -> None:
        """Add up ``vector`` over all processes, in place. Raises DistributedError when one of them is gone."""
        if self.size > 1:
            with _loss_told():
                dist.all_reduce(vector)

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` with those of the first process. Raises DistributedError when one is gone."""
        if self.size > 1:
            with _loss_told():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether ``flag`` is true in any process. Raises DistributedError when one is gone."""
        if self.size == 1:
            return flag
        raised = torch.tensor(float(flag), device=device)
        self.sum(raised)
        return bool(raised.item())


@contextmanager
def _loss_told() -> Iterator[None]:
    try:
        yield
    except DistributedError:
        raise
    except RuntimeError as error:  # gloo and NCCL have no narrower class in common
        raise DistributedError(f"lost touch with another process ({str(error).splitlines()[0]})") from error


def local_device(name: str) -> str:
    """The device that ``name`` (as typed) means for this process: with several on a machine, each takes its own GPU.

    Raises DistributedError when there are fewer GPUs than processes, or when all would share a numbered one.
    """
    processes = _number("LOCAL_WORLD_SIZE", 1)
    if processes == 1 or not (name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())):
        return name
    if ":" in name:
        raise DistributedError(f"--device {name} would be shared by {processes} processes: wanted --device cuda")
    if torch.cuda.device_count() < processes:
        raise DistributedError(
            f"{processes} processes on this machine, but {torch.cuda.device_count()} GPUs: "
            "start one process a GPU, or choose --device cpu"
        )
    return f"cuda:{_number('LOCAL_RANK')}"


def _number(variable: str, default: int | None = None) -> int:
    """What torchrun has set ``variable`` to."""
    value = os.environ.get(variable, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DistributedError(f"{variable} is {value!r} here: several processes need torchrun") from error


@contextmanager
def joined(device: torch.device, store: str = "env://") -> Iterator[World]:
    """The world that torchrun has made, joined for as long as the context lasts; a world of one without torchrun.

    ``store`` is where the processes find each other, a URL as ``torch.distributed`` takes it.
    Raises DistributedError when the others do not come.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield World()
        return
    with _loss_told():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        rank = _number("RANK")
        try:
            dist.init_process_group(backend, store, timeout=PATIENCE, rank=rank, world_size=size)
        except ValueError as error:
            raise DistributedError(f"cannot meet the other processes: {error}") from error
    try:
        yield World(rank, size)
    finally:
        dist.destroy_process_group()
