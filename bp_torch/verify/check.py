"""The one call: a hand-written gradient, from wherever it comes, held against the witnesses."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.diagnoses import Error, Hypotheses, diagnose
from bp_torch.verify.inputs import Inputs, Tensors, copies, given_gradients, named, not_finite
from bp_torch.verify.report import Report, Row
from bp_torch.verify.witnesses import Testimony, Witnesses, autograd, flat


def check(
    function: Callable[..., Any],
    inputs: Inputs,
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
            among the inputs, and what rounding does here (rounding.py).
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
    tensors, spread = named(inputs, names, function)
    witnesses = Witnesses(spread(reference or function), tensors, tolerance, seed)
    if gradient is None:
        if reference is None:
            witnesses.silence_autograd()
        claim = Claim.asked(lambda t: autograd(spread(function), t)[1], witnesses)
    elif callable(gradient):
        claim = Claim.asked(spread(gradient), witnesses)
    else:
        claim = Claim(given_gradients(gradient, list(tensors)))
    if not claim.gradients:
        raise ValueError(f"there is no gradient to check: all of {', '.join(tensors)} are None")
    if not witnesses.gradients and (not coordinates or witnesses.inputs64 is None):
        raise ValueError(f"there is no witness to hold the gradient against: {'; '.join(witnesses.notes)}")
    first = next(iter(tensors.values()))
    return _report(claim, witnesses, coordinates, batch_size or (len(first) if first.ndim else 1), hypotheses)


def check_layer(
    forward: Callable[..., Any],
    inputs: Inputs,
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
    tensors, spread = named(inputs, options.get("names"), forward)
    y = spread(reference or forward)(tensors)
    if not isinstance(y, Tensor):
        raise TypeError(f"the layer gives a {type(y).__name__}, wanted one tensor")
    generator = torch.Generator().manual_seed(seed + 10**6)  # not the numbers that the inputs may have been drawn as
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)

    def weighed(layer: Callable[..., Any] | None) -> Callable[..., Tensor] | None:
        def function(*args: Tensor, **kwargs: Tensor) -> Tensor:
            out: Tensor = layer(*args, **kwargs)  # type: ignore[misc]
            return (out * dy.to(out.dtype)).sum()

        return function if layer else None

    def gradient(*args: Tensor, **kwargs: Tensor) -> Any:
        return backward(dy.clone(), *args, **kwargs)  # type: ignore[misc]

    options |= {"names": list(tensors), "reference": weighed(reference), "seed": seed}
    return check(weighed(forward), inputs, gradient if backward else None, **options)  # type: ignore[arg-type]


# ---- what is claimed ----


class Claim:
    """The hand-written gradients, and by name what is wrong with the way they came and what explains it."""

    def __init__(self, gradients: Tensors) -> None:
        """Nothing is wrong yet."""
        self.gradients = gradients
        self.problems: dict[str, list[str]] = defaultdict(list)
        self.diagnoses: dict[str, str] = {}
        self.notes: list[str] = []

    @classmethod
    def asked(cls, call: Callable[[Tensors], Any], witnesses: Witnesses) -> "Claim":
        """Call the gradient, call it at other inputs, call it again: the third answer must be the first."""

        def answer(at: Tensors) -> Tensors:
            with torch.inference_mode(False), torch.enable_grad():
                return given_gradients(call(at), list(at))

        inputs = witnesses.inputs
        lent = copies(inputs)
        raw = answer(lent)
        first = copies(raw)
        claim = cls(first)
        for name in (name for name, t in inputs.items() if first and not torch.equal(lent[name], t)):
            blamed = name if name in first else next(iter(first))
            claim.problems[blamed].append(f"the gradient function changes its input {name} in place")
        generator = torch.Generator().manual_seed(witnesses.seed)
        noise = {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in inputs.items()}
        elsewhere = {name: t * (1 + noise[name].to(t.device, t.dtype)) for name, t in inputs.items()}
        try:
            second = copies(answer(elsewhere))
        except Exception:  # the other inputs may lie where the gradient is not defined: nothing is said then
            return claim
        if any(not torch.equal(raw[name], g) and not raw[name].isnan().any() for name, g in first.items()):
            claim.notes.append(
                "the gradient function hands out the same memory at every call: the next call overwrites it"
            )
        again = copies(answer(copies(inputs)))
        for name in first.keys() & again.keys() & second.keys():
            if not witnesses.near(again[name], first[name], name):
                claim.gradients[name] = again[name]
                claim.problems[name].append("changes when it is asked for again after a call at other inputs")
                if text := _memory(name, again[name], second[name], elsewhere, witnesses):
                    claim.diagnoses[name] = text
        return claim


def _memory(name: str, again: Tensor, second: Tensor, elsewhere: Tensors, witnesses: Witnesses) -> str | None:
    """What the gradient function keeps, if that explains its answer ``again`` after ``second`` at ``elsewhere``."""
    right = witnesses.same[name]
    if not witnesses.gradients or again.shape != right.shape or again.shape != second.shape:
        return None
    if witnesses.near(again - second, right, name):
        return "adds to what the calls before left: its buffer is not cleared"
    if witnesses.near(again, autograd(witnesses.function, elsewhere)[1][name], name):
        return "is the gradient at the inputs of the call before: a stale buffer"
    return None


# ---- and what comes of it ----


def _report(
    claim: Claim, witnesses: Witnesses, coordinates: int, batch_size: int, hypotheses: Hypotheses | None
) -> Report:
    found = [_row(name, given, claim, witnesses, coordinates) for name, given in claim.gradients.items()]
    rows = [row for row, _ in found]
    diagnoses: dict[str, list[str]] = defaultdict(list)
    truths: dict[str, Testimony] = {}
    if not all(row.ok for row in rows):
        truths = {row.name: truth for row, central in found if (truth := witnesses.truth(row.name, central))}
    for name in (row.name for row in rows if not row.ok):
        text = claim.diagnoses.get(name)
        if not text and name in truths:
            text = diagnose(Error(name, claim.gradients, truths, witnesses, batch_size), hypotheses)
        if text:
            diagnoses[text].append(name)
    notes = [*witnesses.notes, *claim.notes, *_contradictions(rows, truths), *_unsure(rows, witnesses.base)]
    return Report(rows, dict(diagnoses), notes, witnesses.base)


def _row(
    name: str, given: Tensor, claim: Claim, witnesses: Witnesses, coordinates: int
) -> tuple[Row, Testimony | None]:
    """One gradient against every witness that is heard, and what the central differences were."""
    t, problems, ours = witnesses.inputs[name], claim.problems[name], flat(given)
    shape = tuple(t.shape)
    if given.shape != shape:
        problems.append(f"has the shape {list(given.shape)}, wanted {list(shape)}")
        return Row(name, shape, t.dtype, {}, False, tuple(problems)), None
    if not given.isfinite().all():
        problems.append(f"holds {not_finite(given)}")
    known = witnesses.known(name)
    central = witnesses.central(name, _choose(ours, known, coordinates, witnesses.seed)) if coordinates else None
    heard = [witnesses.autograd("autograd", name), witnesses.autograd("float64", name), central]
    agreements = {said.witness: witnesses.agreement(name, ours, said) for said in heard if said}
    bits = bool(witnesses.gradients) and _same_bits(given, witnesses.same[name])
    return Row(name, shape, t.dtype, agreements, bits, tuple(problems)), central


def _choose(ours: Tensor, known: Testimony | None, n: int, seed: int) -> Tensor:
    """Which entries to take differences of: all, or n: the one furthest off, half from where there is a slope."""
    if len(ours) <= n:
        return torch.arange(len(ours))
    generator = torch.Generator().manual_seed(seed)
    whole = known.values if known and known.entries is None else ours
    furthest = (ours - whole).abs().nan_to_num(torch.inf).argmax().view(1)
    slopes = whole.nonzero().flatten()
    some = slopes[torch.randint(len(slopes), (n // 2,), generator=generator)] if len(slopes) else slopes
    others = torch.randint(len(ours), (n - 1 - len(some),), generator=generator)
    chosen: Tensor = torch.cat([furthest, some, others]).unique()
    return chosen


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape are the same in every bit: unlike ==, this tells −0 from 0."""
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    return a.dtype == b.dtype and torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


def _contradictions(rows: list[Row], truths: dict[str, Testimony]) -> list[str]:
    """Where central differences and autograd contradict each other, one of them is wrong whatever the gradient is."""
    wrong = [row for row in rows if (truth := truths.get(row.name)) and truth.witness == "central"]
    texts = {
        "central": "central differences agree with the gradient, autograd does not: is something detached?",
        "autograd": "autograd agrees with the gradient, central differences do not: does the function go through the "
        "backward that is checked? Give a reference",
    }
    names = {w: [row.name for row in wrong if w in row.agreements and row.agreements[w].ok] for w in texts}
    return [f"{', '.join(names[w])}: {text}" for w, text in texts.items() if names[w]]


def _unsure(rows: list[Row], base: float) -> list[str]:
    """The gradients that agree only because rounding alone moves them far."""
    names = [
        row.name
        for row in rows
        if row.ok and any(a.relative_error > 100 * base for w, a in row.agreements.items() if w != "central")
    ]
    return [f"{', '.join(names)}: rounding alone moves it as far as this; in float64 more can be told"] if names else []
