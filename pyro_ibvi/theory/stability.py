"""How large a step may be while weights are drawn in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi.theory.checks import check_data

if TYPE_CHECKING:
    from jaxtyping import Float

_MAX_ITERATIONS = 10_000


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


def max_stable_multiplicative_rate(
    X: Float[Tensor, "N P"],
    s: Float[Tensor, " P"],
    *,
    draws: Literal["batch", "datum"] = "batch",
) -> float:
    r"""Largest learning rate of the mean at which SGD with noise relative to it is stable.

    The squared loss :math:`\frac{1}{2N} |X w - y|^2` of a linear model with
    :math:`w_j = m_j (1 + s_j z_j)`, all data in each step, one draw of :math:`z` for all of them
    or for each datum. A step multiplies the mean's distance from its limit by the random matrix
    :math:`I - \eta A`, with :math:`A = D \frac{X^\top X}{N} D` and
    :math:`D = I + \mathrm{diag}(s z)`, or the mean of :math:`D_n x_n x_n^\top D_n`. The second
    moment :math:`M` of the distance shrinks if and only if :math:`\eta` is less than one over the
    spectral radius of the map

    .. math:: M \mapsto L^{-1}(E[A M A]), \qquad L(M) = E[A] M + M E[A]

    whose expectations are those of Gaussian moments of order 4. With one feature it is
    :math:`\frac{2}{\lambda} \frac{1 + s^2}{1 + 6 s^2 + 3 s^4}` for one draw; with noise that is
    averaged over many data it is :math:`2` over the curvature of the expected loss,
    :math:`\frac{X^\top X}{N} + \mathrm{diag}(s_j^2 c_j / N)`, see
    :mod:`pyro_ibvi.theory.multiplicative`.

    Args:
        X: Data, shape ``(N, P)``. A draw for each datum takes memory of the order ``N P^2``.
        s: Standard deviations relative to the means, ``(P,)``.
        draws: One draw in a step, or one for each datum.

    Returns:
        The bound on the rate, without momentum.

    Raises:
        ValueError: If the data are no finite matrix, ``s`` does not fit them, ``draws`` is
            neither, or no datum uses any feature.

    Example:
        >>> X = torch.ones(50, 1)
        >>> [
        ...     round(max_stable_multiplicative_rate(X, torch.full((1,), 0.5), draws=draws), 3)
        ...     for draws in ("batch", "datum")
        ... ]
        [0.93, 1.577]
    """
    check_data(X)
    if s.shape != X.shape[1:]:
        raise ValueError(
            f"X has the shape {tuple(X.shape)} and s {tuple(s.shape)}, and (N, P) and (P,) were "
            "expected."
        )
    if draws not in ("batch", "datum"):
        raise ValueError(f"draws must be 'batch' or 'datum', got {draws!r}.")
    X, v = X.detach().double(), s.detach().double().square()
    gram = X.mT @ X / len(X)
    mean = gram + (v * gram.diagonal()).diag()
    # What is drawn together: all data, or each by itself, where the squares of N draws' mean have
    # the weight 1 / N^2.
    drawn = gram.unsqueeze(0) if draws == "batch" else X.unsqueeze(2) * X.unsqueeze(1) / len(X)
    values, vectors = torch.linalg.eigh(mean)
    if not values[-1] > 0:
        raise ValueError(
            "X has no entry other than 0, and a loss without curvature bounds no rate."
        )
    sums = values.unsqueeze(1) + values
    is_moved = sums > 1e-12 * values[-1]
    inverse = torch.where(is_moved, 1 / torch.where(is_moved, sums, 1.0), 0.0)
    moment, radius = torch.eye(len(v), dtype=v.dtype, device=v.device) / len(v), 0.0
    for _ in range(_MAX_ITERATIONS):
        square = mean @ moment @ mean + _excess(drawn, v, moment)
        moment = vectors @ (inverse * (vectors.mT @ square @ vectors)) @ vectors.mT
        before, radius = radius, float(moment.trace())
        if abs(radius - before) <= 1e-9 * radius:
            break
        moment = moment / radius
    return 1 / radius


def _excess(drawn: Tensor, v: Tensor, moment: Tensor) -> Tensor:
    """The sum of E[A M A] - E[A] M E[A] over matrices A = D H D, by Gaussian moments.

    Args:
        drawn: The matrices H, ``(B, P, P)``.
        v: Variances of the entries of D, ``(P,)``.
        moment: M, ``(P, P)``.

    Returns:
        The sum, ``(P, P)``.
    """
    of_diagonal = v * moment.diagonal()
    product = drawn @ moment
    left = (v * product.diagonal(dim1=1, dim2=2)).unsqueeze(2) * drawn
    squared = drawn.square()
    on_diagonal = (product * drawn).sum(2) + squared @ of_diagonal
    return (
        (left + left.mT).sum(0)
        + ((drawn * of_diagonal) @ drawn).sum(0)
        + v.unsqueeze(1) * v * squared.sum(0) * moment
        + (v * on_diagonal.sum(0)).diag()
    )


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
