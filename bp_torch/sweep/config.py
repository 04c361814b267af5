"""Everything that can be chosen for a sweep: the settings of a run, four of them as lists, and the number of seeds."""

from dataclasses import dataclass, fields
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from bp_torch.flags import Flag, Within, check_bounds, check_types, flag
from bp_torch.training.config import SEEDS, Config
from bp_torch.values import InitName

COMMAND = "python -m bp_torch sweep"
MOST = 10_000  # networks in a sweep: each has a folder
Setting = tuple[Any, ...]  # a value for each of LISTS


@dataclass(frozen=True)
class SweepConfig(Config):
    """The settings of a sweep. Raises ValueError for a value out of its range."""

    learning_rate: tuple[float, ...] = (3.0,)  # type: ignore[assignment]
    """Learning rates of the first epoch."""
    momentum: tuple[float, ...] = (0.0,)  # type: ignore[assignment]
    """Momentums of SGD, from 0 to below 1."""
    weight_decay: tuple[float, ...] = (0.0,)  # type: ignore[assignment]
    """Weight decays of SGD, 0 or more."""
    init: tuple[InitName, ...] = ("lecun",)  # type: ignore[assignment]
    """Standard deviations of the initial weights: lecun 1/√n_in, he √(2/n_in), normal 1. uniform: from −1/√n_in to
    1/√n_in. The biases are zero; only normal draws them too."""
    seeds: Annotated[int, Within(least=1), Flag("seed")] = 1
    """Networks of each combination: their seeds are --seed, --seed + 1 and so on."""
    at_once: Annotated[int | None, Within(least=1), Flag("machine")] = None
    """Networks that are trained at a time. None: as many as memory and cache make quick."""
    save: Annotated[Literal["all", "best", "none"], Flag("place")] = "all"
    """Which networks are saved, each in its own folder. best: for each combination, the seed with the best accuracy."""

    epochs: Annotated[int, Flag(may_change=False)] = Config.epochs
    resume: Annotated[Path | None, Flag("place")] = None
    """Folder of a sweep to continue from its last checkpoint. Only --replay, --data-dir and --device may change.
    None: a new sweep."""

    groups: ClassVar[dict[str, str]] = {"seeds": "the sweep"}
    refused: ClassVar[tuple[str, ...]] = ("verify_every", "log_embedding", "recipe", "patience")  # for one network

    def __post_init__(self) -> None:
        """Check every field."""
        check_types(self)
        check_bounds(self)
        for name in LISTS:
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{flag(name)}: wanted one value or more, got none")
            if repeated := [value for n, value in enumerate(values) if value in values[:n]]:
                raise ValueError(f"{flag(name)}: wanted each value once, got {repeated[0]} twice")
        for name in self.refused:
            if getattr(self, name):
                raise ValueError(f"{flag(name)} is for one network: train it alone, with train.py")
        networks = prod(len(getattr(self, name)) for name in LISTS) * self.seeds
        if networks > MOST:
            raise ValueError(f"wanted at most {MOST:,} networks, got {networks:,}: fewer values or fewer --seeds")
        if self.compile and networks > 1 and self.at_once != 1:
            raise ValueError("--compile is for one network at a time: give --at-once 1")
        if self.seed + self.seeds > SEEDS:
            raise ValueError(f"--seeds: wanted seeds below {SEEDS:,}, got {self.seed + self.seeds - 1}")
        for setting in self.settings:
            self.member(setting, self.seed)

    @property
    def settings(self) -> list[Setting]:
        """Every combination of the values in ``LISTS``."""
        return list(product(*(getattr(self, name) for name in LISTS)))

    def member(self, setting: Setting, seed: int) -> Config:
        """The config with which train.py would train this network alone."""
        shared = {field.name: getattr(self, field.name) for field in fields(Config)}
        name = "_".join([*self.varied(setting), f"seed-{seed}"])
        own = {"seed": seed, "run_name": name, "resume": None}
        return Config(**shared | dict(zip(LISTS, setting, strict=True)) | own)

    def varied(self, setting: Setting) -> list[str]:
        """The values by which this setting differs from others: ["learning-rate-0.3", "init-he"]."""
        pairs = zip(LISTS, setting, strict=True)
        return [f"{name.replace('_', '-')}-{short(value)}" for name, value in pairs if len(getattr(self, name)) > 1]

    def members(self) -> list[Config]:
        """The config of every network, those of one seed side by side."""
        return [self.member(setting, self.seed + n) for n in range(self.seeds) for setting in self.settings]


LISTS = ("learning_rate", "momentum", "weight_decay", "init")
"""The fields that are lists: a sweep tries every combination of their values."""


def short(value: object) -> str:
    """A value as it would be typed: 1 for 1.0."""
    return str(value).removesuffix(".0")
