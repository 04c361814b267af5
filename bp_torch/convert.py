"""A network to and from ``nn.Sequential``, and to and from a ``.safetensors`` file. Nothing here computes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bp_torch.activations import ACTIVATIONS
from bp_torch.files import SUM, in_utf8, replace_file, with_sum, without_sum
from bp_torch.network import Network, checked_sizes

METADATA = "network"  # the key in a file's metadata under which sizes and activations are, as JSON
SAVED = ("sizes", "activation", "output_activation")  # in the metadata
NUMBERS = "numbers"  # the key of the SHA-256 of θ
PICKLED = (b"PK\x03\x04", b"\x80\x02\x8a\n")  # how files of torch.save begin, those of today and older ones
# By their names in the file.
DTYPE_NAMES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


MODULES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


class FromTable(nn.Identity):
    """The activation of this ``name`` in the table: one that torch does not have, or that a user has added."""

    def __init__(self, name: str) -> None:
        """By its name in ``ACTIVATIONS``."""
        super().__init__()
        self.name = name

    def forward(self, z: Tensor) -> Tensor:
        """φ(z)."""
        return ACTIVATIONS[self.name].function(z)


def to_sequential(network: Network) -> nn.Sequential:
    """The same network as ``nn.Linear``s and activation modules (none for identity), with a copy of the parameters."""
    check_single(network)
    modules: list[nn.Module] = []
    for layer, (W, b, _) in enumerate(network.layers):
        n_out, n_in = W.shape
        linear = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=network.dtype, device=network.device)
        linear.weight.data.copy_(W)
        linear.bias.data.copy_(b)
        modules.append(linear)
        if (name := network.activation_of(layer)) != "identity":
            modules.append(MODULES.get(name, partial(FromTable, name))())
    return nn.Sequential(*modules)


def check_single(network: Network) -> None:
    """Raise ValueError for networks=K, K = 1 included, and for what is no network."""
    if not isinstance(network, Network):
        raise ValueError(f"wanted a bp_torch.Network, got {type(network).__name__}")
    if network.leading:
        raise ValueError(f"{network} is not one network: take network[0], network[1] and so on")


def from_sequential(model: nn.Sequential) -> Network:
    """The network that ``model`` is: ``nn.Linear``s with biases, one hidden activation, one at the end.

    A leading ``nn.Flatten()`` is dropped. Raises ValueError, naming the module, for anything that may compute something
    else: other classes, subclasses and parametrizations, hooks, a forward of its own, several dtypes or devices.
    """
    if isinstance(model, Mapping):
        way = "make the nn.Sequential that it is of, call its load_state_dict, and give that"
        raise ValueError(f"a state_dict holds no activations: {way}")
    if type(model) is not nn.Sequential or changed(model):
        raise ValueError(f"wanted a plain nn.Sequential, got {type(model).__name__}{changed(model)}")
    names = {module: name for name, module in MODULES.items()}
    linears, found = list[nn.Linear](), list[str]()  # found: the activation behind each linear
    for position, module in enumerate(model):
        if type(module) is nn.Linear and module.bias is not None and not changed(module):
            mine, others = ({p.data_ptr() for of in each for p in of.parameters()} for each in ([module], linears))
            if module in linears or mine & others - {0}:  # 0: without memory
                raise ValueError(f"module {position}, {module}, comes twice, it or its weights: they would be untied")
            linears.append(module)
            found.append("identity")
        elif type(module) in (*names, FromTable) and linears and found[-1] == "identity" and not changed(module):
            found[-1] = module.name if isinstance(module, FromTable) else names[type(module)]
        elif position or type(module) is not nn.Flatten or repr(module) != repr(nn.Flatten()) or changed(module):
            wanted = "nn.Linear with a bias, each followed by at most one of "
            wanted += ", ".join(f"nn.{m.__name__}" for m in MODULES.values())
            raise ValueError(f"module {position} is {module}{changed(module)}: wanted {wanted}")
    if not linears:
        raise ValueError(f"wanted at least one nn.Linear, got {model}")
    if len(set(found[:-1])) > 1:
        raise ValueError(f"wanted one activation for all hidden layers, got {', '.join(found[:-1])}")
    sizes = (linears[0].in_features, *(linear.out_features for linear in linears))
    like = linears[0].weight
    kinds = {(parameter.dtype, parameter.device) for linear in linears for parameter in (linear.weight, linear.bias)}
    if len(kinds) > 1:
        raise ValueError(f"wanted one dtype and device for all, got {', '.join(f'{t} on {d}' for t, d in kinds)}")
    network = Network(sizes, activation=found[0], output_activation=found[-1], dtype=like.dtype, device=like.device)
    for linear, (W, b, _) in zip(linears, network.layers, strict=True):
        if linear.weight.shape != W.shape:
            raise ValueError(f"{linear} takes {linear.in_features} inputs, the layer before it gives {W.shape[1]}")
        W.copy_(linear.weight.data)
        b.copy_(linear.bias.data)
    return network


def changed(module: Any) -> str:
    """In words, what makes ``module`` compute something else than its class says; empty where nothing does."""
    if "forward" in getattr(module, "__dict__", ()):
        return " with a forward of its own"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return " with hooks" if any(getattr(module, name, None) for name in hooks) else ""


def save(network: Network, path: Path | str) -> None:
    """Write a ``.safetensors`` file: tensors W1, b1, W2, b2, …; in its metadata, as JSON, sizes, activations, sums.

    ``numbers`` is that of θ, which is what the tensors are in this order, ``sha256`` that of the JSON. Equal networks
    give equal files, byte for byte. Raises ValueError for networks=K, and OSError if it cannot be written; an old file
    is then unchanged.
    """
    check_single(network)
    about = with_sum({name: getattr(network, name) for name in SAVED} | {NUMBERS: checksum(network)})
    # One entry: the library writes several in an order that changes from run to run.
    replace_file(Path(path), safetensors.torch.save(named_tensors(network), {METADATA: json.dumps(about)}))


def named_tensors(network: Network) -> dict[str, Tensor]:
    """{"W1": W^1, "b1": b^1, …}."""
    return {f"{name}{n}": view for n, (W, b, _) in enumerate(network.layers, 1) for name, view in (("W", W), ("b", b))}


def checksum(network: Network) -> str:
    """The SHA-256 of the bytes of θ."""
    return hashlib.sha256(network.parameters.cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()


def load(path: Path | str, device: torch.device | str = "cpu") -> Network:
    """Read what ``save`` wrote. Raises FileNotFoundError, or ValueError naming the file and what is wrong in it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    with Path(path).open("rb") as file:
        if file.read(4) in PICKLED:
            way = "load that with torch, and give the nn.Sequential to from_sequential"
            raise ValueError(f"{path} was written by torch.save, wanted a .safetensors file of bp_torch.save: {way}")
    try:
        with in_utf8(Path(path)) as opened, safetensors.safe_open(opened, framework="pt") as file:
            about = json.loads((file.metadata() or {})[METADATA])
            if NUMBERS in about:
                about = without_sum(about)
            digest = about.pop(NUMBERS, None) or about.pop(SUM, None)  # older files have the second, or none
            if others := set(about) - {*SAVED}:
                raise ValueError(f"its metadata have {', '.join(sorted(others))}")
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            check_shapes(checked_sizes(about["sizes"]), {name: part.get_shape() for name, part in found.items()})
            if wrong := {part.get_dtype() for part in found.values()} - set(DTYPE_NAMES):
                raise ValueError(f"its numbers are {', '.join(wrong)}, wanted one of {', '.join(DTYPE_NAMES)}")
            network = Network(**about, dtype=DTYPE_NAMES[found["W1"].get_dtype()], device=device)
            for name, view in named_tensors(network).items():
                if DTYPE_NAMES[found[name].get_dtype()] != network.dtype:
                    raise ValueError(f"{name} is {DTYPE_NAMES[found[name].get_dtype()]}, W1 is {network.dtype}")
                view.copy_(file.get_tensor(name))
    except KeyError as error:
        raise ValueError(f"{path} holds no network: {error} is missing") from error
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} holds no network: {error}") from error
    if digest not in (None, checksum(network)):
        raise ValueError(f"{path} is damaged: its numbers do not have the checksum that it states")
    return network


def check_shapes(sizes: tuple[int, ...], found: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError unless these are the shapes of W1, b1, … of a network of these sizes, before memory is taken."""
    wanted: dict[str, list[int]] = {}
    for n, (n_in, n_out) in enumerate(pairwise(sizes), 1):
        wanted |= {f"W{n}": [n_out, n_in], f"b{n}": [n_out]}
    for name in wanted | dict(found):
        if list(found.get(name, ())) != wanted.get(name):
            says = wanted.get(name, "that there is none")
            raise ValueError(f"{name} is {found.get(name, 'missing')}, the sizes say {says}")
