"""How many observations a loss is the mean over.

``SVI`` gives a loss as a number. Where targets are missing or masked, a batch has fewer
observations than rows, and the mean over several batches must weigh each by its own number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Counted:
    """What an objective told of the batch that it evaluated last.

    Attributes:
        told: Number of observations that its loss is the mean over, None for sums and for
            objectives that do not say.
    """

    told: Tensor | float | None = None

    @property
    def number(self) -> float | None:
        """The number, fetched from its device."""
        return None if self.told is None else float(self.told)


_asking: ContextVar[Counted | None] = ContextVar("asking", default=None)


@contextmanager
def counting() -> Iterator[Counted]:
    """Asks the objectives that are evaluated inside.

    Yields:
        What they tell.
    """
    counted = Counted()
    token = _asking.set(counted)
    try:
        yield counted
    finally:
        _asking.reset(token)


def tell_count(count: Callable[[], Tensor | float]) -> None:
    """Tells whoever asks how many observations a loss is the mean over.

    Args:
        count: Finds the number out; not called unless somebody asks.
    """
    counted = _asking.get()
    if counted is not None:
        counted.told = count()
