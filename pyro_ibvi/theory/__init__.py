r"""Mathematics of linear models and Gaussians, without Pyro.

- what training does to a Gaussian over a linear model's weights: :mod:`pyro_ibvi.theory.limits`;
- the same for noise relative to the mean: :mod:`pyro_ibvi.theory.multiplicative`;
- what is minimized: :mod:`pyro_ibvi.theory.linear_losses`, :mod:`pyro_ibvi.theory.expectations`;
- how fast it may be: :mod:`pyro_ibvi.theory.stability`;
- how near the limit is to the prior: :mod:`pyro_ibvi.theory.divergences` and, for Kronecker
  products, :mod:`pyro_ibvi.theory.kronecker_divergences`.
"""

from pyro_ibvi.theory.divergences import (
    covariance_factor,
    gaussian_kl,
    triangular_root,
    wasserstein2_squared,
    wasserstein2_squared_commuting,
)
from pyro_ibvi.theory.expectations import (
    Spread,
    categorical_log_prob_bound,
    expected_bernoulli_log_prob,
    expected_normal_log_prob,
    expected_poisson_log_prob,
    kronecker_spread,
    linear_spread,
)
from pyro_ibvi.theory.kronecker_divergences import (
    kronecker_gaussian_kl,
    kronecker_wasserstein2_squared,
)
from pyro_ibvi.theory.limits import (
    ClassificationLimit,
    NullSpaceProjection,
    RegressionLimit,
    classification_limit,
    max_margin_direction,
    mean_field_limit,
    null_space_projection,
    regression_limit,
)
from pyro_ibvi.theory.linear_losses import (
    expected_exponential_loss,
    expected_logistic_loss,
    expected_softplus,
    expected_squared_loss,
    predictor_moments,
)
from pyro_ibvi.theory.multiplicative import (
    blockwise_wasserstein2_squared,
    multiplicative_limit,
    multiplicative_wasserstein2_squared,
)
from pyro_ibvi.theory.stability import (
    max_stable_multiplicative_rate,
    max_stable_rate,
    rank_rate_factor,
    spread_floor,
)

__all__ = [
    "ClassificationLimit",
    "NullSpaceProjection",
    "RegressionLimit",
    "Spread",
    "blockwise_wasserstein2_squared",
    "categorical_log_prob_bound",
    "classification_limit",
    "covariance_factor",
    "expected_bernoulli_log_prob",
    "expected_exponential_loss",
    "expected_logistic_loss",
    "expected_normal_log_prob",
    "expected_poisson_log_prob",
    "expected_softplus",
    "expected_squared_loss",
    "gaussian_kl",
    "kronecker_gaussian_kl",
    "kronecker_spread",
    "kronecker_wasserstein2_squared",
    "linear_spread",
    "max_margin_direction",
    "max_stable_multiplicative_rate",
    "max_stable_rate",
    "mean_field_limit",
    "multiplicative_limit",
    "multiplicative_wasserstein2_squared",
    "null_space_projection",
    "predictor_moments",
    "rank_rate_factor",
    "regression_limit",
    "spread_floor",
    "triangular_root",
    "wasserstein2_squared",
    "wasserstein2_squared_commuting",
]
