"""Schedules of learning rates: they must multiply the rates of all groups alike.

A group's rate is the global one times the factor of its parameters. Schedulers that set a rate in
the place of multiplying it give all groups the same one, and with the ratios the advantage of a
parametrization is lost.

Groups go into an optimizer that the user makes, whose ``load_state_dict`` puts plain dictionaries
in their place. The factor stays in them, so it is by the factors of any optimizer's groups that a
step is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pyro_ibvi.training.families import check_families

#: Key of a parameter group under which the factor on the global learning rate stands.
FACTOR_KEY = "rate_factor"

#: Rates that were multiplied by the same numbers differ by rounding alone.
_TOLERANCE = 1e-9
_TOLERANCE_OF_TENSORS = 1e-5

_PER_GROUP = '[{value} * group["rate_factor"] for group in optimizer.param_groups]'

#: The one hook that checks steps, once there are groups to check.
_hooks: list[Any] = []


def watch_steps() -> None:
    """Has the ratios checked before each step of any torch optimizer, from now on.

    Optimizers whose groups have no factors are passed over.
    """
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_check_step))


def _check_step(optimizer: Optimizer, *_: Any) -> None:
    check_ratios(optimizer.param_groups)
    ours = (group for group in optimizer.param_groups if FACTOR_KEY in group)
    check_families(type(optimizer), ours)


def check_ratios(groups: Iterable[Mapping[str, Any]], scheduler: Any = None) -> None:
    """Checks that the learning rates of groups have the ratios that their factors say.

    Args:
        groups: Parameter groups; those without a factor are passed over.
        scheduler: The scheduler, for the message.

    Raises:
        ValueError: If the ratios are lost, or a rate is no number.
    """
    rates = []
    tolerance = _TOLERANCE
    for group in groups:
        factor = group.get(FACTOR_KEY)
        if factor is not None:
            lr = group["lr"]
            if isinstance(lr, Tensor):
                lr, tolerance = float(lr), _TOLERANCE_OF_TENSORS
            rates.append(lr / factor)
    if not all(map(math.isfinite, rates)):
        raise ValueError(
            f"The global learning rate is {rates} by the parameter groups: check what computes it."
        )
    low, high = min(rates, default=0.0), max(rates, default=0.0)
    if high - low > tolerance * abs(high):
        raise ValueError(_lost(low, high, scheduler))


def _lost(low: float, high: float, scheduler: Any) -> str:
    name = "The schedule" if scheduler is None else type(scheduler).__name__
    return (
        f"{name} sets the learning rates of the parameter groups and loses their ratios, which "
        f"the parametrization gives (the global rate would be {low:.3g} by one group and "
        f"{high:.3g} by another): write {_remedy(scheduler)}."
    )


def _remedy(scheduler: Any) -> str:
    """The line to write."""
    for inner in getattr(scheduler, "_schedulers", ()):  # those that run others
        if type(inner).__name__ in _REMEDIES:
            return _remedy(inner)
    remedy = _REMEDIES.get(type(scheduler).__name__)
    if remedy is not None:
        return remedy
    return (
        "a schedule that multiplies, such as LambdaLR(optimizer, factor_of_the_epoch), one rate "
        "for each group where the scheduler takes a list ("
        + _PER_GROUP.format(value="rate")
        + "), and eta_min=0 where it takes a number"
    )


_REMEDIES = {
    "OneCycleLR": f"max_lr={_PER_GROUP.format(value='max_lr')}",
    "CyclicLR": f"base_lr={_PER_GROUP.format(value='base_lr')} and the same for max_lr",
    "CosineAnnealingLR": "eta_min=0, or a LambdaLR whose factor ends above zero",
    "CosineAnnealingWarmRestarts": "eta_min=0, or a LambdaLR whose factor ends above zero",
    "ReduceLROnPlateau": f"min_lr={_PER_GROUP.format(value='min_lr')} and eps=0",
    "SWALR": f"swa_lr={_PER_GROUP.format(value='swa_lr')}",
}
