"""What differs between the tensors of a file and those that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

#: Differences that a message lists before it counts the rest.
_NUM_LISTED = 5


def misfits(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two sets of tensors in name, type and shape.

    Args:
        there: The tensors of a file by name.
        here: Those that are to have their values.

    Returns:
        A few words on each difference.

    Example:
        >>> import torch
        >>> for words in misfits({"w": torch.zeros(2), "b": torch.ones(1)}, {"w": torch.ones(3)}):
        ...     print(words)
        it has b, which is not here
        w is float32 of shape (2,) there and float32 of shape (3,) here
    """
    found = [f"it lacks {name}" for name in here if name not in there]
    found += [f"it has {name}, which is not here" for name in there if name not in here]
    for name in there:
        if name in here and _kind(there[name]) != _kind(here[name]):
            found.append(f"{name} is {_kind(there[name])} there and {_kind(here[name])} here")
    return found


def listed(found: Sequence[str]) -> str:
    """The first differences, and how many more there are.

    Args:
        found: What :func:`misfits` gave.

    Returns:
        The part of a sentence.

    Example:
        >>> listed(["it lacks b"] * 6)
        'it lacks b; it lacks b; it lacks b; it lacks b; it lacks b; and 1 more'
    """
    more = f"; and {len(found) - _NUM_LISTED} more" if len(found) > _NUM_LISTED else ""
    return "; ".join(found[:_NUM_LISTED]) + more


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
