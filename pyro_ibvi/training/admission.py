"""What an optimizer is given, checked before it is used."""

from __future__ import annotations

from typing import Any

from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_ibvi.training.families import check_arguments
from pyro_ibvi.training.param_groups import HasRates


def check_optim_args(optimizer: type[Optimizer], optim_args: Any) -> None:
    """Checks the arguments of a torch optimizer, the global learning rate among them.

    Args:
        optimizer: Class of the optimizer.
        optim_args: What the user gave.

    Raises:
        TypeError: If it is no dictionary, or names what the optimizer does not take.
        ValueError: If there is no learning rate.
    """
    if not isinstance(optim_args, dict):
        raise TypeError(
            f'optim_args must be a dictionary such as {{"lr": 0.05}}, got '
            f"{type(optim_args).__name__}: rates per parameter come from the guide."
        )
    if "lr" not in optim_args:
        raise ValueError('optim_args needs the global learning rate: {"lr": 0.05, ...}.')
    check_arguments(optimizer, optim_args)


def check_guide(guide: Any) -> None:
    """Checks that a guide is one, and not the model or the network.

    Args:
        guide: What the user gave.

    Raises:
        TypeError: If it is not.
    """
    if isinstance(guide, type) or not callable(guide):
        raise TypeError(f"The guide must be an object that SVI can call, got {guide!r}.")
    is_model = callable(getattr(guide, "sample_parameters", None))
    is_network = isinstance(guide, nn.Module) and not isinstance(guide, PyroModule)
    if not isinstance(guide, HasRates) and (is_model or is_network):
        what = "model" if is_model else "network"
        raise TypeError(
            f"MuPOptim needs the guide, whose parametrization gives the rates, got the {what} "
            f"{type(guide).__name__}: write MuPOptim(..., guide)."
        )


def check_takes_part(guide: Any, params: list[Tensor]) -> None:
    """Refuses a guide that has no part in the step that is to be taken.

    Args:
        guide: The optimizer's guide.
        params: The parameters of the step.

    Raises:
        ValueError: If none of them is the guide's.
    """
    own = guide.parameters() if params and isinstance(guide, nn.Module) else ()
    trained = {p for p in own if p.requires_grad}
    if trained and trained.isdisjoint(params):
        raise ValueError(
            "None of the parameters of this step belongs to the guide that MuPOptim was given, so "
            "it is the guide of another model: write MuPOptim(..., guide) and SVI(model, guide, "
            "...) with the same guide."
        )
