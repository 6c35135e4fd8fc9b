"""Checks of arguments that several modules share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_positive_int(name: str, value: Any) -> None:
    """Checks that an argument is a positive whole number.

    Args:
        name: Name of the argument, for the message.
        value: Its value.

    Raises:
        ValueError: If it is not.
    """
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {shown(value)}.")


def shown(value: Any) -> str:
    """What a message says of a value, which may be all data or a network.

    Args:
        value: Anything.

    Returns:
        The value where it takes no more than a line, else what it is.
    """
    if isinstance(value, Tensor) and value.dim():
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    is_short = len(text) <= 100 and "\n" not in text and not text.startswith("<")
    return text if is_short else type(value).__name__


def checked_scale(name: str, value: Any) -> float:
    """A standard deviation that a user gave.

    Args:
        name: What it is of, for the message.
        value: The number.

    Returns:
        The number.

    Raises:
        TypeError: If it is none.
        ValueError: If it is not positive and finite.
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {shown(value)}.")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} is a standard deviation, positive and finite; got {value!r}.")
    return float(value)


def checked_temperature(value: Any) -> float:
    """A temperature of predictions that a user gave.

    Args:
        value: The number.

    Returns:
        The number.

    Raises:
        TypeError: If it is none.
        ValueError: If it is not positive and finite.
    """
    if not is_number(value):
        hint = ": pass its .value" * hasattr(value, "value")
        raise TypeError(f"A temperature must be a number, got {value!r}{hint}.")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"A temperature must be positive and finite, got {value!r}.")
    return float(value)


def checked_rates(rates: Sequence[float]) -> list[float]:
    """Learning rates to compare.

    Args:
        rates: What the user gave.

    Returns:
        The rates in ascending order.

    Raises:
        TypeError: If it is one rate.
        ValueError: If they are not positive, or there are not two different ones.
    """
    if not isinstance(rates, Iterable) or isinstance(rates, str):
        raise TypeError(f"rates are several to compare, such as (0.01, 0.1), got {rates!r}.")
    ordered = sorted(float(rate) for rate in rates)
    if len(set(ordered)) < max(2, len(ordered)) or not all(0 < r < math.inf for r in ordered):
        raise ValueError(f"rates must be at least two different positive numbers, got {rates!r}.")
    return ordered


def is_number(value: Any) -> bool:
    """Whether something is one real number, NumPy's and those of one-element tensors included.

    Args:
        value: Anything.

    Returns:
        Whether it is; True and False are none.
    """
    is_number = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
    return is_number and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether something is one whole number, NumPy's included.

    Args:
        value: Anything.

    Returns:
        Whether it is; True and False are none.
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def are_indices(rows: Tensor) -> bool:
    """Whether the rows of a plate are numbers of rows; Pyro takes whatever has a length.

    Args:
        rows: What a plate was given as ``subsample=``.

    Returns:
        Whether they are.
    """
    is_whole = not rows.is_floating_point() and rows.dtype is not torch.bool
    return rows.dim() == 1 and is_whole


def checked_weights(name: str, weights: Any) -> Tensor | None:
    """Weights of labels in the loss.

    Args:
        name: Name of the argument.
        weights: What the user gave: numbers, or None.

    Returns:
        The weights in single precision, None where there are none.

    Raises:
        TypeError: If they are a mapping or words.
        ValueError: If one is negative or not finite.
    """
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        raise TypeError(
            f"{name} holds numbers in the order of the labels, as in "
            f"{name}={[*weights.values()]}; got a {type(weights).__name__}."
        )
    if isinstance(weights, str):
        raise TypeError(
            f"{name} holds numbers in the order of the labels, got {weights!r}: for classes that "
            f"count alike write {name}=len(y) / (num_classes * torch.bincount(y)), and for "
            f"labels 0 and 1 pos_weight=(y == 0).sum() / (y == 1).sum()."
        )
    found = torch.as_tensor(weights, dtype=torch.float32)
    if not bool((found.isfinite() & (found >= 0)).all()):
        raise ValueError(f"{name} holds finite numbers from 0 on; got {found.tolist()}.")
    return found
