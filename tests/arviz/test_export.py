"""Export to ArviZ: values, shapes, names, files, and what is never exported unasked."""

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
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
from pyro.nn import PyroModule, PyroSample

from pyro_ibvi.arviz import to_arviz, write_arviz

J, N = 3, 7
OLD = "InferenceData" in vars(az)  # ArviZ 0.x


def groups(data):
    """Names of the groups of an InferenceData or a DataTree."""
    return list(data.children) if isinstance(data, xarray.DataTree) else list(data.groups())


def plain(data, group):
    """One group without its attributes, of which ``created_at`` differs between two runs."""
    found = data[group]
    return (found if isinstance(found, xarray.Dataset) else found.to_dataset()).drop_attrs()


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def hierarchical(x, group, y=None):
    """Two plates, a size-1 site, an event dimension, a deterministic and two observed sites."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    one = pyro.sample("one", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("group", J):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
    mean = pyro.deterministic("mean", theta[group] + x @ beta + one)
    pyro.sample("total", dist.Normal(mean.sum(), 2.0), obs=None if y is None else y.sum())
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


@pytest.fixture
def data():
    x, group = torch.randn(N, 2), torch.arange(N) % J
    return x, group, torch.randn(N)


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
        log_q = [g.log_prob_sum().item() for g, _ in pairs]
        np.testing.assert_allclose(result.sample_stats["log_q"].values[0], log_q, rtol=1e-5)


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


def test_dimensions_come_from_plates_and_no_size_one_dimension_is_dropped(data):
    result = to_arviz(hierarchical, AutoNormal(hierarchical), *data, num_samples=2)
    posterior = result.posterior
    assert posterior["tau"].dims == ("chain", "draw")
    assert posterior["one"].dims == ("chain", "draw", "one_dim_0")
    assert posterior["one"].shape == (1, 2, 1)
    assert posterior["theta"].dims == ("chain", "draw", "group")
    assert posterior["beta"].dims == ("chain", "draw", "beta_dim_0")
    assert result.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert result.log_likelihood["total"].dims == ("chain", "draw")
    assert result.observed_data["y"].dims == ("data",)
    assert result.constant_data["x"].dims == ("data", "x_dim_1")
    assert set(result.constant_data) == {"x", "group"}
    np.testing.assert_array_equal(result.observed_data["y"].values, data[2].numpy())
    np.testing.assert_array_equal(result.constant_data["x"].values, data[0].numpy())


def test_size_one_plates_and_single_draws_keep_their_dimensions():
    def model(y):
        with pyro.plate("a", 1, dim=-2), pyro.plate("b", 1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    result = to_arviz(model, AutoNormal(model), torch.zeros(1, 1, 1), num_samples=1)
    assert result.posterior["z"].dims == ("chain", "draw", "a", "b", "z_dim_2")
    assert result.posterior["z"].shape == (1, 1, 1, 1, 1)
    assert result.log_likelihood["y"].dims == ("chain", "draw", "a", "b")


def test_dims_and_coords_of_the_user(data):
    index = pd.Index(list("abcdefg"), name="case")
    result = to_arviz(
        hierarchical,
        AutoNormal(hierarchical),
        *data,
        num_samples=2,
        dims={"beta": ["feature"], "x": [None, "feature"], "mean": ["data"]},
        coords={"data": index, "feature": ["height", "width"], "group": torch.tensor([5, 6, 7])},
    )
    assert list(result.posterior["beta"].coords["feature"].values) == ["height", "width"]
    assert list(result.log_likelihood["y"].coords["data"].values) == list("abcdefg")
    assert list(result.posterior["theta"].coords["group"].values) == [5, 6, 7]
    assert result.constant_data["x"].dims == ("data", "feature")
    assert result.posterior["mean"].dims == ("chain", "draw", "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": {"beta": ["a", "b"]}}, "name all of them, or only the 1 that no plate names"),
        ({"coords": {"group": [1, 2]}}, r"2 labels for a dimension of length 3; labels of new"),
        ({"coords": {"data": pd.MultiIndex.from_product([range(N), [1]])}}, "index.map"),
        ({"var_names": ["gamma*"]}, r"'gamma\*' matches no site; the sites are 'tau', 'one'"),
        ({"groups": ["posteriors"]}, r"Unknown groups \['posteriors'\]"),
        ({"dims": {"gamma": ["a"]}}, r"dims speaks of \['gamma'\]; there are \['beta'"),
        ({"coords": {"feature": [1, 2]}}, r"coords speaks of \['feature'\]; there are"),
        ({"dtype": "int8"}, "floating-point type such as 'float32', got 'int8'"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"max_bytes": 100}, r"need \d+ bytes, more than max_bytes=100; the largest .*var_names="),
        ({"dims": {"mean": ["group"]}}, "Dimension 'group' has length 3 in one variable and 7"),
    ],
)
def test_wrong_options_are_sentences(options, message, data):
    with pytest.raises(ValueError, match=message):
        to_arviz(hierarchical, AutoNormal(hierarchical), *data, **{"num_samples": 2} | options)


def test_var_names_is_a_list(data):
    with pytest.raises(TypeError, match=r"write \['tau'\]"):
        to_arviz(hierarchical, AutoNormal(hierarchical), *data, var_names="tau")


def test_column_targets_against_flat_means_raise():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(loc.expand(5), 1.0), obs=y)

    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"shape \(5, 1\), but its distribution has shape \(5,\)"),
    ):
        to_arviz(model, AutoNormal(model), torch.zeros(5, 1), num_samples=1)


def network_model(x, y=None):
    weight = dist.Normal(torch.zeros(2, 1), 1.0).to_event(2)
    w = pyro.sample("net.0.weight", weight, infer={"ibvi_weight": {"role": "input"}})
    b = pyro.sample("net.0.bias", dist.Normal(0.0, 1.0), infer={"ibvi_weight": None})
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal((x @ w).squeeze(-1) + b, sigma), obs=y)


@pytest.mark.parametrize(
    ("var_names", "expected"),
    [
        (None, {"sigma"}),
        (["net.0.*"], {"net.0.weight", "net.0.bias"}),
        (["net.0.bias", "sigma"], {"net.0.bias", "sigma"}),
        (["*", "~*.weight"], {"net.0.bias", "sigma"}),
        (["~sigma"], set()),
    ],
)
def test_weights_of_networks_are_exported_only_when_named(var_names, expected, data):
    args = data[0], data[2]
    guide = AutoNormal(network_model)
    result = to_arviz(network_model, guide, *args, num_samples=2, var_names=var_names)
    found = set(result["posterior"]) if "posterior" in groups(result) else set()
    assert found == expected
    assert "y" in result.posterior_predictive


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
    given = dist.Normal(loc.gather(1, torch.tensor(z.values[0])), 1.0).log_prob(y)
    np.testing.assert_allclose(result.log_likelihood["y"].values[0], given, rtol=1e-5)
    assert "density for z" in result.sample_stats.attrs["log_p_omitted"]


def test_predictions_share_the_posterior_draws(data):
    x, group, y = data
    new = torch.randn(4, 2)
    inputs = {"x": new, "group": torch.zeros(4, dtype=torch.long)}
    guide = AutoNormal(hierarchical)
    result = to_arviz(
        hierarchical,
        guide,
        x,
        group,
        y,
        num_samples=5,
        predictions=inputs,
        coords={"data": list("abcdefg")},
        predictions_coords={"data": list("wxyz")},
    )
    p = {n: torch.tensor(result.posterior[n].values) for n in ("theta", "beta", "one")}
    mean = p["theta"][..., :1] + p["beta"] @ new.T + p["one"]
    found = result.predictions["mean"].values
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)
    assert result.predictions["y"].shape == (1, 5, 4)
    assert list(result.predictions.coords["data"].values) == list("wxyz")
    np.testing.assert_array_equal(result.predictions_constant_data["x"].values, new.numpy())
    assert list(result.constant_data.coords["data"].values) == list("abcdefg")


def test_local_latents_of_new_units_come_from_the_model():
    def model(x, y=None):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, scale))
            return pyro.sample("y", dist.Normal(z, 0.1), obs=y)

    guide = AutoNormal(model)
    args = torch.zeros(3), torch.zeros(3)
    new = torch.full((200,), 50.0)
    result = to_arviz(model, guide, *args, num_samples=4, predictions=(new,))
    assert abs(float(result.predictions["y"].mean()) - 50.0) < 4 * 1.2 / 200**0.5
    assert result.predictions.attrs["drawn_from_model"] == "z"


def test_targets_left_out_are_predicted(data):
    x, y = data[0], data[2]
    guide = AutoNormal(network_model)
    guide(x, y)
    result = to_arviz(network_model, guide, x, num_samples=2)
    assert result.posterior_predictive["y"].shape == (1, 2, N)
    assert "observed_data" not in groups(result)
    assert "log_likelihood" not in groups(result)


class Net(PyroModule):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)
        )
        self.out = PyroModule[torch.nn.Linear](4, 1)
        self.out.weight = PyroSample(dist.Normal(torch.zeros(1, 4), 1.0).to_event(2))

    def forward(self, x, y=None):
        mean = self.out(self.body(x)).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("wrapped", [False, True])
def test_modes_and_batchnorm_statistics_are_untouched(wrapped, data):
    net = Net()
    net.body[2].eval()
    model = (lambda *args: net(*args)) if wrapped else net
    guide = AutoNormal(net)
    guide(data[0], data[2])
    before = {n: v.clone() for n, v in net.state_dict().items()}
    modes = {n: m.training for n, m in net.named_modules()}
    result = to_arviz(model, guide, data[0], data[2], num_samples=2, seed=0)
    assert modes == {n: m.training for n, m in net.named_modules()}
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    again = to_arviz(net.eval(), guide, data[0], data[2], num_samples=2, seed=0)
    np.testing.assert_array_equal(result.log_likelihood["y"], again.log_likelihood["y"])


def test_modes_are_restored_after_an_error(data):
    net = Net()
    guide = AutoNormal(net)
    with pytest.raises(ValueError, match="max_bytes=1"):
        to_arviz(net, guide, data[0], data[2], max_bytes=1)
    assert all(m.training for m in net.modules())


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


def test_targets_are_no_constant_data_even_if_the_model_converts_them():
    def model(inputs, labels, weights):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(labels)):
            pyro.sample("y", dist.Categorical(logits=loc), obs=labels.long().squeeze(-1))

    labels = torch.tensor([[0.0], [2.0]])
    inputs = {"image": torch.ones(2, 4), "pair": (torch.ones(2), torch.zeros(5))}
    result = to_arviz(model, AutoNormal(model), inputs, labels, np.ones(2), num_samples=1)
    assert set(result.constant_data) == {
        "inputs_image",
        "inputs_pair_0",
        "inputs_pair_1",
        "weights",
    }
    assert result.constant_data["inputs_image"].dims == ("data", "inputs_image_dim_1")
    assert result.constant_data["inputs_pair_1"].dims == ("inputs_pair_1_dim_0",)


def test_attributes_and_history(data):
    guide = AutoNormal(hierarchical)
    objective = pyro.infer.Trace_ELBO()
    result = to_arviz(
        hierarchical,
        guide,
        *data,
        num_samples=2,
        objective=objective,
        loss_history=[3.0, 2.0, 1.0],
    )
    for attrs in (result.attrs, result.posterior.attrs):
        assert attrs["inference_library"] == "pyro"
        assert attrs["inference_library_version"] == pyro.__version__
        assert attrs["guide"] == "AutoNormal"
        assert attrs["model"] == "hierarchical"
        assert attrs["objective"] == "Trace_ELBO"
    options = {"num_samples": 1, "groups": ["posterior"]}
    bound = to_arviz(hierarchical, guide, *data, objective=objective.loss, **options)
    assert bound.attrs["objective"] == "Trace_ELBO"
    assert to_arviz(hierarchical, guide, *data, **options).attrs["objective"] == "not stated"
    assert result.sample_stats["loss"].dims == ("step",)
    assert list(result.sample_stats["loss"].values) == [3.0, 2.0, 1.0]


def test_deterministic_sites_inside_plates():
    def model(y):
        with pyro.plate("school", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", 2 * z)
            pyro.deterministic("pair", torch.stack([z, theta], -1))
            pyro.deterministic("told", torch.stack([z, theta], -1), event_dim=1)
            pyro.deterministic("other", torch.zeros(3))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    result = to_arviz(model, AutoNormal(model), torch.zeros(4), num_samples=3)
    for group in (result.posterior, result.prior):
        assert group["theta"].dims == ("chain", "draw", "school")
        assert group["pair"].dims == ("chain", "draw", "school", "pair_dim_1")
        assert group["told"].dims == ("chain", "draw", "school", "told_dim_1")
        assert group["other"].dims == ("chain", "draw", "other_dim_0")
        np.testing.assert_array_equal(group["theta"].values, 2 * group["z"].values)


def test_names_that_a_file_cannot_hold():
    def model(y):
        with pyro.plate("y", len(y)):
            z = pyro.sample("a/z", dist.Normal(0.0, 1.0))
            pyro.sample("y_", dist.Normal(z, 1.0), obs=y)

    result = to_arviz(model, AutoNormal(model), torch.zeros(3), num_samples=2)
    assert result.posterior["a.z"].dims == ("chain", "draw", "y")

    def clash(y):
        pyro.sample("draw", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'chain' and 'draw' are taken"):
        to_arviz(clash, AutoNormal(clash), torch.zeros(3), num_samples=2)


def test_a_plate_named_like_a_site():
    def model(data):
        with pyro.plate("y", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y_obs", dist.Normal(z, 1.0), obs=data)
        pyro.sample("data_sum", dist.Normal(z.sum(), 1.0), obs=data.sum())

    def same(x):
        with pyro.plate("x", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    result = to_arviz(model, AutoNormal(model), torch.zeros(3), num_samples=2)
    assert result.posterior["z"].dims == ("chain", "draw", "y")
    result = to_arviz(same, AutoNormal(same), torch.zeros(3), num_samples=2)
    assert result.constant_data["x"].dims == ("x_dim_0",)


def test_changing_shapes_are_a_sentence():
    def model():
        n = 1 + int(torch.rand(()) * 100)
        pyro.deterministic("d", torch.zeros(n))

    def guide():
        pass

    with pytest.raises(ValueError, match=r"needs sites of fixed shape.*var_names=\['~d'\]"):
        to_arviz(model, guide, num_samples=20, seed=0)


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


def round_trip_model(x, y):
    """Floats of both widths, integers, flags, NaN and a size-1 dimension."""
    w = pyro.sample("w", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
    pyro.deterministic("flag", w > 0)
    with pyro.plate("data", len(x)), poutine.mask(mask=y > 0):
        pyro.sample("y", dist.Poisson((w * x).exp()), obs=y)


def round_trip_arguments():
    return torch.linspace(0, 1, 5, dtype=torch.float64), torch.tensor([0.0, 1, 2, 3, 4])


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
