r"""An objective that takes the expectation over a network's last layer exactly.

Where a network ends in a Gaussian linear layer, its output for given features is Gaussian, and
the expected log-likelihood over that layer needs no draw of it. The other layers are drawn as
before, so the gradient stays unbiased, and the noise of the last layer leaves it.

Reference: Harrison, Willes, Snoek (2024), *Variational Bayesian Last Layers*, arXiv:2404.11599,
which does this for a single layer under the evidence lower bound.
"""

from __future__ import annotations

from typing import Any, Literal

from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.head import ClosedFormHead
from pyro_ibvi.objectives.penalty import Divergence, DivergencePenalty
from pyro_ibvi.theory.expectations import CategoricalBound


class TraceClosedFormHead(TraceExpectedLogLikelihood):
    r"""Expected log-likelihood with the expectation over the last layer in closed form.

    .. math::

        L = -\frac{1}{n} E_{q(w_{\text{rest}})}\Big[\sum_i s_i\,
            E_{q(W, b)}[\log p(y_i \mid W h_i + b)]\Big], \qquad h_i = h(x_i, w_{\text{rest}})

    A drop-in for `TraceExpectedLogLikelihood` on a `SupervisedModel` whose network ends in an
    ``nn.Linear`` with a random weight or bias. The inner expectation is over the layer's law in
    the guide, weight and bias with the noise that they share. It is exact for the likelihoods
    `Normal`, `Poisson` (elementary) and `Bernoulli` (by quadrature). For `Categorical` it is
    replaced by a lower bound, so that the loss is an upper bound of the expected negative
    log-likelihood and trains something slightly different: this must be asked for.

    The guide is run once a step and the last layer's mean takes the place of its draw. The loss
    and its gradient are then free of that layer's noise, and the rank rule, which divides the
    learning rate of a low-rank factor by its rank, has no reason there: where the last layer is
    the only random one, ``MaximalUpdate(rank_exponent=0.0)`` lets its factor learn as fast as
    its mean.

    With ``weight`` above zero a divergence is added as in `TraceGeneralizedVI`;
    ``divergence="kl", weight=1.0`` is the ELBO with a closed-form last layer.

    Args:
        num_particles: Number of draws of the other layers per step, made one after the other.
        categorical_bound: The bound for `Categorical` likelihoods: ``"tilted"`` or the looser
            and cheaper ``"jensen"``, see
            :func:`~pyro_ibvi.theory.expectations.categorical_log_prob_bound`. With None a
            `Categorical` likelihood is refused.
        divergence: As for `TraceGeneralizedVI`.
        weight: Weight of the divergence, which may be set between steps.
        reduction: As for `TraceExpectedLogLikelihood`.
        **options: Those of `TraceExpectedLogLikelihood`; ``kl_weight`` stays 0.

    Raises:
        TypeError: If a step's model is not a `SupervisedModel`.
        ValueError: If an option has a value outside its range. At a step: if the network does
            not end in a random ``nn.Linear``, the guide does not draw it from a Gaussian, or the
            likelihood has no closed form.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import pyro_ibvi as ibvi
        >>> from pyro.infer import SVI
        >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> model = ibvi.SupervisedModel(ibvi.RandomModule(net, stochastic="last"), ibvi.Normal())
        >>> guide = ibvi.AutoMuPNormal(model)
        >>> optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.01}, guide)
        >>> svi = SVI(model, guide, optim, ibvi.TraceClosedFormHead(reduction="mean"))
        >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
        >>> svi.evaluate_loss(x, y) == svi.evaluate_loss(x, y)  # nothing is left to draw
        True
    """

    head: ClosedFormHead
    penalty: DivergencePenalty

    def __init__(
        self,
        num_particles: int = 1,
        *,
        categorical_bound: CategoricalBound | None = None,
        divergence: Divergence = "wasserstein2",
        weight: float = 0.0,
        reduction: Literal["sum", "mean"] = "sum",
        **options: Any,
    ) -> None:
        super().__init__(
            num_particles,
            reduction=reduction,
            head=ClosedFormHead(categorical_bound),
            penalty=DivergencePenalty(divergence, weight),
            **options,
        )
