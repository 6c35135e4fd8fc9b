"""Gradients of what Pyro's store holds, which need not be parameters alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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


class SetAside:
    """The gradients that parameters had, to be averaged with those that came since.

    Args:
        parameters: The parameters, from which their gradients are taken.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._old = [(p, g) for p in parameters if (g := gradient_of(p)) is not None]
        for parameter, _ in self._old:
            parameter.grad = None

    def average(self, old: float, new: float) -> None:
        """Puts the mean of old and new gradients in their place.

        Args:
            old: How much the old ones count.
            new: How much the new ones count.
        """
        share = new / (old + new) if new else 0.0
        for parameter, gradient in self._old:
            gradient.mul_(1.0 - share)
            if parameter.grad is not None:
                gradient.add_(parameter.grad, alpha=share)
            parameter.grad = gradient

    def give_back(self) -> None:
        """Puts the old gradients back."""
        for parameter, gradient in self._old:
            parameter.grad = gradient


@contextmanager
def set_aside(parameters: Iterable[Tensor]) -> Iterator[SetAside]:
    """Takes the gradients from parameters, and gives them back after an error.

    Args:
        parameters: The parameters.

    Yields:
        The gradients.
    """
    gradients = SetAside(parameters)
    try:
        yield gradients
    except BaseException:
        gradients.give_back()
        raise
