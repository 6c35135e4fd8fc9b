"""Whole numbers as inputs of layers that take real ones: images of bytes, counts, flags.

What is an index, for an embedding, and what a number, for a linear layer, only the network knows.
So it is asked: an input that one of its layers refuses for its type is passed on as real numbers
from then on.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ibvi._util.inputs import map_tensors, tensors_of
from pyro_ibvi.models.faults import failing_layer, is_of_type

_INDEXED = (nn.Embedding, nn.EmbeddingBag)


class WholeNumbers:
    """Which inputs of a network, whole numbers, it takes as real ones.

    Attributes:
        is_settled: Whether the network has run, so that nothing is open.
    """

    def __init__(self) -> None:
        self.is_settled = False
        self._places: set[int] = set()
        self._has_warned = False

    def are_in(self, x: Any) -> bool:
        """Whether inputs hold whole numbers.

        Args:
            x: Inputs.

        Returns:
            Whether they do.
        """
        return any(_is_whole(leaf) for leaf in tensors_of(x))

    def as_taken(self, x: Any, network: nn.Module) -> Any:
        """Inputs as the network takes them, as far as that is known.

        Args:
            x: Inputs.
            network: The network, of whose type real numbers are.

        Returns:
            The inputs, the values being the same.
        """
        if not self._places:
            return x
        dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())
        place = -1

        def convert(leaf: Tensor) -> Tensor:
            nonlocal place
            place += 1
            return leaf.to(dtype) if place in self._places and _is_whole(leaf) else leaf

        return map_tensors(convert, x)

    def learn(self, error: Exception, x: Any) -> bool:
        """Looks whether a network failed since a layer takes real numbers.

        Args:
            error: What the network raised.
            x: Its inputs, as the user gave them.

        Returns:
            Whether something is known now that was not before.
        """
        leaves = list(tensors_of(x))
        open_places = [
            i for i, leaf in enumerate(leaves) if _is_whole(leaf) and i not in self._places
        ]
        layer, given = failing_layer(error)
        is_refused = given is not None and _is_whole(given) and not isinstance(layer, _INDEXED)
        if not open_places or not (is_refused or (layer is None and is_of_type(error))):
            return False
        found = [i for i in open_places if _are_same(leaves[i], given)]
        if not found and (len(open_places) > 1 or leaves[open_places[0]].dtype is torch.bool):
            return False  # flags that no layer refused are a mask
        self._places.update(found or open_places)
        self._warn_of_bytes(leaves[(found or open_places)[0]])
        return True

    def _warn_of_bytes(self, leaf: Tensor) -> None:
        if leaf.dtype != torch.uint8 or leaf.numel() == 0 or self._has_warned:
            return
        largest = int(leaf.max())
        if largest > 1:
            self._has_warned = True
            warnings.warn(
                f"The input is of bytes up to {largest}, and is taken as it is, while a network's "
                f"start and rates are meant for numbers around 1: for images write x / 255, in "
                f"training and prediction alike.",
                UserWarning,
                stacklevel=2,
            )


def _are_same(leaf: Tensor, given: Tensor | None) -> bool:
    """Whether a layer was given an input as it is, or a copy."""
    if given is None or leaf.shape != given.shape or leaf.dtype != given.dtype:
        return False
    return leaf is given or torch.equal(leaf, given)


def _is_whole(leaf: Tensor) -> bool:
    return not leaf.is_floating_point() and not leaf.is_complex()
