"""What the terms of a pair of weighted traces add up to."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.util import MultiFrameTensor
from pyro.poutine import Trace
from torch import Tensor

from pyro_ibvi.objectives.sites import sample_sites
from pyro_ibvi.pairing.counting import tell_count


def sum_of_terms(model_trace: Trace, guide_trace: Trace) -> Tensor:
    """The model's terms less the guide's, on their device.

    Args:
        model_trace: The model's trace.
        guide_trace: The guide's trace.

    Returns:
        The sum, of shape ().
    """
    elbo: Any = 0.0
    for _, site in sample_sites(model_trace):
        elbo = elbo + site["log_prob_sum"]
    for _, site in sample_sites(guide_trace):
        elbo = elbo - site["log_prob_sum"]
    # A default device would have a say in as_tensor.
    return elbo if isinstance(elbo, Tensor) else torch.as_tensor(elbo)


def log_ratio(model_trace: Trace, guide_trace: Trace) -> MultiFrameTensor:
    """The terms that a score function multiplies, by the plates that they live in.

    Args:
        model_trace: The model's trace.
        guide_trace: The guide's trace.

    Returns:
        The terms, detached.
    """
    log_r = MultiFrameTensor()
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        for _, site in sample_sites(trace):
            log_r.add((site["cond_indep_stack"], sign * site["log_prob"].detach()))
    return log_r


def site_sums(*traces: Trace) -> list[tuple[str, Tensor]]:
    """The term of each site.

    Args:
        *traces: The traces.

    Returns:
        Names and terms, detached.
    """
    return [
        (name, site["log_prob_sum"].detach())
        for trace in traces
        for name, site in sample_sites(trace)
    ]


def mean_terms(
    log_probs: Tensor, scale: float, num_observed: Tensor | None
) -> tuple[Tensor, float]:
    """Terms of data that add up to the mean over observations, whose number is told.

    Args:
        log_probs: Log-likelihoods of the data, shape ``(batch,)``.
        scale: The scale from the batch to all data.
        num_observed: Number of observations of each datum, None where it is 1.

    Returns:
        The terms, and what they are still to be multiplied by.
    """
    if num_observed is None:
        num_data = len(log_probs)
        tell_count(lambda: num_data)
        return log_probs, scale * (1.0 / (num_data * scale))
    count = num_observed.sum()  # 0 for a batch of which nothing was observed
    tell_count(lambda: count)
    return log_probs / torch.where(count > 0, count, 1.0), 1.0
