"""Everything that TensorBoard shows of a run. No other file knows a tag.

A tag is ``number quantity/part``: TensorBoard makes a row of cards of each quantity, and sorts them by the number, in
the order of use. The step axis counts training steps, everywhere. The costs of steps are added up on the device, and
nothing here waits for a GPU inside an epoch.
"""

import platform
import shlex
import sys
import time
import tomllib
from collections.abc import Collection, Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.utils.tensorboard.summary import hparams, pr_curve

from bp_torch.checkpoint import State
from bp_torch.examples import Examples
from bp_torch.files import naming
from bp_torch.flags import flags_of
from bp_torch.kind import Kind
from bp_torch.network import Network, layer_views
from bp_torch.sgd import SGD
from bp_torch.training import images as drawn
from bp_torch.training.config import Config
from bp_torch.training.evaluation import Score
from bp_torch.training.event_file import EventFile
from bp_torch.training.step import StepResult
from bp_torch.training.stuck import shut

if TYPE_CHECKING:  # matplotlib takes a while to load, and training imports this module
    from matplotlib.figure import Figure

ACCURACY, COST = "1 accuracy", "2 cost"
CONFUSION, WEIGHT_MAPS = "3 pictures/confusion", "3 pictures/first layer"
MOST_WRONG, DEFORMED = "3 pictures/most wrong", "3 pictures/deformed"
UPDATES, RMS_DELTA = "4 update to weight", "5 size of delta"
SATURATED, DEAD = "6 saturated", "6 dead ReLUs"
GRADIENT_NORM, LEARNING_RATE = "7 training/gradient norm", "7 training/learning rate"
SPEED = "7 training/examples per second"
AVERAGE_PRECISION = "8 average precision"
WEIGHTS, BIASES, ACTIVATIONS, DELTAS = "9 weights", "9 biases", "9 activations", "9 deltas"
WEIGHT_GRADIENTS, BIAS_GRADIENTS = "9 weight gradients", "9 bias gradients"
EXPLAIN = "explain"

DESCRIPTIONS: dict[str, str] = tomllib.loads(Path(__file__).with_name("descriptions.toml").read_text(encoding="utf-8"))
"""What TensorBoard says of each tag, or of each tag before its stroke: what it shows, and what is healthy."""

EMBEDDED = 2000  # the largest number of images in the projector
MAPS = 36  # the largest number of neurons of the first layer that are shown as pictures


def described(tag: str) -> str:
    """The description of a tag."""
    quantity = tag.split("/")[0]
    return DESCRIPTIONS.get(tag) or DESCRIPTIONS[COST if quantity.startswith(COST) else quantity]


def cost_tag(cost: str, subset: str) -> str:
    """The tag of the cost called ``cost`` on these examples: train, test or validation."""
    return f"{COST}, {cost}/{subset}"


def score_values(cost: str, scores: Mapping[str, Score], step: int) -> dict[str, float]:
    """``scores``, such as {"train": …, "test": …}, by their tags. The cost of training is that of the steps."""
    values = {f"{ACCURACY}/{subset}": score.accuracy for subset, score in scores.items()}
    shown = {subset: score for subset, score in scores.items() if subset != "train" or step == 0}
    return values | {cost_tag(cost, subset): score.cost for subset, score in shown.items()}


def layers(quantity: str, values: Iterable[Any]) -> dict[str, Any]:
    """A value of each layer by its tag."""
    return {f"{quantity}/layer {n}": value for n, value in enumerate(values, 1)}


def blocked_tag(activation: str) -> str | None:
    """The tag of the fraction of a layer through which no gradient comes; None where it always does."""
    return {"relu": DEAD, "identity": None}.get(activation, SATURATED)


def log10(value: Tensor) -> Tensor:
    """log₁₀ of a number, −30 for 0: a chart has no place for −∞."""
    return value.double().clamp_min(1e-30).log10()


class RunLog:
    """The event file of one run, in the run's own folder. ``cost`` is that of the last point that was written."""

    cost: float | None = None

    def __init__(
        self,
        folder: Path,
        network: Network,
        every: int,
        state: State,
        cost_name: str,
        evaluated_on: str = "test",
        kind: Kind | None = None,
    ) -> None:
        """Open it at the step of ``state``: what an earlier process logged beyond that step, or step 0, is purged."""
        # In the first file too: TensorBoard takes the first purge that it reads for the start of the run.
        self.file = EventFile(folder, described, purge_step=state.step + 1 if state.step else 0)
        self.network, self.every, self.cost_name, self.evaluated_on = network, every, cost_name, evaluated_on
        self.kind = kind or Kind()
        self.running = state.running  # each step adds to it; it is saved and restored with the state
        self.at_once = network.device.type == "cpu"  # reading a number from a GPU means waiting for it
        # of the curves: step, time, η, tags, and their values on the device
        self._points: list[tuple[int, float, float, list[str], Tensor]] = []

    def begin(self, config: Config, hyperparameters: Mapping[str, str | float], varied: Collection[str] = ()) -> None:
        """Log the layout of the curves, the row in HParams, which shows ``varied`` columns at once too, and texts."""
        self.file.writer.add_custom_scalars(layout(self.cost_name, self.network))
        experiment, start, self._end = hparams(dict(hyperparameters), {f"{ACCURACY}/test": 0.0})
        first = {name for name, flag in flags_of(type(config)).items() if flag.first_column}
        self.file.summary(with_first_columns(experiment, {*first, *varied}))
        self.file.summary(start)  # add_hparams would make a run of its own below this one

        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        machine = {"system": platform.platform(), "threads": torch.get_num_threads()}
        if self.network.device.type == "cuda":
            machine["GPU"] = torch.cuda.get_device_name(self.network.device)
        texts = {"command": shlex.join(["python", *sys.argv]).replace(" --", " \\\n    --"), "config": config.to_json()}
        for name, values in (("versions", versions), ("machine", machine)):
            texts[name] = "\n".join(f"{key:8} {value}" for key, value in values.items())
        for name, text in texts.items():
            shown = text.encode(errors="replace").decode()  # a path may have bytes that are no text
            self.file.writer.add_text(f"run/{name}", f"```\n{shown}\n```")

    def step(self, step: int, result: StepResult, optimizer: SGD) -> bool:
        """Take a point at the end of an interval, and if ``at_once`` write it. Returns whether its cost is finite."""
        if step % self.every:
            return True
        gradient, (rate,) = result.backward.gradient, optimizer.each(optimizer.learning_rate)
        directions, _ = layer_views(optimizer.direction(gradient), self.network.sizes)
        norm = torch.linalg.vector_norm
        ratios = [rate * norm(v) / norm(w) for v, w in zip(directions, self.network.weights, strict=True)]
        values = {cost_tag(self.cost_name, "train"): self.running[0] / self.running[1], GRADIENT_NORM: norm(gradient)}
        values |= layers(UPDATES, map(log10, ratios)) | self._flow(result)
        kept = torch.stack([value.double() for value in values.values()])
        self._points.append((step, time.time(), rate, list(values), kept))
        self.running.zero_()
        return not self.at_once or self.write_points()

    def _flow(self, result: StepResult) -> dict[str, Tensor]:
        """How δ comes through each layer: its root mean square, and the fraction that is saturated or dead."""
        if not result.x.numel():  # the shard of this process is empty
            return {}
        values = layers(RMS_DELTA, (log10(d.float().square().mean().sqrt()) for d in result.backward.deltas))
        for n, a in enumerate(result.forward.activations[1:], 1):
            if blocked := blocked_tag(self.network.activation_of(n - 1)):
                values[f"{blocked}/layer {n}"] = shut(self.network, n - 1, a)
        return values

    def write_points(self) -> bool:
        """Log the points that are still on the device. Returns whether all of their costs were finite."""
        finite = True
        for step, taken, rate, tags, values in self._points:
            named = dict(zip(tags, values.tolist(), strict=True))
            self.cost = named[cost_tag(self.cost_name, "train")]
            finite = finite and isfinite(self.cost)
            self.scalars(named | {LEARNING_RATE: rate}, step, taken)
        self._points.clear()
        return finite

    def scores(self, on_training: Score, score: Score, step: int, speed: float | None = None) -> None:
        """Log the scores at a step, and after an epoch its examples per second."""
        values = score_values(self.cost_name, {"train": on_training, self.evaluated_on: score}, step)
        self.scalars(values | ({} if speed is None else {SPEED: speed}), step)

    def scalars(self, values: Mapping[str, float], step: int, taken: float | None = None) -> None:
        """Log numbers at a step, taken at this time: seconds since 1970, None for now."""
        self.file.scalars(values, step, taken)

    def histograms(self, result: StepResult | None, step: int) -> list[str]:
        """Log those of every layer, and after a step of its results too. Returns the tags of those with NaN or ∞."""
        named = layers(WEIGHTS, self.network.weights) | layers(BIASES, self.network.biases)
        magnitudes: dict[str, Tensor] = {}
        if result:
            dW, db = layer_views(result.backward.gradient, self.network.sizes)
            named |= layers(ACTIVATIONS, result.forward.activations[1:])
            magnitudes |= layers(DELTAS, result.backward.deltas)
            magnitudes |= layers(WEIGHT_GRADIENTS, dW) | layers(BIAS_GRADIENTS, db)
        return self.file.histograms(named, magnitudes, step)

    def deformed(self, examples: Examples, step: int) -> None:
        """Log the first 30 training images as they were deformed in this epoch."""
        names = list(map(self.kind.name, examples.labels[:30].tolist()))
        self.file.picture(DEFORMED, drawn.captioned(examples.x[:30], names, self.kind.image), step)

    def pictures(self, step: int, images: Tensor, labels: Tensor, outputs: Tensor) -> None:
        """Log W^1 and the mistakes; ``images`` (N, n_0), ``labels`` (N,), ``outputs`` (N, n_L) are on the CPU."""
        kind = self.kind
        if kind.image:
            self.file.picture(WEIGHT_MAPS, drawn.weight_maps(self.network.weights[0][:MAPS], kind.image), step)
        if kind.real:
            return
        said, wrong = outputs.argmax(1), drawn.most_wrong(labels, outputs)
        matrix = drawn.confusion_matrix(labels, said, outputs.shape[1])
        self.file.picture(CONFUSION, drawn.confusion_picture(matrix, kind.names), step)
        if kind.image:
            named = [map(kind.name, classes[wrong].tolist()) for classes in (labels, said)]
            captions = [f"{t}, said {s}" for t, s in zip(*named, strict=True)]
            self.file.picture(MOST_WRONG, drawn.captioned(images[wrong], captions, kind.image), step)

    def end(self, on_test: Score, step: int) -> None:
        """Log that the run is done, and its score on the test set where that was not evaluated before."""
        if self.evaluated_on != "test":
            self.scalars(score_values(self.cost_name, {"test": on_test}, step), step)
        self.file.summary(self._end)

    def embedding(self, step: int, images: Tensor, labels: Tensor, outputs: Tensor, hidden: Tensor) -> None:
        """Log a PR curve for each class, and the last hidden layer's activations (N, n) for the projector."""
        kind = self.kind
        for number in range(0 if kind.real else outputs.shape[1]):
            name = f"digit {number}" if kind.is_digits and not kind.names else f"class {kind.name(number)}"
            positive, scores = labels == number, outputs[:, number]
            precision = average_precision(positive, scores)
            curve = pr_curve(f"precision recall/{name}", positive.numpy(), scores.clamp(0, 1).numpy())
            curve.value[0].metadata.summary_description = f"average precision {precision:.4f}"
            self.file.summary(curve, step)
            self.scalars({f"{AVERAGE_PRECISION}/{name}": precision}, step)
        said = outputs if kind.real else outputs.argmax(1)
        columns = [labels.tolist(), said.tolist()]
        if not kind.real:
            columns = [[kind.name(label) for label in column] for column in columns]
            columns.append(np.where(labels == said, "right", "wrong").tolist())
        rows = [list(map(str, row)) for row in zip(*(column[:EMBEDDED] for column in columns), strict=True)]
        sprites = None
        if kind.image:
            pixels = drawn.as_bytes(images[:EMBEDDED]).view(-1, *kind.image, *[1] * (3 - len(kind.image)))
            sprites = 1 - pixels.movedim(-1, 1).float() / 255
        header = ["label", "said", "right"][: len(columns)]
        with naming(Path(self.file.writer.log_dir)):
            self.file.writer.add_embedding(hidden[:EMBEDDED], rows, sprites, step, "last_hidden_layer", header)

    def flush(self) -> None:
        """Write everything logged so far to disk."""
        self.file.writer.flush()

    def close(self) -> None:
        """Log the remaining points and close the file."""
        self.write_points()
        self.file.writer.close()


def layout(cost: str, network: Network) -> dict[str, dict[str, list[Any]]]:
    """The charts of Custom Scalars: training and test together, then those of each layer; a run has a line in each."""
    subsets = ("train", "validation", "test")
    learned = {
        "accuracy": ["Multiline", [f"{ACCURACY}/{subset}" for subset in subsets]],
        f"{cost} cost": ["Multiline", [cost_tag(cost, subset) for subset in subsets]],
    }
    charts = {"what it has learned": learned}
    for n in range(1, network.depth + 1):
        shown = filter(None, (UPDATES, RMS_DELTA, blocked_tag(network.activation_of(n - 1))))
        charts[f"layer {n}"] = {what[2:]: ["Multiline", [f"^{what}/layer {n}$"]] for what in shown}
    return charts


def with_first_columns(experiment: Any, first: Collection[str]) -> Any:
    """The experiment of HParams, with the columns ``first`` before the others, and a metric that has a name."""
    content = experiment.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(content.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in first
    data.experiment.metric_infos[0].display_name = "test accuracy"
    content.content = data.SerializeToString()
    return experiment


def average_precision(positive: Tensor, scores: Tensor) -> float:
    """The mean, over the positive examples, of the precision among those with a score that is at least as high."""
    found = positive[scores.argsort(descending=True)]
    precision = found.cumsum(0) / torch.arange(1, len(found) + 1)
    return float(precision[found].mean())


def add_figures(folder: Path, figures: "Mapping[str, Figure]") -> None:
    """Add the figures of ``explain``, ``{idea: figure}``, to a run, in an event file of their own."""
    file = EventFile(folder, described)
    for idea, figure in figures.items():
        file.picture(f"{EXPLAIN}/{idea}", drawn.figure_picture(figure), 0)
    file.writer.close()
