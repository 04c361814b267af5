"""A bank of layers with hand-written backwards, and of faults in them: what ``verify bench`` is scored on.

Each backward takes ``bug`` first. A fault is one line beside the right line:

    inner = 0 if bug("the sum is lost", "multiple of y") else (dy * p).sum(-1, keepdim=True)

``bug(name, said, source)`` is true while that fault is planted. ``said`` is a regular expression for the words that
diagnose it rightly, "" if none are known that would. ``source`` names where the fault is a real bug.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Forward = Callable[..., Any]
Backward = Callable[..., Any]


@dataclass
class Bugs:
    """The faults of one backward: it notes each that is asked for, and says yes to the ``planted`` one."""

    planted: str = ""
    said: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str, said: str = "", source: str = "") -> bool:
        """Whether this fault is the planted one."""
        self.said[name], self.sources[name] = said, source
        return name == self.planted


@dataclass
class Layer:
    """A layer, its backward with faults, and the shapes and kinds of its inputs."""

    name: str
    forward: Forward
    backward: Backward
    inputs: dict[str, Any]

    def arguments(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
        """Random inputs in ``dtype``."""
        generator = torch.Generator().manual_seed(seed)
        return {name: kind(generator, dtype) for name, kind in self.inputs.items()}

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Whether torch can: it has no linear algebra in 16 bits."""
        try:
            self.forward(*self.arguments(dtype).values())
        except RuntimeError:
            return False
        return True

    def faults(self) -> Bugs:
        """Every fault of the layer: found by running its backward without any."""
        bugs, arguments = Bugs(), list(self.arguments(torch.float64).values())
        self.backward(bugs, torch.ones_like(self.forward(*arguments)), *arguments)
        return bugs


LAYERS: dict[str, Layer] = {}


def layer(name: str, forward: Forward, /, **inputs: Any) -> Callable[[Backward], Backward]:
    """Enters a backward into ``LAYERS``. The inputs are shapes, or functions of a generator and a dtype."""

    def entered(backward: Backward) -> Backward:
        kinds = {n: normal(*kind) if isinstance(kind, tuple) else kind for n, kind in inputs.items()}
        LAYERS[name] = Layer(name, forward, backward, kinds)
        return backward

    return entered


def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Callable[[torch.Generator, torch.dtype], Tensor]:
    """Normally distributed numbers."""

    def draw(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return (shift + scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    return draw


def positive(*shape: int) -> Callable[[torch.Generator, torch.dtype], Tensor]:
    """Numbers from 0.5 to 2."""

    def draw(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return (0.5 + 1.5 * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)

    return draw


def indices(high: int, *shape: int) -> Callable[[torch.Generator, torch.dtype], Tensor]:
    """Whole numbers below ``high``."""

    def draw(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    return draw


def common(bug: Bugs, g: Tensor, name: str = "") -> Tensor:
    """The right gradient ``g``, or one of the faults that every backward can have."""
    of = f" of {name}" if name else ""
    if bug(f"the sign is lost{of}", "sign is wrong"):
        return -g
    if bug(f"added twice{of}", "2 times what it should be", "the planted * 2 of Ng's course"):
        return 2 * g
    return g


def load() -> dict[str, Layer]:
    """All layers, by name."""
    from bp_torch.verify.bank import losses, normalisation, pointwise, positions, products

    assert losses and normalisation and pointwise and positions and products  # entered as they are imported
    return LAYERS
