"""A group: the networks of a sweep that are trained at once, as a run whose tensors have the leading dimension K."""

import time
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bp_torch.checkpoint import State
from bp_torch.data import Examples, first_shuffled, permutation, subsample
from bp_torch.distributed import ALONE
from bp_torch.network import Network
from bp_torch.sgd import SGD
from bp_torch.tensorboard import RunLog, cost_tag, score_values
from bp_torch.training.config import Config
from bp_torch.training.evaluation import Pause, Score, evaluate_each
from bp_torch.training.run import Run
from bp_torch.training.step import StepResult

Point = tuple[int, float, str, list[float]]
"""Of a curve: its step, its time in seconds since 1970, its tag, and a value for each network."""


@dataclass
class GroupState(State):
    """The state of K networks: ``parameters`` and ``velocity`` are (K, P), ``running`` is (2, K).

    Attributes:
        accuracy: on the test set, after the last epoch, of each network.
        cost: likewise.
        best: the best accuracy so far.
        diverged: the step at which the cost was found not to be finite; 0 for a network that goes on.
        points: the curves of all networks so far.
    """

    accuracy: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    diverged: list[int] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    EACH: ClassVar[tuple[str, ...]] = ("accuracy", "cost", "best", "diverged")

    def _check_types(self) -> None:
        super()._check_types()
        for name in self.EACH:
            if len(getattr(self, name)) != len(self.parameters):
                raise ValueError
        for step, taken, tag, values in self.points:
            if type(step) is not int or type(taken) is not float or type(tag) is not str:
                raise ValueError
            if len(values) != len(self.parameters):
                raise ValueError

    def mark(self, wrong: list[bool], step: int) -> None:
        """Note the networks that went wrong by ``step``, if they had not before that."""
        pairs = zip(self.diverged, wrong, strict=True)
        self.diverged = [min(known or step, step) if new else known for known, new in pairs]


class Curves(RunLog):
    """The log of K networks: it takes the points of their costs, and leaves the files for later."""

    def __init__(self, state: GroupState, every: int, cost_name: str) -> None:
        """A point every so many steps, of this cost."""
        self.state, self.every, self.cost_name = state, every, cost_name
        self._taken: list[tuple[int, float, Tensor]] = []  # step, time, costs on the device

    def step(self, step: int, result: StepResult, optimizer: SGD) -> bool:
        """At the end of an interval, take a point. Returns True: a network that diverges stops no other."""
        if step % self.every == 0:
            self._taken.append((step, time.time(), self.state.running[0] / self.state.running[1]))
            self.state.running.zero_()
        return True

    def write_points(self) -> bool:
        """Move the points into the state, and mark the networks whose cost was not finite. Returns True."""
        for step, taken, costs in self._taken:
            self.state.points.append((step, taken, cost_tag(self.cost_name, "train"), costs.tolist()))
            self.state.mark((~costs.isfinite()).tolist(), step)
        self._taken.clear()
        return True

    def scores(self, on_training: list[Score], on_test: list[Score], step: int, speed: float | None = None) -> None:  # type: ignore[override]
        """Take the scores at a step into the state."""
        pairs, now = zip(on_training, on_test, strict=True), time.time()
        each = [score_values(self.cost_name, {"train": a, "test": b}, step) for a, b in pairs]
        self.state.points += [(step, now, tag, [values[tag] for values in each]) for tag in each[0]]

    def flush(self) -> None:
        """Nothing is waiting."""


@dataclass
class Group(Run):
    """K networks in training. ``config`` is that of the first; they differ in seed and in the lists of the sweep."""

    members: list[Config]
    state: GroupState
    chosen: dict[int, Tensor] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """Training examples of an epoch."""
        return self.config.train_examples or len(self.training.labels)

    def learning_rate(self) -> float | Tensor:
        """Of each network in the state's epoch."""
        return together([member.learning_rate_at(self.state.epoch) for member in self.members])

    def draw(self, epoch: int) -> Tensor:
        """Draw the shuffles of ``epoch``: (n,) if all networks have one seed, else (K, n)."""
        orders = {seed: self._order_of(seed, epoch) for seed in dict.fromkeys(member.seed for member in self.members)}
        if len(orders) == 1:
            return orders[self.config.seed]
        return torch.stack([orders[member.seed] for member in self.members])

    def _order_of(self, seed: int, epoch: int) -> Tensor:
        order = permutation(self.examples, seed, epoch, self.network.device)
        return order if self.config.train_examples is None else self._chosen(seed)[order]

    def _chosen(self, seed: int) -> Tensor:
        """The training examples of this seed, as indices."""
        if seed not in self.chosen:
            every = torch.arange(len(self.training.labels), device=self.network.device)
            self.chosen[seed] = first_shuffled(Examples(every, every), self.examples, seed).labels
        return self.chosen[seed]

    def is_finite(self) -> bool:
        """True, once the networks with a number that is not are marked, and set to zero: a checkpoint has none."""
        state = self.state
        tensors = [tensor for tensor in (state.parameters, state.velocity) if tensor is not None]
        for tensor in tensors:
            state.mark((~tensor.isfinite().all(-1)).tolist(), state.step)
        for k, wrong in enumerate(state.diverged):
            if wrong:
                for tensor in tensors:
                    tensor[k].zero_()
        return True

    def evaluate(self, pause: Pause) -> tuple[list[Score], list[Score]]:  # type: ignore[override]
        """The scores on (some of) the training examples and on the test set, as train.py has them."""
        cost, chosen, on_training = self.config.cost, self.training, list[Score]()
        if self.config.train_examples is None:
            on_training = evaluate_each(self.network, subsample(chosen), cost, pause=pause)
        else:
            for seed, group in groupby(member.seed for member in self.members):
                indices = self._chosen(seed)
                some = subsample(Examples(indices, indices)).labels
                networks = self.network[len(on_training) : len(on_training) + len(list(group))]
                examples = Examples(chosen.x[some], chosen.labels[some])
                on_training += evaluate_each(networks, examples, cost, pause=pause)
        return on_training, evaluate_each(self.network, self.test, cost, pause=pause)

    def record(self, on_training: list[Score], on_test: list[Score]) -> None:
        """Take the scores after an epoch into the state."""
        state = self.state
        state.accuracy, state.cost = [score.accuracy for score in on_test], [score.cost for score in on_test]
        finite = torch.tensor([a.cost + b.cost for a, b in zip(on_training, on_test, strict=True)]).isfinite()
        state.mark((~finite).tolist(), state.step)
        pairs = zip(state.best, state.accuracy, state.diverged, strict=True)
        state.best = [best if diverged else max(best, accuracy) for best, accuracy, diverged in pairs]

    def member_state(self, k: int) -> State:
        """The state of network ``k`` as a run of its own; of one that diverged, its first state."""
        member, state = self.members[k], self.state
        has_velocity = member.momentum or member.weight_decay
        velocity = state.velocity[k].clone() if state.velocity is not None and has_velocity else None
        running, name = state.running[:, k].clone(), member.network_name
        if state.diverged[k]:
            parameters = member.network(self.network.device).parameters
            return State(parameters, None if velocity is None else velocity.zero_(), running.zero_(), network=name)
        return State(
            self.network.parameters[k].clone(),
            velocity,
            running,
            epoch=state.epoch,
            steps=state.steps,
            step=state.step,
            best_accuracy=state.best[k],
            network=name,
            reported=member.epochs,
        )


def together(values: list[float]) -> float | Tensor:
    """The value that all networks have, or else a value for each, (K,)."""
    return values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=torch.float64)


def new_group(members: list[Config], training: Examples, test: Examples, folder: Path = Path()) -> Group:
    """The networks of ``members`` before their first step. Those of one seed must stand side by side."""
    first = members[0]
    network = Network(
        first.sizes,
        activation=first.activation,
        output_activation=first.outputs,
        init=[member.init for member in members],
        seed=[member.seed for member in members],
        dtype=getattr(torch, first.dtype),
        device=training.x.device,
        networks=len(members),
    )
    optimizer = SGD(
        network,
        together([member.learning_rate for member in members]),
        momentum=together([member.momentum for member in members]),
        weight_decay=together([member.weight_decay for member in members]),
        decay_biases=first.decay_biases,
    )
    state = GroupState(
        network.parameters,
        optimizer.velocity,
        torch.zeros(2, len(members), dtype=torch.float64, device=network.device),
        network=f"{len(members)} of {first.network_name}",
        accuracy=[0.0] * len(members),
        cost=[0.0] * len(members),
        best=[-1.0] * len(members),
        diverged=[0] * len(members),
    )
    running = state.running if first.log else None
    step = first.training_step(network, optimizer, training, of=first.train_examples, running=running)
    return Group(first, folder, training, test, step, state, ALONE, members)
