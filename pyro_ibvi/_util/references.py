"""References to modules in places where torch does not look: lists, closures, bound methods.

A copy of a network is only a copy if nothing in it leads back to the original. ``nn.Module`` knows
its registered children; a network's own attributes may hold them once more, in a list or a
dictionary, behind a forward that was replaced by hand, in a hook, or in what ``torch.compile``
made. Python's ``deepcopy`` follows most of these, but takes functions and weak references as they
are.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Values that lead nowhere.
PLAIN = frozenset({
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    Tensor,
    nn.Parameter,
    torch.Size,
    torch.dtype,
    torch.device,
    torch.Generator,
    types.BuiltinFunctionType,
    types.ModuleType,
})  # fmt: skip

#: Containers that a network may change in place.
CONTAINERS = frozenset({list, dict, set, OrderedDict, defaultdict, deque})

#: How far to follow references from object to object.
_MAX_DEPTH = 8


def rebind(
    value: Any, copies: Mapping[int, Any], memo: dict[int, Any] | None = None, depth: int = 0
) -> Any:
    """A value in which originals are replaced by their copies.

    Args:
        value: Anything: a module, a container, a function, an object.
        copies: The copy of each original, by the original's ``id``.
        memo: What was replaced before, by ``id``, so that things stay shared that were.
        depth: Number of references that led here.

    Returns:
        The copy of an original; a new object of the same kind if it leads to one; otherwise the
        value itself.
    """
    kind = type(value)
    if kind in PLAIN or depth > _MAX_DEPTH:
        return value
    if id(value) in copies:
        return copies[id(value)]
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)][1]
    memo[id(value)] = (value, value)  # for circles; the value itself keeps its id its own

    def inner(part: Any) -> Any:
        return rebind(part, copies, memo, depth + 1)

    new = _rebuild(value, inner)
    memo[id(value)] = (value, new)
    return new


def _rebuild(value: Any, inner: Any) -> Any:
    """A value with its parts replaced, or itself if no part changes."""
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return _rebuild_sequence(value, inner)
    if isinstance(value, dict):
        items = {key: inner(item) for key, item in value.items()}
        if all(items[key] is value[key] for key in items):
            return value
        new = copy.copy(value)
        new.update(items)
        return new
    if isinstance(value, types.MethodType):
        owner = inner(value.__self__)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    if isinstance(value, functools.partial):
        parts = value.func, value.args, value.keywords
        func, args, keywords = new_parts = tuple(inner(part) for part in parts)
        same = all(a is b for a, b in zip(parts, new_parts, strict=True))
        return value if same else type(value)(func, *args, **keywords)
    if isinstance(value, types.FunctionType):
        return _rebuild_function(value, inner)
    if isinstance(value, weakref.ReferenceType):
        target = value()
        new_target = inner(target)
        return value if new_target is target else weakref.ref(new_target)
    return _rebuild_object(value, inner)


def _rebuild_sequence(value: Any, inner: Any) -> Any:
    items = [inner(item) for item in value]
    if all(a is b for a, b in zip(items, value, strict=True)):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*items)
    return type(value)(items)


def _rebuild_function(function: types.FunctionType, inner: Any) -> Any:
    cells, changed = [], False
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # a name that is not yet bound
            cells.append(cell)
            continue
        new = inner(content)
        changed |= new is not content
        cells.append(cell if new is content else types.CellType(new))
    if not changed:
        return function
    code, name = function.__code__, function.__name__
    new_function = types.FunctionType(
        code, function.__globals__, name, function.__defaults__, tuple(cells)
    )
    new_function.__kwdefaults__ = function.__kwdefaults__
    new_function.__dict__.update(function.__dict__)
    return new_function


def _rebuild_object(value: Any, inner: Any) -> Any:
    state = getattr(value, "__dict__", None)
    if not isinstance(state, dict) or isinstance(value, type):
        return value
    new_state = {name: inner(part) for name, part in state.items()}
    if all(new_state[name] is state[name] for name in new_state):
        return value
    new = object.__new__(type(value))
    new.__dict__.update(new_state)
    return new
