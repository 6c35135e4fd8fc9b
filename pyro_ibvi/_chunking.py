"""How many draws of the weights to make at once, and how many of them to run at once."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ibvi.random_module import RandomModule, runs_batched

#: Largest number of weights among the draws that are made at once.
_MAX_WEIGHTS = 10**7

#: Numbers that the draws which run at once may hold, weights and activations together. On a CPU
#: more would leave its caches: measured on MLPs and LeNet-5, a few millions are best. A GPU wants
#: more work at once; the bound is a gigabyte in single precision.
_MAX_NUMBERS = {"cpu": 6 * 10**6, "other": 25 * 10**7}


def draws_to_make(net: RandomModule) -> int:
    """Number of draws of a network's weights to make at once.

    Args:
        net: The network.

    Returns:
        The number of draws, at least 1.
    """
    return max(1, _MAX_WEIGHTS // _num_weights(net))


def draws_to_run(net: RandomModule, one_row: Any, num_rows: int) -> int:
    """Number of draws to run at once, from the numbers that each of them needs.

    Layers in front of the first random one run once for all draws, so their activations do not
    count.

    Args:
        net: The network, in evaluation mode.
        one_row: Positional and keyword arguments of the network for one datum.
        num_rows: Number of data that run at once.

    Returns:
        The number of draws, at least 1.
    """
    network = net.network
    per_draw = _num_weights(net)
    if runs_batched(network):  # the others run draw by draw
        per_draw += num_rows * _activations_per_row(net, one_row)
    device = network.get_parameter(net.stochastic[0]).device
    return max(1, _MAX_NUMBERS["cpu" if device.type == "cpu" else "other"] // per_draw)


def _num_weights(net: RandomModule) -> int:
    sizes = [net.network.get_parameter(name).numel() for name in net.stochastic]
    return max(1, sum(sizes))


def _activations_per_row(net: RandomModule, one_row: Any) -> int:
    """Size of the layers' outputs from the first random layer on, for one datum."""
    random_layers = {net.network.get_submodule(name.rpartition(".")[0]) for name in net.stochastic}
    count = 0

    def add(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal count
        if count or module in random_layers:
            leaves = torch.utils._pytree.tree_leaves(output)
            count += sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))

    layers = [m for m in net.network.modules() if m in random_layers or not list(m.children())]
    handles = [layer.register_forward_hook(add) for layer in layers]
    args, kwargs = one_row
    # A network that refuses a single datum is not worse off than without a guess; whatever else
    # is wrong shows when it runs on the data.
    with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
        net.network(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return count
