"""One backward checked in several dtypes, shapes and layouts: one table, and one verdict."""

import contextlib
import inspect
import itertools
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bp_torch.text import count, folded, table
from bp_torch.verify.check import check_layer, check_module, check_problem, named
from bp_torch.verify.modules import lent
from bp_torch.verify.problem import Problem, not_contiguous
from bp_torch.verify.process import Died, Process, RaisedError
from bp_torch.verify.references import first_line, with_seed
from bp_torch.verify.report import Report, grouped, wrapped_lines

EXIT_CODES = {"RIGHT": 0, "KINK": 0, "NOISE": 3, "SETUP": 4, "WRONG": 1, "DIED": 5}
"""The verdicts from the best to the worst, each with the exit code of the command."""
HEADER = ["", "dtype", "shape", "layout", "gradient", "error", "allowed"]


class Row(NamedTuple):
    """One check of a grid. ``words`` say what is wrong."""

    dtype: str
    shape: tuple[int, ...]  # that ``make_inputs`` was given
    layout: str
    verdict: str  # the report's; without a report SETUP, DIED, or WRONG for a candidate that raises
    words: list[str]
    report: Report | None

    def place(self) -> list[str]:
        """The dtype, the shape and the layout in words; contiguous is not said."""
        return [self.dtype, "×".join(map(str, self.shape)), self.layout.replace("contiguous", "")]

    def cells(self) -> list[str]:
        """The cells below ``HEADER``: of the comparisons the one that is furthest off."""
        compared = [] if self.report is None else [c for c in self.report.comparisons if c.decides and c.compared]
        worst = max(compared, key=lambda c: c.error_ratio, default=None)
        numbers = [worst.gradient, f"{worst.relative_error:.1e}", f"{worst.allowed:.1e}"] if worst else [""] * 3
        return [self.verdict, *self.place(), *numbers]


@dataclass(frozen=True)
class Grid:
    """The result of ``check_grid``: print it, or call ``assert_ok`` in a test. It is true if every check is RIGHT."""

    rows: list[Row]
    left_out: int = 0  # checks that were not made, since the candidate's process died

    @property
    def verdict(self) -> str:
        """The worst of all."""
        return max((row.verdict for row in self.rows), key=list(EXIT_CODES).index)

    def __bool__(self) -> bool:
        """Whether every check is RIGHT."""
        return self.verdict == "RIGHT"

    def assert_ok(self) -> None:
        """Raise AssertionError with the table unless every check is RIGHT."""
        __tracebackhide__ = True
        if not self:
            raise AssertionError(f"\n{self}")

    def reasons(self) -> list[str]:
        """Say what is wrong, each reason once, with the first check in which it is."""
        found = grouped((text, " ".join(filter(None, row.place()))) for row in self.rows for text in row.words)
        more = {text: f" and {len(places) - 1} more" if len(places) > 1 else "" for text, places in found.items()}
        return [f"{places[0]}{more[text]}: {text}" if places[0] else text for text, places in found.items()]

    def __str__(self) -> str:
        """The verdict, the table, and what is wrong."""
        right, rows = sum(row.verdict == "RIGHT" for row in self.rows), [row.cells() for row in self.rows]
        headline = f"{self.verdict}: {right} of {count(len(rows), 'check')} right"
        headline += f", {self.left_out} not made, since it died" if self.left_out else ""
        kept = [k for k in range(len(HEADER)) if any(cells[k] for cells in rows)]
        shown = table([HEADER[k] for k in kept], [[cells[k] for k in kept] for cells in rows], right=())
        blocks = [headline, folded(shown) if len(kept) > 1 else "", wrapped_lines(self.reasons())]
        return "\n\n".join(filter(None, blocks))

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain numbers and words."""
        rows = [row._asdict() | {"report": None if row.report is None else row.report.to_dict()} for row in self.rows]
        return {"verdict": self.verdict, "exit_code": EXIT_CODES[self.verdict], "left_out": self.left_out, "rows": rows}

    def to_json(self) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=2)


def check_grid(
    forward: Callable[..., Any] | nn.Module | Process,
    make_inputs: Any,
    backward: Callable[..., Any] | None = None,
    *,
    reference: Callable[..., Any] | None = None,
    dtypes: Sequence[str] = ("float64", "float32", "bfloat16"),
    shapes: Sequence[tuple[int, ...]] = ((),),
    layouts: Sequence[str] = ("contiguous",),
    seed: int = 0,
    **options: Any,
) -> Grid:
    """``check_layer``, or for a module ``check_module``, in each of ``dtypes`` × ``shapes`` × ``layouts``.

    ``make_inputs`` is the inputs, or a function that draws them after torch was seeded: with the numbers of a shape,
    and ``seed=`` if it has such an argument; without ``shapes`` with the seed, if it has one argument. Real numbers are
    brought to the dtype. Layouts are "contiguous", and "strided": no tensor is contiguous. The ``options`` are those of
    ``check``. A check that cannot be made is a row with the verdict SETUP.

    Raises:
        ValueError: for a layout that is none of the two.
    """
    if unknown := {*layouts} - {"contiguous", "strided"}:
        raise ValueError(f"layouts: wanted contiguous or strided, got {', '.join(sorted(unknown))}")
    cases, rows = list(itertools.product(dtypes, map(tuple, shapes), layouts)), list[Row]()
    for case in cases:
        report, verdict, words = None, "SETUP", list[str]()
        try:
            given = drawn(make_inputs, *case, seed)
            report = _checked(forward, given, backward, reference, case[0], {"seed": seed, **options})
            verdict = report.verdict
            if verdict != "RIGHT":
                words = [f"the forward {report.forward}"] if report.forward else []
                words += [*report.problem_lines(), *report.diagnosis_lines()]
        except Died as death:
            verdict, words = "DIED", [f"the candidate {death}"]
        except RaisedError as error:
            verdict, words = "WRONG", [f"the candidate {error}"]
        except (Exception, SystemExit) as error:  # whatever the inputs, the reference or the function raise
            words = [first_line(error).removeprefix("SETUP: ")]
        rows.append(Row(*case, verdict, words, report))
        if verdict == "DIED":
            break
    return Grid(rows, len(cases) - len(rows))


def drawn(make_inputs: Any, dtype: str, shape: tuple[int, ...], layout: str, seed: int) -> Any:
    """The inputs of one check."""

    def draw() -> Any:
        arguments = inspect.signature(make_inputs).parameters
        if "seed" in arguments:
            return make_inputs(*shape, seed=seed)
        return make_inputs(*(shape or [seed] * (len(arguments) == 1)))

    def of_dtype(t: Any) -> Any:
        if isinstance(t, np.ndarray):
            t = t.astype(np.dtype(dtype)) if t.dtype.kind == "f" else t
            return np.asfortranarray(t) if layout == "strided" else t
        wide = torch.complex128 if dtype == "float64" else torch.complex64
        t = t.to(getattr(torch, dtype) if t.is_floating_point() else wide if t.is_complex() else t.dtype)
        return not_contiguous(t) if layout == "strided" and t.numel() > 1 else t

    given = with_seed(seed, draw) if callable(make_inputs) else make_inputs
    return tree_map_only((Tensor, np.ndarray), of_dtype, given)


def _checked(forward: Any, given: Any, backward: Any, reference: Any, dtype: str, options: dict[str, Any]) -> Report:
    if isinstance(reference, nn.Module):
        reference = deepcopy(reference).to(getattr(torch, dtype))
    if isinstance(forward, nn.Module):
        return check_module(deepcopy(forward).to(getattr(torch, dtype)), given, reference=reference, **options)
    if not isinstance(forward, Process):
        return check_layer(forward, given, backward, reference=reference, **options)
    forward.renew()
    own = dict[str, Tensor]()
    with contextlib.ExitStack() as stack:
        if isinstance(reference, nn.Module):
            own = {name: p.detach() for name, p in reference.named_parameters() if name in forward.parameters}
            names, given = map(list, zip(*named(given, None, reference.forward)[0].items(), strict=True))
            given, (reference, _) = [*given, *own.values()], stack.enter_context(lent(reference, list(own)))
        else:
            names = list(named(given, None, reference or forward.forward)[0])
        if own.keys() != forward.parameters.keys():
            wanted = ", ".join(forward.parameters)
            raise ValueError(f"the candidate has the parameters {wanted}, the reference has others")
        if own:
            arguments = dict(zip([*names, *own], given, strict=True))
            parameters: Any = {"scalar": False, "shared": list(own), "accumulates": True, "seed": options.pop("seed")}
            return check_problem(Problem(arguments, False, forward.forward, reference, **parameters), **options)
        options |= {"names": names} if not isinstance(given, dict) else {}
        return check_layer(forward.forward, given, forward.backward, reference=reference, **options)
