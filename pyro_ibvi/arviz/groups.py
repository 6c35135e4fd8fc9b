"""The groups of an ArviZ export: which variables each holds, and their values draw by draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from pyro.distributions import Delta
from pyro.poutine import Trace

from pyro_ibvi.arviz.draws import Inputs, NewInputs, Sampler, evaluating, log_density
from pyro_ibvi.arviz.labels import Labels, plate_indices
from pyro_ibvi.arviz.sites import (
    DATA,
    Variable,
    describe,
    dtype_of,
    full_value,
    pointwise_log_prob,
    sample_sites,
    select,
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

Values = dict[str, dict[str, Any]]


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


def density_notes(sampler: Sampler) -> dict[str, str]:
    """Return why ``log_p`` or ``log_q`` cannot be given, by the attribute that says so."""
    notes = {}
    missing = [
        n
        for n, s in sample_sites(sampler.model_trace).items()
        if not s["is_observed"] and n not in sampler.guide_names
    ]
    if missing:
        notes["log_p_omitted"] = f"the guide has no density for {', '.join(missing)}"
    guide_sites = sample_sites(sampler.guide_trace).values()
    if all(isinstance(s["fn"], Delta) for s in guide_sites):
        notes["log_q_omitted"] = "the guide is a point estimate and has no density"
    else:
        try:
            log_density(sampler.guide_trace)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            notes["log_q_omitted"] = f"the guide has no density: {error}"
    return notes


@dataclass
class Export:
    """Everything that an export holds, before its draws are made.

    Args:
        sampler: Source of the draws.
        groups: Names of the groups to fill.
        labels: The user's names and labels of dimensions.
        var_names: Which sites the posterior, the prior and the predictions hold.
        dtype: Floating-point type of the draws; ``None`` keeps that of the model.
        predictions: New inputs.
        predictions_coords: Labels that hold at the new inputs only.
    """

    sampler: Sampler
    groups: set[str]
    labels: Labels
    var_names: Sequence[str] | None = None
    dtype: np.dtype | None = None
    predictions: Inputs | None = None
    predictions_coords: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.sampler
        self.new: NewInputs | None = None
        self.notes: dict[str, dict[str, str]] = {}
        self.constants: dict[str, dict[str, np.ndarray]] = {}
        #: variables of each group by site, those of ``constants`` included
        self.variables: dict[str, dict[str, Variable]] = {}

        found = describe(s.model_trace, s.guide_names)
        found = {n: self.labels.rename(v) for n, v in found.items()}
        self._known = list(found.values())  # exported or not: what names and labels may speak of
        chosen = select([v for v in found.values() if v.kind not in DATA], self.var_names)
        self._data = [v for v in found.values() if v.kind in DATA]
        observed = [v for v in self._data if v.kind == "observed"]
        latents = [v for v in found.values() if v.site in chosen]
        self._add("posterior", latents)
        self._add("posterior_predictive", self._data)
        self._add("log_likelihood", [self._log_likelihood(v) for v in observed])
        self._add("prior", latents)
        self._add("prior_predictive", self._data)
        self._add("observed_data", observed, fixed={v.site: self._observed(v) for v in observed})
        discrete = [v.name for v in latents if v.kind == "enumerated"]
        if discrete:
            self.notes["posterior"] = {"inferred_discrete": ", ".join(discrete)}
        self._plan_densities()
        self._plan_prior()
        self._plan_predictions(chosen)

    def _log_likelihood(self, variable: Variable) -> Variable:
        with torch.no_grad():
            log_prob = pointwise_log_prob(self.sampler.model_trace.nodes[variable.site])
        return variable.log_likelihood(dtype_of(log_prob))

    def _observed(self, variable: Variable) -> np.ndarray:
        return to_numpy(full_value(self.sampler.model_trace.nodes[variable.site]))

    def _add(
        self,
        group: str,
        variables: Iterable[Variable],
        fixed: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Put variables into a group: as draws, or as fixed arrays."""
        if group not in self.groups:
            return
        named = {v.site: v for v in variables}
        if fixed is not None:
            self.constants.setdefault(group, {}).update(fixed)
        elif self.dtype is not None and group != "sample_stats":
            # a rounded log-likelihood is of no use, so it has at least single precision
            dtype = np.promote_types(self.dtype, np.float32 if group == "log_likelihood" else "f2")
            named = {
                n: replace(v, dtype=dtype) if v.dtype.kind == "f" else v for n, v in named.items()
            }
        if named:
            self.variables.setdefault(group, {}).update(named)

    def _plan_densities(self) -> None:
        if "sample_stats" not in self.groups:
            return
        notes = self.notes["sample_stats"] = density_notes(self.sampler)
        parts = sorted(subsamples(self.sampler.model_trace))
        if parts:
            notes["log_p_scaled"] = f"an estimate from a part of the data in {', '.join(parts)}"
        stats = [n for n in ("log_p", "log_q") if f"{n}_omitted" not in notes]
        double = np.dtype(np.float64)
        self._add("sample_stats", [Variable(n, n, "latent", (), (), 0, double) for n in stats])

    def _plan_prior(self) -> None:
        if not {"prior", "prior_predictive"} & set(self.variables):
            return
        try:
            with evaluating(self.sampler.model), self.sampler.streams("probe"):
                self.sampler.probe_prior()
        except NotImplementedError as error:
            raise ValueError(
                f"The model cannot be drawn from its prior ({error or 'improper prior'}): leave "
                f"it out with groups=['~prior', '~prior_predictive']."
            ) from error

    def _plan_predictions(self, chosen: set[str]) -> None:
        if self.predictions is None or "predictions" not in self.groups:
            return
        self.new = self.sampler.at(self.predictions)
        found = describe(self.new.trace, self.sampler.guide_names)
        found = {n: self.labels.rename(v) for n, v in found.items()}
        data = {v.site for v in self._data}
        wanted = [
            v
            for v in found.values()
            if v.site in data or (v.kind == "deterministic" and v.site in chosen)
        ]
        self._add("predictions", wanted)
        redrawn = [n for n in self.sampler.guide_names if n in found and n not in self.new.kept]
        if redrawn:
            note = {"drawn_from_model": ", ".join(sorted(redrawn))}
            self.notes["predictions"] = note

    def add_inputs(self, given: Mapping[str, Any] | None, model: Any) -> None:
        """Fill the constant data: what is given, else the model's tensor arguments.

        Args:
            given: Arrays by name.
            model: The model, whose signature names its arguments.
        """
        arrays = {} if given is None else {n: to_numpy(a) for n, a in given.items()}
        if given is None:
            arrays = self._arguments(self.sampler.inputs, self.sampler.model_trace, model)
        self._add_inputs("constant_data", arrays, self._data)
        if self.new is not None:
            arrays = self._arguments(self.new.inputs, self.new.trace, model)
            sites = {v.site for v in self._data}
            data = [v for n, v in self.variables["predictions"].items() if n in sites]
            self._add_inputs("predictions_constant_data", arrays, data)

    def _add_inputs(
        self, group: str, arrays: Mapping[str, np.ndarray], data: Iterable[Variable]
    ) -> None:
        variables = self.labels.inputs(arrays, data)
        self._known += variables.values()
        self._add(group, variables.values(), fixed=arrays)

    def _arguments(self, inputs: Inputs, trace: Trace, model: Any) -> dict[str, np.ndarray]:
        observed = [
            to_numpy(o)
            for s in sample_sites(trace).values()
            for o in (s["value"] if s["is_observed"] else s["infer"].get("obs"),)
            if o is not None
        ]
        arrays = _flatten(inputs.named(model))
        # targets may have been reshaped or converted on their way to the site
        return {
            n: a
            for n, a in arrays.items()
            if not any(np.array_equal(a.ravel(), o.ravel()) for o in observed)
        }

    def add_history(self, history: Any) -> None:
        """Put the course of the training beside the sample statistics.

        Args:
            history: Losses step by step, several such sequences by name, or the result of
                :func:`pyro_ibvi.fit`.
        """
        if is_dataclass(history):
            history = {f.name: getattr(history, f.name) for f in fields(history)}
            history = {name: losses for name, losses in history.items() if losses}
        named = history if isinstance(history, Mapping) else {"loss": history}
        arrays = {n: np.asarray(to_numpy(h), dtype=np.float64) for n, h in named.items()}
        one = len({len(a) for a in arrays.values()}) == 1
        for n, a in arrays.items():
            v = Variable(n, n, "observed", a.shape, ("step" if one else f"{n}_step",), 0, a.dtype)
            self._known.append(v)
            self._add("sample_stats", [v], fixed={n: a})

    def check_names(self) -> None:
        """Check that what the user says about dimensions speaks of something.

        Raises:
            ValueError: If a site, an argument or a dimension is unknown.
        """
        sites = {name for v in self._known for name in (v.site, v.name)}
        dims = {dim for v in self._known for dim in v.dims}
        for what, given, known in (
            ("dims", self.labels.dims, sites),
            ("coords", self.labels.coords, dims),
            ("predictions_coords", self.predictions_coords, dims),
        ):
            unknown = sorted(set(given) - known)
            if unknown:
                raise ValueError(f"{what} speaks of {unknown}; there are {sorted(known)}.")

    def nbytes(self, num_samples: int) -> dict[str, int]:
        """Return the size of every array of the export in bytes, by ``group/variable``."""
        return {
            f"{g}/{v.name}": v.nbytes * (1 if n in self.constants.get(g, {}) else num_samples)
            for g, variables in self.variables.items()
            for n, v in variables.items()
        }

    def coordinates(self, group: str) -> dict[str, np.ndarray]:
        """Return the labels of the dimensions of a group, sample dimensions apart."""
        variables = self.variables[group].values()
        if not group.startswith("predictions"):
            return self.labels.coordinates(variables, plate_indices(self.sampler.model_trace))
        # new inputs are other data: the labels of the old ones do not hold for them
        old = {d for v in self._data for d in v.dims[: v.num_batch]}
        coords = {d: c for d, c in self.labels.coords.items() if d not in old}
        labels = Labels(self.labels.dims, {**coords, **self.predictions_coords})
        trace = self.new.trace if self.new is not None else self.sampler.model_trace
        return labels.coordinates(variables, plate_indices(trace))

    def _random(self, group: str) -> list[str]:
        fixed = self.constants.get(group, {})
        return [n for n in self.variables.get(group, {}) if n not in fixed]

    def draw(self) -> Values:
        """Return one draw of every group that has draws: values by group and site."""
        out = self._draw_posterior() if set(self.variables) - {"prior", "prior_predictive"} else {}
        if self._random("prior") or self._random("prior_predictive"):
            trace = self.sampler.prior()
            for group in ("prior", "prior_predictive"):
                out[group] = _values(trace, self._random(group))
        return out

    def _draw_posterior(self) -> Values:
        s = self.sampler
        guide_trace, model_trace = s.posterior()
        out: Values = {"posterior": _values(model_trace, self._random("posterior"))}
        out["log_likelihood"] = {
            n: pointwise_log_prob(model_trace.nodes[n]) for n in self._random("log_likelihood")
        }
        stats = {"log_p": model_trace, "log_q": guide_trace}
        out["sample_stats"] = {n: log_density(stats[n]) for n in self._random("sample_stats")}
        if self._random("posterior_predictive"):
            out["posterior_predictive"] = s.redraw(model_trace)
        if self.new is not None:
            trace = s.predict(guide_trace, self.new)
            out["predictions"] = _values(trace, self._random("predictions"))
        return out

    def chunks(self, num_samples: int, chunk_size: int) -> Iterator[tuple[int, Values]]:
        """Arrays of shape ``(1, chunk, *shape)`` by group and site, chunk after chunk.

        Args:
            num_samples: Total number of draws.
            chunk_size: Draws in a chunk; the last may be shorter.

        Yields:
            The number of draws before the chunk, and its arrays.
        """
        for start in range(0, num_samples, chunk_size):
            size = min(chunk_size, num_samples - start)
            arrays: Values = {
                g: {n: np.empty((1, size, *vs[n].shape), vs[n].dtype) for n in self._random(g)}
                for g, vs in self.variables.items()
            }
            with evaluating(self.sampler.model, self.sampler.guide):
                for k in range(size):
                    self._store(self.draw(), arrays, k)
            yield start, arrays

    def _store(self, draw: Values, arrays: Values, k: int) -> None:
        for group, named in arrays.items():
            for n, array in named.items():
                value = to_numpy(draw[group][n])
                if value.shape != array.shape[2:]:
                    raise ValueError(
                        f"Site {n!r} has shape {value.shape} in one draw and {array.shape[2:]} "
                        f"in another: ArviZ needs sites of fixed shape; leave it out by "
                        f"var_names=['~{n}']."
                    )
                array[0, k] = value


def _flatten(named: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays in nested arguments by name: ``x``, ``x_0`` or ``x_key``."""
    arrays: dict[str, np.ndarray] = {}
    for key, value in named.items():
        if isinstance(value, torch.Tensor | np.ndarray):
            arrays[f"{prefix}{key}"] = to_numpy(value)
        elif isinstance(value, Mapping):
            arrays |= _flatten(value, f"{prefix}{key}_")
        elif isinstance(value, list | tuple):
            arrays |= _flatten({str(i): v for i, v in enumerate(value)}, f"{prefix}{key}_")
    return arrays


def _values(trace: Trace, names: Iterable[str]) -> dict[str, Any]:
    missing = [n for n in names if n not in trace.nodes]
    if missing:
        raise ValueError(
            f"The sites {missing} are missing from a draw: ArviZ needs the same sites in every "
            f"draw; leave them out by var_names={[f'~{n}' for n in missing]}."
        )
    return {n: trace.nodes[n]["value"] for n in names}
