"""Blocks that repeat, under one name for all of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pyro_ibvi.mup.depth import find_blocks
from pyro_ibvi.mup.layers import parameter_path


def prefixes_of_blocks(net: nn.Module, depth: int) -> dict[str, str]:
    """The common name of each block, by its own: ``{"trunk.0": "trunk.*", "trunk.1": ...}``.

    Args:
        net: The network.
        depth: What it was built for, for the error.

    Returns:
        A name for each block of which there are several.

    Raises:
        ValueError: If no block repeats.
    """
    prefixes = {
        name.removesuffix(f".{block.own}"): parameter_path(block.container, "*")
        for name, block in find_blocks(net).items()
        if block.depth > 1
    }
    if not prefixes:
        raise ValueError(
            f"build({depth}) made a network without blocks that repeat, so it has no depth to "
            f"compare: give depths from 2 on, and put the layers of a block into a module of "
            f"their own, several of which an nn.Sequential or nn.ModuleList holds."
        )
    return prefixes


def block_of(name: str, prefixes: Mapping[str, str]) -> str | None:
    """The block that a layer or parameter is in, or is.

    Args:
        name: Name of the layer or parameter.
        prefixes: Common names of blocks by their own.

    Returns:
        The block's own name, or None.
    """
    parts = name.split(".")
    heads = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next((head for head in heads if head in prefixes), None)


def common_name(name: str, prefixes: Mapping[str, str]) -> str:
    """A name with the number of its block left open.

    Args:
        name: Name of the layer or parameter.
        prefixes: Common names of blocks by their own.

    Returns:
        The name that it shares with the same one of the other blocks.
    """
    block = block_of(name, prefixes)
    return name if block is None else prefixes[block] + name[len(block) :]
