"""What makes the draws of a prediction reproducible."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch

from pyro_ibvi._util.random_state import own_random_numbers, thread_random_numbers
from pyro_ibvi.guides import MuPGuide

#: A seed, or a generator that gives one; None for the global random state.
Seed = int | torch.Generator | None


@contextmanager
def seeded_numbers(generator: Seed, guide: Any) -> Iterator[None]:
    """Random numbers from a seed, or from that of a generator.

    Other guides than this package's know the global random state alone.

    Args:
        generator: The seed or generator; without one the global random state goes on.
        guide: The guide that draws.

    Yields:
        Nothing.
    """
    seed = seed_of(generator)
    if seed is None:
        yield
        return
    numbers = thread_random_numbers if isinstance(guide, MuPGuide) else own_random_numbers
    with numbers(seed):
        yield


def seed_of(generator: Seed) -> int | None:
    """The seed that a user gave, or one by the generator.

    Args:
        generator: The seed or the generator.

    Returns:
        The seed, None where there is neither.

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(generator, torch.Generator):
        return int(torch.randint(2**62, (), generator=generator, device=generator.device).item())
    if generator is None:
        return None
    if isinstance(generator, Integral) and not isinstance(generator, bool):
        return int(generator)
    raise TypeError(f"generator must be a seed or a torch.Generator, got {generator!r}.")
