"""The parts of a network that the front door holds: whether they belong together, defaults."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from pyro_ibvi.objectives import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.routes import NumDraws
from pyro_ibvi.training import MuonWithAdamW, default_rate
from pyro_ibvi.training.checks import check_loss

#: Arguments with which a default learning rate goes; torch's decay is meant for smaller rates.
_DEFAULT_ARGS: Mapping[type[Optimizer], Mapping[str, Any]] = {
    torch.optim.SGD: {"momentum": 0.9},
    torch.optim.Adam: {},
    torch.optim.AdamW: {"weight_decay": 0.0},
    # torch.optim.Muon, which older torch lacks, stands for it.
    MuonWithAdamW: {"weight_decay": 0.0},
}


def as_objective(loss: Any, draws: NumDraws | None, default: NumDraws) -> Any:
    """The objective that was given, or the expected log-likelihood per datum.

    Args:
        loss: The objective, or None.
        draws: Draws of a step, or None.
        default: Draws of a step where neither says so.

    Returns:
        The objective.

    Raises:
        TypeError: If the objective is none.
        ValueError: If both are given.
    """
    if loss is None:
        draws = default if draws is None else draws
        return TraceExpectedLogLikelihood(reduction="mean", draws=draws)
    check_loss(loss)
    if draws is not None:
        raise ValueError(
            f"The objective is given, so draws={draws!r} belongs to it: write "
            f"TraceExpectedLogLikelihood(reduction='mean', draws={draws!r})."
        )
    return loss


def optimizer_args(
    optimizer: type[Optimizer],
    lr: float | None,
    optim_args: Mapping[str, Any] | None,
    share: float = 1.0,
) -> dict[str, Any]:
    """Arguments of an optimizer, with the default rate and what goes with it.

    Args:
        optimizer: Class of the optimizer.
        lr: Global learning rate, or None.
        optim_args: Further arguments.
        share: How much of the default rate the model bears.

    Returns:
        The arguments.

    Raises:
        TypeError: If the optimizer is no class, or its arguments have no names.
        ValueError: If the rate is given twice, or not at all where there is no default.
    """
    if not isinstance(optimizer, type):
        raise TypeError(
            f"The optimizer must be the class of a torch optimizer, such as torch.optim.SGD, got "
            f"{optimizer if isinstance(optimizer, str) else type(optimizer).__name__!r}; its "
            f"arguments are lr= and optim_args=."
        )
    if optim_args is not None and not isinstance(optim_args, Mapping):
        raise TypeError(
            f"optim_args must be a mapping such as {{'momentum': 0.9}}, got {optim_args!r}."
        )
    args = dict(optim_args or {})
    if lr is not None:
        if "lr" in args:
            raise ValueError(f"The learning rate is given twice: lr={lr} and {args['lr']}.")
        args["lr"] = lr
    kind = MuonWithAdamW if optimizer is getattr(torch.optim, "Muon", None) else optimizer
    default = next((a for c, a in _DEFAULT_ARGS.items() if c is kind), None)
    if default is not None:
        return {"lr": default_rate(optimizer) * share, **default, **args}
    if "lr" not in args:
        name = getattr(optimizer, "__name__", repr(optimizer))
        raise ValueError(
            f"There is no default learning rate for {name}: pass lr=, which IBVIClassifier and "
            f"IBVIRegressor call learning_rate=."
        )
    return args


def warn_of_temperature(temperature: float) -> None:
    """Warns where training goes on from weights for which a temperature was found.

    Args:
        temperature: The temperature of predictions.
    """
    if temperature != 1.0:
        warnings.warn(
            f"Predictions go by the temperature {temperature:.3g}, found for the weights as "
            f"they were before this training: call calibrate again after it, or write "
            f"bnn.temperature = 1.0.",
            UserWarning,
            stacklevel=4,
        )


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
        ("loss", network.loss, getattr(svi.loss, "__self__", network.loss)),
    ):
        if part is not used:
            raise ValueError(
                f"The network's {name} is not that of its svi: a part that is exchanged needs "
                f"a new bnn.svi = SVI(bnn.model, bnn.guide, bnn.optim, bnn.loss)."
            )
    if network.likelihood is not network.model.likelihood:
        raise ValueError(
            "The network's likelihood is not that of its model, by which it is trained: write "
            "bnn.model.likelihood = bnn.likelihood, or make a new VariationalNetwork."
        )
