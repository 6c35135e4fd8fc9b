"""Lists of single data, and what is no data at all."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_ibvi._util.inputs import as_tensors
from pyro_ibvi.models.batches import TARGETS


def check_holds_data(data: Any, y: Any) -> None:
    """Refuses what stands for data and is none: names of files, open files, nothing.

    Args:
        data: What the user gave.
        y: The targets, if they were given apart.

    Raises:
        TypeError: If it is a file, nothing, or targets beside what has its own.
        ValueError: If it is an empty list.
    """
    for part in (data, y):
        if isinstance(part, (str, bytes, os.PathLike, io.IOBase)):
            raise TypeError(
                f"Data are expected, got {part!r}, and files are not read here: read it first, by "
                f"pandas.read_csv or numpy.load, and pass inputs and targets as numbers, (x, y)."
            )
    if data is None or isinstance(data, (bool, Real)):
        raise TypeError(
            f"Data are expected, got {data!r}: pass inputs and targets (x, y), a data set, or a "
            f"DataLoader of both."
        )
    if isinstance(y, int) and isinstance(data, (DataLoader, Dataset)):
        raise TypeError(
            f"The second argument is the targets, got {y!r}; the number of epochs has a name: "
            f"write fit(loader, num_epochs={y!r})."
        )
    if y is not None and isinstance(data, (DataLoader, Dataset)):
        raise TypeError(
            f"The targets come with the {type(data).__name__}, whose data are pairs (x, y), and "
            f"are given a second time: leave out y, or pass both as arrays."
        )
    if isinstance(data, (list, tuple)) and not data:
        raise ValueError(
            f"The data are an empty {type(data).__name__}: pass inputs and targets (x, y), a list "
            f"of batches, or a list of rows."
        )


def holds_rows(data: list[Any]) -> bool:
    """Whether these are single data rather than batches.

    Their target is one number; or input and target are vectors of different lengths, which two
    parts of a batch cannot be.

    Args:
        data: The list.

    Returns:
        Whether they are.
    """
    first = data[0] if data else None
    if isinstance(first, Mapping):
        named = [name for name in TARGETS if name in first]
        if len(named) != 1:
            return False
        return _is_row([*(part for n, part in first.items() if n != named[0]), first[named[0]]])
    return isinstance(first, (tuple, list)) and _is_row(first)


def as_row(row: Any, dtype: torch.dtype, target_dtype: torch.dtype) -> Any:
    """A single datum whose lists and arrays of numbers are tensors of the network's type.

    Args:
        row: Its parts, in their order or by name.
        dtype: Floating point type of inputs.
        target_dtype: Floating point type of targets.

    Returns:
        The parts.
    """
    if isinstance(row, Mapping):
        return {
            name: _as_part(part, target_dtype if name in TARGETS else dtype)
            for name, part in row.items()
        }
    *inputs, target = row
    return (*(_as_part(part, dtype) for part in inputs), _as_part(target, target_dtype))


def check_alike(rows: list[Any]) -> None:
    """Refuses rows of which no batch can be made.

    Args:
        rows: Single data, as :func:`as_row` gives them.

    Raises:
        ValueError: If a part has another shape in one row than in the first.
    """
    first = _shapes(rows[0])
    for i, row in enumerate(rows):
        if _shapes(row) != first:
            raise ValueError(
                f"Rows of one shape make a batch, and row 0 has the parts {first}, row {i} "
                f"{_shapes(row)}: remove the odd ones, or pass a DataLoader whose collate_fn "
                f"fills sequences up, as by torch.nn.utils.rnn.pad_sequence."
            )


def _shapes(row: Any) -> list[tuple[int, ...]]:
    parts = row.values() if isinstance(row, Mapping) else row
    return [tuple(getattr(part, "shape", ())) for part in parts]


def _as_part(part: Any, dtype: torch.dtype) -> Any:
    is_list = isinstance(part, (list, tuple)) and all(isinstance(each, Real) for each in part)
    if isinstance(part, np.ndarray):
        return as_tensors(part, dtype)
    return as_tensors(list(part), dtype) if is_list else part


def _is_row(parts: Any) -> bool:
    if len(parts) > 1 and _is_number(parts[-1]):
        return True
    lengths = [_length_of_vector(part) for part in parts]
    return len(lengths) == 2 and None not in lengths and lengths[0] != lengths[1]


def _is_number(value: Any) -> bool:
    is_single = isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0
    return is_single or isinstance(value, (Real, np.generic))


def _length_of_vector(value: Any) -> int | None:
    """The length of a vector of real numbers; indices may be words of many data in a row."""
    if isinstance(value, (list, tuple)):
        return len(value) if value and all(isinstance(each, Real) for each in value) else None
    if isinstance(value, Tensor):
        return len(value) if value.dim() == 1 and value.is_floating_point() else None
    is_vector = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "f"
    return len(value) if is_vector else None
