"""What is replayed does what it did, with what its tensors hold now."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bp_torch.replay import Replay, Tape


def test_a_tape_makes_the_calls_again_with_what_the_tensors_hold_now() -> None:
    a, out, total = torch.tensor([1.0, 2.0]), torch.empty(2), torch.zeros(())
    with Tape() as tape:
        torch.add(a, a, out=out)  # into out=
        out.mul_(3)  # in place
        fresh = (a - 1).square_()  # into memory of its own, and in place there
        first = out[:1]  # a view
        total.add_(first.sum() + fresh.sum())
    assert (out.tolist(), total.item()) == ([6, 12], 7)
    a.copy_(torch.tensor([10.0, 20.0]))
    tape.replay()
    assert out.tolist() == [60, 120]
    assert fresh.tolist() == [81, 361], "what the step had asked for holds what it holds now"
    assert total.item() == 7 + 60 + 81 + 361


def test_views_and_shapes_are_not_made_again() -> None:
    a = torch.zeros(4, 2)
    with Tape() as tape:
        a.T[:, :3].shape, a.view(8).detach(), a.split(2), len(a), a.is_floating_point()
        a[:2].fill_(1)
    assert [function.__name__ for function, _, _ in tape.calls] == ["fill_"]


def test_what_a_call_asks_memory_for_is_asked_for_once() -> None:
    a, total = torch.ones(2), torch.zeros(2)
    with Tape() as tape:
        total.add_((a - 3).clone())  # there is a torch.sub that takes out=, and no such torch.clone
    assert [function.__name__ for function, _, _ in tape.calls] == ["sub", "_copy", "add_"]
    a.fill_(10)
    tape.replay()
    assert total.tolist() == [-2 + 7] * 2


def test_an_assignment_is_made_again() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    with Tape() as tape:
        b[0] = a.sum()
    a.fill_(3)
    tape.replay()
    assert b.tolist() == [6, 0]


@pytest.mark.parametrize(
    "read",
    [
        Tensor.item,
        float,
        int,
        bool,
        Tensor.tolist,
        Tensor.numpy,
        np.asarray,
        torch.is_nonzero,
        repr,
        lambda t: torch.equal(t, t),
        lambda t: torch.allclose(t, t),
        lambda t: 1.0 in t.view(1),
        lambda t: torch.max(t.view(1, 1), 1),  # fresh tensors in a tuple
    ],
)
def test_what_a_replay_could_not_renew_is_refused(read: Any) -> None:
    one = torch.ones(())
    with pytest.raises(RuntimeError, match=r"in a step gives .*, which no replay can renew"), Tape():
        read(one)


def test_each_length_has_its_own_replay() -> None:
    lines: list[int] = []
    total = torch.zeros(1, dtype=torch.int64)

    def add_up(chosen: Tensor) -> Tensor:
        lines.append(len(chosen))
        return total.copy_(chosen.sum(0, keepdim=True) * len(chosen))

    replay = Replay[Tensor](torch.device("cpu"))
    for chosen in ([1, 2, 3], [4, 5], [6, 7, 8], [9, 10], [11, 12, 13]):
        given = torch.tensor(chosen)
        assert replay(add_up, given).item() == sum(chosen) * len(chosen)
        assert given.tolist() == chosen
    assert lines == [3, 2], "the lines are gone through once"
