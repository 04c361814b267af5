"""A cost that is not finite: which step, which layer and which tensor was the first to overflow."""

import torch

from bp_torch.backprop import example_costs
from bp_torch.checkpoint import LAST
from bp_torch.network import layer_views
from bp_torch.training.log import RunLog
from bp_torch.training.run import Run, TrainingError
from bp_torch.training.step import StepResult


def diverged(run: Run, log: RunLog | None, result: StepResult | None) -> TrainingError:
    """The error of a run whose cost is not finite, with the tensor that overflowed first.

    It is found by training again from the last checkpoint. What can be logged of the last ``result`` is logged before.
    """
    if not run.world.is_first:
        return TrainingError("the cost is not finite: stopped with the first process, which says where")
    if log:
        skipped = log.histograms(result, run.state.step) if result and run.state.steps < run.steps_per_epoch else []
        if skipped:
            print(f"{len(skipped)} histograms contain NaN or infinity and are not logged, such as {skipped[0]}")
        log.flush()
    run = run.alone()
    run.restore()
    for result in run.rest_of_epoch():
        name = first_not_finite(result, run.config.cost)
        if name:
            where = f"at step {run.state.step} (epoch {run.state.epoch}) {name} overflowed first"
            break
    else:
        where = "in the evaluation after the epoch, while all of its steps were finite"
    return TrainingError(
        f"the cost is not finite: {where}; try a smaller --learning-rate or other initial values (--init); "
        f"the last good checkpoint is {run.folder / LAST}"
    )


def first_not_finite(result: StepResult, cost: str) -> str | None:
    """The first tensor of a step, in the order of computation, that contains NaN or ∞; None if all are finite."""
    network, (gradient, deltas) = result.forward.network, result.backward
    layers, (dW, _) = range(network.depth), layer_views(gradient, network.sizes)
    named = [
        *((f"the activations of layer {n + 1}", result.forward.activations[n + 1]) for n in layers),
        ("the cost, on finite activations,", example_costs(result.forward, result.y, cost)),
        *((f"δ of layer {n + 1}", deltas[n]) for n in reversed(layers)),
        *((f"the weight gradient of layer {n + 1}", dW[n]) for n in reversed(layers)),
        *((f"the weights of layer {n + 1}, after the step,", network.weights[n]) for n in layers),
    ]
    return next((name for name, tensor in named if not torch.isfinite(tensor).all()), None)
