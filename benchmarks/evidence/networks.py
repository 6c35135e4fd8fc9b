"""The networks of the tasks, as anybody would write them."""

from __future__ import annotations

from torch import nn

from benchmarks.speed.networks import make_lenet5


def conv6() -> nn.Sequential:
    """Six convolutions with GroupNorm, for color images of 32 x 32."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU(), nn.Linear(128, 10)
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


NETWORKS = {"lenet5": make_lenet5, "conv6": conv6, "mlp_784": mlp_784}


def with_dropout(net: nn.Sequential, p: float) -> nn.Sequential:
    """The same network with dropout in front of each linear layer but one that reads the data."""
    layers: list[nn.Module] = []
    seen = False
    for layer in net:
        if isinstance(layer, nn.Linear) and seen:
            layers.append(nn.Dropout(p))
        seen |= isinstance(layer, (nn.Linear, nn.Conv2d))
        layers.append(layer)
    return nn.Sequential(*layers)
