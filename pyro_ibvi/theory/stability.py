"""How large a step may be while a factor of the covariance is trained by single draws."""

from __future__ import annotations

import math
from typing import Literal

from pyro_ibvi._util.checks import check_positive_int


def rank_rate_factor(rank: int, num_draws: int = 1) -> float:
    r"""Factor on the rate of S that keeps its stability limit where the mean's is.

    .. math:: \frac{M}{R + 1 + M}

    the ratio of :func:`~pyro_ibvi.theory.max_stable_rate` to the classical
    :math:`2 / \lambda`. It is near :math:`1 / R` for one draw, near 1 for many, and its price is a
    slower S.

    Args:
        rank: Number of columns R of the factor.
        num_draws: Number of weight draws M in a step.

    Returns:
        The factor, between 0 and 1.

    Raises:
        ValueError: If the rank or the number of draws is not positive.

    Example:
        >>> rank_rate_factor(8), rank_rate_factor(8, num_draws=9)
        (0.1, 0.5)
    """
    check_positive_int("rank", rank)
    check_positive_int("num_draws", num_draws)
    return num_draws / (rank + 1 + num_draws)


def max_stable_rate(
    curvature: float, rank: int, num_draws: int = 1, *, loc_rate_ratio: float = 0.0
) -> float:
    r"""Largest learning rate of the factor S at which SGD with weight draws is stable.

    On a quadratic loss of curvature :math:`\lambda`, with :math:`M` draws of :math:`z` a step, the
    mean square of :math:`S` contracts if and only if

    .. math:: \eta < \frac{2 M}{\lambda (R + 1 + M)}

    which for :math:`M = 1` is about :math:`2 / (\lambda R)`, and for many draws the classical
    :math:`2 / \lambda`. This is for S alone, its mean held still. Where the mean is trained with
    the same draws at :math:`\rho` times the rate of S, each shakes the other, and the exact limit
    is lower, with :math:`c = (R + 1 + M) / M`:

    .. math:: \eta < \frac{4}{\lambda \left(c + \rho
        + \sqrt{(c - \rho)^2 + 4 \rho R / M^2}\right)}

    Args:
        curvature: :math:`\lambda`, the largest eigenvalue of the loss's Hessian in the weights;
            for the mean squared loss, of :math:`X^\top X / N`.
        rank: Number of columns R of the factor.
        num_draws: Number of weight draws M in a step.
        loc_rate_ratio: :math:`\rho`, the mean's learning rate over that of S: 1 for equal rates,
            R if the rate of S is divided by the rank, 0 for a mean that does not move.

    Returns:
        The bound on the rate of S, without momentum.

    Raises:
        ValueError: If the curvature, rank or number of draws is not positive, or the ratio is
            negative.

    Example:
        >>> max_stable_rate(1.0, rank=8)
        0.2
        >>> round(max_stable_rate(1.0, rank=8, loc_rate_ratio=1.0), 4)
        0.1849
    """
    check_positive_int("rank", rank)
    check_positive_int("num_draws", num_draws)
    if not (curvature > 0 and math.isfinite(curvature)):
        raise ValueError(
            f"curvature={curvature!r}, and a positive finite number was expected: the largest "
            "eigenvalue of the loss's Hessian. A loss without curvature bounds no rate."
        )
    if not (loc_rate_ratio >= 0 and math.isfinite(loc_rate_ratio)):
        raise ValueError(
            f"loc_rate_ratio={loc_rate_ratio!r}, and a finite number of at least 0 was expected: "
            "the mean's learning rate over that of S."
        )
    c = (rank + 1 + num_draws) / num_draws
    coupling = 4 * loc_rate_ratio * rank / num_draws**2
    root = math.sqrt((c - loc_rate_ratio) ** 2 + coupling)
    return 4 / (curvature * (c + loc_rate_ratio + root))


def spread_floor(rate: float, rank: int, update: Literal["sign", "orthogonal"] = "sign") -> float:
    r"""Standard deviation of a weight below which steps of a fixed size cannot take it.

    A weight :math:`w = s \cdot z` with a standard normal :math:`z` of :math:`R` numbers has the
    gradient :math:`\lambda w z` in :math:`s` by a quadratic loss. Adam takes of it the sign of
    each entry, and Muon, of a matrix of many such rows with one :math:`z`, the direction:

    .. math:: s \leftarrow s - \eta\, \mathrm{sign}(w)\, \mathrm{sign}(z), \qquad
              s \leftarrow s - \eta\, \mathrm{sign}(w)\, z / |z|

    without momentum. The step does not shrink with the spread, so the mean square of :math:`s`
    contracts only above

    .. math:: |s| > \frac{\eta \pi \sqrt R}{4 \arcsin(R^{-1/2})} \approx \frac{\pi}{4} \eta R,
              \qquad |s| > \frac{\eta \sqrt\pi\, \Gamma((R + 1) / 2)}{2\, \Gamma(R / 2)}
              \approx \sqrt{\frac{\pi R}{8}}\, \eta

    (the first where the entries of :math:`s` are equal, which is where it is largest). A mean
    contracts above :math:`\eta / 2`. So for the floor of the spread to stay where the mean's is,
    the rate must be divided by about :math:`R` for Adam, as the rank rule does for SGD, and by
    about :math:`\sqrt R` for orthogonal steps, each of which moves one direction of the
    :math:`R`.

    Args:
        rate: Learning rate :math:`\eta` of the factor.
        rank: Number of columns R of the factor.
        update: ``"sign"`` as Adam, ``"orthogonal"`` as Muon.

    Returns:
        The floor.

    Raises:
        ValueError: If the rate or rank is not positive, or the update is neither.

    Example:
        >>> round(spread_floor(0.1, rank=1), 9)
        0.05
        >>> round(spread_floor(0.1, rank=100) / spread_floor(0.1, rank=1))
        157
    """
    check_positive_int("rank", rank)
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate={rate!r}, and a positive finite number was expected.")
    if update == "sign":
        return rate * math.pi * math.sqrt(rank) / (4 * math.asin(rank**-0.5))
    if update == "orthogonal":
        log_ratio = math.lgamma((rank + 1) / 2) - math.lgamma(rank / 2)
        return rate * math.sqrt(math.pi) * math.exp(log_ratio) / 2
    raise ValueError(f"update must be 'sign' or 'orthogonal', got {update!r}.")
