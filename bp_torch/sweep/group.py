"""A group: the networks of a sweep that are trained at once, as a run whose tensors have the leading dimension K."""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bp_torch.checkpoint import State
from bp_torch.data import Examples, permutation, subsample
from bp_torch.deform import deformed
from bp_torch.distributed import ALONE
from bp_torch.network import Network
from bp_torch.sgd import SGD
from bp_torch.training.config import Config
from bp_torch.training.evaluation import Pause, Score, evaluate_each
from bp_torch.training.log import RunLog, cost_tag, score_values
from bp_torch.training.result import Result
from bp_torch.training.run import Run, split
from bp_torch.training.step import StepResult

Point = tuple[int, float, str, list[float]]
"""Of a curve: its step, its time in seconds since 1970, its tag, and a value for each network."""


@dataclass
class GroupState(State):
    """The state of K networks: ``parameters`` and ``velocity`` are (K, P), ``running`` is (2, K).

    Attributes:
        accuracy: of each network after the last epoch, on the test set or on the examples held out; after training,
            on the test set.
        cost: likewise.
        best: the best accuracy so far.
        best_epoch: the epoch that it is of; 0 before the first.
        chosen: where examples are held out, the parameters after that epoch, (K, P).
        diverged: the step at which the cost was found not to be finite; 0 for a network that goes on.
        points: the curves of all networks so far.
    """

    accuracy: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    best_epoch: list[int] = field(default_factory=list)
    chosen: Tensor | None = None
    diverged: list[int] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    EACH: ClassVar[tuple[str, ...]] = ("accuracy", "cost", "best", "best_epoch", "diverged")

    def _check_types(self) -> None:
        super()._check_types()
        for name in self.EACH:
            if len(getattr(self, name)) != len(self.parameters):
                raise ValueError
        if self.chosen is not None and (type(self.chosen) is not Tensor or self.chosen.shape != self.parameters.shape):
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

    def __init__(self, state: GroupState, every: int, cost_name: str, on: str) -> None:
        """A point every so many steps, of this cost. ``on``: what is evaluated, test or validation."""
        self.state, self.every, self.cost_name, self.on = state, every, cost_name, on
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
        each = [score_values(self.cost_name, {"train": a, self.on: b}, step) for a, b in pairs]
        self.state.points += [(step, now, tag, [values[tag] for values in each]) for tag in each[0]]

    def flush(self) -> None:
        """Nothing is waiting."""


class Share(NamedTuple):
    """The examples that the networks of one seed train on, and those held out."""

    seed: int
    used: Examples
    held_out: Examples | None


@dataclass
class Group(Run):
    """K networks in training. ``config`` is that of the first; they differ in seed and in the lists of the sweep.

    ``shares`` has one for each seed. Where these are not the whole training set, undeformed, for every seed, the step
    reads them joined, one after another.
    """

    members: list[Config]
    state: GroupState
    shares: list[Share]

    @property
    def examples(self) -> int:
        """Training examples of an epoch."""
        return len(self.shares[0].used.labels)

    def learning_rate(self) -> float | Tensor:
        """Of each network in the state's epoch."""
        return together([member.learning_rate_at(self.state.epoch) for member in self.members])

    def draw(self, epoch: int) -> Tensor:
        """Draw the shuffles of ``epoch``: (n,) if all networks have one seed, else (K, n)."""
        n, device, orders = self.examples, self.network.device, dict[int, Tensor]()
        apart = 0 if self.step.examples is self.training else n
        for place, share in enumerate(self.shares):
            orders[share.seed] = permutation(n, share.seed, epoch, device) + place * apart
        if len(orders) == 1:
            return orders[self.config.seed]
        return torch.stack([orders[member.seed] for member in self.members])

    def deform(self) -> None:
        """Deform the training images of each seed as in the state's epoch, into the memory that the step reads."""
        if how := self.config.deformation:
            for share, out in zip(self.shares, self.step.examples.x.split(self.examples), strict=True):
                deformed(share.used, how, share.seed, self.state.epoch, out=out)

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
        """The scores on (some of) the training examples, and on the test set or those held out, as in train.py."""
        whole = subsample(self.training)
        on_training = [whole if share.used is self.training else subsample(share.used) for share in self.shares]
        evaluated = [share.held_out or self.test for share in self.shares]
        return self._scores(on_training, pause), self._scores(evaluated, pause)

    def _scores(self, examples: list[Examples], pause: Pause) -> list[Score]:
        """The score of each network on those of the ``examples`` that are of its seed."""
        if all(each is examples[0] for each in examples):
            return evaluate_each(self.network, examples[0], self.config.cost, pause=pause)
        scores, networks = list[Score](), Counter(member.seed for member in self.members)
        for share, own in zip(self.shares, examples, strict=True):
            of_seed = self.network[len(scores) : len(scores) + networks[share.seed]]
            scores += evaluate_each(of_seed, own, self.config.cost, pause=pause)
        return scores

    def record(self, on_training: list[Score], scores: list[Score]) -> None:
        """Take the scores after an epoch into the state."""
        state = self.state
        state.accuracy, state.cost = [score.accuracy for score in scores], [score.cost for score in scores]
        finite = torch.tensor([a.cost + b.cost for a, b in zip(on_training, scores, strict=True)]).isfinite()
        state.mark((~finite).tolist(), state.step)
        for k, score in enumerate(scores):
            if not state.diverged[k] and score.is_better(state.best[k], later=self.config.validation > 0):
                state.best[k], state.best_epoch[k] = score.accuracy, state.epoch
                if state.chosen is not None:
                    state.chosen[k].copy_(self.network.parameters[k])

    def choose(self, pause: Pause) -> None:
        """After training: take the networks of the epochs that held-out examples chose, and their scores on the test.

        Without held-out examples, the last networks are those, and they have their scores.
        """
        self.state.reported = self.config.epochs
        if self.state.chosen is not None:
            scores = evaluate_each(self.final_network(), self.test, self.config.cost, pause=pause)
            self.state.accuracy, self.state.cost = [s.accuracy for s in scores], [s.cost for s in scores]

    def final_network(self) -> Network:
        """The networks that the group ends with."""
        if self.state.chosen is None:
            return self.network
        network = self.network.to()
        network.parameters.copy_(self.state.chosen)
        return network

    def result(self, k: int) -> Result:
        """The result of network ``k``, whose part of the time is an even one."""
        state, config = self.state, self.config
        return Result(
            self.final_network()[k],
            state.best_epoch[k] if config.validation else config.epochs,
            Score(state.cost[k], state.accuracy[k]),
            state.best[k] if config.validation else None,
            config.epochs,
            state.seconds / len(self.members),
            config.precision_on(self.network.device),
        )

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

    def best_state(self, k: int) -> State:
        """What best.pt of network ``k`` has: the parameters after the chosen epoch, of which nothing else is kept."""
        state, epoch = self.state, self.state.best_epoch[k]
        assert state.chosen is not None
        chosen = {"parameters": state.chosen[k].clone(), "epoch": epoch + 1, "step": epoch * self.steps_per_epoch}
        return replace(self.member_state(k), **chosen)  # type: ignore[arg-type]


def together(values: list[float]) -> float | Tensor:
    """The value that all networks have, or else a value for each, (K,)."""
    return values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=torch.float64)


def new_group(members: list[Config], training: Examples, test: Examples, folder: Path = Path()) -> Group:
    """The networks of ``members`` before their first step. Those of one seed must stand side by side."""
    first = members[0]
    first_of_seed = {member.seed: member for member in reversed(members)}
    seeds = list(dict.fromkeys(member.seed for member in members))
    shares = [Share(seed, *split(training, first_of_seed[seed])) for seed in seeds]
    examples = training
    if first.deform != "none" or shares[0].used is not training:
        examples = Examples(*(torch.cat(parts) for parts in zip(*(share.used for share in shares), strict=True)))
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
        best_epoch=[0] * len(members),
        chosen=network.parameters.clone() if first.validation else None,
        diverged=[0] * len(members),
    )
    running = state.running if first.log else None
    step = first.training_step(network, optimizer, examples, of=len(shares[0].used.labels), running=running)
    return Group(first, folder, training, test, step, state, ALONE, members, shares)
