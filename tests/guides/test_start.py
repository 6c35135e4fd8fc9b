"""The start has the prior's standard deviation in unconstrained space, whatever its size."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_ibvi as ibvi
from pyro_ibvi import AutoMuPNormal, Diagonal
from pyro_ibvi.guides import start


def start_of(prior):
    def model():
        pyro.sample("x", prior)

    torch.manual_seed(0)
    return AutoMuPNormal(model, covariance=Diagonal()).scale("x")


def test_a_large_prior_of_one_distribution_is_estimated_as_one():
    scale = start_of(dist.HalfNormal(1.0).expand([1000, 2000]).to_event(2))
    # log |z| of a standard normal z has the standard deviation pi / sqrt(8).
    torch.testing.assert_close(
        scale, torch.full((1000, 2000), math.pi / 8**0.5), rtol=0.1, atol=0.0
    )


def test_a_large_prior_of_one_distribution_in_memory_of_its_own():
    scale = start_of(dist.HalfNormal(torch.full((2000, 500), 0.3)).to_event(2))
    assert scale.unique().numel() == 1
    assert scale[0, 0].item() == pytest.approx(math.pi / 8**0.5, rel=0.1)


def test_distributions_of_one_prior_are_told_apart():
    concentration = torch.tensor([0.5, 2.0, 8.0])[:, None].expand(3, 100_000)
    scale = start_of(dist.Gamma(concentration, 1.0).to_event(2))
    # The logarithm of a Gamma variable has the variance trigamma(concentration).
    expected = torch.polygamma(1, concentration).sqrt()
    torch.testing.assert_close(scale, expected, rtol=0.1, atol=0.0)


def test_very_many_different_distributions_are_estimated_with_the_stated_error(monkeypatch):
    monkeypatch.setattr(start, "_MAX_DRAWN_ENTRIES", 10**6)
    concentration = torch.linspace(1.0, 4.0, 40_000)
    scale = start_of(dist.Gamma(concentration, 1.0).to_event(1)).detach()
    ratio = scale / torch.polygamma(1, concentration).sqrt()
    assert ratio.min() > 0.4
    # A little above that of Gaussian draws, since log-Gamma variables have heavier tails.
    assert ratio.std() == pytest.approx((2 * 30) ** -0.5, rel=0.3)


def test_simplices_and_bounded_supports_are_estimated_per_distribution():
    scale = start_of(dist.Dirichlet(torch.full((4, 50, 3), 2.0)).to_event(2))
    assert scale.shape == (4, 50, 2)
    assert (scale[0, 0] == scale).all()
    scale = start_of(dist.Uniform(torch.zeros(7), torch.arange(1.0, 8.0)).to_event(1))
    # The logit of a uniform variable has the standard deviation pi / sqrt(3).
    torch.testing.assert_close(scale, torch.full((7,), math.pi / 3**0.5), rtol=0.1, atol=0.0)


def test_a_factor_that_fills_memory_is_told_of_before_it_does(monkeypatch):
    monkeypatch.setattr("pyro_ibvi.guides.start._LARGE", 4 * 40 * 8 * 5)
    net = torch.nn.Sequential(torch.nn.Embedding(40, 8), torch.nn.Linear(8, 2))
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(net, stochastic="input weights"), ibvi.Categorical()
    )
    with pytest.warns(UserWarning, match=r"'net\.0\.weight' has 5 numbers .* 320 weights"):
        ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(5))
    ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(4))
    ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal())


@pytest.mark.parametrize("concentration", [0.02, 0.005])
def test_a_prior_most_of_whose_draws_are_one_number_has_a_scale(concentration):
    torch.manual_seed(1)
    # A Gamma variable is one of a greater concentration times a power of a uniform one.
    logs = torch.distributions.Gamma(concentration + 1.0, 1.0).sample((100_000,)).log()
    logs += torch.rand(100_000).log() / concentration
    logs = logs.clamp(min=math.log(torch.finfo(torch.float32).tiny))
    assert (logs.median() == logs.min()) == (concentration == 0.005)
    scale = start_of(dist.Gamma(concentration, 1.0)).item()
    assert scale == pytest.approx(logs.std().item(), rel=0.1)


def test_draws_that_are_all_alike_say_nothing_of_a_scale():
    def model():
        rate = pyro.sample("rate", dist.Gamma(torch.tensor([1e-12, 2.0]), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(rate.sum(), 1.0), obs=torch.tensor(1.0))

    guide = AutoMuPNormal(model, covariance=Diagonal())
    assert guide.scale("rate")[0] == 1.0
    assert math.isfinite(Trace_ELBO().loss(model, guide))
