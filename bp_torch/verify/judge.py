"""From the comparisons to a verdict: which of them decide, what rounding, kinks and a coarse dtype excuse."""

import math
from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from bp_torch.verify.candidate import Candidate
from bp_torch.verify.comparison import Comparison, Estimate, compare, norm
from bp_torch.verify.diagnoses import Hypotheses, WrongGradient, diagnose
from bp_torch.verify.inputs import Tensors, as_real, flat, wider
from bp_torch.verify.problem import autograd
from bp_torch.verify.references import NOISE_FACTOR, References, tolerance_of
from bp_torch.verify.report import Report
from bp_torch.verify.rounding import rounding_noise

EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
WIDENED = 8 * EPS32
"""The relative error that is allowed in float64 to a gradient of a coarser dtype: constants may have 7 digits only."""
KINKS = 100  # entries at most that are looked at for a kink
NEAR = 4.0
"""Times autograd's own error, within which a 16-bit gradient that cannot run in float64 is called right at once."""
SLICE = 8.0  # times what rounding explains, for one slice of many


class Judge:
    """Compares every gradient with every reference, and finds what to say of it: the ``report``."""

    def __init__(
        self,
        candidate: Candidate,
        references: References,
        coordinates: int,
        seconds: float,
        batch_size: int,
        hypotheses: Hypotheses | None,
    ) -> None:
        """Compare."""
        self.candidate, self.references, self.hypotheses = candidate, references, hypotheses
        self.batch_size = batch_size
        self.report = Report(
            [],
            dict(candidate.problems),
            tolerance=references.tolerance,
            dtype=str(references.dtype).removeprefix("torch."),
            setup=dict(candidate.setup),
        )
        self.estimates: dict[str, dict[str, Estimate]] = {}
        for name, given in candidate.gradients.items():
            self._compare(name, given, coordinates, seconds)
        self.report.problems.update(candidate.problems)
        self._name_the_unjudged()
        self.expected = self._expected() if self.report.wrong else {}
        for name in (name for name in candidate.gradients if name in self.report.wrong):
            self._explain(name)
        self.report.notes.extend([*references.notes, *candidate.notes, *self._contradictions(), *self._noisy()])

    @property
    def is_coarse(self) -> bool:
        """Whether the check is in 16 bits."""
        return bool(torch.finfo(self.references.dtype).eps > 1e-5)

    # ---- the comparisons of one gradient ----

    def _compare(self, name: str, given: Tensor, coordinates: int, seconds: float) -> None:
        references, report = self.references, self.report
        if not given.numel() and given.shape == references.inputs[name].shape:
            self.candidate.comparable(name, references.inputs[name])
            report.unjudged[name] = "it is empty, and has the right shape"
            return
        comparable, ours = self.candidate.comparable(name, references.inputs[name]), flat(given)
        found = references.estimates(name, ours, coordinates if comparable else 0, seconds)
        self.estimates[name] = found
        if not comparable:
            return
        compared = [references.compare(name, ours, estimate) for estimate in found.values()]
        wide = self._widened(name)
        compared = self._outvoted(compared, wide)
        report.comparisons.extend(compared)
        if not any(len(estimate.values) for estimate in found.values()):
            report.unjudged[name] = "no reference gives any of its entries"
            report.notes.append(f"{name} is not checked: no reference gives any of its entries")
        if wide and not wide.ok:
            report.comparisons.append(wide)
        elif "float64" in found and references.dtype != torch.float64 and not references.strict:
            self._judge_precision(name, ours, compared, found["float64"], wide)

    def _widened(self, name: str) -> Comparison | None:
        """The gradient from float64 inputs against the float64 reference; None if it cannot be had in a wider dtype."""
        references, eps = self.references, self.candidate.widened_eps
        reference = references.gradients.get("float64")
        if name not in self.candidate.widened or reference is None or eps >= torch.finfo(references.dtype).eps:
            return None
        right = reference[name]
        if not right.isfinite().all():
            return None
        allowed = WIDENED if eps < EPS32 else tolerance_of(torch.float32)
        estimate = Estimate("widened", right, None, norm(right), allowed, references.underflow)
        t = references.inputs[name]
        shape = (*t.shape, 2) if t.is_complex() else tuple(t.shape)

        def noise() -> float:
            dtype = None if eps < EPS32 else torch.float32
            inputs = {n: wider(t) if dtype is None else t.to(dtype) for n, t in references.inputs.items()}
            squares = rounding_noise(lambda: autograd(references.function, inputs)[1], references.seed)
            return NOISE_FACTOR * math.sqrt(float(squares[name].sum()))

        return compare(name, shape, self.candidate.widened[name], estimate, noise)

    def _outvoted(self, compared: list[Comparison], wide: Comparison | None) -> list[Comparison]:
        """Nearer to float64 than autograd's own is right: float64 and central differences outvote the same dtype."""
        by = {c.reference: c for c in compared}
        float64, dtype = by.get("float64"), self.references.dtype
        if dtype == torch.float64 or float64 is None or not float64.ok:
            return compared
        if not all(by[r].ok for r in ("central", "directions") if r in by):
            return compared
        return [c if c.reference != "autograd" else replace(c, decides=c.ok) for c in compared]

    # ---- sixteen bits ----

    def _judge_precision(
        self, name: str, ours: Tensor, compared: list[Comparison], float64: Estimate, wide: Comparison | None
    ) -> None:
        """How many times autograd's own error, and whether that is told from rounding."""
        references, report = self.references, self.report
        if float64.entries is not None:
            return
        own = norm(references.gradients["autograd"][name] - float64.values)
        error = norm(ours - float64.values)
        if own and math.isfinite(error) and self.is_coarse:
            report.multiples[name] = error / own
        by = {c.reference: c for c in compared}
        ok = all(c.ok for c in compared if c.decides)
        if wide is not None:
            if not ok and by["float64"].error_ratio <= 4 and name not in report.problems:
                report.noise[name] = (
                    f"is right when run in float64, and further off in {report.dtype} than rounding usually makes it: "
                    "its products or sums may need a wider dtype"
                )
            return
        if self.is_coarse and ok and self._is_far(name, error, own, float64):
            report.noise[name] = (
                f"the error is {error / own if own else math.inf:.2g} times autograd's own in {report.dtype}: too much "
                "to call it right, too little to call it wrong. The same check in float32 or float64 would tell, or a "
                "tolerance="
            )
        if by["float64"].ok and (text := self._wrong_slice(name, ours, float64)):
            self.candidate.problems[name].append(text)

    def _is_far(self, name: str, error: float, own: float, float64: Estimate) -> bool:
        """Whether the error is several times autograd's own, and larger than what rounding explains.

        The result alone, rounded once, is off by a quarter of ε on average: autograd's own error counts as no less.
        """
        floor = 0.25 * float(torch.finfo(self.references.dtype).eps) * float64.size + float64.uncertainty
        if error <= NEAR * (own + floor):
            return False
        return error > math.sqrt(float(self.references.squared_noise(name).sum()))

    def _wrong_slice(self, name: str, ours: Tensor, float64: Estimate) -> str | None:
        """A row, a column or the like that is wrong by itself, and too small to show in the whole."""
        references, shape = self.references, self.references.inputs[name].shape
        if len(shape) < 2 or references.inputs[name].is_complex():
            return None
        squares, right = (ours - float64.values).square().reshape(shape), float64.values.square().reshape(shape)
        noise: Tensor | None = None
        for d in (d for d in range(len(shape)) if shape[d] >= 4):
            others = [k for k in range(len(shape)) if k != d]
            error, size = squares.sum(others).sqrt(), right.sum(others).sqrt()
            limit = 2 * references.tolerance * size + references.underflow
            if not (error > limit).any():
                continue
            if noise is None:
                noise = references.squared_noise(name).reshape(shape)
            limit = limit + SLICE * (noise.sum(others) + noise.sum() / shape[d]).sqrt()
            ratio = error / limit
            if (at := int(ratio.argmax())) is not None and ratio[at] > 1:
                return (
                    f"is wrong at index {at} of dimension {d}: off by {float(error[at] / size[at]):.0%} there, which "
                    "is lost in the whole"
                )
        return None

    # ---- what is not judged ----

    def _name_the_unjudged(self) -> None:
        report, references = self.report, self.references
        for name in references.inputs:
            if name not in self.candidate.gradients:
                report.unjudged[name] = "no gradient of it is given"
            elif name in references.unused and name not in report.wrong:
                report.unjudged[name] = "the function does not use it"

    # ---- what is wrong ----

    def _expected(self) -> dict[str, Estimate]:
        pairs = [(name, self.references.expected(name, found)) for name, found in self.estimates.items()]
        return {name: estimate for name, estimate in pairs if estimate}

    def _explain(self, name: str) -> None:
        """Look for a kink, or for a diagnosis."""
        report = self.report
        if name in report.noise or name in report.setup:
            return
        if name not in report.problems and (text := self._only_on_kinks(name)):
            report.kinks[name] = text
            return
        text = self.candidate.diagnoses.get(name)
        if not text and name in self.expected:
            text = diagnose(self._wrong_gradient(name), self.hypotheses) or self._low_precision(name)
        if text:
            report.diagnoses.setdefault(text, []).append(name)
        elif name not in report.problems and name in self.expected:
            report.where[name] = self._where(name)

    def _where(self, name: str) -> str:
        """How many entries are off, and the one that is furthest off."""
        estimate, shape = self.expected[name], as_real(self.references.inputs[name]).shape
        if estimate.entries is not None:
            return "differs, and no pattern that is known explains it"
        ours, right = flat(self.candidate.gradients[name]), estimate.values
        off = (ours - right).abs()
        limit = self.references.tolerance * float(right.abs().max()) + self.references.underflow
        at = [int(k) for k in torch.unravel_index(off.argmax(), shape)]
        i = int(off.argmax())
        return (
            f"{int((off > limit).sum()):,} of {len(off):,} entries are off, and no pattern that is known explains it; "
            f"the furthest is at {at}: {float(ours[i]):.6g}, where {float(right[i]):.6g} is right"
        )

    def _wrong_gradient(self, name: str) -> WrongGradient:
        """In float64 if the gradient is wrong there too: there is less rounding to hide in."""
        references, candidate = self.references, self.candidate
        shape = as_real(references.inputs[name]).shape
        given, expected, tolerance = as_real(candidate.gradients[name]), self.expected, references.tolerance
        in_float64 = any(c.reference == "widened" and c.gradient == name for c in self.report.comparisons)
        if in_float64:
            given, right = candidate.widened[name].reshape(shape), references.gradients["float64"]
            expected = {n: Estimate("float64", v, None, norm(v), tolerance) for n, v in right.items()}
            tolerance = tolerance_of(torch.float64 if candidate.widened_eps < EPS32 else torch.float32)
        noise, problem = 0.0 if in_float64 else references.noise_allowance(name), references.problem
        if in_float64 and references.inputs64:
            arguments = problem.arguments.arguments | references.inputs64
            problem = replace(problem, arguments=problem.arguments.replaced(arguments))
        return WrongGradient(
            name,
            given,
            shape,
            expected,
            candidate.gradients,
            self._beside(in_float64),
            tolerance,
            noise,
            problem,
            self.batch_size,
        )

    def _beside(self, in_float64: bool) -> Tensors:
        """The inputs, dy and y, by what they are called."""
        candidate, several = self.candidate, len(self.candidate.dys) > 1
        outputs = candidate.widened_outputs if in_float64 else candidate.outputs
        found = {name: t for name, t in self.references.inputs.items()}
        if candidate.dys and not self.references.problem.scalar:
            for kind, tensors in (("dy", candidate.dys), ("y", outputs)):
                found |= {f"{kind}{i}" if several else kind: t for i, t in enumerate(tensors, 1)}
        return {name: t.detach().cpu().double() for name, t in found.items() if not t.is_complex()}

    def _low_precision(self, name: str) -> str | None:
        c = next((c for c in self.report.comparisons if c.gradient == name and not c.ok), None)
        narrow = self.candidate.widened_eps
        if c is None or name in self.report.problems or not c.relative_error < tolerance_of(torch.float32):
            return None
        if narrow >= EPS32 and self.references.dtype == torch.float64:
            return f"is right to {c.relative_error:.0e} only: something in it computes in a coarser dtype than float64"
        if c.relative_error < EPS32:
            return f"is right to {c.relative_error:.0e}, as in float32, and not to float64: a constant of few digits?"
        return None

    def _only_on_kinks(self, name: str) -> str | None:
        """The one-sided slopes, if every entry that differs lies on a kink and between them."""
        estimate, references = self.expected.get(name), self.references
        if estimate is None or estimate.entries is not None or references.inputs64 is None or not references.gradients:
            return None
        if references.inputs[name].is_complex():
            return None
        in_float64 = any(c.reference == "widened" and c.gradient == name for c in self.report.comparisons)
        best = references.gradients.get("float64", references.gradients["autograd"])
        ours = self.candidate.widened[name] if in_float64 else flat(self.candidate.gradients[name])
        right, tolerance = best[name], WIDENED if in_float64 else references.tolerance
        if len(ours) != len(right) or not ours.isfinite().all() or not right.isfinite().all():
            return None
        off = (ours - right).abs()
        order = off.argsort(descending=True)
        left = (off[order] ** 2).flip(0).cumsum(0).flip(0).sqrt()
        differing = order[: int((left > tolerance * norm(right) + references.underflow).sum())].tolist()
        if not 0 < len(differing) <= KINKS:
            return None
        try:
            differences = references.differences(name)
            found = []
            for i in differing:
                low, high = sorted(differences.one_sided(i))
                room = 1e-4 * max(abs(low), abs(high)) + 1e-5 * (high - low)
                if not high - low > 100 * 1e-6 * max(abs(low), abs(high), 1e-300) or not (
                    low - room <= float(ours[i]) <= high + room
                ):
                    return None
                found.append((i, low + 0.0, high + 0.0))
        except Exception:  # a step may leave the region in which the function can be evaluated
            return None
        i, low, high = found[0]
        where = [int(k) for k in torch.unravel_index(torch.tensor(i), references.inputs[name].shape)]
        return (
            f"differs from autograd at {len(found):,} of its entries, and each lies on a kink, where any slope between "
            f"the one-sided ones will do: at {where} they are {low:.4g} and {high:.4g}, the gradient has "
            f"{float(ours[i]):.4g}, autograd {float(right[i]):.4g}. Move the inputs off the kink to judge the rest"
        )

    # ---- notes ----

    def _contradictions(self) -> list[str]:
        """If central differences and autograd contradict each other, one of them is wrong whatever the gradient is."""
        texts = {
            "central": "central differences agree with the gradient, autograd does not: is something detached?",
            "autograd": "autograd agrees with the gradient, central differences do not: does the function go through "
            "the backward that is checked? Pass a reference=",
        }
        names: dict[str, list[str]] = defaultdict(list)
        for c in self.report.comparisons:
            if c.ok and c.gradient in self.expected and self.expected[c.gradient].reference == "central":
                names[c.reference].append(c.gradient)
        return [f"{', '.join(names[reference])}: {text}" for reference, text in texts.items() if names[reference]]

    def _noisy(self) -> list[str]:
        """The gradients that agree only because rounding alone moves them far."""
        report, wrong = self.report, self.report.wrong
        far = [
            c
            for c in report.comparisons
            if c.reference in ("autograd", "float64") and c.relative_error > 100 * report.tolerance
        ]
        names = ", ".join(dict.fromkeys(c.gradient for c in far if c.gradient not in wrong))
        text = "rounding alone moves it as far as this; a check in float64 can tell more"
        return [f"{names}: {text}"] if names else []
