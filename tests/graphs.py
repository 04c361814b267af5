"""A stand-in for CUDA graphs on the device of stand_in.py: the calls of aten, and the pools of torch's allocator.

A capture refuses what CUDA refuses: an operation for which the CPU waits, and a copy between CPU and device. Nothing
runs before the replay: what was written in place is put back, and what is new is filled with NaN. A number of the CPU
is that of the capture for ever.

The pools follow c10/cuda/CUDACachingAllocator.cpp of torch 2.11: a pool counts the graphs that live in it. At none,
emptying the cache forgets it only if none of its blocks is in use, and a capture into one that is still known fails.
One block stays in use: cuBLAS's workspace, which belongs to a stream, and is taken from the pool of the first capture
that multiplies matrices there. A graph that is destroyed while another is captured spoils that one.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from math import nan
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bp_torch import recorder
from tests.stand_in import ELSEWHERE, Device, There

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "bincount", "_unique2", "unique_dim"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"}


class CaptureError(RuntimeError):
    """What CUDA, or torch's allocator, does not do."""


class Graph(TorchDispatchMode):
    """Records while it is entered.

    Attributes:
        calls: function, arguments, keyword arguments, and the tensors that it returned if they were new.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, list[There]]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # inference_mode leaves some functions whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        refuse(func, args, kwargs)
        if any(isinstance(leaf, There) for leaf in tree_leaves((args, kwargs))):
            args, kwargs = tree_map_only(Tensor, as_captured, (args, kwargs))
        given = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False)) | kwargs
        writes = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        written = [given[name] for name in writes if isinstance(given.get(name), There)]
        self._before += [(tensor, tensor.here.clone()) for tensor in written]
        result = func(*args, **kwargs)
        returned = [leaf for leaf in tree_leaves(result) if isinstance(leaf, There)]
        new = [] if any(r.alias_info is not None for r in func._schema.returns) else returned
        if written or new:
            self.calls.append((func, args, kwargs, new))
        return result

    def end(self) -> None:
        """Undo what ran."""
        for tensor, before in reversed(self._before):
            tensor.here.copy_(before)  # type: ignore[attr-defined]
        for _, _, _, new in self.calls:
            for tensor in new:
                tensor.here.fill_(nan if tensor.is_floating_point() else 1)
        self._before.clear()
        self.calls = [call for call in self.calls if "empty" not in str(call[0])]

    def replay(self) -> None:
        for function, args, kwargs, new in self.calls:
            found = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, There)]
            for mine, fresh in zip(new, found, strict=False):
                mine.here.copy_(fresh.here)


def refuse(func: Any, args: Any, kwargs: Any) -> None:
    """Raise CaptureError for a call that waits for the device, or that copies between it and the CPU."""
    there = [isinstance(leaf, There) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    name = func._schema.name.removeprefix("aten::")
    by_mask = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
    if any(there) and (name in WAITS or by_mask):
        raise CaptureError(f"{func} waits for the device in a capture")
    to = kwargs.get("device")
    crosses = name == "_to_copy" and to is not None and (to.type == ELSEWHERE.type) != there[0]
    if crosses or (name == "copy_" and there[0] != there[1]):
        raise CaptureError(f"{func} copies between CPU and device in a capture")


def as_captured(tensor: Tensor) -> Tensor:
    """A tensor of the device is read when the graph is replayed, one of the CPU is read now."""
    return tensor if isinstance(tensor, There) else tensor.clone()


class Gpu:
    """The device and its allocator.

    Attributes:
        device: which notes for what the CPU waited.
        graphs: that live in each pool; pools that torch has forgotten are not listed.
        captures: how many were made.
        capturing: whether one is being made.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.graphs: Counter[int] = Counter()
        self.captures = 0
        self._pools = 0
        self._workspaces: dict[Any, int] = {}  # of each stream: the pool that it was taken from
        self.capturing = self._spoiled = False

    def new_pool(self) -> int:
        self._pools += 1
        return self._pools

    @contextmanager
    def capture(self, graph: Graph, pool: int, stream: Any, capture_error_mode: str) -> Iterator[None]:
        """In the place of ``torch.cuda.graph``. Python may collect garbage at any moment, and here it does."""
        for empty in [known for known, graphs in self.graphs.items() if not graphs]:
            if empty not in self._workspaces.values():
                del self.graphs[empty]
        if self.graphs.get(pool) == 0:
            raise CaptureError("use_count > 0 INTERNAL ASSERT FAILED: all graphs of the pool are gone")
        self.graphs[pool] += 1
        self.captures += 1
        weakref.finalize(graph, self._destroyed, pool)
        self.capturing, self._spoiled = True, False
        try:
            with graph:
                if gc.isenabled():
                    gc.collect()
                yield
        finally:
            self.capturing = False
        if any(call[0]._schema.name.removeprefix("aten::") in PRODUCTS for call in graph.calls):
            self._workspaces.setdefault(stream, pool)
        graph.end()
        if self._spoiled:
            raise CaptureError("operation not permitted when stream is capturing: a graph was destroyed")

    def _destroyed(self, pool: int) -> None:
        self.graphs[pool] -= 1
        self._spoiled = self._spoiled or self.capturing


@contextmanager
def simulated_gpu() -> Iterator[Gpu]:
    """Every command works on the device, and records its steps as graphs there."""
    with pytest.MonkeyPatch.context() as patch, Device() as device:
        gpu = Gpu(device)
        for room in ("training.loop", "commands.verify_networks", "sweep.loop"):
            patch.setattr(f"bp_torch.{room}.choose_device", lambda name: ELSEWHERE)
        patch.setattr("torch.cuda.CUDAGraph", Graph)
        patch.setattr("torch.cuda.graph", gpu.capture)
        patch.setattr("torch.cuda.device", lambda device: nullcontext())
        patch.setattr("torch.cuda.Stream", lambda device: object())
        patch.setattr("torch.cuda.graph_pool_handle", gpu.new_pool)
        patch.setattr(recorder, "records_graphs", lambda device: device.type == ELSEWHERE.type)
        patch.setattr(recorder, "capture_stream", cache(recorder.capture_stream.__wrapped__))
        patch.setattr(recorder, "FIRST_GRAPHS", [], raising=False)
        yield gpu
