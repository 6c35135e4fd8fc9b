"""How a guide draws its sites: as Pyro's sample statements, or all at once without Pyro."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_ibvi.guides import parameters
from pyro_ibvi.guides.buffers import BufferPool
from pyro_ibvi.guides.distributions import FactorNormal, SharedNoise
from pyro_ibvi.guides.rows import Batch
from pyro_ibvi.guides.sites import Layer, Site


def draw_sites(
    guide: nn.Module, layers: Iterable[Layer], pool: BufferPool, draws: torch.Size
) -> dict[str, Tensor]:
    """Draws every global site outside of any Pyro model.

    Args:
        guide: The guide, which holds the parameters.
        layers: Its layers.
        pool: Gives memory for large tensors.
        draws: Shape of independent draws.

    Returns:
        The draws by site name, the draws' dimensions in front; a point estimate's are views.
    """
    result = {}
    for layer in layers:
        if layer.covariance is not None:
            noise = make_noise(parameters.layer_factor(guide, layer), pool)
        for site in layer.sites:
            loc = parameters.get(guide, "locs", site)
            if layer.covariance is None:
                value = loc.expand(draws + loc.shape)
            else:
                factor = parameters.get(guide, "factors", site)
                value = noise.draw(loc, factor, layer.covariance, draws)
            result[site.name] = site.constrain(value)
    return result


def sample_layer(
    guide: nn.Module,
    layer: Layer,
    batch: Batch,
    pool: BufferPool,
    result: dict[str, Tensor],
) -> None:
    """Draws the sites of a layer by Pyro's sample statements.

    Args:
        guide: The guide, which holds the parameters.
        layer: The layer.
        batch: The plates that are open, and masks.
        pool: Gives memory for large tensors.
        result: Takes the draws by site name.
    """
    layer_factor = None
    if layer.has_factor:
        layer_factor = parameters.read(guide, "layer_factors", layer.sites[0])
    shared = make_noise(layer_factor, pool)
    previous: list[tuple[Tensor, Tensor, Tensor]] = []
    for site in layer.sites:
        with ExitStack() as stack:
            for frame in site.frames:
                stack.enter_context(batch.plates[frame.name])
            if site.name in batch.masks:
                stack.enter_context(poutine.mask(mask=batch.masks[site.name]))
            loc = batch.rows_of(parameters.read(guide, "locs", site), site)
            if layer.covariance is None:
                fn: Any = dist.Delta(site.constrain(loc), event_dim=site.value_event_dim)
            else:
                factor = batch.rows_of(parameters.read(guide, "factors", site), site)
                fn = _law(site, layer, loc, factor, layer_factor, shared, tuple(previous))
            value = result[site.name] = pyro.sample(site.name, fn)
        if len(layer.sites) > 1 and layer.covariance is not None:
            previous.append((loc, factor, site.unconstrain(value)))


def make_noise(layer_factor: Tensor | None, pool: BufferPool) -> SharedNoise:
    """A source of noise for one layer and one call.

    Args:
        layer_factor: Factor that the layer's sites have in common.
        pool: Gives memory for large tensors, in training.

    Returns:
        The source.
    """
    trains = torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
    return SharedNoise(layer_factor, pool if trains else None)


def _law(
    site: Site,
    layer: Layer,
    loc: Tensor,
    factor: Tensor,
    layer_factor: Tensor | None,
    shared: SharedNoise,
    previous: tuple[tuple[Tensor, Tensor, Tensor], ...],
) -> Any:
    """The law of a site's value."""
    assert layer.covariance is not None
    law = FactorNormal(
        loc,
        factor,
        layer.covariance,
        event_dim=site.event_dim,
        layer_factor=layer_factor,
        shared=shared,
        previous=previous,
    )
    transform = site.transform()
    return law if transform is None else dist.TransformedDistribution(law, [transform])
