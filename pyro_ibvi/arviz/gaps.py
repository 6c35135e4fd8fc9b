"""Masked data in an export, whose log-likelihood is NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_ibvi.arviz.structure import wrap

if TYPE_CHECKING:
    from xarray import DataArray, Dataset


def drop_masked(data: Any) -> Any:
    """An export without the data that a mask hides, as ArviZ's criticism needs it.

    ``arviz.loo`` and ``arviz.compare`` return NaN where a log-likelihood is NaN. Each variable of
    ``log_likelihood`` that has such data gets a dimension of its own, ``<name>_datum``, with the
    data that are left; its labels are in the coordinates ``<name>_<dimension>``.

    Args:
        data: Result of :func:`pyro_ibvi.arviz.to_arviz`.

    Returns:
        An ``InferenceData`` or a ``DataTree``, the other groups as they were.

    Raises:
        ValueError: If there is no log-likelihood.
    """
    names = list(data.children) if hasattr(data, "children") else list(data.groups())
    if "log_likelihood" not in names:
        raise ValueError(f"The export has no log_likelihood, only {names}: pass the targets.")
    found: dict[str, Dataset] = {name: _dataset(data[name]) for name in names}
    group = found["log_likelihood"]
    arrays = {str(name): _drop(array) for name, array in group.data_vars.items()}
    found["log_likelihood"] = type(group)(arrays, attrs=group.attrs)
    return wrap(found, data.attrs)


def _dataset(group: Any) -> Dataset:
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def _drop(array: DataArray) -> DataArray:
    masked = array.isnull().all(("chain", "draw"))
    if not bool(masked.any()):
        return array
    dims = [str(dim) for dim in array.dims if dim not in ("chain", "draw")]
    rename = {dim: f"{array.name}_{dim}" for dim in dims}
    datum = f"{array.name}_datum"
    stacked = array.rename(rename).stack({datum: list(rename.values())})
    kept = stacked.isel({datum: ~masked.values.ravel()})
    return kept.reset_index(datum)
