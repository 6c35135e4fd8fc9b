"""A saved network, made anew: nothing of it exists unless all of the file fits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.files import readable_path
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi._version import __version__
from pyro_ibvi.front.choices import as_key, find_optimizer, find_others, restore
from pyro_ibvi.front.files import check_fit, read_network, state_of
from pyro_ibvi.front.layers import warn_of_layers
from pyro_ibvi.front.network import VariationalNetwork
from pyro_ibvi.models import RandomModule
from pyro_ibvi.models.choices import Prior
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.mup.flow import check_not_lazy

#: What torch.compile puts in front of the names of a network's parameters.
_COMPILED = "_orig_mod."


@named_arguments()
def load(
    path: str | os.PathLike[str],
    net: nn.Module,
    *,
    likelihood: Likelihood | None = None,
    output: Callable[[Any], Any] | None = None,
    prior: Mapping[str, Prior] | None = None,
    device: torch.device | str = "cpu",
) -> VariationalNetwork:
    """Reads a network that :meth:`VariationalNetwork.save` wrote.

    Its predictions are those of the network that was saved, bit for bit on the same machine with
    as many threads. It trains on by the same optimizer at the same rate. To go on where a training
    was, use the checkpoints of :func:`~pyro_ibvi.fit` instead: neither the optimizer's state is in
    the file, nor are an optimizer that is not torch's, an objective, and a schedule of one's own.

    Args:
        path: The file.
        net: A network of the same architecture, of whatever weights; it is not changed.
        likelihood: The likelihood, if it is none of this package's; a file holds no code.
        output: The function that was ``output``, if one was.
        prior: Priors that were other distributions than a Normal around zero, by parameter.
        device: Where the loaded network is.

    Returns:
        The network.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the network is none, or something must be given that no file holds.
        ValueError: If the file is damaged, none of this kind, or of another network, or the
            network has no shapes yet.

    Example:
        >>> import tempfile, pyro_ibvi as ibvi
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.1))
        >>> path = tempfile.mkdtemp() + "/net.ibvi"
        >>> bnn.save(path)
        >>> x, again = torch.ones(3, 2), ibvi.load(path, net)
        >>> torch.equal(again.predict(x, seed=0).mean, bnn.predict(x, seed=0).mean)
        True
    """
    if not isinstance(net, nn.Module) or isinstance(net, RandomModule):
        raise TypeError(
            f"Loading needs the plain network, a torch.nn.Module of the architecture that was "
            f"saved; got {'the class ' + net.__name__ if isinstance(net, type) else net!r}."
        )
    check_not_lazy(net)
    path = readable_path(path, "saved network")
    header, tensors = read_network(path)
    _check_parameters(path, tensors, net)
    with own_random_numbers():
        given = {"likelihood": likelihood, "output": output, "prior": dict(prior or {})}
        bnn = _rebuilt(path, header, net, given)
    check_fit(path, tensors, state_of(bnn.model, bnn.guide))
    for kind, module in (("model", bnn.model), ("guide", bnn.guide)):
        prefix = f"{kind}."
        module.load_state_dict(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
    return bnn.to(device)


def _rebuilt(
    path: Path, header: dict[str, Any], net: nn.Module, given: dict[str, Any]
) -> VariationalNetwork:
    choices = dict(header["choices"])
    choices["prior"] = {**choices["prior"], **dict.fromkeys(map(as_key, given["prior"]))}
    choices |= {name: None for name in ("likelihood", "output") if given[name] is not None}
    _check_given(path, choices)
    try:
        made = {name: restore(choice) for name, choice in choices.items()}
    except TypeError as error:
        raise ValueError(
            f"{path} was written by pyro_ibvi {header['versions']['pyro_ibvi']} with choices that "
            f"this version ({__version__}) cannot make: {error}."
        ) from error
    warn_of_layers(path, made.get("layers", {}), net)
    random = RandomModule(
        net,
        parametrization=made["parametrization"],
        stochastic=made["stochastic"],
        prior={**made["prior"], **given["prior"]},
        roles=made["roles"],
    )
    trained_by = dict(made.get("trained_by", {}))
    bnn = VariationalNetwork(
        random,
        given["likelihood"] or made["likelihood"],
        output=made["output"] if given["output"] is None else given["output"],
        inputs=made["inputs"],
        target=made["target"],
        covariance=made["covariance"],
        num_components=made.get("num_components", 1),
        draws=made.get("draws"),
        optimizer=find_optimizer(trained_by.pop("optimizer", None)),
        **trained_by,
    )
    bnn.model.num_data = made["num_data"]
    bnn.temperature = made["temperature"]
    if made.get("noise_follows_data", False):
        bnn._unsettled = replace(bnn._unsettled, noise=True)
    return bnn


def _check_given(path: Path, choices: dict[str, Any]) -> None:
    """Asks for what a file cannot hold."""
    missing = [f"{name}={other}(...)" for name, other in find_others(choices).items()]
    priors = find_others(choices["prior"])
    if priors:
        inner = ", ".join(f"{name!r}: {other}(...)" for name, other in priors.items())
        missing.append(f"prior={{{inner}}}")
    if missing:
        raise TypeError(
            f"{path} holds a network with parts that are none of this package's, and a file holds "
            f"no code: pass load(path, net, {', '.join(missing)})."
        )


def _check_parameters(path: Path, tensors: Mapping[str, Tensor], net: nn.Module) -> None:
    """Checks the user's network before anything is made of it."""
    prefix = "model.net.net."
    there = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    here = net.state_dict()
    compiled = [any(_COMPILED in name for name in names) for names in (there, here)]
    if compiled[0] != compiled[1]:
        saved, given = ("compiled", "not") if compiled[0] else ("not compiled", "is")
        what = "torch.compile(net)" if compiled[0] else "the network from before torch.compile"
        raise ValueError(
            f"{path} was saved of a network that was {saved}, and the one given {given}: its "
            f"parameters have other names. Pass {what}."
        )
    check_fit(path, there, here)
