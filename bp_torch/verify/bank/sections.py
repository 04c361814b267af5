"""A layer of the bank as text in a terminal."""

import re

from bp_torch.text import wrapped
from bp_torch.verify.bank.catalogue import layers, plain, slug
from bp_torch.verify.bank.layers import Fault, Layer, bare


def change(fault: Fault) -> tuple[str, str]:
    """The piece that a fault replaces, and what is there instead, as the code has them."""
    piece, replacement = (" ".join(bare(f":\n{text}")[2:].split()) for text in (fault.piece, fault.replacement))
    return piece, replacement


def listing() -> str:
    """Every layer by family, with y as a formula."""
    blocks = []
    for family in layers.families:
        width = max(map(len, family.records)) + 2
        rows = [wrapped(layers[name].about, f"  {slug(name):{width}}", " " * 6) for name in family.records]
        blocks.append("\n".join([family.title, *rows]))
    return "\n\n".join(blocks)


def section(layer: Layer, fault: int = 0) -> str:
    """All that is told of a layer; with a fault, what this changes in it."""
    named = {name: name + (f" ({one.seen_in})" if one.seen_in else "") for name, one in layer.faults.items()}
    faults = [f"{named[name]}: {' → '.join(change(one))}" for name, one in layer.faults.items()]
    if fault:
        return wrapped(f"{layer.name} with fault {fault}, {faults[fault - 1]}", "", "  ")
    record = layers.record(layer)
    told = [f"also: {record.also}", f"shapes: {record.shapes}", f"use: {record.use}", f"source: {record.source}"]
    blocks = ["\n".join([layer.name, *(wrapped(unmarked(line), "", "  ") for line in told)])]
    for title, formulas in (("forward", record.forward), ("backward", record.backward)):
        blocks.append("\n".join([title, *(wrapped(plain(line), "  ", "      ") for line in formulas.split("\n"))]))
    numbered = [wrapped(text, f"  {n:2}  ", " " * 6) for n, text in enumerate(faults, 1)]
    return "\n\n".join([*blocks, layer.code, "\n".join(["faults, each checked by --fault N", *numbered])])


def unmarked(text: str) -> str:
    """A text without Markdown: links with their address in brackets, formulas as ``plain`` has them."""
    return re.sub(r"\$(.*?)\$", lambda found: plain(found[1]), re.sub(r"\[([^]]*)\]\(([^)]*)\)", r"\1 (\2)", text))
