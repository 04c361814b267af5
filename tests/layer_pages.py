"""Writes docs/layers.md and docs/layers/: each layer of the bank with its formulas, its code, and its faults.

    python -m tests.layer_pages

What stands between the marks ``HAND`` in a page is written by hand, and stays as it is. All else is made here, from the
formulas and the code that tests/test_layers.py runs, and from what verify says of each fault.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from bp_torch.text import table
from bp_torch.verify.bank.catalogue import Family, layers, slug
from bp_torch.verify.bank.layers import Layer
from bp_torch.verify.bank.sections import change
from bp_torch.verify.report import Report

DOCS = Path(__file__).parent.parent / "docs"
MADE = "<!-- python -m tests.layer_pages wrote this, except the parts marked as written by hand -->"
HAND = "<!-- written by hand: {} -->\n\n{}\n\n<!-- end -->"
SIGNS = """$C$ is a cost that is computed from the output $y$, and $dx$ stands for $\\partial C / \\partial x$:
the backward takes $dy$ and returns $dx$. $[a \\lt b]$ is 1 if this is true, else 0. Indices count from 0, and an entry
outside of a tensor is 0. Tests compare the formulas and the code with autograd and with central differences."""
START = "The code on this page needs this line:\n\n```python\nimport torch\n```"
Said = Callable[[Layer, int], str]


def said(layer: Layer, fault: int) -> str:
    """The verdict on a fault, and the first thing that the report says of it."""
    return summary(layer.check(fault))


def summary(report: Report) -> str:
    """A report in one line."""
    lines = [*report.diagnosis_lines(), *report.problem_lines()]
    lines += [f"{name}: off by {100 * report.worst:.2g} %" for name in report.wrong[:1]]
    return f"{report.verdict}, {lines[0]}" if lines else report.headline()


def index(family: Family, page: str, derived: set[str]) -> str:
    """Links to the layers of a family; † marks those that are derived."""
    return ", ".join(f"[{name}]({page}#{slug(name)})" + "†" * (name in derived) for name in family.records)


def written(folder: Path, words: Said = said) -> dict[Path, str]:
    """Every page in ``folder`` as it should be; the pages that are there give what is written by hand."""
    places = {family.name: folder / "layers" / f"{family.name}.md" for family in layers.families}
    kept, own = {name: by_hand(path) for name, path in places.items()}, by_hand(folder / "layers.md")
    pages = {places[f.name]: page(f, kept[f.name], own.get("checks", ""), words) for f in layers.families}
    place = "layers/{}.md".format
    links = [[f"[{f.title}]({place(f.name)})", index(f, place(f.name), set(kept[f.name]))] for f in layers.families]
    about, *rest = [HAND.format(*item) for item in own.items()] or [""]
    contents = table(["family", "layers"], links, right=(), markdown=True)
    parts = [MADE, f"# Backward passes of {len(layers)} layers", about, contents, *rest]
    return pages | {folder / "layers.md": "\n\n".join(part for part in parts if part) + "\n"}


def by_hand(path: Path) -> dict[str, str]:
    """What is written by hand in a page, by the name that its mark has."""
    pattern = re.escape(HAND).replace(r"\{\}", "(.*?)")
    return dict(re.findall(pattern, path.read_text(encoding="utf-8"), re.DOTALL)) if path.exists() else {}


def page(family: Family, kept: dict[str, str], checks: str, words: Said) -> str:
    """The page of a family. ``checks`` comes before the layers if one of them is derived."""
    names = index(family, "", set(kept)) + (". † marks layers with a derivation." if kept else ".")
    sections = [markdown(layers[name], kept.get(name, ""), words) for name in family.records]
    start = [START, checks] if kept and checks else [START]
    return "\n\n".join([MADE, f"# {family.title}", family.about, SIGNS, names, *start, *sections]) + "\n"


def markdown(layer: Layer, kept: str, words: Said) -> str:
    """The section of a layer: formulas, code, what is written by hand, and the faults with what verify says of them."""
    record = layers.record(layer)
    formulas = [f"$${line}$$" for line in record.forward.split("\n")]
    formulas += ["The backward:", *(f"$${line}$$" for line in record.backward.split("\n"))]
    rows = [
        [str(n), name + (f" ({one.seen_in})" if one.seen_in else ""), *map(code, change(one)), words(layer, n)]
        for n, (name, one) in enumerate(layer.faults.items(), 1)
    ]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n\n".join(
        [
            f"## {layer.name}",
            f"**Use:** {record.use} **Also called** {record.also}. **Shapes:** {record.shapes}.",
            *formulas,
            f"```python\n{layer.code}\n```",
            f"Source: {record.source}.",
            *([HAND.format(layer.name, kept)] if kept else []),
            table(["", "mistake", "right code", "wrong code", "`verify` says"], rows, right=(), markdown=True),
        ]
    )


def code(text: str) -> str:
    """A piece of code in a cell; nothing for none."""
    return f"`{text}`" if text else ""


def write(folder: Path, words: Said = said) -> None:
    """Write every page, and say so."""
    for path, text in written(folder, words).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"saved {path}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(DOCS)
