"""Page: one HTML file that shows the lesson on a real network, in a browser, from the lines of backprop.py.

    python -m bp_torch explain page
    python -m bp_torch explain page --run runs/NAME --open

Each function below is run once and recorded (recorder.py). The page gets the recordings as data and repeats them with
new contents: it holds products, sums and functions of single numbers, and no line of backpropagation. What it shows of
a network is therefore computed here, also what only the page shows, such as a wish or the cost foretold by a gradient.
The page itself is put together from the files in web/.
"""

import base64
import inspect
import json
import re
import tomllib
import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import torch
from matplotlib.image import imsave
from torch import Tensor

from bp_torch.backprop import backward, example_costs, forward, input_gradient, weighted_sum
from bp_torch.cli import UserError
from bp_torch.costs import find_cost
from bp_torch.data import CLASSES, PIXEL_SCALE, PIXELS, Examples, first_shuffled, one_hot
from bp_torch.explain import content_of, style
from bp_torch.explain.drawing import array
from bp_torch.explain.subject import Subject, UsageError, nearest_to, train_steps
from bp_torch.network import Network, layer_views, parameter_count
from bp_torch.recorder import Recording
from bp_torch.sgd import SGD
from bp_torch.training import evaluate as evaluate_network
from bp_torch.training.loop import DEEPEST_PAGE, LARGEST_PAGE, fits_page

MINI_BATCH = 100
TRAINING_IMAGES = 1000
PATH = 64  # points of the path that its plane is fitted to
FEW = (100, 1_000)  # training images that other networks learn from
STEPS = 3_000  # that each of them makes
LARGEST_LEARNED = 52_000  # parameters of these networks, with which the page stays below 1.5 MB
SCRIPT = ("calculator", "state", "network", "neuron", "image", "more", "descent", "main")  # web/*.js, in this order

OPTIONS = {"alpha", "beta", "dim", "keepdim", "value"}  # of torch's functions, that the page's calculator knows
Named = dict[str, Tensor]


class PageError(UserError):
    """The page cannot repeat what was recorded. The message names the operation."""


# ---- what is recorded: functions of tensors ----


def example(network: Network, cost: str, x: Tensor, y: Tensor) -> Named:
    """Both passes of one image, and what it wants: −∂C/∂ of every quantity, and of every weight's share in it.

    For each layer l from 1: ``z``, ``a``, ``slope`` (φ′), ``delta`` (1, n_l); ``products`` (n_l, n_(l−1)), what each z
    is the sum of, with the bias; ``own``, −δ; ``requests`` (n_l, n_(l−1)), what each neuron alone asks of each
    activation before it; ``sums``, the requests added up one by one; and ``asked`` of l − 1, −∂C/∂a. Of the outputs:
    ``distance`` to the target, and ``parts``, the quadratic cost of each alone.
    """
    passed = forward(network, x)
    back = backward(network, passed, y, cost)
    named = {"cost": example_costs(passed, y, cost), "gradient": back.gradient, "wish": -back.gradient}
    a, named["distance"] = passed.activations, y - passed.activations[-1]
    named["parts"] = find_cost("quadratic").value(passed.z.mT, a[-1].mT, y.mT)
    named[f"asked{network.depth}"] = -find_cost(cost).derivative(a[-1], y)
    for l, (delta, (W, b, phi)) in enumerate(zip(back.deltas, network.layers, strict=True), start=1):
        z = weighted_sum(a[l - 1], W, b)
        named |= {f"z{l}": z, f"products{l}": W * a[l - 1], f"slope{l}": phi.derivative(a[l])}
        # every neuron as a network of one output: δ (n_l, 1, 1), W (n_l, 1, n_(l−1))
        requests = -input_gradient(delta.mT.unsqueeze(-1), W.unsqueeze(-2)).squeeze(-2)
        named |= {f"a{l}": a[l], f"delta{l}": delta, f"own{l}": -delta, f"requests{l}": requests}
        named |= {f"sums{l}": requests.cumsum(0), f"asked{l - 1}": -input_gradient(delta, W)}
    return named


def wiggle(
    network: Network, moved: Network, cost: str, x: Tensor, y: Tensor, change: Tensor, gradient: Tensor, before: Tensor
) -> Named:
    """The cost after a ``change`` (P,) of θ: measured on ``moved``, and foretold by gradient and cost before."""
    torch.add(network.parameters, change, out=moved.parameters)
    measured = example_costs(forward(moved, x), y, cost)
    foretold = before + (gradient * change).sum()
    return {"measured": measured, "foretold": foretold, "difference": measured - foretold, "moved": moved.parameters}


def push(network: Network, pushed: Tensor) -> Named:
    """The change (P,) of θ, of biases, that acts as adding ``pushed`` (1, n_0 + … + n_(L−1)) to the activations."""
    change = torch.zeros_like(network.parameters)
    parts, (_, biases) = pushed.split(network.sizes[:-1], dim=1), layer_views(change, network.sizes)
    for part, W, b in zip(parts, network.weights, biases, strict=True):
        b.copy_(weighted_sum(part, W, torch.zeros_like(b))[0])
    return {"change": change}


def ratio(first: Tensor, second: Tensor) -> Named:
    """How many times as sensitive the cost is to one parameter as to another."""
    return {"times": (first / second).abs()}


def step(network: Network, cost: str, optimizer: SGD, x: Tensor, y: Tensor) -> Named:
    """One step down on a batch, with the batch's cost before it."""
    passed = forward(network, x)
    gradient = backward(network, passed, y, cost).gradient
    optimizer.step(gradient)
    return {"cost": example_costs(passed, y, cost).mean(), "gradient": gradient}


def evaluate(network: Network, cost: str, x: Tensor, y: Tensor) -> Named:
    """The mean cost of a batch, how many images get each answer (10,), and the fraction right; equal outputs share."""
    passed = forward(network, x)
    a = passed.activations[-1]
    answers = (a - a.amax(1, keepdim=True)).sign() + 1  # 1 for the largest output, 0 for the others
    answers = answers / answers.sum(1, keepdim=True)
    right = (answers * y).sum() / len(y)
    return {"cost": example_costs(passed, y, cost).mean(), "answers": answers.sum(0), "right": right}


def average(network: Network, cost: str, x: Tensor, y: Tensor, total: Tensor, count: Tensor, whole: Tensor) -> Named:
    """Add an image's wish to the ``total`` of ``count``, in place: the average, and how far it is from −``whole``."""
    total.sub_(backward(network, forward(network, x), y, cost).gradient)
    count.add_(1)
    wish = total / count
    return {"wish": wish, "whole_wish": -whole, "distance": length(wish + whole) / length(whole)}


def plane(path: Tensor) -> Named:
    """The two main directions of a ``path`` (N, P), ``along`` and ``across`` (1, P), and where its points are in them.

    ``along_at`` and ``across_at`` (N, 1) count from the mean of the path, ``origin``. The directions are eigenvectors
    of the Gram matrix of the centred path; a high power of the matrix leaves only the largest.
    """
    origin = path.mean(0, keepdim=True)
    centred = path - origin
    gram, named = torch.matmul(centred, centred.mT), {"origin": origin}
    for name in ("along", "across"):
        power = gram
        for _ in range(7):
            power = torch.matmul(power, power)
            power = power / length(power)
        weights = torch.matmul(power, gram.square().sum(1, keepdim=True))
        weights = weights / length(weights)
        direction = torch.matmul(weights.mT, centred)
        named[name] = direction / length(direction)
        named[f"{name}_at"] = torch.matmul(centred, named[name].mT)
        gram = gram - torch.matmul(torch.matmul(gram, weights), weights.mT)
    return named


def length(tensor: Tensor) -> Tensor:
    """‖tensor‖, a little more than zero."""
    return tensor.square().sum().sqrt() + 1e-20


def surface(
    network: Network,
    cost: str,
    x: Tensor,
    y: Tensor,
    origin: Tensor,
    along: Tensor,
    across: Tensor,
    along_at: Tensor,
    across_at: Tensor,
) -> Named:
    """The mean cost at a point of the plane."""
    network.parameters.copy_((origin + along_at * along + across_at * across)[0])
    return {"cost": example_costs(forward(network, x), y, cost).mean()}


# ---- recordings as data ----

RECORDED: dict[str, tuple[Callable[..., Named], int]] = {
    "example": (example, 1),
    "wiggle": (wiggle, 1),
    "push": (push, 1),
    "ratio": (ratio, 1),
    "step1": (step, 1),
    "step100": (step, MINI_BATCH),
    "step1000": (step, TRAINING_IMAGES),
    "evaluate": (evaluate, TRAINING_IMAGES),
    "average": (average, 1),
    "plane": (plane, PATH),
    "surface": (surface, TRAINING_IMAGES),
}
"""What the page repeats: a function above, and for how many images (of ``plane``, points)."""


def recording(name: str, network: Network, cost: str) -> dict[str, Any]:
    """One run of ``RECORDED[name]`` as data, inputs and results by name. Raises PageError if it cannot be repeated."""
    function, count = RECORDED[name]
    network = network.to()
    theta, optimizer = network.parameters, SGD(network, 1.0)
    things = {"network": network, "moved": network.to(), "cost": cost, "optimizer": optimizer}
    tensors = {
        "x": torch.zeros(count, PIXELS),
        "y": torch.zeros(count, CLASSES),
        "path": torch.ones_like(theta).repeat(count, 1),
        "pushed": torch.zeros(1, sum(network.sizes[:-1])),
        **{each: torch.ones_like(theta)[None] for each in ("origin", "along", "across")},
        **{each: torch.ones_like(theta) for each in ("change", "gradient", "total", "whole")},
        **{each: torch.ones(1) for each in ("before", "count", "first", "second", "along_at", "across_at")},
    }
    wanted = inspect.signature(function).parameters
    inputs = {each: tensor for each, tensor in tensors.items() if each in wanted}
    with torch.inference_mode(), Recording() as recorded:
        results = function(**inputs, **{each: thing for each, thing in things.items() if each in wanted})
    inputs |= {"parameters": theta} if "network" in wanted else {}
    inputs |= {"rate": optimizer.rate} if "optimizer" in wanted else {}
    data: dict[str, Any] = recorded.to_data(**inputs, **results)
    check_repeatable(data)
    return data


def check_repeatable(recording: dict[str, Any]) -> None:
    """Raise PageError for the first call that the page's calculator lacks."""
    (table,) = re.findall(r"^const OPERATIONS = \{\n(.*?)^\};", content_of("web/calculator.js"), re.M | re.S)
    known = set(re.findall(r"^  (\w+)[:(]", table, re.M))
    for call in recording["calls"]:
        name = call["operation"]
        if name not in known:
            raise PageError(f"the page lacks the operation {name!r}: add it to OPERATIONS in web/calculator.js")
        for option in sorted(call["options"].keys() - OPTIONS):
            raise PageError(f"the page's calculator lacks the option {option!r} of the operation {name!r}")
        for place in [call["out"], *call["arguments"]]:
            if isinstance(place, dict) and (place["dtype"] != "float32" or len(place["shape"]) > 3):
                what = f"{place['dtype']} of shape {tuple(place['shape'])}"
                raise PageError(f"the page's calculator takes float32 of at most 3 dimensions, {name!r} has {what}")


# ---- the page ----


def write_page(subject: Subject) -> str:
    """The whole page. Raises UsageError for a network that it cannot show, PageError as ``recording`` does."""
    check_size(subject.network.sizes)
    check_digits(subject.test)
    networks = {name: each.to(dtype=torch.float32, device="cpu") for name, each in subject.before_and_after.items()}
    untrained, network, cost = networks["untrained"], list(networks.values())[-1], subject.config.cost
    shown = subject.test.map(Tensor.cpu)
    choice = choose_images(network, cost, shown)
    images = {"shown": shown.map(lambda tensor: tensor[choice]), "training": first_images(subject.training)}
    data = {
        "caption": subject.caption,
        "sizes": network.sizes,
        "learningRate": subject.config.learning_rate,
        "cost": cost,
        "farthest": 2 if cost == "quadratic" else 1,  # −∂C/∂a of an output that is 1 from its target
        "absorbs": find_cost(cost).absorbs is not None,
        "recordings": packed(json.dumps({name: recording(name, network, cost) for name in RECORDED}).encode()),
        "networks": {name: packed(each.parameters) for name, each in networks.items()},
        "images": {name: {"x": packed(each.x), "labels": each.labels.tolist()} for name, each in images.items()},
        "squash": [packed(layer.phi.function(torch.linspace(-12, 12, 97))) for layer in network.layers],
        "code": {each.__name__: inspect.getsource(each) for each in (forward, backward)},
        "unseen": len(subject.test.labels),
        "learned": learned(subject),
    }
    pixels = images["shown"].x[2:3].to(torch.float32) * PIXEL_SCALE  # a plain 2
    wish = example(untrained, cost, pixels, one_hot(torch.tensor([2])))["asked0"]
    page = template().replace("{image}", picture(pixels, "Greys", 0, 1))
    page = page.replace("{wish}", picture(wish, style.DIVERGING, -wish.abs().max().item(), wish.abs().max().item()))
    return page.replace('"{data}"', json.dumps(data, separators=(",", ":")).replace("</", "<\\/"))


def template() -> str:
    """The page without a network: its markup with style, script and the links of web/links.toml."""
    links = tomllib.loads(content_of("web/links.toml"))
    repository = f' · <a href="{links["repository"]}">The code</a>' if links["repository"] else ""
    parts = links | {"repository": repository, "style": content_of("web/page.css")}
    parts["script"] = "\n".join(content_of(f"web/{part}.js") for part in SCRIPT)
    return re.sub(r"\{(" + "|".join(parts) + r")\}", lambda found: parts[found[1]], content_of("web/page.html"))


def learned(subject: Subject) -> list[dict[str, Any]]:
    """Networks trained on few images and on all, in as many steps, their weights in bfloat16; none if too large."""
    if len(subject.network.parameters) > LARGEST_LEARNED:
        return []
    n, found = len(subject.training.labels), list[dict[str, Any]]()
    for count in (*(few for few in FEW if few < n), n):
        config = replace(subject.config, batch_size=min(MINI_BATCH, count), deform="none", schedule="constant")
        examples = first_shuffled(subject.training, count, config.seed)
        network = config.network(examples.x.device)
        for _ in train_steps(config, network, examples, f"{count:,} images", STEPS):
            pass
        halves = network.parameters.bfloat16()
        network.parameters.copy_(halves)
        own, unseen = (evaluate_network(network, each, config.cost).accuracy for each in (examples, subject.test))
        weights = packed(halves.cpu().view(torch.int16))
        found.append({"count": count, "own": own, "right": unseen, "parameters": weights})
    return found


def check_size(sizes: tuple[int, ...]) -> None:
    """Raise UsageError for a network that is not one of 28×28 images and 10 digits, or is too large."""
    shape = "-".join(map(str, sizes))
    if (sizes[0], sizes[-1]) != (PIXELS, CLASSES):
        raise UsageError(f"the page takes networks from {PIXELS} pixels to {CLASSES} outputs, this one is {shape}")
    if not fits_page(sizes):
        largest = f"{parameter_count(LARGEST_PAGE):,} parameters, as {'-'.join(map(str, LARGEST_PAGE))} has"
        most = f"{largest}, in up to {DEEPEST_PAGE} layers"
        raise UsageError(f"the page takes up to {most}; {shape} has {parameter_count(sizes):,} in {len(sizes) - 1}")


def check_digits(test: Examples) -> None:
    """Raise UsageError unless these are bytes, with three images of each digit or more, to be chosen from."""
    found = torch.bincount(test.labels, minlength=CLASSES).tolist()
    if test.x.dtype != torch.uint8 or min(found) < 3:
        few = "pixels that are no bytes" if min(found) >= 3 else f"{min(found)} of class {found.index(min(found))}"
        raise UsageError(f"the page shows three test images of each class, as bytes; this test set has {few}")


def choose_images(network: Network, cost: str, images: Examples) -> Tensor:
    """Thirty images, (30,): of each digit the two nearest to their mean, then the one with the largest cost."""
    chosen = []
    x = images.x.to(torch.float32) * PIXEL_SCALE
    costs = example_costs(forward(network, x), one_hot(images.labels), cost)
    for digit in range(CLASSES):
        of_digit = (images.labels == digit).nonzero()[:, 0]
        plain = nearest_to(x[of_digit].mean(0), x[of_digit], 2)
        chosen.append([*of_digit[plain].tolist(), int(of_digit[costs[of_digit].argmax()])])
    return torch.tensor(chosen).mT.reshape(-1)


def first_images(examples: Examples) -> Examples:
    """The first thousand; of fewer, all of them again and again."""
    taken = torch.arange(TRAINING_IMAGES) % len(examples.labels)
    return examples.map(lambda tensor: tensor.cpu()[taken])


def packed(content: Tensor | bytes) -> str:
    """A tensor's bytes, or others, compressed, in base64."""
    plain = content.contiguous().numpy().tobytes() if isinstance(content, Tensor) else content
    return base64.b64encode(zlib.compress(plain, 9)).decode()


def picture(values: Tensor, colours: Any, low: float, high: float) -> str:
    """784 values as a PNG in base64."""
    file = BytesIO()
    imsave(file, array(values.reshape(28, 28)), cmap=colours, vmin=low, vmax=high, format="png")
    return base64.b64encode(file.getvalue()).decode()
