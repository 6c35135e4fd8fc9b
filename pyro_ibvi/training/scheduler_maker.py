"""What makes a scheduler, as a user gives it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from pyro.optim import PyroOptim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_ibvi.training.cosine import CosineOverFit

#: A function of the optimizer, or the name of the schedule over the epochs of ``fit``.
MakeScheduler = Callable[[Optimizer], Any] | Literal["cosine"]


def check_scheduler(scheduler: Any) -> None:
    """Checks that something can make a scheduler.

    Args:
        scheduler: A function of the optimizer, ``"cosine"`` or None.

    Raises:
        TypeError: If it is none of these, or a class that needs more than the optimizer.
    """
    if scheduler is None or scheduler == "cosine":
        return
    is_made = isinstance(scheduler, (LRScheduler, PyroOptim))
    if is_made or not callable(scheduler):
        raise TypeError(
            f"scheduler must be 'cosine', which ends at 0 with the epochs of fit, or a function "
            f"that makes a torch scheduler of the optimizer, such as "
            f"`lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)`, got "
            f"{type(scheduler).__name__ if is_made else repr(scheduler)}."
        )
    missing = _missing(scheduler) if isinstance(scheduler, type) else []
    if missing:
        arguments = ", ".join(f"{name}=..." for name in missing)
        raise TypeError(
            f"{scheduler.__name__} needs {' and '.join(missing)} beside the optimizer: write "
            f"scheduler=lambda optimizer: {scheduler.__name__}(optimizer, {arguments})."
        )


def made_scheduler(make: MakeScheduler, optimizer: Optimizer) -> Any:
    """The scheduler that a function or a name makes.

    Args:
        make: The function, or the name.
        optimizer: The optimizer.

    Returns:
        The scheduler.

    Raises:
        TypeError: If what was made has no steps, as where the function forgets to return it.
    """
    if isinstance(make, str):
        return CosineOverFit(optimizer)
    scheduler = make(optimizer)
    if not callable(getattr(scheduler, "step", None)):
        raise TypeError(
            f"The function that was given as scheduler made {scheduler!r}: let it return a torch "
            f"scheduler, such as torch.optim.lr_scheduler.StepLR(optimizer, 30)."
        )
    return scheduler


def _missing(scheduler: type) -> list[str]:
    """Arguments beside the optimizer that have no default."""
    parameters = list(inspect.signature(scheduler).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.default is p.empty and p.kind in kinds]
