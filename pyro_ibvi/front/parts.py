"""The parts of a network that the front door holds: whether they belong together, defaults."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from pyro_ibvi.models import RandomModule
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.mup.parametrization import Parametrization
from pyro_ibvi.objectives import TraceExpectedLogLikelihood


def as_objective(loss: Any, draws: int | Literal["batch", "datum"]) -> Any:
    """The objective that was given, or the expected log-likelihood per datum.

    Args:
        loss: The objective, or None.
        draws: Draws of a step, for the default.

    Returns:
        The objective.

    Raises:
        ValueError: If both are given.
    """
    if loss is None:
        return TraceExpectedLogLikelihood(reduction="mean", draws=draws)
    if draws != "batch":
        raise ValueError(
            f"The objective is given, so draws={draws!r} belongs to it: write "
            f"TraceExpectedLogLikelihood(reduction='mean', draws={draws!r})."
        )
    return loss


def as_random(
    net: nn.Module, stochastic: Any, parametrization: Parametrization | None
) -> RandomModule:
    """The random network of a network, or the one that was given.

    Args:
        net: The network.
        stochastic: Which parameters are random, for a network that is not random yet.
        parametrization: Its parametrization, likewise.

    Returns:
        The random network.

    Raises:
        TypeError: If a likelihood stands in the network's place.
        ValueError: If choices are given for a network that has made them.
    """
    choices = {"stochastic": stochastic, "parametrization": parametrization}
    given = {name: value for name, value in choices.items() if value is not None}
    if isinstance(net, Likelihood):
        raise TypeError(
            f"The network comes first, got the likelihood {type(net).__name__} in its place: "
            f"write VariationalNetwork(net, likelihood)."
        )
    if not isinstance(net, RandomModule):
        return RandomModule(net, **given)
    if given:
        raise ValueError(
            f"The network is a RandomModule already, with choices of its own: pass "
            f"{' and '.join(given)} to RandomModule(net, ...)."
        )
    return net


def check_parts(network: Any) -> None:
    """Refuses parts that were exchanged one by one, so that they belong together no more.

    Args:
        network: The network.

    Raises:
        ValueError: If a part is not that of its ``svi``.
    """
    svi = network.svi
    for name, part, used in (
        ("model", network.model, svi.model),
        ("guide", network.guide, svi.guide),
        ("optim", network.optim, svi.optim),
    ):
        if part is not used:
            raise ValueError(
                f"The network's {name} is not that of its svi: a part that is exchanged needs "
                f"a new bnn.svi = SVI(bnn.model, bnn.guide, bnn.optim, bnn.loss)."
            )
