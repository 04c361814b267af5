"""One gradient compared with one reference: the record that a report prints, and how it is computed.

Everything is compared flat (n,), in float64, on the CPU; a complex number is two entries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

REFERENCES = ("autograd", "float64", "central")
"""Autograd in the inputs' dtype, autograd in float64, central differences in float64.

Two more stand in a report where they say something: "directions", central differences along random directions, where a
tensor has more entries than there was time for; and "widened", the gradient under test run in float64, against autograd
in float64, if that is wrong.
"""

CENTRAL_ACCURACY = math.sqrt(torch.finfo(torch.float64).eps)
"""The relative error of central differences at their best. No gradient has to agree with them more closely."""

HEADER = ["", "gradient", "reference", "error", "allowed", "largest diff", "at", "cosine"]


class Estimate(NamedTuple):
    """One gradient as one reference gives it.

    Attributes:
        values: (k,), of its ``entries`` (k,); entries None: of all. Or along ``directions`` (k, n).
        size: the norm that an error is relative to, and ``tolerance`` the relative error that is allowed.
        uncertainty: how far off the estimate itself may be, as a norm.
        skipped: how many entries the reference cannot give.
    """

    reference: str
    values: Tensor
    entries: Tensor | None
    size: float
    tolerance: float
    uncertainty: float = 0.0
    skipped: int = 0
    directions: Tensor | None = None

    def select(self, whole: Tensor) -> Tensor:
        """The entries of ``whole`` (n,) that the estimate holds, (k,), or its products with the directions."""
        if self.directions is not None:
            return self.directions @ whole
        return whole if self.entries is None else whole[self.entries]


@dataclass(frozen=True)
class Comparison:
    """One gradient compared with one reference.

    Attributes:
        relative_error: ‖gradient − reference‖ / ‖reference‖, over the entries that were compared.
        allowed: the largest relative error with which the gradient counts as right.
        noise_allowance: the part of it that rounding alone causes; 0 if the error is small enough without it.
        error_ratio: error / allowed; above 1 the gradient is wrong.
        identical: equal bit for bit in every entry.
        largest: the largest absolute difference of one entry, and ``where`` that entry is.
        cosine: of the angle between the two, 1 if they point the same way.
        compared, skipped: how many entries; skipped are kinks, and entries where the reference is not finite.
        decides: False if better references outvote this one.
    """

    gradient: str
    shape: tuple[int, ...]
    reference: str
    relative_error: float
    allowed: float
    noise_allowance: float
    error_ratio: float
    identical: bool
    largest: float
    where: tuple[int, ...]
    cosine: float
    compared: int
    skipped: int
    decides: bool = True

    @property
    def ok(self) -> bool:
        """Whether the gradient agrees with the reference."""
        return self.error_ratio <= 1

    @property
    def within_noise(self) -> bool:
        """Whether the gradient agrees only because rounding alone moves autograd's own as far."""
        return self.ok and self.noise_allowance > 0

    def row(self) -> list[str]:
        """The cells below ``HEADER``."""
        if not self.compared:
            return ["-", self.gradient, self.reference, "skipped", *"----"]
        mark = "ok" if self.ok else "WRONG" if self.decides else "far"
        error = "identical" if self.identical else f"{self.relative_error:.1e}"
        numbers = [error, f"{self.allowed:.1e}", f"{self.largest:.1e}", str(list(self.where)), f"{self.cosine:.6f}"]
        return [mark, self.gradient, self.reference, *numbers]


def compare(
    name: str, shape: tuple[int, ...], ours: Tensor, estimate: Estimate, noise_allowance: Callable[[], float]
) -> Comparison:
    """``ours`` (n,), the gradient called ``name``, against an estimate; ``noise_allowance`` is called if needed."""
    if not len(estimate.values):
        return Comparison(name, shape, estimate.reference, 0, 0, 0, 0, False, 0, (), 1, 0, estimate.skipped)
    ours, theirs, size = estimate.select(ours), estimate.values, estimate.size
    difference = (ours - theirs).abs()
    at = int(difference.nan_to_num(math.inf).argmax())
    entry = at if estimate.entries is None else int(estimate.entries[at])
    where = () if estimate.directions is not None else np.unravel_index(entry, shape)
    error, allowed = norm(difference), estimate.tolerance * size + estimate.uncertainty
    finite = math.isfinite(error)
    noise = noise_allowance() if finite and error > allowed else 0.0
    allowed += noise
    return Comparison(
        gradient=name,
        shape=shape,
        reference=estimate.reference,
        relative_error=_ratio(error, size) if finite else math.inf,
        allowed=_ratio(allowed, size),
        noise_allowance=_ratio(noise, size),
        error_ratio=error / allowed if finite else math.inf,
        identical=torch.equal(ours.view(torch.int64), theirs.view(torch.int64)),  # unlike ==, this tells −0 from 0
        largest=float(difference[at]) if finite else math.inf,
        where=tuple(int(i) for i in where),
        cosine=cosine(ours, theirs) if finite else 0.0,
        compared=len(theirs),
        skipped=estimate.skipped,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part else 0.0


def norm(t: Tensor) -> float:
    """‖t‖, without overflow or underflow of the squares."""
    plain = float(torch.linalg.vector_norm(t))
    if 1e-100 < plain < 1e100 or not t.numel():
        return plain
    largest = float(t.abs().max())
    return largest * float(torch.linalg.vector_norm(t / largest)) if 0 < largest < math.inf else largest


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors, 1 if both are zero."""
    sizes = norm(a), norm(b)
    return float((a / sizes[0]) @ (b / sizes[1])) if all(sizes) else float(sizes == (0.0, 0.0))
