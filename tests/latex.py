"""Formulas in LaTeX, evaluated: an index is an axis of a tensor, and a sum over an index is a sum along its axis.

The grammar is small, so what it reads renders everywhere. [a < b] is 1 where this is true, else 0. An entry outside of
a tensor is 0. A quantity may be defined by its own earlier entries, as the states of a recurrence are: all formulas are
evaluated until nothing changes any more.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NAME = r"(?:\\(?:hat|tilde|bar)\s*)?(?:\\[A-Za-z]+|[A-Za-zα-ω])"
TOKEN = re.compile(rf"\s*(\\operatorname\{{\w+\}}|d(?=\\?[A-Za-z]){NAME}|{NAME}|\d+(?:\.\d+)?|\S)")
Node = Any  # a number, a name, or a tuple that begins with what is done

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    r"\exp": torch.exp,
    r"\log": torch.log,
    r"\tanh": torch.tanh,
    r"\sin": torch.sin,
    r"\cos": torch.cos,
    r"\sigma": torch.sigmoid,
    r"\Phi": torch.special.ndtr,
    r"\varphi": lambda x: torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5,
    r"\operatorname{sign}": torch.sign,
    r"\det": torch.linalg.det,
}
RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "=": torch.eq,
    "<": torch.lt,
    ">": torch.gt,
    r"\lt": torch.lt,
    r"\gt": torch.gt,
    r"\leq": torch.le,
    r"\geq": torch.ge,
    r"\neq": torch.ne,
}
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    r"\sum": torch.sum,
    r"\prod": torch.prod,
    r"\max": torch.amax,
    r"\min": torch.amin,
}
BRACKETS = {"(": ")", "{": "}", r"\lvert": r"\rvert", r"\lfloor": r"\rfloor"}
ENDS = {*BRACKETS.values(), "]", "+", "-", ",", "^", "/", *RELATIONS, ""}


class Parser:
    """A formula as nested tuples, by recursive descent."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [re.sub(r"\s+", " ", token) for token in TOKEN.findall(text)]
        self.tokens = [token for token in self.tokens if token not in (r"\left", r"\right", r"\quad")]

    def peek(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self, *wanted: str) -> str:
        if not self.tokens or (wanted and self.tokens[0] not in wanted):
            raise ValueError(f"{self.text}: wanted {' or '.join(wanted) or 'more'} at {' '.join(self.tokens)!r}")
        return self.tokens.pop(0)

    def formula(self) -> tuple[str, list[str], Node]:
        """The name on the left, its indices, and the right side."""
        _, name, indices = self.variable(self.take())
        self.take("=")
        right = self.sum()
        if self.tokens:
            raise ValueError(f"{self.text}: {' '.join(self.tokens)!r} is left over")
        return name, indices, right

    def sum(self) -> Node:
        node = self.product()
        while self.peek() in ("+", "-"):
            node = (self.take(), node, self.product())
        return node

    def product(self) -> Node:
        if self.peek() == "-":
            self.take()
            return ("-", 0.0, self.product())
        node = self.power()
        while self.peek() not in ENDS - {"/"}:
            operation = self.take() if self.peek() in ("/", r"\cdot", r"\odot") else "*"
            node = ("/" if operation == "/" else "*", node, self.power())
        return node

    def power(self) -> Node:
        node = self.atom()
        if self.peek() == "^":
            self.take()
            node = ("^", node, self.atom())
        return node

    def atom(self) -> Node:
        token = self.take()
        if token in BRACKETS:
            inside = self.sum()
            self.take(BRACKETS[token])
            return (token, inside)
        if token == "[":
            left, relation, right = self.sum(), self.take(*RELATIONS), self.sum()
            self.take("]")
            return ("[", relation, left, right)
        if token == r"\frac":
            return ("/", self.atom(), self.atom())
        if token == r"\sqrt":
            return ("^", self.atom(), 0.5)
        if token in REDUCTIONS and self.peek() == "_":
            index, first, last = self.bounds()
            return (token, index, self.product(), first, last)
        if token in (r"\max", r"\min"):
            self.take("(")
            left, _, right = self.sum(), self.take(","), self.sum()
            self.take(")")
            return (token, left, right)
        if token in FUNCTIONS and self.peek() != "_":
            return ("call", token, self.power() if self.peek() != "(" else self.atom())
        if re.fullmatch(r"[\d.]+", token):
            return float(token)
        return self.variable(token)

    def bounds(self) -> tuple[str, int | None, str]:
        """The index of a sum; its first value, and its last as text, where they are told."""
        self.take("_")
        if self.peek() != "{":
            return self.take(), None, ""
        self.take("{")
        index = self.take()
        self.take("=")
        first = int(self.take())
        self.take("}")
        self.take("^")
        self.take("{")
        last = ""
        while self.peek() != "}":
            last += self.take()
        self.take("}")
        return index, first, last

    def variable(self, token: str) -> tuple[str, str, list[Node]]:
        if not re.fullmatch(rf"d?{NAME}", token):
            raise ValueError(f"{self.text}: {token!r} is no name")
        if self.peek() != "_":
            return ("name", token, [])
        self.take("_")
        if self.peek() != "{":
            return ("name", token, [("name", self.take(), [])])
        self.take("{")
        indices = [self.sum()] if self.has_operations() else [self.atom()]
        while self.peek() != "}":
            if self.peek() == ",":
                self.take()
                indices.append(self.sum())
            else:
                indices.append(self.atom())
        self.take("}")
        return ("name", token, indices)

    def has_operations(self) -> bool:
        """Whether a comma, a + or a − stands in these braces: then the parts between commas are expressions."""
        depth = 0
        for token in self.tokens:
            depth += (token in "{([") - (token in "})]") if len(token) == 1 else 0
            if depth < 0:
                return False
            if depth == 0 and token in (",", "+", "-", r"\lfloor"):
                return True
        return False


def walk(node: Node) -> Iterator[tuple[Any, ...]]:
    """Every tuple in a tree."""
    if isinstance(node, tuple | list):
        if isinstance(node, tuple):
            yield node
        for part in node:
            yield from walk(part)


Parsed = tuple[str, list[Node], Node]


def evaluate(
    formulas: Sequence[str],
    known: dict[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    constants: dict[str, float],
) -> dict[str, Tensor]:
    """The value of everything that is defined, from what is ``known`` and the shapes of what is asked for."""
    parsed = [Parser(text.replace("a^{-1}_", r"\Omega_")).formula() for text in formulas]
    values = {name: tensor.double() for name, tensor in known.items()}
    if any(r"^{-1}_" in text for text in formulas):
        values[r"\Omega"] = torch.linalg.inv(values["a"])
    sizes = index_sizes(parsed, {name: tensor.shape for name, tensor in values.items()} | dict(shapes), constants)
    free = [[index_name(node) for node in indices] for _, indices, _ in parsed]
    for (name, _, _), indices, lengths in zip(parsed, free, sizes, strict=True):
        if name not in known:
            values[name] = torch.zeros([lengths[index] for index in indices], dtype=torch.float64)
    found: dict[str, Tensor] = {}
    for _ in range(100):
        before = dict(found)
        for (name, _, right), indices, lengths in zip(parsed, free, sizes, strict=True):
            found[name] = values[name] = assigned(indices, right, values, lengths, constants)
        if before.keys() == found.keys() and all(torch.equal(before[name], found[name]) for name in found):
            return found
    raise ValueError(f"no end: {formulas}")


def index_name(node: Node) -> str:
    if not (isinstance(node, tuple) and node[0] == "name" and not node[2]):
        raise ValueError(f"wanted an index, got {node}")
    return str(node[1])


def index_sizes(
    parsed: Sequence[Parsed], shapes: dict[str, Sequence[int]], constants: dict[str, float]
) -> list[dict[str, int]]:
    """The lengths of the indices of each formula: from its left side, its bounds, or where it has an index alone; else
    from the other formulas that have the same letter."""
    sizes: list[dict[str, int]] = [{} for _ in parsed]

    def read() -> None:
        for (name, free, right), lengths in zip(parsed, sizes, strict=True):
            for node in walk([("name", name, free), right]):
                if len(node) == 5 and node[4]:
                    lengths.setdefault(node[1], int(eval(node[4], dict(constants))) - node[3] + 1)
                if node[0] == "name" and node[1] in shapes and node[2]:
                    for index, size in zip(node[2], shapes[node[1]][-len(node[2]) :], strict=True):
                        if isinstance(index, tuple) and index[0] == "name" and not index[2]:
                            lengths.setdefault(index[1], size)

    read()
    for lengths in list(sizes):
        for other in sizes:
            for index, size in lengths.items():
                other.setdefault(index, size)
    for _ in parsed:
        for (name, free, _), lengths in zip(parsed, sizes, strict=True):
            if all(index_name(index) in lengths for index in free):
                shapes.setdefault(name, [lengths[index_name(index)] for index in free])
        read()
    return sizes


def assigned(
    free: list[str], right: Node, values: dict[str, Tensor], sizes: dict[str, int], constants: dict[str, float]
) -> Tensor:
    """The right side of a formula, with the ``free`` indices as its last dimensions."""
    bound = [node[1] for node in walk(right) if node[0] in REDUCTIONS and len(node) == 5]
    axes = [*free, *dict.fromkeys(index for index in bound if index not in free)]
    first = {node[1]: node[3] for node in walk(right) if len(node) == 5 and node[3] is not None}
    if missing := [axis for axis in axes if axis not in sizes]:
        raise ValueError(f"how long is the index {missing[0]} in {right}?")
    one = torch.ones([1] * len(axes), dtype=torch.float64)

    def along(index: str) -> Tensor:
        shape = [sizes[index] if axis == index else 1 for axis in axes]
        start = first.get(index, 0)
        return torch.arange(start, start + sizes[index], dtype=torch.float64).reshape(shape)

    def entry(name: str, indices: list[Node]) -> Tensor:
        tensor = values[name]
        if not indices:
            return tensor.reshape((*tensor.shape, *one.shape))
        places = torch.broadcast_tensors(*[value(index).round().long() for index in indices])
        lengths = tensor.shape[-len(indices) :]
        inside = torch.stack([(p >= 0) & (p < n) for p, n in zip(places, lengths, strict=True)]).all(0)
        at = [p.clamp(0, n - 1) for p, n in zip(places, lengths, strict=True)]
        return torch.where(inside, tensor[(..., *at)], 0.0)

    def value(node: Node) -> Tensor:
        if isinstance(node, float):
            return one * node
        match node:
            case ("name", name, indices):
                if name in axes and not indices:
                    return along(name)
                if name in values:
                    return entry(name, indices)
                return one * {"e": torch.e, r"\pi": torch.pi, **constants}[name]
            case ("+", a, b):
                return value(a) + value(b)
            case ("-", a, b):
                return value(a) - value(b)
            case ("*", a, b):
                return value(a) * value(b)
            case ("/", a, b):
                return value(a) / value(b)
            case ("^", a, b):
                return value(a) ** value(b)
            case ("call", function, a):
                return FUNCTIONS[function](value(a))
            case ("[", relation, a, b):
                return RELATIONS[relation](value(a), value(b)).double()
            case ("(" | "{", a):
                return value(a)
            case (r"\lvert", a):
                return value(a).abs()
            case (r"\lfloor", a):
                return value(a).floor()
            case (r"\max" | r"\min", a, b):
                return (torch.maximum if node[0] == r"\max" else torch.minimum)(
                    *torch.broadcast_tensors(value(a), value(b))
                )
            case (operation, index, a, _, _):
                full, axis = value(a), axes.index(index) - len(axes)
                shape = list(full.shape)
                shape[axis] = sizes[index]
                full = full.expand(shape)
                return REDUCTIONS[operation](full, axis, keepdim=True)
        raise ValueError(f"cannot evaluate {node}")

    result = value(right)
    batch = result.shape[: result.dim() - len(axes)]
    lengths = [sizes[index] for index in free]
    return result.expand((*batch, *lengths, *[1] * (len(axes) - len(free)))).reshape((*batch, *lengths))
