"""What training measured, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class History:
    """What training measured, one entry per epoch.

    Attributes:
        train_loss: Mean of the objective over the epoch's steps, in the objective's units.
        valid_loss: Mean of the objective over the validation data after the epoch, each batch
            weighted by its size; empty without validation data.
    """

    train_loss: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)

    @property
    def num_epochs(self) -> int:
        """Number of epochs that were trained."""
        return len(self.train_loss)
