"""Plates around a network's call, which make draws of its weights and are not for its data."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

#: Plates that Pyro itself puts around a model, for draws.
_PYROS_PLATES = ("num_particles_vectorized", "_num_predictive_samples")


def check_plates(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses a plate over the data, in which each datum would have weights of its own.

    Args:
        args: Positional arguments of the network.
        kwargs: Its keyword arguments.

    Raises:
        ValueError: If there is such a plate around the network's call.
    """
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    batch_sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    for handler in poutine.runtime._PYRO_STACK:
        if not isinstance(handler, pyro.plate) or handler.name in _PYROS_PLATES:
            continue
        if handler.dim == -1 and handler.subsample_size in batch_sizes:
            raise ValueError(
                f"The network is called inside of the plate {handler.name!r}, where each of the "
                f"{handler.subsample_size} data would draw weights of its own. Call it before "
                f"`with pyro.plate(...)`. Where its input is drawn in the plate, leave that for "
                f"the call: data = pyro.plate(...); with data: z = pyro.sample(...); "
                f"out = net(z); with data: pyro.sample(..., obs=x)."
            )
