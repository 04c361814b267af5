"""The facts at the fields of a dataclass: bounds, and how a wrong value is told."""

from dataclasses import dataclass
from math import nan
from typing import Annotated, Literal

import pytest

from bp_torch.cli import parse
from bp_torch.flags import Within, check_bounds


@dataclass
class Bounded:
    """Flags with bounds."""

    size: Annotated[int | Literal["full"] | None, Within(least=1)] = None
    """A size. None: any."""
    parts: Annotated[tuple[float, ...], Within(above=0, below=1)] = (0.5,)
    """Parts."""
    seed: Annotated[int, Within(least=0, most=4000)] = 0
    """A seed."""

    def __post_init__(self) -> None:
        check_bounds(self)


def test_values_within_their_bounds_are_taken() -> None:
    assert parse(Bounded, description="", args=["--size", "1", "--parts", ".1", ".9"]) == Bounded(1, (0.1, 0.9))
    assert parse(Bounded, description="", args=["--size", "full", "--seed", "4000"]) == Bounded("full", seed=4000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "--size: wanted 1 or more, got 0"),
        ({"parts": (0.5, 1.0)}, "--parts: wanted above 0 and below 1, got 0.5 1.0"),
        ({"parts": (nan,)}, "--parts: wanted above 0 and below 1, got nan"),
        ({"seed": 4001}, "--seed: wanted 0 to 4,000, got 4001"),
    ],
)
def test_value_out_of_bounds_is_told_with_its_flag(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Bounded(**fields)  # type: ignore[arg-type]
    assert str(error.value) == message
