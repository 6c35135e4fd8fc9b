"""The theorem that the library is about, through ``SVI.step`` alone.

Wenger et al., arXiv:2505.20235, Theorem 1: on an overparametrized linear regression the expected
loss, minimized from the prior, ends at its minimizer nearest to the prior in 2-Wasserstein sense,
``loc = loc0 + X^+ (y - X loc0)`` and ``S = (I - X^+ X) S0``.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi

NUM_DATA, NUM_WEIGHTS = 5, 12


def train(*, covariance, kl_weight=0.0, num_steps=3500):
    x, y = torch.randn(NUM_DATA, NUM_WEIGHTS), torch.randn(NUM_DATA, 1)
    net = ibvi.RandomModule(
        nn.Linear(NUM_WEIGHTS, 1, bias=False),
        stochastic="all",
        parametrization=ibvi.Standard(),
        prior=1.0,
    )
    model = ibvi.SupervisedModel(net, ibvi.Normal(1.0), num_data=NUM_DATA)
    guide = ibvi.AutoMuPNormal(model, covariance=covariance)
    site = "net.weight"
    loc, factor = guide.loc(site).detach().clone(), guide.factor(site).detach().clone()
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.012, "momentum": 0.9}, guide)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean", kl_weight=kl_weight)
    svi = SVI(model, guide, optim, loss)
    for _ in range(num_steps):
        svi.step(x, y)
    return x, y, (loc, factor), (guide.loc(site).detach(), guide.factor(site).detach())


def closed_form(x, y, loc, factor):
    pinv = torch.linalg.pinv(x)
    residual = y.squeeze(-1) - x @ loc.squeeze(0)
    projection = torch.eye(NUM_WEIGHTS) - pinv @ x
    return loc + pinv @ residual, (projection @ factor.squeeze(0)).unsqueeze(0)


@pytest.mark.usefixtures("double")
def test_single_draw_sgd_with_momentum_reaches_the_closed_form():
    x, y, start, end = train(covariance=ibvi.LowRank(None))
    loc, factor = closed_form(x, y, *start)
    torch.testing.assert_close(end[0], loc, rtol=0, atol=1e-8)
    torch.testing.assert_close(end[1], factor, rtol=0, atol=1e-8)
    # What the theorem is for: the data are fit, and variance stays in their null space.
    assert (x @ end[1].squeeze(0)).abs().max() < 1e-8
    assert torch.linalg.matrix_norm(end[1].squeeze(0)) ** 2 == pytest.approx(
        NUM_WEIGHTS - NUM_DATA, abs=1e-6
    )


@pytest.mark.usefixtures("double")
def test_low_rank_reaches_the_projection_of_its_start():
    x, y, start, end = train(covariance=ibvi.LowRank(3), num_steps=1800)
    loc, factor = closed_form(x, y, *start)
    torch.testing.assert_close(end[0], loc, rtol=0, atol=1e-8)
    torch.testing.assert_close(end[1], factor, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("double")
def test_a_divergence_in_the_objective_leads_elsewhere():
    # The negative control: with some of the KL divergence the same check fails.
    x, y, start, end = train(covariance=ibvi.LowRank(None), kl_weight=0.1, num_steps=1500)
    loc, factor = closed_form(x, y, *start)
    assert (end[0] - loc).abs().max() > 1e-3
    assert (end[1] - factor).abs().max() > 1e-3


@pytest.mark.usefixtures("double")
def test_a_diagonal_factor_shrinks_to_nothing():
    # Every feature is used by some datum, so no diagonal S but zero lets X S vanish.
    *_, start, end = train(covariance=ibvi.Diagonal(), num_steps=1500)
    assert start[1].abs().min() > 0.99
    assert end[1].abs().max() < 0.01


@pytest.mark.usefixtures("double")
def test_a_hand_written_model_reaches_the_same_limit():
    def model(x, y):
        weight = pyro.sample("w", dist.Normal(0.0, 1.0).expand([NUM_WEIGHTS]).to_event(1))
        with pyro.plate("data", NUM_DATA):
            pyro.sample("obs", dist.Normal(x @ weight, 1.0), obs=y.squeeze(-1))

    x, y = torch.randn(NUM_DATA, NUM_WEIGHTS), torch.randn(NUM_DATA, 1)
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(None))
    guide.initialize(x, y)
    start = guide.loc("w").detach().clone(), guide.factor("w").detach().clone()
    args = {"lr": 0.001, "momentum": 0.9}
    svi = SVI(
        model,
        guide,
        ibvi.MuPOptim(torch.optim.SGD, args, guide),
        ibvi.TraceExpectedLogLikelihood(reduction="mean"),
    )
    for _ in range(3000):
        svi.step(x, y)
    loc, factor = closed_form(x, y, start[0].unsqueeze(0), start[1].unsqueeze(0))
    torch.testing.assert_close(guide.loc("w").detach(), loc.squeeze(0), rtol=0, atol=1e-8)
    torch.testing.assert_close(guide.factor("w").detach(), factor.squeeze(0), rtol=0, atol=1e-8)
