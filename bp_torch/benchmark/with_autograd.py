"""A training as in pytorch/examples: nn.Sequential, autograd, optim.SGD, and a DataLoader of torchvision's MNIST.

    python bp_torch/benchmark/with_autograd.py --sizes 784 128 10 --learning-rate 0.1 --momentum 0.9 --epochs 2

It knows nothing of bp_torch, so that its time is that of a script of one's own. After each epoch it prints the accuracy
on the test set.
"""

import argparse
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

DEFORMATIONS = ("rotation", "shear", "scale", "sigma", "alpha")


def options() -> argparse.Namespace:
    """The flags, named as those of train.py."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    defaults = {"batch-size": 100, "seed": 0, "threads": 1, "data-dir": "data"}
    for name, default in (defaults | dict.fromkeys(("momentum", *DEFORMATIONS), 0.0)).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def made(sizes: list[int]) -> nn.Sequential:
    """ReLU layers with He's initial values, and scores."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(sizes):
        linear = nn.Linear(n_in, n_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def deformations(flags: argparse.Namespace) -> list[nn.Module]:
    """Those of torchvision, as far as ours. Its alpha is in halves of a pixel."""
    found: list[nn.Module] = []
    if flags.rotation or flags.shear or flags.scale:
        scale, middle = (1 - flags.scale, 1 + flags.scale), transforms.InterpolationMode.BILINEAR
        found.append(transforms.RandomAffine(flags.rotation, scale=scale, shear=flags.shear, interpolation=middle))
    if flags.alpha:
        found.append(transforms.ElasticTransform(2 * flags.alpha, flags.sigma))
    return found


def main() -> None:
    """Train, and print a line for each epoch."""
    flags = options()
    torch.set_num_threads(flags.threads)
    torch.manual_seed(flags.seed)
    transform = transforms.Compose([*deformations(flags), transforms.ToTensor()])
    training = datasets.MNIST(flags.data_dir, train=True, transform=transform)
    test = datasets.MNIST(flags.data_dir, train=False, transform=transforms.ToTensor())
    batches, tests = DataLoader(training, flags.batch_size, shuffle=True), DataLoader(test, 1_000)
    model = made(flags.sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=flags.learning_rate, momentum=flags.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, flags.epochs)
    for epoch in range(1, flags.epochs + 1):
        for x, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            right = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in tests)
        print(f"{epoch} accuracy {right / len(test):.4%}", flush=True)


if __name__ == "__main__":
    main()
