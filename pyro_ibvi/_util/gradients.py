"""Gradients of what Pyro's store holds, which need not be parameters alone."""

from __future__ import annotations

from torch import Tensor


def gradient_of(tensor: Tensor) -> Tensor | None:
    """The gradient that a parameter has gathered.

    Who steps by ``pyro.optim.multi`` leaves in Pyro's store what the step has computed: torch
    gives that no gradient, and warns whoever looks for one.

    Args:
        tensor: A parameter, or a tensor that was computed.

    Returns:
        The gradient, None if there is none.
    """
    return tensor.grad if tensor.is_leaf else None
