"""Export of this package's own model and guide."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

import pyro_ibvi as ibvi
from pyro_ibvi.arviz import to_arviz, write_arviz
from tests.arviz.pairs import groups


@pytest.fixture
def fit():
    pyro.set_rng_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(8, 1),
    )
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(net, stochastic="input+output"), ibvi.Normal(0.5), num_data=20
    )
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))
    return model, guide, torch.randn(10, 3), torch.randn(10, 1)


def test_a_whole_is_told_to_give_its_parts():
    bnn = ibvi.VariationalNetwork(torch.nn.Linear(3, 1), ibvi.Normal(0.5))
    x = torch.randn(10, 3)
    with pytest.raises(
        TypeError, match=r"holds a model and a guide: pass its \.model and \.guide"
    ):
        to_arviz(bnn, x)
    assert "posterior_predictive" in groups(to_arviz(bnn.model, bnn.guide, x, num_samples=2))


def test_groups_of_a_network(fit):
    model, guide, x, y = fit
    before = {n: v.clone() for n, v in model.state_dict().items()}
    model.train()
    result = to_arviz(model, guide, x, y, num_samples=4, seed=1)
    assert all(m.training for m in model.modules())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not hasattr(result, "posterior")  # weights are exported when named
    with pytest.raises(ValueError, match=r"groups \['posterior'\] would be empty: .*var_names="):
        to_arviz(model, guide, x, y, num_samples=4, groups=["posterior"])
    with pytest.raises(TypeError, match=r"path of the file comes first, .*got SupervisedModel"):
        write_arviz(model, guide, x, y)
    assert "degenerate" in result.sample_stats.attrs["log_q_omitted"]
    assert "part of the data in data" in result.sample_stats.attrs["log_p_scaled"]
    assert result.posterior_predictive["obs"].dims == ("chain", "draw", "data", "obs_dim_1")
    assert result.observed_data["obs"].shape == (10, 1)
    assert set(result.constant_data) == {"x"}
    assert result.attrs["guide"] == "AutoMuPNormal"

    model.eval()
    pyro.set_rng_seed(1)
    for s in range(4):
        guided = poutine.trace(guide).get_trace(x, y)
        site = poutine.trace(poutine.replay(model, guided)).get_trace(x, y).nodes["obs"]
        expected = site["fn"].log_prob(site["value"]).detach().numpy()
        np.testing.assert_array_equal(result.log_likelihood["obs"].values[0, s], expected)


def test_history_of_a_training(fit):
    model, guide, x, y = fit
    history = ibvi.training.History(train_loss=[3.0, 2.0])
    result = to_arviz(model, guide, x, y, num_samples=2, loss_history=history)
    assert list(result.sample_stats["train_loss"].values) == [3.0, 2.0]
    assert "valid_loss" not in result.sample_stats


def test_named_weights_of_a_network(fit):
    model, guide, x, y = fit
    result = to_arviz(model, guide, x, y, num_samples=4, var_names=["net.0.*"])
    assert result.posterior["net.0.weight"].shape == (1, 4, 8, 3)
    assert set(result.posterior) == {"net.0.weight", "net.0.bias"}
    assert set(result.prior) == {"net.0.weight", "net.0.bias"}


def test_classes_and_predictions():
    pyro.set_rng_seed(0)
    net = torch.nn.Linear(3, 4)
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Categorical(), num_data=9)
    guide = ibvi.AutoMuPNormal(model)
    x, y = torch.randn(9, 3), torch.randint(4, (9,))
    result = to_arviz(model, guide, x, y, num_samples=3, predictions=torch.randn(5, 3))
    assert result.posterior_predictive["obs"].dims == ("chain", "draw", "data")
    assert result.posterior_predictive["obs"].dtype == np.int64
    assert result.predictions["obs"].shape == (1, 3, 5)
    assert result.predictions_constant_data["x"].shape == (5, 3)
