"""What training measured, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """What training measured, one entry per epoch.

    Attributes:
        train_loss: Mean of the objective over the epoch's steps, in the objective's units. Each
            step counts by its observations, of which masked and missing targets are none; by its
            data where the objective is a sum over them.
        valid_loss: The same of the validation data's batches after the epoch; NaN for epochs
            without validation data, and empty if there never were any.
        metrics: What was measured of predictions on the validation data, by name; NaN for epochs
            in which it was not.
    """

    train_loss: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    #: What the last epoch did not measure, whose entry there only keeps the place.
    _absent: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def num_epochs(self) -> int:
        """Number of epochs that were trained."""
        return len(self.train_loss)

    def last(self) -> dict[str, float]:
        """The numbers that the last epoch measured, by name."""
        found = {"train_loss": self.train_loss, **self._of_validation()}
        return {
            name: values[-1]
            for name, values in found.items()
            if values and len(values) == self.num_epochs and name not in self._absent
        }

    def add_epoch(self, train_loss: float) -> None:
        """Adds an epoch, of which no more than the training loss is known as yet.

        Args:
            train_loss: Mean of the objective over the epoch's steps.
        """
        self.train_loss.append(float(train_loss))
        known = {name: values for name, values in self._of_validation().items() if values}
        for values in known.values():
            self._fill(values, self.num_epochs)
        self._absent = set(known)

    def add_validation(
        self, valid_loss: float, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Adds what was measured after the epoch that was added last.

        Args:
            valid_loss: Mean of the objective over the validation data.
            metrics: What was measured of predictions, by name.
        """
        self._measure("valid_loss", self.valid_loss, valid_loss)
        for name, value in (metrics or {}).items():
            self._measure(name, self.metrics.setdefault(name, []), value)

    def _of_validation(self) -> dict[str, list[float]]:
        return {"valid_loss": self.valid_loss, **self.metrics}

    def _fill(self, values: list[float], size: int) -> None:
        values.extend([math.nan] * (size - len(values)))

    def _measure(self, name: str, values: list[float], value: float) -> None:
        # A history that goes on may have had no such number before.
        self._fill(values, self.num_epochs)
        values[-1] = float(value)
        self._absent.discard(name)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as lists of copies."""
        return {
            "train_loss": list(self.train_loss),
            "valid_loss": list(self.valid_loss),
            "metrics": {name: list(values) for name, values in self.metrics.items()},
        }

    def replace(self, values: Mapping[str, Any]) -> None:
        """Takes other numbers in the place of these.

        Args:
            values: What :meth:`to_dict` gave.
        """
        self.train_loss[:] = values["train_loss"]
        self.valid_loss[:] = values["valid_loss"]
        self.metrics.clear()
        self.metrics.update({n: list(v) for n, v in values.get("metrics", {}).items()})
        others = self._of_validation().items()
        self._absent = {name for name, found in others if found and math.isnan(found[-1])}
