"""The distribution that is trained: a Gaussian per layer, its covariances and how it draws."""

from pyro_ibvi.guides.base import MuPGuide
from pyro_ibvi.guides.covariance import (
    Covariance,
    Diagonal,
    LowRank,
)
from pyro_ibvi.guides.distributions import FactorNormal
from pyro_ibvi.guides.kronecker import Kronecker
from pyro_ibvi.guides.mixture import AutoMuPMixture
from pyro_ibvi.guides.multiplicative import Multiplicative
from pyro_ibvi.guides.normal import AutoMuPNormal

__all__ = [
    "AutoMuPMixture",
    "AutoMuPNormal",
    "Covariance",
    "Diagonal",
    "FactorNormal",
    "Kronecker",
    "LowRank",
    "MuPGuide",
    "Multiplicative",
]
