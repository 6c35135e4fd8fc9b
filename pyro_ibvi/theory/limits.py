r"""What training does to a Gaussian over the weights of a linear model, in closed form.

The weights are :math:`w = m + S z` with :math:`z \sim N(0, I)`, started at the prior
:math:`(m_0, S_0)` and trained on the expected loss alone. On linear models the limit is known,
and the functions here compute it:

- regression, Theorem 1: :func:`regression_limit`; for a diagonal, :func:`mean_field_limit`;
- separable classification, Theorem 2: :func:`classification_limit`,
  :func:`max_margin_direction`.

Throughout, ``X`` holds one datum a row, ``(N, P)``; ``loc`` is ``(P,)``; ``S`` is ``(P, R)``.

References:
    Wenger, Coker, Marusic, Cunningham, 2025, *Variational Deep Learning via Implicit
    Regularization*, arXiv:2505.20235.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pyro_ibvi.theory.checks import check_data, check_labels, check_noise, check_prior, check_rates

if TYPE_CHECKING:
    from jaxtyping import Float, Num


class RegressionLimit(NamedTuple):
    """Where training on the expected squared loss ends: the law of ``loc + S z``."""

    loc: Float[Tensor, " P"]
    """Mean, shape ``(P,)``."""
    S: Float[Tensor, "P R"]
    """Factor of the covariance, ``(P, R)``."""


class ClassificationLimit(NamedTuple):
    r"""Where training on the expected exponential loss of separable data tends.

    ``loc_t / log t`` tends to ``direction``, the part of ``loc_t`` in the null space of the data
    stays ``loc``, and ``S_t`` tends to ``S``.
    """

    direction: Tensor
    """The max-margin vector, shape ``(P,)``: the shortest one with every margin at least 1."""
    loc: Tensor
    r"""Part of the initial mean that no datum sees, :math:`(I - X^+ X) m_0`, ``(P,)``."""
    S: Tensor
    r"""Limit of the factor, :math:`(I - X^+ X) S_0`, ``(P, R)``."""
    support: Tensor
    """Which data have margin 1, ``(N,)``, boolean."""
    decay_exponent: float
    r"""The slowest direction of :math:`X S_t` falls as ``t`` to the minus this; 0 if it stalls.

    The smallest eigenvalue, on the span of the data, of :math:`\sum_n \alpha_n x_n x_n^\top`
    with the multipliers of the max-margin problem, for equal learning rates. It is at most 1.
    With a rate of ``S`` that is ``c`` times the rate of ``loc``, multiply it by ``c``.
    """


@dataclass(frozen=True, eq=False)
class NullSpaceProjection:
    """The orthogonal projection onto the directions that no datum sees.

    Args:
        basis: Orthonormal basis of the row space of the data, shape ``(P, rank)``.
    """

    basis: Float[Tensor, "P rank"]

    def __call__(self, vectors: Float[Tensor, " P *R"]) -> Float[Tensor, " P *R"]:
        r"""Projects, without forming a ``(P, P)`` matrix.

        Args:
            vectors: Shape ``(P,)`` or ``(P, R)``.

        Returns:
            :math:`(I - B B^\top) v`, of the same shape.

        Raises:
            ValueError: If the first dimension is not ``P``.
        """
        if vectors.ndim not in {1, 2} or len(vectors) != len(self.basis):
            raise ValueError(
                f"The vectors to project have the shape {tuple(vectors.shape)}, and "
                f"({len(self.basis)},) or ({len(self.basis)}, R) was expected, as the data have "
                f"{len(self.basis)} features."
            )
        for _ in range(2):  # once leaves a part of the order of eps in the span; twice does not
            vectors = vectors - self.basis @ (self.basis.mT @ vectors)
        return vectors


def null_space_projection(X: Float[Tensor, "N P"]) -> NullSpaceProjection:
    r"""The projection :math:`I - X^+ X` onto the null space of the data.

    Args:
        X: Data, shape ``(N, P)``, of any rank.

    Returns:
        A function of vectors ``(P,)`` or matrices ``(P, R)``, with the attribute ``basis``.

    Raises:
        ValueError: If ``X`` is not a finite floating-point matrix.

    Example:
        >>> project = null_space_projection(torch.tensor([[2.0, 0.0, 0.0]]))
        >>> project(torch.tensor([1.0, 2.0, 3.0]))
        tensor([0., 2., 3.])
    """
    check_data(X)
    return NullSpaceProjection(_thin_svd(X)[2])


def regression_limit(
    X: Float[Tensor, "N P"],
    y: Float[Tensor, " N"],
    loc0: Float[Tensor, " P"],
    S0: Float[Tensor, "P R"],
    *,
    noise_scale: float | Float[Tensor, ""] | Float[Tensor, " N"] | None = None,
    rates: Float[Tensor, " P"] | None = None,
) -> RegressionLimit:
    r"""Limit of gradient descent on the expected squared loss of a linear model (Theorem 1).

    .. math::

        m_* = m_0 + (W X)^+ W (y - X m_0), \qquad S_* = (I - X^+ X)\, S_0,
        \qquad W = \mathrm{diag}(1 / \sigma)

    It is the minimizer of the expected loss that is nearest to the prior in 2-Wasserstein
    distance. Where ``X m = y`` has a solution, the noise does not matter, and stochastic
    gradients and momentum lead to the same limit. Where it has none, :math:`m_*` is the weighted
    least-squares solution nearest to :math:`m_0`, and only full-batch gradients converge to it.
    With as many independent data as features, :math:`S_* = 0`.

    A learning rate for each feature, :math:`D = \mathrm{diag}(d)`, changes what is near: the
    limit is the above in the coordinates :math:`D^{-1/2} w`. One rate for the mean and another
    for the factor change the speed only.

    Args:
        X: Data, shape ``(N, P)``, of any rank.
        y: Targets, ``(N,)``.
        loc0: Initial mean, ``(P,)``.
        S0: Initial factor, ``(P, R)``. Its entries are free: a matrix that starts out diagonal
            does not stay so. For a diagonal guide see :func:`mean_field_limit`.
        noise_scale: Standard deviation of the noise, one number or ``(N,)``, in the units of
            ``y``. None means the same for each datum.
        rates: Learning rates of the features, ``(P,)``, up to a common factor, for the mean and
            the rows of the factor alike. None means the same for each feature.

    Returns:
        The limit's mean and factor.

    Raises:
        ValueError: If a shape does not fit, or a noise scale or a rate is not positive and finite.

    References:
        Wenger et al., 2025, arXiv:2505.20235, Theorem 1.

    Example:
        >>> X, y = torch.tensor([[1.0, 0.0]]), torch.tensor([3.0])
        >>> regression_limit(X, y, torch.ones(2), torch.eye(2))
        RegressionLimit(loc=tensor([3., 1.]), S=tensor([[0., 0.], [0., 1.]]))
    """
    check_data(X, y)
    check_prior(X, loc0, S0)
    if rates is not None:
        root = check_rates(rates, X).sqrt()
        column = root.unsqueeze(-1)
        loc, S = regression_limit(X * root, y, loc0 / root, S0 / column, noise_scale=noise_scale)
        return RegressionLimit(root * loc, column * S)
    left, singular_values, basis = _thin_svd(X)
    weights = 1 / check_noise(noise_scale, y)
    # Over the coordinates t of X (m - m_0) in the basis `left`, least squares has full rank
    # whatever the rank of X, and the weights cannot disturb the decision on that rank.
    orthogonal, triangular = torch.linalg.qr(weights.unsqueeze(-1) * left)
    projected = orthogonal.mT @ (weights * (y - X @ loc0))
    t = torch.linalg.solve_triangular(triangular, projected.unsqueeze(-1), upper=True)
    loc = loc0 + basis @ (t.squeeze(-1) / singular_values)
    return RegressionLimit(loc, NullSpaceProjection(basis)(S0))


def mean_field_limit(X: Float[Tensor, "N P"], scale0: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    r"""Limit of a diagonal factor trained on the expected squared loss of a linear model.

    The loss adds :math:`\tfrac12 \sum_j s_j^2 \sum_n x_{nj}^2 / \sigma_n^2`, so each scale
    shrinks to zero unless no datum uses its feature, however many features there are. A diagonal
    cannot follow the null space of the data, which is rarely along the axes. The mean's limit is
    that of :func:`regression_limit`.

    Args:
        X: Data, shape ``(N, P)``.
        scale0: Initial diagonal, ``(P,)``.

    Returns:
        The limit of the diagonal, ``(P,)``.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> mean_field_limit(torch.tensor([[1.0, -2.0, 0.0]]), torch.ones(3))
        tensor([0., 0., 1.])
    """
    check_data(X)
    if scale0.shape != X.shape[1:]:
        raise ValueError(
            f"The diagonal has the shape {tuple(scale0.shape)}, and ({X.shape[1]},) was expected, "
            "one scale for each feature. For a factor (P, R) use regression_limit."
        )
    return torch.where((X == 0).all(0), scale0, torch.zeros_like(scale0))


def max_margin_direction(X: Float[Tensor, "N P"], y: Num[Tensor, " N"]) -> Float[Tensor, " P"]:
    r"""The hard-margin separating vector through the origin.

    .. math:: \min_w |w|^2 \quad \text{such that} \quad y_n\, x_n^\top w \ge 1
        \text{ for every } n

    As a least-distance problem it is solved exactly by non-negative least squares
    (``scipy.optimize.nnls``), in float64 and in the span of the data; then the equations of the
    support vectors are solved once more. The margin is ``1 / |w|``.

    Args:
        X: Data, shape ``(N, P)``. For a bias, append a column of ones.
        y: Labels -1 or 1, ``(N,)``.

    Returns:
        The vector :math:`w`, ``(P,)``, not of unit length.

    Raises:
        ValueError: If a shape does not fit, a label is not -1 or 1, or no vector separates the
            data.

    References:
        Lawson and Hanson, 1974, *Solving Least Squares Problems*, chapter 23.

    Example:
        >>> X = torch.tensor([[2.0, 0.0], [0.0, -1.0]])
        >>> max_margin_direction(X, torch.tensor([1.0, -1.0]))
        tensor([0.5000, 1.0000])
    """
    check_data(X, y)
    check_labels(y)
    return _max_margin(X, y)[0]


def classification_limit(
    X: Float[Tensor, "N P"],
    y: Num[Tensor, " N"],
    loc0: Float[Tensor, " P"],
    S0: Float[Tensor, "P R"],
    *,
    require_span: bool = True,
) -> ClassificationLimit:
    r"""Limit of gradient descent on the expected exponential loss of separable data (Theorem 2).

    .. math::

        m_t / \log t \to w_{\text{max-margin}}, \qquad
        (I - X^+ X)\, m_t = (I - X^+ X)\, m_0, \qquad S_t \to (I - X^+ X)\, S_0

    The direction of :math:`m_t` converges as ``1 / log t`` at worst, :math:`X S_t` as ``t`` to
    the minus ``decay_exponent``. The theorem assumes full-batch gradients with a small enough
    rate, separable data, and support vectors that span the data.

    Args:
        X: Data, shape ``(N, P)``.
        y: Labels -1 or 1, ``(N,)``.
        loc0: Initial mean, ``(P,)``.
        S0: Initial factor, ``(P, R)``.
        require_span: Whether support vectors that do not span the data are an error. If not,
            ``decay_exponent`` is 0, and ``S`` is not the limit: training stalls on the way to it.

    Returns:
        Direction, unchanged parts, support vectors and exponent.

    Raises:
        ValueError: If a shape does not fit, a label is not -1 or 1, no vector separates the data,
            or the support vectors do not span them.

    References:
        Wenger et al., 2025, arXiv:2505.20235, Theorem 2; Soudry et al., 2018, *The Implicit Bias
        of Gradient Descent on Separable Data*, arXiv:1710.10345.

    Example:
        >>> X, y = torch.tensor([[2.0, 0.0]]), torch.tensor([1.0])
        >>> limit = classification_limit(X, y, torch.ones(2), torch.eye(2))
        >>> limit.direction, limit.S, round(limit.decay_exponent, 3)
        (tensor([0.5000, 0.0000]), tensor([[0., 0.], [0., 1.]]), 1.0)
    """
    check_data(X, y)
    check_labels(y)
    check_prior(X, loc0, S0)
    direction, multipliers, support = _max_margin(X, y)
    _, _, basis = _thin_svd(X)
    basis = torch.linalg.qr(basis.double()).Q
    seen, rank = X[support].double() @ basis, basis.shape[1]
    spans = int(torch.linalg.matrix_rank(seen, rtol=_rank_tolerance(X))) == rank
    if require_span and not spans:
        raise ValueError(
            f"The {int(support.sum())} support vectors do not span the data of rank {rank}, "
            "so Theorem 2 does not hold and S stalls on the way to its limit. Pass "
            "require_span=False to have the other results nonetheless."
        )
    curvature = seen.mT @ (multipliers[support].unsqueeze(-1) * seen)
    exponent = torch.linalg.eigvalsh(curvature)[0].item() if spans else 0.0
    project = NullSpaceProjection(basis.to(X.dtype))
    return ClassificationLimit(direction, project(loc0), project(S0), support, exponent)


def _thin_svd(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The parts U (N, r), s (r,) and V (P, r) that belong to the numerical rank r.
    left, values, right = torch.linalg.svd(X, full_matrices=False)
    rank = int((values > _rank_tolerance(X) * values[0]).sum())
    return left[:, :rank], values[:rank], right[:rank].mT


def _rank_tolerance(X: Tensor) -> float:
    # As NumPy and torch decide on a rank, relative to the largest singular value.
    return max(X.shape) * torch.finfo(X.dtype).eps


def _max_margin(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The vector (P,) in the dtype of X, its multipliers (N,) and its support vectors (N,).
    _, _, basis = _thin_svd(X)
    basis = torch.linalg.qr(basis.double()).Q
    rows = y.double().unsqueeze(-1) * (X.double() @ basis)
    multipliers = _multipliers(rows) if basis.shape[1] else rows.new_zeros(len(rows))
    direction = rows.mT @ multipliers
    margins = rows @ direction
    if not (margins.min() > 1 - 1e-6):
        raise ValueError(
            "No vector through the origin separates the data. If a bias would, append a column "
            "of ones to X; if classes overlap, Theorem 2 does not apply."
        )
    support = margins < 1 + 1e-6
    return (basis @ direction).to(X.dtype), multipliers, support.to(X.device)


def _multipliers(rows: Tensor) -> Tensor:
    # Multipliers a >= 0 of the rows (N, r) with w = rows^T a the max-margin vector.
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise ImportError(
            "The max-margin vector is found by scipy.optimize.nnls, and SciPy is not installed. "
            "Install it: pip install scipy."
        ) from error
    size = rows.norm(dim=-1).max()
    unit = rows / size
    system = torch.cat([unit, unit.new_ones(len(unit), 1)], -1).mT.cpu().numpy()
    target = torch.zeros(len(system), dtype=torch.float64)
    target[-1] = 1
    weights: Tensor = torch.as_tensor(nnls(system, target.numpy())[0]).to(rows)
    # The part of the target that is not reached is 1 / (1 + |w|^2): nothing if data overlap.
    rough: Tensor = weights / (1 - weights.sum()).clamp_min(1e-300) / size**2
    active = weights > 0
    if not 0 < active.sum() <= rows.shape[1]:
        return rough
    # Where a multiplier is positive the margin is 1: A A^T a = 1, by the triangle of A^T.
    triangle = torch.linalg.qr(rows[active].mT).R
    ones = rows.new_ones(len(triangle), 1)
    half = torch.linalg.solve_triangular(triangle.mT, ones, upper=False)
    polished = torch.zeros_like(rough)
    polished[active] = torch.linalg.solve_triangular(triangle, half, upper=True).squeeze(-1)
    better = (rows @ (rows.mT @ polished)).min() >= (rows @ (rows.mT @ rough)).min()
    return polished if better and (polished >= 0).all() else rough
