"""Latents whose elements have one datum each, though no plate says so.

A latent of as many elements as there are data, declared with ``to_event`` or in a plate of its
own, fits its own data as one in the plate of the observations does. No name tells it, but the
gradients of single terms of the likelihood do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_ibvi.objectives.sites import PARTICLES, Site, Traces


def latents_of_single_data(traces: Traces, names: Collection[str]) -> list[str]:
    """The latents each of whose elements moves the log-likelihood of its own datum alone.

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
    terms = [term for site in observed if values and (term := _terms(site)).requires_grad]
    found = []
    for name, value in values.items():
        shared = [(term, dim) for term in terms for dim in _dims_of(term, value)]
        if any(_is_of_single_data(term, dim, value) for term, dim in shared):
            found.append(name)
    return found


def _terms(site: Site) -> Tensor:
    """The terms of single data: those of the batch, or of independent parts where it is one."""
    fn, terms = site["fn"], cast(Tensor, site["log_prob"])
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if terms.dim() == 0 and fn is not site["fn"]:
        terms = fn.log_prob(site["value"])
    for frame in site["cond_indep_stack"]:  # each particle has all data, and draws of its own
        if frame.name == PARTICLES and -frame.dim <= terms.dim():
            terms = terms.sum(frame.dim, keepdim=True)
    return terms


def _dims_of(term: Tensor, value: Tensor) -> Iterator[int]:
    """The dimension of the data, if it is as long as one of the latent; groups are no data."""
    sizes = enumerate(term.shape)
    return (dim for dim, size in sizes if size == term.numel() > 1 and size in value.shape)


def _is_of_single_data(term: Tensor, dim: int, value: Tensor) -> bool:
    """Whether the first, a middle and the last datum have an element each."""
    size = term.shape[dim]
    axes = [axis for axis, length in enumerate(value.shape) if length == size]
    for datum in {0, size // 2, size - 1}:
        (gradient,) = torch.autograd.grad(
            term.select(dim, datum).sum(), value, retain_graph=True, allow_unused=True
        )
        if gradient is not None:
            axes = [axis for axis in axes if _reached(gradient, axis) == [datum]]
        if gradient is None or not axes:  # as for a network's weights, at the first datum
            return False
    return True


def _reached(gradient: Tensor, axis: int) -> list[int]:
    """Where along an axis a gradient is not zero."""
    others = [other for other in range(gradient.dim()) if other != axis]
    nonzero = gradient != 0
    indices: list[int] = (nonzero.any(others) if others else nonzero).nonzero().flatten().tolist()
    return indices
