"""The help of every command."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import pytest

from bp_torch.benchmark.scripts import Scripts
from bp_torch.commands import benchmark, predict, verify_bench, verify_options
from bp_torch.explain import IDEAS
from bp_torch.explain.options import options_of
from bp_torch.help import docstrings, grouped, help_text
from bp_torch.sweep.config import SweepConfig
from bp_torch.training import Config

OPTIONS = {
    "train": Config,
    "sweep": SweepConfig,
    "verify": verify_options.Options,
    "verify bench": verify_bench.Options,
    "verify FILE:NAME": verify_options.FileOptions,
    "verify layer": verify_options.LayerOptions,
    "predict": predict.Options,
    "benchmark": benchmark.Options,
    "benchmark scripts": Scripts,
} | {f"explain {name}": options_of(name) for name in (*IDEAS, "page", "all")}

each_command = pytest.mark.parametrize("kind", OPTIONS.values(), ids=list(OPTIONS))


@dataclass
class Base:
    """Flags of two groups."""

    seed: int | None = None
    """A seed. None: any."""
    log: bool = True
    """Write a log."""
    slow: bool = False
    """Take your time."""

    groups: ClassVar[dict[str, str]] = {"seed": "luck", "log": "words"}


@dataclass
class Flags(Base):
    """One more flag, and one that replaces another."""

    how_many: tuple[int, ...] = (1, 2)
    """The numbers of a
    list."""
    log: Literal["all", "none"] = "all"  # type: ignore[assignment]
    """How much is written."""


def test_help_tells_what_each_flag_does_and_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert help_text(Flags, "try", "Tries.").splitlines() == [
        "usage: try [OPTIONS]",
        "",
        "Tries.",
        "",
        "options:",
        "  --how-many INT ...",
        "      The numbers of a list. default: 1 2",
        "",
        "luck:",
        "  --seed INT",
        "      A seed. unset: any.",
        "",
        "words:",
        "  --log all | none",
        "      How much is written. default: all",
        "  --slow",
        "      Take your time.",
        "",
        "other:",
        "  --help, -h",
        "      Show this help.",
        "  --version",
        "      Show the version.",
    ]
    assert "  --log, --no-log\n      Write a log. default: --log\n" in help_text(Base, "try", "Tries.")


@pytest.mark.parametrize("width", [40, 60, 80])
@each_command
def test_help_fits_the_terminal_and_keeps_words_whole(kind: Any, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    wide = help_text(kind, "python -m bp_torch", "What it does.")
    monkeypatch.setenv("COLUMNS", str(width))
    narrow = help_text(kind, "python -m bp_torch", "What it does.")
    assert narrow.split() == wide.split()
    assert max(map(len, narrow.splitlines())) <= width


@each_command
def test_every_flag_is_told_with_what_holds_without_it(kind: Any) -> None:
    assert sorted(field.name for group in grouped(kind).values() for field in group) == sorted(
        field.name for field in fields(kind) if field.name not in getattr(kind, "refused", ())
    )
    told = docstrings(kind)
    for field in fields(kind):
        assert told[field.name][-1] == "."
        assert ("None: " in told[field.name]) == (field.default in (None, ())), field.name


def test_settings_of_a_run_are_in_groups() -> None:
    names = ["the network", "the descent", "data", "the run", "logging", "the machine"]
    assert list(grouped(Config)) == names
    assert list(grouped(SweepConfig)) == ["the sweep", *names]
    found = {field.name: group for group, members in grouped(Config).items() for field in members}
    assert found["init"] == "the network" and found["cost"] == found["decay_biases"] == "the descent"
    assert found["alpha"] == "data" and found["seed"] == found["verify_every"] == "the run"
    assert found["log_embedding"] == "logging" and found["device"] == found["threads"] == "the machine"
