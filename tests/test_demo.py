"""The demonstration: it leaves what its report names, and its claims about bands hold."""

import re
import time

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct

import pyro_ibvi as ibvi
from benchmarks.demo import curve, digits, posterior, run


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return run.run(tmp_path_factory.mktemp("out"), smoke=True)


def test_the_report_names_what_is_there(report):
    text = report.read_text()
    named = set(re.findall(r"[\w-]+\.(?:png|nc|ibvi)", text))
    assert named == {path.name for path in report.parent.iterdir()} - {"report.md"}
    assert len(named) == 5
    assert "nan" not in text.lower()


def test_every_column_is_explained(report):
    text = report.read_text()
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    headers = [tables[i - 1] for i, line in enumerate(tables) if line.startswith("| ---")]
    assert len(headers) == 3
    explained = " ".join(re.findall(r"\*([\w ,%]+)\*", text))
    for column in re.findall(r"\| ([^|]+) (?=\|)", headers[0] + headers[1]):
        assert re.split(r",| ", column)[0] in explained, column


@pytest.mark.filterwarnings("ignore::matplotlib.MatplotlibDeprecationWarning")  # within ArviZ
def test_arviz_shows_the_posterior_within_seconds(report):
    start = time.perf_counter()
    data = az.from_netcdf(str(report.parent / "posterior.nc"))
    summary = az.summary(data)
    az.plot_trace(data)
    az.plot_forest(data)
    plt.close("all")
    assert time.perf_counter() - start < 10
    assert len(summary) == 10
    assert np.isfinite(summary["r_hat"]).all()
    assert data["posterior"]["net.4.bias"].shape == (4, 5, 10)


def test_chains_hold_the_draws_in_their_order(report):
    bnn = ibvi.load(report.parent / "network.ibvi", digits.make_network())
    data = ibvi.to_arviz(
        bnn.model, bnn.guide, torch.zeros(2, 64), num_samples=8, var_names=["net.4.bias"], seed=0
    )
    cut = posterior.in_chains(data, 4)["posterior"]["net.4.bias"].values
    assert np.array_equal(cut.reshape(1, 8, 10), data["posterior"]["net.4.bias"].values)


def test_the_exact_spread_is_that_of_a_gaussian_process(monkeypatch):
    """Scikit-learn's, with the kernel of a linear model, which the features are made to be."""
    monkeypatch.setattr(torch.nn.functional, "silu", lambda features: features)
    x, y = curve.read()
    found = curve.exact_spread(1.0, num_networks=2000)
    # Of a linear network the kernel is x x' + 1, in the mean over weights.
    process = GaussianProcessRegressor(DotProduct(1.0), alpha=curve.NOISE**2, optimizer=None)
    process.fit(x.numpy(), y.numpy())
    for points, spread in zip((curve.AMONG, curve.GAP), found, strict=True):
        _, stds = process.predict(points.numpy(), return_std=True)
        assert spread == pytest.approx(np.sqrt(np.square(stds).mean()), rel=0.02)


def test_a_band_widens_in_the_gap_where_the_prior_bends():
    narrow, wide = (curve.train(scale, 400, exact_head=True) for scale in (1.0, 5.0))
    spreads = [
        [curve.Fit("", bnn, (0.0, 0.0)).spread(x) for x in (curve.AMONG, curve.GAP)]
        for bnn in (narrow, wide)
    ]
    assert spreads[1][1] > 3 * spreads[1][0]
    assert spreads[1][1] > 2 * spreads[0][1]
