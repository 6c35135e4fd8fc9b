r"""What one execution trace says about its sites, in ArviZ's terms.

A Pyro site has a value of shape ``batch_shape + event_shape``. Each batch dimension that belongs
to a :class:`pyro.plate` becomes the ArviZ dimension of the plate's name; every other dimension
``k`` becomes ``<site>_dim_<k>``, ArviZ's own convention. No dimension is ever dropped, so the
array of a draw has exactly the shape that the site has in Pyro.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.distributions import MaskedDistribution
from pyro.infer.inspect import site_is_deterministic
from pyro.poutine import Trace
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch.distributions import Independent

from pyro_ibvi._util.distributions import is_delta, unwrapped
from pyro_ibvi._util.names import chosen_by_any
from pyro_ibvi.models.soft import as_density, observes_shares
from pyro_ibvi.mup.roles import WEIGHT_KEY
from pyro_ibvi.objectives import sites
from pyro_ibvi.objectives.masks import without_masked_values
from pyro_ibvi.objectives.sites import Kind, model_kind

#: a sample site of a trace
Site = Mapping[str, Any]

#: kinds of the sites that are data: given to the model, or predicted by it
DATA: tuple[Kind, ...] = ("observed", "predicted")


@dataclass(frozen=True)
class Variable:
    """One exported array, without its draws.

    Attributes:
        site: Name of the Pyro site (or model argument).
        name: Name of the ArviZ variable; ``/`` is not allowed in netCDF, and becomes ``.``.
        kind: What the site is; ``predicted`` is a site that neither the data nor the guide
            fixes, such as the targets of a model that was called without them.
        shape: Shape of one draw.
        dims: ArviZ name of each dimension of ``shape``.
        num_batch: How many leading dimensions are batch dimensions.
        dtype: Type of the values.
        plates: Names of the plates around the site, in the order of their dimensions.
        is_weight: Whether the site is a weight of a neural network.
        attrs: What is to be said of it in the export.
    """

    site: str
    name: str
    kind: Kind
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    num_batch: int
    dtype: np.dtype
    plates: frozenset[str] = frozenset()
    is_weight: bool = False
    attrs: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size of one draw in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def to_numpy(value: Any) -> np.ndarray:
    """A NumPy copy of a tensor that shares no memory with it (bfloat16 as float32)."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return np.array(
            (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy(), copy=True
        )
    return np.array(value)


def dtype_of(value: torch.Tensor) -> np.dtype:
    """The NumPy type of a tensor."""
    return to_numpy(value.new_empty(0)).dtype


def sample_sites(trace: Trace) -> dict[str, dict[str, Any]]:
    """The random and deterministic sites of a trace: no plates or factors."""
    return {
        name: site
        for name, site in sites.sample_sites(trace)
        if not site_is_subsample(site) and not site_is_factor(site)
    }


def density_sites(trace: Trace) -> dict[str, dict[str, Any]]:
    """The sites of a trace that have a density: factors too, but no plates."""
    return {n: s for n, s in sites.sample_sites(trace) if not site_is_subsample(s)}


def subsamples(trace: Trace) -> dict[str, torch.Tensor]:
    """The indices of every plate that holds a part of its data only."""
    nodes: Mapping[str, Any] = trace.nodes
    return {
        name: torch.as_tensor(site["value"])
        for name, site in nodes.items()
        if site_is_subsample(site) and len(site["value"]) < int(site["fn"].size)
    }


def plate_sizes(trace: Trace) -> dict[str, int]:
    """The full size of every plate, by name."""
    nodes: Mapping[str, Any] = trace.nodes
    sites = {n: s for n, s in nodes.items() if site_is_subsample(s)}
    return {name: int(site["fn"].size) for name, site in sites.items()}


def plate_nesting(trace: Trace) -> int:
    """How many dimensions the plates of a trace take."""
    nodes: Mapping[str, Any] = trace.nodes
    frames = [frame for site in nodes.values() for frame in site.get("cond_indep_stack", ())]
    return max((-(frame.dim or 0) for frame in frames), default=0)


@dataclass(frozen=True)
class Kinds:
    """Tells what each site of a model is, as the objectives do.

    Args:
        guide_names: Names of the guide's sites.
        computed: Names of the sites that are computed and not marked as deterministic.
    """

    guide_names: Collection[str]
    computed: Collection[str] = ()

    def __call__(self, site: Site) -> Kind:
        """The kind of a site; one that is marked for enumeration need not be enumerated."""
        return model_kind(site, self.guide_names, self.computed, marks_count=True)

    def is_data(self, site: Site) -> bool:
        """Whether a site is part of what the model predicts."""
        return self(site) in DATA


def full_value(site: Site) -> torch.Tensor:
    """The value of a site, an observation in the shape of its distribution.

    Args:
        site: The site.

    Returns:
        The value.

    Raises:
        ValueError: If the observation does not fit the distribution: the case of ``(B, 1)``
            targets against ``(B,)`` means, which would give ``(B, B)`` log-likelihoods.
    """
    value = site["value"]
    if not site["is_observed"] or is_delta(site["fn"]):
        return value
    shape = site["fn"].shape()
    try:
        return torch.as_tensor(value).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"The observation at site {site['name']!r} has shape {tuple(value.shape)}, but its "
            f"distribution has shape {tuple(shape)}: reshape the data to the latter, or give the "
            f"distribution an event dimension with `.to_event(1)`."
        ) from None


def describe(trace: Trace, kinds: Kinds) -> dict[str, Variable]:
    """Every exportable site of a model trace, in the order of the trace.

    Args:
        trace: A trace of the model.
        kinds: What its sites are.

    Returns:
        The variables by site name.

    Raises:
        ValueError: If two sites would have the same ArviZ name, or one is named like the
            sample dimensions.
    """
    found = sample_sites(trace)
    names = {site: site.replace("/", ".") for site in found}
    if len(set(names.values())) < len(names) or {"chain", "draw"} & set(names.values()):
        raise ValueError(
            f"The site names {sorted(found)} give no distinct ArviZ names: '/' becomes '.', and "
            f"'chain' and 'draw' are taken. Rename the sites."
        )
    return {name: _variable(site, names, kinds(site)) for name, site in found.items()}


def _variable(site: Site, names: Mapping[str, str], kind: Kind) -> Variable:
    value = full_value(site)
    shape = tuple(value.shape)
    num_batch = _num_batch(site, shape)
    dims = [f"{names[site['name']]}_dim_{k}" for k in range(len(shape))]
    plates = set()
    for frame in site["cond_indep_stack"]:
        plates.add(frame.name)
        k = num_batch + frame.dim if frame.vectorized else -1
        if k >= 0 and shape[k] == frame.size:
            # xarray lets no variable have the name of a dimension that is not its own
            plate = frame.name.replace("/", ".")
            dims[k] = f"{plate}_plate" if plate in names.values() else plate
    return Variable(
        site=site["name"],
        name=names[site["name"]],
        kind=kind,
        shape=shape,
        dims=tuple(dims),
        num_batch=num_batch,
        dtype=dtype_of(value),
        plates=frozenset(plates),
        is_weight=WEIGHT_KEY in site["infer"],
    )


def _num_batch(site: Site, shape: tuple[int, ...]) -> int:
    """The number of batch dimensions of a value.

    ``pyro.deterministic`` takes every dimension for an event dimension unless told. Inside of
    plates the dimensions are then those that fit the plates' sizes, the rightmost first.

    Args:
        site: The site.
        shape: The shape of its value.

    Returns:
        The number.
    """
    event_dim = site["fn"].event_dim
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    if frames and event_dim == len(shape) and site_is_deterministic(site):  # type: ignore[arg-type]
        for k in range(len(shape), 0, -1):
            if all(k + f.dim >= 0 and shape[k + f.dim] == f.size for f in frames):
                return k
    return max(len(shape) - event_dim, 0)


def log_prob_of(site: Site) -> torch.Tensor:
    """Log-density of a site, unscaled and not masked; what a mask hides is not looked at.

    Args:
        site: A site of a trace.

    Returns:
        Tensor of shape ``batch_shape``; any numbers where a mask hides the observation.

    Raises:
        ValueError: If it observes shares of classes, which have no density.
    """
    whole = {**site, "value": full_value(site)}
    value = without_masked_values(whole) if site["is_observed"] else whole["value"]
    law = as_density(site["fn"])
    if observes_shares(law):
        raise ValueError(
            f"Site {site['name']!r} observes shares of classes of shape {tuple(value.shape)}, "
            f"which have a cross-entropy and no density: export labels, such as y.argmax(-1)."
        )
    log_prob: torch.Tensor = law.log_prob(value)
    return log_prob


def pointwise_log_prob(site: Site) -> torch.Tensor:
    """Log-density of each observation at a site: unscaled, NaN where it is masked out.

    Args:
        site: An observed site of a trace.

    Returns:
        Tensor of shape ``batch_shape``, in nats per observation.
    """
    log_prob = log_prob_of(site)
    return torch.where(kept(site).to(log_prob.device), log_prob, log_prob.new_tensor(torch.nan))


def kept(site: Site) -> torch.Tensor:
    """Which observations of a site no mask hides as a whole, broadcastable to its batch shape."""
    keep = torch.tensor(True)
    if site["mask"] is not None:
        keep = torch.as_tensor(site["mask"], dtype=torch.bool).cpu()
    num_event = 0
    for part in unwrapped(site["fn"]):
        if isinstance(part, Independent):
            num_event += part.reinterpreted_batch_ndims
        elif isinstance(part, MaskedDistribution):
            mask = torch.as_tensor(part._mask, dtype=torch.bool).cpu()
            if num_event:  # a mask of the elements of an observation
                mask = mask.expand(part.batch_shape).flatten(-num_event).any(-1)
            keep = keep & mask
    return keep


def select(variables: Iterable[Variable], var_names: Sequence[str] | None) -> set[str]:
    """Names of the sites to export.

    Args:
        variables: The candidates.
        var_names: Exact names or shell patterns (``"net.0.*"``). ``None`` takes everything but
            the weights of networks; patterns that start with ``~`` take away from that.

    Returns:
        The chosen site names.

    Raises:
        TypeError: If ``var_names`` is a bare string.
        ValueError: If a pattern matches nothing.
    """
    if isinstance(var_names, str):
        raise TypeError(f"var_names must be a list of names or patterns: write [{var_names!r}].")
    variables = list(variables)
    default = {v.site for v in variables if not v.is_weight}
    if var_names is None:
        return default
    wanted = [p for p in var_names if not p.startswith("~")]
    chosen = {s for p in wanted for s in _match(variables, p)} if wanted else default
    return chosen - {s for p in var_names if p.startswith("~") for s in _match(variables, p[1:])}


def _match(variables: Sequence[Variable], pattern: str) -> set[str]:
    exact = {v.site for v in variables if pattern in (v.site, v.name)}
    found = exact or chosen_by_any([pattern], (v.site for v in variables))
    if not found:
        known = ", ".join(repr(v.site) for v in variables) or "none"
        raise ValueError(f"var_names: {pattern!r} matches no site; the sites are {known}.")
    return found
