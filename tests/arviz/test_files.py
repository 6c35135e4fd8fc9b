"""Exports as files, and what ArviZ does with them."""

import arviz as az
import pandas as pd
import pytest
import torch
import xarray
from pyro.infer.autoguide import (
    AutoNormal,
)

from pyro_ibvi.arviz import to_arviz, write_arviz
from tests.arviz.pairs import (
    OLD,
    groups,
    network_model,
    plain,
    round_trip_arguments,
    round_trip_model,
)


def identical(a, b):
    """Bit for bit, group for group."""
    assert set(groups(a)) == set(groups(b))
    for group in groups(a):
        left, right = plain(a, group), plain(b, group)
        assert left.identical(right)
        for name in left.variables:
            if left[name].dtype.kind != "M":  # files hold dates in nanoseconds
                assert left[name].dtype == right[name].dtype
            if left[name].dtype.kind == "f":
                bits = f"u{left[name].dtype.itemsize}"
                assert (left[name].values.view(bits) == right[name].values.view(bits)).all()


def test_netcdf_round_trip_is_exact(tmp_path):
    args = round_trip_arguments()
    labels = {"data": pd.date_range("2026-01-01", periods=5)}
    guide = AutoNormal(round_trip_model)
    result = to_arviz(round_trip_model, guide, *args, num_samples=3, coords=labels)
    result.to_netcdf(tmp_path / "posterior.nc")
    back = az.from_netcdf(tmp_path / "posterior.nc")
    identical(result, back)
    assert back.attrs["guide"] == "AutoNormal"
    assert back.posterior["flag"].dtype == bool


@pytest.mark.parametrize("chunk_size", [1, 4, None])
def test_chunked_netcdf_equals_the_export_at_once(tmp_path, chunk_size):
    args = round_trip_arguments()
    guide = AutoNormal(round_trip_model)
    options = {"num_samples": 10, "seed": 3, "loss_history": [1.0, 0.5]}
    whole = to_arviz(round_trip_model, guide, *args, **options)
    path = tmp_path / "posterior.nc"
    assert (
        write_arviz(path, round_trip_model, guide, *args, chunk_size=chunk_size, **options) == path
    )
    identical(az.from_netcdf(path), whole)
    assert az.from_netcdf(path).attrs["inference_library"] == "pyro"


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_zarr_round_trip_is_exact(tmp_path):
    pytest.importorskip("zarr")
    args = round_trip_arguments()
    guide = AutoNormal(round_trip_model)
    options = {"num_samples": 10, "seed": 3}
    whole = to_arviz(round_trip_model, guide, *args, **options)
    if not OLD:  # ArviZ 0.23 works with zarr 2, which current xarray has left behind
        whole.to_zarr(tmp_path / "at_once.zarr")
        identical(az.from_zarr(tmp_path / "at_once.zarr"), whole)
    path = write_arviz(
        tmp_path / "posterior.zarr", round_trip_model, guide, *args, chunk_size=4, **options
    )
    with xarray.open_datatree(path, engine="zarr") as found:
        identical(found, whole)


def test_paths_of_chunked_files(tmp_path):
    args = round_trip_arguments()
    guide = AutoNormal(round_trip_model)
    with pytest.raises(ValueError, match=r"end the path in \.nc or \.zarr"):
        write_arviz(tmp_path / "posterior", round_trip_model, guide, *args)

    def breaks(x, y):
        if torch.rand(()) > 0.8:
            raise RuntimeError("on purpose")
        return round_trip_model(x, y)

    with pytest.raises(RuntimeError, match="on purpose"):
        write_arviz(tmp_path / "b.nc", breaks, guide, *args, chunk_size=1, seed=1)
    assert not list(tmp_path.iterdir())  # nothing that looks whole and is not
    (tmp_path / "a.nc").touch()
    with pytest.raises(FileExistsError, match="remove it or choose another path"):
        write_arviz(tmp_path / "a.nc", round_trip_model, guide, *args)


# ArviZ 0.23 beside Matplotlib 3.11 and pandas 3.1
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")
def test_arviz_works_on_the_result(data):
    import matplotlib as mpl

    mpl.use("Agg")
    args = data[0], data[2]
    scales = {"a": 0.01, "b": 0.02}  # narrow, so that no Pareto k is large
    guides = {n: AutoNormal(network_model, init_scale=s) for n, s in scales.items()}
    options = {"num_samples": 200, "groups": ["~prior", "~prior_predictive"]}
    results = {n: to_arviz(network_model, g, *args, **options) for n, g in guides.items()}
    assert list(az.summary(results["a"]).index) == ["sigma"]
    if OLD:
        az.plot_ppc(results["a"], num_pp_samples=10)
        az.plot_posterior(results["a"])
    else:
        az.plot_ppc_dist(results["a"], num_samples=10)
        az.plot_dist(results["a"])
    assert set(az.compare(results).index) == {"a", "b"}
