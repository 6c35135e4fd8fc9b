"""Distributions of torch and Pyro, whatever is wrapped around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.distributions import Delta


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
