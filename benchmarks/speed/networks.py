"""The networks whose steps are timed, and their data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

NUM_CLASSES = 10
MLP_INPUTS = 64
MLP_WIDTHS = (64, 256, 1024, 2048)
NARROW_WIDTH = 32
NARROW_LAYERS = 33


@dataclass(frozen=True)
class Network:
    """A network and the batch that it is trained on.

    Attributes:
        build: Makes the network, with torch's initial weights.
        input_shape: Shape of one input.
        batch: Number of inputs in a batch.
        rounds: Number of timed steps of each contender.
        hidden: Widths of the hidden layers if it is an MLP, otherwise empty.
    """

    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    batch: int
    rounds: int
    hidden: tuple[int, ...] = ()

    def data(self, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Standard normal inputs and uniform labels."""
        x = torch.randn(num_rows, *self.input_shape)
        return x.to(device), torch.randint(NUM_CLASSES, (num_rows,)).to(device)


def make_mlp(hidden: tuple[int, ...]) -> nn.Sequential:
    """An MLP with SiLU between its layers.

    It starts larger than torch has it: else the gradient of 33 layers ends in denormal numbers,
    with which a processor is slow.
    """
    sizes = (MLP_INPUTS, *hidden, NUM_CLASSES)
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(sizes):
        linear = nn.Linear(num_in, num_out)
        nn.init.normal_(linear.weight, std=(2 / num_in) ** 0.5)
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def mlp(hidden: tuple[int, ...], rounds: int, batch: int = 128) -> Network:
    """An MLP from 64 inputs to 10 classes."""
    return Network(lambda: make_mlp(hidden), (MLP_INPUTS,), batch, rounds, hidden)


def make_lenet5() -> nn.Sequential:
    """LeNet-5 for 28x28 images, with max pooling and ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, NUM_CLASSES),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(32, num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(32, num_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.GroupNorm(32, num_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Residual plus shortcut."""
        out = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


def make_resnet18() -> nn.Sequential:
    """ResNet-18 for 32x32 images: a 3x3 stem, no pooling after it, GroupNorm."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False)]
    layers += [nn.GroupNorm(32, 64), nn.ReLU(inplace=True)]
    num_in = 64
    for num_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(num_in, num_out, stride), BasicBlock(num_out, num_out, 1)]
        num_in = num_out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, NUM_CLASSES)]
    return nn.Sequential(*layers)


def all_networks() -> dict[str, Network]:
    """The networks by name; the rounds are those of two CPU threads."""
    rounds = {64: 200, 256: 100, 1024: 25, 2048: 15}
    networks = {f"MLP {width}": mlp((width,) * 3, rounds[width]) for width in MLP_WIDTHS}
    networks["LeNet-5"] = Network(make_lenet5, (1, 28, 28), 128, 40)
    # A smaller batch than the others': with theirs this network alone would take ten minutes.
    networks["ResNet-18"] = Network(make_resnet18, (3, 32, 32), 32, 5)
    networks["33 narrow layers"] = mlp((NARROW_WIDTH,) * (NARROW_LAYERS - 1), 60)
    return networks
