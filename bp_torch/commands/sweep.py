"""``python -m bp_torch sweep``: flags in, many trained networks and a table out, one line for each error."""

from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.commands import load_torch
from bp_torch.commands.train import resumed
from bp_torch.sweep.config import COMMAND, SweepConfig
from bp_torch.training.config import read_config_as

DESCRIPTION = "Train networks of many settings and seeds at once, and compare them."


def main(arguments: list[str]) -> None:
    """Read the flags and train. Exit codes: 1 trouble, 2 bad flags, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM."""
    config = parse(SweepConfig, prog=COMMAND, description=DESCRIPTION, args=arguments)
    with one_line_errors():
        if folder := config.resume:
            make = f"{COMMAND} --learning-rate 1 3"
            config = resumed(read_config_as(SweepConfig, folder, f"no sweep in {folder}", make), arguments)
        load_torch(config.threads)
        from bp_torch.device import choose_device
        from bp_torch.distributed import local_device
        from bp_torch.sweep.loop import sweep
        from bp_torch.sweep.plan import groups

        try:
            groups(config, choose_device(local_device(config.device)))
        except ValueError as error:
            fail(str(error), 2)
        sweep(config)
