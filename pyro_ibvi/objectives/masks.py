"""What masks hide: the elements of an observation that do not count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, constraints, transform_to

from pyro_ibvi._util.distributions import unwrapped
from pyro_ibvi.objectives.sites import Site, Traces
from pyro_ibvi.pairing.counting import tell_count


def without_masked_values(site: Site) -> Tensor:
    """The value of an observed site with its masked-out elements made harmless.

    A mask removes an element's log-density after it has been computed: if the element is NaN,
    the sum is finite but its gradient is 0 * NaN = NaN, and Pyro's validation refuses the value
    before that. So masked-out elements are replaced by a point of the support first. This repairs
    the observed values only: NaN among the model's inputs still spreads through the network.

    Args:
        site: An observed sample site.

    Returns:
        The site's own value where it counts, a point of the support elsewhere.
    """
    value: Tensor = site["value"]
    masks = list(_element_masks(site["fn"], site["mask"]))
    if not masks or not isinstance(value, Tensor) or not value.numel():
        return value
    keep = masks[0]
    for mask in masks[1:]:
        keep = keep & mask
    filler = _point_of_support(site["fn"].support, value)
    return value if filler is None else torch.where(keep, value, filler)


def is_masked_out(site: Site) -> bool:
    """Whether a site is hidden as a whole, so that its density is zero whatever it is.

    Args:
        site: A sample site.

    Returns:
        Whether a mask of it is False.
    """
    return any(mask is False for mask in (site["mask"], *own_masks(site["fn"])))


def own_masks(fn: Any) -> list[Tensor | bool]:
    """The masks that a distribution brings, besides those of ``poutine.mask``.

    Args:
        fn: A distribution.

    Returns:
        The masks, the outermost first.
    """
    return [part._mask for part in unwrapped(fn) if isinstance(part, MaskedDistribution)]


def count_observations(
    traces: Traces, max_plate_nesting: float, num_particles: int, *, in_batch: bool = False
) -> Tensor | float:
    """Total number of observations behind the observed sites of a trace, per particle.

    The sum over observed sites of (batch elements that the masks leave) x scale, so that a
    subsampled plate counts as the full data set that it stands for. ``pyro.factor`` and computed
    values observe nothing. Dimensions left of ``max_plate_nesting`` belong to enumeration and are
    not counted.

    Args:
        traces: The traces.
        max_plate_nesting: Number of plate dimensions, possibly infinite.
        num_particles: Number of particles that the batch dimensions hold.
        in_batch: Whether a subsampled plate counts as what it holds, and no more.

    Returns:
        A float, or a tensor of shape () where a mask or a scale is a tensor. Zero if nothing is
        observed at all, or everything is masked out.
    """
    total: Tensor | float = 0.0
    for name, site in traces.model_sites.items():
        if traces.model_kinds[name] == "observed":
            share = _share_of_data(site) if in_batch else 1.0
            total = total + _observations(site, max_plate_nesting) * share
    return total / num_particles


def _share_of_data(site: Site) -> float:
    """The share of the data that subsampled plates leave of a site."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.full_size]
    return math.prod(frame.size / frame.full_size for frame in frames)


def counted_observations(
    traces: Traces, max_plate_nesting: float, num_particles: int
) -> Tensor | float:
    """The number of observations that a mean divides by, told to whoever asks for the batch's.

    Args:
        traces: The traces.
        max_plate_nesting: As for :func:`count_observations`.
        num_particles: As for :func:`count_observations`.

    Returns:
        As :func:`count_observations`, and at least 1 if everything is masked out.

    Raises:
        ValueError: If nothing is observed.
    """
    count = count_observations(traces, max_plate_nesting, num_particles)
    if not isinstance(count, Tensor) and count == 0.0:
        raise ValueError(
            "reduction='mean' divides by the number of observations, but the model observed "
            "nothing (or masked all of it out). Pass the targets to the step, or use "
            "reduction='sum'."
        )
    tell_count(lambda: count_observations(traces, max_plate_nesting, num_particles, in_batch=True))
    return torch.where(count > 0, count, 1.0) if isinstance(count, Tensor) else count


def batch_shape(site: Site) -> torch.Size:
    """The batch shape of a site's log-density, found without evaluating it.

    Args:
        site: A sample site.

    Returns:
        The shape.
    """
    fn = site["fn"]
    shape = tuple(getattr(site["value"], "shape", ()))  # a number or an array is data, too
    return torch.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])


def real_scalar(number: float, value: Any) -> Tensor:
    """A number in the type, and on the device, that the log-density of a value has.

    Args:
        number: The number.
        value: The value, which may be no tensor.

    Returns:
        A tensor of shape (), of the value's own type if that is real, else of torch's default.
    """
    if not isinstance(value, Tensor):
        return torch.tensor(number, dtype=torch.get_default_dtype())
    dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
    return value.new_full((), number, dtype=dtype)


def _observations(site: Site, max_plate_nesting: float) -> Tensor | float:
    fn, scale, mask = site["fn"], site["scale"], site["mask"]
    shape = batch_shape(site)
    shape = shape[max(0, len(shape) - int(min(max_plate_nesting, len(shape)))) :]
    for part in takewhile(_keeps_elements, unwrapped(fn)):
        own = getattr(part, "_mask", True)
        if own is not True:
            own = _any_of_event(own, part, fn)
            mask = own if mask is None or mask is True else mask & own
    if mask is False:
        return 0.0
    counts = _counts(fn, site["value"], shape)
    if counts is None and not isinstance(scale, Tensor) and not isinstance(mask, Tensor):
        return float(shape.numel() * scale)
    if counts is None:
        counts = real_scalar(1.0, site["value"]).expand(shape)
    weighted = scale_and_mask(counts, scale, mask)
    return weighted.sum() * (shape.numel() / weighted.numel())


def _any_of_event(mask: Tensor | bool, part: Any, fn: Any) -> Tensor | bool:
    """Which events a mask of their parts, ``.mask(...).to_event(1)``, leaves anything of."""
    num_dims = fn.event_dim - part.event_dim
    if not num_dims or not isinstance(mask, Tensor):
        return mask
    return mask.expand(part.batch_shape).flatten(-num_dims).any(-1)


def _keeps_elements(fn: Any) -> bool:
    """Whether a wrapper at most joins elements to events."""
    return isinstance(fn, Independent) or _keeps_batch(fn)


def _keeps_batch(fn: Any) -> bool:
    """Whether a wrapper leaves alone what is batch and what is event."""
    return isinstance(fn, ExpandedDistribution | MaskedDistribution)


def _counts(fn: Any, value: Tensor, shape: torch.Size) -> Tensor | None:
    """How much each batch element counts, where a distribution says so."""
    counting = next((part for part in unwrapped(fn) if hasattr(part, "num_observed")), None)
    counts: Tensor | None = None if counting is None else counting.num_observed(value)
    while counts is not None and counts.dim() > len(shape):
        counts = counts[0]  # the draws of enumeration have seen the same data
    return counts


def _element_masks(fn: Any, mask: Tensor | bool | None) -> Iterator[Tensor]:
    """Yields the masks that act on a site, each broadcastable to the site's value."""
    if isinstance(mask, Tensor):
        yield mask.reshape(mask.shape + (1,) * fn.event_dim)
    # A transform of a masked distribution, or a mixture with one, reads the hidden values too.
    for part in takewhile(_keeps_elements, unwrapped(fn)):
        if isinstance(part, MaskedDistribution) and isinstance(part._mask, Tensor):
            yield part._mask.reshape(part._mask.shape + (1,) * part.event_dim)


def _point_of_support(support: Any, value: Tensor) -> Tensor | None:
    """A point of the support that broadcasts with ``value``, or None if unknown."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if hasattr(support, "base_constraint"):  # a mixture's, whose name is private to torch
        components = -1 - support.event_dim  # the dimension that the mixture sums out
        point = _point_of_support(support.base_constraint, value.unsqueeze(components))
        if point is None or point.dim() <= support.event_dim:
            return point
        return point.select(components, 0)
    if support.is_discrete:
        if support is constraints.one_hot:
            return torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)[0]
        if hasattr(support, "upper_bound") and support.event_dim:  # counts that sum to a total
            first = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)[0]
            return first * torch.as_tensor(support.upper_bound, device=value.device)[..., None]
        low = getattr(support, "lower_bound", 0)
        return torch.as_tensor(low, dtype=value.dtype, device=value.device)
    try:
        transform = transform_to(support)
    except NotImplementedError:
        return None
    return transform(value.new_zeros(transform.inverse_shape(value.shape)))
