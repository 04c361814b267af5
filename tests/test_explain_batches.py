"""The mini-batches are those that training uses, and their gradients average to the true one."""

from dataclasses import replace

import pytest
import torch

from bp_torch.data import batch, permutation
from bp_torch.explain import batches
from bp_torch.explain.options import BatchesOptions
from bp_torch.explain.subject import Subject, UsageError, full_gradient
from tests.conftest import Reference


@pytest.mark.parametrize("batch_size", [100, 300])  # 300 leaves a smaller batch at the end
def test_average_over_all_batches_is_the_true_gradient(subject: Subject, batch_size: int) -> None:
    result = batches.Batches(subject, BatchesOptions(batch_size=batch_size))
    assert result.many == -(-2000 // batch_size) and list(result.angles) == ["untrained", "trained"]
    torch.testing.assert_close(result.average, result.whole, rtol=0, atol=1e-15)
    torch.testing.assert_close(
        result.whole, -full_gradient(subject.before_and_after["untrained"], subject.training, "quadratic")
    )


def test_wish_of_a_batch_is_the_negative_gradient_that_autograd_has(subject: Subject) -> None:
    result = batches.Batches(subject, BatchesOptions(batch_size=50, shown=2, epoch=3))
    second = permutation(2000, subject.config.seed, 3)[50:100]
    x, y = batch(subject.training, second, torch.float64)
    torch.testing.assert_close(result.images[1], x)
    expected = -Reference(subject.before_and_after["untrained"], x, y, "quadratic").gradient
    torch.testing.assert_close(result.wishes[1], expected, rtol=1e-10, atol=1e-15)


def test_batch_of_all_examples_points_where_the_true_gradient_does(subject: Subject) -> None:
    result = batches.Batches(subject, BatchesOptions(batch_size=2000))
    assert result.many == 1 and max(found[0] for found in result.angles.values()) < 1e-5
    with pytest.raises(UsageError, match="--batch-size: wanted 1 to 2,000, got 2001"):
        batches.Batches(subject, BatchesOptions(batch_size=2001))


def test_fewer_examples_than_a_batch_has_are_one_batch(subject: Subject) -> None:
    few = replace(subject, training=subject.training.map(lambda tensor: tensor[:5]))
    result = batches.Batches(few, BatchesOptions())
    assert (result.many, result.batch_size) == (1, 5)
