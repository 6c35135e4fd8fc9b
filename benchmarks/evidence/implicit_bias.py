"""Implicit-bias VI as a task's settings have it: one place for images and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import SVI
from pyro.infer.autoguide.initialization import init_to_sample
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.front.recipe import Recipe

COVARIANCES: dict[str, Callable[[Mapping[str, Any]], ibvi.guides.Covariance]] = {
    "low rank": lambda settings: ibvi.LowRank(settings["rank"]),
    "diagonal": lambda settings: ibvi.Diagonal(),
    "relative": lambda settings: ibvi.Multiplicative(settings["scale"], settings.get("rate", 0.0)),
}
STARTS = {"network": ibvi.init_to_network, "prior": init_to_sample}


def make_svi(
    net: nn.Module,
    likelihood: Any,
    num_data: int,
    settings: Mapping[str, Any],
    optimizer: type[torch.optim.Optimizer],
    schedule: Callable[[torch.optim.Optimizer], Any],
    *,
    base: nn.Module | None = None,
    **optim_args: Any,
) -> tuple[SVI, ibvi.MuPOptim]:
    """Model, guide, optimizer and objective.

    Args:
        net: The network.
        likelihood: The likelihood.
        num_data: Number of training data.
        settings: ``covariance`` with its numbers and ``lr``, and if they are not the usual ones
            ``stochastic``, ``start`` (by default the network for relative noise), ``draws``,
            ``scale of convolutions``, ``components`` of the linear layers behind these,
            ``mixture``, the number of components of all that is random, ``init_scale``, and
            ``penalty``, the weight of an explicit 2-Wasserstein distance from the prior.
        optimizer: Class of the torch optimizer.
        schedule: Makes its scheduler.
        base: The base of muP; at the network itself its rates are those of ordinary training.
        **optim_args: Arguments of the optimizer beside the rate.

    Returns:
        The whole, and the optimizer, whose schedule is the caller's to step.
    """
    stochastic = settings.get("stochastic", "input+output weights")
    random_net = ibvi.RandomModule(
        net,
        stochastic=stochastic,
        parametrization=ibvi.MaximalUpdate(base=base),
    )
    model = ibvi.SupervisedModel(random_net, likelihood, num_data=num_data)
    kind = settings["covariance"]
    of_convolutions = settings.get("scale of convolutions")
    recipe = Recipe(
        stochastic if isinstance(stochastic, str) else None,
        covariance=COVARIANCES[kind](settings),
        of_convolutions=of_convolutions and ibvi.Multiplicative(of_convolutions, rate=0.0),
        init_loc_fn=STARTS[settings.get("start", "network" if kind == "relative" else "prior")],
        draws=settings.get("draws", "batch"),
        num_components=settings.get("components", 1),
    )
    guide = recipe.make_guide(model, settings.get("mixture"), None, settings.get("init_scale"))
    arguments = {"lr": settings["lr"], **optim_args}
    optim = ibvi.MuPOptim(optimizer, arguments, guide, scheduler=schedule)
    loss: ibvi.TraceExpectedLogLikelihood
    if "penalty" in settings:
        loss = ibvi.TraceGeneralizedVI(weight=settings["penalty"], reduction="mean")
    else:
        loss = ibvi.TraceExpectedLogLikelihood(reduction="mean", draws=recipe.draws)
    return SVI(model, guide, optim, loss), optim
