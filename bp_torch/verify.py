"""Whether a hand-written gradient is right, and if it is not, where and how it is wrong.

    python -m bp_torch verify                                  this project's own backward, on real digits
    python -m bp_torch verify --device cuda --dtypes float32 bfloat16 --verbose
    python -m bp_torch verify --run runs/NAME                  that of a trained network, on its data

    verify.check(function, inputs, gradient).assert_ok()       anyone's, from Python; see ``check``
    verify.check_layer(forward, inputs, backward).assert_ok()  a layer whose outputs are not a scalar

Three witnesses speak, each independent of the hand-written gradient: autograd in the same dtype ("autograd"), autograd
in float64 ("float64"), and central differences in float64 ("central"). They are compared tensor by tensor, by
‖gradient − witness‖ / ‖witness‖: an entry near zero is a sum of terms that cancel, so that entry by entry a float32
gradient is off by any factor where nothing is wrong.

A gradient may be off by ε^(2/3), ε being the dtype's rounding: two thirds of its digits agree. That is 3.7e-11 in
float64, 2.4e-05 in float32, 9.8e-03 in float16, 3.9e-02 in bfloat16. Beyond that it may be off only by what rounding
alone does here: see ``rounding_noise``. This is a judge, not a repair: nothing is corrected, and no diagnosis is given
but one that explains the whole difference.
"""

import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from bp_torch import backprop
from bp_torch.activations import ACTIVATIONS
from bp_torch.cli import one_line_errors, parse
from bp_torch.costs import COSTS
from bp_torch.data import CLASSES, PIXEL_SCALE, PIXELS, DataError, DatasetName, Examples, first_shuffled, load, one_hot
from bp_torch.network import MODULES, Network, layer_views
from bp_torch.training import DTypeName, TrainingError, choose_device, open_run

Tensors = dict[str, Tensor]
Scalar = Callable[[Tensors], Tensor]  # a function as it is used inside: of named tensors
Hypotheses = Callable[[str, Tensors], Iterable[tuple[str, Tensor]]]

EPS = torch.finfo(torch.float64).eps
NOISE_FACTOR = 4.0  # how many times further than rounding moves autograd a gradient may be off
NOISE_SAMPLES = 8


def tolerance_of(dtype: torch.dtype) -> float:
    """ε^(2/3), the relative error that is allowed in ``dtype``: two thirds of its digits agree."""
    return float(torch.finfo(dtype).eps ** (2 / 3))


# ---- the report ----


@dataclass(frozen=True)
class Agreement:
    """One gradient against one witness.

    Attributes:
        relative_error: ‖gradient − witness‖ / ‖witness‖, over the entries that were compared.
        excess: the error as a multiple of what is allowed; above 1 they disagree.
        largest: the largest absolute difference of one entry, and ``where`` that entry is.
        cosine: between the two, 1 where they point the same way.
        compared, set_aside: how many entries; those set aside straddle a kink, or the witness is not finite there.
        blurred: whether the error is above the tolerance: if they agree, then because rounding reaches as far.
    """

    witness: str
    relative_error: float
    excess: float
    largest: float
    where: tuple[int, ...]
    cosine: float
    compared: int
    set_aside: int = 0
    blurred: bool = False

    @property
    def ok(self) -> bool:
        """Whether gradient and witness agree."""
        return self.excess <= 1


@dataclass(frozen=True)
class Row:
    """One tensor of the report: what each witness says, and what else is wrong with it (``problems``)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    agreements: dict[str, Agreement]
    bitwise_equal: bool
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every witness agrees and nothing else is wrong."""
        return not self.problems and all(agreement.ok for agreement in self.agreements.values())

    @property
    def worst(self) -> Agreement | None:
        """The agreement that is nearest to, or furthest beyond, what is allowed."""
        return max(self.agreements.values(), key=lambda agreement: agreement.excess, default=None)

    @property
    def badness(self) -> tuple[bool, float]:
        """What rows are sorted by: the worst is the largest."""
        return not self.ok, self.worst.excess if self.worst else 0.0

    def cells(self) -> list[str]:
        """The row as it is printed, in the order of ``COLUMNS``."""
        errors = [self.agreements.get(w) for w in WITNESSES]
        worst = self.worst
        return [
            *(f"{a.relative_error:.1e}{BLURRED if a.ok and a.blurred else ''}" if a else "-" for a in errors),
            f"{worst.largest:.1e}" if worst else "-",
            str(list(worst.where)) if worst else "-",
            f"{worst.cosine:.6f}" if worst else "-",
            "equal" if self.bitwise_equal else "differ",
        ]


WITNESSES = ("autograd", "float64", "central")
COLUMNS = [*WITNESSES, "largest", "where", "cosine", "bits"]
BLURRED = "~"


@dataclass(frozen=True)
class Report:
    """What ``check`` found: printable, and for a test ``check(...).assert_ok()``.

    Attributes:
        rows: one for each gradient.
        diagnoses: what explains a difference to rounding error, in words, with the names that it explains.
        notes: what else the reader should know, such as a witness that could not be heard.
        tolerance: the relative error that is allowed.
    """

    rows: list[Row]
    diagnoses: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tolerance: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every witness agrees with every gradient."""
        return all(row.ok for row in self.rows)

    @property
    def set_aside(self) -> int:
        """How many central differences straddle a kink and were not held against the gradient."""
        return sum(row.agreements["central"].set_aside for row in self.rows if "central" in row.agreements)

    def assert_ok(self) -> None:
        """Raise AssertionError with the printed report unless every gradient is right."""
        if not self.ok:
            raise AssertionError(f"\n{self}")

    def __str__(self) -> str:
        """The verdict, the table (of a failure: worst first), the diagnoses, what was compared and how."""
        wrong = [row for row in self.rows if not row.ok]
        rows = sorted(self.rows, key=lambda row: row.badness, reverse=True) if wrong else self.rows
        lines = [
            f"{len(wrong)} of {_count(len(self.rows), 'gradient')} wrong"
            if wrong
            else f"{_count(len(self.rows), 'gradient')} right",
            "",
            *_table(
                ["", "tensor", "shape", *COLUMNS],
                [[_mark(row.ok), row.name, str(list(row.shape)), *row.cells()] for row in rows],
            ),
        ]
        said = [f"{row.name}: {problem}" for row in rows for problem in row.problems] + self.diagnosis_lines()
        lines += ["", *said] if said else []
        lines += ["", *self._footer()]
        return "\n".join(lines)

    def diagnosis_lines(self) -> list[str]:
        """Each diagnosis once, with the tensors that it holds for."""
        return [
            f"{'every gradient' if len(names) == len(self.rows) > 1 else ', '.join(names)}: {text}"
            for text, names in self.diagnoses.items()
        ]

    def _footer(self) -> list[str]:
        heard = [w for w in WITNESSES if any(w in row.agreements for row in self.rows)]
        differences = [row.agreements["central"] for row in self.rows if "central" in row.agreements]
        lines = [f"{', '.join(heard)}: ‖gradient − witness‖ / ‖witness‖, allowed {self.tolerance:.1e}"] if heard else []
        if differences:
            compared = sum(a.compared for a in differences)
            entries = sum(math.prod(row.shape) for row in self.rows)
            lines.append(
                f"central differences: {compared:,} of {_count(entries, 'entry', 'entries')}, "
                f"{self.set_aside} set aside that straddle a kink"
            )
        return [*lines, *_blurred_line(self.rows), *(f"note: {note}" for note in self.notes)]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain numbers and words; what is not finite is None, which JSON can hold."""
        return {
            "ok": self.ok,
            "tolerance": self.tolerance,
            "diagnoses": [{"diagnosis": text, "tensors": names} for text, names in self.diagnoses.items()],
            "notes": self.notes,
            "tensors": [
                {
                    "name": row.name,
                    "ok": row.ok,
                    "shape": list(row.shape),
                    "dtype": _short(row.dtype),
                    "bitwise_equal": row.bitwise_equal,
                    "problems": list(row.problems),
                    "witnesses": {
                        a.witness: {
                            "ok": a.ok,
                            "relative_error": _finite(a.relative_error),
                            "excess": _finite(a.excess),
                            "largest_difference": _finite(a.largest),
                            "where": list(a.where),
                            "cosine": _finite(a.cosine),
                            "compared": a.compared,
                            "set_aside": a.set_aside,
                            "within_rounding_only": a.ok and a.blurred,
                        }
                        for a in row.agreements.values()
                    },
                }
                for row in self.rows
            ],
        }

    def to_json(self) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=2)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _blurred_line(rows: Iterable[Row]) -> list[str]:
    """What ``BLURRED`` means, if a row has it."""
    seen = any(a.ok and a.blurred for row in rows for a in row.agreements.values())
    return [f"{BLURRED}: above that, but no further than rounding alone reaches here"] if seen else []


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _mark(ok: bool) -> str:
    return "ok" if ok else "WRONG"


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns as wide as they need; those that hold numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right = [name in {*WITNESSES, "largest", "cosine"} for name in header]
    return [
        "  ".join(
            cell.rjust(width) if to_the_right else cell.ljust(width)
            for cell, width, to_the_right in zip(cells, widths, right, strict=True)
        ).rstrip()
        for cells in (header, *rows)
    ]


# ---- the one call ----


def check(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    gradient: Any = None,
    *,
    names: Sequence[str] | None = None,
    reference: Callable[..., Any] | None = None,
    tolerance: float | None = None,
    coordinates: int = 200,
    batch_size: int | None = None,
    seed: int = 0,
    hypotheses: Hypotheses | None = None,
) -> Report:
    """Hold a hand-written gradient of a scalar function against three independent witnesses.

    Args:
        function: takes the tensors and gives a scalar. It may close over what has no gradient (labels, masks). One
            that also computes in float64 when its inputs are float64 can be heard by all three witnesses.
        inputs: a tensor, a sequence of tensors (``function(*inputs)``), or a mapping (``function(**inputs)``).
            Nothing need require a gradient; they are copied, and never changed.
        gradient: the hand-written gradient, as a function that is called like ``function``, or as the tensors
            themselves; one for each input, in the same order or under the same names, None for one that is not given.
            A function is called three times, at other inputs in between: what it keeps from one call to the next is
            found so. Without a gradient, what autograd gets through ``function`` is judged: give so a function that
            goes through your own ``torch.autograd.Function``.
        names: of the inputs, for the report; else those of the mapping, or of the function's own arguments.
        reference: the same function in plain differentiable operations, for the witnesses; ``function`` where None.
            Autograd knows nothing of its own about a custom ``autograd.Function``: without a reference, central
            differences alone judge a ``gradient`` that is None.
        tolerance: the relative error that is allowed, and then not more; None: ``tolerance_of`` the coarsest dtype
            among the inputs, and what rounding does here (``rounding_noise``).
        coordinates: for central differences, how many entries of each tensor; 0: none. The one that is furthest off
            is always among them, the others are drawn from ``seed``, half of them where the gradient is not zero.
        batch_size: what an error is compared with; None: the length of the first dimension of the first input.
        seed: of every choice.
        hypotheses: more shapes of error: ``hypotheses(name, given)`` yields pairs of words and the tensor that the
            gradient called ``name`` would then be, out of the gradients ``given``.

    Raises:
        TypeError: for an input that is not a tensor of floating numbers, or a function that gives no tensor.
        ValueError: for no inputs, an input that is not finite, a function that is not scalar, not finite, not the same
            when called again, or without a gradient; for gradients that do not go with the inputs.
    """
    tensors, spread = _named(inputs, names, function)
    _refuse_inputs(tensors)
    witnesses = Witnesses(spread(reference or function), tensors, tolerance, seed)
    call = gradient
    if gradient is None:
        if reference is None:
            witnesses.same = witnesses.high = None
            witnesses.notes.append(
                "no reference: autograd would be heard as its own witness, so central differences alone judge"
            )
        call = lambda t: _autograd(spread(function), t)[1]  # noqa: E731
    elif callable(gradient):
        call = spread(gradient)
    hand = _hand(call, tensors, witnesses, seed) if callable(call) else Hand(_given(gradient, list(tensors)))
    if not hand.gradients:
        raise ValueError(f"there is no gradient to check: all of {', '.join(tensors)} are None")
    if witnesses.same is None and not (coordinates and witnesses.computes_in_float64):
        raise ValueError(f"there is no witness to hold the gradient against: {'; '.join(witnesses.notes)}")
    return _report(hand, witnesses, coordinates, batch_size or _first_length(tensors), hypotheses)


def check_layer(
    forward: Callable[..., Any],
    inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    backward: Callable[..., Any] | None = None,
    *,
    reference: Callable[..., Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Report:
    """``check`` for a layer: ``forward(*inputs)`` gives one tensor, ``backward(dy, *inputs)`` the inputs' gradients.

    The scalar is Σ y ⊙ dy with random numbers dy in the shape of the outputs y, drawn from ``seed``: its gradient is
    ``backward`` at that dy. The other arguments are those of ``check``, and what is raised is.
    """
    tensors, spread = _named(inputs, options.get("names"), forward)
    _refuse_inputs(tensors)
    y = spread(reference or forward)(tensors)
    if not isinstance(y, Tensor):
        raise TypeError(f"the layer gives a {type(y).__name__}, wanted one tensor")
    generator = torch.Generator().manual_seed(seed + 10**6)  # not the numbers that the inputs may have been drawn as
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)

    def weighed(layer: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Tensor, **kwargs: Tensor) -> Tensor:
            out: Tensor = layer(*args, **kwargs)
            return (out * dy.to(out.dtype)).sum()

        return function

    def gradient(*args: Tensor, **kwargs: Tensor) -> Any:
        assert backward is not None
        return backward(dy.clone(), *args, **kwargs)

    options["names"] = list(tensors)
    return check(
        weighed(forward),
        inputs,
        gradient if backward else None,
        reference=weighed(reference) if reference else None,
        seed=seed,
        **options,
    )


# ---- what came ----


def _named(
    inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor], names: Sequence[str] | None, function: Callable[..., Any]
) -> tuple[Tensors, Callable[[Callable[..., Any]], Callable[[Tensors], Any]]]:
    """The inputs under names, and how a function of them is called: by keyword where they came as a mapping."""
    if isinstance(inputs, Mapping):
        return dict(inputs), lambda f: lambda t: f(**t)
    listed = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    chosen = list(names or _argument_names(function, len(listed)))
    if len(chosen) != len(listed) or len(set(chosen)) != len(chosen):
        raise ValueError(f"wanted one name for each of {_count(len(listed), 'input')}, got {', '.join(chosen)}")
    return dict(zip(chosen, listed, strict=True)), lambda f: lambda t: f(*t.values())


def _argument_names(function: Callable[..., Any], n: int) -> list[str]:
    """The names of the first n arguments, or x1, x2, … where the function does not say."""
    try:
        arguments = list(inspect.signature(function).parameters.values())[:n]
    except (TypeError, ValueError):
        arguments = []
    if len(arguments) == n and all(a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) for a in arguments):
        return [a.name for a in arguments]
    return ["x"] if n == 1 else [f"x{i}" for i in range(1, n + 1)]


def _refuse_inputs(tensors: Tensors) -> None:
    """Raise TypeError or ValueError for what has no gradient."""
    if not tensors:
        raise ValueError("there are no inputs: wanted at least one tensor")
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"input {name} is a {type(t).__name__}, wanted a tensor")
        if not t.is_floating_point():
            raise TypeError(
                f"input {name} is {t.dtype}, which has no gradient: let the function close over it, "
                "as in check(lambda x: function(x, labels), x, …)"
            )
        if t.numel() == 0:
            raise ValueError(f"input {name} is empty: its shape is {tuple(t.shape)}")
        if not t.isfinite().all():
            raise ValueError(f"input {name} holds {_where_not_finite(t)}")


def _where_not_finite(t: Tensor) -> str:
    bad = ~t.isfinite()
    first = list(_position(int(bad.flatten().int().argmax()), tuple(t.shape)))
    return f"{_count(int(bad.sum()), 'entry that is', 'entries that are')} not finite, the first at {first}"


def _position(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of an entry, from its place in row-major order."""
    index = []
    for length in reversed(shape):
        flat, here = divmod(flat, length)
        index.append(here)
    return tuple(reversed(index))


def _first_length(tensors: Tensors) -> int:
    first = next(iter(tensors.values()))
    return len(first) if first.ndim else 1


def _given(gradients: Any, names: list[str]) -> Tensors:
    """The gradients under the inputs' names, without those that are None. Raises ValueError where they do not fit."""
    if isinstance(gradients, Mapping):
        if unknown := [str(name) for name in gradients if name not in names]:
            raise ValueError(f"a gradient is called {', '.join(unknown)}, the inputs are {', '.join(names)}")
        listed = dict(gradients)
    else:
        several = list(gradients) if isinstance(gradients, tuple | list) else [gradients]
        if len(several) != len(names):
            raise ValueError(f"there are {len(several)} gradients for {_count(len(names), 'input')} {', '.join(names)}")
        listed = dict(zip(names, several, strict=True))
    found: Tensors = {}
    for name in names:
        if (g := listed.get(name)) is not None:
            try:
                found[name] = torch.as_tensor(g).detach()
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"the gradient of {name} is a {type(g).__name__}, wanted a tensor") from error
    return found


def _copies(tensors: Tensors) -> Tensors:
    return {name: t.detach().clone() for name, t in tensors.items()}


@dataclass
class Hand:
    """The hand-written gradients, what is wrong with the way they came (by name), and what explains it."""

    gradients: Tensors
    problems: dict[str, list[str]] = field(default_factory=dict)
    diagnoses: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _hand(call: Callable[[Tensors], Any], tensors: Tensors, witnesses: "Witnesses", seed: int) -> Hand:
    """Call the gradient, call it at other inputs, call it again: the third answer must be the first."""

    def answer(at: Tensors) -> tuple[Tensors, Tensors]:
        with torch.inference_mode(False), torch.enable_grad():
            raw = _given(call(at), list(tensors))
            return raw, _copies(raw)

    lent = _copies(tensors)
    raw, first = answer(lent)
    hand = Hand(first)
    for name, t in tensors.items():
        if not torch.equal(lent[name], t):
            hand.problems.setdefault(name if name in first else next(iter(first)), []).append(
                f"the gradient function changes its input {name} in place"
            )
    generator = torch.Generator().manual_seed(seed)
    elsewhere = {
        name: t * (1 + 0.1 * torch.randn(t.shape, generator=generator).to(t.device, t.dtype))
        for name, t in tensors.items()
    }
    try:
        second = answer(elsewhere)[1]
    except Exception:  # the other inputs may lie where the gradient is not defined: nothing is said then
        return hand
    if any(not torch.equal(raw[name], first[name]) and not raw[name].isnan().any() for name in first):
        hand.notes.append("the gradient function hands out the same memory at every call: the next call overwrites it")
    again = answer(_copies(tensors))[1]
    for name in first:
        if name in again and name in second and not witnesses.near(again[name], first[name], name):
            hand.gradients[name] = again[name]
            hand.problems.setdefault(name, []).append("changes when it is asked for again after a call at other inputs")
            if text := witnesses.memory(name, again[name], second[name], elsewhere):
                hand.diagnoses[name] = text
    return hand


# ---- the witnesses ----


def _autograd(function: Scalar, inputs: Tensors) -> tuple[Tensor, Tensors]:
    """The value () of ``function`` and its gradients by autograd. Raises TypeError and ValueError as ``check`` says."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
        value = function(leaves)
        if not isinstance(value, Tensor):
            raise TypeError(f"the function gives a {type(value).__name__}, wanted a scalar tensor")
        if value.numel() != 1 or not value.is_floating_point():
            raise ValueError(
                f"the function gives {value.dtype} of shape {tuple(value.shape)}, wanted a floating scalar: "
                "weigh the outputs and add them up, or use check_layer"
            )
        if not value.requires_grad:
            raise ValueError(
                f"as far as autograd can see the function does not depend on {', '.join(inputs)}: "
                "does it detach them, or leave torch?"
            )
        found = torch.autograd.grad(value.reshape(()), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    gradients = {name: torch.zeros_like(t) if g is None else g.detach() for (name, t), g in pairs}
    return value.detach().reshape(()), {name: g.to_dense() if g.is_sparse else g for name, g in gradients.items()}


class Difference(NamedTuple):
    """A derivative by central differences, how far off it may be, its step, and whether that straddles a kink."""

    derivative: float
    doubt: float
    step: float
    kinked: bool


def central_difference(value: Callable[[float], float], middle: float, x: float, negligible: float) -> Difference:
    """dC/dx of one coordinate, ``value(step)`` being C at x + step, ``middle`` C at x, from ±h and ±h/2 (error O(h⁴)).

    With D(h) = (C(x+h) − C(x−h)) / 2h and S(h) = C(x+h) − 2C(x) + C(x−h), smooth functions have D(h) − D(h/2) and
    S(h) − 4S(h/2) of higher order in h. Where the slope jumps by Δ between x − h and x + h, |D(h) − D(h/2)| +
    |S(h) − 4S(h/2)| / 2h is at least the error that the jump makes (work it out for a kink at x + d: D(h) is off by
    Δ(h − d)/2h). The step starts at ε^(1/4) and shrinks while this doubt is not ``negligible``: a smooth function's
    doubt then falls as h², a kink's stays, and noise in C grows as 1/h. The smallest step that a kink is sought with
    is 8e-6 max(1, |x|).
    """
    size = 2.0 ** math.ceil(math.log2(max(1.0, abs(x))))
    best, before, kinked = Difference(math.nan, math.inf, 0.0, False), math.inf, False
    for level in range(6):
        h = size * EPS**0.25 / 4**level
        up, down, half_up, half_down = value(h), value(-h), value(h / 2), value(-h / 2)
        wide, narrow = (up - down) / (2 * h), (half_up - half_down) / h
        bend = (up - 2 * middle + down) - 4 * (half_up - 2 * middle + half_down)
        largest = max(abs(middle), abs(up), abs(down))
        if max(abs(up - middle), abs(down - middle)) <= 16 * EPS:  # lost in sums with numbers as large as 1, perhaps
            largest = max(largest, 1.0)
        rounding = 16 * EPS * largest / h
        doubt = abs(wide - narrow) + abs(bend) / (2 * h)
        if doubt + rounding < best.doubt:
            best = Difference((4 * narrow - wide) / 3, doubt + rounding, h, False)
        if doubt <= negligible + rounding:
            return best
        kinked = before / 8 < doubt <= 2 * before
        if level >= 2 and doubt > before / 8:
            break
        before = doubt if math.isfinite(doubt) else math.inf
    return best._replace(kinked=kinked)


class Differences(NamedTuple):
    """Central differences of the ``entries`` of one tensor, (k,) each; ``kinked`` ones are already left out."""

    entries: Tensor
    derivative: Tensor
    doubt: float
    kinked: int


class LastDigits(TorchDispatchMode):
    """While it is entered, the inputs of every operation that rounds are off by up to one unit of rounding, at random.

    So each result carries an error such as its own arithmetic makes (Parker 1997, Monte Carlo arithmetic). Operations
    that only choose or move numbers (relu, max, where, index) are let through untouched.
    """

    ROUNDS = re.compile(
        r"(add)?mm|(badd)?bmm|mv|dot|linear|convolution|add|r?sub|mul|div|addcmul|addcdiv|sum|cumsum|prod|mean|var|std|"
        r"var_mean|exp|expm1|log|log1p|logsumexp|pow|r?sqrt|reciprocal|square|sigmoid|tanh|erf|sin|cos|"
        r".*(norm|softmax|attention|_backward).*"
    )

    def __init__(self, seed: int) -> None:
        """Draw from ``seed``."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, with blurred inputs where it rounds and writes nothing in place."""
        name = func._schema.name.removeprefix("aten::")
        if self.ROUNDS.fullmatch(name) and not func._schema.is_mutable:
            args = tree_map_only(Tensor, self._blur, args)
        return func(*args, **(kwargs or {}))

    def _blur(self, t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        wide = torch.promote_types(t.dtype, torch.float32)
        generator = self.generators.setdefault(t.device, torch.Generator(t.device).manual_seed(self.seed))
        noise = torch.rand(t.shape, generator=generator, dtype=wide, device=t.device).mul_(2).sub_(1)
        return t * (1 + noise * torch.finfo(t.dtype).eps).to(t.dtype)


def rounding_noise(function: Scalar, inputs: Tensors, gradients: Tensors, seed: int = 0) -> dict[str, float]:
    """How far rounding alone moves autograd's ``gradients``: the largest ‖change‖ of each in some runs of LastDigits.

    What is left of a difference of nearly equal numbers (1 − a of a saturated sigmoid, a gradient that is zero because
    its terms cancel, a ReLU's z within rounding of 0) is known only so well, by hand or by autograd.
    """
    noise = dict.fromkeys(inputs, 0.0)
    for sample in range(NOISE_SAMPLES):
        with LastDigits(seed + sample):
            moved = _autograd(function, inputs)[1]
        for name, g in gradients.items():
            change = norm(_flat(moved[name]) - _flat(g))
            noise[name] = max(noise[name], change if math.isfinite(change) else 0.0)
    return noise


class Witnesses:
    """What autograd and central differences say of one function at one point.

    Attributes:
        same: the gradients by autograd in the inputs' own dtype; None where it is not heard.
        high: those by autograd in float64; None where the function does not compute in it.
        base: the relative error that is allowed.
        notes: why a witness is not heard.
    """

    def __init__(self, function: Scalar, inputs: Tensors, tolerance: float | None, seed: int) -> None:
        """Ask autograd. Raises as ``check`` does."""
        self.function, self.inputs, self.seed = function, inputs, seed
        self.notes: list[str] = []
        coarsest = max((t.dtype for t in inputs.values()), key=lambda dtype: torch.finfo(dtype).eps)
        self.strict = tolerance is not None
        self.base = tolerance_of(coarsest) if tolerance is None else tolerance
        if not 0 < self.base < 1:
            raise ValueError(f"tolerance: wanted a relative error between 0 and 1, got {self.base}")
        self.smallest = 64 * torch.finfo(coarsest).smallest_normal * torch.finfo(coarsest).eps  # below: underflow
        self.same: Tensors | None
        self.high: Tensors | None
        value, self.same = _autograd(function, inputs)
        if not value.isfinite():
            raise ValueError(f"the function is {value.item()} at these inputs")
        with torch.inference_mode(False), torch.enable_grad():
            again = function(_copies(inputs)).detach().reshape(())
        if (again - value).abs() > self.base * value.abs() + self.smallest:
            raise ValueError(
                f"the function gives {value.item()} and then {again.item()} for the same inputs: draw what is random "
                "in it (a dropout mask) once, outside"
            )
        self._inputs64: Tensors = {}
        self.high = self.same if coarsest == torch.float64 else self._in_float64()
        self.computes_in_float64 = self.high is not None
        if self.computes_in_float64 and not self._inputs64:
            self._inputs64 = {name: t.detach().double() for name, t in inputs.items()}

    def _in_float64(self) -> Tensors | None:
        try:
            self._inputs64 = {name: t.detach().double() for name, t in self.inputs.items()}
            value, gradients = _autograd(self.function, self._inputs64)
        except Exception as error:  # whatever a function raises that was not made for float64
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self.notes.append(
                f"float64 and central differences are not heard: in float64 the function says {reason[0]!r}"
            )
            return None
        if value.dtype != torch.float64:
            self.notes.append(
                f"float64 and central differences are not heard: the function gives {value.dtype} for float64 inputs"
            )
            return None
        return gradients

    @cached_property
    def noise(self) -> dict[str, float]:
        """Of each gradient; measured only when something is off by more than ``base``."""
        return rounding_noise(self.function, self.inputs, self.same or {}, self.seed)

    def slack(self, name: str, witness: str = "float64") -> float:
        """How much further than ``base`` the gradient may be off: what rounding does to autograd's own."""
        if self.strict or self.same is None:
            return 0.0
        slack = self.noise[name]
        if witness != "autograd" and self.high is not None:
            apart = norm(_flat(self.same[name]) - _flat(self.high[name]))
            slack += apart if math.isfinite(apart) else 0.0
        return NOISE_FACTOR * slack

    @cached_property
    def slopes(self) -> Tensors:
        """What autograd gets through the function in float64, heard as a witness or not, (n,) each."""
        gradients = self.high or _autograd(self.function, self._inputs64)[1]
        return {name: _flat(g) for name, g in gradients.items()}

    def near(self, one: Tensor, other: Tensor, name: str) -> bool:
        """Whether two answers for the same gradient are the same to rounding error."""
        if one.shape != other.shape:
            return False
        a, b = _flat(one), _flat(other)
        if not torch.equal(a.isfinite(), b.isfinite()):
            return False
        a, b = a[a.isfinite()], b[b.isfinite()]
        error, size = norm(a - b), max(norm(a), norm(b))
        small = error <= self.base * size + self.smallest * math.sqrt(a.numel())
        return small or error <= self.base * size + self.slack(name)

    def memory(self, name: str, again: Tensor, second: Tensor, elsewhere: Tensors) -> str | None:
        """What the gradient function keeps, if that explains the answer ``again`` after ``second`` at ``elsewhere``."""
        if self.same is None or again.shape != self.same[name].shape or again.shape != second.shape:
            return None
        if self.near(again - second, self.same[name], name):
            return "adds to what the calls before left: its buffer is not cleared"
        if self.near(again, _autograd(self.function, elsewhere)[1][name], name):
            return "is the gradient at the inputs of the call before: a stale buffer"
        return None

    def size(self, name: str) -> float:
        """‖·‖ of the gradient, as far as autograd knows."""
        known = self.high or self.same
        return norm(_flat(known[name])) if known else 0.0

    def differences(self, name: str, chosen: Tensor) -> Differences:
        """Central differences in float64 of the entries ``chosen`` (k,) of one input."""
        inputs = _copies(self._inputs64)
        entries = inputs[name] = inputs[name].contiguous()
        flat = entries.view(-1)
        negligible = 0.1 * max(self.base, math.sqrt(EPS)) * self.size(name) / math.sqrt(flat.numel())
        found = []
        with torch.inference_mode(False), torch.enable_grad():
            middle = float(self.function(inputs).item())
            for i in chosen.tolist():
                x = flat[i].item()

                def value(step: float, i: int = i, x: float = x) -> float:
                    flat[i] = x + step
                    return float(self.function(inputs).item())

                found.append(central_difference(value, middle, x, negligible))
                flat[i] = x
        slopes = self.slopes[name]
        for k, (i, d) in enumerate(zip(chosen.tolist(), found, strict=True)):
            off = abs(d.derivative - float(slopes[i]))
            if not d.kinked and off > 10 * negligible + d.doubt:
                found[k] = d._replace(kinked=self._jumps(name, i, d.step, off))
        kept = [k for k, d in enumerate(found) if not d.kinked and math.isfinite(d.doubt)]
        return Differences(
            chosen[kept],
            torch.tensor([found[k].derivative for k in kept], dtype=torch.float64),
            math.hypot(*(found[k].doubt for k in kept)),
            len(found) - len(kept),
        )

    def _jumps(self, name: str, i: int, step: float, off: float) -> bool:
        """Whether autograd's own slope of entry ``i`` changes by so much within a step that this explains ``off``.

        Of several kinks within one step, what they do to the values can cancel; what they do to the slope does not.
        """
        for h in (step, step / 2, -step / 2, -step):
            moved = _copies(self._inputs64)
            moved[name].view(-1)[i] += h
            if abs(float(_flat(_autograd(self.function, moved)[1][name])[i] - self.slopes[name][i])) > off / 4:
                return True
        return False


def norm(t: Tensor) -> float:
    """‖t‖, whose squares neither overflow nor vanish."""
    plain = float(torch.linalg.vector_norm(t))
    if 1e-100 < plain < 1e100 or not t.numel():
        return plain
    largest = float(t.abs().max()) if t.numel() else 0.0
    return largest * float(torch.linalg.vector_norm(t / largest)) if 0 < largest < math.inf else largest


def _flat(t: Tensor) -> Tensor:
    """As (n,) in float64 on the CPU, where everything is compared."""
    return t.detach().cpu().double().reshape(-1)


# ---- holding one against the other ----


def _report(
    hand: Hand, witnesses: Witnesses, coordinates: int, batch_size: int, hypotheses: Hypotheses | None
) -> Report:
    found = [_row(name, g, hand.problems.get(name, []), witnesses, coordinates) for name, g in hand.gradients.items()]
    rows, diagnoses = [row for row, _ in found], dict[str, list[str]]()
    truths: dict[str, Truth] = {}
    if not all(row.ok for row in rows):
        known = {row.name: _truth(row.name, row, differences, witnesses) for row, differences in found}
        truths = {name: truth for name, truth in known.items() if truth is not None}
    for row in rows:
        text = None if row.ok else hand.diagnoses.get(row.name)
        if not row.ok and not text:
            text = _diagnose(row, hand.gradients, truths, witnesses, batch_size, hypotheses)
        if text:
            diagnoses.setdefault(text, []).append(row.name)
    notes = witnesses.notes + hand.notes + _contradictions(rows, truths) + _unsure(rows, witnesses)
    return Report(rows, diagnoses, notes, witnesses.base)


def _row(
    name: str, given: Tensor, problems: list[str], witnesses: Witnesses, coordinates: int
) -> tuple[Row, Differences | None]:
    """One gradient against every witness that is heard."""
    shape, dtype = tuple(witnesses.inputs[name].shape), witnesses.inputs[name].dtype
    if given.shape != shape:
        wrong = f"has the shape {list(given.shape)}, wanted {list(shape)}"
        return Row(name, shape, dtype, {}, False, (*problems, wrong)), None
    if not given.isfinite().all():
        problems = [*problems, f"holds {_where_not_finite(given)}"]
    ours = _flat(given)
    agreements: dict[str, Agreement] = {}
    for witness, gradients in (("autograd", witnesses.same), ("float64", witnesses.high)):
        if gradients is not None and (found := _agreement(witness, ours, _flat(gradients[name]), name, witnesses)):
            agreements[witness] = found
    differences = None
    if coordinates and witnesses.computes_in_float64:
        known = witnesses.high or witnesses.same
        chosen = _choose(ours, _flat(known[name]) if known else ours, coordinates, witnesses.seed)
        try:
            differences = witnesses.differences(name, chosen)
        except Exception as error:  # a step may leave the region in which the function can be evaluated
            witnesses.notes.append(
                f"central differences of {name} are not heard: a step away the function says {error!r}"
            )
        if differences and (found := _agreement("central", ours, None, name, witnesses, differences)):
            agreements["central"] = found
    bits = witnesses.same is not None and _same_bits(given, witnesses.same[name])
    return Row(name, shape, dtype, agreements, bits, tuple(problems)), differences


def _choose(ours: Tensor, known: Tensor, n: int, seed: int) -> Tensor:
    """Which entries to take differences of: all, or n: the one furthest off, half from where there is a slope."""
    if len(ours) <= n:
        return torch.arange(len(ours))
    generator = torch.Generator().manual_seed(seed)
    furthest = (ours - known).abs().nan_to_num(math.inf).argmax().view(1)
    slopes = known.nonzero().flatten()
    some = slopes[torch.randint(len(slopes), (n // 2,), generator=generator)] if len(slopes) else slopes
    others = torch.randint(len(ours), (n - 1 - len(some),), generator=generator)
    return torch.tensor(sorted({*furthest.tolist(), *some.tolist(), *others.tolist()}))


def _agreement(
    witness: str,
    ours: Tensor,
    theirs: Tensor | None,
    name: str,
    witnesses: Witnesses,
    differences: Differences | None = None,
) -> Agreement | None:
    """``ours`` (n,) against what a witness says; None where it has nothing finite to say."""
    base, doubt, size, set_aside = witnesses.base, 0.0, 0.0, 0
    index: Tensor | None = None
    if differences is not None:
        index, theirs, doubt, set_aside = differences
        if not len(index):
            return Agreement(witness, 0.0, 0.0, 0.0, (), 1.0, 0, set_aside)
        size = witnesses.size(name) * math.sqrt(len(index) / len(ours))  # of so many entries, on average
        base = max(base, math.sqrt(EPS))
    assert theirs is not None
    if not math.isfinite(norm(theirs)):
        index = theirs.isfinite().nonzero().flatten()
        set_aside = len(theirs) - len(index)
        theirs = theirs[index]
        if not len(index):
            return None
    ours = ours if index is None else ours[index]
    difference = (ours - theirs).abs_()
    error, size = norm(difference), max(size, norm(theirs))
    worst = int(difference.nan_to_num_(math.inf).argmax())
    where = _position(worst if index is None else int(index[worst]), tuple(witnesses.inputs[name].shape))
    if not math.isfinite(error):
        return Agreement(witness, math.inf, math.inf, math.inf, where, 0.0, len(ours), set_aside)
    allowed = base * size + doubt + witnesses.smallest * math.sqrt(len(ours))
    blurred = error > base * size
    if error > allowed:
        allowed += witnesses.slack(name, witness)
    return Agreement(
        witness,
        error / size if size else math.inf if error else 0.0,
        error / allowed,
        float(difference[worst]),
        where,
        _cosine(ours, theirs),
        len(ours),
        set_aside,
        blurred,
    )


def _cosine(a: Tensor, b: Tensor) -> float:
    sizes = norm(a), norm(b)
    if not all(sizes):
        return float(sizes == (0.0, 0.0))
    return float((a / sizes[0]) @ (b / sizes[1]))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape are the same in every bit: unlike ==, this tells −0 from 0."""
    if a.dtype != b.dtype:
        return False
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    return torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


class Truth(NamedTuple):
    """What a gradient should be, as far as the witnesses tell: ``values`` (k,) of its ``entries``, None meaning all."""

    values: Tensor
    entries: Tensor | None
    contradicted: bool


def _truth(name: str, row: Row, differences: Differences | None, witnesses: Witnesses) -> Truth | None:
    """Autograd, unless central differences contradict it: then those."""
    known = witnesses.high or witnesses.same
    values = _flat(known[name]) if known is not None else None
    if values is not None and not values.isfinite().all():
        return None
    if differences is None or not len(differences.entries):
        return None if values is None else Truth(values, None, False)
    if values is not None:
        agreement = _agreement("central", values, None, name, witnesses, differences)
        if agreement and agreement.ok:
            return Truth(values, None, False)
    complete = len(differences.entries) == math.prod(row.shape)
    return Truth(differences.derivative, None if complete else differences.entries, values is not None)


def _contradictions(rows: list[Row], truths: dict[str, Truth]) -> list[str]:
    """Where central differences and autograd contradict each other, one of them is wrong whatever the gradient is."""
    wrong = [row for row in rows if row.name in truths and truths[row.name].contradicted]
    notes = []
    for agrees_with, text in (
        ("central", "central differences agree with the gradient, autograd does not: is something detached?"),
        ("autograd", "autograd agrees with the gradient, central differences do not: does the function go through the "
         "backward that is checked? Give a reference"),
    ):  # fmt: skip
        names = [row.name for row in wrong if agrees_with in row.agreements and row.agreements[agrees_with].ok]
        if names:
            notes.append(f"{', '.join(names)}: {text}")
    return notes


def _unsure(rows: list[Row], witnesses: Witnesses) -> list[str]:
    """The gradients that agree only because rounding alone moves them far."""
    names = [
        row.name
        for row in rows
        if row.ok and any(a.relative_error > 100 * witnesses.base for w, a in row.agreements.items() if w != "central")
    ]
    if not names:
        return []
    return [f"{', '.join(names)}: rounding alone moves it as far as this; in float64 more can be told"]


# ---- what is wrong, in words ----


def _diagnose(
    row: Row,
    given: Tensors,
    truths: dict[str, Truth],
    witnesses: Witnesses,
    batch_size: int,
    hypotheses: Hypotheses | None,
) -> str | None:
    """The first hypothesis that explains the gradient to rounding error; None where none does."""
    name = row.name
    if name not in truths or not given[name].isfinite().all():
        return None
    truth = truths[name]
    ours = _flat(given[name])

    def explains(expected: Tensor, ours: Tensor = ours) -> bool:
        if expected.shape != ours.shape:
            return False
        base = (
            witnesses.base if truth.entries is None and not truth.contradicted else max(witnesses.base, math.sqrt(EPS))
        )
        size, error = norm(expected), norm(ours - expected)
        if not size or not math.isfinite(error):
            return False
        if error <= base * size:
            return True
        whole = norm(truth.values)
        slack = witnesses.slack(name) / whole if whole else math.inf
        return slack < 0.01 and error <= (base + slack) * size

    if given[name].shape != row.shape:
        return _diagnose_shape(given[name], truth, row.shape, explains) if truth.entries is None else None
    right = truth.values
    there = ours if truth.entries is None else ours[truth.entries]
    if not there.any() and right.any():
        return "is zero throughout: is it ever computed?"
    if (right != 0).sum() == 0:
        return None
    named = [
        text for factor, text in _named_factors(witnesses.inputs, batch_size) if explains(factor * right, ours=there)
    ]
    if named:
        return " Or ".join(named)
    if truth.entries is not None:
        return _unnamed_factor(there, right, explains)
    for text, expected in hypotheses(name, given) if hypotheses else ():
        if explains(_flat(expected)):
            return text
    return _diagnose_structure(name, ours, right, row.shape, truths, witnesses.inputs, explains)


Explains = Callable[..., bool]


def _diagnose_shape(given: Tensor, truth: Truth, shape: tuple[int, ...], explains: Explains) -> str | None:
    """A gradient of another shape than its tensor."""
    right = truth.values.reshape(shape)
    if given.ndim == 2 and given.T.shape == shape and explains(right.T.reshape(-1)):
        return "is transposed"
    if given.numel() == right.numel() and explains(right.reshape(-1)):
        return "holds the right numbers in another shape"
    for dims in ((d,) for d in range(given.ndim)):
        summed = given.double().cpu().sum(dims)
        if summed.numel() == right.numel() and explains(right.reshape(-1), ours=summed.reshape(-1)):
            return f"is not summed over dimension {dims[0]}, along which the forward repeated (broadcast) the tensor"
    if given.ndim >= right.ndim:
        try:
            summed = given.double().cpu().sum_to_size(shape)
        except RuntimeError:
            return None
        if explains(right.reshape(-1), ours=summed.reshape(-1)):
            return "is not summed over the dimensions along which the forward repeated (broadcast) the tensor"
    return None


def _named_factors(inputs: Tensors, batch_size: int) -> Iterator[tuple[float, str]]:
    """Factors that a slip makes, and what the slip is."""
    yield -1, "the sign is wrong"
    if batch_size > 1:
        yield batch_size, "off by exactly the batch size: the mean over the batch is missing?"
        yield 1 / batch_size, "off by exactly one over the batch size: a mean where a sum was meant, or taken twice?"
        yield -batch_size, "off by exactly the batch size, and the sign is wrong: the mean over the batch is missing?"
    yield 2, "off by exactly a factor of 2"
    yield 0.5, "off by exactly a factor of ½, as when the 2 of a square's derivative is lost"
    yield -2, "off by exactly a factor of 2, and the sign is wrong"
    yield -0.5, "off by exactly a factor of ½, and the sign is wrong"
    lengths: dict[int, str] = {}
    for name, t in inputs.items():
        for d, n in enumerate(t.shape):
            lengths.setdefault(n, f"the length of dimension {d} of {name}")
        lengths.setdefault(t.numel(), f"the number of entries of {name}")
    for n, what in lengths.items():
        if n > 2 and n != batch_size:
            yield n, f"off by exactly {n}, {what}: a sum where a mean was meant?"
            yield 1 / n, f"off by exactly 1/{n}, {what}: a mean where a sum was meant?"
        if n > 2 and n != 4:
            yield math.sqrt(n), f"off by exactly √{n}, the root of {what}: a scale is missing?"
            yield 1 / math.sqrt(n), f"off by exactly 1/√{n}, the root of {what}: a scale too many?"


def _unnamed_factor(ours: Tensor, right: Tensor, explains: Explains) -> str | None:
    """One factor throughout; of fewer than three entries that would be no evidence."""
    if (right != 0).sum() < 3:
        return None
    u = right / norm(right)
    factor = float(ours @ u) / norm(right)
    return f"off by one factor throughout, {factor:.6g}" if explains(factor * right, ours=ours) else None


def _diagnose_structure(
    name: str,
    ours: Tensor,
    right: Tensor,
    shape: tuple[int, ...],
    truths: dict[str, Truth],
    inputs: Tensors,
    explains: Explains,
) -> str | None:
    """Errors that show in how the entries lie to one another, the most telling first."""
    for other, truth in truths.items():
        if other != name and truth.entries is None and inputs[other].shape == shape and explains(truth.values):
            return f"is the gradient of {other}"
    full = right.reshape(shape)
    if len(shape) >= 2 and shape[-1] == shape[-2] > 1 and explains(full.mT.reshape(-1)):
        return "is transposed"
    zero, missing = (right == 0) & (ours != 0), (ours == 0) & (right != 0)
    if int(((right != 0) & (ours != 0)).sum()) >= 3:
        if zero.any() and explains(torch.where(zero, ours, right)) and explains(right[~zero], ours=ours[~zero]):
            return (
                f"is right wherever the gradient is not zero, but {_count(int(zero.sum()), 'entry', 'entries')} should "
                "be zero: a mask is missing?"
            )
        if missing.any() and explains(torch.where(missing, 0.0, right)):
            return (
                f"is zero in {_count(int(missing.sum()), 'entry', 'entries')} where it should not be, "
                "and right elsewhere: masked too much, or not all written?"
            )
    for other, t in inputs.items():
        if t.numel() < 3 or not _broadcasts(t.shape, shape):
            continue
        factor = t.detach().cpu().double().expand(shape).reshape(-1)
        if explains(right, ours=ours * factor):
            return f"the factor {other} is missing"
        if explains(right * factor):
            return f"the factor {other} is there once too often"
    return _unnamed_factor(ours, right, explains) or _diagnose_lines(ours.reshape(shape), full, explains)


def _broadcasts(small: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a tensor of shape ``small`` expands to ``shape``."""
    pairs = zip(reversed(small), reversed(shape), strict=False)
    return len(small) <= len(shape) and all(a in (1, b) for a, b in pairs)


def _diagnose_lines(ours: Tensor, right: Tensor, explains: Explains) -> str | None:
    """Errors that are the same all along one dimension, or sit at one place of it."""

    def fits(expected: Tensor) -> bool:
        return explains(expected.reshape(-1), ours=ours.reshape(-1))

    for d in range(right.ndim):
        if right.shape[d] < 3:
            continue
        offset = (ours - right).mean(d, keepdim=True)
        if fits(right + offset):
            return f"off by an amount that is the same all along dimension {d}: a mean over it is not taken away?"
        squares = (right * right).sum(d, keepdim=True)
        factor = (ours * right).sum(d, keepdim=True) / squares.where(squares > 0, 1.0)
        if fits(right * factor):
            low, high = float(factor.min()), float(factor.max())
            return f"off by a factor that is the same all along dimension {d} (from {low:.3g} to {high:.3g} elsewhere)"
        wrong = (ours - right).abs().movedim(d, 0).reshape(right.shape[d], -1).amax(1)
        at = int(wrong.argmax())
        rest = [i for i in range(right.shape[d]) if i != at]
        indices = torch.tensor(rest)
        if explains(right.index_select(d, indices).reshape(-1), ours=ours.index_select(d, indices).reshape(-1)):
            return f"is wrong only at index {at} of dimension {d}, which has the length {right.shape[d]}"
    return None


# ---- this project's own backward ----

REFERENCE_COSTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "quadratic": lambda z, a, y: functional.mse_loss(a, y, reduction="sum") / len(y),
    "binary-cross-entropy": lambda z, a, y: functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(y),
    "softmax-cross-entropy": lambda z, a, y: functional.cross_entropy(a, y),
}
"""torch's own cost of a batch, a function of z^L, a^L and y. A cost not listed is differentiated as costs.py has it."""


class Reference:
    """A network's cost of one batch in plain differentiable operations, none of them from backprop.py.

    It is a function of W1, b1, δ1, …, x. The δ are probes: zeros (B, n_l) added to the weighted sums z^l, so that the
    derivative with respect to them is ∂C/∂z^l.
    """

    def __init__(self, network: Network, y: Tensor, cost: str) -> None:
        """Raise ValueError for an activation that network.py gives no torch module of."""
        self.depth, self.y = network.depth, y
        names = [network.activation_of(layer) for layer in range(network.depth)]
        if missing := set(names) - set(MODULES):
            raise ValueError(f"no reference for {', '.join(missing)}: add its torch module to MODULES in network.py")
        self.phi: list[Callable[[Tensor], Tensor]] = [MODULES[name]().forward for name in names]
        self.cost: Callable[[Tensor, Tensor, Tensor], Tensor] = REFERENCE_COSTS.get(
            cost, lambda z, a, y: COSTS[cost].per_example(z, a, y).mean()
        )

    def __call__(self, **t: Tensor) -> Tensor:
        """C, ()."""
        z, a = self.layers(t)
        return self.cost(z[-1], a[-1], self.y.to(a[-1].dtype))

    def layers(self, t: Tensors) -> tuple[list[Tensor], list[Tensor]]:
        """[z^1, …, z^L] and [a^0, …, a^L]."""
        sums, activations = [], [t["x"]]
        for n, phi in enumerate(self.phi, 1):
            z = functional.linear(activations[-1], t[f"W{n}"], t[f"b{n}"])
            sums.append(z + t[f"δ{n}"] if f"δ{n}" in t else z)
            activations.append(phi(sums[-1]))
        return sums, activations

    def slopes(self, at: list[Tensor]) -> list[Tensor]:
        """φ′ of each layer at the given z."""
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [z.detach().clone().requires_grad_() for z in at]
            values = [phi(z).sum() for phi, z in zip(self.phi, leaves, strict=True)]
            return [torch.autograd.grad(value, z)[0] for value, z in zip(values, leaves, strict=True)]

    def output_error(self, z: Tensor, a: Tensor) -> Tensor | None:
        """∂C/∂a^L, (B, n_L); None for a cost that is a function of z^L."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = a.detach().clone().requires_grad_()
            value = self.cost(z.detach(), leaf, self.y.to(a.dtype))
            return torch.autograd.grad(value, leaf)[0] if value.requires_grad else None


class OwnBackward:
    """backprop.py as a hand-written gradient for ``check``: one trace, used again and again as in training."""

    def __init__(self, network: Network, y: Tensor, cost: str, x_scale: float = PIXEL_SCALE) -> None:
        """For batches of ``len(y)`` examples; the inputs come scaled, and go in as training has them."""
        self.network, self.y, self.cost = network.to(), y, cost
        self.trace = backprop.Trace(self.network, len(y), x_scale)

    def __call__(self, **t: Tensor) -> Tensors:
        """Every gradient, under its name."""
        for n, (w, b) in enumerate(zip(self.network.weights, self.network.biases, strict=True), 1):
            w.copy_(t[f"W{n}"])
            b.copy_(t[f"b{n}"])
        trace = backprop.forward(self.network, t["x"] / self.trace.x_scale, self.trace)
        gradient = backprop.backward(self.network, trace, self.y, self.cost).clone()
        found = _parameters(layer_views(gradient, self.network.sizes))
        found |= {f"δ{n}": delta.clone() for n, delta in enumerate(trace.deltas, 1)}
        return found | {"x": backprop.input_gradient(self.network, trace)}


def _parameters(views: tuple[list[Tensor], list[Tensor]]) -> Tensors:
    """W1, b1, W2, b2, …"""
    pairs = enumerate(zip(*views, strict=True), 1)
    return {name: t for n, (w, b) in pairs for name, t in ((f"W{n}", w), (f"b{n}", b))}


def _own_inputs(network: Network, x: Tensor) -> Tensors:
    """Everything that the cost has a gradient of, in the order in which backprop comes by it: δL, bL, WL, …, x."""
    inputs: Tensors = {}
    for n in range(network.depth, 0, -1):
        w, b = network.weights[n - 1], network.biases[n - 1]
        inputs |= {f"δ{n}": w.new_zeros(len(x), len(b)), f"b{n}": b, f"W{n}": w}
    return inputs | {"x": x}


def own_hypotheses(reference: Reference, inputs: Tensors, x_scale: float) -> Hypotheses:
    """What each of backprop's gradients would be if one thing were wrong, out of the δ that it was made from.

    With the δ as the hand-written backward has it, an error is found where it is made; what comes after it on the way
    back then is right for what it was given.
    """

    def hypotheses(name: str, given: Tensors) -> Iterator[tuple[str, Tensor]]:
        t = {key: value.detach().cpu().double() for key, value in inputs.items()}
        delta = {key: value.detach().cpu().double() for key, value in given.items() if key.startswith("δ")}
        own = Reference.__new__(Reference)
        own.__dict__.update(reference.__dict__, y=reference.y.cpu().double())
        z, a = own.layers(t)
        slope, slope_at_a = own.slopes(z), own.slopes(a[1:])
        letter, n = name[0], int(name[1:] or 0)
        if letter == "δ" and n == own.depth:
            error = own.output_error(z[-1], a[-1])
            right = error * slope[-1] if error is not None else _autograd(lambda t: own(**t), t)[1][name]
            if error is not None:
                yield "the slope φ′(z) is missing (output_delta, BP1)", error
                yield "the slope φ′ is taken at a, not at z (output_delta, BP1)", error * slope_at_a[-1]
            yield "there is one slope φ′(z) too many (output_delta, BP1)", right * slope[-1]
        elif letter == "δ":
            w, behind, here = t[f"W{n + 1}"], delta[f"δ{n + 1}"], slope[n - 1]
            back = behind @ w
            yield _RIGHT, back * here
            yield "the slope φ′(z) is missing (hidden_delta, BP2)", back
            yield "the slope φ′(z) is there twice (hidden_delta, BP2)", back * here * here
            yield "the slope φ′ is taken at a, not at z (hidden_delta, BP2)", back * slope_at_a[n - 1]
            if back.shape == behind.shape:
                yield "W is transposed (desires, BP2)", behind @ w.T * here
                yield "the slope φ′ is that of the layer behind (hidden_delta, BP2)", back * slope[n]
                yield "the product with W is missing (desires, BP2)", behind * here
        elif letter == "b":
            yield _RIGHT, delta[f"δ{n}"].sum(0)
            for k in range(len(delta[f"δ{n}"])):
                yield "is the δ of one example alone: not summed over the batch (bias_gradient, BP3)", delta[f"δ{n}"][k]
            yield "is the mean over the batch once more, not the sum (bias_gradient, BP3)", delta[f"δ{n}"].mean(0)
        elif letter == "W":
            d = delta[f"δ{n}"]
            yield _RIGHT, d.T @ a[n - 1]
            if n == 1:
                yield "the inputs are not scaled (weight_gradient, BP4)", d.T @ a[0] / x_scale
                yield "the inputs are scaled twice (weight_gradient, BP4)", d.T @ a[0] * x_scale
            else:
                yield "has z in place of the activations before it (weight_gradient, BP4)", d.T @ z[n - 2]
            if a[n].shape == a[n - 1].shape:
                yield "has the activations of its own layer, not of the one before (weight_gradient, BP4)", d.T @ a[n]
            for k in range(len(d)):
                yield (
                    "is that of one example alone: not summed over the batch (weight_gradient, BP4)",
                    torch.outer(d[k], a[n - 1][k]),
                )
        else:
            yield _RIGHT, delta["δ1"] @ t["W1"]
            yield "is scaled as the pixels are (input_gradient)", delta["δ1"] @ t["W1"] * x_scale

    return hypotheses


_RIGHT = "right for the δ that it was given, which is wrong"


def check_own(
    network: Network,
    x: Tensor,
    y: Tensor,
    cost: str,
    *,
    tolerance: float | None = None,
    coordinates: int = 200,
    seed: int = 0,
) -> Report:
    """``check`` of backprop.py on one batch: W^l, b^l, δ^l and x. x (B, n_0) is scaled to 0..1, y is (B, n_L)."""
    reference, inputs = Reference(network, y, cost), _own_inputs(network, x)
    return check(
        reference,
        inputs,
        OwnBackward(network, y, cost),
        tolerance=tolerance,
        coordinates=coordinates,
        batch_size=len(x),
        seed=seed,
        hypotheses=own_hypotheses(reference, inputs, PIXEL_SCALE),
    )


def check_step(
    network: Network,
    x: Tensor,
    y: Tensor,
    cost: str,
    x_scale: float,
    gradient: Tensor,
    *,
    tolerance: float | None = None,
) -> Report:
    """The live ``gradient`` (P,) of a training step against autograd, in the same dtype and in float64.

    For the mini-batch x (B, n_0), not yet scaled, and y (B, n_L) that the gradient was computed from, with the
    parameters still as they were then: call it before the step. Nothing of it is kept or changed. Raises ValueError
    where parameters or cost are not finite.
    """
    with torch.inference_mode(False):
        x, y, parameters = x.clone() * x_scale, y.clone(), _parameters((network.weights, network.biases))
    reference = Reference(network, y, cost)

    def function(**t: Tensor) -> Tensor:
        return reference(**t, x=x.to(t["W1"].dtype))

    given = _parameters(layer_views(gradient, network.sizes))
    return check(function, parameters, given, tolerance=tolerance, coordinates=0, batch_size=len(x))


# ---- the command ----


@dataclass(frozen=True)
class Options:
    """What is verified: without --run, networks of every activation, output activation and cost on real digits."""

    run: Path | None = None
    """Folder of a run: verify the network that it trained, on the test examples of its data."""
    depths: tuple[int, ...] = (1, 2, 3, 4)
    """Layers with weights; those between are of 16 neurons. Not for --run."""
    batch_sizes: tuple[int, ...] = (1, 2, 7, 100)
    """Examples in a batch."""
    dtypes: tuple[DTypeName, ...] = ("float32", "float64")
    """Types that the hand-written backward computes in."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps, where the backward and autograd compute."""
    tolerance: float | None = None
    """Relative error that is allowed, and then no more. None: ε^(2/3) of the dtype, and what rounding does."""
    coordinates: int = 1
    """Central differences for each tensor: of the entry that is furthest off, and of others. 0: none."""
    dataset: DatasetName = "mnist"
    """The digits. For --run: those that it was trained on."""
    data_dir: Path | None = None
    """Folder of the data sets. None: data, or that of the run."""
    seed: int = 0
    """Seed of the initial values, and of which examples and entries are tried."""
    verbose: bool = False
    """Print every tensor of every network."""
    json: bool = False
    """Print everything as JSON."""

    def __post_init__(self) -> None:
        """Refuse what cannot be verified."""
        for flag, numbers, least in (
            ("--depths", self.depths, 1),
            ("--batch-sizes", self.batch_sizes, 1),
            ("--coordinates", (self.coordinates,), 0),
            ("--seed", (self.seed,), 0),
        ):
            if not numbers or min(numbers) < least:
                raise ValueError(f"{flag}: wanted {least} or more, got {' '.join(map(str, numbers)) or 'nothing'}")
        if not self.dtypes:
            raise ValueError("--dtypes: wanted at least one")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance: wanted a relative error between 0 and 1, got {self.tolerance}")


class Case(NamedTuple):
    """One network on one batch, and what was found."""

    network: Network
    cost: str
    batch_size: int
    report: Report

    @property
    def label(self) -> list[str]:
        """As it is printed, in the order of ``CASE_COLUMNS``."""
        net = self.network
        return [net.activation, net.output_activation, str(net.depth), str(self.batch_size), _short(net.dtype)]

    @property
    def combination(self) -> tuple[str, ...]:
        """What stays when depth, batch size and dtype change."""
        return self.cost, self.network.activation, self.network.output_activation


CASE_COLUMNS = ["hidden", "output", "depth", "batch", "dtype"]


def combinations() -> list[tuple[str, str, str]]:
    """Every activation, output activation and cost that go together."""
    return [
        (activation, output, cost)
        for activation, output, cost in product(ACTIVATIONS, ACTIVATIONS, COSTS)
        if COSTS[cost].absorbs in (None, output)
    ]


def networks(options: Options, device: torch.device) -> list[tuple[Network, str]]:
    """The networks that are verified, with their costs."""
    dtypes = [getattr(torch, name) for name in options.dtypes]
    if options.run is not None:
        config, trained = open_run(options.run, device)
        return [(trained.to(dtype=dtype), config.cost) for dtype in dtypes]
    return [
        (
            Network(
                (PIXELS, *[16] * (depth - 1), CLASSES),
                activation=activation,
                output_activation=output,
                seed=options.seed,
                dtype=dtype,
                device=device,
            ),
            cost,
        )
        for activation, output, cost in combinations()
        for dtype in dtypes
        for depth in options.depths
    ]


def verify(options: Options) -> list[Case]:
    """Check the backward of every network on every batch size. Raises TrainingError and DataError."""
    device = choose_device(options.device)
    examples = _examples(options, device)
    todo = list(product(networks(options, device), options.batch_sizes))
    cases = []
    for (network, cost), batch_size in tqdm(todo, unit="network", leave=False, disable=None, delay=2):
        x = examples.x[:batch_size].to(network.dtype) * PIXEL_SCALE
        y = one_hot(examples.labels[:batch_size], dtype=network.dtype)
        report = check_own(
            network,
            x,
            y,
            cost,
            tolerance=options.tolerance,
            coordinates=options.coordinates,
            seed=options.seed,
        )
        cases.append(Case(network, cost, len(x), report))
    return cases


def _examples(options: Options, device: torch.device) -> Examples:
    """As many test examples as the largest batch wants."""
    dataset, directory = options.dataset, Path("data")
    if options.run is not None:
        config, _ = open_run(options.run)
        dataset, directory = config.dataset, config.data_dir
    _, test = load(dataset, options.data_dir or directory, device)
    if max(options.batch_sizes) > len(test.labels):
        raise TrainingError(
            f"--batch-sizes: there are {len(test.labels):,} examples, wanted {max(options.batch_sizes):,}"
        )
    return first_shuffled(test, max(options.batch_sizes), options.seed)


def summary(cases: list[Case], options: Options) -> str:
    """What the command prints: of each combination the worst tensor, if any is wrong only those; or everything."""
    rows = [(case, row) for case in cases for row in case.report.rows]
    wrong = [(case, row) for case, row in rows if not row.ok]
    shown = rows
    if not options.verbose:
        groups: dict[tuple[str, ...], list[tuple[Case, Row]]] = {}
        for case, row in wrong or rows:
            groups.setdefault((case.cost, row.name) if options.run else case.combination, []).append((case, row))
        shown = [max(group, key=lambda pair: pair[1].badness) for group in groups.values()]
    header, *lines = _table(
        ["", *CASE_COLUMNS, "tensor", *COLUMNS],
        [[_mark(row.ok), *case.label, row.name, *row.cells()] for case, row in shown],
    )
    parts = [header]
    for cost in dict.fromkeys(case.cost for case, _ in shown):
        parts += ["", cost, *(line for line, (case, _) in zip(lines, shown, strict=True) if case.cost == cost)]
    return "\n".join([*parts, "", *_diagnosis_lines(cases), *_conclusions(cases, rows, options)])


def _diagnosis_lines(cases: list[Case]) -> list[str]:
    """Each diagnosis once, with the tensors and the number of networks that it holds for."""
    wrong = [case for case in cases if not case.report.ok]
    if not wrong:
        return []
    names: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for case in wrong:
        for text, tensors in case.report.diagnoses.items():
            names.setdefault(text, set()).update(tensors)
            counts[text] = counts.get(text, 0) + 1
    lines = [
        f"{', '.join(sorted(names[text]))}: {text} ({_count(n, 'network')})"
        for text, n in sorted(counts.items(), key=lambda item: -item[1])
    ]
    unexplained = sum(not case.report.diagnoses for case in wrong)
    return [*lines, *([f"no diagnosis for {_count(unexplained, 'network')}"] if unexplained else []), ""]


def _conclusions(cases: list[Case], rows: list[tuple[Case, Row]], options: Options) -> list[str]:
    """How much was compared with what, and the verdict."""
    wrong, bad = sum(not row.ok for _, row in rows), sum(not case.report.ok for case in cases)
    allowed = {_short(case.network.dtype): f"{case.report.tolerance:.1e}" for case in cases}
    central = [row.agreements["central"] for _, row in rows if "central" in row.agreements]
    network, worst = cases[0].network, "tensor" if options.run else "combination"
    return [
        f"{'every tensor' if options.verbose else f'the worst of each {worst}'}; sizes "
        + (f"{'-'.join(map(str, network.sizes))}" if options.run else f"{PIXELS}-16-…-{CLASSES}")
        + f" on {network.device}, batches of {', '.join(map(str, options.batch_sizes))}",
        f"{', '.join(WITNESSES)}: ‖gradient − witness‖ / ‖witness‖, "
        f"allowed {', '.join(f'{limit} in {name}' for name, limit in allowed.items())}",
        *_blurred_line(row for _, row in rows),
        f"central differences of {_count(sum(a.compared for a in central), 'entry', 'entries')}, "
        f"{sum(a.set_aside for a in central)} set aside that straddle a kink; "
        f"{sum(row.bitwise_equal for _, row in rows) / len(rows):.0%} of tensors equal autograd's bit for bit",
        f"{wrong:,} of {_count(len(rows), 'gradient')} wrong, in {bad:,} of {_count(len(cases), 'network')}"
        if wrong
        else f"{_count(len(rows), 'gradient')} of {_count(len(cases), 'network')} right",
    ]


def to_json(cases: list[Case]) -> str:
    """Everything that was found, for a program to read."""
    return json.dumps(
        {
            "ok": all(case.report.ok for case in cases),
            "networks": [
                {
                    "sizes": list(case.network.sizes),
                    "activation": case.network.activation,
                    "output_activation": case.network.output_activation,
                    "cost": case.cost,
                    "batch_size": case.batch_size,
                    "dtype": _short(case.network.dtype),
                    "device": str(case.network.device),
                }
                | case.report.to_dict()
                for case in cases
            ],
        },
        indent=2,
    )


def main(arguments: list[str]) -> None:
    """``python -m bp_torch verify``: exit 1 when anything disagrees."""
    options = parse(
        Options,
        prog="python -m bp_torch verify",
        description="Hold the hand-written backward against autograd and central differences.",
        args=arguments,
    )
    torch.set_num_threads(1)  # small tensors: a second thread only waits
    with one_line_errors(TrainingError, DataError, OSError, ValueError):
        cases = verify(options)
    print(to_json(cases) if options.json else summary(cases, options))
    if not all(case.report.ok for case in cases):
        sys.exit(1)
