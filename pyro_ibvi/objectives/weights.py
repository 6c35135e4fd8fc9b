"""The weight of each site's term, and what is evaluated of it."""

from __future__ import annotations

from typing import Literal

from pyro.poutine import Trace
from torch import Tensor

from pyro_ibvi.objectives.masks import is_masked_out
from pyro_ibvi.objectives.sites import Kind, Site, Traces
from pyro_ibvi.objectives.supports import reject_outside_support
from pyro_ibvi.objectives.terms import (
    evaluate_guide_site,
    evaluate_model_site,
    needs_score,
    zero_terms,
)

Weights = tuple[dict[str, float], dict[str, float]]


def weights_of(
    traces: Traces,
    kept: set[str],
    kl_weight: float,
    factors: Literal["likelihood", "drop"],
) -> Weights:
    """The weight of each sample site's term, before the reduction.

    Args:
        traces: The traces.
        kept: Names of the sites whose latent terms stay in full.
        kl_weight: Weight of the other latent terms.
        factors: What the model's ``pyro.factor`` terms count as.

    Returns:
        Weights of at least 0, by name, for the model's sites and for the guide's.
    """
    likelihood = {"observed", "enumerated"}
    if factors == "likelihood":
        likelihood.add("factor")

    def weight(name: str, kind: Kind, site: Site) -> float:
        if kind == "deterministic" and is_masked_out(site):
            return 0.0
        return 1.0 if name in kept else kl_weight

    model_weights = {
        name: 1.0 if kind in likelihood else weight(name, kind, traces.model_sites[name])
        for name, kind in traces.model_kinds.items()
    }
    guide_weights = {
        name: weight(name, kind, traces.guide_sites[name])
        for name, kind in traces.guide_kinds.items()
    }
    return model_weights, guide_weights


def weigh_site(
    trace: Trace,
    name: str,
    weight: float,
    factor: Tensor | float,
    *,
    keeps_structure: bool,
    in_guide: bool = False,
) -> None:
    """Scales and evaluates a site of weight above zero, and drops another, in place.

    Args:
        trace: The trace of the site.
        name: Its name.
        weight: Its weight.
        factor: A common factor of all weights.
        keeps_structure: Whether dropped sites stay in the trace, as zeros.
        in_guide: Whether it is a site of the guide.

    Raises:
        ValueError: If a latent of the model, whose density is dropped, has left its support.
    """
    site = trace.nodes[name]
    if not weight and not in_guide:
        reject_outside_support(site)
    power = 1.0
    if keeps_structure and not in_guide and weight:
        power, weight = weight, 1.0  # inside a sum over states, where a scale cannot act
    scale = weight * factor if weight else factor
    if isinstance(scale, Tensor) or scale != 1.0:
        site["scale"] = site["scale"] * scale
    if weight and in_guide:
        evaluate_guide_site(site)
    elif weight:
        evaluate_model_site(site, power)
    elif in_guide and needs_score(site):
        zero_terms(site, score=True)
    elif keeps_structure:
        zero_terms(site, score=False)
    else:
        trace.remove_node(name)
