"""The groups of an ArviZ export: which variables each holds, and where their values come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pyro.poutine import Trace

from pyro_ibvi._util.distributions import innermost, is_delta
from pyro_ibvi.arviz.draws import NewInputs, Sampler, log_density
from pyro_ibvi.arviz.marginal import PARALLEL
from pyro_ibvi.arviz.running import evaluating
from pyro_ibvi.arviz.sites import (
    Variable,
    full_value,
    sample_sites,
    subsamples,
    to_numpy,
)

#: every group, in the order of ArviZ's schema
GROUPS = (
    "posterior",
    "posterior_predictive",
    "predictions",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "predictions_constant_data",
)

#: those for which the model draws its data
REDRAWN = {"posterior_predictive", "predictions", "prior", "prior_predictive"}


def choose_groups(groups: Sequence[str] | None) -> set[str]:
    """The groups to export.

    Args:
        groups: Their names; ``None`` is all of them, names that start with ``~`` take away.

    Returns:
        The names.

    Raises:
        ValueError: If a name is not a group of ArviZ.
    """
    groups = [groups] if isinstance(groups, str) else list(groups or ())
    unknown = {g.removeprefix("~") for g in groups} - set(GROUPS)
    if unknown:
        raise ValueError(f"Unknown groups {sorted(unknown)}; the groups are {list(GROUPS)}.")
    wanted = {g for g in groups if not g.startswith("~")} or set(GROUPS)
    return wanted - {g.removeprefix("~") for g in groups if g.startswith("~")}


class Draw:
    """One draw of everything; each part is made when a group asks for it.

    Args:
        sampler: Source of the draws.
        new: New inputs, where there are predictions.
    """

    def __init__(self, sampler: Sampler, new: NewInputs | None) -> None:
        self.sampler, self.new = sampler, new

    @cached_property
    def posterior(self) -> tuple[Trace, Trace]:
        """A trace of the guide, and of the model run with it."""
        return self.sampler.posterior()

    @cached_property
    def prior(self) -> Trace:
        """A trace of the model alone."""
        return self.sampler.prior()

    @property
    def predictions(self) -> Trace:
        """A trace of the model at the new inputs."""
        assert self.new is not None
        return self.sampler.predict(self.posterior[0], self.new)


@dataclass(frozen=True)
class Group:
    """One group of an export.

    Attributes:
        name: Its name in ArviZ.
        variables: What it holds, by site; those of ``fixed`` included.
        values: Their values in one draw, by site.
        fixed: Arrays that no draw changes, by site.
        notes: Attributes of the group.
    """

    name: str
    variables: Mapping[str, Variable]
    values: Callable[[Draw], Mapping[str, Any]] | None = None
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def random(self) -> list[str]:
        """The sites that have a value in each draw."""
        return [n for n in self.variables if n not in self.fixed]

    def stored_as(self, dtype: np.dtype | None) -> Group:
        """The group with its floating-point draws in another type.

        Args:
            dtype: The type; ``None`` changes nothing.

        Returns:
            The group.
        """
        if dtype is None or self.name == "sample_stats":
            return self
        # a rounded log-likelihood is of no use, so it has at least single precision
        least = np.float32 if self.name == "log_likelihood" else np.float16
        dtype = np.promote_types(dtype, least)
        stored = {
            n: replace(v, dtype=dtype) if n in self.random and v.dtype.kind == "f" else v
            for n, v in self.variables.items()
        }
        return replace(self, variables=stored)


def by_site(variables: Iterable[Variable]) -> dict[str, Variable]:
    """Variables by the names of their sites."""
    return {v.site: v for v in variables}


def site_values(trace: Trace, names: Iterable[str]) -> dict[str, Any]:
    """Values of some sites in a trace.

    Args:
        trace: The trace.
        names: Names of the sites.

    Returns:
        The values by name.

    Raises:
        ValueError: If a site is missing.
    """
    missing = [n for n in names if n not in trace.nodes]
    if missing:
        raise ValueError(
            f"The sites {missing} are missing from a draw: ArviZ needs the same sites in every "
            f"draw; leave them out by var_names={[f'~{n}' for n in missing]}."
        )
    return {n: trace.nodes[n]["value"] for n in names}


def posterior(latents: Sequence[Variable]) -> Group:
    """Latent and deterministic sites, drawn from the guide."""
    names = [v.site for v in latents]
    discrete = [v.name for v in latents if v.kind == "enumerated"]

    def values(draw: Draw) -> dict[str, Any]:
        guide, model = draw.posterior
        own = [n for n in names if n in guide.nodes and n not in model.nodes]
        return {**site_values(guide, own), **site_values(model, set(names) - set(own))}

    notes = {"inferred_discrete": ", ".join(discrete)} if discrete else {}
    return Group("posterior", by_site(latents), values, notes=notes)


def posterior_predictive(data: Sequence[Variable]) -> Group:
    """Data sites, drawn again given each posterior draw."""
    return Group(
        "posterior_predictive",
        by_site(data),
        lambda draw: draw.sampler.redraw(draw.posterior[1]),
    )


def density_notes(sampler: Sampler) -> dict[str, str]:
    """Why ``log_p`` or ``log_q`` cannot be given, by the attribute that says so."""
    notes = {}
    missing = [
        n
        for n, s in sample_sites(sampler.model_trace).items()
        if not s["is_observed"]
        and n not in sampler.kinds.guide_names
        and sampler.summed.get(n) != PARALLEL
    ]
    if missing:
        notes["log_p_omitted"] = f"the guide has no density for {', '.join(missing)}"
    guide_sites = sample_sites(sampler.guide_trace).values()
    if all(is_delta(s["fn"]) for s in guide_sites):
        notes["log_q_omitted"] = "the guide is a point estimate and has no density"
    else:
        try:
            log_density(sampler.guide_trace)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            notes["log_q_omitted"] = f"the guide has no density: {error}"
    return notes


def sample_stats(sampler: Sampler, history: Any = None) -> Group:
    """Joint densities of each draw, beside the course of the training.

    Args:
        sampler: Source of the draws.
        history: Losses step by step, several such sequences by name, or the result of
            :func:`pyro_ibvi.fit`.

    Returns:
        The group.
    """
    notes = density_notes(sampler)
    parts = sorted(subsamples(sampler.model_trace))
    if parts:
        notes["log_p_scaled"] = f"an estimate from a part of the data in {', '.join(parts)}"
    double = np.dtype(np.float64)
    densities = {"log_p": sampler.log_joint, "log_q": lambda posterior: log_density(posterior[0])}
    stats = [n for n in densities if f"{n}_omitted" not in notes]
    variables = [Variable(n, n, "latent", (), (), 0, double) for n in stats]
    fixed = _history(history)
    one = len({len(a) for a in fixed.values()}) == 1
    for n, a in fixed.items():
        step = "step" if one else f"{n}_step"
        variables.append(Variable(n, n, "observed", a.shape, (step,), 0, a.dtype))
    return Group(
        "sample_stats",
        by_site(variables),
        lambda draw: {n: densities[n](draw.posterior) for n in stats},
        fixed,
        notes,
    )


def _history(history: Any) -> dict[str, np.ndarray]:
    if history is None:
        return {}
    if is_dataclass(history):
        history = {f.name: getattr(history, f.name) for f in fields(history)}
        history = {name: losses for name, losses in history.items() if losses}
    named = history if isinstance(history, Mapping) else {"loss": history}
    return {n: np.asarray(to_numpy(h), dtype=np.float64) for n, h in named.items()}


def from_prior(name: str, variables: Sequence[Variable]) -> Group:
    """A group whose sites are drawn from the model alone."""
    names = [v.site for v in variables]
    return Group(name, by_site(variables), lambda draw: site_values(draw.prior, names))


def check_redrawn(sampler: Sampler, data: Sequence[Variable], names: Collection[str]) -> None:
    """Checks that data can be drawn again, as a density alone cannot.

    Args:
        sampler: Source of the draws.
        data: The data sites.
        names: Names of the groups for which the model draws them.

    Raises:
        ValueError: If the distribution of one has no draws.
    """
    for site in (sampler.model_trace.nodes[v.site] for v in data if names):
        fn: Any = site["fn"]
        try:
            with torch.no_grad(), sampler.streams("probe of data"):
                fn.sample()
        except NotImplementedError as error:
            left_out = [f"~{name}" for name in GROUPS if name in names]
            raise ValueError(
                f"The distribution of the site {site['name']!r}, {type(innermost(fn)).__name__}, "
                f"has a density and no sample(), so its data cannot be drawn again: leave out "
                f"groups={left_out}, or give the distribution a method sample(sample_shape)."
            ) from error


def check_prior(sampler: Sampler) -> None:
    """Checks that the model can be drawn from its prior.

    Args:
        sampler: Source of the draws.

    Raises:
        ValueError: If it cannot.
    """
    try:
        with evaluating(sampler.model), sampler.streams("probe"):
            sampler.probe_prior()
    except NotImplementedError as error:
        reason = str(error).split("\n")[0] or "improper prior"  # Pyro adds shapes of traces
        raise ValueError(
            f"The model cannot be drawn from its prior ({reason}): leave "
            f"it out with groups=['~prior', '~prior_predictive']."
        ) from error


def prior_note(sampler: Sampler) -> str | None:
    """Why draws of the model would be no draws of the prior.

    Some reparametrizers draw from elsewhere, and leave the prior in the density of what they
    compute.

    Args:
        sampler: Source of the draws.

    Returns:
        The reason, or None where they are draws of the prior.
    """
    for name in sampler.kinds.computed:
        fn = innermost(sampler.model_trace.nodes[name]["fn"])
        if bool((torch.as_tensor(getattr(fn, "log_density", 0.0)) != 0).any()):
            return (
                f"a reparametrizer holds the prior of {name!r} as a density, of which there are "
                f"no draws: export the prior of the model before poutine.reparam"
            )
    return None


def predictions(
    sampler: Sampler,
    new: NewInputs,
    found: Mapping[str, Variable],
    wanted: Collection[str],
) -> Group:
    """The data sites at new inputs, and the chosen deterministic ones.

    Args:
        sampler: Source of the draws.
        new: The new inputs.
        found: The model's variables at the new inputs.
        wanted: Names of the data sites, and of the sites that the user chose.

    Returns:
        The group.
    """
    chosen = [
        v
        for v in found.values()
        if v.site in wanted and v.kind in ("observed", "predicted", "deterministic")
    ]
    names = [v.site for v in chosen]
    redrawn = [n for n in sampler.kinds.guide_names if n in found and n not in new.kept]
    return Group(
        "predictions",
        by_site(chosen),
        lambda draw: site_values(draw.predictions, names),
        notes={"drawn_from_model": ", ".join(sorted(redrawn))} if redrawn else {},
    )


def observed_data(sampler: Sampler, observed: Sequence[Variable]) -> Group:
    """The data, as they were given."""
    nodes = sampler.model_trace.nodes
    fixed = {v.site: to_numpy(full_value(nodes[v.site])) for v in observed}
    return Group("observed_data", by_site(observed), fixed=fixed)


def inputs(
    name: str, variables: Mapping[str, Variable], arrays: Mapping[str, np.ndarray]
) -> Group:
    """The arguments of a model that are no targets."""
    return Group(name, variables, fixed=arrays)
