r"""Generalized variational inference: the expected log-likelihood plus an explicit penalty.

.. math::  L = -E_q[\log p(y \mid w)] + \lambda \, D(q, p)

For overparametrized linear models, minimizing the expected loss alone by gradient descent from the
prior ends at the minimizer that is nearest to the prior in 2-Wasserstein distance; with D the
squared distance and a small :math:`\lambda` that minimizer is asked for in so many words. This is
the ablation that tells implicit from explicit regularization.

References: Knoblauch, Jewson, Damoulas (2022), *An Optimization-centric View on Bayes' Rule:
Reviewing and Generalizing Variational Inference*, JMLR 23. Wenger, Coker, Marusic, Cunningham
(2025), arXiv:2505.20235.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import IndependentTransform, identity_transform

from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.objectives.sites import Site, is_delta, model_kind, sample_sites
from pyro_ibvi.objectives.terms import as_weight
from pyro_ibvi.theory.divergences import gaussian_kl, wasserstein2_squared
from pyro_ibvi.theory.kronecker_divergences import (
    kronecker_gaussian_kl,
    kronecker_wasserstein2_squared,
    separate_scales,
)

Divergence = Literal["wasserstein2", "kl"]
_DIVERGENCES = {"wasserstein2": wasserstein2_squared, "kl": gaussian_kl}
_KRONECKER_DIVERGENCES = {
    "wasserstein2": kronecker_wasserstein2_squared,
    "kl": kronecker_gaussian_kl,
}
PENALTY_SITE = "_divergence"


class CovarianceStructure(Protocol):
    """What is asked of the covariance structure of a factored Gaussian."""

    def rows(self, factor: Tensor, layer_factor: Tensor | None = None) -> Tensor:
        """Rows ``(P, R)`` of the factor of all sites that share noise, or a diagonal ``(P,)``."""
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


class TraceGeneralizedVI(TraceExpectedLogLikelihood):
    r"""Expected log-likelihood plus a closed-form divergence of the guide from the prior.

    .. math::

        L = \frac{1}{n} \Big( -E_q[\log p(y \mid w)] + \lambda \sum_s D(q_s, p_s) \Big)

    with D the squared 2-Wasserstein distance (in squared units of the weights) or the KL
    divergence (in nats), n as for `TraceExpectedLogLikelihood`, and the sum over the latent
    sites, or over the layers where the sites of a layer are correlated. With ``"kl"`` and weight 1
    it is the ELBO with analytic divergences.

    The guide's site must be Gaussian: ``Normal``, ``MultivariateNormal``, Pyro's `AutoNormal` on
    latents that take all real values, `AutoMuPNormal`, or (for ``"wasserstein2"``) a point
    estimate. The prior must be ``Normal`` or ``MultivariateNormal``; it may depend on other
    latents, of which the current draw is used. A low-rank covariance is degenerate, so it
    has a finite 2-Wasserstein distance but no KL divergence.

    Args:
        num_particles: Number of draws of the guide per step.
        max_plate_nesting: Bound on the number of nested plates, as for `Trace_ELBO`.
        divergence: ``"wasserstein2"`` for the squared 2-Wasserstein distance, or ``"kl"``.
        weight: Weight of the divergence, finite and at least 0. It may be set between steps.
        reduction: As for `TraceExpectedLogLikelihood`.
        factors: As for `TraceExpectedLogLikelihood`.
        vectorize_particles: As for `Trace_ELBO`.
        strict_enumeration_warning: As for `Trace_ELBO`.
        retain_graph: As for `Trace_ELBO`.

    Raises:
        ValueError: If an option has a value outside its range.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(w, 1.0), obs=y)
        >>> loss = TraceGeneralizedVI(divergence="wasserstein2", weight=0.1)
        >>> svi = pyro.infer.SVI(model, AutoNormal(model), pyro.optim.SGD({"lr": 0.1}), loss)
        >>> value = svi.step(torch.tensor(1.0))
    """

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        *,
        divergence: Divergence = "wasserstein2",
        weight: float = 1.0,
        reduction: Literal["sum", "mean"] = "sum",
        factors: Literal["likelihood", "drop"] = "likelihood",
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        retain_graph: bool | None = None,
    ) -> None:
        if divergence not in _DIVERGENCES:
            raise ValueError(
                f"divergence={divergence!r}: expected 'wasserstein2' (the squared 2-Wasserstein "
                "distance to the prior) or 'kl'."
            )
        super().__init__(
            num_particles,
            max_plate_nesting,
            reduction=reduction,
            factors=factors,
            allow_local=True,  # the divergence takes the place of the KL
            vectorize_particles=vectorize_particles,
            strict_enumeration_warning=strict_enumeration_warning,
            retain_graph=retain_graph,
        )
        self.divergence = divergence
        self.weight = weight

    @property
    def weight(self) -> float:
        """Weight of the divergence."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = as_weight("weight", value)

    def apply_weights(
        self,
        model_trace: Trace,
        guide_trace: Trace,
        weights: tuple[dict[str, float], dict[str, float]],
        factor: Tensor | float,
    ) -> None:
        """Weigh the sites as usual, and add the penalty as one more term of the model.

        Args:
            model_trace: The model's trace.
            guide_trace: The guide's trace.
            weights: Weights of the model's sites and of the guide's, by name.
            factor: A common factor of all weights.
        """
        term: Any = None
        if self._weight:
            value = gaussian_divergence(model_trace, guide_trace, self.divergence)
            term = -self._weight * factor * value
        super().apply_weights(model_trace, guide_trace, weights, factor)
        if term is not None:
            fields = {"log_prob": term, "log_prob_sum": term, "infer": {}, "cond_indep_stack": ()}
            model_trace.add_node(PENALTY_SITE, type="sample", **fields)


def gaussian_divergence(model_trace: Trace, guide_trace: Trace, divergence: Divergence) -> Tensor:
    """Closed-form divergence of a guide from its priors, summed over the latent sites.

    Args:
        model_trace: The model's trace, run against the guide's.
        guide_trace: The guide's trace.
        divergence: ``"wasserstein2"`` or ``"kl"``.

    Returns:
        The divergence, of shape (), scaled as the sites are.

    Raises:
        ValueError: If a site of the guide, or its prior, is not Gaussian, or is masked.
    """
    total: Any = 0.0
    for names in _layers(model_trace, guide_trace):
        sites = [model_trace.nodes[name] for name in names]
        if any(isinstance(site["mask"], Tensor) for site in sites):
            raise ValueError(
                f"The latent sites {names} are masked, and the divergence is known in closed form "
                "for whole sites only. Move them out of poutine.mask."
            )
        if any(site["mask"] is False for site in sites):
            continue
        fns = [_unwrapped(guide_trace.nodes[name]["fn"]) for name in names]
        value = _kronecker_divergence(fns, sites, divergence)
        if value is None:
            posterior = _posterior(names, model_trace, guide_trace, divergence)
            value = _divergence(posterior, [_prior(site) for site in sites], divergence)
        total = total + sites[0]["scale"] * value
    return torch.as_tensor(total)


def _layers(model_trace: Trace, guide_trace: Trace) -> list[list[str]]:
    """Return the names of the latents, those together that share noise."""
    layers: dict[object, list[str]] = {}
    for name, site in sample_sites(model_trace):
        if model_kind(site, guide_trace.nodes) == "latent":
            fn = _unwrapped(guide_trace.nodes[name]["fn"])
            shared = fn.shared if isinstance(fn, FactoredGaussian) else None
            layers.setdefault(name if shared is None else id(shared), []).append(name)
    return list(layers.values())


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def _posterior(
    names: list[str], model_trace: Trace, guide_trace: Trace, divergence: Divergence
) -> Gaussian:
    """Return the Gaussian from which the guide draws a layer's latents.

    Raises:
        ValueError: If it does not draw them from a Gaussian.
    """
    fns = [_unwrapped(guide_trace.nodes[name]["fn"]) for name in names]
    if all(isinstance(fn, FactoredGaussian) for fn in fns):
        return _joint(fns)
    (name,), (fn,) = names, fns
    site: Site = guide_trace.nodes[name]
    source: Site = guide_trace.nodes.get(f"{name}_unconstrained")
    prior: Site = model_trace.nodes[name]
    if is_delta(fn) and source is not None and _is_identity(biject_to(prior["fn"].support)):
        site, fn = source, _unwrapped(source["fn"])
    gaussian = _gaussian(site["fn"])
    if gaussian is not None:
        return gaussian
    auxiliary = any(other["infer"].get("is_auxiliary") for _, other in sample_sites(guide_trace))
    if is_delta(fn) and not auxiliary and divergence == "wasserstein2":
        value = site["value"].reshape(1, -1)
        return Gaussian(value, torch.zeros_like(value))
    raise ValueError(
        f"The guide draws {name!r} from {type(fn).__name__}, which has no closed-form "
        f"{divergence} divergence from its prior: it must be Gaussian on the site's own scale, as "
        "with Normal, MultivariateNormal, AutoNormal (for latents that take all real values) or "
        "AutoMuPNormal."
    )


def _is_identity(transform: Any) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return bool(transform == identity_transform)


def _joint(fns: Sequence[FactoredGaussian]) -> Gaussian:
    """Return the joint Gaussian of sites that share noise."""
    loc = torch.cat([fn.loc.reshape(-1) for fn in fns])
    factor = torch.cat([fn.covariance.rows(fn.factor, fn.layer_factor) for fn in fns])
    return Gaussian(loc.unsqueeze(0), factor.unsqueeze(0))


def _prior(site: Site) -> Gaussian:
    """Return the prior of a latent site.

    Raises:
        ValueError: If it is not Gaussian.
    """
    gaussian = _gaussian(site["fn"])
    if gaussian is None:
        raise ValueError(
            f"The prior of {site['name']!r} is {type(_unwrapped(site['fn'])).__name__}, which has "
            "no closed-form divergence from a Gaussian guide: it must be Normal or "
            "MultivariateNormal. Use a Normal latent and transform it in the model."
        )
    return gaussian


def _gaussian(fn: Any) -> Gaussian | None:
    """Return a distribution as independent Gaussians, or None if it is not Gaussian."""
    shape, base = fn.batch_shape + fn.event_shape, _unwrapped(fn)
    if isinstance(base, torch.distributions.Normal):
        loc, scale = (p.expand(shape).reshape(1, -1) for p in (base.loc, base.scale))
        return Gaussian(loc, scale)
    if isinstance(base, torch.distributions.MultivariateNormal):
        size = base.event_shape[0]
        loc = base.loc.expand(shape).reshape(-1, size)
        return Gaussian(loc, base.scale_tril.expand((*shape, size)).reshape(-1, size, size))
    return None


def _kronecker_divergence(
    fns: Sequence[Any], sites: Sequence[Site], divergence: Divergence
) -> Tensor | None:
    """Return the divergence of a Kronecker product from priors that are one, or None."""
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
    """Return the divergence of a layer's joint Gaussian from its sites' independent priors."""
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
    """Return the joint Gaussian of independent ones, block by block."""
    loc = torch.cat([g.loc for g in gaussians], dim=1)
    if all(g.factor.dim() == 2 for g in gaussians):
        return Gaussian(loc, torch.cat([g.factor for g in gaussians], dim=1))
    dense = [g.factor.diag_embed() if g.factor.dim() == 2 else g.factor for g in gaussians]
    blocks = [torch.block_diag(*rows) for rows in zip(*dense, strict=True)]
    return Gaussian(loc, torch.stack(blocks))


def _blocks(gaussian: Gaussian, count: int, size: int) -> Gaussian:
    """Return the same Gaussians as ``count`` blocks of ``size`` dimensions, or repeat them."""
    loc, factor = gaussian
    if factor.dim() == 2:
        loc, factor = loc.reshape(-1, size), factor.reshape(-1, size)
    return Gaussian(loc.expand(count, size), factor.expand(count, *factor.shape[1:]))
