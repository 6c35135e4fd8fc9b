"""What is maximized: the expected log-likelihood, its variants and its penalties."""

from pyro_ibvi.objectives.annealing import KLAnnealing
from pyro_ibvi.objectives.closed_form import TraceClosedFormHead
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.generalized_vi import TraceGeneralizedVI
from pyro_ibvi.objectives.head import ClosedFormHead
from pyro_ibvi.objectives.loss_module import LossModule
from pyro_ibvi.objectives.mixin import ExpectedLogLikelihood
from pyro_ibvi.objectives.penalty import DivergencePenalty
from pyro_ibvi.objectives.variants import (
    TraceEnumExpectedLogLikelihood,
    TraceGraphExpectedLogLikelihood,
    TraceMeanFieldExpectedLogLikelihood,
)

__all__ = [
    "ClosedFormHead",
    "DivergencePenalty",
    "ExpectedLogLikelihood",
    "KLAnnealing",
    "LossModule",
    "TraceClosedFormHead",
    "TraceEnumExpectedLogLikelihood",
    "TraceExpectedLogLikelihood",
    "TraceGeneralizedVI",
    "TraceGraphExpectedLogLikelihood",
    "TraceMeanFieldExpectedLogLikelihood",
]
