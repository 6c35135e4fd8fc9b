"""The log-likelihood of an export: what is one datum, and what its density is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pyro.poutine import Trace

from pyro_ibvi.arviz.draws import Sampler
from pyro_ibvi.arviz.groups import Draw, Group, by_site
from pyro_ibvi.arviz.latents import Latents
from pyro_ibvi.arviz.marginal import Unit, find_units, unit_density
from pyro_ibvi.arviz.running import evaluating
from pyro_ibvi.arviz.sites import Variable, dtype_of
from pyro_ibvi.arviz.terms import frames


def log_likelihood(sampler: Sampler, observed: Sequence[Variable]) -> Group:
    """Log-density of each datum, in nats: unscaled, NaN where masked, given what is said of it.

    Args:
        sampler: Source of the draws.
        observed: The data.

    Returns:
        The group: a variable for each observed site, or for several that share a state which is
        summed out.
    """
    if not observed:
        return Group("log_likelihood", {})
    latents = sampler.pair.split()
    sites = by_site(observed)

    def runs(draw: Draw) -> list[Trace]:
        return sampler.marginal(draw.posterior, latents.summed)

    with evaluating(sampler.model, sampler.guide):
        probe = sampler.marginal((sampler.guide_trace, sampler.model_trace), latents.summed)
        units = find_units(probe[0], list(sites))
        joint = [u for u in units if len(u.sites) > 1]
        names = {u: "joint" if len(joint) == 1 else f"joint_{u.sites[0]}" for u in joint}
        variables = {}
        for unit in units:
            first = sites[unit.sites[0]]
            name = names.get(unit, first.name)
            dtype = dtype_of(unit_density(probe, unit))
            attrs = _conditions(sampler, unit, latents)
            variables[name if unit in names else first.site] = replace(
                _of_unit(first, unit, probe[0]), name=name, dtype=dtype, attrs=attrs
            )

    def values(draw: Draw) -> dict[str, torch.Tensor]:
        traces = runs(draw)
        return {n: unit_density(traces, u) for n, u in zip(variables, units, strict=True)}

    return Group("log_likelihood", variables, values)


def _of_unit(variable: Variable, unit: Unit, trace: Trace) -> Variable:
    """A variable with one element for each datum of a unit."""
    k = variable.num_batch
    if unit.plates is None:
        return replace(variable, shape=variable.shape[:k], dims=variable.dims[:k])
    around = frames(trace.nodes[variable.site])
    dims = tuple(variable.dims[k + around[plate].dim] for plate, _ in unit.plates)
    return replace(variable, shape=unit.shape, dims=dims, num_batch=len(dims))


def _conditions(sampler: Sampler, unit: Unit, latents: Latents) -> dict[str, str]:
    """What a log-likelihood is conditioned on, and what of it has seen the data."""
    sources, pair = sampler.sources, sampler.pair
    above = set(pair.latent)
    if sources.known:
        # what a model takes out of its tensors, as by int(label), leaves no trail
        lost = above - sources.used
        above &= lost.union(*(sources.ancestors(y) for y in unit.sites))
    given = above - set(latents.summed)
    said = {
        "observed_sites": unit.sites if len(unit.sites) > 1 else (),
        "conditioned_on": given,
        "summed_out": above & set(latents.summed),
        "seen_the_datum": {
            z for z in given & set(pair.guide_sites) if pair.is_per_datum(z) or pair.has_seen(z)
        },
    }
    return {what: _listed(sorted(names)) for what, names in said.items() if names}


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
