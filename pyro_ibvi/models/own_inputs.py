"""Inputs of each run's own, for networks that write on what they are given.

``x -= self.mean`` in a ``forward`` changes the batch itself. In ordinary training nobody sees it,
since a batch is run once; of many draws of the weights each would see what the one before left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


class OwnInputs:
    """Copies a network's inputs where it writes on them, which its first run in a mode shows."""

    def __init__(self) -> None:
        self._is_needed: dict[bool, bool] = {}

    def before(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], mode: bool) -> Arguments:
        """The arguments to run with.

        Args:
            args: Positional arguments of the network.
            kwargs: Keyword arguments of the network.
            mode: Whether the network trains.

        Returns:
            Both, copies unless it is known that the network leaves them as they are.
        """
        return copied(args, kwargs) if self._is_needed.get(mode, True) else (args, kwargs)

    def after(self, own: Arguments, mode: bool) -> None:
        """Sees whether the network has written on copies.

        Args:
            own: What it was run with.
            mode: Whether it trains.
        """
        if mode not in self._is_needed:
            tensors = [leaf for leaf in tree_leaves(own) if isinstance(leaf, Tensor)]
            if not any(tensor.is_inference() for tensor in tensors):  # they tell nothing
                self._is_needed[mode] = any(tensor._version for tensor in tensors)


def copied(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """Arguments with tensors of their own.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        Both.
    """
    result: Arguments = tree_map(_clone, (tuple(args), dict(kwargs)))
    return result


def _clone(leaf: Any) -> Any:
    return torch.clone(leaf) if isinstance(leaf, Tensor) else leaf
