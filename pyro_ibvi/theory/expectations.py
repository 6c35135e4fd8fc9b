r"""Expected log-likelihoods of a Gaussian predictor, without sampling it.

The predictor is what a Gaussian linear layer gives for one input: :math:`f \sim N(m, \Sigma)`.
Under Normal and Poisson noise :math:`E[\log p(y \mid f)]` is elementary, under Bernoulli labels
it is an integral over one number, and for class labels it has bounds. All functions are
differentiable and take any batch of predictors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from pyro_ibvi.theory.linear_losses import expected_softplus

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Num

CategoricalBound: TypeAlias = Literal["tilted", "jensen"]

_NUM_TILTS = 10
#: Count from which on Stirling's series gives the logarithm of its factorial to the last digit.
_MANY = 32.0


@dataclass(frozen=True, eq=False)
class Spread:
    r"""The covariance of predictors, :math:`\Sigma = A A^\top + \mathrm{diag}(v)`, not formed.

    Attributes:
        factor: :math:`A`, shape ``(*batch, C, R)``, where ``R`` may be 0.
        diagonal: :math:`v`, shape ``(*batch, C)``, in squared units of the predictor.
    """

    factor: Tensor
    diagonal: Tensor

    def variance(self) -> Tensor:
        """Diagonal of the covariance, shape ``(*batch, C)``."""
        return self.factor.square().sum(-1) + self.diagonal

    def times(self, vector: Tensor) -> Tensor:
        r""":math:`\Sigma a`.

        Args:
            vector: :math:`a`, shape ``(*batch, C)``.

        Returns:
            The product, of the same shape.
        """
        noise = self.factor.mT @ vector.unsqueeze(-1)
        return (self.factor @ noise).squeeze(-1) + self.diagonal * vector

    def reshape(self, *shape: int) -> Spread:
        """The same predictors in another shape.

        Args:
            *shape: New batch shape and number of predictors.

        Returns:
            The covariance.
        """
        factor = self.factor.reshape(*shape, self.factor.shape[-1])
        return Spread(factor, self.diagonal.reshape(*shape))


def linear_spread(
    features: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "C d *R"],
    bias: Float[Tensor, " C *R"] | None = None,
) -> Spread:
    r"""Covariance of the outputs :math:`W h + b` of a Gaussian linear layer.

    Args:
        features: Inputs :math:`h` of the layer, shape ``(*batch, d)``.
        weight: Factor of the weight's covariance: ``(C, d)`` for independent weights (standard
            deviations of either sign), or ``(C, d, R)``.
        bias: Factor of the bias's covariance, ``(C,)``, or ``(C, R)`` where it shares the
            weight's noise. None means no noise in the bias.

    Returns:
        The covariance of the ``C`` outputs for each input.

    Example:
        >>> spread = linear_spread(torch.tensor([[3.0, 4.0]]), torch.ones(1, 2), torch.ones(1))
        >>> spread.variance()
        tensor([[26.]])
    """
    if weight.dim() == 2:
        diagonal = features.square() @ weight.square().mT
        if bias is not None:
            diagonal = diagonal + bias.square()
        return Spread(diagonal.new_zeros(*diagonal.shape, 0), diagonal)
    # One product for each output, (C, N, R): the factor is the largest tensor and is not copied.
    factor = (features.reshape(-1, features.shape[-1]) @ weight).movedim(0, 1)
    if bias is not None:
        factor = factor + bias
    factor = factor.reshape(*features.shape[:-1], *factor.shape[1:])
    return Spread(factor, factor.new_zeros(factor.shape[:-1]))


def kronecker_spread(
    features: Float[Tensor, "*batch d"],
    outputs: Float[Tensor, " C *R_out"],
    weight: Float[Tensor, " d *R_in"],
    bias: Float[Tensor, "*R_in"] | None = None,
) -> Spread:
    r"""Covariance of the outputs of a layer whose weights are a Kronecker product.

    With :math:`W = S_{out} Z S_{in}^\top` it is :math:`|S_{in}^\top h|^2 S_{out} S_{out}^\top`.

    Args:
        features: Inputs :math:`h` of the layer, shape ``(*batch, d)``.
        outputs: :math:`S_{out}`, shape ``(C, R_out)``.
        weight: The weight's rows of :math:`S_{in}`, ``(d, R_in)``.
        bias: The bias's row, ``(R_in,)``. None means no noise in the bias.

    Returns:
        The covariance of the ``C`` outputs for each input.

    Example:
        >>> spread = kronecker_spread(torch.tensor([[3.0, 4.0]]), torch.ones(1, 1), torch.eye(2))
        >>> spread.variance()
        tensor([[25.]])
    """
    noise = features @ weight if bias is None else features @ weight + bias
    length = torch.linalg.vector_norm(noise, dim=-1)
    factor = length[..., None, None] * outputs
    return Spread(factor, factor.new_zeros(factor.shape[:-1]))


def expected_normal_log_prob(
    y: Float[Tensor, "*#batch"],
    scale: Float[Tensor, "*#batch"],
    mean: Float[Tensor, "*#batch"],
    variance: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*#batch"]:
    r"""Expected log-density of Normal noise, exactly.

    .. math:: E[\log N(y; f, \sigma^2)] = \log N(y; m, \sigma^2) - \frac{v}{2 \sigma^2}

    Args:
        y: Targets, any shape.
        scale: :math:`\sigma`, a standard deviation in the units of the target, broadcastable.
        mean: :math:`m`, of the targets' shape.
        variance: :math:`v`, of the targets' shape.

    Returns:
        The expectation for each target, in nats.

    Example:
        >>> zero, one = torch.zeros(()), torch.ones(())
        >>> expected_normal_log_prob(zero, one, zero, one) + math.log(2 * math.pi) / 2
        tensor(-0.5000)
    """
    quadratic = ((y - mean).square() + variance) / (2 * scale.square())
    return -quadratic - scale.log() - math.log(2 * math.pi) / 2


def expected_poisson_log_prob(
    y: Num[Tensor, "*#batch"], mean: Float[Tensor, "*#batch"], variance: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*#batch"]:
    r"""Expected log-probability of counts with the rate :math:`e^f`, exactly.

    .. math::

        E[\log p(y \mid f)] = y m - e^{m + v / 2} - \log y!
            = -y (e^{d + v / 2} - 1 - d) - \tfrac12 \log(2 \pi y) - g(y), \quad d = m - \log y

    with the rest :math:`g` of Stirling's series. The first form is a small difference of large
    terms, in single precision wrong by 0.3 nats at a million, where the second is by 1e-3.

    Args:
        y: Counts, any shape.
        mean: :math:`m`, of the targets' shape.
        variance: :math:`v`, of the targets' shape.

    Returns:
        The expectation for each count, in nats.

    Example:
        >>> expected_poisson_log_prob(torch.zeros(()), torch.zeros(()), torch.zeros(()))
        tensor(-1.)
    """
    few = y * mean - (mean + variance / 2).exp() - torch.lgamma(y + 1)
    many = y.clamp(min=_MANY)
    d = mean - many.log()
    rest = (1 / 12 - (1 / 360 - 1 / 1260 / many.square()) / many.square()) / many
    stirling = -many * ((d + variance / 2).expm1() - d) - (2 * math.pi * many).log() / 2 - rest
    return torch.where(y < _MANY, few, stirling)


def expected_bernoulli_log_prob(
    y: Num[Tensor, "*#batch"], mean: Float[Tensor, "*#batch"], variance: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*#batch"]:
    r"""Expected log-probability of binary labels with the logit :math:`f`, by quadrature.

    .. math:: E[\log p(y \mid f)] = y m - E[\log(1 + e^f)]

    Args:
        y: Labels 0 or 1, any shape.
        mean: :math:`m`, of the labels' shape.
        variance: :math:`v`, of the labels' shape.

    Returns:
        The expectation for each label, in nats; see
        :func:`~pyro_ibvi.theory.linear_losses.expected_softplus` for the error.

    Example:
        >>> expected_bernoulli_log_prob(torch.zeros(()), torch.zeros(()), torch.zeros(()))
        tensor(-0.6931)
    """
    return y * mean - expected_softplus(mean, variance)


def categorical_log_prob_bound(
    y: Int[Tensor, "*#batch"],
    mean: Float[Tensor, "*#batch C"],
    spread: Spread,
    *,
    bound: CategoricalBound = "tilted",
) -> Float[Tensor, "*#batch"]:
    r"""Lower bound of the expected log-probability of class labels with Gaussian logits.

    .. math::

        E[\log p(y \mid f)] \ge m_y - \min_a \Big( \tfrac12 a^\top \Sigma a
            + \log \sum_c e^{m_c + \Sigma_{cc} / 2 - (\Sigma a)_c} \Big)

    It holds for every :math:`a`: write the log-sum of exponentials as :math:`a^\top f` plus that
    of :math:`f - a^\top f`, and use Jensen's inequality on the latter. ``"jensen"`` is
    :math:`a = 0`. ``"tilted"`` minimizes over :math:`a`, a convex problem, by steps of which each
    one lowers the bound, so it is never worse; and noise that all logits share, which changes no
    probability, then costs nothing. The gradient holds :math:`a` fixed.

    Args:
        y: Labels, integers of shape ``(*batch,)``.
        mean: Means :math:`m` of the logits, ``(*batch, C)``.
        spread: Their covariance :math:`\Sigma`.
        bound: ``"tilted"`` or ``"jensen"``.

    Returns:
        The bound for each label, ``(*batch,)``, in nats.

    Raises:
        ValueError: If the bound is unknown.

    References:
        Knowles and Minka, 2011, *Non-conjugate Variational Message Passing for Multinomial and
        Binary Regression*, for independent logits.

    Example:
        >>> shared = Spread(torch.ones(1, 3, 1), torch.zeros(1, 3))
        >>> for bound in ("tilted", "jensen"):
        ...     print(categorical_log_prob_bound(
        ...         torch.tensor([0]), torch.zeros(1, 3), shared, bound=bound).exp())
        tensor([0.3333])
        tensor([0.2022])
    """
    if bound not in ("tilted", "jensen"):
        raise ValueError(f'bound must be "tilted" or "jensen", got {bound!r}.')
    center = mean + spread.variance() / 2
    chosen = mean.gather(-1, y.long().unsqueeze(-1)).squeeze(-1)
    if bound == "jensen":
        return chosen - center.logsumexp(-1)
    with torch.no_grad():
        tilt = _tilt(center, spread)
    shift = spread.times(tilt)
    return chosen - (tilt * shift).sum(-1) / 2 - (center - shift).logsumexp(-1)


def _tilt(center: Tensor, spread: Spread) -> Tensor:
    # Along d = p - a, with p the softmax of the shifted center, the bound has the slope -d'Sd,
    # and a curvature of at most d'Sd + range(S d)^2 / 4. The step to the minimum of that parabola
    # never raises it.
    tilt, shift = torch.zeros_like(center), torch.zeros_like(center)
    for _ in range(_NUM_TILTS):
        direction = (center - shift).softmax(-1) - tilt
        change = spread.times(direction)
        slope = (direction * change).sum(-1, keepdim=True)
        low, high = change.aminmax(dim=-1, keepdim=True)
        curvature = slope + (high - low).square() / 4
        step = torch.where(curvature > 0, slope / curvature, torch.ones_like(slope))
        tilt, shift = tilt + step * direction, shift + step * change
    return tilt
