"""One builder, two lines of ArviZ, and none at all."""

import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer.autoguide import AutoNormal

import pyro_ibvi.arviz.structure
from pyro_ibvi.arviz.export import to_arviz, write_arviz


@pytest.fixture
def arguments():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    return model, AutoNormal(model, init_scale=0.1), torch.linspace(-1, 1, 6)


def test_both_structures_hold_the_same_groups(arguments, monkeypatch, tmp_path):
    found = to_arviz(*arguments, num_samples=50, seed=0)
    monkeypatch.setattr(pyro_ibvi.arviz.structure, "backend", lambda: "DataTree")
    tree = to_arviz(*arguments, num_samples=50, seed=0)
    assert isinstance(tree, xarray.DataTree)
    assert tree.attrs["guide"] == "AutoNormal"
    for group in tree.children:
        other = found[group]
        other = other if isinstance(other, xarray.Dataset) else other.to_dataset()
        assert tree[group].to_dataset().drop_attrs().identical(other.drop_attrs())
    path = write_arviz(tmp_path / "posterior.nc", *arguments, num_samples=50, seed=0, chunk_size=7)
    with xarray.open_datatree(path) as back:
        assert set(back.children) == set(tree.children)
        for group in tree.children:
            left, right = tree[group].to_dataset(), back[group].to_dataset()
            assert left.drop_attrs().identical(right.drop_attrs())


def test_arviz_base_and_arviz_stats_work_on_the_tree(arguments, monkeypatch):
    base = pytest.importorskip("arviz_base")
    stats = pytest.importorskip("arviz_stats")
    monkeypatch.setattr(pyro_ibvi.arviz.structure, "backend", lambda: "DataTree")
    tree = to_arviz(*arguments, num_samples=400, seed=0)
    assert base.extract(tree).sizes["sample"] == 400
    assert list(stats.summary(tree).index) == ["loc"]
    assert np.isfinite(stats.loo(tree).elpd)


def test_the_structure_follows_the_installed_arviz(arguments):
    import arviz

    expected = "InferenceData" if arviz.__version__.startswith("0") else "DataTree"
    assert type(to_arviz(*arguments, num_samples=2)).__name__ == expected


def test_without_arviz_the_remedy_is_told(arguments, monkeypatch):
    monkeypatch.setattr(pyro_ibvi.arviz.structure, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install arviz"):
        to_arviz(*arguments)


def test_import_leaves_arviz_alone():
    code = (
        "import sys, pyro_ibvi.arviz.export, pyro_ibvi.arviz.criticism;"
        "sys.exit(any(m.split('.')[0] in ('arviz', 'xarray', 'h5netcdf') for m in sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
    )
