r"""Distances between Gaussians that are given by a mean and a factor of the covariance.

A Gaussian is a pair ``(loc, factor)``: the law of ``loc + S z`` with ``z ~ N(0, I)``. The factor
has the shape ``(P,)`` for a diagonal :math:`S` (standard deviations of either sign), or
``(P, R)`` for :math:`S` itself, of any rank. No function forms a ``(P, P)`` matrix unless it is
given one.

The 2-Wasserstein distance is finite for every pair, degenerate ones included; the KL divergence
is not, and says so. Gradients flow to every argument.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

_CHUNK_NUMBERS = 2**22  # numbers in one temporary: 16 MiB in float32


def wasserstein2_squared(
    loc_a: Float[Tensor, " P"],
    factor_a: Float[Tensor, " P *R_a"],
    loc_b: Float[Tensor, " P"],
    factor_b: Float[Tensor, " P *R_b"],
) -> Float[Tensor, ""]:
    r"""Squared 2-Wasserstein distance between two Gaussians.

    .. math::

        W_2^2 = |m_a - m_b|^2 + |S_a|_F^2 + |S_b|_F^2 - 2\,\|S_a^\top S_b\|_*
              = |m_a - m_b|^2 + \min_Q |S_a Q - S_b|_F^2

    with the nuclear norm, or with the minimum over the matrices :math:`Q` with orthonormal rows
    (the orthogonal Procrustes problem). The second form is the one computed: it is never
    negative, and near :math:`S_a = S_b`, where the first loses half of its digits, it loses none.
    Two diagonal factors need neither: the sum of :math:`(|s_a| - |s_b|)^2`.

    The first derivative is exact. It exists wherever :math:`S_a^\top S_b` has full rank, and
    elsewhere is that of one of the minimizing :math:`Q`. A second derivative
    (``create_graph=True``, or ``torch.func``) is refused.

    Args:
        loc_a: Mean of the first Gaussian, shape ``(P,)``.
        factor_a: Its factor, ``(P,)`` or ``(P, R_a)``, in the units of the mean.
        loc_b: Mean of the second Gaussian, ``(P,)``.
        factor_b: Its factor, ``(P,)`` or ``(P, R_b)``.

    Returns:
        A scalar, in squared units of the mean. The time is of order ``P R^2``, the extra memory
        ``R^2`` and a fixed buffer, and ``P R`` where just one factor is diagonal.

    Raises:
        ValueError: If a shape does not fit.

    References:
        Gelbrich, 1990, *On a formula for the L2 Wasserstein metric between measures on Euclidean
        and Hilbert spaces*, Mathematische Nachrichten 147.

    Example:
        >>> loc = torch.zeros(3, dtype=torch.float64)
        >>> wasserstein2_squared(loc, torch.ones_like(loc), loc + 1, 2 * torch.eye(3).double())
        tensor(6., dtype=torch.float64)
    """
    _check_pair(loc_a, factor_a, loc_b, factor_b)
    return (loc_a - loc_b).square().sum() + _factor_distance(factor_a, factor_b)


def wasserstein2_squared_commuting(
    loc_a: Float[Tensor, " P"],
    covariance_a: Float[Tensor, "P P"],
    loc_b: Float[Tensor, " P"],
    covariance_b: Float[Tensor, "P P"],
) -> Float[Tensor, ""]:
    r"""Squared 2-Wasserstein distance between Gaussians whose covariances commute.

    .. math:: W_2^2 = |m_a - m_b|^2 + |\Sigma_a^{1/2} - \Sigma_b^{1/2}|_F^2

    The roots are taken by eigenvalues, so a gradient is undefined where eigenvalues repeat:
    differentiate :func:`wasserstein2_squared` instead.

    Args:
        loc_a: Mean of the first Gaussian, shape ``(P,)``.
        covariance_a: Its covariance, ``(P, P)``, positive semi-definite.
        loc_b: Mean of the second Gaussian, ``(P,)``.
        covariance_b: Its covariance, ``(P, P)``, positive semi-definite.

    Returns:
        A scalar, in squared units of the mean.

    Raises:
        ValueError: If a shape does not fit, if a covariance is not positive semi-definite, or if
            the two do not commute.

    Example:
        >>> loc, eye = torch.zeros(2), torch.eye(2)
        >>> round(wasserstein2_squared_commuting(loc, eye, loc, 4 * eye).item(), 5)
        2.0
    """
    _check_pair(loc_a, covariance_a, loc_b, covariance_b)
    root_a, root_b = (f @ f.mT for f in map(_fourth_root, (covariance_a, covariance_b)))
    product = covariance_a @ covariance_b
    scale = torch.linalg.matrix_norm(covariance_a) * torch.linalg.matrix_norm(covariance_b)
    commutator = torch.linalg.matrix_norm(product - product.mT)
    if commutator > math.sqrt(torch.finfo(product.dtype).eps) * scale:
        raise ValueError(
            "The covariances do not commute: the Frobenius norm of their commutator is "
            f"{commutator.item():.3g}. Use wasserstein2_squared with "
            "covariance_factor(covariance) for each."
        )
    return (loc_a - loc_b).square().sum() + (root_a - root_b).square().sum()


def gaussian_kl(
    loc_a: Float[Tensor, " P"],
    factor_a: Float[Tensor, " P *R_a"],
    loc_b: Float[Tensor, " P"],
    factor_b: Float[Tensor, " P *R_b"],
) -> Float[Tensor, ""]:
    r"""Kullback-Leibler divergence of the first Gaussian from the second.

    .. math::

        KL(a \| b) = \tfrac12 \left( |L_b^{-1} S_a|_F^2 + |L_b^{-1}(m_a - m_b)|^2 - P \right)
                     + \log|\det L_b| - \log|\det L_a|,
        \qquad L L^\top = S S^\top

    :math:`L` is triangular and comes from a QR decomposition of :math:`S^\top`, so the condition
    number is not squared.

    A Gaussian of rank below ``P`` has no density. Where the *shape* of a factor says so, that is
    an error, since no value of the parameters could repair it. Where the *values* say so (a zero
    among the standard deviations, or a zero on the diagonal of :math:`L`), the result is
    infinite; a factor that is singular up to rounding gives a large finite number.

    Args:
        loc_a: Mean of the first Gaussian, shape ``(P,)``.
        factor_a: Its factor, ``(P,)`` or ``(P, R_a)`` with ``R_a >= P``.
        loc_b: Mean of the second Gaussian, ``(P,)``.
        factor_b: Its factor, ``(P,)`` or ``(P, R_b)`` with ``R_b >= P``.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: If a shape does not fit, or if a factor has fewer columns than rows.

    Example:
        >>> loc = torch.zeros(2)
        >>> gaussian_kl(loc, torch.tensor([1.0, -1.0]), loc + 1, torch.ones(2))
        tensor(1.)
    """
    _check_pair(loc_a, factor_a, loc_b, factor_b)
    _check_density("first", factor_a)
    _check_density("second", factor_b)
    size = len(loc_a)
    if factor_a.ndim == 1 and factor_b.ndim == 1:
        scale_a, scale_b = factor_a.abs(), factor_b.abs()
        quadratic = ((scale_a / scale_b).square() + ((loc_a - loc_b) / scale_b).square()).sum()
    else:
        columns = torch.column_stack([as_matrix(factor_a), loc_a - loc_b])
        if factor_b.ndim == 1:
            scale_b = factor_b.abs()
            quadratic = (columns / scale_b.unsqueeze(-1)).square().sum()
        else:
            root_b = triangular_root(factor_b)
            scale_b = root_b.diagonal().abs()
            quadratic = torch.linalg.solve_triangular(root_b, columns, upper=False).square().sum()
        root_a = factor_a if factor_a.ndim == 1 else triangular_root(factor_a).diagonal()
        scale_a = root_a.abs()
    value = (quadratic - size) / 2 + (scale_b.log() - scale_a.log()).sum()
    singular = (scale_a == 0).any() | (scale_b == 0).any()
    return torch.where(singular, torch.full_like(value, math.inf), value)


def covariance_factor(covariance: Float[Tensor, "P P"]) -> Float[Tensor, "P P"]:
    r"""A factor of a dense covariance, degenerate ones included.

    Args:
        covariance: Symmetric positive semi-definite, shape ``(P, P)``.

    Returns:
        :math:`S = V \Lambda^{1/2}`, shape ``(P, P)``, with :math:`S S^\top` the covariance.

    Raises:
        ValueError: If the matrix is not square, symmetric and positive semi-definite.

    Example:
        >>> factor = covariance_factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> torch.allclose(factor @ factor.mT, torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        True
    """
    values, vectors = _eigh(covariance)
    return vectors * values.sqrt()


def triangular_root(factor: Float[Tensor, "P R"]) -> Float[Tensor, "P P"]:
    r"""A triangular factor of the same covariance, without squaring the condition number.

    Args:
        factor: :math:`S`, shape ``(P, R)`` with ``R >= P``.

    Returns:
        Lower triangular :math:`L` with :math:`L L^\top = S S^\top`, shape ``(P, P)``. Its diagonal
        may have either sign.
    """
    root: Tensor = torch.linalg.qr(factor.mT).R.mT
    return root


class _ProcrustesDistance(torch.autograd.Function):
    r"""Minimum over Q of :math:`|A Q - B|_F^2`, A ``(P, R_a)``, B ``(P, R_b)``, R_a <= R_b.

    The minimizer is the polar factor of :math:`A^\top B`. At a minimum the derivative with
    respect to Q vanishes, so the gradient holds Q fixed and never divides by differences of
    singular values, which repeat at the usual start. The residual is summed in chunks.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        left, _, right = torch.linalg.svd(a.mT @ b, full_matrices=False)
        rotation = left @ right
        ctx.save_for_backward(a, b, rotation)
        rows = max(1, _CHUNK_NUMBERS // max(1, b.shape[1]))
        parts = [
            torch.addmm(b_rows, a_rows, rotation, beta=-1).square_().sum()
            for a_rows, b_rows in zip(a.split(rows), b.split(rows), strict=True)
        ]
        return torch.stack(parts).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if torch.is_grad_enabled():  # Q is held fixed, so a second derivative would be wrong
            raise RuntimeError(
                "wasserstein2_squared has a first derivative only, and create_graph=True asks "
                "for a second. Leave create_graph out."
            )
        a, b, rotation = ctx.saved_tensors
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:  # (A Q - B) Q^T = A - B Q^T: the rows of Q are orthonormal
            grad_a = torch.addmm(a, b, rotation.mT, alpha=-1).mul_(2 * grad)
        if ctx.needs_input_grad[1]:
            grad_b = torch.addmm(b, a, rotation, alpha=-1).mul_(2 * grad)
        return grad_a, grad_b


def _factor_distance(factor_a: Tensor, factor_b: Tensor) -> Tensor:
    # The covariances' part of the squared 2-Wasserstein distance.
    if factor_a.ndim == 1 and factor_b.ndim == 1:
        # Not abs(): its gradient at zero is zero, and a vanished scale could never come back.
        sign = torch.where(factor_a * factor_b < 0, -1.0, 1.0).to(factor_a.dtype)
        return (factor_a - sign * factor_b).square().sum()
    if factor_a.ndim == 1:
        return _factor_distance(factor_b, factor_a)
    if factor_b.ndim == 1:
        if factor_a.shape[1] < factor_a.shape[0]:
            return _mixed_distance(factor_b, factor_a)
        factor_b = factor_b.diag()
    if factor_a.shape[1] > factor_b.shape[1]:
        factor_a, factor_b = factor_b, factor_a
    value: Tensor = _ProcrustesDistance.apply(factor_a, factor_b)  # type: ignore[no-untyped-call]
    return value


def _mixed_distance(diagonal: Tensor, factor: Tensor) -> Tensor:
    # Diagonal against low rank, where the minimizing Q of the other route would be (R, P).
    nuclear: Tensor = torch.linalg.svdvals(diagonal.unsqueeze(-1) * factor).sum()
    squares = diagonal.square().sum() + factor.square().sum()
    return (squares - 2 * nuclear).clamp_min(0)  # zero at the least, up to rounding


def _fourth_root(covariance: Tensor) -> Tensor:
    values, vectors = _eigh(covariance)
    return vectors * values.pow(0.25)


def _eigh(covariance: Tensor) -> tuple[Tensor, Tensor]:
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(
            f"A covariance has the shape (P, P), and this one {tuple(covariance.shape)}. "
            "A diagonal one is written variances.diag()."
        )
    values, vectors = torch.linalg.eigh(covariance)
    tolerance = 10 * len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    if (covariance - covariance.mT).abs().max() > tolerance or values.min() < -tolerance:
        raise ValueError(
            "A covariance is symmetric and positive semi-definite, and this one is not: its "
            f"asymmetry is {(covariance - covariance.mT).abs().max().item():.3g} and its "
            f"smallest eigenvalue {values.min().item():.3g}. If you hold a factor S, pass "
            "S @ S.mT."
        )
    return values.clamp_min(0), vectors


def as_matrix(factor: Tensor) -> Tensor:
    """A factor with its columns, one for each entry of standard deviations."""
    return factor.diag() if factor.ndim == 1 else factor


def _check_pair(loc_a: Tensor, factor_a: Tensor, loc_b: Tensor, factor_b: Tensor) -> None:
    _check_gaussian("first", loc_a, factor_a)
    _check_gaussian("second", loc_b, factor_b)
    if loc_a.shape != loc_b.shape:
        raise ValueError(
            f"The first Gaussian has {len(loc_a)} dimensions and the second {len(loc_b)}; a "
            "distance needs the same number. Flatten both in the same order."
        )


def _check_gaussian(which: str, loc: Tensor, factor: Tensor) -> None:
    if loc.ndim != 1:
        raise ValueError(
            f"The mean of the {which} Gaussian has the shape {tuple(loc.shape)}, and (P,) was "
            "expected. Flatten it: loc.flatten()."
        )
    if factor.ndim not in {1, 2} or factor.shape[0] != loc.shape[0]:
        raise ValueError(
            f"The factor of the {which} Gaussian has the shape {tuple(factor.shape)}, and "
            f"({len(loc)},) or ({len(loc)}, R) was expected, as its mean has {len(loc)} entries. "
            "Flatten all dimensions but the rank: factor.reshape(-1, R)."
        )


def _check_density(which: str, factor: Tensor) -> None:
    if factor.ndim == 2 and factor.shape[1] < factor.shape[0]:
        size, rank = factor.shape
        raise ValueError(
            f"The covariance of the {which} Gaussian has rank at most {rank} in {size} "
            "dimensions, so it has no density and no Kullback-Leibler divergence. Use "
            "wasserstein2_squared, which is finite, or a factor with at least "
            f"{size} columns."
        )
