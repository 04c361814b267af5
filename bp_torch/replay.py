"""A step that is written once, noted as it runs, and replayed: as a CUDA graph on a GPU, on a CPU as a list of calls.

On small layers the time goes into getting from one operation to the next, not into the operations. A step always does
the same ones, on the same memory, so it is enough to go through its lines once. That changes what a debugger sees, and
nothing else.

What is noted is the tensors, not their content. So a step may depend on a tensor that changes (θ, η, the chosen
examples), but not on a Python number that does, and it may not read a number out of a tensor. Nothing here knows what a
step is for.
"""

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Result = TypeVar("Result")

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function, its arguments by place, and those by name."""

ABOUT = {"__get__", "__len__", "dim", "size", "stride", "numel", "is_floating_point", "is_contiguous"}
"""The calls that tell what a tensor is, and nothing that it holds."""


class Noted(Protocol):
    """A step, noted."""

    def replay(self) -> None:
        """Make it once more."""


class Replay(Generic[Result]):
    """One step, made as it is written once or twice for each number of examples, and then replayed."""

    def __init__(self, device: torch.device) -> None:
        """For a step on ``device``."""
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._noted: dict[int, tuple[Tensor, Noted, Result]] = {}
        self._warm: set[int] = set()

    def __call__(self, step: Callable[[Tensor], Result], chosen: Tensor) -> Result:
        """``step(chosen)`` for indices (n,); it is the same step, and returns the same tensors, each time."""
        n = chosen.shape[0]
        if n in self._noted:
            held, noted, result = self._noted[n]
            held.copy_(chosen)
            noted.replay()
            return result
        if not self._stream:
            return self._note_calls(step, chosen.clone())
        if n in self._warm:
            return self._note_kernels(step, chosen.clone(), self._stream)
        self._warm.add(n)  # the first time loads libraries and kernels, which no recording may do
        return step(chosen)

    def _note_calls(self, step: Callable[[Tensor], Result], held: Tensor) -> Result:
        with Tape() as tape:
            result = step(held)
        self._noted[len(held)] = held, tape, result
        return result

    def _note_kernels(self, step: Callable[[Tensor], Result], held: Tensor, stream: torch.cuda.Stream) -> Result:
        # The current device may be another one. Another thread, a loader's, may pin memory meanwhile: thread_local.
        with torch.cuda.device(held.device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = step(held)
        graph.replay()  # to record is not to run
        self._noted[len(held)] = held, graph, result
        return result


class Tape(TorchFunctionMode):
    """While entered, notes the calls into torch that write into a tensor, to make them again."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the call be made, and note it. Raises RuntimeError for one that a replay could not make again."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if result is None or any(result is tensor for tensor in tensors):  # in place, or into out=
            self.calls.append((func, args, kwargs))
        elif isinstance(result, Tensor):
            if not _view(result, tensors):
                self.calls.append(_into(result, func, args, kwargs))
        elif isinstance(result, tuple | list) and all(_view(part, tensors) for part in result):
            pass
        elif func.__name__ not in ABOUT and not isinstance(result, torch.dtype):
            raise RuntimeError(f"{func.__name__}() in a step gives {type(result).__name__}, which no replay can renew")
        return result

    def replay(self) -> None:
        """Make all calls again, in their order."""
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)


def _into(result: Tensor, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call that puts what ``function`` gives into the memory that it had asked for: later calls read it there.

    ``a - y`` becomes ``torch.sub(a, y, out=result)``, where there is one that takes ``out``.
    """
    into: Any = getattr(torch, function.__name__.strip("_"), None)
    try:
        into(*args, **kwargs, out=result)
    except (TypeError, RuntimeError):
        return _copy, (result, function, args, kwargs), {}
    return into, args, kwargs | {"out": result}


def _copy(result: Tensor, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    result.copy_(function(*args, **kwargs))


def _view(result: object, tensors: list[Tensor]) -> bool:
    """Whether ``result`` is a view of one of ``tensors``, which shows what they hold without being made again."""
    return isinstance(result, Tensor) and any(
        result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for tensor in tensors
    )
