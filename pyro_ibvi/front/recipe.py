"""What is random, and how, where a user says nothing of it.

Class labels and numbers ask for different noise. On images the standard deviations of an additive
factor keep their size while the means grow around them, so that the noise fades beside the signal;
noise relative to the mean grows with it (page *Choosing a guide*, with what was measured). On
tables with a learned noise scale it was the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_sample
from torch import nn
from torch.optim import Optimizer

from pyro_ibvi.guides import Multiplicative
from pyro_ibvi.models import Bernoulli, Categorical, RandomModule, init_to_network
from pyro_ibvi.models.choices import DENSE_WEIGHTS, NothingChosenError
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.mup.parametrization import Parametrization
from pyro_ibvi.objectives.routes import NumDraws


@dataclass(frozen=True)
class Recipe:
    """Choices that go together.

    Attributes:
        stochastic: Which parameters are random, or None for the network's own choice.
        covariance: Their covariance, or None for the guide's own choice.
        init_loc_fn: Start of the means.
        draws: Draws of the weights in a step.
    """

    stochastic: str | None
    covariance: Any
    init_loc_fn: Callable[..., Any]
    draws: NumDraws


#: Relative noise on what the layers behind the first read, a draw for each datum.
RELATIVE = Recipe(DENSE_WEIGHTS, Multiplicative(0.35, rate=0.0), init_to_network, "datum")
#: The paper's: a low-rank factor in the first and the last layer, one draw for a batch.
PAPER = Recipe(None, None, init_to_sample, "batch")


def as_random(
    net: nn.Module,
    likelihood: Likelihood,
    *,
    stochastic: Any = None,
    parametrization: Parametrization | None = None,
    covariance: Any = None,
    is_scaled: bool = False,
) -> tuple[RandomModule, Recipe]:
    """The random network of a network, or the one that was given, and the recipe for the rest.

    Args:
        net: The network.
        likelihood: The likelihood.
        stochastic: Which parameters are random, for a network that is not random yet.
        parametrization: Its parametrization, likewise.
        covariance: Their covariance, if the user has chosen it.
        is_scaled: Whether the user has chosen how much of the prior's scale they start with.

    Returns:
        The random network, and the recipe with the covariance that was given.

    Raises:
        TypeError: If a likelihood stands in the network's place.
        ValueError: If choices are given for a network that has made them.
    """
    if isinstance(net, Likelihood):
        raise TypeError(
            f"The network comes first, got the likelihood {type(net).__name__} in its place: "
            f"write VariationalNetwork(net, likelihood)."
        )
    choices = {"stochastic": stochastic, "parametrization": parametrization}
    given = {name: value for name, value in choices.items() if value is not None}
    is_open = stochastic is None and not isinstance(net, RandomModule)
    if covariance is not None:
        kind = RELATIVE if isinstance(covariance, Multiplicative) else PAPER
        recipe = replace(kind, covariance=covariance)
    elif is_open and not is_scaled and is_of_labels(likelihood):
        recipe = RELATIVE
    else:
        recipe = PAPER
    if isinstance(net, RandomModule):
        if given:
            raise ValueError(
                f"The network is a RandomModule already, with choices of its own: pass "
                f"{' and '.join(given)} to RandomModule(net, ...)."
            )
        return net, recipe
    if is_open and recipe.stochastic is not None:
        try:
            return RandomModule(net, stochastic=recipe.stochastic, **given), recipe
        except NothingChosenError:  # no dense layer behind another
            recipe = recipe if covariance is not None else PAPER
    return RandomModule(net, **given), recipe


def default_optimizer(likelihood: Likelihood) -> type[Optimizer]:
    """The class of the optimizer where the user names none.

    The gradient of a Gaussian's loss goes with one over its variance, and so does the largest
    stable rate of SGD; with a scale that learns, it changes in training. Adam does not feel it.

    Args:
        likelihood: The likelihood.

    Returns:
        SGD for class labels, Adam for the rest.
    """
    return torch.optim.SGD if is_of_labels(likelihood) else torch.optim.Adam


def is_of_labels(likelihood: Any) -> bool:
    """Whether a likelihood is one of class labels, whatever is wrapped around it.

    Args:
        likelihood: The likelihood.

    Returns:
        Whether it is.
    """
    inner = getattr(likelihood, "likelihood", None)
    return isinstance(likelihood, (Categorical, Bernoulli)) or (
        inner is not None and is_of_labels(inner)
    )
