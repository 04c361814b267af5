"""python -m bp_torch verify | explain | benchmark. Each command has its own --help."""

import importlib
import sys

from bp_torch.cli import fail

COMMANDS = {
    "verify": "hold the hand-written backward against autograd and finite differences",
    "explain": "show what one training example wants, and every idea around it, on a real network",
    "benchmark": "time the hand-written backward beside what you would otherwise write",
}

USAGE = "usage: python -m bp_torch COMMAND [OPTIONS]\n\n" + "\n".join(
    f"  {name:10} {does}" for name, does in COMMANDS.items()
)


def main() -> None:
    """Hand the arguments to the command that the first one names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"{USAGE}\n\nEach command has its own --help. To train: python train.py")
    elif name in COMMANDS:
        importlib.import_module(f"bp_torch.{name}").main(arguments)  # only the one asked for: the others load much
    else:
        fail(f"unknown command {name!r}: choose from {', '.join(COMMANDS)}", 2)


if __name__ == "__main__":
    main()
