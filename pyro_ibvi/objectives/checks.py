"""What an objective refuses: pairs of model and guide on which it would go wrong in silence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.util import check_site_shape

from pyro_ibvi._util.checks import shown
from pyro_ibvi.objectives.kept import auxiliary_sources, names_to_keep
from pyro_ibvi.objectives.sites import (
    PARTICLES,
    Traces,
    is_missing,
    sample_sites,
    subsampled_plate,
)


def check_held(name: str, part: Any, kind: type) -> None:
    """Checks a part that an objective may hold.

    Args:
        name: Name of the argument.
        part: What the user gave, or None.
        kind: Class of such parts.

    Raises:
        TypeError: If it is of another kind.
    """
    if part is not None and not isinstance(part, kind):
        raise TypeError(
            f"{name} must be an object of {kind.__name__}, {name}={kind.__name__}(...), got "
            f"{shown(part)}."
        )


def require_gradients() -> None:
    """Refuses to train where torch keeps no gradients, in which Pyro's steps do nothing.

    Raises:
        RuntimeError: If it does not.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "Gradients are off here, so that no step would change anything: train outside of "
            "torch.no_grad() and torch.inference_mode(), and after torch.set_grad_enabled(True)."
        )


def reject_observed_guide_sites(traces: Traces) -> None:
    """Rejects a guide that draws a site that the model observes.

    Args:
        traces: The traces.

    Raises:
        ValueError: If it does.
    """
    observed = [
        name
        for name, site in traces.guide_sites.items()
        if not site["is_observed"]
        and name in traces.model_sites
        and traces.model_sites[name]["is_observed"]
    ]
    if observed:
        raise ValueError(
            f"The guide draws {observed}, which the model observes: it took them for latent "
            "variables. If they are arguments of the model, the guide was first called without "
            "targets: build it anew and call it with the targets first, as in "
            "guide.initialize(x, y) or guide(x, y). If pyro.condition observes them, make the "
            "guide of what is trained: model = pyro.condition(model, data=...); "
            "guide = AutoMuPNormal(model)."
        )


def reject_local_latents(kept: set[str], traces: Traces) -> None:
    """Rejects a latent inside a subsampled plate that would lose its KL.

    Args:
        kept: Names of the sites whose KL is kept.
        traces: The traces.

    Raises:
        ValueError: If there is one.
    """
    local = {
        name: frame
        for name, site in traces.model_sites.items()
        if name not in kept
        and traces.model_kinds[name] == "latent"
        and (frame := subsampled_plate(site)) is not None
    }
    if not local:
        return
    missing = [name for name in local if is_missing(name, traces.model_sites)]
    name, frame = next(iter(local.items()))
    if is_missing(name, traces.model_sites):
        raise ValueError(
            f"Latent site {name!r} stands for missing data (obs_mask) of the subsampled "
            f"plate {frame.name!r} ({frame.size} of {frame.full_size}). If the model "
            "computes nothing from them, leave them to it, which draws them given the "
            f"other latents: make the guide of poutine.block(model, hide={missing}). "
            f"If it does, keep their KL, keep_kl={missing}, or train "
            "with kl_weight above 0; allow_local=True drops it all the same."
        )
    keep = names_to_keep(local, auxiliary_sources(traces))
    raise ValueError(
        f"Latent site {name!r} is local: it lies in the subsampled plate {frame.name!r} "
        f"({frame.size} of {frame.full_size}). Without its KL it fits its own data "
        "exactly and the rest of the model learns nothing. Keep that of all such, "
        f"keep_kl={keep}, or train with kl_weight above 0; allow_local=True drops it all the same."
    )


def reject_wrong_shapes(traces: Iterable[Trace], max_plate_nesting: float) -> None:
    """Rejects terms whose shapes are not those of their plates.

    Pyro lets dimensions in front of all plates pass, where enumerated values lie.

    Args:
        traces: Traces with their terms.
        max_plate_nesting: Number of plate dimensions, that of the particles included.

    Raises:
        ValueError: If there are such terms.
    """
    sites = [site for trace in traces for _, site in sample_sites(trace)]
    enumerates = any(site["infer"].get("_enumerate_dim") is not None for site in sites)
    for site in sites:
        check_site_shape(site, max_plate_nesting)  # type: ignore[arg-type]
        particles = any(frame.name == PARTICLES for frame in site["cond_indep_stack"])
        shape = torch.Size(site["log_prob"].shape)  # a tuple where Pyro tracks where it is from
        if particles and not enumerates and shape[: -int(max_plate_nesting)].numel() > 1:
            raise ValueError(
                f"The terms of the site {site['name']!r} have the shape {tuple(shape)}, in which "
                f"each particle is joined with every other. A latent with to_event(...) does that "
                f"which is used as one value per element of a plate: its particles stand in front "
                f"of the plate's dimensions. So does a RandomModule that is called on what has "
                f"particles in front already, a latent or the output of another network. Write "
                f"vectorize_particles=False."
            )


def reject_empty_objective(
    model_weights: dict[str, float], guide_weights: dict[str, float]
) -> None:
    """Rejects an objective without terms.

    Args:
        model_weights: Weights of the model's sites by name.
        guide_weights: Weights of the guide's sites by name.

    Raises:
        ValueError: If all weights are zero.
    """
    if not any(model_weights.values()) and not any(guide_weights.values()):
        raise ValueError(
            "The model observed nothing, so no term of the objective is left. Pass the targets to "
            f"the step, svi.step(x, y), or let the loader yield (x, y); the model's "
            f"sites are {sorted(model_weights)}. A loss that has targets in some batches only, "
            "as of an autoencoder's labels, is Pyro's Trace_ELBO(), which is 0 in the others."
        )
