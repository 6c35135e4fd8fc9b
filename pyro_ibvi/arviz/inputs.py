"""The arguments of one call of a model, by the names of its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pyro_ibvi._util.inputs import as_call, map_tensors


@dataclass
class Inputs:
    """Arguments of one call of the model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> Inputs:
        """Takes a tuple as positional, a mapping as keyword, all else as one argument."""
        if isinstance(value, Inputs):
            return value
        return cls(*as_call(value))

    def map(self, function: Callable[[torch.Tensor], Any]) -> Inputs:
        """The arguments with a function applied to each of their tensors."""
        return Inputs(map_tensors(function, self.args), map_tensors(function, self.kwargs))

    def named(self, model: Callable[..., Any]) -> dict[str, Any]:
        """The arguments by the names that the model's signature gives them."""
        fn = model.forward if isinstance(model, torch.nn.Module) else model
        try:
            bound = inspect.signature(fn).bind(*self.args, **self.kwargs)
        except (TypeError, ValueError):
            return {f"input_{i}": a for i, a in enumerate(self.args)} | dict(self.kwargs)
        named: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                named |= {f"{name}_{i}": a for i, a in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                named |= value
            else:
                named[name] = value
        return named


def leaves(named: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The arrays in nested arguments by name: ``x``, ``x_0`` or ``x_key``.

    Args:
        named: Arguments by name.
        prefix: Start of all names.

    Returns:
        Tensors and arrays.
    """
    found: dict[str, Any] = {}
    for key, value in named.items():
        if isinstance(value, torch.Tensor | np.ndarray):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}_")
        elif isinstance(value, list | tuple):
            found |= leaves({str(i): v for i, v in enumerate(value)}, f"{prefix}{key}_")
    return found
