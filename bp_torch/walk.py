"""The walk down the cost: one step for each mini-batch of shuffled examples.

No mini-batch knows the true gradient, which needs every example; each points down well enough, and is quick. A step is
``Walk.step``. It is gone through line by line once for each size of mini-batch, and then replayed (replay.py).
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
from bp_torch.replay import Replay
from bp_torch.sgd import SGD

Inspect = Callable[[Tensor, Tensor, Tensor], None]
"""Is shown x, y and the gradient of a mini-batch before the step is made."""


class Seen(NamedTuple):
    """What a step saw, overwritten by the next: its trace, and the wanted outputs y (B, n_L)."""

    trace: Trace
    y: Tensor


class Walk:
    """The way of one network down the cost of some examples.

    A step that is replayed follows its tensors and the learning rate; everything else stays what it was in the first.

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
        replay: bool = True,
    ) -> None:
        """Make all buffers. ``precision`` is that of forward and backward, the network's own where none is given.

        In a ``world`` of several processes each walks with its share of every mini-batch, and one sum makes the shares
        whole. There, and without ``replay``, every step is taken as it is written.
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
        self._replay = Replay[Seen](network.device) if replay and world.size == 1 else None

    def __call__(self, order: Tensor, inspect: Inspect | None = None) -> Iterator[Seen]:
        """Step once for each mini-batch of ``order``, indices (n,) of examples; after each step, yield what it saw.

        Nothing here waits for a GPU, unless ``inspect`` does; with it, every step is taken as it is written. All calls
        are made in ``torch.inference_mode``, or none is.
        """
        for chosen in order.split(self.batch_size) if len(order) else ():  # split would make one piece of nothing
            if inspect or not self._replay:
                yield self.step(chosen, inspect)
            else:
                yield self._replay(self.step, chosen)

    def step(self, chosen: Tensor, inspect: Inspect | None = None) -> Seen:
        """Forward, backward and down, for the mini-batch of the ``chosen`` examples (B,)."""
        if self.working is not self.network:
            self.working.parameters.copy_(self.network.parameters)
        x, y = self.batches.gather(self.world.share(chosen))
        trace = forward(self.working, x, self.trace)
        backward(self.working, trace, y, self.cost, examples=chosen.shape[0])
        if inspect:
            inspect(x, y, trace.gradient)
        if self.running is not None:
            trace.tally_up(costs(trace, y, self.cost))
        self.world.sum(trace.sums)
        if self.running is not None:
            self.running.add_(trace.tally, alpha=chosen.shape[0])
        self.sgd.step(trace.gradient)
        return Seen(trace, y)
