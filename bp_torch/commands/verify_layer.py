"""``python -m bp_torch verify layer``: the layers of the bank; of one its formulas, its code and its check."""

import sys
from itertools import takewhile

from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.commands import load_torch
from bp_torch.commands.verify_options import LayerOptions


def main(arguments: list[str]) -> None:
    """Print the list, or a layer and the verdict on it. Exit code 1 if a fault was asked for, and is found."""
    words = list(takewhile(lambda word: not word.startswith("-"), arguments))
    about = "List the layers with a backward pass to copy; with NAME, show its formulas, code and faults, and check it."
    command, rest = "python -m bp_torch verify layer", arguments[len(words) :]
    options = parse(LayerOptions, prog=f"{command} [NAME]", description=about, args=rest)
    if options.fault and not words:
        fail("--fault: wanted the name of a layer before it", 2)
    load_torch()
    import torch

    from bp_torch.verify.bank.catalogue import layers
    from bp_torch.verify.bank.sections import listing, section

    torch.set_num_threads(1)
    with one_line_errors():
        if not words:
            print(f"{listing()}\n\n{len(layers)} layers. See one: {command} layer-norm")
            return
        try:
            layer = layers[" ".join(words)]
            report = layer.check(options.fault or 0, getattr(torch, options.dtype))
        except (KeyError, ValueError) as error:
            fail(error.args[0], 2)
        print(f"{section(layer, options.fault or 0)}\n\n{report}")
    if not report.ok:
        sys.exit(1)
