"""Posteriors, predictions and densities in the form that ArviZ reads, and model criticism."""

from pyro_ibvi.arviz.criticism import (
    LogPredictiveDensity,
    compare_predictive,
    log_predictive_density,
    loo_approximate_posterior,
    pareto_k,
)
from pyro_ibvi.arviz.export import (
    to_arviz,
    write_arviz,
)
from pyro_ibvi.arviz.gaps import drop_masked

__all__ = [
    "LogPredictiveDensity",
    "compare_predictive",
    "drop_masked",
    "log_predictive_density",
    "loo_approximate_posterior",
    "pareto_k",
    "to_arviz",
    "write_arviz",
]
