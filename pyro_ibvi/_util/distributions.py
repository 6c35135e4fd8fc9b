"""Distributions of torch and Pyro, whatever is wrapped around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.distributions import Delta
from torch.distributions import Independent


def unwrapped(fn: Any) -> Iterator[Any]:
    """A distribution and those below its wrappers, from the outermost to the innermost.

    Args:
        fn: A distribution.

    Yields:
        The distributions.
    """
    yield fn
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
        yield fn


def per_element(fn: Any) -> Any:
    """The distribution of single numbers below the wrappers that join them to events.

    Args:
        fn: A distribution.

    Returns:
        The distribution, the same where nothing is joined.
    """
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def is_delta(fn: Any) -> bool:
    """Whether a distribution, below its wrappers, is a point mass.

    Args:
        fn: A distribution.

    Returns:
        Whether it is.
    """
    return isinstance(innermost(fn), Delta)


def innermost(fn: Any) -> Any:
    """The distribution below all wrappers.

    Args:
        fn: A distribution.

    Returns:
        The innermost one, a ``Delta`` for a site that is computed.
    """
    *_, inner = unwrapped(fn)
    return inner
