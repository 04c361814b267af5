"""The flags of ``python -m bp_torch verify``, of ``verify FILE:NAME`` and of ``verify layer NAME``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bp_torch.flags import Within, check_bounds, flag
from bp_torch.training.config import SEEDS
from bp_torch.values import DatasetName, DTypeName


@dataclass(frozen=True)
class Options:
    """The checks: without --run, of networks of every activation, output activation and cost on real digits."""

    run: Path | None = None
    """Folder of a run: check with its trained network, on its test examples. None: check untrained networks of
    every kind."""
    depths: Annotated[tuple[int, ...] | None, Within(least=1, most=100)] = None
    """Layers with weights; hidden ones have 16 neurons. Not with --run. None: 1 2 3 4."""
    batch_sizes: Annotated[tuple[int, ...], Within(least=1)] = (1, 2, 7, 100)
    """Examples in a batch."""
    dtypes: tuple[DTypeName, ...] = ("float32", "float64")
    """Types in which the hand-written backward computes."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N, for the backward and autograd."""
    tolerance: float | None = None
    """Largest relative error that is allowed. None: ε^(2/3) of the dtype, and more where rounding
    alone can cause it."""
    coordinates: Annotated[int, Within(least=0)] = 1
    """Entries of each tensor that central differences check, starting with the one that is furthest off. 0: none."""
    dataset: DatasetName | Path | None = None
    """Name of a data set, or path of your own data. Not with --run, which has its own. None: mnist."""
    data_dir: Path | None = None
    """Folder of the data sets. None: data, or that of the run."""
    seed: Annotated[int, Within(least=0, most=SEEDS - 1)] = 0
    """Seed of the initial values, the examples and the entries."""
    verbose: bool = False
    """Print every gradient of every network."""
    json: bool = False
    """Print everything as JSON."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_bounds(self)
        for name in ("depths", "batch_sizes", "dtypes"):
            if getattr(self, name) == ():
                raise ValueError(f"{flag(name)}: wanted at least one")
        for name in ("depths", "dataset"):
            if self.run is not None and getattr(self, name) is not None:
                raise ValueError(f"{flag(name)} has no effect with --run, which has its own: leave one of them out")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance: wanted a relative error between 0 and 1, got {self.tolerance}")


@dataclass(frozen=True)
class FileOptions:
    """The reference, the inputs, and the limits of every candidate."""

    reference: tuple[str, ...] = ()
    """FILE:NAME of the same function in plain operations, for all candidates or for each. None: reference in the
    candidate's file, which the judging process then imports too."""
    inputs: tuple[str, ...] = ()
    """FILE:NAME of inputs, or of a function of a seed or a shape that draws them. None: make_inputs in the
    reference's file."""
    dtypes: tuple[str, ...] = ("float32",)
    """Dtypes of the inputs with real numbers: float64, float32, bfloat16, float16."""
    shapes: tuple[str, ...] = ()
    """Shapes, such as 4x8 16x129: the function of --inputs is called with their numbers. None: it is called
    with the seed."""
    strided: bool = False
    """Also check with inputs that are not contiguous."""
    seconds: Annotated[float, Within(above=0)] = 60.0
    """Time that a candidate has for each check."""
    memory: Annotated[float, Within(above=0)] = 8.0
    """GiB that a candidate may use, in addition to what torch uses. Enforced only on Linux."""
    tolerance: float | None = None
    """Largest relative error that is allowed. None: that of the dtype."""
    seed: Annotated[int, Within(least=0, most=SEEDS - 1)] = 0
    """Seed of the inputs and of every random choice."""
    verbose: bool = False
    """Print the table of each candidate, and the report of each check that is not RIGHT."""
    json: bool = False
    """Print everything as JSON."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_bounds(self)
        known = ("float64", "float32", "bfloat16", "float16")
        if bad := [name for name in self.dtypes if name not in known]:
            raise ValueError(f"--dtypes: wanted {', '.join(known)}, got {' '.join(bad)}")
        if bad := [shape for shape in self.shapes if not all(n.isdecimal() for n in shape.split("x"))]:
            raise ValueError(f"--shapes: wanted whole numbers with x between them, such as 4x8, got {' '.join(bad)}")
        if not self.dtypes:
            raise ValueError("--dtypes: wanted at least one")


@dataclass(frozen=True)
class LayerOptions:
    """The fault of a layer, and the dtype of its check."""

    fault: Annotated[int | None, Within(least=1)] = None
    """Check the backward with this fault, a number from the layer's list. None: check the right backward."""
    dtype: DTypeName = "float64"
    """Type of the inputs."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_bounds(self)
