"""The network: layer sizes, two activations, and ONE vector θ that holds every weight and bias.

The weights W^l (…, n_out, n_in) and biases b^l (…, n_out) are views into θ (…, P), in the order W^1, b^1, W^2, b^2, …,
row-major: that of ``torch.nn.utils.parameters_to_vector`` on an ``nn.Sequential`` of ``nn.Linear``s. A descent step is
then one operation on one vector. The leading dimension (…) is nothing for one network and (K,) for K of the same sizes.

Nothing here computes an activation or a gradient; see backprop.py. Lists count from zero: ``weights[0]`` is W^1.
"""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from math import sqrt
from typing import Any, NamedTuple, NoReturn, get_args

import torch
from torch import Tensor

from bp_torch.activations import ACTIVATIONS, Activation
from bp_torch.text import table
from bp_torch.values import InitName
from bp_torch.values import parameter_count as parameter_count

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INITS: tuple[str, ...] = get_args(InitName)

IN_PLACE = "change the numbers in place, as in network.parameters.copy_(vector) or network.weights[0].copy_(W)"


class Views(tuple[Tensor, ...]):
    """Tensors that show parts of one vector: their contents may change, they may not be replaced."""

    def __setitem__(self, position: object, value: object) -> NoReturn:
        """Raise TypeError."""
        raise TypeError(f"a view cannot be replaced: {IN_PLACE}")


class Layer(NamedTuple):
    """One layer with weights."""

    W: Tensor  # W^l, (…, n_out, n_in)
    b: Tensor  # b^l, (…, n_out)
    phi: Activation  # φ


def layer_views(vector: Tensor, sizes: tuple[int, ...]) -> tuple[Views, Views]:
    """The weights (…, n_out, n_in) and biases (…, n_out) that a vector (…, P) in the order of θ holds, as views."""
    lengths = [length for n_in, n_out in pairwise(sizes) for length in (n_out * n_in, n_out)]
    pieces = vector.split(lengths, dim=-1)
    weights = [w.unflatten(-1, (n_out, n_in)) for w, (n_in, n_out) in zip(pieces[::2], pairwise(sizes), strict=True)]
    return Views(weights), Views(pieces[1::2])


class Network:
    """A fully connected network, or K of them, as raw tensors. Only the numbers in ``parameters`` can be changed."""

    sizes: tuple[int, ...]  # neurons per layer, (n_0, …, n_L), inputs first
    activation: str  # name of φ in the hidden layers
    output_activation: str  # name of φ in the last layer
    parameters: Tensor  # θ, (…, P)
    weights: Views  # (W^1, …, W^L), each (…, n_out, n_in), views into θ
    biases: Views  # (b^1, …, b^L), each (…, n_out), views into θ
    layers: tuple[Layer, ...]

    def __init__(
        self,
        sizes: tuple[int, ...] | list[int] = (784, 16, 16, 10),
        *,
        activation: str = "sigmoid",
        output_activation: str = "sigmoid",
        init: str | Sequence[str] = "lecun",
        seed: int | Sequence[int] = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        networks: int | None = None,
    ) -> None:
        """Make one network, or ``networks`` of them, with initial values drawn from ``seed``, ``seed`` + 1, ….

        For several networks, ``init`` and ``seed`` may also be sequences, with a value for each network.
        ``init`` is the distribution of the initial values:
        "lecun": weights normal with standard deviation 1/√n_in, biases zero (LeCun et al. 1998, eq. 16);
        "normal": weights and biases standard normal (Nielsen, ch. 1);
        "he": weights normal with standard deviation √(2/n_in), biases zero (He et al. 2015, eq. 10), for ReLU;
        "uniform": weights uniform in ±1/√n_in, biases zero (Glorot and Bengio 2010, eq. 1).

        Raises ValueError for sizes, names, a dtype or a number of networks that cannot be.
        """
        sizes = checked_sizes(sizes)
        for name in (activation, output_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"unknown activation {name!r}: choose from {', '.join(ACTIVATIONS)}")
        check_dtype(dtype)
        if networks is not None and (type(networks) is not int or networks < 1):
            raise ValueError(f"networks: wanted a whole number from 1, or None, got {networks!r}")
        leading = () if networks is None else (networks,)
        parameters = torch.empty(*leading, parameter_count(sizes), dtype=dtype, device=device)
        state = {"sizes": sizes, "activation": activation, "output_activation": output_activation}
        self.__setstate__(state | {"parameters": parameters})
        self.initialise(init, seed)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        """Raise AttributeError."""
        raise AttributeError(f"network.{name} cannot be assigned: {IN_PLACE}")

    def __getstate__(self) -> dict[str, Any]:
        """Everything that a copy or a pickle needs. The views are made again."""
        return {name: value for name, value in vars(self).items() if name not in ("weights", "biases", "layers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take sizes, activations and parameters, and make the views into these parameters."""
        vars(self).update(state)
        weights, biases = layer_views(self.parameters, self.sizes)
        phi = [ACTIVATIONS[self.activation_of(layer)] for layer in range(self.depth)]
        layers = tuple(map(Layer, weights, biases, phi))
        vars(self).update(weights=weights, biases=biases, layers=layers)

    @property
    def depth(self) -> int:
        """L, the number of layers that have weights."""
        return len(self.sizes) - 1

    @property
    def leading(self) -> tuple[int, ...]:
        """The dimension that counts networks: () for one, (K,) for K."""
        return tuple(self.parameters.shape[:-1])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every parameter."""
        return self.parameters.dtype

    @property
    def device(self) -> torch.device:
        """The device of every parameter."""
        return self.parameters.device

    def __getitem__(self, k: int | slice) -> "Network":
        """Network ``k`` of several, or a slice: a view. Raises TypeError for a single network, and IndexError."""
        if not self.leading:
            raise TypeError(f"{self} is one network: only one of networks=K has a part [k]")
        return self._with(self.parameters[k])

    def __iter__(self) -> Iterator["Network"]:
        """Each of several networks, as a view."""
        return (self[k] for k in range(len(self.parameters)))

    def __repr__(self) -> str:
        """Sizes, activations and where the parameters are."""
        several = "".join(f"{k} × " for k in self.leading)
        sizes = "-".join(map(str, self.sizes))
        return f"Network({several}{sizes}, {self.activation}, {self.output_activation}, {self.dtype}, {self.device})"

    def _repr_html_(self) -> str:
        """A row for each layer, for a notebook."""
        header = ["layer", "inputs", "neurons", "parameters", "activation"]
        counts = [(l, n_in, n_out, n_in * n_out + n_out) for l, (n_in, n_out) in enumerate(pairwise(self.sizes), 1)]
        rows = [[*map("{:,}".format, row), self.activation_of(row[0] - 1)] for row in counts]
        return f"<pre>{self}\n\n{escape(table(header, rows))}</pre>"

    def activation_of(self, layer: int) -> str:
        """Name of φ in ``layer`` (an index into ``weights``): the last layer has its own."""
        return self.output_activation if layer == self.depth - 1 else self.activation

    def initialise(self, init: str | Sequence[str], seed: int | Sequence[int]) -> None:
        """Draw every weight and bias anew. See ``__init__`` for the names, and for a value for each network."""
        several = self.parameters.view(-1, parameter_count(self.sizes))
        inits = [init] * len(several) if isinstance(init, str) else init
        seeds = range(seed, seed + len(several)) if isinstance(seed, int) else seed
        if unknown := [name for name in inits if name not in INITS]:
            raise ValueError(f"unknown initial values {unknown[0]!r}: choose from {', '.join(INITS)}")
        if not len(inits) == len(seeds) == len(several):
            wanted = f"wanted {len(several)} initial values and seeds"
            raise ValueError(f"{wanted}, one for each network, got {len(inits)} and {len(seeds)}")
        for parameters, name, own_seed in zip(several, inits, seeds, strict=True):
            # Drawn in float64 on the CPU, so that one seed gives one start on every device and in every dtype.
            generator = torch.Generator().manual_seed(own_seed)
            draw = torch.empty(len(parameters), dtype=torch.float64)
            draw.uniform_(-1, 1, generator=generator) if name == "uniform" else draw.normal_(generator=generator)
            if name != "normal":
                gain = 2.0 if name == "he" else 1.0
                for W, b in zip(*layer_views(draw, self.sizes), strict=True):
                    W.mul_(sqrt(gain / W.shape[1]))
                    b.zero_()
            parameters.copy_(draw)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Network":
        """A copy of this network in another dtype or on another device. Raises ValueError for a dtype of no network."""
        check_dtype(dtype or self.dtype)
        return self._with(self.parameters.detach().to(device or self.device, dtype or self.dtype, copy=True))

    def _with(self, parameters: Tensor) -> "Network":
        """A network of the same sizes and activations with these ``parameters``."""
        other = Network.__new__(Network)
        other.__setstate__(self.__getstate__() | {"parameters": parameters})
        return other

    def check_batch(self, name: str, batch: Tensor, width: int, rows: int | None = None) -> None:
        """Raise ValueError unless ``batch`` is (…, ``rows``, ``width``), in the network's dtype and on its device."""
        if torch.compiler.is_compiling():
            return  # memory and devices are not known there, and are those of the lines that are compiled
        if not isinstance(batch, Tensor):
            way = f"torch.tensor({name}, dtype={self.dtype})"
            raise ValueError(f"{name} is of the type {type(batch).__name__}, wanted a tensor: {way} makes one")
        memory = self.parameters.untyped_storage()._cdata  # another one where ``.data`` was assigned
        if any(view.untyped_storage()._cdata != memory for view in (*self.weights, *self.biases)):
            raise ValueError(f"weights and biases are no longer views into the parameters of {self}: {IN_PLACE}")
        if batch.ndim < 2 or batch.shape[-1] != width or batch.shape[:-2] not in ((), self.leading):
            wanted = ", ".join(map(str, (*self.leading, "batch", width)))
            raise ValueError(f"{name} has shape {tuple(batch.shape)}, wanted ({wanted}) for {self}")
        if rows is not None and batch.shape[-2] != rows:
            raise ValueError(f"{name} has {batch.shape[-2]} rows, the batch that went forward has {rows}")
        if batch.dtype != self.dtype:
            raise ValueError(f"{name} is {batch.dtype}, the network is {self.dtype}")
        if batch.device != self.device:
            raise ValueError(f"{name} is on {batch.device}, the network is on {self.device}")

    def count_writes(self, activations: list[Tensor]) -> int | None:
        """How often θ and ``activations`` were written to, in all. None in inference mode and in a recorded step."""
        if torch.compiler.is_compiling():
            return None
        try:
            return sum(tensor._version for tensor in (self.parameters, *activations))
        except RuntimeError:  # torch counts no writes there
            return None

    def check_passed(
        self, network: "Network", activations: list[Tensor], writes: int | None, out: Tensor | None
    ) -> None:
        """Raise ValueError unless a forward pass was of this network, and all that it used and computed is as it was.

        ``out``, into which the gradient is written, has to be like θ, in memory of its own.
        """
        if network is not self:
            raise ValueError(f"the forward pass is of another network, {network}; wanted one of {self}")
        if writes is not None and self.count_writes(activations) != writes:
            raise ValueError("x, θ or an activation was written to after the forward pass: go forward again")
        if out is None:
            return
        like = self.parameters
        if (out.shape, out.dtype, out.device) != (like.shape, like.dtype, like.device):
            got = f"{tuple(out.shape)} of {out.dtype} on {out.device}"
            raise ValueError(f"out is {got}, wanted {tuple(like.shape)} of {like.dtype} on {like.device}")
        if not torch.compiler.is_compiling() and out.untyped_storage()._cdata == like.untyped_storage()._cdata:
            raise ValueError("out is in the memory of θ, which the backward pass still reads")


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError unless a network may be of this ``dtype``."""
    if dtype not in DTYPES:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"a network needs a dtype of {wanted}, not {dtype}")


def checked_sizes(sizes: tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """``sizes`` as a tuple. Raises ValueError unless they are two or more positive whole numbers."""
    if len(sizes) < 2 or not all(type(n) is int and n > 0 for n in sizes):
        raise ValueError(f"sizes are two or more positive whole numbers, inputs first, not {sizes!r}")
    if parameter_count(tuple(sizes)) >= 2**40:
        raise ValueError("sizes have more parameters than fit in any memory")
    return tuple(sizes)


def checked_examples(examples: int) -> int:
    """``examples``, the B of a mean. Raises ValueError unless it is a whole number from 1."""
    if type(examples) is not int or examples < 1:
        raise ValueError(f"the mean is over a whole number of examples, at least one, not {examples!r}")
    return examples
