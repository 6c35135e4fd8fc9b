"""What family a likelihood is of."""

from __future__ import annotations

from typing import Any

from pyro_ibvi.models.binary import Bernoulli
from pyro_ibvi.models.counts import Poisson
from pyro_ibvi.models.labels import Categorical
from pyro_ibvi.models.likelihoods import HeteroscedasticNormal, Likelihood, Normal
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
    likelihood = without_wrappers(likelihood)
    kinds: dict[str, Any] = {
        "normal": (Normal, HeteroscedasticNormal),
        "poisson": Poisson,
        "bernoulli": Bernoulli,
        "categorical": Categorical,
        "tasks": MultiTask,
    }
    found = (name for name, kind in kinds.items() if isinstance(likelihood, kind))
    return next(found, "other")


def is_of_labels(likelihood: Likelihood) -> bool:
    """Whether a likelihood is one of class labels alone, whatever is around it.

    Args:
        likelihood: The likelihood.

    Returns:
        Whether it is; of several tasks, whether all are.
    """
    bare = without_wrappers(likelihood)
    if isinstance(bare, MultiTask):
        return all(map(is_of_labels, bare.likelihoods.values()))
    return kind_of(bare) in ("categorical", "bernoulli")


def without_wrappers(likelihood: Likelihood) -> Likelihood:
    """A likelihood without what is around it, such as weights.

    Args:
        likelihood: The likelihood.

    Returns:
        The one within.
    """
    while isinstance(likelihood, (Masked, Standardized, Weighted)):
        likelihood = likelihood.likelihood
    return likelihood
