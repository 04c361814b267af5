"""From the comparisons to a verdict: which of them decide, what rounding, kinks and a coarse dtype excuse."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from bp_torch.verify.candidate import Candidate
from bp_torch.verify.diagnose import Hypotheses, WrongGradient, diagnose
from bp_torch.verify.problem import as_real, flat, in_float64, norm, not_finite
from bp_torch.verify.references import EPS32, NOISE_FACTOR, Estimate, tolerance_of
from bp_torch.verify.report import Comparison, Report
from bp_torch.verify.rounding import rounding_noise

ALLOWED_IN_FLOAT64 = 8 * EPS32
"""The relative error that is allowed in float64 to a gradient of a coarser dtype: constants may have 7 digits only."""
AT_MOST_TIMES_AUTOGRADS_ERROR = 4.0
"""A 16-bit gradient that cannot run in float64, and is this close to it, is right without a further test."""
SLICE_FACTOR = 8.0  # times what rounding explains, for one slice of many
MOST_KINKS = 100  # entries that are looked at for a kink


class Judge:
    """Compares every gradient with every reference, and finds what to say of it: the ``report``."""

    def __init__(
        self, candidate: Candidate, coordinates: int, seconds: float, batch_size: int, hypotheses: Hypotheses | None
    ) -> None:
        """Compare."""
        references = candidate.references
        self.candidate, self.references, self.say = candidate, references, candidate.say
        self.batch_size, self.hypotheses = batch_size, hypotheses
        self.dtype, self.is_coarse = str(references.dtype).removeprefix("torch."), references.eps > 1e-5  # 16 bits
        self.report = Report([], candidate.findings, tolerance=references.tolerance, dtype=self.dtype)
        self.estimates = {name: self._compare(name, coordinates, seconds) for name in candidate.gradients}
        for name in references.inputs:
            if name not in candidate.gradients:
                self.say("unjudged", [name], "no gradient of it is given")
            elif name in references.unused and name not in self.report.wrong:
                self.say("unjudged", [name], "the function does not use it")
        wrong = self.report.wrong
        expected = {name: references.expected(name, found) for name, found in self.estimates.items() if wrong}
        self.expected = {name: estimate for name, estimate in expected.items() if estimate}
        for name in (name for name in candidate.gradients if name in wrong):
            self._explain(name)
        self.report.notes.extend([*references.notes, *candidate.notes, *self._contradictions(), *self._noisy()])

    # ---- the comparisons of one gradient ----

    def _compare(self, name: str, coordinates: int, seconds: float) -> dict[str, Estimate]:
        references, report, given = self.references, self.report, self.candidate.gradients[name]
        sure = name in report.problems
        comparable, ours = self._comparable(name), flat(given)
        if not given.numel() and given.shape == references.inputs[name].shape:
            self.say("unjudged", [name], "it is empty, and has the right shape")
            return {}
        found = references.estimates(name, ours, coordinates if comparable else 0, seconds)
        if not comparable:
            return found
        compared = self._outvoted([references.compare(name, ours, estimate) for estimate in found.values()])
        report.comparisons.extend(compared)
        if not any(len(estimate.values) for estimate in found.values()):
            self.say("unjudged", [name], "no reference gives any of its entries")
            report.notes.append(f"{name} is not checked: no reference gives any of its entries")
        run_in_float64 = self._compare_in_float64(name)
        if run_in_float64 and not run_in_float64.ok:
            report.comparisons.append(run_in_float64)
        elif "float64" in found and references.dtype != torch.float64 and not references.strict:
            right = found["float64"]
            if right.entries is None:
                self._judge_precision(name, ours, right, compared, run_in_float64 is not None, sure)
        return found

    def _comparable(self, name: str) -> bool:
        """Whether the gradient has the shape of its input. Notes that, another dtype, and what is not finite."""
        given, t = self.candidate.gradients[name], self.references.inputs[name]
        if given.dtype != t.dtype:
            dtypes = [str(x.dtype).removeprefix("torch.") for x in (given, t)]
            self.say("problem", [name], f"has the dtype {dtypes[0]}, expected {dtypes[1]}, that of the input")
        if given.shape != t.shape:
            self.say("problem", [name], f"has the shape {list(given.shape)}, expected {list(t.shape)}")
            return False
        if given.is_complex() and not t.is_complex():
            return False
        if not given.isfinite().all():
            self.say("problem", [name], f"holds {not_finite(given)}")
        return True

    def _outvoted(self, compared: list[Comparison]) -> list[Comparison]:
        """Nearer to float64 than autograd's own is right: float64 and central differences outvote the same dtype."""
        ok = {c.reference: c.ok for c in compared}
        if self.references.dtype == torch.float64 or not ok.get("float64"):
            return compared
        if not ok.get("central", True) or not ok.get("directions", True):
            return compared
        return [c if c.reference != "autograd" else replace(c, decides=c.ok) for c in compared]

    def _compare_in_float64(self, name: str) -> Comparison | None:
        """The gradient from float64 inputs against the float64 reference; None if it cannot be had in a wider dtype."""
        references, eps = self.references, self.candidate.eps_in_float64
        ours, right = self.candidate.in_float64.get(name), references.gradients.get("float64", {}).get(name)
        if ours is None or right is None or eps >= references.eps or not right.isfinite().all():
            return None
        allowed = ALLOWED_IN_FLOAT64 if eps < EPS32 else tolerance_of(torch.float32)
        estimate = Estimate("widened", right, None, norm(right), allowed, references.underflow)

        def noise() -> float:
            inputs = references.inputs
            inputs = in_float64(inputs) if eps < EPS32 else {n: t.to(torch.float32) for n, t in inputs.items()}
            squares = rounding_noise(references.function, inputs, references.seed)
            return NOISE_FACTOR * math.sqrt(float(squares[name].sum()))

        return references.compare(name, ours, estimate, noise)

    def _is_wrong_in_float64(self, name: str) -> bool:
        return any(c.reference == "widened" and c.gradient == name for c in self.report.comparisons)

    # ---- sixteen bits ----

    def _judge_precision(
        self, name: str, ours: Tensor, right: Estimate, compared: list[Comparison], runs_in_float64: bool, sure: bool
    ) -> None:
        """How many times autograd's own error, told from rounding or not; what is ``sure`` to be wrong is no noise."""
        autograds_error = norm(self.references.gradients["autograd"][name] - right.values)
        error = norm(ours - right.values)
        times = error / autograds_error if autograds_error else math.inf
        if autograds_error and math.isfinite(error) and self.is_coarse:
            self.report.multiples[name] = times
        ok = all(c.ok for c in compared if c.decides)
        in_own_dtype = next(c for c in compared if c.reference == "float64")
        if runs_in_float64:
            if not ok and in_own_dtype.error_ratio <= 4 and not sure:
                text = f"is right when run in float64, and further off in {self.dtype} than rounding usually makes it: "
                self.say("noise", [name], text + "its products or sums may need a wider dtype")
            return
        if self.is_coarse and ok and self._is_far(name, error, autograds_error, right):
            text = (
                f"the error is {times:.2g} times autograd's own in {self.dtype}: too much to call it right, too little "
                "to call it wrong. The same check in float32 or float64 would tell, or a tolerance="
            )
            self.say("noise", [name], text)
        if in_own_dtype.ok:
            self._look_for_a_wrong_slice(name, ours, right)

    def _is_far(self, name: str, error: float, autograds_error: float, right: Estimate) -> bool:
        """Whether the error is several times autograd's own, and larger than what rounding explains."""
        floor = 0.25 * self.references.eps * right.size + right.uncertainty  # of a right result that is rounded once
        if error <= AT_MOST_TIMES_AUTOGRADS_ERROR * (autograds_error + floor):
            return False
        return error > math.sqrt(float(self.references.squared_noise(name).sum()))

    def _look_for_a_wrong_slice(self, name: str, ours: Tensor, expected: Estimate) -> None:
        """A row, a column or the like that is wrong by itself, and too small to show in the whole."""
        references, shape = self.references, self.references.inputs[name].shape
        if len(shape) < 2 or references.inputs[name].is_complex():
            return
        squares, right = (ours - expected.values).square().reshape(shape), expected.values.square().reshape(shape)
        for d in (d for d in range(len(shape)) if shape[d] >= 4):
            others = [k for k in range(len(shape)) if k != d]
            error, size = squares.sum(others).sqrt(), right.sum(others).sqrt()
            limit = 2 * references.tolerance * size + references.underflow
            if not (error > limit).any():
                continue
            noise = references.squared_noise(name).reshape(shape)
            ratio = error / (limit + SLICE_FACTOR * (noise.sum(others) + noise.sum() / shape[d]).sqrt())
            at = int(ratio.argmax())
            if ratio[at] > 1:
                text = f"is wrong at index {at} of dimension {d}: off by {float(error[at] / size[at]):.0%} there"
                return self.say("problem", [name], f"{text}, which is lost in the whole")

    # ---- what is wrong ----

    def _explain(self, name: str) -> None:
        """Look for a kink, or for a diagnosis."""
        report, known = self.report, name in self.expected
        if name in report.noise or name in report.setup:
            return
        if name not in report.problems and (text := self._only_on_kinks(name)):
            return self.say("kink", [name], text)
        text = self.candidate.diagnoses.get(name)
        if not text and known:
            in_float64 = self._is_wrong_in_float64(name)
            wrong = WrongGradient(name, self.candidate, self.expected, in_float64, self.batch_size)
            text = diagnose(wrong, self.hypotheses) or self._low_precision(name)
        if text:
            self.say("diagnosis", [name], text)
        elif name not in report.problems and known:
            self.say("where", [name], self._where(name))

    def _low_precision(self, name: str) -> str | None:
        c = next((c for c in self.report.comparisons if c.gradient == name and not c.ok), None)
        if c is None or name in self.report.problems or not c.relative_error < tolerance_of(torch.float32):
            return None
        right = f"is right to {c.relative_error:.0e}"
        if self.candidate.eps_in_float64 >= EPS32 and self.references.dtype == torch.float64:
            return f"{right} only: something in it computes in a coarser dtype than float64"
        if c.relative_error < EPS32:
            return f"{right}, as in float32, and not to float64: a constant of few digits?"
        return None

    def _where(self, name: str) -> str:
        """How many entries are off, and the one that is furthest off."""
        estimate = self.expected[name]
        if estimate.entries is not None:
            return "differs, and no pattern that is known explains it"
        ours, right = flat(self.candidate.gradients[name]), estimate.values
        off = (ours - right).abs()
        limit, i = self.references.tolerance * float(right.abs().max()) + self.references.underflow, int(off.argmax())
        return (
            f"{int((off > limit).sum()):,} of {len(off):,} entries are off, and no pattern that is known explains it; "
            f"the furthest is at {self._place(name, i)}: {float(ours[i]):.6g}, where {float(right[i]):.6g} is right"
        )

    def _place(self, name: str, i: int) -> list[int]:
        shape = as_real(self.references.inputs[name]).shape
        return [int(k) for k in torch.unravel_index(torch.tensor(i), shape)]

    # ---- kinks ----

    def _only_on_kinks(self, name: str) -> str | None:
        """The one-sided slopes, if every entry that differs lies on a kink and between them."""
        estimate, references = self.expected.get(name), self.references
        known = estimate is not None and estimate.entries is None and references.inputs64 is not None
        if not known or not references.gradients or references.inputs[name].is_complex():
            return None
        right = references.gradients.get("float64", references.gradients["autograd"])[name]
        ours, tolerance = flat(self.candidate.gradients[name]), references.tolerance
        if self._is_wrong_in_float64(name):
            ours, tolerance = self.candidate.in_float64[name], ALLOWED_IN_FLOAT64
        if len(ours) != len(right) or not ours.isfinite().all() or not right.isfinite().all():
            return None
        off = (ours - right).abs()
        order = off.argsort(descending=True)
        left = (off[order] ** 2).flip(0).cumsum(0).flip(0).sqrt()
        differing = order[: int((left > tolerance * norm(right) + references.underflow).sum())].tolist()
        if not 0 < len(differing) <= MOST_KINKS:
            return None
        try:
            differences, slopes = references.differences(name), []
            for i in differing:
                low, high = sorted(differences.one_sided(i))
                size = max(abs(low), abs(high))
                room = 1e-4 * size + 1e-5 * (high - low)
                if not high - low > 1e-4 * max(size, 1e-300) or not low - room <= float(ours[i]) <= high + room:
                    return None
                slopes.append((low + 0.0, high + 0.0))
        except Exception:  # a step may leave the region in which the function can be evaluated
            return None
        i, (low, high) = differing[0], slopes[0]
        return (
            f"differs from autograd at {len(differing):,} of its entries, and each lies on a kink, where any slope "
            f"between the one-sided ones will do: at {self._place(name, i)} they are {low:.4g} and {high:.4g}, the "
            f"gradient has {float(ours[i]):.4g}, autograd {float(right[i]):.4g}. Move the inputs off the kink to judge "
            "the rest"
        )

    def _contradictions(self) -> list[str]:
        """If central differences and autograd contradict each other, one of them is wrong whatever the gradient is."""
        texts = {
            "central": "central differences agree with the gradient, autograd does not: is something detached?",
            "autograd": "autograd agrees with the gradient, central differences do not: does the function go through "
            "the backward that is checked? Pass a reference=",
        }
        doubtful = [name for name, e in self.expected.items() if e.reference == "central" and self.references.gradients]
        agree = [c for c in self.report.comparisons if c.ok and c.gradient in doubtful]
        names = {reference: ", ".join(c.gradient for c in agree if c.reference == reference) for reference in texts}
        return [f"{names[reference]}: {text}" for reference, text in texts.items() if names[reference]]

    def _noisy(self) -> list[str]:
        """The gradients that agree only because rounding alone moves them far."""
        report, wrong = self.report, self.report.wrong
        far = [c for c in report.comparisons if c.relative_error > 100 * report.tolerance and c.gradient not in wrong]
        names = ", ".join(dict.fromkeys(c.gradient for c in far if c.reference in ("autograd", "float64")))
        return [f"{names}: rounding alone moves it as far as this; a check in float64 can tell more"] if names else []
