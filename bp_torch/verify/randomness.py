"""Random numbers: a function that draws some gets the same ones in every call, and in every dtype."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
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

    def is_settled(self, kind: str) -> bool:
        """Whether calls of a kind need no seed."""
        return kind in self.seen and not self.draws

    @contextmanager
    def alike(self, kind: str, seed: int, narrow: torch.dtype) -> Iterator[None]:
        """A context in which to make one call of a kind; the generators are afterwards as they were."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        before = random.getstate()
        with torch.random.fork_rng(devices=devices):
            try:
                torch.default_generator.manual_seed(seed)
                random.seed(seed)
                for device in devices:
                    torch.cuda.default_generators[device].manual_seed(seed)
                start = _state(devices)
                with DrawAlike(narrow):
                    yield
                self.seen.add(kind)
                self.draws = self.draws or _state(devices) != start
            finally:
                random.setstate(before)


def _state(devices: Any) -> list[Any]:
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return [random.getstate(), *(state.numpy().tobytes() for state in states)]


class DrawAlike(TorchFunctionMode):
    """A context in which torch draws the same numbers in every dtype: in float64, then rounded to one dtype.

    Else ``torch.rand_like(x) > 0.5`` is another mask in float64 than in float32.
    """

    IN_PLACE = (Tensor.uniform_, Tensor.normal_, Tensor.exponential_, Tensor.bernoulli_)
    UNIFORM, NORMAL = (torch.rand, torch.rand_like), (torch.randn, torch.randn_like)

    def __init__(self, narrow: torch.dtype) -> None:
        """Round to ``narrow``."""
        super().__init__()
        self.narrow = narrow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``; if it draws, draw again in float64, from the same state of the generator."""
        kwargs = kwargs or {}
        draws = func in (*self.IN_PLACE, *self.UNIFORM, *self.NORMAL, torch.bernoulli)
        if not draws or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            state = torch.get_rng_state()
            result: Tensor = func(*args, **kwargs)
            torch.set_rng_state(state)
            wide = torch.empty(result.shape, dtype=torch.float64)
            if func in self.UNIFORM:  # [0, 1) stays that
                eps = torch.finfo(self.narrow).eps
                return result.copy_((wide.uniform_() / eps).floor() * eps)
            if func in self.IN_PLACE:
                func(wide, *(t.cpu() if isinstance(t, Tensor) else t for t in args[1:]), **kwargs)
            else:
                wide.normal_() if func in self.NORMAL else wide.bernoulli_(args[0].double().cpu())
            return result.copy_(wide.to(self.narrow))
