"""State of an optimizer of SVI, by the order of its parameters rather than by Pyro's names.

``PyroOptim.get_state`` asks Pyro's store for each parameter's name. Parameters that live in their
modules have none there, so that all of them would be saved under one key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.optim import _get_state_dict, _load_state_dict
from torch import Tensor

from pyro_ibvi.training.optim import MuPOptim


def trained_tensors(optim: PyroOptim) -> list[Tensor]:
    """The parameters that an optimizer holds.

    Args:
        optim: The optimizer.

    Returns:
        The parameters, unconstrained.

    Raises:
        RuntimeError: If it holds none yet.
    """
    if isinstance(optim, MuPOptim):
        return [p for group in optim.optimizer.param_groups for p in group["params"]]
    if not optim.optim_objs:
        raise RuntimeError("The optimizer holds no parameters yet: take a step through SVI first.")
    return list(optim.optim_objs)


def get_optimizer_state(optim: PyroOptim, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """State of an optimizer.

    Args:
        optim: The optimizer.
        parameters: Its parameters, as far as they are in use.

    Returns:
        The state, for :func:`set_optimizer_state`.
    """
    state: dict[str, Any] = {"kind": _kind(optim)}
    if isinstance(optim, MuPOptim):
        return {**state, "scheduler": type(optim.scheduler).__name__, "state": optim.get_state()}
    state["state"] = [_get_state_dict(optim.optim_objs[parameter]) for parameter in parameters]
    # SVI leaves zeros as gradients, which are not the same to an optimizer as none.
    state["has_gradient"] = [parameter.grad is not None for parameter in parameters]
    return state


def check_optimizer(optim: PyroOptim, state: Mapping[str, Any]) -> None:
    """Checks that a state is of an optimizer of this kind.

    Args:
        optim: The optimizer.
        state: What :func:`get_optimizer_state` gave.

    Raises:
        ValueError: If it is not.
    """
    if state["kind"] != _kind(optim):
        raise ValueError(
            f"The checkpoint is of the optimizer {state['kind']}, but this one is {_kind(optim)}."
        )


def set_optimizer_state(
    optim: PyroOptim, parameters: Sequence[Tensor], state: Mapping[str, Any]
) -> None:
    """Restores an optimizer, and makes it hold the parameters if it does not yet.

    Args:
        optim: The optimizer.
        parameters: Its parameters, in the order of the state.
        state: What :func:`get_optimizer_state` gave.

    Raises:
        ValueError: If the state is of another scheduler.
    """
    if isinstance(optim, MuPOptim):
        with contextlib.suppress(RuntimeError):  # where there is nothing to train yet
            _check_scheduler(optim, state)  # before anything changes
        optim.set_state(state["state"])
        optim.register(parameters)
        _check_scheduler(optim, state)
        return
    rows = zip(parameters, state["state"], state["has_gradient"], strict=True)
    for parameter, one, has_gradient in rows:
        if parameter not in optim.optim_objs:  # as PyroOptim does at a parameter's first step
            optim.optim_objs[parameter] = optim._get_optim(parameter)
            optim.grad_clip[parameter] = optim._get_grad_clip(parameter)  # type: ignore[arg-type]
        _load_state_dict(optim.optim_objs[parameter], one)
        parameter.grad = torch.zeros_like(parameter) if has_gradient else None


def _check_scheduler(optim: MuPOptim, state: Mapping[str, Any]) -> None:
    kind = type(optim.scheduler).__name__
    if kind != state["scheduler"]:
        raise ValueError(
            f"The checkpoint is of the scheduler {state['scheduler']}, but this one is {kind}."
        )


def _kind(optim: PyroOptim) -> str:
    constructors = [getattr(optim, "pt_scheduler_constructor", None), optim.pt_optim_constructor]
    names = [getattr(c, "__name__", repr(c)) for c in constructors if c is not None]
    return f"{type(optim).__name__}({', '.join(names)})"
