"""How many draws of the weights to make at once, and how many of them to run at once."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.mup.layers import owner_of

#: Number of weights among the draws that are made at once.
_MAX_WEIGHTS = 3 * 10**6

#: The same where all draws share the layers in front, which then run less often.
_MAX_WEIGHTS_SHARED = 10**7

#: Numbers that the draws which run at once may have in the output of a layer. More would leave the
#: caches of a CPU, where running together only pays for small layers; a GPU wants more work at
#: once. Measured on MLPs and LeNet-5.
_MAX_OUTPUTS = {"cpu": 4 * 10**5, "other": 5 * 10**7}

#: The same where all draws share the layers in front, which would run once more for each part of
#: the draws: that costs more than leaving the caches does.
_MAX_OUTPUTS_SHARED = 10**7

#: Numbers in the output of a layer up to which all data run at once where nobody says; several
#: such outputs are alive together. And data that are worth running at once.
_MAX_OF_LAYER = 2**26
_MIN_ROWS = 32

#: Sizes of layers' outputs for one datum, as :func:`output_sizes` gives them.
Sizes = tuple[list[int], list[int]]


def rows_to_run(sizes: Sizes) -> int:
    """Number of data to run at once where nobody says, from the largest output of a layer.

    Args:
        sizes: Sizes of the layers' outputs for one datum.

    Returns:
        The number of data.
    """
    in_front, own = sizes
    return max(_MIN_ROWS, _MAX_OF_LAYER // max([1, *in_front, *own]))


def draws_to_make(net: RandomModule) -> int:
    """Number of draws of a network's weights to make at once.

    Args:
        net: The network.

    Returns:
        The number of draws, at least 1.
    """
    limit = _MAX_WEIGHTS_SHARED if shares_layers(net) else _MAX_WEIGHTS
    sizes = [net.network.get_parameter(name).numel() for name in net.stochastic]
    return max(1, limit // max(1, sum(sizes)))


def draws_to_run(net: RandomModule, sizes: Sizes, num_rows: int) -> int:
    """Number of draws to run at once, from their weights and the largest output of a layer.

    Layers in front of the first random one run once for all draws, so their outputs do not count.
    Nor do those of the last layer where nothing else is random: they are the result.

    Args:
        net: The network, in evaluation mode.
        sizes: Sizes of its layers' outputs for one datum.
        num_rows: Number of data that run at once.

    Returns:
        The number of draws, at least 1.
    """
    network = net.network
    num_draws = draws_to_make(net)
    if net.runner.runs_batched(net.stochastic):  # the others run draw by draw
        _, own = sizes
        shares = shares_layers(net)
        if not (shares and len(own) == 1):
            device = network.get_parameter(net.stochastic[0]).device
            limit = _MAX_OUTPUTS["cpu" if device.type == "cpu" else "other"]
            limit = max(limit, _MAX_OUTPUTS_SHARED) if shares else limit
            num_draws = min(num_draws, limit // max(1, num_rows * max(own, default=0)))
    return max(1, num_draws)


def shares_layers(net: RandomModule) -> bool:
    """Whether all draws share the layers in front.

    Args:
        net: The network.

    Returns:
        Whether they do.
    """
    return "input" not in {net.roles[name].layer_role for name in net.stochastic}


def output_sizes(net: RandomModule, one_row: Any) -> Sizes:
    """Sizes of the layers' outputs for one datum, in the order in which they run.

    Args:
        net: The network, in evaluation mode.
        one_row: Its positional and keyword arguments for one datum.

    Returns:
        The sizes in front of the first random layer, and those from it on; none where the network
        refuses a single datum.
    """
    random_layers = {owner_of(net.network, name)[0] for name in net.stochastic}
    in_front: list[int] = []
    found: list[int] = []

    def compare(layer: str, output: Any) -> None:
        leaves = torch.utils._pytree.tree_leaves(output)
        sizes = found if found or layer in random_layers else in_front
        sizes.append(sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor)))

    layers = [
        name
        for name, module in net.network.named_modules()
        if name in random_layers or not list(module.children())
    ]
    # A network that refuses a single datum is not worse off than without a guess; whatever else
    # is wrong shows when it runs on the data.
    with contextlib.suppress(Exception):
        net.runner.watch(layers, compare, *one_row)
    return in_front, found
