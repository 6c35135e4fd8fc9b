"""An explicit penalty: the closed-form divergence of a guide from its priors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import IndependentTransform, identity_transform

from pyro_ibvi._util.distributions import is_delta
from pyro_ibvi.objectives.sites import Site, Traces
from pyro_ibvi.objectives.terms import as_weight
from pyro_ibvi.theory.divergences import gaussian_kl, wasserstein2_squared
from pyro_ibvi.theory.kronecker_divergences import (
    kronecker_gaussian_kl,
    kronecker_wasserstein2_squared,
    separate_scales,
)
from pyro_ibvi.theory.multiplicative import multiplicative_wasserstein2_squared

Divergence = Literal["wasserstein2", "kl"]
_DIVERGENCES = {"wasserstein2": wasserstein2_squared, "kl": gaussian_kl}
_KRONECKER_DIVERGENCES = {
    "wasserstein2": kronecker_wasserstein2_squared,
    "kl": kronecker_gaussian_kl,
}


class CovarianceStructure(Protocol):
    """What is asked of the covariance structure of a factored Gaussian."""

    def rows(
        self, factor: Tensor, layer_factor: Tensor | None = None, loc: Tensor | None = None
    ) -> Tensor:
        """Rows ``(P, R)`` of the factor of all sites that share noise, or a diagonal ``(P,)``."""
        ...


@runtime_checkable
class RankOneBlocks(Protocol):
    """A covariance structure in which each weight is moved by one noise variable."""

    def blocks(self, factor: Tensor, loc: Tensor) -> tuple[Tensor, Tensor]:
        """What a standard deviation of its noise adds to each weight, and which noise it is."""
        ...


@runtime_checkable
class FactoredGaussian(Protocol):
    r"""A guide's distribution :math:`N(loc, S S^\top)` that is known by its factor.

    Attributes:
        loc: The mean.
        factor: The factor, in the shape that ``covariance`` gives it.
        covariance: Its structure.
        layer_factor: A factor that the sites of one layer have in common, or None.
        shared: The noise that sites of one layer share, or None: a layer's sites have the same.
    """

    loc: Tensor
    factor: Tensor
    covariance: CovarianceStructure
    layer_factor: Tensor | None
    shared: object | None


class Gaussian(NamedTuple):
    """Gaussians of independent batch elements: ``loc`` (B, P) and ``factor`` (B, P[, R])."""

    loc: Tensor
    factor: Tensor


class DivergencePenalty:
    """A weighted divergence of a guide from its priors, which an objective may hold.

    Args:
        divergence: ``"wasserstein2"`` for the squared 2-Wasserstein distance, or ``"kl"``.
        weight: Weight of the divergence, finite and at least 0. It may be set between steps.

    Raises:
        TypeError: If the weight is not a number.
        ValueError: If an argument has a value outside its range.

    Example:
        >>> from pyro_ibvi import TraceExpectedLogLikelihood
        >>> loss = TraceExpectedLogLikelihood(penalty=DivergencePenalty("kl", weight=0.1))
    """

    def __init__(self, divergence: Divergence = "wasserstein2", weight: float = 1.0) -> None:
        if divergence not in get_args(Divergence):
            raise ValueError(
                f"divergence={divergence!r}: expected 'wasserstein2' (the squared 2-Wasserstein "
                "distance to the prior) or 'kl'."
            )
        self.divergence: Divergence = divergence
        self.weight = weight

    @property
    def weight(self) -> float:
        """Weight of the divergence."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = as_weight("weight", value)

    def site(self, traces: Traces, factor: Tensor | float) -> Site:
        """The penalty as a site of the model, or None where its weight is zero.

        Args:
            traces: The traces.
            factor: A common factor of all terms.

        Returns:
            The fields that Pyro's estimators read.
        """
        if not self.weight:
            return None
        term = -self.weight * factor * gaussian_divergence(traces, self.divergence)
        fields = {"log_prob": term, "log_prob_sum": term, "infer": {}, "cond_indep_stack": ()}
        return {"type": "sample", **fields}


def gaussian_divergence(traces: Traces, divergence: Divergence) -> Tensor:
    """Closed-form divergence of a guide from its priors, summed over the latent sites.

    Args:
        traces: The traces.
        divergence: ``"wasserstein2"`` or ``"kl"``.

    Returns:
        The divergence, of shape (), scaled as the sites are.

    Raises:
        ValueError: If a site of the guide, or its prior, is not Gaussian, or is masked.
    """
    total: Any = 0.0
    for names in _layers(traces):
        sites = [traces.model_sites[name] for name in names]
        if any(isinstance(site["mask"], Tensor) for site in sites):
            raise ValueError(
                f"The latent sites {names} are masked, and the divergence is known in closed form "
                "for whole sites only. Move them out of poutine.mask."
            )
        if any(site["mask"] is False for site in sites):
            continue
        fns = [_unwrapped(traces.guide_sites[name]["fn"]) for name in names]
        value = _kronecker_divergence(fns, sites, divergence)
        if value is None:
            value = _blockwise_distance(fns, sites, divergence)
        if value is None:
            posterior = _posterior(names, traces, divergence)
            value = _divergence(posterior, [_prior(site) for site in sites], divergence)
        total = total + sites[0]["scale"] * value
    return torch.as_tensor(total)


def _layers(traces: Traces) -> list[list[str]]:
    """Returns the names of the latents, those together that share noise."""
    layers: dict[object, list[str]] = {}
    for name, kind in traces.model_kinds.items():
        if kind == "latent":
            fn = _unwrapped(traces.guide_sites[name]["fn"])
            shared = fn.shared if isinstance(fn, FactoredGaussian) else None
            layers.setdefault(name if shared is None else id(shared), []).append(name)
    return list(layers.values())


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def _posterior(names: list[str], traces: Traces, divergence: Divergence) -> Gaussian:
    """Returns the Gaussian from which the guide draws a layer's latents."""
    fns = [_unwrapped(traces.guide_sites[name]["fn"]) for name in names]
    if all(isinstance(fn, FactoredGaussian) for fn in fns):
        return _joint(fns)
    (name,), (fn,) = names, fns
    site: Site = traces.guide_sites[name]
    source: Site = traces.guide_sites.get(f"{name}_unconstrained")
    prior: Site = traces.model_sites[name]
    if is_delta(fn) and source is not None and _is_identity(biject_to(prior["fn"].support)):
        site, fn = source, _unwrapped(source["fn"])
    gaussian = _gaussian(site["fn"])
    if gaussian is not None:
        return gaussian
    auxiliary = any(other["infer"].get("is_auxiliary") for other in traces.guide_sites.values())
    if is_delta(fn) and not auxiliary and divergence == "wasserstein2":
        value = site["value"].reshape(1, -1)
        return Gaussian(value, torch.zeros_like(value))
    raise ValueError(
        f"The guide draws {name!r} from {type(fn).__name__}, which has no closed-form "
        f"{divergence} divergence from its prior: it must be Gaussian on the site's own scale, as "
        "with Normal, MultivariateNormal, and AutoNormal or AutoMuPNormal for latents that take "
        "all real values. Use a Normal latent and transform it in the model, s = z.exp() for a "
        "LogNormal s."
    )


def _is_identity(transform: Any) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return bool(transform == identity_transform)


def _joint(fns: Sequence[FactoredGaussian]) -> Gaussian:
    """Returns the joint Gaussian of sites that share noise."""
    loc = torch.cat([fn.loc.reshape(-1) for fn in fns])
    factor = torch.cat([fn.covariance.rows(fn.factor, fn.layer_factor, fn.loc) for fn in fns])
    return Gaussian(loc.unsqueeze(0), factor.unsqueeze(0))


def _prior(site: Site) -> Gaussian:
    """Returns the prior of a latent site."""
    gaussian = _gaussian(site["fn"])
    if gaussian is None:
        raise ValueError(
            f"The prior of {site['name']!r} is {type(_unwrapped(site['fn'])).__name__}, which has "
            "no closed-form divergence from a Gaussian guide: it must be Normal or "
            "MultivariateNormal. Use a Normal latent and transform it in the model."
        )
    return gaussian


def _gaussian(fn: Any) -> Gaussian | None:
    """Returns a distribution as independent Gaussians, or None if it is not Gaussian."""
    shape, base = fn.batch_shape + fn.event_shape, _unwrapped(fn)
    if isinstance(base, torch.distributions.Normal):
        loc, scale = (p.expand(shape).reshape(1, -1) for p in (base.loc, base.scale))
        return Gaussian(loc, scale)
    if isinstance(base, torch.distributions.MultivariateNormal):
        size = base.event_shape[0]
        loc = base.loc.expand(shape).reshape(-1, size)
        return Gaussian(loc, base.scale_tril.expand((*shape, size)).reshape(-1, size, size))
    return None


def _blockwise_distance(
    fns: Sequence[Any], sites: Sequence[Site], divergence: Divergence
) -> Tensor | None:
    """Returns the 2-Wasserstein distance of rank-one blocks from independent priors, or None."""
    fn = fns[0]
    is_blockwise = isinstance(getattr(fn, "covariance", None), RankOneBlocks)
    if not is_blockwise or divergence != "wasserstein2":
        return None
    prior = _prior(sites[0])
    if len(fns) > 1 or prior.factor.dim() == 3:
        return None
    loc, (directions, index) = fn.loc.reshape(-1), fn.covariance.blocks(fn.factor, fn.loc)
    means, scales = (part.reshape(-1, len(loc)) for part in prior)
    distances = [
        multiplicative_wasserstein2_squared(loc, directions, index, mean, scale)
        for mean, scale in zip(means, scales, strict=True)  # vectorized particles
    ]
    return torch.stack(distances).sum()


def _kronecker_divergence(
    fns: Sequence[Any], sites: Sequence[Site], divergence: Divergence
) -> Tensor | None:
    """Returns the divergence of a Kronecker product from priors that are one, or None."""
    if not all(isinstance(fn, FactoredGaussian) for fn in fns):
        return None
    outputs = fns[0].layer_factor
    if outputs is None:
        return None
    priors = [_prior(site) for site in sites]
    if any(prior.factor.dim() == 3 for prior in priors):
        return None
    count = outputs.shape[:-1].numel()
    num_blocks = priors[0].loc.numel() // fns[0].loc.numel()  # vectorized particles
    inputs = torch.cat([fn.factor.reshape(-1, fn.factor.shape[-1]) for fn in fns])
    factors = outputs.reshape(count, -1), inputs
    loc, prior_loc, prior_scale = (
        torch.cat([part.reshape(blocks, count, -1) for part in parts], dim=-1)
        for blocks, parts in (
            (1, [fn.loc for fn in fns]),
            (num_blocks, [prior.loc for prior in priors]),
            (num_blocks, [prior.factor for prior in priors]),
        )
    )
    total: Any = 0.0
    for mean, scales in zip(prior_loc, prior_scale, strict=True):
        prior_factors = None if scales.requires_grad else separate_scales(scales)
        if prior_factors is None:
            return None
        total = total + _KRONECKER_DIVERGENCES[divergence](loc[0], factors, mean, prior_factors)
    return torch.as_tensor(total)


def _divergence(posterior: Gaussian, priors: list[Gaussian], divergence: Divergence) -> Tensor:
    """Returns the divergence of a layer's joint Gaussian from its sites' independent priors."""
    dense = [g for g in (posterior, *priors) if g.factor.dim() == 3]
    size = dense[0].loc.shape[1] if dense else posterior.loc.numel()
    count = sum(prior.loc.numel() for prior in priors) // size
    if len(priors) == 1:
        prior = _blocks(priors[0], count, size)
    else:
        prior = _side_by_side([_blocks(p, count, p.loc.numel() // count) for p in priors])
    posterior = _blocks(posterior, count, size)
    pairs = zip(posterior.loc, posterior.factor, prior.loc, prior.factor, strict=True)
    return torch.stack([_DIVERGENCES[divergence](*pair) for pair in pairs]).sum()


def _side_by_side(gaussians: list[Gaussian]) -> Gaussian:
    """Returns the joint Gaussian of independent ones, block by block."""
    loc = torch.cat([g.loc for g in gaussians], dim=1)
    if all(g.factor.dim() == 2 for g in gaussians):
        return Gaussian(loc, torch.cat([g.factor for g in gaussians], dim=1))
    dense = [g.factor.diag_embed() if g.factor.dim() == 2 else g.factor for g in gaussians]
    blocks = [torch.block_diag(*rows) for rows in zip(*dense, strict=True)]
    return Gaussian(loc, torch.stack(blocks))


def _blocks(gaussian: Gaussian, count: int, size: int) -> Gaussian:
    """Returns the same Gaussians as ``count`` blocks of ``size`` dimensions, or repeat them."""
    loc, factor = gaussian
    if factor.dim() == 2:
        loc, factor = loc.reshape(-1, size), factor.reshape(-1, size)
    return Gaussian(loc.expand(count, size), factor.expand(count, *factor.shape[1:]))
