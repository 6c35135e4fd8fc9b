r"""Counts, and the law of them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ibvi._util.errors import DataError
from pyro_ibvi.models.likelihoods import Likelihood, as_event
from pyro_ibvi.theory.expectations import expected_poisson_log_prob


class Poisson(Likelihood):
    r"""Counts; the output holds the logarithms of the rates.

    .. math:: p(y \mid f) = \operatorname{Poisson}(y; e^f)

    Example:
        >>> Poisson()(torch.zeros(4, 1)).mean[0].item()
        1.0
    """

    discrete = True

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of counts, of the output's shape."""
        return as_event(Counts(output), num_batch_dims)

    def convert_target(self, target: Tensor, output: Tensor) -> Tensor:
        """The target as floating point numbers."""
        return target.to(output.dtype)

    def check_target(self, target: Tensor, output: Tensor) -> None:
        """Checks shape and values of the counts."""
        super().check_target(target, output)
        if target.device.type != "cpu":  # an accelerator would have to be waited for
            return
        whole = target.isnan() | (target == target.round())
        if target.is_floating_point() and not whole.all():
            other = target[~whole][0].item()
            raise DataError(
                f"Poisson counts must be whole numbers; the target has others, such as {other:g}. "
                f"For numbers that are measured write Normal(...)."
            )
        if (target < 0).any():
            low, high = (bound.item() for bound in target.aminmax())
            raise DataError(f"Expected counts, from 0; got values from {low} to {high}.")


class Counts(dist.Poisson):
    """Poisson's law by the logarithm of its rate, exact also for large counts and small rates.

    Args:
        log_rate: Logarithm of the rate.
    """

    def __init__(self, log_rate: Tensor) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Counts:
        """The same counts in a larger batch."""
        return Counts(self.log_rate.expand(torch.Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of each count."""
        return expected_poisson_log_prob(value, self.log_rate, torch.zeros_like(self.log_rate))
