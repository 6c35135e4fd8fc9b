"""Which latents keep their KL divergence in full, whatever the weight of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from pyro_ibvi._util.distributions import innermost, is_delta
from pyro_ibvi._util.names import as_patterns, chosen, chosen_by_any
from pyro_ibvi.objectives.masks import is_masked_out
from pyro_ibvi.objectives.reach import Reachable
from pyro_ibvi.objectives.sites import Site, Traces

KeepKL: TypeAlias = str | Iterable[str] | Callable[[Site], bool]


def as_choice(keep_kl: KeepKL) -> tuple[str, ...] | Callable[[Site], bool]:
    """The argument ``keep_kl`` in one of two forms.

    Args:
        keep_kl: A name or pattern, several, or a function of a site.

    Returns:
        The names and patterns, or the function.

    Raises:
        TypeError: If it is or holds anything but strings.
    """
    if callable(keep_kl):
        return keep_kl
    if isinstance(keep_kl, Mapping) or not isinstance(keep_kl, Iterable):
        raise TypeError(
            f"keep_kl={keep_kl!r}: expected site names or patterns, as in keep_kl=['z'], whose KL "
            f"counts in full; the weight of all others is kl_weight=."
        )
    choices = (keep_kl,) if isinstance(keep_kl, str) else tuple(keep_kl)
    for choice in choices:
        if not isinstance(choice, str):
            raise TypeError(
                f"keep_kl holds {choice!r} of type {type(choice).__name__}: expected site names "
                "or patterns, as in keep_kl=['z', 'encoder.*'], or one function of a site."
            )
    return choices


def kept_names(keep_kl: KeepKL, traces: Traces) -> set[str]:
    """The names of the sites, in model and guide, whose latent terms stay in full.

    A choice is tried on the sites that are drawn and on those whose ``Delta`` holds a prior. The
    auxiliary site ``<name>_unconstrained``, by which Pyro's `AutoNormal` draws ``<name>``, goes
    with its latent, and so does ``<name>_aux`` of `AutoStructured`.

    Args:
        keep_kl: Names and patterns, or a function of a site.
        traces: The traces.

    Returns:
        The names.
    """
    if not callable(keep_kl) and not keep_kl:
        return set()
    candidates = _candidates(traces)
    if callable(keep_kl):
        kept = {name for name, site in candidates.items() if keep_kl(site)}
    else:  # an exact name is its site's, also where that is data in this batch
        kept = chosen_by_any(keep_kl, _names(traces)) & candidates.keys()
    own = {f"{name}{suffix}" for name in kept for suffix in ("_unconstrained", "_aux")}
    return kept | {name for name in own if traces.guide_kinds.get(name) == "auxiliary"}


def reject_unknown(keep_kl: KeepKL, traces: Traces) -> None:
    """Rejects a name or pattern in ``keep_kl`` that fits no site that is or may be latent.

    A site that this batch observes may be latent in the next, as labels are, and is not rejected;
    nor is ``"*"``, which means all latents also where there are none.

    Args:
        keep_kl: Names and patterns, or a function of a site.
        traces: The traces.

    Raises:
        ValueError: If there is one.
    """
    if callable(keep_kl):
        return
    candidates = _candidates(traces)
    may_be = {name for name, kind in traces.model_kinds.items() if kind in _MAY_BE_LATENT}
    for choice in keep_kl:
        names = chosen(choice, _names(traces))
        if choice == "*" or not (candidates.keys() | may_be).isdisjoint(names):
            continue
        what = (
            f"names {choice!r}, whose value the model computes from other sites: name those"
            if names
            else f"names {choice!r}, which fits no latent site of this batch. A latent that comes "
            f"with other batches only is kept by a function, lambda site: site['name'] == "
            f"{choice!r}"
        )
        raise ValueError(f"keep_kl {what}. Latent sites: {sorted(candidates)}.")


def reject_half_kept(keep_kl: KeepKL, kept: set[str], traces: Traces) -> None:
    """Rejects a KL of which only a part would be kept.

    The density of a latent may stand at an auxiliary site of the guide that it is computed from,
    and its prior, where a reparametrizer took it apart, at a site of the model that is computed
    from it.

    Args:
        keep_kl: Names and patterns, or a function of a site.
        kept: Names of the sites that are kept.
        traces: The traces.

    Raises:
        ValueError: If there is one.
    """
    given = sorted(kept & _candidates(traces).keys()) if callable(keep_kl) else list(keep_kl)
    for name, site in _with_density(traces).items():
        reached = Reachable([site["value"]])
        parts = [part for part, drawn in traces.drawn().items() if drawn["value"] in reached]
        lacking = [part for part in (name, *parts) if part not in kept]
        if lacking and len(lacking) <= len(parts):
            raise ValueError(
                f"keep_kl keeps a part of the KL of {name!r}, whose value is computed from "
                f"{parts} while the prior stands at {name!r}: name them all, "
                f"keep_kl={given + lacking!r}, or none."
            )
    sources = auxiliary_sources(traces) if kept else {}
    whole = _completed(kept, sources)
    if whole != kept:
        latents = [name for name in sources if name in whole]
        auxiliary = list(dict.fromkeys(source for name in latents for source in sources[name]))
        lacking = [name for name in (*latents, *auxiliary) if name not in kept]
        raise ValueError(
            f"keep_kl={given!r} keeps a part of a KL: the guide computes {latents} from the "
            f"auxiliary site(s) {auxiliary}, and neither the priors of the ones nor the density "
            f"of the others is a KL by itself. Name them too, keep_kl={given + lacking!r}, keep "
            "all, keep_kl='*', or use a guide with one draw per site, such as AutoNormal."
        )


def names_to_keep(names: Iterable[str], sources: Mapping[str, list[str]]) -> list[str]:
    """What ``keep_kl`` must name to keep the KL of some latents.

    Args:
        names: Names of the latents.
        sources: The auxiliary sites that latents come from.

    Returns:
        Names and patterns: the latents, and with whatever shares a draw of the guide with them.
    """
    given = dict.fromkeys(names)
    whole = _completed(set(given), sources)
    parts = (part for name, own in sources.items() for part in (name, *own))
    implied = {f"{name}_unconstrained" for name in whole}
    given |= dict.fromkeys(part for part in parts if part in whole and part not in implied)
    return as_patterns(given)


def auxiliary_sources(traces: Traces) -> dict[str, list[str]]:
    """The auxiliary sites that each computed latent of the guide comes from, as they are drawn.

    Args:
        traces: The traces.

    Returns:
        Their names by the latents'.
    """
    auxiliary = {
        name: site["value"]
        for name, site in traces.guide_sites.items()
        if site["infer"].get("is_auxiliary") and not site["is_observed"]
    }
    sources = {}
    for name, site in traces.guide_sites.items():
        if auxiliary and name not in auxiliary and is_delta(site["fn"]):
            reached = Reachable([site["value"]])
            sources[name] = [other for other, value in auxiliary.items() if value in reached]
    return {name: own for name, own in sources.items() if own}


def _completed(kept: set[str], sources: Mapping[str, list[str]]) -> set[str]:
    """Sites that are kept, and those without which their densities would lack a counterpart.

    A latent needs all of its sources. The last one is its own, as a guide with dependencies draws
    the others for the latents before it: that one needs the latent, whose prior holds its spread.

    Returns:
        Names of the sites.
    """
    whole = set(kept)
    while True:
        before = len(whole)
        for name, own in sources.items():
            if name in whole:
                whole.update(own)
            if own[-1] in whole:
                whole.add(name)
        if len(whole) == before:
            return whole


_MAY_BE_LATENT = {"observed", "enumerated"}


def _names(traces: Traces) -> list[str]:
    return list(traces.model_sites | traces.guide_sites)


def _candidates(traces: Traces) -> dict[str, Site]:
    """The sites with a latent term: the guide's, its factors too, and the model's of that kind."""
    guide = {
        name: site
        for name, site in traces.guide_sites.items()
        if not site["is_observed"] or traces.guide_kinds[name] == "factor"
    }
    return guide | traces.drawn() | _with_density(traces)


def _with_density(traces: Traces) -> dict[str, Site]:
    """The computed sites of the model whose point mass brings a density."""
    return {
        name: site
        for name, site in traces.model_sites.items()
        if traces.model_kinds[name] == "deterministic"
        and not is_masked_out(site)
        and bool((innermost(site["fn"]).log_density != 0).any())
    }
