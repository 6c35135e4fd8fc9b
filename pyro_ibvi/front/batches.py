"""Batches from whatever holds the data: loaders, data sets, tensors, NumPy arrays, data frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.inputs import (
    as_call,
    as_tensors,
    first_tensor,
    holds_numbers,
    is_array,
    map_tensors,
    tensors_of,
)
from pyro_ibvi._util.samplers import num_drawn
from pyro_ibvi.front.rows import as_row, check_alike, check_holds_data, holds_rows
from pyro_ibvi.models.data_checks import check_finite
from pyro_ibvi.models.supervised import SupervisedModel

#: Number of data in a batch where the user says none.
_BATCH_SIZE = 128

#: Gives the number of data in a batch, as a model does.
Count = Callable[..., int]


class TensorBatches:
    """Batches of tensors in memory, cut out whole rather than gathered row by row.

    Args:
        data: Tensors with one row per datum, in nested tuples and mappings, such as ``(x, y)``.
        batch_size: Number of rows in a batch. A single row that would be left over joins the
            last batch, since norm layers cannot be trained on it alone.
        shuffle: Whether each iteration takes the rows in a new order, drawn from torch's global
            generator.

    Raises:
        TypeError: If a tensor is sparse or nested.
        ValueError: If there is no row, or the tensors have different numbers of rows.

    Example:
        >>> batches = TensorBatches((torch.arange(7.0), torch.zeros(7, 2)), 3)
        >>> len(batches), [len(x) for x, y in batches]
        (2, [3, 4])
    """

    def __init__(self, data: Any, batch_size: int, *, shuffle: bool = False) -> None:
        check_positive_int("batch_size", batch_size)
        for tensor in tensors_of(data):
            if tensor.layout is not torch.strided or tensor.is_nested:
                padded = "torch.nested.to_padded_tensor(x, 0.0)"
                dense = padded if tensor.is_nested else "x.to_dense()"
                raise TypeError(
                    f"Batches are cut out of dense tensors, got one with the layout "
                    f"{tensor.layout}: pass {dense}, or a list of batches (x, y)."
                )
        sizes = {len(tensor) if tensor.dim() else 0 for tensor in tensors_of(data)}
        if sizes == {0}:
            raise ValueError(
                "There are no data: the inputs and targets that were given have no rows. Look at "
                "what chose them, such as a slice or a split."
            )
        if len(sizes) != 1:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(data))
            raise ValueError(
                f"Inputs and targets must have one row per datum, as many as one another; got "
                f"the shapes {shapes or 'of no tensor'}."
            )
        # What made them learns nothing, and its graph would serve for one step alone.
        self.data = map_tensors(Tensor.detach, data)
        self.dataset = TensorDataset(*tensors_of(data))  # by which a training knows its data again
        self.batch_size = batch_size
        self.shuffle = shuffle
        (self.num_data,) = sizes

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(self.num_data) if self.shuffle else torch.arange(self.num_data)
        starts = self._starts()
        for start, stop in zip(starts, [*starts[1:], self.num_data], strict=True):
            yield map_tensors(partial(_rows, rows=order[start:stop]), self.data)

    def _starts(self) -> list[int]:
        starts = list(range(0, self.num_data, self.batch_size))
        is_alone = self.num_data > 1 and self.num_data - starts[-1] == 1
        return starts[:-1] if is_alone and self.batch_size > 1 else starts


def as_batches(
    data: Any, y: Any = None, *, model: SupervisedModel, batch_size: int, shuffle: bool
) -> Iterable[Any]:
    """Batches of inputs and targets.

    Args:
        data: A data loader or another iterable of batches, a data set or a list of its rows, a
            pair ``(x, y)``, a mapping with all parts of the data, or the inputs alone.
        y: The targets, if ``data`` are the inputs.
        model: The model, to whose network's floating point type arrays and data frames are
            converted, targets to float32 at least.
        batch_size: Number of rows in a batch, where the data come without a loader.
        shuffle: Whether such rows are shuffled.

    Returns:
        The batches.

    Raises:
        TypeError: If there are no batches to be had.
        ValueError: If the data are an empty list.
    """
    check_holds_data(data, y)
    if isinstance(data, Iterator):
        raise TypeError(
            "An iterator gives its batches once, for one epoch: pass a DataLoader, a data set, "
            "tensors, or list(batches)."
        )
    if y is None and isinstance(data, (tuple, list)) and _is_pair(data):
        data, y = data
    dtype = next(p.dtype for p in model.net.network.parameters() if p.is_floating_point())
    # Targets are compared with outputs, which are of single precision at least.
    wide = torch.promote_types(dtype, torch.float32)
    if y is not None:
        model.reader.check_columns(data)
        rows = as_tensors(data, dtype), as_tensors(model.likelihood.by_task(y), wide)
        check_finite("input", rows[0] if isinstance(rows[0], Tensor) else ())  # by their own rows
        if not model.likelihood.discrete:  # labels that lack hear of ignore_index
            check_finite("target", rows[1], allows_missing=model.likelihood.allows_missing)
        return TensorBatches(rows, batch_size, shuffle=shuffle)
    if isinstance(data, Mapping):
        targets = _parts_of(model.reader.read(data)[1])
        parts = {
            name: as_tensors(part, wide if id(part) in targets else dtype)
            for name, part in data.items()
        }
        return TensorBatches(parts, batch_size, shuffle=shuffle)
    if isinstance(data, TensorDataset):
        return TensorBatches(data.tensors, batch_size, shuffle=shuffle)
    if isinstance(data, list) and holds_rows(data):
        data = [as_row(row, dtype, wide) for row in data]
        check_alike(data)
        return DataLoader(data, batch_size=batch_size, shuffle=shuffle)
    if isinstance(data, Dataset):
        shuffle = shuffle and not isinstance(data, IterableDataset)
        return DataLoader(data, batch_size=batch_size, shuffle=shuffle)
    if is_array(data) or not isinstance(data, Iterable):
        raise TypeError(
            f"Targets are missing: got inputs alone ({type(data).__name__}). Pass x and y, a data "
            f"set, or a DataLoader of both."
        )
    return data


def count_rows(batches: Iterable[Any], count: Count | None = None) -> int | None:
    """Number of data in all batches together: that of the targets, as a model counts them.

    Args:
        batches: A data loader, or a list of batches.
        count: Gives the number of data in a batch; by default a batch is a pair of inputs and
            targets.

    Returns:
        The number, or None if only an iteration could tell.
    """
    if getattr(batches, "dataset", None) is not None:
        return num_drawn(batches)
    if isinstance(batches, (list, tuple)):
        return sum(_num_rows(batch, count) for batch in batches) or None
    return None


def settled_num_data(
    num_data: int | None, batches: Iterable[Any], count: Count | None = None
) -> int:
    """The number of training data, by a user's word or as counted.

    Args:
        num_data: The user's word, if any.
        batches: A data loader, or a list of batches.
        count: As for :func:`count_rows`.

    Returns:
        The number.

    Raises:
        ValueError: If it cannot be found, or is not positive.
    """
    if num_data is not None:
        check_positive_int("num_data", num_data)
        return num_data
    found = count_rows(batches, count)
    if found is None:
        raise ValueError(
            f"The number of training data cannot be found from a {type(batches).__name__}: "
            f"pass num_data=, the number in all processes."
        )
    return found


def checked_batch_size(batch_size: int | None, data: Any) -> int:
    """The number of data in a batch, where no loader has another.

    Args:
        batch_size: What the user gave, or None.
        data: The data that the user gave.

    Returns:
        The number, by default 128.

    Raises:
        ValueError: If it would have no effect.
    """
    own = data.batch_size if isinstance(data, DataLoader) else None
    if batch_size is not None and own not in (None, batch_size):
        raise ValueError(
            f"batch_size={batch_size} is for tensors and data sets, and the DataLoader makes "
            f"batches of {own}: leave it out, or write DataLoader(..., batch_size={batch_size})."
        )
    return _BATCH_SIZE if batch_size is None else batch_size


def _num_rows(batch: Any, count: Count | None) -> int:
    args, kwargs = as_call(batch)
    if count is not None:
        return count(*args, **kwargs)
    targets = first_tensor(args[1:][-1:])
    tensor = first_tensor(batch) if targets is None else targets
    return 0 if tensor is None else len(tensor)


def _rows(tensor: Tensor, *, rows: Tensor) -> Tensor:
    return tensor[rows.to(tensor.device)]


def _parts_of(target: Any) -> set[int]:
    """Which objects are targets, one or those of several tasks."""
    several = target.values() if isinstance(target, Mapping) else target
    is_several = isinstance(target, (Mapping, tuple))
    return {id(target), *(map(id, several) if is_several else ())}


def _is_pair(data: Any) -> bool:
    """Whether these are inputs and targets rather than two batches."""
    if len(data) != 2:
        return False
    if isinstance(data, tuple) and isinstance(data[1], Mapping):  # targets of several tasks
        return not isinstance(data[0], Mapping)
    first, second = data
    if isinstance(data, tuple) and (is_array(first) or holds_numbers(first)):
        is_several = isinstance(second, tuple) and second and all(map(is_array, second))
        return bool(is_several) or is_array(second) or holds_numbers(second)
    if not is_array(second):
        return False
    return is_array(data[0]) or (isinstance(data, tuple) and isinstance(data[0], (tuple, dict)))
