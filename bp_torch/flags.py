"""The facts about a flag, each once, at the field of the dataclass that has it.

epochs: Annotated[int, Within(least=0)] = 20
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Within:
    """The numbers that a flag takes, or each number of a list: from ``least`` to ``most``, ``above`` and ``below``."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def has(self, number: float) -> bool:
        """Whether the flag takes ``number``. It takes no NaN."""
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
            and number == number
        )

    def __str__(self) -> str:
        """The bounds in words: 0 or more, 1 to 100, above 0 and below 1."""
        if self.least is not None and self.most is not None:
            return f"{self.least:,} to {self.most:,}"
        words = {"{:,} or more": self.least, "{:,} or less": self.most, "above {:,}": self.above}
        words |= {"below {:,}": self.below}
        return " and ".join(form.format(bound) for form, bound in words.items() if bound is not None)


def check_bounds(config: Any) -> None:
    """Raise ValueError for the first field of the dataclass ``config`` that holds a number outside its ``Within``."""
    kind: Any = type(config)
    for name, bounds in bounds_of(kind).items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, int | float) and not bounds.has(number) for number in numbers):
            raise ValueError(f"{flag(name)}: wanted {bounds}, got {' '.join(map(str, numbers))}")


@cache
def bounds_of(kind: Any) -> dict[str, Within]:
    """The bounds of each field of a dataclass that has some."""
    return {name: fact for name, fact in facts(kind) if isinstance(fact, Within)}


def facts(kind: Any) -> Iterator[tuple[str, Any]]:
    """Each field of a dataclass with each of the facts in its ``Annotated`` type."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for fact in getattr(hint, "__metadata__", ()):
            yield name, fact


def flag(field: str) -> str:
    """The flag of a field: --batch-size of batch_size."""
    return "--" + field.replace("_", "-")
