"""The walk down the cost: one step for each mini-batch of shuffled examples.

No mini-batch knows the true gradient, which needs every example; each points down well enough, and is quick. A step is
``Walk.step``. On a GPU it is written down once as a CUDA graph and replayed, for one launch costs less than forty.
"""

from collections.abc import Callable, Iterator
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from bp_torch.backprop import Trace, backward, costs, forward
from bp_torch.data import ALONE, PIXEL_SCALE, Examples, Minibatches
from bp_torch.distributed import World
from bp_torch.network import Network
from bp_torch.sgd import SGD

Inspect = Callable[[Tensor, Tensor, Tensor], None]
"""Is shown x, y and the gradient of a mini-batch before the step is made."""


class Seen(NamedTuple):
    """What a step saw, overwritten by the next: its trace, and the wanted outputs y (B, n_L)."""

    trace: Trace
    y: Tensor


class Walk:
    """The way of one network down the cost of some examples.

    Attributes:
        network: whose parameters descend.
        working: what goes forward and back: the network itself, or its copy in a lower precision, made anew each step.
        sgd: makes the step.
        batch_size: examples of a whole mini-batch, of all processes together.
        trace: that of this process's share of a whole mini-batch.
        running: where a step adds [what its examples cost, their number], (2,); None where nobody asks.
    """

    def __init__(
        self,
        network: Network,
        sgd: SGD,
        examples: Examples,
        batch_size: int,
        cost: str,
        *,
        precision: torch.dtype | None = None,
        running: Tensor | None = None,
        world: World = ALONE,
        graph: bool = True,
    ) -> None:
        """Make all buffers. ``precision`` is that of forward and backward, the network's own where none is given.

        In a ``world`` of several processes each walks with its share of every mini-batch, and one sum makes the shares
        whole. ``graph`` is for a single process on a GPU; others take each step as it is written.
        """
        self.network = network
        self.working = network if precision in (None, network.dtype) else network.to(dtype=precision)
        self.sgd = sgd
        self.batch_size = batch_size
        self.cost = cost
        self.running = running
        self.world = world
        share = ceil(batch_size / world.size)
        self.batches = Minibatches(examples, share, self.working.dtype)
        self.trace = Trace(self.working, share, PIXEL_SCALE)
        recorded = graph and world.size == 1 and can_record(network.device)
        self._replay = Recording(self.step) if recorded else self.step

    def __call__(self, order: Tensor, inspect: Inspect | None = None) -> Iterator[Seen]:
        """Step once for each mini-batch of ``order``, indices (n,) of examples; after each step, yield what it saw.

        Nothing here waits for a GPU, unless ``inspect`` does; with it, no step is replayed.
        """
        for chosen in order.split(self.batch_size) if len(order) else ():  # split would make one piece of nothing
            yield self.step(chosen, inspect) if inspect else self._replay(chosen)

    def step(self, chosen: Tensor, inspect: Inspect | None = None) -> Seen:
        """Forward, backward and down, for the mini-batch of the ``chosen`` examples (B,)."""
        if self.working is not self.network:
            self.working.parameters.copy_(self.network.parameters)
        x, y = self.batches.gather(self.world.share(chosen))
        seen = forward(self.working, x, self.trace)
        backward(self.working, seen, y, self.cost, examples=chosen.shape[0])
        if inspect:
            inspect(x, y, seen.gradient)
        if self.running is not None:
            seen.tally_up(costs(seen, y, self.cost))
        self.world.sum(seen.sums)
        if self.running is not None:
            self.running.add_(seen.tally, alpha=chosen.shape[0])
        self.sgd.step(seen.gradient)
        return Seen(seen, y)


def can_record(device: torch.device) -> bool:
    """Whether there are graphs for ``device``."""
    return device.type == "cuda"


class Recording:
    """A step that is written down as a CUDA graph, one for each size of mini-batch, and replayed from then on.

    The first of a size is made as it is written, which loads what a recording may not load. The second is recorded:
    its kernels are noted with the addresses that they read and write, and do not run before the replay. So a step may
    depend on a tensor whose content changes (θ, η, the chosen examples), and not on a Python number that does.
    """

    def __init__(self, step: Callable[[Tensor], Seen]) -> None:
        """Record ``step`` when it comes to it."""
        self.step = step
        self._known: set[int] = set()
        self._recorded: dict[int, tuple[Tensor, torch.cuda.CUDAGraph, Seen]] = {}

    def __call__(self, chosen: Tensor) -> Seen:
        """Make the step for the ``chosen`` examples (B,)."""
        size = chosen.shape[0]
        if size not in self._known:
            self._known.add(size)
            return self.step(chosen)
        if size not in self._recorded:
            self._recorded[size] = self._record(chosen)
        held, graph, seen = self._recorded[size]
        held.copy_(chosen)
        graph.replay()
        return seen

    def _record(self, chosen: Tensor) -> tuple[Tensor, torch.cuda.CUDAGraph, Seen]:
        held, graph = chosen.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may pin a loader's memory
            seen = self.step(held)
        return held, graph, seen
