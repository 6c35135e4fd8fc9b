"""Errors about a user's data."""

from __future__ import annotations


class DataError(ValueError):
    """Data that a model cannot take; its message is a sentence, and stays one.

    Pyro appends the shapes of all sites to the errors of a model that it traces, which says
    nothing to those who have written no Pyro model.

    Args:
        message: The sentence.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.partition("Trace Shapes:")[0].rstrip())
