"""What family a likelihood is of."""

from __future__ import annotations

from typing import Any

from pyro_ibvi.models.binary import Bernoulli
from pyro_ibvi.models.labels import Categorical
from pyro_ibvi.models.likelihoods import HeteroscedasticNormal, Likelihood, Normal, Poisson
from pyro_ibvi.models.tasks import MultiTask
from pyro_ibvi.models.weighted import Weighted
from pyro_ibvi.models.wrapped import Masked, Standardized


def kind_of(likelihood: Likelihood) -> str:
    """What family a likelihood is of, whatever is around it.

    Args:
        likelihood: The likelihood.

    Returns:
        ``"normal"``, ``"poisson"``, ``"bernoulli"``, ``"categorical"``, ``"tasks"``, ``"other"``.
    """
    while isinstance(likelihood, (Masked, Standardized, Weighted)):
        likelihood = likelihood.likelihood
    kinds: dict[str, Any] = {
        "normal": (Normal, HeteroscedasticNormal),
        "poisson": Poisson,
        "bernoulli": Bernoulli,
        "categorical": Categorical,
        "tasks": MultiTask,
    }
    found = (name for name, kind in kinds.items() if isinstance(likelihood, kind))
    return next(found, "other")
