"""Checks of arguments that several modules share."""

from __future__ import annotations

from numbers import Integral


def check_positive_int(name: str, value: object) -> None:
    """Checks that an argument is a positive whole number.

    Args:
        name: Name of the argument, for the message.
        value: Its value.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
