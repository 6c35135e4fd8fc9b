"""What Pyro's parameter store is to know of parameters that live in their modules.

Pyro's optimizers ask the store for a parameter's name: for arguments by name, for clipping by
name, for the state that they save. And whoever saves the store expects all that was trained. The
store in use learns the names when such a parameter is first announced, and says what it does not
hold when it is saved; it holds nothing itself.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pyro
from pyro.params import param_store
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

#: Names of parameters that live in their modules, as they are announced; holds none alive.
_NAMES: Any = WeakTensorKeyDictionary()


def keep_name(name: str, parameter: nn.Parameter) -> None:
    """Lets Pyro's store know the name of a parameter that it does not hold.

    Args:
        name: The name under which the parameter is announced.
        parameter: The parameter.
    """
    if _NAMES.get(parameter) == name:
        return
    _NAMES[parameter] = name
    store = pyro.get_param_store()
    if type(store) is ParamStoreDict:
        store.__class__ = InformedStore


class InformedStore(ParamStoreDict):
    """Pyro's store, which knows the names of parameters that live in their modules."""

    def param_name(self, p: Tensor) -> str | None:
        """Name of a parameter, one of the store's or of a module's own."""
        return super().param_name(p) or _NAMES.get(p)

    def save(self, filename: str) -> None:
        """Saves the parameters of the store; warns of those that are not in it.

        Args:
            filename: Name of the file.
        """
        _warn()
        super().save(filename)

    def get_state(self) -> Any:
        """State of the store; warns of parameters that are not in it.

        Returns:
            Parameters and constraints.
        """
        # The store's own methods ask too, for another store for a while (``scope``): one that was
        # entered before the first such parameter was announced is left afterwards.
        if sys._getframe(1).f_globals is not vars(param_store):
            _warn()
        return super().get_state()


def _warn() -> None:
    names = sorted({str(name) for name in _NAMES.values()})
    if not names:
        return
    shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    warnings.warn(
        f"Pyro's parameter store does not hold the parameters of AutoMuPNormal and of "
        f"networks ({shown}), so what is saved of it is not the whole fit: save "
        f"guide.state_dict() and model.state_dict(), and load them by load_state_dict.",
        stacklevel=3,
    )
