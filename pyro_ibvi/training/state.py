"""What a training consists of: its modules, and its parameters in Pyro's store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_ibvi._util.modes import owner_module
from pyro_ibvi._util.random_state import get_random_state, set_random_state
from pyro_ibvi.training.optimizer_state import trained_tensors


def modules_of(svi: SVI) -> dict[str, nn.Module]:
    """The model and the guide, as far as they are modules or methods of modules.

    Args:
        svi: The training.

    Returns:
        The modules by ``"model"`` and ``"guide"``.
    """
    model = owner_module(svi.model) or owner_module(getattr(svi.guide, "model", None))
    found = {"model": model, "guide": owner_module(svi.guide)}
    return {kind: module for kind, module in found.items() if module is not None}


def named_parameters(svi: SVI) -> dict[str, Tensor]:
    """Parameters of the modules and of Pyro's store, unconstrained.

    Args:
        svi: The training.

    Returns:
        The parameters by ``"model.<name>"``, ``"guide.<name>"`` and ``"store.<name>"``.
    """
    named: dict[str, Tensor] = {
        f"{kind}.{name}": parameter
        for kind, module in modules_of(svi).items()
        for name, parameter in module.named_parameters()
    }
    store = pyro.get_param_store().named_parameters()
    return {**named, **{f"store.{name}": parameter for name, parameter in store}}


def parameters_of(svi: SVI) -> Iterator[nn.Parameter]:
    """The parameters of the modules.

    Args:
        svi: The training.

    Yields:
        Each parameter.
    """
    for module in modules_of(svi).values():
        yield from module.parameters()


def device_of(svi: SVI) -> torch.device | None:
    """Where the training takes place.

    Args:
        svi: The training.

    Returns:
        The device of the first parameter, or None if no module holds one.
    """
    parameter = next(parameters_of(svi), None)
    return None if parameter is None else parameter.device


def get_tensors(svi: SVI) -> dict[str, Any]:
    """Copies of all parameters and buffers, those that are trained in Pyro's store included.

    Args:
        svi: The training.

    Returns:
        The tensors, for :func:`set_tensors`.
    """
    trained = set(trained_tensors(svi.optim)) - set(parameters_of(svi))
    store = pyro.get_param_store().named_parameters()
    return {
        "modules": {
            kind: {name: _copy(value) for name, value in module.state_dict().items()}
            for kind, module in modules_of(svi).items()
        },
        "store": {f"store.{n}": _copy(p) for n, p in store if p in trained},
    }


@torch.no_grad()
def set_tensors(svi: SVI, tensors: Mapping[str, Any]) -> None:
    """Puts values into parameters and buffers.

    Args:
        svi: The training.
        tensors: The values, as :func:`get_tensors` gave them.
    """
    for kind, module in modules_of(svi).items():
        module.load_state_dict(tensors["modules"].get(kind, {}))
    parameters = named_parameters(svi)
    for name, value in tensors["store"].items():
        parameters[name].copy_(value)


@contextmanager
def all_or_nothing(svi: SVI) -> Iterator[None]:
    """Gives a training back as it was if something fails, but for its optimizer.

    Args:
        svi: The training.

    Yields:
        Nothing.
    """
    before = {
        kind: {name: _copy(value) for name, value in module.state_dict().items()}
        for kind, module in modules_of(svi).items()
    }
    store = pyro.get_param_store()
    stored = {name: _copy(parameter) for name, parameter in store.named_parameters()}
    random = get_random_state()
    loss = getattr(svi.loss, "__self__", None)
    attributes = dict(vars(loss)) if loss is not None else {}
    try:
        yield
    except BaseException:
        for name in set(store.keys()) - stored.keys():
            del store[name]
        for kind, module in modules_of(svi).items():  # which may have found its sites since
            module.load_state_dict(before[kind], strict=False)
        with torch.no_grad():
            for name, parameter in store.named_parameters():
                parameter.copy_(stored[name])
        if loss is not None:
            vars(loss).update(attributes)
        set_random_state(random)
        raise
    finally:
        for parameter in named_parameters(svi).values():
            parameter.grad = None


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
