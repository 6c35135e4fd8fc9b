"""Errors about a user's data and network."""

from __future__ import annotations


class DataError(ValueError):
    """Data that a model cannot take; its message is a sentence, and stays one.

    Pyro appends the shapes of all sites to the errors of a model that it traces, which says
    nothing to those who have written no Pyro model.

    Args:
        message: The sentence.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_without_sites(message))


class NetworkError(RuntimeError):
    """A network that fails by itself; the message stays as it is, as that of :class:`DataError`.

    Args:
        message: What happened.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_without_sites(message))


def _without_sites(message: str) -> str:
    return message.partition("Trace Shapes:")[0].rstrip()
