"""The data structures that hold an export, as the installed ArviZ works with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch

from pyro_ibvi._version import __version__
from pyro_ibvi.arviz.plan import Arrays, Export

if TYPE_CHECKING:
    from xarray import Dataset


def attributes(
    model: Callable[..., Any], guide: Callable[..., Any], objective: Any
) -> dict[str, str]:
    """What an export says of its origin.

    Args:
        model: The model.
        guide: Its guide.
        objective: The objective of the training, or a text.

    Returns:
        Attributes of every group.
    """
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "pyro_ibvi_version": __version__,
        "torch_version": str(torch.__version__),
        "model": _name(model),
        "guide": _name(guide),
        # SVI holds the bound method of its objective
        "objective": _name(getattr(objective, "__self__", objective) or "not stated"),
    }


def _name(thing: Any) -> str:
    """What a function, a class or an instance is called."""
    if isinstance(thing, str):
        return thing
    while isinstance(thing, partial):
        thing = thing.args[1] if len(thing.args) > 1 and callable(thing.args[1]) else thing.func
    name = str(getattr(thing, "__qualname__", type(thing).__name__))
    kl_weight = getattr(thing, "kl_weight", None)
    return name if kl_weight is None else f"{name}(kl_weight={kl_weight})"


def datasets(
    export: Export, arrays: Arrays, attrs: Mapping[str, str], draws: range
) -> dict[str, Dataset]:
    """The groups as xarray data sets, in the order of ArviZ's schema.

    Args:
        export: The export.
        arrays: The draws, by group and site.
        attrs: Attributes of every group.
        draws: Numbers of the draws.

    Returns:
        The data sets by the groups' names.
    """
    import xarray

    found = {}
    for name, group in export.groups.items():
        samples = ("chain", "draw") if group.random else ()
        data = {
            v.name: (
                v.dims if n in group.fixed else (*samples, *v.dims),
                group.fixed[n] if n in group.fixed else arrays[name][n],
                v.attrs,
            )
            for n, v in group.variables.items()
        }
        coords: dict[str, Any] = {"chain": [0], "draw": np.asarray(draws)} if samples else {}
        coords |= export.coordinates(name)
        found[name] = xarray.Dataset(data, coords, {**attrs, **group.notes})
    return found


def backend() -> str:
    """The data structure of the installed ArviZ, ``InferenceData`` or ``DataTree``.

    Returns:
        Its name.

    Raises:
        ImportError: If ArviZ is not installed.
    """
    found = next((name for name in ("arviz", "arviz_base") if find_spec(name)), None)
    if found is None:
        raise ImportError("to_arviz needs ArviZ: pip install arviz.")
    # in ArviZ 1.x the attribute is a deprecated alias, outside of the module's variables
    return "InferenceData" if "InferenceData" in vars(import_module(found)) else "DataTree"


def wrap(datasets: Mapping[str, Dataset], attrs: Mapping[str, str]) -> Any:
    """Puts data sets into the data structure of the installed ArviZ.

    Args:
        datasets: The groups by name.
        attrs: Attributes of the whole.

    Returns:
        An ``InferenceData`` or a ``DataTree``.
    """
    if backend() == "InferenceData":
        import arviz

        structure: Any = arviz.InferenceData
        return structure(attrs=dict(attrs), **datasets)
    import xarray

    nodes = {"/": xarray.Dataset(attrs=attrs), **datasets}
    return xarray.DataTree.from_dict(nodes)
