"""What the objective does with each site of a model, and what it cannot do.

Dropping the KL divergence is right where the likelihood sees every latent and many data share it.
Elsewhere it fails in silence: a latent that only a prior sees is never moved, and a latent with
one value per datum fits that datum exactly. The functions here find these cases and say so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_ibvi.objectives.sites import (
    Site,
    is_delta,
    model_kind,
    sample_sites,
    subsampled_plate,
)
from pyro_ibvi.objectives.terms import KeepKL, is_kept

Sites: TypeAlias = dict[str, Site]
PARTICLES = "num_particles_vectorized"  # the plate in which Pyro vectorizes particles


def reject_observed_guide_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Reject a guide that draws a site that the model observes.

    Raises:
        ValueError: If it does.
    """
    observed = [
        name
        for name, site in sample_sites(guide_trace)
        if not site["is_observed"]
        and name in model_trace.nodes
        and model_trace.nodes[name]["type"] == "sample"
        and model_trace.nodes[name]["is_observed"]
    ]
    if observed:
        raise ValueError(
            f"The guide draws {observed}, which the model observes: the guide was first called "
            "without targets and took them for latent variables. Build the guide anew and call it "
            "with the targets first, as in guide.initialize(x, y) or guide(x, y)."
        )


def reject_unknown_patterns(keep_kl: KeepKL, model_trace: Trace, guide_trace: Trace) -> None:
    """Reject a name or pattern in ``keep_kl`` that fits no latent.

    Raises:
        ValueError: If there is one.
    """
    if callable(keep_kl):
        return
    sites = [
        site
        for _, site in sample_sites(model_trace)
        if model_kind(site, guide_trace.nodes) in {"latent", "predicted"}
    ]
    sites += [site for _, site in sample_sites(guide_trace) if not site["is_observed"]]
    for pattern in keep_kl:
        if not any(is_kept((pattern,), site) for site in sites):
            names = sorted({site["name"] for site in sites})
            raise ValueError(
                f"keep_kl names {pattern!r}, which fits no latent site. Latent sites: {names}."
            )


def reject_half_kept(kept: set[str], guide_trace: Trace) -> None:
    """Reject a kept latent that is computed from an auxiliary site that is not kept.

    Raises:
        ValueError: If there is one.
    """
    auxiliary = {
        name: site
        for name, site in sample_sites(guide_trace)
        if site["infer"].get("is_auxiliary") and not site["is_observed"] and name not in kept
    }
    for name, site in sample_sites(guide_trace):
        if name not in kept or not is_delta(site["fn"]) or not auxiliary:
            continue
        reached = Reachable([site["value"]])
        sources = [other for other, source in auxiliary.items() if source["value"] in reached]
        if sources:
            raise ValueError(
                f"keep_kl names {name!r}, which the guide computes from the auxiliary site(s) "
                f"{sources}: without their density the KL of {name!r} is not complete. Name them "
                f"too, keep_kl={[name, *sources]!r}, or use a guide with one draw per site, such "
                "as AutoNormal."
            )


def reject_local_latents(kept: set[str], model_trace: Trace, guide_trace: Trace) -> None:
    """Reject a latent inside a subsampled plate that would lose its KL.

    Raises:
        ValueError: If there is one.
    """
    for name, site in sample_sites(model_trace):
        if name in kept or name not in guide_trace.nodes:
            continue
        frame = subsampled_plate(site)
        if frame is not None and model_kind(site, guide_trace.nodes) == "latent":
            raise ValueError(
                f"Latent site {name!r} is local: it lies in the subsampled plate {frame.name!r} "
                f"({frame.size} of {frame.full_size}). Without its KL it fits its own data "
                "exactly and the rest of the model learns nothing. Keep it, "
                f"keep_kl=[{name!r}], or train with kl_weight=1; "
                "allow_local=True drops it all the same."
            )


def reject_empty_objective(
    model_weights: dict[str, float], guide_weights: dict[str, float]
) -> None:
    """Reject an objective without terms.

    Raises:
        ValueError: If all weights are zero.
    """
    if not any(model_weights.values()) and not any(guide_weights.values()):
        raise ValueError(
            "The model observed nothing, so no term of the objective is left. Pass the targets to "
            f"the step; the model's sites are {sorted(model_weights)}."
        )


class Reachable:
    """The set of tensors that some roots depend on, by their autograd graph.

    Args:
        roots: Tensors; those without a graph reach themselves only.
    """

    def __init__(self, roots: Iterable[Tensor]) -> None:
        self._leaves: set[int] = set()
        self._nodes: set[Any] = set()
        stack: list[Any] = []
        for root in roots:
            if root.grad_fn is not None:
                stack.append(root.grad_fn)
            elif root.requires_grad:
                self._leaves.add(id(root))
        while stack:
            node = stack.pop()
            if node is None or node in self._nodes:
                continue
            self._nodes.add(node)
            if hasattr(node, "variable"):
                self._leaves.add(id(node.variable))
            stack += [parent for parent, _ in node.next_functions]

    def __contains__(self, tensor: Tensor) -> bool:
        if tensor.grad_fn is not None:
            return tensor.grad_fn in self._nodes
        return id(tensor) in self._leaves


def _parameters(*traces: Trace) -> dict[str, Tensor]:
    """Return the unconstrained tensors that the traces' param statements gave out, by name."""
    params = {}
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "param" and isinstance(site["value"], Tensor):
                unconstrained = getattr(site["value"], "unconstrained", None)
                params[name] = unconstrained() if callable(unconstrained) else site["value"]
    return params


def unreached(
    guide_sites: Sites, model_trace: Trace, guide_trace: Trace
) -> tuple[list[str], list[str]]:
    """Find latents and parameters that no term of a pair of weighted traces depends on.

    It reads the autograd graph of the terms that have just been evaluated: nothing is run again.
    Draws without a gradient (discrete ones) are not judged.

    Args:
        guide_sites: The guide's sample sites by name, dropped ones included.
        model_trace: The model's weighted trace.
        guide_trace: The guide's weighted trace.

    Returns:
        Names of latent sites, and names of parameters.
    """
    roots = [site["log_prob"] for _, site in sample_sites(model_trace)]
    for _, site in sample_sites(guide_trace):
        roots += [part for part in site["score_parts"] if isinstance(part, Tensor)]
    reachable = Reachable(roots)
    latents = [
        name
        for name, site in guide_sites.items()
        if not site["infer"].get("is_auxiliary")
        and isinstance(site["value"], Tensor)
        and site["value"].requires_grad
        and site["value"] not in reachable
    ]
    params = [
        name
        for name, value in _parameters(model_trace, guide_trace).items()
        if value.requires_grad and value not in reachable
    ]
    return latents, params


def local_latents(model_sites: Sites, guide_sites: Sites) -> list[str]:
    """Find latents of the guide that have one value per observation.

    Args:
        model_sites: The model's sample sites by name, dropped ones included.
        guide_sites: The guide's sample sites by name, dropped ones included.

    Returns:
        Names of the latents that lie in all plates of some observed site.
    """
    plates = {
        name: {f.name for f in site["cond_indep_stack"] if f.name != PARTICLES}
        for name, site in model_sites.items()
        if not site["infer"].get("_deterministic")
    }
    observed = [plates[n] for n in plates if model_sites[n]["is_observed"] and plates[n]]
    return [
        name
        for name, own in plates.items()
        if name in guide_sites
        and not model_sites[name]["is_observed"]
        and any(other <= own for other in observed)
    ]


def users_of(names: list[str], model_sites: Sites) -> list[str]:
    """Find the latents whose prior depends on some others.

    Args:
        names: Names of latents.
        model_sites: The model's sample sites by name, dropped ones included.

    Returns:
        Names of the latents.
    """
    values = [model_sites[name]["value"] for name in names if name in model_sites]
    users = []
    for name, site in model_sites.items():
        reachable = Reachable(_tensors_of(site["fn"]))
        if not site["is_observed"] and any(value in reachable for value in values):
            users.append(name)
    return users


def _tensors_of(fn: Any) -> list[Tensor]:
    """Return the tensors that a distribution holds, below its wrappers too."""
    tensors: list[Tensor] = []
    for value in vars(fn).values():
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, torch.distributions.Distribution):
            tensors += _tensors_of(value)
    return tensors


def warn_once(
    model_sites: Sites,
    guide_sites: Sites,
    model_trace: Trace,
    guide_trace: Trace,
    local: list[str],
) -> None:
    """Warn of everything that the objective leaves unmoved or lets fit one datum each.

    Args:
        model_sites: The model's sample sites by name, dropped ones included.
        guide_sites: The guide's sample sites by name, dropped ones included.
        model_trace: The model's weighted trace.
        guide_trace: The guide's weighted trace.
        local: Names of the latents that have one value per observation and lose their KL.
    """
    latents, params = unreached(guide_sites, model_trace, guide_trace)
    sentences = []
    if latents or params:
        users = [*latents, *(n for n in users_of(latents, model_sites) if n not in latents)]
        sentences.append(_unmoved_sentence(latents, params, users))
    local = [name for name in local if name not in latents]
    if local:
        sentences.append(
            f"Each of the latent sites {local} has one value per observation: without its KL it "
            "fits its own datum, and the rest of the model learns little. Keep it with "
            f"keep_kl={local!r}, or say that you mean it with allow_local=True."
        )
    if sentences:
        warnings.warn(" ".join(sentences), UserWarning, stacklevel=2)


def _unmoved_sentence(latents: list[str], params: list[str], users: list[str]) -> str:
    found = [f"latent sites {latents}"] * bool(latents) + [f"parameters {params}"] * bool(params)
    keep = repr(users) if users else "[...]"
    return (
        f"The expected log-likelihood cannot move the {' and the '.join(found)}: they reach only "
        "terms that it drops (a prior, or the guide's entropy), so they stay where they started. "
        "Write the model so that they reach the likelihood (non-centered: theta = mu + tau * eps)"
        f", or keep the KL of the sites whose prior they enter with keep_kl={keep}, or train with "
        "kl_weight=1."
    )
