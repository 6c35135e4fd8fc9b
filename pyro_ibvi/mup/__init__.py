"""The rules of width, without Pyro: a parameter's role, and from it its scale and rate."""

from pyro_ibvi.mup.baselines import NeuralTangent, Standard
from pyro_ibvi.mup.parametrization import (
    Fans,
    MaximalUpdate,
    Parametrization,
    Rate,
)
from pyro_ibvi.mup.roles import (
    NetworkWeight,
    WeightRole,
    find_roles,
)

__all__ = [
    "Fans",
    "MaximalUpdate",
    "NetworkWeight",
    "NeuralTangent",
    "Parametrization",
    "Rate",
    "Standard",
    "WeightRole",
    "find_roles",
]
