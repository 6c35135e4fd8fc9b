"""Names that stand for themselves, and patterns that stand for several.

An exact name comes before patterns, everywhere that a user chooses by name: ``"effect[0]"`` is a
site of its own where a loop names sites so, and only else the pattern of ``"effect0"``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase


def chosen(choice: str, names: Iterable[str]) -> list[str]:
    """The names that a name or pattern chooses.

    Args:
        choice: A name, which is chosen alone, or a shell-style pattern (``"encoder.*"``).
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


def as_patterns(names: Iterable[str]) -> list[str]:
    """Names, and patterns in place of those that differ in numbers alone, as in a long loop.

    Args:
        names: The names.

    Returns:
        Names and patterns that choose these names, and others of the kind.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        pattern = re.sub(r"\d+", "*", name.replace("[", "[[]"))  # a bracket is one in a name
        alike.setdefault(pattern, []).append(name)
    return [n for like, own in alike.items() for n in (own if len(own) < 5 else [like])]


def assigned(
    choices: Collection[str],
    names: Iterable[str],
    aliases: Callable[[str], Collection[str]] = lambda _: (),
) -> dict[str, str]:
    """Which of several choices counts for each name.

    That is the name itself, else the first alias that is among the choices, else the first
    pattern that fits the name or an alias.

    Args:
        choices: Names, aliases and patterns, in the user's order.
        names: The names that there are.
        aliases: Other names of a name, such as that of its layer.

    Returns:
        A choice for each name that one fits.
    """
    called = {name: (name, *aliases(name)) for name in names}
    taken = {own for several in called.values() for own in several}
    patterns = [choice for choice in choices if choice not in taken]
    counts = {}
    for name, several in called.items():
        exact = [own for own in several if own in choices]
        fits = [c for c in patterns if any(fnmatchcase(own, c) for own in several)]
        if exact or fits:
            counts[name] = (exact or fits)[0]
    return counts
