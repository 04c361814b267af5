"""A sweep: each network is the one that train.py makes alone, and none depends on another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bp_torch.data import Examples
from bp_torch.sweep import Group, SweepConfig, new_group
from bp_torch.training import Config
from tests.conftest import brief_run, relative_error


@torch.inference_mode()
def trained(config: SweepConfig, mnist: tuple[Examples, Examples]) -> Group:
    """All networks of the sweep as one group after their epochs."""
    group = new_group(config.members(), *mnist)
    while group.state.epoch <= config.epochs:
        for _ in group.rest_of_epoch():
            pass
        group.record(*group.evaluate(lambda number: None))
        group.is_finite()
        group.end_epoch()
    return group


def alone(member: Config, tmp_path: Path, data_dir: Path) -> torch.Tensor:
    """The parameters that train.py makes with the flags of one network."""
    own = {"runs_dir", "data_dir", "device"}
    fields = {name: value for name, value in vars(member).items() if name not in own}
    return brief_run(tmp_path, data_dir, fields.pop("run_name"), **fields)


SHORT: dict[str, Any] = {"epochs": 5, "train_examples": 950, "dtype": "float64"}
"""Fifty steps, in each epoch a short one."""


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    "lists",
    [
        {"learning_rate": (0.3, 3.0)},
        {"momentum": (0.0, 0.9), "learning_rate": (0.3,)},
        {"weight_decay": (0.0, 0.01), "momentum": (0.9,), "learning_rate": (0.1, 0.3)},
        {"init": ("lecun", "normal")},
    ],
    ids=lambda lists: "-".join(lists),
)
def test_fifty_steps_equal_those_of_train_py_alone(
    lists: dict[str, Any], seeds: int, mnist: tuple[Examples, Examples], tmp_path: Path, data_dir: Path
) -> None:
    group = trained(SweepConfig(**lists, **SHORT, seeds=seeds), mnist)
    assert group.order().ndim == seeds, "networks of one seed share their batch"
    for network, member in zip(group.network, group.members, strict=True):
        assert relative_error(network.parameters, alone(member, tmp_path, data_dir)) <= 1e-12, member.run_name


@pytest.mark.parametrize("seeds", [1, 2])
def test_float32_epoch_ends_where_train_py_ends(
    seeds: int, mnist: tuple[Examples, Examples], tmp_path: Path, data_dir: Path
) -> None:
    group = trained(SweepConfig(learning_rate=(1.0, 3.0), epochs=1, seeds=seeds), mnist)
    for network, member in zip(group.network, group.members, strict=True):
        expected, start = alone(member, tmp_path, data_dir), member.network(torch.device("cpu")).parameters
        assert (network.parameters - expected).norm() <= 1e-5 * (expected - start).norm()


@pytest.mark.parametrize("precision", ["full", "bf16"])
@pytest.mark.parametrize("cost", ["quadratic", "softmax-cross-entropy"])
def test_other_flags_hold_in_a_sweep(
    cost: Any, precision: Any, mnist: tuple[Examples, Examples], tmp_path: Path, data_dir: Path
) -> None:
    fields: dict[str, Any] = {"sizes": (784, 8, 10), "activation": "relu", "epochs": 2, "train_examples": 250}
    fields |= {"batch_size": "full", "cost": cost, "precision": precision, "decay_biases": True}
    fields |= {"learning_rate": (0.05, 0.1), "weight_decay": (0.0, 0.1), "dtype": "float32"}
    group = trained(SweepConfig(**fields), mnist)
    for network, member in zip(group.network, group.members, strict=True):
        expected, start = alone(member, tmp_path, data_dir), member.network(torch.device("cpu")).parameters
        assert (network.parameters - expected).norm() <= 1e-2 * (expected - start).norm(), member.run_name


def test_network_that_diverges_changes_no_other(mnist: tuple[Examples, Examples]) -> None:
    config = SweepConfig(learning_rate=(1.0, 1e30, 3.0), activation="relu", output_activation="relu", **SHORT)
    with_it, healthy = (trained(replace(config, learning_rate=rates), mnist) for rates in ((1, 1e30, 3), (1, 2, 3)))
    assert with_it.state.diverged == [0, 10, 0]
    assert healthy.state.diverged == [0, 0, 0]
    without = trained(replace(config, learning_rate=(1.0, 3.0)), mnist)
    for k, other in ((0, 0), (2, 1)):
        assert torch.equal(with_it.network[k].parameters, healthy.network[k].parameters)
        assert torch.equal(with_it.network[k].parameters, without.network[other].parameters)
