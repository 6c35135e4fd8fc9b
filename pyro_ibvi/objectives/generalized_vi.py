r"""Generalized variational inference: the expected log-likelihood plus an explicit penalty.

.. math::  L = -E_q[\log p(y \mid w)] + \lambda \, D(q, p)

For overparametrized linear models, minimizing the expected loss alone by gradient descent from the
prior ends at the minimizer that is nearest to the prior in 2-Wasserstein distance; with D the
squared distance and a small :math:`\lambda` that minimizer is asked for in so many words. This is
the ablation that tells implicit from explicit regularization.

References: Knoblauch, Jewson, Damoulas (2022), *An Optimization-centric View on Bayes' Rule:
Reviewing and Generalizing Variational Inference*, JMLR 23. Wenger, Coker, Marusic, Cunningham
(2025), arXiv:2505.20235.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.penalty import Divergence, DivergencePenalty


class TraceGeneralizedVI(TraceExpectedLogLikelihood):
    r"""Expected log-likelihood plus a closed-form divergence of the guide from the prior.

    .. math::

        L = \frac{1}{n} \Big( -E_q[\log p(y \mid w)] + \lambda \sum_s D(q_s, p_s) \Big)

    with D the squared 2-Wasserstein distance (in squared units of the weights) or the KL
    divergence (in nats), n as for `TraceExpectedLogLikelihood`, and the sum over the latent
    sites, or over the layers where the sites of a layer are correlated. With ``"kl"`` and weight 1
    it is the ELBO with analytic divergences.

    The guide's site must be Gaussian: ``Normal``, ``MultivariateNormal``, Pyro's `AutoNormal` on
    latents that take all real values, `AutoMuPNormal`, or (for ``"wasserstein2"``) a point
    estimate. The prior must be ``Normal`` or ``MultivariateNormal``; it may depend on other
    latents, of which the current draw is used. A low-rank covariance is degenerate, so it
    has a finite 2-Wasserstein distance but no KL divergence.

    Args:
        num_particles: Number of draws of the guide per step.
        max_plate_nesting: Bound on the number of nested plates, as for `Trace_ELBO`.
        divergence: ``"wasserstein2"`` for the squared 2-Wasserstein distance, or ``"kl"``.
        weight: Weight of the divergence, finite and at least 0. It may be set between steps.
        reduction: As for `TraceExpectedLogLikelihood`.
        **options: Those of `TraceExpectedLogLikelihood`; ``allow_local`` is True unless given.

    Raises:
        ValueError: If an option has a value outside its range.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(w, 1.0), obs=y)
        >>> loss = TraceGeneralizedVI(divergence="wasserstein2", weight=0.1)
        >>> svi = pyro.infer.SVI(model, AutoNormal(model), pyro.optim.SGD({"lr": 0.1}), loss)
        >>> value = svi.step(torch.tensor(1.0))
    """

    penalty: DivergencePenalty

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        *,
        divergence: Divergence = "wasserstein2",
        weight: float = 1.0,
        reduction: Literal["sum", "mean"] = "sum",
        **options: Any,
    ) -> None:
        options = {"allow_local": True} | options  # the divergence takes the place of the KL
        penalty = DivergencePenalty(divergence, weight)
        super().__init__(
            num_particles, max_plate_nesting, reduction=reduction, penalty=penalty, **options
        )

    @property
    def divergence(self) -> Divergence:
        """The divergence."""
        return self.penalty.divergence
