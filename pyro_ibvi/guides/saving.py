"""How a guide is saved, copied and pickled: with its own parameters and none of the model's.

A guide may be given its parameters before it has made them, by ``load_state_dict``; they are kept
until then. A copy is a guide of the same model, or of the model's copy if both are copied
together; a pickle is without model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

#: What a copy or a pickle does not take along: the model, and what refers to it.
_LEFT_BEHIND: dict[str, Any] = {
    "_model": None,
    "master": None,
    "plates": {},
    "_read_from": {},
    "_route": None,
}


def strip_prefix(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A module's own part of a state, copied.

    Args:
        state_dict: The state of a module that holds it.
        prefix: Prefix of the module's names.

    Returns:
        The part, without the prefix.
    """
    return {
        key.removeprefix(prefix): value.detach().clone()
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }


def without_model(guide: nn.Module) -> dict[str, Any]:
    """A guide's attributes for a copy or a pickle.

    Args:
        guide: The guide, which is left as it is.

    Returns:
        The attributes, without the model.
    """
    state = guide.__dict__.copy()
    for name in state.keys() & _LEFT_BEHIND.keys():
        state[name] = copy.copy(_LEFT_BEHIND[name])
    return state


class CopiedModel:
    """The model of a copied guide: the user's, or the copy that is made together with the guide's.

    A guide may be copied before its model, as in ``deepcopy((guide, model))``, so it is at the
    first use of the copy that the choice is made.

    Args:
        model: The model of the guide that was copied.
        read_from: The networks and parameters that the guide knows of it, by name.
        memo: The copies that were made together, by the identity of what they are copies of.
    """

    def __init__(self, model: Any, read_from: dict[str, Any], memo: dict[int, Any]) -> None:
        self._model, self._read_from, self._memo = model, read_from, memo

    def resolve(self) -> tuple[Any, dict[str, Any]]:
        """The model, and its networks and parameters.

        Returns:
            Both as the copied guide has them.
        """
        read_from = {name: self._memo.get(id(v), v) for name, v in self._read_from.items()}
        return self._memo.get(id(self._model), self._model), read_from

    def __deepcopy__(self, memo: dict[int, Any]) -> CopiedModel:
        return CopiedModel(*self.resolve(), memo)
