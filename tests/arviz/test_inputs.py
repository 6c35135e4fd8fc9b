"""New inputs, arguments of the model, and the modes of its modules."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule, PyroSample

import pyro_ibvi as ibvi
from pyro_ibvi.arviz import log_predictive_density, pareto_k, to_arviz
from tests.arviz.pairs import N, groups, hierarchical, network_model


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


Y_OF_GROUPS = torch.zeros(5)


class Groups(PyroModule):
    """Priors alone, for as many groups as it is told."""

    def __init__(self, num_groups, scale=None):
        super().__init__()
        self.num_groups = num_groups
        self.scale = None if scale is None else torch.nn.Parameter(torch.tensor(scale))

    def forward(self, y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = 1.0 if self.scale is None else self.scale.exp()
        with pyro.plate("groups", self.num_groups):
            return pyro.sample("y", dist.Normal(mean, scale), obs=y)


def test_the_guide_of_another_model_is_refused_where_that_has_learned_something():
    looks = (
        lambda *pair: to_arviz(*pair, Y_OF_GROUPS, num_samples=2),
        lambda *pair: log_predictive_density(*pair, Y_OF_GROUPS, num_samples=2),
        lambda *pair: pareto_k(*pair, Y_OF_GROUPS, num_samples=25),
    )
    guide = ibvi.AutoMuPNormal(Groups(3))
    for look in looks:
        look(Groups(5), guide)  # one for new groups has the same priors
    model, other = Groups(5, 0.1), Groups(5, 0.2)
    guide = ibvi.AutoMuPNormal(other)
    for look in looks:
        look(other, guide)
        with pytest.raises(ValueError, match="The guide was made for another Groups than"):
            look(model, guide)
    with pytest.raises(ValueError, match="The guide was made for another Groups than"):
        ibvi.explain(ibvi.TraceExpectedLogLikelihood(), model, guide, Y_OF_GROUPS)


def test_draws_in_the_place_of_a_guide():
    draws = {"mean": torch.zeros(5)}
    for look in (to_arviz, log_predictive_density, pareto_k):
        with pytest.raises(TypeError, match=r"guide must be.*got dict\. Draws.*arviz.from_pyro"):
            look(Groups(3), draws, Y_OF_GROUPS)
    with pytest.raises(TypeError, match="model must be a function or a module of Pyro, got dict"):
        to_arviz(draws, ibvi.AutoMuPNormal(Groups(3)), Y_OF_GROUPS)


def test_a_guide_that_runs_the_model_needs_its_targets():
    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.01), obs=y)

    x = torch.linspace(1.0, 2.0, 4)
    guide = AutoNormalMessenger(model)
    guide(x, 3.0 * x)
    names = [name for name, _ in guide.named_parameters()]
    with pytest.raises(ValueError, match=r"has made the parameters \['locs.y.*predictions=\(x,\)"):
        to_arviz(model, guide, x, num_samples=2)
    assert [name for name, _ in guide.named_parameters()] == names
    found = to_arviz(model, guide, x, 3.0 * x, num_samples=20, predictions=(x[:2],), seed=0)
    slope, y = found.posterior["slope"].values[..., None], found.predictions["y"].values
    assert abs(y - slope * x[:2].numpy()).max() < 0.06  # six standard deviations of the noise
