"""The same training in JAX, as its documentation has it: ``grad`` of the cost, ``scan`` over batches, ``jit`` of all.

Of several networks: ``vmap`` of the whole epoch. JAX is not needed for anything else: pip install "bp_torch[bench]".
"""

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bp_torch.benchmark.race import Contender, Task, UnavailableError
from bp_torch.data import PIXEL_SCALE, one_hot


def load_jax() -> Any:
    """The module, with as many CPU threads as torch has. Raises UnavailableError where it is not installed."""
    threads = torch.get_num_threads()
    os.environ.setdefault("NPROC", str(threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # else it takes a GPU, and three quarters of its memory
    if threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    try:
        import jax
    except ImportError as error:
        raise UnavailableError('JAX is not installed: pip install "bp_torch[bench]"') from error
    return jax


def epoch_of(task: Task, jax: Any) -> Callable[..., Any]:
    """θ, η and an order (n,) to the θ after its batches: sigmoids and the quadratic cost."""
    sizes, jnp = task.config.sizes, jax.numpy
    images, targets = jnp.asarray(task.examples.x.numpy()), jnp.asarray(one_hot(task.examples.labels).numpy())

    def cost(theta: Any, x: Any, y: Any) -> Any:
        a, start = x, 0
        for n_in, n_out in pairwise(sizes):
            W = theta[start : start + n_in * n_out].reshape(n_out, n_in)
            start += n_in * n_out
            a = jax.nn.sigmoid(a @ W.T + theta[start : start + n_out])
            start += n_out
        return ((a - y) ** 2).sum() / len(x)

    def step(theta: Any, rate: Any, indices: Any) -> Any:
        x = images[indices].astype(jnp.float32) * PIXEL_SCALE
        return theta - rate * jax.grad(cost)(theta, x, targets[indices])

    def epoch(theta: Any, rate: Any, order: Any) -> Any:
        whole = len(order) // task.batch_size
        batches, rest = order[: whole * task.batch_size], order[whole * task.batch_size :]
        batches = batches.reshape(whole, task.batch_size)
        theta, _ = jax.lax.scan(lambda theta, indices: (step(theta, rate, indices), None), theta, batches)
        return step(theta, rate, rest) if len(rest) else theta

    return epoch


def jax_contender(task: Task) -> Contender:
    """The network of the task, or K networks at once. Raises UnavailableError without JAX, or on a GPU."""
    if task.device.type != "cpu":  # JAX would need an installation of its own
        raise UnavailableError("measured on the CPU only")
    jax = load_jax()
    if (platform := jax.default_backend()) != "cpu":  # JAX_PLATFORMS asks for it
        raise UnavailableError(f"measured on the CPU only, and here JAX works on {platform}")
    epoch, rates = epoch_of(task, jax), [member.learning_rate for member in task.members]
    if task.groups:
        epoch = jax.vmap(epoch, (0, 0, 0 if task.own_order else None))
    compiled, theta = jax.jit(epoch), jax.numpy.asarray(task.start().numpy().copy())
    rate = jax.numpy.asarray(rates if task.groups else rates[0], dtype=np.float32)

    def run(order: Tensor) -> None:
        nonlocal theta
        theta = compiled(theta, rate, jax.numpy.asarray(order.numpy().astype(np.int32))).block_until_ready()

    return Contender(run, lambda: torch.from_numpy(np.array(theta)))
