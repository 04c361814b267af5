"""A step that is written once, noted as it runs, and replayed: as a CUDA graph on a GPU, on a CPU as a list of calls.

On small layers the time goes into getting from one operation to the next, not into the operations. A step always does
the same ones, on the same memory, so it is enough to go through its lines once. That changes what a debugger sees, and
nothing else: every number is the same, bit for bit.

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

READS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"}
"""The calls by which a number gets out of a tensor."""


class Noted(Protocol):
    """A step, noted."""

    def replay(self) -> None:
        """Make it once more."""


class Replayed(Generic[Result]):
    """``function(chosen)``, made as it is written once or twice for each length of ``chosen``, and then replayed."""

    def __init__(self, function: Callable[[Tensor], Result], *, graph: bool) -> None:
        """Note ``function``, which has to return the same tensors always, and with ``graph`` as a CUDA graph."""
        self.function = function
        self.graph = graph
        self._noted: dict[int, tuple[Tensor, Noted, Result]] = {}
        self._warm: set[int] = set()

    def __call__(self, chosen: Tensor) -> Result:
        """What ``function`` makes of ``chosen``, (n,)."""
        n = chosen.shape[0]
        if n in self._noted:
            held, noted, result = self._noted[n]
            held.copy_(chosen)
            noted.replay()
            return result
        if not self.graph:
            return self._note_calls(chosen.clone())
        if n in self._warm:
            return self._note_kernels(chosen.clone())
        self._warm.add(n)  # the first time loads libraries and kernels, which no recording may do
        return self.function(chosen)

    def _note_calls(self, held: Tensor) -> Result:
        with Tape() as tape:
            result = self.function(held)
        self._noted[len(held)] = held, tape, result
        return result

    def _note_kernels(self, held: Tensor) -> Result:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's thread may pin memory meanwhile
            result = self.function(held)
        graph.replay()  # to record is not to run
        self._noted[len(held)] = held, graph, result
        return result


class Tape(TorchFunctionMode):
    """While entered, notes the calls into torch that write into a tensor, to make them again."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the call be made, and note it. Raises RuntimeError for one that reads a number."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in READS:
            raise RuntimeError(f"{func.__name__}() reads a number out of a tensor: a replay would not read it again")
        result = func(*args, **kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(result is tensor for tensor in tensors):  # in place, or into out=
            self.calls.append((func, args, kwargs))
        elif isinstance(result, Tensor) and not any(_same_memory(result, tensor) for tensor in tensors):
            self.calls.append((_again, (result, func, args, kwargs), {}))
        return result  # a view or a property is what it was: nothing to do again

    def replay(self) -> None:
        """Make all calls again, in their order."""
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)


def _again(result: Tensor, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let the memory that a call had asked for hold what it gives now: later calls read it there."""
    result.copy_(function(*args, **kwargs))


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
