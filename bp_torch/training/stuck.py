"""Whether a network has learned nothing; and if so why, as far as one batch and the way of its weights can tell.

Chance is the accuracy of one answer to every image. A network that does better costs this one comparison.
"""

from collections.abc import Callable
from math import inf, log10, sqrt
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bp_torch.backprop import backward, forward, output_delta
from bp_torch.costs import find_cost
from bp_torch.data import Examples, batch, permutation, subsample
from bp_torch.network import Network, layer_views
from bp_torch.text import number, superscript
from bp_torch.training.config import Config
from bp_torch.training.evaluation import evaluate

ERRORS = 3  # standard errors by which an accuracy may be above another by chance
LOST = torch.finfo(torch.float32).eps  # a change by this part of a number is lost in float32
SLIGHT = 0.01  # weights that moved by less of their size are where they were
BATCH = 1000  # training images that are looked at

Start = Callable[[], Network]  # the network of the first step, made again


class Layer(NamedTuple):
    """One layer, as a batch shows it."""

    shut: float  # the part of its activations through which hardly any gradient passes
    spread: float  # how far its activations differ between images, by their size
    delta: float  # the root mean square of δ
    step: float  # how far a step moves its weights, by their size


def is_chance(accuracy: float, labels: Tensor) -> bool:
    """Whether this ``accuracy`` on examples with ``labels`` (N,) is what one gets without looking at the images.

    One answer to all is right for the part p that the largest class has. N answers at random have the standard error
    √(p (1 − p) / N). Of few examples, an accuracy that is nearer to 1 than to p is not taken for chance.
    """
    if labels.is_floating_point():  # real targets
        return False
    p = largest(labels)
    return accuracy < min(p + ERRORS * error(p, labels), (1 + p) / 2)


def largest(labels: Tensor) -> float:
    """The part of the examples with these ``labels`` (N,) that the largest class has."""
    return labels.bincount().max().item() / len(labels)


def error(p: float, *samples: Tensor) -> float:
    """The standard error of a part p of a sample, or of its difference between two samples, each (N,)."""
    return sqrt(p * (1 - p) * sum(1 / len(labels) for labels in samples))


def shut(network: Network, layer: int, a: Tensor) -> Tensor:
    """The part of a (…, B, n), activations of ``layer``, from 0, whose φ′ is below 0.01; of ReLUs, that is always 0."""
    if network.activation_of(layer) == "relu":
        return (a == 0).all(-2).float().mean()
    return (network.layers[layer].phi.derivative(a) < 0.01).float().mean()


def look(network: Network, config: Config, training: Examples, epoch: int) -> list[Layer]:
    """How a batch goes through each layer, and how far a step of ``epoch`` would move it."""
    x, y = batch(subsample(training, BATCH), slice(None), network.dtype)
    passed = forward(network, x)
    gradient, deltas = backward(network, passed, y, config.cost)
    rate, found = config.learning_rate_at(epoch) / (1 - config.momentum), list[Layer]()
    for l, dW in enumerate(layer_views(gradient, network.sizes)[0]):
        a, size = passed.activations[l + 1].double(), float(deltas[l].double().square().mean().sqrt())
        step = rate * part(dW, network.weights[l])
        found.append(Layer(float(shut(network, l, a)), part(a - a.mean(0), a), size, step))
    return found


def part(change: Tensor, whole: Tensor) -> float:
    """‖change‖ / ‖whole‖; 0 where nothing changes."""
    moved, size = (float(torch.linalg.vector_norm(tensor.double())) for tensor in (change, whole))
    return moved / size if size else inf if moved else 0.0


def cannot_learn(layers: list[Layer]) -> bool:
    """Whether steps are lost in rounding in all layers up to one that is the same for every image, or to the last."""
    moving = next((l for l, layer in enumerate(layers) if not layer.step < LOST), len(layers))
    return moving == len(layers) or any(layer.spread < LOST for layer in layers[:moving])


def while_training(config: Config, network: Network, start: Start, training: Examples, epoch: int) -> str:
    """A sentence on a network that does no better than chance after ``epoch``, if it is plain that this stays so."""
    if not is_gone(config.start_from) and cannot_learn(layers := look(network, config, training, epoch)):
        return f"the network is stuck: {why(config, network, start(), training, layers)}"
    return ""


def at_the_end(
    config: Config, network: Network, start: Start, training: Examples, test: Examples, accuracy: float
) -> str:
    """A sentence on a network that has learned nothing, by its ``accuracy`` on the ``test`` set; "" of all others."""
    chance = is_chance(accuracy, test.labels)
    if not config.epochs or not (chance or accuracy < 0.5) or is_gone(config.start_from):
        return ""
    first, some = start(), subsample(training)
    if config.targets:
        if max(accuracy, evaluate(network, some, config.cost).accuracy) > 0:
            return ""
        layers = look(network, config, training, config.epochs)
        return f"the network explains nothing of its targets: {why(config, network, first, training, layers)}"
    p = largest(test.labels)
    shown = f"{100 * accuracy:.2f} % of the test images are right"
    if chance:
        shown += f", and one answer to all gets {100 * p:.2f} %"
        learned = evaluate(network, some, config.cost).accuracy
        if not is_chance(learned, some.labels):
            if learned < accuracy + ERRORS * error(p, test.labels, some.labels):
                return ""  # it has just begun
            shown += f", but {100 * learned:.2f} % of the training images: do the labels of both mean the same?"
            return f"the network has learned nothing that holds for others: {shown}"
    else:
        before = evaluate(first, test, config.cost).accuracy
        if distance(first, network) > SLIGHT or accuracy > before + ERRORS * error(before, test.labels, test.labels):
            return ""
        shown += f", before the first step it was {100 * before:.2f} %"
    layers = look(network, config, training, config.epochs)
    says = "is stuck" if cannot_learn(layers) else "has learned nothing yet"
    return f"the network {says}: {shown}; {why(config, network, first, training, layers)}"


def is_gone(start_from: Path | None) -> bool:
    """Whether the first weights are no longer known."""
    return start_from is not None and not start_from.is_file()


def distance(first: Network, network: Network) -> float:
    """How far the weights of a layer moved, by their size; of the layer that moved furthest."""
    return max(part(now - then, then) for now, then in zip(network.weights, first.weights, strict=True))


def why(config: Config, network: Network, first: Network, training: Examples, layers: list[Layer]) -> str:
    """The reason, as far as it is known, and what to try."""
    moved = distance(first, network)
    now, then = (sqrt(sum(float(W.double().square().sum()) for W in each.weights)) for each in (network, first))
    l = max(range(len(layers)), key=lambda l: layers[l].shut)
    relu, closed = network.activation_of(l) == "relu", layers[l].shut
    passes = f"{'are 0 for every image' if relu else 'are saturated'}, and no gradient comes back through them"
    smaller = f"a much smaller --learning-rate than {config.learning_rate:g}"
    if closed <= look(first, config, training, 1)[l].shut:  # they were so before the first step
        smaller = f"--init {'he' if relu else 'lecun'}"
    fades = layers[-1].delta / layers[0].delta if layers[0].delta else inf
    if not now:
        return "all weights are 0, and so is their gradient: start from others"
    if config.weight_decay and now < 0.1 * then:
        return f"the weights shrank to {number(now / then, 2)} of their size: try a smaller --weight-decay"
    if closed > 0.5 and (moved > SLIGHT or (relu and closed == 1)):
        units = f"{'all' if closed == 1 else f'{100 * closed:.0f} % of the'} {'ReLUs' if relu else 'activations'}"
        return f"{units} of layer {l + 1} {passes}: try {smaller}"
    if moved <= SLIGHT:
        longer = "" if cannot_learn(layers) else ", or more --epochs"
        return f"the weights moved by {number(moved, 2)} of their size in all: try a larger --learning-rate{longer}"
    if fades > 1000:
        power = superscript(round(log10(fades)))
        return f"δ fades by 10{power} from the last layer to layer 1: try --activation relu --init he, or fewer layers"
    if labels_matter(network, config, training):
        return "the gradient follows the labels: try more --epochs, or a larger --learning-rate"
    return "the gradient is no larger than with shuffled labels: try more --epochs, and check the labels"


def labels_matter(network: Network, config: Config, training: Examples) -> bool:
    """Whether the gradient of the last weights, but for what means do to it, is larger than with 99 shuffled labels."""
    x, y = batch(subsample(training, BATCH), slice(None), network.dtype)
    *_, before, a = forward(network, x).activations
    cost, phi_prime, before = find_cost(config.cost), network.layers[-1].phi.derivative(a), before - before.mean(0)
    orders = [permutation(len(y), 0, k, y.device) for k in range(99)]
    deltas = (output_delta(cost, a, targets, phi_prime, 1) for targets in (y, *(y[order] for order in orders)))
    sizes = [float((delta.mT @ before).double().norm()) for delta in deltas]
    return sizes[0] > max(sizes[1:])
