"""What is measured on validation data after an epoch, and the best state by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pyro.infer import SVI

from pyro_ibvi._util.handlers import HANDLERS
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.training.history import History
from pyro_ibvi.training.state import get_tensors, set_tensors
from pyro_ibvi.training.step import Measured, Stepper, check_observed, mean_of, measured

#: Takes model, guide and validation loader, and gives numbers by name.
Metrics = Callable[[Any, Any, Iterable[Any]], Mapping[str, float]]
#: Names of numbers that are large where training went well.
_LARGE_AT_BEST = frozenset({"accuracy", "acc", "auroc", "auc", "f1", "r2"})
#: Draws for metrics are the same after each epoch: what differs between epochs is the network.
_SEED = 0


def validate(
    stepper: Stepper, loader: Iterable[Any], metrics: Metrics | None, history: History
) -> None:
    """Adds the validation loss and the metrics of an epoch to the history.

    Args:
        stepper: Who takes the training's steps.
        loader: Validation data.
        metrics: What to measure of predictions.
        history: The history.

    Raises:
        TypeError: If the metrics are no mapping.
        ValueError: If the loader is empty, or none of its targets counts.
    """
    svi = stepper.svi
    losses: list[Measured] = []
    with module_mode(svi.model, svi.guide, training=False):
        for batch in loader:
            with HANDLERS:  # those of another thread's step must not see this one's sites
                losses.append(measured(svi.evaluate_loss, svi.model, *stepper.call(batch)))
        if not losses:
            raise ValueError("The validation loader is empty: it yielded no batch.")
        check_observed("validation", sum(each.size for each in losses))
        values: Mapping[str, float] = {}
        if metrics is not None:
            with own_random_numbers(_SEED):
                values = metrics(svi.model, svi.guide, loader)
            if not isinstance(values, Mapping) or not all(map(_is_number, values.values())):
                raise TypeError(
                    f"metrics must return numbers by name, such as {{'nll': 0.3}}, got {values!r}."
                )
        history.add_validation(mean_of(losses), values)


def _as_loss(name: str, value: float) -> float:
    """A number that is small where training went well."""
    kind = name.rpartition("/")[2]  # of a task
    if kind == "coverage":
        raise ValueError(
            f"monitor={name!r} is neither small nor large at its best, which is 0.95: watch "
            f"{name.removesuffix(kind) + 'nll'!r}."
        )
    return -value if kind in _LARGE_AT_BEST else value


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return not isinstance(value, str)


class Best:
    """The best state so far, by a number that is small or large then, and how long ago it was.

    Args:
        svi: The training.
        monitor: Name of the number in the history; by default ``"nll"`` if that is measured, or
            else the validation loss.
        patience: Number of epochs without a better one after which training stops; None keeps
            no state and never stops.

    Attributes:
        epoch: The best epoch, from 0, or None.
    """

    def __init__(self, svi: SVI, monitor: str | None, patience: int | None) -> None:
        self._svi = svi
        self._monitor = monitor
        self._patience = patience
        self._value = math.inf
        self._tensors: dict[str, Any] | None = None
        self.epoch: int | None = None

    def see(self, history: History) -> bool:
        """Looks at the last epoch.

        Args:
            history: The history.

        Returns:
            Whether training has waited long enough for a better one.

        Raises:
            ValueError: If there is no number of the name, or it is best in the middle.
        """
        if self._patience is None:
            return False
        last = history.last()
        name = self._monitor or ("nll" if "nll" in last else "valid_loss")
        if name not in last:
            raise ValueError(f"monitor={name!r} is not measured: choose among {sorted(last)}.")
        value = _as_loss(name, last[name])
        epoch = history.num_epochs - 1
        # No number is above NaN, so that one in the first epoch would stay the best for ever.
        is_number = math.isnan(self._value) and not math.isnan(value)
        if self.epoch is None or is_number or value < self._value:
            self._value, self.epoch = value, epoch
            self._tensors = get_tensors(self._svi)
        return epoch - self.epoch >= self._patience

    def restore(self) -> None:
        """Puts the best state back, if one was kept."""
        if self._tensors is not None:
            set_tensors(self._svi, self._tensors)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it."""
        return {"value": self._value, "epoch": self.epoch, "tensors": self._tensors}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Args:
            state: What :meth:`state` gave.
        """
        self._value, self.epoch = state["value"], state["epoch"]
        self._tensors = state["tensors"]
