"""Whether a saved state of an optimizer is of the optimizer that is to have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def entries(state: Mapping[str, Any], names: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """What a torch optimizer remembers of each parameter, by the parameter's name.

    Args:
        state: The ``state_dict`` of the optimizer.
        names: Names of its parameters, by group.

    Returns:
        The names of what is remembered; nothing of a parameter that had no gradient so far.
    """
    flat = [name for group in names for name in group]
    return {flat[i]: sorted(entry) for i, entry in state["state"].items() if i < len(flat)}


def check_complete(saved: Mapping[str, Any]) -> None:
    """Checks that a state holds all that it held when it was taken.

    Args:
        saved: What :meth:`~pyro_ibvi.MuPOptim.get_state` gave.

    Raises:
        ValueError: If something of a parameter is missing.
    """
    found = entries(saved["optimizer"], saved["names"])
    expected = saved.get("entries", found)  # earlier states do not say what they hold
    lacking = [n for n in expected if found.get(n) != sorted(expected[n])]
    if lacking:
        raise ValueError(
            f"The optimizer's state is incomplete: of {lacking[0]} it holds "
            f"{found.get(lacking[0], [])} and should hold {expected[lacking[0]]}. Take it whole, "
            f"as get_state() or a checkpoint gave it."
        )


def check_saved(
    saved: Mapping[str, Any],
    kind: str,
    names: Sequence[Sequence[str]],
    parameters: Mapping[str, Tensor],
) -> None:
    """Checks a state before anything of it is used.

    Kernels of torch's do not compare the shapes of a state and a parameter: one of another
    network would be read, and written, beyond its end.

    Args:
        saved: What :meth:`~pyro_ibvi.MuPOptim.get_state` gave.
        kind: Name of the optimizer's class.
        names: Names of its parameters, by group.
        parameters: Its parameters, by name.

    Raises:
        ValueError: If the state is of another optimizer, or of other parameters.
    """
    if saved.get("kind", kind) != kind:
        raise ValueError(
            f"The state is of the optimizer {saved['kind']}, but this one is {kind}: a state goes "
            f"on with the optimizer that it is of."
        )
    if not _fit(names, saved["names"]):
        raise ValueError(
            f"The optimizer's state is for the parameters {saved['names']}, but the "
            f"parameters are {[list(group) for group in names]}."
        )
    shapes = saved.get("shapes", {})
    for name, parameter in parameters.items():
        if name in shapes and list(parameter.shape) != list(shapes[name]):
            raise ValueError(
                f"The optimizer's state is of another network: {name} had the shape "
                f"{tuple(shapes[name])} and has {tuple(parameter.shape)}. A learning rate carries "
                f"over to another width, a state does not: make a new MuPOptim, without it."
            )


def _fit(current: Sequence[Sequence[str]], saved: Sequence[Sequence[str]]) -> bool:
    """Whether saved groups are those of the optimizer, but for parameters that come later."""
    if len(current) != len(saved) or current[:-1] != saved[:-1]:
        return False
    now, then = set(current[-1]), set(saved[-1])
    return now <= then or then <= now
