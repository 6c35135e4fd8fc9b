"""A copy of a network that has nothing in common with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from pyro_ibvi._util.references import rebind

Network = TypeVar("Network", bound=nn.Module)


def copy_network(net: Network) -> Network:
    """Copies a network with its values, its state, and what leads from one module to another.

    Beyond ``copy.deepcopy``, activations that a module keeps are copied as numbers, functions and
    weak references that lead to a module lead to its copy, and modules that were compiled in
    place by ``module.compile()`` still are.

    Args:
        net: The network.

    Returns:
        The copy.

    Raises:
        TypeError: If something in the network cannot be copied.
    """
    # Tensors with a history cannot be copied by deepcopy, which finds them here as done.
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in _activations(net)}
    # Those of lazy norm layers it refuses, unlike lazy parameters.
    lazy = [b for b in net.buffers() if isinstance(b, UninitializedBuffer)]
    make: Any = UninitializedBuffer  # whose stub is that of another class
    memo |= {id(b): make(device=b.device, dtype=b.dtype) for b in lazy}
    try:
        new = copy.deepcopy(net, memo)
    except Exception as error:
        raise TypeError(
            f"The {type(net).__name__} holds something that cannot be copied ({error}): set such "
            f"attributes to None, or make them after the network became random."
        ) from error
    copies = {id(m): memo[id(m)] for m in net.modules() if id(m) in memo}
    seen: dict[int, Any] = {}
    for module in net.modules():
        twin = copies.get(id(module))
        if twin is None:
            continue
        compiled = module.__dict__.get("_compiled_call_impl")
        if compiled is not None:
            twin.__dict__["_compiled_call_impl"] = compiled
        for name, value in twin.__dict__.items():
            if name not in ("_parameters", "_buffers", "_modules"):
                twin.__dict__[name] = rebind(value, copies, seen)
    return new


def _activations(net: nn.Module) -> Iterator[Tensor]:
    """Tensors with a history among the attributes of modules, inside of containers too."""
    seen: set[int] = set()
    for module in net.modules():
        for name, value in module.__dict__.items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _tensors_with_history(value, seen)
        yield from (b for b in module._buffers.values() if b is not None and not b.is_leaf)


def _tensors_with_history(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in seen:
        seen.add(id(value))
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_with_history(part, seen)


def unwrap(net: nn.Module) -> tuple[nn.Module, str]:
    """The network inside of ``torch.compile``, ``DataParallel`` and the like.

    Args:
        net: The network.

    Returns:
        The network that a user wrote, and the prefix of its parameters' names in ``net``.
    """
    prefix = ""
    while True:
        if hasattr(net, "_orig_mod"):
            net, prefix = net._orig_mod, f"{prefix}_orig_mod."  # type: ignore[assignment]
        elif isinstance(net, _PARALLEL):
            net, prefix = net.module, f"{prefix}module."
        else:
            return net, prefix


_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def is_parallel(net: nn.Module) -> bool:
    """Whether a network is wrapped for several devices."""
    return isinstance(net, _PARALLEL)


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` or ``module.compile`` made the module's forward pass."""
    return hasattr(module, "_orig_mod") or module.__dict__.get("_compiled_call_impl") is not None
