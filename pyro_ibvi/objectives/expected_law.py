"""The law of targets whose log-density is an expectation over a Gaussian last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi._util.distributions import per_element
from pyro_ibvi.models.counts import Poisson
from pyro_ibvi.models.labels import Categorical
from pyro_ibvi.models.likelihoods import Normal
from pyro_ibvi.models.soft import Shares
from pyro_ibvi.models.wrapped import LawAround
from pyro_ibvi.theory.expectations import (
    CategoricalBound,
    Spread,
    categorical_log_prob_bound,
    expected_bernoulli_log_prob,
    expected_normal_log_prob,
    expected_poisson_log_prob,
)


class ExpectedLaw(LawAround):
    """A distribution of targets whose log-density is an expectation over the last layer.

    Its draws are those at the layer's mean.

    Args:
        law: The distribution at the last layer's mean.
        log_prob: The expected log-densities of targets.
    """

    def __init__(self, law: Any, log_prob: Callable[[Tensor], Tensor]) -> None:
        super().__init__(law)
        self._expected = log_prob

    def log_prob(self, value: Tensor) -> Tensor:
        """The expected log-density, of the batch shape."""
        expected = self._expected(value)
        num_event_dims = expected.dim() - len(self.batch_shape)
        return expected.sum(tuple(range(-num_event_dims, 0))) if num_event_dims else expected


def expected_law(
    law: Any, likelihood: Any, output: Tensor, spread: Spread, bound: CategoricalBound | None
) -> ExpectedLaw:
    """The law of the targets with the expectation over the last layer in its log-density."""

    def log_prob(y: Tensor) -> Tensor:
        if isinstance(likelihood, Categorical):
            assert bound is not None
            if not isinstance(law, Shares):
                return categorical_log_prob_bound(y, output, spread, bound=bound)
            first = torch.zeros_like(y[..., 0], dtype=torch.long)  # linear in the shares
            of_first = categorical_log_prob_bound(first, output, spread, bound=bound)
            return of_first + (y * output).sum(-1) - output[..., 0]
        variance = spread.variance()
        if isinstance(likelihood, Normal):
            return expected_normal_log_prob(y, per_element(law).scale, output, variance)
        if isinstance(likelihood, Poisson):
            return expected_poisson_log_prob(y, output, variance)
        return expected_bernoulli_log_prob(y, output, variance)

    return ExpectedLaw(law, log_prob)
