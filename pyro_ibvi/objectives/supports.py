"""Whether the draws of latents lie in supports that other latents move.

A density that is not evaluated does not check its value. Where the support is constant, the guide
is made for it; where its bounds depend on other latents, ``t2 ~ Uniform(t1, 1)``, a guide that
knows the bounds of its first run only may leave it.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import ImproperUniform
from torch import Tensor

from pyro_ibvi._util.distributions import innermost
from pyro_ibvi.objectives.masks import own_masks
from pyro_ibvi.objectives.sites import Site


def reject_outside_support(site: Site) -> None:
    """Rejects a latent outside of a support that is no constant.

    As Pyro's own check it takes part where the distribution validates its arguments. Sites that
    are masked or enumerated, and bounds that no gradient shows to be computed, are let pass.

    Args:
        site: A sample site of the model.

    Raises:
        ValueError: If its value lies outside.
    """
    fn, value = site["fn"], site["value"]
    if site["is_observed"] or not isinstance(value, Tensor):
        return
    if not (site["mask"] is None or site["mask"] is True):
        return
    inner = innermost(fn)
    if not getattr(inner, "_validate_args", False) or own_masks(fn):
        return
    if isinstance(inner, ImproperUniform):  # has no density that Pyro would check
        return
    support = getattr(fn, "support", None)
    if "_enumerate_dim" in site["infer"] or not _is_computed(support):
        return
    with torch.no_grad():
        is_inside = bool(support.check(value).all())  # type: ignore[union-attr]
    if not is_inside:
        raise ValueError(
            f"The guide's draw of the latent site {site['name']!r} lies outside of its support, "
            f"{support}, whose bounds are computed from latents or parameters: its density, which "
            "this objective drops, would be zero. Compute the site from a latent with a constant "
            "support, as in t2 = t1 + (1 - t1) * u with u ~ Uniform(0, 1) for t2 ~ Uniform(t1, 1)."
        )


def _is_computed(support: Any) -> bool:
    """Whether a gradient goes to the bounds of a support."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    bounds = getattr(support, "__dict__", {}).values()
    return any(isinstance(bound, Tensor) and bound.requires_grad for bound in bounds)
