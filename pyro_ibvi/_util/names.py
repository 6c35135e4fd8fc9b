"""Names that stand for themselves, and patterns that stand for several."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def chosen(choice: str, names: Iterable[str]) -> list[str]:
    """The names that a name or pattern chooses.

    A name that is there is chosen alone, whatever it would mean as a pattern: ``"effect[0]"`` is
    a site of its own where a loop names sites so, and else the pattern of ``"effect0"``.

    Args:
        choice: A name, or a shell-style pattern (``"encoder.*"``).
        names: The names that there are.

    Returns:
        The chosen names in the order given, none if the choice fits no name.
    """
    names = list(names)
    if choice in names:
        return [choice]
    return [name for name in names if fnmatchcase(name, choice)]


def chosen_by_any(choices: Iterable[str], names: Iterable[str]) -> set[str]:
    """The names that any of some names and patterns chooses.

    Args:
        choices: Names and patterns.
        names: The names that there are.

    Returns:
        The chosen names.
    """
    names = list(names)
    return {name for choice in choices for name in chosen(choice, names)}
