"""What a model is made of, as it comes: a network is checked, unwrapped and copied."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.nn.parameter import is_lazy

from pyro_ibvi._util.inputs import as_arguments
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.network_copies import copy_network, is_parallel
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi._util.torch_losses import likelihood_for
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.mup.parametrization import MaximalUpdate, Parametrization


def admit_network(net: Any, example_input: Any = None) -> nn.Module:
    """A copy of a user's network that may become random.

    Args:
        net: What the user gave.
        example_input: A batch of inputs; a network with parameters that have no shape yet is run
            on it once.

    Returns:
        The copy, without the wrapper of several devices.

    Raises:
        TypeError: If it is no network, a scripted one, or one with random weights, or sites,
            already.
        ValueError: If its parameters have no values.
    """
    if isinstance(net, type):
        raise TypeError(
            f"RandomModule needs an object, got the class {net.__name__}: write "
            f"{net.__name__}(...)."
        )
    if not isinstance(net, nn.Module):
        hint = ": write torch.nn.Sequential(*layers)" * isinstance(net, (list, tuple))
        hint += ": put it into a network, net.load_state_dict(state)" * isinstance(net, Mapping)
        hint += ": pass the network that it was made of" * hasattr(net, "svi")
        raise TypeError(f"RandomModule needs a torch.nn.Module, got {type(net).__name__}{hint}.")
    for name, module in net.named_modules():
        where = f"its {name!r}" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"RandomModule cannot put weights into TorchScript, and {where} is scripted: "
                f"pass the network from before torch.jit.script or torch.jit.trace."
            )
        if isinstance(module, PyroModule) and hasattr(module, "sample_parameters"):
            raise TypeError(
                f"RandomModule needs a network, got a {type(net).__name__} of which {where} is a "
                f"{type(module).__name__} and random already: pass the plain network, once."
            )
        if isinstance(module, PyroModule):
            _reject_sites_of_its_own(name, module)
    _check_has_values(net)
    net = _on_one_device(copy_network(net))
    _make_gradients_dense(net)
    if example_input is not None and any(is_lazy(p) for p in net.parameters()):
        args, kwargs = as_arguments(net.forward, example_input)
        with torch.no_grad(), own_random_numbers(), module_mode(net, training=False):
            net(*args, **kwargs)
    return net


def _reject_sites_of_its_own(name: str, module: PyroModule) -> None:
    """Refuses what a network would sample or read by itself, when it is run.

    The weights are drawn before that, by guides and predictions that run no network: a site in it
    would be drawn from its prior, at every call.

    Args:
        name: The module's name in the network.
        module: One of the network's modules.

    Raises:
        TypeError: If there is such an attribute.
    """
    of_class = {key: v for kind in type(module).__mro__[::-1] for key, v in vars(kind).items()}
    for attributes, kind in ((module._pyro_samples, PyroSample), (module._pyro_params, PyroParam)):
        own = {*attributes, *(key for key, v in of_class.items() if isinstance(v, kind))}
        if not own:
            continue
        names = sorted(f"{name}.{key}" if name else key for key in own)
        raise TypeError(
            f"RandomModule samples and reads the parameters of a network itself, and {names} of "
            f"this one are {kind.__name__}, which Pyro samples or reads when the network runs: no "
            f"guide would learn them. Pass a network of plain parameters, with priors in prior= "
            f"and constraints in its forward, as in softplus(self.raw); or leave RandomModule "
            f"out: a PyroModule whose forward samples its observations is a model by itself, "
            f"AutoMuPNormal(model)."
        )


def _check_has_values(net: nn.Module) -> None:
    absent = [name for name, parameter in net.named_parameters() if parameter.is_meta]
    if absent:
        raise ValueError(
            f"The network's parameters {absent[:3]} are on the meta device, shapes without "
            f"values: load its weights first, net.load_state_dict(state, assign=True)."
        )


def _make_gradients_dense(net: nn.Module) -> None:
    """Lets tables, whose rows all have noise, look up rows with dense gradients."""
    for name, module in net.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            module.sparse = False
            warnings.warn(
                f"The table {name!r} has sparse=True, and takes sparse=False here: the gradients "
                f"are the same numbers, dense.",
                UserWarning,
                stacklevel=4,
            )


def _on_one_device(net: nn.Module) -> nn.Module:
    """A network without wrappers of several devices, around it or in it."""
    root = nn.ModuleList([net])
    kinds = {type(module).__name__ for module in root.modules() if is_parallel(module)}
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            while child is not None and is_parallel(child):
                child = child.get_submodule("module")
            parent._modules[name] = child
    for kind in sorted(kinds):
        warnings.warn(
            f"RandomModule runs what is inside of {kind} on one device, and averages no gradients "
            f"between processes.",
            UserWarning,
            stacklevel=4,
        )
    return root[0]


def admit_likelihood(likelihood: Any, net: nn.Module) -> Likelihood:
    """A copy of a user's likelihood, so that two models that are given one share nothing.

    What it learns and holds is of the network's type, and at least of single precision.

    Args:
        likelihood: What the user gave.
        net: The network.

    Returns:
        The copy.

    Raises:
        TypeError: If it is none, but a loss, a distribution, a class or a name.
    """
    if isinstance(likelihood, Likelihood):
        kinds = [p.dtype for p in net.parameters() if p.is_floating_point()]
        dtype = torch.promote_types(kinds[0], torch.float32) if kinds else None
        return copy_network(likelihood).to(dtype=dtype)
    kind = likelihood if isinstance(likelihood, type) else type(likelihood)
    name = getattr(likelihood, "__name__", kind.__name__)
    meant = likelihood_for(likelihood)
    if isinstance(likelihood, type) and issubclass(likelihood, Likelihood):
        what, hint = f"the {name} class", f": write {name}(), with parentheses"
    else:
        what = repr(likelihood) if isinstance(likelihood, str) else f"the {name}"
        what += f" of {kind.__module__}" * hasattr(kind, "log_prob")  # as pyro.distributions have
        hint = "" if meant is None else f": write {meant}, of pyro_ibvi"
    if isinstance(likelihood, (Mapping, tuple, list)):
        hint = (
            ": for several targets write MultiTask({'kind': (Categorical(), 5), 'age': "
            "(Normal(0.1), 1)}), of pyro_ibvi.models, with the width of each output"
        )
    raise TypeError(
        f"SupervisedModel needs a likelihood such as Categorical() or Normal(), got {what}{hint}."
    )


def admit_parametrization(parametrization: Any) -> Parametrization:
    """A user's parametrization, or the default.

    Args:
        parametrization: What the user gave, or None.

    Returns:
        The parametrization.

    Raises:
        TypeError: If it is none.
    """
    if parametrization is None:
        return MaximalUpdate()
    if isinstance(parametrization, type):
        raise TypeError(
            f"parametrization must be an object such as MaximalUpdate(), got the class "
            f"{parametrization.__name__}."
        )
    if not all(callable(getattr(parametrization, rule, None)) for rule in ("std", "rate")):
        raise TypeError(
            f"parametrization must be an object such as MaximalUpdate(), got {parametrization!r}."
        )
    return parametrization
