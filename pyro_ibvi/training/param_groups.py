"""Parameter groups: what a torch optimizer is told of each parameter's rate, epsilon and decay."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Container, Iterator, Mapping
from numbers import Real
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import shown
from pyro_ibvi.mup.parametrization import Family, Rate
from pyro_ibvi.training.families import find_family
from pyro_ibvi.training.ratios import FACTOR_KEY, watch_steps

#: What weight decay acts on: the means of weight matrices and of sites that are no network's, or
#: covariance factors, biases and gains as well.
Decayed = Literal["weights", "all"]


@runtime_checkable
class HasRates(Protocol):
    """A guide that knows the learning rate of each parameter, as ``AutoMuPNormal`` does."""

    def named_rates(self, family: Family) -> Iterator[tuple[str, nn.Parameter, Rate]]:
        """Name, parameter and rate of every parameter of the guide and of its model."""
        ...


class ParameterGroup(dict[str, Any]):
    """A parameter group that fits an optimizer's own arguments to its parameters.

    The optimizer's epsilon and weight decay, which it sets as defaults of its groups, are scaled
    as the group's rate asks, whoever gives them; and its steps are refused if something has set
    the rates of the groups such that their ratios are lost.

    Args:
        rate: How the parameters are treated.
        lr: Global learning rate, times what the optimizer makes of the rate's factor.
        factor: That factor.
        decayed: What weight decay acts on.
    """

    def __init__(self, rate: Rate, lr: float, factor: float, decayed: Decayed) -> None:
        super().__init__(params=[], param_names=[], lr=lr * factor)
        self[FACTOR_KEY] = factor
        self.family = rate.family
        if rate.family == "muon":
            self["family"] = "muon"
        self._epsilon = rate.epsilon
        # The product of rate and decay is what a step takes off a weight, and stays as it is.
        self._decay = 1 / factor if decayed == "all" or rate.decays else 0.0
        watch_steps()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Takes one of the optimizer's defaults, scaled."""
        if key == "eps" and isinstance(default, Real):
            default = self._epsilon * float(default)
        elif key == "weight_decay" and isinstance(default, Real):
            default = self._decay * float(default)
        return super().setdefault(key, default)


@named_arguments()
def mup_param_groups(
    guide: HasRates,
    lr: float,
    *,
    optimizer: type[Optimizer],
    family: Family | None = None,
    weight_decay: float | None = None,
    decayed: Decayed = "weights",
) -> list[dict[str, Any]]:
    r"""Parameter groups with the learning rate that each parameter's parametrization gives.

    Every trained parameter of the guide and of its model is in exactly one group. The optimizer's
    weight decay and epsilon, its defaults or what it is given, are fitted to each group:

    - The product of rate and weight decay is kept, so a group's decay is the optimizer's divided
      by the factor of its rate, whether the decay is decoupled (AdamW) or part of the gradient.
      Covariance factors, biases and gains are not decayed unless ``decayed="all"``: decay pulls
      a spread to zero, not to the prior.
    - Epsilon is a length that gradients are compared with, and shrinks as they do.

    A schedule must multiply the rates of all groups alike: one that sets them, as
    ``OneCycleLR(optimizer, max_lr=0.1)`` does, is refused at the next step.

    Args:
        guide: An initialized guide, or a module such as Pyro's ``AutoGuideList`` that holds some.
        lr: Global learning rate, multiplied by each parameter's factor.
        optimizer: Class of the optimizer that the groups are for. Muon is for hidden matrices
            alone: for everything at once use :class:`~pyro_ibvi.training.MuonWithAdamW`.
        family: How the optimizer scales its updates: ``"sgd"`` in proportion to the gradient,
            ``"adam"`` regardless of its size. Found from the class if it is one of torch's.
        weight_decay: Weight decay, in the place of the optimizer's own.
        decayed: What is decayed: ``"weights"``, the means of weight matrices and of sites that
            are no network's, or ``"all"``.

    Returns:
        Groups with the keys ``params``, ``param_names``, ``lr`` and ``rate_factor``, the factor on
        the global rate.

    Raises:
        RuntimeError: If the guide is not initialized.
        TypeError: If the guide has no learning rates.
        ValueError: If a rate is not positive or the optimizer's family is not known.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, Normal, RandomModule, SupervisedModel
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        >>> guide = AutoMuPNormal(SupervisedModel(RandomModule(net), Normal(), num_data=10))
        >>> groups = mup_param_groups(guide, lr=0.1, optimizer=torch.optim.SGD)
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    """
    lr = checked_rate(lr)
    is_known = family is None
    family = find_family(optimizer, family)
    if optimizer is getattr(torch.optim, "Muon", None):
        raise ValueError(
            "Muon takes matrices only, and a guide has biases and covariance factors "
            "too: write optimizer=MuonWithAdamW, of pyro_ibvi.training: AdamW learns the rest."
        )
    rates = collect_rates(guide, family)
    if not rates:
        raise TypeError(
            f"mup_param_groups needs an AutoMuPNormal guide, got {type(guide).__name__}; other "
            f"guides have one rate for all parameters."
        )
    groups = [group for group in make_groups(rates, lr, decayed=decayed) if group["params"]]
    for group in groups:
        if is_known:  # by its class, by which a step is checked
            group["family"] = group.family
        if weight_decay is not None:
            group.setdefault("weight_decay", weight_decay)
    return list(groups)


def collect_rates(guide: Any, family: Family) -> dict[Tensor, tuple[str, Rate]]:
    """The parameters that a guide, or the guides inside of it, know rates for, as they are now.

    Args:
        guide: A guide, or a module that holds guides.
        family: How the optimizer scales its updates.

    Returns:
        Name and rate by parameter, frozen ones included; nothing if no guide knows rates.
    """
    parts = [guide] if isinstance(guide, HasRates) else _parts_with_rates(guide)
    rates: dict[Tensor, tuple[str, Rate]] = {}
    for part in parts:
        for name, parameter, rate in part.named_rates(family):
            # Several guides of one model know its parameters; one may know more than another.
            known = rates.get(parameter)
            if known is None or known[1] == Rate(family=rate.family):
                rates[parameter] = (name if known is None else known[0], rate)
    if parts and isinstance(guide, nn.Module) and not isinstance(guide, HasRates):
        plain = Rate(family="adam" if family == "muon" else family)
        for name, parameter in guide.named_parameters():
            rates.setdefault(parameter, (f"guide.{name}", plain))
    return rates


def _parts_with_rates(guide: Any) -> list[HasRates]:
    if not isinstance(guide, nn.Module):
        if inspect.isfunction(guide):  # which may call guides that it finds by their names
            names = inspect.getclosurevars(guide)
            values = (*names.nonlocals.values(), *names.globals.values())
            return [part for value in values for part in _found(value)]
        inner = getattr(guide, "__self__", None) or getattr(guide, "func", None)
        return [] if inner is None or inner is guide else _found(inner)
    return _found(guide)


def _found(guide: Any) -> list[HasRates]:
    if isinstance(guide, HasRates):
        return [guide]
    if isinstance(guide, nn.Module):
        return [module for module in guide.modules() if isinstance(module, HasRates)]
    return []


def make_groups(
    rates: Mapping[Tensor, tuple[str, Rate]],
    lr: float,
    *,
    adamw_lr: float | None = None,
    decayed: Decayed = "weights",
) -> list[ParameterGroup]:
    """Groups of parameters that are treated alike, those of frozen parameters empty and last.

    Args:
        rates: Name and rate by parameter.
        lr: Global learning rate.
        adamw_lr: The global rate of what Muon leaves to AdamW, if another.
        decayed: What weight decay acts on.

    Returns:
        The groups; each keeps the ratio of its rate to the others'.

    Raises:
        ValueError: If ``decayed`` is none of its choices.
    """
    if decayed not in get_args(Decayed):
        raise ValueError(f"decayed must be 'weights' or 'all', got {decayed!r}.")
    groups: dict[Any, ParameterGroup] = {}
    taken: set[str] = set()
    for parameter, (name, rate) in trained_first(rates):
        factor = group_factor(rate, parameter, 1.0 if adamw_lr is None else adamw_lr / lr)
        group = groups.setdefault((rate, factor), ParameterGroup(rate, lr, factor, decayed))
        if parameter.requires_grad:
            name = unique_name(name, taken)
            taken.add(name)
            add_parameter(group, name, parameter)
    return list(groups.values())


def add_parameter(group: dict[str, Any], name: str, parameter: Tensor) -> None:
    """Adds a parameter to a group, which may be an optimizer's already."""
    group["params"].append(parameter)
    group["param_names"].append(name)


def trained_first(rates: Mapping[Tensor, Any]) -> list[tuple[Tensor, Any]]:
    """The parameters in the order in which their groups are made, frozen ones at the end."""
    return sorted(rates.items(), key=lambda item: not item[0].requires_grad)


def unique_name(name: str, taken: Container[str]) -> str:
    """The name, with a number where another parameter has it."""
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if n not in taken)


def group_factor(rate: Rate, parameter: Tensor, adamw_ratio: float) -> float:
    """Factor on the global learning rate as an optimizer of torch's takes it."""
    if rate.family != "muon":
        return rate.factor * (adamw_ratio if rate.family == "adam" else 1.0)
    # What torch multiplies by itself, adjust_lr_fn="original".
    rows, columns = parameter.shape
    return rate.factor / math.sqrt(max(1.0, rows / columns))


def checked_rate(lr: object) -> float:
    """A learning rate, checked.

    Args:
        lr: What the user gave.

    Returns:
        The rate as a float.

    Raises:
        ValueError: If it is no positive finite number.
    """
    rate = float(lr) if isinstance(lr, Real) and not isinstance(lr, bool) else math.nan
    if 0 < rate < math.inf:
        return rate
    hint = ": pass its .best" * hasattr(lr, "best")
    raise ValueError(
        f"The learning rate must be a positive finite number, got lr={shown(lr)}{hint}."
    )
