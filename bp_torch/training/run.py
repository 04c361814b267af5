"""A run: its folder on disk, and all that it holds in memory. Starting, resuming, opening and saving one."""

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from bp_torch.checkpoint import BEST, CONFIG, LAST, NETWORK_FILE, CheckpointError, State, held, make_folder
from bp_torch.cli import UserError, train_command
from bp_torch.convert import load as load_network
from bp_torch.data import Examples, load, permutation, subsample
from bp_torch.deform import deformed
from bp_torch.device import set_precision, set_threads
from bp_torch.distributed import ALONE, World
from bp_torch.files import replace_file
from bp_torch.flags import flags_of
from bp_torch.network import Network
from bp_torch.training.config import LONGEST_NAME, Config
from bp_torch.training.evaluation import Pause, Score, evaluate
from bp_torch.training.step import Inspect, StepResult, TrainingStep


class TrainingError(UserError):
    """The run cannot start or continue. The message says why, and what to try."""


@dataclass
class Run:
    """A run in memory, and its folder. ``state`` holds the tensors that training changes, so it is always current.

    ``inspect`` is called with each step before its update.
    """

    config: Config
    folder: Path
    training: Examples
    test: Examples
    step: TrainingStep
    state: State
    world: World
    validation: Examples | None = dataclasses.field(default=None, kw_only=True)
    inspect: Inspect | None = dataclasses.field(default=None, kw_only=True)
    _since: float = dataclasses.field(default_factory=time.perf_counter, kw_only=True)
    _drawn: tuple[int, Tensor] | None = dataclasses.field(default=None, kw_only=True)

    @property
    def network(self) -> Network:
        """The network that is trained."""
        return self.step.network

    @property
    def examples(self) -> int:
        """Training examples of an epoch."""
        return len(self.training.labels)

    @property
    def evaluated(self) -> Examples:
        """What is evaluated after each epoch: the examples held out, or without any the test set."""
        return self.validation or self.test

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches in an epoch, the short one included."""
        return ceil(self.examples / self.step.batch_size)

    def learning_rate(self) -> float | Tensor:
        """The learning rate of the state's epoch."""
        return self.config.learning_rate_at(self.state.epoch)

    def order(self, epoch: int) -> Tensor:
        """The shuffled indices (n,) of the training examples of ``epoch``, which are drawn once."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self.draw(epoch)
        return self._drawn[1]

    def draw(self, epoch: int) -> Tensor:
        """Draw the shuffle of ``epoch``, (n,)."""
        return permutation(self.examples, self.config.seed, epoch, self.network.device)

    def is_finite(self) -> bool:
        """Whether training may go on: no parameter is NaN or ∞."""
        return bool(torch.isfinite(self.state.parameters).all())

    def rest_of_epoch(self) -> Iterator[StepResult]:
        """Train from where the state is to the last step of its epoch."""
        state, step = self.state, self.step
        step.optimizer.learning_rate = self.learning_rate()
        self.deform()
        for result in step.run(self.order(state.epoch)[..., state.steps * step.batch_size :], self.inspect):
            state.steps += 1
            state.step += 1
            yield result
        self.order(state.epoch + 1)  # drawn while a GPU still works on the steps above

    def deform(self) -> None:
        """Deform the training images as in the state's epoch, into the memory that the step reads."""
        if how := self.config.deformation:
            deformed(self.training, how, self.config.seed, self.state.epoch, out=self.step.examples.x)

    def evaluate(self, pause: Pause) -> tuple[Score, Score]:
        """The scores on (some of) the training examples, and on what is evaluated after each epoch."""
        on_training, score = (
            evaluate(self.network, examples, self.config.cost, self.world, pause)
            for examples in (subsample(self.training), self.evaluated)
        )
        return on_training, score

    def take_time(self) -> None:
        """Add the seconds since the last call, or since the start, to those of the state."""
        before, self._since = self._since, time.perf_counter()
        self.state.seconds += self._since - before

    def end_epoch(self) -> None:
        """Let the next step be the first of the next epoch."""
        self.state.epoch += 1
        self.state.steps = 0

    def restore(self) -> None:
        """Go back to the last checkpoint. Raises CheckpointError if it cannot be read or is of another run."""
        path, per_epoch = self.folder / LAST, self.steps_per_epoch
        state = type(self.state).load(path, like=self.state)
        if state.steps > per_epoch or state.step != (state.epoch - 1) * per_epoch + state.steps:
            raise CheckpointError(
                f"{path} is of another run: step {state.steps} of epoch {state.epoch} is not its step {state.step} "
                f"with {per_epoch} steps in an epoch"
            )
        self.state.become(state)

    def final(self, best: bool = False) -> tuple[Network, int]:
        """The network that did best on the examples held out, and its epoch; without any, the last network.

        ``best``: whether the last one is the best. Raises CheckpointError if the best checkpoint cannot be read.
        """
        epoch = self.state.epoch - (self.state.steps == 0)
        if not self.validation or best or epoch == 0:
            return self.network, epoch
        network = self.network.to()
        if self.world.is_first:
            found = type(self.state).load(self.folder / BEST, like=self.state)
            epoch = found.epoch - 1
            network.parameters.copy_(found.parameters)
        self.world.broadcast([network.parameters])
        return network, epoch

    def alone(self) -> "Run":
        """This run as a single process, with no step recorded or inspected."""
        step = self.config.training_step(self.network, self.step.optimizer, self.step.examples, record=False)
        return dataclasses.replace(self, step=step, world=ALONE, inspect=None)


@contextmanager
def started(config: Config, device: torch.device, world: World) -> Iterator[Run]:
    """The run of ``start_run``, whose folder no other process may train in meanwhile."""
    with held(config.resume) if config.resume and world.is_first else nullcontext():
        run = start_run(config, device, world)
        with held(run.folder) if world.is_first and not config.resume else nullcontext():
            yield run


def start_run(config: Config, device: torch.device, world: World) -> Run:
    """Load the data, make the network and a folder with a first checkpoint; or restore the run to ``resume``.

    Raises TrainingError, DeviceError, DataError or CheckpointError, and then makes no folder.
    """
    if config.verify_every and world.size > 1:
        raise TrainingError("--verify-every checks the gradient of one process: start train.py without torchrun")
    training, test = load_data(config, device)
    training, validation = split(training, config)
    try:
        network = config.network(device)
    except RuntimeError as error:  # the allocator's message says how much was wanted
        raise TrainingError(f"no room for this network on {device}: {str(error).splitlines()[0]}") from error
    optimizer = config.optimizer(network)
    state = State(
        network.parameters,
        optimizer.velocity,
        torch.zeros(2, dtype=torch.float64, device=device),
        network=config.network_name,
    )
    running = state.running if config.log else None
    used = training._replace(x=training.x.clone()) if config.deformation else training
    step = config.training_step(network, optimizer, used, running=running, world=world)
    set_precision(config.precision, device)
    set_threads(config.threads, step.batch_size * len(network.parameters))
    run = Run(config, config.resume or config.runs_dir, training, test, step, state, world, validation=validation)
    if config.resume:
        run.restore()
        begun = state.epoch - (state.steps == 0)
        if config.epochs < begun:
            raise TrainingError(f"--epochs {config.epochs}: epoch {begun} of {run.folder} is done or begun already")
    if world.is_first and config.resume:
        replace_file(run.folder / CONFIG, config.to_json().encode())
    elif world.is_first:
        folder = config.runs_dir / (config.run_name or default_run_name(config))
        run.folder = make_folder(folder, config.to_json(), run.state, numbered=config.run_name is None)
    run.folder = Path(world.same(str(run.folder)))
    world.broadcast([tensor for tensor in (run.state.parameters, run.state.velocity) if isinstance(tensor, Tensor)])
    return run


def load_data(config: Config, device: torch.device) -> tuple[Examples, Examples]:
    """The training and the test set, whole. Raises DataError, or TrainingError for more examples than there are."""
    training, test = load(config.dataset, config.data_dir, device)
    wanted, n = config.train_examples or 1, len(training.labels)
    if wanted + config.validation > n:
        if config.validation:
            what = f"--train-examples {wanted:,} and --validation" if config.train_examples else "--validation"
            most = n - wanted
            raise TrainingError(
                f"{what}: {config.dataset} has {n:,}, wanted at most {most:,}, got {config.validation:,}"
            )
        raise TrainingError(f"--train-examples: {config.dataset} has {n:,}, got {wanted:,}")
    return training, test


def split(training: Examples, config: Config) -> tuple[Examples, Examples | None]:
    """The examples to train on, and those held out: the first and the last of the shuffled ones; None for none.

    Epochs count from 1; this is the shuffle of epoch 0. If all are trained on, they stay in the order of the file.
    """
    if config.train_examples is None and not config.validation:
        return training, None
    order = permutation(len(training.labels), config.seed, 0, training.x.device)
    rest = len(order) - config.validation
    used, held_out = (
        Examples(training.x[indices], training.labels[indices])
        for indices in (order[: config.train_examples or rest], order[rest:])
    )
    return used, held_out if config.validation else None


def default_run_name(config: Config) -> str:
    """Each setting that is not the default, the sizes, month, day and time: lr-0.3_784-16-16-10_0131-120000.

    What is too long for the name of a folder is cut, and has a hash of the whole before the time.
    """
    parts = []
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), flags_of(type(config))[field.name]
        word = field.name.replace("_", "-") if flag.word is None and flag.decides else flag.word
        if word is not None and value != field.default and field.name != "sizes":
            values = map(str, value if isinstance(value, tuple) else [value])
            parts.append("-".join(filter(None, [word, *(value.removesuffix(".0") for value in values)])))
    name, time = "_".join([*parts, "-".join(map(str, config.sizes))]), datetime.now().strftime("_%m%d-%H%M%S")
    most = LONGEST_NAME - len(time)
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return (name if len(name) <= most else f"{name[: most - 9]}-{digest}") + time


AnyConfig = TypeVar("AnyConfig", bound=Config)


def read_config(folder: Path) -> Config:
    """The config of the run in ``folder``. Raises TrainingError if there is none."""
    return read_config_as(Config, folder, f"no run in {folder}", train_command())


def read_config_as(kind: type[AnyConfig], folder: Path, missing: str, make: str) -> AnyConfig:
    """The config in ``folder``. Raises TrainingError if it is ``missing``, with the command to ``make`` it."""
    path = folder / CONFIG
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a regular file")
        return kind.from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{missing} ({error}); make one with: {make}") from error


def open_run(folder: Path, device: torch.device | str = "cpu") -> tuple[Config, Network]:
    """The config and the trained network of a run. Raises TrainingError if ``folder`` holds no finished run."""
    config = read_config(folder)
    try:
        return config, load_network(folder / NETWORK_FILE, device)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"no trained network in {folder} ({error}); finish it with: {train_command()} --resume {folder}"
        ) from error
