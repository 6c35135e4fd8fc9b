"""Several processes that train together: their seeds, and what a loop of one cannot do."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyro
import torch
from torch.utils.data.distributed import DistributedSampler

from pyro_ibvi._util.checks import check_positive_int

_TOGETHER = (
    "to train one network together, write DistributedDataParallel(objective(model, guide)) and a "
    "loop of your own, or use pyro_ibvi.lightning.IBVIModule"
)


def seed_process(seed: int, rank: int | None = None) -> int:
    """Seeds torch, NumPy and Python such that each process draws weights of its own.

    Processes that share a seed share the draw of a step, whose noise then averages out over none
    of them. Call it after model and guide are made: what they start from may be the same
    everywhere, and is that of process 0 under ``DistributedDataParallel``.

    Args:
        seed: A seed that all processes share, from 0.
        rank: Number of this process, from 0; by default that of torch's process group, and 0
            without one. Process 0 takes the seed as it is.

    Returns:
        This process's seed.

    Raises:
        ValueError: If the seed or the rank is negative or no whole number.

    Example:
        >>> seed_process(7, rank=0)
        7
        >>> seed_process(7, rank=1) == seed_process(8, rank=0)
        False
    """
    rank = _rank_and_number()[0] if rank is None else rank
    for name, number in (("seed", seed), ("rank", rank)):
        if number != 0:
            check_positive_int(name, number)
    own = seed
    if rank:
        # Sums would give process 1 of one run the draws of process 0 of the next.
        own = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    pyro.set_rng_seed(own)
    return own


def check_whole(name: str, loader: Any) -> None:
    """Refuses one process's share of the data, for a loop that knows one process alone.

    Args:
        name: Name of the argument.
        loader: Its value.

    Raises:
        ValueError: If the loader gives a share.
    """
    places: list[Any] = [loader]
    while places:
        place = places.pop()
        if isinstance(place, DistributedSampler) and place.num_replicas > 1:
            raise ValueError(
                f"{name} has a {type(place).__name__}, which gives each of {place.num_replicas} "
                f"processes a share, and fit would train a network on each share: {_TOGETHER}. "
                f"For a network of each process's own, pass a loader of all data."
            )
        inner = (getattr(place, key, None) for key in ("batch_sampler", "sampler"))
        places += [part for part in inner if part is not None]


def warn_of_processes() -> None:
    """Warns in a process that is one of several, since a loop trains each by itself."""
    rank, number = _rank_and_number()
    if number > 1:
        warnings.warn(
            f"This is process {rank} of {number} of a process group, and fit trains a network of "
            f"its own in each of them, as for an ensemble: {_TOGETHER}.",
            UserWarning,
            stacklevel=3,
        )


def _rank_and_number() -> tuple[int, int]:
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
