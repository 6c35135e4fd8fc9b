r"""Draws from a Pyro model and guide, one at a time, as :func:`pyro_ibvi.to_arviz` needs them.

:class:`Sampler` runs the pair and hands out traces. It keeps none of them, so the memory that a
long run needs is that of one draw. Each purpose (posterior, redrawn data, new inputs, prior) has
its own stream of random numbers: leaving one out changes none of the others, and the posterior's
stream is consumed exactly as by a loop over ``poutine.trace(guide).get_trace(*args)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import infer_discrete
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample

from pyro_ibvi.arviz.inputs import Inputs
from pyro_ibvi.arviz.running import Given, RandomStreams, Redraw, evaluating
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
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        inputs: Inputs,
        seed: int | None = None,
    ) -> None:
        self.model, self.guide, self.inputs = model, guide, inputs
        self.streams = RandomStreams(seed)
        self._held: dict[str, torch.Tensor] = {}
        with evaluating(model, guide), self.streams("probe"):
            guide_trace = self._run(guide, inputs, {})
            model_trace = self._run(
                model, inputs, subsamples(guide_trace) | latent_values(guide_trace)
            )
            self._held = subsamples(guide_trace) | subsamples(model_trace)
            computed = computed_sites(model, model_trace, inputs.args, inputs.kwargs)
            #: what the sites of the model are
            self.kinds = Kinds(frozenset(latent_values(guide_trace)), computed)
            kinds = [self.kinds(s) for s in sample_sites(model_trace).values()]
            self._infer_discrete = "enumerated" in kinds
            self._one_observation = sum(k in DATA for k in kinds) == 1
            self._nesting = plate_nesting(model_trace)
            #: one draw to plan by; it takes nothing from the streams
            self.guide_trace, self.model_trace = self._posterior()

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
        guide_trace = self._run(self.guide, self.inputs, self._held)
        values = self._held | latent_values(guide_trace)
        if not self._infer_discrete:
            return guide_trace, self._run(self.model, self.inputs, values)
        given = Given(values)(self.model)
        exact = infer_discrete(given, first_available_dim=-1 - self._nesting, temperature=1)
        return guide_trace, poutine.trace(exact).get_trace(*self.inputs.args, **self.inputs.kwargs)

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
        from the model otherwise: a plate of the same size is taken to hold the same units.

        Args:
            inputs: The new inputs.

        Returns:
            What stays as it is, and a run of the model.
        """
        with evaluating(self.model, self.guide), self.streams("probe"):
            trace = self._run(self.model, inputs, {}, redraw=True)
        old, new = sample_sites(self.guide_trace), sample_sites(trace)
        kept = [
            n
            for n in latent_values(self.guide_trace)
            if n in new and new[n]["value"].shape == old[n]["value"].shape
        ]
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
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            one = Trace()
            one.add_node(name, **site)
            one.compute_log_prob()  # of one site at a time, to keep no log-densities
            log_prob: Any = one.nodes[name]["log_prob"]
            total += log_prob.double().sum().item()
    return total
