"""Learning rate schedulers, stepped as torch has them stepped."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

from pyro.optim import PyroLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from pyro_ibvi.training.cosine import CosineOverFit
from pyro_ibvi.training.history import History
from pyro_ibvi.training.optim import MuPOptim

Interval = Literal["epoch", "step"]
#: Attribute of a scheduler with the name of what it compares, which goes into its state.
_LOOKS_AT = "looks_at"


def has_scheduler(optim: Any) -> bool:
    """Whether an optimizer has a schedule that must be stepped.

    Args:
        optim: The optimizer.

    Returns:
        Whether it has; True as long as an optimizer cannot tell, before a guide has parameters.
    """
    if isinstance(optim, MuPOptim):
        try:
            return optim.scheduler is not None
        except RuntimeError:
            return True
    return isinstance(optim, PyroLRScheduler)


def step_scheduler(optim: Any, history: History) -> None:
    """Steps the scheduler of a :class:`~pyro_ibvi.MuPOptim`, or one of Pyro's, if there is one.

    Args:
        optim: The optimizer.
        history: The history, whose last epoch's validation loss, or else training loss, some
            schedulers look at.
    """
    if not has_scheduler(optim):
        return
    with warnings.catch_warnings():
        # The optimizer's steps may all have been taken before a restart.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        step = optim.step_scheduler if isinstance(optim, MuPOptim) else optim.step
        if is_plateau(optim):
            last = history.last()
            name = "valid_loss" if "valid_loss" in last else "train_loss"
            for scheduler in _schedulers(optim):
                _look_at(name, scheduler)
            step(last[name])
        else:
            step()


def begin_epoch(
    scheduler: Any,
    epoch: int,
    num_epochs: int | None,
    num_batches: float | None,
    accumulate: int,
    max_steps: int = -1,
    *,
    interval: Interval = "epoch",
) -> None:
    """Tells a schedule that ends with training where it is, and warns of one that is too long.

    Args:
        scheduler: The schedule; others are passed over.
        epoch: Number of epochs that are done.
        num_epochs: Number of all; None, or one that is not positive, for no end.
        num_batches: Number of batches in an epoch, if it is known.
        accumulate: Number of batches in a step.
        max_steps: Number of steps after which training ends at the latest; -1 for no such end.
        interval: When the schedule takes a step.
    """
    num_steps = math.inf if num_batches is None else num_batches / accumulate
    if epoch == 0 and interval == "epoch" and num_epochs and math.isfinite(num_steps):
        _warn_of_length(scheduler, num_epochs, num_epochs * math.ceil(num_steps))
    if not isinstance(scheduler, CosineOverFit):
        return
    ends = [math.inf if num_epochs is None or num_epochs <= 0 else num_epochs]
    if max_steps > 0 and math.isfinite(num_steps):
        ends.append(math.ceil(max_steps / math.ceil(num_steps)))
    if math.isfinite(min(ends)):
        scheduler.begin(int(min(ends)), epoch, num_steps)


def _warn_of_length(scheduler: Any, num_epochs: int, num_steps: int) -> None:
    """Warns of a schedule that was made for the steps of a training, and takes one an epoch."""
    length = {OneCycleLR: "total_steps", CosineAnnealingLR: "T_max"}.get(type(scheduler), "")
    if num_epochs != num_steps == getattr(scheduler, length, None):
        warnings.warn(
            f"{type(scheduler).__name__} has {num_steps} steps, as this training has, and goes on "
            f"after each of its {num_epochs} epochs alone: pass schedule_every='step'.",
            UserWarning,
            stacklevel=4,
        )


def end_training(scheduler: Any) -> None:
    """Sets the rates back that such a schedule has taken to 0.

    Args:
        scheduler: The schedule; others are passed over.
    """
    if isinstance(scheduler, CosineOverFit):
        scheduler.end()


def goes_by_epochs(optim: Any) -> bool:
    """Whether a schedule cannot be stepped after each step.

    Args:
        optim: The optimizer.

    Returns:
        Whether it cannot.
    """
    return is_plateau(optim) or isinstance(scheduler_of(optim), CosineOverFit)


def scheduler_of(optim: Any) -> Any:
    """The scheduler of a :class:`~pyro_ibvi.MuPOptim`.

    Args:
        optim: The optimizer.

    Returns:
        The scheduler; None where there is none, or none yet, before a guide has parameters.
    """
    try:
        return optim.scheduler if isinstance(optim, MuPOptim) else None
    except RuntimeError:
        return None


def _schedulers(optim: Any) -> list[Any]:
    return [optim.scheduler] if isinstance(optim, MuPOptim) else list(optim.optim_objs.values())


def _look_at(name: str, scheduler: Any) -> None:
    """Lets a scheduler begin anew to compare where it looks at another number than before."""
    if vars(scheduler).get(_LOOKS_AT, name) != name:
        scheduler.best, scheduler.num_bad_epochs = scheduler.mode_worse, 0
    setattr(scheduler, _LOOKS_AT, name)


def is_plateau(optim: Any) -> bool:
    """Whether an optimizer's schedule looks at a loss.

    Args:
        optim: The optimizer.

    Returns:
        Whether it does.
    """
    if isinstance(optim, MuPOptim):
        return isinstance(scheduler_of(optim), ReduceLROnPlateau)
    return getattr(optim, "pt_scheduler_constructor", None) is ReduceLROnPlateau
