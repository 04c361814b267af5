"""The flags of every idea. They are read before torch is loaded, so nothing here knows of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from bp_torch.flags import Within, check_bounds
from bp_torch.training.config import SEEDS
from bp_torch.values import CLASSES, check_threads

DIGIT = Within(least=0, most=CLASSES - 1)
SEED = Within(least=0, most=SEEDS - 1)
COUNT = Within(least=1)


@dataclass(frozen=True)
class NetworkOptions:
    """The flags that choose a network and its data."""

    run: Path | None = None
    """Folder of the run whose network is explained. None: the newest in runs/."""
    untrained: bool = False
    """Explain an untrained network with all defaults instead of a run's."""
    data_dir: Path | None = None
    """Folder of the data sets. None: the run's own."""
    device: str = "cpu"
    """auto, cpu, cuda or cuda:N. The CPU suffices."""
    threads: int = 1
    """CPU threads. Small networks are quickest on one."""

    groups: ClassVar[dict[str, str]] = {"run": "the network", "device": "the machine"}

    def __post_init__(self) -> None:
        """Raise ValueError for a number outside its bounds, here or in a subclass."""
        check_threads(self.threads)
        check_bounds(self)


@dataclass(frozen=True)
class CommonOptions(NetworkOptions):
    """The flags of every idea."""

    out: Path | None = None
    """The picture's file (.png, .svg or .pdf). None: explained/IDEA.png in the run's folder."""
    log: bool = False
    """Add the picture to the run's TensorBoard."""

    groups: ClassVar[dict[str, str]] = {"out": "the picture"}


@dataclass(frozen=True)
class ExampleOptions(CommonOptions):
    """The flags of the ideas that explain one example."""

    digit: Annotated[int | None, DIGIT] = None
    """Take an example of this digit. None: a 2, or any digit with --index or --mistakes."""
    index: int | None = None
    """Number of the example, from 0, among those that --digit and --mistakes choose, or among all. None: a plainly
    written example, or the first mistake."""
    loudest: bool = False
    """Take the example with the largest δ^L, which wants the most."""
    test: bool = False
    """Take a test example instead of a training example."""
    mistakes: bool = False
    """Take an example that the network gets wrong."""
    image: Path | None = None
    """File of your own picture of a digit to explain: a drawing, a scan or a photo. None: an example."""
    label: Annotated[int | None, DIGIT] = None
    """With --image: the digit that it shows. None: the network's answer."""

    groups: ClassVar[dict[str, str]] = {"digit": "the example"}

    def __post_init__(self) -> None:
        """Check that one example is named once."""
        super().__post_init__()
        if self.loudest and self.index is not None:
            raise ValueError("--index and --loudest exclude each other")
        if self.label is not None and self.image is None:
            raise ValueError("--label has no effect without --image")
        for name in ("digit", "index", "loudest", "test", "mistakes"):
            if self.image is not None and getattr(self, name) not in (None, False):
                raise ValueError(f"--image and --{name} exclude each other")


@dataclass(frozen=True)
class AllOptions(CommonOptions):
    """The flags of ``explain all``."""

    out: Path | None = None
    """Folder of the pictures and index.html. None: explained/ in the run's folder."""


@dataclass(frozen=True)
class AverageOptions(CommonOptions):
    """The columns of the table."""

    first: Annotated[int, Within(least=0)] = 0
    """The first training example that has a column."""
    columns: Annotated[int | None, Within(least=1, most=10)] = None
    """Number of examples that have a column, from 1 to 10. None: 6, or all if there are fewer."""


@dataclass(frozen=True)
class BatchesOptions(CommonOptions):
    """The batches."""

    batch_size: Annotated[int | None, COUNT] = None
    """Examples in a mini-batch. None: 100, or all if there are fewer."""
    shown: Annotated[int, Within(least=1, most=6)] = 4
    """Number of mini-batches to show, from 1 to 6."""
    epoch: Annotated[int, COUNT] = 1
    """Epoch whose shuffle is shown."""


@dataclass(frozen=True)
class DescentOptions(CommonOptions):
    """The number of steps of each method."""

    full_steps: Annotated[int, Within(least=1)] = 120
    """Steps on all training examples."""
    mini_steps: Annotated[int, Within(least=1)] = 3_000
    """Steps on mini-batches."""
    single_steps: Annotated[int, Within(least=1)] = 20_000
    """Steps on single examples."""
    mini_batch: Annotated[int, Within(least=1)] = 100
    """Examples in a mini-batch."""
    single_learning_rate: Annotated[float | None, Within(above=0)] = None
    """Learning rate on single examples. None: a tenth of the run's, which is too large for one example."""
    close_steps: Annotated[int, Within(least=2)] = 60
    """Steps on mini-batches, and on all examples, that the close view shows."""
    grid: Annotated[int, Within(least=2)] = 25
    """Points of a surface along each side."""
    seed: Annotated[int, SEED] = 0
    """Seed of the mini-batches whose angles are measured."""


@dataclass(frozen=True)
class GradientOptions(CommonOptions):
    """Which two weights are compared, and how far they are moved."""

    ratio: Annotated[float, Within(above=1)] = 32
    """About how many times as sensitive the cost is to the first weight as to the second."""
    step: Annotated[float, Within(above=0, below=1)] = 1e-3
    """How far each weight is moved, up and down."""


@dataclass(frozen=True)
class HebbianOptions(ExampleOptions):
    """The example, and the layer whose weights are explained."""

    layer: int | None = None
    """The layer, counted from 1. None: the last hidden one, whose φ′ differ most."""


@dataclass(frozen=True)
class MinimumOptions(CommonOptions):
    """How much of the run is repeated, and where the curvature is measured."""

    epochs: Annotated[int | None, Within(least=0)] = None
    """Number of the run's epochs to repeat. None: all, but at most 40, and none for an untrained network."""
    directions: Annotated[int, Within(least=1)] = 6
    """Random directions in which the curvature is measured."""
    seed: Annotated[int, SEED] = 0
    """Seed of the directions."""


@dataclass(frozen=True)
class DataOptions(CommonOptions):
    """How long each network is trained, and how many are trained for each number of examples."""

    epochs: Annotated[int, COUNT] = 5
    """Training time of each network: as many images as in this many passes over all training examples."""
    seeds: Annotated[int, COUNT] = 3
    """Networks for each number of examples, with different initial values, examples and shuffles."""


@dataclass(frozen=True)
class NudgesOptions(ExampleOptions):
    """The example, and the output whose three ways are ranked."""

    neuron: Annotated[int | None, DIGIT] = None
    """The output, 0 to 9. None: the output of the digit that the image shows."""


@dataclass(frozen=True)
class OnlyOptions(CommonOptions):
    """The digit, and the number of steps."""

    digit: Annotated[int, DIGIT] = 2
    """The only digit that the network sees."""
    steps: Annotated[int, COUNT] = 400
    """Training steps, each on a mini-batch as large as the run's."""


@dataclass(frozen=True)
class PageOptions(NetworkOptions):
    """The flags of ``explain page``."""

    out: Path | None = None
    """The page's file. None: explained/page.html in the run's folder."""
    open: bool = False
    """Open the page in the browser."""


def options_of(name: str) -> Any:
    """The flags of an idea, of ``page`` or of ``all``: those of its own name, or else of one example."""
    return globals().get(f"{name.capitalize()}Options", ExampleOptions)
