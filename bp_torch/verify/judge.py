"""From the comparisons to a verdict: which of them decide, and what rounding, kinks and a coarse dtype excuse."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bp_torch.verify.calls import Candidate
from bp_torch.verify.diagnose import Hypotheses, WrongGradient, autograds_own_nan, diagnose, furthest
from bp_torch.verify.differences import slopes_on_kinks
from bp_torch.verify.problem import flat, norm, not_finite
from bp_torch.verify.references import ALLOWED_IN_FLOAT64, COARSE, EPS32, tolerance_of
from bp_torch.verify.report import Allowance, Comparison, Estimate, Kind, Report

SLICE_FACTOR = 8.0  # times what rounding explains, for one slice of many
FAR = 4.0  # times what is allowed: in 16 bits, an error beyond it is no noise


class Trial(NamedTuple):
    """A gradient to judge, or a mutant of it."""

    ours: Tensor  # (n,)
    in_float64: Tensor | None  # (n,), computed from float64 inputs

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Trial":
        """The same with a change of both."""
        return Trial(change(self.ours), None if self.in_float64 is None else change(self.in_float64))


class Judge:
    """Compares every gradient with every reference, and finds what to say of it."""

    def __init__(
        self, candidate: Candidate, coordinates: int, seconds: float, batch_size: int, hypotheses: Hypotheses | None
    ) -> None:
        """Compare."""
        references = candidate.references
        self.candidate, self.references = candidate, references
        self.batch_size, self.hypotheses = batch_size, hypotheses
        self.dtype = str(references.dtype).removeprefix("torch.")
        self.seem_right: dict[str, Trial] = {}  # the gradients of which nothing wrong is found: they are to be proved
        self.inexact = set[str]()  # the gradients of which autograd's own is less exact than central differences
        self.report = Report([], candidate.findings, tolerance=references.tolerance, dtype=self.dtype)
        self.estimates = {name: self._judge(name, coordinates, seconds) for name in candidate.gradients}

    def say(self, kind: Kind, name: str, words: str) -> None:
        """Add a finding on a gradient."""
        self.candidate.say(kind, [name], words)

    def explained(self) -> Report:
        """The report, when what seems right is proved, with what is left to say."""
        candidate, references = self.candidate, self.references
        for name in references.inputs:
            if name not in candidate.gradients:
                self.say("unjudged", name, "no gradient of it is given")
            elif name in references.unused and name not in self.report.wrong:
                self.say("unjudged", name, "the function does not use it")
        wrong = self.report.wrong
        expected = {name: references.expected(name, found) for name, found in self.estimates.items() if wrong}
        self.expected = {name: estimate for name, estimate in expected.items() if estimate}
        for name in (name for name in candidate.gradients if name in wrong):
            self._explain(name)
        self.report.notes.extend([*references.notes, *candidate.notes, *self._noisy()])
        return self.report

    # ---- one gradient ----

    def _judge(self, name: str, coordinates: int, seconds: float) -> dict[str, Estimate]:
        references, report, given = self.references, self.report, self.candidate.gradients[name]
        ours = flat(given)
        if not given.numel() and given.shape == references.inputs[name].shape:
            self.say("unjudged", name, "it is empty, and has the right shape")
            return {}
        comparable = self._comparable(name)
        found = references.estimates(name, ours, coordinates if comparable else 0, seconds)
        if not comparable:
            return found
        if not any(len(estimate.values) for estimate in found.values()):
            self.say("unjudged", name, "no reference gives any of its entries")
            report.notes.append(f"{name} is not checked: no reference gives any of its entries")
        if (best := self.best(name)) is not None and not best.isfinite().all():
            report.notes.append(autograds_own_nan(name, best))
        trial = Trial(ours, self._in_float64(name))
        compared = self._comparisons(name, trial, found)
        if references.contradiction(name, found):
            found, compared = self._settle(name, trial, found, compared)
        report.comparisons.extend(compared)
        if not references.gradients and "central" in found:
            self._judge_by_differences(name, ours, found["central"])
        if name in report.setup or self._excused_by_kinks(name, trial, found, compared):
            return found
        self._judge_precision(name, trial, found, compared)
        if name not in report.wrong and any(len(estimate.values) for estimate in found.values()):
            self.seem_right[name] = trial
        return found

    def _comparable(self, name: str) -> bool:
        """Whether the gradient has the shape of its input. Notes that, another dtype, and what is not finite."""
        given, t = self.candidate.gradients[name], self.references.inputs[name]
        if given.dtype != t.dtype:
            dtypes = [str(x.dtype).removeprefix("torch.") for x in (given, t)]
            self.say("problem", name, f"has the dtype {dtypes[0]}, expected {dtypes[1]}, that of the input")
        if given.shape != t.shape:
            self.say("problem", name, f"has the shape {list(given.shape)}, expected {list(t.shape)}")
            return False
        if given.is_complex() and not t.is_complex():
            return False
        if not given.isfinite().all():
            self.say("problem", name, f"holds {not_finite(given)}")
        return True

    def _in_float64(self, name: str) -> Tensor | None:
        """The gradient from float64 inputs, if that is in a wider dtype and there is a reference for it."""
        eps, right = self.candidate.eps_in_float64, self.references.gradients.get("float64", {}).get(name)
        if eps >= self.references.eps or (right is not None and not right.isfinite().all()):
            return None
        return self.candidate.in_float64.get(name)

    def widened(self, name: str, found: dict[str, Estimate]) -> Iterator[Estimate]:
        """The estimates that a gradient from float64 inputs is compared with: autograd's, or else differences."""
        eps = max(self.candidate.eps_in_float64, self.references.eps64)
        allowed = ALLOWED_IN_FLOAT64 if eps < EPS32 else tolerance_of(torch.float32)
        right = self.references.gradients.get("float64", {}).get(name)
        if right is not None:
            yield Estimate("widened", right, None, norm(right), allowed, self.references.underflow)
        else:
            for kind, wider in (("central", 1), ("directions", 4)):
                if kind in found and len(found[kind].values):
                    tolerance = wider * max(allowed, math.sqrt(self.references.eps64))
                    yield found[kind]._replace(reference="widened", tolerance=tolerance)

    def allowance(self, name: str, estimate: Estimate) -> Allowance:
        """How far rounding may move the values of an estimate, in the dtype of the gradient that it is for."""
        if estimate.reference != "widened":
            return self.references.allowance(name, estimate)
        eps = max(self.candidate.eps_in_float64, self.references.eps64)
        return self.references.allowance(name, estimate, torch.float64 if eps < EPS32 else torch.float32)

    def _comparisons(self, name: str, trial: Trial, found: dict[str, Estimate]) -> list[Comparison]:
        """With every reference. The run in float64 is shown where it is wrong."""
        references = self.references
        compared = self._outvoted([references.compare(name, trial.ours, estimate) for estimate in found.values()])
        if trial.in_float64 is not None:
            for estimate in self.widened(name, found):
                one = references.compare(name, trial.in_float64, estimate, partial(self.allowance, name, estimate))
                compared += [one] if not one.ok else []
        return compared

    def _outvoted(self, compared: list[Comparison]) -> list[Comparison]:
        """Nearer to float64 than autograd's own is right: float64 and central differences outvote the same dtype.

        So is what float32 rounds as autograd's own, if that is little more than is allowed.
        """
        found = {c.reference: c for c in compared}
        if self.references.dtype == torch.float64 or "float64" not in found or "autograd" not in found:
            return compared
        others = [c for c in compared if c.reference != "autograd"]
        if all(c.ok for c in others):
            return [c if c.reference != "autograd" else replace(c, decides=c.ok) for c in compared]
        if found["autograd"].ok and self.references.eps < COARSE and all(c.error_ratio <= FAR for c in others):
            return [replace(c, decides=c.ok) for c in compared]
        return compared

    def _settle(
        self, name: str, trial: Trial, found: dict[str, Estimate], compared: list[Comparison]
    ) -> tuple[dict[str, Estimate], list[Comparison]]:
        """Autograd and central differences contradict each other: that is the finding, unless the gradient is neither.

        A lookup with padding_idx says itself what is meant: its row gets no gradient.
        """
        if self.references.has_padding():
            self.report.notes.append(f"{name}: the row at padding_idx gets no gradient, which differences do not know")
            found = {kind: estimate for kind, estimate in found.items() if kind not in ("central", "directions")}
            return found, self._comparisons(name, trial, found)
        ok = {c.reference: c.ok for c in compared}
        by_autograd = ok.get("float64", ok.get("autograd"))
        by_differences = ok["central"] and ok.get("directions", True)
        best, known = self.best(name), [found[kind] for kind in ("central", "directions") if kind in found]
        if best is not None and all(norm(e.select(best) - e.values) <= ALLOWED_IN_FLOAT64 * e.size for e in known):
            self.report.notes.append(f"autograd's gradient of {name} has seven digits only: those of torch's constants")
            exact = ("central", "directions") if by_differences else ("autograd", "float64", "widened")
            self.inexact |= {name} if by_differences else set()
            return found, [replace(c, decides=c.ok or c.reference in exact) for c in compared]
        if by_autograd or by_differences:
            sides = ["autograd agrees", "central differences do not"]
            sides = sides if by_autograd else ["central differences agree", "autograd does not"]
            text = (
                f"{sides[0]} with it, {sides[1]}: autograd does not give the derivative of this function. Something in "
                "it is detached, rounded or straight-through, or autograd itself is wrong here, or goes through the "
                'backward that is checked. Pass a reference=, or say which is meant: trust="autograd" or "differences"'
            )
            self.say("setup", name, text)
        return found, compared

    def _judge_by_differences(self, name: str, ours: Tensor, central: Estimate) -> None:
        """Judge by differences alone the entries on kinks, and a function that moves in steps."""
        references, kinked = self.references, central.kinked
        if references.inputs[name].is_complex() or not ours.isfinite().all():
            return
        differences, tolerance = references.differences(name), references.tolerance_for(name)
        ours = self.candidate.in_float64.get(name, ours)
        far = torch.randn(len(ours), generator=torch.Generator().manual_seed(references.seed), dtype=torch.float64)
        with suppress(Exception):  # a step may leave the region in which the function can be evaluated
            moves = abs(differences.moved(far, 1.0) - differences.middle) > 1e-9 * max(1.0, abs(differences.middle))
            if kinked is not None and len(kinked):
                if slopes_on_kinks(differences, ours, kinked, tolerance, references.seed, only=False) is None:
                    text = f"is not between the one-sided slopes at some of {len(kinked):,} entries that have no other"
                    self.say("problem", name, text)
            elif ours.any() and not central.values.any() and moves:
                text = "the function moves in steps: its derivative is zero wherever there is one, the gradient is not"
                more = "If that is meant, reference= gives the function whose derivative it is"
                self.say("setup", name, f"{text}. {more}")

    # ---- kinks ----

    def _excused_by_kinks(
        self, name: str, trial: Trial, found: dict[str, Estimate], compared: list[Comparison]
    ) -> bool:
        """Whether every entry that differs lies on a kink, and all others are right by themselves: then it says so."""
        references, right = self.references, self.best(name)
        if right is None or references.inputs64 is None or name in self.report.problems:
            return False
        if all(c.ok for c in compared if c.decides) and not self.wrong_part(name, trial, found):
            return False
        if references.inputs[name].is_complex() or not trial.ours.isfinite().all() or not right.isfinite().all():
            return False
        in_float64 = any(c.reference == "widened" for c in compared) and trial.in_float64 is not None
        ours = trial.in_float64 if in_float64 and trial.in_float64 is not None else trial.ours
        tolerance = next(self.widened(name, found)).tolerance if in_float64 else references.tolerance_for(name)
        off, estimate = (ours - right).abs(), Estimate("float64", right, None, 0.0, 0.0)
        plain = tolerance * right.abs() + references.underflow
        noise = references.allowance(name, estimate, torch.float64 if in_float64 else None)[0]
        suspects = (off > plain + noise).nonzero().flatten()
        suspects = suspects[off[suspects].argsort(descending=True)]
        try:
            slopes = len(suspects) and slopes_on_kinks(
                references.differences(name), ours, suspects, tolerance, references.seed
            )
        except Exception:  # a step may leave the region in which the function can be evaluated
            return False
        if not slopes:
            return False
        rest = trial.changed(lambda t: t.index_copy(0, suspects, right[suspects]))
        if not all(c.ok for c in self._comparisons(name, rest, found) if c.decides):
            return False
        if self.wrong_part(name, rest, found):
            return False
        (low, high), i = slopes[0], int(suspects[0])
        tried = f", of which {len(slopes):,} were tried" if len(slopes) < len(suspects) else ""
        text = (
            f"differs from autograd at {len(suspects):,} of its entries{tried}, and each lies on a kink, where any "
            f"slope between the one-sided ones will do: at {self._place(name, i)} they are {low:.4g} and {high:.4g}, "
            f"the gradient has {float(ours[i]):.4g}, autograd {float(right[i]):.4g}. Every other entry is right"
        )
        self.say("kink", name, text)
        return True

    def best(self, name: str) -> Tensor | None:
        """(n,): autograd's in float64, or in its own dtype; None without a reference."""
        gradients = self.references.gradients
        return (gradients.get("float64") or gradients.get("autograd") or {}).get(name)

    # ---- parts of a gradient, and sixteen bits ----

    def wrong_part(self, name: str, trial: Trial, found: dict[str, Estimate]) -> tuple[str, bool] | None:
        """A slice or an entry that is wrong by itself and may be too small to show in the whole, in words, and whether
        rounding might still be the cause. Looked for in float64 if it runs there, and in 16 bits in any case."""
        references, right = self.references, self.best(name)
        if right is None and trial.in_float64 is not None and references.eps_of(name) > COARSE:
            return self._wrong_entry(name, trial.ours, trial.in_float64)  # by its own run in float64
        if right is None or name in self.inexact or not (right.isfinite().all() and trial.ours.isfinite().all()):
            return None
        if trial.in_float64 is not None:
            allowed = next(self.widened(name, found)).tolerance
            if text := self._wrong_slice(name, trial.in_float64, right, allowed, torch.float64):
                return text, False
        elif text := self._wrong_slice(name, trial.ours, right, references.tolerance_for(name), None):
            return text, False
        return self._wrong_entry(name, trial.ours, right) if references.eps_of(name) > COARSE else None

    def _wrong_slice(
        self, name: str, ours: Tensor, right: Tensor, tolerance: float, dtype: torch.dtype | None
    ) -> str | None:
        references, shape = self.references, self.references.shape(name)
        unit = float(right.abs().max()) or 1.0  # so that no square overflows
        squares, sizes = ((ours - right) / unit).square().reshape(shape), (right / unit).square().reshape(shape)
        for d in (d for d in range(len(shape)) if shape[d] >= 2 and len(shape) > 1):
            others = [k for k in range(len(shape)) if k != d]
            error, size = squares.sum(others).sqrt(), sizes.sum(others).sqrt()
            limit = 2 * tolerance * size + references.underflow / unit * math.sqrt(right.numel() / shape[d])
            if not (error > limit).any():
                continue
            if not references.strict:
                noise = (references.noise(name, dtype) / unit).square().reshape(shape)
                limit = limit + SLICE_FACTOR * (noise.sum(others) + noise.sum() / shape[d]).sqrt()
            ratio = (error / limit).nan_to_num(0)
            at = int(ratio.argmax())
            if ratio[at] > 1:
                share = (
                    f"{float(error[at] / size[at]):.2g} of its size" if size[at] else f"{unit * float(error[at]):.2g}"
                )
                return f"is wrong at index {at} of dimension {d}: off by {share} there, which is lost in the whole"
        return None

    def _wrong_entry(self, name: str, ours: Tensor, right: Tensor) -> tuple[str, bool] | None:
        """In 16 bits: an entry, or all of them in one direction, further off than the dtype's rounding explains."""
        references = self.references
        off, estimate = (ours - right).abs(), Estimate("float64", right, None, 0.0, 0.0)
        plain = references.tolerance_for(name) * right.abs() + references.underflow
        if (off > plain).any():
            limit = plain + references.allowance(name, estimate)[0]
            count, worst = int((off > limit).sum()), int((off / limit).argmax())
            if count:
                place = f"{count:,} of {len(off):,} entries are further off than rounding explains, the worst at "
                place += f"{self._place(name, worst)}: {ours[worst]:.4g}, where {right[worst]:.4g} is right"
                return place, bool(off[worst] <= FAR * limit[worst])
        size = float(right @ right)
        share = float((ours - right) @ right) / size if size else 0.0
        if abs(share) > references.eps_of(name):
            moved = references.errors(name) @ right / size if not references.strict else torch.zeros(1)
            if abs(share) > references.eps_of(name) + FAR * float(moved.square().mean().sqrt()):
                return f"is {1 + share:.4g} times what it should be, taken together", True
        return None

    def _judge_precision(self, name: str, trial: Trial, found: dict[str, Estimate], compared: list[Comparison]) -> None:
        """Tell what a coarse dtype explains from what is wrong."""
        references, right, ours = self.references, self.best(name), trial.ours
        sure = name in self.report.problems
        ok = {c.reference: c.ok for c in compared}
        coarse = references.dtype != torch.float64 and not references.strict
        if coarse and right is not None and "float64" in ok:
            error, autograds = norm(ours - right), norm(references.gradients["autograd"][name] - right)
            if references.eps > COARSE and autograds and math.isfinite(error):
                self.report.multiples[name] = error / autograds
            worst = max((c.error_ratio for c in compared if c.decides), default=0.0)
            if worst > 1 and not sure and "widened" not in ok:
                self._noise(name, trial, ok, worst)
        by_autograd = [c for c in compared if c.decides and c.reference in ("autograd", "float64", "widened")]
        if all(c.ok for c in by_autograd) and not sure and (part := self.wrong_part(name, trial, found)):
            text, perhaps_noise = part
            if not perhaps_noise:
                return self.say("problem", name, text)
            if trial.in_float64 is not None:
                text += f". Run in float64 it is right: in {self.dtype} its products or sums may need a wider dtype"
            else:
                text += f": too much to call it right in {self.dtype}, too little to call it wrong. float64 would tell"
            self.say("noise", name, text)

    def _noise(self, name: str, trial: Trial, ok: dict[str, bool], worst: float) -> None:
        """Say what a gradient that is off in its own dtype may yet be: right in a wider one, or as far as autograd."""
        references = self.references
        if ok.get("autograd") and not ok["float64"]:
            text = (
                f"is as far from float64 as autograd's own in {self.dtype}: a sum or product in it needs a wider dtype"
            )
        elif trial.in_float64 is not None and worst <= FAR:
            text = f"is right when run in float64, and further off in {self.dtype} than rounding usually makes it: "
            text += "its products or sums may need a wider dtype"
        elif references.eps_of(name) < references.eps and self._fits(name, trial.ours):
            own = str(references.inputs[name].dtype).removeprefix("torch.")
            text = (
                f"is as exact as {self.dtype}, not as its own {own}: float64 would tell whether it is more than rounded"
            )
        else:
            return
        self.say("noise", name, text)

    def _fits(self, name: str, ours: Tensor) -> bool:
        """Whether every entry is right at the tolerance of the coarsest input."""
        right = self.best(name)
        assert right is not None
        return bool(((ours - right).abs() <= self.references.tolerance * right.abs()).all())

    # ---- what is wrong ----

    def _explain(self, name: str) -> None:
        """Look for a diagnosis."""
        report, known = self.report, name in self.expected
        if name in report.noise or name in report.setup or name in report.kinks:
            return
        text = self.candidate.diagnoses.get(name)
        if not text and known:
            in_float64 = self._is_wrong_in_float64(name)
            wrong = WrongGradient(name, self.candidate, self.expected, in_float64, self.batch_size)
            text = diagnose(wrong, self.hypotheses) or self._low_precision(name)
        if text:
            self.say("diagnosis", name, text)
        elif (
            known
            and all("dtype" in problem for problem in report.problems.get(name, []))
            and any(not c.ok for c in report.comparisons if c.gradient == name)
        ):
            self.say("where", name, self._where(name))

    def _is_wrong_in_float64(self, name: str) -> bool:
        """By the run on float64 inputs, of which autograd's gradient is known."""
        found = any(c.reference == "widened" and c.gradient == name for c in self.report.comparisons)
        return found and "float64" in self.references.gradients

    def _low_precision(self, name: str) -> str | None:
        c = next((c for c in self.report.comparisons if c.gradient == name and not c.ok), None)
        if c is None or not c.relative_error < tolerance_of(torch.float32):
            return None
        right = f"is right to {c.relative_error:.0e}"
        if self.candidate.eps_in_float64 >= EPS32 and self.references.dtype == torch.float64:
            return f"{right} only: something in it computes in a coarser dtype than float64"
        if c.relative_error < EPS32:
            return f"{right}, as in float32, and not to float64: a constant of few digits?"
        return None

    def _where(self, name: str) -> str:
        """How many entries are off, and the one that is furthest off."""
        estimate, tolerance = self.expected[name], self.references.tolerance
        given = flat(self.candidate.gradients[name])
        if self._is_wrong_in_float64(name):
            estimate = estimate._replace(values=self.references.gradients["float64"][name], entries=None)
            tolerance, given = ALLOWED_IN_FLOAT64, self.candidate.in_float64[name]
        if not len(estimate.values):
            return "differs, and no pattern that is known explains it"
        limit = tolerance * float(estimate.values.abs().max()) + self.references.underflow
        entries = torch.arange(len(given)) if estimate.entries is None else estimate.entries
        if len(entries) < len(given) and not ((given[entries] - estimate.values).abs() > limit).any():
            return "differs along random directions: in entries that were not compared by themselves"
        return furthest(given[entries], estimate.values, limit, lambda i: self._place(name, int(entries[i])))

    def _place(self, name: str, i: int) -> list[int]:
        return [int(k) for k in torch.unravel_index(torch.tensor(i), self.references.shape(name))]

    def _noisy(self) -> list[str]:
        """The gradients that agree only because rounding alone moves them far."""
        report, wrong = self.report, self.report.wrong
        far = [c for c in report.comparisons if c.relative_error > 100 * report.tolerance and c.gradient not in wrong]
        names = ", ".join(dict.fromkeys(c.gradient for c in far if c.reference in ("autograd", "float64")))
        more = "; a check in float64 can tell more" if self.references.dtype != torch.float64 else ""
        return [f"{names}: rounding alone moves it as far as this{more}"] if names else []
