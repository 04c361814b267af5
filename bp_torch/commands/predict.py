"""``python -m bp_torch predict FILE …``: what a trained network answers to pictures that show one digit each.

    python -m bp_torch predict seven.jpg
    python -m bp_torch predict *.png --json > answers.json

Reading and preparing the pictures is the business of digits.py.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from bp_torch.cli import fail, one_line_errors, parse
from bp_torch.commands import load_torch
from bp_torch.files import replace_file
from bp_torch.flags import flag, types_of
from bp_torch.text import columns, number
from bp_torch.values import SIDE

COMMAND = "python -m bp_torch predict FILE ..."
DESCRIPTION = "Say which digit each picture shows: a drawing, a scan or a photo, in a file or, as -, from stdin."
SHADES = (" ░▒▓█", " .:*#")  # from paper to ink; the second for encodings that lack the first
BAR = 10  # characters of an output that is 1


@dataclass(frozen=True)
class Options:
    """The flags of ``predict``."""

    run: Path | None = None
    """Folder of the run whose network answers. None: the newest in runs/."""
    json: bool = False
    """Print a list of {file, answer, outputs} as JSON."""
    save: Path | None = None
    """Folder for the prepared pictures, the 28×28 pixels that the network gets, as PNG. None: they are not saved."""


def main(arguments: list[str]) -> None:
    """Print the answers. Exit codes: 1 where a file has none, 2 bad arguments."""
    files, flags = split(arguments)
    options = parse(Options, prog=COMMAND, description=DESCRIPTION, args=flags)
    if not files:
        fail(f"wanted {COMMAND}, got no file", 2)
    with one_line_errors():
        load_torch()
        answered = answer(files, options)
    if answered < len(files):
        sys.exit(1)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files, each once, and the flags with their values, in whatever order they come."""
    files, flags, words = list[str](), list[str](), iter(arguments)
    with_value = {flag(name) for name, hint in types_of(Options).items() if hint is not bool}
    for word in words:
        if word == "--":
            files += words
        elif word.startswith("-") and word != "-":
            flags += [word, *islice(words, int(word in with_value))]
        else:
            files.append(word)
    return list(dict.fromkeys(files)), flags


def answer(files: Sequence[str], options: Options) -> int:
    """Print what the network answers to each of the files, or on stderr why there is no answer; how many have one."""
    import torch
    from PIL import Image

    from bp_torch.digits import LARGEST_FILE, ImageError, decoded, predict, prepared
    from bp_torch.explain.subject import UsageError, open_network
    from bp_torch.training.run import kind_of_run

    torch.set_num_threads(1)
    folder, config, network = open_network(options.run)
    kind, answers = kind_of_run(folder), []
    if not kind.is_digits:
        raise UsageError(f"predict reads 28×28 images of ten classes, that of {folder} has {kind.words}")
    if not options.json:
        like = "; pictures become light on black, as MNIST's" if isinstance(config.dataset, Path) else ""
        print(f"network: {folder}, {'-'.join(map(str, network.sizes))}, {config.dataset}{like}")
    for file in files:
        try:
            x = prepared(decoded(sys.stdin.buffer.read(LARGEST_FILE + 1)) if file == "-" else Path(file))
        except ImageError as error:
            print(f"error: {file}: {error}", file=sys.stderr, flush=True)
            continue
        (found,) = predict(network, x[None])
        outputs = found.outputs.softmax(0) if config.cost == "softmax-cross-entropy" else found.outputs
        said = kind.name(found.answer)
        answers.append({"file": file, "answer": said if kind.names else found.answer, "outputs": outputs.tolist()})
        if not options.json:
            print(f"\n{file}: {said}{doubt(outputs.tolist())}\n{shown(x.tolist(), outputs.tolist(), kind.names)}")
        if options.save:
            options.save.mkdir(parents=True, exist_ok=True)
            name = f"{len(answers)}-{'stdin' if file == '-' else Path(file).stem}.png"
            image = Image.fromarray(x.mul(255).round().byte().view(SIDE, SIDE).numpy())
            replace_file(options.save / name, partial(image.save, format="PNG"))
    if options.json:
        print(json.dumps(answers, indent=2))
    return len(answers)


def doubt(outputs: Sequence[float]) -> str:
    """A word of doubt where the largest output is below a half, or another is more than half as large."""
    first, second, *_ = sorted(range(len(outputs)), key=lambda digit: -outputs[digit])
    largest, next_one = outputs[first], outputs[second]
    if largest >= 0.5 and next_one <= largest / 2:
        return ""
    return f", but not convincing: output {first} is {number(largest, 2)}, output {second} {number(next_one, 2)}"


def shown(x: Sequence[float], outputs: Sequence[float], names: Sequence[str] = ()) -> str:
    """The prepared picture in shades, as wide as the terminal has room for, and the ten outputs beside it.

    At the end of an output is the name of its class, if the classes have ``names``.
    """
    try:
        shades = SHADES[0]
        shades.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        shades = SHADES[1]
    times = 2 if columns() >= 2 * SIDE + BAR + 12 else 1
    beside = {
        SIDE // 3 + digit: f"{digit} {output:5.2f} {shades[-1] * round(BAR * min(max(output, 0), 1))} "
        + "".join(names[digit : digit + 1])
        for digit, output in enumerate(outputs)
    }
    rows = [x[start : start + SIDE] for start in range(0, len(x), SIDE)]
    pictures = ("".join(shades[round((len(shades) - 1) * ink)] * times for ink in row) for row in rows)
    return "\n".join(f"{picture}  {beside.get(n, '')}".rstrip() for n, picture in enumerate(pictures))
