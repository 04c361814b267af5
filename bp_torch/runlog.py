"""Everything that TensorBoard shows of a run, and the only place that knows a tag.

A tag is ``what/layer_n``: TensorBoard makes a row of each ``what``, so that the layers stand side by side. The step
axis is the number of steps down the cost, everywhere. What steps cost is added up on the device, and nothing here
waits for a GPU inside an epoch.
"""

import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from math import ceil, isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bp_torch.backprop import Trace
from bp_torch.checkpoint import State
from bp_torch.network import Network, layer_views
from bp_torch.sgd import SGD

if TYPE_CHECKING:  # to train takes no matplotlib, and loading it takes a while
    from matplotlib.figure import Figure

LAYOUT = {
    "train and test": {
        "cost": ["Multiline", ["cost/train", "cost/test"]],
        "accuracy": ["Multiline", ["accuracy/train", "accuracy/test"]],
    }
}
Picture = npt.NDArray[np.uint8]

FONT = 22

RESULTS = ("test_accuracy", "test_cost")

BINS = 64
MAPS = 64
"""The most neurons of the first layer that are shown as pictures."""


class RunLog:
    """The event file of one run, in the run's own folder."""

    def __init__(self, folder: Path, network: Network, every: int, state: State) -> None:
        """Open it where ``state`` stands: what an earlier process logged beyond that step is purged."""
        earlier = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
        if str(int(time.time())) in earlier:  # TensorBoard reads files in the order of their seconds: come last
            time.sleep(1 - time.time() % 1)
        self.writer = SummaryWriter(str(folder), purge_step=state.step + 1 if earlier else None)
        self.network = network
        self.every = every
        self.running = state.running  # what the walk adds to; it is saved and restored with the state
        self.at_once = network.device.type == "cpu"  # to read a number from a GPU would mean to wait for it
        self._points: list[tuple[int, float, float, Tensor]] = []  # step, time, learning rate, values on the device
        self._file: FileWriter = (
            self.writer._get_file_writer()
        )  # add_hparams would make a run of its own below this one

    def begin(self, hyperparameters: Mapping[str, str | float], config: str) -> None:
        """How the curves are laid out, the row in HParams, and as text the command, config, versions and machine."""
        self.writer.add_custom_scalars(LAYOUT)
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

    def step(self, step: int, trace: Trace, sgd: SGD) -> bool:
        """Take a point of the curves at the end of an interval. Returns False once a cost was not finite.

        Unless ``at_once``, points stay on the device until ``write_points``.
        """
        if step % self.every:
            return True
        values = [self.running[0] / self.running[1], torch.linalg.vector_norm(trace.gradient)]
        directions, _ = layer_views(sgd.direction(trace.gradient), self.network.sizes)
        for direction, w in zip(directions, self.network.weights, strict=True):
            values.append(sgd.learning_rate * torch.linalg.vector_norm(direction) / torch.linalg.vector_norm(w))
        self._points.append((step, time.time(), sgd.learning_rate, torch.stack([value.double() for value in values])))
        self.running.zero_()
        return not self.at_once or self.write_points()

    def write_points(self) -> bool:
        """Log the points that are still on the device. Returns whether all of their costs were finite."""
        finite = True
        for step, taken, rate, values in self._points:
            cost, norm, *ratios = values.tolist()
            finite = finite and isfinite(cost)
            named = {"cost/train": cost, "gradient_norm": norm, "learning_rate": rate}
            named |= {f"update_to_weight_norm/layer_{n}": ratio for n, ratio in enumerate(ratios, 1)}
            self._scalars(named, step, taken)
        self._points.clear()
        return finite

    def epoch(
        self, *, cost: float, accuracy_train: float, accuracy_test: float, examples_per_second: float, step: int
    ) -> None:
        """What an epoch came to: cost on the test set, accuracy on both."""
        self._scalars(
            {
                "cost/test": cost,
                "accuracy/train": accuracy_train,
                "accuracy/test": accuracy_test,
                "examples_per_second": examples_per_second,
            },
            step,
        )

    def _scalars(self, values: Mapping[str, float], step: int, taken: float | None = None) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step, taken)

    def histograms(self, trace: Trace, step: int) -> list[str]:
        """Weights, biases, gradients, activations and δ of every layer. Returns the tags of those with NaN or ∞."""
        skipped = []
        for kind, tensors in (
            ("weights", self.network.weights),
            ("biases", self.network.biases),
            ("weight_gradients", trace.weight_gradients),
            ("bias_gradients", trace.bias_gradients),
            ("activations", trace.activations[1:]),
            ("deltas", trace.deltas),
        ):
            for n, tensor in enumerate(tensors, 1):
                if not self._histogram(f"{kind}/layer_{n}", tensor, step):
                    skipped.append(f"{kind}/layer_{n}")
        return skipped

    def _histogram(self, tag: str, tensor: Tensor, step: int) -> bool:
        """Counted on the device: only the counts travel, not the tensor."""
        if not tensor.numel():  # the share of a process may be empty
            return True
        values = tensor.float()
        low, high, total, squares = torch.stack(
            [values.min(), values.max(), values.sum(), values.square().sum()]
        ).tolist()
        if not all(map(isfinite, (low, high, total, squares))):
            return False
        if low == high:  # histc would spread a constant over ± 1
            low, high = low - 1e-6, high + 1e-6
        counts = torch.histc(values, BINS, low, high)
        self.writer.add_histogram_raw(
            tag,
            min=low,
            max=high,
            num=tensor.numel(),
            sum=total,
            sum_squares=squares,
            bucket_limits=np.linspace(low, high, BINS + 1)[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
        return True

    def end(self, results: Mapping[str, float], images: Tensor, labels: Tensor, outputs: Tensor, step: int) -> None:
        """The results, which HParams compares, and pictures: the first layer, the confusion matrix, the worst mistakes.

        ``images`` (N, 784) bytes, ``labels`` (N,) and ``outputs`` (N, 10) are of the test set, on the CPU.
        """
        self._scalars({f"final/{name}": results[name] for name in RESULTS}, step)
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
        self._file.add_summary(self._end)

    def embedding(
        self, images: Tensor, labels: Tensor, outputs: Tensor, hidden: Tensor, step: int, most: int = 2000
    ) -> None:
        """A PR curve for each digit, and the last hidden layer's activations (N, n) for the projector."""
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
        """Everything logged so far reaches the disk."""
        self.writer.flush()

    def close(self) -> None:
        """Log what is left, and let go of the file."""
        self.write_points()
        self.writer.close()


def add_figures(folder: Path, figures: "Mapping[str, Figure]") -> None:
    """Put figures that explain a run beside its curves, ``{idea: figure}``, in one event file of their own."""
    with SummaryWriter(str(folder)) as writer:
        for idea, figure in figures.items():
            writer.add_figure(f"explain/{idea}", figure)


def _lines(values: Mapping[str, object]) -> str:
    return "\n".join(f"{key:8} {value}" for key, value in values.items())


# ---- pictures, each (height, width, 3) of bytes ----

INK, PAPER = (40, 40, 40), (255, 255, 255)
BLUE, RED = np.array([33, 102, 172]), np.array([178, 24, 43])


def diverging(values: Tensor) -> Picture:
    """Maps (n, h, w) in blue below zero, white at zero, red above, (n, h, w, 3); each on its own scale."""
    most = values.abs().amax((-2, -1), keepdim=True).clamp_min(1e-30)
    share = (values / most).nan_to_num().numpy()[..., None]
    colours = np.where(share < 0, BLUE, RED)
    picture: Picture = (255 + np.abs(share) * (colours - 255)).astype(np.uint8)
    return picture


def weight_maps(weights: Tensor, scale: int = 4, gap: int = 6) -> Picture:
    """Weights (n, 784) as n maps of 28×28 in a grid, each on its own scale around zero."""
    side = int(sqrt(weights.shape[1]))
    maps = diverging(weights.float().cpu().view(-1, side, side)).repeat(scale, 1).repeat(scale, 2)
    columns = ceil(sqrt(len(maps)))
    rows = ceil(len(maps) / columns)
    step = side * scale + gap
    sheet = np.full((rows * step + gap, columns * step + gap, 3), 200, np.uint8)
    for n, picture in enumerate(maps):
        top, left = gap + n // columns * step, gap + n % columns * step
        sheet[top : top + side * scale, left : left + side * scale] = picture
    return sheet


def confusion_matrix(labels: Tensor, said: Tensor, classes: int) -> Tensor:
    """How often digit i (row) was called j (column), (classes, classes)."""
    return torch.bincount(labels * classes + said, minlength=classes**2).view(classes, classes).cpu()


def confusion_picture(matrix: Tensor, cell: int = 54, margin: int = 66) -> Picture:
    """The confusion matrix with its counts; the darker, the larger the share of the row; right blue, wrong red."""
    n = len(matrix)
    image = Image.new("RGB", (margin + n * cell + 8, margin + n * cell + 8), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT)
    shares = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    draw.text((margin + n * cell / 2, 14), "what the network said", INK, font, anchor="mm")
    sideways = Image.new("RGB", (n * cell, 26), PAPER)
    ImageDraw.Draw(sideways).text((n * cell / 2, 13), "what the digit is", INK, font, anchor="mm")
    image.paste(sideways.rotate(90, expand=True), (4, margin))
    for i in range(n):
        middle = margin + i * cell + cell / 2
        draw.text((middle, margin - 18), str(i), INK, font, anchor="mm")
        draw.text((margin - 18, middle), str(i), INK, font, anchor="mm")
        for j in range(n):
            count, share = int(matrix[i, j]), float(shares[i, j])
            strength = share if i == j else min(1.0, sqrt(share) * 2)  # a few mistakes shall be seen
            fill = tuple((255 + strength * ((BLUE if i == j else RED) - 255)).astype(int).tolist())
            left, top = margin + j * cell, margin + i * cell
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill)
            if count:
                draw.text(
                    (left + cell / 2 - 1, top + cell / 2), str(count), PAPER if strength > 0.5 else INK, font, "mm"
                )
    return np.asarray(image)


def most_wrong(labels: Tensor, outputs: Tensor, most: int = 24) -> Tensor:
    """Indices of the examples whose own output is furthest below another one, worst first; wrong ones only."""
    own = outputs.gather(1, labels[:, None])[:, 0]
    worst = (outputs.amax(1) - own).nan_to_num().topk(min(most, len(labels)))
    return worst.indices[worst.values > 0]


def captioned(images: Tensor, captions: Sequence[str], scale: int = 3, columns: int = 6) -> Picture:
    """Digits (n, 784), dark on white, in a grid, each with a line below it."""
    side = int(sqrt(images.shape[1]))
    width, height = side * scale + 32, side * scale + 44
    sheet = Image.new("RGB", (columns * width, max(1, ceil(len(captions) / columns)) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for n, (pixels, caption) in enumerate(zip(images.view(-1, side, side).cpu().numpy(), captions, strict=True)):
        left, top = n % columns * width, n // columns * height
        digit = Image.fromarray(255 - pixels).resize((side * scale, side * scale), Image.Resampling.NEAREST)
        sheet.paste(digit, (left + 16, top + 4))
        draw.text((left + width / 2, top + height - 24), caption, INK, font, anchor="mm")
    return np.asarray(sheet)
