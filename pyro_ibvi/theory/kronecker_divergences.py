r"""Distances between Gaussian matrices whose covariances are Kronecker products.

The Gaussian is the law of :math:`M + S_{out} Z S_{in}^\top` with standard normal :math:`Z`, and is
given by its mean :math:`M`, shape ``(n, p)``, and the pair ``(S_out, S_in)``. A factor has the
shape ``(n, R)`` or ``(p, R)``, or ``(n,)`` or ``(p,)`` for a diagonal. The distances are those of
:mod:`pyro_ibvi.theory.divergences` for the product of the factors, which has ``n p`` rows and is
never formed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pyro_ibvi.theory.divergences import as_matrix, triangular_root, wasserstein2_squared

if TYPE_CHECKING:
    from jaxtyping import Float

Factors: TypeAlias = tuple[Tensor, Tensor]


def kronecker_wasserstein2_squared(
    loc_a: Float[Tensor, "n p"],
    factors_a: Factors,
    loc_b: Float[Tensor, "n p"],
    factors_b: Factors,
) -> Float[Tensor, ""]:
    r"""Squared 2-Wasserstein distance between two Gaussian matrices.

    .. math::

        W_2^2 = |M_a - M_b|_F^2 + |A|_F^2 |B|_F^2 + |C|_F^2 |D|_F^2
              - 2\,\|A^\top C\|_* \|B^\top D\|_*

    with the factors :math:`(A, B)` of the first and :math:`(C, D)` of the second, since the
    singular values of a Kronecker product are the products of its factors'. It is computed from
    the distances of the factors, which keep their digits near :math:`A = C, B = D`. Gradients are
    as for :func:`~pyro_ibvi.theory.wasserstein2_squared`.

    Args:
        loc_a: Mean of the first Gaussian, shape ``(n, p)``.
        factors_a: Its factors.
        loc_b: Mean of the second Gaussian, ``(n, p)``.
        factors_b: Its factors.

    Returns:
        A scalar, in squared units of the mean.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> loc, factors = torch.zeros(2, 3), (torch.eye(2), torch.ones(3))
        >>> wider = torch.ones(2), 2 * torch.eye(3)
        >>> kronecker_wasserstein2_squared(loc, factors, loc + 1, wider)
        tensor(12.)
    """
    _check_pair(loc_a, factors_a, loc_b, factors_b)
    (a, b), (c, d) = factors_a, factors_b
    of_outputs, of_inputs = _distance(a, c), _distance(b, d)
    a2, b2, c2, d2 = (factor.square().sum() for factor in (a, b, c, d))
    # |AQ x BR - C x D|^2 for AQ x BR - C x D = (AQ - C) x BR + C x (BR - D).
    crossed = (a2 - c2 - of_outputs) * (b2 - d2 + of_inputs) / 2
    factors = of_outputs * b2 + c2 * of_inputs + crossed
    return (loc_a - loc_b).square().sum() + factors.clamp_min(0)  # up to rounding


def kronecker_gaussian_kl(
    loc_a: Float[Tensor, "n p"],
    factors_a: Factors,
    loc_b: Float[Tensor, "n p"],
    factors_b: Factors,
) -> Float[Tensor, ""]:
    r"""Kullback-Leibler divergence of the first Gaussian matrix from the second.

    .. math::

        KL(a \| b) = \tfrac12 \left( |L_C^{-1} A|_F^2 |L_D^{-1} B|_F^2
            + |L_C^{-1} (M_a - M_b) L_D^{-\top}|_F^2 - n p \right)
            + p \log \frac{|\det L_C|}{|\det L_A|} + n \log \frac{|\det L_D|}{|\det L_B|}

    with the factors :math:`(A, B)` of the first and :math:`(C, D)` of the second, and triangular
    :math:`L_C L_C^\top = C C^\top` and so on.

    Args:
        loc_a: Mean of the first Gaussian, shape ``(n, p)``.
        factors_a: Its factors, with at least as many columns as rows.
        loc_b: Mean of the second Gaussian, ``(n, p)``.
        factors_b: Its factors, with at least as many columns as rows.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: If a shape does not fit, or if a factor has fewer columns than rows.

    Example:
        >>> loc, factors = torch.zeros(2, 3), (torch.eye(2), torch.ones(3))
        >>> kronecker_gaussian_kl(loc, factors, loc + 1, factors)
        tensor(3.)
    """
    _check_pair(loc_a, factors_a, loc_b, factors_b)
    _check_density("first", factors_a)
    _check_density("second", factors_b)
    num_outputs, num_inputs = loc_a.shape
    (a, b), (c, d) = factors_a, factors_b
    trace = _whitened(as_matrix(a), c).square().sum() * _whitened(as_matrix(b), d).square().sum()
    shift = _whitened(_whitened(loc_a - loc_b, c).mT, d).square().sum()
    log_det_a = num_inputs * _log_det(a) + num_outputs * _log_det(b)
    log_det_b = num_inputs * _log_det(c) + num_outputs * _log_det(d)
    value = (trace + shift - loc_a.numel()) / 2 + log_det_b - log_det_a
    singular = torch.isneginf(log_det_a) | torch.isneginf(log_det_b)
    return torch.where(singular, torch.full_like(value, math.inf), value)


def _distance(factor_a: Tensor, factor_b: Tensor) -> Tensor:
    zero = factor_a.new_zeros(len(factor_a))
    return wasserstein2_squared(zero, factor_a, zero, factor_b)


def _log_det(factor: Tensor) -> Tensor:
    diagonal = factor if factor.ndim == 1 else triangular_root(factor).diagonal()
    return diagonal.abs().log().sum()


def _whitened(columns: Tensor, factor: Tensor) -> Tensor:
    """Columns of the inverse root of a covariance with a matrix."""
    if factor.ndim == 1:
        return columns / factor.abs().unsqueeze(-1)
    whitened: Tensor = torch.linalg.solve_triangular(triangular_root(factor), columns, upper=False)
    return whitened


def _check_pair(loc_a: Tensor, factors_a: Factors, loc_b: Tensor, factors_b: Factors) -> None:
    for which, loc, factors in (("first", loc_a, factors_a), ("second", loc_b, factors_b)):
        sizes = tuple(len(factor) for factor in factors)
        if loc.ndim != 2 or loc.shape != sizes or loc.shape != loc_a.shape:
            raise ValueError(
                f"The mean of the {which} Gaussian has the shape {tuple(loc.shape)} and its "
                f"factors have {sizes} rows: a matrix (n, p), of the same shape for both, and "
                f"factors with n and p rows were expected."
            )


def _check_density(which: str, factors: Factors) -> None:
    if any(factor.ndim == 2 and factor.shape[1] < factor.shape[0] for factor in factors):
        shapes = [tuple(factor.shape) for factor in factors]
        raise ValueError(
            f"The factors of the {which} Gaussian have the shapes {shapes}, so its covariance is "
            f"degenerate and it has no density and no Kullback-Leibler divergence. Use "
            f"kronecker_wasserstein2_squared, which is finite, or factors with at least as many "
            f"columns as rows."
        )


def separate_scales(
    scales: Float[Tensor, "n p"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " p"]] | None:
    r"""Numbers :math:`a_i, b_j` whose products are the entries of a matrix.

    Args:
        scales: Positive entries, shape ``(n, p)``.

    Returns:
        :math:`a`, ``(n,)``, of mean square one, and :math:`b`, ``(p,)``; None if there are none.
    """
    columns = scales.square().mean(0).sqrt()
    rows = scales @ columns / columns.square().sum()
    close = torch.allclose(
        rows.outer(columns), scales, rtol=torch.finfo(scales.dtype).eps ** 0.5, atol=0.0
    )
    return (rows, columns) if close else None
