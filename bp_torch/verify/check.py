"""The entry point: any hand-written gradient compared with the references."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bp_torch.verify.candidate import Candidate, called
from bp_torch.verify.comparison import Comparison, Estimate, flat
from bp_torch.verify.diagnoses import Hypotheses, WrongGradient, diagnose
from bp_torch.verify.inputs import Inputs, gradients_by_name, named
from bp_torch.verify.references import References, autograd
from bp_torch.verify.report import Report


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
    """Compare a hand-written gradient of a scalar function with three independent references.

    Args:
        function: takes the tensors and returns a scalar. It may close over what has no gradient (labels, masks). If it
            also computes in float64 when its inputs are float64, all three references are available.
        inputs: a tensor, a sequence of tensors (``function(*inputs)``), or a mapping (``function(**inputs)``).
            None of them needs to require a gradient; they are copied, and never changed.
        gradient: the hand-written gradient, as a function that is called like ``function``, or as the tensors
            themselves; one for each input, in the same order or under the same names, None for one that is not given.
            A function is called three times, at other inputs in between, to find out what it keeps from call to call.
            None: what autograd computes through ``function``, which goes through your own ``torch.autograd.Function``.
        names: of the inputs, for the report; else those of the mapping, or of the function's own arguments.
        reference: the same function in plain differentiable operations, for the references; None: ``function``.
            If both this and ``gradient`` are None, central differences are the only reference.
        tolerance: the relative error that is allowed, and nothing beyond it; None: ``tolerance_of`` the coarsest dtype
            among the inputs, plus a noise allowance where rounding alone moves the gradient further (rounding.py).
        coordinates: for central differences, how many entries of each tensor; 0: none. The one that is furthest off
            is among them, the others are drawn from ``seed``, half of them where the gradient is not zero.
        batch_size: what an error is compared with; None: the length of the first dimension of the first input.
        seed: of every random choice.
        hypotheses: more patterns of error: ``hypotheses(name, given)`` yields pairs of words and the tensor that the
            gradient called ``name`` would then be, computed from the gradients ``given``.

    Raises:
        TypeError: for an input that is not a tensor of floating-point numbers, or a function that returns no tensor.
        ValueError: for no inputs, an input that is not finite, a function that is not scalar, not finite, not the same
            when called again, or without a gradient; for gradients that do not match the inputs.
    """
    tensors, adapt = named(inputs, names, function)
    references = References(adapt(reference or function), tensors, tolerance, seed)
    if gradient is None:
        if reference is None:
            references.drop_autograd()
        candidate = called(lambda t: autograd(adapt(function), t)[1], references)
    elif callable(gradient):
        candidate = called(adapt(gradient), references)
    else:
        candidate = Candidate(gradients_by_name(gradient, list(tensors)))
    if not candidate.gradients:
        raise ValueError(f"there is no gradient to check: all of {', '.join(tensors)} are None")
    if not references.gradients and (not coordinates or references.inputs64 is None):
        raise ValueError(f"there is no reference to compare the gradient with: {'; '.join(references.notes)}")
    first = next(iter(tensors.values()))
    return _report(candidate, references, coordinates, batch_size or (len(first) if first.ndim else 1), hypotheses)


def check_layer(
    forward: Callable[..., Any],
    inputs: Inputs,
    backward: Callable[..., Any] | None = None,
    *,
    reference: Callable[..., Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Report:
    """``check`` for a layer: ``forward(*inputs)`` returns one tensor, ``backward(dy, *inputs)`` the inputs' gradients.

    The scalar is Σ y ⊙ dy with random numbers dy in the shape of the outputs y, drawn from ``seed``: its gradient is
    ``backward`` at that dy. The other arguments and the errors are those of ``check``.
    """
    tensors, adapt = named(inputs, options.get("names"), forward)
    y = adapt(reference or forward)(tensors)
    if not isinstance(y, Tensor):
        raise TypeError(f"the layer returns a {type(y).__name__}, expected one tensor")
    generator = torch.Generator().manual_seed(seed + 10**6)  # not the numbers that the inputs may have been drawn as
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, y.dtype)

    def weighted(layer: Callable[..., Any] | None) -> Callable[..., Tensor] | None:
        def function(*args: Tensor, **kwargs: Tensor) -> Tensor:
            out: Tensor = layer(*args, **kwargs)  # type: ignore[misc]
            return (out * dy.to(out.dtype)).sum()

        return function if layer else None

    def gradient(*args: Tensor, **kwargs: Tensor) -> Any:
        return backward(dy.clone(), *args, **kwargs)  # type: ignore[misc]

    options |= {"names": list(tensors), "reference": weighted(reference), "seed": seed}
    return check(weighted(forward), inputs, gradient if backward else None, **options)  # type: ignore[arg-type]


def _report(
    candidate: Candidate, references: References, coordinates: int, batch_size: int, hypotheses: Hypotheses | None
) -> Report:
    """Compare every gradient with every reference, and look for what explains a wrong one."""
    estimates, comparisons = dict[str, dict[str, Estimate]](), list[Comparison]()
    for name, given in candidate.gradients.items():
        comparable, ours = candidate.comparable(name, references.inputs[name]), flat(given)
        estimates[name] = references.estimates(name, ours, coordinates if comparable else 0)
        if comparable:
            comparisons += [references.compare(name, ours, estimate) for estimate in estimates[name].values()]
        if not any(len(estimate.values) for estimate in estimates[name].values()):
            candidate.notes.append(f"{name} is not checked: no reference gives any of its entries")
    report = Report(comparisons, dict(candidate.problems), tolerance=references.tolerance)
    expected, wrong = dict[str, Estimate](), report.wrong
    if wrong:
        pairs = [(name, references.expected(name, found)) for name, found in estimates.items()]
        expected = {name: estimate for name, estimate in pairs if estimate}
    for name in (name for name in candidate.gradients if name in wrong):
        text = candidate.diagnoses.get(name)
        if not text and name in expected:
            text = diagnose(WrongGradient(name, candidate.gradients, expected, references, batch_size), hypotheses)
        if text:
            report.diagnoses.setdefault(text, []).append(name)
    report.notes.extend([*references.notes, *candidate.notes, *_contradictions(report, expected), *_noisy(report)])
    return report


def _contradictions(report: Report, expected: dict[str, Estimate]) -> list[str]:
    """If central differences and autograd contradict each other, one of them is wrong whatever the gradient is."""
    texts = {
        "central": "central differences agree with the gradient, autograd does not: is something detached?",
        "autograd": "autograd agrees with the gradient, central differences do not: does the function go through the "
        "backward that is checked? Pass a reference=",
    }
    names: dict[str, list[str]] = defaultdict(list)
    for c in report.comparisons:
        if c.ok and c.gradient in expected and expected[c.gradient].reference == "central":
            names[c.reference].append(c.gradient)
    return [f"{', '.join(names[reference])}: {text}" for reference, text in texts.items() if names[reference]]


def _noisy(report: Report) -> list[str]:
    """The gradients that agree only because rounding alone moves them far."""
    far = [c for c in report.comparisons if c.reference != "central" and c.relative_error > 100 * report.tolerance]
    wrong = report.wrong
    names = ", ".join(dict.fromkeys(c.gradient for c in far if c.gradient not in wrong))
    return [f"{names}: rounding alone moves it as far as this; a check in float64 can tell more"] if names else []
