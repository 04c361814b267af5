"""A group: the networks of a sweep that are trained at once, as tensors that have the leading dimension K."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bp_torch.checkpoint import State
from bp_torch.data import Examples, permutation, subsample
from bp_torch.deform import EachEpoch, Part
from bp_torch.network import Network
from bp_torch.training.config import Config, scalar_or_column
from bp_torch.training.evaluation import BeforeChunk, Score, evaluate_each
from bp_torch.training.log import cost_tag, score_values
from bp_torch.training.run import InTraining, RunResult, first_network, split
from bp_torch.training.step import StepResult
from bp_torch.training.stuck import at_the_end

Point = tuple[int, float, str, list[float]]  # of a curve: step, seconds since 1970, tag, a value for each network


@dataclass
class GroupState(State):
    """The state of K networks: ``parameters`` and ``velocity`` are (K, P), ``running`` is (2, K)."""

    accuracy: list[float] = field(default_factory=list)  # after the last epoch, on what is evaluated; at the end, test
    cost: list[float] = field(default_factory=list)  # likewise
    best: list[float] = field(default_factory=list)  # the best accuracy so far
    best_epoch: list[int] = field(default_factory=list)  # the epoch that it is of; 0 before the first
    chosen: Tensor | None = None  # where examples are held out, the parameters after that epoch, (K, P)
    diverged: list[int] = field(default_factory=list)  # the step at which the cost was found not to be finite; or 0
    points: list[Point] = field(default_factory=list)  # the curves of all networks so far
    histories: list[list[tuple[float, ...]]] = field(default_factory=list)  # of each epoch, that of each network

    EACH: ClassVar[dict[str, Any]] = {"accuracy": 0.0, "cost": 0.0, "best": -1.0, "best_epoch": 0, "diverged": 0}
    """The lists with a value for each network, and what that is before the first step."""

    def __post_init__(self) -> None:
        """Raise ValueError for a list that has not one value for each network."""
        lists = [getattr(self, name) for name in self.EACH] + [values for *_, values in self.points]
        if any(len(values) != len(self.parameters) for values in lists):
            raise ValueError("wanted a value for each network")

    def mark(self, wrong: list[bool], step: int) -> None:
        """Note the networks that went wrong by ``step``, if they had not before that."""
        pairs = zip(self.diverged, wrong, strict=True)
        self.diverged = [min(known or step, step) if new else known for known, new in pairs]


class SeedExamples(NamedTuple):
    """The examples that the networks of one seed train on, and those held out."""

    seed: int
    used: Examples
    held_out: Examples | None


@dataclass
class Group(InTraining):
    """K networks in training, which differ in seed and in the lists of the sweep."""

    state: GroupState
    members: list[Config]
    seeds: list[SeedExamples]  # unless all have the whole training set, undeformed, the step reads them joined
    _points: list[tuple[int, float, Tensor]] = field(default_factory=list)  # step, time, costs (K,) on the device

    def learning_rate(self) -> float | Tensor:
        """The learning rate of each network in the state's epoch."""
        return scalar_or_column([member.learning_rate_at(self.state.epoch) for member in self.members])

    def order(self, epoch: int) -> Tensor:
        """The shuffled indices of ``epoch``, which are drawn once: (n,) if all networks have one seed, else (K, n)."""
        if epoch not in self._order:
            n, device = self.examples, self.network.device
            offset = 0 if self.step.examples is self.training else n
            orders = {own.seed: permutation(n, own.seed, epoch, device) + place * offset
                      for place, own in enumerate(self.seeds)}  # fmt: skip
            one, each = orders[self.config.seed], [orders[member.seed] for member in self.members]
            self._order = {epoch: one if len(orders) == 1 else torch.stack(each)}
        return self._order[epoch]

    def rest_of_epoch(self) -> Iterator[StepResult]:
        """Train from where the state is to the last step of its epoch."""
        state, step = self.state, self.step
        step.optimizer.learning_rate = self.learning_rate()
        if self.deforming:
            self.deforming.begin(state.epoch)
        for result in step.run(self.order(state.epoch)[..., state.steps * step.batch_size :]):
            state.count_step()
            yield result
        self.order(state.epoch + 1)  # drawn while a GPU still works on the steps above

    def take_point(self) -> None:
        """Take a point of the curves at the end of each interval of steps, unless --no-log is given."""
        state, every = self.state, min(self.config.log_every, self.steps_per_epoch)
        if self.config.log and state.step % every == 0:
            self._points.append((state.step, time.time(), state.running[0] / state.running[1]))
            state.running.zero_()

    def take_scores(self, on_training: list[Score], scores: list[Score]) -> None:
        """Take the scores at the state's step into the curves, unless --no-log is given."""
        config, step, now = self.config, self.state.step, time.time()
        if config.log:
            pairs = [{"train": a, config.evaluated_on: b} for a, b in zip(on_training, scores, strict=True)]
            each = [score_values(config.cost, pair, step) for pair in pairs]
            self.state.points += [(step, now, tag, [values[tag] for values in each]) for tag in each[0]]

    def write_points(self) -> None:
        """Move the points into the state, and mark the networks whose cost was not finite."""
        for step, taken, costs in self._points:
            self.state.points.append((step, taken, cost_tag(self.config.cost, "train"), costs.tolist()))
            self.state.mark((~costs.isfinite()).tolist(), step)
        self._points.clear()

    def reset_diverged(self) -> None:
        """Mark the networks with a number that is not finite, and set them to zero: a checkpoint has no such number."""
        state = self.state
        tensors = [tensor for tensor in (state.parameters, state.velocity) if tensor is not None]
        for tensor in tensors:
            state.mark((~tensor.isfinite().all(-1)).tolist(), state.step)
        for k, wrong in enumerate(state.diverged):
            if wrong:
                for tensor in tensors:
                    tensor[k].zero_()

    def evaluate(self, before_chunk: BeforeChunk = None) -> tuple[list[Score], list[Score]]:
        """The scores on (some of) the training examples, and on the test set or those held out, as in train.py."""
        whole = subsample(self.training)
        on_training = [whole if own.used is self.training else subsample(own.used) for own in self.seeds]
        evaluated = [own.held_out or self.test for own in self.seeds]
        return self._scores(on_training, before_chunk), self._scores(evaluated, before_chunk)

    def _scores(self, examples: list[Examples], before_chunk: BeforeChunk) -> list[Score]:
        """The score of each network on those of the ``examples`` that are of its seed."""
        if all(each is examples[0] for each in examples):
            return evaluate_each(self.network, examples[0], self.config.cost, before_chunk=before_chunk)
        scores, networks = list[Score](), Counter(member.seed for member in self.members)
        for own, its_examples in zip(self.seeds, examples, strict=True):
            of_seed = self.network[len(scores) : len(scores) + networks[own.seed]]
            scores += evaluate_each(of_seed, its_examples, self.config.cost, before_chunk=before_chunk)
        return scores

    def record(self, on_training: list[Score], scores: list[Score]) -> None:
        """Take the scores after an epoch into the state."""
        state = self.state
        state.accuracy, state.cost = [score.accuracy for score in scores], [score.cost for score in scores]
        finite = torch.tensor([a.cost + b.cost for a, b in zip(on_training, scores, strict=True)]).isfinite()
        state.mark((~finite).tolist(), state.step)
        if state.step:
            rates = [member.learning_rate_at(state.epoch) for member in self.members]
            rows = zip(rates, on_training, scores, strict=True)
            state.histories.append([(state.epoch, state.step, rate, *one, *other) for rate, one, other in rows])
        for k, score in enumerate(scores):
            if not state.diverged[k] and score.is_better(state.best[k], later=self.config.validation > 0):
                state.best[k], state.best_epoch[k] = score.accuracy, state.epoch
                if state.chosen is not None:
                    state.chosen[k].copy_(self.network.parameters[k])

    def choose(self) -> None:
        """After training: take the networks that held-out examples chose, if there are any, and their test scores."""
        self.state.reported = self.config.epochs
        if self.state.chosen is not None:
            scores = evaluate_each(self.final_network(), self.test, self.config.cost)
            self.state.accuracy, self.state.cost = [s.accuracy for s in scores], [s.cost for s in scores]

    def final_network(self) -> Network:
        """The networks that the group ends with."""
        if self.state.chosen is None:
            return self.network
        network = self.network.to()
        network.parameters.copy_(self.state.chosen)
        return network

    def result(self, k: int) -> RunResult:
        """The result of network ``k``, whose part of the time is an even one."""
        state, config, device = self.state, self.config, self.network.device
        epoch, accuracy = (state.best_epoch[k], state.best[k]) if config.validation else (config.epochs, None)
        own = (epoch, config.epochs, accuracy, state.seconds / len(self.members))
        return RunResult(state.accuracy[k], state.cost[k], *own, config.precision_on(device), device.type)

    def trouble(self, k: int) -> str:
        """The sentence about network ``k`` if it has learned nothing; else ""."""
        member = self.members[k]
        network, start = self.final_network()[k], partial(first_network, member, self.network.device)
        (used,) = [own.used for own in self.seeds if own.seed == member.seed]
        return at_the_end(member, network, start, used, self.test, self.state.accuracy[k])

    def member_state(self, k: int) -> State:
        """The state of network ``k`` as a run of its own; of one that diverged, its first state."""
        member, state = self.members[k], self.state
        has_velocity = member.momentum or member.weight_decay
        velocity = state.velocity[k].clone() if state.velocity is not None and has_velocity else None
        running, name = state.running[:, k].clone(), member.network_name
        if state.diverged[k]:
            parameters = first_network(member, self.network.device).parameters
            return State(parameters, None if velocity is None else velocity.zero_(), running.zero_(), network=name)
        counts = {"epoch": state.epoch, "steps": state.steps, "step": state.step, "reported": member.epochs}
        parameters, history = state.parameters[k].clone(), [rows[k] for rows in state.histories]
        own = {"best_accuracy": state.best[k], "network": name, "history": history}
        return State(parameters, velocity, running, **counts, **own)  # type: ignore[arg-type]

    def best_state(self, k: int) -> State:
        """The state in best.pt of network ``k``: the parameters after the chosen epoch; nothing else is kept of it."""
        epoch, chosen = self.state.best_epoch[k], self.state.chosen
        assert chosen is not None
        step = epoch * self.steps_per_epoch
        return replace(self.member_state(k), parameters=chosen[k].clone(), epoch=epoch + 1, step=step)


def new_group(members: list[Config], training: Examples, test: Examples, folder: Path = Path()) -> Group:
    """The networks of ``members`` before their first step. Those of one seed must stand side by side."""
    first, k = members[0], len(members)
    of_seed = {member.seed: member for member in members}
    seeds = [SeedExamples(seed, *split(training, member)) for seed, member in of_seed.items()]
    examples = training
    if first.deform != "none" or seeds[0].used is not training:
        examples = training.having(*(torch.cat(parts) for parts in zip(*(own.used for own in seeds), strict=True)))
    network = first_network(first, training.x.device, members)
    optimizer = first.optimizer(network, members)
    running = torch.zeros(2, k, dtype=torch.float64, device=network.device)
    each: dict[str, Any] = {name: [value] * k for name, value in GroupState.EACH.items()}
    chosen, name = network.parameters.clone() if first.validation else None, f"{k} of {first.network_name}"
    state = GroupState(network.parameters, optimizer.velocity, running, network=name, chosen=chosen, **each)
    n, counted, deforming = len(seeds[0].used.labels), running if first.log else None, None
    if how := first.deformation:
        joined = zip(seeds, examples.x.split(n), strict=True)
        deforming = EachEpoch(how, [Part(own.used, own.seed, out) for own, out in joined], first.epochs)
    step = first.training_step(network, optimizer, examples, epoch_examples=n, running=counted)
    return Group(first, folder, training, test, n, step, state, deforming, members, seeds)
