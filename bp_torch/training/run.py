"""A run: its folder on disk, and all that it holds in memory. Starting, resuming, opening and saving one."""

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bp_torch import own_data
from bp_torch.checkpoint import BEST, CONFIG, HISTORY, LAST, NETWORK_FILE, CheckpointError, State, locked, make_folder
from bp_torch.cli import train_command
from bp_torch.convert import SAVED
from bp_torch.convert import load as load_network
from bp_torch.data import Examples, folder_of_run, load, permutation, subsample
from bp_torch.deform import EachEpoch, Part
from bp_torch.device import set_precision, set_threads
from bp_torch.distributed import World
from bp_torch.files import is_utf8, read_json, replace_file, told, write_json
from bp_torch.flags import flags_of
from bp_torch.kind import KINDS, Kind
from bp_torch.network import Network
from bp_torch.training.config import (
    DATA,
    DEFAULT_NAME,
    Config,
    TrainingError,
    check_resumed,
    read_config,
    read_config_as,
)
from bp_torch.training.evaluation import BeforeChunk, Score, evaluate, evaluate_each
from bp_torch.training.interruption import Signals
from bp_torch.training.step import Inspect, StepResult, TrainingStep

if TYPE_CHECKING:  # imported where it is used: a run with --no-log needs no tensorboard
    from bp_torch.training.log import RunLog


@dataclass
class InTraining:
    """A network in training, or K at once, and its folder."""

    config: Config  # of K networks, that of the first
    folder: Path
    training: Examples  # as they came: the images that the step reads may be deformed
    test: Examples
    examples: int  # training examples of an epoch
    step: TrainingStep
    state: State  # holds the tensors that training changes, so it is always current
    deforming: EachEpoch | None  # the images that the step reads
    begun: float = field(default_factory=time.perf_counter, kw_only=True)  # when it would have, without a break
    _order: dict[int, Tensor] = field(default_factory=dict, kw_only=True)

    @property
    def network(self) -> Network:
        """The network that is trained, or those."""
        return self.step.network

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches in an epoch, the short one included."""
        return ceil(self.examples / self.step.batch_size)

    def restore(self) -> None:
        """Go back to the last checkpoint in the folder. Raises CheckpointError if that is of another run."""
        state, path, per_epoch = self.state, self.folder / LAST, self.steps_per_epoch
        found = type(state).load(path, like=state)
        if found.steps > per_epoch or found.step != (found.epoch - 1) * per_epoch + found.steps:
            place = f"step {found.steps} of epoch {found.epoch} is not its step {found.step}"
            raise CheckpointError(f"{path} is of another run: {place} with {per_epoch} steps in an epoch")
        state.copy_from(found)
        self.begun -= state.seconds


@dataclass
class Run(InTraining):
    """A run in memory, and its folder."""

    validation: Examples | None  # held out
    world: World
    signals: Signals
    log: "RunLog | None" = None  # in the first process, while it trains
    inspect: Inspect | None = None  # is called with each step before its update
    last: StepResult | None = None  # of the last step
    outputs: list[Tensor] = field(default_factory=list)  # a^L of what was evaluated last, (…, 10) each, of the shard
    tested: float | None = None  # the test accuracy of the network that the run ends with, once that is known
    stuck: str = ""  # the sentence that it is

    @property
    def last_epoch(self) -> int:
        """The epoch with which it ends: that before the state's if --patience has run out."""
        return self.state.epoch - 1 if 0 < self.config.patience <= self.state.waited else self.config.epochs

    @property
    def evaluated(self) -> Examples:
        """The examples that are evaluated after each epoch: those held out, or without any the test set."""
        return self.validation or self.test

    def order(self, epoch: int) -> Tensor:
        """The shuffled indices (n,) of the training examples of ``epoch``, which are drawn once."""
        if epoch not in self._order:
            self._order = {epoch: permutation(self.examples, self.config.seed, epoch, self.network.device)}
        return self._order[epoch]

    def begin_epoch(self) -> Tensor:
        """Set the learning rate of the state's epoch, deform its images, and return the indices that are left, (n,)."""
        config, state, step = self.config, self.state, self.step
        step.optimizer.learning_rate = config.learning_rate_at(state.epoch)
        if self.deforming:
            self.deforming.begin(state.epoch)
        return self.order(state.epoch)[state.steps * step.batch_size :]

    def rest_of_epoch(self) -> Iterator[StepResult]:
        """Train from where the state is to the last step of its epoch, and nothing but that."""
        for result in self.step.run(self.begin_epoch()):
            self.state.count_step()
            yield result

    def evaluate(self, before_chunk: BeforeChunk = None) -> tuple[Score, Score]:
        """The scores on (some of) the training examples, and on what is evaluated after each epoch."""
        some, cost = subsample(self.training), self.config.cost
        on_training = evaluate(self.network, some, cost, self.world, before_chunk)
        self.outputs.clear()
        found = evaluate_each(self.network, self.evaluated, cost, self.world, before_chunk, self.outputs)
        return on_training, found[0]

    def final(self, last_is_best: bool = False) -> tuple[Network, int]:
        """The network that did best on the examples held out (CheckpointError if lost), or else the last; its epoch."""
        epoch = self.state.epoch - (self.state.steps == 0)
        if not self.validation or last_is_best or epoch == 0:
            return self.network, epoch
        network = self.network.to()
        if self.world.is_first:
            best = State.load(self.folder / BEST, like=self.state)
            epoch = best.epoch - 1
            network.parameters.copy_(best.parameters)
        self.world.broadcast([network.parameters])
        return network, epoch


@contextmanager
def opened(config: Config, device: torch.device, world: World) -> Iterator[Run]:
    """The run of ``start_run``, whose folder no other process may train in meanwhile."""
    with ExitStack() as locks:
        if config.resume and world.is_first:
            locks.enter_context(locked(config.resume))
        run = start_run(config, device, world)
        if world.is_first and not config.resume:
            locks.enter_context(locked(run.folder))
        yield run


def start_run(config: Config, device: torch.device, world: World) -> Run:
    """The run of ``config``: resumed, or in a new folder, which is made last, so that no error leaves one."""
    if config.verify_every and world.size > 1:
        raise TrainingError("--verify-every checks the gradient of one process: start train.py without torchrun")
    if config.resume:
        check_resumed(config, read_config(config.resume))
    training, test = load_data(config, device)
    kind, config = training.kind, config.fitted(training.kind)
    training, validation = split(training, config)
    network = first_network(dataclasses.replace(config, start_from=None) if config.resume else config, device)
    optimizer = config.optimizer(network)
    running = torch.zeros(2, dtype=torch.float64, device=device)
    state = State(network.parameters, optimizer.velocity, running, network=config.network_name)
    used, deforming = training, None
    if how := config.deformation:
        used = training.having(training.x.clone(), training.labels)
        deforming = EachEpoch(how, [Part(training, config.seed, used.x)], config.epochs)
    step = config.training_step(network, optimizer, used, running=running if config.log else None, world=world)
    set_precision(config.precision, device)
    set_threads(config.threads, step.batch_size * len(network.parameters))
    folder = config.resume or config.runs_dir / (config.run_name or default_run_name(config))
    if config.log and not is_utf8(folder):
        raise TrainingError(f"{folder}: TensorBoard opens no name that is not UTF-8: start inside, or give --no-log")
    n, signals = len(training.labels), Signals(world, device)
    run = Run(config, folder, training, test, n, step, state, deforming, validation, world, signals)
    if config.resume:
        run.restore()
        begun = state.epoch - (state.steps == 0)
        if config.epochs < begun:
            raise TrainingError(f"--epochs {config.epochs}: epoch {begun} of {folder} is done or begun already")
    if world.is_first and config.resume:
        write_json(folder / CONFIG, json.loads(config_text(config, folder, kind)))
    elif world.is_first:
        folder = make_folder(folder, config_text(config, folder, kind), state, numbered=config.run_name is None)
    run.folder = Path(world.same(str(folder)))
    world.broadcast([tensor for tensor in (state.parameters, state.velocity) if tensor is not None])
    return run


def first_network(config: Config, device: torch.device, *members: Sequence[Config]) -> Network:
    """The network before its first step, or the K of ``members``: drawn, or --start-from. Raises TrainingError."""
    try:
        network = config.network(device, *members)
    except RuntimeError as error:  # the allocator's message says how much was wanted
        raise TrainingError(f"no room for this network on {device}: {str(error).splitlines()[0]}") from error
    if config.start_from:
        try:
            found = load_network(config.start_from, device)
        except (OSError, ValueError) as error:
            raise TrainingError(f"--start-from: {told(error)}") from error
        if any(getattr(found, name) != getattr(network, name) for name in SAVED):
            way = f"--sizes {' '.join(map(str, found.sizes))} --activation {found.activation}"
            way += f" --output-activation {found.output_activation}"
            raise TrainingError(f"--start-from: {config.start_from} holds another network: add {way}")
        network.parameters.copy_(found.parameters)
    return network


def write_history(folder: Path, evaluated_on: str, rows: Sequence[tuple[float, ...]]) -> None:
    """Write history.csv of a run into its ``folder``, whole: a line for each epoch."""
    names = ("epoch", "step", "learning_rate", "train_cost", "train_accuracy")
    lines = [(*names, f"{evaluated_on}_cost", f"{evaluated_on}_accuracy"), *rows]
    replace_file(folder / HISTORY, "".join(f"{','.join(map(str, line))}\n" for line in lines).encode())


class RunResult(NamedTuple):
    """The result of a run, as result.json has it."""

    test_accuracy: float
    test_cost: float
    epoch: int  # of the network that it ends with
    epochs: int  # of the run, done
    validation_accuracy: float | None  # on the examples held out
    seconds: float
    precision: str  # of the passes
    device: str

    def sentence(self, held_out: int, measure: str = "accuracy") -> str:
        """The result in words, of a run with so many examples held out."""
        found = f"test {measure} {100 * self.test_accuracy:.2f} %, cost {self.test_cost:.4f}"
        best = f"the best of {self.epochs} on {held_out:,} held-out examples"
        return f"{found}, by the network of epoch {self.epoch}, {best}"

    def to_json(self) -> str:
        """The text of result.json."""
        values = self._asdict() | {"seconds": round(self.seconds, 2)}
        return json.dumps(values | {"threads": torch.get_num_threads(), "torch": torch.__version__}, indent=2) + "\n"


def load_data(
    config: Config, device: torch.device, folder: Path | None = None, directory: Path | None = None
) -> tuple[Examples, Examples]:
    """The training and the test set, whole: of the run in ``folder``, None: the one to resume, or a new one.

    ``directory`` holds them, None: the config's. Raises DataError, or TrainingError for more examples than there are.
    """
    folder, directory = folder or config.resume, directory or config.data_dir
    if isinstance(config.dataset, Path):
        training, test = load_own(config, folder, directory, device)
    else:
        if folder and directory == read_config_as(type(config), folder, "no run", train_command()).data_dir:
            directory = folder_of_run(config.dataset, directory)
        training, test = load(config.dataset, directory, device)
    wanted, n = config.train_examples or 1, len(training.labels)
    if wanted + config.validation > n:
        if not config.validation:
            raise TrainingError(f"--train-examples: {config.dataset} has {n:,}, got {wanted:,}")
        what = f"--train-examples {wanted:,} and --validation" if config.train_examples else "--validation"
        most = f"wanted at most {n - wanted:,}, got {config.validation:,}"
        raise TrainingError(f"{what}: {config.dataset} has {n:,}, {most}")
    return training, test


def load_own(config: Config, folder: Path | None, directory: Path, device: torch.device) -> tuple[Examples, Examples]:
    """Somebody's own data, which for the run in ``folder`` have to be those that it began with."""
    assert isinstance(config.dataset, Path)
    known = kind_of_run(folder) if folder else None
    elsewhere = directory / config.dataset.name
    path = elsewhere if known and not config.dataset.exists() and elsewhere.exists() else config.dataset
    sets = own_data.load(path, config.targets, config.seed, known)
    training, test = (examples.map(lambda tensor: tensor.to(device)) for examples in sets)
    return training, test


def config_text(config: Config, folder: Path, kind: Kind) -> str:
    """The config.json of a run in ``folder``; with somebody's own data, their kind is in it."""
    own = {DATA: dataclasses.asdict(kind)} if isinstance(config.dataset, Path) else {}
    return json.dumps(json.loads(config.to_json(folder)) | own)


def kind_of_run(folder: Path) -> Kind:
    """The kind of the data of the run or sweep in ``folder``. Raises TrainingError where it is not said."""
    try:
        found = read_json(folder / CONFIG, older=True)
        return Kind.from_dict(found[DATA]) if DATA in found else KINDS[found["dataset"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{folder / CONFIG} does not say what its data are: {error!r}") from error


def split(training: Examples, config: Config) -> tuple[Examples, Examples | None]:
    """The examples to train on, and those held out: the first and the last of the shuffled ones; None for none."""
    if config.train_examples is None and not config.validation:
        return training, None  # in the order of the file
    order = permutation(len(training.labels), config.seed, 0, training.x.device)  # epochs count from 1
    rest = len(order) - config.validation
    parts = order[: config.train_examples or rest], order[rest:]
    used, held_out = (training.having(training.x[rows], training.labels[rows]) for rows in parts)
    return used, held_out if config.validation else None


def default_run_name(config: Config) -> str:
    """Each setting that is not the default, the sizes, month, day and time: lr-0.3_784-16-16-10_0131-120000."""
    parts = []
    for each in dataclasses.fields(config):
        value, flag = getattr(config, each.name), flags_of(type(config))[each.name]
        word = each.name.replace("_", "-") if flag.word is None and flag.decides else flag.word
        if word is not None and value != each.default and each.name != "sizes":
            value = re.sub(r"[^\w.+-]", "-", value.stem) if isinstance(value, Path) else value
            values = map(str, value if isinstance(value, tuple) else [value])
            parts.append("-".join(filter(None, [word, *(value.removesuffix(".0") for value in values)])))
    name, time = "_".join([*parts, "-".join(map(str, config.sizes))]), datetime.now().strftime("_%m%d-%H%M%S")
    most, digest = DEFAULT_NAME - len(time), hashlib.sha256(name.encode()).hexdigest()[:8]
    cut = name.encode()[: most - 9].decode(errors="ignore")  # file systems count bytes
    return (name if len(name.encode()) <= most else f"{cut}-{digest}") + time


def open_run(folder: Path | str, device: torch.device | str = "cpu") -> tuple[Config, Network]:
    """The config and the trained network of a run. Raises TrainingError if ``folder`` holds no finished run."""
    config = read_config(folder := Path(folder))
    try:
        return config, load_network(folder / NETWORK_FILE, device)
    except (OSError, ValueError) as error:
        way = f"finish it with: {train_command()} --resume {folder}"
        raise TrainingError(f"no trained network in {folder} ({told(error)}); {way}") from error
