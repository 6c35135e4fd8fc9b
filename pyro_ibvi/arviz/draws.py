r"""Draws from a Pyro model and guide, one at a time, as :func:`pyro_ibvi.to_arviz` needs them.

:class:`Sampler` runs the pair and hands out traces. It keeps none of them, so the memory that a
long run needs is that of one draw. Each purpose (posterior, redrawn data, new inputs, prior) has
its own stream of random numbers: leaving one out changes none of the others, and the posterior's
stream is consumed exactly as by a loop over ``poutine.trace(guide).get_trace(*args)``.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import infer_discrete
from pyro.infer.inspect import site_is_deterministic
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from pyro.util import set_rng_seed

from pyro_ibvi._util.inputs import as_call
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import get_random_state, set_random_state
from pyro_ibvi.arviz.sites import (
    DATA,
    full_value,
    kind_of,
    plate_sizes,
    sample_sites,
    subsamples,
)


class RandomStreams:
    """Independent, named streams of random numbers over Pyro's global generators.

    Args:
        seed: Start of every stream. With ``None`` the stream ``"posterior"`` is the global
            generator itself, and the others are started from its state without advancing it.
    """

    def __init__(self, seed: int | None) -> None:
        self._live = "posterior" if seed is None else None
        self._first = None if seed is None else seed % 2**32
        entropy = torch.get_rng_state().numpy().tobytes() if seed is None else b"%d" % seed
        self._entropy = zlib.crc32(entropy)
        self._states: dict[str, Any] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Draw from the stream ``name`` inside the context; leave the global state alone."""
        if name == self._live:
            yield
            return
        outer = get_random_state()
        try:
            if name in self._states:
                set_random_state(self._states[name])
            elif name == "posterior" and self._first is not None:
                set_rng_seed(self._first)
            else:
                set_rng_seed(zlib.crc32(name.encode(), self._entropy))
            yield
            self._states[name] = get_random_state()
        finally:
            set_random_state(outer)


@contextmanager
def evaluating(*callables: Callable[..., Any]) -> Iterator[None]:
    """Run without gradients and with every module in ``eval`` mode; restore the modes after."""
    with torch.no_grad(), module_mode(*callables, training=False):
        yield


class Given(Messenger):
    """Fix the values of unobserved sites, plates' subsamples included.

    Unlike :class:`pyro.poutine.replay` it leaves the site's ``infer`` dictionary, in which the
    model marks its weights, as it is.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"] and msg["value"] is None:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


class Redraw(UnconditionMessenger):
    """Draw observed sites anew.

    Deterministic sites keep their values: Pyro holds them as observations of a Delta, of which
    a plate would make a draw of a larger shape.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_deterministic(msg) and not site_is_factor(msg):
            super()._pyro_sample(msg)


@dataclass
class Inputs:
    """Arguments of one call of the model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> Inputs:
        """Return a tuple as positional, a mapping as keyword, all else as one argument."""
        if isinstance(value, Inputs):
            return value
        return cls(*as_call(value))

    def named(self, model: Callable[..., Any]) -> dict[str, Any]:
        """Return the arguments by the names that the model's signature gives them."""
        fn = model.forward if isinstance(model, torch.nn.Module) else model
        try:
            bound = inspect.signature(fn).bind(*self.args, **self.kwargs)
        except (TypeError, ValueError):
            return {f"input_{i}": a for i, a in enumerate(self.args)} | dict(self.kwargs)
        named: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                named |= {f"{name}_{i}": a for i, a in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                named |= value
            else:
                named[name] = value
        return named


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
    """Return the values of the unobserved sites of a trace."""
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
            self.guide_names = set(latent_values(guide_trace))
            kinds = [kind_of(s, self.guide_names) for s in sample_sites(model_trace).values()]
            self._infer_discrete = "enumerated" in kinds
            self._one_observation = sum(k in DATA for k in kinds) == 1
            frames = [f for s in model_trace.nodes.values() for f in s.get("cond_indep_stack", ())]
            self._nesting = max((-(f.dim or 0) for f in frames), default=0)
            #: one draw to plan by; it takes nothing from the streams
            self.guide_trace, self.model_trace = self._posterior()

    def is_data(self, site: Mapping[str, Any]) -> bool:
        """Return whether a site is part of what the model predicts."""
        return kind_of(site, self.guide_names) in DATA

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
            fn = Redraw()(fn)
        return poutine.trace(fn).get_trace(*inputs.args, **inputs.kwargs)

    def posterior(self) -> tuple[Trace, Trace]:
        """Return one draw of the guide, and the model run with it."""
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
        """Return replicated data: every observed site drawn again, given a draw's latents."""
        sites = sample_sites(model_trace)
        data = {n: s for n, s in sites.items() if self.is_data(s)}
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
        """Return one draw of the model alone, its data included."""
        with self.streams("prior"):
            return self._run(self.model, self.inputs, self._held, redraw=True)

    def probe_prior(self) -> None:
        """Try a draw of the prior."""
        self._run(self.model, self.inputs, self._held, redraw=True)

    def at(self, inputs: Inputs) -> NewInputs:
        """Return what predictions at new inputs need.

        A latent site keeps its posterior draws there if it has the same shape, and is drawn
        from the model otherwise: a plate of the same size is taken to hold the same units.
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
        """Return a run of the model at new inputs, given a posterior draw."""
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
