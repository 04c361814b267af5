"""Derivatives by central differences in float64, each with its uncertainty; kinks are recognised."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bp_torch.verify.inputs import Tensors, copies

EPS = torch.finfo(torch.float64).eps


class Derivative(NamedTuple):
    """A derivative by central differences, how far off it may be, its step, and whether the step crosses a kink."""

    value: float
    uncertainty: float
    step: float
    kinked: bool


def central_difference(function: Callable[[float], float], middle: float, x: float, negligible: float) -> Derivative:
    """dC/dx of one coordinate from ±h and ±h/2, error O(h⁴). ``function(step)`` is C at x + step, ``middle`` C at x.

    With D(h) = (C(x+h) − C(x−h)) / 2h and S(h) = C(x+h) − 2C(x) + C(x−h), smooth functions have D(h) − D(h/2) and
    S(h) − 4S(h/2) of higher order in h. Where the derivative jumps by Δ between x − h and x + h, |D(h) − D(h/2)| +
    |S(h) − 4S(h/2)| / 2h is at least the error that the jump makes (work it out for a kink at x + d: D(h) is off by
    Δ(h − d)/2h). The step starts at ε^(1/4) and shrinks until this uncertainty is ``negligible``: that of a smooth
    function falls as h², that of a kink stays, and noise in C grows as 1/h. The smallest step that a kink is sought
    with is 8e-6 max(1, |x|).
    """
    size = 2.0 ** math.ceil(math.log2(max(1.0, abs(x))))
    best, before, kinked = Derivative(math.nan, math.inf, 0.0, False), math.inf, False
    for level in range(6):
        h = size * EPS**0.25 / 4**level
        up, down, half_up, half_down = function(h), function(-h), function(h / 2), function(-h / 2)
        wide, narrow = (up - down) / (2 * h), (half_up - half_down) / h
        bend = (up - 2 * middle + down) - 4 * (half_up - 2 * middle + half_down)
        largest = max(abs(middle), abs(up), abs(down))
        if max(abs(up - middle), abs(down - middle)) <= 16 * EPS:  # the change may be lost in a sum with numbers near 1
            largest = max(largest, 1.0)
        rounding = 16 * EPS * largest / h
        uncertainty = abs(wide - narrow) + abs(bend) / (2 * h)
        if uncertainty + rounding < best.uncertainty:
            best = Derivative((4 * narrow - wide) / 3, uncertainty + rounding, h, False)
        if uncertainty <= negligible + rounding:
            return best
        kinked = before / 8 < uncertainty <= 2 * before
        if level >= 2 and uncertainty > before / 8:
            break
        before = uncertainty if math.isfinite(uncertainty) else math.inf
    return best._replace(kinked=kinked)


def central_differences(
    function: Callable[[Tensors], Tensor],
    gradient: Callable[[Tensors], Tensor],
    here: Tensor,
    inputs: Tensors,
    name: str,
    indices: list[int],
    negligible: float,
) -> list[Derivative]:
    """The derivatives of ``function`` by the entries ``indices`` of the input ``name``; some may be ``kinked``.

    ``gradient(inputs)`` is autograd's by the same input, (n,), and ``here`` its value. They only help to find kinks.
    """
    inputs = inputs | {name: inputs[name].clone(memory_format=torch.contiguous_format)}
    entries, found = inputs[name].view(-1), list[Derivative]()
    with torch.inference_mode(False), torch.enable_grad():
        middle = float(function(inputs))
        for i in indices:
            x = entries[i].item()

            def at(step: float, i: int = i, x: float = x) -> float:
                entries[i] = x + step
                return float(function(inputs))

            derivative = central_difference(at, middle, x, negligible)
            entries[i] = x
            off = abs(derivative.value - float(here[i]))
            if not math.isfinite(derivative.uncertainty):
                derivative = derivative._replace(kinked=True)
            elif not derivative.kinked and off > 10 * negligible + derivative.uncertainty:
                steps = [factor * derivative.step for factor in (1, 0.5, -0.5, -1)]
                kinked = any(_jump(gradient, here, inputs, name, i, step) > off / 4 for step in steps)
                derivative = derivative._replace(kinked=kinked)
            found.append(derivative)
    return found


def _jump(
    gradient: Callable[[Tensors], Tensor], here: Tensor, inputs: Tensors, name: str, i: int, step: float
) -> float:
    """By how much autograd's own derivative by entry ``i`` changes within a step.

    The effects of several kinks within one step can cancel in the values, but not in the derivative.
    """
    moved = copies(inputs)
    moved[name].view(-1)[i] += step
    return abs(float(gradient(moved)[i] - here[i]))
