"""A schedule that ends with the epochs of ``fit``, which no optimizer knows when it is made."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class CosineOverFit(LRScheduler):
    """Lets all rates fall to 0 along half a cosine over the epochs of a call of ``fit``.

    Before and after, rates are as given: steps of one's own are taken at these.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._start, self._length = 0, 0
        super().__init__(optimizer)

    def begin(self, num_epochs: int, num_done: int = 0) -> None:
        """Says how long training is.

        Args:
            num_epochs: Number of epochs, those included that are done.
            num_done: Number of epochs that were done before an interruption.
        """
        self._start, self._length = self.last_epoch - num_done, num_epochs
        self._apply()

    def end(self) -> None:
        """Sets the rates back."""
        self._length = 0
        self._apply()

    def get_lr(self) -> list[float | Tensor]:
        """The groups' rates in the epoch at hand.

        Returns:
            The rates.
        """
        if not self._length:
            return list(self.base_lrs)
        done = min(1.0, (self.last_epoch - self._start) / self._length)
        return [rate * (1 + math.cos(math.pi * done)) / 2 for rate in self.base_lrs]

    def _apply(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
