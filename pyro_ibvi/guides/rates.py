"""Learning rates of a guide's parameters and of its model's, relative to the global rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from pyro_ibvi.guides.multiplicative import Multiplicative
from pyro_ibvi.guides.sites import Layer, Site
from pyro_ibvi.mup.parametrization import Family
from pyro_ibvi.mup.roles import NetworkWeight

#: Name, parameter and factor on the global learning rate.
NamedRate = tuple[str, nn.Parameter, float]
#: Name and value of a parameter of the guide, by its kind (``"locs"``, ``"factors"``,
#: ``"layer_factors"``) and site.
FindParameter = Callable[[str, Site], tuple[str, nn.Parameter]]


def guide_rates(
    layers: Iterable[Layer], find: FindParameter, family: Family
) -> Iterator[NamedRate]:
    """Every parameter of a guide with its learning rate.

    Args:
        layers: The guide's layers.
        find: Gives a site's parameter of a kind.
        family: How the optimizer scales its updates.

    Yields:
        Name, parameter, and factor on the global learning rate.
    """
    for layer in layers:
        for site in layer.sites:
            rate = 1.0 if site.weight is None else site.weight.rate(family)
            yield (*find("locs", site), rate)
            if layer.covariance is not None and not layer.covariance.is_held:
                name, factor = find("factors", site)
                yield name, factor, _factor_rate(layer, site.weight, factor, family)
        if layer.has_factor:
            name, factor = find("layer_factors", layer.sites[0])
            yield name, factor, _layer_factor_rate(layer, factor.shape[-1], family)


def model_rates(
    model: Any,
    weights: Mapping[str, tuple[nn.Parameter, NetworkWeight | None]],
    family: Family,
) -> Iterator[NamedRate]:
    """Every trained parameter of a model with its learning rate.

    Args:
        model: The model.
        weights: The parameters that it reads as Pyro's parameter statements, by name, each with
            the network weight that it is.
        family: How the optimizer scales its updates.

    Yields:
        Name, parameter, and factor on the global learning rate.
    """
    seen = set()
    for name, (parameter, weight) in weights.items():
        if parameter not in seen:
            seen.add(parameter)
            yield name, parameter, 1.0 if weight is None else weight.rate(family)
    if isinstance(model, nn.Module):
        networks = dict(_network_weights(model))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter not in seen:
                weight = networks.get(parameter)
                yield name, parameter, 1.0 if weight is None else weight.rate(family)


def _network_weights(model: nn.Module) -> Iterator[tuple[nn.Parameter, NetworkWeight]]:
    """What networks say of all their parameters, those too that were frozen at first."""
    for module in model.modules():
        named_weights = getattr(module, "named_weights", None)
        if callable(named_weights):
            yield from ((parameter, weight) for _, parameter, weight in named_weights())


def _factor_rate(
    layer: Layer, weight: NetworkWeight | None, factor: nn.Parameter, family: Family
) -> float:
    """Factor on the global learning rate for a site's covariance factor."""
    if weight is None:
        return 1.0
    covariance = layer.covariance
    assert covariance is not None
    if isinstance(covariance, Multiplicative):
        return covariance.rate * weight.multiplicative_rate(family)
    rank = covariance.noise_rank(factor)
    if rank is None or not layer.has_factor:
        return weight.factor_rate(family, rank=rank)
    return weight.kronecker_rate(family, rank=rank, first=False)


def _layer_factor_rate(layer: Layer, rank: int, family: Family) -> float:
    """Factor for the covariance factor that a layer's sites have in common."""
    weights = [site.weight for site in layer.sites if site.weight is not None]
    # The factor acts on every site of the layer: the slowest is stable for all.
    rates = [weight.kronecker_rate(family, rank=rank, first=True) for weight in weights]
    return min(rates, default=1.0)
