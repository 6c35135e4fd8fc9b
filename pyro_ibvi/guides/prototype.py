"""What a guide learns from one run of its model: its latent sites and its parameters."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_ibvi._util.buffers import buffers_kept
from pyro_ibvi._util.distributions import innermost, is_delta, unwrapped
from pyro_ibvi._util.handlers import from_inside
from pyro_ibvi.guides.sites import Site
from pyro_ibvi.guides.start import start_inside
from pyro_ibvi.models.padding import KEEP_KEY
from pyro_ibvi.mup.roles import NETWORK_KEY, WEIGHT_KEY, NetworkWeight, WeightRole
from pyro_ibvi.pairing.belonging import check_unwrapped


def check_model(model: Any) -> None:
    """Checks that a model is something to call, and not the class of it.

    Args:
        model: What the user gave.

    Raises:
        TypeError: If it is not a model, or one that is wrapped for several devices.
    """
    if isinstance(model, type):
        raise TypeError(f"The model is the class {model.__name__}: write {model.__name__}(...).")
    if not callable(model):
        raise TypeError(f"The model must be callable, got {type(model).__name__}.")
    check_unwrapped(model=model)
    if isinstance(model, torch.nn.Module) and type(model).__module__.startswith("torch.nn."):
        raise TypeError(
            f"The model is a plain {type(model).__name__}, a network without random weights: "
            f"write SupervisedModel(RandomModule(net), Categorical(), num_data=...), or another "
            f"likelihood, and give the guide that."
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

    Raises:
        ValueError: If a site has no initial value or one of another shape, or the model observes
            nothing without targets.
        RuntimeError: If the model needs arguments and there are none.
    """
    prior = data_free_prior(model)
    if prior is not None:
        args, kwargs = (), {}
    elif not (args or kwargs):
        _check_arguments(model)
    start, hidden = functools.partial(_start_of, init_loc_fn), TraceMessenger(param_only=True)
    run = InitMessenger(start)(from_inside(hidden, prior or model))
    with poutine.block(), buffers_kept(model):
        trace = poutine.trace(run).get_trace(*args, **kwargs)
    for name, node in hidden.trace.nodes.items():
        if node["type"] == "param" and name not in trace:
            trace.add_node(name, **node)
    if prior is None:
        _check_observed(trace, model, args, kwargs)
    for name, node in list(trace.nodes.items()):
        if node["type"] != "param" and prototype_hide_fn(node):
            trace.remove_node(name)
    return trace


def _check_arguments(model: Callable[..., Any]) -> None:
    """Refuses a model that needs arguments, which median() of a guide that is new has not."""
    forward = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind()
    except TypeError:
        raise RuntimeError(
            f"The guide has not seen its model's arguments {signature} yet, by which it finds the "
            f"latent sites: call guide.initialize(*args) with them, targets included, before "
            f"anything else. What load_state_dict was given is taken over then."
        ) from None


def _start_of(init_loc_fn: Callable[..., Any], site: Any) -> Any:
    """Where a latent site starts; most functions for that draw from its prior."""
    name, kind = site["name"], type(innermost(site["fn"])).__name__
    try:
        support = _mappable(site["fn"].support)
    except NotImplementedError as error:
        raise ValueError(
            f"The latent site {name!r}, of law {kind}, does not say what its support is, by which "
            f"a guide maps it to unconstrained space: give the class one, "
            f"support = constraints.real of torch.distributions, say."
        ) from error
    try:
        with helpful_support_errors(site):
            value = init_loc_fn(site)
    except NotImplementedError as error:
        reason = str(error).split("\n")[0]  # Pyro adds shapes of traces
        raise ValueError(
            f"The latent site {name!r}, of law {kind}, has no start by init_loc_fn ({reason}). "
            f"Give it one, init_loc_fn=init_to_value(values={{{name!r}: ...}}), of "
            f"pyro.infer.autoguide."
        ) from error
    is_given = getattr(value, "_pyro_custom_init", True)  # Pyro's functions say that it is not
    value = _in_shape(value, site)
    is_draw = init_loc_fn is init_to_sample
    return value if is_given else start_inside(site, support, value, is_draw=is_draw)


def _in_shape(value: Any, site: Any) -> Tensor:
    """A start, given as a number or an array too, as a tensor of the site's shape."""
    name, law = site["name"], site["fn"]
    shape = law.shape()
    if not isinstance(value, Tensor):
        known = (v for part in unwrapped(law) for v in vars(part).values())
        like = next((v for v in known if isinstance(v, Tensor) and v.is_floating_point()), None)
        dtype = torch.get_default_dtype() if like is None else like.dtype
        value = torch.as_tensor(value, dtype=dtype, device=None if like is None else like.device)
    while value.dim() > len(shape) and len(value) == 1:  # Pyro's Predictive leaves such of plates
        value = value[0]
    try:
        return value if value.shape == shape else value.expand(shape)
    except RuntimeError as error:
        raise ValueError(
            f"init_loc_fn starts the latent site {name!r} at a value of shape "
            f"{tuple(value.shape)}, and it has the shape {tuple(shape)}."
        ) from error


def checked_roles(roles: Mapping[str, WeightRole] | None) -> dict[str, WeightRole]:
    """Checks the roles that are given to a hand-written model's sites.

    Args:
        roles: The roles by site name.

    Returns:
        The roles, each with a layer.

    Raises:
        TypeError: If something else stands for a role.
    """
    for name, role in (roles or {}).items():
        if not isinstance(role, WeightRole):
            raise TypeError(
                f"The role of the site {name!r} must say its fans: "
                f'WeightRole.of("hidden", fan_in=..., fan_out=...), got {role!r}.'
            )
    return {
        name: role if role.layer else dataclasses.replace(role, layer=name)
        for name, role in (roles or {}).items()
    }


def network_weights(
    trace: poutine.Trace, roles: Mapping[str, WeightRole], parametrization: Any
) -> dict[str, NetworkWeight | None]:
    """Which of a model's sites and parameters are a network's weights.

    Args:
        trace: The prototype trace.
        roles: Roles of a hand-written model's sites.
        parametrization: The parametrization for those.

    Returns:
        The weight that each is, or None, by name.
    """
    return {
        name: _weight_of_node(name, node, roles, parametrization)
        for name, node in trace.nodes.items()
        if node["type"] in ("sample", "param")
    }


def find_sites(
    trace: poutine.Trace,
    weights: Mapping[str, NetworkWeight | None],
    roles: Mapping[str, WeightRole],
) -> dict[str, Site]:
    """A model's latent sites.

    Args:
        trace: The prototype trace.
        weights: The network weights that sites are.
        roles: Roles of a hand-written model's sites.

    Returns:
        The sites by name.

    Raises:
        ValueError: If a role is given to what is no latent site, or a site is a point mass or has
            a support that cannot be mapped to unconstrained space.
        NotImplementedError: If a site is inside a sequential plate.
    """
    sites = {
        name: _describe_site(name, node, weights[name])
        for name, node in trace.iter_stochastic_nodes()
    }
    unknown = [name for name in roles if name not in sites]
    if unknown:
        raise ValueError(f"roles names {unknown}, but the latent sites are {list(sites)}.")
    return sites


def networks_and_parameters(trace: poutine.Trace) -> dict[str, Any]:
    """Where a model's weights and parameters are, to be looked up there by name at each use.

    Args:
        trace: The prototype trace.

    Returns:
        By name of a site or parameter, the network that it belongs to; of a parameter that is in
        none, the parameter itself.
    """
    found = {}
    for name, node in trace.nodes.items():
        network = cast("dict[str, Any]", node.get("infer") or {}).get(NETWORK_KEY)
        if network is not None:
            found[name] = network
        elif node["type"] == "param":
            found[name] = _unconstrained(node["value"])
    return found


def _unconstrained(value: Any) -> nn.Parameter:
    """The leaf behind a parameter's value; parameters local to their module are their own."""
    reference = getattr(value, "unconstrained", None)
    return cast("nn.Parameter", value if reference is None else reference())


def _describe_site(name: str, node: Mapping[str, Any], weight: NetworkWeight | None) -> Site:
    """What a guide needs to know of a latent site."""
    for frame in node["cond_indep_stack"]:
        if not frame.vectorized:
            raise NotImplementedError(
                f"The site {name!r} is inside the sequential plate {frame.name!r}; AutoMuPNormal "
                f"needs `with pyro.plate(...)`."
            )
    fn, value = node["fn"], node["value"]
    _check_spread(name, fn)
    support = _mappable(fn.support)
    try:
        with helpful_support_errors(node):
            num_new = biject_to(support).inv(value).dim() - value.dim()
    except NotImplementedError as error:
        raise ValueError(
            f"The latent site {name!r}, of law {type(fn).__name__}, has the support {support}, "
            f"which Pyro maps to no unconstrained space: write it as a function of latents whose "
            f"supports it does, pyro.deterministic({name!r}, ...), or draw it in a guide of your "
            f"own."
        ) from error
    return Site(
        name=name,
        event_dim=fn.event_dim + num_new,
        value_event_dim=fn.event_dim,
        support=support,
        frames=list(node["cond_indep_stack"]),
        weight=weight,
        keep=node["infer"].get(KEEP_KEY),
    )


def _check_spread(name: str, law: Any) -> None:
    """Refuses a point mass, which would be trained as if its prior did not say where it is."""
    if is_delta(law):
        raise ValueError(
            f"The latent site {name!r} is a Delta, whose value its prior gives: there is nothing "
            f"to infer. Write pyro.deterministic({name!r}, value), or leave the site out of the "
            f"guide, which then has the model's value: "
            f"AutoMuPNormal(poutine.block(model, hide=[{name!r}]))."
        )


def _mappable(support: Any) -> Any:
    """A support that Pyro maps to unconstrained space: of a mixture, that of its components.

    torch wraps that in a class of its own, which has no map.

    Returns:
        The support; as it is where components differ in theirs.
    """
    inner = getattr(support, "base_constraint", None)
    if inner is None:
        return support
    if isinstance(support, constraints.independent):
        found = _mappable(inner)
        num_dims = support.reinterpreted_batch_ndims
        return support if found is inner else constraints.independent(found, num_dims)
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    bounds = getattr(inner, "__dict__", {}).values()
    differ = any(isinstance(bound, Tensor) and bound.dim() for bound in bounds)
    return support if differ else support.base_constraint


def _weight_of_node(
    name: str, node: Mapping[str, Any], roles: Mapping[str, WeightRole], parametrization: Any
) -> NetworkWeight | None:
    """The network weight that a site or parameter is, if any."""
    if name in roles:
        return NetworkWeight(roles[name], parametrization)
    return node["infer"].get(WEIGHT_KEY)


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
