"""The training loop: epochs of mini-batch steps, each followed by an evaluation, a line of output and a checkpoint.

``train_epochs`` is the loop, from top to bottom; what is above it opens and closes a run, what is below it is called in
it. A step is in step.py, the equations are in backprop.py.
"""

import json
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bp_torch.checkpoint import BEST, LAST, NETWORK_FILE, RESULT
from bp_torch.cli import streams_that_show_all
from bp_torch.convert import save as save_network
from bp_torch.data import Examples
from bp_torch.device import choose_device, cpu_hint, has_bfloat16, settings_kept
from bp_torch.distributed import joined, local_device
from bp_torch.files import told, write_json
from bp_torch.network import Network, parameter_count
from bp_torch.text import wrapped
from bp_torch.training import stuck
from bp_torch.training.config import Config, TrainingError
from bp_torch.training.divergence import GradientCheck, diverged
from bp_torch.training.evaluation import BeforeChunk, Score, evaluate, forward_in_chunks
from bp_torch.training.interruption import Stopped
from bp_torch.training.run import Run, RunResult, first_network, opened, write_history

LARGEST_PAGE = (784, 128, 64, 10)  # has the most parameters that ``explain page`` takes: its file is below 1.5 MB
DEEPEST_PAGE = 6  # layers that fit beside each other on it
TENSORBOARD = "http://localhost:6006/#scalars&_smoothingWeight=0"  # the curves as they are: it smooths them otherwise


@settings_kept()
@streams_that_show_all()
@torch.inference_mode()
def train(config: Config, store: str = "env://") -> Path:
    """Train as ``config`` says, print a line for each epoch, save the network. Returns the run's folder.

    Started by torchrun, this is one process of several, which meet at ``store``. Raises a UserError if the run cannot
    start or continue, OSError if it cannot be saved, WrongGradientError, and Stopped on SIGINT, SIGTERM or SIGHUP.
    """
    device = choose_device(local_device(config.device))
    with joined(device, store) as world, opened(config, device, world) as run:
        config = run.config
        if world.is_first:
            print(introduction(run))
        if config.verify_every:
            run.inspect = GradientCheck(run)
        if config.log and world.is_first:
            from bp_torch.training.log import RunLog

            every = min(config.log_every, run.steps_per_epoch)  # a short epoch has a point too
            about = (config.cost, config.evaluated_on, run.training.kind)
            run.log = RunLog(run.folder, run.network, every, run.state, *about)
        with closing(run.log) if run.log else nullcontext(), run.signals:
            if run.log:
                run.log.begin(config, config.hyperparameters(len(run.training.labels), run.step.batch_size))
            train_epochs(run)
            if run.state.reported < run.state.epoch - 1:  # --epochs was lowered to what is done
                report(run)
                save_checkpoint(run)
            network, _ = run.final()  # in every process: they read it from the first
            if world.is_first:
                save_network(network, run.folder / NETWORK_FILE)
        if world.is_first:
            checked = f"{run.inspect}\n" if run.inspect else ""
            print(f"{checked}{trouble(run, network)}saved {run.folder / NETWORK_FILE}\n{what_next(run)}".rstrip())
        return run.folder


def train_epochs(run: Run) -> None:
    """Train, from where the run is to the end of its last epoch: gather, step, log, evaluate, save."""
    config, state, step, log = run.config, run.state, run.step, run.log
    per_epoch = run.steps_per_epoch
    early = early_steps(per_epoch) if config.log else set()
    quiet = None if run.world.is_first else True  # None: quiet unless stderr is a terminal
    bar = tqdm(total=config.epochs * per_epoch, initial=state.step, unit="step", leave=False, disable=quiet)
    with bar:
        while state.epoch <= run.last_epoch:
            if config.log and state.step == 0:
                score_early(run)
                show(run, histograms=True, pictures=True)
            start, indices = time.perf_counter(), run.begin_epoch()

            # For each mini-batch of these indices: gather it, forward, backward, update (see step.py).
            for result in step.run(indices, run.inspect):
                run.last = result
                state.count_step()
                bar.update()
                if log and not log.step(state.step, result, step.optimizer):
                    raise diverged(run)
                if log and state.step % log.every == 0 and log.cost is not None:
                    bar.set_postfix_str(f"cost {log.cost:.4f}", refresh=False)
                if state.step in early:
                    start += score_early(run)
                if state.steps == per_epoch:
                    continue  # the epoch's own checkpoint is saved after its results are logged: both or neither
                stop_if_asked(run, state.step)
                if config.checkpoint_every and state.step % config.checkpoint_every == 0:
                    save_checkpoint(run)
            run.order(state.epoch + 1)  # drawn while a GPU still works on the steps above
            synchronize(run.network.device)
            seconds = time.perf_counter() - start
            rate = len(indices) / seconds

            # Histograms come first: after a stop in the evaluation there is no last step.
            ends = state.epoch == config.epochs
            shown = state.epoch % config.histogram_every == 0 or ends
            show(run, histograms=shown and run.last is not None)
            on_training, score = run.evaluate(partial(stop_if_asked, run))
            if run.world.is_first:
                width = max(10, len(f"{config.evaluated_on} cost"))
                bar.write(
                    f"{state.epoch:5}   {on_training.cost:10.4f}  {on_training.accuracy:8.2%}   "
                    f"{score.cost:{width}.4f}  {score.accuracy:8.2%}   {rate:10,.0f}   {seconds:7.2f}"
                )
            if not isfinite(on_training.cost + score.cost):
                raise diverged(run)
            is_best = score.is_better(state.best_accuracy, later=config.validation > 0)
            waited = 0 if score.accuracy > state.best_accuracy else state.waited + 1
            ends = ends or 0 < config.patience <= waited
            if ends:
                report(run, score, partial(stop_if_asked, run))
            else:
                tell_if_stuck(run, score)
            show(run, pictures=shown and (ends or has_pictures(state.epoch)))
            if log:
                log.scores(on_training, score, state.step, rate)

            # The checkpoint stands before the first step of the next epoch.
            state.best_accuracy, state.waited = max(state.best_accuracy, score.accuracy), waited
            state.history.append((state.epoch, state.step, config.learning_rate_at(state.epoch), *on_training, *score))
            state.end_epoch()
            save_checkpoint(run, also=[BEST] if is_best else [])
            if run.signals.should_stop(0):
                raise Stopped(run.signals.received, run.folder)


def tell_if_stuck(run: Run, score: Score) -> None:
    """Say, once, that a run can no longer learn, as soon as that is plain."""
    config, start = run.config, partial(first_network, run.config, run.network.device)
    if not run.stuck and run.world.is_first and stuck.is_chance(score.accuracy, run.evaluated.labels):
        run.stuck = stuck.while_training(config, run.network, start, run.training, run.state.epoch)
        if run.stuck:
            tqdm.write(wrapped(run.stuck))


def trouble(run: Run, network: Network) -> str:
    """The lines about the ``network`` that the run ends with, if it has learned nothing; else ""."""
    accuracy = evaluate(network, run.test, run.config.cost).accuracy if run.tested is None else run.tested
    start = partial(first_network, run.config, network.device)
    said = stuck.at_the_end(run.config, network, start, run.training, run.test, accuracy)
    return f"{wrapped(said)}\n" if said else ""


def what_next(run: Run) -> str:
    """The two commands that show what was learned."""
    watch = f"watch it:  tensorboard --logdir {run.folder.parent} --samples_per_plugin images=100\n"
    watch += f"           {TENSORBOARD}\n"
    show, idea = ("touch it:", "page") if fits_page(run.config.sizes) else ("see it:  ", "nudges")
    explain = f"{show}  python -m bp_torch explain {idea} --run {run.folder}" if run.training.kind.is_digits else ""
    return f"{watch if run.config.log else ''}{explain}"


def fits_page(sizes: tuple[int, ...]) -> bool:
    """Whether ``explain page`` can show a network of these sizes."""
    return parameter_count(sizes) <= parameter_count(LARGEST_PAGE) and len(sizes) - 1 <= DEEPEST_PAGE


def introduction(run: Run) -> str:
    """The network, its examples and the device, the place where a resumed run continues, and the table's header."""
    config, state, network, threads = run.config, run.state, run.network, torch.get_num_threads()
    precision, kind, named = config.precision_on(network.device), run.training.kind, not run.training.kind.sha256
    lines = [
        f"{'-'.join(map(str, config.sizes))}: {len(network.parameters):,} parameters, {len(run.training.labels):,} "
        f"training examples, batches of {run.step.batch_size:,}, on {network.device}"
        + (f" ({threads} thread{'s' * (threads > 1)})" if network.device.type == "cpu" else "")
        + (f", in {run.world.size} processes" if run.world.size > 1 else "")
        + (f", --precision {precision}" if precision != "full" else "")
        + (f"; data: {kind.source}" if named else "")
    ]
    lines += [] if named else [f"data: {kind}"]
    if precision == "bf16" and not has_bfloat16(network.device):
        lines.append("bf16 is slow here: this device has no instructions for it; try --precision auto")
    if config.device == "auto" and (hint := cpu_hint(network.device, run.step.batch_size * len(network.parameters))):
        lines.append(hint)
    if config.resume and state.epoch <= run.last_epoch:
        lines.append(f"continuing {run.folder} at epoch {state.epoch}, step {state.steps} of {run.steps_per_epoch}")
    elif config.resume and run.last_epoch < config.epochs:
        lines.append(f"{run.folder} is done: --patience {config.patience} ended it with epoch {run.last_epoch}")
    elif config.resume:
        lines.append(f"all {config.epochs} epochs of {run.folder} are done: raise --epochs to continue")
    if state.epoch <= run.last_epoch:
        cost = f"{run.config.evaluated_on} cost"
        lines.append(f"epoch   train cost {config.measure:>9}   {cost:>10} {config.measure:>9}   examples/s   seconds")
    return "\n".join(lines)


def early_steps(per_epoch: int) -> set[int]:
    """The steps of the first epoch, which has so many, after which the network is evaluated too."""
    return {per_epoch >> halvings for halvings in (1, 2, 4, 6)} - {0}


def score_early(run: Run) -> float:
    """Evaluate before the first step or within the first epoch, and log the scores. Returns the seconds it took."""
    synchronize(run.network.device)
    start = time.perf_counter()
    scores = run.evaluate()  # without a stop: a checkpoint of this step is saved after them, both or neither
    if run.log:
        run.log.scores(*scores, run.state.step)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def has_pictures(epoch: int) -> bool:
    """Whether pictures are drawn after ``epoch``: 1, 2, 4, 8, 16, … The later, the slower they change."""
    return epoch & (epoch - 1) == 0


def show(run: Run, *, histograms: bool = False, pictures: bool = False) -> None:
    """Log histograms of the last step, and pictures of what the network had learned when it was evaluated."""
    if run.log and histograms:
        run.log.histograms(run.last, run.state.step)
    if run.log and pictures:
        run.log.pictures(run.state.step, *outputs_for(run, run.network, run.evaluated, known=run.outputs))
        if run.state.step and run.config.deformation:
            run.log.deformed(run.step.examples, run.state.step)


def stop_if_asked(run: Run, poll: int) -> None:
    """Save a checkpoint and raise Stopped if a signal came. Several processes ask each other at some polls."""
    if run.signals.should_stop(poll):
        save_checkpoint(run)
        raise Stopped(run.signals.received, run.folder)


def save_checkpoint(run: Run, also: Sequence[str] = ()) -> None:
    """Save the state as the last checkpoint, once the log is on disk. Raises TrainingError if θ is not finite."""
    if not torch.isfinite(run.state.parameters).all() or (run.log and not run.log.write_points()):
        raise diverged(run)
    run.state.seconds = time.perf_counter() - run.begun
    if not run.world.is_first:
        return
    try:
        if run.log:
            run.log.flush()  # first: a resumed run does not log again what was logged before its checkpoint
        if not run.state.steps:
            write_history(run.folder, run.config.evaluated_on, run.state.history)
        for name in (*also, LAST):  # last: it implies that the others are there
            run.state.save(run.folder / name)
    except OSError as error:
        raise TrainingError(f"cannot save {told(error)}; the previous checkpoint is intact") from error


def report(run: Run, score: Score | None = None, before_chunk: BeforeChunk = None) -> None:
    """Save and log the result of the run, whose last network has this ``score`` on what is evaluated; None: unknown."""
    config, state, log = run.config, run.state, run.log
    last_is_best = score is not None and score.is_better(state.best_accuracy, later=config.validation > 0)
    best_accuracy = max(state.best_accuracy, score.accuracy) if score else state.best_accuracy
    network, epoch = run.final(last_is_best)
    if run.validation or not score:
        score = evaluate(network, run.test, config.cost, run.world, before_chunk)
    state.seconds = time.perf_counter() - run.begun
    chosen_by, precision = best_accuracy if run.validation else None, config.precision_on(network.device)
    state.reported = state.epoch - (state.steps == 0)
    held = (epoch, state.reported, chosen_by, state.seconds, precision, network.device.type)
    result = RunResult(score.accuracy, score.cost, *held)
    run.tested = score.accuracy
    if run.world.is_first:
        write_json(run.folder / RESULT, json.loads(result.to_json()))
        if run.validation:
            tqdm.write(result.sentence(len(run.validation.labels), config.measure))
    if log and config.log_embedding:
        alone = run.world.size == 1  # the other processes do not come here
        outputs = outputs_for(run, network, run.test, before_chunk if alone else None, hidden=True)
        log.embedding(state.step, *outputs)
    if log:
        log.end(score, state.step)


def outputs_for(
    run: Run,
    network: Network,
    examples: Examples,
    before_chunk: BeforeChunk = None,
    hidden: bool = False,
    known: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The first 10,000 images, labels, outputs (if not ``known``), and if asked for those before them; on the CPU."""
    examples, kept = examples.map(lambda tensor: tensor[:10_000]), -2 if hidden else -1
    known = known if run.world.size == 1 else ()  # of several processes, each knows those of its shard
    passes = () if known else forward_in_chunks(network, examples, before_chunk=before_chunk)
    chunks = [[outputs] for outputs in known] or [[a.clone() for a in done.activations[kept:]] for done, _, _ in passes]
    *before, outputs = (torch.cat(parts)[:10_000].float().cpu() for parts in zip(*chunks, strict=True))
    if run.config.cost == "softmax-cross-entropy":
        outputs = torch.softmax(outputs, 1)
    return [examples.x.cpu(), examples.labels.cpu(), outputs, *before]
