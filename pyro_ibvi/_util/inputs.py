"""One way from a batch to a call: what of it are arguments, what tensors, and on which device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nested import as_nested_tensor
from torch.nn.utils.rnn import PackedSequence

from pyro_ibvi._util.arguments import takes

#: Types that torch has by name, and cannot compare or add.
_NAMED_ONLY = {torch.uint16, torch.uint32, torch.uint64}


def as_call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as positional and keyword arguments.

    Args:
        batch: One argument, a tuple or list of arguments, or a mapping of keyword arguments.

    Returns:
        The arguments.
    """
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
        return tuple(batch), {}
    return (batch,), {}


def as_arguments(
    function: Callable[..., Any], inputs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a network.

    Args:
        function: Its forward.
        inputs: As a batch of :func:`as_call`; but a list of several parts is one argument, as of
            images of different sizes, where the network does not take so many.

    Returns:
        Positional and keyword arguments.
    """
    is_list = isinstance(inputs, list) and len(inputs) > 1
    if is_list and takes(function, 1) and not takes(function, len(inputs)):
        return (inputs,), {}
    return as_call(inputs)


def map_tensors(function: Callable[[Tensor], Any], data: Any) -> Any:
    """Applies a function to each tensor of nested tuples, lists and mappings.

    Args:
        function: The function.
        data: The data; what is neither tensor nor container stays as it is, packed sequences
            included.

    Returns:
        Data of the same structure; a mapping of an unknown kind becomes a dictionary.
    """
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: map_tensors(function, value) for key, value in data.items()}
    if isinstance(data, (tuple, list)) and not isinstance(data, PackedSequence):
        return _rebuilt(data, [map_tensors(function, part) for part in data])
    return data


def tensors_of(data: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and mappings.

    Args:
        data: The data.

    Yields:
        The tensors, in their order.
    """
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, PackedSequence):
        yield data.data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from tensors_of(value)
    elif isinstance(data, (tuple, list)):
        for part in data:
            yield from tensors_of(part)


def rows_of(data: Any, rows: slice, num_rows: int) -> Any:
    """Some rows of a batch.

    Args:
        data: Nested tuples, lists and mappings of tensors.
        rows: Which rows.
        num_rows: Number of rows of the batch.

    Returns:
        Data of the same structure; what has no row for each datum stays whole.
    """

    def cut(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != num_rows:
            return tensor
        if tensor.is_nested:  # whose first dimension torch does not slice
            return as_nested_tensor(list(tensor.unbind()[rows]), layout=tensor.layout)
        return tensor[rows]

    return map_tensors(cut, data)


def first_tensor(data: Any) -> Tensor | None:
    """The first tensor of data that has a dimension.

    Args:
        data: The data.

    Returns:
        The tensor, or None if there is none.
    """
    return next((tensor for tensor in tensors_of(data) if tensor.dim() > 0), None)


def to_device(data: Any, device: torch.device | str | None) -> Any:
    """Data on a device.

    Args:
        data: Nested tuples, lists and mappings of tensors, or of objects that can be moved
            (packed sequences, batches of graphs).
        device: The device; None leaves the data where they are.

    Returns:
        The data.
    """
    if device is None:
        return data
    if isinstance(data, Mapping):
        return {key: to_device(value, device) for key, value in data.items()}
    if isinstance(data, Tensor) or callable(getattr(data, "to", None)):
        return data.to(device)
    if isinstance(data, (tuple, list)):
        return _rebuilt(data, [to_device(part, device) for part in data])
    return data


def num_batches(loader: Any) -> int | None:
    """Number of batches of a loader.

    Args:
        loader: The loader.

    Returns:
        The number, or None if the loader does not know it.
    """
    try:
        return len(loader)
    except TypeError:  # a loader may have a length, and not know it
        return None


def _rebuilt(data: tuple[Any, ...] | list[Any], parts: list[Any]) -> Any:
    if hasattr(data, "_fields"):  # a named tuple takes its parts one by one
        return type(data)(*parts)
    return tuple(parts) if isinstance(data, tuple) else parts


def as_tensors(data: Any, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """Arrays, data frames, series and lists of numbers as tensors.

    Args:
        data: The data, in nested tuples, lists and mappings.
        dtype: Floating point type that arrays of such numbers become: theirs is NumPy's default
            rather than anybody's choice. Tensors stay as they are, but for types that torch knows
            by name only.
        device: Where they go.

    Returns:
        Data of the same structure.

    Raises:
        TypeError: If an array is made of other things than numbers.
        ValueError: If the rows of a list have different lengths.
    """
    if isinstance(data, Mapping):
        return {key: as_tensors(value, dtype, device) for key, value in data.items()}
    is_list = holds_numbers(data)
    if isinstance(data, (tuple, list)) and not isinstance(data, PackedSequence) and not is_list:
        return _rebuilt(data, [as_tensors(part, dtype, device) for part in data])
    if isinstance(data, Tensor):
        return known_numbers(data)
    if not (is_array(data) or is_list):
        return data
    array = _as_numbers(data)
    tensor = torch.as_tensor(np.require(array, requirements=["C", "W"]), device=device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def known_numbers(tensor: Tensor) -> Tensor:
    """A tensor of a type that torch can count with.

    Args:
        tensor: A tensor.

    Returns:
        The same, or whole numbers of 64 bits in the place of unsigned ones of 16 bits and more,
        which torch does not even compare.

    Raises:
        TypeError: If it is nested in the layout in which torch does not tell a shape.
    """
    if tensor.is_nested and tensor.layout is torch.strided:
        raise TypeError(
            "Nested tensors are taken in torch's jagged layout, got a strided one, whose shape "
            "nobody can ask for: make it by torch.nested.nested_tensor(rows, layout=torch.jagged)."
        )
    return tensor.long() if tensor.dtype in _NAMED_ONLY else tensor


def is_array(data: Any) -> bool:
    """Whether something is a tensor, an array or a data frame, rather than batches of them.

    Args:
        data: Anything.

    Returns:
        Whether it is.
    """
    return isinstance(data, Tensor) or hasattr(data, "to_numpy") or hasattr(data, "__array__")


def holds_numbers(data: Any) -> bool:
    """Whether something is a list, or a list of lists, of numbers rather than of arrays.

    Args:
        data: Anything.

    Returns:
        Whether it is.
    """
    first = data[0] if isinstance(data, list) and data else None
    return holds_numbers(first) if isinstance(first, list) else isinstance(first, Real)


def _check_one_length(data: Any) -> None:
    """Refuses a list whose rows have different lengths, of which there is no array."""
    if not isinstance(data, list):
        return
    lengths = sorted({len(row) if isinstance(row, (list, tuple)) else 0 for row in data})
    if len(lengths) > 1:
        raise ValueError(
            f"Expected a list of rows of one length, got rows of {lengths[0]} to {lengths[-1]} "
            f"numbers: remove the odd ones, or fill sequences up to one length, as by "
            f"torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)."
        )
    if lengths and lengths[0]:
        for row in data:
            _check_one_length(row)


def _as_numbers(data: Any) -> np.ndarray[Any, Any]:
    if np.ma.is_masked(data):  # NumPy itself would take what lies below the mask
        data = data.astype(np.float64).filled(np.nan)
    try:
        array = np.asarray(data.to_numpy() if hasattr(data, "to_numpy") else data)
    except ValueError:
        _check_one_length(data)
        raise
    if array.dtype.kind == "O" and all(isinstance(value, Real) for value in array.flat):
        # As data frames give columns of several types, and of those that know what is missing.
        is_whole = all(isinstance(value, Integral) for value in array.flat)
        array = array.astype(np.int64 if is_whole else np.float64)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        return array.astype(np.int64)  # torch has little of such types but their names
    if array.dtype.kind in "fiub":
        if array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # as torch has it
    text = f"{type(data).__name__} of the type {array.dtype}"
    kinds: Any = getattr(data, "dtypes", None)
    if hasattr(kinds, "items"):  # a data frame's, by column
        bad = [str(n) for n, kind in kinds.items() if getattr(kind, "kind", "O") not in "fiub"]
        text += f", with the columns {bad[:5]}" * bool(bad)
    raise TypeError(
        f"Expected numbers, got {text}: encode text and categories first (labels by "
        f"numpy.unique(y, return_inverse=True)[1], columns by pandas.get_dummies(x)), fill in "
        f"what is missing, and leave out columns that are no numbers."
    )
