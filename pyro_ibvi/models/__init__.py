"""What is random and what it predicts: networks with random weights, likelihoods, priors."""

from pyro_ibvi.models.binary import Bernoulli
from pyro_ibvi.models.counts import Poisson
from pyro_ibvi.models.initialization import init_to_network
from pyro_ibvi.models.labels import Categorical
from pyro_ibvi.models.likelihoods import HeteroscedasticNormal, Likelihood, Normal
from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.models.tasks import MultiTask
from pyro_ibvi.models.wrapped import Masked, Standardized

__all__ = [
    "Bernoulli",
    "Categorical",
    "HeteroscedasticNormal",
    "Likelihood",
    "Masked",
    "MultiTask",
    "Normal",
    "Poisson",
    "RandomModule",
    "Standardized",
    "SupervisedModel",
    "init_to_network",
]
