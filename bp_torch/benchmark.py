"""Time one epoch of the hand-written backward beside what one would otherwise write, on this machine.

    python -m bp_torch benchmark                          784-16-16-10, batches of 100
    python -m bp_torch benchmark --sizes 784 512 512 10 --batch-size 256 --json
    python -m bp_torch benchmark --sweep                  four sizes, from 13,002 parameters to 5.8 million
    python -m bp_torch benchmark --device cuda

Every contender does the same work: the same start, the same batches in the same order, the same cost, plain SGD,
float32, the shuffle and the gathering of the batches included. First each runs one epoch, and must end where ours ends
(``TOLERANCE``); only then are they timed, in turns, so that whatever else the machine does falls on all alike. Told is
the median of the turns. A contender that needs more than two ``TURN``s for an epoch runs only the first part of it in
a turn, and its time is scaled up.

The autograd contenders are written as their documentation has them. Two of them have a quicker, less usual form:
``index_select`` for ``x[chosen]`` in memory, and a ``BatchSampler`` that lets the DataLoader index whole batches.

The floor is what no implementation can do without: per batch, gather the pixels as bytes, turn them into floats, and
multiply the large matrices. A layer's products (a Wᵀ forward; δᵀ a and, but for the first layer, δ W backward) count as
large when it has at least a tenth of the weights of the largest layer: of 784-16-16-10 it is the two products of layer
1, of 784-512-512-10 those of the first two layers. Everything else (biases, φ, φ′, the cost, the step) is left out.

On the CPU one thread is the default: on small layers a second one mostly waits, and the comparison is then of work and
not of scheduling. NumPy's library reads its number of threads once, when it is loaded, so the command starts itself
anew with that number in the environment.

What was tried on ours at 784-16-16-10, batches of 100, and what it took off an epoch of 102 ms (one thread of an AMD
EPYC, torch 2.15, 2026-11-23 and 24; least of 15 to 60 turns). Kept:

    x.shape[0] for len(x) in the step                            3.4 %
    W^lᵀ and δ^lᵀ as views made once, not in every step          4.5 %
    no multiplication by a Python number (it makes a tensor)     3.3 %
    replaying the calls of a step without the lines around them  11 %, from 93.9 to 83.5 ms

Left out, for it brought too little or cost too much:

    φ′ of all layers in one call, over one block of activations  2.0 %
    gathering ten batches at once                                3.6 %
    Σ_k δ_k as a product with ones                               1.2 %, and 3 to 90 times the rounding error
    feature-major buffers, (n, B)                                nothing
    a W and b added one after the other, not by addmm            −3 %
    ten steps compiled into one function by torch.compile        10 to 13 % beside the replay, after 16 s of compiling
    products by oneDNN in place of MKL, a private operation      −38 % here, 2 to 3 % at 784-512-512-10

What is left above the floor are 28 calls into torch, 1.5 µs each. With ten steps compiled at once, an epoch is still
1.3 times the floor.

This file may use autograd: it is the contender. What it times of ours is ``walk.Walk``, the loop of train.py.
"""

import dataclasses
import io
import json
import logging
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets
from torchvision.transforms import ToTensor

from bp_torch.cli import one_line_errors, parse
from bp_torch.data import CLASSES, PIXEL_SCALE, PIXELS, DataError, Examples, load, one_hot, permutation
from bp_torch.files import replace_file
from bp_torch.network import Network, layer_views
from bp_torch.training import Config, TrainingError, choose_device

TOLERANCE = 1e-3
"""How far from ours a contender may end, as a part of the way that ours went: ‖θ − θ_ours‖ / ‖θ_ours − θ_start‖.

float32 adds in another order in every library: that alone parts two contenders by 1e-7 to 1e-5 in an epoch. A learning
rate that is off by a hundredth parts them by about 1e-2."""

TURN = 1.0
"""Seconds: an epoch that takes more than twice as long is timed on its first part."""

SWEEP: tuple[tuple[tuple[int, ...], int], ...] = (
    ((784, 16, 16, 10), 100),
    ((784, 100, 10), 100),
    ((784, 512, 512, 10), 256),
    ((784, 2048, 2048, 10), 1024),
)

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class BenchmarkError(RuntimeError):
    """The contenders cannot be compared. The message says which one, and why."""


class UnavailableError(RuntimeError):
    """A contender cannot run on this machine. The message says why."""


@dataclass(frozen=True)
class Options:
    """What is measured. Raises ValueError for a value that no measurement can have."""

    sizes: tuple[int, ...] = (784, 16, 16, 10)
    """Neurons per layer: 784 pixels first, 10 digits last."""
    batch_size: int = 100
    """Examples per step."""
    sweep: bool = False
    """Measure four sizes, from small to large, instead of --sizes and --batch-size. Takes minutes."""
    device: str = "cpu"
    """cpu, cuda, cuda:N, or auto for the first GPU there is."""
    threads: int = 1
    """CPU threads, for all contenders."""
    rounds: int = 7
    """Turns that each contender has; the median is told."""
    json: bool = False
    """Print the results as JSON instead of a table."""
    out: Path = Path("benchmark.png")
    """Where the picture goes."""
    data_dir: Path = Path("data")
    """Folder of the data sets; filled on first use."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("batch_size", "threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: wanted 1 or more, got {getattr(self, name)}")
        if self.out.suffix != ".png":
            raise ValueError(f"--out: wanted a name that ends in .png, got {self.out}")
        if not self.out.parent.is_dir():
            raise ValueError(f"--out: no folder {self.out.parent}")
        Config(sizes=self.sizes, batch_size=self.batch_size)


class Work(NamedTuple):
    """What every contender has to do, epoch after epoch."""

    config: Config
    """Sizes, batch size, learning rate, cost, and how the network starts."""
    examples: Examples
    """The training examples, on the device: the first of the data set in ``config.data_dir``."""

    @property
    def device(self) -> torch.device:
        """Where all of it happens."""
        return self.examples.x.device

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        assert isinstance(self.config.batch_size, int)
        return self.config.batch_size

    def network(self) -> Network:
        """The start, the same for all."""
        return self.config.network(self.device)

    def order(self, epoch: int) -> Tensor:
        """The shuffle of one epoch, the same for all."""
        return permutation(len(self.examples.labels), self.config.seed, epoch, self.device)


class Runner(NamedTuple):
    """A contender: ``epoch(order)`` steps once for each batch of ``order``, and ``parameters()`` is θ, (P,)."""

    epoch: Callable[[Tensor], None]
    parameters: Callable[[], Tensor]


# ---- the contenders ----


def ours(work: Work, *, replay: bool = True) -> Runner:
    """The loop that train.py runs."""
    network = work.network()
    walk = work.config.walk(network, work.config.descent(network), work.examples, replay=replay)

    @torch.inference_mode()
    def epoch(order: Tensor) -> None:
        deque(walk(order), maxlen=0)

    return Runner(epoch, lambda: network.parameters)


def ours_as_written(work: Work) -> Runner:
    """The same, with every step gone through line by line: no list of calls, and on a GPU no CUDA graph."""
    return ours(work, replay=False)


Batches = Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]]
"""An order of examples, as batches of x (B, 784) and y (B, 10)."""

Step = Callable[[Tensor, Tensor], Tensor]
"""C, the mean cost of a batch (x, y), with its graph."""


def autograd(
    work: Work, batches: Batches, *, fused: bool = False, wrap: Callable[[Step], Step] | None = None
) -> Runner:
    """Today's idiom: ``nn.Sequential``, ``backward()``, ``optim.SGD``. ``wrap`` may compile forward and cost."""
    model = work.network().to_sequential()
    optimizer = torch.optim.SGD(model.parameters(), lr=work.config.learning_rate, fused=fused)

    def mean_cost(x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(model(x), y, reduction="sum") / len(y)

    cost = wrap(mean_cost) if wrap else mean_cost

    def epoch(order: Tensor) -> None:
        for x, y in batches(order):
            optimizer.zero_grad()
            cost(x, y).backward()
            optimizer.step()

    return Runner(epoch, lambda: parameters_to_vector(model.parameters()).detach())


def loader_options(work: Work) -> dict[str, Any]:
    """What pytorch/examples gives its DataLoader on a GPU; on the CPU it gives nothing."""
    if work.device.type != "cuda":
        return {}
    return {"num_workers": 1, "persistent_workers": True, "pin_memory": True}


def autograd_examples(work: Work) -> Runner:
    """As pytorch/examples trains on MNIST: torchvision's data set, ``ToTensor`` on each image, a DataLoader."""
    dataset = datasets.MNIST(str(work.config.data_dir), train=True, transform=ToTensor())
    now: list[int] = []
    loader = DataLoader(dataset, work.batch_size, sampler=now, **loader_options(work))

    def batches(order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        now[:] = order.tolist()
        for images, labels in loader:
            y = functional.one_hot(labels.to(work.device), CLASSES).float()
            yield images.to(work.device).flatten(1), y

    return autograd(work, batches)


def in_memory(work: Work) -> tuple[Tensor, Tensor]:
    """All examples as the network sees them: x (N, 784) from 0 to 1, y (N, 10)."""
    return work.examples.x * PIXEL_SCALE, one_hot(work.examples.labels)


def autograd_loader(work: Work) -> Runner:
    """A TensorDataset of floats and a DataLoader."""
    now: list[int] = []
    dataset = TensorDataset(*(tensor.cpu() for tensor in in_memory(work)))
    loader = DataLoader(dataset, work.batch_size, sampler=now, **loader_options(work))

    def batches(order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        now[:] = order.tolist()
        for x, y in loader:
            yield x.to(work.device), y.to(work.device)

    return autograd(work, batches)


def batches_in_memory(work: Work) -> Batches:
    """Floats on the device, indexed by each batch of the order."""
    x, y = in_memory(work)

    def batches(order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in order.split(work.batch_size):
            yield x[chosen], y[chosen]

    return batches


def autograd_in_memory(work: Work) -> Runner:
    """All examples as floats on the device, and SGD's fused step."""
    return autograd(work, batches_in_memory(work), fused=True)


def autograd_compiled(work: Work, mode: str = "default") -> Runner:
    """The same, its forward and backward compiled. Its first epoch raises UnavailableError where nothing compiles."""
    torch._dynamo.reset()  # what was compiled for another size is not to be guarded against in this one
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a GPU that nobody asked for
    runner = autograd(work, batches_in_memory(work), fused=True, wrap=torch.compile(dynamic=False, mode=mode))

    def epoch(order: Tensor) -> None:
        try:
            runner.epoch(order)
        except RuntimeError as error:  # no compiler, or a Python that torch.compile does not know yet
            raise UnavailableError(str(error).strip().splitlines()[0]) from error

    return Runner(epoch, runner.parameters)


def autograd_reduce_overhead(work: Work) -> Runner:
    """The same, compiled and replayed as CUDA graphs."""
    return autograd_compiled(work, "reduce-overhead")


def numpy_by_hand(work: Work) -> Runner:
    """A second backward, in NumPy: float32, one flat vector, every result written into a buffer made once.

    The benchmark's own, so that there is something to race; nothing else may use it. Sigmoids and the quadratic cost.
    """
    config = work.config
    if (config.activation, config.outputs, config.cost) != ("sigmoid", "sigmoid", "quadratic"):
        raise UnavailableError("written for sigmoids and the quadratic cost alone")
    images, wanted = work.examples.x.cpu().numpy(), one_hot(work.examples.labels).cpu().numpy()
    start = work.network().parameters.cpu()
    theta, gradient = start.numpy().copy(), np.empty(len(start), np.float32)
    (weights, biases), (weight_gradients, bias_gradients) = (
        tuple([view.numpy() for view in views] for views in layer_views(torch.from_numpy(flat), config.sizes))
        for flat in (theta, gradient)
    )
    pixels, x, y = (np.empty((work.batch_size, n), t) for n, t in ((PIXELS, np.uint8), (PIXELS, "f4"), (CLASSES, "f4")))
    outputs = [np.empty((work.batch_size, n), np.float32) for n in config.sizes[1:]]
    deltas, slopes = ([np.empty_like(a) for a in outputs] for _ in range(2))
    scale = np.float32(PIXEL_SCALE)

    def step(chosen: Any) -> None:
        n = len(chosen)
        images.take(chosen, 0, pixels[:n], mode="clip")  # any other mode gathers into a copy first
        wanted.take(chosen, 0, y[:n], mode="clip")
        np.copyto(x[:n], pixels[:n])
        activations = [x[:n], *(a[:n] for a in outputs)]
        for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = np.matmul(activations[layer], w.T, out=activations[layer + 1])
            if layer == 0:
                z *= scale  # cheaper here and on the gradient than on the pixels
            z += b
            np.negative(z, out=z)
            np.exp(z, out=z)
            z += 1
            np.reciprocal(z, out=z)
        last = len(weights) - 1
        delta = np.subtract(activations[-1], y[:n], out=deltas[last][:n])
        delta *= np.float32(2 / n)
        for layer in range(last, -1, -1):
            a, slope = activations[layer + 1], slopes[layer][:n]
            np.subtract(1, a, out=slope)
            slope *= a
            delta *= slope
            np.sum(delta, 0, out=bias_gradients[layer])
            np.matmul(delta.T, activations[layer], out=weight_gradients[layer])
            if layer > 0:
                delta = np.matmul(delta, weights[layer], out=deltas[layer - 1][:n])
        np.multiply(weight_gradients[0], scale, out=weight_gradients[0])
        np.multiply(gradient, np.float32(config.learning_rate), out=gradient)
        np.subtract(theta, gradient, out=theta)

    def epoch(order: Tensor) -> None:
        indices = order.cpu().numpy()
        with np.errstate(over="ignore"):  # e^−z of a far negative z is ∞, and 1 / (1 + ∞) is 0, as it should be
            for first in range(0, len(indices), work.batch_size):
                step(indices[first : first + work.batch_size])

    return Runner(epoch, lambda: torch.from_numpy(theta).to(work.device))


def floor(work: Work) -> Runner:
    """The gather and the large products, with nothing between. It learns nothing."""
    weights = work.network().weights
    large = [layer for layer, w in enumerate(weights) if 10 * w.numel() >= max(w.numel() for w in weights)]
    gradients = [torch.zeros_like(w) for w in weights]
    images = work.examples.x
    pixels = images.new_empty(work.batch_size, PIXELS)
    activations, deltas = (
        [torch.zeros(work.batch_size, n, device=work.device) for n in work.config.sizes] for _ in range(2)
    )

    @torch.inference_mode()
    def epoch(order: Tensor) -> None:
        a, delta = activations, deltas
        for chosen in order.split(work.batch_size):
            n = len(chosen)
            if n < work.batch_size:
                a, delta = [t[:n] for t in a], [t[:n] for t in delta]
            a[0].copy_(torch.index_select(images, 0, chosen, out=pixels[:n]))
            for layer in large:
                torch.mm(a[layer], weights[layer].T, out=a[layer + 1])
                torch.mm(delta[layer + 1].T, a[layer], out=gradients[layer])
                if layer > 0:
                    torch.mm(delta[layer + 1], weights[layer], out=delta[layer])

    return Runner(epoch, lambda: weights[0])


OURS, WRITTEN, FLOOR, PLAIN = "ours", "ours, not replayed", "floor", "autograd, in memory"

CONTENDERS: dict[str, Callable[[Work], Runner]] = {
    OURS: ours,
    WRITTEN: ours_as_written,
    "autograd, pytorch/examples": autograd_examples,
    "autograd, TensorDataset": autograd_loader,
    PLAIN: autograd_in_memory,
    "autograd, torch.compile": autograd_compiled,
    "NumPy by hand": numpy_by_hand,
    FLOOR: floor,
}
"""What is raced on every device."""

ON_CUDA: dict[str, Callable[[Work], Runner]] = {"autograd, reduce-overhead": autograd_reduce_overhead}
"""What is raced on a GPU besides."""


# ---- the race ----


@dataclass(frozen=True)
class Result:
    """How one contender did.

    Attributes:
        name: of the contender, as in ``CONTENDERS``.
        seconds: for an epoch, the median of the turns; None for a contender that cannot run here.
        share: the part of an epoch that was timed in a turn, 1 for all of it.
        first_epoch: seconds of the first epoch, which is not among the turns; it holds what is compiled.
        difference: how far from ours it ended, as ``TOLERANCE`` counts; None for the floor, which learns nothing.
        note: why it cannot run.
    """

    name: str
    seconds: float | None = None
    share: float = 1.0
    first_epoch: float | None = None
    difference: float | None = None
    note: str = ""


class Measurement(NamedTuple):
    """All results for one network and batch size."""

    sizes: tuple[int, ...]
    batch_size: int
    parameters: int
    examples: int
    results: list[Result]

    def seconds(self, name: str) -> float:
        """An epoch of the contender ``name``, NaN where it cannot run."""
        return next((r.seconds for r in self.results if r.name == name and r.seconds is not None), float("nan"))

    @property
    def title(self) -> str:
        """Sizes, batch size and parameters."""
        sizes = "-".join(map(str, self.sizes))
        return f"{sizes}, batches of {self.batch_size:,}, {self.parameters:,} parameters"


def race(contenders: dict[str, Callable[[Work], Runner]], work: Work, rounds: int) -> list[Result]:
    """Let every contender run one epoch, see that all end where ours ends, and time them in turns.

    Raises BenchmarkError for a contender that ends elsewhere.
    """
    results, runners = first_epochs(contenders, work)
    first = {result.name: result.first_epoch or 0.0 for result in results}
    shares = {name: share_in_turn(runner, work, first[name]) for name, runner in runners.items()}
    turns: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(rounds):
        for name, runner in runners.items():
            turns[name].append(seconds_of(runner, work, 2 + turn, shares[name]) / shares[name])
    return [
        dataclasses.replace(result, seconds=median(turns[result.name]), share=shares[result.name])
        if result.name in turns
        else result
        for result in results
    ]


def first_epochs(contenders: dict[str, Callable[[Work], Runner]], work: Work) -> tuple[list[Result], dict[str, Runner]]:
    """One epoch of each contender, and the contenders that can run, warm. Raises BenchmarkError as ``race`` does."""
    start, end = work.network().parameters, Tensor()
    results, runners = [], {}
    for name, make in contenders.items():
        try:
            runner = make(work)
            seconds = seconds_of(runner, work, epoch=1)
        except UnavailableError as reason:
            results.append(Result(name, note=str(reason)))
            continue
        if name == OURS:
            end = runner.parameters().clone()
        difference = None if name == FLOOR else ((runner.parameters() - end).norm() / (end - start).norm()).item()
        if difference is not None and not difference <= TOLERANCE:
            raise BenchmarkError(
                f"{name!r} does not do the same work: after one epoch its parameters are {difference:.1e} of ours' way "
                f"from ours, allowed is {TOLERANCE:.0e}"
            )
        results.append(Result(name, first_epoch=seconds, difference=difference))
        runners[name] = runner
    return results, runners


def seconds_of(runner: Runner, work: Work, epoch: int, share: float = 1.0) -> float:
    """How long ``runner`` takes for the first ``share`` of an epoch, its shuffle included."""
    synchronise(work.device)
    start = time.perf_counter()
    order = work.order(epoch)
    runner.epoch(order[: round(share * len(order))])
    synchronise(work.device)
    return time.perf_counter() - start


def share_in_turn(runner: Runner, work: Work, first_epoch: float, probe: int = 5) -> float:
    """The part of an epoch that a turn holds: all, or, of a long one, the whole batches that take about ``TURN``.

    A first epoch that was long may have been so for the compiler: a ``probe`` of some batches tells.
    """
    batch = work.batch_size / len(work.examples.labels)
    if first_epoch <= 2 * TURN or probe * batch >= 1:
        return 1.0
    batches = int(TURN / (seconds_of(runner, work, 1, probe * batch) / probe))
    share = max(batches, probe) * batch
    return share if share < 0.5 else 1.0


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# ---- what is told ----


def machine(device: torch.device) -> dict[str, str | int]:
    """What was measured on, and with what."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "cpu": (names or [platform.processor() or platform.machine()])[0],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "numpy": np.__version__,
    }


def table(measurement: Measurement) -> str:
    """One row a contender, as lines of Markdown."""
    ours, lowest = measurement.seconds(OURS), measurement.seconds(FLOOR)
    rows = [
        f"{measurement.title}, {measurement.examples:,} examples",
        "",
        "| contender | ms an epoch | ÷ ours | ÷ floor | first epoch, s | ends off ours by |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for r in measurement.results:
        if r.seconds is None:
            rows.append(f"| {r.name} | cannot run here: {r.note} | | | | |")
            continue
        about = "" if r.share == 1 else "~"
        off = "" if r.difference is None else f"{r.difference:.0e}"
        rows.append(
            f"| {r.name} | {about}{1e3 * r.seconds:,.1f} | {r.seconds / ours:.2f} | {r.seconds / lowest:.2f} "
            f"| {r.first_epoch:.2f} | {off} |"
        )
    if any(r.share < 1 for r in measurement.results):
        rows += ["", f"~ timed on the first part of the epoch, about {TURN:g} s of it, and scaled up"]
    return "\n".join(rows)


def growth(measurements: list[Measurement]) -> str:
    """How the cost grows with parameters and batch, as lines of Markdown."""
    rows = [
        "| network, batch | parameters | ours, µs a step | ours, µs an example | ours, ps an example and parameter "
        "| ours ÷ floor | in-memory autograd ÷ ours |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for m in measurements:
        ours = m.seconds(OURS)
        steps = -(-m.examples // m.batch_size)
        rows.append(
            f"| {'-'.join(map(str, m.sizes))}, {m.batch_size:,} | {m.parameters:,} | {1e6 * ours / steps:,.0f} "
            f"| {1e6 * ours / m.examples:,.2f} | {1e12 * ours / m.examples / m.parameters:,.0f} "
            f"| {ours / m.seconds(FLOOR):.2f} | {m.seconds(PLAIN) / ours:.2f} |"
        )
    return "\n".join(rows)


def as_json(measurements: list[Measurement], options: Options, where: dict[str, str | int]) -> str:
    """Everything that was measured, to be read by a program."""
    told = []
    for m in measurements:
        ours, lowest = m.seconds(OURS), m.seconds(FLOOR)
        contenders = [
            dataclasses.asdict(r)
            | {
                "ratio_to_ours": None if r.seconds is None else r.seconds / ours,
                "ratio_to_floor": None if r.seconds is None else r.seconds / lowest,
            }
            for r in m.results
        ]
        told.append(m._asdict() | {"results": contenders})
    return json.dumps(
        {"machine": where, "rounds": options.rounds, "tolerance": TOLERANCE, "measurements": told}, indent=2
    )


COLOURS = {OURS: "#0072B2", WRITTEN: "#56B4E9", FLOOR: "#999999"}
"""Okabe and Ito's blues and grey, which every kind of colour vision tells apart from the others' orange."""


def finding(m: Measurement) -> str:
    """What the measurement says, in a line."""
    sizes = "-".join(map(str, m.sizes))
    ratio = m.seconds(PLAIN) / m.seconds(OURS)
    return f"{sizes}, batch {m.batch_size:,}: in-memory autograd takes {ratio:.1f} times as long as ours"


def picture(measurements: list[Measurement], where: dict[str, str | int]) -> bytes:
    """Horizontal bars on one log scale, a panel for each measurement, as a PNG."""
    bars = [len(m.results) for m in measurements]
    figure = Figure(figsize=(9, 0.36 * sum(bars) + 0.7 * len(bars) + 0.8), layout="constrained")
    panels = figure.subplots(len(bars), sharex=True, squeeze=False, height_ratios=bars)[:, 0]
    for axes, m in zip(panels, measurements, strict=True):
        draw(axes, m)
    times = [1e3 * r.seconds for m in measurements for r in m.results if r.seconds is not None]
    panels[-1].set_xlim(min(times) / 2, max(times) * 5)  # room for the labels behind the bars
    panels[-1].set_xlabel(
        f"milliseconds for an epoch of {measurements[0].examples:,} examples, log scale; × is to ours"
    )
    versions = ", ".join(f"{name} {where[name]}" for name in ("python", "torch", "numpy"))
    threads = f"{where['threads']} thread" + ("s" if where["threads"] != 1 else "")
    figure.supxlabel(f"{where['cpu']}, {threads}, device {where['device']}, {versions}", fontsize=8, color="#555555")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def draw(axes: Axes, m: Measurement) -> None:
    """One panel: the time of an epoch, and beside each bar its ratio to ours."""
    times = {r.name: 1e3 * r.seconds for r in m.results if r.seconds is not None}
    names = sorted(times, key=lambda name: -times[name])  # the slowest at the bottom
    bars = axes.barh(names, [times[name] for name in names], color=[COLOURS.get(name, "#E69F00") for name in names])
    axes.bar_label(bars, [f" {times[name]:,.0f} ms, {times[name] / times[OURS]:.2f}×" for name in names], fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=9)
    axes.set_title(finding(m), loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


# ---- the command ----


def measure(options: Options, contenders: dict[str, Callable[[Work], Runner]]) -> Iterator[Measurement]:
    """The race at every size asked for, one after the other. Raises BenchmarkError, TrainingError or DataError."""
    examples, _ = load("mnist", options.data_dir, choose_device(options.device))
    for sizes, batch_size in SWEEP if options.sweep else ((options.sizes, options.batch_size),):
        work = Work(Config(sizes=sizes, batch_size=batch_size, data_dir=options.data_dir), examples)
        parameters = len(work.network().parameters)
        results = race(contenders, work, options.rounds)
        yield Measurement(sizes, batch_size, parameters, len(examples.labels), results)


def main(arguments: list[str]) -> None:
    """Read the flags, race, tell, draw."""
    options = parse(
        Options,
        prog="python -m bp_torch benchmark",
        description="Time the hand-written backward beside what you would otherwise write.",
        args=arguments,
    )
    wanted = dict.fromkeys(THREAD_VARIABLES, str(options.threads))
    if not wanted.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "bp_torch", "benchmark", *arguments], os.environ | wanted)
    with one_line_errors(BenchmarkError, TrainingError, DataError, OSError):
        torch.set_num_threads(options.threads)
        device = choose_device(options.device)
        where = machine(device)
        tell = (lambda text: None) if options.json else print
        tell(", ".join(f"{name} {value}" for name, value in where.items()))
        measurements = []
        for m in measure(options, CONTENDERS | (ON_CUDA if device.type == "cuda" else {})):
            measurements.append(m)
            tell(f"\n{table(m)}")
        if options.sweep:
            tell(f"\n{growth(measurements)}")
        tell(f"\nall end at the same weights, within {TOLERANCE:.0e} of the way that ours went in the first epoch")
        replace_file(options.out, picture(measurements, where))
        tell(f"saved {options.out}")
        if options.json:
            print(as_json(measurements, options, where))
