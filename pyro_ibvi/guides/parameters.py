"""Where a guide keeps its parameters: by kind, then under each site's own dotted name.

The kinds are ``"locs"`` (means), ``"factors"`` (of the sites' covariances) and
``"layer_factors"`` (what the sites of a layer have in common, under the first one's name).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pyro_ibvi.guides.sites import Layer, Site
from pyro_ibvi.models.parameters import full_name, read_parameter

KINDS = ("locs", "factors", "layer_factors")


def register(
    guide: nn.Module, kind: str, site: Site, value: Tensor, *, trained: bool = True
) -> None:
    """Makes a parameter, past the checks that forbid dots in names.

    Args:
        guide: The guide, which has a module for each kind.
        kind: The kind.
        site: The site.
        value: The start.
        trained: Whether it requires a gradient.
    """
    path, last = site.path
    module = guide._modules[kind]
    assert module is not None
    for part in path:
        module = module._modules.setdefault(part, nn.Module())
        assert module is not None
    module._parameters[last] = nn.Parameter(value.detach().contiguous(), requires_grad=trained)


def share(guide: nn.Module, other: nn.Module, site: Site) -> None:
    """Puts a guide's parameters of a site in the place of another guide's.

    Args:
        guide: The guide whose parameters both have from then on.
        other: A guide of the same sites.
        site: The site.
    """
    path, last = site.path
    for kind in KINDS:
        module: Any = guide._modules[kind]
        twin: Any = other._modules[kind]
        for part in path:
            module, twin = module._modules.get(part), twin._modules.get(part)
            if module is None:
                break
        if module is not None and last in module._parameters:
            twin._parameters[last] = module._parameters[last]


def get(guide: nn.Module, kind: str, site: Site) -> nn.Parameter:
    """A parameter of a site.

    Args:
        guide: The guide.
        kind: The kind.
        site: The site.

    Returns:
        The parameter.
    """
    path, last = site.path
    module: Any = guide._modules[kind]
    for part in path:
        module = module._modules[part]
    parameter: nn.Parameter = module._parameters[last]
    return parameter


def named(guide: Any, kind: str, site: Site) -> tuple[str, nn.Parameter]:
    """A parameter of a site with its name in Pyro's traces.

    Args:
        guide: The guide.
        kind: The kind.
        site: The site.

    Returns:
        Name and parameter.
    """
    return full_name(guide, f"{kind}.{site.name}"), get(guide, kind, site)


def read(guide: Any, kind: str, site: Site) -> Tensor:
    """Announces a parameter to Pyro's handlers and reads its value.

    Args:
        guide: The guide.
        kind: The kind.
        site: The site.

    Returns:
        The value, as handlers may have changed it.
    """
    name, parameter = named(guide, kind, site)
    if not parameter.requires_grad:
        return parameter.detach()
    return read_parameter(name, parameter, event_dim=site.event_dim if site.frames else None)


def layer_factor(guide: nn.Module, layer: Layer) -> nn.Parameter | None:
    """The factor that the sites of a layer have in common.

    Args:
        guide: The guide.
        layer: The layer.

    Returns:
        The factor, or None.
    """
    return get(guide, "layer_factors", layer.sites[0]) if layer.has_factor else None


def find(layers: Iterable[Layer], name: str) -> tuple[Layer, Site]:
    """A site by its name.

    Args:
        layers: The guide's layers.
        name: The name.

    Returns:
        The site's layer, and the site.

    Raises:
        KeyError: If there is no such site.
    """
    names = []
    for layer in layers:
        for site in layer.sites:
            if site.name == name:
                return layer, site
            names.append(site.name)
    raise KeyError(f"No latent site {name!r}; the sites are {names}.")
