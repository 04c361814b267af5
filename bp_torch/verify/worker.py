"""The inside of a process that a candidate has to itself: it takes calls through a socket, and answers with tensors.

process.py starts it, and is the other end of the channel. JSON and bytes go through it: nothing in them can run.
"""

import contextlib
import ctypes
import importlib.util
import json
import random
import signal
import socket
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from bp_torch.verify.arrays import as_tensor
from bp_torch.verify.differences import DtypesSeen

KEPT = 12  # memories and graphs, those used last
LONGEST = 2**24  # bytes of a message, without the memories
DTYPES = {str(t).removeprefix("torch."): t for t in vars(torch).values() if isinstance(t, torch.dtype)}


class Channel:
    """Messages, and memory that both ends have in common. A tensor is told by its place in a memory, which has a number
    at both ends. What has been written into a memory since goes with the next message."""

    def __init__(self, end: socket.socket, step: int) -> None:
        """Number the memories of this end in steps: 1 at one end, −1 at the other."""
        self.stream, self.step, self.last, self.used = end.makefile("rwb"), step, 0, 0
        self.memories: dict[int, Tensor] = {}  # as bytes; those that were used last are at the end
        self.known: dict[int, Tensor] = {}  # what the other end has in them

    def send(self, told: Any) -> None:
        """Send what ``told`` returned."""
        self.memories = dict(list(self.memories.items())[-max(KEPT, self.used) :])
        now = {key: memory.cpu() for key, memory in self.memories.items()}
        self.known = {key: known for key, known in self.known.items() if key in now}
        news = [key for key in now if key not in self.known or not torch.equal(now[key], self.known[key])]
        sizes = [[key, len(now[key]), str(self.memories[key].device)] for key in news]
        self.stream.write(json.dumps([told, sizes, list(now)]).encode() + b"\n")
        for key in news:
            self.known[key] = now[key].clone()
            self.stream.write(self.known[key].numpy().data)
        self.stream.flush()

    def receive(self, most: float = float("inf")) -> Any:
        """The next message. Raises EOFError, and ValueError or the like for what is none, or has too many bytes."""
        if not (line := self.stream.readline(LONGEST)).endswith(b"\n"):
            raise EOFError
        told, sizes, keys = json.loads(line)
        if not 0 <= sum(size for _, size, _ in sizes) <= most or any(size < 0 for _, size, _ in sizes):
            raise ValueError(f"wanted at most {most:,} bytes")
        for key, size, device in sizes:
            if len(data := bytearray(self.stream.read(size))) < size:
                raise EOFError
            self.known[key] = torch.frombuffer(data or bytearray(1), dtype=torch.uint8)[:size]
            if key not in self.memories or len(self.memories[key]) != size:
                self.memories[key] = torch.empty(size, dtype=torch.uint8, device=device)
            self.memories[key].copy_(self.known[key])
        self.memories = {key: self.memories[key] for key in keys}
        return self._untold(told)

    def told(self, value: Any, outer: bool = True) -> Any:
        """A message as JSON has it. Raises TypeError for what cannot be sent."""
        self.used = 0 if outer else self.used
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return {"tensor": self._place(value)}
        if isinstance(value, Mapping):
            return {"mapping": {str(key): self.told(each, False) for key, each in value.items()}}
        if isinstance(value, tuple | list):
            return {type(value).__name__: [self.told(each, False) for each in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a {type(value).__name__} cannot be sent to another process, or returned from there")

    def _place(self, t: Any) -> list[Any]:
        is_array, self.used = not isinstance(t, Tensor), self.used + 1
        t = as_tensor(t) if is_array else (t if t.layout == torch.strided else t.to_dense())
        there = t.detach().resolve_conj().resolve_neg()
        memory = torch.empty(0, dtype=torch.uint8, device=t.device).set_(there.untyped_storage())
        same = [k for k, m in self.memories.items() if (m.data_ptr(), m.device) == (memory.data_ptr(), m.device)]
        if not same:
            self.last += self.step
        key = same[0] if same else self.last
        self.memories[key] = self.memories.pop(key, memory)
        place = [str(t.dtype).removeprefix("torch."), list(t.shape), list(there.stride()), there.storage_offset()]
        return [key, *place, t.requires_grad, is_array]

    def _untold(self, told: Any) -> Any:
        if not isinstance(told, dict):
            return told
        ((kind, value),) = told.items()
        if kind == "mapping":
            return {key: self._untold(each) for key, each in value.items()}
        if kind != "tensor":
            return {"list": list, "tuple": tuple}[kind](map(self._untold, value))
        key, name, shape, strides, offset, requires_grad, is_array = value
        memory, dtype = self.memories[key], DTYPES[name]
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if all(shape) else -1
        if min([offset, *shape, *strides]) < 0 or last >= len(memory) // dtype.itemsize:
            raise ValueError("a tensor outside its memory")
        t = torch.empty(0, dtype=dtype, device=memory.device)
        t.set_(memory.untyped_storage(), offset, shape, strides)
        return t.numpy() if is_array else t.requires_grad_(requires_grad)


# ---- what is called ----


def load(place: str) -> list[Any]:
    """The objects of ``FILE:NAME`` or ``FILE:NAME,NAME``. Raises ValueError for a file or a name that is not there."""
    path, _, names = place.rpartition(":")
    module = _module(Path(path).resolve())
    if missing := [name for name in names.split(",") if not hasattr(module, name)]:
        raise ValueError(f"{path} has no {' and no '.join(missing)}")
    return [getattr(module, name) for name in names.split(",")]


@cache
def _module(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"verified_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.parent))  # for what it imports from there
    spec.loader.exec_module(module)
    return module


def as_functions(found: list[Any]) -> tuple[Any, Callable[..., Any] | None]:
    """The forward, or a module; and the backward, None if autograd goes through the forward.

    Two functions are these. One object is a class without arguments, or an instance, of a module, of an
    ``autograd.Function``, or of what has a ``forward`` and a ``backward``; else it is the forward itself.
    """
    if len(found) == 2:
        return found[0], found[1]
    (one,) = found
    if isinstance(one, type) and not issubclass(one, torch.autograd.Function):
        one = one()
    if not isinstance(one, nn.Module) and callable(apply := getattr(one, "apply", None)):
        return apply, None
    if not isinstance(one, nn.Module) and hasattr(one, "forward") and hasattr(one, "backward"):
        return one.forward, one.backward
    return one, None


class OwnParameters:
    """A module as a function of its inputs and then its parameters, which become its own for the call."""

    def __init__(self, module: nn.Module) -> None:
        """Keep the buffers, with which each call starts."""
        self.module = module
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        rest = [*module.buffers(), *(p for p in module.parameters() if not p.requires_grad)]
        self.state = [(t, t.detach().clone()) for t in rest]

    def __call__(self, *arguments: Any) -> Any:
        """Call the module."""
        inputs = arguments[: len(arguments) - len(self.parameters)]
        for p, given in zip(self.parameters.values(), arguments[len(inputs) :], strict=True):
            p.data = given.detach()
            p.requires_grad_(given.requires_grad)
        like = next(t for t in arguments if isinstance(t, Tensor) and t.is_floating_point())
        for t, start in self.state:
            t.data = start.to(like.device, like.dtype if start.is_floating_point() else None, copy=True)
        return self.module(*inputs)


class Worker:
    """Makes the calls."""

    def __init__(self, channel: Channel) -> None:
        """Begin with nothing loaded."""
        self.channel, self.graphs = channel, dict[int, tuple[list[Any], list[Tensor]]]()

    def serve(self) -> None:
        """Answer every call, with a value or an error."""
        while True:
            call = self.channel.receive()
            random.seed(zlib.crc32(call["random"].numpy()))
            np.random.seed(zlib.crc32(call["random"].numpy()))
            torch.set_rng_state(call["random"])
            start = _random_states()
            noted = DtypesSeen() if call["wide"] else contextlib.nullcontext()
            answer = {"number": call["number"]}
            try:
                with torch.set_grad_enabled(call["grad"]), noted as seen:
                    value = getattr(self, call["what"])(call["number"], *call["args"], **call["kwargs"])
                answer |= {"value": tree_map_only(Tensor, Tensor.detach, value), "eps": seen.eps if seen else 0.0}
                told = self.channel.told(answer | {"drew": _random_states() != start})
            except BaseException as error:  # also SystemExit, and whatever else a candidate raises
                traceback.print_exc()
                first = (str(error).strip().splitlines() or [""])[0]
                memory = isinstance(error, MemoryError) or "can't allocate memory" in first
                told = self.channel.told(answer | {"error": [type(error).__name__, first, memory]})
            self.channel.send(told)

    def ready(self, number: int, threads: int) -> None:
        """Compute with so many threads."""
        torch.set_num_threads(threads)

    def load(self, number: int, place: str) -> Any:
        """Import the candidate. Returns the parameters, if it is a module, and whether it is a pair."""
        forward, self.backward_by_hand = as_functions(load(place))
        self.module = OwnParameters(forward) if isinstance(forward, nn.Module) else None
        self.function = self.module or forward
        return self.module.parameters if self.module else {}, self.backward_by_hand is not None

    def backward(self, number: int, *args: Any, **kwargs: Any) -> Any:
        """Call the backward of a pair."""
        return self.backward_by_hand(*args, **kwargs)  # type: ignore[misc]

    def forward(self, number: int, *args: Any, **kwargs: Any) -> Any:
        """Call the forward. If an input requires a gradient, keep the graph, and return which outputs are in it too."""
        leaves = tree_leaves((args, kwargs))
        try:
            returned = self.function(*args, **kwargs)
        except RuntimeError as error:
            if "in-place operation" not in str(error):  # which autograd forbids for a leaf
                raise
            args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
            returned = self.function(*args, **kwargs)
        if not any(isinstance(t, Tensor) and t.requires_grad for t in leaves):
            return returned
        if self.module:
            leaves[len(leaves) - len(self.module.parameters) :] = self.module.parameters.values()
        outputs = [y for y in tree_leaves(returned) if isinstance(y, Tensor)]
        self.graphs = dict([*self.graphs.items(), (number, (leaves, outputs))][-KEPT:])
        return outputs, [y.requires_grad for y in outputs]

    def gradients(self, number: int, graph: int, dys: list[Tensor | None]) -> Any:
        """The gradients of the leaves of the graph that a call kept, None for those that have none."""
        leaves, outputs = self.graphs[graph]
        pairs = [(y, dy) for y, dy in zip(outputs, dys, strict=True) if dy is not None and y.requires_grad]
        ys, dys = [y for y, _ in pairs], [dy for _, dy in pairs]
        wanted = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
        if self.module:  # it may compute again in the backward, and want .backward()
            for t in wanted:
                t.grad = None
            torch.autograd.backward(ys, dys, retain_graph=True)
            found = [t.grad for t in wanted]
        else:
            found = list(torch.autograd.grad(ys, wanted, dys, retain_graph=True, allow_unused=True))
        of = {id(t): g for t, g in zip(wanted, found, strict=True)}
        return [of.get(id(t)) for t in leaves]


def _random_states() -> Any:
    array = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), array["key"].tobytes(), array["pos"]


def main() -> None:
    """Serve the socket of the first argument, with as many GiB more than torch takes as the second says."""
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError, TypeError):  # elsewhere than on Linux
        import resource

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # end with the process that judges
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
        limit = pages * resource.getpagesize() + int(float(sys.argv[2]) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(EOFError, OSError):
        Worker(Channel(socket.socket(fileno=int(sys.argv[1])), -1)).serve()
