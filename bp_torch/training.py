"""Training: what can be chosen (Config), the loop over shuffled mini-batches, and how well the network does.

The mathematics is elsewhere: forward and backward in backprop.py, the step in sgd.py. A run is one folder.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from math import inf, isfinite
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bp_torch.activations import ActivationName
from bp_torch.backprop import Trace, backward, check_cost, costs, forward
from bp_torch.costs import CostName
from bp_torch.data import (
    CLASSES,
    PIXEL_SCALE,
    PIXELS,
    DatasetName,
    Examples,
    Minibatches,
    first_shuffled,
    load,
    one_hot,
    permutation,
)
from bp_torch.files import replace_file
from bp_torch.network import InitName, Network
from bp_torch.sgd import SGD

DTypeName = Literal["float32", "float64", "bfloat16", "float16"]


class TrainingError(RuntimeError):
    """The run cannot start or go on. The message says why, and what to try."""


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
    threads: int | None = None
    """CPU threads. None: as many as torch takes."""
    runs_dir: Path = Path("runs")
    """Folder of the runs."""
    run_name: str | None = None
    """Name of this run's folder. None: date, time, sizes, and what differs from the defaults."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        if len(self.sizes) < 2 or min(self.sizes) < 1 or (self.sizes[0], self.sizes[-1]) != (PIXELS, CLASSES):
            raise ValueError(
                f"--sizes: wanted {PIXELS} (pixels) first, {CLASSES} (digits) last and positive numbers between, "
                f"got {' '.join(map(str, self.sizes)) or 'none'}"
            )
        for name, least in (("epochs", 0), ("train_examples", 1), ("threads", 1), ("seed", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ValueError(f"{_flag(name)}: wanted {least} or more, got {value}")
        if self.seed >= 2**32:
            raise ValueError(f"--seed: wanted less than 2^32, got {self.seed}")
        if not 0 <= self.learning_rate_decay < inf:
            raise ValueError(f"--learning-rate-decay: wanted 0 or more, got {self.learning_rate_decay}")
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

    def to_json(self) -> str:
        """Every field, as it would be typed."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """What ``to_json`` wrote. Raises ValueError for anything else."""
        try:
            fields = json.loads(text)
            fields["sizes"] = tuple(fields["sizes"])
            for path in ("data_dir", "runs_dir"):
                fields[path] = Path(fields[path])
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the config of a run: {error}") from error


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def choose_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is the first GPU, else the CPU.

    Raises TrainingError for a device that this machine does not have: nothing falls back in silence.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"no device {name!r} here ({str(error).splitlines()[0]}); try --device cpu") from error
    return device


class Score(NamedTuple):
    """How a network does on some examples: ``cost`` C, their mean, and ``accuracy``, the share it names right, 0..1."""

    cost: float
    accuracy: float


@torch.inference_mode()
def evaluate(network: Network, examples: Examples, cost: str, chunk: int = 1000) -> Score:
    """Cost and accuracy over all ``examples``, ``chunk`` of them at a time."""
    n = len(examples.labels)
    trace = Trace(network, min(chunk, n), PIXEL_SCALE)
    total = torch.zeros((), dtype=torch.float64, device=network.device)
    right = torch.zeros((), dtype=torch.int64, device=network.device)
    for x, labels in zip(examples.x.split(chunk), examples.labels.split(chunk), strict=True):
        part = forward(network, x.to(network.dtype), trace)
        total += costs(part, one_hot(labels, dtype=network.dtype), cost).sum(dtype=torch.float64)
        right += (part.activations[-1].argmax(1) == labels).sum()
    return Score(total.item() / n, right.item() / n)


def walk(network: Network, sgd: SGD, batches: Minibatches, order: Tensor, trace: Trace, cost: str) -> Iterator[Tensor]:
    """Step down the cost once for each mini-batch of ``order``, and yield each gradient just after its step.

    No mini-batch knows the true gradient, which needs every example; each points down well enough, and is quick.
    """
    for x, y in batches.of(order):
        gradient = backward(network, forward(network, x, trace), y, cost)
        sgd.step(gradient)
        yield gradient


@torch.inference_mode()
def train(config: Config) -> Path:
    """Train as ``config`` says, tell one line an epoch, save the network. Returns the run's folder.

    Raises TrainingError or DataError when the run cannot start or go on, OSError when it cannot be saved.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    training, test = load(config.dataset, config.data_dir, device)
    if config.train_examples is not None:
        training = first_shuffled(training, config.train_examples, config.seed)
    folder = make_run_folder(config)

    n = len(training.labels)
    batch_size = n if config.batch_size == "full" else min(config.batch_size, n)
    network = config.network(device)
    sgd = config.descent(network)
    batches = Minibatches(training, batch_size, network.dtype)
    trace = Trace(network, batch_size, PIXEL_SCALE)
    print(
        f"{'-'.join(map(str, config.sizes))}: {len(network.parameters):,} parameters, {n:,} training examples, "
        f"batches of {batch_size:,}, on {device}"
        + (f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else "")
    )
    print("epoch   train cost  accuracy    test cost  accuracy   examples/s   seconds")
    with tqdm(total=config.epochs * -(-n // batch_size), unit="step", leave=False, disable=None) as bar:
        for epoch in range(1, config.epochs + 1):
            start = time.perf_counter()
            sgd.learning_rate = config.learning_rate / (1 + config.learning_rate_decay * (epoch - 1))
            for _ in walk(network, sgd, batches, permutation(n, config.seed, epoch, device), trace, config.cost):
                bar.update()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
            on_training, on_test = (evaluate(network, examples, config.cost) for examples in (training, test))
            bar.write(
                f"{epoch:5}   {on_training.cost:10.4f}  {on_training.accuracy:8.2%}   {on_test.cost:10.4f}  "
                f"{on_test.accuracy:8.2%}   {n / seconds:10,.0f}   {seconds:7.2f}"
            )
            if not isfinite(on_training.cost):
                raise TrainingError(
                    f"the cost is {on_training.cost} after epoch {epoch}: try a smaller --learning-rate"
                )
    network.save(folder / NETWORK_FILE)
    print(f"saved {folder / NETWORK_FILE}")
    return folder


# ---- the run's folder ----

NETWORK_FILE = "network.safetensors"
CONFIG_FILE = "config.json"


def make_run_folder(config: Config) -> Path:
    """``<runs_dir>/<date-time>_<sizes>_<what differs>/`` and its config.json. Raises TrainingError if it is there."""
    folder = config.runs_dir / (config.run_name or default_run_name(config))
    try:
        folder.mkdir(parents=True)
        replace_file(folder / CONFIG_FILE, config.to_json().encode())
    except FileExistsError as error:
        raise TrainingError(f"{folder} is there already: choose another --run-name") from error
    except OSError as error:
        raise TrainingError(f"cannot make the run's folder {folder}: {error}") from error
    return folder


def default_run_name(config: Config) -> str:
    """Date, time, sizes, and each field that differs from its default: 2026-01-31_120000_784-16-16-10_seed-1."""
    parts = [datetime.now().strftime("%Y-%m-%d_%H%M%S"), "-".join(map(str, config.sizes))]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name not in (
            "sizes",
            "data_dir",
            "runs_dir",
            "run_name",
            "threads",
            "device",
        ):
            parts.append(f"{field.name.replace('_', '-')}-{value}")
    return "_".join(parts)


def open_run(folder: Path, device: torch.device | str = "cpu") -> tuple[Config, Network]:
    """What a run was, and the network that it trained. Raises TrainingError when ``folder`` holds no finished run."""
    try:
        config = Config.from_json((folder / CONFIG_FILE).read_text())
        return config, Network.load(folder / NETWORK_FILE, device)
    except (OSError, ValueError) as error:
        raise TrainingError(f"no trained network in {folder} ({error}); train one with: python train.py") from error
