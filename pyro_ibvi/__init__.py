"""Implicit-bias variational inference for Bayesian neural networks in Pyro.

Train a distribution over network weights by the expected log-likelihood alone, started at the
prior, and let the optimizer's implicit bias do the regularizing.
"""

from pyro_ibvi._version import __version__
from pyro_ibvi.annealing import KLAnnealing
from pyro_ibvi.arviz import to_arviz, write_arviz
from pyro_ibvi.calibration import Reliability, reliability, score
from pyro_ibvi.checkpoints import load_checkpoint, save_checkpoint
from pyro_ibvi.closed_form import TraceClosedFormHead
from pyro_ibvi.coordinates import CoordinateCheck, coordinate_check
from pyro_ibvi.covariance import Covariance, Diagonal, Kronecker, LowRank
from pyro_ibvi.diagnostics import CollapseMonitor, CollapseReport
from pyro_ibvi.elbo import TraceExpectedLogLikelihood
from pyro_ibvi.elbo_variants import (
    TraceEnumExpectedLogLikelihood,
    TraceGraphExpectedLogLikelihood,
    TraceMeanFieldExpectedLogLikelihood,
)
from pyro_ibvi.generalized_vi import TraceGeneralizedVI
from pyro_ibvi.guides import AutoMuPNormal
from pyro_ibvi.initialization import init_to_network
from pyro_ibvi.likelihoods import (
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    Likelihood,
    Normal,
    Poisson,
)
from pyro_ibvi.model_criticism import (
    LogPredictiveDensity,
    compare_predictive,
    log_predictive_density,
    loo_approximate_posterior,
    pareto_k,
)
from pyro_ibvi.optim import MuPOptim, mup_param_groups
from pyro_ibvi.parametrization import (
    Fans,
    MaximalUpdate,
    NeuralTangent,
    Parametrization,
    Standard,
)
from pyro_ibvi.predictive import Prediction, predict
from pyro_ibvi.random_module import RandomModule
from pyro_ibvi.rate_transfer import Transfer, transfer
from pyro_ibvi.report import ObjectiveReport, check, check_loss
from pyro_ibvi.role_report import RoleReport, roles
from pyro_ibvi.supervised import SupervisedModel
from pyro_ibvi.training import History, fit
from pyro_ibvi.weight_roles import WeightRole

__all__ = [
    "__version__",
    # the model
    "RandomModule",
    "SupervisedModel",
    # likelihoods
    "Likelihood",
    "Normal",
    "HeteroscedasticNormal",
    "Categorical",
    "Bernoulli",
    "Poisson",
    # the guide
    "AutoMuPNormal",
    "Covariance",
    "Diagonal",
    "LowRank",
    "Kronecker",
    "init_to_network",
    # parametrizations and roles
    "Parametrization",
    "MaximalUpdate",
    "Standard",
    "NeuralTangent",
    "Fans",
    "WeightRole",
    "roles",
    "RoleReport",
    # width
    "coordinate_check",
    "CoordinateCheck",
    "transfer",
    "Transfer",
    # the objective
    "TraceExpectedLogLikelihood",
    "TraceGraphExpectedLogLikelihood",
    "TraceEnumExpectedLogLikelihood",
    "TraceMeanFieldExpectedLogLikelihood",
    "TraceGeneralizedVI",
    "TraceClosedFormHead",
    "KLAnnealing",
    "check",
    "check_loss",
    "ObjectiveReport",
    # the optimizer
    "MuPOptim",
    "mup_param_groups",
    # training and prediction
    "fit",
    "History",
    "save_checkpoint",
    "load_checkpoint",
    "predict",
    "Prediction",
    "score",
    "reliability",
    "Reliability",
    # diagnostics
    "CollapseMonitor",
    "CollapseReport",
    # ArviZ and model criticism
    "to_arviz",
    "write_arviz",
    "log_predictive_density",
    "LogPredictiveDensity",
    "compare_predictive",
    "pareto_k",
    "loo_approximate_posterior",
]
