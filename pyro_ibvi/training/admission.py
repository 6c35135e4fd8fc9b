"""What an optimizer is given, checked before it is used."""

from __future__ import annotations

import math
import warnings
from typing import Any

from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_ibvi._util.checks import is_number
from pyro_ibvi.mup.parametrization import Family
from pyro_ibvi.pairing.belonging import check_part
from pyro_ibvi.pairing.loss_scale import LossScale, noted_guides
from pyro_ibvi.training.families import check_arguments
from pyro_ibvi.training.muon import MuonWithAdamW, check_muon
from pyro_ibvi.training.param_groups import HasRates, collect_rates

#: A global rate of SGD on a mean, over one minus the momentum, that no network learns at: ten
#: times the default, and where the measured ones have long lost what they had learned.
_TOO_LARGE = 10.0


def check_optim_args(optimizer: type[Optimizer], optim_args: Any) -> None:
    """Checks the arguments of a torch optimizer, the global learning rate among them.

    Args:
        optimizer: Class of the optimizer.
        optim_args: What the user gave.

    Raises:
        TypeError: If it is no dictionary, or names what the optimizer does not take.
        RuntimeError: If the installed torch lacks the optimizer.
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
    if isinstance(optimizer, type) and issubclass(optimizer, MuonWithAdamW):
        check_muon()


def check_clip_norm(clip_norm: Any) -> None:
    """Checks the largest norm of a gradient.

    Args:
        clip_norm: What the user gave, or None.

    Raises:
        ValueError: If it is no positive number.
    """
    if clip_norm is not None and not (is_number(clip_norm) and 0 < clip_norm < math.inf):
        raise ValueError(f"clip_norm must be positive and finite, got {clip_norm!r}.")


def check_guide(guide: Any) -> None:
    """Checks that a guide is one, and not the model or the network.

    Args:
        guide: What the user gave.

    Raises:
        TypeError: If it is not.
    """
    if isinstance(guide, type) or not callable(guide):
        raise TypeError(f"The guide must be an object that SVI can call, got {guide!r}.")
    check_part("guide", guide)
    is_model = callable(getattr(guide, "sample_parameters", None))
    is_network = isinstance(guide, nn.Module) and not isinstance(guide, PyroModule)
    if not isinstance(guide, HasRates) and (is_model or is_network):
        what = "model" if is_model else "network"
        raise TypeError(
            f"MuPOptim needs the guide, whose parametrization gives the rates, got the {what} "
            f"{type(guide).__name__}: write MuPOptim(..., guide)."
        )


def check_takes_part(guide: Any, params: list[Tensor], family: Family) -> None:
    """Refuses a guide that has no part in the step that is to be taken, or not the whole.

    Args:
        guide: The optimizer's guide.
        params: The parameters of the step.
        family: How the optimizer scales its updates.

    Raises:
        ValueError: If none of them is the guide's, or another guide knows rates of them.
    """
    own = guide.parameters() if params and isinstance(guide, nn.Module) else ()
    trained = {p for p in own if p.requires_grad}
    if trained and trained.isdisjoint(params):
        raise ValueError(
            "None of the parameters of this step belongs to the guide that MuPOptim was given, so "
            "it is the guide of another model: write MuPOptim(..., guide) and SVI(model, guide, "
            "...) with the same guide."
        )
    known = collect_rates(guide, family)
    for other in noted_guides(params):
        rated = collect_rates(other, family).keys() & set(other.parameters()) & set(params)
        if not rated <= known.keys():
            what = getattr(guide, "__name__", type(guide).__name__)
            raise ValueError(
                f"MuPOptim was given {what}, which does not know the learning rates of the guide "
                f"that is trained, the {type(other).__name__}: write MuPOptim(..., guide) and "
                f"SVI(model, guide, ...) with the same guide."
            )


def warn_of_rate(optim_args: dict[str, Any], family: Family, scale: LossScale) -> bool:
    """Warns where a rate that would suit a mean meets a sum, over data or over labels of a datum.

    A sum is a mean at a rate that is larger by the number of terms. Steps of Adam and Muon do not
    grow with the gradient, so that a sum does them no harm; nor does it where the user has divided
    the rate.

    Args:
        optim_args: Arguments of the optimizer.
        family: How it scales its updates.
        scale: What the loss is a sum of.

    Returns:
        Whether it warned.
    """
    lr, momentum = float(optim_args["lr"]), float(optim_args.get("momentum", 0.0))
    num_terms = scale.num_terms
    is_sum = family == "sgd" and num_terms > 1
    if not is_sum or num_terms * lr <= _TOO_LARGE * (1 - momentum):
        return False
    if scale.is_of_labels:
        warnings.warn(
            f"The loss of a datum is a sum over its {num_terms:.0f} binary labels, of pixels or "
            f"times that share their weights, which SGD does not bear at lr={lr:g}: pass "
            f"lr={lr / num_terms:.1g}, or optimizer=torch.optim.Adam; or give the network two "
            f"outputs for each label, of which Categorical(class_dim=1) takes the mean.",
            UserWarning,
            stacklevel=5,
        )
    else:
        warnings.warn(
            f"The learning rates of MuPOptim are meant for a loss per datum, and this "
            f"{scale.objective} is a sum, {num_terms:.0f} times as large, which SGD does not bear "
            f"at lr={lr:g}: write TraceExpectedLogLikelihood(reduction='mean'), or divide the "
            f"rate by the number of data.",
            UserWarning,
            stacklevel=5,
        )
    return True
