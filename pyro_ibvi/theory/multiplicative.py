r"""Noise relative to the mean, :math:`w_j = m_j (1 + s_j z_j)`, on a linear model.

The expected squared loss of ``N`` data is

.. math:: L(m, s) = \frac{1}{2} |X m - y|^2 + \frac{1}{2} \sum_j c_j s_j^2 m_j^2,
    \qquad c_j = \sum_n x_{nj}^2,

a ridge penalty of the means with a weight for each feature: dropout as adaptive regularization
(Wager, Wang, Liang, 2013), with :math:`s^2 = p / (1 - p)` for dropout of probability ``p``
(Srivastava et al., 2014). Three things follow.

- With ``s`` held the minimum is unique on all features that some datum uses, and
  :func:`multiplicative_limit` is where gradient descent ends. There is no interpolation: unlike a
  factor of its own, which leaves the span of the data, this noise is paid for at the data, and
  with single draws gradient descent stays in motion around the limit.
- With ``s`` learned, :math:`\dot s_j = -\rho c_j m_j^2 s_j` with its rate :math:`\rho`, the noise
  of every feature that is used shrinks until :math:`s_j m_j = 0`, and the means then fit the data
  as without noise. Where they end depends on the rates, and once the data are fitted
  :math:`\rho m_j^2 - s_j^2` is conserved. So what noise a finite training keeps is set by the
  product of rate and steps.
- The 2-Wasserstein distance to independent Gaussians has a closed form,
  :func:`multiplicative_wasserstein2_squared`, for layers of several outputs too, and so has that
  to other noise on the same inputs, :func:`blockwise_wasserstein2_squared`.

References:
    Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, 2014, *Dropout: A Simple Way to
    Prevent Neural Networks from Overfitting*, JMLR 15. Wager, Wang, Liang, 2013, *Dropout Training
    as Adaptive Regularization*, arXiv:1307.1493. Kingma, Salimans, Welling, 2015, *Variational
    Dropout and the Local Reparameterization Trick*, arXiv:1506.02557.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_ibvi.theory.checks import check_data

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def multiplicative_limit(
    X: Float[Tensor, "N P"],
    y: Float[Tensor, " N"],
    loc0: Float[Tensor, " P"],
    s: Float[Tensor, " P"],
) -> Float[Tensor, " P"]:
    r"""The mean at which gradient descent on the expected squared loss ends, for a given ``s``.

    .. math:: m_* = (I - A^+ A) m_0 + A^+ X^\top y, \qquad A = X^\top X + \mathrm{diag}(c_j s_j^2)

    The start counts only along directions that no datum uses, or that the data leave open where
    ``s`` is zero.

    Args:
        X: Data, shape ``(N, P)``.
        y: Targets, ``(N,)``.
        loc0: Mean at the start, ``(P,)``.
        s: Standard deviations relative to the means, ``(P,)``.

    Returns:
        The mean, ``(P,)``.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> X, y = torch.tensor([[1.0, 0.0]]), torch.tensor([2.0])
        >>> multiplicative_limit(X, y, torch.tensor([5.0, 7.0]), torch.ones(2)).round(decimals=4)
        tensor([1., 7.])
    """
    check_data(X, y)
    for name, value in (("loc0", loc0), ("s", s)):
        if value.shape != X.shape[1:]:
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}, and ({X.shape[1]},) was expected, "
                "one entry for each column of X."
            )
    # As a least-squares problem with a row for each feature's penalty, which squares nothing.
    rows = torch.cat([X, (X.square().sum(0).sqrt() * s.abs()).diag()])
    targets = torch.cat([y, y.new_zeros(len(s))])
    limit: Tensor = loc0 + torch.linalg.pinv(rows) @ (targets - rows @ loc0)
    return limit


def multiplicative_wasserstein2_squared(
    loc: Float[Tensor, " P"],
    directions: Float[Tensor, " P"],
    index: Int[Tensor, " P"],
    loc_other: Float[Tensor, " P"],
    scale_other: Float[Tensor, " P"],
) -> Float[Tensor, ""]:
    r"""Squared 2-Wasserstein distance of noise on inputs from independent Gaussians.

    One noise variable for each input ``j`` moves the weights :math:`B_j` that read it, along
    :math:`d_p = m_p s_j`, so the covariance is a rank-one block for each input:

    .. math:: W_2^2 = |m - m'|^2 + \sum_p (d_p^2 + \sigma_p^2)
        - 2 \sum_j \Big( \sum_{p \in B_j} d_p^2 \sigma_p^2 \Big)^{1/2}

    Args:
        loc: Mean, shape ``(P,)``.
        directions: What one standard deviation of its noise adds to each weight, ``(P,)``.
        index: Which noise variable moves each weight, ``(P,)``.
        loc_other: Mean of the independent Gaussians, ``(P,)``.
        scale_other: Their standard deviations, ``(P,)``.

    Returns:
        The squared distance, of shape ().

    Example:
        >>> one = torch.ones(2)
        >>> distances = [
        ...     multiplicative_wasserstein2_squared(one, one, torch.tensor(index), one, one)
        ...     for index in ([0, 1], [0, 0])
        ... ]
        >>> distances[0].item(), round(distances[1].item(), 4)
        (0.0, 1.1716)
    """
    squared = (directions * scale_other).square()
    blocks = squared.new_zeros(int(index.max()) + 1).index_add(0, index, squared)
    is_moved = blocks > 0  # the root has no gradient at zero
    roots = torch.where(is_moved, blocks, torch.ones_like(blocks)).sqrt()
    cross = torch.where(is_moved, roots, torch.zeros_like(roots)).sum()
    spread = (directions.square() + scale_other.square()).sum()
    return (loc - loc_other).square().sum() + spread - 2 * cross


def blockwise_wasserstein2_squared(
    loc: Float[Tensor, " P"],
    directions: Float[Tensor, " P"],
    index: Int[Tensor, " P"],
    loc_other: Float[Tensor, " P"],
    directions_other: Float[Tensor, " P"],
) -> Float[Tensor, ""]:
    r"""Squared 2-Wasserstein distance of noise on inputs from other noise on the same inputs.

    With rank-one blocks for the same sets :math:`B_j` of weights on both sides it is

    .. math:: W_2^2 = |m - m'|^2 + \sum_p (d_p^2 + d_p'^2)
        - 2 \sum_j \Big| \sum_{p \in B_j} d_p d_p' \Big|

    Args:
        loc: Mean, shape ``(P,)``.
        directions: What one standard deviation of its noise adds to each weight, ``(P,)``.
        index: Which noise variable moves each weight, in both laws, ``(P,)``.
        loc_other: Mean of the other law, ``(P,)``.
        directions_other: Its directions, ``(P,)``.

    Returns:
        The squared distance, of shape ().

    Example:
        >>> zero, one, index = torch.zeros(2), torch.ones(2), torch.tensor([0, 0])
        >>> blockwise_wasserstein2_squared(zero, one, index, one, torch.tensor([1.0, -1.0])).item()
        6.0
    """
    products = directions.new_zeros(int(index.max()) + 1)
    products = products.index_add(0, index, directions * directions_other)
    spread = (directions.square() + directions_other.square()).sum() - 2 * products.abs().sum()
    return (loc - loc_other).square().sum() + spread.clamp(min=0)
