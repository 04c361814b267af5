"""Training: what can be chosen (Config), the loop over shuffled mini-batches, and how well the network does.

The mathematics is elsewhere: forward and backward in backprop.py, the step in sgd.py. A run is one folder.
"""

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from math import ceil, inf, isfinite
from pathlib import Path
from types import FrameType, UnionType
from typing import Any, Literal, NamedTuple, Protocol, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from tqdm import tqdm

from bp_torch.activations import ActivationName
from bp_torch.backprop import ForwardTrace, check_cost, costs, forward
from bp_torch.checkpoint import BEST, CONFIG, LAST, State, make_folder
from bp_torch.costs import CostName
from bp_torch.data import (
    ALONE,
    CLASSES,
    PIXEL_SCALE,
    PIXELS,
    DatasetName,
    Examples,
    first_shuffled,
    load,
    one_hot,
    permutation,
)
from bp_torch.distributed import World, joined, local_device
from bp_torch.files import replace_file
from bp_torch.network import InitName, Network, parameter_count
from bp_torch.runlog import RunLog
from bp_torch.sgd import SGD
from bp_torch.walk import Seen, Walk

ASK_EVERY = 16
"""Steps after which several processes ask each other whether one of them is to stop."""

CHUNK = 2**20
"""Activations, the input's among them, that are held at a time where a network is only looked at: 4 MiB of float32."""

SCORED = 10_000
"""About so many training examples the score after an epoch is taken on, as many as there are for testing: all of them
would take a third of the time that the epoch takes."""

SMALL = 2**23
"""Multiplications in a step below which a second CPU thread costs more than it brings.

An epoch of 784-16-16-10 (1.3 million a step) took 88 ms with one thread and 101 ms with two on two idle cores of an AMD
EPYC, and 40 times as long where another process had one of them; one of 784-512-512-10 in batches of 256 (171 million)
took 2.3 s and 1.5 s. Torch 2.15, medians of five epochs in turns.
"""

DTypeName = Literal["float32", "float64", "bfloat16", "float16"]
PrecisionName = Literal["full", "tf32", "bf16"]


class TrainingError(RuntimeError):
    """The run cannot start or go on. The message says why, and what to try."""


class Verdict(Protocol):
    """What a check of a gradient says: whether it is right, and, printed, where and how it is wrong."""

    @property
    def ok(self) -> bool:
        """Whether the gradient is right."""


CheckStep = Callable[[Network, Tensor, Tensor, str, float, Tensor], Verdict]
"""Judges the gradient (P,) of a mini-batch: check(network, x, y, cost, x_scale, gradient), before the step is made."""


class WrongGradientError(RuntimeError):
    """The live gradient disagrees with its check; ``verdict`` is the report."""

    def __init__(self, verdict: Verdict, step: int, epoch: int) -> None:
        """At ``step`` of ``epoch``, which was not made."""
        self.verdict = verdict
        super().__init__(f"the hand-written gradient of step {step} (epoch {epoch}) disagrees with autograd, see above")


LEAST = {
    "epochs": 0,
    "seed": 0,
    "batch_size": 1,
    "train_examples": 1,
    "threads": 1,
    "checkpoint_every": 1,
    "verify_every": 1,
    "log_every": 1,
    "histogram_every": 1,
}
"""Fields of a Config that are whole numbers, and the least that they can be."""


@dataclass(frozen=True)
class Config:
    """Everything that makes a run. Raises ValueError for a value that no run can have."""

    sizes: tuple[int, ...] = (784, 16, 16, 10)
    """Neurons per layer: 784 pixels first, 10 digits last, hidden layers between."""
    activation: ActivationName = "sigmoid"
    """Activation of the hidden layers."""
    output_activation: ActivationName | None = None
    """Activation of the last layer. None: sigmoid, or identity for the softmax cost, which holds the softmax itself."""
    cost: CostName = "quadratic"
    """Cost of one example; it is averaged over examples."""
    init: InitName = "lecun"
    """Standard deviation of the initial weights: lecun 1/√n_in, he √(2/n_in), biases zero; normal 1, biases as well."""
    learning_rate: float = 3.0
    """Length of a step in the first epoch, as a multiple of the gradient."""
    learning_rate_decay: float = 0.1
    """How the steps shorten: the learning rate of epoch e is divided by 1 + decay (e − 1). 0 keeps it constant."""
    batch_size: int | Literal["full"] = 100
    """Examples per step. full: all training examples in one step, true gradient descent."""
    epochs: int = 20
    """Passes over the training examples."""
    momentum: float = 0.0
    """Part of the last step that is kept for the next, from 0 to below 1."""
    weight_decay: float = 0.0
    """Pull of the weights towards zero, as a multiple of each weight."""
    decay_biases: bool = False
    """Let the biases decay as well."""
    dataset: DatasetName = "mnist"
    """MNIST is in the box; the others are downloaded."""
    data_dir: Path = Path("data")
    """Folder of the data sets; filled on first use."""
    train_examples: int | None = None
    """Train on the first so many of the shuffled training examples. None: on all."""
    seed: int = 0
    """Seed of the initial values and of every shuffle."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps. auto takes the first GPU there is, else the CPU."""
    dtype: DTypeName = "float32"
    """Type of every number in the network."""
    precision: PrecisionName = "full"
    """Precision of forward and backward. full: that of the parameters; tf32: less in the products, on a GPU; bf16: less
    throughout. The parameters stay float32."""
    replay: bool = True
    """Note a step's operations once and replay them, on a GPU as a CUDA graph; not with several processes or
    --verify-every. --no-replay is for debuggers."""
    threads: int | None = None
    """CPU threads. None: one for a small network, where a second would only wait; else as many as torch takes."""
    runs_dir: Path = Path("runs")
    """Folder of the runs."""
    run_name: str | None = None
    """Name of this run's folder. None: date, time, sizes, and what differs from the defaults."""
    resume: Path | None = None
    """Folder of a run to go on with, just where its last checkpoint stands. --epochs may rise, --replay may change."""
    checkpoint_every: int | None = None
    """Save a checkpoint each so many steps as well. None: after each epoch only."""
    verify_every: int | None = None
    """Hold the live gradient against autograd each so many steps, and stop with a report where they disagree."""
    log: bool = True
    """Write what TensorBoard shows."""
    log_every: int = 100
    """Steps between two points of the training cost."""
    histogram_every: int = 1
    """Epochs between two histograms."""
    log_embedding: bool = False
    """At the end, add a PR curve for each digit and the last hidden layer's activations for the projector."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        if len(self.sizes) < 2 or min(self.sizes) < 1 or (self.sizes[0], self.sizes[-1]) != (PIXELS, CLASSES):
            raise ValueError(
                f"--sizes: wanted {PIXELS} (pixels) first, {CLASSES} (digits) last and positive numbers between, "
                f"got {' '.join(map(str, self.sizes)) or 'none'}"
            )
        for name, least in LEAST.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ValueError(f"{flag(name)}: wanted {least} or more, got {value}")
        if self.run_name is not None and (self.run_name in ("", "..") or Path(self.run_name).name != self.run_name):
            raise ValueError(f"--run-name: wanted the name of one folder in --runs-dir, got {self.run_name!r}")
        if self.threads is not None and self.threads > 4096:
            raise ValueError(f"--threads: wanted 4096 or less, got {self.threads}")
        if parameter_count(self.sizes) >= 2**40:
            raise ValueError(f"--sizes: {parameter_count(self.sizes):,} parameters fit in no memory")
        if self.seed >= 2**32:
            raise ValueError(f"--seed: wanted less than 2^32, got {self.seed}")
        if not 0 <= self.learning_rate_decay < inf:
            raise ValueError(f"--learning-rate-decay: wanted 0 or more, got {self.learning_rate_decay}")
        if self.precision != "full" and self.dtype != "float32":
            raise ValueError(f"--precision {self.precision}: wanted --dtype float32, got {self.dtype}")
        if self.precision == "tf32" and self.verify_every:
            raise ValueError(
                "--verify-every: wanted --precision full or bf16, got tf32, which its witness does not have"
            )
        check_cost(self.cost, self.outputs)
        self.descent(Network((1, 1)))

    @property
    def outputs(self) -> str:
        """The output activation, chosen or the cost's own."""
        own = "identity" if self.cost == "softmax-cross-entropy" else "sigmoid"
        return self.output_activation or own

    def network(self, device: torch.device) -> Network:
        """The network that this run starts with."""
        return Network(
            self.sizes,
            activation=self.activation,
            output_activation=self.outputs,
            init=self.init,
            seed=self.seed,
            dtype=getattr(torch, self.dtype),
            device=device,
        )

    def descent(self, network: Network) -> SGD:
        """The way down that this run takes."""
        return SGD(
            network,
            self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            decay_biases=self.decay_biases,
        )

    def walk(
        self,
        network: Network,
        sgd: SGD,
        examples: Examples,
        *,
        running: Tensor | None = None,
        world: World = ALONE,
        replay: bool = True,
    ) -> Walk:
        """The walk over ``examples`` that this run takes with ``sgd``. See ``Walk`` for the rest."""
        n = len(examples.labels)
        return Walk(
            network,
            sgd,
            examples,
            n if self.batch_size == "full" else min(self.batch_size, n),
            self.cost,
            precision=torch.bfloat16 if self.precision == "bf16" else None,
            running=running,
            world=world,
            replay=replay and self.replay,
        )

    def hyperparameters(self, examples: int, batch_size: int) -> dict[str, str | float]:
        """What shapes the trained network, numbers as numbers: the same keys and types for every run."""
        return {
            "sizes": "-".join(map(str, self.sizes)),
            "activation": self.activation,
            "output_activation": self.outputs,
            "cost": self.cost,
            "init": self.init,
            "learning_rate": self.learning_rate,
            "learning_rate_decay": self.learning_rate_decay,
            "batch_size": batch_size,
            "epochs": self.epochs,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "decay_biases": str(self.decay_biases),
            "dataset": self.dataset,
            "train_examples": examples,
            "seed": self.seed,
            "dtype": self.dtype,
            "precision": self.precision,
        }

    def rate_in(self, epoch: int) -> float:
        """The learning rate of ``epoch``, which counts from 1."""
        return self.learning_rate / (1 + self.learning_rate_decay * (epoch - 1))

    def to_json(self) -> str:
        """The config as a file."""
        fields = dataclasses.asdict(self)
        del fields["resume"]
        return json.dumps(fields, indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """What ``to_json`` wrote, or an older version with fewer fields. Raises ValueError for anything else."""
        try:
            fields = json.loads(text)
            hints = get_type_hints(cls)
            for name in hints.keys() & fields.keys():
                if not _fits(fields[name], hints[name]):
                    raise TypeError(f"{name} is {fields[name]!r}")
            paths = {name: Path(fields[name]) for name in ("data_dir", "runs_dir")}
            return cls(**fields | paths | {"sizes": tuple(fields["sizes"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the config of a run: {error}") from error

    def resumed(self, typed: "Config") -> "Config":
        """This config, gone on with as ``typed``. Raises ValueError for a flag that differs, but for more epochs."""
        for field in dataclasses.fields(self):
            was, now = getattr(self, field.name), getattr(typed, field.name)
            if field.name not in ("epochs", "resume", "replay") and was != now:
                raise ValueError(
                    f"{flag(field.name)} {now} differs from the run's {was}: "
                    "only --epochs and --replay may change on resuming"
                )
        if typed.epochs < self.epochs:
            raise ValueError(
                f"--epochs {typed.epochs} is less than the run's {self.epochs}: on resuming it may only rise"
            )
        return typed


def _fits(value: object, hint: Any) -> bool:
    """Whether ``value``, out of a JSON file, is what the type ``hint`` of a field wants."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(type(item) is int for item in value)
    return type(value) in {Path: (str,), float: (float, int)}.get(hint, (hint,))


def flag(field: str) -> str:
    """How ``field`` of a Config is typed."""
    return "--" + field.replace("_", "-")


def choose_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is the first GPU, else the CPU.

    Raises TrainingError for a device that this machine does not have: nothing falls back in silence.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("wanted auto, cpu, cuda, cuda:N or mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"no device {name!r} here ({str(error).splitlines()[0]}); try --device cpu") from error
    return device


def set_precision(precision: PrecisionName, device: torch.device) -> None:
    """Let the products of float32 matrices be of TF32 (10 bits of mantissa, not 23) only where that is wanted.

    Raises TrainingError where the device has no TF32: nothing falls back in silence.
    """
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise TrainingError(f"--precision tf32 takes an NVIDIA GPU of 2020 or later, not {device}: try bf16")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def set_threads(threads: int | None, work: int) -> None:
    """Use ``threads`` CPU threads, or as many as ``work``, a step's multiplications, is worth."""
    if threads is None and work < SMALL:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


class Score(NamedTuple):
    """How a network does on some examples: ``cost`` C, their mean, and ``accuracy``, the share it names right, 0..1."""

    cost: float
    accuracy: float


def look(network: Network, examples: Examples) -> Iterator[tuple[ForwardTrace, Tensor]]:
    """What the network makes of ``examples``, some at a time, and their labels; the trace is overwritten."""
    chunk = min(max(1, CHUNK // sum(network.sizes)), len(examples.labels))
    trace = ForwardTrace(network, chunk, PIXEL_SCALE)
    pixels = network.parameters.new_empty(chunk, PIXELS)
    for x, labels in zip(examples.x.split(chunk), examples.labels.split(chunk), strict=True):
        yield forward(network, pixels[: len(x)].copy_(x), trace), labels


@torch.inference_mode()
def evaluate(network: Network, examples: Examples, cost: str, world: World = ALONE) -> Score:
    """Cost and accuracy over all ``examples``, each process its share."""
    sums = torch.zeros(2, dtype=torch.float64, device=network.device)  # of the costs, of the right answers
    y = one_hot(torch.arange(CLASSES, device=network.device), dtype=network.dtype)  # of each label
    for seen, labels in look(network, Examples(*map(world.share, examples))):
        sums[0] += costs(seen, y.index_select(0, labels), cost).sum(dtype=torch.float64)
        sums[1] += (seen.activations[-1].argmax(1) == labels).sum()
    world.sum(sums)
    cost_sum, right = sums.tolist()
    return Score(cost_sum / len(examples.labels), right / len(examples.labels))


@dataclass
class Run:
    """A run in memory, and its folder. ``state.parameters`` are the network's own: the state is always that of now."""

    config: Config
    folder: Path
    training: Examples
    test: Examples
    walk: Walk
    state: State
    world: World
    check: CheckStep | None = None

    @property
    def network(self) -> Network:
        """The network that descends."""
        return self.walk.network

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches in an epoch, the short one included."""
        return ceil(len(self.training.labels) / self.walk.batch_size)

    def rest_of_epoch(self) -> Iterator[Seen]:
        """Walk on from where the state stands to the end of its epoch."""
        config, state, walk = self.config, self.state, self.walk
        walk.sgd.learning_rate = config.rate_in(state.epoch)
        order = permutation(len(self.training.labels), config.seed, state.epoch, self.network.device)
        for seen in walk(order[state.steps * walk.batch_size :], self._verify if config.verify_every else None):
            state.steps += 1
            state.step += 1
            yield seen
        state.epoch += 1
        state.steps = 0

    def _verify(self, x: Tensor, y: Tensor, gradient: Tensor) -> None:
        """Every so many steps, hold the gradient of the coming one against the check."""
        config, step = self.config, self.state.step + 1
        if self.check and config.verify_every and step % config.verify_every == 0:
            try:
                verdict = self.check(self.walk.working, x, y, config.cost, PIXEL_SCALE, gradient)
            except ValueError as error:  # parameters or cost are not finite
                raise TrainingError(f"cannot verify step {step}: {error}; try a smaller --learning-rate") from error
            if not verdict.ok:
                raise WrongGradientError(verdict, step, self.state.epoch)

    def restore(self) -> None:
        """Go back to the last checkpoint. Raises CheckpointError if it cannot be read or is not of this network."""
        self.state.become(State.load(self.folder / LAST, like=self.state))

    def alone(self) -> "Run":
        """This run as one process that takes whole mini-batches, each step as it is written."""
        walk = self.config.walk(self.network, self.walk.sgd, self.training, replay=False)
        return dataclasses.replace(self, walk=walk, world=ALONE, check=None)


def start_run(config: Config, device: torch.device, world: World, check: CheckStep | None = None) -> Run:
    """Load the data, make the network and a folder with a first checkpoint, or go back to the last one of ``resume``.

    Raises TrainingError, DataError or CheckpointError, and then leaves no folder behind.
    """
    if config.verify_every and world.size > 1:
        raise TrainingError("--verify-every looks at the gradient of one process: start train.py without torchrun")
    training, test = load(config.dataset, config.data_dir, device)
    if config.train_examples is not None:
        if config.train_examples > len(training.labels):
            raise TrainingError(
                f"--train-examples: {config.dataset} has {len(training.labels):,}, got {config.train_examples:,}"
            )
        training = first_shuffled(training, config.train_examples, config.seed)
    try:
        network = config.network(device)
    except RuntimeError as error:  # the allocator's own words say how much was wanted
        raise TrainingError(f"no room for this network on {device}: {str(error).splitlines()[0]}") from error
    sgd = config.descent(network)
    state = State(
        network.parameters,
        sgd.velocity,
        torch.zeros(2, dtype=torch.float64, device=device),
        network=f"{'-'.join(map(str, config.sizes))}, {config.activation}, {config.outputs}",
    )
    walk = config.walk(network, sgd, training, running=state.running if config.log else None, world=world)
    set_precision(config.precision, device)
    set_threads(config.threads, walk.batch_size * len(network.parameters))
    run = Run(config, config.resume or new_folder(config), training, test, walk, state, world, check)
    if config.resume:
        run.restore()
    if world.is_first and config.resume:
        replace_file(run.folder / CONFIG, config.to_json().encode())
    elif world.is_first:
        make_folder(run.folder, config.to_json(), run.state)
    world.same([tensor for tensor in (run.state.parameters, run.state.velocity) if tensor is not None])
    return run


@torch.inference_mode()
def train(config: Config, store: str = "env://", check: CheckStep | None = None) -> Path:
    """Train as ``config`` says, tell one line an epoch, save the network. Returns the run's folder.

    Started by torchrun, this is one process of several, which meet at ``store``. ``check`` judges the gradient each
    ``verify_every`` steps; WrongGradientError is raised when it finds it wrong.
    Raises TrainingError, DataError or CheckpointError when the run cannot start or go on, OSError when it cannot be
    saved, and Stopped, with a checkpoint saved, on SIGINT or SIGTERM.
    """
    device = choose_device(local_device(config.device))
    with joined(device, store) as world:
        return _train(start_run(config, device, world, check))


def _train(run: Run) -> Path:
    config, state, network, world = run.config, run.state, run.network, run.world
    tell = print if world.is_first else _nothing
    tell(
        f"{'-'.join(map(str, config.sizes))}: {len(network.parameters):,} parameters, {len(run.training.labels):,} "
        f"training examples, batches of {run.walk.batch_size:,}, on {network.device}"
        + (
            f" ({torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)})"
            if network.device.type == "cpu"
            else ""
        )
        + (f", in {world.size} processes" if world.size > 1 else "")
    )
    if config.resume:
        tell(
            f"going on with {run.folder} at epoch {state.epoch}, step {state.steps} of {run.steps_per_epoch}"
            if state.epoch <= config.epochs
            else f"all {config.epochs} epochs of {run.folder} are done: raise --epochs to go on"
        )
    if state.epoch <= config.epochs:
        tell("epoch   train cost  accuracy    test cost  accuracy   examples/s   seconds")
    steps = config.epochs * run.steps_per_epoch
    quiet = None if world.is_first else True  # None: where stderr is no terminal
    with (
        open_log(run) as log,
        Signals() as signals,
        tqdm(total=steps, initial=state.step, unit="step", leave=False, disable=quiet) as bar,
    ):
        if log:
            log.begin(config.hyperparameters(len(run.training.labels), run.walk.batch_size), config.to_json())
        while state.epoch <= config.epochs:
            train_epoch(run, log, signals, bar)
        if world.is_first:
            network.save(run.folder / NETWORK_FILE)
    tell(f"saved {run.folder / NETWORK_FILE}")
    return run.folder


def _nothing(line: str) -> None:
    """What a process that is not the first prints."""


@contextmanager
def open_log(run: Run) -> Iterator[RunLog | None]:
    """The run's log, in the first process, unless it is not wanted."""
    if not (run.config.log and run.world.is_first):
        yield None
        return
    every = min(run.config.log_every, run.steps_per_epoch)  # a short epoch has its point too
    with closing(RunLog(run.folder, run.network, every, run.state)) as log:
        yield log


def train_epoch(run: Run, log: RunLog | None, signals: "Signals", bar: "tqdm[Any]") -> None:
    """Walk to the end of the epoch, look how the network does, tell it, save a checkpoint."""
    config, state, network = run.config, run.state, run.network
    epoch, steps, start = state.epoch, run.steps_per_epoch, time.perf_counter()
    seen, examples = None, 0
    for seen in run.rest_of_epoch():
        bar.update()
        examples += seen.trace.examples
        if log and not log.step(state.step, seen.trace, run.walk.sgd):
            raise diverged(run, log)
        if state.steps == steps:
            continue  # the epoch's own checkpoint comes below, after what it logs: neither is there without the other
        stop = signals.asked(state.step, run.world, network.device)
        if stop or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
            save_checkpoint(run, log)
        if stop:
            raise Stopped(signals.received or signal.SIGTERM, run.folder)
    if network.device.type == "cuda":
        torch.cuda.synchronize(network.device)
    seconds = time.perf_counter() - start

    on_training, on_test = (
        evaluate(network, examples, config.cost, run.world) for examples in (spread(run.training), run.test)
    )
    rate = examples / seconds
    if run.world.is_first:
        bar.write(
            f"{epoch:5}   {on_training.cost:10.4f}  {on_training.accuracy:8.2%}   {on_test.cost:10.4f}  "
            f"{on_test.accuracy:8.2%}   {rate:10,.0f}   {seconds:7.2f}"
        )
    if log:
        log.epoch(
            cost=on_test.cost,
            accuracy_train=on_training.accuracy,
            accuracy_test=on_test.accuracy,
            examples_per_second=rate,
            step=state.step,
        )
        if epoch % config.histogram_every == 0 and seen:
            log.histograms(seen.trace, state.step)
    if not isfinite(on_training.cost + on_test.cost):
        raise diverged(run, log)
    if log and epoch == config.epochs:
        log_results(run, log, on_test)
    better = on_test.accuracy > state.best_accuracy
    state.best_accuracy = max(state.best_accuracy, on_test.accuracy)
    save_checkpoint(run, log, also=[BEST] if better else [])
    if signals.asked(0, run.world, network.device):
        raise Stopped(signals.received or signal.SIGTERM, run.folder)


def spread(examples: Examples, about: int = SCORED) -> Examples:
    """``about`` so many of the examples, evenly spread over all of them; all of fewer."""
    # An odd distance: in MNIST easy and hard writers take turns, and one parity is 2 points above the other.
    every = max(1, len(examples.labels) // about) | 1
    return Examples(*(tensor[::every] for tensor in examples))


def save_checkpoint(run: Run, log: RunLog | None, also: Sequence[str] = ()) -> None:
    """Save the state as the run's last, once the log is on disk. Raises TrainingError if it is not finite."""
    if not torch.isfinite(run.state.parameters).all() or (log and not log.write_points()):
        raise diverged(run, log)
    if not run.world.is_first:
        return
    try:
        if log:
            log.flush()  # first: what a resumed run does not log again must be there
        for name in (*also, LAST):  # last: it says that the others are there
            run.state.save(run.folder / name)
    except OSError as error:
        raise TrainingError(f"cannot save into {run.folder}: {error}; the checkpoint before is whole") from error


def diverged(run: Run, log: RunLog | None) -> TrainingError:
    """The error of a run whose cost is not finite, with the tensor that went first.

    It is found by walking again from the last checkpoint. What can still be logged is logged.
    """
    if not run.world.is_first:
        return TrainingError("the cost is not finite: stopped with the first process, which says where")
    if log:
        skipped = log.histograms(run.walk.trace, run.state.step)
        if skipped:
            print(f"{len(skipped)} histograms hold NaN or infinity and are not logged, such as {skipped[0]}")
        log.flush()
    run = run.alone()
    run.restore()
    for seen in run.rest_of_epoch():
        name = first_not_finite(run.network, seen, run.config.cost)
        if name:
            where = f"at step {run.state.step} (epoch {run.state.epoch}) {name} went first"
            break
    else:
        where = "in the evaluation after the epoch, while all of its steps were finite"
    return TrainingError(
        f"the cost is not finite: {where}; try a smaller --learning-rate or other initial values (--init); "
        f"the last good checkpoint is {run.folder / LAST}"
    )


def first_not_finite(network: Network, seen: Seen, cost: str) -> str | None:
    """Which tensor of a step holds NaN or ∞, the first in the order of their making; None if all are finite."""
    trace, layers = seen.trace, range(network.depth)
    named = [
        *((f"the activations of layer {n + 1}", trace.activations[n + 1]) for n in layers),
        ("the cost, on finite activations,", costs(trace, seen.y, cost)),
        *((f"δ of layer {n + 1}", trace.deltas[n]) for n in reversed(layers)),
        *((f"the weight gradient of layer {n + 1}", trace.weight_gradients[n]) for n in reversed(layers)),
        *((f"the weights of layer {n + 1}, after the step,", network.weights[n]) for n in layers),
    ]
    return next((name for name, tensor in named if not torch.isfinite(tensor).all()), None)


def log_results(run: Run, log: RunLog, score: Score, most: int = 10_000) -> None:
    """Log the ``score`` on the test set, and what the network says of the first ``most`` test examples."""
    examples = Examples(run.test.x[:most], run.test.labels[:most])
    kept = -2 if run.config.log_embedding else -1  # the last hidden layer is large, and for the embedding alone
    last = [[a.clone() for a in seen.activations[kept:]] for seen, _ in look(run.network, examples)]
    *hidden, outputs = (torch.cat(chunks).float().cpu() for chunks in zip(*last, strict=True))
    if run.config.cost == "softmax-cross-entropy":
        outputs = torch.softmax(outputs, 1)
    images, labels = (tensor.cpu() for tensor in examples)
    results = {"test_accuracy": score.accuracy, "test_cost": score.cost}
    log.end(results, images, labels, outputs, run.state.step)
    if run.config.log_embedding:
        log.embedding(images, labels, outputs, hidden[0], run.state.step)


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The run was asked to stop, and its checkpoint is saved. ``code`` is the exit code, 128 + the signal's number."""

    def __init__(self, received: int, folder: Path) -> None:
        """By the signal ``received``."""
        self.code = 128 + received
        super().__init__(
            f"stopped by {signal.Signals(received).name}, all is saved; go on with: python train.py --resume {folder}"
        )


class Signals:
    """While entered, SIGINT and SIGTERM are noted in ``received`` and not obeyed; a second one is obeyed at once."""

    received = 0

    def asked(self, step: int, world: World, device: torch.device) -> bool:
        """Whether to stop after ``step``. Several processes ask each other now and then, to stop at the same step."""
        if world.size == 1:
            return bool(self.received)
        return step % ASK_EVERY == 0 and world.any(bool(self.received), device)

    def __enter__(self) -> "Signals":
        """Take over, where this is the main thread: no other may."""
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        """Hand back what was there before."""
        self._give_back()


# ---- the run's folder ----

NETWORK_FILE = "network.safetensors"


def new_folder(config: Config) -> Path:
    """Where this run will live: under its own name, or the default one with a number where that is taken."""
    folder = config.runs_dir / (config.run_name or default_run_name(config))
    for again in count(2):
        if config.run_name or not folder.exists():
            return folder
        folder = folder.with_name(f"{default_run_name(config)}_{again}")
    raise AssertionError


def default_run_name(config: Config) -> str:
    """Date, time, sizes, and each field that differs from its default: 2026-01-31_120000_784-16-16-10_seed-1."""
    own = (
        "sizes",
        "data_dir",
        "runs_dir",
        "run_name",
        "threads",
        "device",
        "replay",
        "log",
        "log_every",
        "log_embedding",
    )
    parts = [datetime.now().strftime("%Y-%m-%d_%H%M%S"), "-".join(map(str, config.sizes))]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name not in own:
            parts.append(f"{field.name.replace('_', '-')}-{value}")
    return "_".join(parts)


def read_config(folder: Path) -> Config:
    """The config of the run in ``folder``. Raises TrainingError when there is none."""
    try:
        return Config.from_json((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"no run in {folder} ({error}); make one with: python train.py") from error


def open_run(folder: Path, device: torch.device | str = "cpu") -> tuple[Config, Network]:
    """What a run was, and the network that it trained. Raises TrainingError when ``folder`` holds no finished run."""
    config = read_config(folder)
    try:
        return config, Network.load(folder / NETWORK_FILE, device)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"no trained network in {folder} ({error}); finish it with: python train.py --resume {folder}"
        ) from error
