"""Two things that stop a run: a cost that is not finite, and a gradient that disagrees with autograd."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from bp_torch.backprop import example_costs
from bp_torch.checkpoint import LAST
from bp_torch.distributed import ALONE
from bp_torch.network import layer_views
from bp_torch.training.config import TrainingError
from bp_torch.training.run import Run
from bp_torch.training.step import StepResult

if TYPE_CHECKING:  # imported where it is used: a run without --verify-every needs no autograd
    from bp_torch.verify import Report


def diverged(run: Run) -> TrainingError:
    """The error of a run whose cost is not finite. What overflowed first is found by training from the checkpoint."""
    if not run.world.is_first:
        return TrainingError("the cost is not finite: stopped with the first process, which says where")
    if run.log:
        may_log = run.last and run.state.steps < run.steps_per_epoch
        if skipped := run.log.histograms(run.last, run.state.step) if may_log else []:
            print(f"{len(skipped)} histograms contain NaN or infinity and are not logged, such as {skipped[0]}")
        run.log.flush()
    step = run.config.training_step(run.network, run.step.optimizer, run.step.examples, record=False)
    run = replace(run, step=step, world=ALONE, inspect=None)
    run.restore()
    for result in run.rest_of_epoch():
        if name := first_not_finite(result, run.config.cost):
            where = f"at step {run.state.step} (epoch {run.state.epoch}) {name} overflowed first"
            break
    else:
        where = "in the evaluation after the epoch, while all of its steps were finite"
    way = "try a smaller --learning-rate or other initial values (--init)"
    return TrainingError(f"the cost is not finite: {where}; {way}; the last good checkpoint is {run.folder / LAST}")


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


class WrongGradientError(RuntimeError):
    """A gradient of the run disagrees with autograd. ``report`` says where."""

    def __init__(self, report: "Report", step: int, epoch: int) -> None:
        """At ``step`` of ``epoch``, whose update was not made."""
        self.report = report
        super().__init__(f"the hand-written gradient of step {step} (epoch {epoch}) disagrees with autograd, see above")


@dataclass
class GradientCheck:
    """Checks the gradient of every ``--verify-every``-th step of a run against autograd, before the update."""

    run: Run
    checked: int = 0  # gradients that were right
    worst: float = 0.0  # their largest relative error

    def __call__(self, result: StepResult) -> None:
        """Check the step if its turn has come. Raises WrongGradientError."""
        from bp_torch.own_backward import check_step

        config, state = self.run.config, self.run.state
        step = state.step + 1
        if step % (config.verify_every or 1):
            return
        try:
            report = check_step(result.forward.network, result.x, result.y, config.cost, result.backward.gradient)
        except ValueError as error:  # parameters or cost are not finite
            raise TrainingError(f"cannot verify step {step}: {error}; try a smaller --learning-rate") from error
        if not report.ok:
            raise WrongGradientError(report, step, state.epoch)
        self.checked += len(report.gradients)
        self.worst = max(self.worst, report.worst)

    def __str__(self) -> str:
        """How many were checked, and how far the worst is off."""
        return f"{self.checked:,} gradients checked against autograd, worst relative error {self.worst:.0e}"
