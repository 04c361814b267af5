"""A network to and from ``nn.Sequential``, and to and from a ``.safetensors`` file. Nothing here computes."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from bp_torch.files import replace_file
from bp_torch.network import Network, checked_sizes

METADATA = "network"
"""The key in a file's metadata under which sizes and activations are, as JSON."""

MODULES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def to_sequential(network: Network) -> nn.Sequential:
    """The same network as ``nn.Linear``s and activation modules, with its own copy of the parameters.

    An identity adds no module: the last ``nn.Linear`` then gives the outputs.
    """
    modules: list[nn.Module] = []
    for layer, (W, b, _) in enumerate(network.layers):
        n_out, n_in = W.shape
        linear = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=network.dtype, device=network.device)
        linear.weight.data.copy_(W)
        linear.bias.data.copy_(b)
        modules.append(linear)
        if network.activation_of(layer) != "identity":
            modules.append(MODULES[network.activation_of(layer)]())
    return nn.Sequential(*modules)


def from_sequential(model: nn.Sequential) -> Network:
    """The network that ``model`` is: ``nn.Linear``s with biases, one hidden activation, one at the end.

    A leading ``nn.Flatten`` is dropped. Raises ValueError for anything else, naming the module.
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
    network = Network(sizes, activation=found[0], output_activation=found[-1], dtype=like.dtype, device=like.device)
    for linear, (W, b, _) in zip(linears, network.layers, strict=True):
        if linear.weight.shape != W.shape:
            raise ValueError(f"{linear} takes {linear.in_features} inputs, the layer before it gives {W.shape[1]}")
        W.copy_(linear.weight.data)
        b.copy_(linear.bias.data)
    return network


def save(network: Network, path: Path | str) -> None:
    """Write a ``.safetensors`` file: tensors W1, b1, W2, b2, …; sizes and activations, as JSON, in its metadata.

    Equal networks give equal files, byte for byte.
    Raises OSError if it cannot be written; the old file, if there was one, is then unchanged.
    """
    tensors = {f"W{n}": W for n, W in enumerate(network.weights, 1)}
    tensors |= {f"b{n}": b for n, b in enumerate(network.biases, 1)}
    about = {
        "sizes": network.sizes,
        "activation": network.activation,
        "output_activation": network.output_activation,
    }
    # One entry: the library writes several in an order that changes from run to run.
    replace_file(Path(path), safetensors.torch.save(tensors, {METADATA: json.dumps(about)}))


def load(path: Path | str, device: torch.device | str = "cpu") -> Network:
    """Read what ``save`` wrote.

    Raises FileNotFoundError, or ValueError naming the file and what is wrong in it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            about = json.loads((file.metadata() or {})[METADATA])
            sizes = checked_sizes(about["sizes"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        network = Network(
            sizes,
            activation=about["activation"],
            output_activation=about["output_activation"],
            dtype=tensors["W1"].dtype,
            device=device,
        )
        for n, (W, b, _) in enumerate(network.layers, 1):
            for name, view in ((f"W{n}", W), (f"b{n}", b)):
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
