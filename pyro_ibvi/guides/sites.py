"""What a guide finds out about its model's latent sites before it makes parameters."""

from __future__ import annotations

import fnmatch
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution, biject_to
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    Transform,
    identity_transform,
)

from pyro_ibvi.guides.covariance import Covariance, Diagonal, LowRank
from pyro_ibvi.mup.roles import WEIGHT_KEY, NetworkWeight, WeightRole

CovarianceChoice = Covariance | Mapping[str, Covariance | None] | None

#: Rank for networks' weights, what the benchmarks favor.
DEFAULT_RANK = 100

#: Number of prior draws from which the scale of a site is estimated where no formula is known.
_NUM_PRIOR_DRAWS = 1000

#: A standard deviation that exceeds the median deviation's by so much says nothing.
_HEAVY_TAIL = 2.5


@dataclass
class Site:
    """A latent site; it holds shapes and the support, no data.

    Attributes:
        name: Name of the site.
        event_dim: Number of event dimensions of the unconstrained value.
        value_event_dim: Number of event dimensions of the value.
        support: Support of the prior.
        frames: Plates around the site.
        weight: The network weight that the site is, if it is one.
    """

    name: str
    event_dim: int
    value_event_dim: int
    support: constraints.Constraint
    frames: list[Any]
    weight: NetworkWeight | None

    @functools.cached_property
    def path(self) -> tuple[list[str], str]:
        """Modules that lead to the site's parameters, and their name there."""
        *path, last = self.name.split(".")
        return path, last

    @functools.cached_property
    def is_real(self) -> bool:
        """Whether the unconstrained value is the value itself, as networks' weights are."""
        return _is_real(self.support)

    def transform(self) -> Transform | None:
        """The map from the unconstrained value to the site's, or None for the identity."""
        if self.is_real:
            return None
        transform = biject_to(self.support)
        if transform == identity_transform:
            return None
        if isinstance(transform, ComposeTransform):
            # The positive numbers come as exp and then + 0, which is exp.
            parts = [part for part in transform.parts if part != AffineTransform(0.0, 1.0)]
            return parts[0] if len(parts) == 1 else transform
        return transform


@dataclass
class Layer:
    """Sites that share their noise, or a site of its own; no covariance is a point estimate.

    Attributes:
        covariance: The covariance.
        sites: The sites.
        has_factor: Whether the layer has a factor of its own, beside those of its sites.
    """

    covariance: Covariance | None
    sites: list[Site] = field(default_factory=list)
    has_factor: bool = False

    @property
    def name(self) -> str:
        """Name of the first site, under which the layer's own factor stands."""
        return self.sites[0].name

    def init_factors(self, scales: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The covariance's factors at the start.

        Args:
            scales: Standard deviations, one tensor per site.

        Returns:
            The sites' factors, and the layer's if the covariance has one.

        Raises:
            ValueError: If the sites cannot share the covariance.
        """
        assert self.covariance is not None
        try:
            layer_factor = self.covariance.init_layer_factor(scales)
            if layer_factor is not None:
                self._check_same_first_dimension()
            return self.covariance.init_factors(scales), layer_factor
        except ValueError as error:
            names = [site.name for site in self.sites]
            raise ValueError(f"The sites {names} cannot have {self.covariance}. {error}") from None

    def _check_same_first_dimension(self) -> None:
        kinds = {
            site.weight is not None and site.weight.weight.inputs_first for site in self.sites
        }
        if len(kinds) > 1:
            raise ValueError(
                "The first dimension is the layer's inputs in one of them and its outputs in "
                "another: give one of them another covariance, or leave it a point estimate."
            )


def data_free_prior(model: Any) -> Callable[[], Any] | None:
    """What samples a model's latent sites without data, if the model offers it.

    Args:
        model: A Pyro model.

    Returns:
        The model's ``sample_parameters`` method, or None.
    """
    prior = getattr(model, "sample_parameters", None)
    return prior if callable(prior) else None


def takes_no_arguments(model: Callable[..., Any]) -> bool:
    """Whether a model can be run without arguments, none of which stands for data.

    Args:
        model: A Pyro model.

    Returns:
        Whether its signature is empty.
    """
    forward = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        return not inspect.signature(forward).parameters
    except (TypeError, ValueError):
        return False


def run_prototype(
    model: Callable[..., Any], init_loc_fn: Callable[..., Any], args: Any, kwargs: Any
) -> poutine.Trace:
    """Runs the model once at its initial values and keeps latent sites and parameters.

    Args:
        model: A Pyro model.
        init_loc_fn: Gives each site its initial value.
        args: Arguments of the model; unused if it can be sampled without data.
        kwargs: Keyword arguments of the model.

    Returns:
        The trace.
    """
    prior = data_free_prior(model)
    if prior is not None:
        args, kwargs = (), {}
    with poutine.block():
        trace = poutine.trace(InitMessenger(init_loc_fn)(prior or model)).get_trace(
            *args, **kwargs
        )
    if prior is None:
        _check_observed(trace, model, args, kwargs)
    for name, node in list(trace.nodes.items()):
        if node["type"] != "param" and prototype_hide_fn(node):
            trace.remove_node(name)
    return trace


def describe_site(name: str, node: Mapping[str, Any], weight: NetworkWeight | None) -> Site:
    """What a guide needs to know of a latent site.

    Args:
        name: Name of the site.
        node: The site in the prototype trace.
        weight: The network weight that it is, if any.

    Returns:
        The description.

    Raises:
        NotImplementedError: If the site is inside a sequential plate.
    """
    for frame in node["cond_indep_stack"]:
        if not frame.vectorized:
            raise NotImplementedError(
                f"The site {name!r} is inside the sequential plate {frame.name!r}; AutoMuPNormal "
                f"needs `with pyro.plate(...)`."
            )
    fn, value = node["fn"], node["value"]
    with helpful_support_errors(node):
        num_new = biject_to(fn.support).inv(value).dim() - value.dim()
    return Site(
        name=name,
        event_dim=fn.event_dim + num_new,
        value_event_dim=fn.event_dim,
        support=fn.support,
        frames=list(node["cond_indep_stack"]),
        weight=weight,
    )


def weight_of_node(
    name: str, node: Mapping[str, Any], roles: Mapping[str, WeightRole], parametrization: Any
) -> NetworkWeight | None:
    """The network weight that a site or parameter is, if any.

    Args:
        name: Name of the site.
        node: The site in a trace.
        roles: Roles of a hand-written model's sites.
        parametrization: The parametrization for those.

    Returns:
        The weight, or None.
    """
    if name in roles:
        return NetworkWeight(roles[name], parametrization)
    return node["infer"].get(WEIGHT_KEY)


def initial_moments(site: Site, node: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Initial mean and the prior's standard deviation, both in unconstrained space.

    Args:
        site: The site.
        node: The site in the prototype trace.

    Returns:
        The mean and the standard deviation, in the shape of the unconstrained site at full size.
    """
    loc = biject_to(site.support).inv(node["value"].detach()).detach()
    scale = _prior_scale(site, node["fn"], loc)
    for frame in site.frames:
        full_size = frame.full_size or frame.size
        if full_size != frame.size:
            dim = frame.dim - site.event_dim
            loc = periodic_repeat(loc, full_size, dim).contiguous()
            scale = periodic_repeat(scale, full_size, dim).contiguous()
    return loc.clone(), scale


def group_layers(sites: Mapping[str, Site], choice: CovarianceChoice) -> list[Layer]:
    """Gives each site its covariance and puts sites that share noise together.

    Args:
        sites: Latent sites by name.
        choice: The guide's covariance argument.

    Returns:
        The layers, in the order of their first sites.

    Raises:
        ValueError: If the choice leaves a site out, names one that is not there, or gives a
            covariance that does not go with a plate.
    """
    if isinstance(choice, Mapping):
        for pattern in choice:
            if not any(_chooses(pattern, site) for site in sites.values()):
                raise ValueError(
                    f"covariance names {pattern!r}, which matches no site: use a role among "
                    f"{sorted({str(_role(s)) for s in sites.values()})} or a name or pattern "
                    f"for {list(sites)}."
                )
    layers: dict[Any, Layer] = {}
    kinds: list[Covariance] = []
    for site in sites.values():
        covariance = _covariance_of(site, choice)
        if covariance is not None and covariance.shares_noise and site.frames:
            raise ValueError(
                f"The site {site.name!r} is inside the plate {site.frames[0].name!r}, whose "
                f"elements are independent, so {covariance} cannot share noise over it: choose "
                f'covariance={{"{site.name}": Diagonal(), ...}}.'
            )
        key: Any = site.name
        if site.weight is not None and covariance is not None and covariance.shares_noise:
            if covariance not in kinds:
                kinds.append(covariance)
            key = (site.weight.weight.layer, kinds.index(covariance))
        layers.setdefault(key, Layer(covariance)).sites.append(site)
    return list(layers.values())


def check_model(model: Any) -> None:
    """Checks that a model is something to call, and not the class of it.

    Args:
        model: What the user gave.

    Raises:
        TypeError: If it is not a model.
    """
    if isinstance(model, type):
        raise TypeError(f"The model is the class {model.__name__}: write {model.__name__}(...).")
    if not callable(model):
        raise TypeError(f"The model must be callable, got {type(model).__name__}.")


def check_covariance(choice: CovarianceChoice) -> None:
    """Checks the type of the guide's covariance argument.

    Args:
        choice: The argument.

    Raises:
        TypeError: If it is not a covariance or a mapping to such.
    """
    pairs = choice.items() if isinstance(choice, Mapping) else [("*", choice)]
    for key, value in pairs:
        if not isinstance(key, str):
            raise TypeError(
                f"covariance goes from roles, site names or patterns to covariances; got the key "
                f"{key!r}."
            )
        if value is not None and (isinstance(value, type) or not hasattr(value, "init_factors")):
            raise TypeError(
                f"Expected a covariance such as Diagonal() or LowRank(10), or a mapping from "
                f"roles or site names to such; got {value!r}."
            )


def _covariance_of(site: Site, choice: CovarianceChoice) -> Covariance | None:
    if choice is None:
        return Diagonal() if site.weight is None else LowRank(DEFAULT_RANK)
    if not isinstance(choice, Mapping):
        # Plates hold independent elements: their sites are mean-field whatever networks use.
        return choice if not (choice.shares_noise and site.frames) else Diagonal()
    for key, covariance in choice.items():
        if _chooses(key, site):
            return covariance
    raise ValueError(
        f"covariance says nothing of the site {site.name!r} (role {_role(site)}): add it, or a "
        f'pattern such as "*": Diagonal().'
    )


def _role(site: Site) -> str | None:
    return None if site.weight is None else site.weight.weight.layer_role


def _chooses(key: str, site: Site) -> bool:
    return key == _role(site) or fnmatch.fnmatchcase(site.name, key)


def _check_observed(trace: poutine.Trace, model: Any, args: Any, kwargs: Any) -> None:
    """Refuses a model run without its targets, whose observed sites would become latent."""
    sampled = [n for n in trace.nodes.values() if n["type"] == "sample"]
    if any(n["is_observed"] and not poutine.util.site_is_subsample(n) for n in sampled):
        return
    if isinstance(model, functools.partial):
        return  # a handler that hides the observed sites, as for a part of an AutoGuideList
    forward = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return
    bound.apply_defaults()
    missing = [name for name, value in bound.arguments.items() if value is None]
    if missing:
        raise ValueError(
            f"The guide was called first with {', '.join(f'{m}=None' for m in missing)} and the "
            f"model observes nothing then, so its targets would become latent variables. Call "
            f"guide.initialize(*args) with the model's arguments, targets included, before "
            f"anything else."
        )


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real)) or support is constraints.real_vector


def _prior_scale(site: Site, fn: Any, loc: Tensor) -> Tensor:
    """Standard deviation of the prior in unconstrained space."""
    base = fn
    while isinstance(base, Independent):
        base = base.base_dist
    if _is_real(site.support):
        try:
            stddev = base.stddev.expand(loc.shape).detach().clone()
        except NotImplementedError:
            pass
        else:
            if stddev.isfinite().all():
                return stddev
    transform = biject_to(site.support)
    if isinstance(base, TransformedDistribution) and _undoes(transform, base):
        # LogNormal and the like, whose own transform is the support's.
        return base.base_dist.stddev.expand(loc.shape).detach().clone()
    num_draws = max(2, min(_NUM_PRIOR_DRAWS, 10**7 // max(loc.numel(), 1)))
    try:
        with torch.random.fork_rng(devices=[]):
            draws = transform.inv(fn.sample(torch.Size((num_draws,))))
    except NotImplementedError:
        warnings.warn(
            f"The prior of {site.name!r} cannot be sampled, so it has no scale to start at: "
            f"its standard deviation starts at init_scale, in unconstrained space.",
            stacklevel=2,
        )
        return torch.ones_like(loc)
    # The median absolute deviation: heavy-tailed priors have no standard deviation.
    robust = 1.4826 * (draws - draws.median(dim=0).values).abs().median(dim=0).values
    std = draws.std(dim=0)
    scale = torch.where(std.isfinite() & (std < _HEAVY_TAIL * robust), std, robust)
    return scale.expand(loc.shape).detach().clone()


def _undoes(transform: Transform, prior: TransformedDistribution) -> bool:
    """Whether a map to unconstrained space gives back the Gaussian that a prior transforms."""
    if not isinstance(prior.base_dist, Normal):
        return False
    unconstrained = prior.base_dist.loc + prior.base_dist.scale * torch.tensor(0.7)
    value = unconstrained
    for step in prior.transforms:
        value = step(value)
    back = transform.inv(value)
    return back.shape == unconstrained.shape and torch.allclose(back, unconstrained, atol=1e-4)
