"""How well a network does: cost and accuracy over a set of examples, computed in chunks."""

from collections.abc import Callable, Iterator
from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor

from bp_torch.backprop import Forward, example_costs, forward
from bp_torch.convert import check_single
from bp_torch.distributed import ALONE, World
from bp_torch.examples import Examples, batch
from bp_torch.network import Network

CHUNK, GPU_CHUNK = 2**19, 2**26
"""Activations, the input's included, that are computed at a time: 2 MiB of float32 fit a CPU's cache; a GPU works on
all of them at once, and 256 MiB fit its memory."""

BeforeChunk = Callable[[int], object] | None
"""Is called before each chunk with its number, from 1, and may raise; each of several processes makes as many calls."""


class Score(NamedTuple):
    """``cost`` is C, the mean over the examples; ``accuracy`` is the fraction classified correctly, 0..1.

    Of real targets, ``accuracy`` is R², the fraction of their variance that the outputs explain, and 0 for none.
    """

    cost: float
    accuracy: float

    def is_better(self, best: float, *, later: bool) -> bool:
        """Whether the accuracy is above the ``best`` so far, or with ``later`` equal to it: it was trained longer."""
        return self.accuracy > best or (later and self.accuracy == best)


def forward_in_chunks(
    network: Network, examples: Examples, world: World = ALONE, before_chunk: BeforeChunk = None
) -> Iterator[tuple[Forward, Tensor, Tensor]]:
    """The forward pass of some of this process's ``examples`` at a time, their targets y, and their labels.

    The inputs x stand in the same memory each time: whoever wants them after the next chunk has to copy them.
    """
    most = CHUNK if network.device.type == "cpu" else GPU_CHUNK
    size = max(1, most // (network.sizes[0] + sum(network.sizes[1:]) * prod(network.leading)))
    shard = examples.map(world.shard)
    memory = shard.x.new_empty(min(size, len(shard.x)), shard.x.shape[1], dtype=network.dtype)
    for number in range(ceil(len(examples.labels) / world.size / size)):
        if before_chunk:
            before_chunk(number + 1)
        chunk = slice(number * size, (number + 1) * size)  # may be empty: shards differ by one
        x, y = batch(shard, chunk, network.dtype, out=memory)
        yield forward(network, x), y, shard.labels[chunk]


def evaluate(
    network: Network, examples: Examples, cost: str, world: World = ALONE, before_chunk: BeforeChunk = None
) -> Score:
    """Cost and accuracy over all ``examples``; each process computes its shard. Raises ValueError for networks=K."""
    check_single(network)
    if not isinstance(examples, Examples):
        raise ValueError(f"wanted Examples(x, labels), got a {type(examples).__name__}")
    return evaluate_each(network, examples, cost, world, before_chunk)[0]


@torch.inference_mode()
def evaluate_each(
    network: Network,
    examples: Examples,
    cost: str,
    world: World = ALONE,
    before_chunk: BeforeChunk = None,
    outputs: list[Tensor] | None = None,
) -> list[Score]:
    """The score of each of K networks over all ``examples``, or of the only one. a^L is added to ``outputs``."""
    n, real = len(examples.labels), examples.kind.real
    sums = torch.zeros(2, *network.leading, dtype=torch.float64, device=network.device)  # of costs, of right answers
    for passed, y, labels in forward_in_chunks(network, examples, world, before_chunk):
        sums[0] += example_costs(passed, y, cost).sum(-1, dtype=torch.float64)
        if not real:
            sums[1] += (passed.activations[-1].argmax(-1) == labels).sum(-1)
        if outputs is not None:
            outputs.append(passed.activations[-1])
    world.all_reduce(sums)
    if real:  # their cost is the squared error
        spread = (examples.labels - examples.labels.mean(0)).square().sum().double()
        sums[1] = n * (1 - sums[0] / spread).clamp(0, 1).nan_to_num()
    return [Score(cost_sum / n, correct / n) for cost_sum, correct in sums.view(2, -1).T.tolist()]
