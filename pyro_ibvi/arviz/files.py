"""Exports that go to a file as they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xarray import Dataset


def _drawn(dataset: Dataset) -> Iterator[str]:
    return (str(n) for n, v in dataset.variables.items() if "draw" in v.dims)


def append_netcdf(
    path: Path, datasets: Mapping[str, Dataset], attrs: Mapping[str, str], start: int
) -> None:
    """Appends draws to a netCDF file.

    Args:
        path: The file, made where ``start`` is zero.
        datasets: The groups by name.
        attrs: Attributes of the whole.
        start: Number of draws that the file has.
    """
    import xarray

    if start == 0:
        xarray.Dataset(attrs=attrs).to_netcdf(path, mode="w", engine="h5netcdf")
        for group, dataset in datasets.items():
            unlimited = ["draw"] if "draw" in dataset.dims else []
            dataset.to_netcdf(
                path, mode="a", engine="h5netcdf", group=group, unlimited_dims=unlimited
            )
        return
    import h5netcdf

    with h5netcdf.File(path, "a") as file:
        for group, dataset in datasets.items():
            if "draw" not in dataset.dims:
                continue
            stop = start + dataset.sizes["draw"]
            file[group].resize_dimension("draw", stop)
            for name in _drawn(dataset):
                axis = dataset[name].dims.index("draw")
                at = (*[slice(None)] * axis, slice(start, stop))
                file[group].variables[name][at] = dataset[name].values


def append_zarr(
    path: Path, datasets: Mapping[str, Dataset], attrs: Mapping[str, str], start: int
) -> None:
    """Appends draws to a Zarr store.

    Args:
        path: The store, made where ``start`` is zero.
        datasets: The groups by name.
        attrs: Attributes of the whole.
        start: Number of draws that the store has.
    """
    import xarray

    if start == 0:
        # format 2 is the one whose specification has the metadata in one place
        options: Any = {"consolidated": False, "zarr_format": 2}
        xarray.Dataset(attrs=attrs).to_zarr(path, mode="w", **options)
        for group, dataset in datasets.items():
            dataset.to_zarr(path, mode="a", group=group, **options)
        return
    for group, dataset in datasets.items():
        if "draw" in dataset.dims:
            draws = dataset[list(_drawn(dataset))]
            draws.to_zarr(path, group=group, append_dim="draw", consolidated=False)
