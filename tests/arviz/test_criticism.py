"""Held-out density, Pareto k and corrected cross-validation against closed forms."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormalMessenger, AutoRegressiveMessenger
from scipy import stats

import pyro_ibvi as ibvi
from pyro_ibvi.arviz import to_arviz
from pyro_ibvi.arviz.criticism import (
    LogPredictiveDensity,
    compare_predictive,
    log_predictive_density,
    loo_approximate_posterior,
    pareto_k,
    tail_shape,
)

N = 12


def model(y):
    """A normal mean with a standard normal prior: everything is known in closed form."""
    loc = pyro.sample("loc", dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def guide_of(y, width=1.0):
    """The exact posterior, its standard deviation times ``width``."""
    mean, sd = y.sum() / (1 + len(y)), (1 + len(y)) ** -0.5
    return lambda y: pyro.sample("loc", dist.Normal(mean, width * sd))


@pytest.fixture
def train():
    return torch.randn(N, dtype=torch.float64)


def test_log_predictive_density_is_the_closed_form(train):
    test = torch.linspace(-2, 2, 5, dtype=torch.float64)
    result = log_predictive_density(model, guide_of(train), test, num_samples=4000, seed=0)
    sd = math.sqrt(1 + 1 / (1 + N))
    expected = stats.norm(float(train.sum()) / (1 + N), sd).logpdf(test.numpy())
    # an average of 4000 densities with a relative deviation below 0.35 each
    np.testing.assert_allclose(result.pointwise, expected, atol=4 * 0.35 / 4000**0.5)
    assert result.total == pytest.approx(result.pointwise.sum())
    assert result.se == pytest.approx(5**0.5 * np.std(result.pointwise, ddof=1))
    assert result.mean == pytest.approx(result.total / 5)
    assert "5 data, 4000 draws" in str(result)


def test_masked_data_do_not_count(train):
    def masked(y):
        with pyro.poutine.mask(mask=torch.arange(N) < 4):
            model(y)

    result = log_predictive_density(masked, guide_of(train), train, num_samples=3)
    assert result.num_data == 4
    assert math.isfinite(result.total)


def test_fits_that_are_not_finite_are_told(train):
    def broken(y):
        pyro.sample("loc", dist.Delta(torch.tensor(math.nan)))

    with pyro.validation_enabled(False), pytest.raises(ValueError, match="of 12 observations at"):
        log_predictive_density(model, broken, train, num_samples=3)


def test_targets_are_needed(train):
    def no_data(y):
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="pass the targets to the model"):
        log_predictive_density(no_data, guide_of(train), train)

    def two(y):
        model(y)
        pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=r"are \['y', 'z'\]: name one by site="):
        log_predictive_density(two, guide_of(train), train)
    assert log_predictive_density(two, guide_of(train), train, site="z").num_data == 1


def test_comparison_is_paired():
    noise = np.random.default_rng(0).normal(size=50)
    fits = {
        "worse": LogPredictiveDensity(noise - 0.1, 10),
        "better": LogPredictiveDensity(noise, 10),
    }
    table = compare_predictive(fits)
    assert list(table.index) == ["better", "worse"]
    assert table.loc["worse", "elpd_diff"] == pytest.approx(5.0)
    assert table.loc["worse", "dse"] == pytest.approx(0.0, abs=1e-6)
    fits["other"] = LogPredictiveDensity(noise[:3], 10)
    with pytest.raises(ValueError, match="on the same held-out data only"):
        compare_predictive(fits)
    for other in (list(fits.values()), {"first": -1.0}):
        with pytest.raises(TypeError, match="results of log_predictive_density by name"):
            compare_predictive(other)


@pytest.mark.parametrize("change", ["none", "dtype", "order", "units"])
def test_fits_of_other_data_are_told(change: str) -> None:
    """Their densities are paired by datum, and data of the same number were paired in silence."""
    y = torch.linspace(-1.0, 1.0, 8)
    other = {"none": y, "dtype": y.double(), "order": y.flip(0), "units": 10 * y}[change]

    def model(y: torch.Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(y.new_zeros(()), 1.0), obs=y)

    def guide(y: torch.Tensor) -> None:
        pass

    fits = {
        name: log_predictive_density(model, guide, data, num_samples=2)
        for name, data in {"first": y, "second": other}.items()
    }
    with warnings.catch_warnings(record=True, action="always") as told:
        compare_predictive(fits)
    is_told = any("same observed values" in str(warning.message) for warning in told)
    assert is_told == (change in ("order", "units"))


@pytest.mark.parametrize("k", [0.3, 0.9])
def test_tail_shape_of_known_weights(k):
    uniform = np.random.default_rng(0).uniform(size=20_000)
    assert tail_shape(-k * np.log(uniform)) == pytest.approx(k, abs=0.15)
    assert tail_shape(k * np.log(uniform)) < 0.1  # the wrong sign has no tail


def test_pareto_k_tells_a_narrow_guide_from_a_wide_one(train):
    # for q narrower than p by a factor the ratio has k = 1 - factor^2; for a wider q it is bounded
    assert pareto_k(model, guide_of(train, width=1.3), train, num_samples=1000, seed=0) < 0
    narrow = pareto_k(model, guide_of(train, width=0.3), train, num_samples=1000, seed=0)
    assert narrow == pytest.approx(1 - 0.3**2, abs=0.3)


def test_pareto_k_needs_densities_and_all_data(train):
    with pytest.raises(ValueError, match="point estimate and has no density"):
        pareto_k(model, AutoDelta(model), train)
    net = ibvi.RandomModule(torch.nn.Linear(2, 1))
    supervised = ibvi.SupervisedModel(net, ibvi.Normal(1.0), num_data=N)
    x, y = torch.randn(N, 2), torch.randn(N, 1)
    low_rank = ibvi.AutoMuPNormal(supervised, covariance=ibvi.LowRank(1))
    with pytest.raises(ValueError, match="degenerate"):
        pareto_k(supervised, low_rank, x, y)
    diagonal = ibvi.AutoMuPNormal(supervised, covariance=ibvi.Diagonal())
    with pytest.raises(ValueError, match=r"\['data'\] hold a part .* the whole training set"):
        pareto_k(supervised, diagonal, x[:5], y[:5])
    assert math.isfinite(pareto_k(supervised, diagonal, x, y, num_samples=100))
    with pytest.raises(ValueError, match="at least 25"):
        pareto_k(supervised, diagonal, x, y, num_samples=5)


def test_loo_corrected_for_the_guide(train):
    groups = ["log_likelihood", "sample_stats"]
    guide = guide_of(train, width=1.2)
    data = to_arviz(model, guide, train, num_samples=2000, seed=0, groups=groups)
    try:
        import arviz_stats  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ImportError, match="compare by log_predictive_density"):
            loo_approximate_posterior(data)
        return
    result = loo_approximate_posterior(data)
    rest = (train.sum() - train) / N
    expected = stats.norm(rest.numpy(), math.sqrt(1 + 1 / N)).logpdf(train.numpy())
    np.testing.assert_allclose(result.elpd_i.values, expected, atol=0.05)
    with pytest.raises(ValueError, match="point estimate"):
        loo_approximate_posterior(to_arviz(model, AutoDelta(model), train, num_samples=2))


@pytest.mark.parametrize("kind", [AutoNormalMessenger, AutoRegressiveMessenger])
def test_a_guide_that_runs_the_model_has_its_own_density_alone(kind):
    """Both guides are a Gaussian, of known parameters: what they run the model for is its own."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -mean.square())
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([0.5, 2.0])
    guide = kind(model, init_scale=1.0)
    guide(y)
    drawn = to_arviz(model, guide, y, num_samples=30, seed=0)
    mean = torch.as_tensor(drawn.posterior["mean"].values[0])
    prior = dist.Normal(0.0, 1.0)
    is_normal = kind is AutoNormalMessenger  # the other one starts at the prior
    law = dist.Normal(guide.locs.mean, guide.scales.mean) if is_normal else prior
    log_q = law.log_prob(mean).detach().numpy()
    np.testing.assert_allclose(drawn.sample_stats["log_q"].values[0], log_q, atol=1e-4)
    likelihood = dist.Normal(mean[:, None], 1.0).log_prob(y).sum(-1)
    log_p = (prior.log_prob(mean) - mean.square() + likelihood).numpy()
    np.testing.assert_allclose(drawn.sample_stats["log_p"].values[0], log_p, rtol=1e-4)
    found = pareto_k(model, guide, y, num_samples=30, seed=0)
    assert found == pytest.approx(tail_shape(log_p - log_q), abs=1e-3)
