r"""What one execution trace says about its sites, in ArviZ's terms.

A Pyro site has a value of shape ``batch_shape + event_shape``. Each batch dimension that belongs
to a :class:`pyro.plate` becomes the ArviZ dimension of the plate's name; every other dimension
``k`` becomes ``<site>_dim_<k>``, ArviZ's own convention. No dimension is ever dropped, so the
array of a draw has exactly the shape that the site has in Pyro.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from pyro.distributions import MaskedDistribution
from pyro.infer.inspect import site_is_deterministic
from pyro.poutine import Trace
from pyro.poutine.util import site_is_factor, site_is_subsample

from pyro_ibvi.mup.roles import WEIGHT_KEY

Kind = Literal["latent", "deterministic", "observed", "predicted", "enumerated"]

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

    @property
    def nbytes(self) -> int:
        """Size of one draw in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def log_likelihood(self, dtype: np.dtype) -> Variable:
        """Return the pointwise log-likelihood of this variable: its batch dimensions only."""
        k = self.num_batch
        return replace(self, shape=self.shape[:k], dims=self.dims[:k], dtype=dtype)


def to_numpy(value: Any) -> np.ndarray:
    """Return a NumPy copy of a tensor that shares no memory with it (bfloat16 as float32)."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return np.array(
            (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy(), copy=True
        )
    return np.array(value)


def dtype_of(value: torch.Tensor) -> np.dtype:
    """Return the NumPy type of a tensor."""
    return to_numpy(value.new_empty(0)).dtype


def sample_sites(trace: Trace) -> dict[str, dict[str, Any]]:
    """Return the random and deterministic sites of a trace: no plates or factors."""
    nodes: Mapping[str, Any] = trace.nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site_is_factor(site)
    }


def subsamples(trace: Trace) -> dict[str, torch.Tensor]:
    """Return the indices of every plate that holds a part of its data only."""
    nodes: Mapping[str, Any] = trace.nodes
    return {
        name: torch.as_tensor(site["value"])
        for name, site in nodes.items()
        if site_is_subsample(site) and len(site["value"]) < int(site["fn"].size)
    }


def plate_sizes(trace: Trace) -> dict[str, int]:
    """Return the full size of every plate, by name."""
    nodes: Mapping[str, Any] = trace.nodes
    sites = {n: s for n, s in nodes.items() if site_is_subsample(s)}
    return {name: int(site["fn"].size) for name, site in sites.items()}


def kind_of(site: Mapping[str, Any], guide_names: Iterable[str]) -> Kind:
    """Return what a site of the model is, given the names of the guide's sites."""
    if site_is_deterministic(site):  # type: ignore[arg-type]
        return "deterministic"
    if site["is_observed"]:
        return "observed"
    if site["name"] in guide_names:
        return "latent"
    return "enumerated" if site["infer"].get("enumerate") else "predicted"


def full_value(site: Mapping[str, Any]) -> torch.Tensor:
    """Return the value of a site, an observation in the shape of its distribution.

    Raises:
        ValueError: If the observation does not fit the distribution: the case of ``(B, 1)``
            targets against ``(B,)`` means, which would give ``(B, B)`` log-likelihoods.
    """
    value = site["value"]
    if not site["is_observed"] or site_is_deterministic(site):  # type: ignore[arg-type]
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


def describe(trace: Trace, guide_names: Iterable[str]) -> dict[str, Variable]:
    """Every exportable site of a model trace, in the order of the trace.

    Args:
        trace: A trace of the model.
        guide_names: Names of the sites of the guide.

    Returns:
        The variables by site name.

    Raises:
        ValueError: If two sites would have the same ArviZ name, or one is named like the
            sample dimensions.
    """
    sites = sample_sites(trace)
    guide_names = set(guide_names)
    names = {site: site.replace("/", ".") for site in sites}
    if len(set(names.values())) < len(names) or {"chain", "draw"} & set(names.values()):
        raise ValueError(
            f"The site names {sorted(sites)} give no distinct ArviZ names: '/' becomes '.', and "
            f"'chain' and 'draw' are taken. Rename the sites."
        )
    return {name: _variable(site, names, guide_names) for name, site in sites.items()}


def _variable(
    site: Mapping[str, Any], names: Mapping[str, str], guide_names: Iterable[str]
) -> Variable:
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
        kind=kind_of(site, guide_names),
        shape=shape,
        dims=tuple(dims),
        num_batch=num_batch,
        dtype=dtype_of(value),
        plates=frozenset(plates),
        is_weight=WEIGHT_KEY in site["infer"],
    )


def _num_batch(site: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    """Return the number of batch dimensions of a value.

    ``pyro.deterministic`` takes every dimension for an event dimension unless told. Inside of
    plates the dimensions are then those that fit the plates' sizes, the rightmost first.
    """
    event_dim = site["fn"].event_dim
    frames = [f for f in site["cond_indep_stack"] if f.vectorized]
    if frames and event_dim == len(shape) and site_is_deterministic(site):  # type: ignore[arg-type]
        for k in range(len(shape), 0, -1):
            if all(k + f.dim >= 0 and shape[k + f.dim] == f.size for f in frames):
                return k
    return max(len(shape) - event_dim, 0)


def pointwise_log_prob(site: Mapping[str, Any]) -> torch.Tensor:
    """Log-density of each observation at a site: unscaled, NaN where it is masked out.

    Args:
        site: An observed site of a trace.

    Returns:
        Tensor of shape ``batch_shape``, in nats per observation.
    """
    log_prob = site["fn"].log_prob(full_value(site))
    keep = kept(site).to(log_prob.device)
    return torch.where(keep, log_prob, torch.full_like(log_prob, torch.nan))


def kept(site: Mapping[str, Any]) -> torch.Tensor:
    """Return which observations of a site no mask hides, broadcastable to its batch shape."""
    fn, masks = site["fn"], [site["mask"]]
    while isinstance(fn, MaskedDistribution):
        masks.append(fn._mask)
        fn = fn.base_dist
    keep = torch.tensor(True)
    for mask in masks:
        if mask is not None:
            keep = keep & torch.as_tensor(mask, dtype=torch.bool).cpu()
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
    found = exact or {v.site for v in variables if fnmatchcase(v.site, pattern)}
    if not found:
        sites = ", ".join(repr(v.site) for v in variables) or "none"
        raise ValueError(f"var_names: {pattern!r} matches no site; the sites are {sites}.")
    return found
