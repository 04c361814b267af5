"""What is explained: the network of a run, the examples it learned from, and one of them; and the flags that name them.

Every number about a network is computed from a float64 copy of it. Nothing here computes a gradient but
``whole_gradient``, which only adds up what backprop.py gives for one chunk of the examples after another.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bp_torch.backprop import Trace, backward, costs, forward
from bp_torch.data import CLASSES, PIXEL_SCALE, Examples, first_shuffled, load, one_hot, permutation
from bp_torch.network import Network
from bp_torch.training import NETWORK_FILE, Config, choose_device, open_run

CHUNK = 10_000
"""Examples that go forward and back at once: enough to keep a core busy, few enough for 64 MB of float64 pixels."""


class UsageError(Exception):
    """The arguments name something that is not there. The message says what is."""


# ---- the flags that all ideas share ----


@dataclass(frozen=True)
class CommonOptions:
    """The flags of every idea."""

    run: Path | None = None
    """Folder of the run whose network is explained. None: the newest in runs/."""
    untrained: bool = False
    """Explain a network fresh from its initial values, with all defaults, instead of a run's."""
    out: Path | None = None
    """The picture's file (.png, .svg or .pdf). None: explained/IDEA.png in the run's folder."""
    log: bool = False
    """Put the picture into the run's TensorBoard as well."""
    data_dir: Path | None = None
    """Folder of the data sets. None: the run's own."""
    device: str = "cpu"
    """auto, cpu, cuda or cuda:N. The CPU suffices; float64 is needed."""
    threads: int = 1
    """CPU threads. Small networks are quickest on one."""

    def __post_init__(self) -> None:
        """Refuse no threads at all."""
        check_least(threads=(self.threads, 1))


@dataclass(frozen=True)
class ExampleOptions(CommonOptions):
    """The flags of the ideas that look at one training example."""

    digit: int | None = None
    """Take an example of this digit. None: of a 2, or of any where --index is given."""
    index: int | None = None
    """Which one, from 0: of the digit's examples with --digit, else of all. None: the one that asks for most."""

    def __post_init__(self) -> None:
        """Refuse a digit that is none."""
        super().__post_init__()
        check_digit(self.digit)


def check_digit(digit: int | None, flag: str = "--digit") -> None:
    """Raise ValueError for a ``digit`` that is not one of 0 to 9."""
    if digit is not None and not 0 <= digit < CLASSES:
        raise ValueError(f"{flag}: wanted 0 to {CLASSES - 1}, got {digit}")


def check_least(**flags: tuple[int, int]) -> None:
    """Raise ValueError for the first flag whose (value, least) has a value below its least."""
    for name, (value, least) in flags.items():
        if value < least:
            raise ValueError(f"--{name.replace('_', '-')}: wanted {least} or more, got {value}")


# ---- the network and its data ----


class Subject(NamedTuple):
    """What is explained.

    Attributes:
        config: how the run was trained, or the defaults.
        network: as it was saved, or fresh.
        training, test: the examples, as the run saw them.
        folder: the run's.
        trained: whether ``network`` comes from a run.
    """

    config: Config
    network: Network
    training: Examples
    test: Examples
    folder: Path
    trained: bool

    @property
    def exact(self) -> Network:
        """The network in float64."""
        return self.network.to(dtype=torch.float64)

    @property
    def caption(self) -> str:
        """Which network this is, for below a title."""
        name = f"Run {self.folder.name}" if self.trained else "Untrained"
        sizes = "-".join(map(str, self.config.sizes))
        return f"{name}: {sizes}, {self.config.activation}, {self.config.cost} cost, {self.config.dataset}"


def open_subject(options: CommonOptions) -> Subject:
    """The run, network and data that ``options`` name.

    Raises UsageError for a run that is not there, TrainingError for one that cannot be read or a device that is not
    there, DataError for data that cannot be had.
    """
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    if device.type == "mps":
        raise UsageError("mps computes no float64: take --device cpu")
    if options.untrained:
        if options.run is not None:
            raise UsageError("--run and --untrained exclude each other")
        config = Config()
        folder, network = config.runs_dir / "untrained", config.network(device)
    else:
        folder = options.run or newest_run(Config().runs_dir)
        if not (folder / NETWORK_FILE).is_file():
            raise UsageError(f"no trained network in {folder}; train one with: python train.py")
        config, network = open_run(folder, device)
    training, test = load(config.dataset, options.data_dir or config.data_dir, device)
    if config.train_examples is not None:
        training = first_shuffled(training, config.train_examples, config.seed)
    return Subject(config, network, training, test, folder, not options.untrained)


def newest_run(runs: Path) -> Path:
    """The folder in ``runs`` whose network was saved last. Raises UsageError where there is none."""
    networks = sorted(runs.glob(f"*/{NETWORK_FILE}"), key=lambda file: file.stat().st_mtime)
    if not networks:
        raise UsageError(f"no run in {runs}/ holds a trained network; train one with: python train.py")
    return networks[-1].parent


# ---- one example ----


class Example(NamedTuple):
    """One training example as a batch: ``x`` (1, 784) from 0 to 1, ``y`` (1, 10), both float64."""

    x: Tensor
    y: Tensor
    label: int
    place: int

    @property
    def name(self) -> str:
        """As titles call it: "a 2 (training example 5)"."""
        return f"{'an' if self.label == 8 else 'a'} {self.label} (training example {self.place:,})"


def choose_example(subject: Subject, options: ExampleOptions) -> Example:
    """The example that ``--digit`` and ``--index`` name. Raises UsageError where there is none."""
    examples = subject.training
    digit = 2 if options.digit is None and options.index is None else options.digit
    everyone = torch.arange(len(examples.labels), device=examples.labels.device)
    candidates = everyone if digit is None else everyone[examples.labels == digit]
    last = len(candidates) - 1
    if last < 0 or not 0 <= (options.index or 0) <= last:
        of = "" if digit is None else f" of a {digit}"
        raise UsageError(
            f"--index: wanted 0 to {last}, got {options.index}"
            if last >= 0
            else f"--digit: there is no training example{of}"
        )
    chosen = candidates[[loudest(subject, candidates) if options.index is None else options.index]]
    x, y = inputs_and_wanted(examples, chosen, torch.float64)
    return Example(x, y, int(examples.labels[chosen]), int(chosen))


def loudest(subject: Subject, candidates: Tensor) -> int:
    """Which of the ``candidates`` has the longest δ^L: the one that wants most of the outputs' weighted sums."""
    network, best, place = subject.network, -1.0, 0
    for start in range(0, len(candidates), CHUNK):
        x, y = inputs_and_wanted(subject.training, candidates[start : start + CHUNK], network.dtype)
        trace = forward(network, x)
        backward(network, trace, y, subject.config.cost, examples=1)
        size, first = trace.deltas[-1].norm(dim=1).max(0)
        if size > best:
            best, place = size.item(), start + int(first)
    return place


def inputs_and_wanted(examples: Examples, chosen: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (B, 784) from 0 to 1 and y (B, 10) of the ``chosen`` examples."""
    return examples.x[chosen].to(dtype).mul_(PIXEL_SCALE), one_hot(examples.labels[chosen], dtype=dtype)


def look(network: Network, example: Example, cost: str) -> Trace:
    """The trace of one example that went forward and back."""
    trace = forward(network, example.x)
    backward(network, trace, example.y, cost)
    return trace


# ---- all examples ----


def chunks(examples: Examples, dtype: torch.dtype, size: int = CHUNK) -> Iterator[tuple[Tensor, Tensor]]:
    """x (B, 784) from 0 to 1 and y (B, 10), ``size`` examples at a time."""
    for start in range(0, len(examples.labels), size):
        yield inputs_and_wanted(examples, slice(start, start + size), dtype)


def whole_gradient(network: Network, examples: Examples, cost: str, chunk: int = CHUNK) -> Tensor:
    """∇C over all examples, (P,)."""
    n = len(examples.labels)
    gradient = torch.zeros_like(network.parameters)
    for x, y in chunks(examples, network.dtype, chunk):
        gradient += backward(network, forward(network, x), y, cost, examples=n)
    return gradient


def each_cost(network: Network, examples: Examples, cost: str) -> Tensor:
    """C_k of every example, (N,)."""
    return torch.cat([costs(forward(network, x), y, cost) for x, y in chunks(examples, network.dtype)])


# ---- training, as a run does it ----


def walk_down(config: Config, network: Network, examples: Examples, what: str) -> Generator[int, None, None]:
    """Train ``network`` on ``examples`` as ``config`` says, and yield the number of steps after each one.

    The shuffles and learning rates are those of ``training.train``, and the steps are ``Walk``'s.
    """
    n = len(examples.labels)
    walk = config.walk(network, config.descent(network), examples)
    steps = 0
    total = config.epochs * ceil(n / walk.batch_size)
    with tqdm(total=total, desc=what, unit="step", leave=False, disable=None) as bar:
        for epoch in range(1, config.epochs + 1):
            walk.sgd.learning_rate = config.rate_in(epoch)
            for _ in walk(permutation(n, config.seed, epoch, network.device)):
                steps += 1
                bar.update()
                yield steps
