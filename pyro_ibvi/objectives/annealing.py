"""Schedules for weights that change during training, such as ``kl_weight``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pyro_ibvi.objectives.terms import as_weight


@dataclass(frozen=True)
class KLAnnealing:
    r"""A weight that moves from one value to another over a number of steps.

    With t the share of the ramp that has passed, the weight is
    :math:`\text{start} + (\text{stop} - \text{start}) \, r(t)`, where r(t) is t (``"linear"``) or
    :math:`(1 - \cos \pi t) / 2` (``"cosine"``). It is a function of the step alone and holds no
    state, so it can be pickled and resumed anywhere. The objective does not call it: set the
    objective's ``kl_weight`` from it, per step or per epoch.

    Args:
        start: Weight until the ramp begins, at least 0.
        stop: Weight from its end on, at least 0.
        num_steps: Length of the ramp, at least 1.
        delay: Number of steps before it.
        shape: Shape of the ramp.

    Raises:
        ValueError: If a value lies outside its range.

    Example:
        >>> schedule = KLAnnealing(1.0, 0.0, num_steps=100, delay=50)
        >>> [schedule(step) for step in (0, 50, 100, 150, 1000)]
        [1.0, 1.0, 0.5, 0.0, 0.0]
        >>> from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
        >>> loss = TraceExpectedLogLikelihood(kl_weight=schedule(0))
        >>> loss.kl_weight = schedule(100)
    """

    start: float
    stop: float
    num_steps: int
    delay: int = 0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        as_weight("start", self.start)
        as_weight("stop", self.stop)
        if self.num_steps < 1 or self.delay < 0:
            raise ValueError(
                f"num_steps={self.num_steps!r}, delay={self.delay!r}: expected at least 1 step "
                "and a delay of at least 0."
            )
        if self.shape not in {"linear", "cosine"}:
            raise ValueError(f"shape={self.shape!r}: expected 'linear' or 'cosine'.")

    def __call__(self, step: int) -> float:
        """Weight at a step.

        Args:
            step: Number of steps taken so far.

        Returns:
            The weight.
        """
        share = min(max((step - self.delay) / self.num_steps, 0.0), 1.0)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.stop - self.start) * share
