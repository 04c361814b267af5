"""The facts about a flag, each once, at the field of the dataclass that has it; and the types of fields, in words.

epochs: Annotated[int, Within(least=0), Flag(may_change=True)] = 20
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from math import log10
from operator import ge, gt, le, lt
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
WHOLE = 2**63  # torch has whole numbers below this one
Role = Literal["recipe", "seed", "log", "machine", "place"]


@dataclass(frozen=True)
class Flag:
    """The part that a flag has in a run. A flag without this fact is one of the recipe, which may not change."""

    role: Role = "recipe"  # the recipe and the seed decide which network comes out; place: where things are
    word: str | None = None  # before its value in the name of a run; None: the flag's own, of recipe and seed
    first_column: bool = False  # whether HParams shows it at once
    may_change: bool = False  # on resuming
    only_with: tuple[str, tuple[Any, ...]] | None = None  # another flag, and its values with which this has an effect

    @property
    def decides(self) -> bool:
        """Whether it decides which network comes out."""
        return self.role in ("recipe", "seed")


@dataclass(frozen=True)
class Within:
    """The numbers that a flag takes, or each number of a list: from ``least`` to ``most``, ``above`` and ``below``."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def has(self, number: float) -> bool:
        """Whether the flag takes ``number``. It takes no NaN and no ∞."""
        bounds = ((ge, self.least), (le, self.most), (gt, self.above), (lt, self.below), (lt, float("inf")))
        return number > -float("inf") and all(bound is None or holds(number, bound) for holds, bound in bounds)

    def __str__(self) -> str:
        """The bounds in words: 0 or more, 1 to 100, above 0 and below 1."""
        if self.least is not None and self.most is not None:
            return f"{self.least:,} to {self.most:,}"
        words = {"{:,} or more": self.least, "{:,} or less": self.most, "above {:,}": self.above}
        words |= {"below {:,}": self.below}
        return " and ".join(form.format(bound) for form, bound in words.items() if bound is not None)


def once(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """A function of a class that is called once for each: a sweep has thousands of configs."""
    return cache(function)


def facts(kind: Any) -> Iterator[tuple[str, Any]]:
    """Each field of a dataclass with each of the facts in its ``Annotated`` type, those of base classes first."""
    for owner in reversed(kind.__mro__):
        for name, hint in get_type_hints(owner, include_extras=True).items():
            for fact in getattr(hint, "__metadata__", ()):
                yield name, fact


@once
def flags_of(kind: Any) -> dict[str, Flag]:
    """The part in a run of each field of a dataclass. A field that a subclass has again keeps what is not replaced."""
    return {field.name: Flag() for field in fields(kind)} | {n: fact for n, fact in facts(kind) if type(fact) is Flag}


@once
def bounds_of(kind: Any) -> dict[str, Within]:
    """The bounds of each field of a dataclass that has some."""
    return {name: fact for name, fact in facts(kind) if isinstance(fact, Within)}


@once
def types_of(kind: Any) -> dict[str, Any]:
    """The type of each field of a dataclass, without its facts."""
    return {name: hint for name, hint in get_type_hints(kind).items() if get_origin(hint) is not ClassVar}


def check_bounds(config: Any) -> None:
    """Raise ValueError for the first field of the dataclass ``config`` with a number out of its bounds, or WHOLE."""
    bounded = bounds_of(type(config))
    for name in types_of(type(config)):
        value, bounds = getattr(config, name), bounded.get(name)
        numbers = value if isinstance(value, tuple) else (value,)
        if bounds and any(isinstance(number, int | float) and not bounds.has(number) for number in numbers):
            raise ValueError(f"{flag(name)}: wanted {bounds}, got {' '.join(map(shown, numbers))}")
        if any(isinstance(number, int) and abs(number) >= WHOLE for number in numbers):
            raise ValueError(f"{flag(name)}: wanted at most 18 digits, got {' '.join(map(shown, numbers))}")


def shown(number: object) -> str:
    """A number in a message: one that is very long by its length."""
    is_long = isinstance(number, int) and abs(number) >= 10**30
    return f"about {int(number.bit_length() * log10(2)):,} digits" if is_long else str(number)  # type: ignore[attr-defined]


def check_types(config: Any) -> None:
    """Raise ValueError for the first field whose value has another type. A fact "module:name" is a table of names."""
    tables = {name: fact for name, fact in facts(type(config)) if isinstance(fact, str)}
    for name, hint in types_of(type(config)).items():
        value = getattr(config, name)
        in_table = name in tables and isinstance(value, str)  # a user may have added it
        if not fits(value, hint) and not (in_table and value in resolve_name(tables[name])):
            wanted = in_words(hint, in_python=True)
            raise ValueError(f"{flag(name)}: wanted {wanted}, got {value!r}")


def check_effects(config: Any) -> None:
    """Raise ValueError for the first flag of the dataclass ``config`` that was given and has no effect."""
    for field in fields(config):
        other, values = flags_of(type(config))[field.name].only_with or ("", ())
        if other and getattr(config, other) not in values and getattr(config, field.name) != field.default:
            way = f"without {flag(other)} {' or '.join(map(str, values))}"
            if values == (True,):
                way = f"with --no-{other}: leave one of them out"
            raise ValueError(f"{flag(field.name)} has no effect {way}")


def flag(field: str) -> str:
    """The flag of a field: --batch-size of batch_size."""
    return "--" + field.replace("_", "-")


# ---- the type of a field ----


def alternatives(hint: Any) -> list[Any]:
    """The types and the words that fit a type: [int, "full"] of ``int | Literal["full"]``."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return [one for choice in get_args(hint) for one in alternatives(choice)]
    return [hint]


def fits(value: object, hint: Any) -> bool:
    """Whether ``value`` has the type ``hint`` of a field."""
    return any(_is(value, one) for one in alternatives(hint))


def _is(value: object, one: Any) -> bool:
    if get_origin(one) in (tuple, list):
        items = get_args(one)
        if not isinstance(value, get_origin(one)):
            return False
        if get_origin(one) is tuple and items[-1] is not Ellipsis:
            return len(value) == len(items) and all(map(fits, value, items))
        return all(fits(item, items[0]) for item in value)
    if isinstance(one, str):
        return isinstance(value, str) and value == one
    return isinstance(value, one) if one is Path else type(value) in {float: (float, int)}.get(one, (one,))


def in_words(hint: Any, *, in_python: bool = False) -> str:
    """The values of a type, as one writes them on the command line or ``in_python``: a whole number, or full."""
    words = {int: "a whole number", float: "a number", bool: "True or False", NoneType: "None"}
    words[Path] = "a Path" if in_python else "a path"
    found = []
    for one in alternatives(hint):
        if get_origin(one) is tuple:
            item = get_args(one)[0]
            several = {int: "whole numbers", float: "numbers"}.get(item) or f"one or more of {in_words(item)}"
            found.append(f"a tuple of {several}" if in_python else f"{several}, with a space between")
        elif one is not NoneType or in_python:
            found.append(one if isinstance(one, str) else words.get(one, "text"))
    *first, last = found
    return f"{', '.join(first)} or {last}" if first else last
