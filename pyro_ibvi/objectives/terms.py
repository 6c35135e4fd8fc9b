"""The terms of an evidence lower bound: which site gives which, and with what weight.

An ELBO is a sum over sample sites,

    ELBO = sum_obs log p(y | w)  +  sum_latents log p(w)  -  sum_guide log q(w),

and every objective of this package is the same sum with a weight per site: 1 for the likelihood,
``kl_weight`` for the latent terms, 1 for the latents that the user keeps. The functions here read
a pair of Pyro traces, say what each site is, and evaluate only the sites whose weight is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, Literal, TypeAlias

import pyro.poutine as poutine
import torch
from pyro.distributions import Distribution, ExpandedDistribution, MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.ops.provenance import detach_provenance
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import site_is_factor
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_ibvi.objectives.sites import Site, model_kind, sample_sites

KeepKL: TypeAlias = str | Iterable[str] | Callable[[Site], bool]


def as_patterns(keep_kl: str | Iterable[str]) -> tuple[str, ...]:
    """Return names or patterns as a tuple of strings.

    Args:
        keep_kl: One pattern or several.

    Returns:
        The patterns.

    Raises:
        TypeError: If it holds anything but strings.
    """
    patterns = (keep_kl,) if isinstance(keep_kl, str) else tuple(keep_kl)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"keep_kl holds {pattern!r} of type {type(pattern).__name__}: expected site names "
                "or patterns, as in keep_kl=['z', 'encoder.*'], or one function of a site."
            )
    return patterns


def as_weight(name: str, value: float) -> float:
    """Return a weight as a float.

    Args:
        name: What the weight is called, for the message.
        value: The weight.

    Returns:
        The weight.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: expected a number, got {type(value).__name__}.")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value!r}: expected a finite number of at least 0.")
    return float(value)


def run_traces(
    graph_type: Literal["flat", "dense"],
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Trace, Trace]:
    """Run the guide, then the model against its draws; evaluate no density.

    Args:
        graph_type: ``"flat"`` or ``"dense"``, as Pyro's traces have it.
        model: The model.
        guide: The guide; a `GuideMessenger` gives both traces in one run.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.

    Returns:
        The model's trace and the guide's trace, with the subsample sites still in them.
    """
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, GuideMessenger):
        guide(*args, **kwargs)
        return unwrapped.get_traces()
    guide_trace = poutine.trace(guide, graph_type=graph_type).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    return poutine.trace(replayed, graph_type=graph_type).get_trace(*args, **kwargs), guide_trace


def kept_names(keep_kl: KeepKL, model_trace: Trace, guide_trace: Trace) -> set[str]:
    """Return the names of the sites, in model and guide, whose latent terms stay in full.

    A pattern is tried on the model's latent sites and on the guide's auxiliary sites. The
    auxiliary site ``<name>_unconstrained``, by which Pyro's `AutoNormal` draws ``<name>``, goes
    with its latent.
    """
    if not callable(keep_kl) and not keep_kl:
        return set()
    candidates = dict(sample_sites(guide_trace))
    candidates |= {
        name: site
        for name, site in sample_sites(model_trace)
        if model_kind(site, guide_trace.nodes) in {"latent", "predicted"}
    }
    kept = {name for name, site in candidates.items() if is_kept(keep_kl, site)}
    return kept | {f"{name}_unconstrained" for name in kept}


def is_kept(keep_kl: KeepKL, site: Site) -> bool:
    """Return whether a predicate, or one of some names and patterns, fits a site."""
    if callable(keep_kl):
        return bool(keep_kl(site))
    return any(fnmatchcase(site["name"], pattern) for pattern in keep_kl)


def is_reparametrized(fn: Any) -> bool:
    """Return whether the gradient of an expectation under ``fn`` needs no score function.

    Answers without evaluating a density: ``fn`` has pathwise samples and does not bring its own
    ``score_parts``, as Pyro's partly reparametrized (rejection) distributions do.
    """
    if not getattr(fn, "has_rsample", False):
        return False
    if isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return is_reparametrized(fn.base_dist)
    return getattr(type(fn), "score_parts", None) is Distribution.score_parts


def zero_terms(site: Site, *, score: bool) -> None:
    """Write zeros for the terms of a dropped site, with its batch shape.

    Args:
        site: A sample site; it gets the fields that Pyro's estimators read.
        score: Whether to evaluate the density after all, for the score function, which a guide
            site without a pathwise gradient needs whatever its weight.
    """
    if score:
        parts = _guarded(site, "score_parts")
        zeros = torch.zeros_like(detach_provenance(parts.log_prob))
        site["score_parts"] = ScoreParts(zeros, parts.score_function, zeros)
    else:
        value = detach_provenance(site["value"])
        zeros = value.new_zeros((), dtype=_real_dtype(value)).expand(batch_shape(site))
        site["score_parts"] = ScoreParts(zeros, 0, zeros)  # type: ignore[arg-type]
    site["unscaled_log_prob"] = site["log_prob"] = zeros
    site["log_prob_sum"] = zeros.new_zeros(())


def evaluate_model_site(site: Site, power: float = 1.0) -> None:
    """Compute ``log_prob`` of a model site, scaled and masked; masked values are never read.

    Args:
        site: A sample site; it gets the fields that Pyro's estimators read.
        power: The density is raised to it before scale and mask.
    """
    log_prob = _guarded(site, "log_prob")
    log_prob = log_prob if power == 1.0 else power * log_prob
    site["unscaled_log_prob"] = log_prob
    site["log_prob"] = scale_and_mask(log_prob, site["scale"], site["mask"])
    site["log_prob_sum"] = site["log_prob"].sum()


def evaluate_guide_site(site: Site) -> None:
    """Compute the score parts of a guide site, scaled and masked."""
    parts = _guarded(site, "score_parts")
    site["unscaled_log_prob"] = parts.log_prob
    site["score_parts"] = parts.scale_and_mask(site["scale"], site["mask"])
    site["log_prob"] = site["score_parts"].log_prob
    site["log_prob_sum"] = site["log_prob"].sum()


def _guarded(site: Site, method: str) -> Any:
    """Return a density of a site, and name the site if it refuses the value.

    Raises:
        ValueError: If the distribution does.
    """
    value = without_masked_values(site) if site["is_observed"] else site["value"]
    try:
        return getattr(site["fn"], method)(value, *site["args"], **site["kwargs"])
    except ValueError as error:
        message = f"Error while computing {method} at site '{site['name']}':\n{error}"
        raise ValueError(message) from error


def batch_shape(site: Site) -> torch.Size:
    """Return the batch shape of a site's log-density, without evaluating it."""
    fn, value = site["fn"], site["value"]
    own: tuple[int, ...] = value.shape[: value.dim() - fn.event_dim]
    return torch.broadcast_shapes(fn.batch_shape, own)


def _element_masks(fn: Any, mask: Tensor | bool | None) -> Iterator[Tensor]:
    """Yield the masks that act on a site, each broadcastable to the site's value."""
    if isinstance(mask, Tensor):
        yield mask.reshape(mask.shape + (1,) * fn.event_dim)
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution) and isinstance(fn._mask, Tensor):
            yield fn._mask.reshape(fn._mask.shape + (1,) * fn.event_dim)
        fn = fn.base_dist


def without_masked_values(site: Site) -> Tensor:
    """Return the value of an observed site with its masked-out elements made harmless.

    A mask removes an element's log-density after it has been computed: if the element is NaN,
    the sum is finite but its gradient is 0 * NaN = NaN, and Pyro's validation refuses the value
    before that. So masked-out elements are replaced by a point of the support first. This repairs
    the observed values only: NaN among the model's inputs still spreads through the network.

    Args:
        site: An observed sample site.

    Returns:
        The site's own value where it counts, a point of the support elsewhere.
    """
    value: Tensor = site["value"]
    masks = list(_element_masks(site["fn"], site["mask"]))
    if not masks or not isinstance(value, Tensor) or not value.numel():
        return value
    keep = masks[0]
    for mask in masks[1:]:
        keep = keep & mask
    filler = _point_of_support(site["fn"], value)
    return value if filler is None else torch.where(keep, value, filler)


def _point_of_support(fn: Any, value: Tensor) -> Tensor | None:
    """Return a point of the support that broadcasts with ``value``, or None if unknown."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support.is_discrete:
        if support is constraints.one_hot:
            return torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)[0]
        if hasattr(support, "upper_bound") and support.event_dim:  # counts that sum to a total
            first = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)[0]
            return first * support.upper_bound
        low = getattr(support, "lower_bound", 0)
        return torch.as_tensor(low, dtype=value.dtype, device=value.device)
    try:
        transform = transform_to(support)
    except NotImplementedError:
        return None
    return transform(value.new_zeros(transform.inverse_shape(value.shape)))


def count_observations(
    model_trace: Trace, max_plate_nesting: float, num_particles: int
) -> Tensor | float:
    """Total number of observations behind the observed sites of a trace, per particle.

    The sum over observed sites of (batch elements that the masks leave) x scale, so that a
    subsampled plate counts as the full data set that it stands for. ``pyro.factor`` and
    ``pyro.deterministic`` observe nothing. Dimensions left of ``max_plate_nesting`` belong to
    enumeration and are not counted.

    Args:
        model_trace: The model's trace.
        max_plate_nesting: Number of plate dimensions, possibly infinite.
        num_particles: Number of particles that the batch dimensions hold.

    Returns:
        A float, or a tensor of shape () where a mask or a scale is a tensor. At least 1 if
        everything is masked out. Zero if nothing is observed at all.
    """
    total: Tensor | float = 0.0
    for _, site in sample_sites(model_trace):
        if site["infer"].get("_deterministic") or not site["is_observed"] or site_is_factor(site):
            continue
        total = total + _observations(site, max_plate_nesting)
    total = total / num_particles
    return torch.where(total > 0, total, 1.0) if isinstance(total, Tensor) else total


def _observations(site: Site, max_plate_nesting: float) -> Tensor | float:
    fn, scale, mask = site["fn"], site["scale"], site["mask"]
    shape = batch_shape(site)
    shape = shape[max(0, len(shape) - int(min(max_plate_nesting, len(shape)))) :]
    if isinstance(fn, MaskedDistribution) and fn._mask is not True:
        mask = fn._mask if mask is None or mask is True else mask & fn._mask
    if mask is False:
        return 0.0
    if not isinstance(scale, Tensor) and not isinstance(mask, Tensor):
        return float(shape.numel() * scale)
    ones = torch.ones(shape, device=site["value"].device, dtype=_real_dtype(site["value"]))
    weighted = scale_and_mask(ones, scale, mask)
    return weighted.sum() * (shape.numel() / weighted.numel())


def _real_dtype(value: Tensor) -> torch.dtype:
    return value.dtype if value.is_floating_point() else torch.get_default_dtype()
