r"""Draws from a Pyro model and guide, one at a time, as :func:`pyro_ibvi.to_arviz` needs them.

:class:`Sampler` runs the pair and hands out traces. It keeps none of them, so the memory that a
long run needs is that of one draw. Each purpose (posterior, redrawn data, new inputs, prior) has
its own stream of random numbers: leaving one out changes none of the others, and the posterior's
stream is consumed exactly as by a loop over ``poutine.trace(guide).get_trace(*args)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import infer_discrete
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample

from pyro_ibvi.arviz.dependence import Sources, find_sources, tracked
from pyro_ibvi.arviz.inputs import Inputs
from pyro_ibvi.arviz.latents import Pair
from pyro_ibvi.arviz.marginal import PARALLEL, Marks, Sum, joint_density, run_summed
from pyro_ibvi.arviz.running import (
    FillMasked,
    Given,
    GivenWhereItFits,
    RandomStreams,
    Redraw,
    evaluating,
    known_latents,
    own_sites,
)
from pyro_ibvi.arviz.sites import (
    DATA,
    Kinds,
    full_value,
    plate_nesting,
    plate_sizes,
    sample_sites,
    subsamples,
)
from pyro_ibvi.objectives.sites import computed_sites
from pyro_ibvi.objectives.terms import evaluate_model_site
from pyro_ibvi.pairing.belonging import check_shown_pair


@dataclass(frozen=True)
class NewInputs:
    """Arguments to predict at.

    Attributes:
        inputs: The arguments.
        trace: One run of the model with them.
        kept: Latent sites that keep their posterior draws.
        held: Fixed indices of the subsampled plates.
    """

    inputs: Inputs
    trace: Trace
    kept: tuple[str, ...]
    held: Mapping[str, torch.Tensor]


def latent_values(trace: Trace) -> dict[str, Any]:
    """The values of the unobserved sites of a trace."""
    return {n: s["value"] for n, s in sample_sites(trace).items() if not s["is_observed"]}


class Sampler:
    """Traces of a model and its guide, draw by draw.

    The subsample of a plate that draws one at random is drawn once and held, so that every
    draw speaks of the same data.

    Args:
        model: Pyro model.
        guide: Its guide.
        inputs: Arguments of both.
        seed: See :class:`RandomStreams`.

    Raises:
        TypeError: If the model or the guide is a whole that holds both.
        ValueError: If the guide was made for another model, or takes data for latents.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        inputs: Inputs,
        seed: int | None = None,
    ) -> None:
        check_shown_pair(model, guide)
        self.model, self.guide, self.inputs = model, guide, inputs
        self.streams = RandomStreams(seed)
        self._held: dict[str, torch.Tensor] = {}
        with evaluating(model, guide), self.streams("probe"):
            with known_latents(guide):
                guide_trace = own_sites(guide, self._run(guide, inputs, {}))
            model_trace = self._run(
                model, inputs, subsamples(guide_trace) | latent_values(guide_trace)
            )
            self._held = subsamples(guide_trace) | subsamples(model_trace)
            computed = computed_sites(model, model_trace, inputs.args, inputs.kwargs)
            #: what the sites of the model are
            self.kinds = Kinds(frozenset(latent_values(guide_trace)), computed)
            kinds = {n: self.kinds(s) for n, s in sample_sites(model_trace).items()}
            self._discrete = [n for n, kind in kinds.items() if kind == "enumerated"]
            self._one_observation = sum(k in DATA for k in kinds.values()) == 1
            self.nesting = plate_nesting(model_trace)
            #: one draw to plan by; it takes nothing from the streams
            self.guide_trace, self.model_trace = self._posterior()

    @cached_property
    def sources(self) -> Sources:
        """What the sites of the model are computed from."""
        return self._sources(self.model, self.model_trace)

    def _sources(self, fn: Callable[..., Any], trace: Trace) -> Sources:
        with evaluating(self.model, self.guide), self.streams("probe"):
            return find_sources(fn, trace, tracked(self.inputs, self.model))

    @cached_property
    def targets(self) -> set[str]:
        """Names of the arguments that hold the observed data."""
        sites = sample_sites(self.model_trace)
        data = [n for n, s in sites.items() if self.kinds(s) == "observed"]
        return self.sources.arguments(data, of="values")

    @cached_property
    def pair(self) -> Pair:
        """Which sites belong to single data, and which have seen them."""
        seen = self._sources(self.guide, self.guide_trace)
        return Pair(self.model_trace, self.guide_trace, self.kinds, seen, self.targets)

    def _run(
        self,
        fn: Callable[..., Any],
        inputs: Inputs,
        values: Mapping[str, Any],
        *,
        redraw: bool = False,
    ) -> Trace:
        fn = Given(values)(fn)
        if redraw:
            fn = Redraw(self.kinds.computed)(fn)
        return poutine.trace(fn).get_trace(*inputs.args, **inputs.kwargs)

    def posterior(self) -> tuple[Trace, Trace]:
        """One draw of the guide, and the model run with it."""
        with self.streams("posterior"):
            return self._posterior()

    def _posterior(self) -> tuple[Trace, Trace]:
        guide_trace = own_sites(self.guide, self._run(self.guide, self.inputs, self._held))
        values = self._held | latent_values(guide_trace)
        if self._discrete:
            values |= self._draw_discrete(latent_values(guide_trace))
        return guide_trace, self._run(self.model, self.inputs, values)

    def _draw_discrete(self, latents: Mapping[str, Any]) -> dict[str, Any]:
        """Draws the enumerated sites from their exact conditional, given the other latents."""
        # as observations, of which enumeration knows how they depend on its states
        model = Given(self._held)(poutine.condition(self.model, dict(latents)))
        marked = Sum(dict.fromkeys(self._discrete, PARALLEL), others=True)(FillMasked()(model))
        exact = infer_discrete(marked, first_available_dim=-1 - self.nesting, temperature=1)
        with self.streams("discrete"):
            trace = poutine.trace(exact).get_trace(*self.inputs.args, **self.inputs.kwargs)
        return {n: trace.nodes[n]["value"] for n in self._discrete}

    @cached_property
    def summed(self) -> dict[str, Marks]:
        """The sites that the model enumerates and the guide lacks, and how."""
        sites = sample_sites(self.model_trace)
        found = {n: sites[n] for n in self._discrete}
        return {
            n: {"enumerate": s["infer"]["enumerate"]}  # whatever else the model says, it says
            for n, s in found.items()
            if getattr(s["fn"], "has_enumerate_support", False)
        }

    def log_joint(self, posterior: tuple[Trace, Trace]) -> float:
        """Log-density of the model in a draw: scaled, masked, its enumerated sites summed out."""
        if not self.summed:
            return log_density(posterior[1])
        return joint_density(self.marginal(posterior, self.summed)[0])

    def marginal(self, posterior: tuple[Trace, Trace], how: Mapping[str, Marks]) -> list[Trace]:
        """Runs of the model with some sites in all of their states, the others as in a draw.

        Args:
            posterior: The draw.
            how: The sites to sum out, as :func:`run_summed` takes them.

        Returns:
            The traces, see :func:`run_summed`.
        """
        if not how:
            return [posterior[1]]
        values = {n: v for n, v in latent_values(posterior[1]).items() if n not in how}
        with self.streams("marginal"):
            return run_summed(self.model, self.inputs, self._held | values, how, self.nesting)

    def redraw(self, model_trace: Trace) -> dict[str, torch.Tensor]:
        """Replicated data: every observed site drawn again, given a draw's latents."""
        sites = sample_sites(model_trace)
        data = {n: s for n, s in sites.items() if self.kinds.is_data(s)}
        with self.streams("posterior_predictive"):
            if not self._one_observation:
                # one observation may be the parent of another: run the model
                values = {n: s["value"] for n, s in sites.items() if n not in data}
                trace = self._run(self.model, self.inputs, self._held | values, redraw=True)
                nodes: Mapping[str, Any] = trace.nodes
                return {n: nodes[n]["value"] for n in data}
            return {
                n: s["fn"].sample() if s["is_observed"] else full_value(s) for n, s in data.items()
            }

    def prior(self) -> Trace:
        """One draw of the model alone, its data included."""
        with self.streams("prior"):
            return self._run(self.model, self.inputs, self._held, redraw=True)

    def probe_prior(self) -> None:
        """Tries a draw of the prior."""
        self._run(self.model, self.inputs, self._held, redraw=True)

    def at(self, inputs: Inputs) -> NewInputs:
        """What predictions at new inputs need.

        A latent site keeps its posterior draws there if it has the same shape, and is drawn
        from the model otherwise: a plate of the same size is taken to hold the same units. What
        the guide computes from the old data is drawn from the model in any case.

        Args:
            inputs: The new inputs.

        Returns:
            What stays as it is, and a run of the model.
        """
        old = {
            n: value
            for n, value in latent_values(self.guide_trace).items()
            if n not in self.pair.latent or not self.pair.has_seen(n)
        }
        with evaluating(self.model, self.guide), self.streams("probe"):
            fitting = GivenWhereItFits(old)(self.model)
            trace = self._run(fitting, inputs, {}, redraw=True)
        new = sample_sites(trace)
        kept = [n for n, v in old.items() if n in new and new[n]["value"].shape == v.shape]
        sizes, new_sizes = plate_sizes(self.model_trace), plate_sizes(trace)
        held = {
            n: self._held[n] if n in self._held and sizes.get(n) == new_sizes[n] else indices
            for n, indices in subsamples(trace).items()
        }
        return NewInputs(inputs, trace, tuple(kept), held)

    def predict(self, guide_trace: Trace, new: NewInputs) -> Trace:
        """A run of the model at new inputs, given a posterior draw."""
        values = {n: guide_trace.nodes[n]["value"] for n in new.kept}
        with self.streams("predictions"):
            return self._run(self.model, new.inputs, {**new.held, **values}, redraw=True)


def log_density(trace: Trace) -> float:
    """Log-density of a trace in nats, as Pyro's objectives count it: scaled and masked.

    Args:
        trace: A trace whose sites have values; it is left without log-densities.

    Returns:
        The sum over the sites, accumulated in float64.
    """
    total = 0.0
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            one: Any = dict(site)  # of one site at a time, to keep no log-densities
            evaluate_model_site(one)
            total += one["log_prob"].double().sum().item()
    return total
