"""Numbers and tables as text."""

import pytest
import torch

from bp_torch import text


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (32.0, "32 times"),
        (3.24, "3.2 times"),
        (0.999, "1.0 times"),
        (4.1e6, "4.1 million times"),
        (2e9, "2.0 billion times"),
        (76e12, "76 trillion times"),
    ],
)
def test_ratio_in_words(ratio: float, expected: str) -> None:
    assert text.times(ratio) == expected


def test_number_with_two_significant_digits() -> None:
    assert [text.number(value, 2) for value in (0, -4.12e-7, 0.0312, 1234)] == ["0", "−4.1·10⁻⁷", "0.031", "1,234"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, "1.00"),
        (-0.0312, "−0.0312"),
        (0.9996, "1.00"),
        (999.6, "1,000"),
        (123456.0, "123,456"),
        (999_999.9, "1.00·10⁶"),
        (0.001, "0.00100"),
        (0.0009, "9.00·10⁻⁴"),
        (-2.5e12, "−2.50·10¹²"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_number_with_three_significant_digits(value: float, expected: str) -> None:
    assert text.number(value) == expected


@pytest.mark.parametrize(
    ("values", "factor", "name"),
    [
        ([0.2, -1.0], 1.0, ""),
        ([500.0], 1.0, ""),
        ([0.0], 1.0, ""),
        ([-3e-4, 1e-5], 1e-4, " (×10⁻⁴)"),
        ([2e3], 1e3, " (×10³)"),
    ],
)
def test_unit_leaves_one_digit_before_the_point(values: list[float], factor: float, name: str) -> None:
    ours = text.unit(torch.tensor(values, dtype=torch.float64))
    assert ours[0] == pytest.approx(factor)
    assert ours[1] == name


def test_count_uses_singular_and_plural() -> None:
    assert [text.count(n, "entry", "entries") for n in (0, 1, 2000)] == ["0 entries", "1 entry", "2,000 entries"]
    assert text.count(3, "step") == "3 steps"


def test_columns_of_a_table_are_aligned() -> None:
    header, rows = ("layer", "weights", "note"), [("1", "12,544", "most"), ("output", "160", "")]
    assert text.table(header, rows, right=[1]).splitlines() == [
        "layer   weights  note",
        "1        12,544  most",
        "output      160",
    ]
    assert text.table(header[:2], [row[:2] for row in rows]) == text.table(
        header[:2], [row[:2] for row in rows], right=[1]
    )


def test_table_in_markdown() -> None:
    lines = text.table(("layer", "weights"), [("1", "12,544")], markdown=True).splitlines()
    assert lines == ["| layer | weights |", "| :-- | --: |", "| 1 | 12,544 |"]


WIDE = text.table(("neuron", "activation", "what it wants"), [("0", "0.25", "+1.0e-03"), ("15", "0.5", "-2.0")])


def test_table_that_is_too_wide_becomes_two_with_the_same_first_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert text.fitted(f"A table of neurons, and what each of them wants:\n\n{WIDE}").splitlines() == [
        "A table of neurons, and what",
        "each of them wants:",
        "",
        "neuron  activation",
        "0             0.25",
        "15             0.5",
        "",
        "neuron  what it wants",
        "0            +1.0e-03",
        "15               -2.0",
    ]
    monkeypatch.setenv("COLUMNS", "80")
    assert text.fitted(WIDE) == WIDE


def test_rows_that_are_too_long_are_folded_between_columns() -> None:
    assert text.folded(f"{WIDE}\na heading stays", 30).splitlines() == [
        "neuron  activation",
        "    what it wants",
        "0             0.25",
        "         +1.0e-03",
        "15             0.5",
        "             -2.0",
        "a heading stays",
    ]
    assert text.folded(WIDE, 5) == WIDE, "no column is as narrow"


def test_words_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    lines = text.wrapped("a-long-word-with-hyphens-in-it and two more words", "> ", "  ").splitlines()
    assert lines == ["> a-long-word-with-hyphens-in-it", "  and two more words"]
    monkeypatch.setenv("COLUMNS", "1000")
    assert text.columns() == text.MOST_COLUMNS


def test_verdicts_have_colours_where_the_terminal_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WRONG: 1 of 2\n\n RIGHT  scores\nRIGHTLY so, not WRONG"
    assert text.coloured(said) == said, "not in a pipe"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert text.coloured(said) == "\x1b[31mWRONG\x1b[m: 1 of 2\n\n \x1b[32mRIGHT\x1b[m  scores\nRIGHTLY so, not WRONG"
    monkeypatch.setenv("NO_COLOR", "1")
    assert text.coloured(said) == said
