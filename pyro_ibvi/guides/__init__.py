"""The distribution that is trained: a Gaussian per layer, its covariances and how it draws."""

from pyro_ibvi.guides.covariance import (
    Covariance,
    Diagonal,
    LowRank,
)
from pyro_ibvi.guides.distributions import FactorNormal
from pyro_ibvi.guides.kronecker import Kronecker
from pyro_ibvi.guides.multiplicative import Multiplicative
from pyro_ibvi.guides.normal import AutoMuPNormal

__all__ = [
    "AutoMuPNormal",
    "Covariance",
    "Diagonal",
    "FactorNormal",
    "Kronecker",
    "LowRank",
    "Multiplicative",
]
