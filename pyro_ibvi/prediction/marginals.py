r"""Mixtures of distributions of single numbers: cdf, quantiles, entropies, ranked scores.

Draws are in front, then comes the shape of the targets. Components of the Normal family are told
by their means and standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Binomial,
    Distribution,
    MixtureSameFamily,
    NegativeBinomial,
    Normal,
    StudentT,
    TransformedDistribution,
)

from pyro_ibvi._util.precision import in_double

#: Nodes of the quadrature of a component's cross-entropy.
_NUM_NODES = 16
#: Numbers of equal steps of which the least that suffices is taken.
_NUM_STEPS = (64, 128, 256, 512, 1024, 2048, 4096)
#: Standard deviations beyond which a component has no weight.
_TAIL = 7.0
#: Numbers that the quadrature and the scores hold at once.
_MAX_NUMBERS = 2 * 10**7


def poisson_cdf(rates: Tensor, y: Tensor) -> Tensor:
    r"""Distribution function of a mixture of Poisson distributions.

    Args:
        rates: Rates of the components, shape ``(S, *target)``.
        y: Where to evaluate, shape ``(*target,)`` or broadcastable.

    Returns:
        Probabilities, shape ``(*target,)``.

    Example:
        >>> poisson_cdf(torch.ones(1, 1), torch.zeros(1))  # exp(-1)
        tensor([0.3679])
    """
    below = torch.special.gammaincc(y.floor().clamp(min=0) + 1, rates).mean(0)
    return torch.where(y < 0, 0.0, below)


def cdf_of(law: Any, y: Tensor) -> Tensor:
    """Distribution function of any law, 0 below its support and 1 above.

    There torch raises an error, or gives NaN or numbers beyond these; of mixtures and transformed
    laws what is inside does.

    Args:
        law: A distribution of single numbers, which stops to check its values.
        y: Where to evaluate.

    Returns:
        Probabilities.

    Example:
        >>> cdf_of(torch.distributions.Gamma(1.0, 1.0), torch.tensor([-1.0, 1e3]))
        tensor([0., 1.])
    """
    if isinstance(law, MixtureSameFamily):
        below = cdf_of(law.component_distribution, y.unsqueeze(-1))
        return (below * law.mixture_distribution.probs).sum(-1)
    if type(law).cdf is TransformedDistribution.cdf:
        sign = 1
        for transform in reversed(law.transforms):
            y = transform.inv(y.clamp(*_bounds(transform.codomain, y)))
            sign = sign * transform.sign
        below = cdf_of(law.base_dist, y)
        return torch.where(torch.as_tensor(sign > 0), below, 1 - below)
    law._validate_args = False
    low, high = _bounds(law.support, y)
    inside = y.clamp(low, high)
    if type(law).cdf is Normal.cdf:  # it is 0 where the probability is small
        below = torch.special.ndtr((inside - law.loc) / law.scale)
    elif type(law).cdf is Distribution.cdf:  # which is none
        below = _cdf_by_scipy(law, inside)
    else:
        below = law.cdf(inside)
    below = torch.where(y < low, 0.0, torch.where(y >= high, 1.0, below))
    return torch.where(y.isnan(), y, below)


def _cdf_by_scipy(law: Any, y: Tensor) -> Tensor:
    """Distribution functions that torch does not have."""
    arguments: tuple[Tensor, ...]
    if isinstance(law, StudentT):
        name, arguments = "stdtr", (law.df, (y - law.loc) / law.scale)
    elif isinstance(law, Beta):
        name, arguments = "betainc", (law.concentration1, law.concentration0, y)
    elif isinstance(law, NegativeBinomial):
        name, arguments = "betainc", (law.total_count, y.floor() + 1, 1 - law.probs)
    elif isinstance(law, Binomial):
        count = y.floor()
        name, arguments = "betainc", (law.total_count - count, count + 1, 1 - law.probs)
    else:
        raise NotImplementedError
    from scipy import special  # comes with ArviZ

    found = getattr(special, name)(*(a.detach().double().cpu().numpy() for a in arguments))
    return torch.as_tensor(found).to(y)


def _bounds(support: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    return torch.as_tensor(low).to(y), torch.as_tensor(high).to(y)


def quantile_of(
    cdf: Callable[[Tensor], Tensor], q: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    r"""Quantiles by bisection among the numbers that a type has.

    Laws need no moments for it, and no width is too large: halving the numbers that are left finds
    any of them in as many steps as they have bits.

    Args:
        cdf: The distribution function, of a number or of numbers in the shape of a target.
        q: Probabilities strictly between 0 and 1, shape ``(*q,)``.
        dtype: Type of the quantiles, a floating one of 4 or 8 bytes.

    Returns:
        The smallest numbers with at least these probabilities below, shape ``(*q, *target)``; NaN
        where the distribution function is.

    Example:
        >>> quantile_of(torch.distributions.Cauchy(0.0, 1.0).cdf, torch.tensor([0.75]))
        tensor([1.0000], dtype=torch.float64)
    """
    start = cdf(torch.zeros((), dtype=dtype, device=q.device))
    last = _rank(torch.full_like(start, math.inf, dtype=dtype))
    quantiles = []
    for value in q.flatten().tolist():
        low, high = -last, last
        for _ in range(8 * dtype.itemsize):
            middle = (low & high) + ((low ^ high) >> 1)  # their mean, where the sum has no place
            is_enough = cdf(in_double(_of_rank(middle, dtype))) >= value
            low, high = torch.where(is_enough, low, middle), torch.where(is_enough, middle, high)
        quantiles.append(torch.where(start.isnan(), math.nan, _of_rank(high, dtype)))
    return torch.stack(quantiles).reshape(*q.shape, *start.shape)


def _rank(numbers: Tensor) -> Tensor:
    """Places of numbers in the order of all that their type has, 0 at 0."""
    whole = torch.int64 if numbers.dtype.itemsize == 8 else torch.int32
    return numbers.abs().view(whole).long() * numbers.sign().long()


def _of_rank(ranks: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers at these places."""
    whole = torch.int64 if dtype.itemsize == 8 else torch.int32
    return ranks.abs().to(whole).view(dtype) * ranks.sign()


def normal_entropy(means: Tensor, scales: Tensor) -> Tensor:
    r"""Entropy of a mixture of Normal distributions, by quadrature.

    .. math:: H = -\int p \log p\, dy, \qquad p = \frac1S \sum_s N(m_s, \sigma_s^2)

    A sum over equal steps of 0.4 of the smallest standard deviation at most, which is exact; where
    these would be thousands, Gauss-Hermite quadrature for each component, within about a
    hundredth of a nat where standard deviations differ by a factor of ten.

    Args:
        means: Means of the components, shape ``(S, *target)``.
        scales: Their standard deviations.

    Returns:
        Entropies in nats, shape ``(*target,)``.

    Example:
        >>> normal_entropy(torch.zeros(1, 1), torch.ones(1, 1))  # log(2 pi e) / 2
        tensor([1.4189])
    """
    means, scales = torch.broadcast_tensors(means, scales)
    low, high = (means - _TAIL * scales).amin(0), (means + _TAIL * scales).amax(0)
    num_steps = 2.5 * (high - low) / scales.amin(0)
    entropy = torch.empty_like(low)
    is_open = torch.ones_like(low, dtype=torch.bool)
    for most in [*_NUM_STEPS, None]:
        chosen = is_open if most is None else is_open & ~(num_steps > most)
        rule = _entropy_by_components if most is None else partial(_entropy_by_steps, most)
        if chosen.any():
            size = len(means) * (most or _NUM_NODES * len(means))
            entropy[chosen] = _by_columns(rule, size, means[:, chosen], scales[:, chosen])
        is_open = is_open & ~chosen
    return entropy


def _entropy_by_steps(num_steps: int, means: Tensor, scales: Tensor) -> Tensor:
    """Entropies of mixtures whose components are wide, ``(S, n)``."""
    low, high = (means - _TAIL * scales).amin(0), (means + _TAIL * scales).amax(0)
    step = (high - low) / num_steps
    y = low + step * torch.arange(num_steps + 1).to(step).unsqueeze(-1)  # (K, n)
    log_p = _mixture_log_prob(y, means.unsqueeze(1), scales.unsqueeze(1))
    return -((log_p + step.log()).exp() * log_p).sum(0)  # densities may be no numbers


def _entropy_by_components(means: Tensor, scales: Tensor) -> Tensor:
    """Entropies of any mixtures, ``(S, n)``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NUM_NODES)
    points = torch.as_tensor(nodes).to(means)[:, None, None]
    shares = torch.as_tensor(weights / weights.sum()).to(means)[:, None, None]
    y = means + scales * points  # (K, S, n)
    log_p = _mixture_log_prob(y, means[:, None, None], scales[:, None, None])
    return -(shares * log_p).sum(0).mean(0)


def _mixture_log_prob(y: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Log-densities of mixtures of Normal distributions, whose components are in front."""
    log_p = -0.5 * ((y - means) / scales).square() - scales.log() - math.log(2 * math.pi) / 2
    return log_p.logsumexp(0) - math.log(len(means))


def poisson_entropy(rates: Tensor) -> tuple[Tensor, Tensor]:
    r"""Entropy of a mixture of Poisson distributions, and the mean of its components' entropies.

    Sums over counts, of which large rates let some stand for those between.

    Args:
        rates: Rates of the components, shape ``(S, *target)``.

    Returns:
        Both in nats, shape ``(*target,)``.

    Example:
        >>> mixture, components = poisson_entropy(torch.full((3, 1), 2.0))
        >>> (mixture - components).abs() < 1e-5
        tensor([True])
    """
    dtype, rates = rates.dtype, in_double(rates)  # of large rates the terms nearly cancel
    low, high = rates.amin(0), rates.amax(0)
    step = (low.sqrt() / 4).floor().clamp(min=1)  # four in the narrowest standard deviation
    start = (low - 12 * low.sqrt() - 30).floor().clamp(min=0)
    num_steps = (high + 12 * high.sqrt() + 30 - start) / step
    total = torch.zeros_like(low)
    parts = torch.zeros_like(low)
    for i in range(int(num_steps.max())):
        k = start + i * step
        log_p = torch.xlogy(k, rates) - rates - torch.lgamma(k + 1)
        mixture = log_p.exp().mean(0)
        total = total - step * torch.xlogy(mixture, mixture)
        parts = parts + step * torch.special.entr(log_p.exp()).mean(0)
    return total.to(dtype), parts.to(dtype)


def normal_crps(means: Tensor, scales: Tensor, y: Tensor) -> Tensor:
    r"""Continuous ranked probability score of a mixture of Normal distributions, exactly.

    .. math::

        \frac1S \sum_s A(y - m_s, \sigma_s^2)
            - \frac{1}{2 S^2} \sum_{s,t} A(m_s - m_t, \sigma_s^2 + \sigma_t^2), \quad
        A(d, v) = 2 \sqrt v\, \varphi(d / \sqrt v) + d\, (2 \Phi(d / \sqrt v) - 1)

    Args:
        means: Means of the components, shape ``(S, *target)``.
        scales: Their standard deviations.
        y: Targets, shape ``(*target,)``.

    Returns:
        Scores in the targets' units, lower is better, shape ``(*target,)``.

    References:
        Grimit, Gneiting, Berrocal and Johnson, 2006, *The Continuous Ranked Probability Score for
        Circular Variables and its Application to Mesoscale Forecast Ensemble Verification*.

    Example:
        >>> normal_crps(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(1))
        tensor([0.2337])
    """

    def spread(means: Tensor, scales: Tensor) -> Tensor:
        total = torch.zeros_like(means[0])
        for mean, scale in zip(means, scales, strict=True):
            total = total + _mean_distance(means - mean, torch.hypot(scales, scale)).mean(0)
        return total / (2 * len(means))

    near = _mean_distance(y - means, scales).mean(0)
    return near - _by_columns(spread, len(means), means, scales)


def _mean_distance(difference: Tensor, scale: Tensor) -> Tensor:
    """Mean absolute value of a Normal number."""
    z = difference / scale
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    below: Tensor = torch.special.ndtr(z)
    return 2 * scale * density + difference * (2 * below - 1)


def _by_columns(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """Applies a function to some targets after the other, so that memory is bounded."""
    flat = [tensor.flatten(1) for tensor in tensors]
    step = max(1, _MAX_NUMBERS // size)
    parts = [function(*part) for part in zip(*(t.split(step, dim=1) for t in flat), strict=True)]
    return torch.cat(parts).reshape(tensors[0].shape[1:])
