"""What is random and what it predicts: networks with random weights, likelihoods, priors."""

from pyro_ibvi.models.initialization import init_to_network
from pyro_ibvi.models.likelihoods import (
    Bernoulli,
    Categorical,
    HeteroscedasticNormal,
    Likelihood,
    Normal,
    Poisson,
)
from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.models.supervised import SupervisedModel

__all__ = [
    "Bernoulli",
    "Categorical",
    "HeteroscedasticNormal",
    "Likelihood",
    "Normal",
    "Poisson",
    "RandomModule",
    "SupervisedModel",
    "init_to_network",
]
