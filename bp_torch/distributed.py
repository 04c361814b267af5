"""Several processes, one network: each takes its shard of every mini-batch, and the gradients are added up.

The processes are started by torchrun, which tells each its place in the environment (RANK, WORLD_SIZE, LOCAL_RANK):

    torchrun --nproc-per-node 2 train.py

The backend is NCCL between GPUs and gloo between CPUs. Nothing here knows what is summed.
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
"""How long a process waits for the others before it treats them as dead."""


class DistributedError(RuntimeError):
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
        if self.size == 1:
            return flag
        raised = torch.tensor(float(flag), device=device)
        self.all_reduce(raised)
        return bool(raised.item())


ALONE = World()
"""The world of a single process."""


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
    processes = _number("LOCAL_WORLD_SIZE", 1)
    if processes == 1 or not (name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())):
        return name
    if ":" in name:
        raise DistributedError(f"--device {name} would be shared by {processes} processes: wanted --device cuda")
    if torch.cuda.device_count() < processes:
        raise DistributedError(
            f"{processes} processes on this machine, but {torch.cuda.device_count()} GPUs: "
            "start one process per GPU, or choose --device cpu"
        )
    return f"cuda:{_number('LOCAL_RANK')}"


def _number(variable: str, default: int | None = None) -> int:
    """The number in an environment variable that torchrun sets."""
    value = os.environ.get(variable, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DistributedError(f"{variable} is {value!r} here: several processes need torchrun") from error


@contextmanager
def joined(device: torch.device, store: str = "env://") -> Iterator[World]:
    """Join the processes that torchrun started, for the time of the context; without torchrun, a world of one process.

    ``store`` is the URL at which the processes meet (``torch.distributed.init_process_group``).
    Raises DistributedError if the others do not come.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield World()
        return
    with lost_process_reported():
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
