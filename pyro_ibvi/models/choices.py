"""Which parameters of a network are random, and what their priors are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from pyro_ibvi._util.checks import is_number, shown
from pyro_ibvi._util.names import assigned, chosen
from pyro_ibvi.mup.layers import layer_names, owner_of
from pyro_ibvi.mup.roles import WeightRole

Stochastic = str | Iterable[str | type[nn.Module]] | type[nn.Module] | Callable[[str], bool]
Prior = float | TorchDistributionMixin
_LAYER_CHOICES: dict[str, tuple[str, ...]] = {
    "all": ("input", "hidden", "output"),
    "input+output": ("input", "output"),
    "input": ("input",),
    "last": ("output",),
}
#: Layers that read other layers: their inputs are units of the network, not data.
INNER_WEIGHTS = "inner weights"
#: Linear layers that read data beside them.
LINEAR_AND_INNER_WEIGHTS = "linear+inner weights"
_INNER_ROLES, _DATA_ROLES = ("hidden", "output"), ("input",)
_Types = tuple[type[nn.Module], ...]
#: Types of the layers that read other layers, and of those that read data.
_TYPES: dict[str, tuple[_Types, _Types]] = {
    "dense weights": ((nn.Linear,), ()),
    INNER_WEIGHTS: ((nn.Linear, nn.modules.conv._ConvNd), ()),
    LINEAR_AND_INNER_WEIGHTS: ((nn.Linear, nn.modules.conv._ConvNd), (nn.Linear,)),
}
_CHOICES = sorted([*_LAYER_CHOICES, *_TYPES])


class NothingChosenError(ValueError):
    """A choice of random parameters that leaves none."""


class Priors:
    """The priors of a network's random parameters, at the parameters' type and device.

    Args:
        priors: A standard deviation or a distribution by parameter name.
        means: Means of the priors that are given by their standard deviation, if not 0.
    """

    def __init__(self, priors: Mapping[str, Prior], means: Mapping[str, float]) -> None:
        self._priors = dict(priors)
        self._means = dict(means)
        self._cache: dict[str, tuple[torch.dtype, torch.device, TorchDistributionMixin]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._priors

    def of(self, name: str, parameter: Tensor) -> TorchDistributionMixin:
        """The prior of a parameter.

        Args:
            name: Name of the parameter.
            parameter: The parameter.

        Returns:
            The distribution.
        """
        cached = self._cache.get(name)
        if cached is None or cached[0] is not parameter.dtype or cached[1] != parameter.device:
            with torch.inference_mode(False):  # which the cache outlives
                prior = self._make(name, parameter)
            self._cache[name] = cached = (parameter.dtype, parameter.device, prior)
        return cached[2]

    def _make(self, name: str, parameter: Tensor) -> TorchDistributionMixin:
        prior = self._priors[name]
        options: Any = {"dtype": parameter.dtype, "device": parameter.device}
        if not isinstance(prior, float):
            return _move(prior, options)
        # Expanded numbers: a cached prior must not hold a copy of the weights' memory.
        base = dist.Normal(
            torch.full((), self._means.get(name, 0.0), **options).expand(parameter.shape),
            torch.full((), prior, **options),
            validate_args=False,
        )
        return base.to_event(parameter.dim())


def _move(value: Any, options: Mapping[str, Any]) -> Any:
    """A distribution with its numbers at another type and device."""
    if isinstance(value, Tensor):
        return value.to(**options) if value.is_floating_point() else value.to(options["device"])
    if isinstance(value, list):  # the transforms of a transformed distribution
        parts = [_move(part, options) for part in value]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    if not isinstance(value, (Distribution, Transform)):
        return value
    moved = {name: _move(part, options) for name, part in value.__dict__.items()}
    if all(moved[name] is value.__dict__[name] for name in moved):
        return value
    new = copy.copy(value)
    new.__dict__.update(moved)
    return new


def choose(net: nn.Module, weights: Mapping[str, WeightRole], stochastic: Stochastic) -> list[str]:
    """The parameters that a user's choice makes random.

    A choice by role or by type of layer leaves out what requires no gradient; names, patterns and
    predicates mean what they say.

    Args:
        net: The network.
        weights: Roles by parameter name.
        stochastic: The choice, see :class:`~pyro_ibvi.RandomModule`.

    Returns:
        Names of the parameters, in the network's order.

    Raises:
        NothingChosenError: If it leaves no parameter.
        TypeError: If the choice is of no known kind.
        ValueError: If it matches nothing, or parameters that cannot be random.
    """
    frozen = [n for n in weights if not net.get_parameter(n).requires_grad]
    ends = stochastic.removesuffix(" weights") if isinstance(stochastic, str) else None
    random: set[str] = set()
    if ends in _LAYER_CHOICES:
        roles = _LAYER_CHOICES[ends]
        left_out = ("gain",) if ends == stochastic else ("gain", "bias")
        random.update(
            n for n, w in weights.items() if w.layer_role in roles and w.role not in left_out
        )
        random -= set(frozen)
    elif isinstance(stochastic, str) and stochastic in _TYPES:
        inner, of_data = _TYPES[stochastic]
        random = _of_types(net, weights, inner, _INNER_ROLES)
        if random:  # else there is one layer alone, which is no network's first
            random |= _of_types(net, weights, of_data, _DATA_ROLES)
        # Attention uses the weight of its output's projection past the layer that holds it.
        fused = _matches(net, list(weights), NonDynamicallyQuantizableLinear)
        random -= {*frozen, *fused}
    elif callable(stochastic) and not isinstance(stochastic, (type, nn.Module)):
        random.update(name for name in weights if stochastic(name))
    else:
        for choice in _checked_choices(stochastic):
            matched = _matches(net, list(weights), choice)
            if not matched:
                raise ValueError(
                    f"stochastic names {choice!r}, which matches no parameter; choose "
                    f"{_CHOICES} or among the parameters {list(weights)}."
                )
            random |= matched - set(frozen) if isinstance(choice, type) else matched
    if not random:
        raise NothingChosenError(_nothing_chosen(stochastic, list(weights), frozen))
    for name in random:
        _check_real(name, net.get_parameter(name))
    return [name for name in weights if name in random]


def _nothing_chosen(stochastic: Any, names: list[str], frozen: list[str]) -> str:
    if not names:
        return "The network has no parameters, so there is nothing to infer."
    message = f"stochastic={stochastic!r} chooses none of the parameters {names}, so there is "
    message += "nothing to infer."
    if frozen:
        message += (
            f" What requires no gradient is random by name alone, and {frozen} do not: name "
            f"those that are to be random, stochastic={frozen[-1:]}, or call "
            f"net.requires_grad_() first."
        )
    else:
        message += f" Name those that are to be random, such as stochastic={names[:1]}."
    return message


def _check_real(name: str, parameter: Tensor) -> None:
    if not parameter.is_floating_point():
        raise ValueError(
            f"The parameter {name!r} has dtype {parameter.dtype}, and random parameters are real "
            f"floating-point numbers: leave it out of stochastic=, or let the network hold a "
            f"complex number as two real ones, torch.view_as_complex(self.weight)."
        )


def _checked_choices(stochastic: Any) -> list[str | type[nn.Module]]:
    choices = [stochastic] if isinstance(stochastic, (str, type)) else stochastic
    if not isinstance(choices, Iterable) or not all(isinstance(c, (str, type)) for c in choices):
        raise TypeError(
            f"stochastic must be one of {_CHOICES}, names or types of "
            f"layers, or a predicate on names; got {shown(stochastic)}."
        )
    return list(choices)


def _of_types(
    net: nn.Module, weights: Mapping[str, WeightRole], types: _Types, roles: tuple[str, ...]
) -> set[str]:
    """Names of the parameters with one of some roles in layers of one of some types."""
    found = set().union(*(_matches(net, list(weights), kind) for kind in types))
    return {name for name in found if weights[name].role in roles}


def _matches(net: nn.Module, names: list[str], choice: str | type[nn.Module]) -> set[str]:
    """Names of the parameters that are of a type of layer, or chosen by name or pattern."""
    if isinstance(choice, type):
        layers = {name: net.get_submodule(owner_of(net, name)[0]) for name in names}
        return {name for name, layer in layers.items() if isinstance(layer, choice)}
    return set(assigned([choice], names, partial(layer_names, net)))


def match_priors(
    prior: Prior | Mapping[str, Prior] | None, net: nn.Module, names: list[str]
) -> dict[str, Prior]:
    """The priors that a user gives.

    Args:
        prior: One standard deviation for all, or a mapping from name or pattern to a standard
            deviation or a distribution; a name counts before patterns, of which the first does.
        net: The network.
        names: Names of the random parameters.

    Returns:
        The prior of each parameter that has one given.

    Raises:
        TypeError: If a key of the mapping is no name.
        ValueError: If a name matches nothing, or a prior does not fit its parameter.
    """
    if prior is None:
        return {}
    if not isinstance(prior, Mapping):
        prior = {"*": prior}
    for pattern in prior:
        if not isinstance(pattern, str):
            raise TypeError(
                f"prior goes from names or patterns to priors; got the key {pattern!r}."
            )
        if not chosen(pattern, names):
            raise ValueError(f"prior names {pattern!r}, which matches none of the sites {names}.")
    return {
        name: _check_prior(name, prior[key], net.get_parameter(name).shape)
        for name, key in assigned(prior, names).items()
    }


def _check_prior(name: str, prior: Any, shape: torch.Size) -> Prior:
    if is_number(prior):
        prior = float(prior)
        if not 0 < prior < float("inf"):
            raise ValueError(
                f"The prior standard deviation of {name!r} must be positive and finite, "
                f"got {prior}."
            )
        return prior
    if not isinstance(prior, TorchDistributionMixin):
        raise ValueError(
            f"The prior of {name!r} must be a standard deviation or a Pyro distribution, "
            f"got {prior!r}."
        )
    if prior.batch_shape or prior.event_shape != shape:
        raise ValueError(
            f"The prior of {name!r} has batch shape {tuple(prior.batch_shape)} and event shape "
            f"{tuple(prior.event_shape)}, expected () and {tuple(shape)}: write "
            f"dist.Normal(0., 1.).expand({list(shape)}).to_event({len(shape)})."
        )
    return prior
