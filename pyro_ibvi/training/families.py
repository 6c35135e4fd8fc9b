"""Families of torch's optimizers: how a step depends on the gradient, on which muP rates rest."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch
from pyro.optim import PyroOptim
from torch import nn
from torch.optim import Optimizer

from pyro_ibvi.mup.parametrization import Family
from pyro_ibvi.training.muon import MuonWithAdamW

_FAMILIES: dict[Family, tuple[type[Optimizer], ...]] = {
    "sgd": (torch.optim.SGD,),
    # The step does not grow with the gradient.
    "adam": (
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.SparseAdam,
    ),
    "muon": (MuonWithAdamW,),
}

#: Families of the groups that an optimizer takes.
_TAKEN: dict[type[Optimizer], tuple[Family, ...]] = {
    **{kind: (family,) for family, kinds in _FAMILIES.items() for kind in kinds},
    MuonWithAdamW: ("muon", "adam"),
}

#: Optimizers that no family fits, and what to write in their place.
_REFUSED = {
    "LBFGS": "searches along a line for a loss that stays the same, while each evaluation of an "
    "expected likelihood has draws of its own, and has one step size for all parameters: use "
    "torch.optim.SGD, or torch.optim.LBFGS by itself on a loss without draws.",
    "Adafactor": "scales each step by the size of the parameter, so that rates for the gradient's "
    "scale do not fit it: use torch.optim.AdamW.",
    "Rprop": "takes steps whose sizes it finds by itself from the signs of exact gradients, so "
    "that neither learning rates nor single draws suit it: use torch.optim.Adam.",
    "Adadelta": "finds the scale of its steps by itself from those it took, so that learning "
    "rates per width do not fit it: use torch.optim.Adam.",
    "ASGD": "lets its rates fall by a rule of its own and decays every parameter alike, "
    "covariance factors included: use torch.optim.SGD with momentum and a scheduler.",
}


def find_family(optimizer: Any, family: Family | None = None) -> Family:
    """How an optimizer scales its updates with the gradient.

    Args:
        optimizer: Class of the optimizer.
        family: The answer, for an optimizer that is not one of torch's.

    Returns:
        ``"sgd"``, ``"adam"`` or ``"muon"``.

    Raises:
        TypeError: If the optimizer is not a class of torch optimizers.
        ValueError: If it cannot be told, or muP rates do not fit the optimizer.
    """
    _check_class(optimizer)
    name = getattr(optimizer, "__name__", repr(optimizer))
    if isinstance(optimizer, type) and optimizer.__module__.startswith("torch.optim"):
        if name in _REFUSED:
            raise ValueError(f"muP learning rates are not for {name}: it {_REFUSED[name]}")
        if name == "Muon":
            return "muon"
    if family is not None:
        if family not in get_args(Family):
            raise ValueError(f"family must be 'sgd', 'adam' or 'muon', got {family!r}.")
        if family not in _TAKEN.get(optimizer, (family,)):
            raise ValueError(
                f"family={family!r} is not how {name} steps, whose rates would not go with the "
                f"widths: leave it out, it is for optimizers that are not torch's."
            )
        return family
    for known, classes in _FAMILIES.items():
        if isinstance(optimizer, type) and issubclass(optimizer, classes):
            return known
    raise ValueError(
        f"muP learning rates depend on whether {name} steps in proportion to the gradient: pass "
        f'family="sgd" if it does, family="adam" if its steps do not grow with the gradient, as '
        f"those of Lion and most variants of Adam."
    )


def check_families(optimizer: type[Optimizer], groups: Iterable[Mapping[str, Any]]) -> None:
    """Checks that groups with rates for a family are in an optimizer of it.

    Args:
        optimizer: Class of the optimizer; nothing is said of one that is not known.
        groups: Its parameter groups.

    Raises:
        ValueError: If the rates are those of another family.
    """
    taken = _TAKEN.get(optimizer)
    if taken is None:
        return
    for group in groups:
        family = group.get("family")
        if family is not None and family not in taken:
            raise ValueError(
                f"The parameter groups have the rates of the family {family!r}, and are in "
                f"{optimizer.__name__}: write mup_param_groups(guide, lr, "
                f"optimizer={optimizer.__name__}), with the class that takes them."
            )


def check_arguments(optimizer: Any, names: Iterable[str]) -> None:
    """Checks that an optimizer has arguments of these names.

    Args:
        optimizer: Class of the optimizer.
        names: Names of the arguments.

    Raises:
        TypeError: If it has not; the message names the nearest.
    """
    try:
        parameters = inspect.signature(optimizer).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [name for name in parameters if name != "params"]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
            raise TypeError(f"{optimizer.__name__} has no argument {name!r}: {hint}")


def _check_class(optimizer: Any) -> None:
    if isinstance(optimizer, str):
        matches = [n for n in dir(torch.optim) if n.lower() == optimizer.lower()]
        hint = matches[0] if matches else "SGD"
        raise TypeError(
            f"Expected the class of a torch optimizer, got the string {optimizer!r}: write "
            f"torch.optim.{hint}."
        )
    if isinstance(optimizer, (Optimizer, PyroOptim)):
        raise TypeError(
            f"Expected the class of a torch optimizer, such as torch.optim.SGD, got an object of "
            f"{type(optimizer).__name__}: its arguments go into optim_args."
        )
    if isinstance(optimizer, nn.Module):
        raise TypeError(
            f"Expected the class of a torch optimizer first, such as torch.optim.SGD, got "
            f"{type(optimizer).__name__}: write MuPOptim(torch.optim.SGD, {{'lr': 0.1}}, guide)."
        )
    module = getattr(optimizer, "__module__", "")
    if not callable(optimizer) or module.startswith("pyro.optim"):
        name = getattr(optimizer, "__name__", repr(optimizer))
        near = "Adam" if name.endswith("Adam") else "SGD"
        own = f"torch.optim.{name if hasattr(torch.optim, name) else near}"
        if name.startswith("Clipped"):  # Pyro's clips each parameter's gradient by itself
            own += " with clip_norm=10.0 and a scheduler in the place of lrd, all in MuPOptim"
        raise TypeError(
            f"Expected the class of a torch optimizer, got {name} of {module or 'Python'}, which "
            f"makes no optimizer of groups: write {own}."
        )
