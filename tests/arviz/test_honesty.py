"""What counts as data, as posterior and as input; what a log-likelihood is given."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam, SplitReparam

import pyro_ibvi as ibvi
from pyro_ibvi.arviz import drop_masked, log_predictive_density, pareto_k, to_arviz
from tests.arviz.exact import LOCS, PROBS, draws_of, mixture
from tests.arviz.pairs import groups
from tests.arviz.test_heldout_sums import forward_algorithm, hmm_guide, hmm_plate
from tests.objectives.test_sites import LATENTS, Y, _latent

DATA_GROUPS = ("observed_data", "log_likelihood", "posterior_predictive")


@pytest.mark.parametrize("name", LATENTS)
def test_what_a_reparametrizer_computes_is_in_the_posterior(name):
    fn, wrap = LATENTS[name]
    model = wrap(_latent(fn))
    guide = AutoNormal(model, init_scale=0.1)
    guide(Y)
    result = to_arviz(model, guide, Y, num_samples=3, seed=0)
    x = torch.as_tensor(result.posterior["x"].values[0])
    assert x.shape == (3, *fn.shape())
    # the likelihood is that of the exported value
    expected = dist.Normal(x.reshape(3, -1).sum(1)[:, None], 1.0).log_prob(Y)
    np.testing.assert_allclose(result.log_likelihood["y"].values[0], expected, rtol=1e-4)
    for group in DATA_GROUPS:
        assert set(result[group].data_vars) == {"y"}
    assert log_predictive_density(model, guide, Y, num_samples=2).num_data == 4
    if "prior" in groups(result):
        assert result.prior["x"].shape == (1, 3, *fn.shape())
    else:
        assert "holds the prior of 'x' as a density" in result.attrs["prior_omitted"]


def test_a_prior_that_is_left_in_a_density_is_not_drawn():
    model = poutine.reparam(_latent(LATENTS["split"][0]), config={"x": SplitReparam([1, 3], -1)})
    guide = AutoNormal(model)
    assert "prior" not in groups(to_arviz(model, guide, Y, num_samples=1))
    with pytest.raises(ValueError, match=r"\['prior'\] cannot be made: a reparametrizer"):
        to_arviz(model, guide, Y, num_samples=1, groups=["prior"])


def test_effects_in_a_plate_are_decentered():
    @poutine.reparam(config={"effect": LocScaleReparam(0.0)})
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("row", y.shape[0], dim=-2):
            effect = pyro.sample("effect", dist.Normal(mean, 2.0))
            with pyro.plate("column", y.shape[1], dim=-1):
                pyro.sample("y", dist.Normal(effect, 1.0), obs=y)

    y = torch.randn(3, 2)
    result = to_arviz(model, AutoNormal(model), y, num_samples=3, seed=0)
    p = result.posterior
    assert p["effect"].dims == ("chain", "draw", "row", "effect_dim_1")
    effect = p["mean"].values[..., None, None] + 2 * p["effect_decentered"].values
    np.testing.assert_allclose(p["effect"].values, effect, rtol=1e-5, atol=1e-6)
    assert result.log_likelihood["y"].attrs["conditioned_on"] == "effect_decentered, mean"
    assert "seen_the_datum" not in result.log_likelihood["y"].attrs  # rows have several data
    # drawn from the prior for rows that the fit does not know, with the density of a whole row
    new = log_predictive_density(model, AutoNormal(model), torch.randn(5, 2), num_samples=2)
    assert new.pointwise.shape == (5,)


def test_latents_that_have_seen_their_datum_are_told():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    result = to_arviz(model, AutoNormal(model), Y, num_samples=1)
    assert result.log_likelihood["y"].attrs == {"conditioned_on": "mean, z", "seen_the_datum": "z"}


def test_sequences_have_one_log_likelihood_each():
    y, lengths = torch.randn(4, 3), torch.tensor([3, 2, 1, 0])
    names = ["~prior", "~prior_predictive"]
    result = to_arviz(hmm_plate, hmm_guide, y, lengths, num_samples=3, seed=0, groups=names)
    found = result.log_likelihood["joint"]
    assert found.dims == ("chain", "draw", "sequence")
    assert found.attrs["observed_sites"] == "y_0, y_1, y_2"
    assert found.attrs["summed_out"] == "x_0, x_1, x_2"
    mask = torch.arange(3) < lengths[:, None]
    for s, loc in enumerate(draws_of(hmm_guide, "loc", 3)):
        expected = forward_algorithm(y, loc, mask)
        np.testing.assert_allclose(found.values[0, s, :3], expected[:3], rtol=1e-5)
    assert np.isnan(found.values[..., 3]).all()
    assert set(result.observed_data) == {"y_0", "y_1", "y_2"}


def test_pareto_k_sums_the_labels_out():
    def by_hand(y):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        law = dist.MixtureSameFamily(dist.Categorical(PROBS), dist.Normal(LOCS + shift, 0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", law, obs=y)

    def guide(y):
        pyro.sample("shift", dist.Normal(0.2, 0.3))

    found, expected = (
        pareto_k(model, guide, Y, num_samples=100, seed=0) for model in (mixture, by_hand)
    )
    assert found == pytest.approx(expected, abs=1e-4)


def masked(x, y, seen):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)


def masked_law(x, y, seen):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.5).mask(~y.isnan()), obs=y)


def partly_observed(x, y, seen):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y, obs_mask=seen)


def counts(x, y, seen):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), poutine.mask(mask=seen):
        pyro.sample("y", dist.Poisson((slope * x).exp()), obs=y)


def labels(x, y, seen):
    """Gaps in the data of a mixture whose labels are summed out and drawn."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
        with poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(slope * x + LOCS[z], 0.5), obs=y)


@pytest.mark.parametrize("model", [masked, masked_law, partly_observed, counts, labels])
def test_gaps_are_nan_in_the_log_likelihood_and_nowhere_else(model):
    x = torch.linspace(0.1, 1, 6)
    y = torch.tensor([1.0, torch.nan, 3.0, 2.0, torch.nan, 0.0])
    seen = ~y.isnan()

    def guide(*args):
        pyro.sample("slope", dist.Normal(1.0, 0.1))
        if model is partly_observed:
            with pyro.plate("data", len(x)):
                pyro.sample("y_unobserved", dist.Normal(0.0, 1.0))

    result = to_arviz(model, guide, x, y, seen, num_samples=3, seed=0)
    site = "y_observed" if model is partly_observed else "y"
    found = result.log_likelihood[site].values
    assert (np.isnan(found) == ~seen.numpy()).all()
    assert np.isfinite(result.posterior_predictive[site].values).all()
    np.testing.assert_array_equal(result.observed_data[site].values, y.numpy())
    assert set(result.constant_data) == {"x", "seen"}
    assert np.isfinite(result.sample_stats["log_p"].values).all()
    assert log_predictive_density(model, guide, x, y, seen, num_samples=3).num_data == 4
    if model is masked:
        slope = torch.as_tensor(result.posterior["slope"].values)[..., None]
        expected = dist.Normal(slope * x[seen], 0.5).log_prob(y[seen])
        np.testing.assert_allclose(found[..., seen], expected, rtol=1e-5)
        few = pareto_k(model, guide, x, y, seen, num_samples=50, seed=0)
        gone = pareto_k(model, guide, x[seen], y[seen], seen[seen], num_samples=50, seed=0)
        assert few == pytest.approx(gone, abs=1e-5)


def test_inputs_that_equal_the_targets_stay():
    net = ibvi.RandomModule(torch.nn.Linear(3, 3))
    model = ibvi.SupervisedModel(net, ibvi.Normal(0.5), num_data=4)
    x = torch.randn(4, 3)
    for targets in (x, x.clone()):
        result = to_arviz(model, ibvi.AutoMuPNormal(model), x, targets, num_samples=1)
        assert set(result.constant_data) == {"x"}
        assert set(result.observed_data) == {"obs"}

    def alone(x, weight):
        """One argument that is both."""
        w = pyro.sample("w", dist.Normal(torch.zeros(3, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(torch.tanh(x @ w) @ w.T, 0.5).to_event(1), obs=x)

    result = to_arviz(alone, AutoNormal(alone), x, np.ones(2), num_samples=1)
    assert set(result.constant_data) == {"x", "weight"}

    def arrays(x, y):
        """NumPy arrays, of which nobody knows where they go."""
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(v * x, 0.5).mask(~y.isnan()), obs=y)

    x = np.array([1.0, 2.0])
    for y in (x.copy(), np.array([1.0, np.nan])):
        result = to_arviz(arrays, AutoNormal(arrays), x, y, num_samples=1)
        assert set(result.constant_data) == {"x"}


def test_targets_that_only_a_code_comes_from_are_no_inputs():
    """A variational autoencoder: the guide looks at the data, the model predicts them."""
    decoder = torch.nn.Linear(1, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 0.1).to_event(1))

    x, new = torch.zeros(4, 3), torch.full((4, 3), 9.0)
    result = to_arviz(model, guide, x, num_samples=2, seed=0, predictions=(new,))
    assert "constant_data" not in groups(result)
    # codes of the old data say nothing of new ones
    assert result.predictions.attrs["drawn_from_model"] == "z"


def test_what_a_guide_computes_is_exported():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    def guide(y):
        with pyro.plate("data", len(y)):
            weight = pyro.deterministic("weight", torch.arange(4.0))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.deterministic("double", 2 * shift)
        pyro.sample("loc", dist.Normal(shift + weight.mean(), 0.1))

    result = to_arviz(model, guide, Y, num_samples=3, dims={"double": []})
    assert set(result.posterior) == {"loc", "weight", "double"}
    assert result.posterior["weight"].dims == ("chain", "draw", "data")
    assert set(result.prior) == {"loc"}
    assert set(to_arviz(model, guide, Y, num_samples=1, var_names=["~double"]).posterior) == {
        "loc",
        "weight",
    }


def test_names_with_brackets_are_names():
    def model(y):
        total = sum(pyro.sample(n, dist.Normal(0.0, 1.0)) for n in ("w[0]", "w[1]", "w0"))
        pyro.sample("y", dist.Normal(total, 1.0), obs=y)

    guide = AutoNormal(model)
    result = to_arviz(model, guide, torch.tensor(0.0), num_samples=1, var_names=["w[0]"])
    assert set(result.posterior) == {"w[0]"}
    without = to_arviz(model, guide, torch.tensor(0.0), num_samples=1, var_names=["~w[0]"])
    assert set(without.posterior) == {"w[1]", "w0"}


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_criticism_of_data_with_gaps():
    x, y = torch.linspace(0.1, 1, 6), torch.tensor([1.0, torch.nan, 3.0, 2.0, torch.nan, 0.0])
    seen = ~y.isnan()

    def guide(*args):
        pyro.sample("slope", dist.Normal(1.0, 0.1))

    options = {"num_samples": 50, "seed": 0}
    result = to_arviz(masked, guide, x, y, seen, **options)
    with_gaps = drop_masked(result)
    assert with_gaps.log_likelihood["y"].dims == ("chain", "draw", "y_datum")
    np.testing.assert_array_equal(with_gaps.log_likelihood["y_data"], [0, 2, 3, 5])
    assert groups(with_gaps) == groups(result)
    without = to_arviz(masked, guide, x[seen], y[seen], seen[seen], **options)
    names = {"log_likelihood", "observed_data"}
    assert drop_masked(without).log_likelihood["y"].dims == ("chain", "draw", "data")
    assert names <= set(groups(without))
    found, expected = (az.loo(d, reff=1.0) for d in (with_gaps, without))
    name = "elpd_loo" if hasattr(expected, "elpd_loo") else "elpd"
    assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5)
    with pytest.raises(ValueError, match="has no log_likelihood, only"):
        drop_masked(to_arviz(masked, guide, x, y, seen, num_samples=1, groups=["posterior"]))


def test_an_observation_whose_elements_are_all_masked_is_a_gap():
    seen = torch.tensor([[True, False], [False, False], [True, True]])
    x = torch.where(seen, torch.ones(3, 2), torch.nan)

    def model(x, seen):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).mask(seen).to_event(1), obs=x)

    def guide(*args):
        pyro.sample("loc", dist.Delta(torch.ones(2), event_dim=1))

    found = to_arviz(model, guide, x, seen, num_samples=1).log_likelihood["x"].values[0, 0]
    one = float(dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)))
    np.testing.assert_allclose(found, [one, np.nan, 2 * one], rtol=1e-6)


def test_data_that_are_parents_of_data_are_no_inputs():
    def model(y, k, x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        before = torch.tensor(0.0)
        for t in pyro.markov(range(3)):
            before = pyro.sample(f"y_{t}", dist.Normal(slope * before + x, 1.0), obs=y[t])
        label = pyro.sample("k", dist.Bernoulli(0.5), obs=k)
        pyro.sample("last", dist.Normal(label, 1.0), obs=y[3])

    args = torch.randn(4), torch.tensor(1.0), torch.tensor(0.3)
    result = to_arviz(model, AutoNormal(model), *args, num_samples=1)
    assert set(result.constant_data) == {"x"}
