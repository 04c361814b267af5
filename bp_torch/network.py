"""The network: layer sizes, two activations, and ONE vector θ that holds every weight and bias.

The weights W^l (n_out, n_in) and biases b^l (n_out,) are views into θ, in the order W^1, b^1, W^2, b^2, …, row-major:
that of ``torch.nn.utils.parameters_to_vector`` on an ``nn.Sequential`` of ``nn.Linear``s. A step down the cost is then
one operation on one vector. Nothing here computes an activation or a gradient; see backprop.py.

Lists count from zero: ``weights[0]`` is W^1, the weights into the first layer after the input.
"""

import json
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bp_torch.activations import ACTIVATIONS
from bp_torch.files import replace_file

InitName = Literal["lecun", "normal", "he"]

INITS: tuple[str, ...] = ("lecun", "normal", "he")

METADATA = "network"
"""The key in a file's metadata that holds what the tensors do not say."""

MODULES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def parameter_count(sizes: tuple[int, ...]) -> int:
    """P, the number of weights and biases: (784, 16, 16, 10) has 13,002."""
    return sum(n_in * n_out + n_out for n_in, n_out in pairwise(sizes))


def layer_views(vector: Tensor, sizes: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Cut a vector in the order of θ, (..., P), into its weights [(..., n_out, n_in)] and biases [(..., n_out)].

    They are views: what is written into one is written into ``vector``.
    """
    lengths = [length for n_in, n_out in pairwise(sizes) for length in (n_out * n_in, n_out)]
    pieces = vector.split(lengths, dim=-1)
    weights = [w.unflatten(-1, (n_out, n_in)) for w, (n_in, n_out) in zip(pieces[::2], pairwise(sizes), strict=True)]
    return weights, list(pieces[1::2])


class Network:
    """A fully connected network as raw tensors.

    Attributes:
        sizes: neurons per layer, (n_0, …, n_L), inputs first.
        activation: name of φ in the hidden layers.
        output_activation: name of φ in the last layer.
        parameters: θ, (P,).
        weights: [W^1, …, W^L], each (n_out, n_in), views into ``parameters``.
        biases: [b^1, …, b^L], each (n_out,), views into ``parameters``.
        transposed: [W^1ᵀ, …, W^Lᵀ], each (n_in, n_out), views as well. Making one costs as much as a small product.
    """

    def __init__(
        self,
        sizes: tuple[int, ...] | list[int] = (784, 16, 16, 10),
        *,
        activation: str = "sigmoid",
        output_activation: str = "sigmoid",
        init: str = "lecun",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make a network with initial values drawn from ``seed``.

        ``init`` is the distribution that they are drawn from:
        "lecun": weights normal with standard deviation 1/√n_in, biases zero (LeCun et al. 1998, eq. 16);
        "normal": weights and biases standard normal (Nielsen, ch. 1);
        "he": weights normal with standard deviation √(2/n_in), biases zero (He et al. 2015, eq. 10), for ReLU.

        Raises ValueError for sizes, names or a dtype that no network has.
        """
        self.sizes = _checked_sizes(sizes)
        for name in (activation, output_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"unknown activation {name!r}: choose from {', '.join(ACTIVATIONS)}")
        if not dtype.is_floating_point:
            raise ValueError(f"a network needs a floating dtype, not {dtype}")
        self.activation = activation
        self.output_activation = output_activation
        self.parameters = torch.empty(parameter_count(self.sizes), dtype=dtype, device=device)
        self.weights, self.biases = layer_views(self.parameters, self.sizes)
        self.transposed = [w.T for w in self.weights]
        self.initialise(init, seed)

    @property
    def depth(self) -> int:
        """L, the number of layers that have weights."""
        return len(self.weights)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every parameter."""
        return self.parameters.dtype

    @property
    def device(self) -> torch.device:
        """The device of every parameter."""
        return self.parameters.device

    def __repr__(self) -> str:
        """Sizes, activations and where the parameters are."""
        sizes = "-".join(map(str, self.sizes))
        return f"Network({sizes}, {self.activation}, {self.output_activation}, {self.dtype}, {self.device})"

    def activation_of(self, layer: int) -> str:
        """Name of φ in ``layer`` (an index into ``weights``): the last layer has its own."""
        return self.output_activation if layer == self.depth - 1 else self.activation

    def initialise(self, init: str, seed: int) -> None:
        """Draw every weight and bias anew. See ``__init__`` for the names."""
        if init not in INITS:
            raise ValueError(f"unknown initial values {init!r}: choose from {', '.join(INITS)}")
        generator = torch.Generator().manual_seed(seed)
        # Drawn in float64 on the CPU, so that one seed means one start on every device and in every dtype.
        draw = torch.randn(self.parameters.numel(), generator=generator, dtype=torch.float64)
        if init != "normal":
            gain = 2.0 if init == "he" else 1.0
            weights, biases = layer_views(draw, self.sizes)
            for w, b in zip(weights, biases, strict=True):
                w.mul_(sqrt(gain / w.shape[1]))
                b.zero_()
        self.parameters.copy_(draw)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Network":
        """A copy of this network in another dtype or on another device."""
        copy = Network(
            self.sizes,
            activation=self.activation,
            output_activation=self.output_activation,
            dtype=dtype or self.dtype,
            device=device or self.device,
        )
        copy.parameters.copy_(self.parameters)
        return copy

    # ---- travelling to and from nn.Sequential ----

    def to_sequential(self) -> nn.Sequential:
        """The same network as ``nn.Linear``s and activation modules, with its own copy of the parameters.

        An identity adds no module: the last ``nn.Linear`` then gives the outputs.
        """
        modules: list[nn.Module] = []
        for layer, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            n_out, n_in = w.shape
            linear = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=self.dtype, device=self.device)
            linear.weight.data.copy_(w)
            linear.bias.data.copy_(b)
            modules.append(linear)
            if self.activation_of(layer) != "identity":
                modules.append(MODULES[self.activation_of(layer)]())
        return nn.Sequential(*modules)

    @classmethod
    def from_sequential(cls, model: nn.Sequential) -> "Network":
        """The network that ``model`` is: ``nn.Linear``s with biases, one hidden activation, one at the end.

        A leading ``nn.Flatten`` is taken and dropped. Raises ValueError for anything else, naming the module.
        """
        names = {module: name for name, module in MODULES.items()}
        linears: list[nn.Linear] = []
        found: list[str] = []  # the activation behind each linear
        for position, module in enumerate(model):
            if isinstance(module, nn.Linear) and module.bias is not None:
                linears.append(module)
                found.append("identity")
            elif type(module) in names and linears and found[-1] == "identity":
                found[-1] = names[type(module)]
            elif not (isinstance(module, nn.Flatten) and position == 0):
                raise ValueError(
                    f"module {position} is {module}: wanted nn.Linear with a bias, each followed by at most one of "
                    + ", ".join(f"nn.{m.__name__}" for m in MODULES.values())
                )
        if not linears:
            raise ValueError(f"wanted at least one nn.Linear, got {model}")
        if len(set(found[:-1])) > 1:
            raise ValueError(f"wanted one activation for all hidden layers, got {', '.join(found[:-1])}")
        sizes = (linears[0].in_features, *(linear.out_features for linear in linears))
        like = linears[0].weight
        network = cls(sizes, activation=found[0], output_activation=found[-1], dtype=like.dtype, device=like.device)
        for linear, w, b in zip(linears, network.weights, network.biases, strict=True):
            if linear.weight.shape != w.shape:
                raise ValueError(f"{linear} takes {linear.in_features} inputs, the layer before it gives {w.shape[1]}")
            w.copy_(linear.weight.data)
            b.copy_(linear.bias.data)
        return network

    # ---- travelling to and from a file ----

    def save(self, path: Path | str) -> None:
        """Write a ``.safetensors`` file: tensors W1, b1, W2, b2, …; sizes and activations, as JSON, in its metadata.

        Two networks that are equal give files that are equal, byte for byte.

        Raises OSError when it cannot be written; a file that stood there is then left as it was.
        """
        tensors = {f"W{n}": w for n, w in enumerate(self.weights, 1)}
        tensors |= {f"b{n}": b for n, b in enumerate(self.biases, 1)}
        about = {
            "sizes": self.sizes,
            "activation": self.activation,
            "output_activation": self.output_activation,
        }
        # One entry, for the library writes several in an order that changes from run to run.
        replace_file(Path(path), safetensors.torch.save(tensors, {METADATA: json.dumps(about)}))

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> "Network":
        """Read what ``save`` wrote.

        Raises FileNotFoundError, or ValueError naming the file and what is wrong in it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}")
        try:
            with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
                about = json.loads((file.metadata() or {})[METADATA])
                sizes = _checked_sizes(about["sizes"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            network = cls(
                sizes,
                activation=about["activation"],
                output_activation=about["output_activation"],
                dtype=tensors["W1"].dtype,
                device=device,
            )
            for n, (w, b) in enumerate(zip(network.weights, network.biases, strict=True), 1):
                for name, view in ((f"W{n}", w), (f"b{n}", b)):
                    if tensors[name].shape != view.shape:
                        raise ValueError(f"{name} is {tuple(tensors[name].shape)}, the sizes say {tuple(view.shape)}")
                    if tensors[name].dtype != network.dtype:
                        raise ValueError(f"{name} is {tensors[name].dtype}, W1 is {network.dtype}")
                    view.copy_(tensors[name])
        except KeyError as error:
            raise ValueError(f"{path} holds no network: {error} is missing") from error
        except (safetensors.SafetensorError, ValueError, TypeError) as error:
            raise ValueError(f"{path} holds no network: {error}") from error
        return network


def _checked_sizes(sizes: tuple[int, ...] | list[int]) -> tuple[int, ...]:
    if len(sizes) < 2 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"sizes are two or more positive whole numbers, inputs first, not {sizes!r}")
    return tuple(sizes)
