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

from pyro_ibvi._util.checks import are_indices
from pyro_ibvi._util.distributions import per_element
from pyro_ibvi.objectives.sites import PARTICLES, Site, Traces

#: Fewer latents with a datum of their own may be a model of a few data.
_MIN_STATES = 3
#: Base of the digits of a term's number.
_BASE = 32
#: A share of a gradient below which sums in another order may differ.
_ROUNDING = 1e-5


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


def latents_of_single_data(
    traces: Traces, names: Collection[str], no_data: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """The latents that move, or each of whose elements moves, the terms of one datum alone.

    Args:
        traces: Weighted traces, whose graph is kept.
        names: Names of the latents that come into question.
        no_data: Names of observed sites that hold no data.

    Returns:
        Their names, and those of matrices whose rows move one row of an observed matrix each.
    """
    values = {name: site["value"] for name, site in traces.guide_sites.items() if name in names}
    values = {n: v for n, v in values.items() if isinstance(v, Tensor) and v.requires_grad}
    observed = [
        traces.model.nodes[name]
        for name, kind in traces.model_kinds.items()
        if kind == "observed" and name in traces.model.nodes and name not in no_data
    ]
    enumerates = any(s["infer"].get("_enumerate_dim") is not None for s in _sites(traces))
    data = [
        each
        for site in observed
        if values
        for each in _data_of(site, traces, enumerates=enumerates)
    ]
    data = [each for each in data if each.terms.numel() > 1]  # a long loop has one term each
    of_single = {
        name: [each for each in data if _is_of_single(each, value)]
        for name, value in values.items()
    }
    found = [name for name, own in of_single.items() if own]
    rows = [name for name in found if all(each.min_dim > 1 for each in of_single[name])]
    terms = [
        (_over_draws(site, enumerates=enumerates), torch.as_tensor(site["value"]).numel())
        for site in observed
    ]
    found += _states(terms, {n: v for n, v in values.items() if n not in found})
    return [name for name in found if name not in rows], rows


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
    if len(terms) < _MIN_STATES or not values:
        return []
    owners = _only_terms([term.sum() for term, _ in terms], values)
    if not {0, len(terms) // 2, len(terms) - 1} <= set(owners.values()):
        return []  # as the last step of a walk alone reaches one datum
    return [name for name, i in owners.items() if values[name].numel() >= terms[i][1]]


def _only_terms(terms: list[Tensor], values: dict[str, Tensor]) -> dict[str, int]:
    """The number of the one term that has a gradient with respect to a latent.

    A sum in which each term is multiplied by a power of two, a digit of its number, multiplies
    the gradient of a latent by that power, to the last digit, if one term alone reaches it. So a
    few gradients of sums tell the numbers, however many terms there are.

    Args:
        terms: The terms, of shape ().
        values: The latents' values.

    Returns:
        The numbers by the latents' names, of those that one term reaches.
    """
    plain = _gradients(terms, [0] * len(terms), values)
    reached = {name: gradient != 0 for name, gradient in plain.items()}
    found = {name: 0 for name, where in reached.items() if where.any()}
    place = 1
    while place < len(terms):
        digits = [i // place % _BASE for i in range(len(terms))]
        for name, gradient in _gradients(terms, digits, values).items():
            if name in found:
                ratios = (gradient / plain[name])[reached[name]]
                digit = ratios[0].log2().round()
                if torch.allclose(ratios, digit.exp2().expand_as(ratios), rtol=_ROUNDING):
                    found[name] += place * int(digit)
                else:
                    del found[name]
        place *= _BASE
    return found


def _gradients(
    terms: list[Tensor], powers: list[int], values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The gradients of a sum of terms times powers of two, zero where there is none."""
    factors = 2.0 ** torch.tensor(powers, dtype=terms[0].dtype, device=terms[0].device)
    gradients = torch.autograd.grad(
        terms, list(values.values()), list(factors), retain_graph=True, allow_unused=True
    )
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(values.items(), gradients, strict=True)
    }


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
            indices = torch.as_tensor(subsample["value"], device="cpu")
            if are_indices(indices):
                rows[frame.dim] = frame.full_size, indices
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
