"""The training loop: epochs of mini-batch steps, each followed by an evaluation, a line of output and a checkpoint."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from bp_torch.checkpoint import BEST, LAST, NETWORK_FILE, RESULT
from bp_torch.convert import save as save_network
from bp_torch.data import Examples
from bp_torch.device import choose_device, has_bfloat16
from bp_torch.distributed import joined, local_device
from bp_torch.files import replace_file
from bp_torch.network import Network, parameter_count
from bp_torch.training.config import Config
from bp_torch.training.divergence import diverged
from bp_torch.training.evaluation import Pause, Score, evaluate, forward_in_chunks
from bp_torch.training.interruption import Signals, Stopped
from bp_torch.training.log import RunLog
from bp_torch.training.result import Result
from bp_torch.training.run import Run, TrainingError, started
from bp_torch.training.step import StepResult

if TYPE_CHECKING:  # imported where it is used: a run without --verify-every needs no autograd
    from bp_torch.verify import Report

LARGEST_PAGE = (784, 128, 64, 10)
"""The network with the most parameters that ``explain page`` takes: its file is then below 1.5 MB."""

DEEPEST_PAGE = 6
"""Layers that fit beside each other on it."""


class WrongGradientError(RuntimeError):
    """A gradient of the run disagrees with autograd. ``report`` says where."""

    def __init__(self, report: "Report", step: int, epoch: int) -> None:
        """At ``step`` of ``epoch``, whose update was not made."""
        self.report = report
        super().__init__(f"the hand-written gradient of step {step} (epoch {epoch}) disagrees with autograd, see above")


@torch.inference_mode()
def train(config: Config, store: str = "env://") -> Path:
    """Train as ``config`` says, print a line for each epoch, save the network. Returns the run's folder.

    Started by torchrun, this is one process of several, which meet at ``store``.
    Raises TrainingError, DeviceError, DataError or CheckpointError if the run cannot start or continue, OSError if it
    cannot be saved, WrongGradientError, and Stopped, with a checkpoint saved, on SIGINT, SIGTERM or SIGHUP.
    """
    device = choose_device(local_device(config.device))
    with joined(device, store) as world, started(config, device, world) as run:
        say: Callable[[str], object] = print if world.is_first else ignore
        say(introduction(run))
        if config.verify_every:
            run.inspect = GradientCheck(run)
        steps = config.epochs * run.steps_per_epoch
        quiet = None if world.is_first else True  # None: quiet unless stderr is a terminal
        with (
            open_log(run) as log,
            Signals() as signals,
            tqdm(total=steps, initial=run.state.step, unit="step", leave=False, disable=quiet) as bar,
        ):
            if log:
                log.begin(config, config.hyperparameters(len(run.training.labels), run.step.batch_size))
            while run.state.epoch <= config.epochs:
                train_epoch(run, log, signals, bar)
            if run.state.reported < config.epochs:  # --epochs was lowered to what is done
                report(run, log, result_of(run, run.state.best_accuracy))
                save_checkpoint(run, log, None)
            network, _ = run.final()
            if world.is_first:
                save_network(network, run.folder / NETWORK_FILE)
        if run.inspect:
            say(str(run.inspect))
        say(f"saved {run.folder / NETWORK_FILE}\n{what_next(run)}")
        return run.folder


def what_next(run: Run) -> str:
    """The two commands that show what was learned."""
    watch = f"watch it:  tensorboard --logdir {run.folder.parent} --samples_per_plugin images=100\n"
    show, idea = ("touch it:", "page") if fits_page(run.config.sizes) else ("see it:  ", "nudges")
    return f"{watch if run.config.log else ''}{show}  python -m bp_torch explain {idea} --run {run.folder}"


def fits_page(sizes: tuple[int, ...]) -> bool:
    """Whether ``explain page`` can show a network of these sizes."""
    return parameter_count(sizes) <= parameter_count(LARGEST_PAGE) and len(sizes) - 1 <= DEEPEST_PAGE


def ignore(_: object) -> None:
    """What every process but the first does instead of printing."""


def introduction(run: Run) -> str:
    """What will be trained, on what, from where; and the header of the table that follows."""
    config, state, network, threads = run.config, run.state, run.network, torch.get_num_threads()
    precision = config.precision_on(network.device)
    lines = [
        f"{'-'.join(map(str, config.sizes))}: {len(network.parameters):,} parameters, {len(run.training.labels):,} "
        f"training examples, batches of {run.step.batch_size:,}, on {network.device}"
        + (f" ({threads} thread{'s' * (threads > 1)})" if network.device.type == "cpu" else "")
        + (f", in {run.world.size} processes" if run.world.size > 1 else "")
        + (f", --precision {precision}" if precision != "full" else "")
    ]
    if precision == "bf16" and not has_bfloat16(network.device):
        lines.append("bf16 is slow here: this device has no instructions for it; try --precision auto")
    if config.resume and state.epoch <= config.epochs:
        lines.append(f"continuing {run.folder} at epoch {state.epoch}, step {state.steps} of {run.steps_per_epoch}")
    elif config.resume:
        lines.append(f"all {config.epochs} epochs of {run.folder} are done: raise --epochs to continue")
    if state.epoch <= config.epochs:
        cost = f"{run.config.evaluated_on} cost"
        lines.append(f"epoch   train cost  accuracy   {cost:>10}  accuracy   examples/s   seconds")
    return "\n".join(lines)


@contextmanager
def open_log(run: Run) -> Iterator[RunLog | None]:
    """The run's log, in the first process, unless --no-log is given."""
    if not (run.config.log and run.world.is_first):
        yield None
        return
    every = min(run.config.log_every, run.steps_per_epoch)  # a short epoch has a point too
    with closing(RunLog(run.folder, run.network, every, run.state, run.config.cost, run.config.evaluated_on)) as log:
        yield log


def train_epoch(run: Run, log: RunLog | None, signals: Signals, bar: "tqdm[Any]") -> None:
    """Train to the end of the epoch, evaluate, print, log, save a checkpoint."""
    config, state = run.config, run.state
    epoch = state.epoch
    if log and state.step == 0:
        show(run, log, None)
    result, rate, seconds = train_steps(run, log, signals, bar)
    if log and result and (epoch % config.histogram_every == 0 or epoch == config.epochs):
        show(run, log, result)  # now: after a stop below there is no result
    pause = partial(stop_if_asked, run, log, result, signals)
    on_training, score = run.evaluate(pause)
    if run.world.is_first:
        width = max(10, len(f"{run.config.evaluated_on} cost"))
        bar.write(
            f"{epoch:5}   {on_training.cost:10.4f}  {on_training.accuracy:8.2%}   {score.cost:{width}.4f}  "
            f"{score.accuracy:8.2%}   {rate:10,.0f}   {seconds:7.2f}"
        )
    if not isfinite(on_training.cost + score.cost):
        raise diverged(run, log, result)
    better = score.is_better(state.best_accuracy, later=config.validation > 0)
    if epoch == config.epochs:
        report(run, log, result_of(run, max(state.best_accuracy, score.accuracy), score, pause), pause)
    if log:
        log.scores(on_training, score, state.step, rate)
    state.best_accuracy = max(state.best_accuracy, score.accuracy)
    run.end_epoch()
    save_checkpoint(run, log, result, also=[BEST] if better else [])
    if signals.asked(0, run.world, run.network.device):
        raise Stopped(signals.received or signal.SIGTERM, run.folder)


def train_steps(
    run: Run, log: RunLog | None, signals: Signals, bar: "tqdm[Any]"
) -> tuple[StepResult | None, float, float]:
    """Make the remaining steps of the epoch. Returns the last result, the examples per second, and the seconds."""
    config, state, device = run.config, run.state, run.network.device
    steps, before, result = run.steps_per_epoch, state.steps, None
    early = {steps >> halvings for halvings in (1, 2, 4, 6)} - {0} if config.log else set()
    if config.log and state.step == 0:
        score_early(run, log)
    start = time.perf_counter()
    for result in run.rest_of_epoch():
        bar.update()
        if log and not log.step(state.step, result, run.step.optimizer):
            raise diverged(run, log, result)
        if log and state.step % log.every == 0 and log.cost is not None:
            bar.set_postfix_str(f"cost {log.cost:.4f}", refresh=False)
        if state.step in early:
            start += score_early(run, log)
        if state.steps == steps:
            continue  # the epoch's own checkpoint is saved after its results are logged: both or neither
        stop_if_asked(run, log, result, signals, state.step)
        if config.checkpoint_every and state.step % config.checkpoint_every == 0:
            save_checkpoint(run, log, result)
    synchronize(device)
    seconds = time.perf_counter() - start
    return result, max(0, run.examples - before * run.step.batch_size) / seconds, seconds


def score_early(run: Run, log: RunLog | None) -> float:
    """Evaluate before the first step or within the first epoch, and log the scores. Returns the seconds it took."""
    synchronize(run.network.device)
    start = time.perf_counter()
    scores = run.evaluate(ignore)  # a checkpoint of this step is saved after them: both or neither
    if log:
        log.scores(*scores, run.state.step)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(run: Run, log: RunLog, result: StepResult | None) -> None:
    """Log histograms of the last step, and pictures of what the network has learned."""
    log.histograms(result, run.state.step)
    log.pictures(run.state.step, *outputs_for(run, run.network, run.evaluated))
    if result and run.config.deformation:
        log.deformed(run.step.examples, run.state.step)


def stop_if_asked(run: Run, log: RunLog | None, result: StepResult | None, signals: Signals, moment: int) -> None:
    """Save a checkpoint and raise Stopped if a signal came. Several processes ask each other at some ``moment``s."""
    if signals.asked(moment, run.world, run.network.device):
        save_checkpoint(run, log, result)
        raise Stopped(signals.received or signal.SIGTERM, run.folder)


class GradientCheck:
    """Checks the gradient of every ``--verify-every``-th step against autograd, before the update.

    Attributes:
        checked: how many were right; ``worst`` is their largest relative error.
    """

    def __init__(self, run: Run) -> None:
        """For the steps of ``run``."""
        self.run, self.checked, self.worst = run, 0, 0.0

    def __call__(self, result: StepResult) -> None:
        """Check the step if its turn has come. Raises WrongGradientError."""
        from bp_torch.verify import check_step

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
        """What was found."""
        return f"{self.checked:,} gradients checked against autograd, worst relative error {self.worst:.0e}"


def save_checkpoint(run: Run, log: RunLog | None, result: StepResult | None, also: Sequence[str] = ()) -> None:
    """Save the state as the last checkpoint, once the log is on disk. Raises TrainingError if θ is not finite."""
    if not run.is_finite() or (log and not log.write_points()):
        raise diverged(run, log, result)
    run.take_time()
    if not run.world.is_first:
        return
    try:
        if log:
            log.flush()  # first: a resumed run does not log again what was logged before its checkpoint
        for name in (*also, LAST):  # last: it implies that the others are there
            run.state.save(run.folder / name)
    except OSError as error:
        raise TrainingError(f"cannot save into {run.folder}: {error}; the previous checkpoint is intact") from error


def result_of(run: Run, best_accuracy: float, score: Score | None = None, pause: Pause = ignore) -> Result:
    """The result of a run, whose last network has this ``score`` on what is evaluated; None: not known here."""
    config, best = run.config, run.state.best_accuracy
    last = score is not None and score.is_better(best, later=config.validation > 0)
    network, epoch = run.final(best=last)
    if run.validation or not score:
        score = evaluate(network, run.test, config.cost, run.world, pause)
    run.take_time()
    on_validation = best_accuracy if run.validation else None
    precision = config.precision_on(network.device)
    return Result(network, epoch, score, on_validation, config.epochs, run.state.seconds, precision)


def report(run: Run, log: RunLog | None, result: Result, pause: Pause = ignore) -> None:
    """Save and log the ``result``."""
    run.state.reported = run.config.epochs
    if run.world.is_first:
        replace_file(run.folder / RESULT, result.to_json().encode())
        if run.validation:
            tqdm.write(result.sentence(len(run.validation.labels)))
    if not log:
        return
    if run.config.log_embedding:
        pause = pause if run.world.size == 1 else ignore  # the other processes do not come here
        log.embedding(run.state.step, *outputs_for(run, result.network, run.test, pause, hidden=True))
    log.end(result.on_test, run.state.step)


def outputs_for(
    run: Run, network: Network, examples: Examples, pause: Pause = ignore, hidden: bool = False, most: int = 10_000
) -> list[Tensor]:
    """The first ``most`` images, labels, outputs, and if asked for the activations before those; on the CPU."""
    examples = Examples(examples.x[:most], examples.labels[:most])
    kept = -2 if hidden else -1
    chunks = [done.activations[kept:] for done, _, _ in forward_in_chunks(network, examples, pause)]
    *before, outputs = (torch.cat(parts).float().cpu() for parts in zip(*chunks, strict=True))
    if run.config.cost == "softmax-cross-entropy":
        outputs = torch.softmax(outputs, 1)
    return [examples.x.cpu(), examples.labels.cpu(), outputs, *before]
