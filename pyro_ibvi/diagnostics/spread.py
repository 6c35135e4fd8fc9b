"""Spread and distance of a guide's layers, from copies of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi.guides.covariance import Covariance
from pyro_ibvi.guides.multiplicative import Multiplicative
from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.guides.sites import Layer, Site
from pyro_ibvi.theory.divergences import wasserstein2_squared
from pyro_ibvi.theory.kronecker_divergences import kronecker_wasserstein2_squared
from pyro_ibvi.theory.limits import null_space_projection
from pyro_ibvi.theory.multiplicative import blockwise_wasserstein2_squared

# Mean, factor and layer factor by site.
SiteState = tuple[Tensor, Tensor | None, Tensor | None]
State = Mapping[str, SiteState]


def named_layers(guide: AutoMuPNormal) -> dict[str, list[Layer]]:
    """Sites that share noise, together by the network's layer or else by the site's name."""
    layers: dict[str, list[Layer]] = {}
    for group in guide.layers:
        first = group.sites[0]
        # A network that is one layer has no name of its own: "net." is its parameters' prefix.
        layer = "" if first.weight is None else first.weight.weight.layer.rstrip(".")
        name = layer or first.name
        layers.setdefault(name, []).append(group)
    return layers


def state_of(guide: AutoMuPNormal) -> dict[str, SiteState]:
    """Copies of the mean and the factors of every site, by name."""
    state: dict[str, SiteState] = {}
    for group in guide.layers:
        layer_factor = _copy(guide.layer_factor(group.name))
        for site in group.sites:
            factor = None if group.covariance is None else _copy(guide.factor(site.name))
            state[site.name] = guide.loc(site.name).detach().clone(), factor, layer_factor
    return state


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _joint(group: Layer, state: State) -> tuple[Tensor, Tensor]:
    """Mean ``(P,)`` and factor ``(P,)`` or ``(P, R)`` of sites that share noise."""
    sites = [state[site.name] for site in group.sites]
    loc = torch.cat([mean.flatten() for mean, _, _ in sites])
    if group.covariance is None:
        return loc, torch.zeros_like(loc)
    return loc, torch.cat(
        [
            group.covariance.rows(factor, layer_factor, mean)
            for mean, factor, layer_factor in sites
            if factor is not None
        ]
    )


def _matrix(group: Layer, state: State) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mean ``(n, P)`` and the two factors of sites with a Kronecker product."""
    sites = [state[site.name] for site in group.sites]
    outputs = sites[0][2]
    assert outputs is not None
    outputs = outputs.reshape(-1, outputs.shape[-1])
    loc = torch.cat([mean.reshape(len(outputs), -1) for mean, _, _ in sites], dim=1)
    rows = [f.reshape(-1, f.shape[-1]) for _, f, _ in sites if f is not None]
    return loc, (outputs, torch.cat(rows))


def squared_distance(group: Layer, now: State, start: State) -> Tensor:
    """Squared 2-Wasserstein distance of the joint law of sites that share noise."""
    if group.has_factor:
        return kronecker_wasserstein2_squared(*_matrix(group, now), *_matrix(group, start))
    if isinstance(group.covariance, Multiplicative):
        (loc, directions, index), (loc_before, before, _) = (
            _blocks(group.covariance, state[group.name]) for state in (now, start)
        )
        return blockwise_wasserstein2_squared(loc, directions, index, loc_before, before)
    return wasserstein2_squared(*_joint(group, now), *_joint(group, start))


def _blocks(covariance: Multiplicative, site: SiteState) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, directions of the noise on inputs, and the input of each weight."""
    loc, factor, _ = site
    assert factor is not None
    return loc.reshape(-1), *covariance.blocks(factor, loc)


def total_variance(groups: list[Layer], state: State) -> Tensor:
    """Sum of the variances of all weights of a layer."""
    scales = [
        marginal_scale(group.covariance, state[site.name])
        for group in groups
        for site in group.sites
    ]
    return torch.stack([scale.square().sum() for scale in scales]).sum()


def marginal_scale(covariance: Covariance | None, site: SiteState) -> Tensor:
    """Standard deviations of the weights of a site; zero for a point estimate."""
    loc, factor, layer_factor = site
    if covariance is None or factor is None:
        return torch.zeros_like(loc)
    return covariance.scale(factor, layer_factor, loc)


def span_variance(groups: list[Layer], state: State, basis: Tensor) -> Tensor:
    """Variance of a linear layer's weights along the basis ``(features, rank)``."""
    total = basis.new_zeros(())
    for group in groups:
        factor = _joint(group, state)[1]
        along: Any = 0.0
        begin = 0
        for site in group.sites:
            rows = _basis_rows(site, state, basis)
            size = state[site.name][0].numel()
            part = factor[begin : begin + size]
            begin += size
            if factor.dim() == 1:
                scales = part.reshape(-1, len(rows))
                total = total + (scales.square() @ rows.square()).sum()
            else:  # (outputs, features, R) along (features, rank)
                along = along + rows.mT @ part.reshape(-1, len(rows), factor.shape[1])
        if factor.dim() == 2:
            total = total + along.square().sum()
    return total


def _basis_rows(site: Site, state: State, basis: Tensor) -> Tensor:
    """The rows of the basis that belong to a weight, or the last one, which is the bias's."""
    return basis[-1:] if is_bias(site) else basis[: state[site.name][0].shape[-1]]


def is_bias(site: Site) -> bool:
    """Whether a site is a network's bias."""
    return site.weight is not None and site.weight.weight.role == "bias"


def span_basis(
    name: str, layers: Mapping[str, list[Layer]], inputs: Tensor, start: State
) -> Tensor:
    """Orthonormal basis of the span of a layer's inputs, with a one for a random bias."""
    sites = [site for group in layers[name] for site in group.sites]
    weights = [site for site in sites if not is_bias(site)]
    shapes = {site.name: tuple(start[site.name][0].shape) for site in weights}
    features = {shape[-1] for shape in shapes.values() if len(shape) in {1, 2}}
    if len(weights) != 1 or features != set(inputs.shape[1:]) or inputs.dim() != 2:
        raise ValueError(
            f"The inputs of the layer {name!r} have the shape {tuple(inputs.shape)}, and its "
            f"weights {shapes}: (N, features) was expected, for one linear layer whose weight is "
            "(outputs, features)."
        )
    inputs = inputs.detach().to(start[weights[0].name][0])
    if len(weights) < len(sites):
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=-1)
    return null_space_projection(inputs).basis
