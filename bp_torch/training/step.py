"""One step of stochastic gradient descent on a mini-batch: forward, backward, update.

The gradient of a mini-batch is an estimate of the true one, which would need every example; in return each step is
quick. The lines of ``TrainingStep`` run once for each batch size and are then replayed (recorder.py). Of several
processes, each computes the gradient of its shard of the mini-batch, and one all-reduce adds them up. K networks make
their steps at once, all of them on one mini-batch, or each on its own.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bp_torch.backprop import Backward, Forward, backward, example_costs, forward
from bp_torch.device import DeviceError
from bp_torch.distributed import ALONE, World
from bp_torch.examples import Examples, scaled, targets
from bp_torch.network import Network
from bp_torch.recorder import Recorder
from bp_torch.sgd import SGD


class StepResult(NamedTuple):
    """The results of a step, overwritten by the next."""

    x: Tensor  # of the batch, (…, B, n_0)
    y: Tensor  # (…, B, n_L)
    forward: Forward
    backward: Backward


Inspect = Callable[[StepResult], None]  # is called with the result of each backward pass before the update


class TrainingStep:
    """The step of one network, or of K, on mini-batches of some examples.

    A recorded step uses the current contents of its tensors and the current learning rate; all else is as in the first.
    """

    def __init__(
        self,
        network: Network,
        optimizer: SGD,
        examples: Examples,
        batch_size: int,
        cost: str,
        *,
        precision: torch.dtype | None = None,
        running: Tensor | None = None,
        world: World = ALONE,
        record: bool = True,
        compiled: bool = False,
    ) -> None:
        """``precision`` is the dtype of both passes (None: the network's). ``compiled``: by torch.compile first."""
        self.network = network  # whose parameters descend
        # what the batch goes through: the network, or a copy in a lower precision that is made in each step
        self.working = network if precision in (None, network.dtype) else network.to(dtype=precision)
        self.optimizer, self.examples, self.cost, self.world = optimizer, examples, cost, world
        self.batch_size = batch_size  # of a whole mini-batch, of all processes together
        self.running = running  # each step adds [the sum of its examples' costs, their number], (2, …)
        n, networks = network.parameters.numel(), prod(network.leading)
        whole = torch.ones(n + 2 * networks, dtype=self.working.dtype, device=network.device)
        self.reduced = whole[: n + networks]  # ∇C (…, P) and C (…), which add up over the shards of a mini-batch
        self.slope = whole[:n].view(network.parameters.shape)
        self.cost_and_one = whole[n:].view(2, *network.leading)
        # the targets of every class, which a CPU has in its cache; or of every example, which a GPU finds in one kernel
        self.of_classes = network.device.type == "cpu" and not examples.kind.real
        of = torch.arange(examples.kind.outputs) if self.of_classes else examples.labels
        self.targets = targets(of, examples.kind, self.working.dtype)
        lines: list[Any] = [self.step, self.gradient, self.update]
        if compiled:
            lines = list(map(compiled_lines, lines))
        if record and not (compiled and network.device.type == "cpu"):  # a compiled step is recorded on a GPU only
            lines = [Recorder(network.device, function) for function in lines]
        self._whole, self._gradient, self._update = lines

    def run(self, order: Tensor, inspect: Inspect | None = None) -> Iterator[StepResult]:
        """Make a step for each mini-batch of ``order``, indices (n,) of examples, (K, n) if K networks have their own.

        Yields the result after each. Nothing here waits for a GPU, unless ``inspect`` does. All calls are made in
        ``torch.inference_mode``, or none is.
        """
        for start in range(0, order.shape[-1], self.batch_size):
            indices = order[..., start : start + self.batch_size]
            if self.world.size == 1 and inspect is None:
                yield self._whole(indices)
                continue
            result = self._gradient(indices)
            if inspect:
                inspect(result)
            self.world.all_reduce(self.reduced)
            self._update(indices)
            yield result

    def step(self, indices: Tensor) -> StepResult:
        """Forward, backward and update for the mini-batch of the examples at ``indices`` (B,), or (K, B)."""
        result = self.gradient(indices)
        self.update(indices)
        return result

    def gradient(self, indices: Tensor) -> StepResult:
        """Forward and backward for this process's shard of the mini-batch; ∇C and C are written into ``reduced``."""
        if self.working is not self.network:
            self.working.parameters.copy_(self.network.parameters)
        n, shard = indices.shape[-1], indices if self.world.size == 1 else self.world.shard(indices)
        flat = shard.reshape(-1)
        rows = self.examples.labels.index_select(0, flat) if self.of_classes else flat
        x, y = scaled(self.examples.x.index_select(0, flat), self.working.dtype), self.targets.index_select(0, rows)
        x, y = (tensor.view(*shard.shape, tensor.shape[-1]) for tensor in (x, y))
        forward_pass = forward(self.working, x)
        backward_pass = backward(self.working, forward_pass, y, self.cost, examples=n, out=self.slope)
        if self.running is not None:
            costs, mean_cost = example_costs(forward_pass, y, self.cost), self.cost_and_one[0]
            if self.world.size == 1:
                torch.mean(costs, -1, out=mean_cost)
            else:  # each cost is divided first: their sum may be too large for float16
                torch.sum(costs / n, -1, out=mean_cost)
        return StepResult(x, y, forward_pass, backward_pass)

    def update(self, indices: Tensor) -> None:
        """The step along the reduced gradient."""
        if self.running is not None:
            self.running.add_(self.cost_and_one, alpha=indices.shape[-1])
        self.optimizer.step(self.slope)


def compiled_lines(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """``function`` compiled as a whole for each batch size. It, or its first call, raises DeviceError if that fails."""
    # A GPU's graphs are the recorder's: those of the compiler would copy each batch into memory of their own.
    try:
        compiled = torch.compile(function, fullgraph=True, dynamic=False, options={"triton.cudagraphs": False})
    except RuntimeError as error:  # a system or a Python that it does not know
        raise DeviceError(f"--compile does not work here ({error}): leave it out") from error

    def call(indices: Tensor) -> Any:
        try:
            return compiled(indices)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise DeviceError(f"--compile does not work here ({reason}): leave it out") from error

    return call
