"""What is known without torch, above all what flags take: a command's help and its errors do not wait for torch."""

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from sys import float_info
from typing import Annotated, Any, Literal

from bp_torch.flags import Within, check_bounds

VERSION = "0.3.0"

ActivationName = Literal["sigmoid", "relu", "tanh", "scaled-tanh", "identity"]
CostName = Literal["quadratic", "binary-cross-entropy", "softmax-cross-entropy"]
InitName = Literal["lecun", "normal", "he", "uniform"]
_Digits = Literal["mnist", "fashion-mnist", "kmnist", "qmnist", "emnist-digits", "emnist-mnist"]
DatasetName = Literal[_Digits, "emnist-letters", "emnist-balanced", "emnist-bymerge", "emnist-byclass"]
DTypeName = Literal["float32", "float64", "bfloat16", "float16"]

ABSORBED = {"binary-cross-entropy": "sigmoid"}
"""Costs with the output activation that they require, because its φ′ cancels in their derivative."""

SIDE = 28
PIXELS = SIDE * SIDE
CLASSES = 10

CONFIG = "config.json"  # in the folder of a run

ROUNDED_TO = {  # the largest number that a type of torch rounds to 0, and the smallest that it rounds to ∞
    "float64": (0.0, inf),
    "float32": (2.0**-150, 2.0**128 - 2.0**103),
    "float16": (2.0**-25, 2.0**16 - 2.0**4),
    "bfloat16": (2.0**-134, 2.0**128 - 2.0**119),
}

MOST_THREADS = 1024
"""More than any machine has cores; torch ends in a segmentation fault where it cannot start them."""


def on_demand(package: str, names: Collection[str], *modules: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package, which imports what is asked for: a command answers before torch is loaded."""

    def find(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        for module in modules if name in names else ():
            found = vars(importlib.import_module(f"{package}.{module}"))
            if name in found:
                return found[name]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def parameter_count(sizes: tuple[int, ...]) -> int:
    """P, the number of weights and biases: (784, 16, 16, 10) has 13,002."""
    return sum(n_in * n_out + n_out for n_in, n_out in pairwise(sizes))


def check_threads(threads: int | None) -> None:
    """Raise ValueError for a number of CPU threads that no machine has."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"--threads: wanted 1 to {MOST_THREADS}, got {threads}")


def check_momentum(momentum: float) -> None:
    """Raise ValueError for a momentum with which SGD does not converge."""
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is at least 0 and below 1, not {momentum}")


def check_weight_decay(weight_decay: float, dtype: str) -> None:
    """Raise ValueError unless ``weight_decay`` is 0, or positive and finite in ``dtype``, a type of torch."""
    if weight_decay != 0:
        check_positive("weight decay", weight_decay, dtype, "zero or a positive number")


def check_positive(name: str, value: float, dtype: str, wanted: str = "a positive number") -> None:
    """Raise ValueError unless ``value`` is positive and finite, and still is when it is rounded to ``dtype``."""
    if not 0 < value <= float_info.max:
        raise ValueError(f"{name} is {wanted}, not {value}")
    zero, infinite = ROUNDED_TO[dtype]
    if not zero < value < infinite:
        raise ValueError(f"{name} is {wanted}, but {value} is {'0' if value <= zero else 'infinite'} in {dtype}")


@dataclass(frozen=True)
class Deformation:
    """How far images are deformed at most. All angles are in degrees, all lengths in pixels; 0 leaves a kind out.

    Raises ValueError for a value out of its range.
    """

    rotation: Annotated[float, Within(0, 180)] = 15.0
    """Angle, drawn uniformly from −rotation to rotation."""
    shear: Annotated[float, Within(0, 80)] = 15.0
    """Angle by which vertical lines lean, drawn likewise."""
    scale: Annotated[float, Within(0, 0.9)] = 0.15
    """Width and height are each multiplied by a number from 1 − scale to 1 + scale."""
    shift: Annotated[float, Within(0, SIDE)] = 0.0
    """Pixels to the right and down, each drawn from −shift to shift."""
    sigma: Annotated[float, Within(0, SIDE)] = 6.0
    """σ of the Gaussian that smooths the field."""
    alpha: Annotated[float, Within(0, 10_000)] = 35.0
    """α, the factor of the smoothed field."""

    def __post_init__(self) -> None:
        """Check every value."""
        check_bounds(self)
        if self.alpha and self.sigma < 0.5:
            raise ValueError(f"--sigma: wanted 0.5 or more for an elastic field, got {self.sigma}")
