"""A step recorded once for each batch size and then replayed: on a CPU as a list of calls, on a GPU as a CUDA graph.

Small layers spend their time between the operations, not in them. A training step always makes the same calls, so the
recorder runs its lines once and repeats the calls in the memory that the first run took. Memory that the step no longer
refers to is reused by its later calls, so a recording holds no more than the step itself held at one time.

A recording refers to tensors, not to their contents: a step may depend on a tensor that changes (θ, the learning rate,
the indices of a batch), but not on a Python number that changes, and it may not read a number out of a tensor.
``Recording.to_data`` gives the calls as plain data, for a program that has no torch. Nothing here knows what a step is.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import ismethod
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Result = TypeVar("Result")

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function, its positional arguments, and its keyword arguments."""

Kind = tuple[tuple[torch.Size, torch.dtype], ...]
"""Shapes and dtypes of a step's arguments."""

QUERIES = {"__get__", "__len__", "dim", "size", "stride", "numel", "is_floating_point", "is_contiguous"}
QUERIES |= {"untyped_storage"}
"""Calls that return what a tensor is (its shape, its dtype, its memory), and nothing that it contains."""

WRITES = torch.Tensor._version.__get__  # type: ignore[attr-defined]
"""The query for how often a tensor was written to, a number that no replay changes."""

SIZED_BY_CONTENTS = {"nonzero", "argwhere", "masked_select", "unique", "bincount"}
"""Calls that return a tensor whose shape depends on what another contains. An index by a mask does, too."""

FACTORS = {"mul", "div"}
"""Calls whose number is made a tensor once: torch would make one in each call, which takes as long as a small sum."""


class Replayable(Protocol):
    """A recorded step: a Recording or a ``torch.cuda.CUDAGraph``."""

    def replay(self) -> None:
        """Run it once more."""


class Recorder(Generic[Result]):
    """Runs ``function(*tensors)`` as written once (on a GPU twice) for each kind of its arguments, then replays it.

    Each call returns the same tensors as the first call with arguments of these shapes and dtypes, with new contents;
    a call with others may overwrite them, and so may another recorder on the same GPU. A recorder does not keep the
    object alive whose method it records: that often holds the recorder, and both would wait for the garbage collector.
    """

    def __init__(self, device: torch.device, function: Callable[..., Result]) -> None:
        """For a function that works on ``device``."""
        self.device = device
        self._function = weakref.WeakMethod(function) if ismethod(function) else lambda: function
        self._recorded: dict[Kind, tuple[tuple[Tensor, ...], Replayable, Result]] = {}
        self._warm: set[Kind] = set()
        self._memory: list[Tensor] = []  # what the recordings of all kinds share

    def __call__(self, *tensors: Tensor) -> Result:
        """``function(*tensors)``."""
        key = tuple([(tensor.shape, tensor.dtype) for tensor in tensors])
        if key in self._recorded:
            held, recording, result = self._recorded[key]
            for mine, given in zip(held, tensors, strict=True):
                mine.copy_(given)
            recording.replay()
            return result
        if records_graphs(self.device) and key not in self._warm:
            self._warm.add(key)  # the first run loads libraries and kernels, which no capture may do
            return self._run(*tensors)
        held = tuple(tensor.clone() for tensor in tensors)
        recording, result = self._capture(held) if records_graphs(self.device) else self.record(held)
        self._recorded[key] = held, recording, result
        return result

    def record(self, tensors: tuple[Tensor, ...]) -> tuple["Recording", Result]:
        """A recording of one run of the function, which it makes, and the run's result."""
        with Recording(self._memory) as recording:
            result = self._run(*tensors)
        recording.release(result)
        return recording, result

    def _capture(self, tensors: tuple[Tensor, ...]) -> tuple[Replayable, Result]:
        graph, result = captured(lambda: self._run(*tensors), self.device, *capture_stream(self.device))
        graph.replay()  # to capture is not to run
        return graph, result

    def _run(self, *tensors: Tensor) -> Result:
        function = self._function()
        if function is None:
            raise ReferenceError("the object whose method is recorded is gone")
        return function(*tensors)


# ---- CUDA graphs ----


def records_graphs(device: torch.device) -> bool:
    """Whether a step on ``device`` is recorded as a CUDA graph."""
    return device.type == "cuda"


def captured(lines: Callable[[], Result], device: torch.device, stream: Any, pool: Any) -> tuple[Any, Result]:
    """The CUDA graph of ``lines``, which do not run now, and the tensors that they return."""
    # The current device may be another one. Another thread, a loader's, may pin memory meanwhile: thread_local.
    with torch.cuda.device(device), no_garbage():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = lines()
    return graph, result


@contextmanager
def no_garbage() -> Iterator[None]:
    """Collect garbage now, and none inside: a graph that is destroyed while another is captured may spoil that one."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def capture_stream(device: torch.device) -> tuple[Any, Any]:
    """The stream and the memory pool of all captures on ``device``.

    A first graph, never replayed, stays in the pool as long as the process: torch captures nothing more into a pool
    whose graphs are all gone. It multiplies matrices, and so takes the workspace that all products on this stream use.
    """
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    one = torch.ones(1, 1, device=device)
    one @ one  # loads the library, which no capture may do
    FIRST_GRAPHS.append(captured(lambda: one @ one, device, stream, pool)[0])
    return stream, pool


FIRST_GRAPHS: list[Any] = []
"""The graph of each device that keeps its pool in use."""


class Unseen(TorchDispatchMode):
    """While entered, finds an operation that is in no call which a Recording sees, as those of torch.jit are not."""

    def __init__(self) -> None:
        """For a Recording, which says when it makes a call."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_seen = False
        self.found: object = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say no: else torch loads its compiler, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        if not self.is_seen:
            self.found = self.found or func
        return func(*args, **kwargs or {})


class Recording(TorchFunctionMode):
    """While entered, records the calls into torch that write into a tensor."""

    calls: list[Call]  # on tensors that share the memory of those that the step used

    def __init__(self, memory: list[Tensor] | None = None) -> None:
        """``memory`` holds the blocks that may be written to, and receives those that the recording adds."""
        super().__init__()
        self.calls = []
        self._blocks = [] if memory is None else memory
        self._unseen = Unseen()
        self._users: dict[int, list[weakref.ref[Tensor]]] = {}  # of each block: the step's tensors, by its address

    def replay(self) -> None:
        """Make all calls again, in order."""
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)

    def __enter__(self) -> Self:
        """Begin to record."""
        self._unseen.__enter__()  # type: ignore[no-untyped-call]
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """End. Raises RuntimeError if an operation was made that no replay would make."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._unseen.__exit__(*error)  # type: ignore[no-untyped-call]
        if self._unseen.found and error[0] is None:
            raise RuntimeError(
                f"{self._unseen.found} in a recorded step is in a function that no replay would call, as those of "
                "torch.jit are: take it out of the step, or do not record"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call and record it. Raises RuntimeError for a call that no replay could repeat."""
        self._unseen.is_seen = True
        try:
            return self.make(func, args, kwargs or {})
        finally:
            self._unseen.is_seen = False

    def make(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Make and record a call, whose operations are seen."""
        if func is Tensor.__deepcopy__:  # in a replay, its memo would give the first copy again
            func, args = Tensor.clone, args[:1]
        result = func(*args, **kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if result is None or any(result is tensor for tensor in tensors):  # in place, or into out=
            written = tensors[0] if result is None else result
            self._append(func, args, kwargs, written)
            self._use(written)  # which may be in other memory than before
        elif isinstance(result, Tensor) and not is_view(result, tensors) and not sized_by_contents(func, args):
            self._place(result)
            if "empty" not in func.__name__:  # memory without contents is not made again
                self._append_into(result, func, args, kwargs)
        elif is_view(result, tensors):
            self._use(result)
        elif isinstance(result, tuple | list) and all(is_view(part, tensors) for part in result):
            for view in result:
                self._use(view)
        elif func == WRITES or (func.__name__ not in QUERIES and not isinstance(result, torch.dtype)):
            raise RuntimeError(
                f"{func.__name__}() in a recorded step returns {type(result).__name__}, which no replay can update: "
                "take it out of the step, or do not record"
            )
        return result

    # ---- as plain data ----

    def to_data(self, **named: Tensor) -> dict[str, Any]:
        """The recording as dicts, lists, numbers and strings, for a program that replays it without torch.

        ``calls``: for each call its ``operation`` (the name of a torch function), ``arguments``, keyword ``options``,
        and ``out``, where it writes. A tensor is {buffer, dtype, offset, shape, stride}, the last three in elements.
        ``buffers``: for each block of memory its size in ``bytes``, and the ``value`` of a number that no call writes.
        ``tensors``: where the ``named`` tensors are, among them those that must be filled before a replay.
        """
        blocks: dict[int, Tensor] = {}

        def plain(value: Any) -> Any:
            if isinstance(value, tuple | list):
                return [plain(item) for item in value]
            if not isinstance(value, Tensor):  # a dtype or a slice by its name
                return value if isinstance(value, int | float | str | None) else str(value).removeprefix("torch.")
            blocks.setdefault(address := value.untyped_storage().data_ptr(), value)
            return {
                "buffer": list(blocks).index(address),
                "dtype": str(value.dtype).removeprefix("torch."),
                "offset": value.storage_offset(),
                "shape": list(value.shape),
                "stride": list(value.stride()),
            }

        calls = []
        for function, args, kwargs in self.calls:
            out = kwargs.get("out", args[0])
            if function is copy_result:
                _, function, args, kwargs = args
            calls.append(
                {
                    "operation": function.__name__.strip("_"),
                    "arguments": plain(args),
                    "options": {name: plain(value) for name, value in kwargs.items() if name != "out"},
                    "out": plain(out),
                }
            )
        tensors = {name: plain(tensor) for name, tensor in named.items()}
        written = {call["out"]["buffer"] for call in calls}
        buffers: list[dict[str, Any]] = []
        for number, tensor in enumerate(blocks.values()):
            buffers.append({"bytes": (size := tensor.untyped_storage().nbytes())})
            if size == tensor.itemsize and number not in written:
                buffers[-1]["value"] = tensor.item()
        return {"buffers": buffers, "calls": calls, "tensors": tensors}

    # ---- memory: what the step still refers to, and what is free ----

    def _place(self, result: Tensor) -> None:
        """Move the new tensor ``result`` into a free block, if there is one of about its size."""
        needed = result.untyped_storage().nbytes()
        free = [block for block in self._blocks if needed <= block.nbytes <= 4 * needed and self._is_free(block)]
        if free and result.layout == torch.strided:
            block = min(free, key=lambda block: block.nbytes).untyped_storage()
            home = result.new_empty(0).set_(block, 0, result.shape, result.stride())
            home.copy_(result)
            result.set_(block, 0, result.shape, result.stride())
        else:
            self._blocks.append(torch.empty(0, dtype=torch.uint8, device=result.device).set_(result.untyped_storage()))
        self._use(result)

    def _is_free(self, block: Tensor) -> bool:
        return all(user() is None for user in self._users.get(block.data_ptr(), ()))

    def release(self, result: object) -> None:
        """Keep the blocks of tensors that outlive the step, in a cache for example, from other recordings.

        The memory of the ``result`` may be used again: it is overwritten by calls with other shapes.
        """
        returned = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        self._blocks[:] = [block for block in self._blocks if self._is_free(block) or block.data_ptr() in returned]

    def _use(self, tensor: Tensor) -> None:
        address = tensor.untyped_storage().data_ptr()
        self._users.setdefault(address, []).append(weakref.ref(tensor))

    # ---- calls ----

    def _append(self, function: Callable[..., Any], args: Any, kwargs: Any, like: Tensor) -> None:
        """Record a call. Its tensors are aliases: those of the step may then disappear, which frees their memory."""
        if function.__name__.strip("_") in FACTORS and like.is_floating_point():
            dtype = torch.promote_types(like.dtype, torch.float32)
            args = tuple(torch.full((), v, dtype=dtype) if type(v) in (int, float) else v for v in args)
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach(), (args, kwargs))
        self.calls.append((function, args, kwargs))

    def _append_into(self, result: Tensor, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Record the call that writes into ``result``: ``a - y`` becomes ``torch.sub(a, y, out=result)``."""
        name = function.__name__.strip("_")
        into: Any = None if function is Tensor.where else getattr(torch, name, None)  # torch.where has another order
        try:
            into(*args, **kwargs, out=result)
        except (TypeError, RuntimeError):  # no such function, or it takes no out=
            self._append(copy_result, (result, function, args, kwargs), {}, result)
        else:
            self._append(into, args, kwargs | {"out": result}, result)


def copy_result(result: Tensor, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Write what ``function`` returns into ``result``: for functions that take no ``out``."""
    result.copy_(function(*args, **kwargs))


def sized_by_contents(function: Callable[..., Any], args: Any) -> bool:
    """Whether what the call returns has a shape that depends on what a tensor contains."""
    by_mask = any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:]))
    return function.__name__ in SIZED_BY_CONTENTS or (function.__name__ == "__getitem__" and by_mask)


def is_view(result: object, tensors: list[Tensor]) -> bool:
    """Whether ``result`` shares the memory of one of ``tensors``, and so shows what that contains."""
    return isinstance(result, Tensor) and any(
        result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for tensor in tensors
    )
