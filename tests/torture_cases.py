"""What ``tests.torture`` tries: hostile values, command lines, environments, and misuses of the package from Python.

Everything here happens in one process, thousands of times in a minute, so that processes are left to what needs them.
"""

import contextlib
import copy
import io
import json
import math
import pickle
import random
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bp_torch import SGD, Network, backward, forward, from_sequential, load, save
from bp_torch.backprop import example_costs, per_example_gradients
from bp_torch.benchmark.accuracy import Accuracy
from bp_torch.benchmark.scripts import Scripts
from bp_torch.checkpoint import CONFIG, CheckpointError, State
from bp_torch.cli import UserError, parse
from bp_torch.commands import benchmark, ladder, verify_bench, verify_options
from bp_torch.explain import IDEAS
from bp_torch.explain.options import options_of
from bp_torch.files import with_sum
from bp_torch.flags import flag
from bp_torch.network import layer_views
from bp_torch.recorder import Recorder
from bp_torch.sweep.config import SweepConfig
from bp_torch.training import Config, TrainingError, read_config
from bp_torch.training.rows import ROWS
from bp_torch.values import ABSORBED
from tests.conftest import REFERENCE_ACTIVATIONS, REFERENCE_COSTS, Reference, relative_error


class Failure(AssertionError):  # noqa: N818 (a finding)
    """What must not happen. The message says what was tried and what came."""


LONG = int("9" * 401)
NUMBERS: list[Any] = [
    -1,
    0,
    1,
    2**31,
    2**32,
    2**63,
    2**64,
    LONG,
    -LONG,
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    5e-324,
    -0.0,
    0.5,
]
OTHERS: list[Any] = [
    None,
    True,
    "",
    "x",
    "\udcff",
    "a\0b",
    "nan",
    b"x",
    (),
    (1,),
    [784, 10],
    (784, -3, 10),
    (784, True, 10),
]
OTHERS += [(784, LONG, 10), (784.0, 10), {}, {"a": 1}, Path(), Path("\udcff"), Path("a\0b"), 3 + 4j, object()]
WORDS = ["", " ", "nan", "-inf", "1e400", "-1", "0", "1", "1.5", "9" * 401, "9" * 5000, "１", "0x10", "1_0", "1,000"]
WORDS += ["None", "True", "--", "-", "\udcff", "é", "δ" * 300, "a\nb", "\x1b[31m", "/dev/null", "/dev/zero", "~", ".."]
WORDS += [
    "*",
    "%s",
    "{}",
    "$HOME",
    "784 10",
    "full",
    "auto",
    "cuda:99",
    "-0",
    "+3",
    "1e5",
    "inf",
    "mnist",
    "[1]",
    "'a'",
]

PARSED: dict[str, Any] = {
    "train": Config,
    "sweep": SweepConfig,
    "ladder": ladder.Options,
    "ladder run ROW": ladder.Run,
    "ladder docs": ladder.Docs,
    "verify": verify_options.Options,
    "verify FILE:NAME": verify_options.FileOptions,
    "verify bench": verify_bench.Options,
    "benchmark": benchmark.Options,
    "benchmark scripts": Scripts,
    "benchmark accuracy": Accuracy,
    **{f"explain {name}": options_of(name) for name in (*IDEAS, "page", "all")},
}
"""The dataclass of the flags of each command."""

MISTAKES = [
    *(f"train --learning-rate {value}" for value in ("-1", "nan", "0", "inf", "1e300", "1e-60", "ten", "9" * 401)),
    *(f"train --weight-decay {value}" for value in ("-1", "nan", "1e308", "inf")),
    *(f"train --momentum {value}" for value in ("-0.1", "1", "nan")),
    *(f"train --batch-size {value}" for value in ("0", "-3", "2.5", "nan", "True", "some", "9" * 401)),
    *(f"train --epochs {value}" for value in ("-1", "1.5", "", "9" * 401, "9" * 5000)),
    *(f"train --sizes {value}" for value in ("784", "784 0 10", "10 784", "784 99999999999999999999 10", "784 x 10")),
    *(f"train --seed {value}" for value in ("-1", str(2**32), str(10**30))),
    *(f"train --threads {value}" for value in ("0", "-1", "100000")),
    *(f"train --device {value}" for value in ("cuda:99", "tpu", "meta", "mps", "cpu:7:8")),
    *(f"train --run-name {value}" for value in ("..", "a/b", "n" * 300, "\udcff")),
    *(f"train --no-log {value}" for value in ("--log-every 5", "--log-embedding", "--histogram-every 2")),
    *(f"train --data-dir {value}" for value in ("/dev/null", "/proc/none")),
    *(f"train --runs-dir {value} --epochs 0" for value in ("/dev/null", "/proc/none")),
    *(f"train --resume {value}" for value in ("nowhere", "/dev/null", "runs/whole --seed 5", "runs/whole --epochs 3")),
    *(f"train {value}" for value in ("--recipe=", "--recipe", "--recipe None", "--recipe lesson --validation 0")),
    "train --sizes 784 1000000000 10",
    "train --precision tf32 --device cpu",
    "train --cost binary-cross-entropy --output-activation relu",
    "train --train-examples 70000",
    *(f"verify {value}" for value in ("--depths 2000000", f"--seed {10**23}", "--batch-sizes 0", "--tolerance 2")),
    *(f"verify --run runs/whole {value}" for value in ("--depths 2", "--dataset kmnist", "--batch-sizes 99999")),
    *(f"verify bench --json {value} --layers linear" for value in ("/proc/none/a", "/dev/null/a", "runs")),
    *(f"explain {value}" for value in ("nothing", "only --digit 11", "nudges --threads 100000", "data --seeds 0")),
    *(f"explain nudges --run {value}" for value in ("nowhere", "/dev/null", "runs/whole --untrained")),
    *(f"explain descent --run runs/whole --out {value}/a.png" for value in ("/proc/none", "runs/whole/last.pt")),
    f"explain descent --run runs/whole --seed {10**23}",
    "explain nudges --run runs/whole --out picture.xyz",
    *(f"benchmark {value}" for value in ("--sweep --sizes 784 10", "--threads 100000", "--rounds 0", "--out x.jpg")),
    "benchmark accuracy --targets 97 --seeds 1 --out /proc/none/a.json",
    "benchmark --sizes 784 1000000000 10",
    *(f"ladder {value}" for value in ("walk", "run", "run lenet", "--json /dev/zero", "docs --out /proc/none")),
    *(f"ladder run lesson {value}" for value in ("--json /proc/none/a", "--json runs", "--first-seed 4294967295")),
    *(f"sweep {value}" for value in ("--learning-rate 1 1", "--seeds 10001", "--recipe lesson", "--resume nowhere")),
]
"""Command lines of which each is one line on stderr and exit code 1 or 2."""

ENVIRONMENTS: dict[str, list[str]] = {
    "LC_ALL": ["C", "POSIX", "C.UTF-8", "xx_YY.nonsense"],
    "PYTHONIOENCODING": ["ascii", "latin-1", "cp437", "cp1252", "utf-16", "utf-8:surrogateescape"],
    "PYTHONUTF8": ["0", "1"],
    "COLUMNS": ["0", "-5", "1", "x", "1000000000"],
    "HOME": ["/nonexistent", "", "/dev/null"],
    "TMPDIR": ["/nonexistent", "/proc"],
    "OMP_NUM_THREADS": ["0", "-1", "x", "9999", "1,2"],
    "MKL_NUM_THREADS": ["0", "x"],
    "TERM": ["dumb", "", "nonsense"],
    "PYTHONOPTIMIZE": ["1", "2"],
    "PYTHONHASHSEED": ["0", "123"],
    "PYTHONDONTWRITEBYTECODE": ["1"],
    "PYTHONUNBUFFERED": ["1"],
    "MPLBACKEND": ["nonsense", "TkAgg"],
    "MPLCONFIGDIR": ["/nonexistent", "/dev/null"],
    "XDG_CACHE_HOME": ["/nonexistent"],
    "TZ": ["nonsense", "Asia/Kathmandu"],
    "CUDA_VISIBLE_DEVICES": ["", "-1", "99", "x"],
    "NO_COLOR": ["1"],
    "FORCE_COLOR": ["1"],
    "SOURCE_DATE_EPOCH": ["0"],
    "TORCH_DEVICE_BACKEND_AUTOLOAD": ["0"],
    "TQDM_DISABLE": ["1"],
    "TQDM_MININTERVAL": ["x"],
}
"""Variables, and values of theirs in which a run is the same as in any."""


def one_line(error: BaseException, tried: str) -> None:
    """Raise Failure for an error without words, or with many lines."""
    if not str(error).strip() or str(error).strip().count("\n") > 1:
        raise Failure(f"{tried}: {error!r}")


class InProcess:
    """The trials of one process. Each returns what it did, or raises Failure."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        """In ``folder``, with random choices of ``chance``."""
        self.folder, self.chance = folder, chance

    def value(self) -> Any:
        """A value that few fields have room for."""
        one = self.chance.choice(NUMBERS + OTHERS)
        return self.chance.choice([one, (one,), (784, one, 10)]) if self.chance.random() < 0.2 else one

    def flags(self) -> str:
        """Give flags words that they cannot take: a line and exit code 2, or the config that they mean."""
        command, kind = self.chance.choice(list(PARSED.items()))
        words: list[str] = []
        for field in self.chance.sample(fields(kind), min(len(fields(kind)), self.chance.choice([1, 1, 2]))):
            value = self.chance.choice(WORDS)
            words += self.chance.choice(
                [[flag(field.name), value], [f"{flag(field.name)}={value}"], [flag(field.name)]]
            )
        tried, said, out = f"{command} {words!r}", io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
                parse(kind, description="", args=words)
        except SystemExit as stop:
            if stop.code != 2 or said.getvalue().count("\n") != 1 or not said.getvalue().startswith("error: "):
                raise Failure(f"{tried[:300]}: {stop.code}, {said.getvalue()[:500]}") from stop
        except Exception as error:
            raise Failure(f"{tried[:300]}: {error!r}") from error
        return f"{tried[:60]}: {said.getvalue().strip()[7:60]}"

    def config(self) -> str:
        """Make a Config with any value of a field: ValueError, or a config that is the same after JSON."""
        kind: Any = self.chance.choice([Config, Config, SweepConfig])
        field = self.chance.choice(fields(kind)).name
        given = {field: self.value()}
        if self.chance.random() < 0.2:
            given["recipe"] = self.chance.choice(ROWS).name
        tried = f"{kind.__name__}({given!r})"[:300]
        try:
            made = kind(**given)
        except ValueError as error:
            one_line(error, tried)
            return f"{tried}: ValueError"
        except Exception as error:
            raise Failure(f"{tried}: {error!r}") from error
        again = kind.from_json(made.to_json())
        paths = {name: getattr(made, name) for name in ("data_dir", "dataset", "start_from")}
        absolute = {name: path.absolute() for name, path in paths.items() if isinstance(path, Path)}
        if again != replace(made, resume=None, **absolute):
            raise Failure(f"{tried}: another after JSON")
        row = next((row for row in ROWS if row.name == made.recipe), None)
        if row and any(getattr(made, name) != value for name, value in row.fields.items() if name not in given):
            raise Failure(f"{tried}: has the name of the row and other settings")
        return tried

    def config_file(self) -> str:
        """Put any value into a config.json, with its checksum or that of a version without: a line, or as written."""
        field = self.chance.choice(fields(Config)).name
        values = json.loads(Config().to_json()) | {field: self.value()}
        if self.chance.random() < 0.2:
            del values[self.chance.choice(list(values))]
        try:
            text = json.dumps(with_sum(values) if self.chance.random() < 0.5 else values, default=str)
        except TypeError:
            return f"{field}: no JSON"
        (self.folder / CONFIG).write_text(text, encoding="utf-8", errors="surrogateescape")
        try:
            made = read_config(self.folder)
        except TrainingError as error:
            one_line(error, field)
            return f"config.json, {field}: refused"
        except Exception as error:
            raise Failure(f"config.json, {field} {values.get(field)!r}: {error!r}"[:300]) from error
        wanted = json.loads(text).get(field, getattr(Config(), field))
        if not isinstance(found := getattr(made, field), Path) and json.dumps(found) != json.dumps(wanted):
            raise Failure(f"config.json, {field} {wanted!r}: became {found!r}"[:300])
        return f"config.json, {field}"

    def state(self) -> str:
        """Put any value into a checkpoint: CheckpointError, or as it was."""
        like = State(torch.zeros(5), torch.zeros(5), torch.zeros(2, dtype=torch.float64), network="a")
        tensors = [torch.zeros(0), torch.zeros(5).half(), torch.full((5,), math.nan), torch.zeros(5, 1), torch.eye(5)]
        tensors += [torch.zeros(5).to_sparse(), torch.zeros(5, device="meta"), torch.zeros(1).expand(5)]
        field = self.chance.choice([*vars(like), "other"])
        value = self.chance.choice([self.value(), *tensors])
        path = self.folder / "last.pt"
        try:
            torch.save(vars(like) | {field: value}, path)
        except (pickle.PicklingError, AttributeError, TypeError, UnicodeEncodeError):
            return f"last.pt, {field}: no pickle"
        try:
            found = State.load(path, like=like)
        except CheckpointError as error:
            one_line(error, field)
            return f"last.pt, {field}: refused"
        except Exception as error:
            raise Failure(f"last.pt, {field} {value!r}: {error!r}"[:300]) from error
        same = (
            torch.equal(value, getattr(found, field)) if isinstance(value, Tensor) else getattr(found, field) == value
        )
        if not same:
            raise Failure(f"last.pt, {field} {value!r}: became {getattr(found, field)!r}"[:300])
        return f"last.pt, {field}"

    def network_file(self) -> str:
        """Change bytes of network.safetensors: ValueError, or the same network."""
        path, network = self.folder / "network.safetensors", self.network()[0]
        network = network[0] if network.leading else network
        save(network, path)
        content = bytearray(path.read_bytes())
        for _ in range(self.chance.choice([1, 1, 3])):
            place = self.chance.randrange(len(content))
            content[place : place + self.chance.choice([0, 1, 1, 2])] = self.chance.randbytes(
                self.chance.choice([0, 1])
            )
        path.write_bytes(content)
        try:
            found = load(path)
        except ValueError as error:
            one_line(error, "network.safetensors")
            return "network.safetensors: refused"
        except Exception as error:
            raise Failure(f"network.safetensors: {error!r}") from error
        if repr(found) != repr(network) or not torch.equal(found.parameters, network.parameters):
            raise Failure(f"network.safetensors: {found} was {network}")
        return "network.safetensors: the same"

    # ---- the mathematics ----

    def network(self) -> tuple[Network, Tensor, Tensor, str]:
        """A network of any kind in float64, x, y, and a cost that it can have."""
        sizes = [self.chance.randint(1, 6) for _ in range(self.chance.randint(2, 5))]
        cost, names = self.chance.choice(list(REFERENCE_COSTS)), list(REFERENCE_ACTIVATIONS)
        outputs = ABSORBED.get(cost) or ("identity" if cost == "softmax-cross-entropy" else self.chance.choice(names))
        several = self.chance.choice([None, None, 1, 3])
        network = Network(
            sizes,
            activation=self.chance.choice(names),
            output_activation=outputs,
            seed=self.chance.randrange(10**6),
            dtype=torch.float64,
            networks=several,
        )
        torch.manual_seed(self.chance.randrange(10**6))
        rows = self.chance.choice([1, 2, 7])
        x = torch.randn(rows, sizes[0], dtype=torch.float64)
        y = torch.eye(sizes[-1], dtype=torch.float64)[torch.randint(sizes[-1], (rows,))]
        return network, x, y, cost

    def layout(self, tensor: Tensor) -> Tensor:
        """The same numbers in another layout of memory."""
        ways: list[Callable[[Tensor], Tensor]] = [
            lambda t: t,
            lambda t: t.mT.contiguous().mT,
            lambda t: torch.stack([t, t], -1)[..., 0],
            lambda t: torch.cat([t, t], 0)[: len(t)],
            lambda t: t.clone().requires_grad_(),
            lambda t: nn.Parameter(t.clone()),
            lambda t: t[:, :1].expand_as(t) if bool((t == t[:, :1]).all()) else t,
            lambda t: t.flip(1).flip(1),
        ]
        return self.chance.choice(ways)(tensor)

    def gradient(self) -> str:
        """Any network, batch and layout, written, recorded or compiled as one likes: the gradient is autograd's."""
        network, x, y, cost = self.network()
        wanted = Reference(network, x, y, cost)
        mode = self.chance.choice([contextlib.nullcontext, torch.no_grad, torch.inference_mode, torch.enable_grad])
        recorded, twice = self.chance.random() < 0.3, self.chance.random() < 0.3
        network = self.chance.choice([network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))])
        with mode():
            given = self.layout(x), self.layout(y)

            def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                passed = forward(network, x)
                out = torch.full_like(network.parameters, math.nan) if twice else None
                return backward(network, passed, y, cost, out=out).gradient, example_costs(passed, y, cost).mean(-1)

            run = Recorder(network.device, step) if recorded else step
            if recorded:
                run(torch.rand_like(x), y.roll(1, 0))
            found, costs = run(*(part.detach() for part in given) if recorded else given)
        tried = f"{network}, {cost}, {mode.__name__}, {'recorded' if recorded else 'as written'}"
        if relative_error(found, wanted.gradient) > 1e-9 or relative_error(costs, wanted.cost) > 1e-9:
            raise Failure(f"{tried}: the gradient is off by {relative_error(found, wanted.gradient):.1e}")
        if found.requires_grad:
            raise Failure(f"{tried}: the gradient has a graph")
        return tried

    def misuse(self) -> str:
        """Use a network, its passes or its optimizer as nobody may: an error with words, and nothing in silence."""
        network, x, y, cost = self.network()
        passed = forward(network, x)
        optimizer = SGD(network, 0.1, momentum=0.5, weight_decay=0.1)
        name = self.chance.choice(list(MISUSES))
        before = network.parameters.clone()
        try:
            result = MISUSES[name](network, x, y, cost, passed, optimizer)
        except (ValueError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError, UserError) as error:
            one_line(error, name)
            if not torch.equal(before, network.parameters) and "written" not in name:
                raise Failure(f"{name}, {network}, {cost}: θ has changed") from error
            return f"{name}: {type(error).__name__}"
        raise Failure(f"{name}, {network}, {cost}: taken, {result!r}"[:300])


def write_then(tensor: Tensor, work: Callable[[], Any]) -> Any:
    """Write to a tensor, then work."""
    tensor.mul_(1.5)
    return work()


def shared_linear(network: Network) -> Network:
    """Convert a module that has one layer twice."""
    linear = nn.Linear(4, 4)
    return from_sequential(nn.Sequential(linear, nn.Sigmoid(), linear))


Misuse = Callable[[Network, Tensor, Tensor, str, Any, SGD], Any]
MISUSES: dict[str, Misuse] = {
    "x of another width": lambda n, x, y, c, p, o: forward(n, torch.cat([x, x], 1)),
    "x without a batch": lambda n, x, y, c, p, o: forward(n, x[0]),
    "x of another dtype": lambda n, x, y, c, p, o: forward(n, x.float()),
    "x of integers": lambda n, x, y, c, p, o: forward(n, x.long()),
    "x of complex numbers": lambda n, x, y, c, p, o: forward(n, x + 0j),
    "x on another device": lambda n, x, y, c, p, o: forward(n, x.to("meta")),
    "x of another number of networks": lambda n, x, y, c, p, o: forward(n, x.expand(5, *x.shape)),
    "y of another width": lambda n, x, y, c, p, o: backward(n, p, torch.cat([y, y], 1), c),
    "y of fewer rows": lambda n, x, y, c, p, o: backward(n, p, y[:-1], c),
    "y as labels": lambda n, x, y, c, p, o: backward(n, p, y.argmax(1), c),
    "y of another dtype": lambda n, x, y, c, p, o: backward(n, p, y.float(), c),
    "no such cost": lambda n, x, y, c, p, o: backward(n, p, y, "cubic"),
    "no such cost, per example": lambda n, x, y, c, p, o: per_example_gradients(n, p, y, "cubic"),
    "x written after forward": lambda n, x, y, c, p, o: write_then(x, lambda: backward(n, p, y, c)),
    "θ written after forward": lambda n, x, y, c, p, o: write_then(n.parameters, lambda: backward(n, p, y, c)),
    "W written after forward": lambda n, x, y, c, p, o: write_then(n.weights[0], lambda: backward(n, p, y, c)),
    "an activation written": lambda n, x, y, c, p, o: write_then(p.activations[-1], lambda: backward(n, p, y, c)),
    "forward of another network": lambda n, x, y, c, p, o: backward(n, forward(copy.deepcopy(n), x), y, c),
    "examples below one": lambda n, x, y, c, p, o: backward(n, p, y, c, examples=-1),
    "examples that are no number": lambda n, x, y, c, p, o: backward(n, p, y, c, examples=2.5),  # type: ignore[arg-type]
    "out of another shape": lambda n, x, y, c, p, o: backward(n, p, y, c, out=n.parameters.new_zeros(1)),
    "out of another dtype": lambda n, x, y, c, p, o: backward(n, p, y, c, out=torch.zeros_like(n.parameters).float()),
    "out in θ": lambda n, x, y, c, p, o: backward(n, p, y, c, out=n.parameters),
    "sizes": lambda n, x, y, c, p, o: Network((4,)),
    "sizes of zero": lambda n, x, y, c, p, o: Network((4, 0, 3)),
    "sizes of 401 digits": lambda n, x, y, c, p, o: Network((4, LONG, 3)),
    "no such activation": lambda n, x, y, c, p, o: Network((4, 3), activation="softsign"),
    "no such initial values": lambda n, x, y, c, p, o: Network((4, 3), init="zeros"),
    "a dtype of integers": lambda n, x, y, c, p, o: Network((4, 3), dtype=torch.int64),
    "networks=0": lambda n, x, y, c, p, o: Network((4, 3), networks=0),
    "a seed of 401 digits": lambda n, x, y, c, p, o: Network((4, 3), seed=LONG),
    "to integers": lambda n, x, y, c, p, o: n.to(dtype=torch.int64),
    "to complex numbers": lambda n, x, y, c, p, o: n.to(dtype=torch.complex64),
    "parameters assigned": lambda n, x, y, c, p, o: setattr(n, "parameters", n.parameters.clone()),
    "weights assigned": lambda n, x, y, c, p, o: setattr(n, "weights", ()),
    "a weight replaced": lambda n, x, y, c, p, o: n.weights.__setitem__(0, n.weights[0].clone()),
    "sizes assigned": lambda n, x, y, c, p, o: setattr(n, "sizes", (1, 2)),
    "a part of no part": lambda n, x, y, c, p, o: n[LONG if n.leading else 0],
    "two networks saved as one": lambda n, x, y, c, p, o: save(Network((4, 3), networks=2), Path("/tmp/never")),
    "saved nowhere": lambda n, x, y, c, p, o: _save_nowhere(n),
    "one Linear twice": lambda n, x, y, c, p, o: shared_linear(n),
    "no Linear": lambda n, x, y, c, p, o: from_sequential(nn.Sequential(nn.Sigmoid())),
    "a dropout": lambda n, x, y, c, p, o: from_sequential(nn.Sequential(nn.Linear(3, 2), nn.Dropout())),
    "the rate is 0": lambda n, x, y, c, p, o: SGD(n, 0.0),
    "the rate is nan": lambda n, x, y, c, p, o: setattr(o, "learning_rate", math.nan),
    "the rate has 401 digits": lambda n, x, y, c, p, o: setattr(o, "learning_rate", LONG),
    "the momentum is 1": lambda n, x, y, c, p, o: SGD(n, 0.1, momentum=1.0),
    "the decay is negative": lambda n, x, y, c, p, o: SGD(n, 0.1, weight_decay=-1.0),
    "the decay has 401 digits": lambda n, x, y, c, p, o: SGD(n, 0.1, weight_decay=LONG),
    "momentum assigned": lambda n, x, y, c, p, o: setattr(o, "momentum", 0.9),
    "decay assigned": lambda n, x, y, c, p, o: setattr(o, "weight_decay", 0.9),
    "velocity assigned": lambda n, x, y, c, p, o: setattr(o, "velocity", torch.zeros_like(n.parameters)),
    "gradient of another shape": lambda n, x, y, c, p, o: o.step(torch.zeros(1, dtype=torch.float64)),
    "gradient of integers": lambda n, x, y, c, p, o: o.step(torch.zeros_like(n.parameters).long()),
    "views of another vector": lambda n, x, y, c, p, o: layer_views(torch.cat([n.parameters] * 2, -1), n.sizes),
}
"""Each must raise."""


def _save_nowhere(network: Network) -> None:
    """Save a network, or the first of several, where nothing can be written."""
    try:
        save(network[0] if network.leading else network, "/proc/none/network.safetensors")
    except OSError as error:
        raise ValueError(str(error)) from error
