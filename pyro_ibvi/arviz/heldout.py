r"""The density of data that a fit has not seen.

.. math:: \hat p(y_n) = \frac1S \sum_{s=1}^S p(y_n \mid w_s), \quad w_s \sim q(w)

Only what all data share is drawn from the guide. Sites that belong to single data are summed out
where they are enumerated, and otherwise drawn from the model given :math:`w_s`, or from the guide
and weighted by :math:`p(z \mid w_s) / q(z)`: an average over both gives the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import pyro.poutine as poutine
import torch
from pyro.distributions import ImproperUniform
from pyro.poutine import Trace
from torch import Tensor

from pyro_ibvi._util.distributions import is_delta
from pyro_ibvi.arviz.dependence import Sources, find_sources, tracked
from pyro_ibvi.arviz.draws import latent_values
from pyro_ibvi.arviz.inputs import Inputs
from pyro_ibvi.arviz.latents import Latents, Pair
from pyro_ibvi.arviz.marginal import (
    PARALLEL,
    Unit,
    find_units,
    kept_data,
    near,
    run_summed,
    unit_density,
)
from pyro_ibvi.arviz.running import Given, GivenWhereItFits, RandomStreams, evaluating, own_sites
from pyro_ibvi.arviz.sites import (
    Kinds,
    Site,
    log_prob_of,
    plate_nesting,
    sample_sites,
    subsamples,
)
from pyro_ibvi.arviz.terms import Extra, agrees, frames
from pyro_ibvi.objectives.sites import computed_sites
from pyro_ibvi.pairing.belonging import check_shown_pair

#: where the draws of local sites come from
LocalDraws = Literal["model", "guide"]


class HeldOut:
    """Log-densities of data, draw by draw, given only what the data share.

    Args:
        model: Pyro model.
        guide: Its guide.
        inputs: Arguments of both, the data included.
        site: The observed site, or several whose joint density is wanted.
        local: Names or patterns of the sites that belong to single data; found by default.
        local_draws: Where their draws come from.
        seed: See :class:`RandomStreams`.

    Raises:
        ValueError: If the guide was made for another model, the observed site is not clear, or a
            latent site can neither be summed out nor drawn.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        inputs: Inputs,
        *,
        site: str | Sequence[str] | None = None,
        local: Collection[str] | None = None,
        local_draws: LocalDraws = "model",
        seed: int | None = None,
    ) -> None:
        if local_draws not in ("model", "guide"):
            raise ValueError(f"local_draws must be 'model' or 'guide', got {local_draws!r}.")
        check_shown_pair(model, guide)
        self.model, self.guide, self.inputs = model, guide, inputs
        self.weighted = local_draws == "guide"
        self.streams = RandomStreams(seed)
        self._held: dict[str, Tensor] = {}
        with evaluating(model, guide), self.streams("probe"):
            guide_trace, failure = self._run_guide()
            trace = self._probe(guide_trace)
            self.nesting = plate_nesting(trace)
            computed = computed_sites(model, trace, inputs.args, inputs.kwargs)
            self.kinds = Kinds(frozenset(latent_values(guide_trace)), computed)
            observed = self._observed(trace, site)
            self.values: list[Any] = [trace.nodes[name]["value"] for name in observed]
            known = tracked(inputs, model)
            sources = find_sources(model, trace, known)
            targets = sources.arguments(self._data(trace), of="values")
            seen = find_sources(guide, guide_trace, known) if failure is None else Sources()
            pair = Pair(trace, guide_trace, self.kinds, seen, targets, failure)
            self.latents: Latents = self._sum_more(pair.find(local), trace, observed)
            self._check_draws(trace, pair)
            self._plan(observed, sources, joint=not isinstance(site, str) and bool(site))

    def _run_guide(self) -> tuple[Trace, Exception | None]:
        """Runs the guide; up to where it fails, which data of another size may make it."""
        with poutine.trace() as tracer:
            try:
                Given(self._held)(self.guide)(*self.inputs.args, **self.inputs.kwargs)
            except Exception as error:
                return own_sites(self.guide, tracer.trace), error
        return own_sites(self.guide, tracer.trace), None

    def _probe(self, guide_trace: Trace) -> Trace:
        if self.weighted:
            self._held = subsamples(guide_trace)
        values = self._held | latent_values(guide_trace)
        model = GivenWhereItFits(values)(self.model)
        trace = poutine.trace(model).get_trace(*self.inputs.args, **self.inputs.kwargs)
        self._held |= subsamples(trace)
        return trace

    def _data(self, trace: Trace) -> list[str]:
        sites = sample_sites(trace)
        return [n for n, s in sites.items() if self.kinds(s) == "observed"]

    def _observed(self, trace: Trace, site: str | Sequence[str] | None) -> list[str]:
        observed = self._data(trace)
        if not observed:
            raise ValueError(f"The observed sites are {observed}: pass the targets to the model.")
        wanted = observed if site is None else [site] if isinstance(site, str) else list(site)
        if not set(wanted) <= set(observed):
            raise ValueError(f"The observed sites are {observed}: name one by site=.")
        return wanted

    def _sum_more(self, latents: Latents, trace: Trace, observed: Collection[str]) -> Latents:
        """Sums out what nobody has marked, where the model can be run in all states at once.

        It has less variance than draws. Marks may be missing since the guide, which has them,
        fails on data of this size.

        Args:
            latents: The latent sites.
            trace: A trace of the model.
            observed: The observed sites.

        Returns:
            The latent sites, some more of them summed out.
        """
        sites = sample_sites(trace)
        names = [n for n in latents.local if _has_few_states(sites[n])]
        values = {n: v for n, v in latent_values(trace).items() if n not in names}
        how = dict.fromkeys(names, PARALLEL)
        try:
            runs = run_summed(self.model, self.inputs, self._held | values, how, self.nesting)
            if not names or not agrees(runs[0], trace, names, observed):
                return latents
        except Exception:  # a model that asks for one state at a time
            return latents
        return Latents(latents.given, latents.local - set(names), {**latents.summed, **how})

    def _check_draws(self, trace: Trace, pair: Pair) -> None:
        """Checks that the local sites can be drawn from where they shall be."""
        sites = sample_sites(trace)
        for name in sorted(self.latents.local):
            improper = isinstance(sites[name]["fn"], ImproperUniform)
            if improper and not (self.weighted and name in pair.guide_sites):
                raise ValueError(
                    f"Latent site {name!r} belongs to single data, and its prior cannot be drawn: "
                    f"let the guide draw it and weight the draws, local_draws='guide'."
                )
            if not self.weighted:
                continue
            if pair.failure is not None:
                raise ValueError(
                    f"Latent site {name!r} cannot be weighted, since the guide fails on these "
                    f"data ({str(pair.failure).splitlines()[0]}): draw it from the model, "
                    f"local_draws='model'."
                ) from pair.failure
            if name in pair.guide_sites and not pair.fits(name):
                drawn = tuple(pair.guide_sites[name]["value"].shape)
                raise ValueError(
                    f"Latent site {name!r} cannot be weighted: the guide draws it for data of "
                    f"another size, in shape {drawn}; draw it from the model, local_draws='model'."
                )

    def _plan(self, observed: list[str], sources: Sources, *, joint: bool) -> None:
        """Finds the units of the data, and what belongs to each of them."""
        guide_trace, traces = self._run("probe")
        sites = sample_sites(traces[0])
        local = {y: near(sites, y, self.latents.local) for y in observed}
        if sources.known and not self.weighted:  # draws of the guide need their weight in any case
            # what a model takes out of its tensors, as by int(label), leaves no trail
            lost = self.latents.local - sources.used
            local = {y: z & (sources.ancestors(y) | lost) for y, z in local.items()}
        together = [observed] if joint else []
        self.units = find_units(traces[0], observed, local, together)
        if len(self.units) > 1 and not _is_sequence(traces[0], self.units):
            raise ValueError(f"The observed sites are {observed}: name one by site=.")
        self._local = {u: sorted({z for y in u.sites for z in local[y]}) for u in self.units}
        #: computed sites that hold a part of the prior of a local site
        self._more = {
            u: [c for c in self.kinds.computed if sources.ancestors(c) & set(self._local[u])]
            for u in self.units
        }
        kept = [kept_data(traces[0], unit).reshape(-1) for unit in self.units]
        #: which data no mask hides
        self.kept = torch.cat(kept) if len(kept) > 1 else kept_data(traces[0], self.units[0])
        if self.weighted:
            for unit in self.units:
                self._weights(unit, guide_trace, traces[0])

    def _run(self, stream: str | None = None) -> tuple[Trace, list[Trace]]:
        with self.streams(stream or "posterior"):
            guide_trace, _ = self._run_guide()
            drawn = latent_values(guide_trace)
            names = set(self.latents.given)
            if self.weighted:
                names |= self.latents.local & set(drawn)
            values = self._held | {n: drawn[n] for n in names}
            # in a stream of its own, the local sites leave the draws of the guide as they are
            with self.streams("local") if self.latents.local and not stream else nullcontext():
                how = self.latents.summed
                traces = run_summed(self.model, self.inputs, values, how, self.nesting)
        return guide_trace, traces

    def _weights(self, unit: Unit, guide_trace: Trace, trace: Trace) -> dict[str, Extra]:
        """Terms ``-log q`` of the local sites of a unit."""
        sites, model_sites = sample_sites(guide_trace), sample_sites(trace)
        local = [z for z in self._local[unit] if z in sites]
        plates = [set(frames(model_sites[z])) for z in local]
        # what the guide draws in their place, such as the unconstrained values of AutoNormal
        helpers = [
            n
            for n, s in sites.items()
            if n not in model_sites
            and not s["is_observed"]
            and frames(s)
            and set(frames(s)) in plates
        ]
        for name in local:
            own = not is_delta(sites[name]["fn"]) or bool(helpers)
            if not own or not set(frames(sites[name])) >= {p for p, _ in unit.plates or ()}:
                raise ValueError(
                    f"Latent site {name!r} cannot be weighted: the guide has no density for each "
                    f"of its values; draw it from the model, local_draws='model'."
                )
        return {
            f"q of {n}": Extra(frames(sites[n]), -log_prob_of(sites[n]))
            for n in [*local, *helpers]
        }

    def draw(self) -> Tensor:
        """Log-density of each datum for one draw of what they share and, if any, of local sites.

        Returns:
            Nats, NaN where a datum is masked out; its exponential is unbiased.
        """
        guide_trace, traces = self._run()
        values = []
        for unit in self.units:
            more = [*self._more[unit], *(self._local[unit] if self.weighted else ())]
            extra = self._weights(unit, guide_trace, traces[0]) if self.weighted else {}
            values.append(unit_density(traces, unit, more, extra))
        return values[0] if len(values) == 1 else torch.cat([v.reshape(-1) for v in values])


def _has_few_states(site: Site, most: int = 1000) -> bool:
    if not getattr(site["fn"], "has_enumerate_support", False):
        return False
    return len(site["fn"].enumerate_support(expand=False)) <= most


def _is_sequence(trace: Trace, units: Sequence[Unit]) -> bool:
    """Whether the units are the elements of one sequential plate, in its order."""
    places = []
    for unit in units:
        stack = trace.nodes[unit.sites[0]]["cond_indep_stack"]
        places.append([(f.name, f.counter) for f in stack if not f.vectorized])
    names = {tuple(name for name, _ in place) for place in places}
    distinct = len({tuple(place) for place in places}) == len(units)
    return len(units) > 1 and len(names) == 1 and all(places) and distinct
