"""Exponents of powers: slopes in logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of the logarithm of ``y`` over that of ``x``.

    Args:
        x: Positive numbers, at least two of them different.
        y: As many numbers.

    Returns:
        The slope, NaN if some ``y`` is zero, negative or not finite.
    """
    if not all(0 < value < math.inf for value in y):
        return math.nan
    log_x = torch.tensor(x, dtype=torch.float64).log()
    log_y = torch.tensor(y, dtype=torch.float64).log()
    log_x = log_x - log_x.mean()
    return float((log_x @ log_y / (log_x @ log_x)).item())
