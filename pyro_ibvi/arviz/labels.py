"""Names and coordinates of the dimensions of exported arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample

from pyro_ibvi._util.checks import are_indices
from pyro_ibvi.arviz.sites import Variable, to_numpy


def index_values(dim: str, values: Any) -> np.ndarray:
    """One-dimensional labels from a sequence, an array, a tensor or a pandas index.

    Args:
        dim: The dimension they label.
        values: The labels.

    Returns:
        An array of numbers, dates or strings, which every file format can store.

    Raises:
        ValueError: If the labels are not one-dimensional or are mixed objects.
    """
    array = np.asarray(to_numpy(values) if isinstance(values, torch.Tensor) else values)
    if array.dtype == object and all(isinstance(v, str) for v in array.flat):
        array = array.astype(str)
    if array.ndim != 1 or array.dtype == object:
        raise ValueError(
            f"coords[{dim!r}] must be a one-dimensional sequence of numbers, dates or strings; "
            f"got an array of {array.dtype} with shape {array.shape}. Flatten a pandas "
            f"MultiIndex first: index.map(str)."
        )
    return array


def plate_indices(trace: Trace) -> dict[str, tuple[int, np.ndarray]]:
    """Size and indices of each plate that has them, by the names that its dimension can have."""
    found: dict[str, tuple[int, np.ndarray]] = {}
    nodes: Mapping[str, Any] = trace.nodes
    for name, site in nodes.items():
        if site_is_subsample(site) and int(site["fn"].size) >= 0:
            rows = torch.as_tensor(site["value"])
            if not are_indices(rows):
                continue
            plate = name.replace("/", ".")
            entry = int(site["fn"].size), to_numpy(rows)
            found |= {plate: entry, f"{plate}_plate": entry}
    return found


@dataclass
class Labels:
    """What the user says about dimensions.

    Args:
        dims: For some variables, the names of all their dimensions, or of those that no plate
            names; ``None`` in a list keeps the automatic name.
        coords: For some dimensions, their labels.
    """

    dims: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)

    def rename(self, variable: Variable) -> Variable:
        """Gives a variable the dimension names that the user wants.

        Args:
            variable: The variable.

        Returns:
            The variable with its final names.

        Raises:
            ValueError: If the number of names fits neither all dimensions nor the unnamed ones.
        """
        names = self.dims.get(variable.site, self.dims.get(variable.name))
        if names is None:
            return variable
        if isinstance(names, str):
            names = [names]
        every = range(len(variable.dims))
        free = [k for k in every if variable.dims[k] == f"{variable.name}_dim_{k}"]
        if len(names) not in (len(every), len(free)):
            raise ValueError(
                f"dims[{variable.site!r}] has {len(names)} names, {list(names)}, but the site has "
                f"shape {variable.shape} and dimensions {variable.dims}: name all of them, or "
                f"only the {len(free)} that no plate names."
            )
        dims = list(variable.dims)
        for k, name in zip(every if len(names) == len(every) else free, names, strict=True):
            dims[k] = name or dims[k]
        return replace(variable, dims=tuple(dims))

    def inputs(
        self, arrays: Mapping[str, np.ndarray], data: Iterable[Variable]
    ) -> dict[str, Variable]:
        """Describes model arguments as variables.

        The leading dimension of an argument is that of the data if all observed sites agree on
        theirs, in a plate, and the lengths are equal.

        Args:
            arrays: The arguments by name.
            data: The data sites of the same call.

        Returns:
            The variables by name.
        """
        leading = {(v.dims[0], v.shape[0]) for v in data if v.num_batch and v.plates}
        variables = {}
        for name, array in arrays.items():
            dims = [f"{name}_dim_{k}" for k in range(array.ndim)]
            if array.ndim and len(leading) == 1:
                dim, length = next(iter(leading))
                # xarray lets no variable have the name of a dimension that is not its own
                dims[0] = dim if array.shape[0] == length and dim not in arrays else dims[0]
            variables[name] = self.rename(
                Variable(name, name, "observed", array.shape, tuple(dims), 0, array.dtype)
            )
        return variables

    def coordinates(
        self, variables: Iterable[Variable], plates: Mapping[str, tuple[int, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Labels of every dimension of a group.

        Args:
            variables: The variables of the group.
            plates: Size and indices of the plates, as :func:`plate_indices` gives them.

        Returns:
            The user's labels where there are any, the indices of a plate, else ``0, 1, ...``.

        Raises:
            ValueError: If two variables disagree on the length of a dimension, or labels have
                the wrong length.
        """
        lengths: dict[str, int] = {}
        for v in variables:
            for dim, length in zip(v.dims, v.shape, strict=True):
                if lengths.setdefault(dim, length) != length:
                    raise ValueError(
                        f"Dimension {dim!r} has length {lengths[dim]} in one variable and "
                        f"{length} in {v.name!r}: give them different names by dims=."
                    )
        return {d: self._labels(d, n, *plates.get(d, (n, None))) for d, n in lengths.items()}

    def _labels(self, dim: str, length: int, size: int, indices: np.ndarray | None) -> np.ndarray:
        labels = self.coords.get(dim)
        fits = indices is not None and len(indices) == length
        if labels is None:
            return indices if fits and indices is not None else np.arange(length)
        if len(labels) == length:
            return labels
        if fits and len(labels) == size:
            return labels[indices]  # the labels of the full plate
        raise ValueError(
            f"coords[{dim!r}] has {len(labels)} labels for a dimension of length {length}"
            + (f" (or {size} for the full plate)" if size != length else "")
            + "; labels of new inputs go to predictions_coords=."
        )
