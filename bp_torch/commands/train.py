"""``python train.py``, also as ``bp-torch train``: flags in, a trained network out, one line for each error."""

from argparse import ArgumentParser

from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.commands import load_torch
from bp_torch.training.config import AnyConfig, Config, read_config
from bp_torch.training.rows import find

DESCRIPTION = "Train a network on handwritten digits by hand-written backpropagation."


def main(arguments: list[str] | None) -> None:
    """Read the flags and train. Exit codes: 1 trouble, 2 bad flags, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP."""
    prog = "python train.py" if arguments is None else "python -m bp_torch train"
    config = parse(Config, prog=prog, description=DESCRIPTION, args=arguments, default=of_recipe(arguments))
    with one_line_errors():
        if config.resume:
            config = resumed(read_config(config.resume), arguments)
        load_torch(config.threads)
        from bp_torch.training.divergence import WrongGradientError
        from bp_torch.training.loop import train

        try:
            train(config)
        except WrongGradientError as wrong:
            print(wrong.report)
            fail(str(wrong), 1)


def of_recipe(arguments: list[str] | None) -> Config | None:
    """The config of --recipe, if that is given: its settings are the defaults of the other flags."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe", nargs="?")
    name = parser.parse_known_args(arguments)[0].recipe
    try:
        return None if name is None else Config(recipe=find(name).name)
    except ValueError as error:
        fail(str(error), 2)


def resumed(saved: AnyConfig, arguments: list[str] | None) -> AnyConfig:
    """The config ``saved`` by a run or a sweep, with the flags that were given; those that were not are its own."""
    given = parse(type(saved), description=DESCRIPTION, args=arguments, default=saved)
    try:
        return saved.resumed(given)
    except ValueError as error:
        fail(str(error), 2)
