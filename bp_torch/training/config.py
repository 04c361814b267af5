"""Everything that can be chosen for a run: ``Config``, with a flag of train.py for each field."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import wraps
from math import cos, pi
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from bp_torch import values
from bp_torch.cli import UserError, train_command
from bp_torch.files import WINDOWS, is_there, read_json, told
from bp_torch.flags import Flag, Role, Within, check_bounds, check_effects, check_types, flag, flags_of
from bp_torch.kind import KINDS, Kind
from bp_torch.training import rows
from bp_torch.values import CONFIG, SIDE, Deformation, check_positive, parameter_count

if TYPE_CHECKING:  # imported where they are used: flags are read before torch is loaded
    import torch
    from torch import Tensor

    from bp_torch.data import Examples
    from bp_torch.network import Network
    from bp_torch.sgd import SGD
    from bp_torch.training.step import TrainingStep

PrecisionName = Literal["full", "tf32", "bf16", "auto"]
Schedule = Literal["inverse", "exponential", "cosine", "constant"]
DeformName = Literal["none", "affine", "elastic", "both"]

SEEDS = 2**32  # seeds are below this number
DATA = "data"  # in a run's config.json, the kind of somebody's own data
LONGEST_NAME = 200  # bytes of a run's name: file systems allow 255, and a folder that is being made has a longer name
DEFAULT_NAME = 60 if WINDOWS else LONGEST_NAME  # of one that is not given: Windows has 260 for a whole path

ACTIVATIONS, COSTS = "bp_torch.activations:ACTIVATIONS", "bp_torch.costs:COSTS"
LOG = Flag("log", only_with=("log", (True,)))
AFFINE = Flag(only_with=("deform", ("affine", "both")))
ELASTIC = Flag(only_with=("deform", ("elastic", "both")))


@dataclass(frozen=True)
class Config:
    """The settings of a run. Raises ValueError for a value out of its range."""

    sizes: Annotated[tuple[int, ...], Flag(first_column=True)] = (784, 16, 16, 10)
    """Neurons per layer: 784 pixels first, 10 digits last, hidden layers between. For other data, the first and last
    entries of the default become the numbers of inputs and classes."""
    activation: Annotated[values.ActivationName, Flag(word="", first_column=True), ACTIVATIONS] = "sigmoid"
    """Activation of the hidden layers."""
    output_activation: Annotated[values.ActivationName | None, ACTIVATIONS] = None
    """Activation of the last layer. None: sigmoid, or identity for the softmax cost, which contains the softmax."""
    init: values.InitName = "lecun"
    """Standard deviation of the initial weights: lecun 1/√n_in, he √(2/n_in), normal 1. uniform: from −1/√n_in to
    1/√n_in. The biases are zero; only normal draws them too."""
    cost: Annotated[values.CostName, Flag(word="", first_column=True), COSTS] = "quadratic"
    """Cost of one example; the cost of a batch is the mean over its examples."""
    learning_rate: Annotated[float, Flag(word="lr", first_column=True)] = 3.0
    """Learning rate of the first epoch."""
    learning_rate_decay: Annotated[float, Within(least=0), Flag(word="lr-decay")] = 0.1
    """How fast the learning rate falls: the decay of --schedule inverse and exponential."""
    schedule: Schedule = "inverse"
    """Learning rate of epoch e, divided by that of the first epoch: inverse 1 / (1 + decay (e − 1)); exponential
    (1 − decay)^(e − 1); cosine (1 + cos(π (e − 1) / epochs)) / 2; constant 1."""
    batch_size: Annotated[int | Literal["full"], Within(least=1), Flag(word="batch", first_column=True)] = 100
    """Examples per step. full: all training examples in each step, true gradient descent."""
    epochs: Annotated[int, Within(least=0), Flag(may_change=True)] = 20
    """Passes over the training examples."""
    momentum: float = 0.0
    """Momentum of SGD, from 0 to below 1."""
    weight_decay: float = 0.0
    """Weight decay of SGD, 0 or more."""
    decay_biases: bool = False
    """Apply weight decay to the biases too."""
    dataset: values.DatasetName | Path = "mnist"
    """MNIST is part of the package; the others with a name are downloaded. PATH: your own data, an .npz, a .csv, IDX
    files or their folder, or a folder that has a folder of images for each class."""
    targets: Annotated[int, Within(least=0)] = 0
    """Number of columns of your own data that are real targets: those named target or y, or else the last. The output
    activation is then identity. 0: the data have classes."""
    data_dir: Annotated[Path, Flag("place", may_change=True)] = Path("data")
    """Folder of the data sets; filled on first use."""
    train_examples: Annotated[int | None, Within(least=1), Flag(word="examples")] = None
    """Train on this many of the shuffled training examples. None: on all."""
    validation: Annotated[int, Within(least=0)] = 0
    """Number of training examples to hold out, the last of the shuffled ones. Each epoch ends with an evaluation on
    these. The network that does best on them is saved, and evaluated once on the test set."""
    patience: Annotated[int, Within(least=0)] = 0
    """With --validation: end the run after this many epochs in a row without a new best accuracy. 0: never."""
    deform: DeformName = "none"
    """Deform the training images, anew in each epoch: affine turns, shears, scales and shifts them, elastic bends them,
    both does both."""
    rotation: Annotated[float, AFFINE] = Deformation.rotation
    """With --deform affine or both: largest angle in degrees. For a 1 or a 7, rotation and shear are half as large."""
    shear: Annotated[float, AFFINE] = Deformation.shear
    """Largest angle in degrees by which vertical lines lean."""
    scale: Annotated[float, AFFINE] = Deformation.scale
    """Width and height are multiplied by 1 − scale to 1 + scale."""
    shift: Annotated[float, AFFINE] = Deformation.shift
    """Largest shift in pixels, right and down."""
    sigma: Annotated[float, ELASTIC] = Deformation.sigma
    """With --deform elastic or both: standard deviation in pixels of the Gaussian that smooths the noise."""
    alpha: Annotated[float, ELASTIC] = Deformation.alpha
    """Factor of the smoothed noise."""
    seed: Annotated[int, Within(least=0), Flag("seed")] = 0
    """Seed of the initial values, of every shuffle and of every deformation."""
    start_from: Annotated[Path | None, Flag("place", word="from")] = None
    """Network to train further, a .safetensors file of the same --sizes and activations. None: a new network."""
    recipe: Annotated[str | None, Flag("place")] = None
    """A row of the ladder (python -m bp_torch ladder): its settings replace the defaults of the
    other flags. None: no row."""
    runs_dir: Annotated[Path, Flag("place")] = Path("runs")
    """Folder of the runs."""
    run_name: Annotated[str | None, Flag("place")] = None
    """Name of the run's folder. None: the settings that differ from the defaults, the sizes, and the time."""
    resume: Annotated[Path | None, Flag("place")] = None
    """Folder of a run to continue from its last checkpoint. Only --epochs (but not with --schedule cosine),
    --replay, --data-dir and --device may change. None: a new run."""
    checkpoint_every: Annotated[int | None, Within(least=1), Flag("place", word="checkpoint-every")] = None
    """Also save a checkpoint after every so many steps. None: only after each epoch."""
    verify_every: Annotated[int | None, Within(least=1), Flag("machine", word="verify-every")] = None
    """Steps between two checks of the gradient against autograd; the run stops with a report if they disagree. None:
    no checks."""
    log: Annotated[bool, Flag("log")] = True
    """Write the event file that TensorBoard reads."""
    log_every: Annotated[int, Within(least=1), LOG] = 100
    """Steps between two points of the training cost."""
    histogram_every: Annotated[int, Within(least=1), replace(LOG, word="histogram-every")] = 1
    """Epochs between two histograms of each tensor."""
    log_embedding: Annotated[bool, LOG] = False
    """At the end, add a PR curve for each digit and the last hidden layer's activations for the projector."""
    device: Annotated[str, Flag("place", may_change=True)] = "auto"
    """auto, cpu, cuda or cuda:N. auto is the first NVIDIA GPU, or the CPU without one."""
    dtype: values.DTypeName = "float32"
    """Type of every number in the network."""
    precision: PrecisionName = "full"
    """Precision of both passes. full: that of the parameters; tf32: TF32 in matrix products, on a GPU; bf16: bfloat16
    throughout; auto: bf16 if the device has instructions for it, else full. The parameters stay float32."""
    replay: Annotated[bool, Flag("machine", may_change=True)] = True
    """Record the operations of a step once and replay them, on a GPU as a CUDA graph. --no-replay is for debugging."""
    compile: Annotated[bool, Flag("machine")] = False
    """Compile the step with torch.compile first, which takes up to a minute. For GPUs: on a CPU the step is slower."""
    threads: Annotated[int | None, Flag("machine")] = None
    """CPU threads. None: one for a small network, else torch's default."""

    groups: ClassVar[dict[str, str]] = {  # of the help: the first field of each, and its name
        "sizes": "the network",
        "cost": "the descent",
        "dataset": "data",
        "seed": "the run",
        "log": "logging",
        "device": "the machine",
    }

    def __post_init__(self) -> None:
        """Check every field."""
        check_types(self)
        check_bounds(self)
        self._check_data()
        self._check_names()
        if self.recipe is not None:
            self._check_recipe(self.recipe)
        values.check_threads(self.threads)
        if parameter_count(self.sizes) >= 2**40:
            raise ValueError(f"--sizes: {parameter_count(self.sizes):,} parameters do not fit in any memory")
        if self.seed >= SEEDS:
            raise ValueError(f"--seed: wanted less than {SEEDS:,}, got {self.seed}")
        if self.precision != "full" and self.dtype != "float32":
            raise ValueError(f"--precision {self.precision}: wanted --dtype float32, got {self.dtype}")
        if self.precision == "tf32" and self.verify_every:
            wanted = "--precision full, bf16 or auto, got tf32, in which autograd is no reference"
            raise ValueError(f"--verify-every: wanted {wanted}")
        check_effects(self)
        if self.patience and not self.validation:
            raise ValueError("--patience has no effect without --validation, which says on how many examples")
        if self.schedule == "exponential" and self.learning_rate_decay >= 1:
            wanted = f"less than 1 with --schedule exponential, got {self.learning_rate_decay}"
            raise ValueError(f"--learning-rate-decay: wanted {wanted}")
        self.deformation  # noqa: B018 (raises for a value out of range)
        if (needed := self.absorbed) not in (None, self.outputs):
            raise ValueError(f"{self.cost} needs {needed} outputs, the network has {self.outputs}")
        values.check_momentum(self.momentum)
        values.check_weight_decay(self.weight_decay, self.dtype)
        check_positive("the learning rate", self.learning_rate, self.dtype)
        try:
            smallest = self.learning_rate_at(max(1, self.epochs))
            check_positive("the learning rate", smallest, self.dtype)
        except ValueError as error:
            raise ValueError(f"--learning-rate-decay: in epoch {self.epochs}, {error}") from error

    def _check_data(self) -> None:
        """Raise ValueError for sizes that are not those of the data, as far as these are known without being read."""
        kind = None if isinstance(self.dataset, Path) else KINDS[self.dataset]
        if kind and self.sizes == type(self).sizes:
            object.__setattr__(self, "sizes", (kind.inputs, *self.sizes[1:-1], kind.outputs))
        if len(self.sizes) < 2 or min(self.sizes) < 1 or (kind and not kind.fits(self.sizes)):
            wanted = "two or more positive numbers"
            if kind:
                classes = "digits" if kind.is_digits else "classes"
                wanted = f"{kind.inputs} (pixels) first, {kind.outputs} ({classes}) last and positive numbers between"
            raise ValueError(f"--sizes: wanted {wanted}, got {' '.join(map(str, self.sizes)) or 'none'}")
        if self.targets and (kind or self.cost != "quadratic" or self.outputs != "identity"):
            wanted = "--dataset PATH, --cost quadratic and --output-activation identity"
            got = f"{self.dataset}, {self.cost} and {self.outputs}"
            raise ValueError(f"--targets: wanted {wanted}, got {got}")
        path = self.dataset
        if isinstance(path, Path) and len(path.parts) == 1 and not is_there(path):  # that of a run is in a folder
            names = ", ".join(KINDS)
            raise ValueError(f"--dataset: wanted {names}, or a path; there is no {str(path)!r} here")

    def fitted(self, kind: Kind) -> Self:
        """This config for data of this ``kind``. Raises TrainingError for sizes or a deformation that do not fit it."""
        ends = (kind.inputs, *self.sizes[1:-1], kind.outputs)
        config = replace(self, sizes=ends) if self.sizes == type(self).sizes else self
        if not kind.fits(config.sizes):
            wanted = f"{kind.inputs} first and {kind.outputs} last for {kind.words}"
            raise TrainingError(f"--sizes: wanted {wanted}, got {' '.join(map(str, self.sizes))}")
        if self.deformation and (kind.image != (SIDE, SIDE) or kind.scale != (255.0,)):
            raise TrainingError(f"--deform: wanted bytes of 28×28 images, {self.dataset} has {kind.words}")
        return config

    def _check_recipe(self, name: str) -> None:
        """Raise ValueError for the name of no row, and for settings that are not those of the row but the defaults."""
        try:
            fields = rows.find(name).fields
        except ValueError as error:
            raise ValueError(f"--recipe: {error}") from error
        row = {field: value for field, value in fields.items() if value != getattr(type(self), field)}
        if row and all(getattr(self, field) == getattr(type(self), field) for field in row):
            missing = ", ".join(f"{flag(field)} {value}" for field, value in row.items())
            raise ValueError(f"--recipe {name}: wanted its settings ({missing}), got the defaults")

    def _check_names(self) -> None:
        """Raise ValueError for a name or a path that cannot be written, on disk or on a screen."""
        name = self.run_name
        if name is not None and (name in ("", "..") or Path(name).name != name):
            raise ValueError(f"--run-name: wanted the name of one folder in --runs-dir, got {name!r}")
        if name is not None and len(name.encode(errors="replace")) > LONGEST_NAME:
            raise ValueError(f"--run-name: wanted at most {LONGEST_NAME} bytes, got {name!r}")
        for field in ("run_name", "runs_dir", "data_dir", "dataset", "resume", "start_from"):
            text = str(getattr(self, field))
            with suppress(UnicodeEncodeError):
                if b"\0" not in os.fsencode(text):
                    continue
            raise ValueError(f"{flag(field)}: wanted characters that this system can write, got {text!a}")

    @property
    def deformation(self) -> Deformation | None:
        """How the training images are deformed; None where they are not."""
        if self.deform == "none":
            return None
        affine = (self.rotation, self.shear, self.scale, self.shift)
        affine = affine if self.deform != "elastic" else (0.0, 0.0, 0.0, 0.0)
        return Deformation(*affine, self.sigma, self.alpha if self.deform != "affine" else 0.0)

    @property
    def data_paths(self) -> list[str]:
        """The fields that say where the data are."""
        return ["data_dir", *["dataset"] * isinstance(self.dataset, Path)]

    @property
    def evaluated_on(self) -> str:
        """The examples that are evaluated after each epoch: validation or test."""
        return "validation" if self.validation else "test"

    @property
    def measure(self) -> str:
        """The name of a ``Score``'s accuracy: of real targets, it is the part of their variance that is explained."""
        return "explained" if self.targets else "accuracy"

    @property
    def absorbed(self) -> str | None:
        """Name of the output activation that the cost requires; None where it takes any."""
        if self.cost in get_args(values.CostName):
            return values.ABSORBED.get(self.cost)
        from bp_torch.costs import find_cost

        return find_cost(self.cost).absorbs  # of one that a user has added

    @property
    def outputs(self) -> str:
        """Name of the output activation: the one chosen, or the default of the cost."""
        linear = self.targets or self.cost == "softmax-cross-entropy"
        of_cost = "identity" if linear else self.absorbed
        return self.output_activation or of_cost or "sigmoid"

    def network(self, device: "torch.device", members: "Sequence[Config] | None" = None) -> "Network":
        """The network with the initial values of this run; or of ``members``, those of the K runs as one network."""
        import torch

        from bp_torch.network import Network

        return Network(
            self.sizes,
            activation=self.activation,
            output_activation=self.outputs,
            init=[member.init for member in members] if members else self.init,
            seed=[member.seed for member in members] if members else self.seed,
            dtype=getattr(torch, self.dtype),
            device=device,
            networks=len(members) if members else None,
        )

    def optimizer(self, network: "Network", members: "Sequence[Config] | None" = None) -> "SGD":
        """The optimizer of this run; or of ``members``, K runs whose parameters are those of ``network``."""
        from bp_torch.sgd import SGD

        names, several = ("learning_rate", "momentum", "weight_decay"), members or [self]
        numbers = {name: scalar_or_column([getattr(member, name) for member in several]) for name in names}
        return SGD(network, **numbers, decay_biases=self.decay_biases)

    def training_step(
        self,
        network: "Network",
        optimizer: "SGD",
        examples: "Examples",
        *,
        epoch_examples: int | None = None,
        record: bool = True,
        **options: Any,
    ) -> "TrainingStep":
        """The step of this run on mini-batches of ``examples``; an epoch has ``epoch_examples`` of them (None: all).

        ``options``: ``running`` and ``world``.
        """
        import torch

        from bp_torch.training.step import TrainingStep

        n = epoch_examples or len(examples.labels)
        return TrainingStep(
            network,
            optimizer,
            examples,
            n if self.batch_size == "full" else min(self.batch_size, n),
            self.cost,
            precision=torch.bfloat16 if self.precision_on(network.device) == "bf16" else None,
            record=record and self.replay,
            compiled=record and self.compile,
            **options,
        )

    def precision_on(self, device: "torch.device") -> PrecisionName:
        """The precision of both passes on ``device``: for auto, bf16 or full."""
        from bp_torch.device import has_bfloat16

        if self.precision != "auto":
            return self.precision
        return "bf16" if has_bfloat16(device) else "full"

    def hyperparameters(self, examples: int, batch_size: int) -> dict[str, str | float]:
        """The settings that one compares. Keys and types are the same for every run."""
        used = {"output_activation": self.outputs, "batch_size": batch_size, "train_examples": examples}
        names = [name for name, flag in flags_of(type(self)).items() if flag.decides and not flag.only_with]
        names.remove("init")
        names.insert(names.index("cost") + 1, "init")
        return {name: as_column(used.get(name, getattr(self, name))) for name in names}

    @property
    def network_name(self) -> str:
        """Sizes and activations, as a checkpoint has them."""
        return f"{'-'.join(map(str, self.sizes))}, {self.activation}, {self.outputs}"

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of ``epoch``, which counts from 1."""
        decay, done = self.learning_rate_decay, epoch - 1
        parts = {
            "inverse": lambda: 1 / (1 + decay * done),
            "exponential": lambda: (1 - decay) ** done,
            "cosine": lambda: (1 + cos(pi * done / max(1, self.epochs))) / 2,
            "constant": lambda: 1.0,
        }
        return self.learning_rate * parts[self.schedule]()

    def to_json(self, folder: Path | None = None) -> str:
        """The config as JSON. Its data are found again from any folder, and where they move together with ``folder``.

        Their path is relative to ``folder``, that of a run, in whose config.json the text will be; else it is absolute.
        """
        fields = dataclasses.asdict(self)
        for name in self.data_paths:
            fields[name] = fields[name].absolute()
            with suppress(ValueError):  # Windows has no path from one drive to another
                fields[name] = (
                    Path(os.path.relpath(fields[name].resolve(), folder.resolve())) if folder else fields[name]
                )
        fields["start_from"] = self.start_from and self.start_from.absolute()
        del fields["resume"]
        return json.dumps(fields, indent=2, default=lambda path: path.as_posix()) + "\n"  # Windows takes a/b too

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that ``to_json`` wrote, fields that are missing at their defaults. Raises ValueError otherwise."""
        try:
            fields = json.loads(text)
            fields.pop(DATA, None)
            paths = {name: Path(fields[name]) for name in ("data_dir", "runs_dir")}
            if fields.get("dataset", "mnist") not in KINDS:
                paths["dataset"] = Path(fields["dataset"])
            paths |= {"start_from": Path(start)} if (start := fields.get("start_from")) else {}
            lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
            defaults = {field.name: field.default for field in dataclasses.fields(cls)}
            return cls(**defaults | {"sizes": ()} | fields | paths | lists)
        except (TypeError, KeyError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(f"not the config of a run: {error}") from error

    def resumed(self, given: Self) -> Self:
        """``given``, if a run of this config may continue with it. Raises ValueError if it may not."""
        flags, roles = flags_of(type(self)), get_args(Role)
        may_change = sorted((n for n in flags if flags[n].may_change), key=lambda n: roles.index(flags[n].role))
        for name in flags:
            was, now = getattr(self, name), getattr(given, name)
            moved = isinstance(was, Path) and isinstance(now, Path)  # own data, which have a checksum
            if name not in ("resume", *may_change) and was != now and not (moved and name == "dataset"):
                *others, last = map(flag, may_change)
                only = f"only {', '.join(others)} and {last} may change on resuming"
                raise ValueError(f"{flag(name)} {now} differs from the run's {was}: {only}")
        if self.schedule == "cosine" and given.epochs != self.epochs:
            raise ValueError("--epochs cannot change with --schedule cosine: every learning rate depends on it")
        return given


def with_recipe(init: Callable[..., None]) -> Callable[..., None]:
    """The ``init`` of Config, with the settings of the row that ``recipe`` names where others are not given."""

    @wraps(init)
    def of_recipe(config: Config, *first: Any, **given: Any) -> None:
        row = next((row.fields for row in rows.ROWS if row.name == given.get("recipe")), {})
        positional = [field.name for field in dataclasses.fields(config)][: len(first)]
        init(config, *first, **{name: row[name] for name in row if name not in positional} | given)

    return of_recipe


Config.__init__ = with_recipe(Config.__init__)  # type: ignore[method-assign]
AnyConfig = TypeVar("AnyConfig", bound=Config)


class TrainingError(UserError):
    """The run cannot start or continue. The message says why, and what to try."""


def read_config(folder: Path) -> Config:
    """The config of the run in ``folder``. Raises TrainingError if there is none."""
    return read_config_as(Config, folder, f"no run in {folder}", train_command())


def check_resumed(config: Config, saved: Config) -> None:
    """Raise TrainingError unless the run to ``resume``, ``saved`` with its config, may continue with ``config``."""
    try:
        saved.resumed(config)
    except ValueError as error:
        raise TrainingError(f"cannot continue {config.resume}: {error}") from error


def read_config_as(kind: type[AnyConfig], folder: Path, missing: str, make: str) -> AnyConfig:
    """The config in ``folder``. Raises TrainingError if it is ``missing``, with the command to ``make`` it."""
    path = folder / CONFIG
    try:
        config = kind.from_json(json.dumps(read_json(path, older=True)))
        return replace(config, **{name: (folder / getattr(config, name)).resolve() for name in config.data_paths})
    except (OSError, ValueError) as error:
        raise TrainingError(f"{missing} ({told(error)}); make one with: {make}") from error


def scalar_or_column(values: Sequence[float]) -> "float | Tensor":
    """The value that all networks have, or else a value for each, (K,)."""
    import torch

    return values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=torch.float64)


def as_column(value: Any) -> str | float:
    """The value of a setting, as HParams takes it: 784-16-16-10."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
