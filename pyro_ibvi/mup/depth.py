"""Blocks that repeat: how deep a network is, and how deep its base.

Blocks are the composite modules of one kind, with parameters of the same names and shapes, that
an ``nn.Sequential`` or ``nn.ModuleList`` lists; of nested ones the outermost that repeat. What a
residual branch adds must shrink as there are more of them; the network writes that, and rates and
epsilons follow (:class:`~pyro_ibvi.MaximalUpdate`, ``branches``).

References:
    Yang, Yu, Zhu, Hayou, Feature learning in infinite-depth neural networks, 2023,
    arXiv:2310.02244. Dey et al., Don't be lazy: CompleteP enables compute-efficient deep
    transformers, 2025, arXiv:2505.01618.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_ibvi.mup.layers import is_known, parameter_path


@dataclass(frozen=True)
class Block:
    """The place of a parameter in a block that repeats.

    Attributes:
        container: Name of the module that lists the blocks.
        own: Name of the parameter in its block.
        depth: Number of blocks.
    """

    container: str
    own: str
    depth: int

    def copies(self, names: Collection[str]) -> list[str]:
        """Names, among those of another network, of the same parameter in its blocks."""
        head = f"{self.container}." if self.container else ""
        found = []
        for name in names:
            _, _, own = name.removeprefix(head).partition(".")
            if name.startswith(head) and own == self.own:
                found.append(name)
        return found

    def depth_in(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Number of blocks of a base network that are of one kind, all their shapes alike.

        Args:
            name: Name of the parameter in the network.
            shapes: The base's shapes by parameter name.

        Returns:
            How many there are like the block at the same place, or like the first.
        """
        kinds: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        for copy in self.copies(shapes):
            block = copy.removesuffix(self.own)
            kinds[copy] = [(n[len(block) :], s) for n, s in shapes.items() if n.startswith(block)]
        alike = kinds.get(name, next(iter(kinds.values()), []))
        return sum(kind == alike for kind in kinds.values())


def find_blocks(net: nn.Module) -> dict[str, Block]:
    """The blocks of a network.

    Args:
        net: The network.

    Returns:
        The block by the name of each parameter that is in one.
    """
    blocks: dict[str, Block] = {}
    for container, module in net.named_modules():
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            continue
        kinds: dict[Any, list[str]] = {}
        for number, child in module.named_children():
            shapes = tuple((n, tuple(p.shape)) for n, p in child.named_parameters())
            if shapes and not is_known(child):
                kinds.setdefault((type(child), shapes), []).append(number)
        for (_, shapes), numbers in kinds.items():
            for number in numbers:
                for own, _ in shapes:
                    name = parameter_path(container, f"{number}.{own}")
                    if name not in blocks or blocks[name].depth == 1:
                        blocks[name] = Block(container, own, len(numbers))
    return blocks


def complete_shapes(
    shapes: Mapping[str, tuple[int, ...]], blocks: Mapping[str, Block]
) -> dict[str, tuple[int, ...]]:
    """The shapes of a base network, with those of blocks that it has fewer of.

    Args:
        shapes: The base's shapes by parameter name.
        blocks: The network's blocks.

    Returns:
        The shapes, those of the network's further blocks among them.
    """
    complete = dict(shapes)
    for name, block in blocks.items():
        copies = block.copies(shapes)
        if name not in complete and copies:
            complete[name] = shapes[copies[0]]
    return complete
