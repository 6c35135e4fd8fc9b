"""Parameters that live in their module and nowhere else.

Pyro's ``pyro.param`` reads and writes one global store by name, so a second model of the same
class silently trains the first one's parameters. The modules of this package keep their own
``nn.Parameter`` and announce it to Pyro's effect handlers by the same kind of message, so that
``SVI``, ``trace``, ``block`` and ``lift`` see it, whatever ``pyro.settings`` say.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, cast

from pyro.nn import PyroModule
from pyro.ops import jit
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ibvi.models.store import keep_name


def full_name(module: PyroModule, name: str) -> str:
    """Name of a site or parameter, after the path of the module that holds it.

    Args:
        module: The module.
        name: Name within the module.

    Returns:
        The name with the module's path in front, if it has one.
    """
    # PyroModule's own method refuses before the first call, when a guide already needs names.
    prefix = module.__dict__["_pyro_name"]
    return f"{prefix}.{name}" if prefix else name


def is_drawn(name: str, module: PyroModule) -> bool:
    """Whether a module has drawn one of its sites in the run of a model that is being traced.

    Args:
        name: Full name of the site.
        module: The module.

    Returns:
        Whether the innermost trace has the site, and it is this module's.
    """
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, BlockMessenger):
            return False
        if isinstance(handler, TraceMessenger) and name in handler.trace.nodes:
            noted = handler.trace.nodes[name]["infer"] or {}
            return any(value is module for value in noted.values())
    return False


def read_parameter(
    name: str,
    parameter: nn.Parameter,
    *,
    event_dim: int | None = None,
    infer: dict[str, Any] | None = None,
) -> Tensor:
    """Announces a parameter to Pyro and returns its value.

    Args:
        name: Full name of the parameter.
        parameter: The parameter, unconstrained.
        event_dim: Number of rightmost dimensions that plates leave alone; inside a plate that
            subsamples, the dimensions to the left of them are subsampled.
        infer: What the site tells inference algorithms.

    Returns:
        The parameter's value, as handlers may have changed it.

    Raises:
        RuntimeError: If Pyro compiles the model: it looks for parameters in its store then.
    """
    if any(type(handler) is BlockMessenger for handler in _PYRO_STACK) and _is_compiled():
        raise RuntimeError(
            f"The parameter {name!r} lives in its module, and pyro.ops.jit, by which "
            f"JitTrace_ELBO and the other Jit forms compile a model, reads parameters from Pyro's "
            f"store. Use the form without Jit, Trace_ELBO or TraceExpectedLogLikelihood; "
            f"torch.compile(network) makes a network faster."
        )
    keep_name(name, parameter)
    value = _as_value(parameter)
    return _param(value, name=name, constraint=constraints.real, event_dim=event_dim, infer=infer)


def announce_parameter(name: str, parameter: nn.Parameter, known: dict[str, Tensor]) -> None:
    """Tells the handlers, all of which must be traces, of a parameter without a message.

    Args:
        name: Full name of the parameter.
        parameter: The parameter, unconstrained.
        known: Values that were announced before, by name; they are used again.
    """
    value = known.get(name)
    if value is None or value.unconstrained() is not parameter:  # type: ignore[attr-defined]
        keep_name(name, parameter)
        known[name] = value = _as_value(parameter)
    for handler in cast("list[TraceMessenger]", _PYRO_STACK):
        node = {"name": name, "type": "param", "value": value, "infer": {}}
        handler.trace.nodes[name] = node  # type: ignore[assignment]


def _as_value(parameter: nn.Parameter) -> Tensor:
    # A view, since Pyro hangs attributes on the value that would make the parameter unpicklable.
    value = parameter.view_as(parameter)
    value.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
    return value


@effectful(type="param")
def _param(
    value: Tensor,
    constraint: constraints.Constraint = constraints.real,
    event_dim: int | None = None,
) -> Tensor:
    return value


def _is_compiled() -> bool:
    """Whether the caller runs inside of what ``pyro.ops.jit`` compiles."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is jit.CompiledFunction.__call__.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
