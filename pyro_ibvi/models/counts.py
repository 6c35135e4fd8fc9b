r"""Counts, and their density where they are large."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ibvi._util.errors import DataError
from pyro_ibvi.models.likelihoods import Likelihood, as_event

#: Count from which on Stirling's series gives the logarithm of its factorial to the last digit.
_MANY = 32.0


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
            raise DataError("Poisson counts must be whole numbers; the target has others.")
        if (target < 0).any():
            low, high = (bound.item() for bound in target.aminmax())
            raise DataError(f"Expected counts, from 0; got values from {low} to {high}.")


class Counts(dist.Poisson):
    r"""Poisson's law by the logarithm of its rate, exact also for large counts and small rates.

    With :math:`d = \log \lambda - \log y` and the rest :math:`g` of Stirling's series,

    .. math::

        \log p(y) = y \log \lambda - \lambda - \log y!
            = -y (e^d - 1 - d) - \tfrac12 \log(2 \pi y) - g(y).

    In single precision the first form, a small difference of large terms, is wrong by 0.3 nats at
    a million, the second by 1e-3.

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
        few = value * self.log_rate - self.rate - torch.lgamma(value + 1)
        y = value.clamp(min=_MANY)
        d = self.log_rate - y.log()
        rest = (1 / 12 - (1 / 360 - 1 / 1260 / y.square()) / y.square()) / y
        many = -y * (d.expm1() - d) - (2 * math.pi * y).log() / 2 - rest
        return torch.where(value < _MANY, few, many)
