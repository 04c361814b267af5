"""Random numbers: a function that draws some gets the same ones in every call, and in every dtype."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Randomness:
    """Seeds each call of a function alike, if the first call of its kind has drawn from a global generator."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.seen: set[str] = set()  # the kinds of call that were made
        self.draws = False  # whether any of them drew random numbers

    def alike(self, kind: str, seed: int, narrow: torch.dtype) -> AbstractContextManager[None]:
        """A context in which to make one call of a kind."""
        return nullcontext() if kind in self.seen and not self.draws else self._seeded(kind, seed, narrow)

    @contextmanager
    def _seeded(self, kind: str, seed: int, narrow: torch.dtype) -> Iterator[None]:
        """Begin from the ``seed``; the generators are afterwards as they were before."""
        before = _states()
        try:
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            if before[2]:
                torch.cuda.manual_seed_all(seed)
            start = _states()
            with DrawAlike(narrow):
                yield
            self.seen.add(kind)
            self.draws = self.draws or not _equal(start, _states())
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            if before[2]:
                torch.cuda.set_rng_state_all(before[2])


def _states() -> tuple[Tensor, Any, list[Tensor]]:
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), random.getstate(), on_gpu


def _equal(one: tuple[Tensor, Any, list[Tensor]], other: tuple[Tensor, Any, list[Tensor]]) -> bool:
    on_gpu = all(map(torch.equal, one[2], other[2]))
    return torch.equal(one[0], other[0]) and one[1] == other[1] and on_gpu


class DrawAlike(TorchFunctionMode):
    """A context in which torch draws the same numbers in every dtype: in float64, then rounded to one dtype.

    Else ``torch.rand_like(x) > 0.5`` is another mask in float64 than in float32.
    """

    DRAWS = {  # what draws, and how it draws in place
        torch.rand: "uniform_",
        torch.rand_like: "uniform_",
        torch.randn: "normal_",
        torch.randn_like: "normal_",
        Tensor.uniform_: "",
        Tensor.normal_: "",
        Tensor.exponential_: "",
        Tensor.bernoulli_: "",
        torch.bernoulli: "bernoulli_",
    }

    def __init__(self, narrow: torch.dtype) -> None:
        """Round to ``narrow``."""
        super().__init__()
        self.narrow = narrow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``; if it draws, draw again in float64, from the same state of the generator."""
        kwargs = kwargs or {}
        if func not in self.DRAWS or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            state = torch.get_rng_state()
            result = func(*args, **kwargs)
            if not result.is_floating_point():
                return result
            torch.set_rng_state(state)
            wide = torch.empty(result.shape, dtype=torch.float64)
            if in_place := self.DRAWS[func]:
                given = [args[0].double().cpu()] if in_place == "bernoulli_" else []
                getattr(wide, in_place)(*given)
            else:
                func(wide, *(t.cpu() if isinstance(t, Tensor) else t for t in args[1:]), **kwargs)
            if in_place == "uniform_":  # [0, 1) stays that
                eps = torch.finfo(self.narrow).eps
                return result.copy_((wide / eps).floor() * eps)
            return result.copy_(wide.to(self.narrow))
