r"""The predictive distribution: a mixture over draws of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_ibvi.models.likelihoods import Likelihood


class Prediction:
    r"""The predictive distribution, :math:`p(y \mid x) = \frac1S \sum_s p(y \mid f_{w_s}(x))`.

    For a :class:`~pyro_ibvi.Categorical` likelihood moments are those of the one-hot label, so
    that the mean is the vector of class probabilities.

    Attributes:
        outputs: The network's outputs, shape ``(num_samples, batch, *event)``.
        likelihood: The distribution of a target given an output.
    """

    def __init__(self, outputs: Tensor, likelihood: Likelihood) -> None:
        self.outputs = outputs
        self.likelihood = likelihood
        with torch.no_grad():
            means, variances = likelihood.moments(outputs, 2)
            self._mean = means.mean(0)
            self._aleatoric = variances.mean(0)
            self._epistemic = means.var(0, correction=0)

    @property
    def num_samples(self) -> int:
        """Number of draws of the weights."""
        return self.outputs.shape[0]

    @property
    def mean(self) -> Tensor:
        """Mean of the target, in its units; class probabilities for labels."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Variance of the target, noise included: ``epistemic + aleatoric``."""
        return self._epistemic + self._aleatoric

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of the target, noise included."""
        return self.variance.sqrt()

    @property
    def epistemic(self) -> Tensor:
        """Variance over draws of the conditional mean: what more data could reduce."""
        return self._epistemic

    @property
    def aleatoric(self) -> Tensor:
        """Mean over draws of the conditional variance: the noise of the target."""
        return self._aleatoric

    @torch.no_grad()
    def log_prob(self, y: Tensor) -> Tensor:
        r"""Log predictive density of targets, :math:`\log \frac1S \sum_s p(y \mid f_s)`.

        Args:
            y: Targets, shape as the likelihood expects.

        Returns:
            One number per datum, in nats, shape ``(batch,)``.

        Raises:
            TypeError: If the target has the wrong type.
            ValueError: If it has the wrong shape or impossible values.
        """
        y = y.to(self.outputs.device)
        self.likelihood.check_target(y, self.outputs[0])
        y = self.likelihood.convert_target(y, self.outputs)
        log_probs: Tensor = self.likelihood.density(self.outputs, 2).log_prob(y)
        return log_probs.logsumexp(0) - math.log(self.num_samples)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Draws targets, one for each draw of the weights.

        Returns:
            Targets, shape ``(num_samples, batch, *event)``.
        """
        targets: Tensor = self.likelihood.density(self.outputs, 2).sample()
        return targets

    def __repr__(self) -> str:
        shape = tuple(self.mean.shape)
        return f"Prediction(num_samples={self.num_samples}, mean of shape {shape})"
