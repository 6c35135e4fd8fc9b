r"""Densities of data with the enumerated sites summed out, one number per datum.

Given everything but its enumerated sites, the data of a model fall into *units*: sets of
observations whose density does not fall apart any further. In a mixture a unit is one observation;
in a hidden Markov model it is a sequence, with all observed sites of all its times. The density of
a unit is the sum over the states of its enumerated sites,

.. math:: p(y_n \mid w) = \sum_k p(k \mid w)\, p(y_n \mid k, w),

done by Pyro's own tensor contraction, as ``TraceEnum_ELBO`` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from pyro import poutine
from pyro.infer.enum import iter_discrete_traces
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ibvi.arviz.inputs import Inputs
from pyro_ibvi.arviz.running import Given
from pyro_ibvi.arviz.sites import Site, density_sites, kept, pointwise_log_prob, sample_sites
from pyro_ibvi.arviz.terms import Extra, Terms, frames

#: what ``infer`` says of an enumeration: how, and whether its states fill the plates
Marks: TypeAlias = Mapping[str, Any]
PARALLEL: Marks = {"enumerate": "parallel"}


class Sum(Messenger):
    """Marks some sites of a model for an exact sum over their states.

    Args:
        how: What ``infer`` says of the enumeration, by the name of the site.
        others: Whether other sites keep their own marks.
    """

    def __init__(self, how: Mapping[str, Marks], *, others: bool = False) -> None:
        super().__init__()
        self.how, self.others = how, others

    def _pyro_sample(self, msg: Any) -> None:
        summed = msg["name"] in self.how and not msg["is_observed"]
        if summed or not self.others:
            marks = {
                k: v for k, v in msg["infer"].items() if k not in ("enumerate", "num_samples")
            }
            if summed:
                marks |= self.how[msg["name"]]
            msg["infer"] = marks


def run_summed(
    model: Callable[..., Any],
    inputs: Inputs,
    values: Mapping[str, Any],
    how: Mapping[str, Marks],
    nesting: int,
) -> list[Trace]:
    """Runs a model with some of its sites in all of their states.

    Args:
        model: The model.
        inputs: Its arguments.
        values: Values of other sites.
        how: The sites to sum out, each with what ``infer`` says of its enumeration.
        nesting: Number of dimensions that the plates take.

    Returns:
        One trace for each choice of states of the sequential sites.
    """
    if not how:
        return [poutine.trace(Given(values)(model)).get_trace(*inputs.args, **inputs.kwargs)]
    enumerated = poutine.enum(Sum(how)(model), first_available_dim=-1 - nesting)
    given = Given(values)(enumerated)
    return list(iter_discrete_traces("flat", given, *inputs.args, **inputs.kwargs))


@dataclass(frozen=True)
class Unit:
    """Observations with one density per datum.

    Attributes:
        sites: Names of the observed sites.
        plates: Names and sizes of the plates whose elements are the data, the leftmost first;
            ``None`` where each element of the one site's batch is a datum.
    """

    sites: tuple[str, ...]
    plates: tuple[tuple[str, int], ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the density, where plates give it."""
        return tuple(size for _, size in self.plates or ())


def near(sites: Mapping[str, Site], observed: str, names: Collection[str]) -> set[str]:
    """The sites that share an element of some plate with an observed site.

    Args:
        sites: The sites of a trace.
        observed: Name of the observed site; without plates all sites are near.
        names: The candidates.

    Returns:
        Their names.
    """
    places = {
        n: {(f.name, f.counter) for f in sites[n]["cond_indep_stack"]} for n in (observed, *names)
    }
    return {z for z in names if places[z] & places[observed] or not places[observed]}


def find_units(
    trace: Trace,
    observed: Collection[str],
    local: Mapping[str, Collection[str]] | None = None,
    together: Iterable[Collection[str]] = (),
) -> list[Unit]:
    """The units that some observed sites fall into.

    Args:
        trace: A trace of the model, as :func:`run_summed` gives it.
        observed: Names of the observed sites.
        local: For an observed site, the latent sites over which its density is averaged: what
            shares a draw of them is one datum.
        together: Observed sites whose joint density is wanted.

    Returns:
        The units, in the order of the trace.
    """
    terms, sites = Terms(trace, observed), sample_sites(trace)
    # parallel states are dimensions of the densities; others may be hidden in branches
    states = [n for n, s in sites.items() if _is_sequential(s)]
    local = {y: near(sites, y, states) | set((local or {}).get(y, ())) for y in observed}
    latents = {n for names in local.values() for n in names}
    links = [*together, *([n for n, names in local.items() if z in names] for z in latents)]
    units = []
    for names in terms.connected(links):
        seen = tuple(n for n in names if n in observed)
        around = [z for n in seen for z in local[n]]
        if seen and (len(names) > 1 or around):
            shared = set.intersection(*(set(frames(sites[n])) for n in (*names, *around)))
            plates = sorted(
                (f for f in frames(sites[seen[0]]).values() if f.name in shared),
                key=lambda f: f.dim,
            )
            units.append(Unit(seen, tuple((f.name, f.size) for f in plates)))
        elif seen:
            units.append(Unit(seen))
    return units


def unit_density(
    traces: Iterable[Trace],
    unit: Unit,
    more: Collection[str] = (),
    extra: Mapping[str, Extra] | None = None,
) -> Tensor:
    """Log-density of each datum of a unit.

    Args:
        traces: The model's traces, as :func:`run_summed` gives them.
        unit: The unit.
        more: Names of computed sites whose densities belong to it.
        extra: Further terms that belong to it.

    Returns:
        Nats per datum, NaN where all of its observations are masked out.
    """
    traces = list(traces)
    if unit.plates is None:
        return pointwise_log_prob(traces[0].nodes[unit.sites[0]])
    total: Tensor | None = None
    for trace in traces:
        terms = Terms(trace, [*unit.sites, *more], extra)
        links = [[*unit.sites, *more, *(extra or {})]]
        names = next(n for n in terms.connected(links) if unit.sites[0] in n)
        value = terms.contract(names, unit.plates) + _state_prior(trace, unit)
        total = value if total is None else torch.logaddexp(total, value)
    assert total is not None
    return torch.where(kept_data(traces[0], unit), total, total.new_tensor(torch.nan))


def joint_density(trace: Trace) -> float:
    """Log-density of a trace in nats, its enumerated states summed out: scaled and masked.

    Args:
        trace: A trace of the model, as :func:`run_summed` gives it.

    Returns:
        The sum over the sites.

    Raises:
        ValueError: If sites that share states have different scales.
    """
    sites = density_sites(trace)
    terms = Terms(trace, sites)
    total = 0.0
    for names in terms.connected():
        scales = {float(sites[n]["scale"]) for n in names}
        if len(scales) > 1:
            raise ValueError(f"The sites {list(names)} share states, but not their scale.")
        total += scales.pop() * terms.contract(names, ()).double().item()
    return total


def _is_sequential(site: Site) -> bool:
    return site["infer"].get("_enum_total") is not None and not site["is_observed"]


def _state_prior(trace: Trace, unit: Unit) -> Tensor | float:
    """Log-probability of the states of the sequential sites in a trace."""
    total: Tensor | float = 0.0
    for name, site in sample_sites(trace).items():
        if not _is_sequential(site):
            continue
        plates = dict(unit.plates or ())
        if not set(frames(site)) <= set(plates):
            raise ValueError(
                f"The states of site {name!r} are enumerated one after the other inside of the "
                f"plates {list(frames(site))}, but a datum is an element of {list(plates)}: mark "
                f"it infer={{'enumerate': 'parallel'}}."
            )
        total = total + Terms(trace, [name]).contract([name], unit.plates or ())
    return total


def kept_data(trace: Trace, unit: Unit) -> Tensor:
    """Which data of a unit no mask hides as a whole.

    Args:
        trace: A trace of the model.
        unit: The unit.

    Returns:
        Flags, broadcastable to the unit's density.
    """
    if unit.plates is None:
        return kept(trace.nodes[unit.sites[0]])
    found: Tensor | None = None
    for name in unit.sites:
        around = frames(trace.nodes[name])
        keep = kept(trace.nodes[name])
        num_dims = max([keep.dim(), *(-f.dim for f in around.values())])
        shape = [1] * (num_dims - keep.dim()) + list(keep.shape)
        for f in around.values():
            shape[f.dim] = f.size
        keep = keep.expand(shape)
        dims = [around[plate].dim for plate, _ in unit.plates]
        others = [d for d in range(-num_dims, 0) if d not in dims]
        keep = keep.any(others) if others else keep
        found = keep if found is None else found | keep
    assert found is not None
    return found
