"""Best learning rates over widths on real data: muP against the standard parametrization.

    PYRO_IBVI_DATA=... python -m benchmarks.mup.real_data [--tasks fashion] [--optimizers SGD]

fashion       Fashion-MNIST, a 784-h-h-10 network with ReLU
fashion-wide  the same, so wide that the standard parametrization's curvature is that of its inner
              layers (``layer_curvature``)
cifar-mlp     CIFAR-10 (from JPEG files, so no number compares with published ones), a 3072-h-h-10
              network with ReLU
cifar         CIFAR-10, two 3x3 convolutions of h channels with stride and pooling, read-out of
              their 16 positions

First and last weights are random with a low-rank factor. One pass over a part of the training
images (``TASKS``), then the expected loss on images held out of the training set, over
``NUM_DRAWS`` draws of the weights for each of their batches.

Each case, a task, an optimizer and a parametrization, has a file in ``real_data/`` beside this
one, which :func:`pyro_ibvi.rate_transfer` adds each run to: stopped and started again, the script
goes on where it was. Seeds come one after the other, so that all cases have the first before any
has the second.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import pyro_ibvi as ibvi
from benchmarks.evidence.data import raw_images

FOLDER = Path(__file__).with_suffix("")
RANK = 10
NUM_DRAWS = 8
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.0}),
    "Muon": (torch.optim.Muon, {"weight_decay": 0.0}),
}
PARAMETRIZATIONS = {
    "MaximalUpdate": ibvi.MaximalUpdate(),
    "Standard": ibvi.Standard(),
    "base64": ibvi.MaximalUpdate(base=64),  # at width 64 the same as the standard one
}


def mlp(width: int, num_inputs: int = 784) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(num_inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip


def conv(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * width, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A data set with the networks that learn it."""

    images: str
    net: Callable[[int], nn.Module]
    widths: tuple[int, ...]
    num_train: int
    num_valid: int
    batch_size: int
    valid_batch_size: int  # each has draws of its own


TASKS = {
    "fashion": Task("fashion-mnist", mlp, (64, 256, 1024), 12_800, 2_000, 128, 500),
    "fashion-wide": Task("fashion-mnist", mlp, (1024, 4096), 12_800, 2_000, 128, 500),
    "cifar-mlp": Task(
        "cifar10-jpeg", lambda width: mlp(width, 3_072), (64, 256, 1024), 12_800, 2_000, 128, 500
    ),
    "cifar": Task("cifar10-jpeg", conv, (16, 64, 256), 12_800, 1_000, 32, 500),
}
#: Powers of two around the best rates of the narrowest network.
RATES = {
    ("fashion", "SGD", "MaximalUpdate"): range(-6, 0),
    ("fashion", "SGD", "Standard"): range(-9, -3),
    ("fashion", "AdamW", "MaximalUpdate"): range(-4, 2),
    ("fashion", "AdamW", "Standard"): range(-12, -6),
    ("fashion", "SGD", "base64"): range(-9, -3),
    ("fashion", "AdamW", "base64"): range(-12, -6),
    ("fashion", "Muon", "MaximalUpdate"): range(-7, 0),
    ("fashion", "Muon", "Standard"): range(-12, -5),
    ("fashion-wide", "SGD", "MaximalUpdate"): range(-5, -1),
    ("fashion-wide", "SGD", "Standard"): range(-10, -5),
    ("cifar-mlp", "SGD", "MaximalUpdate"): range(-6, 0),
    ("cifar-mlp", "SGD", "Standard"): range(-11, -5),
    ("cifar-mlp", "AdamW", "MaximalUpdate"): range(-4, 2),
    ("cifar-mlp", "AdamW", "Standard"): range(-13, -7),
    ("cifar-mlp", "Muon", "MaximalUpdate"): range(-7, -1),
    ("cifar-mlp", "Muon", "Standard"): range(-13, -7),
    ("cifar", "SGD", "MaximalUpdate"): range(-7, -1),
    ("cifar", "SGD", "Standard"): range(-11, -5),
    ("cifar", "AdamW", "MaximalUpdate"): range(-6, 0),
    ("cifar", "AdamW", "Standard"): range(-10, -4),
    ("cifar", "Muon", "MaximalUpdate"): range(-7, 0),
    ("cifar", "Muon", "Standard"): range(-12, -5),
}


def load_data(task: Task) -> tuple[torch.utils.data.Dataset, torch.utils.data.Dataset]:
    """Training and held-out images, standardized by the training images' channels."""
    images, labels, _, _ = raw_images(task.images)
    total = task.num_train + task.num_valid
    x, y = torch.tensor(images[:total]), torch.tensor(labels[:total])
    mean = x[: task.num_train].mean((0, 2, 3), keepdim=True)
    x = (x - mean) / x[: task.num_train].std((0, 2, 3), keepdim=True)
    sizes = [task.num_train, task.num_valid]
    return tuple(
        torch.utils.data.TensorDataset(*part)
        for part in zip(x.split(sizes), y.split(sizes), strict=True)
    )


def run(
    name: str, optimizer: str, rule: str, num_seeds: int, data: tuple
) -> ibvi.diagnostics.RateTransfer:
    task, (train, valid) = TASKS[name], data

    def build(width: int) -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPNormal]:
        random = ibvi.RandomModule(task.net(width), parametrization=PARAMETRIZATIONS[rule])
        model = ibvi.SupervisedModel(random, ibvi.Categorical(), num_data=len(train))
        return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(RANK))

    kind, arguments = OPTIMIZERS[optimizer]
    return ibvi.rate_transfer(
        build,
        task.widths,
        [2.0**power for power in RATES[name, optimizer, rule]],
        torch.utils.data.DataLoader(train, task.batch_size, shuffle=True),
        1,
        valid_loader=torch.utils.data.DataLoader(valid, task.valid_batch_size),
        optimizer=kind,
        optim_args=arguments,
        num_seeds=num_seeds,
        num_draws=NUM_DRAWS,
        path=FOLDER / f"{name}-{optimizer}-{rule}.json",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    data = {name: load_data(TASKS[name]) for name in args.tasks}
    for num_seeds in range(1, args.seeds + 1):
        for name in args.tasks:
            for optimizer in args.optimizers:
                for rule in PARAMETRIZATIONS:
                    if (name, optimizer, rule) not in RATES:
                        continue
                    print(f"{name}, {optimizer}, {rule}, {num_seeds} seeds")
                    print(run(name, optimizer, rule, num_seeds, data[name]), flush=True)


if __name__ == "__main__":
    main()
