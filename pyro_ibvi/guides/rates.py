"""How an optimizer is to treat a guide's parameters and its model's: rates, epsilons, decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyro
from torch import Tensor, nn

from pyro_ibvi._util.modes import owner_module
from pyro_ibvi.guides.base import MuPGuide
from pyro_ibvi.guides.multiplicative import Multiplicative
from pyro_ibvi.guides.sites import Layer, Site
from pyro_ibvi.mup.parametrization import Family, Rate
from pyro_ibvi.mup.roles import NetworkWeight

#: Name, parameter and what the optimizer is to do with it.
NamedRate = tuple[str, nn.Parameter, Rate]
#: Name and value of a parameter of the guide, by its kind (``"locs"``, ``"factors"``,
#: ``"layer_factors"``) and site.
FindParameter = Callable[[str, Site], tuple[str, nn.Parameter]]

_MATRICES = ("input", "hidden", "output")


def guide_rates(
    layers: Iterable[Layer], find: FindParameter, family: Family
) -> Iterator[NamedRate]:
    """Every parameter of a guide with its rate.

    Args:
        layers: The guide's layers.
        find: Gives a site's parameter of a kind.
        family: How the optimizer scales its updates.

    Yields:
        Name, parameter, and rate.
    """
    for layer in layers:
        for site in layer.sites:
            name, loc = find("locs", site)
            yield name, loc, mean_rate(site.weight, loc, family)
            if layer.covariance is not None and not layer.covariance.is_held:
                name, factor = find("factors", site)
                yield name, factor, _factor_rate(layer, site.weight, factor, _of_noise(family))
        if layer.has_factor:
            name, factor = find("layer_factors", layer.sites[0])
            yield name, factor, _layer_factor_rate(layer, factor.shape[-1], _of_noise(family))


def model_rates(model: Any, read_from: Mapping[str, Any], family: Family) -> Iterator[NamedRate]:
    """Every parameter of a model with its rate, as they are now, frozen ones included.

    Parameters are looked up at each call: one that was replaced since, or is trained by now, has
    the rate of its name.

    Args:
        model: The model.
        read_from: By name of a site or parameter, the network that it belongs to, which has a
            method ``named_weights()``, or the parameter itself.
        family: How the optimizer scales its updates.

    Yields:
        Name, parameter, and rate.
    """
    seen: set[Tensor] = set()

    def new(parameter: nn.Parameter) -> bool:
        is_new = parameter not in seen
        seen.add(parameter)
        return is_new

    parameters = {n: v for n, v in read_from.items() if isinstance(v, Tensor)}
    networks = {id(v): v for v in read_from.values() if not isinstance(v, Tensor)}
    for network in networks.values():
        for name, parameter, weight in network.named_weights():
            if new(parameter):
                yield name, parameter, mean_rate(weight, parameter, family)
        seen.update(network.parameters())  # the values of random weights, which nothing trains
    for name, parameter in _held_by_modules(model):
        if new(parameter):
            yield name, parameter, Rate(family=_of_noise(family))
    store = pyro.get_param_store()
    for name, parameter in parameters.items():
        found = store._params.get(name, parameter)
        if new(found):  # type: ignore[arg-type]
            yield name, found, Rate(family=_of_noise(family))  # type: ignore[misc]


def _held_by_modules(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of the modules that a model is, has among its arguments, or is a method of.

    Handlers around it may hide them from a trace. A module may hold the model's guides as well,
    whose parameters have rates of their own.

    Yields:
        Name and parameter.
    """
    known = (model, *getattr(model, "args", ()), owner_module(model))
    for holder in {id(each): each for each in known if isinstance(each, nn.Module)}.values():
        guides = [part for part in holder.modules() if isinstance(part, MuPGuide)]
        own = {parameter for guide in guides for parameter in guide.parameters()}
        for name, parameter in holder.named_parameters():
            if parameter not in own:
                yield name, parameter


def mean_rate(weight: NetworkWeight | None, parameter: Tensor, family: Family) -> Rate:
    """How the mean of a weight, or its point estimate, is treated.

    Args:
        weight: The weight, or None for what no network knows: it learns at the global rate.
        parameter: The parameter.
        family: How the optimizer scales its updates. Of ``"muon"`` hidden matrices take the rule,
            and all else that of ``"adam"``.

    Returns:
        The rate.
    """
    if weight is None:
        return Rate(family=_of_noise(family))
    role = weight.weight.role
    if family == "muon" and role == "hidden" and parameter.dim() == 2:
        return Rate(_muon_rate(weight, parameter), family="muon")
    family = _of_noise(family)
    return Rate(weight.rate(family), weight.epsilon(), decays=role in _MATRICES, family=family)


def _muon_rate(weight: NetworkWeight, parameter: Tensor) -> float:
    """Size of the orthogonal update of a matrix, several of them stacked counted as one."""
    role, fans = weight.weight, weight.weight.fans
    num_out = parameter.shape[1 if role.inputs_first else 0]
    stacked = num_out / fans.width_out
    base = fans.base_width_out
    fans = replace(
        fans,
        width_out=num_out,
        base_width_out=None if base is None else max(1, round(stacked * base)),
    )
    return weight.parametrization.rate("hidden", fans, "muon")


def _of_noise(family: Family) -> Family:
    """The family of what Muon leaves to another optimizer, covariance factors among it."""
    return "adam" if family == "muon" else family


def _factor_rate(
    layer: Layer, weight: NetworkWeight | None, parameter: nn.Parameter, family: Family
) -> Rate:
    """The rate of a site's covariance factor."""
    covariance = layer.covariance
    assert covariance is not None
    if weight is None:
        return Rate(decays=False, family=family)
    if isinstance(covariance, Multiplicative):
        factor = covariance.rate * weight.multiplicative_rate(family)
        return Rate(factor, decays=False, family=family)
    rank = covariance.noise_rank(parameter)
    if rank is None or not layer.has_factor:
        factor, epsilon = weight.factor_rate(family, rank=rank), weight.epsilon()
    else:
        factor = weight.kronecker_rate(family, rank=rank, first=False)
        epsilon = weight.epsilon(first=False)
    return Rate(factor, epsilon, decays=False, family=family)


def _layer_factor_rate(layer: Layer, rank: int, family: Family) -> Rate:
    """The rate of the covariance factor that a layer's sites have in common."""
    weights = [site.weight for site in layer.sites if site.weight is not None]
    # The factor acts on every site of the layer: the slowest is stable for all.
    factors = [weight.kronecker_rate(family, rank=rank, first=True) for weight in weights]
    epsilons = [weight.epsilon(first=True) for weight in weights]
    return Rate(min(factors, default=1.0), min(epsilons, default=1.0), decays=False, family=family)
