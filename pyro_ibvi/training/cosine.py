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
        min_steps: Number of steps of a training from which on its rates fall.
    """

    def __init__(self, optimizer: Optimizer, min_steps: int = 0) -> None:
        self._start, self._length, self._min_steps = 0, 0, min_steps
        super().__init__(optimizer)

    def begin(self, num_epochs: int, num_done: int = 0, steps_per_epoch: float = math.inf) -> None:
        """Says how long training is.

        Args:
            num_epochs: Number of epochs, those included that are done.
            num_done: Number of epochs that were done before an interruption.
            steps_per_epoch: Number of steps in each, infinite where it is not known.
        """
        is_long = num_epochs * steps_per_epoch >= self._min_steps
        self._start, self._length = self.last_epoch - num_done, num_epochs if is_long else 0
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
