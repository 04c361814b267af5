"""The drawing of a network: which neurons it has, and that colours are signs."""

from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bp_torch.backprop import Forward, forward
from bp_torch.explain import drawing, style
from bp_torch.network import Network
from tests.explain_subject import KINDS, some_example, some_network


@pytest.fixture
def passed() -> Forward:
    return forward(some_network(KINDS[0]), some_example().x)


def drawn(passed: Forward, **options: Any) -> Axes:
    figure = Figure()
    drawing.draw_network(figure, passed=passed, **options)
    return figure.axes[0]


def test_most_active_neurons_are_drawn_and_those_that_are_needed() -> None:
    a = torch.arange(40.0)
    assert drawing.shown_neurons(a, []) == list(range(24, 40))
    assert drawing.shown_neurons(a, [3, 39]) == [3, *range(25, 40)]
    assert drawing.shown_neurons(-a[:5], []) == [0, 1, 2, 3, 4]


def test_edges_are_blue_where_positive_and_orange_where_negative(passed: Forward) -> None:
    axes = drawn(passed, layer=3)
    before, last = (each for each in axes.collections if isinstance(each, LineCollection))
    for collection, weights in ((before, passed.network.weights[1]), (last, passed.network.weights[2])):
        colours: Any = collection.get_edgecolor()
        assert [to_hex(colour) for colour in colours] == [
            style.RAISE if w >= 0 else style.LOWER for w in weights.flatten().tolist()
        ]
    widths = torch.tensor(last.get_linewidth())
    assert int(widths.argmax()) == int(passed.network.weights[2].abs().argmax())
    thin: Any = before.get_linewidth()
    assert set(thin) == {0.7}  # where we are not, all edges are thin


def test_only_the_edges_that_are_named_stand_out(passed: Forward) -> None:
    axes = drawn(passed, layer=3, edges=[(4, 2), (7, 0)])
    last = [each for each in axes.collections if isinstance(each, LineCollection)][-1]
    widths: Any = last.get_linewidth()
    assert [divmod(i, 5) for i, width in enumerate(widths) if width > 1] == [(4, 2), (7, 0)]


def test_wish_is_a_blue_triangle_up_or_an_orange_one_down_in_proportion(passed: Forward) -> None:
    wishes = torch.tensor([1.0, -2, 0.5, 0, 0, 0, 0, 0, 0, 0])
    axes = drawn(passed, wishes={3: wishes})
    triangles = [each for each in axes.collections if isinstance(each, PathCollection)][-10:]
    colours: list[Any] = [each.get_facecolor() for each in triangles[:3]]
    assert [to_hex(each[0]) for each in colours] == [style.RAISE, style.LOWER, style.RAISE]
    areas = [float(each.get_sizes()[0]) for each in triangles]
    assert areas[:4] == pytest.approx([areas[1] / 2, areas[1], areas[1] / 4, 0])


def test_number_of_neurons_that_are_drawn_is_below_the_lowest() -> None:
    figure = Figure(figsize=(4, 3), dpi=100)
    sizes = (784, 30, 10)
    drawing.draw_network(figure, passed=forward(Network(sizes), some_example().x.to(torch.float32)))
    (axes,) = (each for each in figure.axes if each.texts)
    figure.draw_without_rendering()
    (label,) = (each for each in axes.texts if each.get_text() == "16 of 30")
    lowest = axes.transData.transform((0, 1.0))[1]
    radius = 5.5 * figure.dpi / 72  # points
    assert label.get_window_extent().y1 < lowest - radius
