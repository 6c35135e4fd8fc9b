"""Layers without tensors, by which two networks of the same shapes compute something else."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import nn

#: What predictions do not go through.
_IDLE = (nn.Identity, nn.modules.dropout._DropoutNd)


def layers_of(net: nn.Module) -> dict[str, str]:
    """Kinds of torch's layers that have no parameters, such as activations.

    Args:
        net: The network.

    Returns:
        Name of the class by name of the layer, but for those that predictions do not go through.
    """
    return {
        name: type(layer).__name__
        for name, layer in net.named_modules()
        if type(layer).__module__.startswith("torch.nn.modules.")
        and not isinstance(layer, _IDLE)
        and not any(True for _ in (*layer.parameters(), *layer.children()))
    }


def warn_of_layers(path: Path, there: Mapping[str, str], net: nn.Module) -> None:
    """Warns where a network gives other predictions by the same tensors.

    Args:
        path: The file.
        there: The layers of the network that was saved.
        net: The network that is given.
    """
    here = layers_of(net)
    others = [n for n in there if here.get(n, there[n]) != there[n]]
    if others:
        kinds = "; ".join(f"{n!r} is {there[n]} there and {here[n]} here" for n in others[:3])
        warnings.warn(
            f"{path} was saved of a network with other layers, so that predictions are others, "
            f"too: {kinds}. Pass a network as it was saved.",
            UserWarning,
            stacklevel=5,
        )
