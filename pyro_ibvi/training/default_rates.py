"""Global learning rates to begin with, for the absolute table of ``MaximalUpdate``."""

from __future__ import annotations

from typing import Any

from pyro_ibvi.training.families import find_family

#: In the absolute table a step by Adam or Muon changes what each layer passes on by about the
#: global rate, whatever the width, so that one number serves every network; by SGD by the rate
#: times the gradient of the mean loss. Measured in ``benchmarks/mup/real_data.py``.
_RATES = {"sgd": 0.1, "adam": 0.1, "muon": 0.03}


def default_rate(optimizer: Any, family: Any = None) -> float:
    """A learning rate that trains most networks under ``MaximalUpdate()``, if not the best one.

    It is for standardized data, a loss per datum (``reduction="mean"``) and, with SGD, momentum
    0.9; without momentum SGD bears ten times as much. With a ``base`` the rates are the standard
    parametrization's at the base, and so are their defaults.

    Args:
        optimizer: Class of the torch optimizer.
        family: How an optimizer that is not one of torch's scales its updates.

    Returns:
        The rate.

    Raises:
        ValueError: If the optimizer's family is not known.

    Example:
        >>> import torch
        >>> default_rate(torch.optim.SGD)
        0.1
    """
    return _RATES[find_family(optimizer, family)]
