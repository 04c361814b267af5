"""The catalogue tells of each layer names, shapes, formulas, use and source, from a .toml file for each family.

``layers`` finds a layer by any of its names, as people search for them: layers["LayerNorm"], layers["nn.LayerNorm"].
The formulas are LaTeX, one in a line, those of the forward first, then those of the backward: the tests evaluate them.
"""

import difflib
import html
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bp_torch.verify.bank import LAYERS, Layer

FAMILIES = ["linear", "activations", "normalisation", "softmax", "attention", "recurrent", "convolution", "pooling"]
FAMILIES += ["lookup", "losses", "pointwise", "reductions", "shapes"]


@dataclass(frozen=True)
class Record:
    """A record holds what is told of a layer besides its code and its faults."""

    also: str  # other names, with commas
    shapes: str  # of the inputs, and of y
    forward: str  # formulas, one in a line
    backward: str
    use: str
    source: str  # in Markdown; where a file tells none, that of its family


@dataclass(frozen=True)
class Family:
    """Layers that stand on one page."""

    name: str
    title: str
    about: str
    records: dict[str, Record]  # by the name of the layer


def read(name: str) -> Family:
    """The family of a file. Raises TypeError for a layer with other keys than a ``Record`` has."""
    told = tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))
    title, about, source = told.pop("title"), told.pop("about"), told.pop("source", "")
    records = dict[str, Record]()
    for layer, keys in told.items():
        records[layer] = Record(**{"source": source} | {key: text.strip() for key, text in keys.items()})
    return Family(name, title, about, records)


def squeezed(name: str) -> str:
    """A name without what people write differently: nn.LayerNorm, "layer norm" and layer_norm backward are one."""
    words = re.sub(r"^(torch\.)?(nn\.)?(functional\.|f\.)?|backwards?|gradient|derivati\w+", "", name.lower())
    return re.sub(r"[\W_]", "", words.replace("ization", "isation"))


class Catalogue(Mapping[str, Layer]):
    """The layers of the families by name, such as "layer-norm". A lookup takes every other name, too."""

    @cached_property
    def families(self) -> list[Family]:
        """All families, in the order of the pages."""
        return [read(name) for name in FAMILIES]

    @cached_property
    def names(self) -> dict[str, str]:
        """The name of a layer by each of its names, squeezed."""
        records = {name: record for family in self.families for name, record in family.records.items()}
        own = {squeezed(name): name for name in records}
        return {squeezed(one): name for name, r in records.items() for one in r.also.split(", ")} | own

    def __getitem__(self, name: str) -> Layer:
        """The layer of this name. Raises KeyError, with the names that are like it."""
        if found := self.names.get(squeezed(name)):
            return LAYERS[found]
        typed = squeezed(name)
        alike = [one for one in self.names if len(typed) > 2 and (typed in one or (len(one) > 3 and one in typed))]
        alike = [self.names[one] for one in difflib.get_close_matches(typed, self.names, 3, 0.7) + alike]
        asked = ", ".join(dict.fromkeys(slug(one) for one in alike[:5]))
        raise KeyError(f"no layer is called {name!r}: " + (f"did you mean {asked}?" if asked else "see verify layer"))

    def __iter__(self) -> Iterator[str]:
        """The names, by family."""
        return (slug(name) for family in self.families for name in family.records)

    def __len__(self) -> int:
        """How many layers there are."""
        return sum(len(family.records) for family in self.families)

    def family(self, layer: Layer) -> Family:
        """The family of a layer."""
        return next(family for family in self.families if layer.name in family.records)

    def record(self, layer: Layer) -> Record:
        """The record of a layer."""
        return self.family(layer).records[layer.name]


layers = Catalogue()


def slug(name: str) -> str:
    """The name as one word: layer-norm. It is also the link to the layer's heading."""
    return re.sub(r"[^\w-]", "", name.lower().replace(" ", "-"))


# ---- formulas as text ----

SIGNS = {"sum": "Σ", "prod": "Π", "neq": "≠", "cdot": "·"}
STEPS = [  # to one line: a pattern, and what it becomes; again and again, from the inner braces to the outer
    (r"\\lvert (.*?) \\rvert", r"|\1|"),
    (r"\\lfloor (.*?) \\rfloor", r"⌊\1⌋"),
    (r"\\hat (\w)", "\\1\u0302"),
    (r"\\tilde (\w)", "\\1\u0303"),
    (r"\\operatorname\{(\w+)\}", r"\1"),
    (r"\\(?!frac|sqrt)([A-Za-z]+)", lambda found: sign(found[1])),
    (r"_\{(\w+)\}", r"_\1"),
    (r"_\{([^{}]*)\}", r"[\1]"),
    (r"\^\{([^{}]*)\}", r"^(\1)"),
    (r"\\sqrt\{([^{}]*)\}", lambda found: f"√{bracketed(found[1])}"),
    (r"\\frac\{([^{}]*)\}\{([^{}]*)\}", lambda found: f"({'/'.join(map(bracketed, found.groups()))})"),
    (r"√\(\(([^()]*)\)\)", r"√(\1)"),
    (r"= \(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)$", r"= \1"),  # a fraction that is all of a side
]


def plain(formula: str) -> str:
    """A LaTeX formula in one line of text: dx_ki = Σ_j dy_kj w_ji."""
    text, before = formula, ""
    while text != before:
        before = text
        for pattern, becomes in STEPS:
            text = re.sub(pattern, becomes, text)  # type: ignore[call-overload]
    return text.replace("-", "−")


def sign(command: str) -> str:
    """The sign that a command of LaTeX stands for: most have the same names in HTML. Of a function, its name."""
    return SIGNS.get(command) or html.unescape(f"&{command};").strip("&;")


def bracketed(term: str) -> str:
    """The numerator or denominator of a fraction, in brackets if it has parts."""
    return term if re.fullmatch(r"√\(.*\)|\(?[^ +−/-]*\)?", term) else f"({term})"
