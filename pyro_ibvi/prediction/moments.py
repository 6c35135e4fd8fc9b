"""Moments of a predictive distribution, by the law of total variance."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from pyro_ibvi.models.likelihoods import Likelihood

#: Numbers of outputs whose moments are taken at once.
MAX_NUMBERS = 2**20


def mixture_moments(outputs: Tensor, likelihood: Likelihood) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of the mixture as :func:`whole_moments` gives them, some data at once.

    Args:
        outputs: The network's outputs, draws in front.
        likelihood: The likelihood.

    Returns:
        The moments.
    """
    num_rows = rows_at_once(outputs) if outputs.dim() > 1 else 0
    if not num_rows or num_rows >= outputs.shape[1]:
        return whole_moments(outputs, likelihood)
    # Conditional moments of all data at once would take several times the outputs' memory.
    parts = (whole_moments(part, likelihood) for part in outputs.split(num_rows, dim=1))
    if torch.is_grad_enabled():
        mean, epistemic, aleatoric = (torch.cat(moments) for moments in zip(*parts, strict=True))
        return mean, epistemic, aleatoric
    # Small results would be cut out of the memory of large ones just freed, which then no longer
    # suffices for the next: their places are there from the start.
    first = next(parts)
    size = outputs.shape[1]
    mean, epistemic, aleatoric = (moment.new_empty(size, *moment.shape[1:]) for moment in first)
    start = 0
    for moments in chain([first], parts):
        stop = start + len(moments[0])
        for whole, moment in zip((mean, epistemic, aleatoric), moments, strict=True):
            whole[start:stop] = moment
        start = stop
    return mean, epistemic, aleatoric


def rows_at_once(outputs: Tensor) -> int:
    """Number of data to be taken at once of outputs that may be large.

    Args:
        outputs: The network's outputs, draws in front.

    Returns:
        The number, at least 1.
    """
    return max(1, MAX_NUMBERS * outputs.shape[1] // max(1, outputs.numel()))


def whole_moments(outputs: Tensor, likelihood: Likelihood) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of the mixture, by the law of total variance.

    Nothing in it depends on the number of data, as exporters need it.

    Args:
        outputs: The network's outputs, draws in front.
        likelihood: The likelihood.

    Returns:
        The mean, the variance of the components' means, and the mean of their variances.
    """
    means, variances = likelihood.moments(outputs, 2)
    return means.mean(0), means.var(0, correction=0), variances.mean(0)
