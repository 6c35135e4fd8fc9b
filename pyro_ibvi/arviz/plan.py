"""An export as it is planned: its groups, how large they are, and their draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_ibvi._util.checks import shown
from pyro_ibvi.arviz import groups
from pyro_ibvi.arviz.draws import NewInputs, Sampler
from pyro_ibvi.arviz.groups import Draw, Group
from pyro_ibvi.arviz.inputs import Inputs, leaves
from pyro_ibvi.arviz.labels import Labels, plate_indices
from pyro_ibvi.arviz.log_likelihood import log_likelihood
from pyro_ibvi.arviz.running import evaluating
from pyro_ibvi.arviz.sites import DATA, Variable, describe, select, to_numpy
from pyro_ibvi.arviz.targets import input_arrays

#: arrays of draws, by group and site
Arrays = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Options:
    """What the user wants in an export.

    Attributes:
        groups: Names of the groups to fill.
        named: Those that the user names.
        labels: Names and labels of dimensions.
        var_names: Which sites the posterior, the prior and the predictions hold.
        dtype: Floating-point type of the draws; ``None`` keeps that of the model.
        predictions: New inputs.
        predictions_coords: Labels that hold at the new inputs only.
        constant_data: Arrays to hold in place of the model's arguments.
        loss_history: The course of the training.
    """

    groups: set[str]
    labels: Labels
    var_names: Sequence[str] | None = None
    dtype: np.dtype | None = None
    named: frozenset[str] = frozenset()
    predictions: Inputs | None = None
    predictions_coords: Mapping[str, np.ndarray] = field(default_factory=dict)
    constant_data: Mapping[str, Any] | None = None
    loss_history: Any = None


class Export:
    """Everything that an export holds, before its draws are made.

    Args:
        sampler: Source of the draws.
        options: What the user wants.

    Attributes:
        groups: The groups that hold something, by name.
    """

    def __init__(self, sampler: Sampler, options: Options) -> None:
        self.sampler, self.options = sampler, options
        self.new: NewInputs | None = None
        #: attributes of the whole
        self.notes: dict[str, str] = {}
        own = describe(sampler.guide_trace, sampler.kinds)
        self._variables = self._describe(sampler.model_trace)
        # what the guide computes beside the sites of the model
        self._variables |= {
            n: options.labels.rename(v)
            for n, v in own.items()
            if v.kind == "deterministic" and n not in self._variables
        }
        self._data = [v for v in self._variables.values() if v.kind in DATA]
        self._known = list(self._variables.values())  # what names and labels may speak of
        found = [g.stored_as(options.dtype) for g in self._make()]
        self.groups = {g.name: g for g in found if g.variables}
        self._check_names()
        self._check_groups()

    def _describe(self, trace: Any) -> dict[str, Variable]:
        found = describe(trace, self.sampler.kinds)
        return {n: self.options.labels.rename(v) for n, v in found.items()}

    def _make(self) -> Iterator[Group]:
        """Makes the groups that are wanted, in the order of ArviZ's schema."""
        s, wanted = self.sampler, self.options.groups
        chosen = select(
            [v for v in self._variables.values() if v.kind not in DATA], self.options.var_names
        )
        latents = [v for v in self._variables.values() if v.site in chosen]
        observed = [v for v in self._data if v.kind == "observed"]
        in_model = [v for v in latents if v.site in s.model_trace.nodes]
        priors = {"prior": in_model, "prior_predictive": self._data}
        makers: dict[str, Callable[[], Group]] = {
            "posterior": lambda: groups.posterior(latents),
            "posterior_predictive": lambda: groups.posterior_predictive(self._data),
            "predictions": lambda: self._predictions(chosen),
            "log_likelihood": lambda: log_likelihood(s, observed),
            "sample_stats": lambda: groups.sample_stats(s, self.options.loss_history),
            "prior": lambda: groups.from_prior("prior", in_model),
            "prior_predictive": lambda: groups.from_prior("prior_predictive", self._data),
            "observed_data": lambda: groups.observed_data(s, observed),
            "constant_data": lambda: self._inputs("constant_data", self._data),
            "predictions_constant_data": self._new_inputs,
        }
        idle = {"predictions"} if self.options.predictions is None else set()
        groups.check_redrawn(s, self._data, wanted & groups.REDRAWN - idle)
        if any(priors[name] for name in wanted & set(priors)):
            wanted = wanted - self._without_prior(wanted & set(priors))
        for name in (n for n in groups.GROUPS if n in wanted):
            group = makers[name]()
            if name == "sample_stats":
                self._known += group.variables.values()
            yield group

    def _without_prior(self, wanted: set[str]) -> set[str]:
        """Groups that the model's draws cannot fill."""
        note = groups.prior_note(self.sampler)
        if note is None:
            groups.check_prior(self.sampler)
            return set()
        if wanted & self.options.named:
            raise ValueError(f"The groups {sorted(wanted)} cannot be made: {note}.")
        self.notes["prior_omitted"] = note
        return wanted

    def _predictions(self, chosen: set[str]) -> Group:
        if self.options.predictions is None:
            return Group("predictions", {})
        self.new = self.sampler.at(self.options.predictions)
        found = self._describe(self.new.trace)
        wanted = chosen | {v.site for v in self._data}
        return groups.predictions(self.sampler, self.new, found, wanted)

    def _inputs(self, name: str, data: Sequence[Variable], new: NewInputs | None = None) -> Group:
        s, given = self.sampler, self.options.constant_data
        if given is not None and new is None:
            if not isinstance(given, Mapping):
                raise TypeError(
                    f'constant_data holds arrays by name, {{"x": x}}, got {shown(given)}.'
                )
            arrays = {n: to_numpy(a) for n, a in given.items()}
        else:
            inputs, trace = (new.inputs, new.trace) if new else (s.inputs, s.model_trace)
            arrays = input_arrays(s, leaves(inputs.named(s.model)), trace)
        variables = self.options.labels.inputs(arrays, data)
        self._known += variables.values()
        return groups.inputs(name, variables, arrays)

    def _new_inputs(self) -> Group:
        name = "predictions_constant_data"
        if self.new is None:
            return Group(name, {})
        found = self._describe(self.new.trace)
        data = [found[v.site] for v in self._data if v.site in found]
        return self._inputs(name, data, self.new)

    def _check_names(self) -> None:
        """Checks that what the user says about dimensions speaks of something."""
        labels = self.options.labels
        sites = {name for v in self._known for name in (v.site, v.name)}
        dims = {dim for v in self._known for dim in v.dims}
        for what, given, known in (
            ("dims", labels.dims, sites),
            ("coords", labels.coords, dims),
            ("predictions_coords", self.options.predictions_coords, dims),
        ):
            unknown = sorted(set(given) - known)
            if unknown:
                raise ValueError(f"{what} speaks of {unknown}; there are {sorted(known)}.")

    def _check_groups(self) -> None:
        """Checks that the groups that the user names hold something."""
        empty = sorted(self.options.named & set(groups.GROUPS) - self.groups.keys())
        if empty:
            raise ValueError(
                f"The groups {empty} would be empty: weights of networks are exported when they "
                f"are named, var_names=['*'], predictions of new inputs with predictions=x, and "
                f"what belongs to observed data where the model is called with its targets."
            )

    def nbytes(self, num_samples: int) -> dict[str, int]:
        """Sizes of all arrays.

        Args:
            num_samples: Number of draws.

        Returns:
            Sizes in bytes, by ``group/variable``.
        """
        return {
            f"{g.name}/{v.name}": v.nbytes * (1 if n in g.fixed else num_samples)
            for g in self.groups.values()
            for n, v in g.variables.items()
        }

    def coordinates(self, group: str) -> dict[str, np.ndarray]:
        """Labels of the dimensions of a group, sample dimensions apart.

        Args:
            group: Its name.

        Returns:
            The labels by dimension.
        """
        labels = self.options.labels
        variables = self.groups[group].variables.values()
        if not group.startswith("predictions"):
            return labels.coordinates(variables, plate_indices(self.sampler.model_trace))
        # new inputs are other data: the labels of the old ones do not hold for them
        old = {d for v in self._data for d in v.dims[: v.num_batch]}
        coords = {d: c for d, c in labels.coords.items() if d not in old}
        labels = Labels(labels.dims, {**coords, **self.options.predictions_coords})
        trace = self.new.trace if self.new is not None else self.sampler.model_trace
        return labels.coordinates(variables, plate_indices(trace))

    def draw(self) -> dict[str, Mapping[str, Any]]:
        """One draw of every group that has draws: values by group and site."""
        draw = Draw(self.sampler, self.new)
        drawn = (g for g in self.groups.values() if g.random and g.values is not None)
        return {g.name: g.values(draw) for g in drawn if g.values is not None}

    def chunks(self, num_samples: int, chunk_size: int) -> Iterator[tuple[int, Arrays]]:
        """Arrays of shape ``(1, chunk, *shape)`` by group and site, chunk after chunk.

        Args:
            num_samples: Total number of draws.
            chunk_size: Draws in a chunk; the last may be shorter.

        Yields:
            The number of draws before the chunk, and its arrays.
        """
        for start in range(0, num_samples, chunk_size):
            size = min(chunk_size, num_samples - start)
            arrays: Arrays = {
                name: {
                    n: np.empty((1, size, *g.variables[n].shape), g.variables[n].dtype)
                    for n in g.random
                }
                for name, g in self.groups.items()
            }
            with evaluating(self.sampler.model, self.sampler.guide):
                for k in range(size):
                    _store(self.draw(), arrays, k)
            yield start, arrays


def _store(draw: Mapping[str, Mapping[str, Any]], arrays: Arrays, k: int) -> None:
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
