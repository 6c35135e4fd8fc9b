r"""A likelihood of data that count by weights, which the targets carry."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_ibvi._util.precision import side_by_side
from pyro_ibvi.models.likelihoods import Likelihood


class Weighted(Likelihood):
    r"""A likelihood whose targets carry the weight of each datum in a last column, for training.

    .. math:: \log p(y_n \mid f_n)^{v_n} = v_n \log p(y_n \mid f_n)

    Nothing divides by the weights: where their mean over the data set is 1, the mean of the loss
    over data is the weighted mean.

    Args:
        likelihood: The likelihood of the targets without weights.

    Example:
        >>> from pyro_ibvi import Categorical
        >>> likelihood = Weighted(Categorical())
        >>> y = likelihood.join(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
        >>> likelihood(torch.zeros(2, 2)).log_prob(y)
        tensor([-0.6931, -2.0794])
    """

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def join(self, target: Tensor, weight: Tensor) -> Tensor:
        """Targets with their weights behind.

        Args:
            target: Targets, shape ``(batch,)`` or ``(batch, targets)``.
            weight: Weights, shape ``(batch,)``.

        Returns:
            Shape ``(batch, targets + 1)``, of the weights' type, in float32 at least.
        """
        columns = [target.reshape(len(target), -1).to(weight.device), weight.unsqueeze(-1)]
        return side_by_side(columns, weight.dtype)

    def split(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`join` put together.

        Args:
            target: Targets with weights.

        Returns:
            Targets as the likelihood without weights takes them, and weights.
        """
        plain = target[..., 0].long() if self.likelihood.discrete else target[..., :-1]
        return plain, target[..., -1]

    def forward(self, output: Tensor, num_batch_dims: int = 1) -> TorchDistributionMixin:
        """The distribution of targets, as training weighs it."""
        return _WeightedLaw(self.likelihood(output, num_batch_dims), self)

    def target_shape(self, output_shape: torch.Size) -> torch.Size:
        """That of the targets, with one more column."""
        plain = self.likelihood.target_shape(output_shape)
        return torch.Size((plain[0], (plain[1] if len(plain) > 1 else 1) + 1))

    def moments(self, output: Tensor, num_batch_dims: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and variance of the targets, whatever their weights."""
        return self.likelihood.moments(output, num_batch_dims)

    def check_target(self, target: Tensor, output: Tensor) -> None:
        """Checks shape and type, and the targets by themselves."""
        super().check_target(target, output)
        self.likelihood.check_target(self.split(target)[0], output)


class _WeightedLaw(TorchDistribution):
    """Targets whose log-density counts by their weights."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, law: Any, likelihood: Weighted) -> None:
        self.law = law
        self.likelihood = likelihood
        num_targets = law.event_shape[-1] if law.event_shape else 1
        super().__init__(law.batch_shape, torch.Size((num_targets + 1,)), validate_args=False)

    @property
    def support(self) -> Any:
        """Numbers."""
        return constraints.independent(constraints.real, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _WeightedLaw:
        """The same targets in a larger batch."""
        return _WeightedLaw(self.law.expand(torch.Size(batch_shape)), self.likelihood)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of the targets times their weights, of the batch shape."""
        target, weight = self.likelihood.split(value)
        log_prob: Tensor = self.law.log_prob(target)
        return weight * log_prob
