"""Values of an export: draws, log-likelihoods, priors, masks, enumerated sites."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
    init_to_value,
)

from pyro_ibvi.arviz import to_arviz
from tests.arviz.pairs import (
    J,
    groups,
    hierarchical,
    plain,
    round_trip_arguments,
    round_trip_model,
)


def handmade(model, guide, args, num_samples, seed):
    """The draws and log-likelihoods of a plain Pyro loop."""
    pyro.set_rng_seed(seed)
    pairs = []
    for _ in range(num_samples):
        guide_trace = poutine.trace(guide).get_trace(*args)
        replayed = poutine.replay(model, trace=guide_trace)
        pairs.append((guide_trace, poutine.trace(replayed).get_trace(*args)))
    return pairs


GUIDES = {
    "normal": AutoNormal,
    "diagonal": AutoDiagonalNormal,
    "multivariate": AutoMultivariateNormal,
    "low rank": AutoLowRankMultivariateNormal,
    "flow": AutoIAFNormal,
    "structured": AutoStructured,
    "messenger": AutoNormalMessenger,
    "delta": AutoDelta,
}


def list_guide(model):
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["tau"])))
    guide.append(AutoNormal(poutine.block(model, hide=["tau", "y", "total", "mean"])))
    return guide


def hand_guide(model):
    def guide(x, group, y=None):
        tau = pyro.param("tau_loc", torch.tensor(1.5))
        pyro.sample("tau", dist.Delta(tau))
        pyro.sample("one", dist.Normal(torch.ones(1), 0.1).to_event(1))
        pyro.sample("beta", dist.Normal(torch.ones(x.shape[1]), 0.1).to_event(1))
        with pyro.plate("group", J):
            pyro.sample("theta", dist.Normal(0.0, 0.1))

    return guide


@pytest.mark.parametrize("make", [*GUIDES.values(), list_guide, hand_guide])
def test_draws_and_log_likelihood_equal_a_handmade_loop(make, data):
    guide = make(hierarchical)
    guide(*data)
    result = to_arviz(hierarchical, guide, *data, num_samples=4, seed=11)
    pairs = handmade(hierarchical, guide, data, 4, seed=11)
    for name in ("tau", "one", "beta", "theta", "mean"):
        expected = torch.stack([m.nodes[name]["value"] for _, m in pairs])[None]
        np.testing.assert_array_equal(result.posterior[name].values, expected.detach().numpy())
    for name in ("y", "total"):
        nodes = [m.nodes[name] for _, m in pairs]
        expected = torch.stack([s["fn"].log_prob(s["value"]) for s in nodes])[None]
        found = result.log_likelihood[name].values
        np.testing.assert_array_equal(found, expected.detach().numpy())
    log_p = [m.log_prob_sum().item() for _, m in pairs]
    np.testing.assert_allclose(result.sample_stats["log_p"].values[0], log_p, rtol=1e-6)
    if make is AutoDelta:
        assert "log_q" not in result.sample_stats
        assert "point estimate" in result.sample_stats.attrs["log_q_omitted"]
    else:
        # a messenger runs the model, too, whose data are no part of q
        log_q = [g.log_prob_sum(lambda name, s: not s["is_observed"]).item() for g, _ in pairs]
        np.testing.assert_allclose(result.sample_stats["log_q"].values[0], log_q, rtol=1e-5)


def test_a_point_mass_below_wrappers_has_no_density():
    def model(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    def guide(y):
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("w", dist.Independent(dist.Delta(loc), 1))

    result = to_arviz(model, guide, torch.ones(3), num_samples=2)
    assert "point estimate" in result.sample_stats.attrs["log_q_omitted"]
    assert "log_q" not in result.sample_stats


def test_without_a_seed_the_global_generator_is_used_as_by_hand(data):
    guide = AutoNormal(hierarchical)
    guide(*data)
    pyro.set_rng_seed(5)
    result = to_arviz(hierarchical, guide, *data, num_samples=3)
    after = torch.rand(1)
    pairs = handmade(hierarchical, guide, data, 3, seed=5)
    expected = torch.stack([m.nodes["theta"]["value"] for _, m in pairs])[None]
    np.testing.assert_array_equal(result.posterior["theta"].values, expected.detach().numpy())
    assert after == torch.rand(1)


def test_seed_leaves_the_global_generators_and_ignores_the_other_groups(data):
    guide = AutoNormal(hierarchical)
    guide(*data)
    torch.manual_seed(1)
    expected = torch.rand(1), np.random.rand()
    pyro.set_rng_seed(1)
    expected = torch.rand(1), np.random.rand()
    pyro.set_rng_seed(1)
    whole = to_arviz(hierarchical, guide, *data, num_samples=3, seed=2)
    assert (torch.rand(1), np.random.rand()) == expected
    part = to_arviz(hierarchical, guide, *data, num_samples=3, seed=2, groups=["prior"])
    assert groups(part) == ["prior"]
    assert plain(part, "prior").identical(plain(whole, "prior"))


def test_posterior_predictive_redraws_each_observed_site_given_the_draw():
    def model(y, z):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            y = pyro.sample("y", dist.Normal(loc, 0.01), obs=y)
            pyro.sample("z", dist.Normal(10 * y, 0.01), obs=z)

    guide = AutoNormal(model, init_loc_fn=lambda site: torch.tensor(5.0), init_scale=0.5)
    result = to_arviz(model, guide, torch.zeros(3), torch.zeros(3), num_samples=40)
    redrawn = result.posterior_predictive
    # the child follows the redrawn parent, not the observed zeros
    assert abs(redrawn["y"] - result.posterior["loc"]).max() < 0.1
    assert abs(redrawn["z"] - 10 * redrawn["y"]).max() < 0.1
    assert (result.observed_data["y"] == 0).all()


def test_prior_is_the_models():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(3.0, 0.1))
        pyro.sample("y", dist.Normal(loc, 0.1), obs=y)

    guide = AutoNormal(model, init_loc_fn=lambda site: torch.tensor(-5.0), init_scale=0.01)
    result = to_arviz(model, guide, torch.tensor(-5.0), num_samples=400, seed=0)
    se = 0.1 / 20
    assert abs(float(result.prior["loc"].mean()) - 3.0) < 4 * se
    assert abs(float(result.prior_predictive["y"].mean()) - 3.0) < 4 * 2**0.5 * se
    assert abs(float(result.posterior["loc"].mean()) + 5.0) < 0.01


def test_improper_prior_is_a_sentence():
    def model(y):
        support = dist.constraints.real
        loc = pyro.sample("loc", dist.ImproperUniform(support, (), ()))
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    def guide(y):
        pyro.sample("loc", dist.Normal(y, 1.0))

    y = torch.tensor(0.0)
    guided = poutine.trace(guide).get_trace(y)
    keep = ["~prior", "~prior_predictive"]
    conditioned = to_arviz(model, guide, y, num_samples=2, groups=keep)
    assert "prior" not in groups(conditioned)
    assert guided.nodes["loc"]["value"].shape == ()
    with pytest.raises(ValueError, match=r"groups=\['~prior', '~prior_predictive'\]"):
        to_arviz(model, guide, y, num_samples=2)


class Laplace(dist.TorchDistribution):
    """A density that somebody wrote for a likelihood, without draws."""

    arg_constraints = {}  # noqa: RUF012
    support = dist.constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape)

    def expand(self, batch_shape, _instance=None):
        return Laplace(self.loc.expand(batch_shape))

    def log_prob(self, value):
        return -(value - self.loc).abs() - torch.tensor(2.0).log()


def test_a_density_without_draws_is_told_with_the_groups_to_leave_out():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", Laplace(loc), obs=y)

    guide, y = AutoNormal(model), torch.tensor([0.0, 1.0, 3.0])
    lacking = r"'y', Laplace, has.*'~posterior_predictive', '~prior', '~prior_predictive'\]"
    with pytest.raises(ValueError, match=lacking):
        to_arviz(model, guide, y, num_samples=2)
    with pytest.raises(ValueError, match=r"leave out groups=\['~predictions'\]"):
        to_arviz(model, guide, y, groups=["posterior", "predictions"], predictions=y)
    left = ["~posterior_predictive", "~prior", "~prior_predictive"]
    result = to_arviz(model, guide, y, num_samples=2, groups=left)
    loc = torch.as_tensor(result.posterior["loc"].values)[..., None]
    expected = torch.distributions.Laplace(loc, 1.0).log_prob(y)
    found = torch.as_tensor(result.log_likelihood["y"].values)
    torch.testing.assert_close(found, expected)


def test_masks_are_nan_and_scales_are_ignored():
    mask = torch.tensor([True, False, True])

    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6, subsample=torch.tensor([4, 1, 3])):
            with poutine.scale(scale=7.0), poutine.mask(mask=mask):
                pyro.sample("a", dist.Normal(loc, 1.0), obs=y)
            pyro.sample("b", dist.Normal(loc, 1.0).mask(mask), obs=y)

    y = torch.tensor([0.0, 1.0, 2.0])
    guide = AutoNormal(model)
    result = to_arviz(model, guide, y, num_samples=2, coords={"data": list("uvwxyz")})
    loc = torch.tensor(result.posterior["loc"].values)[..., None]
    expected = dist.Normal(loc, 1.0).log_prob(y).masked_fill(~mask, torch.nan)
    for name in ("a", "b"):
        np.testing.assert_array_equal(result.log_likelihood[name].values, expected.numpy())
    assert list(result.log_likelihood["a"].coords["data"].values) == ["y", "v", "x"]


def test_partly_observed_sites():
    mask = torch.tensor([True, False, True])

    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y, obs_mask=mask)

    result = to_arviz(model, AutoNormal(model), torch.tensor([0.0, 1.0, 2.0]), num_samples=5)
    assert set(result.posterior) == {"loc", "y", "y_unobserved"}
    assert np.isnan(result.log_likelihood["y_observed"].values[..., 1]).all()
    assert np.isfinite(result.log_likelihood["y_observed"].values[..., [0, 2]]).all()


def test_random_subsamples_are_held_over_the_draws():
    def model(y):
        with pyro.plate("data", len(y), subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[index])

    def create_plates(y):
        return pyro.plate("data", len(y), subsample_size=4)

    y = torch.arange(20.0)
    guide = AutoNormal(model, create_plates=create_plates)
    result = to_arviz(model, guide, y, num_samples=3)
    index = result.posterior["z"].coords["data"].values
    assert len(set(index)) == 4
    np.testing.assert_array_equal(result.observed_data["y"].values, y.numpy()[index])
    np.testing.assert_array_equal(result.observed_data.coords["data"].values, index)


def test_enumerated_sites_follow_their_exact_conditional():
    @config_enumerate
    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-5.0, 5.0]), 0.1).to_event(1))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)

    y = torch.tensor([-5.0, 5.0, 0.0])
    start = init_to_value(values={"loc": torch.tensor([-5.0, 5.0])})
    guide = AutoNormal(poutine.block(model, expose=["loc"]), init_loc_fn=start, init_scale=0.01)
    result = to_arviz(model, guide, y, num_samples=300, seed=0)
    z = result.posterior["z"]
    assert z.dims == ("chain", "draw", "data")
    assert (z[..., 0] == 0).all()
    assert (z[..., 1] == 1).all()
    loc = torch.tensor(result.posterior["loc"].values)[0]
    weight = torch.softmax(dist.Normal(loc, 1.0).log_prob(torch.tensor(0.0)), -1)[:, 1]
    assert abs(float(z[..., 2].mean()) - weight.mean()) < 4 * 0.5 / 300**0.5
    assert result.posterior.attrs["inferred_discrete"] == "z"
    parts = dist.Normal(loc[:, None, :], 1.0).log_prob(y[:, None])
    expected = parts.logsumexp(-1) - math.log(2)
    np.testing.assert_allclose(result.log_likelihood["y"].values[0], expected, rtol=1e-5)
    attrs = result.log_likelihood["y"].attrs
    assert attrs == {"conditioned_on": "loc", "summed_out": "z"}
    joint = expected.sum(-1) + dist.Normal(torch.tensor([-5.0, 5.0]), 0.1).log_prob(loc).sum(-1)
    np.testing.assert_allclose(result.sample_stats["log_p"].values[0], joint, rtol=1e-5)


def test_dtype_of_draws_and_of_log_likelihoods(data):
    guide = AutoNormal(hierarchical)
    result = to_arviz(hierarchical, guide, *data, num_samples=2, dtype="float16")
    assert result.posterior["theta"].dtype == np.float16
    assert result.log_likelihood["y"].dtype == np.float32
    assert result.sample_stats["log_p"].dtype == np.float64
    assert result.constant_data["group"].dtype == np.int64


def test_log_likelihood_has_the_precision_of_the_model():
    args = round_trip_arguments()
    guide = AutoNormal(round_trip_model)
    result = to_arviz(round_trip_model, guide, *args, num_samples=2, dtype="float16")
    assert result.log_likelihood["y"].dtype == np.float32
    result = to_arviz(round_trip_model, guide, *args, num_samples=2, seed=0)
    assert result.observed_data["y"].dtype == np.float32
    assert result.log_likelihood["y"].dtype == np.float64
    rate = torch.tensor((result.posterior["w"] * args[0].numpy()).values).exp()
    expected = dist.Poisson(rate).log_prob(args[1])
    np.testing.assert_array_equal(result.log_likelihood["y"][..., 1:], expected[..., 1:])
