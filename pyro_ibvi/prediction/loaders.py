"""Where the batches of a prediction come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils.data import DataLoader, Dataset

from pyro_ibvi._util.inputs import is_array
from pyro_ibvi._util.samplers import keeps_order

#: Number of data of a data set that are predicted at once, where nothing else is said.
_ROWS_AT_ONCE = 1000


def as_loader(data: Dataset[Any], batch_size: int | None) -> DataLoader[Any]:
    """Batches of a data set in its order, which is that of the predictions.

    Args:
        data: The data set.
        batch_size: Number of data in a batch.

    Returns:
        The loader.
    """
    return DataLoader(data, batch_size=_ROWS_AT_ONCE if batch_size is None else batch_size)


def check_batches(loader: Any) -> None:
    """Checks that something gives batches, or is inputs as a whole.

    Args:
        loader: What the user gave.

    Raises:
        TypeError: If it gives none, or has parts that would be taken for batches.
    """
    if isinstance(loader, tuple) and loader and all(map(is_array, loader)):
        raise TypeError(
            f"Batches are expected, got a tuple of {len(loader)} tensors or arrays, whose parts "
            f"would be batches by themselves: write [(x, y)] for a single batch of all data, "
            f"[((x1, x2), None)] for one of several inputs without targets, or "
            f"DataLoader(TensorDataset(x, y), batch_size=1000)."
        )
    if isinstance(loader, str) or not isinstance(loader, Iterable):
        raise TypeError(
            f"Batches are expected, got {loader!r}: pass a DataLoader, a data set, a list of "
            f"batches (x, y), or inputs."
        )


def unshuffled(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader whose batches come in the order of its data.

    Args:
        loader: The loader.

    Returns:
        The same loader.

    Raises:
        ValueError: If it shuffles.
    """
    if not keeps_order(loader):
        raise ValueError(
            "The loader shuffles, so nobody could tell which prediction is whose: make it with "
            "shuffle=False and no random sampler, for a part of the data as "
            "DataLoader(Subset(data, indices))."
        )
    return loader
