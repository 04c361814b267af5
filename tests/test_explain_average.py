"""The average of all per-example gradients is the gradient; the statistics match their definitions."""

from dataclasses import replace

import pytest
import torch

from bp_torch.explain import average
from bp_torch.explain.gradient import parameter_name
from bp_torch.explain.options import AverageOptions
from bp_torch.explain.subject import Subject, UsageError, full_gradient
from bp_torch.network import layer_views


def test_mean_of_per_example_gradients_is_the_gradient(subject: Subject) -> None:
    network, training = subject.exact, subject.training
    statistics = average.statistics(average.negative_gradients(network, training, "quadratic", 230))
    direct = -full_gradient(network, training, "quadratic", chunk=len(training.labels))
    assert (statistics.mean - direct).abs().max() < 1e-15


def test_statistics_match_their_definitions(subject: Subject) -> None:
    parts = list(average.negative_gradients(subject.exact, subject.training, "quadratic", 230))
    statistics, whole = average.statistics(parts), torch.cat(parts)
    mean, nonzero = whole.mean(0), whole != 0
    torch.testing.assert_close(statistics.deviation, whole.std(0, correction=0), rtol=1e-6, atol=1e-12)
    agree = (whole.sign() == mean.sign()) & nonzero
    expected = (agree.sum(0).double() / nonzero.sum(0)).nan_to_num()
    torch.testing.assert_close(statistics.agreement.nan_to_num(), expected)
    assert statistics.cancelled == pytest.approx(1 - (mean.norm() / whole.norm(dim=1).mean()).item(), rel=1e-9)


def test_mean_without_the_last_examples_is_not_the_gradient(subject: Subject) -> None:
    network, training = subject.exact, subject.training
    parts = list(average.negative_gradients(network, training, "quadratic", 100))
    direct = -full_gradient(network, training, "quadratic", chunk=len(training.labels))
    assert (average.statistics(parts[:-1]).mean - direct).abs().max() > 1e-10


def test_average_as_it_is_made_is_the_mean_of_so_many_wishes(subject: Subject) -> None:
    result = average.Average(subject, AverageOptions(first=1500))
    untrained = subject.before_and_after["untrained"]
    wishes = torch.cat(list(average.negative_gradients(untrained, subject.training, "quadratic", 500)))
    around = torch.cat([wishes[1500:], wishes[:1500]])
    assert list(result.made) == [1, 10, 100, 1000, 2000]
    for count, made in result.made.items():
        torch.testing.assert_close(made, around[:count].mean(0), rtol=0, atol=1e-15)
    cosine = torch.cosine_similarity(result.made[100], around[0], dim=0)
    share = cosine * result.made[100].norm() / around[0].norm()
    assert result.left(1) == pytest.approx(1) and result.left(100) == pytest.approx(share.item())


def test_finding_tells_how_much_cancels_in_both_networks(subject: Subject) -> None:
    result = average.Average(subject, AverageOptions())
    shares = []
    for network in subject.before_and_after.values():
        wishes = torch.cat(list(average.negative_gradients(network, subject.training, "quadratic", 500)))
        shares.append(f"{1 - (wishes.mean(0).norm() / wishes.norm(dim=1).mean()).item():.0%}")
    assert result.finding().startswith(f"At the start {shares[0]} of the wishes of 2,000 examples cancel")
    assert f"after training {shares[1]}, because" in result.finding() and shares[0] != shares[1]


def test_fewer_examples_than_columns_are_all_shown(subject: Subject) -> None:
    few = replace(subject, training=subject.training.map(lambda tensor: tensor[:5]))
    result = average.Average(few, AverageOptions())
    assert result.labels == subject.training.labels[:5].tolist() and "of 5 training examples" in result.table()
    with pytest.raises(UsageError, match="--first: wanted 0 to 3 for 2 columns, got 4"):
        average.Average(few, AverageOptions(first=4, columns=2))


def test_short_names_say_the_same_as_the_long_ones() -> None:
    sizes = (784, 16, 16, 10)
    numbered = torch.arange(13_002)
    weights, biases = layer_views(numbered, sizes)
    assert parameter_name(sizes, int(weights[0][3, 14 * 28 + 9]), short=True) == "W1: (14, 9) → 3"
    assert parameter_name(sizes, int(weights[2][8, 5]), short=True) == "W3: 5 → 8"
    assert parameter_name(sizes, int(biases[1][7]), short=True) == "b2: 7"
