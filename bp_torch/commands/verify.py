"""``python -m bp_torch verify``: every activation and cost on real digits, or one trained network."""

import json
import sys

from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.commands import load_torch, verify_bench, verify_file, verify_layer
from bp_torch.commands.verify_options import Options
from bp_torch.text import coloured


def main(arguments: list[str]) -> None:
    """Print what is found, or with ``bench`` the scores. Exit code 1 if any gradient is wrong."""
    if arguments[:1] in (["bench"], ["layer"]):
        (verify_bench if arguments[0] == "bench" else verify_layer).main(arguments[1:])
        return
    if arguments and not arguments[0].startswith("-"):
        verify_file.main(arguments)
        return
    options = parse(
        Options,
        prog="python -m bp_torch verify",
        description="Check this project's hand-written backward against autograd and central differences. With bench: "
        "score the checkers. With layer: backward passes of common layers. With FILE:NAME: judge candidates in files.",
        args=arguments,
    )
    with one_line_errors():
        load_torch()
        import torch

        from bp_torch.commands.verify_networks import summary, verify

        torch.set_num_threads(1)  # the tensors are small: a second thread only waits
        try:
            cases = verify(options)
        except ValueError as error:
            fail(str(error), 1)
    ok = all(case.report.ok for case in cases)
    if options.json:
        print(json.dumps({"ok": ok, "networks": [case.to_dict() for case in cases]}, indent=2))
    else:
        print(coloured(summary(cases, options)))
    if not ok:
        sys.exit(1)
