"""The rows of the ladder: published results of plain networks on MNIST, and the recipe with which we train each.

A row is data. Where a paper is silent, or where we do something else, its ``note`` says so.
"""

from dataclasses import dataclass
from typing import Any, Literal

from bp_torch.training.config import Config

Kind = Literal["one network", "best of several", "best of several epochs", "on validation data", "chosen by validation"]
"""What kind of number the published one is. ``one network``: the source says no more."""


@dataclass(frozen=True)
class Row:
    """A published result. ``published`` is the error on the test set in %; ``fields`` are those of Config."""

    name: str
    group: str
    year: int
    source: str
    published: float
    kind: Kind
    fields: dict[str, Any]
    note: str = ""
    seeds: int = 5

    def config(self, **changes: Any) -> Config:
        """The config of a run of this row, with ``changes``."""
        return Config(**self.fields | {"recipe": self.name} | changes)


LECUN = "LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition, fig. 9"
HINTON = "Hinton, unpublished, 2005, as listed at yann.lecun.com/exdb/mnist"
NIELSEN = "Nielsen, Neural Networks and Deep Learning, 2015"
SIMARD = "Simard, Steinkraus and Platt 2003, Best practices for convolutional neural networks, table 1"
CIRESAN = "Cireşan, Meier, Gambardella and Schmidhuber 2010, Deep big simple neural nets, table 1"

HELD_OUT = {"validation": 5_000}
LARGE = {"precision": "auto", "batch_size": 128}
RELU = {"activation": "relu", "init": "he", "cost": "softmax-cross-entropy"}
SGD = {"learning_rate": 0.1, "momentum": 0.9, "schedule": "cosine", "weight_decay": 1e-4}

LECUN_RECIPE: dict[str, Any] = HELD_OUT | {
    "activation": "scaled-tanh",
    "output_activation": "sigmoid",
    "init": "uniform",
    "learning_rate": 0.05,
    "momentum": 0.9,
    "schedule": "cosine",
    "epochs": 30,
}
LECUN_NOTE = (
    "Squared error and scaled tanh as in the paper; the outputs are sigmoids. Batches, momentum and the cosine "
    "schedule are ours: the paper chose a step for each weight by second derivatives."
)
DISTORTED: dict[str, Any] = {"deform": "affine", "rotation": 0.0, "shift": 2.0, "epochs": 60}
DISTORTED_NOTE = f"{LECUN_NOTE} Shifts, scales and shears are made anew in each epoch; the paper drew 540,000 once."

QUADRATIC: dict[str, Any] = {"batch_size": 10, "epochs": 30, "schedule": "constant", "validation": 10_000}
CROSS_ENTROPY: dict[str, Any] = QUADRATIC | {"cost": "binary-cross-entropy", "learning_rate": 0.5}
REGULARIZED: dict[str, Any] = CROSS_ENTROPY | {"sizes": (784, 100, 10), "weight_decay": 5 / 50_000}
REGULARIZED_NOTE = "The λ = 5 of the source is a weight decay of λ/n = 0.0001. Biases start at 0, in the source normal."

SIMARD_RECIPE: dict[str, Any] = HELD_OUT | RELU | SGD | LARGE | {"sizes": (784, 800, 10)}
CHOSEN = "Learning rate and weight decay were chosen on 10,000 held-out training images."
SIMARD_NOTE = "Initial values, activation, schedule and weight decay are ours: the paper does not state them."
AFFINE: dict[str, Any] = {"deform": "affine", "rotation": 15.0, "shear": 15.0, "scale": 0.15, "shift": 1.0}
ELASTIC: dict[str, Any] = {"deform": "elastic", "sigma": 4.0, "alpha": 34.0, "weight_decay": 3e-5, "epochs": 200}

CIRESAN_RECIPE: dict[str, Any] = {
    **HELD_OUT,
    **RELU,
    **SGD,
    **LARGE,
    "epochs": 200,
    "deform": "both",
    "sigma": 5.0,
    "alpha": 38.0,
    "rotation": 15.0,
    "shear": 15.0,
    "scale": 0.17,
}
LARGER: dict[str, Any] = {"batch_size": 256, "learning_rate": 0.2}
"""For the networks with more than two hidden layers: half as many steps, each twice as far."""

CIRESAN_NOTE = (
    "The paper's weight counts match inputs of 29×29; 28×28 here. It has scaled tanh, uniform initial values and "
    "single examples; ReLU, He's initial values, batches of 128 (256 from three hidden layers on, at twice the rate), "
    "momentum, weight decay, the cosine schedule and 200 epochs are ours. With 1000-500, learning rate and weight "
    "decay were chosen on 10,000 held-out training images; batches of 512 and stronger or weaker deformations did no "
    "better on them. An error of 0.5 % on the 5,000 images that choose the epoch has a standard error of 0.1 %: the "
    "choice is partly chance."
)

LECUN_ROWS: dict[tuple[int, ...], tuple[float, float]] = {
    (300,): (4.7, 3.6),
    (1000,): (4.5, 3.8),
    (300, 100): (3.05, 2.5),
    (500, 150): (2.95, 2.45),
}
"""Hidden layers: error without and with distortions."""

CIRESAN_ROWS: dict[tuple[int, ...], float] = {
    (1000, 500): 0.49,
    (1500, 1000, 500): 0.46,
    (2000, 1500, 1000, 500): 0.41,
    (2500, 2000, 1500, 1000, 500): 0.35,
    (1000,) * 9: 0.44,
}


def sizes(hidden: tuple[int, ...]) -> dict[str, Any]:
    """784 pixels, these hidden layers, 10 digits."""
    return {"sizes": (784, *hidden, 10)}


def joined(hidden: tuple[int, ...]) -> str:
    """1000-500, or 9x1000."""
    return f"{len(hidden)}x{hidden[0]}" if len(hidden) > 5 else "-".join(map(str, hidden))


def lecun(hidden: tuple[int, ...], *, distorted: bool) -> Row:
    """One of the eight rows of 1998."""
    name = f"lecun-{joined(hidden)}" + ("-distorted" if distorted else "")
    fields = LECUN_RECIPE | sizes(hidden) | (DISTORTED if distorted else {})
    note = DISTORTED_NOTE if distorted else LECUN_NOTE
    return Row(name, "LeCun 1998", 1998, LECUN, LECUN_ROWS[hidden][distorted], "one network", fields, note)


def nielsen(name: str, chapter: int, published: float, kind: Kind, fields: dict[str, Any], note: str = "") -> Row:
    """One of the rows of the book."""
    group = f"Nielsen, ch. {chapter}"
    return Row(f"nielsen-{name}", group, 2015, f"{NIELSEN}, ch. {chapter}", published, kind, fields, note)


def simard(name: str, published: float, fields: dict[str, Any], note: str = CHOSEN) -> Row:
    """One of the rows of 2003."""
    fields, note = SIMARD_RECIPE | fields, f"{SIMARD_NOTE} {note}"
    return Row(f"simard-{name}", "Simard 2003", 2003, SIMARD, published, "one network", fields, note)


def ciresan(hidden: tuple[int, ...]) -> Row:
    """One of the rows of 2010."""
    fields = CIRESAN_RECIPE | (LARGER if len(hidden) > 2 else {}) | sizes(hidden)
    name, published, kind = f"ciresan-{joined(hidden)}", CIRESAN_ROWS[hidden], "chosen by validation"
    return Row(name, "Cireşan 2010", 2010, CIRESAN, published, kind, fields, CIRESAN_NOTE, seeds=3)  # type: ignore[arg-type]


CHAPTER_1 = (
    "The rate 3 of the source belongs to a cost with a factor ½: it is 1.5 here. Trained on 50,000 examples, as there."
)

ROWS: tuple[Row, ...] = (
    Row(
        "lesson",
        "the lesson",
        2017,
        "3Blue1Brown, What is backpropagation really doing?: its published weights, measured",
        6.37,
        "one network",
        dict(HELD_OUT),
        "Trained by the defaults of train.py; the lesson does not say how its weights were trained.",
    ),
    *(lecun(hidden, distorted=False) for hidden in LECUN_ROWS),
    *(lecun(hidden, distorted=True) for hidden in LECUN_ROWS),
    simard("cross-entropy", 1.6, {"epochs": 30, "learning_rate": 0.3, "weight_decay": 5e-5}),
    simard("affine", 1.1, AFFINE | {"epochs": 60}, "The bounds of the deformation are ours too."),
    simard("elastic", 0.7, ELASTIC),
    simard(
        "elastic-squared",
        0.9,
        ELASTIC | {"cost": "quadratic", "output_activation": "sigmoid"},
        f"{CHOSEN} The outputs are sigmoids.",
    ),
    Row(
        "hinton-500-300",
        "Hinton 2005",
        2005,
        HINTON,
        1.53,
        "one network",
        HELD_OUT | RELU | SGD | LARGE | sizes((500, 300)) | {"epochs": 40},
        "Softmax, cross-entropy and weight decay as listed; all else is ours: the recipe is not published.",
    ),
    *(ciresan(hidden) for hidden in CIRESAN_ROWS),
    nielsen(
        "quadratic-30",
        1,
        4.58,
        "best of several",
        QUADRATIC | sizes((30,)) | {"learning_rate": 1.5, "init": "normal"},
        f"{CHAPTER_1} The source gives the best of three runs, at their best epoch.",
    ),
    nielsen(
        "quadratic-100",
        1,
        3.41,
        "best of several",
        QUADRATIC | sizes((100,)) | {"learning_rate": 1.5, "init": "normal"},
        f"{CHAPTER_1} The source gives the best of three runs, at their best epoch; with this recipe some runs do "
        "not learn every digit.",
    ),
    nielsen(
        "cross-entropy-30",
        3,
        4.51,
        "best of several epochs",
        CROSS_ENTROPY | sizes((30,)) | {"init": "normal"},
    ),
    nielsen(
        "cross-entropy-100",
        3,
        3.18,
        "best of several epochs",
        CROSS_ENTROPY | sizes((100,)) | {"init": "normal"},
    ),
    nielsen("regularized-100", 3, 2.08, "on validation data", REGULARIZED, REGULARIZED_NOTE),
    nielsen(
        "regularized-100-slow",
        3,
        1.96,
        "on validation data",
        REGULARIZED | {"learning_rate": 0.1, "epochs": 60},
        REGULARIZED_NOTE,
    ),
)


def find(name: str) -> Row:
    """The row of this name. Raises ValueError, with the names there are."""
    for row in ROWS:
        if row.name == name:
            return row
    raise ValueError(f"no row {name!r} in the ladder: choose from {', '.join(row.name for row in ROWS)}")
