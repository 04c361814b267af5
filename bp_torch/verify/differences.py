"""One derivative by central differences in float64, with its doubt, and kinks told from smooth functions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

EPS = torch.finfo(torch.float64).eps


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
