"""Everything that TensorBoard shows of a run. No other file knows a tag.

A tag is ``what/layer_n``: TensorBoard makes a row of each ``what``, with the layers side by side. The step axis counts
training steps, everywhere. The costs of steps are added up on the device, and nothing here waits for a GPU inside an
epoch.
"""

import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bp_torch.checkpoint import State
from bp_torch.data import Examples
from bp_torch.images import captioned, confusion_matrix, confusion_picture, most_wrong, weight_maps
from bp_torch.network import Network, layer_views
from bp_torch.sgd import SGD

if TYPE_CHECKING:  # matplotlib takes a while to load, and training imports this module
    from matplotlib.figure import Figure

    from bp_torch.training.step import StepResult

RESULTS = ("test_accuracy", "test_cost")

BINS = 64
MAPS = 64
"""The largest number of neurons of the first layer that are shown as pictures."""


class RunLog:
    """The event file of one run, in the run's own folder. ``cost`` is that of the last point that was written."""

    cost: float | None = None

    def __init__(self, folder: Path, network: Network, every: int, state: State, on: str = "test") -> None:
        """Open it at the step of ``state``: what an earlier process logged beyond that step is purged.

        ``on``: what is evaluated after each epoch, test or validation.
        """
        self.on = on
        # In the first file too: TensorBoard takes the first purge that it reads for the start of the run.
        self.writer = open_writer(folder, purge_step=state.step + 1)
        self.network = network
        self.every = every
        self.running = state.running  # each step adds to it; it is saved and restored with the state
        self.at_once = network.device.type == "cpu"  # reading a number from a GPU means waiting for it
        self._points: list[tuple[int, float, float, Tensor]] = []  # step, time, learning rate, values on the device
        # add_hparams would make a run of its own below this one
        self._file: FileWriter = self.writer._get_file_writer()

    def begin(self, hyperparameters: Mapping[str, str | float], config: str) -> None:
        """Log the layout of the curves, the row in HParams, and as text the command, config, versions and machine."""
        charts = {name: ["Multiline", [f"{name}/train", f"{name}/{self.on}"]] for name in ("cost", "accuracy")}
        self.writer.add_custom_scalars({f"train and {self.on}": charts})
        experiment, start, self._end = hparams(dict(hyperparameters), {f"final/{name}": 0.0 for name in RESULTS})
        self._file.add_summary(experiment)
        self._file.add_summary(start)

        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        machine = {"system": platform.platform(), "threads": torch.get_num_threads()}
        if self.network.device.type == "cuda":
            machine["GPU"] = torch.cuda.get_device_name(self.network.device)
        command = shlex.join(["python", *sys.argv]).replace(" --", " \\\n    --")
        texts = {"command": command, "config": config, "versions": _lines(versions), "machine": _lines(machine)}
        for name, text in texts.items():
            self.writer.add_text(f"run/{name}", f"```\n{text}\n```")

    def step(self, step: int, result: "StepResult", optimizer: SGD) -> bool:
        """At the end of an interval, take a point of the curves. Returns False if a cost was not finite.

        Unless ``at_once``, points stay on the device until ``write_points``.
        """
        if step % self.every:
            return True
        gradient, (rate,) = result.backward.gradient, optimizer.each(optimizer.learning_rate)
        values = [self.running[0] / self.running[1], torch.linalg.vector_norm(gradient)]
        directions, _ = layer_views(optimizer.direction(gradient), self.network.sizes)
        for direction, w in zip(directions, self.network.weights, strict=True):
            values.append(rate * torch.linalg.vector_norm(direction) / torch.linalg.vector_norm(w))
        self._points.append((step, time.time(), rate, torch.stack([value.double() for value in values])))
        self.running.zero_()
        return not self.at_once or self.write_points()

    def write_points(self) -> bool:
        """Log the points that are still on the device. Returns whether all of their costs were finite."""
        finite = True
        for step, taken, rate, values in self._points:
            cost, norm, *ratios = values.tolist()
            finite, self.cost = finite and isfinite(cost), cost
            named = {"cost/train": cost, "gradient_norm": norm, "learning_rate": rate}
            named |= {f"update_to_weight_norm/layer_{n}": ratio for n, ratio in enumerate(ratios, 1)}
            self.scalars(named, step, taken)
        self._points.clear()
        return finite

    def epoch(
        self, *, cost: float, accuracy_train: float, accuracy: float, examples_per_second: float, step: int
    ) -> None:
        """Log the scores after an epoch: ``cost`` and ``accuracy`` are ``on`` the test or the held-out ones."""
        self.scalars(
            {
                f"cost/{self.on}": cost,
                "accuracy/train": accuracy_train,
                f"accuracy/{self.on}": accuracy,
                "examples_per_second": examples_per_second,
            },
            step,
        )

    def scalars(self, values: Mapping[str, float], step: int, taken: float | None = None) -> None:
        """Log numbers at a step, taken at this time: seconds since 1970, None for now."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step, taken)

    def histograms(self, result: "StepResult", step: int) -> list[str]:
        """Weights, biases, gradients, activations and δ of every layer. Returns the tags of those with NaN or ∞."""
        dW, db = layer_views(result.backward.gradient, self.network.sizes)
        kinds: dict[str, Sequence[Tensor]] = {
            "weights": self.network.weights,
            "biases": self.network.biases,
            "weight_gradients": dW,
            "bias_gradients": db,
            "activations": result.forward.activations[1:],
            "deltas": result.backward.deltas,
        }
        named = {f"{kind}/layer_{n}": tensor for kind, layers in kinds.items() for n, tensor in enumerate(layers, 1)}
        return self._histograms(named, step)

    def _histograms(self, named: Mapping[str, Tensor], step: int) -> list[str]:
        """Counted on the device, and read from it twice: the ranges of all tensors, then the counts of all."""
        values = {tag: tensor.float() for tag, tensor in named.items() if tensor.numel()}  # a shard may be empty
        sums = [torch.stack([v.min(), v.max(), v.sum(), v.square().sum()]) for v in values.values()]
        found = dict(zip(values, torch.stack(sums).tolist(), strict=True))
        finite = {tag: numbers for tag, numbers in found.items() if all(map(isfinite, numbers))}
        ranges = {}
        for tag, (low, high, _, _) in finite.items():  # histc would spread a constant over ± 1
            ranges[tag] = (low, high) if low < high else (low - 1e-6, high + 1e-6)
        counts = [torch.histc(values[tag], BINS, *limits) for tag, limits in ranges.items()]
        for (tag, limits), counted in zip(ranges.items(), torch.stack(counts).tolist() if counts else [], strict=True):
            self.writer.add_histogram_raw(
                tag,
                min=limits[0],
                max=limits[1],
                num=values[tag].numel(),
                sum=finite[tag][2],
                sum_squares=finite[tag][3],
                bucket_limits=np.linspace(*limits, BINS + 1)[1:].tolist(),
                bucket_counts=counted,
                global_step=step,
            )
        return [tag for tag in values if tag not in finite]

    def deformed(self, examples: Examples, step: int, most: int = 30) -> None:
        """Log the first training images as they were deformed in this epoch."""
        names = [str(label) for label in examples.labels[:most].tolist()]
        picture = captioned(examples.x[:most], names)
        self.writer.add_image("pictures/deformed", picture, step, dataformats="HWC")

    def end(self, results: Mapping[str, float], images: Tensor, labels: Tensor, outputs: Tensor, step: int) -> None:
        """Log the results that HParams compares, and pictures: first layer, confusion matrix, worst mistakes.

        ``images`` (N, 784) bytes, ``labels`` (N,) and ``outputs`` (N, 10) are of the test set, on the CPU.
        """
        matrix = confusion_matrix(labels, outputs.argmax(1), outputs.shape[1])
        wrong = most_wrong(labels, outputs)
        said = [
            f"{t}, said {s}" for t, s in zip(labels[wrong].tolist(), outputs[wrong].argmax(1).tolist(), strict=True)
        ]
        for name, picture in (
            ("first_layer", weight_maps(self.network.weights[0][:MAPS])),
            ("confusion", confusion_picture(matrix)),
            ("most_wrong", captioned(images[wrong], said)),
        ):
            self.writer.add_image(f"pictures/{name}", picture, step, dataformats="HWC")
        self.results(results, step)

    def results(self, results: Mapping[str, float], step: int) -> None:
        """Log the results that HParams compares, and that the run is done."""
        self.scalars({f"final/{name}": results[name] for name in RESULTS}, step)
        self._file.add_summary(self._end)

    def embedding(
        self, images: Tensor, labels: Tensor, outputs: Tensor, hidden: Tensor, step: int, most: int = 2000
    ) -> None:
        """Log a PR curve for each digit, and the last hidden layer's activations (N, n) for the projector."""
        for digit in range(outputs.shape[1]):
            self.writer.add_pr_curve(
                f"precision_recall/digit_{digit}", labels == digit, outputs[:, digit].clamp(0, 1), step
            )
        side = int(sqrt(images.shape[1]))
        pictures = 1 - images[:most].view(-1, 1, side, side).float() / 255
        self.writer.add_embedding(
            hidden[:most], labels[:most].tolist(), pictures, global_step=step, tag="last_hidden_layer"
        )

    def flush(self) -> None:
        """Write everything logged so far to disk."""
        self.writer.flush()

    def close(self) -> None:
        """Log the remaining points and close the file."""
        self.write_points()
        self.writer.close()


def open_writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """A writer of a new event file in ``folder``. Raises OSError if no file can be written there.

    TensorBoard reads the files of a folder in the order of the seconds in their names, and shows nothing that comes
    after a later step: this file's name comes last, even if the clock was set back.
    """
    with tempfile.TemporaryFile(dir=folder):  # the writer would fail in a thread of its own, with a traceback
        pass
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    latest = max([int(number) for number in seconds if number.isdecimal()], default=0)
    writer = SummaryWriter(str(folder), purge_step=purge_step)
    events = writer._get_file_writer().event_writer
    events.flush()
    made = Path(events._file_name)
    if int(made.name.split(".")[3]) <= latest:
        later = made.with_name(made.name.replace(made.name.split(".")[3], f"{latest + 1:010d}"))
        made.rename(later)
        events._file_name = events._general_file_writer.filename = str(later)  # opened anew by each write
    return writer


def add_figures(folder: Path, figures: "Mapping[str, Figure]") -> None:
    """Add the figures of ``explain``, ``{idea: figure}``, to a run, in an event file of their own."""
    with open_writer(folder) as writer:
        for idea, figure in figures.items():
            writer.add_figure(f"explain/{idea}", figure)


def _lines(values: Mapping[str, object]) -> str:
    return "\n".join(f"{key:8} {value}" for key, value in values.items())
