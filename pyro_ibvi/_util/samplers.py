"""Which data of a data set a loader draws, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler


def num_drawn(loader: Any) -> int | None:
    """Number of data that a loader draws from its data set, in however many epochs.

    Args:
        loader: A loader with a data set.

    Returns:
        The number, which is the data set's unless the sampler knows a part of it alone; None if
        the data set does not know its size, or its items are batches themselves.
    """
    dataset: Any = loader.dataset
    if not hasattr(dataset, "__len__") or _holds_batches(loader):
        return None
    return min(len(dataset), _num_known(_sampler_of(loader), len(dataset)))


def keeps_order(loader: Any) -> bool:
    """Whether a loader's data come in one order each time.

    Args:
        loader: A loader of torch's.

    Returns:
        Whether they do, as far as can be told.
    """
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    if isinstance(sampler, DistributedSampler):
        return not sampler.shuffle
    if any("Random" in kind.__name__ for kind in type(sampler).__mro__):
        return False
    is_listed = hasattr(loader.dataset, "__len__") and not isinstance(sampler, Iterator)
    if not is_listed or isinstance(sampler, SequentialSampler):
        return True
    num = len(loader.dataset) + 1  # there are samplers without an end
    first, second = (list(map(repr, islice(sampler, num))) for _ in range(2))
    return first == second


def _num_known(sampler: Any, num_data: int) -> int:
    """Number of data that a sampler of a data set's indices may draw."""
    if isinstance(sampler, (RandomSampler, SequentialSampler)):
        return len(sampler.data_source)  # of which num_samples are those of an epoch
    if isinstance(sampler, SubsetRandomSampler):
        return len(set(map(int, sampler.indices)))
    if isinstance(sampler, WeightedRandomSampler) or _is_shared(sampler):
        return num_data
    try:
        return len(sampler) or num_data
    except TypeError:  # there are samplers without a length, or without knowing it
        return num_data


def _is_shared(sampler: Any) -> bool:
    """Whether other processes draw what this one does not."""
    is_parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    return is_parallel or isinstance(sampler, DistributedSampler)


def _holds_batches(loader: Any) -> bool:
    """Whether items of a loader's data set are batches, of whatever size, and not data."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is not None:
        return False
    return not isinstance(loader.sampler, BatchSampler)  # by which a data set is asked for several


def _sampler_of(loader: Any) -> Any:
    """What draws the indices, inside of what makes batches of them; None if that is hidden."""
    batches = getattr(loader, "batch_sampler", None)
    if batches is None:
        batches = getattr(loader, "sampler", None)
        if not isinstance(batches, BatchSampler):
            return batches
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return getattr(batches, "sampler", None)
