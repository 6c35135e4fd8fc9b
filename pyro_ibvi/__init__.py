"""Implicit-bias variational inference for Bayesian neural networks in Pyro.

Train a distribution over network weights by the expected log-likelihood alone, started at the
prior, and let the optimizer's implicit bias do the regularizing.

The names here are what most programs need. What is only returned, or serves those who extend the
package, is reached through its folder: ``pyro_ibvi.guides.Covariance``,
``pyro_ibvi.training.History``, ``pyro_ibvi.arviz.loo_approximate_posterior``.
"""

from pyro_ibvi._version import __version__
from pyro_ibvi.arviz import (
    compare_predictive,
    log_predictive_density,
    pareto_k,
    to_arviz,
    write_arviz,
)
from pyro_ibvi.diagnostics import (
    VarianceMonitor,
    coordinate_check,
    explain,
    rate_transfer,
    roles,
)
from pyro_ibvi.front import VariationalNetwork, grid_search, load, rate_search
from pyro_ibvi.guides import (
    AutoMuPMixture,
    AutoMuPNormal,
    Diagonal,
    Kronecker,
    LowRank,
    Multiplicative,
)
from pyro_ibvi.models import (
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    Normal,
    Poisson,
    RandomModule,
    SupervisedModel,
    init_to_network,
)
from pyro_ibvi.mup import MaximalUpdate, NeuralTangent, Standard, WeightRole
from pyro_ibvi.objectives import (
    KLAnnealing,
    TraceClosedFormHead,
    TraceEnumExpectedLogLikelihood,
    TraceExpectedLogLikelihood,
    TraceGeneralizedVI,
    TraceGraphExpectedLogLikelihood,
    TraceMeanFieldExpectedLogLikelihood,
)
from pyro_ibvi.prediction import Prediction, evaluate, predict, reliability, score
from pyro_ibvi.training import (
    MuPOptim,
    fit,
    load_checkpoint,
    mup_param_groups,
    save_checkpoint,
)

__all__ = [
    "__version__",
    # one object for all of it
    "VariationalNetwork",
    "load",
    "rate_search",
    "grid_search",
    # the model
    "RandomModule",
    "SupervisedModel",
    # likelihoods
    "Normal",
    "HeteroscedasticNormal",
    "Categorical",
    "Bernoulli",
    "Poisson",
    # the guide
    "AutoMuPNormal",
    "AutoMuPMixture",
    "Diagonal",
    "LowRank",
    "Multiplicative",
    "Kronecker",
    "init_to_network",
    # parametrizations and roles
    "MaximalUpdate",
    "Standard",
    "NeuralTangent",
    "WeightRole",
    "roles",
    # the objective
    "TraceExpectedLogLikelihood",
    "TraceGraphExpectedLogLikelihood",
    "TraceEnumExpectedLogLikelihood",
    "TraceMeanFieldExpectedLogLikelihood",
    "TraceGeneralizedVI",
    "TraceClosedFormHead",
    "KLAnnealing",
    "explain",
    # training
    "MuPOptim",
    "mup_param_groups",
    "fit",
    "save_checkpoint",
    "load_checkpoint",
    # prediction
    "predict",
    "Prediction",
    "score",
    "reliability",
    "evaluate",
    # diagnostics
    "VarianceMonitor",
    "coordinate_check",
    "rate_transfer",
    # ArviZ and model criticism
    "to_arviz",
    "write_arviz",
    "log_predictive_density",
    "pareto_k",
    "compare_predictive",
]
