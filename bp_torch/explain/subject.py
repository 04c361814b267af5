"""What is explained: the network of a run, the examples that it learned from, one of them; and the flags for these.

Numbers about a network are computed from a float64 copy of it (``only``: in the run's dtype; ``page``: in float32), by
the functions of backprop.py: ``full_gradient`` adds up what ``backward`` gives for one chunk of the examples after
another.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bp_torch.backprop import backward, example_costs, forward
from bp_torch.cli import UserError, train_command
from bp_torch.data import Examples, batch, one_hot, permutation
from bp_torch.deform import deformed
from bp_torch.device import choose_device
from bp_torch.digits import ImageError, predict
from bp_torch.explain.options import ExampleOptions, NetworkOptions
from bp_torch.network import Network
from bp_torch.training import NETWORK_FILE, Config, open_run
from bp_torch.training.run import load_data, split

CHUNK = 10_000  # examples at once: enough to keep a core busy, few enough for 64 MB of float64 pixels


class UsageError(UserError):
    """The arguments name something that does not exist. The message says what does."""

    exit_code = 2


class Example(NamedTuple):
    """One example as a batch."""

    x: Tensor  # (1, 784), from 0 to 1, float64
    y: Tensor  # (1, 10), float64
    label: int
    position: int  # among the training or the test examples; −1: a picture of one's own
    name: str  # as titles call it: "a 2 (training example 5)"


@dataclass
class Subject:
    """A network with its examples. The networks in float64 and the caption follow from the other fields."""

    config: Config  # how the run was trained, or the defaults
    network: Network  # as it was saved, or fresh
    training: Examples  # those that the run used
    test: Examples
    folder: Path  # the run's
    trained: bool  # whether ``network`` comes from a run
    exact: Network = field(init=False)  # the network in float64
    before_and_after: dict[str, Network] = field(init=False)  # the "untrained" one, and, if there is one, the "trained"
    caption: str = field(init=False)  # which network this is, for below a title
    example: Example = field(init=False)  # the one that the flags choose, else the first

    def __post_init__(self) -> None:
        """Fill in what follows."""
        self.exact = self.network.to(dtype=torch.float64)
        self.before_and_after = {"untrained": self.config.network(self.network.device).to(dtype=torch.float64)}
        self.before_and_after |= {"trained": self.exact} if self.trained else {}
        name, config = f"Run {self.folder.name}" if self.trained else "Untrained", self.config
        sizes = "-".join(map(str, config.sizes))
        self.caption = f"{name}: {sizes}, {config.activation}, {config.cost} cost, {config.dataset}"
        self.example = example_at(self.training, 0)


def open_subject(options: NetworkOptions) -> Subject:
    """The run, network and data that ``options`` name. Raises a UserError for what is missing or cannot be read."""
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    if options.untrained:
        if options.run is not None:
            raise UsageError("--run and --untrained exclude each other")
        config = Config()
        folder, network = config.runs_dir / "untrained", config.network(device)
    else:
        folder, config, network = open_network(options.run, device)
    training, test = load_data(config, device, None if options.untrained else folder, options.data_dir)
    if not training.kind.is_digits:
        raise UsageError(f"explain draws 28×28 images of ten classes, {config.dataset} has {training.kind.words}")
    training, _ = split(training, config)
    return Subject(config, network, training, test, folder, not options.untrained)


def open_network(run: Path | None, device: torch.device | str = "cpu") -> tuple[Path, Config, Network]:
    """The folder, the config and the network of a ``run``, None: of the newest. Raises UsageError for none."""
    folder = run or newest_run(Config().runs_dir)
    if not (folder / NETWORK_FILE).is_file():
        raise UsageError(f"no trained network in {folder}; train one with: {train_command()}")
    return folder, *open_run(folder, device)


def newest_run(runs: Path) -> Path:
    """The folder in ``runs`` whose network was saved last. Raises UsageError where there is none."""
    networks = sorted(runs.glob(f"*/{NETWORK_FILE}"), key=lambda file: file.stat().st_mtime)
    if not networks:
        raise UsageError(f"no run in {runs}/ holds a trained network; train one with: {train_command()}")
    return networks[-1].parent


def example_at(examples: Examples, position: int, kind: str = "training", called: int | None = None) -> Example:
    """One of the ``examples``, of this ``kind``; a mistake is ``called`` another digit by the network."""
    x, y = batch(examples, slice(position, position + 1), torch.float64)
    label = int(examples.labels[position])
    mistake = "" if called is None else f" that the network calls {a_digit(called)}"
    return Example(x, y, label, position, f"{a_digit(label)}{mistake} ({kind} example {position:,})")


def own_example(subject: Subject, file: Path, label: int | None) -> Example:
    """The digit in the picture of a ``file``, as ``label``, or None: as the network calls it. Raises UsageError."""
    try:
        (found,) = predict(subject.exact, file)
    except ImageError as error:
        raise UsageError(f"--image {error}") from error
    shown = found.answer if label is None else label
    name = f"{a_digit(shown)} (in {file.name}{', as the network answers' if label is None else ''})"
    y = one_hot(torch.tensor([shown], device=found.x.device), dtype=torch.float64)
    return Example(found.x[None], y, shown, -1, name)


def a_digit(label: int) -> str:
    """The digit with its article."""
    return f"{'an' if label == 8 else 'a'} {label}"


def with_example(subject: Subject, options: NetworkOptions) -> Subject:
    """The subject with the example that ``options`` choose, if they choose one."""
    subject = copy(subject)
    if isinstance(options, ExampleOptions):
        subject.example = choose_example(subject, options)
    return subject


def choose_example(subject: Subject, options: ExampleOptions) -> Example:
    """The example that the flags name: of a set, a digit, the mistakes. Raises UsageError where there is none."""
    if options.image is not None:
        return own_example(subject, options.image, options.label)
    kind, examples = ("test", subject.test) if options.test else ("training", subject.training)
    digit, index = options.digit, options.index
    digit = 2 if digit is None and index is None and not options.mistakes else digit
    chosen = torch.ones_like(examples.labels) if digit is None else examples.labels == digit
    if options.mistakes:
        outputs = [forward(subject.network, x).activations[-1] for x, _ in chunks(examples, subject.network.dtype)]
        answers = torch.cat(outputs).argmax(1)
        chosen, index = chosen * (answers != examples.labels), index or (None if options.loudest else 0)
    candidates = chosen.nonzero()[:, 0]
    last = len(candidates) - 1
    if last < 0:
        which = f"{kind} example{'' if digit is None else f' of {a_digit(digit)}'}"
        wrong = " that the network gets wrong" if options.mistakes else ""
        raise UsageError(f"--{'mistakes' if options.mistakes else 'digit'}: there is no {which}{wrong}")
    if not 0 <= (index or 0) <= last:
        raise UsageError(f"--index: wanted 0 to {last}, got {index}")
    if index is None:
        index = (largest_output_delta if options.loudest else plainest)(subject, examples, candidates)
    position = int(candidates[index])
    return example_at(examples, position, kind, int(answers[position]) if options.mistakes else None)


def plainest(subject: Subject, examples: Examples, candidates: Tensor) -> int:
    """Which of the ``candidates`` is nearest to their mean, of those that a trained network classifies right."""
    x, y = batch(examples, candidates, subject.network.dtype)
    right = forward(subject.network, x).activations[-1].argmax(1) == y.argmax(1)
    places = (right if subject.trained and right.any() else torch.ones_like(right)).nonzero()[:, 0]
    x = x.to(torch.float32)
    return int(places[nearest_to(x.mean(0), x.index_select(0, places), 1)])


def nearest_to(mean: Tensor, x: Tensor, count: int) -> Tensor:
    """The positions (count,) of the images x (B, 784) that are nearest to their class's ``mean`` (784,)."""
    return (x - mean).square().sum(1).topk(count, largest=False).indices


def largest_output_delta(subject: Subject, examples: Examples, candidates: Tensor) -> int:
    """Which of the ``candidates`` (indices of ``examples``) has the largest ‖δ^L‖."""
    network = subject.network
    x, y = batch(examples, candidates, network.dtype)
    return int(backward(network, forward(network, x), y, subject.config.cost).deltas[-1].norm(dim=1).argmax())


def chunks(examples: Examples, dtype: torch.dtype, size: int = CHUNK) -> Iterator[tuple[Tensor, Tensor]]:
    """x (B, 784) from 0 to 1 and y (B, 10), ``size`` examples at a time."""
    for indices in torch.arange(len(examples.labels), device=examples.labels.device).split(size):
        yield batch(examples, indices, dtype)


def full_gradient(network: Network, examples: Examples, cost: str, chunk: int = CHUNK) -> Tensor:
    """∇C over all examples, (P,)."""
    n, gradient = len(examples.labels), torch.zeros_like(network.parameters)
    for x, y in chunks(examples, network.dtype, chunk):
        gradient += backward(network, forward(network, x), y, cost, examples=n).gradient
    return gradient


def all_costs(network: Network, examples: Examples, cost: str) -> Tensor:
    """C_k of every example, (N,)."""
    return torch.cat([example_costs(forward(network, x), y, cost) for x, y in chunks(examples, network.dtype)])


def batch_size_of(config: Config, examples: Examples) -> int:
    """How many of the ``examples`` a step takes."""
    n = len(examples.labels)
    return n if config.batch_size == "full" else min(config.batch_size, n)


def train_steps(
    config: Config, network: Network, examples: Examples, description: str, steps: int | None = None
) -> Iterator[int]:
    """Train ``network`` as ``training.train`` does, for ``steps``, None: all epochs; yield their number after each."""
    n, done, optimizer = len(examples.labels), 0, config.optimizer(network)
    used = examples.having(examples.x.clone(), examples.labels) if config.deformation else examples
    step = config.training_step(network, optimizer, used)
    per_epoch = ceil(n / step.batch_size)
    config = config if steps is None else replace(config, epochs=ceil(steps / per_epoch))
    total = steps or config.epochs * per_epoch
    with tqdm(total=total, desc=description, unit="step", leave=False, disable=None) as bar:
        for epoch in range(1, config.epochs + 1):
            optimizer.learning_rate = config.learning_rate_at(epoch)
            if config.deformation:
                deformed(examples, config.deformation, config.seed, epoch, out=used.x)
            for _ in step.run(permutation(n, config.seed, epoch, network.device)):
                done += 1
                bar.update()
                yield done
                if done == total:
                    return
