"""Latents that have one datum each, though no plate says so.

A latent of as many elements as there are data, declared with ``to_event`` or in a plate of its
own, fits its own data as one in the plate of the observations does, and so do the states of a loop
over single data. No name tells it, but the gradients of single terms of the likelihood do.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pyro_ibvi._util.distributions import per_element
from pyro_ibvi.objectives.sites import PARTICLES, Site, Traces

#: Fewer latents with a datum of their own may be a model of a few data.
_MIN_STATES = 3


@dataclass(frozen=True)
class _Data:
    """Terms of single data.

    Attributes:
        terms: Their log-densities.
        rows: For each dimension the number of rows that all data have there, and which of them
            the terms are for; one of length 1 stands for all.
        min_dim: The number of dimensions that a latent must have to have an element for each.
    """

    terms: Tensor
    rows: tuple[tuple[int, Tensor], ...]
    min_dim: int = 1


def latents_of_single_data(traces: Traces, names: Collection[str]) -> list[str]:
    """The latents that move, or each of whose elements moves, the terms of one datum alone.

    Args:
        traces: Weighted traces, whose graph is kept.
        names: Names of the latents that come into question.

    Returns:
        Their names.
    """
    values = {name: site["value"] for name, site in traces.guide_sites.items() if name in names}
    values = {n: v for n, v in values.items() if isinstance(v, Tensor) and v.requires_grad}
    observed = [
        traces.model.nodes[name]
        for name, kind in traces.model_kinds.items()
        if kind == "observed" and name in traces.model.nodes
    ]
    enumerates = any(s["infer"].get("_enumerate_dim") is not None for s in _sites(traces))
    data = [
        each
        for site in observed
        if values
        for each in _data_of(site, traces, enumerates=enumerates)
    ]
    found = [name for name, value in values.items() if any(_is_of_single(d, value) for d in data)]
    terms = [
        (_over_draws(site, enumerates=enumerates), torch.as_tensor(site["value"]).numel())
        for site in observed
    ]
    return found + _states(terms, {n: v for n, v in values.items() if n not in found})


def _sites(traces: Traces) -> Iterator[Site]:
    return itertools.chain(traces.model_sites.values(), traces.guide_sites.values())


def _states(terms: list[tuple[Tensor, int]], values: dict[str, Tensor]) -> list[str]:
    """The latents that have an observed site of their own, with no more numbers than theirs.

    Fewer than three of them are no loop: a model of a single datum, say, or of two groups.

    Args:
        terms: The terms of each observed site, with the number of numbers that it observes.
        values: The latents' values.

    Returns:
        Their names.
    """
    terms = [each for each in terms if each[0].numel() == 1 and each[0].requires_grad]
    if len(terms) < _MIN_STATES:
        return []
    total = torch.stack([term.sum() for term, _ in terms]).sum()
    for i in (0, len(terms) // 2, len(terms) - 1):  # most models are told by these to be no loop
        term = terms[i][0].sum()
        if not _reaching(term, values) - _reaching(total - term, values):
            return []
    seen_by: dict[str, list[int]] = {name: [] for name in values}
    for term, size in terms:
        for name in _reaching(term.sum(), values):
            seen_by[name].append(size)
    private = {name: sizes[0] for name, sizes in seen_by.items() if len(sizes) == 1}
    return [name for name, size in private.items() if values[name].numel() >= size]


def _reaching(term: Tensor, values: dict[str, Tensor]) -> set[str]:
    """The latents that a term has a gradient with respect to."""
    if not values:
        return set()
    gradients = torch.autograd.grad(
        term, list(values.values()), retain_graph=True, allow_unused=True
    )
    pairs = zip(values, gradients, strict=True)
    return {name for name, gradient in pairs if gradient is not None and gradient.any()}


def _data_of(site: Site, traces: Traces, *, enumerates: bool) -> Iterator[_Data]:
    """The terms of the batch, or of the independent parts of an event where there is no batch."""
    fn, terms = per_element(site["fn"]), _over_draws(site, enumerates=enumerates)
    is_event = terms.dim() == 0 and fn is not site["fn"]
    if is_event:
        terms = fn.log_prob(site["value"])
    if not terms.requires_grad:
        return
    rows = [(size, torch.arange(size, device="cpu")) for size in terms.shape]
    for frame in () if is_event else site["cond_indep_stack"]:
        subsample = traces.recorded[0].nodes.get(frame.name)
        if subsample is not None and frame.vectorized and -frame.dim <= terms.dim():
            rows[frame.dim] = frame.full_size, torch.as_tensor(subsample["value"], device="cpu")
    yield _Data(terms, tuple(rows))
    if is_event and terms.dim() > 1:
        # The rows of a matrix may be data or groups: a latent that is a matrix as well speaks for
        # data, as of a factor model, and a vector for the effects of groups.
        yield _Data(terms.flatten(1).sum(1), (rows[0],), min_dim=2)


def _over_draws(site: Site, *, enumerates: bool) -> Tensor:
    """The terms of a site, summed over particles and enumerated values: these share their data."""
    terms, frames = cast(Tensor, site["log_prob"]), site["cond_indep_stack"]
    plates = {frame.dim for frame in frames if frame.vectorized and frame.name != PARTICLES}
    particles = {frame.dim for frame in frames if frame.name == PARTICLES}
    for dim in range(-terms.dim(), 0):
        if dim not in plates and (enumerates or dim in particles):
            terms = terms.sum(dim, keepdim=True)
    return terms


def _is_of_single(data: _Data, value: Tensor) -> bool:
    """Whether the first, a middle and the last datum have an element each."""
    dims = [dim for dim, size in enumerate(data.terms.shape) if size > 1]
    if not dims or value.dim() < data.min_dim:
        return False
    sizes = [data.rows[dim][0] for dim in dims]
    fitting = [
        axes
        for axes in itertools.permutations(range(value.dim()), len(dims))
        if [value.shape[axis] for axis in axes] == sizes
    ]
    for part in (0.0, 0.5, 1.0) if fitting else ():
        at = [int(part * (size - 1)) for size in data.terms.shape]
        (gradient,) = torch.autograd.grad(
            data.terms[tuple(at)], value, retain_graph=True, allow_unused=True
        )
        if gradient is None:  # as for a network's weights, at the first datum
            return False
        own = [[int(data.rows[dim][1][at[dim]])] for dim in dims]
        fitting = [axes for axes in fitting if [_reached(gradient, a) for a in axes] == own]
    return bool(fitting)


def _reached(gradient: Tensor, axis: int) -> list[int]:
    """Where along an axis a gradient is not zero."""
    others = [other for other in range(gradient.dim()) if other != axis]
    nonzero = gradient != 0
    indices: list[int] = (nonzero.any(others) if others else nonzero).nonzero().flatten().tolist()
    return indices
