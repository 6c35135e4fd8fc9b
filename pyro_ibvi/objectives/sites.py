"""What kind each site of a model and of its guide is.

Told apart here once, for the objective, for its report and for whatever exports a posterior. A
site is, by itself or by its neighbors:

- ``"observed"``: data, the likelihood's terms;
- ``"factor"``: a term of the density alone (``pyro.factor``);
- ``"deterministic"``: a value computed from latent variables. ``pyro.deterministic`` marks such a
  site; Pyro's reparametrizers leave an *observed* ``Delta`` in the place of the site that they
  take apart, whose ``log_density`` may hold the prior: no data, but a latent term;
- ``"enumerated"``: a latent that the model sums out, and the guide does not have;
- ``"latent"``: a latent that the guide draws;
- ``"predicted"``: a site that neither the data nor the guide fixes: it is drawn from the model;
- ``"auxiliary"``: a site of the guide alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from pyro import poutine
from pyro.infer.inspect import site_is_deterministic
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_factor, site_is_subsample
from torch import Tensor

from pyro_ibvi._util.buffers import buffers_kept
from pyro_ibvi._util.distributions import is_delta
from pyro_ibvi._util.random_state import own_random_numbers

Site: TypeAlias = Any  # Pyro's Message, to which the estimators add fields
Kind: TypeAlias = Literal[
    "observed", "factor", "deterministic", "enumerated", "latent", "predicted", "auxiliary"
]
PARTICLES = "num_particles_vectorized"  # the plate in which Pyro vectorizes particles


@dataclass(frozen=True)
class Traces:
    """A run of a model and its guide, with what kind each sample site is.

    An objective takes the sites that it drops out of the traces; they stay among the sites.

    Attributes:
        model: The model's trace, without subsample sites.
        guide: The guide's trace, without subsample sites.
        model_sites: The model's sample sites by name.
        guide_sites: The guide's sample sites by name.
        model_kinds: What kind each site of the model is.
        guide_kinds: What kind each site of the guide is.
        recorded: Both traces as they were made, with the subsample sites.
    """

    model: Trace
    guide: Trace
    model_sites: dict[str, Site]
    guide_sites: dict[str, Site]
    model_kinds: dict[str, Kind]
    guide_kinds: dict[str, Kind]
    recorded: tuple[Trace, Trace]

    @classmethod
    def of(cls, model: Trace, guide: Trace, computed: Collection[str] = ()) -> Traces:
        """Tells the sites of two traces apart, in copies that may be written to.

        Args:
            model: The model's trace.
            guide: The guide's trace.
            computed: Names of the sites that `computed_sites` found.

        Returns:
            The traces and their kinds.
        """
        recorded = model, guide
        model, guide = _own_sites(model), _own_sites(guide)
        model_sites, guide_sites = dict(sample_sites(model)), dict(sample_sites(guide))
        return cls(
            model,
            guide,
            model_sites,
            guide_sites,
            {n: model_kind(site, guide_sites, computed) for n, site in model_sites.items()},
            {n: guide_kind(site, model_sites) for n, site in guide_sites.items()},
            recorded,
        )

    def __iter__(self) -> Iterator[Trace]:
        """Iterates over the model's trace and the guide's, as Pyro's estimators take them."""
        return iter((self.model, self.guide))

    def to_match(self) -> tuple[Trace, Trace]:
        """Both traces as Pyro checks that they match, which has no eye for computed sites.

        Returns:
            The traces with their subsample sites, without the guide's deterministic sites.
        """
        model, guide = self.recorded
        computed = {name for name, kind in self.guide_kinds.items() if kind == "deterministic"}
        if computed:
            guide = guide.copy()
            nodes = ((name, site) for name, site in guide.nodes.items() if name not in computed)
            guide.nodes = OrderedDict(nodes)
        return model, guide

    def structure(self) -> int:
        """A number that changes with the set of sites, what they are, and their subsampling.

        Returns:
            The number.
        """
        frames = [
            tuple((f.name, f.size == f.full_size) for f in site["cond_indep_stack"])
            for site in self.model_sites.values()
        ]
        kinds = (*self.model_kinds.items(), *self.guide_kinds.items())
        return hash((*kinds, *frames))

    def drawn(self) -> dict[str, Site]:
        """The model's sites that are drawn, by the guide or from their prior.

        Returns:
            The sites by name.
        """
        kinds = {"latent", "predicted"}
        return {n: site for n, site in self.model_sites.items() if self.model_kinds[n] in kinds}


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """The sample statements of a trace.

    Args:
        trace: The trace.

    Returns:
        An iterator over names and sites.
    """
    return (item for item in trace.nodes.items() if item[1]["type"] == "sample")


def _own_sites(trace: Trace) -> Trace:
    """A copy of a trace without subsample sites, whose sites may be written to."""
    trace = prune_subsample_sites(trace)
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            trace.nodes[name] = site.copy()
    return trace


def model_kind(
    site: Site,
    guide_names: Collection[str],
    computed: Collection[str] = (),
    *,
    marks_count: bool = False,
) -> Kind:
    """What a sample site of the model is.

    A latent that the model enumerates (and the guide does not have) is summed out exactly, so its
    prior is a part of the likelihood and is called ``"enumerated"``.

    Args:
        site: The site, no subsample site.
        guide_names: Names of the guide's sites.
        computed: Names of the sites that `computed_sites` found.
        marks_count: Whether ``infer={"enumerate": ...}`` says that a site is enumerated, for a
            trace that was made without enumeration.

    Returns:
        The kind.
    """
    if site_is_deterministic(site) or site["name"] in computed:
        return "deterministic"
    if site["is_observed"]:
        return "factor" if site_is_factor(site) else "observed"
    if site["name"] in guide_names:
        return "latent"
    enumerated = site["infer"].get("_enumerate_dim") is not None
    marked = marks_count and bool(site["infer"].get("enumerate"))
    return "enumerated" if enumerated or marked else "predicted"


def guide_kind(site: Site, model_names: Collection[str]) -> Kind:
    """What a sample site of the guide is; all of them belong to the latent terms.

    Args:
        site: The site, no subsample site.
        model_names: Names of the model's sites.

    Returns:
        The kind.
    """
    if site_is_factor(site):
        return "factor"
    if site_is_deterministic(site):
        return "deterministic"
    return "latent" if site["name"] in model_names else "auxiliary"


def computed_sites(
    model: Callable[..., Any],
    trace: Trace,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    known_data: set[str] | None = None,
) -> frozenset[str]:
    """The observed sites whose value is computed from latent variables or parameters.

    These are point masses, which observe nothing: mostly what Pyro's reparametrizers leave. Where
    the trace itself does not show what such a value depends on, the model is run once more
    against the same draws; random states and buffers are those of before.

    Args:
        model: The model that was traced.
        trace: Its trace, with the subsample sites still in it.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        known_data: Names of the point masses that an earlier call found to be data: they are
            not looked into again, and what is found now is added.

    Returns:
        Names of the sites. Those of ``pyro.deterministic`` are marked, and not among them.
    """
    masses = {
        name: site["value"]
        for name, site in sample_sites(trace)
        if site["is_observed"] and is_delta(site["fn"]) and not site_is_deterministic(site)
    }
    found = {name for name, value in masses.items() if _has_source(value)}
    known_data = set() if known_data is None else known_data
    if masses.keys() - found - known_data:
        again = _run_on_trail(model, trace, args, kwargs)
        found |= {name for name in masses if _has_source(again.nodes[name]["value"])}
        known_data |= masses.keys() - found
    return frozenset(found)


def _has_source(value: Any) -> bool:
    """Whether a value is known to depend on latent variables or parameters."""
    return isinstance(value, Tensor) and (value.requires_grad or bool(get_provenance(value)))


def _run_on_trail(
    model: Callable[..., Any], trace: Trace, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Trace:
    """A trace of a model whose values know which draws and parameters they come from."""
    with poutine.block(), own_random_numbers(), buffers_kept(model):
        try:
            with torch.no_grad(), _Provenance():
                return poutine.trace(poutine.replay(model, trace)).get_trace(*args, **kwargs)
        except Exception:  # a subclass of tensors does not go through everything
            with torch.enable_grad(), _Gradient():
                return poutine.trace(poutine.replay(model, trace)).get_trace(*args, **kwargs)


class _Provenance(Messenger):
    """Lets what is computed from draws and parameters know it by Pyro's tracking."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            self._pyro_post_param(msg)

    def _pyro_post_param(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor):
            value = detach_provenance(msg["value"])
            msg["value"] = ProvenanceTensor(value, frozenset({msg["name"]}))


class _Gradient(Messenger):
    """Lets what is computed differentiably from draws know it by autograd."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not msg["is_observed"] and isinstance(value, Tensor) and value.is_floating_point():
            msg["value"] = value.detach().requires_grad_()


def is_missing(name: str, sites: Collection[str]) -> bool:
    """Whether a latent stands for data that are missing, as ``obs_mask`` makes them.

    Args:
        name: Name of the latent.
        sites: Names of the model's sample sites, where Pyro puts the other two of its three.

    Returns:
        Whether it does.
    """
    stem = name.removesuffix("_unobserved")
    return stem != name and f"{stem}_observed" in sites and stem in sites


def subsampled_plate(site: Site) -> Any:
    """The frame of a subsampled plate around a site.

    Args:
        site: A sample site.

    Returns:
        The frame, or None if there is none.
    """
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            return frame
    return None
