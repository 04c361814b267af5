import numpy as np
import pytest
import torch

from bp_torch.explain import style
from bp_torch.training.images import (
    INK,
    NEGATIVE,
    POSITIVE,
    RIGHT,
    WIDTH,
    captioned,
    confusion_matrix,
    confusion_picture,
    diverging,
    most_wrong,
    weight_maps,
)


def test_confusion_matrix_counts_by_digit_and_answer() -> None:
    matrix = confusion_matrix(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 2, 2, 0]), 3)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 2], [1, 0, 0]]


def test_most_wrong_examples_are_misclassified_and_worst_first() -> None:
    outputs = torch.tensor([[0.9, 0.1], [0.6, 0.5], [1.0, 0.0], [0.2, 0.8]])
    assert most_wrong(torch.tensor([0, 1, 1, 1]), outputs).tolist() == [2, 1]


def test_weight_maps_are_white_at_zero_blue_above_and_orange_below() -> None:
    zero, above, below = diverging(torch.tensor([[[0.0, 2.0], [-2.0, 1.0]]]))[0].reshape(-1, 3)[:3].astype(int)
    assert zero.tolist() == [255, 255, 255]
    assert (above == POSITIVE).all() and (below == NEGATIVE).all()
    assert weight_maps(torch.zeros(5, 784)).dtype == np.uint8


def test_colours_mean_what_they_mean_in_explain() -> None:
    for ours, theirs in ((POSITIVE, style.RAISE), (NEGATIVE, style.LOWER), (RIGHT, style.LINES[1])):
        assert "#" + bytes(ours.tolist()).hex() == theirs
    assert "#" + bytes(INK).hex() == style.INK


@pytest.mark.parametrize("neurons", [1, 10, 16, 30, 36])
def test_pictures_are_no_wider_than_a_card(neurons: int) -> None:
    pictures = (
        weight_maps(torch.randn(neurons, 784)),
        confusion_picture(torch.eye(10).long()),
        captioned(torch.zeros(neurons, 784, dtype=torch.uint8), ["a"] * neurons),
    )
    for picture in pictures:
        assert 0.8 * WIDTH <= picture.shape[1] <= WIDTH


def test_confusion_picture_shades_right_ones_green_and_wrong_ones_red() -> None:
    picture = confusion_picture(torch.tensor([[9, 1], [0, 10]]), cell=40, margin=40).astype(int)
    right, wrong, empty = picture[45, 45], picture[45, 85], picture[85, 45]
    assert right[1] > right[0] and wrong[0] > wrong[1] and empty.tolist() == [255, 255, 255]


def test_captioned_digits_stand_in_rows_of_six() -> None:
    one, seven = (captioned(torch.zeros(n, 784, dtype=torch.uint8), ["a 2, said 3"] * n) for n in (1, 7))
    assert seven.shape == (2 * one.shape[0], one.shape[1], 3)
