"""The facts at the fields of a dataclass: bounds, and how a wrong value is told."""

from dataclasses import dataclass, replace
from math import inf, nan
from typing import Annotated, Literal

import pytest

from bp_torch.cli import parse
from bp_torch.flags import Flag, Within, check_bounds
from bp_torch.help import help_text
from bp_torch.ladder.results import recipe
from bp_torch.training import Config
from bp_torch.training.run import default_run_name


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
        ({"parts": (inf,)}, "--parts: wanted above 0 and below 1, got inf"),
        ({"parts": (nan,)}, "--parts: wanted above 0 and below 1, got nan"),
        ({"seed": 4001}, "--seed: wanted 0 to 4,000, got 4001"),
        ({"size": 10**401}, "--size: wanted at most 18 digits, got about 401 digits"),
        ({"parts": (0.5, -(10**5000))}, "--parts: wanted above 0 and below 1, got 0.5 about 5,000 digits"),
        ({"seed": 10**401}, "--seed: wanted 0 to 4,000, got about 401 digits"),
    ],
)
def test_value_out_of_bounds_is_told_with_its_flag(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Bounded(**fields)  # type: ignore[arg-type]
    assert str(error.value) == message


@dataclass(frozen=True)
class More(Config):
    """The settings of a run, and three flags more."""

    dropout: Annotated[float, Within(least=0, below=1), Flag(word="drop", first_column=True)] = 0.0
    """Part of the neurons that are left out."""
    slower: bool = False
    """Take smaller steps."""
    mail: Annotated[str | None, Flag("place", may_change=True)] = None
    """Address that is told when the run is done. None: nobody is told."""


def test_flag_is_entered_once() -> None:
    config = parse(More, description="", args=["--dropout", "0.25", "--slower", "--mail", "me"])
    assert config == More(dropout=0.25, slower=True, mail="me")
    told = help_text(More, "train.py", "Trains.")
    assert "  --dropout FLOAT\n      Part of the neurons that are left out. default: 0.0\n  --slower\n" in told
    with pytest.raises(ValueError, match=r"^--dropout: wanted 0 or more and below 1, got 1\.5$"):
        More(dropout=1.5)
    assert default_run_name(config).startswith("drop-0.25_slower-True_784-16-16-10_")
    assert More.from_json(config.to_json()) == replace(config, data_dir=config.data_dir.absolute())
    assert config.resumed(replace(config, mail="you")).mail == "you"
    with pytest.raises(ValueError, match=r"^--dropout 0\.5 differs from the run's 0\.25: .*and --mail may change"):
        config.resumed(replace(config, dropout=0.5))
    columns = config.hyperparameters(60_000, 100)
    assert {"dropout": 0.25, "slower": "True"}.items() <= columns.items() and "mail" not in columns
    assert recipe(config) == recipe(Config()) | {"dropout": 0.25, "slower": True}
