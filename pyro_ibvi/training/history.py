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
        train_loss: Mean of the objective over the epoch's steps, in the objective's units.
        valid_loss: Mean of the objective over the validation data after the epoch, each batch
            weighted by its size; empty without validation data.
        metrics: What was measured of predictions on the validation data, by name.
    """

    train_loss: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    @property
    def num_epochs(self) -> int:
        """Number of epochs that were trained."""
        return len(self.train_loss)

    def last(self) -> dict[str, float]:
        """The numbers of the last epoch, by name."""
        found = {"train_loss": self.train_loss, "valid_loss": self.valid_loss, **self.metrics}
        return {name: values[-1] for name, values in found.items() if values}

    def add_metrics(self, values: Mapping[str, float]) -> None:
        """Adds the metrics of an epoch, the latest one.

        Args:
            values: The metrics by name.
        """
        for name, value in values.items():
            known = self.metrics.setdefault(name, [])
            # A history that goes on may have had no such metric before.
            known.extend([math.nan] * (self.num_epochs - 1 - len(known)))
            known.append(float(value))

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
