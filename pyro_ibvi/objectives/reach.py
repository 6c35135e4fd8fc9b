"""What a tensor was computed from, read off the graph that autograd keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyro.distributions import MaskedDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

#: Autograd's name of a block that is run again in the backward pass, by a graph of its own.
_HIDING = "CheckpointFunctionBackward"


class Reachable:
    """The set of tensors that some roots depend on, by their autograd graph.

    A block under ``torch.utils.checkpoint(use_reentrant=True)`` hides what it was computed from
    until the backward pass runs it again: then everything counts as reached.

    Args:
        roots: Tensors; those without a graph reach themselves only.

    Attributes:
        leaves: Identities of the leaves.
        is_hidden: Whether there is such a block.
    """

    def __init__(self, roots: Iterable[Tensor]) -> None:
        self.leaves: set[int] = set()
        self._nodes: set[Any] = set()
        self.is_hidden = False
        stack: list[Any] = []
        for root in roots:
            if root.grad_fn is not None:
                stack.append(root.grad_fn)
            elif root.requires_grad:
                self.leaves.add(id(root))
        while stack:
            node = stack.pop()
            if node is None or node in self._nodes:
                continue
            self._nodes.add(node)
            self.is_hidden |= node.name() == _HIDING
            if hasattr(node, "variable"):
                self.leaves.add(id(node.variable))
            stack += [parent for parent, _ in node.next_functions]

    def __contains__(self, tensor: Tensor) -> bool:
        if self.is_hidden:
            return True
        if tensor.grad_fn is not None:
            return tensor.grad_fn in self._nodes
        return id(tensor) in self.leaves


def tensors_of(fn: Any, *, masks: bool = True) -> list[Tensor]:
    """The tensors that a distribution holds, below its wrappers and in its transforms too.

    Args:
        fn: A distribution.
        masks: Whether those count that only hide elements.

    Returns:
        The tensors.
    """
    tensors: list[Tensor] = []
    parts, seen = [fn], set()
    while parts:
        part = parts.pop()
        if id(part) in seen:  # a transform and its inverse may know one another
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            tensors.append(part)
        elif isinstance(part, list | tuple):
            parts += list(part)
        elif isinstance(part, nn.Module):  # a flow, or the network that a flow is conditioned by
            tensors += list(part.parameters())
        if isinstance(part, MaskedDistribution) and not masks:
            parts.append(part.base_dist)
        elif isinstance(part, Distribution | Transform):
            parts += [v for name, v in vars(part).items() if not name.startswith("_cached")]
    return tensors
