"""The terms of an evidence lower bound, site by site.

An ELBO is a sum over sample sites,

    ELBO = sum_obs log p(y | w)  +  sum_latents log p(w)  -  sum_guide log q(w),

and every objective of this package is the same sum with a weight per site: 1 for the likelihood,
``kl_weight`` for the latent terms, 1 for the latents that the user keeps. The functions here run
a model and its guide, and evaluate only the sites whose weight is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

import pyro.poutine as poutine
import torch
from pyro.distributions import Distribution, ExpandedDistribution, MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.ops.provenance import detach_provenance
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample

from pyro_ibvi.objectives.masks import batch_shape, real_scalar, without_masked_values
from pyro_ibvi.objectives.sites import Site
from pyro_ibvi.pairing.belonging import check_distinct


def as_weight(name: str, value: float) -> float:
    """A weight as a float.

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
    """Runs the guide, then the model against its draws, and evaluates no density.

    Args:
        graph_type: ``"flat"`` or ``"dense"``, as Pyro's traces have it.
        model: The model.
        guide: The guide; a `GuideMessenger` gives both traces in one run.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.

    Returns:
        The model's trace and the guide's trace, with the subsample sites still in them.

    Raises:
        TypeError: If they are one and the same.
        ValueError: If the model refuses what the guide draws.
    """
    check_distinct(model, guide)
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, GuideMessenger):
        guide(*args, **kwargs)
        return unwrapped.get_traces()
    guide_trace = poutine.trace(guide, graph_type=graph_type).get_trace(*args, **kwargs)
    if any(site_is_subsample(site) for site in guide_trace.nodes.values()):
        model = _SameRows()(model)
    replayed = poutine.replay(model, trace=guide_trace)
    try:
        model_trace = poutine.trace(replayed, graph_type=graph_type).get_trace(*args, **kwargs)
    except ValueError as error:
        _explain_lost_draws(guide_trace, error)
        raise
    return model_trace, guide_trace


def _explain_lost_draws(guide_trace: Trace, error: ValueError) -> None:
    """Tells of draws that are not finite, where a model's laws refuse what is made of them."""
    lost = [
        name
        for name, site in guide_trace.nodes.items()
        if site["type"] == "sample"
        and isinstance(site["value"], torch.Tensor)
        and not site["value"].isfinite().all()
    ]
    if lost:
        raise ValueError(
            f"The guide's draws of {lost} are not finite, which the model refuses: they overflow, "
            f"or the gradient of an earlier step did and left NaN among the parameters. Begin "
            f"anew with a smaller learning rate, or with a start that is not at wide priors: "
            f"AutoMuPNormal(model, init_scale=0.1, init_loc_fn=init_to_feasible). NaN in the data "
            f"does that, too."
        ) from error


class _SameRows(Messenger):
    """Refuses the guide's rows in the place of others that the model's caller chose."""

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is not None:
            self._given[msg["name"]] = msg["value"]

    def _pyro_post_sample(self, msg: Any) -> None:
        rows = self._given.pop(msg["name"], None)
        if rows is None or rows is msg["value"]:
            return
        rows, others = torch.as_tensor(rows).cpu(), torch.as_tensor(msg["value"]).cpu()
        if not torch.equal(rows, others):
            name, size = msg["name"], msg["fn"].size
            raise ValueError(
                f"The model's caller chose the rows of the plate {name!r}, "
                f"subsample={rows.tolist()[:4]}..., and the guide draws rows of its own, "
                f"{others.tolist()[:4]}..., which Pyro puts in their place: the data of one row "
                f"would train another. Pass the guide create_plates=, a function of the model's "
                f"arguments that returns pyro.plate({name!r}, {size}, subsample=rows), open the "
                f"same plate in a guide of your own, or use AutoMuPNormal, which takes the "
                f"model's rows."
            )


def is_reparametrized(fn: Any) -> bool:
    """Whether the gradient of an expectation under ``fn`` needs no score function.

    Answers without evaluating a density: ``fn`` has pathwise samples and does not bring its own
    ``score_parts``, as Pyro's partly reparametrized (rejection) distributions do.

    Args:
        fn: A distribution.

    Returns:
        Whether it is so.
    """
    if not getattr(fn, "has_rsample", False):
        return False
    if isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return is_reparametrized(fn.base_dist)
    return getattr(type(fn), "score_parts", None) is Distribution.score_parts


def needs_score(site: Site) -> bool:
    """Whether the gradient of an expectation over a site of the guide needs a score function.

    Args:
        site: A sample site.

    Returns:
        Whether it does: not for what the guide observes, nor where draws have pathwise gradients.
    """
    return not _is_given(site) and not is_reparametrized(site["fn"])


def _is_given(site: Site) -> bool:
    """Whether a site holds a value that is given, and is neither a draw nor a factor."""
    return site["is_observed"] and not site_is_factor(site)


def zero_terms(site: Site, *, score: bool) -> None:
    """Writes zeros for the terms of a dropped site, with its batch shape.

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
        zeros = real_scalar(0.0, value).expand(batch_shape(site))
        site["score_parts"] = ScoreParts(zeros, 0, zeros)  # type: ignore[arg-type]
    site["unscaled_log_prob"] = site["log_prob"] = zeros
    site["log_prob_sum"] = zeros.new_zeros(())


def evaluate_model_site(site: Site, power: float = 1.0) -> None:
    """Evaluates ``log_prob`` of a model site, scaled and masked; masked values are never read.

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
    """Evaluates the score parts of a guide site, scaled and masked.

    What the guide observes is no draw and has no score function, but its density has a gradient.

    Args:
        site: A sample site; it gets the fields that Pyro's estimators read.
    """
    parts = _guarded(site, "score_parts")
    if _is_given(site):
        parts = ScoreParts(parts.log_prob, 0, parts.log_prob)  # type: ignore[arg-type]
    site["unscaled_log_prob"] = parts.log_prob
    site["score_parts"] = parts.scale_and_mask(site["scale"], site["mask"])
    site["log_prob"] = site["score_parts"].log_prob
    site["log_prob_sum"] = site["log_prob"].sum()


def _guarded(site: Site, method: str) -> Any:
    """A density of a site; the site is named if its distribution refuses the value."""
    value = without_masked_values(site) if site["is_observed"] else site["value"]
    try:
        return getattr(site["fn"], method)(value, *site["args"], **site["kwargs"])
    except ValueError as error:
        message = f"Error while computing {method} at site '{site['name']}':\n{error}"
        raise ValueError(message) from error
