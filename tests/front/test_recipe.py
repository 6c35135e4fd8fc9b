"""What is random where a user says nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.front.recipe import PAPER, RELATIVE, as_random, default_optimizer, is_of_labels
from pyro_ibvi.models import Masked


def make_convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def test_labels_get_relative_noise_behind_the_first_layer() -> None:
    net = make_convnet()
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical())
    assert bnn.net.stochastic == ["5.weight", "7.weight"]
    for name in bnn.net.stochastic:
        weight = net.get_parameter(name)
        torch.testing.assert_close(bnn.guide.loc(f"net.{name}"), weight, rtol=0, atol=0)
        torch.testing.assert_close(bnn.guide.scale(f"net.{name}"), 0.35 * weight.abs())
    assert bnn.loss.draws == "datum"


def test_step_is_that_of_gaussian_dropout_by_hand() -> None:
    """One step from the same draws as a network whose hidden units are multiplied by hand."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(6, 5).double(), torch.randint(0, 3, (6,))
    bnn = ibvi.VariationalNetwork(
        net, ibvi.Categorical(), lr=0.1, parametrization=ibvi.MaximalUpdate(base=net)
    )
    loss_of_step = bnn.loss(bnn.model, bnn.guide)
    loss_of_step(x, y)  # the first call looks at model and guide, which draws numbers too
    torch.manual_seed(1)
    loss = loss_of_step(x, y)
    loss.backward()

    torch.manual_seed(1)
    hidden = net[:2](x)
    hidden = hidden * (1 + 0.35 * torch.randn(6, 8, dtype=torch.float64))
    by_hand = nn.functional.cross_entropy(hidden @ net[2].weight.T + net[2].bias, y)
    (gradient,) = torch.autograd.grad(by_hand, net[0].weight)
    torch.testing.assert_close(loss, by_hand, rtol=1e-12, atol=0)
    own = dict(bnn.model.named_parameters())["net.net.0.weight"].grad
    torch.testing.assert_close(own, gradient, rtol=1e-10, atol=1e-14)


def test_noise_keeps_its_size_in_training() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    bnn = ibvi.VariationalNetwork(
        nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2)), ibvi.Categorical()
    )
    bnn.fit(x, (x[:, 0] > 0).long(), num_epochs=30, batch_size=16, progress=False)
    loc, scale = (f("net.2.weight") for f in (bnn.guide.loc, bnn.guide.scale))
    torch.testing.assert_close(scale / loc.abs(), torch.full_like(loc, 0.35))


@pytest.mark.parametrize(
    ("likelihood", "choices"),
    [
        (ibvi.Normal(0.1), {}),
        (ibvi.Poisson(), {}),
        (ibvi.Categorical(), {"covariance": ibvi.LowRank(3)}),
        (ibvi.Categorical(), {"stochastic": "all"}),
        (ibvi.Categorical(), {"init_scale": 0.5}),
    ],
)
def test_other_targets_and_any_choice_get_the_papers_recipe(
    likelihood: Any, choices: dict[str, Any]
) -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    bnn = ibvi.VariationalNetwork(net, likelihood, **choices)
    assert "0.weight" in bnn.net.stochastic
    assert bnn.loss.draws == "batch"
    assert not any(isinstance(layer.covariance, ibvi.Multiplicative) for layer in bnn.guide.layers)
    assert not torch.equal(bnn.guide.loc("net.0.weight"), net[0].weight)


def test_network_without_a_dense_layer_behind_another() -> None:
    net, recipe = as_random(nn.Linear(4, 3), ibvi.Categorical())
    assert recipe is PAPER
    assert net.stochastic == ["weight"]
    _, recipe = as_random(make_convnet(), ibvi.Bernoulli())
    assert recipe is RELATIVE


def test_labels_are_seen_through_wrappers() -> None:
    assert is_of_labels(Masked(ibvi.Bernoulli()))
    assert not is_of_labels(Masked(ibvi.Normal(1.0)))


def test_relative_noise_for_numbers_by_its_covariance() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.1), covariance=ibvi.Multiplicative(0.1))
    assert bnn.net.stochastic == ["2.weight"]
    assert bnn.loss.draws == "datum"
    torch.testing.assert_close(bnn.guide.scale("net.2.weight"), 0.1 * net[2].weight.abs())


def test_each_choice_can_be_exchanged_alone() -> None:
    bnn = ibvi.VariationalNetwork(make_convnet(), ibvi.Categorical(), draws=4)
    assert bnn.loss.draws == 4
    assert bnn.net.stochastic == ["5.weight", "7.weight"]


@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])
def test_default_rate_is_stable_whatever_the_noise(scale: float, learn_scale: bool) -> None:
    """Smaller noise makes the gradient larger, by a factor of 400 here."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 64).unsqueeze(-1)
    net = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 1))
    bnn = ibvi.VariationalNetwork(net, ibvi.Normal(scale, learn_scale=learn_scale))
    bnn.fit(x, (3 * x).sin(), num_epochs=30, batch_size=16, progress=False)
    assert bnn.evaluate(x, (3 * x).sin(), seed=0)["rmse"] < 0.4  # that of the mean is 0.7


def test_default_optimizers() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    assert default_optimizer(ibvi.Categorical()) is torch.optim.SGD
    assert default_optimizer(Masked(ibvi.Normal(1.0))) is torch.optim.Adam
    bnn = ibvi.VariationalNetwork(net, ibvi.Poisson(), optimizer=torch.optim.SGD, lr=0.2)
    assert bnn.optim.make_torch()[0].defaults["lr"] == 0.2
