"""The networks of the tasks, as anybody would write them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.speed.networks import BasicBlock, make_lenet5


def conv6(width: int = 32) -> nn.Sequential:
    """Six convolutions with GroupNorm, the first of a width, for color images of 32 x 32."""
    layers: list[nn.Module] = []
    channels = 3
    for num_out in (width, 2 * width, 4 * width):
        for _ in range(2):
            conv = nn.Conv2d(channels, num_out, 3, padding=1)
            layers += [conv, nn.GroupNorm(8, num_out), nn.ReLU()]
            channels = num_out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(16 * channels, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def resnet8() -> nn.Sequential:
    """A ResNet of three blocks with GroupNorm, for color images of 32 x 32."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(32, 32),
        nn.ReLU(),
        BasicBlock(32, 32, 1),
        BasicBlock(32, 64, 2),
        BasicBlock(64, 128, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


class Steps(nn.Module):
    """A linear map of each step, and what is learned of its place."""

    def __init__(self, num_channels: int, num_steps: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_channels, width)
        self.places = nn.Embedding(num_steps, width)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., steps, channels)`` to ``(..., steps, width)``."""
        return self.linear(x) + self.places.weight


class MeanOverSteps(nn.Module):
    """The mean over the steps of a series."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., steps, width)`` to ``(..., width)``."""
        return x.mean(-2)


def transformer(num_classes: int = 7, width: int = 64) -> nn.Sequential:
    """Two blocks of attention, for series of 25 steps and 12 channels."""
    torch.backends.mha.set_fastpath_enabled(False)  # it leaves dropout out in evaluation mode
    block = nn.TransformerEncoderLayer(
        width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
    )
    return nn.Sequential(
        Steps(12, 25, width),
        nn.TransformerEncoder(block, 2, nn.LayerNorm(width), enable_nested_tensor=False),
        MeanOverSteps(),
        nn.Linear(width, num_classes),
    )


def mlp_784() -> nn.Sequential:
    """Two hidden layers of 256, for images of 28 x 28."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def mlp_50(num_features: int) -> nn.Sequential:
    """Two hidden layers of 50, for tables."""
    return nn.Sequential(
        nn.Linear(num_features, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1)
    )


NETWORKS = {
    "lenet5": make_lenet5,
    "conv6_16": partial(conv6, 16),
    "resnet8": resnet8,
    "mlp_784": mlp_784,
    "transformer": transformer,
}


def with_dropout(net: nn.Sequential, p: float, p_of_data: float = 0.0) -> nn.Sequential:
    """The same network with dropout where it is usual.

    That is in front of each linear layer, with a probability of its own where one reads the data,
    between the convolutions of a residual block, and where the encoder of a transformer has it but
    on attention's weights.
    """
    layers: list[nn.Module] = []
    seen = False
    for layer in net:
        if isinstance(layer, nn.Linear) and (seen or p_of_data > 0):
            layers.append(nn.Dropout(p if seen else p_of_data))
        if isinstance(layer, BasicBlock):
            layer.conv2 = nn.Sequential(nn.Dropout(p), layer.conv2)
        if isinstance(layer, nn.TransformerEncoder):
            for module in layer.modules():
                if isinstance(module, nn.Dropout):
                    module.p = p
        seen |= isinstance(layer, (nn.Linear, nn.Conv2d, nn.TransformerEncoder))
        layers.append(layer)
    return nn.Sequential(*layers)
