"""The choices of which a network was made, as plain data, and the same network from them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pyro.distributions as dist
import torch
from torch import nn

from pyro_ibvi import guides, models, mup, training
from pyro_ibvi._util.distributions import per_element
from pyro_ibvi.front.layers import layers_of
from pyro_ibvi.guides import MuPGuide
from pyro_ibvi.models import RandomModule, SupervisedModel
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.mup.parametrization import Fans
from pyro_ibvi.mup.roles import WeightRole

_PLAIN = (bool, int, float, str, type(None))
_CLASS = "class"
#: Stands for a likelihood that stood before, as of a task that shares its noise with another.
_SAME = "same"
#: Stands for what a file cannot hold: a function, a distribution, a class of the user's.
_OTHER = "other"
#: Stands before keys of a user's mapping that would be taken for one of these.
_MARK = "="


@dataclasses.dataclass(frozen=True)
class _Other:
    """What a file cannot hold.

    Attributes:
        kind: Name of its class.
    """

    kind: str


def describe_choices(model: SupervisedModel, guide: MuPGuide) -> dict[str, Any]:
    """The choices of which a model and its guide were made, all of them settled.

    Args:
        model: The model.
        guide: Its guide.

    Returns:
        The description, of which :func:`restore` makes an equal pair, but for what was learned.

    Raises:
        TypeError: If the parametrization or a covariance is none of this package's.
    """
    net = model.net
    covariances = {site.name: layer.covariance for layer in guide.layers for site in layer.sites}
    choices: dict[str, Any] = {
        "stochastic": net.stochastic,
        "parametrization": net.parametrization,
        "roles": dict(net.roles),
        "covariance": covariances,
        "num_components": len(guide.components),
        "prior": {name: _plain_prior(net, name) for name in net.stochastic},
        "likelihood": model.likelihood,
        "output": model.picker.choice,
        "inputs": model.reader.inputs,
        "target": model.reader.target,
        "num_data": model.num_data,
        "layers": layers_of(net.network),
    }
    described = {}
    for name, choice in choices.items():
        try:
            described[name] = describe(choice)
        except TypeError as error:
            if name not in ("likelihood", "output"):
                raise TypeError(
                    f"The network's {name} cannot be written to a file: {error}. Save the "
                    f"state_dict of bnn.model and bnn.guide instead."
                ) from error
            described[name] = {_OTHER: getattr(choice, "__name__", type(choice).__name__)}
    return described


def _plain_prior(net: RandomModule, name: str) -> float | _Other:
    """The standard deviation of a prior that is one Normal for all entries, or what it is."""
    prior = per_element(net.prior(name))
    if isinstance(prior, dist.Normal):
        mean = 1.0 if net.roles[name].role == "gain" else 0.0
        if (prior.loc == mean).all() and (prior.scale == prior.scale.flatten()[0]).all():
            return net.prior_std(name)
    return _Other(type(prior).__name__)


def describe_training(bnn: Any) -> dict[str, Any]:
    """How a network predicts and goes on with training, as far as a file can hold it.

    Args:
        bnn: The network.

    Returns:
        The description; without an optimizer that is not torch's, and without a rate or a
        schedule that is a default or a function.
    """
    optim = bnn.optim
    made: Any = optim.pt_optim_constructor
    args = {n: v for n, v in optim.pt_optim_args.items() if n != "lr" or not bnn._unsettled.rate}
    schedule = {None: "constant", "cosine": "cosine"}.get(optim._make_scheduler)
    trained_by = {"scheduler": schedule, "clip_norm": describe(optim.clip_norm)}
    if find_optimizer(getattr(made, "__name__", None)) is made:
        with suppress(TypeError):  # arguments that no file holds
            trained_by |= {"optimizer": made.__name__, "optim_args": describe(args)}
    return {
        "temperature": bnn.temperature,
        "draws": getattr(bnn.loss, "draws", None),
        "noise_follows_data": bnn._unsettled.noise,
        "trained_by": trained_by,
    }


def describe_network(network: Any) -> str:
    """A network in one line.

    Args:
        network: The network.

    Returns:
        The line; what was loaded does not know how long it was trained.
    """
    num_epochs = network.history.num_epochs
    trained = f", trained for {num_epochs} epochs" * bool(num_epochs)
    return (
        f"VariationalNetwork({type(network.net.network).__name__}, {network.likelihood}, "
        f"stochastic={network.net.stochastic}{trained})"
    )


def find_optimizer(name: str | None) -> Any:
    """An optimizer that a file names.

    Args:
        name: Name of its class.

    Returns:
        The class, None if it is neither torch's nor this package's.
    """
    rooms = (torch.optim, training)
    return next((getattr(room, name) for room in rooms if name and hasattr(room, name)), None)


def as_key(name: str) -> str:
    """A key of a user's mapping, told from what this module writes beside it.

    Args:
        name: The key.

    Returns:
        The key in the description.
    """
    return _MARK * (name.lstrip(_MARK) in (_CLASS, _SAME, _OTHER)) + name


def _from_key(key: str) -> str:
    is_marked = key.startswith(_MARK) and key.lstrip(_MARK) in (_CLASS, _SAME, _OTHER)
    return key.removeprefix(_MARK) if is_marked else key


def find_others(description: Any) -> dict[str, str]:
    """Choices that a file cannot hold, by name, with what they were.

    Args:
        description: The description of choices by name.

    Returns:
        The names of classes and functions.
    """
    return {
        _from_key(name): choice[_OTHER]
        for name, choice in description.items()
        if isinstance(choice, dict) and _OTHER in choice
    }


def describe(value: Any, seen: dict[int, int] | None = None) -> Any:
    """A value as JSON's numbers, strings, lists and dictionaries.

    Args:
        value: Numbers, strings, this package's likelihoods, covariances, parametrizations and
            roles, and sequences and mappings of them.
        seen: Numbers of the likelihoods that stand before it, by identity.

    Returns:
        The description.

    Raises:
        TypeError: If there is anything else.
    """
    seen = {} if seen is None else seen
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.dim() == 0):
        value = value.item()
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (list, tuple)):
        return [describe(part, seen) for part in value]
    if isinstance(value, Mapping):
        return {as_key(str(key)): describe(part, seen) for key, part in value.items()}
    if isinstance(value, _Other):
        return {_OTHER: value.kind}
    name = type(value).__name__
    if _classes().get(name) is not type(value):
        raise TypeError(f"{name} is no class of this package")
    if isinstance(value, Likelihood):
        if id(value) in seen:
            return {_SAME: seen[id(value)]}
        seen[id(value)] = len(seen)
        fields = value.arguments()
    else:
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(cast(Any, value))}
    if isinstance(fields.get("base"), nn.Module):
        fields["base"] = {n: tuple(p.shape) for n, p in fields["base"].named_parameters()}
    return {_CLASS: name, **{key: describe(part, seen) for key, part in fields.items()}}


def restore(description: Any, before: list[Any] | None = None) -> Any:
    """What was described, made anew.

    Args:
        description: What :func:`describe` gave.
        before: The likelihoods that stand before it.

    Returns:
        An equal value, but for tuples, which are lists now.

    Raises:
        TypeError: If it is of a class, or of arguments, that this version does not know.
    """
    before = [] if before is None else before
    if isinstance(description, list):
        return [restore(part, before) for part in description]
    if not isinstance(description, dict):
        return description
    if description.keys() == {_SAME} and isinstance(description[_SAME], int):
        return before[description[_SAME]]
    if not isinstance(description.get(_CLASS), str):  # a mapping of the user's
        return {_from_key(key): restore(part, before) for key, part in description.items()}
    made = _classes().get(description[_CLASS])
    is_likelihood, place = made is not None and issubclass(made, Likelihood), len(before)
    if is_likelihood:
        before.append(None)
    fields = {key: restore(part, before) for key, part in description.items() if key != _CLASS}
    if made is None:
        raise TypeError(f"{description[_CLASS]} is no class of this version of the package")
    if isinstance(fields.get("base"), dict):
        fields["base"] = {name: tuple(shape) for name, shape in fields["base"].items()}
    unknown = fields.keys() - inspect.signature(made).parameters.keys()
    if unknown:
        raise TypeError(f"{made.__name__} has no {', '.join(sorted(unknown))} in this version")
    value = made(**fields)
    if is_likelihood:
        before[place] = value
    return value


def _classes() -> dict[str, type]:
    """What a file may name: the package's own plain values, and nothing that runs other code."""
    public = [getattr(room, name) for room in (models, guides, mup) for name in room.__all__]
    return {
        c.__name__: c
        for c in (*public, Fans, WeightRole)
        if isinstance(c, type) and (dataclasses.is_dataclass(c) or issubclass(c, Likelihood))
    }
